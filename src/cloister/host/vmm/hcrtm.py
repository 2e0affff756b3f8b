"""The launch measurement: puts the launch blob into PCR 0 before the virtual machine's first instruction.

Sits between QEMU and swtpm on swtpm's control channel (swtpm(8), tpm_ioctl.h: u32 big-endian command, reply begins
with u32 result). Everything is passed on unchanged, with descriptors; after the TPM answered CMD_INIT with success
and before QEMU learns of it, the sequence CMD_HASH_START, CMD_HASH_DATA, CMD_HASH_END is sent: data hashed before
TPM2_Startup extends PCR 0 from locality 4 (TCG PC Client Platform TPM Profile 1.05 section 3.6; the H-CRTM). Each
power-on of the TPM gets it again.

The root of trust for this measurement is this process: that is the difference between the levels `measured` and
`hardware`, where a processor does the same.
"""

from __future__ import annotations

import os
import socket
import struct
from enum import IntEnum
from typing import Final

from cloister.errors import Unavailable

REPLY_SECONDS: Final = 10.0
_MESSAGE_BYTES: Final = 16 * 1024  # the largest control message QEMU sends or gets in one piece is 4 KiB and a header
_CHUNK_BYTES: Final = 4096  # sizeof ptm_hdata.u.req.data
_RESULT_BYTES: Final = 4
_COMMAND_BYTES: Final = 4


class Command(IntEnum):
    """The control commands that matter here (tpm_ioctl.h, numbers of the socket interface)."""

    INIT = 0x02
    HASH_START = 0x06
    HASH_DATA = 0x07
    HASH_END = 0x08


class HCRTMProxy:
    """Relay between QEMU and swtpm. One request is under way at a time, as QEMU's driver does it.

    Args:
        vmm: control channel towards QEMU.
        tpm: control channel towards swtpm.
        blob: what to measure.

    Attributes:
        measurements: how often the blob was measured: once per power-on of the TPM.
    """

    def __init__(self, vmm: socket.socket, tpm: socket.socket, blob: bytes) -> None:
        self.vmm = vmm
        self.tpm = tpm
        self.measurements = 0
        self._blob = blob
        self._command = b""
        self._reply = b""
        self._answered = True

    def relay_request(self) -> bool:
        """Pass on what QEMU sent; return False once it closed its end."""
        data, descriptors, _, _ = socket.recv_fds(self.vmm, _MESSAGE_BYTES, 4)
        try:
            if not data:
                return False
            if self._answered:
                self._command, self._reply, self._answered = b"", b"", False
            self._command += data[: _COMMAND_BYTES - len(self._command)]
            if descriptors:
                socket.send_fds(self.tpm, [data], descriptors)
            else:
                self.tpm.sendall(data)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def relay_reply(self) -> bool:
        """Pass on what swtpm answered, measuring first where it is due; return False once it closed its end.

        Raises:
            Unavailable: swtpm refused the measurement or did not answer (`host.hcrtm.*`).
        """
        data = self.tpm.recv(_MESSAGE_BYTES)
        if not data:
            return False
        if self._command != Command.INIT.to_bytes(_COMMAND_BYTES, "big"):
            self._answered = True
            self.vmm.sendall(data)
            return True
        self._reply += data
        if len(self._reply) >= _RESULT_BYTES:
            if not any(self._reply[:_RESULT_BYTES]):
                self._measure()
            self._answered = True
            self.vmm.sendall(self._reply)
        return True

    def _measure(self) -> None:
        self._require_success(Command.HASH_START, b"")
        for start in range(0, len(self._blob), _CHUNK_BYTES):
            chunk = self._blob[start : start + _CHUNK_BYTES]
            self._require_success(Command.HASH_DATA, struct.pack(">I", len(chunk)) + chunk)
        self._require_success(Command.HASH_END, b"")
        self.measurements += 1

    def _require_success(self, command: Command, body: bytes) -> None:
        """Send one command and read its result; nothing else is under way on the channel."""
        reply = b""
        try:
            self.tpm.settimeout(REPLY_SECONDS)
            self.tpm.sendall(command.to_bytes(_COMMAND_BYTES, "big") + body)
            while len(reply) < _RESULT_BYTES:
                part = self.tpm.recv(_RESULT_BYTES - len(reply))
                if not part:
                    break
                reply += part
            self.tpm.settimeout(None)
        except OSError as err:
            raise Unavailable("host.hcrtm.no_answer", f"swtpm did not answer {command.name}") from err
        if reply != bytes(_RESULT_BYTES):
            raise Unavailable(
                "host.hcrtm.refused",
                f"swtpm refused {command.name}: the launch cannot be measured",
                expected="00000000",
                actual=reply.hex() or "end of stream",
            )
