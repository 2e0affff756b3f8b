"""IBM Secure Execution evidence as CoCo's guest sends it, and in `pvattest` files. Pure; verifies nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from cloister.errors import EvidenceError, FormatRefused
from cloister.rats.evidence import Evidence
from cloister.tee.ibm_se.abi import EXCHANGE_MAGIC, TAG_BYTES, parse_exchange
from cloister.tee.jsonfile import read_json_evidence
from cloister.tee.registry import ReadEvidence
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.limits import SE_BYTES

TEE: Final = "se"
MEASUREMENT_BYTES: Final = 64  # HMAC-SHA512
CONFIGURATION_ID_BYTES: Final = 16
_TAGS_BYTES: Final = 3 * 64 + TAG_BYTES  # the header's digests (PLD, ALD, TLD) and its tag


class _EvidenceWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    measurement: str
    additional_data: str
    user_data: str
    cuid: str
    encr_measurement_key: str = ""
    encr_request_nonce: str = ""
    image_hdr_tags: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedEvidence:
    """What the evidence says; nothing of it is verified.

    Attributes:
        measurement: HMAC-SHA512, 64 bytes.
        additional: hashes of host keys.
        user_data: of the guest.
        configuration_id: of the guest, 16 bytes.
        image_tags: digests and tag of the image header, 208 bytes; empty when absent.
    """

    measurement: bytes
    additional: bytes
    user_data: bytes
    configuration_id: bytes
    image_tags: bytes


def parse_evidence(evidence: Evidence) -> ParsedEvidence:
    """Parse the members of `evidence`.

    Raises:
        FormatRefused: a member does not parse (`tee.ibm_se.malformed`).
        EvidenceError: another technology (`tee.ibm_se.malformed`).
    """
    if evidence.tee != TEE:
        raise EvidenceError(
            "tee.ibm_se.malformed", "evidence of another technology", expected=TEE, actual=evidence.tee[:40]
        )
    try:
        wire = msgspec.convert(evidence.body, _EvidenceWire)
    except msgspec.ValidationError as err:
        raise FormatRefused("tee.ibm_se.malformed", f"not Secure Execution evidence: {err}") from err
    for name in ("encr_measurement_key", "encr_request_nonce"):
        _decode(getattr(wire, name), name)
    return ParsedEvidence(
        measurement=_decode(wire.measurement, "measurement", MEASUREMENT_BYTES),
        additional=_decode(wire.additional_data, "additional_data"),
        user_data=_decode(wire.user_data, "user_data"),
        configuration_id=_decode(wire.cuid, "cuid", CONFIGURATION_ID_BYTES),
        image_tags=_decode(wire.image_hdr_tags, "image_hdr_tags", *([_TAGS_BYTES] if wire.image_hdr_tags else [])),
    )


def read_evidence(data: bytes, *, tee: str) -> ReadEvidence:
    """Return the body of Secure Execution evidence in a file: a `pvattest` exchange file or JSON.

    Raises:
        FormatRefused: neither (`tee.file.*`, `tee.ibm_se.exchange.*`).
    """
    if data[: len(EXCHANGE_MAGIC)] != EXCHANGE_MAGIC:
        return ReadEvidence(body=read_json_evidence(data, tee=tee), form="JSON as CoCo's guest sends it")
    exchange = parse_exchange(data)
    body: dict[str, Any] = {  # Any: JSON object of texts
        "measurement": encode_b64(exchange.measurement),
        "additional_data": encode_b64(exchange.additional),
        "user_data": encode_b64(exchange.user_data),
        "cuid": encode_b64(exchange.configuration_id),
    }
    return ReadEvidence(body=body, form="pvattest exchange file")


def _decode(text: str, path: str, *lengths: int) -> bytes:
    try:
        data = decode_b64(text, path=path, ceiling=SE_BYTES)
    except FormatRefused as err:
        raise FormatRefused("tee.ibm_se.malformed", err.message, path=path, expected=err.expected) from err
    if lengths and len(data) not in lengths:
        raise FormatRefused(
            "tee.ibm_se.malformed",
            "member has another length",
            path=path,
            expected=f"{lengths[0]} bytes",
            actual=f"{len(data)} bytes",
        )
    return data
