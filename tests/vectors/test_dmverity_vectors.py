"""dm-verity against trees that veritysetup made."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.errors import Refused
from cloister.oci.dmverity import build_verity_tree, verify_blocks

SALT = bytes.fromhex("00112233445566778899aabbccddeeff" * 2)
ROOTS = {
    40: "82116f0e1c3ed7cdec7ab0c8d27a6e820e8afefb786b93fd98930f4bc0a2f9d5",
    300: "c7613a2070ec1e98ba6e35c6f4ae15bae7e20a7e00ccd540e9e9d8a0381c1564",
}


def data(blocks: int) -> bytes:
    return bytes((7 * i + i // 4096) % 251 for i in range(blocks * 4096))


@pytest.mark.parametrize("blocks", ROOTS)
def test_root_hash_is_veritysetups(blocks: int) -> None:
    assert build_verity_tree(data(blocks), salt=SALT).root_hash.hex() == ROOTS[blocks]


def test_stored_tree_is_ours(guest_vectors: Path) -> None:
    folder = guest_vectors / "dmverity"
    content = (folder / "data.bin").read_bytes()
    hashes = (folder / "hash.bin").read_bytes()[4096:]  # behind veritysetup's superblock, which ours does without
    assert content == data(40)
    tree = build_verity_tree(content, salt=SALT)
    assert tree.hashes == hashes
    check = {"root_hash": bytes.fromhex(ROOTS[40]), "salt": SALT, "data_blocks": 40}
    verify_blocks([content, hashes], **check)
    with pytest.raises(Refused):
        verify_blocks([content[:-1] + b"!", hashes], **check)
