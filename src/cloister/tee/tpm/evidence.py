"""The JSON shape of TPM evidence, its strict parser, and the other forms evidence of a TPM is found in.

CoCo's `tpm` attester sends `ak_public` and `tpm_quote` (`signature`: TPMT_SIGNATURE, `message`: TPMS_ATTEST, both
base64; `pcrs`: hexadecimal digests). Cloister's adds `ek_certificate` (DER), `activation` (what credential
activation recovered) and `event_log` (TCG log, may be empty), and writes `ak_public` as TPM2B_PUBLIC, because a name
and attributes are needed where CoCo sends only the key (SubjectPublicKeyInfo). Evidence of clouds brings
`ak_certificate` and `ak_intermediates` (DER, base64) instead. `pcrs` are the values of the registers in the signed
selection, in ascending order: 24 of a guest that enrols, as many as were quoted of others.

In files: that JSON, or go-tpm-tools' protocol buffer (`gotpm`), which becomes the same body; the parts that tpm2-tools
write are several files and joined by `tpm2tools`. Pure; verifies nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from cloister.errors import EvidenceError, FormatRefused
from cloister.rats.evidence import Evidence
from cloister.tee.jsonfile import looks_like_json, read_json_evidence
from cloister.tee.registry import ReadEvidence
from cloister.tee.tpm import constants as c
from cloister.tee.tpm.abi import Public, Signature, parse_public, parse_signature
from cloister.tee.tpm.eventlog import Event, parse_event_log
from cloister.tee.tpm.gotpm import parse_attestation
from cloister.wire.base64 import decode_b64
from cloister.wire.limits import CERTIFICATE_BYTES, CERTIFICATE_CHAIN, EVENT_LOG_BYTES, TPM_RESPONSE_BYTES

TEE: Final = "tpm"
_HEX_DIGITS: Final = frozenset("0123456789abcdef")
_DER_SEQUENCE: Final = 0x30  # a TPM2B_PUBLIC begins with its length, which is below 0x0400


class _QuoteWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    signature: str
    message: str
    pcrs: list[str]


class _EvidenceWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    ak_public: str
    tpm_quote: _QuoteWire
    ek_certificate: str = ""
    activation: str = ""
    event_log: str = ""
    ak_certificate: str = ""
    ak_intermediates: list[str] = msgspec.field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedEvidence:
    """The members of the evidence as typed values; nothing of it is verified.

    Attributes:
        ek_certificate: DER; empty when the guest did not enrol.
        ak_public: as sent, TPM2B_PUBLIC or SubjectPublicKeyInfo.
        ak: the public area; None when only the key was sent.
        activation: what credential activation recovered.
        ak_certificate: DER; empty when there is none.
        ak_intermediates: DER certificates between it and a root.
        message: TPMS_ATTEST.
        signature: of `message`.
        values: of the registers in the signed selection, ascending.
        events: None when there is no log.
    """

    ek_certificate: bytes
    ak_public: bytes
    ak: Public | None
    activation: bytes
    ak_certificate: bytes
    ak_intermediates: tuple[bytes, ...]
    message: bytes
    signature: Signature
    values: tuple[bytes, ...]
    events: tuple[Event, ...] | None


def parse_evidence(evidence: Evidence) -> ParsedEvidence:
    """Parse the members of `evidence`.

    The TPMS_ATTEST stays bytes, because they are what is signed: the verifier parses it when it comes to it.

    Raises:
        FormatRefused: a member does not parse (`tee.tpm.malformed`, `tee.tpm.ak_public.*`, `tee.tpm.signature.*`,
            `tee.tpm.eventlog.*`).
        EvidenceError: another technology (`tee.tpm.malformed`).
    """
    if evidence.tee != TEE:
        raise EvidenceError(
            "tee.tpm.malformed", "evidence of another technology", expected=TEE, actual=evidence.tee[:40]
        )
    try:
        wire = msgspec.convert(evidence.body, _EvidenceWire)
    except msgspec.ValidationError as err:
        raise FormatRefused("tee.tpm.malformed", f"not TPM evidence: {err}") from err
    if len(wire.ak_intermediates) > CERTIFICATE_CHAIN:
        raise FormatRefused(
            "tee.tpm.malformed",
            "too many certificates",
            path="ak_intermediates",
            expected=f"at most {CERTIFICATE_CHAIN}",
            actual=str(len(wire.ak_intermediates)),
        )
    ak_public = _decode(wire.ak_public, "ak_public", TPM_RESPONSE_BYTES)
    event_log = _decode(wire.event_log, "event_log", EVENT_LOG_BYTES)
    return ParsedEvidence(
        ek_certificate=_decode(wire.ek_certificate, "ek_certificate", CERTIFICATE_BYTES),
        ak_public=ak_public,
        ak=None if ak_public[:1] == bytes([_DER_SEQUENCE]) else parse_public(ak_public),
        activation=_decode(wire.activation, "activation", TPM_RESPONSE_BYTES),
        ak_certificate=_decode(wire.ak_certificate, "ak_certificate", CERTIFICATE_BYTES),
        ak_intermediates=tuple(
            _decode(text, f"ak_intermediates[{index}]", CERTIFICATE_BYTES)
            for index, text in enumerate(wire.ak_intermediates)
        ),
        message=_decode(wire.tpm_quote.message, "tpm_quote.message", TPM_RESPONSE_BYTES),
        signature=parse_signature(_decode(wire.tpm_quote.signature, "tpm_quote.signature", TPM_RESPONSE_BYTES)),
        values=_parse_values(wire.tpm_quote.pcrs, enrolled=bool(wire.ek_certificate)),
        events=parse_event_log(event_log) if event_log else None,
    )


def read_evidence(data: bytes, *, tee: str) -> ReadEvidence:
    """Return the body of TPM evidence in a file: JSON, or an attestation of go-tpm-tools.

    Raises:
        FormatRefused: not a JSON object (`tee.file.*`), or not such an attestation (`tee.tpm.attestation.*`).
    """
    if looks_like_json(data):
        return ReadEvidence(body=read_json_evidence(data, tee=tee), form="JSON of a guest with a TPM")
    return ReadEvidence(body=parse_attestation(data), form="attestation of go-tpm-tools (protocol buffer)")


def _decode(text: str, path: str, ceiling: int) -> bytes:
    try:
        return decode_b64(text, path=path, ceiling=ceiling)
    except FormatRefused as err:
        raise FormatRefused("tee.tpm.malformed", err.message, path=path, expected=err.expected) from err


def _parse_values(pcrs: list[str], *, enrolled: bool) -> tuple[bytes, ...]:
    counts = (c.PCRS,) if enrolled else range(1, c.PCRS + 1)
    if len(pcrs) not in counts or any(len(text) != 2 * c.SHA256_BYTES or set(text) - _HEX_DIGITS for text in pcrs):
        raise FormatRefused(
            "tee.tpm.malformed",
            "register values are not lower-case SHA-256 digests, one for each register",
            path="tpm_quote.pcrs",
            expected=str(c.PCRS) if enrolled else f"1 to {c.PCRS}",
            actual=str(len(pcrs)),
        )
    return tuple(bytes.fromhex(text) for text in pcrs)
