"""Reference values, their publishers, and trusted roots."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from cloister.protocol.admin.base import (
    NAME_CHARS,
    NOTE_CHARS,
    Answer,
    Body,
    Days,
    Identity,
    Name,
)
from cloister.rats.reference import ReferenceEntryWire
from cloister.wire.limits import CERTIFICATE_BYTES, REFERENCE_SET_BYTES


class ReferenceSubmission(Body, frozen=True):
    """Reference values: a signed set (DSSE), or unsigned JSON: a set, one entry, or a list of entries."""

    document: Annotated[str, Meta(min_length=1, max_length=REFERENCE_SET_BYTES)]


class ReferenceValue(Answer, frozen=True):
    """One entry in force or expired.

    Attributes:
        entry: as submitted.
        signed: whether a registered publisher signed it.
        publisher: name of the publisher.
        key_id: of the publisher's key.
        reference_set: id of the signed set.
        set_version: its version.
        expired: whether it matches nothing any more.
    """

    entry: ReferenceEntryWire
    signed: bool
    publisher: str
    key_id: str
    reference_set: str
    set_version: int
    expired: bool


class ReferenceList(Answer, frozen=True):
    """Reference values by id."""

    values: list[ReferenceValue]


class ReferenceEvent(Answer, frozen=True):
    """One change of one entry.

    Attributes:
        sequence: position.
        at: when.
        change: `added`, `replaced` or `deleted`.
        id: of the entry.
        by: name of whoever called.
        key_id: of the publisher whose signature was accepted, empty for unsigned values.
        reference_set: id of the signed set.
        set_version: its version.
    """

    sequence: int
    at: datetime
    change: str
    id: str
    by: str
    key_id: str
    reference_set: str
    set_version: int


class ReferenceHistory(Answer, frozen=True):
    """Changes, the newest first."""

    events: list[ReferenceEvent]


class ReferenceProposalRequest(Body, frozen=True):
    """Ask for a file of reference values made from observed evidence, to be checked and signed by a person.

    Attributes:
        attestation: id of the evidence.
        days: for how long the values shall hold.
    """

    attestation: Identity
    days: Days = 90


class ReferenceProposal(Answer, frozen=True):
    """A set of reference values that nobody has accepted.

    Attributes:
        document: the unsigned set, for `cloister refs sign`.
        warning: what a person must check first.
    """

    document: str
    warning: str


class PublisherKey(Body, frozen=True):
    """Whose signature on reference values is accepted.

    Attributes:
        name: of the publisher.
        pem: ECDSA P-256 public key.
    """

    name: Name
    pem: Annotated[str, Meta(min_length=1, max_length=CERTIFICATE_BYTES)]


class Publisher(Answer, frozen=True):
    """A registered publisher."""

    key_id: str
    name: str
    pem: str
    created_at: datetime


class PublisherList(Answer, frozen=True):
    """Publishers by key id."""

    publishers: list[Publisher]


class RootChange(Body, frozen=True):
    """A certificate or key that endorses a technology.

    Attributes:
        tee: technology.
        level: `hardware`, `measured` or `simulated`: what a chain to it proves.
        name: for findings.
        der: certificate or SubjectPublicKeyInfo.
        instance: the one device that a raw key speaks for.
    """

    tee: Annotated[str, Meta(min_length=1, max_length=NAME_CHARS)]
    level: Annotated[str, Meta(pattern="^(hardware|measured|simulated)$")]
    name: Annotated[str, Meta(min_length=1, max_length=NOTE_CHARS)]
    der: Annotated[str, Meta(min_length=4, max_length=CERTIFICATE_BYTES * 4 // 3 + 4)]
    instance: Annotated[str, Meta(max_length=NOTE_CHARS)] = ""


class Root(Answer, frozen=True):
    """A trusted root."""

    id: str
    tee: str
    level: str
    name: str
    der: str
    instance: str


class RootList(Answer, frozen=True):
    """Trusted roots by id."""

    roots: list[Root]
