"""What anybody may read of the log: its newest checkpoint, and tiles (C2SP tlog-tiles).

No salt, no value and no tenant is in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloister.errors import RequestRefused
from cloister.tlog.tiles import ENTRIES, HEIGHT, encode_entries, parse_tile_path
from cloister.trust.releaselog import rows
from cloister.trust.releaselog.log import ReleaseLog
from cloister.trust.store.database import Store

CHECKPOINT: Final = "checkpoint"
PATH_CHARS: Final = 100
_TEXT: Final = "text/plain; charset=utf-8"
_BYTES: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicFile:
    """One answer.

    Attributes:
        body: whole.
        content_type: of the body.
        immutable: whether it never changes.
    """

    body: bytes
    content_type: str
    immutable: bool


class PublicLog:
    """Serves one log.

    Args:
        log: whose newest checkpoint is served.
        store: where its tiles are.
    """

    def __init__(self, log: ReleaseLog, store: Store) -> None:
        self._log = log
        self._store = store

    def get(self, path: str) -> PublicFile:
        """Return what is at `path`, below the log's own address.

        Raises:
            RequestRefused: no such tile, or not yet (`trust.request.path`).
            FormatRefused: no address of the log (`tlog.tile.malformed`).
            Unavailable: the store failed.
        """
        if path == CHECKPOINT:
            return PublicFile(body=self._log.newest.encode().encode(), content_type=_TEXT, immutable=False)
        tile = parse_tile_path(path[:PATH_CHARS])
        first, last = tile.first, tile.first + tile.width
        if tile.level == ENTRIES:
            parts = self._store.read(lambda connection: rows.read_entries(connection, first, last))
        else:
            level = HEIGHT * tile.level
            parts = self._store.read(lambda connection: rows.read_level(connection, level, first, last))
        if len(parts) != tile.width:
            raise RequestRefused("trust.request.path", "the log has no such tile yet", actual=tile.path())
        body = encode_entries(parts) if tile.level == ENTRIES else b"".join(parts)
        return PublicFile(body=body, content_type=_BYTES, immutable=True)
