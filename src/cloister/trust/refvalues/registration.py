"""Reference values into the store: signed sets by registered publishers, unsigned ones marked as what they are.

A signed set is a DSSE envelope (`cloister.crypto.references`); its version only grows, which is remembered. Each
function runs in the transaction that its caller opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from cloister.crypto.references import SeenVersion, verify_reference_set
from cloister.crypto.signer import ECDSAP256PublicKey
from cloister.errors import FormatRefused, Refused
from cloister.rats.reference import ReferenceEntry, encode_reference_entry
from cloister.trust.store.publishers import DELETED, PublisherStore, ReferenceChange
from cloister.trust.store.references import ReferenceStore
from cloister.wire.limits import REFERENCE_SET_BYTES
from cloister.wire.strictjson import parse_json_object

_SETS_REMEMBERED: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceBook:
    """Where the reference values of one tenant are kept.

    Attributes:
        entries: what is in force.
        publishers: who may sign, what was accepted of them, and the history.
    """

    entries: ReferenceStore
    publishers: PublisherStore


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredValue:
    """One entry with where it came from; `source` is None for one that is older than the history."""

    entry: ReferenceEntry
    source: ReferenceChange | None

    @property
    def signed(self) -> bool:
        """Whether a registered publisher signed it."""
        return self.source is not None and bool(self.source.publisher)


def register_signed(book: ReferenceBook, document: bytes, *, by: str, at: datetime) -> tuple[ReferenceEntry, ...]:
    """Register a signed set, all or none of it.

    Steps: 1 a registered publisher signed it, it holds now and is not older than what was accepted; 2 its version is
    remembered; 3 its entries replace those of the same ids.

    Raises:
        FormatRefused: not a signed set (`crypto.dsse.*`, `rats.reference.*`).
        Refused: signed by nobody registered, expired, or older than what was accepted (`crypto.dsse.*`,
            `rats.reference.set.*`); an entry expired (`trust.refvalues.expired`).
    """
    keys = {item.key_id: ECDSAP256PublicKey.from_pem(item.pem) for item in book.publishers.list()}
    seen = {
        identity: SeenVersion(version=version, digest=digest)
        for identity, (version, digest) in book.publishers.seen().items()
    }
    # 1
    verified = verify_reference_set(document, keys, at=at, seen=seen)
    values = verified.values
    # 2
    if values.id not in seen and len(seen) >= _SETS_REMEMBERED:
        raise Refused("trust.refvalues.sets", "too many signed sets", expected=f"at most {_SETS_REMEMBERED}")
    book.publishers.remember(values.id, verified.seen.version, verified.seen.digest)
    # 3
    source = ReferenceChange(
        id="",
        at=at,
        change="",
        name=by,
        publisher=verified.key_id,
        reference_set=values.id,
        set_version=values.version,
    )
    _store(book, values.entries, source)
    return values.entries


def register_unsigned(book: ReferenceBook, entries: Sequence[ReferenceEntry], *, by: str, at: datetime) -> None:
    """Register entries that nobody signed; one of the same id replaces the older.

    Raises:
        FormatRefused: none given, or two of one id (`trust.reference.malformed`).
        Refused: an entry expired (`trust.refvalues.expired`).
    """
    if not entries or len({entry.id for entry in entries}) != len(entries):
        raise FormatRefused("trust.reference.malformed", "no entries, or two of the same id")
    _store(book, entries, ReferenceChange(id="", at=at, change="", name=by))


def withdraw(book: ReferenceBook, identity: str, *, by: str, at: datetime) -> None:
    """Delete an entry.

    Raises:
        Refused: there is none (`trust.reference.missing`).
    """
    book.entries.delete(identity)
    book.publishers.note([ReferenceChange(id=identity, at=at, change=DELETED, name=by)])


def registered_values(book: ReferenceBook) -> tuple[RegisteredValue, ...]:
    """Return all entries by id, expired ones too, each with where it came from."""
    sources = book.publishers.newest()
    return tuple(RegisteredValue(entry=entry, source=sources.get(entry.id)) for entry in book.entries.list())


def is_envelope(document: bytes) -> bool:
    """Return whether the document claims to be signed.

    Raises:
        FormatRefused: it begins like JSON and is none (`rats.reference.set.*`).
    """
    if document.lstrip()[:1] != b"{":
        return False
    code = "rats.reference.set"
    members = parse_json_object(document, ceiling=2 * REFERENCE_SET_BYTES, code=code, family=FormatRefused)
    return "payloadType" in members


def _store(book: ReferenceBook, entries: Sequence[ReferenceEntry], source: ReferenceChange) -> None:
    for entry in entries:
        if entry.not_after <= source.at:
            raise Refused(
                "trust.refvalues.expired",
                "a reference value has expired already",
                path=entry.id[:80],
                expected=f"after {source.at.isoformat(timespec='seconds')}",
                actual=entry.not_after.isoformat(timespec="seconds"),
            )
    known = {entry.id for entry in book.entries.list()}
    book.entries.put(entries, at=source.at)
    book.publishers.note(
        [
            replace(
                source,
                id=entry.id,
                change="replaced" if entry.id in known else "added",
                entry=encode_reference_entry(entry),
            )
            for entry in entries
        ]
    )
