"""Reference values: signed sets by registered publishers, unsigned ones by who may, their history and proposals.

A signed set is a DSSE envelope (`cloister.crypto.references`); its version only grows, which is remembered. Unsigned
values need a permission that publishers lack and are shown as unsigned for as long as they are in force. A proposal
made from observed evidence is a file: nothing here ever accepts what a guest itself reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from cloister.crypto.jwt import key_id
from cloister.crypto.references import SeenVersion, verify_reference_set
from cloister.crypto.signer import ECDSAP256PublicKey
from cloister.errors import FormatRefused, Refused
from cloister.rats.reference import ReferenceEntry, encode_reference_entry
from cloister.rats.referenceset import ReferenceSet, encode_reference_set, read_reference_values
from cloister.trust.access import Permission
from cloister.trust.administration.desk import Desk, TenantStores
from cloister.trust.store.publishers import DELETED, ReferenceChange, StoredPublisher
from cloister.wire.limits import REFERENCE_SET_BYTES
from cloister.wire.strictjson import parse_json_object

_SHOWN: Final = 12
_NEWEST_SETS: Final = 4096
_INIT_DATA_REGISTER: Final = "pcr08"
_DIGEST_CHARS: Final = 40  # hex of SHA-1


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredValue:
    """One entry with where it came from; `source` is None for one that is older than the history."""

    entry: ReferenceEntry
    source: ReferenceChange | None

    @property
    def signed(self) -> bool:
        """Whether a registered publisher signed it."""
        return self.source is not None and bool(self.source.publisher)


@dataclass(frozen=True, slots=True)
class References:
    """Reference values of one tenant, as one principal may handle them."""

    desk: Desk

    def submit(self, document: bytes) -> tuple[ReferenceEntry, ...]:
        """Register what a file holds, all or none: a signed set, or unsigned values from who may add such.

        Raises:
            FormatRefused: neither (`crypto.dsse.*`, `rats.reference.*`).
            Refused: signed by nobody registered, expired, or older than what was accepted (`crypto.dsse.*`,
                `rats.reference.set.*`); unsigned, and that is not permitted (`trust.access.forbidden`).
        """
        if _is_envelope(document):
            return self._submit_signed(document)
        return self.add_unsigned(read_reference_values(document))

    def add_unsigned(self, entries: Sequence[ReferenceEntry]) -> tuple[ReferenceEntry, ...]:
        """Register entries that nobody signed; one of the same id replaces the older.

        Raises:
            FormatRefused: none given, or two of one id (`trust.reference.malformed`).
            Refused: not permitted (`trust.access.forbidden`), or expired already (`trust.reference.expired`).
        """
        if not entries or len({entry.id for entry in entries}) != len(entries):
            raise FormatRefused("trust.reference.malformed", "no entries, or two of the same id")
        subject = f"{entries[0].id} and {len(entries) - 1} more" if len(entries) > 1 else entries[0].id
        self.desk.change(
            Permission.REFERENCE_ADD_UNSIGNED, subject, lambda stores: self._store(stores, entries, signer=None)
        )
        return tuple(entries)

    def list(self) -> tuple[RegisteredValue, ...]:
        """Return all entries by id, expired ones too, each with where it came from."""

        def work(stores: TenantStores) -> tuple[RegisteredValue, ...]:
            sources = stores.publishers.newest()
            return tuple(
                RegisteredValue(entry=entry, source=sources.get(entry.id)) for entry in stores.references.list()
            )

        return self.desk.look(Permission.REFERENCE_READ, "", work)

    def get(self, identity: str) -> RegisteredValue:
        """Return one entry.

        Raises:
            Refused: there is none (`trust.reference.missing`).
        """
        found = next((value for value in self.list() if value.entry.id == identity), None)
        if found is None:
            raise Refused("trust.reference.missing", "no such reference value entry", actual=identity[:80])
        return found

    def delete(self, identity: str) -> None:
        """Delete an entry.

        Raises:
            Refused: there is none (`trust.reference.missing`).
        """
        change = ReferenceChange(
            id=identity, at=self.desk.now(), change=DELETED, name=self.desk.principal.name
        )

        def work(stores: TenantStores) -> None:
            stores.references.delete(identity)
            stores.publishers.note([change])

        self.desk.change(Permission.REFERENCE_DELETE, identity, work)

    def history(self, *, identity: str = "", limit: int) -> tuple[ReferenceChange, ...]:
        """Return changes, the newest first, of one entry if it is named."""
        return self.desk.look(
            Permission.REFERENCE_READ, identity, lambda stores: stores.publishers.history(identity=identity, limit=limit)
        )

    def propose(self, attestation: str, *, days: int) -> bytes:
        """Return an unsigned set made from what kept evidence showed, for a person to check and sign.

        Args:
            attestation: id of the evidence.
            days: for how long the values shall hold.

        Raises:
            Refused: the evidence is not kept (`trust.evidence.missing`), or shows no register that says what booted
                (`trust.reference.nothing_observed`).
        """
        record = self.desk.look(
            Permission.REFERENCE_READ, attestation, lambda stores: stores.records.appraisal(attestation)
        )
        if record is None:
            raise missing_evidence(attestation)
        registers = {name: bytes.fromhex(text) for name, text in record.registers.items() if _says_what_booted(name, text)}
        if not registers:
            raise Refused(
                "trust.reference.nothing_observed",
                "this evidence shows no register that says which code booted",
                path=attestation,
                actual=", ".join(sorted(record.registers))[:120],
                hint="compute the values from the image instead: `cloister refs compute`",
            )
        at = self.desk.now().replace(microsecond=0)
        until = at + timedelta(days=days)
        entry = ReferenceEntry(
            id=f"observed-{attestation}",
            tee=record.tee,
            registers=registers,
            not_after=until,
            origin=f"observed in {attestation} of {record.instance[:_SHOWN] or 'an unnamed machine'}",
        )
        values = ReferenceSet(
            id=f"observed/{attestation}",
            version=int(at.timestamp()),
            issued_at=at,
            not_after=until,
            entries=(entry,),
        )
        return encode_reference_set(values)

    def put_publisher(self, name: str, pem: bytes) -> StoredPublisher:
        """Accept signatures of a key, ECDSA P-256.

        Raises:
            Refused: not such a key (`crypto.signer.*`).
        """
        key = ECDSAP256PublicKey.from_pem(pem)
        publisher = StoredPublisher(key_id=key_id(key), name=name, pem=key.pem(), created_at=self.desk.now())
        self.desk.change(
            Permission.PUBLISHER_WRITE, publisher.key_id, lambda stores: stores.publishers.put(publisher)
        )
        return publisher

    def publishers(self) -> tuple[StoredPublisher, ...]:
        """Return whose signatures are accepted."""
        return self.desk.look(Permission.REFERENCE_READ, "publishers", lambda stores: stores.publishers.list())

    def remove_publisher(self, identity: str) -> None:
        """Accept nothing more from a key; what it signed before stays until it is deleted.

        Raises:
            Refused: there is none (`trust.reference.publisher_missing`).
        """
        self.desk.change(Permission.PUBLISHER_WRITE, identity, lambda stores: stores.publishers.delete(identity))

    def _submit_signed(self, document: bytes) -> tuple[ReferenceEntry, ...]:
        """Steps, in one transaction: 1 signature, time and version; 2 the version is remembered; 3 the entries."""
        at = self.desk.now()

        def work(stores: TenantStores) -> tuple[ReferenceEntry, ...]:
            keys = {item.key_id: ECDSAP256PublicKey.from_pem(item.pem) for item in stores.publishers.list()}
            seen = {
                identity: SeenVersion(version=version, digest=digest)
                for identity, (version, digest) in stores.publishers.seen().items()
            }
            # 1
            verified = verify_reference_set(document, keys, at=at, seen=seen)
            # 2
            if verified.values.id not in seen and len(seen) >= _NEWEST_SETS:
                raise Refused("trust.reference.sets", "too many signed sets", expected=f"at most {_NEWEST_SETS}")
            stores.publishers.remember(verified.values.id, verified.seen.version, verified.seen.digest)
            # 3
            self._store(stores, verified.values.entries, signer=(verified.key_id, verified.values))
            return verified.values.entries

        return self.desk.change(Permission.REFERENCE_ADD, "signed set", work)

    def _store(
        self, stores: TenantStores, entries: Sequence[ReferenceEntry], *, signer: tuple[str, ReferenceSet] | None
    ) -> None:
        at = self.desk.now()
        for entry in entries:
            if entry.not_after <= at:
                raise Refused(
                    "trust.reference.expired",
                    "a reference value has expired already",
                    path=entry.id[:80],
                    expected=f"after {at.isoformat(timespec='seconds')}",
                    actual=entry.not_after.isoformat(timespec="seconds"),
                )
        known: Mapping[str, ReferenceEntry] = {entry.id: entry for entry in stores.references.list()}
        stores.references.put(entries, at=at)
        publisher, values = signer if signer is not None else ("", None)
        stores.publishers.note(
            [
                ReferenceChange(
                    id=entry.id,
                    at=at,
                    change="replaced" if entry.id in known else "added",
                    name=self.desk.principal.name,
                    publisher=publisher,
                    reference_set=values.id if values is not None else "",
                    set_version=values.version if values is not None else 0,
                    entry=encode_reference_entry(entry),
                )
                for entry in entries
            ]
        )


def missing_evidence(identity: str) -> Refused:
    """Return the refusal for evidence that is not kept."""
    return Refused(
        "trust.evidence.missing",
        "no such evidence, or it is not kept any more",
        actual=identity[:40],
        hint="audit rows name the evidence of a decision; the newest pieces are kept",
    )


def _says_what_booted(name: str, text: str) -> bool:
    """Leave out what each pod has of its own, what nothing was measured into, and what is no digest."""
    return name != _INIT_DATA_REGISTER and len(text) >= _DIGEST_CHARS and len(set(text)) > 1


def _is_envelope(document: bytes) -> bool:
    if document.lstrip()[:1] != b"{":
        return False
    code = "rats.reference.set"
    members = parse_json_object(document, ceiling=2 * REFERENCE_SET_BYTES, code=code, family=FormatRefused)
    return "payloadType" in members
