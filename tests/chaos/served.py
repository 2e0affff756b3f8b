"""The release log as anybody can read it: checkpoint and tiles of one replica."""

from __future__ import annotations

from collections.abc import Mapping

from cloister.client.channel import PinnedChannel
from cloister.errors import Refused
from cloister.tlog.checkpoint import verify_checkpoint
from cloister.tlog.merkle import leaf_hash
from cloister.tlog.note import VerifierKey, parse_note
from cloister.tlog.tiles import ENTRIES, parse_entries, parse_hashes, tiles_of
from cloister.tlog.tree import CompactRange


def check_served(url: str, ca_pem: str, key: VerifierKey, roots: Mapping[int, bytes], name: str) -> list[str]:
    """Return what is wrong with the log that a replica serves; `roots` are those of the recorded entries."""
    with PinnedChannel(url, ca_pem, timeout=20) as channel:

        def fetch(path: str) -> bytes:
            response = channel.request("GET", f"/log/{path}")
            if response.status != 200:
                raise Refused("chaos.served", f"{path}: status {response.status}")
            return response.body

        try:
            checkpoint = verify_checkpoint(parse_note(fetch("checkpoint").decode()), key)
            tree, hashes = CompactRange(), []
            for tile in tiles_of(checkpoint.size, level=ENTRIES):
                for entry in parse_entries(tile, fetch(tile.path())):
                    hashes.append(leaf_hash(entry))
                    tree.append(hashes[-1])
            tiled = []
            for tile in tiles_of(checkpoint.size, level=0):
                tiled += parse_hashes(tile, fetch(tile.path()))
        except Refused as err:
            return [f"the log that {name} serves: {err.code} {err.message}"]
    faults = []
    if (tree.size, tree.root()) != (checkpoint.size, checkpoint.root):
        faults.append(f"the entries that {name} serves do not make the tree of its checkpoint")
    if tiled != hashes:
        faults.append(f"the tiles that {name} serves are not of its entries")
    if roots.get(checkpoint.size) != checkpoint.root:
        faults.append(f"the checkpoint that {name} serves is of another history than the database")
    return faults
