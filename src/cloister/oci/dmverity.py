"""dm-verity hash tree (Linux Documentation/admin-guide/device-mapper/verity.rst), format version 1, SHA-256.

The tree is appended to the data it protects; there is no superblock, whoever mounts is told what one would hold. Level
blocks lie from the root downwards. A hash block is 4096 bytes and holds 128 digests; each digest is SHA-256 over salt
then block. `HashTree` makes it from data of any length in the memory of one block for each level. Trusts nobody:
whoever compares a root hash has it from where he trusts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from cloister.errors import Refused

BLOCK_BYTES: Final = 4096
_DIGEST_BYTES: Final = 32
_DIGESTS: Final = BLOCK_BYTES // _DIGEST_BYTES


class VerityTree(msgspec.Struct, frozen=True, kw_only=True):
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


class HashTree:
    """Hashes data blocks as they come; gives each hash block to `store` when it is full.

    Args:
        data_blocks: how many blocks will come.
        salt: hashed before every block.
        store: takes the number of a hash block within the tree, and the block. Each number comes once, in no order.
    """

    def __init__(self, data_blocks: int, *, salt: bytes, store: Callable[[int, bytes], None]) -> None:
        if data_blocks < 1:
            raise Refused("oci.verity.size", "there is no data to protect")
        self._salted = hashlib.sha256(salt)
        self._store = store
        self._missing = data_blocks
        counts = [-(-data_blocks // _DIGESTS)]  # from the leaves upwards
        while counts[-1] > 1:
            counts.append(-(-counts[-1] // _DIGESTS))
        self.hash_blocks = sum(counts)
        self._next = [sum(counts[level + 1 :]) for level in range(len(counts))]
        self._open = [bytearray() for _ in counts]

    def add(self, data: bytes | memoryview) -> None:
        """Take the next data, whole blocks."""
        view = memoryview(data)
        if len(view) % BLOCK_BYTES:
            raise Refused("oci.verity.size", "data is not whole blocks", expected=f"a multiple of {BLOCK_BYTES}")
        for start in range(0, len(view), BLOCK_BYTES):
            self._missing -= 1
            self._append(0, self._digest(view[start : start + BLOCK_BYTES]))

    def finish(self) -> bytes:
        """Return the root hash, once all data was taken."""
        if self._missing:
            raise Refused("oci.verity.size", "data is not as long as was said", actual=f"{-self._missing:+} blocks")
        for level in range(len(self._open) - 1):
            if self._open[level]:
                self._close(level)
        block = bytes(self._open[-1]).ljust(BLOCK_BYTES, b"\0")
        self._store(0, block)
        return self._digest(block)

    def _append(self, level: int, digest: bytes) -> None:
        self._open[level] += digest
        if len(self._open[level]) == BLOCK_BYTES and level + 1 < len(self._open):
            self._close(level)

    def _close(self, level: int) -> None:
        block = bytes(self._open[level]).ljust(BLOCK_BYTES, b"\0")
        self._open[level].clear()
        self._store(self._next[level], block)
        self._next[level] += 1
        self._append(level + 1, self._digest(block))

    def _digest(self, block: bytes | memoryview) -> bytes:
        state = self._salted.copy()
        state.update(block)
        return state.digest()


def build_verity_tree(data: bytes, *, salt: bytes) -> VerityTree:
    """Return the hash tree over `data`.

    Raises:
        Refused: `data` is empty or not whole blocks (`oci.verity.size`).
    """
    hashes: dict[int, bytes] = {}
    tree = HashTree(len(data) // BLOCK_BYTES, salt=salt, store=hashes.__setitem__)
    tree.add(data)
    return VerityTree(
        root_hash=tree.finish(),
        salt=salt,
        data_blocks=len(data) // BLOCK_BYTES,
        hashes=b"".join(hashes[number] for number in range(len(hashes))),
    )


def verify_blocks(chunks: Iterable[bytes], *, root_hash: bytes, salt: bytes, data_blocks: int) -> None:
    """Check all of an image against its root hash: data and appended tree, given as whole blocks in order.

    Raises:
        Refused: `oci.verity.mismatch`, `imagetool.verity.size`.
    """
    made: dict[int, bytes] = {}
    tree = HashTree(data_blocks, salt=salt, store=made.__setitem__)
    left = data_blocks * BLOCK_BYTES
    found = bytearray()
    for chunk in chunks:
        data = memoryview(chunk)[:left]
        left -= len(data)
        tree.add(data)
        found += memoryview(chunk)[len(data) :]
        if len(found) > tree.hash_blocks * BLOCK_BYTES:
            raise Refused("oci.verity.size", "something follows the hash tree")
    actual = tree.finish()
    if actual != root_hash:
        raise Refused(
            "oci.verity.mismatch",
            "image does not have this root hash",
            expected=root_hash.hex(),
            actual=actual.hex(),
        )
    if found != b"".join(made[number] for number in range(tree.hash_blocks)):
        raise Refused("oci.verity.mismatch", "appended hash tree is not the one of the data")
