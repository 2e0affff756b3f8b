"""Revisions of the database, which Alembic runs; this module knows their order without loading it.

A revision is a file `versions/rNNNN_NAME.py`; its id is the file's name without `.py`, and files in the order of their
names are the chain. `revision, down_revision = chain(__file__)` is how each says so. What a released version shipped
keeps its name; new ones come after it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

VERSIONS: Final = Path(__file__).parent / "versions"
REVISIONS: Final = tuple(sorted(file.stem for file in VERSIONS.glob("r[0-9]*_*.py")))
HEAD: Final = REVISIONS[-1]


def chain(file: str) -> tuple[str, str | None]:
    """Return the id of the revision in `file` and of the one before it."""
    revision = Path(file).stem
    place = REVISIONS.index(revision)
    return revision, REVISIONS[place - 1] if place else None
