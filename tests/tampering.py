"""One changed bit, for tests that want bytes which are certainly other bytes.

A constant in place of a byte is no change once in 256 runs, where the bytes are random: keys, signatures, ciphertext.
"""

from __future__ import annotations


def flipped(data: bytes, position: int = -1, bit: int = 0) -> bytes:
    """Return `data` with one bit of the byte at `position` turned over. Raises IndexError outside the data."""
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)
