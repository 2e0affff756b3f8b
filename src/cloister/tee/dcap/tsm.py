"""A report from the kernel by configfs-tsm (Linux 6.7): write 64 bytes, read a quote.

Linux ABI document `configfs-tsm-report`. Every request has a directory of its own; the counter `generation` tells
whether anyone else wrote to it between our write and our read. Which provider answers is checked, because the directory
is there on every platform; that it answers says nothing about trust.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from cloister.errors import Unavailable
from cloister.wire.limits import DCAP_QUOTE_BYTES

TSM: Final = "sys/kernel/config/tsm/report"
_TRIES: Final = 8
_FIRST_WAIT_SECONDS: Final = 0.02  # doubled each time, about five seconds in all: the quoting service may be busy
_BUSY: Final = frozenset({errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT})


class Files(Protocol):
    """What is asked of configfs and sysfs. A fake of it stands for the kernel in tests."""

    def mkdir(self, path: str) -> None:
        """Make a request."""
        ...

    def rmdir(self, path: str) -> None:
        """Drop a request."""
        ...

    def read(self, path: str) -> bytes:
        """Return a whole attribute."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write an attribute in one piece."""
        ...


class KernelFiles:
    """The kernel's own."""

    def __init__(self, ceiling: int = DCAP_QUOTE_BYTES) -> None:
        self._ceiling = ceiling

    def mkdir(self, path: str) -> None:
        """Make a request."""
        os.mkdir(path)  # noqa: PTH102  # pathlib is not loaded yet in the guest

    def rmdir(self, path: str) -> None:
        """Drop a request."""
        os.rmdir(path)  # noqa: PTH106

    def read(self, path: str) -> bytes:
        """Return a whole attribute, one byte more than the ceiling at most."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = b""
            while len(data) <= self._ceiling and (part := os.read(descriptor, self._ceiling + 1 - len(data))):
                data += part
            return data
        finally:
            os.close(descriptor)

    def write(self, path: str, data: bytes) -> None:
        """Write an attribute in one piece."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.EIO, "short write", path)
        finally:
            os.close(descriptor)


def request_quote(
    directory: str,
    data: bytes,
    *,
    provider: str,
    code: str,
    files: Files,
    sleep: Callable[[float], object] = time.sleep,
) -> bytes:
    """Return the quote over `data`.

    Args:
        directory: `/sys/kernel/config/tsm/report`, or that of another device tree.
        data: 64 bytes.
        provider: who must answer (`tdx_guest`).
        code: of the errors; `<code>.raced` when others keep writing to our request.
        files: the kernel's.
        sleep: waits between tries.

    Raises:
        Unavailable: no such interface, another provider, busy for too long, or raced by another process.
    """
    entry = os.path.join(directory, f"cloister-{os.getpid()}")  # noqa: PTH118
    wait, raced = _FIRST_WAIT_SECONDS, False
    for _ in range(_TRIES):
        try:
            quote = _try(entry, data, provider, code, files)
        except OSError as err:
            if err.errno not in _BUSY:
                raise Unavailable(
                    code,
                    f"no quote from the kernel: {err.strerror or err}",
                    path=str(err.filename or entry),
                    hint="the guest needs configfs-tsm and the right to use it, its host a quoting service",
                ) from err
        else:
            if quote is not None:
                return quote
            raced = True
        sleep(wait)
        wait *= 2
    raise Unavailable(
        f"{code}.raced" if raced else code,
        "another process writes to our request" if raced else "the quoting service stays busy",
        path=entry,
        hint="try again later",
    )


def _try(entry: str, data: bytes, provider: str, code: str, files: Files) -> bytes | None:
    """Return the quote, None when it may be the answer to a question that is not ours."""
    with suppress(FileExistsError):  # ours, of a try that could not tidy up
        files.mkdir(entry)
    try:
        found = files.read(f"{entry}/provider").strip().decode("ascii", "replace")
        if found != provider:
            raise Unavailable(
                code, "the kernel's reports are of another technology", path=entry, expected=provider, actual=found[:40]
            )
        before = _number(files.read(f"{entry}/generation"), entry, code)
        files.write(f"{entry}/inblob", data)
        quote = files.read(f"{entry}/outblob")
        after = _number(files.read(f"{entry}/generation"), entry, code)
        if len(quote) > DCAP_QUOTE_BYTES:
            raise Unavailable(code, "quote longer than any real one", path=entry, expected=f"{DCAP_QUOTE_BYTES} bytes")
        return quote if after == before + 1 else None
    finally:
        with suppress(OSError):
            files.rmdir(entry)


def _number(text: bytes, entry: str, code: str) -> int:
    try:
        return int(text)
    except ValueError as err:
        raise Unavailable(code, "generation is no number", path=entry) from err
