"""Layout of the paravisor's report ("HCL report"), versions 1 and 2, and of the JSON in it.

Little endian. Header 32 bytes: "HCLA", version, size of the report, request type, status, 12 bytes reserved; the
hardware's report in 1184 bytes, of which a TD report takes the first 1024; 20 bytes: size of what follows, version,
type of the hardware's report, hash algorithm, length of the JSON; the JSON; then zeros to the end of the NV index it
was read from. (kinvolk/azure-cvm-tooling, az-cvm-vtpm/src/hcl; microsoft/openvmm, igvm_attest.)

The hardware's report carries the SHA-256 of the JSON, so the JSON is authentic once that report is. The header is not
covered by anything: it is held to the one form it can have, so that no byte of it is free. Pure; verifies nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from cloister.errors import FormatRefused
from cloister.wire.base64 import decode_b64url
from cloister.wire.limits import HCL_REPORT_BYTES, SNP_REPORT_BYTES
from cloister.wire.strictjson import parse_json_object

CODE: Final = "tee.azure.hcl"
SNP: Final = 2
TDX: Final = 4
VERSIONS: Final = (1, 2)
TD_REPORT_BYTES: Final = 1024
USER_DATA_BYTES: Final = 64

_MAGIC: Final = b"HCLA"
_HEADER: Final = struct.Struct("<4sIIII12s")
_DATA: Final = struct.Struct("<IIIII")
_AK_CERTIFICATE_REQUEST: Final = 2
_DATA_VERSION: Final = 1
_SHA256: Final = 1
_HARDWARE_AT: Final = _HEADER.size
_DATA_AT: Final = _HARDWARE_AT + SNP_REPORT_BYTES
_JSON_AT: Final = _DATA_AT + _DATA.size
_AK: Final = "HCLAkPub"
_KEYS: Final = 8
_MODULUS_BYTES: Final = 512
_HEX_DIGITS: Final = frozenset("0123456789ABCDEF")
_CACHED: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class HCLReport:
    """A paravisor's report as it is laid out; nothing of it is verified.

    Attributes:
        version: 1 or 2.
        report_type: `SNP` or `TDX`.
        hardware: 1184 bytes of an SNP report, or 1024 of a TD report.
        variable: the JSON's bytes, of which the hardware signed the SHA-256.
    """

    version: int
    report_type: int
    hardware: bytes
    variable: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeClaims:
    """What the JSON says.

    Attributes:
        modulus: of the virtual TPM's AK.
        exponent: of it.
        user_data: 64 bytes the guest asked the paravisor to bind; None when there are none.
        console: whether the serial console is on; None when the paravisor does not say.
        secure_boot: likewise.
        tpm: likewise, of the virtual TPM.
        vm_id: which VM, as the host told the paravisor.
        configuration: all of `vm-configuration`.
    """

    modulus: int
    exponent: int
    user_data: bytes | None
    console: bool | None
    secure_boot: bool | None
    tpm: bool | None
    vm_id: str
    configuration: dict[str, Any]  # Any: JSON values of the paravisor


def parse_hcl_report(data: bytes) -> HCLReport:
    """Parse a report, with or without the zeros behind it.

    Raises:
        FormatRefused: too long or short, or a header of another form (`tee.azure.hcl.too_long`, `.truncated`,
            `.malformed`, `.trailing_bytes`).
    """
    if len(data) > HCL_REPORT_BYTES:
        raise _refused("too_long", "report is longer than any NV index", f"at most {HCL_REPORT_BYTES}", str(len(data)))
    if len(data) < _JSON_AT:
        raise _refused("truncated", "report ends before its JSON", f"at least {_JSON_AT} bytes", str(len(data)))
    magic, version, report_size, request, status, reserved = _HEADER.unpack_from(data)
    data_size, data_version, report_type, hash_type, length = _DATA.unpack_from(data, _DATA_AT)
    end = _JSON_AT + length
    for name, actual, expected in (
        ("signature", magic, (_MAGIC,)),
        ("version", version, VERSIONS),
        ("request type", request, (_AK_CERTIFICATE_REQUEST,)),
        ("status", status, (0,)),
        ("reserved bytes", reserved, (bytes(12),)),
        ("version of the data", data_version, (_DATA_VERSION,)),
        ("report type", report_type, (SNP, TDX)),
        ("hash type", hash_type, (_SHA256,)),
        ("data size", data_size, (_DATA.size + length,)),
        ("report size", report_size, (end,)),
    ):
        if actual not in expected:
            raise _refused("malformed", f"{name} is none of those known", " or ".join(map(str, expected)), str(actual))
    if end > len(data):
        raise _refused("truncated", "report ends inside its JSON", f"{end} bytes", str(len(data)))
    hardware = data[_HARDWARE_AT:_DATA_AT]
    if report_type == TDX:
        if any(hardware[TD_REPORT_BYTES:]):
            raise _refused("trailing_bytes", "bytes follow the TD report", "zeros", "other bytes")
        hardware = hardware[:TD_REPORT_BYTES]
    if any(data[end:]):
        raise _refused("trailing_bytes", "bytes follow the end of the report", "zeros", "other bytes")
    return HCLReport(version=version, report_type=report_type, hardware=hardware, variable=data[_JSON_AT:end])


def encode_hcl_report(report: HCLReport, *, size: int = 0) -> bytes:
    """Return the report, with zeros up to `size` bytes; the inverse of `parse_hcl_report`."""
    length = len(report.variable)
    head = _HEADER.pack(_MAGIC, report.version, _JSON_AT + length, _AK_CERTIFICATE_REQUEST, 0, bytes(12))
    data = _DATA.pack(_DATA.size + length, _DATA_VERSION, report.report_type, _SHA256, length)
    hardware = report.hardware.ljust(SNP_REPORT_BYTES, b"\0")
    return (head + hardware + data + report.variable).ljust(size, b"\0")


@lru_cache(maxsize=_CACHED)
def parse_runtime_claims(variable: bytes) -> RuntimeClaims:
    """Parse the JSON of a report: keys, configuration of the VM, user data. Members that are not known are kept.

    Raises:
        FormatRefused: not JSON, no AK or more than one, or a member of another type
            (`tee.azure.hcl.variable.*`).
    """
    code = f"{CODE}.variable"
    parsed = parse_json_object(variable, ceiling=HCL_REPORT_BYTES, code=code, family=FormatRefused)
    configuration = parsed.get("vm-configuration")
    if not isinstance(configuration, dict):
        raise _malformed("vm-configuration", "an object", configuration)
    modulus, exponent = _attestation_key(parsed.get("keys"))
    return RuntimeClaims(
        modulus=modulus,
        exponent=exponent,
        user_data=_user_data(parsed["user-data"]) if "user-data" in parsed else None,
        console=_boolean(configuration, "console-enabled"),
        secure_boot=_boolean(configuration, "secure-boot"),
        tpm=_boolean(configuration, "tpm-enabled"),
        vm_id=_text(configuration, "vmUniqueId"),
        configuration=configuration,
    )


def _attestation_key(keys: object) -> tuple[int, int]:
    if not isinstance(keys, list) or len(keys) > _KEYS or not all(isinstance(key, dict) for key in keys):
        raise _malformed("keys", f"at most {_KEYS} keys", keys)
    found = [key for key in keys if key.get("kid") == _AK]
    if len(found) != 1:
        raise _malformed("keys", f"one key {_AK}", f"{len(found)} of {len(keys)}")
    key = found[0]
    if key.get("kty") != "RSA":
        raise _malformed(f"keys.{_AK}.kty", "RSA", key.get("kty"))
    return _number(key, "n"), _number(key, "e")


def _number(key: dict[str, Any], name: str) -> int:  # Any: JSON values
    """Return a big-endian number of a JWK (RFC 7518, 6.3.1)."""
    path = f"keys.{_AK}.{name}"
    value = key.get(name)
    if not isinstance(value, str):
        raise _malformed(path, "base64url", value)
    try:
        return int.from_bytes(decode_b64url(value, path=path, ceiling=_MODULUS_BYTES), "big")
    except FormatRefused as err:
        raise _malformed(path, "base64url", err.message) from err


def _user_data(value: object) -> bytes:
    """Return the bytes; a text of any other length than the field's could pass for the beginning of another."""
    if not isinstance(value, str) or len(value) != 2 * USER_DATA_BYTES or set(value) - _HEX_DIGITS:
        raise _malformed("user-data", f"{2 * USER_DATA_BYTES} upper-case hexadecimal digits", value)
    return bytes.fromhex(value)


def _boolean(configuration: dict[str, Any], name: str) -> bool | None:  # Any: JSON values
    value = configuration.get(name)
    if name in configuration and not isinstance(value, bool):
        raise _malformed(f"vm-configuration.{name}", "true or false", value)
    return value


def _text(configuration: dict[str, Any], name: str) -> str:  # Any: JSON values
    value = configuration.get(name, "")
    if not isinstance(value, str):
        raise _malformed(f"vm-configuration.{name}", "a text", value)
    return value


def _malformed(path: str, expected: str, actual: object) -> FormatRefused:
    return FormatRefused(
        f"{CODE}.variable.malformed",
        "JSON of the paravisor's report is of another form",
        path=path,
        expected=expected,
        actual=str(actual)[:60],
    )


def _refused(reason: str, message: str, expected: str, actual: str) -> FormatRefused:
    return FormatRefused(f"{CODE}.{reason}", message, path="hcl_report", expected=expected, actual=actual)
