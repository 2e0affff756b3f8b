"""Init data into register 8, before anything else of the pod is read and before any call is answered.

The order is the security property: the digest of the exact init data text is in the register (and so in every later
quote) before the first byte of it steers anything but its own parsing. It happens once; a second extension would make
a value that no verifier accepts, and is refused here already. Where the platform was launched with the digest in a
field of its own (HOST_DATA of SNP, MRCONFIGID of TDX), that is compared instead. Only SHA-256 init data fits all.

Register and field are the key process': the agent hands it the digest, and the init data only once that is extended or
found to be there. Does not judge the content: the verifier compares the register with what the owner sent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from cloister.errors import Refused, Unavailable
from cloister.protocol.initdata import DEVICE_BYTES, MAGIC, SECTOR, InitData, device_bytes, unpack_device
from cloister.wire.limits import INITDATA_WAIT_SECONDS

_POLL_SECONDS: Final = 0.01
_DISK_PREFIXES: Final = ("vd", "sd", "nvme", "xvd", "sr", "hd")


class InitDataMeasurement:
    """Reads and extends once.

    Args:
        extend: extends register 8 with a digest.
    """

    def __init__(self, extend: Callable[[bytes], None]) -> None:
        self._extend = extend
        self._done = False

    def measure(self, image: bytes) -> InitData:
        """Extend register 8 with the digest of the init data in `image` and return it parsed.

        Raises:
            FormatRefused: not an init data device (`protocol.initdata.*`).
            Refused: called twice (`guest.measure.twice`), or another algorithm (`guest.measure.algorithm`).
            Unavailable: the register cannot be extended.
        """
        if self._done:
            raise Refused("guest.measure.twice", "init data was measured before")
        self._done = True  # also after a failure: a half-extended register is not repaired
        init_data = unpack_device(image)
        if init_data.algorithm != "sha256":
            raise Refused(
                "guest.measure.algorithm",
                "the register takes SHA-256 digests only",
                path="algorithm",
                expected="sha256",
                actual=init_data.algorithm,
                hint='write algorithm = "sha256" in the init data',
            )
        self._extend(init_data.digest)
        return init_data


def read_device(
    path: str, *, go_on: Callable[[], None] = lambda: None, wait_seconds: float = INITDATA_WAIT_SECONDS
) -> bytes:
    """Return the init data device or file as far as it is used, waiting while it is empty.

    The host may boot a pod VM before it has the init data; until then the device is zero, and `go_on` is called now
    and then: what it raises ends the wait.

    Raises:
        Unavailable: it cannot be read (`guest.measure.no_device`), or stays empty (`guest.measure.no_initdata`).
    """
    deadline = time.monotonic() + wait_seconds
    try:
        while (head := _read(path, SECTOR))[: len(MAGIC)] == bytes(len(MAGIC)):
            if time.monotonic() > deadline:
                raise Unavailable("guest.measure.no_initdata", "the host delivers no init data", path=path)
            go_on()
            time.sleep(_POLL_SECONDS)
        return head if len(head) < SECTOR else _read(path, min(device_bytes(head), DEVICE_BYTES))
    except OSError as err:
        raise Unavailable(
            "guest.measure.no_device",
            "init data cannot be read",
            path=path,
            hint="start the pod VM with an init data device as its second disk",
        ) from err


def _read(path: str, count: int) -> bytes:
    """Read from a device opened anew: the kernel forgets what it held of a block device at its last close."""
    with open(path, "rb", buffering=0) as file:
        data = b""
        while len(data) < count and (chunk := file.read(count - len(data))):
            data += chunk
        return data


def require_single_device(path: str, *, sys_block: str = "/sys/block", dev: str = "/dev") -> None:
    """Refuse when a disk other than `path` also carries init data: which one counts must not be a question.

    Raises:
        Refused: `guest.measure.second_device`.
    """
    for name in sorted(os.listdir(sys_block)):
        other = f"{dev}/{name}"
        if other == path or not name.startswith(_DISK_PREFIXES):
            continue
        try:
            with open(other, "rb", buffering=0) as file:
                found = file.read(len(MAGIC))
        except OSError:
            continue  # a drive without a medium
        if found == MAGIC:
            raise Refused("guest.measure.second_device", "two disks carry init data", path=other, expected=path)
