"""A fake paravisor of Azure: a virtual TPM whose key fake hardware vouches for, its NV indices, the metadata service.

On top of `cloister.testing.snp`, `.dcap` and `.tpm`: the SNP report or TD quote, the JSON in between and the quote are
all signed under test roots, so a verifier cannot tell them from real ones but by the root. Every deviation a test may
want is a named member of `AzureFaults`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import rsa

from cloister.errors import Unavailable
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import Evidence
from cloister.tee.azure import attester
from cloister.tee.azure.abi import SNP, TD_REPORT_BYTES, TDX, USER_DATA_BYTES, HCLReport, encode_hcl_report
from cloister.tee.azure.evidence import AZ_SNP, AZ_TDX, WITH_USER_DATA
from cloister.tee.tpm import abi, commands
from cloister.tee.tpm import constants as c
from cloister.testing import dcap, snp
from cloister.testing.tpm import EndorsementCA, FakeTPM, QuoteFaults
from cloister.wire.base64 import decode_b64url, encode_b64url

NOW: Final[datetime] = dcap.NOW
NONCE: Final = bytes(range(48))
INIT_DATA_DIGEST: Final = hashlib.sha256(b"init data of the test pod").digest()
NV_BYTES: Final = 2600
_CONFIGURATION: Final[Mapping[str, Any]] = {
    "console-enabled": False,
    "secure-boot": True,
    "tpm-enabled": True,
    "vmUniqueId": "26F8BC30-774E-4290-8E7A-535F3B672AEE",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureFaults:
    """Deviations of one piece of evidence; the default is the truth.

    Attributes:
        user_data: what the paravisor binds, instead of the nonce.
        user_data_text: the JSON member itself; an empty list leaves it out.
        keys: of the JSON, instead of the TPM's.
        configuration: members to change; None leaves one out.
        carried: JSON that travels, instead of the one the hardware vouches for.
        report_data: the hardware's, whole.
        hardware: fields of the hardware's report to change.
        registers: what is quoted.
        quote: deviations of the quote.
    """

    user_data: bytes | None = None
    user_data_text: Any = None
    keys: Any = None
    configuration: Mapping[str, Any] = field(default_factory=dict)
    carried: bytes | None = None
    report_data: bytes | None = None
    hardware: Mapping[str, Any] = field(default_factory=dict)
    registers: Sequence[int] = range(c.PCRS)
    quote: QuoteFaults = field(default_factory=QuoteFaults)


class FakeParavisor:
    """One confidential VM.

    Args:
        hardware: a chip of a fake AMD, or a platform of a fake Intel.
        ak: key of the virtual TPM; RSA of 2048 bits.
        nv_bytes: size of the NV index that holds the report; zeros fill it.
    """

    def __init__(
        self, hardware: snp.FakeChip | dcap.FakePlatform, ak: rsa.RSAPrivateKey, *, nv_bytes: int = NV_BYTES
    ) -> None:
        self.hardware = hardware
        self.nv_bytes = nv_bytes
        self.tpm = FakeTPM(EndorsementCA(), ek=ak, ak=ak)
        self.tee = AZ_SNP if isinstance(hardware, snp.FakeChip) else AZ_TDX
        self._ak = ak

    def endorsements(self) -> Endorsements:
        """Return root and collateral of the hardware, for the Azure technology."""
        if isinstance(self.hardware, snp.FakeChip):
            found = self.hardware.amd.endorsements()
        else:
            found = self.hardware.intel.endorsements("tdx")
        return replace(found, roots=tuple(replace(root, tee=self.tee) for root in found.roots))

    def variable(self, nonce: bytes, faults: AzureFaults | None = None) -> bytes:
        """Return the paravisor's JSON that binds `nonce`."""
        faults = faults or AzureFaults()
        configuration = {**_CONFIGURATION, **faults.configuration}
        bound = nonce.ljust(USER_DATA_BYTES, b"\0") if faults.user_data is None else faults.user_data
        parsed: dict[str, Any] = {
            "keys": [self._jwk("HCLAkPub"), self._jwk("HCLEkPub")] if faults.keys is None else faults.keys,
            "vm-configuration": {name: value for name, value in configuration.items() if value is not None},
            "user-data": bound.hex().upper() if faults.user_data_text is None else faults.user_data_text,
        }
        if parsed["user-data"] == []:
            del parsed["user-data"]
        return json.dumps(parsed, separators=(",", ":")).encode()

    def hcl_report(self, nonce: bytes, faults: AzureFaults | None = None) -> bytes:
        """Return the paravisor's report as its NV index holds it."""
        faults = faults or AzureFaults()
        variable = self.variable(nonce, faults)
        snp_type = isinstance(self.hardware, snp.FakeChip)
        hardware = self._snp_report(variable, faults) if snp_type else bytes(TD_REPORT_BYTES)
        report = HCLReport(
            version=1 if snp_type else 2,
            report_type=SNP if snp_type else TDX,
            hardware=hardware,
            variable=variable if faults.carried is None else faults.carried,
        )
        return encode_hcl_report(report, size=self.nv_bytes)

    def td_quote(self, nonce: bytes, faults: AzureFaults | None = None) -> bytes:
        """Return the quote over the TD report; attributes and run-time registers are zero, as on Azure."""
        faults = faults or AzureFaults()
        if not isinstance(self.hardware, dcap.FakePlatform):
            raise TypeError("an SNP machine makes no TD quote")
        body = dcap.td_report(
            td_attributes=bytes(8),
            rtmr0=bytes(48),
            rtmr1=bytes(48),
            rtmr2=bytes(48),
            report_data=self._report_data(self.variable(nonce, faults), faults),
        )
        return self.hardware.quote(replace(body, **faults.hardware))

    def evidence(self, nonce: bytes = NONCE, *, version: int = 2, faults: AzureFaults | None = None) -> Evidence:
        """Return evidence in CoCo's shape of a version: 0, 1 or 2. Only 2 has the paravisor bind the nonce."""
        faults = faults or AzureFaults()
        if version < WITH_USER_DATA and faults.user_data is None:
            faults = replace(faults, user_data=bytes(USER_DATA_BYTES))
        message, signature, values = self._quote(nonce, faults)
        report = self.hcl_report(nonce, faults)
        if version == 0:
            body: dict[str, Any] = {
                "signature": list(signature),
                "message": list(message),
                "pcrs": [list(value) for value in values],
            }
            if isinstance(self.hardware, snp.FakeChip):
                vcek = _pem(self.hardware.vek)
                return Evidence(tee=self.tee, body={"quote": body, "report": list(report), "vcek": vcek})
            quote = list(self.td_quote(nonce, faults))
            return Evidence(tee=self.tee, body={"tpm_quote": body, "hcl_report": list(report), "td_quote": quote})
        body = {
            "version": version,
            "tpm_quote": {
                "signature": signature.hex(),
                "message": message.hex(),
                "pcrs": [value.hex() for value in values],
            },
            "hcl_report": _padded(report),
        }
        if isinstance(self.hardware, snp.FakeChip):
            return Evidence(tee=self.tee, body={**body, "vcek": _padded(self.hardware.vek)})
        return Evidence(tee=self.tee, body={**body, "td_quote": _padded(self.td_quote(nonce, faults))})

    def _report_data(self, variable: bytes, faults: AzureFaults) -> bytes:
        if faults.report_data is not None:
            return faults.report_data
        return hashlib.sha256(variable).digest() + bytes(32)

    def _snp_report(self, variable: bytes, faults: AzureFaults) -> bytes:
        if not isinstance(self.hardware, snp.FakeChip):
            raise TypeError("a TDX machine makes no SNP report")
        changes = {"host_data": bytes(32), "report_data": self._report_data(variable, faults), **faults.hardware}
        return self.hardware.report(**changes)

    def _quote(self, nonce: bytes, faults: AzureFaults) -> tuple[bytes, bytes, list[bytes]]:
        pcrs = self.tpm.read_pcrs()
        own = [pcrs[index] for index in faults.registers]
        bitmap = sum(1 << index for index in faults.registers).to_bytes(3, "little")
        changed = replace(
            faults.quote,
            selections=(abi.PCRSelection(algorithm=c.ALG_SHA256, bitmap=bitmap),)
            if faults.quote.selections is None
            else faults.quote.selections,
            quoted_values=own if faults.quote.quoted_values is None else faults.quote.quoted_values,
        )
        message, signature = self.tpm.quote(nonce, changed)
        values = own if faults.quote.values is None else list(faults.quote.values)
        return message, abi.parse_signature(signature).values[0], values

    def _jwk(self, kid: str) -> dict[str, Any]:
        numbers = self._ak.public_key().public_numbers()
        return {
            "kid": kid,
            "key_ops": ["sign"],
            "kty": "RSA",
            "e": encode_b64url(numbers.e.to_bytes(3, "big")),
            "n": encode_b64url(numbers.n.to_bytes(256, "big")),
        }


class FakeVTPM:
    """The virtual TPM as a transport, for the attester: registers, quote, and the two NV indices.

    Args:
        paravisor: whose TPM it is.
        stale: reads of the report that still show the former user data.
        user_data_size: of the index for user data, where another program defined it; None for a new machine.
        knows_user_data: an older paravisor has no such member.
        has_report: any other machine has no such index.
    """

    def __init__(
        self,
        paravisor: FakeParavisor,
        *,
        stale: int = 0,
        user_data_size: int | None = None,
        knows_user_data: bool = True,
        has_report: bool = True,
    ) -> None:
        self._paravisor = paravisor
        self._stale = stale
        self._size = user_data_size
        self._knows, self._has = knows_user_data, has_report
        self._user_data = bytes(USER_DATA_BYTES)
        self._report = b""
        self.closed = False

    def exchange(self, command: bytes) -> bytes:
        """Return the answer to `command`; another than the attester sends is an error."""
        code = int.from_bytes(command[6:10], "big")
        return _COMMANDS[code](self, command)

    def close(self) -> None:
        """Note that the device was released."""
        self.closed = True

    def imds(self, method: str, path: str, *, headers: Mapping[str, str], body: bytes = b"") -> bytes:
        """Answer as the instance metadata service."""
        hardware = self._paravisor.hardware
        if (method, path) == ("GET", attester.THIM) and isinstance(hardware, snp.FakeChip):
            if headers.get("Metadata") != "true":
                raise Unavailable("tee.azure.imds.status", "no header Metadata")
            return json.dumps(
                {"vcekCert": _pem(hardware.vek), "certificateChain": "", "tcbm": "DB18000000000004"}
            ).encode()
        if (method, path) == ("POST", attester.TD_QUOTE) and isinstance(hardware, dcap.FakePlatform):
            if len(decode_b64url(json.loads(body)["report"], ceiling=TD_REPORT_BYTES)) != TD_REPORT_BYTES:
                raise Unavailable("tee.azure.imds.status", "no TD report")
            faults = AzureFaults(user_data=self._user_data)
            return json.dumps({"quote": encode_b64url(self._paravisor.td_quote(b"", faults))}).encode()
        raise Unavailable("tee.azure.imds.status", "no such thing here", path=path)

    def _read_public(self, command: bytes) -> bytes:
        index = int.from_bytes(command[10:14], "big")
        sizes = {
            attester.USER_DATA_INDEX: self._size,
            attester.REPORT_INDEX: self._paravisor.nv_bytes if self._has else None,
        }
        if sizes.get(index) is None:
            return _answer(code=_NO_SUCH_INDEX)
        public = struct.pack(">IHIHH", index, c.ALG_SHA256, 0, 0, sizes[index])
        return _answer(commands.sized(public) + commands.sized(bytes(34)))

    def _define(self, command: bytes) -> bytes:
        self._size = int.from_bytes(command[-2:], "big")
        return _answer(struct.pack(">I", 0))

    def _write(self, command: bytes) -> bytes:
        size = self._size or 0
        self._user_data = command[-2 - size : -2].ljust(USER_DATA_BYTES, b"\0")
        return _answer(struct.pack(">I", 0))

    def _read(self, command: bytes) -> bytes:
        size, offset = struct.unpack(">HH", command[-4:])
        if offset == 0:
            seen = bytes(USER_DATA_BYTES) if self._stale else self._user_data
            self._stale = max(0, self._stale - 1)
            text: Any = None if self._knows else []
            self._report = self._paravisor.hcl_report(b"", AzureFaults(user_data=seen, user_data_text=text))
        data = commands.sized(self._report[offset : offset + size])
        return _answer(struct.pack(">I", len(data)) + data)

    def _read_registers(self, command: bytes) -> bytes:
        selection = command[-10:]
        bitmap = int.from_bytes(selection[-3:], "little")
        values = [value for index, value in self._paravisor.tpm.read_pcrs().items() if bitmap >> index & 1]
        digests = struct.pack(">I", len(values)) + b"".join(map(commands.sized, values))
        return _answer(struct.pack(">I", 0) + selection + digests)

    def _quote(self, command: bytes) -> bytes:
        if int.from_bytes(command[10:14], "big") != attester.AK_HANDLE:
            return _answer(code=_NO_SUCH_INDEX)
        size = int.from_bytes(command[27:29], "big")  # behind the header, the handle and the empty password
        message, signature = self._paravisor.tpm.quote(command[29 : 29 + size], QuoteFaults())
        parameters = commands.sized(message) + signature
        return _answer(struct.pack(">I", len(parameters)) + parameters)


_NO_SUCH_INDEX: Final = 0x18B  # TPM_RC_HANDLE for the first handle
_COMMANDS: Final = {
    0x169: FakeVTPM._read_public,
    0x12A: FakeVTPM._define,
    0x137: FakeVTPM._write,
    0x14E: FakeVTPM._read,
    0x17E: FakeVTPM._read_registers,
    0x158: FakeVTPM._quote,
}


def _answer(body: bytes = b"", *, code: int = 0) -> bytes:
    return struct.pack(">HII", c.ST_NO_SESSIONS, commands.HEADER_BYTES + len(body), code) + body


def _pem(der: bytes) -> str:
    return f"-----BEGIN CERTIFICATE-----\n{base64.encodebytes(der).decode()}-----END CERTIFICATE-----\n"


def _padded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()
