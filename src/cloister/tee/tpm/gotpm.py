"""`attest.Attestation` of go-tpm-tools: the protocol buffer that guests of Google's clouds and its tools write.

google/go-tpm-tools, proto/attest.proto and proto/tpm.proto: AK public area (1), one quote for each bank (2), event log
(3), AK certificate (6) and its intermediates (7). What comes out is the JSON body of `cloister.tee.tpm.evidence`,
taken from the SHA-256 bank's quote alone: the SHA-1 one proves nothing, the SHA-384 one says the same again.

Not read: the instance information (4), which nobody signed (the AK certificate has its own), the canonical event log
(5), and the CPU's attestation (8, 9), which is evidence of another technology. Pure; verifies nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final

from cloister.errors import FormatRefused
from cloister.tee.tpm import constants as c
from cloister.wire.base64 import encode_b64
from cloister.wire.limits import (
    CERTIFICATE_BYTES,
    CERTIFICATE_CHAIN,
    DCAP_QUOTE_BYTES,
    EVENT_LOG_BYTES,
    EVIDENCE_FILE_BYTES,
    TPM_RESPONSE_BYTES,
)
from cloister.wire.protobuf import BYTES, VARINT, Field, Message, encode_field, parse_message

_CODE: Final = "tee.tpm.attestation"
_BANKS: Final = 8
_DIGEST_BYTES: Final = 64
_ENTRY_BYTES: Final = 2 * _DIGEST_BYTES
_PCRS_BYTES: Final = 2 * c.PCRS * _ENTRY_BYTES
_QUOTE_BYTES: Final = 2 * TPM_RESPONSE_BYTES + _PCRS_BYTES
_UNREAD_BYTES: Final = 2 * DCAP_QUOTE_BYTES
_INSTANCE_BYTES: Final = 1024

_ATTESTATION: Final = {
    1: Field(name="ak_pub", ceiling=TPM_RESPONSE_BYTES),
    2: Field(name="quotes", most=_BANKS, ceiling=_QUOTE_BYTES),
    3: Field(name="event_log", ceiling=EVENT_LOG_BYTES),
    4: Field(name="instance_info", ceiling=_INSTANCE_BYTES),
    5: Field(name="canonical_event_log", ceiling=EVENT_LOG_BYTES),
    6: Field(name="ak_cert", ceiling=CERTIFICATE_BYTES),
    7: Field(name="intermediate_certs", most=CERTIFICATE_CHAIN, ceiling=CERTIFICATE_BYTES),
    8: Field(name="sev_snp_attestation", ceiling=_UNREAD_BYTES),
    9: Field(name="tdx_attestation", ceiling=_UNREAD_BYTES),
}
_QUOTE: Final = {
    1: Field(name="quote", ceiling=TPM_RESPONSE_BYTES),
    2: Field(name="raw_sig", ceiling=TPM_RESPONSE_BYTES),
    3: Field(name="pcrs", ceiling=_PCRS_BYTES),
}
_PCRS: Final = {1: Field(name="hash", kind=VARINT), 2: Field(name="pcrs", most=c.PCRS, ceiling=_ENTRY_BYTES)}
_ENTRY: Final = {1: Field(name="key", kind=VARINT), 2: Field(name="value", kind=BYTES, ceiling=_DIGEST_BYTES)}


def parse_attestation(data: bytes) -> Mapping[str, Any]:  # Any: JSON object of texts and lists
    """Return the evidence body of an attestation.

    Raises:
        FormatRefused: too long, not this message, or without one quote of the SHA-256 bank
            (`tee.tpm.attestation.too_long`, `.truncated`, `.unknown_field`, `.malformed`, `.no_sha256_quote`).
    """
    if len(data) > EVIDENCE_FILE_BYTES:
        raise FormatRefused(f"{_CODE}.too_long", "file too long", expected=f"at most {EVIDENCE_FILE_BYTES} bytes")
    message = parse_message(data, _ATTESTATION, code=_CODE)
    ak_public = message.text(1)
    if not ak_public:
        raise FormatRefused(f"{_CODE}.malformed", "the attestation has no key", path="ak_pub")
    quote, values = _sha256_quote(message)
    return {
        "ak_public": encode_b64(struct.pack(">H", len(ak_public)) + ak_public),
        "tpm_quote": {
            "signature": encode_b64(quote.text(2)),
            "message": encode_b64(quote.text(1)),
            "pcrs": [values[index].hex() for index in sorted(values)],
        },
        "event_log": encode_b64(message.text(3)),
        "ak_certificate": encode_b64(message.text(6)),
        "ak_intermediates": [encode_b64(der) for der in message.texts.get(7, ())],
    }


def encode_attestation(
    *,
    ak_public: bytes,
    message: bytes,
    signature: bytes,
    values: Mapping[int, bytes],
    event_log: bytes = b"",
    ak_certificate: bytes = b"",
    intermediates: tuple[bytes, ...] = (),
    bank: int = c.ALG_SHA256,
) -> bytes:
    """Return an attestation with one quote; `ak_public` is a TPMT_PUBLIC, `values` by register."""
    entries = [encode_field(1, index) * bool(index) + encode_field(2, value) for index, value in values.items()]
    pcrs = encode_field(1, bank) + b"".join(encode_field(2, entry) for entry in entries)
    quote = encode_field(1, message) + encode_field(2, signature) + encode_field(3, pcrs)
    return b"".join(
        (
            encode_field(1, ak_public),
            encode_field(2, quote),
            encode_field(3, event_log) if event_log else b"",
            encode_field(6, ak_certificate) if ak_certificate else b"",
            *(encode_field(7, der) for der in intermediates),
        )
    )


def _sha256_quote(message: Message) -> tuple[Message, dict[int, bytes]]:
    """Return the quote that says it is of the SHA-256 bank, and its values; the verifier holds it to that."""
    found = []
    for index, part in enumerate(message.texts.get(2, ())):
        path = f"quotes[{index}]"
        quote = parse_message(part, _QUOTE, code=_CODE, path=path)
        pcrs = parse_message(quote.text(3), _PCRS, code=_CODE, path=f"{path}.pcrs")
        if pcrs.number(1) == c.ALG_SHA256:
            found.append((quote, _values(pcrs, f"{path}.pcrs")))
    if len(found) != 1:
        raise FormatRefused(
            f"{_CODE}.no_sha256_quote",
            "not one quote of the SHA-256 bank",
            path="quotes",
            expected="1",
            actual=str(len(found)),
        )
    return found[0]


def _values(pcrs: Message, path: str) -> dict[int, bytes]:
    values: dict[int, bytes] = {}
    for part in pcrs.texts.get(2, ()):
        entry = parse_message(part, _ENTRY, code=_CODE, path=path)
        index = entry.number(1)
        if index >= c.PCRS or index in values or len(entry.text(2)) != c.SHA256_BYTES:
            raise FormatRefused(
                f"{_CODE}.malformed", "no such register, one given twice, or no SHA-256 digest", path=f"{path}[{index}]"
            )
        values[index] = entry.text(2)
    return values
