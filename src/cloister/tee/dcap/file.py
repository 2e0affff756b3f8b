"""Quotes in files: raw bytes, hex text, or the JSON CoCo's guests send. Pure; verifies nothing."""

from __future__ import annotations

import re
import struct
from typing import Final

from cloister.errors import FormatRefused
from cloister.tee.dcap.abi import SGX, TDX
from cloister.tee.jsonfile import looks_like_json, read_json_evidence
from cloister.tee.registry import ReadEvidence
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.limits import DCAP_QUOTE_BYTES

_CODE: Final = "tee.file"
_HEX: Final = re.compile(rb"\s*(?:0[xX])?((?:[0-9a-fA-F]{2})+)\s*")
_HEADER: Final = struct.Struct("<HHI")


def read_quote_file(data: bytes, *, tee: str) -> ReadEvidence:
    """Return the evidence body in a file, which may hold a raw quote, one in hex, or JSON.

    Raises:
        FormatRefused: none of these (`tee.file.*`).
    """
    if looks_like_json(data):
        return ReadEvidence(body=read_json_evidence(data, tee=tee), form="JSON as CoCo's guest sends it")
    if len(data) > 2 * DCAP_QUOTE_BYTES + 16:
        raise FormatRefused(f"{_CODE}.too_long", "longer than any quote", expected=f"at most {DCAP_QUOTE_BYTES} bytes")
    found = _HEX.fullmatch(data)
    quote = bytes.fromhex(found.group(1).decode()) if found else data
    _check_head(quote, tee)
    version = int.from_bytes(quote[:2], "little")
    form = f"quote of version {version}, " + ("in hex" if found else "raw")
    return ReadEvidence(body={"quote": encode_b64(quote)}, form=form)


def decode_quote(text: str, *, code: str) -> bytes:
    """Return the bytes of the member `quote`.

    Raises:
        FormatRefused: no strict base64, or too long (`<code>`).
    """
    try:
        return decode_b64(text, path="quote", ceiling=DCAP_QUOTE_BYTES)
    except FormatRefused as err:
        raise FormatRefused(code, err.message, path="quote", expected=err.expected) from err


def _check_head(quote: bytes, tee: str) -> None:
    """Refuse what is not even the beginning of a quote; a broken quote is the verifier's to refuse, with its reason."""
    if len(quote) >= _HEADER.size:
        version, _, tee_type = _HEADER.unpack_from(quote)
        if 1 <= version <= 16 and tee_type in (SGX, TDX):
            return
    raise FormatRefused(f"{_CODE}.form", f"not {tee} evidence", expected="a raw quote, one in hex, or JSON")
