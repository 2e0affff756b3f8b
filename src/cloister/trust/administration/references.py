"""Reference values and their publishers, as one principal may handle them.

Unsigned values need a permission that publishers lack and are shown as unsigned for as long as they are in force.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from cloister.crypto.jwt import key_id
from cloister.crypto.signer import ECDSAP256PublicKey
from cloister.errors import FormatRefused, Refused
from cloister.rats.reference import ReferenceEntry
from cloister.rats.referenceset import encode_reference_set, read_reference_values
from cloister.trust.access import Permission
from cloister.trust.administration.desk import Desk, TenantStores
from cloister.trust.coconames import NAMED, NAMED_MOST, NamedValue, live_named, values_by_name
from cloister.trust.refvalues import (
    ReferenceBook,
    RegisteredValue,
    is_envelope,
    observed_values,
    register_signed,
    register_unsigned,
    registered_values,
    withdraw,
)
from cloister.trust.refvalues.rvps import LIFE, entries_of_rvps, is_of_rvps, parse_rvps_message
from cloister.trust.store.publishers import ReferenceChange, StoredPublisher


@dataclass(frozen=True, slots=True)
class References:
    """Reference values of one tenant."""

    desk: Desk

    def submit(self, document: bytes) -> tuple[ReferenceEntry, ...]:
        """Register what a file holds, all or none: a signed set, or unsigned values from who may add such.

        Raises:
            FormatRefused: neither (`crypto.dsse.*`, `rats.reference.*`).
            Refused: signed by nobody registered, expired, or older than what was accepted (`crypto.dsse.*`,
                `rats.reference.set.*`); unsigned, and that is not permitted (`trust.access.forbidden`).
        """
        if not is_envelope(document):
            return self.add_unsigned(read_reference_values(document))
        at = self.desk.now()
        return self.desk.change(
            Permission.REFERENCE_ADD,
            "signed set",
            lambda stores: register_signed(_book(stores), document, by=self.desk.principal.name, at=at),
        )

    def add_unsigned(self, entries: Sequence[ReferenceEntry]) -> tuple[ReferenceEntry, ...]:
        """Register entries that nobody signed; one of the same id replaces the older.

        Raises:
            FormatRefused: none given, or two of one id (`trust.reference.malformed`).
            Refused: not permitted (`trust.access.forbidden`), or expired already (`trust.refvalues.expired`).
        """
        subject, at = ", ".join(entry.id for entry in entries), self.desk.now()
        self.desk.change(
            Permission.REFERENCE_ADD_UNSIGNED,
            subject,
            lambda stores: register_unsigned(_book(stores), entries, by=self.desk.principal.name, at=at),
        )
        return tuple(entries)

    def add_named(self, message: bytes) -> None:
        """Register the values of an RVPS message by name, for Rego policies; what they say whole is entries besides.

        A name's value replaces the older, and so do the entries made of it.

        Raises:
            FormatRefused: not such a message, or too many names (`trust.reference.rvps`).
            Refused: not permitted (`trust.access.forbidden`).
        """
        self.desk.principal.require(Permission.REFERENCE_ADD_UNSIGNED, self.desk.tenant)
        values, at = parse_rvps_message(message), self.desk.now()

        def work(stores: TenantStores) -> None:
            texts = {item.name: item.text for item in stores.policies.current_all(NAMED)}
            if len({*texts, *values}) > NAMED_MOST:
                raise FormatRefused("trust.reference.rvps", "too many names", expected=f"at most {NAMED_MOST}")
            made = entries_of_rvps(values, live_named(texts.items(), at=at), at=at)
            for entry in stores.references.list():
                if is_of_rvps(entry) and entry.tee in made and entry.id not in {item.id for item in made[entry.tee]}:
                    withdraw(_book(stores), entry.id, by=self.desk.principal.name, at=at)
            entries = [entry for group in made.values() for entry in group]
            if entries:
                register_unsigned(_book(stores), entries, by=self.desk.principal.name, at=at)
            for name, value in values.items():
                text = msgspec.json.encode(NamedValue(value=value, not_after=at + LIFE))
                stores.policies.put(NAMED, name, text, at=at)

        digest = hashlib.sha256(message).hexdigest()
        self.desk.change(
            Permission.REFERENCE_ADD_UNSIGNED, ", ".join(values), work, detail={"digest": f"sha256:{digest}"}
        )

    def named(self, name: str) -> Any:  # Any: JSON
        """Return what a Rego policy gets that asks for a name.

        Raises:
            Refused: nothing live (`trust.reference.missing`).
        """

        def work(stores: TenantStores) -> dict[str, Any]:  # Any: JSON
            at = self.desk.now()
            texts = [(item.name, item.text) for item in stores.policies.current_all(NAMED)]
            return values_by_name(stores.references.list(), live_named(texts, at=at), at=at)

        found = self.desk.look(Permission.REFERENCE_READ, name, work)
        if name not in found:
            raise Refused("trust.reference.missing", "no such reference value", path=name[:80])
        return found[name]

    def list(self) -> tuple[RegisteredValue, ...]:
        """Return all entries by id, expired ones too, each with where it came from."""
        return self.desk.look(Permission.REFERENCE_READ, "", lambda stores: registered_values(_book(stores)))

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
        at = self.desk.now()
        self.desk.change(
            Permission.REFERENCE_DELETE,
            identity,
            lambda stores: withdraw(_book(stores), identity, by=self.desk.principal.name, at=at),
        )

    def history(self, *, identity: str = "", limit: int) -> tuple[ReferenceChange, ...]:
        """Return changes, the newest first, of one entry if it is named."""
        return self.desk.look(
            Permission.REFERENCE_READ,
            identity,
            lambda stores: stores.publishers.history(identity=identity, limit=limit),
        )

    def propose(self, attestation: str, *, days: int) -> bytes:
        """Return an unsigned set made from what kept evidence showed, for a person to check and sign.

        Raises:
            Refused: the evidence is not kept (`trust.evidence.missing`), or shows no register that says what booted
                (`trust.refvalues.nothing_observed`).
        """
        record = self.desk.look(
            Permission.REFERENCE_READ, attestation, lambda stores: stores.records.appraisal(attestation)
        )
        if record is None:
            raise missing_evidence(attestation)
        return encode_reference_set(observed_values(record, days=days, at=self.desk.now()))

    def put_publisher(self, name: str, pem: bytes) -> StoredPublisher:
        """Accept signatures of a key, ECDSA P-256.

        Raises:
            Refused: not such a key (`crypto.signer.*`).
        """
        key = ECDSAP256PublicKey.from_pem(pem)
        publisher = StoredPublisher(key_id=key_id(key), name=name, pem=key.pem(), created_at=self.desk.now())
        self.desk.change(Permission.PUBLISHER_WRITE, publisher.key_id, lambda stores: stores.publishers.put(publisher))
        return publisher

    def publishers(self) -> tuple[StoredPublisher, ...]:
        """Return whose signatures are accepted."""
        return self.desk.look(Permission.REFERENCE_READ, "publishers", lambda stores: stores.publishers.list())

    def remove_publisher(self, identity: str) -> None:
        """Accept nothing more from a key; what it signed before stays until it is deleted.

        Raises:
            Refused: there is none (`trust.refvalues.publisher_missing`).
        """
        self.desk.change(Permission.PUBLISHER_WRITE, identity, lambda stores: stores.publishers.delete(identity))


def missing_evidence(identity: str) -> Refused:
    """Return the refusal for evidence that is not kept."""
    return Refused(
        "trust.evidence.missing",
        "no such evidence, or it is not kept any more",
        actual=identity[:40],
        hint="audit rows name the evidence of a decision; the newest pieces are kept",
    )


def _book(stores: TenantStores) -> ReferenceBook:
    return ReferenceBook(entries=stores.references, publishers=stores.publishers)
