"""Approvals and keys of pods whose owner's process died: found at the next start, and withdrawn.

A run that is killed cannot take back what it approved. Each approval therefore has a file that its process holds
locked (flock(2)); the kernel lets go of the lock however the process ends, so a file that can be locked belongs to
nobody. The file says what to withdraw and holds no secret. An approval that the user wants to outlive its run has no
file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cloister.errors import Refused
from cloister.protocol.resourceuri import ResourcePath, parse_resource_path

if TYPE_CHECKING:
    from cloister.sdk.owner import Owner

_FOLDER: Final = "approvals"
_SUFFIX: Final = ".json"
_PRIVATE: Final = 0o700


class _Note(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    init_data: str
    own: tuple[str, ...]


class ApprovalClaim:
    """Says that this process will withdraw an approval itself.

    Args:
        root: the owner's directory.
        init_data: digest of the approved init data.
        own: resources that only this pod has, deleted with the approval.
    """

    def __init__(self, root: Path, init_data: str, own: Sequence[ResourcePath]) -> None:
        folder = root / _FOLDER
        folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        self._path = folder / f"{secrets.token_hex(8)}{_SUFFIX}"
        draft = self._path.with_suffix(".new")
        self._lock = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.write(self._lock, msgspec.json.encode(_Note(init_data=init_data, own=tuple(map(str, own)))))
        draft.rename(self._path)  # under its name it was locked from the first moment

    def release(self) -> None:
        """Leave the approval to nobody; further calls do nothing."""
        if self._lock >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1


def withdraw_abandoned(owner: Owner, root: Path) -> int:
    """Withdraw every approval whose process died; return how many there were."""
    count = 0
    for path in sorted((root / _FOLDER).glob(f"*{_SUFFIX}")):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue  # its owner was faster
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _withdraw(owner, msgspec.json.decode(path.read_bytes(), type=_Note))
            path.unlink()
            count += 1
        except (OSError, msgspec.MsgspecError):
            continue  # held by a living process, or none of ours
        finally:
            os.close(descriptor)
    return count


def _withdraw(owner: Owner, note: _Note) -> None:
    """Remove the approval and the pod's own resources."""
    with owner.admin() as admin:
        admin.forget(note.init_data)
        for text in note.own:
            with contextlib.suppress(Refused):  # deleted before
                admin.delete_resource(parse_resource_path(text))
