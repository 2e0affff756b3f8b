"""Reports from the kernel's configfs-tsm: one directory per question, one file per attribute. The one reader of it.

Linux ABI document `configfs-tsm-report` (since 6.7). Any TEE whose driver registers a provider is asked the same way:
make a directory, write `inblob` (and `privlevel` where one is asked for, as decimal text), read `outblob` and the blobs
beside it, and check that `generation` moved by exactly our own writes, because another process may write to the same
directory. The directory is dropped whatever happens. Runs inside the guest and imports no codec. Which provider answers
is checked, because the directory looks the same on every platform; that it answers is no statement about trust.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

from cloister.errors import Unavailable
from cloister.wire.limits import TSM_BLOB_BYTES

TSM: Final = "sys/kernel/config/tsm/report"  # below the root of the device tree
INBLOB_BYTES: Final = 64
_TRIES: Final = 8
_FIRST_WAIT_SECONDS: Final = 0.02  # doubled each time, about five seconds in all: hosts throttle, services are busy
_BUSY: Final = frozenset({errno.EBUSY, errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ETIMEDOUT})


class TSMFiles(Protocol):
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
    """The kernel's own.

    Args:
        ceiling: bytes of the longest attribute; of a longer one, one byte more than that is read.
    """

    def __init__(self, ceiling: int = TSM_BLOB_BYTES) -> None:
        self._ceiling = ceiling

    def mkdir(self, path: str) -> None:
        """Make a request."""
        os.mkdir(path)  # noqa: PTH102  # pathlib is not loaded yet in the guest

    def rmdir(self, path: str) -> None:
        """Drop a request."""
        os.rmdir(path)  # noqa: PTH106  # the same

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


class TSMReport(NamedTuple):
    """What the kernel answered.

    Attributes:
        outblob: what the hardware signed.
        auxblob: what comes beside it (SNP: the host's table of certificates); empty where there is none.
        manifestblob: what a service below the kernel says of itself; empty where there is none.
    """

    outblob: bytes
    auxblob: bytes
    manifestblob: bytes


def read_tsm_report(
    inblob: bytes,
    *,
    provider: str,
    code: str,
    root: str | os.PathLike[str] = "/",
    privlevel: int | None = None,
    files: TSMFiles | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> TSMReport:
    """Return what the kernel answers to `inblob`.

    Args:
        inblob: 1 to 64 bytes; the driver says how many it takes.
        provider: name the driver must have.
        code: code of the errors; `<code>.raced` when others keep writing to our request.
        root: where the device tree begins.
        privlevel: to ask a report for; the kernel's own when absent.
        files: stands for configfs.
        sleep: waits between tries.

    Raises:
        Unavailable: no configfs, another provider, an attribute longer than any, or it stays busy (`<code>`); raced by
            another process (`<code>.raced`).
    """
    if not 0 < len(inblob) <= INBLOB_BYTES:
        raise RuntimeError(f"a report is asked for with 1 to {INBLOB_BYTES} bytes")
    request = _Request(
        entry=os.path.join(root, TSM, f"cloister-{os.getpid()}"),  # noqa: PTH118  # pathlib is not loaded yet
        inblob=inblob,
        provider=provider,
        privlevel=privlevel,
        code=code,
        files=files if files is not None else KernelFiles(),
    )
    wait, raced = _FIRST_WAIT_SECONDS, False
    for _ in range(_TRIES):
        try:
            found = request.attempt()
        except OSError as err:
            if err.errno not in _BUSY:
                raise Unavailable(
                    code,
                    f"no report from the kernel: {err.strerror or err}",
                    path=str(err.filename or request.entry),
                    hint="the guest needs the driver of its TEE, a kernel from 6.7 on, configfs mounted, and root",
                ) from err
        else:
            if found is not None:
                return found
            raced = True
        sleep(wait)
        wait *= 2
    raise Unavailable(
        f"{code}.raced" if raced else code,
        "another process writes to our request" if raced else "configfs stays busy",
        path=request.entry,
        hint="try again later",
    )


class _Request(NamedTuple):
    entry: str
    inblob: bytes
    provider: str
    privlevel: int | None
    code: str
    files: TSMFiles

    def attempt(self) -> TSMReport | None:
        """Return the answer, None when it may be the answer to a question that is not ours."""
        with suppress(FileExistsError):  # ours, of a try that could not tidy up
            self.files.mkdir(self.entry)
        try:
            self._check_provider()
            writes = {"inblob": self.inblob}
            if self.privlevel is not None:
                writes["privlevel"] = str(self.privlevel).encode()
            before = self._generation()
            for name, data in writes.items():
                self.files.write(f"{self.entry}/{name}", data)
            report = TSMReport(self._blob("outblob"), self._other_blob("auxblob"), self._other_blob("manifestblob"))
            return report if self._generation() == before + len(writes) else None
        finally:
            with suppress(OSError):
                self.files.rmdir(self.entry)

    def _check_provider(self) -> None:
        found = self.files.read(f"{self.entry}/provider").strip().decode("ascii", "replace")
        if found != self.provider:
            raise Unavailable(
                self.code,
                "configfs is of another technology",
                path=self.entry,
                expected=self.provider,
                actual=found[:40],
            )

    def _generation(self) -> int:
        try:
            return int(self.files.read(f"{self.entry}/generation"))
        except ValueError as err:
            raise Unavailable(self.code, "generation is no number", path=self.entry) from err

    def _blob(self, name: str) -> bytes:
        path = f"{self.entry}/{name}"
        data = self.files.read(path)
        if len(data) > TSM_BLOB_BYTES:
            raise Unavailable(
                self.code, f"{name} is longer than any", path=path, expected=f"at most {TSM_BLOB_BYTES} bytes"
            )
        return data

    def _other_blob(self, name: str) -> bytes:
        try:
            return self._blob(name)
        except FileNotFoundError:  # the driver offers none
            return b""
