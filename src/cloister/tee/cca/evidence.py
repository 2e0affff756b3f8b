"""CCA evidence in JSON and in files. Pure; verifies nothing.

CoCo's guest sends `{"token": [BYTES]}`, the token as a list of numbers; its base64 text, a third as long, is read too.
Files hold the token itself, its base64 text, or that JSON.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from cloister.errors import EvidenceError, FormatRefused
from cloister.rats.evidence import Evidence
from cloister.tee.cca.abi import Token, parse_token
from cloister.tee.jsonfile import looks_like_json, read_json_evidence
from cloister.tee.registry import ReadEvidence
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.limits import COSE_BYTES

TEE: Final = "cca"
_TAG_HEADS: Final = (0xD9, 0xDA, 0xDB)  # a tag whose number takes two bytes or more


class _EvidenceWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    token: str | list[int]


def parse_evidence(evidence: Evidence) -> Token:
    """Parse the members of `evidence`.

    Raises:
        FormatRefused: a member does not parse (`tee.cca.malformed`, `tee.cca.token.*`, `tee.cca.platform.*`,
            `tee.cca.realm.*`).
        EvidenceError: another technology (`tee.cca.malformed`).
    """
    if evidence.tee != TEE:
        raise EvidenceError(
            "tee.cca.malformed", "evidence of another technology", expected=TEE, actual=evidence.tee[:40]
        )
    try:
        wire = msgspec.convert(evidence.body, _EvidenceWire)
    except msgspec.ValidationError as err:
        raise FormatRefused("tee.cca.malformed", f"not CCA evidence: {err}") from err
    return parse_token(_decode(wire.token) if isinstance(wire.token, str) else _from_numbers(wire.token))


def read_evidence(data: bytes, *, tee: str) -> ReadEvidence:
    """Return the body of CCA evidence in a file: JSON, raw token, or its base64 text.

    Raises:
        FormatRefused: none of the forms (`tee.file.*`, `tee.cca.malformed`).
    """
    if looks_like_json(data):
        return ReadEvidence(body=read_json_evidence(data, tee=tee), form="JSON as CoCo's guest sends it")
    if data[:1] and data[0] in _TAG_HEADS:
        if len(data) > COSE_BYTES:
            raise FormatRefused(
                "tee.cca.malformed", "token too long", expected=f"at most {COSE_BYTES} bytes", actual=str(len(data))
            )
        return ReadEvidence(body=_body(data), form="raw CCA token")
    try:
        text = "".join(data.decode("ascii").split())
    except UnicodeDecodeError as err:
        raise FormatRefused(
            "tee.cca.malformed", "neither a tagged token, base64 nor JSON", actual=data[:8].hex()
        ) from err
    return ReadEvidence(body=_body(_decode(text)), form="base64 of a CCA token")


def _body(token: bytes) -> dict[str, Any]:  # Any: JSON object
    return {"token": encode_b64(token)}


def _from_numbers(numbers: list[int]) -> bytes:
    if len(numbers) > COSE_BYTES or not all(0 <= number <= 0xFF for number in numbers):
        raise FormatRefused(
            "tee.cca.malformed", "token is not a list of bytes", path="token", expected=f"at most {COSE_BYTES} bytes"
        )
    return bytes(numbers)


def _decode(text: str) -> bytes:
    try:
        return decode_b64(text, path="token", ceiling=COSE_BYTES)
    except FormatRefused as err:
        raise FormatRefused("tee.cca.malformed", err.message, path="token", expected=err.expected) from err
