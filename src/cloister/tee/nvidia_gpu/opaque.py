"""NVIDIA's part of a report, typed: versions, model numbers, firmware id and device identifiers (PDI) by type number.

The numbers are those of NVIDIA's open verifiers (nvtrust, attestation-sdk); a type that is not listed here is kept as
bytes, because new drivers add some. A value that is listed must have its form: what a policy or a manifest lookup
reads must never be a guess. Pure; the caller has verified the signature, or will.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloister.errors import FormatRefused

DRIVER_VERSION: Final = 3
VBIOS_VERSION: Final = 6
NVDEC0_STATUS: Final = 11
MEASUREMENT_COUNT: Final = 12
CHIP_SKU: Final = 15
PROJECT: Final = 17
PROJECT_SKU: Final = 18
FWID: Final = 20
PDI: Final = 22  # on a GPU: of the switches its links lead to; on a switch: its own
SWITCH_GPU_PDIS: Final = 26  # eight PDIs, then one byte for each port
DATA_VERSION: Final = 34
CHIP_INFO: Final = 35
FEATURE_FLAG: Final = 36
PDI_BYTES: Final = 8
FWID_BYTES: Final = 48
NVDEC0_DISABLED: Final = 0x55

_SWITCH_GPUS: Final = 8
_COUNT_BYTES: Final = 4
_VBIOS_BYTES: Final = 8
_MODES: Final[Mapping[int, str]] = {0: "SPT", 1: "MPT", 2: "PPCIE"}  # one GPU alone, encrypted links, plain links
_WORD: Final = re.compile(r"[0-9A-Za-z._-]{1,64}")
_TEXTS: Final = {
    3: "driver_version",
    15: "chip_sku",
    16: "chip_sku_mod",
    17: "project",
    18: "project_sku",
    35: "chip_info",
}
_LETTERS: Final = {11: "nvdec0_status", 21: "protected_pcie_status"}
_BYTES: Final = {
    4: "gpu_info",
    13: "cpr_info",
    14: "board_id",
    19: "project_sku_mod",
    20: "fwid",
    23: "disabled_ports",
    24: "switch_position_id",
    25: "switch_lock_status",
    32: "gpu_link_conn",
    33: "sys_enable_status",
}
_CODE: Final = "tee.nvidia_gpu.opaque"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opaque:
    """What the device says about itself besides its measurements; absent values are empty.

    Attributes:
        driver_version: as text (`550.90.07`); a switch has none.
        vbios_version: as text, upper case (`96.00.9F.00.01`); of a switch its BIOS.
        project: board project (`1010`, `G520`).
        project_sku: of the board (`0200`).
        chip_sku: of the chip (`882`).
        chip_info: name of the chip (`GB100`), from Blackwell on.
        fwid: digest of the first mutable firmware, 48 bytes.
        mode: `SPT`, `MPT` or `PPCIE`, empty on drivers that do not say.
        nvdec0_disabled: measurement 35 means nothing then.
        switch_pdis: of a GPU: identifiers of the switches that its links lead to, a set without zeros.
        own_pdi: of a switch.
        gpu_pdis: of a switch: identifiers of the GPUs that its links lead to.
        config: every entry under the name CoCo's verifier gives it; JSON.
    """

    driver_version: str
    vbios_version: str
    project: str
    project_sku: str
    chip_sku: str
    chip_info: str
    fwid: bytes
    mode: str
    nvdec0_disabled: bool
    switch_pdis: frozenset[bytes]
    own_pdi: bytes
    gpu_pdis: frozenset[bytes]
    config: Mapping[str, Any]  # Any: JSON values


def read_opaque(entries: tuple[tuple[int, bytes], ...], *, switch: bool) -> Opaque:
    """Type the entries of a report.

    Raises:
        FormatRefused: an entry does not have the form of its type (`tee.nvidia_gpu.opaque.malformed`).
    """
    values = dict(entries)
    texts = {kind: _text(kind, values[kind]) for kind in _TEXTS if kind in values}
    fwid = values.get(FWID, b"")
    if fwid and len(fwid) != FWID_BYTES:
        raise _malformed(FWID, f"{FWID_BYTES} bytes")
    nvdec = values.get(NVDEC0_STATUS, b"")
    pdis = _pdis(PDI, values.get(PDI, b""))
    if switch and len(pdis) > 1:
        raise _malformed(PDI, "one identifier")
    return Opaque(
        driver_version=texts.get(DRIVER_VERSION, ""),
        vbios_version=_vbios(values.get(VBIOS_VERSION, b""), switch=switch),
        project=texts.get(PROJECT, ""),
        project_sku=texts.get(PROJECT_SKU, ""),
        chip_sku=texts.get(CHIP_SKU, ""),
        chip_info=texts.get(CHIP_INFO, ""),
        fwid=fwid,
        mode=_mode(values.get(FEATURE_FLAG, b"")),
        nvdec0_disabled=nvdec == bytes((NVDEC0_DISABLED,)),
        # A GPU writes the bytes of an identifier in the other order than the switch and the certificates do.
        switch_pdis=frozenset() if switch else frozenset(item[::-1] for item in pdis if any(item)),
        own_pdi=pdis[0] if switch and pdis else b"",
        gpu_pdis=_switch_gpus(values.get(SWITCH_GPU_PDIS, b"")),
        config=_config(values, texts, switch=switch),
    )


def _text(kind: int, value: bytes) -> str:
    """Return text that ends in NUL bytes; an empty one is a value some boards leave out."""
    text = value.rstrip(b"\0").decode("latin-1")
    if text and not _WORD.fullmatch(text):
        raise _malformed(kind, "letters, digits, dots")
    return text


def _vbios(value: bytes, *, switch: bool) -> str:
    if not value:
        return ""
    if switch:
        return _text(VBIOS_VERSION, value).upper()
    if len(value) != _VBIOS_BYTES:
        raise _malformed(VBIOS_VERSION, f"{_VBIOS_BYTES} bytes")
    return ".".join(f"{byte:02X}" for byte in (*reversed(value[:4]), value[4]))


def _mode(value: bytes) -> str:
    if not value:
        return ""
    mode = _MODES.get(int.from_bytes(value, "little"))
    if mode is None:
        raise _malformed(FEATURE_FLAG, ", ".join(_MODES.values()))
    return mode


def _pdis(kind: int, value: bytes) -> tuple[bytes, ...]:
    if len(value) % PDI_BYTES:
        raise _malformed(kind, f"a multiple of {PDI_BYTES} bytes")
    return tuple(value[start : start + PDI_BYTES] for start in range(0, len(value), PDI_BYTES))


def _switch_gpus(value: bytes) -> frozenset[bytes]:
    if value and len(value) < _SWITCH_GPUS * PDI_BYTES:
        raise _malformed(SWITCH_GPU_PDIS, f"at least {_SWITCH_GPUS * PDI_BYTES} bytes")
    return frozenset(item for item in _pdis(SWITCH_GPU_PDIS, value[: _SWITCH_GPUS * PDI_BYTES]) if any(item))


def _config(values: Mapping[int, bytes], texts: Mapping[int, str], *, switch: bool) -> Mapping[str, Any]:
    config: dict[str, Any] = {name: texts[kind] for kind, name in _TEXTS.items() if kind in texts}
    config |= {name: values[kind].hex() for kind, name in _BYTES.items() if kind in values}
    for kind, name in _LETTERS.items():
        if kind in values:
            text = values[kind].decode("latin-1")
            config[name] = text if text.isascii() and text.isprintable() else values[kind].hex()
    if VBIOS_VERSION in values:
        config["vbios_version"] = _vbios(values[VBIOS_VERSION], switch=switch).lower()
    if MEASUREMENT_COUNT in values:
        config["measurement_count"] = _counts(values[MEASUREMENT_COUNT])
    if PDI in values:
        config["device_pdi" if switch else "switch_pdi"] = [item.hex() for item in _pdis(PDI, values[PDI])]
    if SWITCH_GPU_PDIS in values:
        config["switch_gpu_pdis"] = sorted(item.hex() for item in _switch_gpus(values[SWITCH_GPU_PDIS]))
    if FEATURE_FLAG in values:
        config["feature_flag"] = _mode(values[FEATURE_FLAG])
    if DATA_VERSION in values:
        config["opaque_data_version"] = int.from_bytes(values[DATA_VERSION], "little")
    return config


def _counts(value: bytes) -> dict[str, int]:
    """Return how often each measurement was extended, by block index."""
    if len(value) % _COUNT_BYTES:
        raise _malformed(MEASUREMENT_COUNT, f"a multiple of {_COUNT_BYTES} bytes")
    starts = range(0, len(value), _COUNT_BYTES)
    return {
        str(number): int.from_bytes(value[start : start + _COUNT_BYTES], "little")
        for number, start in enumerate(starts, 1)
    }


def _malformed(kind: int, expected: str) -> FormatRefused:
    return FormatRefused(
        f"{_CODE}.malformed", "opaque data does not have the form of its type", path=f"type {kind}", expected=expected
    )
