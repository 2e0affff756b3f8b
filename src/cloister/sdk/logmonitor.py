"""Watching a release log from outside: is it still the log it was, and does it hold only what is expected?

Reads checkpoint and tiles (C2SP tlog-tiles) like anybody, and keeps a state of its own: the newest checkpoint it
verified, with the tree behind it. Every alarm is a refusal (`sdk.releaselog.*`) and leaves the state as it was, so
that it goes on until somebody has looked; the older checkpoint in the state and the newer one in the alarm are the
proof.

Steps of a look: 1 the checkpoint is the pinned log's; 2 it is not smaller, and not another of the same size; 3 entries
are what the tree says; 4 the tree continues the one that was known; 5 the entries are ones that are expected.
"""

from __future__ import annotations

import http.client
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.tlog.checkpoint import Checkpoint, verify_checkpoint
from cloister.tlog.entry import KINDS, parse_leaf
from cloister.tlog.merkle import leaf_hash
from cloister.tlog.note import VerifierKey, parse_note
from cloister.tlog.tiles import ENTRIES, WIDTH, Tile, parse_entries, parse_hashes
from cloister.tlog.tree import CompactRange
from cloister.wholefile import OWNER_ONLY, write_whole
from cloister.wire.stricttoml import parse_toml

_SECONDS: Final = 20.0
_TILE_BYTES: Final = WIDTH * (2 + 2**16)
_STATE_BYTES: Final = 1024 * 1024
_EXPECT_BYTES: Final = 64 * 1024

Fetch = Callable[[str], bytes]


class Expectations(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What new entries may be.

    Attributes:
        kinds: kinds that may occur; all when empty.
        most: most new entries of a kind between two looks.
    """

    kinds: tuple[str, ...] = ()
    most: Mapping[str, int] = {}


class Known(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the monitor has verified.

    Attributes:
        key: of the log.
        checkpoint: the newest checkpoint, a signed note; empty before the first.
        size: its size.
        hashes: the tree behind it, as complete subtrees.
    """

    key: str
    checkpoint: str = ""
    size: int = 0
    hashes: tuple[bytes, ...] = ()


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What one look has found, nothing of it alarming.

    Attributes:
        size: entries of the log.
        new: entries since the last look.
        kinds: new entries by kind.
    """

    size: int
    new: int
    kinds: Mapping[str, int]


def parse_expectations(data: bytes) -> Expectations:
    """Parse a file of expectations, TOML.

    Raises:
        FormatRefused: unknown members or kinds (`sdk.releaselog.expectations`).
    """
    document = parse_toml(data, ceiling=_EXPECT_BYTES, code="sdk.releaselog.expectations", path="")
    try:
        expected = msgspec.convert(document, Expectations)
    except msgspec.ValidationError as err:
        raise FormatRefused("sdk.releaselog.expectations", f"not expectations: {err}") from err
    unknown = {*expected.kinds, *expected.most} - set(KINDS)
    if unknown:
        raise FormatRefused(
            "sdk.releaselog.expectations",
            "unknown kind",
            expected=" ".join(KINDS),
            actual=" ".join(sorted(unknown))[:80],
        )
    return expected


def load_known(place: Path, key: VerifierKey) -> Known:
    """Return what was verified before; nothing when there is no file.

    Raises:
        FormatRefused: damaged, or of another log (`sdk.releaselog.monitor_state`).
        Unavailable: it cannot be read.
    """
    try:
        data = place.read_bytes()[: _STATE_BYTES + 1]
    except FileNotFoundError:
        return Known(key=str(key))
    except OSError as err:
        raise Unavailable("sdk.releaselog.monitor_state", f"cannot be read: {err.strerror}", path=str(place)) from err
    try:
        known = msgspec.json.decode(data, type=Known)
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise FormatRefused("sdk.releaselog.monitor_state", "the monitor's state is damaged", path=str(place)) from err
    if known.key != str(key) or len(known.hashes) != known.size.bit_count():
        raise FormatRefused("sdk.releaselog.monitor_state", "the monitor's state is of another log", path=str(place))
    return known


def store_known(place: Path, known: Known) -> None:
    """Store what was verified.

    Raises:
        Unavailable: it cannot be written (`sdk.releaselog.monitor_state`).
    """
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(place, msgspec.json.encode(known) + b"\n", mode=OWNER_ONLY)
    except OSError as err:
        raise Unavailable(
            "sdk.releaselog.monitor_state", f"cannot be written: {err.strerror}", path=str(place)
        ) from err


def look(
    fetch: Fetch, key: VerifierKey, known: Known, *, expected: Expectations, whole: bool = False
) -> tuple[Seen, Known]:
    """Look at the log once; return what was found, and what is known from now on.

    Args:
        fetch: path below the log's address to its content.
        key: of the log.
        known: what was verified before.
        expected: what new entries may be.
        whole: read old entries again, too, to notice that they were edited.

    Raises:
        Refused: an alarm (`sdk.releaselog.rolled_back`, `.forked`, `.edited`, `.unexpected`), or what is served is no
            log of this key (`tlog.*`).
        Unavailable: the log does not answer (`sdk.releaselog.unreachable`).
    """
    # 1
    text = fetch("checkpoint").decode("utf-8", "replace")
    checkpoint = verify_checkpoint(parse_note(text), key)
    before = CompactRange(size=known.size, hashes=list(known.hashes))
    # 2
    if checkpoint.size < known.size:
        raise _alarm(
            "sdk.releaselog.rolled_back", "the log became smaller", known, text, f"at least {known.size}", checkpoint
        )
    if checkpoint.size == known.size and checkpoint.root != before.root():
        raise _alarm("sdk.releaselog.forked", "another log of the same size", known, text, str(known.size), checkpoint)
    # 3
    tree = CompactRange() if whole else before.copy()
    kinds: Counter[str] = Counter()
    first, matching = tree.size, known.size == 0
    for tile in _bundles(first, checkpoint.size):
        for entry in _entries(fetch, tile, tree.size):
            if whole and tree.size == known.size:
                matching = matching or tree.hashes == before.hashes
            if tree.size >= known.size:
                kinds[parse_leaf(entry).kind] += 1
            tree.append(leaf_hash(entry))
    if whole and tree.size == known.size:
        matching = matching or tree.hashes == before.hashes
    # 4
    if tree.root() != checkpoint.root or (whole and not matching):
        raise _alarm(
            "sdk.releaselog.forked", "the log does not continue the one known before", known, text, "", checkpoint
        )
    # 5
    _require_expected(kinds, expected, known, text, checkpoint)
    seen = Seen(size=checkpoint.size, new=checkpoint.size - known.size, kinds=dict(kinds))
    return seen, Known(key=known.key, checkpoint=text, size=tree.size, hashes=tuple(tree.hashes))


def fetcher(url: str, ca_file: Path | None) -> Fetch:
    """Return what reads a log over HTTP.

    Args:
        url: address of the log, such as `https://trust.example:7070/log`.
        ca_file: the one CA to accept; the system's when None.

    Raises:
        FormatRefused: not an address (`sdk.releaselog.address`).
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise FormatRefused(
            "sdk.releaselog.address", "not the address of a log", expected="https://host:port/log", actual=url
        )
    host, base = parts.hostname, parts.path.rstrip("/")
    context = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None

    def fetch(path: str) -> bytes:
        connection = (
            http.client.HTTPSConnection(host, parts.port, timeout=_SECONDS, context=context)
            if context is not None
            else http.client.HTTPConnection(host, parts.port, timeout=_SECONDS)
        )
        try:
            connection.request("GET", f"{base}/{path}")
            response = connection.getresponse()
            data = response.read(_TILE_BYTES + 1)
        except (OSError, http.client.HTTPException) as err:
            raise Unavailable(
                "sdk.releaselog.unreachable", f"the log does not answer: {err}", path=f"{url}/{path}"
            ) from err
        finally:
            connection.close()
        if response.status != 200 or len(data) > _TILE_BYTES:
            raise Unavailable(
                "sdk.releaselog.unreachable",
                "the log does not serve this",
                path=path,
                actual=f"status {response.status}",
            )
        return data

    return fetch


def _bundles(first: int, size: int) -> list[Tile]:
    """Return the bundles with entries `first` to `size`."""
    found = []
    for index in range(first // WIDTH, -(-size // WIDTH)):
        found.append(Tile(level=ENTRIES, index=index, width=min(WIDTH, size - index * WIDTH)))
    return found


def _entries(fetch: Fetch, tile: Tile, first: int) -> list[bytes]:
    """Return the entries of a bundle from index `first` on, compared with the leaf hashes beside them."""
    entries = parse_entries(tile, fetch(tile.path()))
    hashes = Tile(level=0, index=tile.index, width=tile.width)
    for place, (entry, digest) in enumerate(
        zip(entries, parse_hashes(hashes, fetch(hashes.path())), strict=True), tile.first
    ):
        if leaf_hash(entry) != digest:
            raise Refused(
                "sdk.releaselog.edited",
                "an entry is not the one that the tree holds",
                path=f"entry {place}",
                hint="keep what was served; ask the owner of the log",
            )
    return entries[max(0, first - tile.first) :]


def _require_expected(
    kinds: Mapping[str, int], expected: Expectations, known: Known, text: str, checkpoint: Checkpoint
) -> None:
    for kind, count in sorted(kinds.items()):
        if expected.kinds and kind not in expected.kinds:
            raise _alarm(
                "sdk.releaselog.unexpected", f"entries of kind {kind}", known, text, "none", checkpoint, str(count)
            )
        if count > expected.most.get(kind, count):
            limit = f"at most {expected.most[kind]}"
            raise _alarm(
                "sdk.releaselog.unexpected", f"entries of kind {kind}", known, text, limit, checkpoint, str(count)
            )


class Alarm(Refused):
    """What a monitor exists to say, with its proof.

    Attributes:
        before: newest checkpoint verified before, a signed note.
        after: the one that is served now.
    """

    __slots__ = ("after", "before")
    before: str
    after: str


def _alarm(
    code: str, message: str, known: Known, text: str, expected: str, checkpoint: Checkpoint, actual: str = ""
) -> Alarm:
    alarm = Alarm(
        code,
        message,
        path=checkpoint.origin,
        expected=expected,
        actual=actual or str(checkpoint.size),
        hint="keep both checkpoints, they are the proof; distrust releases since the older one until it is explained",
    )
    alarm.before, alarm.after = known.checkpoint, text
    return alarm
