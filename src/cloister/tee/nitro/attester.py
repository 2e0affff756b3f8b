"""The enclave's side of Nitro attestation: one ioctl with a CBOR request and a CBOR answer.

`/dev/nsm` of the kernel driver `nsm` (drivers/misc/nsm.c, include/uapi/linux/nsm.h): NSM_IOCTL_RAW with a pair of
buffers. Requests and answers are those of aws-nitro-enclaves-nsm-api (`Request`, `Response`). Runs inside the enclave
and imports nothing but byte codecs.
"""

from __future__ import annotations

import array
import os
import struct
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final

from cloister.errors import FormatRefused, Unavailable
from cloister.wire.base64 import encode_b64
from cloister.wire.cbor import CBOR, decode_cbor, encode_cbor
from cloister.wire.limits import NSM_REQUEST_BYTES, NSM_RESPONSE_BYTES

DEVICE: Final = "dev/nsm"  # below the root of the device tree
IOCTL_RAW: Final = 0xC0200A00  # _IOWR(0x0A, 0, struct nsm_raw): two iovecs, 32 bytes
IOVECS: Final = struct.Struct("=QQQQ")  # request address and length, response address and length
INIT_DATA_PCR: Final = 8
_REGISTERS: Final = 32

Ioctl = Callable[[int, int, bytearray], object]


class NSMAttester:
    """Attests by a Nitro Security Module. Use as a context manager; not for several threads at once.

    Args:
        root: where the device tree begins.
        ioctl: how the device is called; `fcntl.ioctl` when absent.

    Raises:
        Unavailable: the device cannot be opened (`tee.nitro.device`).
    """

    def __init__(self, root: str | os.PathLike[str] = "/", *, ioctl: Ioctl | None = None) -> None:
        if ioctl is None:
            from fcntl import ioctl as system_ioctl

            ioctl = system_ioctl
        self._device = os.path.join(root, DEVICE)  # noqa: PTH118  # pathlib is not loaded yet in the guest
        self._ioctl = ioctl
        self._init_data = b""
        try:
            self._file = os.open(self._device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as err:
            raise Unavailable(
                "tee.nitro.device",
                f"cannot open: {err.strerror}",
                path=self._device,
                hint="the security module is there only inside an enclave",
            ) from err

    def __enter__(self) -> NSMAttester:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend register `pcr` with a digest.

        Register 8, where a TPM takes the init data, is the enclave signer's here and locked at launch: its digest goes
        into `user_data` of every document instead, once.

        Raises:
            Unavailable: the module does not do it (`tee.nitro.module`).
        """
        if not digest or not 0 <= pcr < _REGISTERS:
            raise RuntimeError("a register is extended with a digest")
        if pcr != INIT_DATA_PCR:
            self._call("ExtendPCR", {"index": pcr, "data": digest})
        elif self._init_data:
            raise RuntimeError("init data is bound once")
        else:
            self._init_data = digest

    def init_data_field(self) -> None:
        """Return nothing: init data goes into the documents, by `extend`."""

    def read_pcrs(self) -> dict[int, bytes]:
        """Return all 32 registers.

        Raises:
            Unavailable: the module does not do it (`tee.nitro.module`).
        """
        return {index: self._bytes("DescribePCR", {"index": index}, "data") for index in range(_REGISTERS)}

    def random(self) -> bytes:
        """Return random bytes of the module, as many as it gives at once (256): an enclave boots with little entropy.

        Raises:
            Unavailable: the module does not do it (`tee.nitro.module`).
        """
        return self._bytes("GetRandom", None, "random")

    def enrol(self) -> None:
        """Return nothing: there is no second key whose place would have to be proved."""

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Refuse: a caller that has a credential has mistaken this for a TPM."""
        raise RuntimeError("a security module has no credential activation")

    def attest(
        self, report_data: bytes, secret: bytes = b"", *, public_key: bytes = b""
    ) -> dict[str, Any]:  # Any: JSON object of texts
        """Return the evidence body that binds `report_data` as `nonce`.

        Args:
            report_data: the session's digest.
            secret: not used.
            public_key: further bytes to have signed.

        Raises:
            Unavailable: the module does not do it (`tee.nitro.module`).
        """
        request = {"nonce": report_data, "user_data": self._init_data or None, "public_key": public_key or None}
        return {"document": encode_b64(self._bytes("Attestation", request, "document"))}

    def _bytes(self, name: str, arguments: Mapping[str, CBOR] | None, member: str) -> bytes:
        value = self._call(name, arguments).get(member)
        if not isinstance(value, bytes):
            raise _unavailable(self._device, f"the module answers {name} without {member}")
        return value

    def _call(self, name: str, arguments: Mapping[str, CBOR] | None) -> Mapping[str, CBOR]:
        request = encode_cbor(name if arguments is None else {name: dict(arguments)})
        if len(request) > NSM_REQUEST_BYTES:
            raise RuntimeError("request is longer than the module accepts")
        try:
            answer = decode_cbor(
                self._exchange(request), ceiling=NSM_RESPONSE_BYTES, code="tee.nitro.module", indefinite=True
            )
        except OSError as err:
            raise _unavailable(self._device, f"{name} fails: {err.strerror}") from err
        except FormatRefused as err:
            raise _unavailable(self._device, f"the module's answer to {name} does not parse: {err.message}") from err
        if answer == name:  # a variant without members
            return {}
        found = answer.get(name) if isinstance(answer, dict) else None
        if not isinstance(found, dict):
            error = answer.get("Error") if isinstance(answer, dict) else None
            raise _unavailable(self._device, f"the module refuses {name}", str(error)[:60])
        return found

    def _exchange(self, request: bytes) -> bytes:
        """Call the device with two buffers; it writes the length of its answer back."""
        sent, received = array.array("B", request), array.array("B", bytes(NSM_RESPONSE_BYTES))
        message = bytearray(IOVECS.pack(sent.buffer_info()[0], len(sent), received.buffer_info()[0], len(received)))
        self._ioctl(self._file, IOCTL_RAW, message)
        length = IOVECS.unpack(message)[3]
        return received[: min(length, NSM_RESPONSE_BYTES)].tobytes()


def _unavailable(device: str, message: str, actual: str = "") -> Unavailable:
    return Unavailable("tee.nitro.module", message, path=device, actual=actual)


ATTESTER: Final = NSMAttester
