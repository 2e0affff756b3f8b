"""Reference Value Provider (RFC 9334): what the owner registered as acceptable register values.

Takes the JSON entries that `cloister podvm build` writes and stores them whole or not at all. Knows nothing of
evidence or keys. Entries come from the owner's own machine only; signed entries from others are a later step.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from cloister.errors import FormatRefused
from cloister.rats.reference import ReferenceEntry, parse_reference_entry
from cloister.trust.store.database import Store
from cloister.trust.store.references import ReferenceStore
from cloister.wire.limits import MIB

__all__ = ["ReferenceValueService", "parse_reference_entries"]

REFERENCE_FILE_BYTES: Final = 4 * MIB
REFERENCE_ENTRIES: Final = 4096


class ReferenceValueService:
    """Stores and lists reference values."""

    def __init__(self, store: Store) -> None:
        self._entries = ReferenceStore(store)

    def register(self, entries: Sequence[ReferenceEntry], *, at: datetime) -> None:
        """Register entries; one of the same id replaces the older.

        Raises:
            FormatRefused: none given, or two of one id (`trust.reference.malformed`).
            Unavailable: the store failed.
        """
        if not entries or len({entry.id for entry in entries}) != len(entries):
            raise FormatRefused("trust.reference.malformed", "no entries, or two of the same id")
        self._entries.put(entries, at=at)

    def entries(self) -> tuple[ReferenceEntry, ...]:
        """Return all entries, expired ones too: appraisal says that they expired."""
        return self._entries.list()

    def withdraw(self, identity: str) -> None:
        """Delete an entry.

        Raises:
            Refused: there is none (`trust.reference.missing`).
            Unavailable: the store failed.
        """
        self._entries.delete(identity)


def parse_reference_entries(data: bytes) -> tuple[ReferenceEntry, ...]:
    """Parse a JSON list of entries, or one entry.

    Raises:
        FormatRefused: `trust.reference.malformed`, or the entry's own `rats.reference.malformed`.
    """
    if len(data) > REFERENCE_FILE_BYTES:
        raise FormatRefused("trust.reference.malformed", "too long", expected=f"at most {REFERENCE_FILE_BYTES} bytes")
    if not data.lstrip().startswith(b"["):
        return (parse_reference_entry(data),)
    try:
        items = msgspec.json.decode(data, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise FormatRefused("trust.reference.malformed", "not a list of reference value entries") from err
    if len(items) > REFERENCE_ENTRIES:
        raise FormatRefused("trust.reference.malformed", "too many entries", expected=f"at most {REFERENCE_ENTRIES}")
    return tuple(parse_reference_entry(bytes(item)) for item in items)
