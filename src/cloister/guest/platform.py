"""The two places the agent runs in: the measured pod VM, and a process sandbox at the simulated level.

One interface, so that the order of events is the same code on both. The simulated level protects nothing; its name is
in every piece of evidence. No value here comes from the host except, at the simulated level, paths on the agent's
own command line.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from cloister.errors import RequestRefused
from cloister.guest.ports import ControlPort, open_socket_port, open_virtio_port
from cloister.protocol.guestapi import CONTROL_PORT, SCRATCH_SERIAL, STREAMS_PORT
from cloister.wire.limits import SCRATCH_BYTES

if TYPE_CHECKING:
    from cloister.guest.runtime import Runtime
    from cloister.guest.scratch import ScratchDisk
    from cloister.oci.spool import ScratchRoom, Spool
    from cloister.tee.registry import Attester

INIT_DATA_DEVICE: Final = "/dev/vdb"
_SCRATCH_DISK: Final = "vdc"
_SERIAL_BYTES: Final = 20  # VIRTIO 1.2, section 5.2.6: the length of a block device's identification
WORK_DIRECTORY: Final = "/run/cloister"
_ABSENCE_SECONDS: Final = 60.0  # a shim that restarts is back in a few
_DEVICES: Final = (("snp", "dev/sev-guest"), ("tdx", "dev/tdx_guest"))
_OPTIONS: Final = ("control-socket", "streams-socket", "initdata", "simulation-key", "state")


class Platform(Protocol):
    """What the agent needs from its place.

    Attributes:
        tee: wire name of the attester's technology.
        work: directory for spools, bundles and root file systems; memory only in the VM.
        in_vm: whether ending the agent ends a machine.
        scratch: device of a disk that spools are sealed for; empty when there is none.
    """

    tee: str
    work: str
    in_vm: bool
    scratch: str

    def open_control(self) -> ControlPort:
        """Return the control port."""
        ...

    def open_streams(self) -> int:
        """Return a descriptor of the streams port."""
        ...

    def read_initdata(self, go_on: Callable[[], None]) -> bytes:
        """Return the init data device image; while there is none yet, `go_on` is called, and may raise."""
        ...

    def open_attester(self) -> Attester:
        """Return the attester."""
        ...

    def bring_network_up(self) -> None:
        """Make the network usable; returns when it is."""
        ...

    def resolv_conf(self) -> bytes:
        """Return the containers' `/etc/resolv.conf`."""
        ...

    def spool(self) -> Spool:
        """Return an empty spool for a layer's ciphertext."""
        ...

    def open_runtime(self) -> Runtime:
        """Return the container runtime."""
        ...


class VirtualMachine:
    """The pod VM: virtio ports, init data on the second disk, scratch on a third, a device that attests, crun."""

    work = WORK_DIRECTORY
    in_vm = True

    def __init__(self, root: str = "/") -> None:
        """Choose the device to attest by: the memory encryption's own where there is one, else the TPM.

        A host that hides a device gets evidence of another technology, which the owner's policy accepts or not.
        """
        self.tee = next((tee for tee, device in _DEVICES if os.path.exists(root + device)), "tpm")
        self.scratch = f"{root}dev/{_SCRATCH_DISK}" if _is_scratch(f"{root}sys/block/{_SCRATCH_DISK}/serial") else ""
        self._disk: ScratchDisk | None = None
        self._choosing = threading.Lock()

    def open_control(self) -> ControlPort:
        """Return the control port."""
        return ControlPort(open_virtio_port(CONTROL_PORT), absence_seconds=_ABSENCE_SECONDS)

    def open_streams(self) -> int:
        """Return a descriptor of the streams port."""
        return open_virtio_port(STREAMS_PORT)

    def read_initdata(self, go_on: Callable[[], None]) -> bytes:
        """Return the init data device image; refuse a second one."""
        from cloister.guest.measure import read_device, require_single_device

        image = read_device(INIT_DATA_DEVICE, go_on=go_on)
        require_single_device(INIT_DATA_DEVICE)
        return image

    def open_attester(self) -> Attester:
        """Return the attester of the device that is here."""
        from cloister.tee.registry import attester_for

        return attester_for(self.tee)()

    def bring_network_up(self) -> None:
        """Configure loopback and Ethernet."""
        from cloister.guest.init import bring_network_up

        bring_network_up()
        with open("/run/resolv.conf", "wb") as file:
            file.write(self.resolv_conf())

    def resolv_conf(self) -> bytes:
        """Return the user network's name server."""
        from cloister.guest.init import NAMESERVER

        return f"nameserver {NAMESERVER}\n".encode()

    def spool(self) -> Spool:
        """Return a sealed spool on the scratch disk; without one, a spool in the VM's memory file system, whose size
        limit holds against a huge layer.

        Raises:
            Unavailable: there is a scratch disk and it cannot be used (`guest.scratch.*`).
        """
        if self.scratch:
            from cloister.guest.scratch import open_scratch_disk

            with self._choosing:
                if self._disk is None:
                    self._disk = open_scratch_disk(self.scratch)
            return self._disk.spool()
        from cloister.guest.images import directory_spool

        os.makedirs(self.work, mode=0o700, exist_ok=True)
        return directory_spool(self.work)

    def open_runtime(self) -> Runtime:
        """Return crun."""
        from cloister.guest.runtime.crun import CrunRuntime

        return CrunRuntime(self.work)


class Simulated:
    """A process on a machine: Unix sockets, init data in a file, a key file for evidence, bubblewrap."""

    tee = "cloister-simulated"
    in_vm = False
    scratch = ""

    def __init__(self, arguments: list[str]) -> None:
        options = _parse_options(arguments)
        self._control = options["control-socket"]
        self._streams = options["streams-socket"]
        self._initdata = options["initdata"]
        self._key = options["simulation-key"]
        self.work = options["state"]
        self._room: ScratchRoom | None = None
        # Before there are threads: those that fetch seal what they get, and `cryptography` has import cycles.
        import cryptography.hazmat.primitives.ciphers.aead  # noqa: F401

    def open_control(self) -> ControlPort:
        """Connect to the launcher."""
        return ControlPort(open_socket_port(self._control), absence_seconds=0)

    def open_streams(self) -> int:
        """Connect to the launcher's second socket."""
        return open_socket_port(self._streams)

    def read_initdata(self, go_on: Callable[[], None]) -> bytes:
        """Return the init data file."""
        from cloister.guest.measure import read_device

        return read_device(self._initdata, go_on=go_on)

    def open_attester(self) -> Attester:
        """Return the simulation."""
        from cloister.tee.registry import attester_for

        return attester_for(self.tee)(self._key)

    def bring_network_up(self) -> None:
        """Return at once: the process uses the network it is in."""

    def resolv_conf(self) -> bytes:
        """Return the machine's own."""
        try:
            with open("/etc/resolv.conf", "rb") as file:
                return file.read()
        except OSError:
            return b""

    def spool(self) -> Spool:
        """Return a sealed spool in the state directory, which may be on a disk."""
        from cloister.guest.images import scratch_spool
        from cloister.oci.spool import ScratchRoom

        if self._room is None:
            os.makedirs(self.work, mode=0o700, exist_ok=True)
            self._room = ScratchRoom(SCRATCH_BYTES)
        return scratch_spool(self.work, self._room)

    def open_runtime(self) -> Runtime:
        """Return bubblewrap."""
        from cloister.guest.runtime.sandbox import SandboxRuntime

        return SandboxRuntime(self.work)


def _is_scratch(serial: str) -> bool:
    """Whether the third disk is there and calls itself a scratch disk: the host's word, and it decides nothing else."""
    try:
        with open(serial, "rb") as file:
            return file.read(_SERIAL_BYTES + 1).rstrip(b"\n") == SCRATCH_SERIAL.encode()
    except OSError:
        return False


def choose_platform(arguments: list[str]) -> Platform:
    """Return the pod VM when there are no arguments, else what `--platform` names.

    Raises:
        RequestRefused: other arguments (`guest.arguments`).
    """
    if not arguments:
        return VirtualMachine()
    if arguments[:2] == ["--platform", "simulated"]:
        return Simulated(arguments[2:])
    raise RequestRefused("guest.arguments", "unknown arguments", expected="none, or --platform simulated ..")


def _parse_options(arguments: list[str]) -> dict[str, str]:
    names = [name.removeprefix("--") for name in arguments[::2]]
    values = arguments[1::2]
    if sorted(names) != sorted(_OPTIONS) or len(values) != len(names):
        raise RequestRefused(
            "guest.arguments", "options of the simulated platform", expected=" ".join(f"--{name}" for name in _OPTIONS)
        )
    return {name: os.path.abspath(value) for name, value in zip(names, values, strict=True)}
