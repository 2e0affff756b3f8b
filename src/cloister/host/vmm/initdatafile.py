"""The file behind a pod's init data device: whole from the beginning, or filled once while the machine boots.

A machine takes seconds to reach the moment at which the agent reads its init data, and the owner's side can use them to
seal, plan and approve. Until then the device is empty; the agent waits for the first eight bytes, which are written
last. Nothing rests on that order but the agent's patience: what it reads, whenever it reads it, is measured before use.
Evidence whose init data is fixed at launch (SEV-SNP, TDX) cannot be late.
"""

from __future__ import annotations

import os
from pathlib import Path

from cloister.errors import Refused
from cloister.protocol.initdata import DEVICE_BYTES, MAGIC, pack_device, parse_initdata


class InitDataFile:
    """An init data device.

    Args:
        path: where the file is made.
        text: the init data, or None to deliver it later.

    Raises:
        FormatRefused: not init data (`protocol.initdata.*`).
    """

    def __init__(self, path: Path, text: bytes | None) -> None:
        self.path = path
        self._delivered = text is not None
        if text is not None:
            path.write_bytes(pack_device(parse_initdata(text)))
            return
        with path.open("wb") as file:
            file.truncate(DEVICE_BYTES)

    def deliver(self, text: bytes) -> None:
        """Fill an empty device, once.

        Raises:
            Refused: it holds init data already (`host.vm.initdata_twice`).
            FormatRefused: not init data (`protocol.initdata.*`).
        """
        if self._delivered:
            raise Refused("host.vm.initdata_twice", "the pod has its init data", path=self.path.name)
        image = pack_device(parse_initdata(text))
        self._delivered = True
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(descriptor, image[len(MAGIC) :], len(MAGIC))
            os.pwrite(descriptor, MAGIC, 0)
        finally:
            os.close(descriptor)
