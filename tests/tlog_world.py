"""A log, its witnesses and what a dishonest log does, in memory; and RFC 6962's definitions word by word to compare."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from cloister.tlog.checkpoint import Checkpoint
from cloister.tlog.entry import encode_leaf
from cloister.tlog.merkle import leaf_hash
from cloister.tlog.note import SignedNote
from cloister.tlog.receipt import LogPins, Receipt, build_receipt
from cloister.tlog.signers import LogSigner, WitnessSigner
from cloister.tlog.tree import CompactRange, Node, consistency_ranges, inclusion_ranges, prove
from cloister.tlog.witness import AddCheckpoint, Seen, decide

ORIGIN = "log.example/release-log/0"
AT = "2026-11-26T19:06:53.000000Z"
COSIGNED_AT = 1_795_719_000


def mth(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, section 2.1, over leaf hashes."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return hashlib.sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    """RFC 6962, section 2.1.1."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def proof(m: int, leaves: Sequence[bytes], whole: bool = True) -> list[bytes]:
    """RFC 6962, section 2.1.2."""
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*proof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*proof(m - k, leaves[k:], False), mth(leaves[:k])]


def split(size: int) -> int:
    k = 1
    while 2 * k < size:
        k *= 2
    return k


class MemoryLog:
    """A log of entries with its key; honest unless told otherwise."""

    def __init__(self, seed: int = 1, origin: str = ORIGIN) -> None:
        self.signer = LogSigner(origin, bytes([seed]) * 32)
        self.entries: list[bytes] = []
        self.nodes: dict[Node, bytes] = {}
        self.tree = CompactRange()

    def add(self, entry: bytes) -> int:
        self.entries.append(entry)
        self.nodes.update(self.tree.append(leaf_hash(entry)))
        return len(self.entries) - 1

    def read(self, level: int, index: int) -> bytes:
        return self.nodes[level, index]

    def fill(self, count: int) -> MemoryLog:
        for number in range(count):
            self.add(b"entry %d" % number)
        return self

    def root(self, size: int | None = None) -> bytes:
        return mth([leaf_hash(entry) for entry in self.entries[:size]])

    def checkpoint(self, size: int | None = None) -> SignedNote:
        size = len(self.entries) if size is None else size
        text = Checkpoint(origin=self.signer.verifier.name, size=size, root=self.root(size)).text()
        return SignedNote(text=text, signatures=(self.signer.sign(text),))

    def consistency(self, old: int, new: int) -> list[bytes]:
        return prove(consistency_ranges(old, new), self.read)

    def inclusion(self, index: int, size: int) -> list[bytes]:
        return prove(inclusion_ranges(index, size), self.read)


class MemoryWitness:
    """A witness that keeps what it saw in memory."""

    def __init__(self, seed: int, *logs: MemoryLog) -> None:
        self.signer = WitnessSigner(f"witness.example/w{seed}", bytes([seed]) * 32)
        self.logs = {log.signer.verifier.name: log.signer.verifier for log in logs}
        self.seen: dict[str, Seen] = {}

    def latest(self, origin: str = ORIGIN) -> int:
        return self.seen.get(origin, Seen()).size

    def add_checkpoint(self, request: AddCheckpoint) -> SignedNote:
        """Cosign, or raise what the witness refuses with."""
        checkpoint = decide(request, self.logs, self.seen)
        self.seen[checkpoint.origin] = Seen(size=checkpoint.size, root=checkpoint.root)
        signature = self.signer.cosign(request.note.text, at=COSIGNED_AT)
        return SignedNote(text=request.note.text, signatures=(*request.note.signatures, signature))

    def cosign(self, log: MemoryLog, size: int | None = None) -> SignedNote:
        """Cosign the newest checkpoint of a log by the protocol."""
        note = log.checkpoint(size)
        old = self.latest(log.signer.verifier.name)
        proof_hashes = log.consistency(old, len(log.entries) if size is None else size)
        return self.add_checkpoint(AddCheckpoint(old=old, proof=tuple(proof_hashes), note=note))


def cosigned(note: SignedNote, others: Sequence[SignedNote]) -> SignedNote:
    """One note with the signatures of several copies of it."""
    extra = [item.signatures[-1] for item in others if item.text == note.text]
    return SignedNote(text=note.text, signatures=(*note.signatures, *extra))


class World:
    """One log of releases under three witnesses, two of which a guest asks for."""

    def __init__(self, witnesses: int = 3, cosignatures: int = 2) -> None:
        self.log = MemoryLog()
        self.witnesses = [MemoryWitness(10 + number, self.log) for number in range(witnesses)]
        self.pins = LogPins(
            key=self.log.signer.verifier,
            witnesses=tuple(item.signer.verifier for item in self.witnesses),
            cosignatures=cosignatures,
        )
        self.log.fill(5)

    def release(self, fields: Mapping[str, str], *, kind: str = "release", salt: bytes = bytes(range(32))) -> int:
        return self.log.add(encode_leaf(kind, AT, salt, fields))

    def receipt(
        self,
        fields: Mapping[str, str],
        index: int,
        *,
        kind: str = "release",
        salt: bytes = bytes(range(32)),
        note: SignedNote | None = None,
    ) -> Receipt:
        """The receipt of an entry in the tree of `note`, cosigned by all witnesses when none is given."""
        if note is None:
            note = self.log.checkpoint()
            note = cosigned(note, [witness.cosign(self.log) for witness in self.witnesses])
        size = int(note.text.split("\n")[1])
        return build_receipt(
            kind=kind,
            at=AT,
            salt=salt,
            fields=fields,
            index=index,
            proof=self.log.inclusion(index, size),
            checkpoint=note.encode(),
        )
