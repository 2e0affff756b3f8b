"""The table of known platform weaknesses that comes with this build: `advisories.toml`, beside this file.

Data, dated, replaceable: a newer table is read with `cloister.rats.advisory.parse_advisories` from any file.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from cloister.rats.advisory import Advisory, parse_advisories


@cache
def shipped_advisories() -> tuple[Advisory, ...]:
    """Return the rows of this build's table."""
    return parse_advisories((files("cloister.tee") / "advisories.toml").read_bytes())
