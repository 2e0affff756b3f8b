"""Merkle tree hashing and the verification of proofs: RFC 6962, section 2.1, with SHA-256.

What a guest needs of a log and nothing more; making trees and proofs is `cloister.tlog.tree`. Proofs are verified by
the algorithms of RFC 9162, sections 2.1.3.2 and 2.1.4.2, which fix the number of hashes for each index and size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from cloister.errors import FormatRefused, Refused

HASH_BYTES: Final = 32
MAX_SIZE: Final = 2**53 - 1  # entries; what JSON keeps exactly, and more than anybody writes
PROOF_HASHES: Final = 63  # C2SP tlog-witness; an inclusion proof of MAX_SIZE entries has 53
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
_LEAF: Final = b"\x00"
_NODE: Final = b"\x01"
_INCLUSION: Final = "tlog.proof.inclusion"
_CONSISTENCY: Final = "tlog.proof.consistency"


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of an entry."""
    return hashlib.sha256(_LEAF + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of the node above two others."""
    return hashlib.sha256(_NODE + left + right).digest()


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Return if the leaf hash `leaf` is at `index` of the tree of `size` entries with this root.

    Raises:
        FormatRefused: numbers or hashes that are none (`tlog.proof.malformed`).
        Refused: it is not (`tlog.proof.inclusion`).
    """
    _require_sizes(size)
    _require_hashes((leaf, root, *proof))
    if not 0 <= index < size:
        raise Refused(_INCLUSION, "no such entry in the tree", expected=f"below {size}", actual=str(index))
    node, last, running = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise _wrong(_INCLUSION, "the proof is too long")
        if node & 1 or node == last:
            running = node_hash(sibling, running)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            running = node_hash(running, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise _wrong(_INCLUSION, "the proof is too short")
    if running != root:
        raise _wrong(_INCLUSION, "the entry is not in the tree with this root")


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """Return if the first `old` entries of the tree of `new` entries are those of the tree with `old_root`.

    Raises:
        FormatRefused: numbers or hashes that are none (`tlog.proof.malformed`).
        Refused: they are not: the log was cut, edited or forked (`tlog.proof.consistency`).
    """
    _require_sizes(old, new)
    _require_hashes((old_root, new_root, *proof))
    if old > new:
        raise _wrong(_CONSISTENCY, "the tree became smaller")
    if old in (0, new):
        expected = EMPTY_ROOT if old == 0 else new_root
        if proof or old_root != expected:
            raise _wrong(_CONSISTENCY, "one size with two roots, or a proof where none is needed")
        return
    path = list(proof) if old & (old - 1) else [old_root, *proof]
    if not path:
        raise _wrong(_CONSISTENCY, "the proof is too short")
    node, last = old - 1, new - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    first = second = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise _wrong(_CONSISTENCY, "the proof is too long")
        if node & 1 or node == last:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            second = node_hash(second, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise _wrong(_CONSISTENCY, "the proof is too short")
    if first != old_root or second != new_root:
        raise _wrong(_CONSISTENCY, "the larger tree does not continue the smaller one")


def _require_sizes(*sizes: int) -> None:
    for size in sizes:
        if not 0 <= size <= MAX_SIZE:
            raise FormatRefused("tlog.proof.malformed", "no size of a tree", expected=f"0 to {MAX_SIZE}")


def _require_hashes(hashes: Sequence[bytes]) -> None:
    if len(hashes) > PROOF_HASHES + 2 or any(len(item) != HASH_BYTES for item in hashes):
        raise FormatRefused(
            "tlog.proof.malformed", "not hashes of a tree", expected=f"at most {PROOF_HASHES} of {HASH_BYTES} bytes"
        )


def _wrong(code: str, message: str) -> Refused:
    return Refused(code, message, hint="the log was cut, edited or forked, or the proof is of another tree")
