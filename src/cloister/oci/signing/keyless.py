"""Keyless signatures: a certificate that lived minutes, and witnesses of when it was used (Sigstore's client
specification, section "Verification").

The steps, in order:

1. the certificate parses                                                        oci.signing.fulcio.malformed
2. its key made the signature                                                    oci.signing.bad_signature
3. transparency-log entries are about this signature, and their logs are trusted oci.signing.rekor.*
4. RFC 3161 timestamps over the signature hold                                   oci.signing.timestamp.*
5. at least one of them says when                                                oci.signing.no_time
6. at each such time the certificate was valid under a trusted authority         oci.signing.fulcio.*
7. a certificate-transparency log vouches for the certificate                    oci.signing.fulcio.no_sct, .sct
8. subject and OIDC issuer are those that must have signed                       oci.signing.fulcio.identity

A log entry is required, and every entry and timestamp that is there must hold: one that lies spoils the signature.
Nothing is looked up: all of it comes with the signature or with the trusted root. Pure: no clock, no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from cloister.crypto.pem import split_pem
from cloister.errors import FormatRefused, ImageRefused
from cloister.oci.signing.bundle import Bundle, LogEntry
from cloister.oci.signing.fulcio import (
    CertificateIdentity,
    load_leaf,
    require_identity,
    verify_chain,
    verify_transparency,
)
from cloister.oci.signing.keys import PublicKey
from cloister.oci.signing.rekor import LoggedSignature, parse_set_annotation, verify_entry
from cloister.oci.signing.simplesigning import (
    CERTIFICATE_ANNOTATION,
    CHAIN_ANNOTATION,
    LOG_ANNOTATION,
    SignatureCandidate,
)
from cloister.oci.signing.timestamp import verify_timestamp
from cloister.oci.signing.trustedroot import TrustedRoot
from cloister.wire.limits import CERTIFICATE_BYTES, CERTIFICATE_CHAIN

_PROOF_SINCE: Final = ("0.2", "0.3")  # versions of bundles whose entries must have an inclusion proof


class KeylessTrust(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a keyless signature is accepted from.

    Attributes:
        root: authorities and logs.
        identities: subjects and issuers, one of which must have signed.
        require_sct: whether step 7 is done; `policy.json` cannot name certificate-transparency logs.
    """

    root: TrustedRoot
    identities: tuple[CertificateIdentity, ...]
    require_sct: bool = True


class KeylessSignature(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a keyless signature, whichever format they came in."""

    certificate: bytes
    signature: bytes
    message: bytes
    logged: LoggedSignature
    entries: tuple[LogEntry, ...]
    timestamps: tuple[bytes, ...] = ()
    intermediates: tuple[bytes, ...] = ()


def keyless_of_bundle(bundle: Bundle, artifact: bytes) -> KeylessSignature:
    """Return the parts that a bundle over `artifact` has.

    Raises:
        ImageRefused: it is signed by a key (`oci.signing.not_keyless`), or an entry lacks the inclusion proof that
            this version of bundles must have (`oci.signing.rekor.unproved`).
    """
    if not bundle.certificates:
        raise _not_keyless()
    if bundle.version in _PROOF_SINCE and any(entry.proof is None for entry in bundle.entries):
        raise ImageRefused("oci.signing.rekor.unproved", "log entry has no inclusion proof", path="tlogEntries")
    if bundle.version not in _PROOF_SINCE and any(not entry.promise for entry in bundle.entries):
        raise ImageRefused("oci.signing.rekor.unproved", "log entry has no promise of its log", path="tlogEntries")
    message = bundle.signed_bytes(artifact)
    logged = LoggedSignature(
        signature=bundle.signature,
        verifier=bundle.certificates[0],
        artifact=message,
        payload=bundle.payload,
        payload_type=bundle.payload_type,
    )
    return KeylessSignature(
        certificate=bundle.certificates[0],
        signature=bundle.signature,
        message=message,
        logged=logged,
        entries=bundle.entries,
        timestamps=bundle.timestamps,
        intermediates=bundle.certificates[1:],
    )


def keyless_of_classic(candidate: SignatureCandidate) -> KeylessSignature:
    """Return the parts that stand in the annotations of a classic signature.

    Raises:
        ImageRefused: `oci.signing.not_keyless`, `oci.signing.fulcio.malformed`, `oci.signing.rekor.*`.
    """
    pem = candidate.annotations.get(CERTIFICATE_ANNOTATION, "")
    if not pem:
        raise _not_keyless()
    chain = candidate.annotations.get(CHAIN_ANNOTATION, "")
    certificate = _certificates(pem)[0]
    logged = LoggedSignature(signature=candidate.signature, verifier=certificate, artifact=candidate.payload)
    text = candidate.annotations.get(LOG_ANNOTATION, "")
    return KeylessSignature(
        certificate=certificate,
        signature=candidate.signature,
        message=candidate.payload,
        logged=logged,
        entries=(parse_set_annotation(text),) if text else (),
        intermediates=_certificates(chain) if chain else (),
    )


class VerifiedKeyless(msgspec.Struct, frozen=True):
    """Who made a keyless signature, and the earliest time that a log or timestamp authority says of it."""

    identity: CertificateIdentity
    signed_at: datetime


def verify_keyless(signed: KeylessSignature, trust: KeylessTrust) -> VerifiedKeyless:
    """Return who made a signature, and when.

    Raises:
        ImageRefused: with the code of the step that failed, see above.
    """
    # 1
    leaf = load_leaf(signed.certificate)
    # 2
    PublicKey(leaf.public_key()).verify(signed.message, signed.signature)
    # 3
    if not signed.entries:
        raise ImageRefused("oci.signing.rekor.missing", "signature has no entry of a transparency log")
    times = [verify_entry(entry, signed.logged, trust.root.logs) for entry in signed.entries]
    # 4
    times += [verify_timestamp(item, signed.signature, trust.root) for item in signed.timestamps]
    # 5
    known: Sequence[datetime] = [at for at in times if at is not None]
    if not known:
        raise ImageRefused(
            "oci.signing.no_time",
            "nobody who is trusted says when the signature was made",
            expected="a promise of the transparency log, or a timestamp",
        )
    # 6
    intermediates = tuple(load_leaf(der) for der in signed.intermediates)
    issuers = [verify_chain(leaf, trust.root, at, intermediates) for at in known]
    # 7
    if trust.require_sct:
        verify_transparency(leaf, issuers[0], trust.root.certificate_logs)
    # 8
    return VerifiedKeyless(require_identity(leaf, trust.identities), min(known))


def _certificates(pem: str) -> tuple[bytes, ...]:
    try:
        return tuple(split_pem(pem.encode(), code="oci.signing.fulcio", ceiling=CERTIFICATE_BYTES)[:CERTIFICATE_CHAIN])
    except FormatRefused as err:
        raise ImageRefused("oci.signing.fulcio.malformed", err.message) from err


def _not_keyless() -> ImageRefused:
    return ImageRefused("oci.signing.not_keyless", "signature has no certificate: it is by a key")
