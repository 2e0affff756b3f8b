"""dm-verity hash tree (Linux Documentation/admin-guide/device-mapper/verity.rst), format version 1, SHA-256.

The tree is appended to the data it protects; there is no superblock, the kernel command line carries what one would
hold. Level blocks lie from the root downwards. A hash block is 4096 bytes and holds 128 digests; each digest is
SHA-256 over salt then block.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cloister.errors import Refused

BLOCK_BYTES: Final = 4096
_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class VerityTree:
    """A hash tree over `data_blocks` blocks of 4096 bytes.

    Attributes:
        root_hash: digest of the topmost hash block; it covers every data byte.
        salt: hashed before every block.
        data_blocks: number of protected blocks.
        hashes: the tree itself, to be appended to the data.
    """

    root_hash: bytes
    salt: bytes
    data_blocks: int
    hashes: bytes

    def kernel_argument(self) -> str:
        """Return the value for `cloister.verity=`: data blocks, root hash and salt."""
        return f"{self.data_blocks}:{self.root_hash.hex()}:{self.salt.hex()}"


def build_verity_tree(data: bytes, *, salt: bytes) -> VerityTree:
    """Return the hash tree over `data`.

    Raises:
        Refused: `data` is empty or not whole blocks (`imagetool.verity.size`).
    """
    if not data or len(data) % BLOCK_BYTES:
        raise Refused("imagetool.verity.size", "data is not whole blocks", expected=f"a multiple of {BLOCK_BYTES}")
    levels = [_level(data, salt)]
    while len(levels[-1]) > BLOCK_BYTES:
        levels.append(_level(levels[-1], salt))
    root_hash = hashlib.sha256(salt + levels[-1]).digest()
    return VerityTree(
        root_hash=root_hash, salt=salt, data_blocks=len(data) // BLOCK_BYTES, hashes=b"".join(reversed(levels))
    )


def _level(below: bytes, salt: bytes) -> bytes:
    """Return the hash blocks over the blocks of `below`, the last one padded with zeros."""
    view = memoryview(below)
    digests = bytearray()
    for start in range(0, len(below), BLOCK_BYTES):
        digest = hashlib.sha256(salt)
        digest.update(view[start : start + BLOCK_BYTES])
        digests += digest.digest()
    return bytes(digests) + bytes(-len(digests) % BLOCK_BYTES)
