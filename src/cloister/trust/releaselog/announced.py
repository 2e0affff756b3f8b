"""`log.json` in the state directory: the witnesses that the service was started with, for the owner's commands there.

They write the same log, so they ask the same witnesses first; and `cloister run` puts key, witnesses and number into
the init data of pods. Public; whoever can change it can change the log's key beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from cloister.errors import Refused, Unavailable
from cloister.wholefile import READABLE, write_whole

NAME: Final = "log.json"
_BYTES: Final = 64 * 1024


class Announced(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the service was started with.

    Attributes:
        witnesses: `KEY@URL` each.
        cosignatures: how many of them must have cosigned a release.
    """

    witnesses: tuple[str, ...] = ()
    cosignatures: int = 0


def announce(directory: Path, announced: Announced) -> None:
    """Write the file, if it says something else.

    Raises:
        Unavailable: it cannot be written (`trust.state.io`).
    """
    if read_announced(directory) == announced:
        return
    try:
        write_whole(directory / NAME, msgspec.json.encode(announced) + b"\n", mode=READABLE)
    except OSError as err:
        raise Unavailable("trust.state.io", f"cannot be written: {err.strerror}", path=str(directory / NAME)) from err


def read_announced(directory: Path) -> Announced:
    """Return what the file says; nothing when there is none.

    Raises:
        Refused: it is damaged (`trust.releaselog.announced`).
        Unavailable: it cannot be read (`trust.state.io`).
    """
    place = directory / NAME
    try:
        with place.open("rb") as file:
            return msgspec.json.decode(file.read(_BYTES), type=Announced)
    except FileNotFoundError:
        return Announced()
    except OSError as err:
        raise Unavailable("trust.state.io", f"cannot be read: {err.strerror}", path=str(place)) from err
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise Refused(
            "trust.releaselog.announced",
            "the file that names the log's witnesses is damaged",
            path=str(place),
            hint="remove it and start the service",
        ) from err
