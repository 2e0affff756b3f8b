"""A fake of the kernel's configfs-tsm and of files in sysfs, in memory: for the attesters that read reports from it."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Mapping


class FakeTSM:
    """Answers a request as the driver does: attributes come with the directory, every write moves its generation.

    Args:
        make: the report over `inblob` at a privilege level.
        provider: what the driver calls itself.
        busy: how many reads of the report answer EBUSY first.
        racing: how many times another process writes to the request before the report is read.
        auxblob: None for a driver that has none.
        manifestblob: likewise.
        attributes: files outside of configfs, by path; one that is written to is extended, as a run-time register is.

    Attributes:
        requests: attributes of each request that is there, by path.
        made: how many requests were made, `dropped`: how many were dropped again.
        written: every write, in order.
    """

    def __init__(
        self,
        make: Callable[[bytes, int], bytes],
        *,
        provider: str,
        busy: int = 0,
        racing: int = 0,
        auxblob: bytes | None = None,
        manifestblob: bytes | None = None,
        attributes: Mapping[str, bytes] | None = None,
    ) -> None:
        self._make = make
        self.provider, self.busy, self.racing = provider, busy, racing
        others = {"auxblob": auxblob, "manifestblob": manifestblob}
        self._others = {name: value for name, value in others.items() if value is not None}
        self.attributes = dict(attributes or {})
        self.requests: dict[str, dict[str, bytes]] = {}
        self.made = self.dropped = 0
        self.written: list[tuple[str, bytes]] = []

    def mkdir(self, path: str) -> None:
        """Make a request with its attributes."""
        if path in self.requests:
            raise FileExistsError(errno.EEXIST, "File exists", path)
        self.requests[path] = {"provider": f"{self.provider}\n".encode(), "generation": b"0\n", **self._others}
        self.made += 1

    def rmdir(self, path: str) -> None:
        """Drop a request."""
        del self.requests[path]
        self.dropped += 1

    def read(self, path: str) -> bytes:
        """Return an attribute; the report is made when `outblob` is read."""
        entry, _, name = path.rpartition("/")
        request = self.requests.get(entry)
        if request is not None and name == "outblob":
            return self._report(path, request)
        found = self.attributes.get(path) if request is None else request.get(name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return found

    def write(self, path: str, data: bytes) -> None:
        """Write an attribute."""
        entry, _, name = path.rpartition("/")
        if (request := self.requests.get(entry)) is not None:
            request[name] = data
            request["generation"] = b"%d\n" % (int(request["generation"]) + 1)
        elif path in self.attributes:
            self.attributes[path] = hashlib.sha384(self.attributes[path] + data).digest()
        else:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        self.written.append((path, data))

    def _report(self, path: str, request: dict[str, bytes]) -> bytes:
        if self.busy:
            self.busy -= 1
            raise OSError(errno.EBUSY, "Device or resource busy", path)
        if self.racing:
            self.racing -= 1
            self.write(f"{path.rpartition('/')[0]}/inblob", bytes(64))
        return self._make(request["inblob"], int(request.get("privlevel", b"0")))  # the kernel reads decimal text
