"""The log itself: entries in the transaction of what they are about, one signed checkpoint per transaction.

Entries get their place at the end of the transaction: what a job that refused had appended is forgotten with it. They
are written together, with the signed checkpoint over all of them; so an entry that is durable is in a signed
checkpoint. Inclusion proofs are made from the tree as it was and the batch, without reading.

Nothing is appended before it is known that the log in the database is the one that was shown to others
(`cloister.trust.releaselog.guard`).
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection

from cloister.errors import Unavailable
from cloister.tlog.checkpoint import Checkpoint
from cloister.tlog.entry import SALT_BYTES, encode_leaf
from cloister.tlog.merkle import leaf_hash
from cloister.tlog.note import SignedNote, VerifierKey
from cloister.tlog.receipt import Receipt, build_receipt, encode_receipt
from cloister.tlog.signers import LogSigner
from cloister.tlog.tree import CompactRange, Node, inclusion_ranges, nodes_for, prove
from cloister.trust.events import LogEvent
from cloister.trust.releaselog import rows
from cloister.trust.releaselog.cosigning import Cosigner, Witness
from cloister.trust.releaselog.guard import Guard
from cloister.trust.releaselog.highwater import HighWater, Mark
from cloister.trust.store.database import Store
from cloister.trust.store.deferred import defer

TENANT_FIELD: Final = "tenant"
FIRST_ANSWER_SECONDS: Final = 3.0
_ORIGIN: Final = "cloister/release-log/"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """The entries of one transaction.

    Attributes:
        transaction: whose; compared by identity.
        tree: after them.
        nodes: what proofs are made from: subtrees of the tree before, and all that the batch made.
        note: the checkpoint over them.
    """

    transaction: object
    tree: CompactRange
    nodes: dict[Node, bytes]
    note: SignedNote


@dataclass(slots=True, kw_only=True, repr=False)
class Appended:
    """An entry that was appended; of use once its transaction is durable.

    Attributes:
        kind: as appended.
        at: as in the leaf.
        salt: of its fields.
        fields: as appended, with the tenant.
        leaf: what everybody sees.
        position: its index, once the transaction is about to commit.
        batch: all that are about to commit, then.
    """

    kind: str
    at: str
    salt: bytes
    fields: Mapping[str, str]
    leaf: bytes
    position: int = -1
    batch: _Batch | None = None


class ReleaseLog:
    """The log of one trust service. Give it to the store as its `batch_hook`, then `open` it.

    Args:
        high_water: the mark beside the database.
        cosigner: asks witnesses; None when there are none.
        random: returns that many unpredictable bytes.
    """

    def __init__(
        self, high_water: HighWater, *, cosigner: Cosigner | None, random: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        self._signer: LogSigner | None = None
        self._opening = threading.Lock()
        self._cosigner = cosigner
        self._random = random
        self._guard = Guard(high_water, asked=cosigner is not None)
        self._high_water = high_water
        self._tree: CompactRange | None = None
        self._batch: _Batch | None = None
        self._known: object = None  # the transaction in which it was seen that the tree is the database's
        self._newest: SignedNote | None = None
        self._store: Store | None = None

    @property
    def opened(self) -> bool:
        """Whether `open` was called and did not fail."""
        return self._newest is not None

    @property
    def key(self) -> VerifierKey:
        """The log's public key; its name is the origin.

        Raises:
            Unavailable: not open yet (`trust.releaselog.closed`).
        """
        return self._require_signer().verifier

    @property
    def newest(self) -> SignedNote:
        """The newest checkpoint that is durable, with the cosignatures it has.

        Raises:
            Unavailable: not open yet (`trust.releaselog.closed`).
        """
        newest = self._newest
        if newest is None:
            raise _closed()
        return newest if self._cosigner is None else self._cosigner.cosigned(newest)

    def open(
        self, store: Store, key: Ed25519PrivateKey, *, origin: str = "", seconds: float = FIRST_ANSWER_SECONDS
    ) -> None:
        """Look at the log in `store`, and ask the witnesses about it. Does nothing when it was done before.

        Not raised here, but by what appends: that the log is not the one others were shown, or that no witness
        answered. Reading stays possible.

        Args:
            store: whose hook this is.
            key: the log's private key.
            origin: name of the log; one made from the key when empty.
            seconds: most to wait for a witness; asking goes on behind.

        Raises:
            Unavailable: the store failed, or the log in it is damaged.
        """
        with self._opening:
            if self.opened:
                return
            self._signer, self._store = LogSigner(origin or origin_of(key), key.private_bytes_raw()), store
            mark = self._high_water.read()  # before the database: what is marked was committed before
            size, note = store.read(lambda connection: self._look(connection, mark))
            self._newest = note
            if self._cosigner is not None:
                self._cosigner.begin(
                    size, note, prove=self._prove_consistency, newest=self._stored_head, judge=self._guard
                )
                self._guard.wait(seconds)

    def check(self) -> None:
        """Return if the log may be written; for readiness.

        Raises:
            Unavailable: not open yet, or not known to be the newest (`trust.releaselog.*`).
        """
        if not self.opened:
            raise _closed()
        self._guard.require_clear()

    def append(self, connection: Connection, event: LogEvent) -> Appended:
        """Add an entry in the transaction of `connection`.

        Raises:
            FormatRefused: unknown kind, or fields above a ceiling (`tlog.entry.malformed`).
            Unavailable: the log must not be written now (`trust.releaselog.*`); what is logged must not happen either.
        """
        self._require_known(connection)
        salt = self._random(SALT_BYTES)
        at = event.at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        fields = {**event.fields, TENANT_FIELD: event.tenant}
        leaf = encode_leaf(event.kind, at, salt, fields)
        appended = Appended(kind=event.kind, at=at, salt=salt, fields=fields, leaf=leaf)
        defer(connection, self._write, appended)
        return appended

    def before_commit(self, connection: Connection) -> None:
        """Forget the batch of a transaction that could not be committed; part of the store's hook."""
        if self._batch is not None and self._batch.transaction is not connection.get_transaction():
            self._batch = None

    def after_commit(self) -> None:
        """Go on from the batch, which is durable; part of the store's hook.

        Raises:
            Unavailable: the high-water mark cannot be written. The entries are durable all the same; what is told to
                those who wait is that it is not known, and nothing is appended until the mark can be written.
        """
        batch, self._batch = self._batch, None
        if batch is None:
            return
        tree = self._tree = batch.tree
        self._newest = batch.note
        if self._cosigner is not None:
            self._cosigner.offer(tree.size, batch.note)
        self._high_water.raise_to(Mark(size=tree.size, root=tree.root()))

    def receipt(self, appended: object, *, cosignatures: int = 0, deadline: float) -> str:
        """Return the receipt of an entry whose transaction is durable, as the value of its header.

        Args:
            appended: what `append` returned.
            cosignatures: how many witnesses must have cosigned.
            deadline: on the monotonic clock.

        Raises:
            Unavailable: too few witnesses cosigned in time (`trust.releaselog.cosignatures`), or the store failed.
        """
        return encode_receipt(self.receipt_of(appended, cosignatures=cosignatures, deadline=deadline))

    def receipt_of(self, appended: object, *, cosignatures: int = 0, deadline: float) -> Receipt:
        """As `receipt`, not encoded."""
        if not isinstance(appended, Appended) or appended.batch is None:
            raise TypeError("not an entry of this log that was committed")
        batch, position = appended.batch, appended.position
        note, size = batch.note, batch.tree.size
        if cosignatures:
            note, size = self._wait_cosigned(position, cosignatures, deadline)
        ranges = inclusion_ranges(position, size)
        if size == batch.tree.size:
            nodes = batch.nodes
        else:
            nodes = self._require_store().read(lambda connection: rows.read_nodes(connection, nodes_for(ranges)))
        return build_receipt(
            kind=appended.kind,
            at=appended.at,
            salt=appended.salt,
            fields=appended.fields,
            index=position,
            proof=prove(ranges, lambda level, index: nodes[level, index]),
            checkpoint=note.encode(),
        )

    def stored_receipt(
        self, tenant: str, fields: Mapping[str, str], *, cosignatures: int = 0, deadline: float
    ) -> Receipt | None:
        """Return the receipt of the newest entry with exactly these fields, for its owner to show; None without one.

        Args:
            tenant: whose.
            fields: as they were appended.
            cosignatures: how many witnesses must have cosigned.
            deadline: on the monotonic clock.

        Raises:
            Unavailable: too few witnesses cosigned in time (`trust.releaselog.cosignatures`), or the store failed.
        """
        written = msgspec.json.encode({**fields, TENANT_FIELD: tenant})
        store = self._require_store()
        entry = store.read(lambda connection: rows.read_entry(connection, tenant, written))
        if entry is None:
            return None
        note, size = (
            self._wait_cosigned(entry.position, cosignatures, deadline) if cosignatures else self._stored_head()[::-1]
        )
        ranges = inclusion_ranges(entry.position, size)
        nodes = store.read(lambda connection: rows.read_nodes(connection, nodes_for(ranges)))
        return build_receipt(
            kind=entry.leaf.kind,
            at=entry.leaf.at,
            salt=entry.salt,
            fields={**fields, TENANT_FIELD: tenant},
            index=entry.position,
            proof=prove(ranges, lambda level, index: nodes[level, index]),
            checkpoint=note.encode(),
        )

    def close(self) -> None:
        """Stop asking witnesses. The store is closed before."""
        if self._cosigner is not None:
            self._cosigner.close()
        self._high_water.close()

    def _require_known(self, connection: Connection) -> None:
        """Return if the tree that is known is that of the database, for the running transaction; it alone writes."""
        self.check()
        transaction = connection.get_transaction()
        if self._known is transaction:
            return
        size = rows.count_entries(connection)
        if self._tree is None or self._tree.size != size:
            self._reload(connection, size)
        self._known = transaction

    def _write(self, connection: Connection, entries: Sequence[Appended]) -> None:
        """Give the entries of a transaction their places and store them with a signed checkpoint over all of them."""
        tree = self._require_tree().copy()
        nodes, stored, made = dict(tree.nodes()), [], []
        for entry in entries:
            entry.position, digest = tree.size, leaf_hash(entry.leaf)
            stored.append(
                {
                    "position": entry.position,
                    "leaf": entry.leaf,
                    "hash": digest,
                    "salt": entry.salt,
                    "tenant": entry.fields[TENANT_FIELD],
                    "fields": msgspec.json.encode(entry.fields),
                }
            )
            for (level, position), data in tree.append(digest):
                nodes[level, position] = data
                if level:
                    made.append({"level": level, "position": position, "hash": data})
        note = self._sign(tree)
        rows.INSERT_ENTRIES.run(connection, stored)
        rows.INSERT_NODES.run(connection, made)
        rows.INSERT_CHECKPOINT.run(connection, {"size": tree.size, "note": note.encode()})
        self._batch = _Batch(transaction=connection.get_transaction(), tree=tree, nodes=nodes, note=note)
        for entry in entries:
            entry.batch = self._batch

    def _reload(self, connection: Connection, size: int) -> None:
        """Take the log from the database: another process appended, or nothing was known yet.

        Raises:
            Unavailable: it is damaged, or does not continue what was known (`trust.releaselog.rolled_back`).
        """
        head, tree = self._read(connection)
        if tree.size != size:
            raise rows.damaged("the newest checkpoint is not that of the entries")
        if self._tree is not None:
            self._guard.require_continues(connection, Mark(size=self._tree.size, root=self._tree.root()), tree)
        self._tree = tree
        self._newest = head

    def _read(self, connection: Connection) -> tuple[SignedNote, CompactRange]:
        """Return the newest checkpoint as stored, and its tree.

        What a checkpoint covers does not change, so that these may be several statements outside a transaction.
        """
        head = rows.read_head(connection, self.key)
        if head is None:
            return self._sign(CompactRange()), CompactRange()
        tree = rows.read_tree(connection, head.checkpoint.size)
        if head.checkpoint.root != tree.root():
            raise rows.damaged("the newest checkpoint is not that of the entries")
        return head.note, tree

    def _look(self, connection: Connection, mark: Mark) -> tuple[int, SignedNote]:
        note, tree = self._read(connection)
        self._guard.look(connection, mark, tree)
        self._tree = tree
        return tree.size, note

    def _stored_head(self) -> tuple[int, SignedNote]:
        head = self._require_store().read(lambda connection: rows.read_head(connection, self.key))
        return (0, self._sign(CompactRange())) if head is None else (head.checkpoint.size, head.note)

    def _sign(self, tree: CompactRange) -> SignedNote:
        text = Checkpoint(origin=self.key.name, size=tree.size, root=tree.root()).text()
        return SignedNote(text=text, signatures=(self._require_signer().sign(text),))

    def _prove_consistency(self, ranges: list[tuple[int, int]]) -> list[bytes]:
        nodes = self._require_store().read(lambda connection: rows.read_nodes(connection, nodes_for(ranges)))
        return prove(ranges, lambda level, index: nodes[level, index])

    def _wait_cosigned(self, position: int, cosignatures: int, deadline: float) -> tuple[SignedNote, int]:
        if self._cosigner is None:
            raise Unavailable(
                "trust.releaselog.cosignatures",
                "the release asks for cosignatures, and no witness is configured",
                expected=str(cosignatures),
                actual="0",
                hint="name witnesses with --log-witnesses",
            )
        return self._cosigner.wait(position + 1, cosignatures, max(0.0, deadline - time.monotonic()))

    def _require_signer(self) -> LogSigner:
        if self._signer is None:
            raise _closed()
        return self._signer

    def _require_tree(self) -> CompactRange:
        if self._tree is None:
            raise RuntimeError("the log was not looked at")
        return self._tree

    def _require_store(self) -> Store:
        if self._store is None:
            raise RuntimeError("the log is not open")
        return self._store


class EventsOnceOpen:
    """Events of a service's keys: what happens to them before the log is open has no entry.

    That is the making of the first ones, the log's own among them.

    Args:
        log: where the rest goes.
    """

    def __init__(self, log: ReleaseLog) -> None:
        self._log = log

    def append(self, connection: Connection, event: LogEvent) -> object:
        """Record `event` as `ReleaseLog.append` does, or nothing."""
        return self._log.append(connection, event) if self._log.opened else None


def make_release_log(directory: Path, witnesses: Sequence[Witness]) -> ReleaseLog:
    """Return the log of a state directory, to be given to its store and opened.

    Raises:
        Unavailable: the high-water mark cannot be used (`trust.releaselog.highwater`).
    """
    return ReleaseLog(HighWater(directory), cosigner=Cosigner(witnesses) if witnesses else None)


def origin_of(key: Ed25519PrivateKey) -> str:
    """Return the name of the log of a key: one key, one log."""
    return _ORIGIN + hashlib.sha256(key.public_key().public_bytes_raw()).hexdigest()[:32]


def _closed() -> Unavailable:
    return Unavailable(
        "trust.releaselog.closed",
        "the release log is not open yet",
        hint="its key is sealed with the others; unseal the service",
    )
