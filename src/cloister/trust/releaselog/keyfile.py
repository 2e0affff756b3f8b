"""The log's key, `log.key` in the state directory: made once, never replaced.

A new key is a new log, which every guest's init data and every witness would have to name anew. So a lost key is a
refusal to be answered from a backup: where there is a log in the database, no key is made.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from cloister.errors import Refused, Unavailable
from cloister.tlog.signers import SEED_BYTES, LogSigner
from cloister.trust.statedir import write_whole

NAME: Final = "log.key"
_ORIGIN: Final = "cloister/release-log/"
_BYTES: Final = 4096


def load_log_key(directory: Path, *, origin: str = "") -> LogSigner:
    """Return the log's key, making it when absent.

    Args:
        directory: the private state directory.
        origin: name of the log to make; a random one when empty. Of no effect on a log that exists.

    Raises:
        Refused: others may read the file (`trust.state.permissions`).
        FormatRefused: the file holds no log key, or the origin is no name (`tlog.note.*`).
        Unavailable: it cannot be read or made (`trust.state.io`).
    """
    place = directory / NAME
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # two services may start at once
            if not place.exists():
                made = LogSigner(origin or _ORIGIN + secrets.token_hex(16), secrets.token_bytes(SEED_BYTES))
                write_whole(place, made.private_text().encode() + b"\n", mode=0o600)
        finally:
            os.close(descriptor)
        status = place.stat()
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise Refused(
                "trust.state.permissions",
                "others can reach the state of the trust service",
                path=str(place),
                expected="owned by this user, no access for others",
                hint=f"chmod go-rwx {place}",
            )
        with place.open("rb") as file:
            return LogSigner.from_text(file.read(_BYTES).decode("utf-8", "replace"))
    except OSError as err:
        raise Unavailable("trust.state.io", f"the log's key cannot be used: {err.strerror}", path=str(place)) from err
