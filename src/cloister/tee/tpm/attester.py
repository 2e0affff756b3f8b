"""The guest's side of TPM attestation: extend, enrol, activate, quote, over the raw device.

Runs inside the pod VM before any key is released, where importing `cryptography` costs seconds: it imports nothing
but byte codecs. Order of use: `extend` the init data digest, `enrol`, have the verifier make a credential, `activate`
it, `attest`. The TPM itself proves everything; this code is trusted only as part of the measured guest.

Standards: TPM 2.0 Library (parts 2 and 3), TCG EK Credential Profile for TPM 2.0 (NV index and EK template).
"""

from __future__ import annotations

import hashlib
import os
import time
from types import TracebackType
from typing import Any, Final

from cloister.errors import EvidenceError, Unavailable
from cloister.tee.tpm import commands
from cloister.tee.tpm import constants as c
from cloister.tee.tpm.transport import DeviceTransport, Transport
from cloister.wire.base64 import encode_b64
from cloister.wire.limits import EVENT_LOG_BYTES

DEVICE: Final = "dev/tpmrm0"  # below the root of the device tree
EVENT_LOG: Final = "sys/kernel/security/tpm0/binary_bios_measurements"
_TRY_AGAIN: Final = frozenset({0x908, 0x90A, 0x922})  # TPM_RC_YIELDED, TESTING, RETRY (part 2, table 16)
_TRIES: Final = 8
_FIRST_WAIT_SECONDS: Final = 0.002  # doubled each time: half a second in all
_QUOTE_TRIES: Final = 4  # another process may extend a register between reading and quoting
_NONCE_BYTES: Final = 16


class TPMDevice:
    """What every attester does with a TPM 2.0: registers, quotes, NV indices. Use as a context manager; not for
    several threads at once.

    Args:
        transport: the way to the TPM.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._transient: list[int] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unload the keys that were created and release the device. Keys persist in the TPM as seeds only."""
        try:
            while self._transient:
                self._flush(self._transient[-1])
        except Unavailable:
            self._transient.clear()  # a TPM that is gone holds no keys for us
        finally:
            self._transport.close()

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend register `pcr` of the SHA-256 bank with a 32-byte digest.

        Raises:
            Unavailable: the TPM does not do it (`tee.tpm.command_failed`); the caller must not go on.
        """
        if len(digest) != c.SHA256_BYTES or not 0 <= pcr < c.PCRS:
            raise RuntimeError("a SHA-256 register is extended with 32 bytes")
        self._run(commands.pcr_extend(pcr, digest), f"extending PCR {pcr}")

    def init_data_field(self) -> None:
        """Return nothing: init data goes into a register."""

    def read_pcrs(self) -> dict[int, bytes]:
        """Return all 24 registers of the SHA-256 bank."""
        values: dict[int, bytes] = {}
        for first in range(0, c.PCRS, commands.PCRS_PER_READ):
            indexes = range(first, first + commands.PCRS_PER_READ)
            values |= commands.parse_pcr_read(self._run(commands.pcr_read(indexes), "reading PCRs"), indexes)
        return values

    def _quote(self, key: int, extra_data: bytes) -> tuple[bytes, bytes, dict[int, bytes]]:
        """Return TPMS_ATTEST, TPMT_SIGNATURE and the registers they cover."""
        for _ in range(_QUOTE_TRIES):
            values = self.read_pcrs()
            attest, signature = commands.parse_quote(self._run(commands.quote(key, extra_data), "quoting"))
            digest = hashlib.sha256(b"".join(values[index] for index in range(c.PCRS))).digest()
            if attest.endswith(digest):  # pcrDigest is the last member of TPMS_ATTEST
                return attest, signature, values
        raise Unavailable("tee.tpm.registers_unsteady", "registers change between reading and quoting")

    def _read_nv(self, index: int, *, authority: int | None = None) -> bytes | None:
        """Return the content of an NV index; None when the TPM has no such index."""
        code, response = self._exchange(commands.nv_read_public(index))
        if code:
            return None
        size = commands.parse_nv_read_public(response)
        data = b""
        while len(data) < size:
            chunk = min(commands.NV_CHUNK_BYTES, size - len(data))
            command = commands.nv_read(index, chunk, len(data), authority=authority)
            part = commands.parse_sized(self._run(command, f"reading NV index {index:#010x}"))
            if not part:
                raise Unavailable("tee.tpm.command_failed", "the TPM returned no data", path=f"NV index {index:#010x}")
            data += part
        return data

    def _flush(self, handle: int) -> None:
        """Unload a key or session; a refusal means that it is not loaded any more."""
        self._transient.remove(handle)
        self._transport.exchange(commands.flush_context(handle))

    def _run(self, command: bytes, what: str) -> bytes:
        code, response = self._exchange(command)
        if code:
            raise Unavailable("tee.tpm.command_failed", f"the TPM refused {what}", actual=f"response code {code:#05x}")
        return response

    def _exchange(self, command: bytes) -> tuple[int, bytes]:
        wait = _FIRST_WAIT_SECONDS
        for _ in range(_TRIES - 1):
            response = self._transport.exchange(command)
            code = commands.response_code(response)
            if code not in _TRY_AGAIN:
                return code, response
            time.sleep(wait)
            wait *= 2
        response = self._transport.exchange(command)
        return commands.response_code(response), response


class TPMAttester(TPMDevice):
    """Attests by a TPM 2.0 whose endorsement key its maker certified.

    Args:
        root: where the device tree begins.
        device: character device of the kernel's resource manager, below the root.
        event_log: the firmware's log as the kernel shows it, below the root; may be absent.
        transport: another way to the TPM, for a software TPM without a kernel between.

    Raises:
        Unavailable: the TPM cannot be opened (`tee.tpm.device`).
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = "/",
        *,
        device: str = DEVICE,
        event_log: str | None = EVENT_LOG,
        transport: Transport | None = None,
    ) -> None:
        super().__init__(transport if transport is not None else DeviceTransport(os.path.join(root, device)))
        self._event_log = None if event_log is None else os.path.join(root, event_log)
        self._ak: tuple[int, bytes] | None = None
        self._ek: int | None = None
        self._ek_certificate: bytes | None = None

    def __enter__(self) -> TPMAttester:
        return self

    def close(self) -> None:
        """Unload the keys that were created and release the device."""
        self._ak = self._ek = None
        super().close()

    def enrol(self) -> tuple[bytes, bytes]:
        """Return (EK certificate DER, AK TPM2B_PUBLIC): what a verifier needs to make a credential.

        Raises:
            Unavailable: the TPM has no EK certificate (`tee.tpm.ek_certificate_absent`), or fails.
        """
        if self._ek_certificate is None:
            self._ek_certificate = self._read_ek_certificate()
        return self._ek_certificate, self._attestation_key()[1]

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Return the secret that only a TPM holding both the EK and the AK can recover.

        Args:
            credential_blob: TPM2B_ID_OBJECT.
            encrypted_secret: TPM2B_ENCRYPTED_SECRET.

        Raises:
            EvidenceError: the credential is for another TPM or key, or malformed (`tee.tpm.credential_refused`).
            Unavailable: the TPM fails.
        """
        ak, ek = self._attestation_key()[0], self._endorsement_key()
        started = self._run(commands.start_policy_session(os.urandom(_NONCE_BYTES)), "starting a policy session")
        session = commands.parse_handle(started)[0]
        self._transient.append(session)
        try:
            self._run(commands.policy_secret(session), "satisfying the EK's policy")
            code, response = self._exchange(
                commands.activate_credential(ak, ek, session, credential_blob, encrypted_secret)
            )
            if not code:
                self._transient.remove(session)  # its continueSession flag was clear: it ended with the command
        finally:
            if session in self._transient:  # a TPM has room for three sessions
                self._flush(session)
        if code:
            raise EvidenceError(
                "tee.tpm.credential_refused",
                "the TPM refuses the credential: it was made for another TPM or another key",
                actual=f"response code {code:#05x}",
                hint="the verifier must make it for the EK certificate and AK of this session",
            )
        return commands.parse_sized(response)

    def attest(self, report_data: bytes, secret: bytes) -> dict[str, Any]:  # Any: JSON object of texts and lists
        """Return the evidence body: a fresh quote over all registers that binds `report_data`.

        Args:
            report_data: the 48 bytes of the broker's protocol; the first 32 go into the quote.
            secret: what `activate` returned.

        Raises:
            Unavailable: the TPM fails, or its registers change under every attempt (`tee.tpm.registers_unsteady`).
        """
        if len(report_data) < c.REPORT_DATA_BYTES:
            raise RuntimeError("report data is shorter than what a quote must bind")
        ek_certificate, ak_public = self.enrol()
        attest, signature, values = self._quote(self._attestation_key()[0], report_data[: c.REPORT_DATA_BYTES])
        return {
            "ak_public": encode_b64(ak_public),
            "ek_certificate": encode_b64(ek_certificate),
            "activation": encode_b64(secret),
            "tpm_quote": {
                "signature": encode_b64(signature),
                "message": encode_b64(attest),
                "pcrs": [values[index].hex() for index in range(c.PCRS)],
            },
            "event_log": encode_b64(self._read_event_log()),
        }

    def _attestation_key(self) -> tuple[int, bytes]:
        if self._ak is None:
            response = self._run(commands.create_primary(c.RH_ENDORSEMENT, commands.AK_TEMPLATE), "creating the AK")
            self._ak = commands.parse_create_primary(response)
            self._transient.append(self._ak[0])
        return self._ak

    def _endorsement_key(self) -> int:
        """Return a handle of the RSA EK: the persistent one, else made again from the endorsement seed."""
        if self._ek is not None:
            return self._ek
        if not self._exchange(commands.read_public(c.EK_HANDLE))[0]:
            self._ek = c.EK_HANDLE
            return self._ek
        response = self._run(commands.create_primary(c.RH_ENDORSEMENT, commands.EK_TEMPLATE), "creating the EK")
        self._ek = commands.parse_create_primary(response)[0]
        self._transient.append(self._ek)
        return self._ek

    def _read_ek_certificate(self) -> bytes:
        data = self._read_nv(c.EK_CERTIFICATE_INDEX)
        if data is None:
            raise Unavailable(
                "tee.tpm.ek_certificate_absent",
                "the TPM holds no EK certificate",
                path=f"NV index {c.EK_CERTIFICATE_INDEX:#010x}",
                hint="make the vTPM with `swtpm_setup --create-ek-cert`",
            )
        return data[: _der_length(data)]

    def _read_event_log(self) -> bytes:
        if self._event_log is None:
            return b""
        try:
            with open(self._event_log, "rb") as file:
                log = file.read(EVENT_LOG_BYTES + 1)
        except FileNotFoundError:
            return b""  # no log is evidence too; what it may be worth is the verifier's decision
        except OSError as err:
            raise Unavailable("tee.tpm.event_log", f"cannot read: {err.strerror}", path=self._event_log) from err
        if len(log) > EVENT_LOG_BYTES:
            raise Unavailable("tee.tpm.event_log", "event log too long", expected=f"at most {EVENT_LOG_BYTES} bytes")
        return log


def _der_length(data: bytes) -> int:
    """Return the length of the DER SEQUENCE that `data` begins with: some TPMs pad the NV index behind it."""
    if len(data) < 4 or data[0] != 0x30:
        raise Unavailable("tee.tpm.ek_certificate_absent", "the NV index of the EK certificate holds no certificate")
    if data[1] < 0x80:
        return 2 + data[1]
    octets = data[1] & 0x7F
    if octets not in (1, 2):
        raise Unavailable("tee.tpm.ek_certificate_absent", "the NV index of the EK certificate holds no certificate")
    return 2 + octets + int.from_bytes(data[2 : 2 + octets], "big")


ATTESTER: Final = TPMAttester
