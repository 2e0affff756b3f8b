"""The guest's side of Azure attestation: have the paravisor bind report data, quote its TPM, fetch the hardware's part.

The virtual TPM holds the paravisor's report in an NV index, takes up to 64 bytes to be bound in another, and has an AK
of its own. Certificates of the chip (SNP) and the quote over the TD report (TDX) come from the instance metadata
service of the host, which is trusted with neither: the verifier checks both.

Sources: kinvolk/azure-cvm-tooling (vtpm, imds), Azure's documentation of confidential guest attestation. Runs before
any key is released: it imports nothing but byte codecs.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from cloister.crypto.pem import split_pem
from cloister.errors import EvidenceError, FormatRefused, Unavailable
from cloister.tee.azure.abi import SNP, USER_DATA_BYTES, HCLReport, parse_hcl_report, parse_runtime_claims
from cloister.tee.tpm import commands
from cloister.tee.tpm import constants as c
from cloister.tee.tpm.abi import parse_signature
from cloister.tee.tpm.attester import DEVICE, TPMDevice
from cloister.tee.tpm.transport import DeviceTransport, Transport
from cloister.wire.base64 import decode_b64url, encode_b64url
from cloister.wire.limits import CERTIFICATE_BYTES, DCAP_QUOTE_BYTES, IMDS_BYTES
from cloister.wire.strictjson import JSONObject, parse_json_object

REPORT_INDEX: Final = 0x01400001
USER_DATA_INDEX: Final = 0x01400002
AK_HANDLE: Final = 0x81000003
IMDS: Final = "169.254.169.254"
THIM: Final = "/metadata/THIM/amd/certification"
TD_QUOTE: Final = "/acc/tdquote"
_TRIES: Final = 12  # the paravisor makes a new report some time after the write; three seconds were always enough
_WAIT_SECONDS: Final = 0.5
_HTTP_SECONDS: Final = 10.0
_OK: Final = 200
_CODE: Final = "tee.azure.imds"


class Fetch(Protocol):
    """Asks the instance metadata service."""

    def __call__(self, method: str, path: str, *, headers: Mapping[str, str], body: bytes = b"") -> bytes:
        """Return the body of the answer.

        Raises:
            Unavailable: no answer, or another status than 200 (`tee.azure.imds.*`).
        """
        ...


def fetch_imds(method: str, path: str, *, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """Ask the instance metadata service of this machine. It answers on a link-local address, never through a proxy.

    Raises:
        Unavailable: no answer, another status than 200, or too much (`tee.azure.imds.*`).
    """
    from http.client import HTTPConnection, HTTPException  # only on Azure: a quarter of the guest's start elsewhere

    connection = HTTPConnection(IMDS, timeout=_HTTP_SECONDS)
    try:
        connection.request(method, path, body=body or None, headers=dict(headers))
        with connection.getresponse() as answer:
            status, data = answer.status, answer.read(IMDS_BYTES + 1)
    except (OSError, HTTPException) as err:
        raise Unavailable(f"{_CODE}.unreachable", f"no answer of the metadata service: {err}", path=path) from err
    finally:
        connection.close()
    if status != _OK or len(data) > IMDS_BYTES:
        raise Unavailable(
            f"{_CODE}.status",
            "metadata service does not give what was asked for",
            path=path,
            expected=f"status {_OK}, at most {IMDS_BYTES} bytes",
            actual=f"status {status}, {len(data)} bytes",
        )
    return data


class AzureAttester(TPMDevice):
    """Attests on an Azure confidential VM, SNP or TDX. Use as a context manager.

    Args:
        root: where the device tree begins.
        transport: another way to the TPM.
        fetch: asks the instance metadata service.
        sleep: waits between tries.

    Raises:
        Unavailable: the TPM cannot be opened (`tee.tpm.device`).
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = "/",
        *,
        transport: Transport | None = None,
        fetch: Fetch = fetch_imds,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        super().__init__(transport if transport is not None else DeviceTransport(os.path.join(root, DEVICE)))
        self._fetch = fetch
        self._sleep = sleep

    def __enter__(self) -> AzureAttester:
        return self

    def enrol(self) -> None:
        """Return None: the paravisor vouches for the AK, no credential is needed."""

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Refuse: no verifier asks it of this technology.

        Raises:
            EvidenceError: always (`tee.azure.no_activation`).
        """
        raise EvidenceError("tee.azure.no_activation", "evidence of Azure has no credential to activate")

    def attest(self, report_data: bytes, secret: bytes) -> dict[str, Any]:  # Any: JSON object of texts and lists
        """Return the evidence body, version 2: report and quote bind `report_data`. Version 1, where only the quote
        does, from a paravisor that knows no user data.

        Args:
            report_data: at most 64 bytes, the 48 of the broker's protocol.
            secret: not used.

        Raises:
            Unavailable: TPM or metadata service fail, the report stays old (`tee.azure.user_data_stale`), or there is
                none (`tee.azure.no_report`).
        """
        if not 0 < len(report_data) <= USER_DATA_BYTES:
            raise RuntimeError("report data does not fit the paravisor's field")
        self._write_user_data(report_data)
        raw, version = self._read_report(report_data.ljust(USER_DATA_BYTES, b"\0"))
        attest, signature, values = self._quote(AK_HANDLE, report_data)
        report = parse_hcl_report(raw)
        body: dict[str, Any] = {
            "version": version,
            "tpm_quote": {
                "signature": parse_signature(signature).values[0].hex(),
                "message": attest.hex(),
                "pcrs": [values[index].hex() for index in range(c.PCRS)],
            },
            "hcl_report": _padded(raw),
        }
        if report.report_type == SNP:
            return {**body, "vcek": _padded(self._vcek())}
        return {**body, "td_quote": _padded(self._td_quote(report))}

    def _write_user_data(self, report_data: bytes) -> None:
        code, response = self._exchange(commands.nv_read_public(USER_DATA_INDEX))
        size = USER_DATA_BYTES if code else commands.parse_nv_read_public(response)
        if code:
            attributes = c.NV_OWNER_READ | c.NV_OWNER_WRITE
            command = commands.nv_define_space(USER_DATA_INDEX, size, attributes, authority=c.RH_OWNER)
            self._run(command, "defining the index for user data")
        elif size < len(report_data):  # another program made it, for shorter data
            raise Unavailable(
                "tee.azure.user_data_size",
                "the index for user data is too small",
                path=f"NV index {USER_DATA_INDEX:#010x}",
                expected=f"at least {len(report_data)} bytes",
                actual=str(size),
                hint="undefine the index: it is made again",
            )
        data = report_data.ljust(size, b"\0")
        self._run(commands.nv_write(USER_DATA_INDEX, data, authority=c.RH_OWNER), "writing user data")

    def _read_report(self, user_data: bytes) -> tuple[bytes, int]:
        """Return the paravisor's report once it has these user data, and the version of the evidence it makes."""
        for attempt in range(_TRIES):
            if attempt:
                self._sleep(_WAIT_SECONDS)
            raw = self._read_nv(REPORT_INDEX, authority=c.RH_OWNER)
            if raw is None:
                raise Unavailable(
                    "tee.azure.no_report",
                    "the TPM holds no report of a paravisor",
                    path=f"NV index {REPORT_INDEX:#010x}",
                    hint="this is no confidential VM of Azure",
                )
            bound = parse_runtime_claims(parse_hcl_report(raw).variable).user_data
            if bound is None:
                return raw, 1
            if bound == user_data:
                return raw, 2
        raise Unavailable(
            "tee.azure.user_data_stale",
            "the paravisor's report does not have the user data that were written",
            actual=f"after {_TRIES} tries",
            hint="another program may be attesting at the same time: try again",
        )

    def _vcek(self) -> bytes:
        answer = self._json("GET", THIM, headers={"Metadata": "true"})
        pem = answer.get("vcekCert")
        if not isinstance(pem, str):
            raise _unusable(THIM, "no vcekCert")
        try:
            return split_pem(pem.encode("ascii"), code=_CODE, path="vcekCert", ceiling=CERTIFICATE_BYTES)[0]
        except (FormatRefused, UnicodeEncodeError) as err:
            raise _unusable(THIM, "vcekCert is not PEM") from err

    def _td_quote(self, report: HCLReport) -> bytes:
        request = json.dumps({"report": encode_b64url(report.hardware)}).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        quote = self._json("POST", TD_QUOTE, headers=headers, body=request).get("quote")
        if not isinstance(quote, str):
            raise _unusable(TD_QUOTE, "no quote")
        try:
            return decode_b64url(quote.rstrip("="), path="quote", ceiling=DCAP_QUOTE_BYTES)
        except FormatRefused as err:
            raise _unusable(TD_QUOTE, err.message) from err

    def _json(self, method: str, path: str, *, headers: Mapping[str, str], body: bytes = b"") -> JSONObject:
        data = self._fetch(method, path, headers=headers, body=body)
        try:
            return parse_json_object(data, ceiling=IMDS_BYTES, code=_CODE, family=FormatRefused)
        except FormatRefused as err:
            raise _unusable(path, err.message) from err


def _padded(data: bytes) -> str:
    """Return base64url with padding, as CoCo's guests write it."""
    text = encode_b64url(data)
    return text + "=" * (-len(text) % 4)


def _unusable(path: str, why: str) -> Unavailable:
    return Unavailable(f"{_CODE}.answer", f"answer of the metadata service is of no use: {why}", path=path)


ATTESTER: Final = AzureAttester
