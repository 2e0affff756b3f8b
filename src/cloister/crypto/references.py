"""Reference Values with a signature: who issued them, until when they hold, and that they are not older than known.

A set (`cloister.rats.referenceset`) in a DSSE envelope. Trusts the keys that the caller pins, the caller's time, and
the caller's memory of the newest version it has seen of each set; an envelope proves nothing about the last by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cloister.crypto.dsse import sign_envelope, verify_envelope
from cloister.crypto.signer import ECDSAP256PublicKey, Signer
from cloister.errors import Refused
from cloister.rats.referenceset import ReferenceSet, encode_reference_set, parse_reference_set
from cloister.wire.limits import REFERENCE_SET_BYTES

PAYLOAD_TYPE: Final = "application/vnd.cloister.reference-values+json"
CLOCK_SKEW: Final = timedelta(seconds=30)
_CODE: Final = "rats.reference.set"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenVersion:
    """The newest version that was accepted of a set.

    Attributes:
        version: its number.
        digest: `sha256:` of its payload: one number cannot stand for two contents.
    """

    version: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedReferenceSet:
    """A set whose signature, time and version hold. Only `verify_reference_set` makes it.

    Attributes:
        values: the set.
        key_id: whose signature held.
        seen: what the caller must remember under the set's id.
    """

    values: ReferenceSet
    key_id: str
    seen: SeenVersion


def sign_reference_set(values: ReferenceSet, signer: Signer) -> bytes:
    """Return the signed envelope of `values`."""
    return sign_envelope(encode_reference_set(values), signer, payload_type=PAYLOAD_TYPE)


def verify_reference_set(
    data: bytes,
    keys: Mapping[str, ECDSAP256PublicKey],
    *,
    at: datetime,
    seen: Mapping[str, SeenVersion],
) -> VerifiedReferenceSet:
    """Verify a signed set.

    Steps: 1 a pinned key signed these bytes as a set of reference values; 2 they are one; 3 it holds at `at`; 4 it is
    not older than what was seen of it, nor another content under a version that was seen.

    Args:
        data: the envelope.
        keys: pinned keys by `cloister.crypto.jwt.key_id`; none accepts nothing.
        at: aware time.
        seen: the newest version accepted so far, by set id; empty where nothing was.

    Raises:
        FormatRefused: `crypto.dsse.*`, `rats.reference.set.*`, `rats.reference.malformed`.
        Refused: `crypto.dsse.*`, `rats.reference.set.expired`, `rats.reference.set.not_yet_valid`,
            `rats.reference.set.rollback`, `rats.reference.set.equivocation`.
    """
    # 1
    payload, signer = verify_envelope(data, keys, payload_type=PAYLOAD_TYPE, ceiling=REFERENCE_SET_BYTES)
    # 2
    values = parse_reference_set(payload)
    # 3
    if values.not_after <= at:
        raise Refused(
            f"{_CODE}.expired",
            "the reference values have expired",
            path="not_after",
            expected=f"after {at.isoformat(timespec='seconds')}",
            actual=values.not_after.isoformat(timespec="seconds"),
            hint="ask their issuer for the current set",
        )
    if values.issued_at > at + CLOCK_SKEW:
        raise Refused(
            f"{_CODE}.not_yet_valid",
            "the reference values were issued in the future",
            path="issued_at",
            expected=f"not after {at.isoformat(timespec='seconds')}",
            actual=values.issued_at.isoformat(timespec="seconds"),
            hint="compare the clocks",
        )
    # 4
    found = SeenVersion(version=values.version, digest=f"sha256:{hashlib.sha256(payload).hexdigest()}")
    newest = seen.get(values.id)
    if newest is not None and found.version < newest.version:
        raise Refused(
            f"{_CODE}.rollback",
            "a newer version of these reference values was accepted before",
            path="version",
            expected=f"at least {newest.version}",
            actual=str(found.version),
            hint="an old set was played back: get the current one from its issuer",
        )
    if newest is not None and found.version == newest.version and found.digest != newest.digest:
        raise Refused(
            f"{_CODE}.equivocation",
            "another content was accepted under this version before",
            path="version",
            expected=newest.digest,
            actual=found.digest,
            hint="its issuer signed two sets with one version; versions must grow",
        )
    return VerifiedReferenceSet(values=values, key_id=signer, seen=found)
