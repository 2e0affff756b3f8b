"""Attester of the simulation: registers in memory, evidence signed by the machine's simulation key.

Same methods as a real attester, so that the guest's code is the same on all levels. It proves nothing: the code that
is measured holds both the registers and the key.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import cloister
from cloister.tee.insecure import abi
from cloister.tee.insecure.machinekey import load_machine_key, public_der
from cloister.wire.base64 import encode_b64

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey


class SimulationAttester:
    """Attests by a key file. Use as a context manager.

    Args:
        key_path: the machine's simulation key, made on first use.
        launch: what register `launch` declares; the version of this agent when absent.
    """

    def __init__(self, key_path: str, *, launch: bytes | None = None) -> None:
        self._key_path = key_path
        self._launch = launch if launch is not None else abi.launch_digest(cloister.__version__)
        self._registers: dict[int, bytes] = {}
        self._key: EllipticCurvePrivateKey | None = None

    def __enter__(self) -> SimulationAttester:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._key = None

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend register `pcr` with a 32-byte digest."""
        if len(digest) != abi.REGISTER_BYTES or not 0 <= pcr < abi.PCRS:
            raise RuntimeError("a register is extended with 32 bytes")
        self._registers[pcr] = abi.extended(self._registers.get(pcr, bytes(abi.REGISTER_BYTES)), digest)

    def init_data_field(self) -> None:
        """Return nothing: init data goes into a register."""

    def read_pcrs(self) -> dict[int, bytes]:
        """Return all 24 registers; those never extended are zero."""
        return {index: self._registers.get(index, bytes(abi.REGISTER_BYTES)) for index in range(abi.PCRS)}

    def enrol(self) -> None:
        """Return nothing: there is no second key whose place would have to be proved."""

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Refuse: a caller that has a credential has mistaken this for a TPM."""
        raise RuntimeError("a simulation has no credential activation")

    def attest(self, report_data: bytes, secret: bytes = b"") -> dict[str, Any]:  # Any: JSON values
        """Return the evidence body that binds `report_data` (48 bytes); `secret` is not used.

        Raises:
            Unavailable: the key file cannot be used (`tee.insecure.machine_key`).
        """
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
        from cryptography.hazmat.primitives.hashes import SHA256

        if len(report_data) != abi.REPORT_DATA_BYTES:
            raise RuntimeError("report data has 48 bytes")
        if self._key is None:
            self._key = load_machine_key(self._key_path)
        registers = {abi.register_name(index): value.hex() for index, value in self._registers.items()}
        registers[abi.LAUNCH_REGISTER] = self._launch.hex()
        public_key, bound = encode_b64(public_der(self._key)), encode_b64(report_data)
        signed = abi.signed_bytes(public_key=public_key, registers=registers, report_data=bound)
        return {
            "simulated": True,
            "version": abi.VERSION,
            "public_key": public_key,
            "registers": registers,
            "report_data": bound,
            "signature": encode_b64(self._key.sign(signed, ECDSA(SHA256()))),
        }


ATTESTER: Final = SimulationAttester
