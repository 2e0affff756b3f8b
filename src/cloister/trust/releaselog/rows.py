"""The log's rows: its newest checkpoint, nodes of its tree, entries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, bindparam, func, insert, literal, select, tuple_

from cloister.errors import Refused, Unavailable
from cloister.tlog.checkpoint import Checkpoint, verify_checkpoint
from cloister.tlog.entry import Leaf, parse_leaf
from cloister.tlog.note import SignedNote, VerifierKey, parse_note
from cloister.tlog.tree import CompactRange, Node, nodes_of
from cloister.trust.store.prepared import Prepared, PreparedRows
from cloister.trust.store.schema import log_checkpoints, log_entries, log_nodes

INSERT_ENTRIES: Final = PreparedRows(log_entries)
INSERT_NODES: Final = PreparedRows(log_nodes)
INSERT_CHECKPOINT: Final = Prepared(insert(log_checkpoints))
_SIZE: Final = Prepared(select(func.max(log_entries.c.position)))
_NEWEST: Final = select(log_checkpoints.c.size, log_checkpoints.c.note).order_by(log_checkpoints.c.size.desc()).limit(1)
_LEAVES: Final = (
    select(log_entries.c.position, log_entries.c.hash)
    .where(log_entries.c.position >= bindparam("first"), log_entries.c.position < bindparam("last"))
    .order_by(log_entries.c.position)
)
_LEVEL: Final = (
    select(log_nodes.c.position, log_nodes.c.hash)
    .where(
        log_nodes.c.level == bindparam("level"),
        log_nodes.c.position >= bindparam("first"),
        log_nodes.c.position < bindparam("last"),
    )
    .order_by(log_nodes.c.position)
)
_ENTRIES: Final = (
    select(log_entries.c.leaf)
    .where(log_entries.c.position >= bindparam("first"), log_entries.c.position < bindparam("last"))
    .order_by(log_entries.c.position)
)


_ENTRY: Final = (
    select(log_entries.c.position, log_entries.c.leaf, log_entries.c.salt)
    .where(log_entries.c.tenant == bindparam("whose"), log_entries.c.fields == bindparam("written"))
    .order_by(log_entries.c.position.desc())
    .limit(1)
)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Entry:
    """An entry as stored, with the salt that opens it.

    Attributes:
        position: its index.
        leaf: what everybody sees.
        salt: of its fields.
    """

    position: int
    leaf: Leaf
    salt: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The newest checkpoint as stored, its signature checked.

    Attributes:
        checkpoint: what it says.
        note: the signed note.
    """

    checkpoint: Checkpoint
    note: SignedNote


def count_entries(connection: Connection) -> int:
    """Return the number of entries that are there."""
    [(newest,)] = _SIZE.rows(connection, {})
    return 0 if newest is None else int(newest) + 1


def read_head(connection: Connection, key: VerifierKey) -> Head | None:
    """Return the newest checkpoint, None of an empty log.

    Raises:
        Unavailable: it is not signed by our key (`trust.releaselog.damaged`).
    """
    row = connection.execute(_NEWEST).one_or_none()
    if row is None:
        return None
    try:
        note = parse_note(row.note)
        checkpoint = verify_checkpoint(note, key)
    except Refused as err:
        raise damaged("the newest checkpoint is not one of this log's key") from err
    if checkpoint.size != row.size:
        raise damaged("the newest checkpoint is of another size")
    return Head(checkpoint=checkpoint, note=note)


def read_nodes(connection: Connection, wanted: Iterable[Node]) -> dict[Node, bytes]:
    """Return nodes of the tree, in one statement.

    Raises:
        Unavailable: one is missing (`trust.releaselog.damaged`).
    """
    names = list(wanted)
    leaves = [position for level, position in names if level == 0]
    above = [node for node in names if node[0]]
    statement = select(literal(0).label("level"), log_entries.c.position, log_entries.c.hash).where(
        log_entries.c.position.in_(leaves)
    )
    if above:
        key = tuple_(log_nodes.c.level, log_nodes.c.position)
        statement = statement.union_all(  # type: ignore[assignment]  # a union is read like a select
            select(log_nodes.c.level, log_nodes.c.position, log_nodes.c.hash).where(key.in_(above))
        )
    found = {(int(level), int(position)): bytes(data) for level, position, data in connection.execute(statement)}
    if len(found) != len(set(names)):
        raise damaged("nodes of the tree are missing")
    return found


def read_tree(connection: Connection, size: int) -> CompactRange:
    """Return the tree of the first `size` entries, by its stored subtrees.

    Raises:
        Unavailable: one is missing (`trust.releaselog.damaged`).
    """
    names = nodes_of((0, size))
    nodes = read_nodes(connection, names) if names else {}
    return CompactRange(size=size, hashes=[nodes[name] for name in names])


def read_level(connection: Connection, level: int, first: int, last: int) -> list[bytes]:
    """Return the hashes of nodes `first` to `last`, exclusive, of a level that are there."""
    if level == 0:
        rows = connection.execute(_LEAVES, {"first": first, "last": last})
    else:
        rows = connection.execute(_LEVEL, {"level": level, "first": first, "last": last})
    return [bytes(data) for _, data in rows]


def read_entries(connection: Connection, first: int, last: int) -> list[bytes]:
    """Return entries `first` to `last`, exclusive, that are there."""
    return [bytes(row.leaf) for row in connection.execute(_ENTRIES, {"first": first, "last": last})]


def read_entry(connection: Connection, tenant: str, fields: bytes) -> Entry | None:
    """Return the newest entry of a tenant with exactly these fields, given as they are stored; None without one."""
    row = connection.execute(_ENTRY, {"whose": tenant, "written": fields}).one_or_none()
    if row is None:
        return None
    return Entry(position=int(row.position), leaf=parse_leaf(bytes(row.leaf)), salt=bytes(row.salt))


def damaged(message: str) -> Unavailable:
    """Return the refusal for a log that does not fit together."""
    return Unavailable(
        "trust.releaselog.damaged",
        f"the stored log does not fit together: {message}",
        hint="database and log.key belong together: restore both from the newest backup",
    )
