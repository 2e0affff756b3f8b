"""Sigstore's trusted root (`trusted_root.json`, protobuf-specs `sigstore_trustroot.proto`): whom keyless verification
trusts, as a file that the verifier was given.

Certificate authorities (Fulcio), transparency logs (Rekor), certificate-transparency logs and timestamp authorities,
each with the time in which it is trusted. Nothing is fetched: where the file comes from, and how it is kept current, is
the owner's decision (`cosign trusted-root create`, or the file of a private Sigstore). Unknown members are refused.
Pure; the file is trusted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Final, TypeVar

import msgspec
from cryptography import x509

from cloister.crypto.x509path import load_certificate
from cloister.errors import ImageRefused, Refused
from cloister.oci.document import Members, parse_document
from cloister.oci.signing.bundle import read_bytes
from cloister.oci.signing.keys import PublicKey, load_public_key
from cloister.wire.limits import CERTIFICATE_BYTES, CERTIFICATE_CHAIN, SIGNATURE_POLICY_BYTES

_TYPES: Final = (
    "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
    "application/vnd.dev.sigstore.trustedroot.v0.2+json",
)
_INSTANCES: Final = 64  # authorities or logs of one kind
_CODE: Final = "oci.signing.trusted_root"
_T = TypeVar("_T")


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """When something is trusted; no end is for ever."""

    start: datetime
    end: datetime | None = None

    def __contains__(self, at: datetime) -> bool:
        return self.start <= at and (self.end is None or at <= self.end)


class TransparencyLog(msgspec.Struct, frozen=True, kw_only=True):
    """A log's key; `log_id` is the SHA-256 of its SubjectPublicKeyInfo unless the file says another."""

    url: str
    key: PublicKey
    log_id: bytes
    period: Period


class Authority(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate authority or timestamp authority: its chain, root last."""

    url: str
    chain: tuple[x509.Certificate, ...]
    period: Period


class TrustedRoot(msgspec.Struct, frozen=True, kw_only=True):
    """What a trusted root file says."""

    authorities: tuple[Authority, ...]
    logs: tuple[TransparencyLog, ...]
    certificate_logs: tuple[TransparencyLog, ...]
    timestamp_authorities: tuple[Authority, ...] = ()


def parse_trusted_root(data: bytes) -> TrustedRoot:
    """Parse a trusted root.

    Raises:
        ImageRefused: `oci.signing.trusted_root.*`, also when it trusts no certificate authority.
    """
    top = Members(parse_document(data, ceiling=SIGNATURE_POLICY_BYTES, code=_CODE), path="", code=_CODE)
    top.only("mediaType", "tlogs", "certificateAuthorities", "ctlogs", "timestampAuthorities")
    if top.text("mediaType") not in _TYPES:
        raise ImageRefused(
            f"{_CODE}.version",
            "trusted root is of a version that is not read",
            path="mediaType",
            expected=_TYPES[0],
            actual=top.text("mediaType")[:80],
        )
    root = TrustedRoot(
        authorities=_each(top, "certificateAuthorities", _authority),
        logs=_each(top, "tlogs", _log),
        certificate_logs=_each(top, "ctlogs", _log),
        timestamp_authorities=_each(top, "timestampAuthorities", _authority),
    )
    if not root.authorities:
        raise ImageRefused(f"{_CODE}.empty", "trusted root names no certificate authority")
    return root


def _each(top: Members, name: str, parse: Callable[[Members], _T]) -> tuple[_T, ...]:
    items = top.array(name, ceiling=_INSTANCES)
    return tuple(parse(Members(item, path=f"{name}[{number}]", code=_CODE)) for number, item in enumerate(items))


def _log(members: Members) -> TransparencyLog:
    members.only("baseUrl", "hashAlgorithm", "publicKey", "logId", "checkpointKeyId", "operator")
    if members.text("hashAlgorithm") != "SHA2_256":
        raise ImageRefused(f"{_CODE}.hash", "log hashes with another algorithm", path=members.place("hashAlgorithm"))
    public = members.members("publicKey")
    public.only("rawBytes", "keyDetails", "validFor")
    key = load_public_key(read_bytes(public, "rawBytes", CERTIFICATE_BYTES), path=public.place("rawBytes"))
    said = read_bytes(members.members("logId"), "keyId", 64) if "logId" in members else b""
    return TransparencyLog(
        url=members.text("baseUrl", ""),
        key=key,
        log_id=said or hashlib.sha256(key.spki).digest(),
        period=_period(public),
    )


def _authority(members: Members) -> Authority:
    members.only("subject", "uri", "certChain", "validFor", "operator")
    chain = members.members("certChain")
    items = chain.array("certificates", ceiling=CERTIFICATE_CHAIN, required=True)
    certificates = []
    for number, item in enumerate(items):
        place = f"{chain.place('certificates')}[{number}]"
        der = read_bytes(Members(item, path=place, code=_CODE), "rawBytes", CERTIFICATE_BYTES)
        try:
            certificates.append(load_certificate(der, code=f"{_CODE}.certificate", path=place))
        except Refused as err:
            raise ImageRefused(f"{_CODE}.certificate", err.message, path=place) from err
    if not certificates:
        raise ImageRefused(f"{_CODE}.empty", "authority has no certificate", path=chain.place("certificates"))
    return Authority(url=members.text("uri", ""), chain=tuple(certificates), period=_period(members))


def _period(members: Members) -> Period:
    """An absent period, as the specification has it, is no reason to trust for ever: it is refused."""
    period = members.members("validFor")
    period.only("start", "end")
    return Period(start=_time(period, "start"), end=_time(period, "end") if "end" in period else None)


def _time(members: Members, name: str) -> datetime:
    try:
        at = datetime.fromisoformat(members.text(name))
    except ValueError as err:
        raise ImageRefused(f"{_CODE}.time", "not a time", path=members.place(name)) from err
    if at.tzinfo is None:
        raise ImageRefused(f"{_CODE}.time", "time has no zone", path=members.place(name))
    return at
