"""The catalogue of refusals: for each error code its number, title, reason and fix, as data in `refusals.toml`.

Numbers are what people quote (`CLS-P-0101`), dotted codes are what programs compare. A code that ends in `.*` in the
catalogue covers the codes below it (one per register, say).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

_FILE = "refusals.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One entry of the catalogue."""

    code: str
    id: str
    title: str
    why: str
    fix: str


@cache
def catalogue() -> dict[str, Refusal]:
    """Return all entries by dotted code."""
    import tomllib  # only a refusal needs these
    from importlib import resources

    table = tomllib.loads(resources.files(__package__).joinpath(_FILE).read_text("utf-8"))
    return {
        code: Refusal(code=code, id=entry["id"], title=entry["title"], why=entry["why"], fix=entry["fix"])
        for code, entry in table.items()
    }


def find_refusal(text: str) -> Refusal | None:
    """Return the entry for a dotted code or a number (`CLS-P-0101`, any case); None when there is none."""
    entries = catalogue()
    if text.upper().startswith("CLS-"):
        return next((entry for entry in entries.values() if entry.id == text.upper()), None)
    parts = text.split(".")
    for length in range(len(parts), 0, -1):
        head = ".".join(parts[:length])
        if length == len(parts) and head in entries:
            return entries[head]
        if f"{head}.*" in entries:
            return entries[f"{head}.*"]
    return None


def refusal_number(code: str) -> str:
    """Return the number of a code, or the code itself when the catalogue has none."""
    entry = find_refusal(code)
    return entry.id if entry else code
