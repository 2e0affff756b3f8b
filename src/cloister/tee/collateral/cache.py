"""Collateral on disk, shared by every process of a user: one file per item, written whole or not at all.

A file is named by the hash of the item's full identity and holds that identity too: what was asked for is compared with
what is there, letter by letter. Its first line is the SHA-256 of the rest. A file that does not hold what its first
line says is no hit, and no error: the item is fetched again. Writers make a new file, flush it to disk and rename it
under one lock, so that readers need none, a crash leaves the old file, and an older answer never replaces a newer.

That a vendor has no such item is remembered as well, for minutes, beside whatever is had.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from cloister.errors import FormatRefused, Unavailable
from cloister.tee.collateral.content import Content, Entry, refuse_rollback
from cloister.tee.collateral.item import Item, parse_item
from cloister.wholefile import OWNER_ONLY, write_whole
from cloister.wire.limits import COLLATERAL_BYTES, COLLATERAL_HEAD_BYTES

_VERSION: Final = "1"  # of the layout below; another one starts empty
_PRIVATE: Final = 0o700
_LOCK: Final = "lock"
_NEW: Final = "new"
_ABSENT: Final = ".absent"
_ABSENT_FOR: Final = timedelta(minutes=10)
_LEFT_OVER_SECONDS: Final = 24 * 3600  # nobody writes one file for a day: its writer is dead
_DIGEST_CHARS: Final = 64
_FILE_BYTES: Final = _DIGEST_CHARS + 1 + COLLATERAL_HEAD_BYTES + 1 + COLLATERAL_BYTES


class _Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    item: str
    fetched: datetime
    origin: str
    chain: str
    issued: datetime | None
    expires: datetime | None
    sequence: int | None


@dataclass(frozen=True, slots=True)
class Damaged:
    """A file of the cache that does not hold what it says."""

    path: Path
    reason: str


class CollateralCache:
    """The cache in one directory, made when absent. May be used by several threads and processes.

    Args:
        directory: where it lives; nothing in it is worth keeping or secret, and nothing in it is trusted.
    """

    def __init__(self, directory: Path) -> None:
        self._root = directory / _VERSION

    @property
    def directory(self) -> Path:
        """Where locks and notes about hosts are kept, too."""
        return self._root

    def get(self, item: Item) -> Entry | None:
        """Return what is had of `item`, however old; None when nothing is, or what is there is damaged."""
        found = self._read(self._path(item))
        return found if isinstance(found, Entry) and found.item == item else None

    def stamp(self, item: Item) -> tuple[int, int, int] | None:
        """Return what changes whenever what is kept of `item` does; None when nothing is kept."""
        try:
            # Asked with each request, so without making a Path.
            status = os.stat(f"{self._root}/{_place(item)}")  # noqa: PTH116
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def put(self, entry: Entry) -> None:
        """Keep `entry`, unless what is there is newer.

        Raises:
            EndorsementError: it is older than what is there (`collateral.answer.rollback`).
            Unavailable: the directory cannot be written (`collateral.cache.unwritable`).
        """
        path = self._path(entry.item)
        with self._writing() as root:
            known = self.get(entry.item)
            if known is not None:
                refuse_rollback(entry.item, known.content, entry.content)
            _write(root, path, encode_entry(entry))
            path.with_name(path.name + _ABSENT).unlink(missing_ok=True)

    def put_absent(self, item: Item, at: datetime) -> None:
        """Remember that the vendor has no such item.

        Raises:
            Unavailable: `collateral.cache.unwritable`.
        """
        with self._writing() as root:
            path = self._path(item)
            _write(root, path.with_name(path.name + _ABSENT), at.isoformat().encode("ascii"))

    def is_absent(self, item: Item, at: datetime) -> bool:
        """Return whether the vendor said, in the last minutes, that there is no such item."""
        path = self._path(item)
        try:
            said = datetime.fromisoformat(path.with_name(path.name + _ABSENT).read_text("ascii"))
            return said <= at < said + _ABSENT_FOR
        except (OSError, ValueError, TypeError):  # none, damaged, or without a zone
            return False

    def entries(self) -> Iterator[Entry | Damaged]:
        """Return everything there is, in the order of the identities' hashes."""
        for path in sorted(self._root.glob("*/*")):
            if len(path.name) == _DIGEST_CHARS and path.parent.name != _NEW:
                found = self._read(path)
                if isinstance(found, Entry) and self._path(found.item) != path:
                    found = Damaged(path, "it is another item's")
                if found is not None:
                    yield found

    def remove(self, item: Item) -> bool:
        """Forget `item`; return whether there was anything.

        Raises:
            Unavailable: `collateral.cache.unwritable`.
        """
        path = self._path(item)
        with self._writing():
            there = path.exists()
            path.unlink(missing_ok=True)
            path.with_name(path.name + _ABSENT).unlink(missing_ok=True)
        return there

    def remove_damaged(self) -> int:
        """Delete what does not hold what it says; return how many there were.

        Raises:
            Unavailable: `collateral.cache.unwritable`.
        """
        with self._writing():
            damaged = [entry for entry in self.entries() if isinstance(entry, Damaged)]
            for entry in damaged:
                entry.path.unlink(missing_ok=True)
        return len(damaged)

    def _path(self, item: Item) -> Path:
        return self._root / _place(item)

    @staticmethod
    def _read(path: Path) -> Entry | Damaged | None:
        try:
            with path.open("rb") as file:
                data = file.read(_FILE_BYTES + 1)
        except OSError:
            return None
        try:
            return decode_entry(data)
        except FormatRefused as err:
            return Damaged(path, err.message)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Path]:
        try:
            (self._root / _NEW).mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            descriptor = os.open(self._root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield self._root
            finally:
                os.close(descriptor)
        except OSError as err:
            raise Unavailable(
                "collateral.cache.unwritable",
                f"cannot write the cache of collateral: {err.strerror}",
                path=str(self._root),
                hint="set CLOISTER_CACHE to a directory that can be written",
            ) from err


def _write(root: Path, path: Path, data: bytes) -> None:
    """Replace `path` by `data`, whole or not at all; the caller holds the lock."""
    _sweep(root / _NEW)
    path.parent.mkdir(mode=_PRIVATE, exist_ok=True)
    write_whole(path, data, mode=OWNER_ONLY, drafts=root / _NEW)


def _sweep(directory: Path) -> None:
    """Delete files whose writers died before the rename."""
    for path in directory.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _LEFT_OVER_SECONDS:
                path.unlink()


def encode_entry(entry: Entry) -> bytes:
    """Return an entry as it is kept: hash of the rest, head, data."""
    content = entry.content
    head = msgspec.json.encode(
        _Head(
            item=entry.item.text,
            fetched=entry.fetched,
            origin=entry.origin,
            chain=content.chain,
            issued=content.issued,
            expires=content.expires,
            sequence=content.sequence,
        )
    )
    rest = head + b"\n" + content.data
    return sha256(rest).hexdigest().encode("ascii") + b"\n" + rest


def decode_entry(data: bytes) -> Entry:
    """Return the entry that was kept.

    Raises:
        FormatRefused: not what was kept (`collateral.cache.damaged`).
    """
    digest, first, rest = data.partition(b"\n")
    if len(data) > _FILE_BYTES or not first or digest.decode("latin-1") != sha256(rest).hexdigest():
        raise _damaged("file does not have the hash it says")
    head, second, body = rest.partition(b"\n")
    try:
        known = msgspec.json.decode(head, type=_Head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise _damaged("head of the file is not one") from err
    times = [moment for moment in (known.fetched, known.issued, known.expires) if moment is not None]
    if not second or len(head) > COLLATERAL_HEAD_BYTES or any(moment.tzinfo is None for moment in times):
        raise _damaged("head of the file is not one")
    entry = Entry(
        item=parse_item(known.item),
        content=Content(
            data=body, chain=known.chain, issued=known.issued, expires=known.expires, sequence=known.sequence
        ),
        fetched=known.fetched,
        origin=known.origin,
    )
    if encode_entry(entry) != data:
        raise _damaged("file is not in its one form")
    return entry


def _damaged(message: str) -> FormatRefused:
    return FormatRefused("collateral.cache.damaged", message)


@lru_cache(maxsize=4096)
def _place(item: Item) -> str:
    """Return the file of an item, below the directory."""
    return f"{item.kind.value}/{item.key}"
