"""Nitro evidence in JSON and in files. Pure; verifies nothing.

No guest of others sends Nitro evidence to a key broker, so the JSON shape is Cloister's own: `{"document": BASE64}`,
the attestation document as the security module gives it. Files hold the document itself (as `nsm-cli` and SDKs write
it), its base64 text, or that JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from cloister.crypto.cose import Sign1, parse_sign1
from cloister.errors import EvidenceError, FormatRefused
from cloister.rats.evidence import Evidence
from cloister.tee.jsonfile import looks_like_json, read_json_evidence
from cloister.tee.nitro.abi import CODE, Document, parse_document
from cloister.tee.registry import ReadEvidence
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.limits import COSE_BYTES

TEE: Final = "nitro"
_ARRAY_OF_FOUR: Final = (0x84, 0x9F, 0xD2)  # first byte: an array, or tag 18


class _EvidenceWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    document: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedEvidence:
    """The document as a message and as typed values; nothing of it is verified."""

    message: Sign1
    document: Document


def parse_evidence(evidence: Evidence) -> ParsedEvidence:
    """Parse the members of `evidence`.

    Raises:
        FormatRefused: a member does not parse (`tee.nitro.malformed`, `tee.nitro.document.*`).
        EvidenceError: another technology (`tee.nitro.malformed`).
    """
    if evidence.tee != TEE:
        raise EvidenceError(
            "tee.nitro.malformed", "evidence of another technology", expected=TEE, actual=evidence.tee[:40]
        )
    try:
        wire = msgspec.convert(evidence.body, _EvidenceWire)
    except msgspec.ValidationError as err:
        raise FormatRefused("tee.nitro.malformed", f"not Nitro evidence: {err}") from err
    message = parse_sign1(_decode(wire.document), code=CODE)
    if message.unprotected:
        raise FormatRefused(
            f"{CODE}.malformed", "unprotected header is not empty", actual=f"{len(message.unprotected)} members"
        )
    return ParsedEvidence(message=message, document=parse_document(message.payload))


def read_evidence(data: bytes, *, tee: str) -> ReadEvidence:
    """Return the body of Nitro evidence in a file: JSON, raw document, or its base64 text.

    Raises:
        FormatRefused: none of the forms (`tee.file.*`, `tee.nitro.malformed`).
    """
    if looks_like_json(data):
        return ReadEvidence(body=read_json_evidence(data, tee=tee), form="JSON with an attestation document")
    if data[:1] and data[0] in _ARRAY_OF_FOUR:
        if len(data) > COSE_BYTES:
            raise FormatRefused(
                "tee.nitro.malformed",
                "document too long",
                expected=f"at most {COSE_BYTES} bytes",
                actual=str(len(data)),
            )
        return ReadEvidence(body={"document": encode_b64(data)}, form="raw attestation document")
    try:
        text = "".join(data.decode("ascii").split())
    except UnicodeDecodeError as err:
        raise FormatRefused(
            "tee.nitro.malformed",
            "neither a COSE message, base64 nor JSON",
            expected="an attestation document",
            actual=data[:8].hex(),
        ) from err
    return ReadEvidence(body={"document": encode_b64(_decode(text))}, form="base64 of an attestation document")


def _decode(text: str) -> bytes:
    try:
        return decode_b64(text, path="document", ceiling=COSE_BYTES)
    except FormatRefused as err:
        raise FormatRefused("tee.nitro.malformed", err.message, path="document", expected=err.expected) from err
