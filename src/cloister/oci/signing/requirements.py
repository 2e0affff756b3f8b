"""What must be true of a signature: one class per way to trust, each of which judges one signature and says why not.

Made from command-line options or from a `policy.json` whose keys were read (`load_requirement`). All are pure: keys,
trusted roots and the time come as values. Nothing here decides about an image; that is `cloister.oci.signing.evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import ClassVar, Final, Protocol

import msgspec
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from cloister.crypto.openpgpverify import SigningKey, parse_keyring, verify_message
from cloister.crypto.pem import split_pem
from cloister.crypto.x509path import extension, verify_path
from cloister.errors import EndorsementError, FormatRefused, ImageRefused, Refused
from cloister.oci.signing.bundle import SIGN_PREDICATE, LogEntry
from cloister.oci.signing.fulcio import CertificateIdentity, load_leaf, read_identity
from cloister.oci.signing.identity import IdentityRule, SignedIdentity
from cloister.oci.signing.keyless import (
    KeylessSignature,
    KeylessTrust,
    keyless_of_bundle,
    keyless_of_classic,
    verify_keyless,
)
from cloister.oci.signing.keys import PublicKey, load_public_key
from cloister.oci.signing.policyjson import KeySource, PolicyRequirement, Reject, SignedBy, SigstoreSigned
from cloister.oci.signing.referred import EnvelopeCandidate
from cloister.oci.signing.rekor import LoggedSignature, parse_set_annotation, verify_entry
from cloister.oci.signing.simplesigning import ATOMIC_TYPE, LOG_ANNOTATION, SignatureCandidate, signed_seconds
from cloister.oci.signing.trustedroot import Authority, Period, TransparencyLog, TrustedRoot
from cloister.oci.signing.verify import (
    BundleCandidate,
    RepositoryRule,
    require_content,
    require_payload,
    verify_by_key,
)
from cloister.wire.limits import CERTIFICATE_BYTES

ALWAYS: Final = Period(start=datetime(1970, 1, 1, tzinfo=UTC))


class OpenPGPCandidate(msgspec.Struct, frozen=True, kw_only=True):
    """A simple-signing message from a lookaside store or the registry's extension, as read."""

    raw: bytes
    place: str = ""


AnyCandidate = SignatureCandidate | BundleCandidate | EnvelopeCandidate | OpenPGPCandidate


class Signer(msgspec.Struct, frozen=True):
    """Who made a signature that counts, and when.

    Attributes:
        name: for the report.
        signed_at: as a log or timestamp authority says, or else the signer; the earliest of several; None where
            nobody who is trusted says.
    """

    name: str
    signed_at: datetime | None = None


class Requirement(Protocol):
    """One thing that at least one signature must fulfil."""

    @property
    def enforces(self) -> bool:
        """Whether fulfilling it proves anything."""
        ...

    @property
    def text(self) -> str:
        """What is required, for the report."""
        ...

    def judge(self, candidate: AnyCandidate, artifact: bytes, now: datetime) -> Signer:
        """Return who signed the manifest or index `artifact`, or raise `Refused` with the exact reason."""
        ...


class KeyRequirement(msgspec.Struct, frozen=True, kw_only=True):
    """A signature by one of these keys; with `logs` it must also be in one of these transparency logs."""

    keys: tuple[PublicKey, ...]
    repository: RepositoryRule
    logs: tuple[TransparencyLog, ...] = ()
    predicate_type: str = SIGN_PREDICATE

    enforces: ClassVar[bool] = True

    @property
    def text(self) -> str:
        """See `Requirement`."""
        return "signature by key " + " or ".join(key.fingerprint[:16] for key in self.keys)

    def judge(self, candidate: AnyCandidate, artifact: bytes, now: datetime) -> Signer:
        """See `Requirement`."""
        signed = _sigstore_only(candidate)
        signer = verify_by_key(signed, artifact, self.keys, self.repository, self.predicate_type)
        times = [_claimed_time(signed)]
        if self.logs:
            key = next(key for key in self.keys if key.fingerprint == signer.fingerprint)
            times += self._logged_times(signed, artifact, key)
        return Signer(f"key {signer.fingerprint[:16]}", _earliest(times))

    def _logged_times(
        self, candidate: SignatureCandidate | BundleCandidate, artifact: bytes, key: PublicKey
    ) -> list[datetime | None]:
        entries: tuple[LogEntry, ...] = ()
        if isinstance(candidate, SignatureCandidate):
            text = candidate.annotations.get(LOG_ANNOTATION, "")
            entries = (parse_set_annotation(text),) if text else ()
            logged = LoggedSignature(signature=candidate.signature, verifier=key.spki, artifact=candidate.payload)
        else:
            bundle = candidate.parse()
            entries = bundle.entries
            logged = LoggedSignature(
                signature=bundle.signature,
                verifier=key.spki,
                artifact=bundle.signed_bytes(artifact),
                payload=bundle.payload,
                payload_type=bundle.payload_type,
            )
        if not entries:
            raise ImageRefused("oci.signing.rekor.missing", "signature has no entry of a transparency log")
        return [verify_entry(entry, logged, self.logs) for entry in entries]


class KeylessRequirement(msgspec.Struct, frozen=True, kw_only=True):
    """A signature under a certificate for one of these identities."""

    trust: KeylessTrust
    repository: RepositoryRule
    predicate_type: str = SIGN_PREDICATE

    enforces: ClassVar[bool] = True

    @property
    def text(self) -> str:
        """See `Requirement`."""
        return "keyless signature of " + " or ".join(map(str, self.trust.identities))

    def judge(self, candidate: AnyCandidate, artifact: bytes, now: datetime) -> Signer:
        """See `Requirement`."""
        verified = verify_keyless(_keyless_parts(candidate, artifact), self.trust)
        _require_about(candidate, artifact, self.repository, self.predicate_type)
        return Signer(str(verified.identity), verified.signed_at)


class PKIRequirement(msgspec.Struct, frozen=True, kw_only=True):
    """A signature under a certificate of one's own authority, valid now, for this address or host name."""

    roots: tuple[x509.Certificate, ...]
    intermediates: tuple[x509.Certificate, ...]
    email: str
    hostname: str
    repository: RepositoryRule

    enforces: ClassVar[bool] = True

    @property
    def text(self) -> str:
        """See `Requirement`."""
        return f"signature under a certificate for {self.email or self.hostname}"

    def judge(self, candidate: AnyCandidate, artifact: bytes, now: datetime) -> Signer:
        """See `Requirement`."""
        parts = _keyless_parts(candidate, artifact)
        leaf = load_leaf(parts.certificate)
        try:
            verify_path(
                leaf,
                anchors=self.roots,
                intermediates=(*self.intermediates, *(load_leaf(der) for der in parts.intermediates)),
                at=now,
                code="oci.signing.pki",
                purpose=ExtendedKeyUsageOID.CODE_SIGNING,
                leaf_critical=frozenset({ExtensionOID.SUBJECT_ALTERNATIVE_NAME}),
            )
        except EndorsementError as err:
            raise ImageRefused(err.code, err.message, path=err.path, expected=err.expected, actual=err.actual) from err
        PublicKey(leaf.public_key()).verify(parts.message, parts.signature)
        names = extension(leaf, x509.SubjectAlternativeName)
        hosts = names.get_values_for_type(x509.DNSName) if names else []
        subjects, _ = read_identity(leaf)
        if (self.email and self.email not in subjects) or (self.hostname and self.hostname not in hosts):
            raise ImageRefused(
                "oci.signing.pki.identity",
                "certificate is for somebody else",
                expected=", ".join(filter(None, (self.email, self.hostname))),
                actual=", ".join((*subjects, *hosts))[:200] or "no name",
            )
        _require_about(candidate, artifact, self.repository, SIGN_PREDICATE)
        return Signer(f"certificate for {self.email or self.hostname}", _claimed_time(_sigstore_only(candidate)))


class OpenPGPRequirement(msgspec.Struct, frozen=True, kw_only=True):
    """A simple-signing message by a key of this keyring."""

    keyring: tuple[SigningKey, ...]
    repository: RepositoryRule

    enforces: ClassVar[bool] = True

    @property
    def text(self) -> str:
        """See `Requirement`."""
        return "simple signature by OpenPGP key " + " or ".join(key.key_id for key in self.keyring)

    def judge(self, candidate: AnyCandidate, artifact: bytes, now: datetime) -> Signer:
        """See `Requirement`."""
        if not isinstance(candidate, OpenPGPCandidate):
            raise _other_format("a simple-signing message")
        message = verify_message(candidate.raw, self.keyring, now=now)
        require_payload(message.content, artifact, self.repository, (ATOMIC_TYPE,))
        return Signer(f"OpenPGP key {message.key.fingerprint}", message.signed_at)


class RejectRequirement(msgspec.Struct, frozen=True):
    """Fulfilled by nothing."""

    enforces: ClassVar[bool] = True

    @property
    def text(self) -> str:
        """See `Requirement`."""
        return "reject: no image is accepted here"

    def judge(self, candidate: AnyCandidate, artifact: bytes, now: datetime) -> Signer:
        """See `Requirement`."""
        raise ImageRefused("oci.signing.rejected", "policy rejects every image of this name")


def load_requirement(
    requirement: PolicyRequirement, rule: Callable[[SignedIdentity], IdentityRule], read: Callable[[str], bytes]
) -> Requirement | None:
    """Return what a requirement of `policy.json` asks, with its keys; None for `insecureAcceptAnything`.

    Args:
        requirement: as parsed.
        rule: makes the rule of an identity for the image that is asked for.
        read: returns the content of a `keyPath`.

    Raises:
        ImageRefused: `oci.signing.key.*`, `oci.signing.policy.keyring`, `oci.signing.policy.certificate`.
        Unavailable: what `read` raises.
    """
    if isinstance(requirement, Reject):
        return RejectRequirement()
    if isinstance(requirement, SignedBy):
        keyring: list[SigningKey] = []
        for source in requirement.keyrings:
            try:
                keyring += parse_keyring(_content(source, read))
            except FormatRefused as err:
                raise ImageRefused("oci.signing.policy.keyring", err.message, path=source.path) from err
        return OpenPGPRequirement(keyring=tuple(keyring), repository=rule(requirement.identity))
    if isinstance(requirement, SigstoreSigned):
        return _sigstore_requirement(requirement, rule(requirement.identity), read)
    return None


def _sigstore_requirement(
    asked: SigstoreSigned, rule: IdentityRule, read: Callable[[str], bytes]
) -> KeyRequirement | KeylessRequirement | PKIRequirement:
    logs = tuple(_log(load_public_key(_content(source, read), path=source.path)) for source in asked.rekor_keys)
    if asked.fulcio is not None:
        # One root each: the path ends at a root that the policy names, through what comes with the signature.
        authorities = tuple(
            Authority(url="policy", chain=(root,), period=ALWAYS)
            for root in _certificates(asked.fulcio.authority, read)
        )
        trust = KeylessTrust(
            root=TrustedRoot(authorities=authorities, logs=logs, certificate_logs=()),
            identities=(CertificateIdentity(subject=asked.fulcio.email, issuer=asked.fulcio.issuer),),
            require_sct=False,
        )
        return KeylessRequirement(trust=trust, repository=rule)
    if asked.pki is not None:
        return PKIRequirement(
            roots=_certificates(asked.pki.roots, read),
            intermediates=_certificates(asked.pki.intermediates, read) if asked.pki.intermediates else (),
            email=asked.pki.email,
            hostname=asked.pki.hostname,
            repository=rule,
        )
    keys = tuple(load_public_key(_content(source, read), path=source.path) for source in asked.keys)
    return KeyRequirement(keys=keys, repository=rule, logs=logs)


def _log(key: PublicKey) -> TransparencyLog:
    return TransparencyLog(url="policy", key=key, log_id=bytes.fromhex(key.fingerprint), period=ALWAYS)


def _certificates(source: KeySource, read: Callable[[str], bytes]) -> tuple[x509.Certificate, ...]:
    code = "oci.signing.policy.certificate"
    try:
        return tuple(load_leaf(der) for der in split_pem(_content(source, read), code=code, ceiling=CERTIFICATE_BYTES))
    except Refused as err:
        raise ImageRefused(code, err.message, path=source.path) from err


def _content(source: KeySource, read: Callable[[str], bytes]) -> bytes:
    return read(source.path) if source.path else source.data


def _sigstore_only(candidate: AnyCandidate) -> SignatureCandidate | BundleCandidate:
    if isinstance(candidate, (SignatureCandidate, BundleCandidate)):
        return candidate
    raise _other_format("a signature by cosign or a Sigstore bundle")


def _keyless_parts(candidate: AnyCandidate, artifact: bytes) -> KeylessSignature:
    signed = _sigstore_only(candidate)
    if isinstance(signed, SignatureCandidate):
        return keyless_of_classic(signed)
    return keyless_of_bundle(signed.parse(), artifact)


def _claimed_time(candidate: SignatureCandidate | BundleCandidate) -> datetime | None:
    """Return when the signer says that he signed; only a classic payload has a place for it."""
    seconds = signed_seconds(candidate.payload) if isinstance(candidate, SignatureCandidate) else None
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _earliest(times: Sequence[datetime | None]) -> datetime | None:
    return min((at for at in times if at is not None), default=None)


def _require_about(candidate: AnyCandidate, artifact: bytes, rule: RepositoryRule, predicate_type: str) -> None:
    """Return if a signature that held is about this image."""
    signed = _sigstore_only(candidate)
    if isinstance(signed, SignatureCandidate):
        require_payload(signed.payload, artifact, rule)
    else:
        require_content(signed.parse(), artifact, rule, predicate_type)


def _other_format(expected: str) -> ImageRefused:
    return ImageRefused("oci.signing.other_format", "signature is of a format that is not asked for", expected=expected)
