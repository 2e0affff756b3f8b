"""Bytes of TDX: the quote is DCAP's (`cloister.tee.dcap.abi`); here is what only TDX has. Pure.

Intel TDX Module ABI, "TD attributes" and TDREPORT_STRUCT; ACPI table CCEL (UEFI 2.10, section 38.4.1).
"""

from __future__ import annotations

import struct
from typing import Final

from cloister.errors import FormatRefused
from cloister.wire.limits import EVENT_LOG_BYTES

TEE: Final = "tdx"
RTMRS: Final = 4
RTMR_BYTES: Final = 48
REPORT_DATA_BYTES: Final = 64
CONFIG_ID_BYTES: Final = 48
TDREPORT_BYTES: Final = 1024
ALGORITHM: Final = "sha384"
TUD: Final = 0xFF  # bits of a TD under debug: any of them means that the host may look inside
SEPT_VE_DISABLE: Final = 1 << 28
MIGRATABLE: Final = 1 << 29
PROTECTION_KEYS: Final = 1 << 30
KEY_LOCKER: Final = 1 << 31
PERFMON: Final = 1 << 63
_LASS: Final = 1 << 27
_TPA: Final = 1 << 62
KNOWN_ATTRIBUTES: Final = TUD | _LASS | SEPT_VE_DISABLE | MIGRATABLE | PROTECTION_KEYS | KEY_LOCKER | _TPA | PERFMON
_CCEL: Final = struct.Struct("<4sIBB6s8sI4sIBBHQQ")
_CCEL_TDX: Final = 2
_TDINFO: Final = 512  # TDREPORT_STRUCT: REPORTMACSTRUCT 256, TEE_TCB_INFO 239, reserved 17, then TDINFO_STRUCT 512
_TDINFO_CONFIG_ID: Final = _TDINFO + 8 + 8 + RTMR_BYTES  # attributes, XFAM, MRTD
_TDINFO_RTMRS: Final = _TDINFO + 8 + 8 + 4 * RTMR_BYTES  # attributes, XFAM, MRTD, CONFIGID, OWNER, OWNERCONFIG


def parse_ccel_table(table: bytes) -> int:
    """Return how many bytes the log area has, from the ACPI table `CCEL`.

    Raises:
        FormatRefused: not that table, a wrong checksum, not TDX, or an impossible length (`tee.tdx.ccel.malformed`).
    """
    if len(table) != _CCEL.size:
        raise _malformed("not the table", expected=f"{_CCEL.size} bytes", actual=str(len(table)))
    signature, length, _, _, _, _, _, _, _, kind, _, _, area, _ = _CCEL.unpack(table)
    if signature != b"CCEL" or length != len(table) or sum(table) & 0xFF:
        raise _malformed("signature, length or checksum is wrong")
    if kind != _CCEL_TDX:
        raise _malformed("log of another kind of TEE", expected=str(_CCEL_TDX), actual=str(kind))
    if not 0 < area <= EVENT_LOG_BYTES:
        raise _malformed("impossible length of the log", expected=f"1 to {EVENT_LOG_BYTES}", actual=str(area))
    return int(area)


def log_register(index: int) -> int:
    """Return the number that RTMR `index` has in a CC event log; 0 there is MRTD."""
    return index + 1


def tdreport_config_id(report: bytes) -> bytes:
    """Return MRCONFIGID of a TDREPORT (1024 bytes).

    Raises:
        FormatRefused: another length (`tee.tdx.tdreport.length`).
    """
    _require_tdreport(report)
    return report[_TDINFO_CONFIG_ID : _TDINFO_CONFIG_ID + CONFIG_ID_BYTES]


def tdreport_rtmrs(report: bytes) -> tuple[bytes, ...]:
    """Return the four registers in a TDREPORT (1024 bytes).

    Raises:
        FormatRefused: another length (`tee.tdx.tdreport.length`).
    """
    _require_tdreport(report)
    starts = range(_TDINFO_RTMRS, _TDINFO_RTMRS + RTMRS * RTMR_BYTES, RTMR_BYTES)
    return tuple(report[start : start + RTMR_BYTES] for start in starts)


def _require_tdreport(report: bytes) -> None:
    if len(report) != TDREPORT_BYTES:
        raise FormatRefused(
            "tee.tdx.tdreport.length", "not a TDREPORT", expected=f"{TDREPORT_BYTES} bytes", actual=str(len(report))
        )


def _malformed(message: str, *, expected: str = "", actual: str = "") -> FormatRefused:
    return FormatRefused("tee.tdx.ccel.malformed", message, expected=expected, actual=actual)
