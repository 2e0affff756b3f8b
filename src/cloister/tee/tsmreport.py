"""Reports from the kernel's configfs-tsm: one directory per question, one file per attribute.

Linux ABI document `configfs-tsm-report` (since 6.7). Any TEE whose driver registers a provider is asked the same way:
make a directory, write `inblob`, read `outblob`, and check that `generation` moved by exactly our one write, because
another process may write to the same directory. Runs inside the guest and imports no codec. What the provider calls
itself is no statement about trust.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from cloister.errors import Unavailable
from cloister.wire.limits import TSM_BLOB_BYTES

TSM: Final = "sys/kernel/config/tsm/report"  # below the root of the device tree
INBLOB_BYTES: Final = 64
_TRIES: Final = 8
_FIRST_WAIT_SECONDS: Final = 0.02  # doubled each time, about five seconds in all
_BUSY: Final = frozenset({errno.EBUSY, errno.EAGAIN, errno.EINTR})


class TSMFiles(Protocol):
    """What is asked of configfs. A fake of it stands for the kernel in tests."""

    def mkdir(self, path: str) -> None:
        """Make a request."""
        ...

    def rmdir(self, path: str) -> None:
        """Drop a request."""
        ...

    def read(self, path: str) -> bytes:
        """Return an attribute."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write an attribute in one piece."""
        ...


class KernelFiles:
    """The real configfs."""

    def mkdir(self, path: str) -> None:
        """Make a request."""
        os.mkdir(path)  # noqa: PTH102  # pathlib is not loaded yet in the guest

    def rmdir(self, path: str) -> None:
        """Drop a request."""
        os.rmdir(path)  # noqa: PTH106  # the same

    def read(self, path: str) -> bytes:
        """Return an attribute, cut behind the longest one there is."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = b""
            while len(data) <= TSM_BLOB_BYTES and (part := os.read(descriptor, TSM_BLOB_BYTES)):
                data += part
            return data
        finally:
            os.close(descriptor)

    def write(self, path: str, data: bytes) -> None:
        """Write an attribute in one piece."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)


def read_tsm_report(
    inblob: bytes,
    *,
    provider: str,
    code: str,
    root: str | os.PathLike[str] = "/",
    files: TSMFiles | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> bytes:
    """Return the `outblob` that the kernel has signed for `inblob`.

    Args:
        inblob: 1 to 64 bytes; the driver says how many it takes.
        provider: name the driver must have.
        code: code of the errors.
        root: where the device tree begins.
        files: stands for configfs.
        sleep: waits between tries.

    Raises:
        Unavailable: no configfs, another provider, or it stays busy (`code`).
    """
    if not 0 < len(inblob) <= INBLOB_BYTES:
        raise RuntimeError(f"a report is asked for with 1 to {INBLOB_BYTES} bytes")
    files = files if files is not None else KernelFiles()
    entry = os.path.join(root, TSM, f"cloister-{os.getpid()}")  # noqa: PTH118  # pathlib is not loaded yet
    wait = _FIRST_WAIT_SECONDS
    for _ in range(_TRIES):
        try:
            found = _try_once(files, entry, inblob, provider, code)
        except OSError as err:
            if err.errno not in _BUSY:
                raise Unavailable(
                    code,
                    f"no report from the kernel: {err.strerror or err}",
                    path=entry,
                    hint="the guest needs the driver of its TEE, a kernel from 6.7 on, configfs mounted, and root",
                ) from err
            found = None
        if found is not None:
            return found
        sleep(wait)
        wait *= 2
    raise Unavailable(code, "configfs stays busy, or someone else writes to our request", path=entry)


def _try_once(files: TSMFiles, entry: str, inblob: bytes, provider: str, code: str) -> bytes | None:
    """Return the report, None when it may be the answer to a question that is not ours."""
    with suppress(FileExistsError):  # ours, of a try that could not tidy up
        files.mkdir(entry)
    try:
        name = files.read(f"{entry}/provider").strip().decode("ascii", "replace")
        if name != provider:
            raise Unavailable(
                code, "configfs is of another technology", path=entry, expected=provider, actual=name[:40]
            )
        before = int(files.read(f"{entry}/generation"))
        files.write(f"{entry}/inblob", inblob)
        report = files.read(f"{entry}/outblob")
        if len(report) > TSM_BLOB_BYTES:
            raise Unavailable(code, "report is longer than any", path=entry, expected=f"at most {TSM_BLOB_BYTES} bytes")
        return report if int(files.read(f"{entry}/generation")) == before + 1 else None
    except ValueError as err:
        raise Unavailable(code, "generation is no number", path=entry) from err
    finally:
        with suppress(OSError):
            files.rmdir(entry)
