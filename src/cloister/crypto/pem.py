"""PEM text to DER: a list of certificates, or of keys, from files and evidence. Strict base64, RFC 7468.

Text between the blocks is skipped, as every tool does; NUL bytes at the end are (DCAP quotes end their chain so).
"""

from __future__ import annotations

from typing import Final

from cloister.errors import FormatRefused
from cloister.wire.base64 import decode_b64

CERTIFICATE: Final = "CERTIFICATE"
PUBLIC_KEY: Final = "PUBLIC KEY"
_BLOCKS_CEILING: Final = 64


def split_pem(data: bytes, *, code: str, path: str = "", ceiling: int, label: str = CERTIFICATE) -> list[bytes]:
    """Return the DER of every block of `label`, in order.

    Args:
        data: the text.
        code: prefix of the errors' codes.
        path: place in the input, for errors.
        ceiling: most bytes of one block.
        label: what the blocks are called.

    Raises:
        FormatRefused: no block, too many, or one that is no base64 (`<code>.malformed`).
    """
    begin, end = f"-----BEGIN {label}-----", f"-----END {label}-----"
    try:
        text = data.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as err:
        raise FormatRefused(f"{code}.malformed", "not PEM", path=path) from err
    parts = text.split(begin)[1:]
    if not 0 < len(parts) <= _BLOCKS_CEILING or any(part.count(end) != 1 for part in parts):
        raise FormatRefused(
            f"{code}.malformed",
            f"not a list of PEM blocks {label}",
            path=path,
            expected=f"1 to {_BLOCKS_CEILING}",
            actual=str(len(parts)),
        )
    try:
        return [decode_b64("".join(part.split(end)[0].split()), path=path, ceiling=ceiling) for part in parts]
    except FormatRefused as err:
        raise FormatRefused(f"{code}.malformed", err.message, path=path, expected=err.expected) from err
