"""A set of Reference Values as one document: identity, version, time, entries.

What the owner signs and hands to whoever verifies (`cloister.crypto.references`). The version only grows for one
identity, so that an old set cannot be played back; the set ends at `not_after`, and no entry outlives it. This module
parses and writes; it verifies no signature. CoRIM is not read or written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

from cloister.errors import FormatRefused
from cloister.rats.reference import (
    ReferenceEntry,
    ReferenceEntryWire,
    entry_from_wire,
    entry_to_wire,
    parse_reference_entries,
)
from cloister.wire.limits import REFERENCE_ENTRIES, REFERENCE_SET_BYTES
from cloister.wire.strictjson import parse_json_object

SCHEMA: Final = 1
VERSION_CEILING: Final = 2**53 - 1  # what JSON numbers carry exactly (RFC 8259, section 6)
_CODE: Final = "rats.reference.set"
_IDENTITY: Final = re.compile(r"[a-z0-9][a-z0-9._/-]{0,127}")


class _SetWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    schema: int
    id: str
    version: int
    issued_at: datetime
    not_after: datetime
    entries: tuple[ReferenceEntryWire, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSet:
    """Reference values that belong together.

    Attributes:
        id: name under which versions count.
        version: grows with each issue.
        issued_at: aware.
        not_after: aware; past it the set says nothing.
        entries: at least one, each with an id of its own.
    """

    id: str
    version: int
    issued_at: datetime
    not_after: datetime
    entries: tuple[ReferenceEntry, ...]


def parse_reference_set(data: bytes) -> ReferenceSet:
    """Parse the JSON document.

    Raises:
        FormatRefused: not the schema, a key twice, no entries, two of one id, an entry that outlives the set, a time
            without zone, a version or name out of range (`rats.reference.set.*`, `rats.reference.malformed`).
    """
    document = parse_json_object(data, ceiling=REFERENCE_SET_BYTES, code=_CODE, family=FormatRefused)
    try:
        wire = msgspec.convert(document, _SetWire)
    except (msgspec.MsgspecError, ValueError) as err:
        raise _malformed(f"not a set of reference values: {err}") from err
    if wire.schema != SCHEMA:
        raise _malformed("unknown schema", path="schema", expected=str(SCHEMA), actual=str(wire.schema))
    if not _IDENTITY.fullmatch(wire.id):
        raise _malformed("not a name of a set", path="id", expected=_IDENTITY.pattern, actual=wire.id[:60])
    if not 0 < wire.version <= VERSION_CEILING:
        raise _malformed("version is out of range", path="version", expected="1 to 2^53-1", actual=str(wire.version))
    for name, time in (("issued_at", wire.issued_at), ("not_after", wire.not_after)):
        if time.tzinfo is None:
            raise _malformed("time has no time zone", path=name)
    if wire.issued_at >= wire.not_after:
        raise _malformed("set ends before it is issued", path="not_after", actual=wire.not_after.isoformat())
    if not 0 < len(wire.entries) <= REFERENCE_ENTRIES:
        raise _malformed(
            "impossible number of entries",
            path="entries",
            expected=f"1 to {REFERENCE_ENTRIES}",
            actual=str(len(wire.entries)),
        )
    entries = tuple(entry_from_wire(entry) for entry in wire.entries)
    for number, entry in enumerate(entries):
        if entry.not_after > wire.not_after:
            raise _malformed("entry outlives its set", path=f"entries[{number}].not_after", actual=entry.id[:80])
    if len({entry.id for entry in entries}) != len(entries):
        raise _malformed("two entries have one id", path="entries")
    return ReferenceSet(
        id=wire.id, version=wire.version, issued_at=wire.issued_at, not_after=wire.not_after, entries=entries
    )


def read_reference_values(data: bytes) -> tuple[ReferenceEntry, ...]:
    """Return the entries in any unsigned form: a set, one entry, or a list of them.

    Raises:
        FormatRefused: none of these forms (`rats.reference.malformed`, `rats.reference.set.*`), or a signed envelope,
            which nobody has verified here (`rats.reference.set.signed`).
    """
    if data.lstrip()[:1] != b"{":
        return parse_reference_entries(data)
    members = parse_json_object(data, ceiling=REFERENCE_SET_BYTES, code=_CODE, family=FormatRefused).keys()
    if "payloadType" in members:
        raise FormatRefused(
            f"{_CODE}.signed",
            "a signed envelope cannot be used before its signature is verified",
            hint="verify it and keep what it holds: `cloister refs verify`, option --out",
        )
    return parse_reference_set(data).entries if "entries" in members else parse_reference_entries(data)


def encode_reference_set(values: ReferenceSet) -> bytes:
    """Return the JSON document, indented; `parse_reference_set` reads it back equal."""
    wire = _SetWire(
        schema=SCHEMA,
        id=values.id,
        version=values.version,
        issued_at=values.issued_at,
        not_after=values.not_after,
        entries=tuple(entry_to_wire(entry) for entry in values.entries),
    )
    return msgspec.json.format(msgspec.json.encode(wire), indent=2) + b"\n"


def _malformed(message: str, *, path: str = "", expected: str = "", actual: str = "") -> FormatRefused:
    return FormatRefused(f"{_CODE}.malformed", message, path=path, expected=expected, actual=actual)
