"""One interface to two ways of running a container: crun in the pod VM, bubblewrap at the simulated level.

A back end runs what a `ContainerSetup` says and answers about it; it decides nothing. The state machine (started
once, in order, signals allowed) is in `cloister.guest.pod`, before any of these methods is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from cloister.guest.oci_spec import ContainerSetup
    from cloister.guest.users import Identity
    from cloister.podpolicy.model import ProcessSpec

Ended = Callable[[int], None]


class ProcessIO(msgspec.Struct, frozen=True, kw_only=True):
    """The child's side of its streams as descriptors of ours; -1 is `/dev/null`. Not used with a terminal."""

    stdin: int = -1
    stdout: int = -1
    stderr: int = -1

    def descriptors(self) -> dict[int, int]:
        """Return child's number to our descriptor for those that are given."""
        pairs = ((0, self.stdin), (1, self.stdout), (2, self.stderr))
        return {number: fd for number, fd in pairs if fd >= 0}


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """A running process: its id as the agent sees it, and the master side of its terminal, or -1."""

    pid: int
    terminal: int = -1


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Microseconds, bytes, number of processes."""

    cpu_usec: int
    memory_bytes: int
    pids: int


class Runtime(Protocol):
    """Runs containers. Every method may raise `Unavailable` (`guest.runtime.*`)."""

    def create(self, setup: ContainerSetup) -> None:
        """Make everything ready; nothing of the image runs yet."""
        ...

    def start(self, identifier: str, io: ProcessIO, ended: Ended) -> Started:
        """Run the first process; `ended(status)` is called once on another thread, maybe before this returns."""
        ...

    def exec(
        self, identifier: str, exec_id: str, process: ProcessSpec, identity: Identity, io: ProcessIO, ended: Ended
    ) -> Started:
        """Run an additional process."""
        ...

    def signal(self, identifier: str, pid: int, number: int) -> None:
        """Send signal `number` to a process that `start` or `exec` returned; one that has ended is no error."""
        ...

    def signal_all(self, identifier: str, number: int) -> None:
        """Send signal `number` to every process of the container."""
        ...

    def pids(self, identifier: str) -> list[int]:
        """Return the ids of all processes of the container."""
        ...

    def usage(self, identifier: str) -> Usage:
        """Return what the container uses."""
        ...

    def pause(self, identifier: str) -> None:
        """Stop the container from running, without it noticing."""
        ...

    def resume(self, identifier: str) -> None:
        """Let it run again."""
        ...

    def owns(self, identifier: str, pid: int) -> bool:
        """Return whether process `pid` is one of the container's."""
        ...

    def delete(self, identifier: str) -> None:
        """Remove what `create` and `start` left, killing what still runs."""
        ...
