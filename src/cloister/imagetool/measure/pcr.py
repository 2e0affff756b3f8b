"""TPM platform configuration registers as arithmetic (TPM 2.0 Part 1 section 11.4.8, SHA-256 bank)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from cloister.errors import Refused

DIGEST_BYTES: Final = 32
INITIAL: Final = bytes(DIGEST_BYTES)  # PCR 0..15 after TPM2_Startup(CLEAR) without H-CRTM


def extend(register: bytes, digest: bytes) -> bytes:
    """Return the register after one extend with `digest`.

    Raises:
        Refused: either is not 32 bytes (`imagetool.measure.length`).
    """
    if len(register) != DIGEST_BYTES or len(digest) != DIGEST_BYTES:
        raise Refused("imagetool.measure.length", "not a SHA-256 register or digest", expected=f"{DIGEST_BYTES} bytes")
    return hashlib.sha256(register + digest).digest()


def extend_data(register: bytes, data: bytes) -> bytes:
    """Return the register after an event whose digest is SHA-256 of `data`."""
    return extend(register, hashlib.sha256(data).digest())


def replay(digests: Iterable[bytes], *, start: bytes = INITIAL) -> bytes:
    """Return the register after extending `start` with each of `digests` in order."""
    register = start
    for digest in digests:
        register = extend(register, digest)
    return register
