"""What NVIDIA devices say, in the common model: for one device its values flat, for several a list of them. Pure.

The same words serve evidence that was verified and evidence that somebody only wants to look at; of the latter nothing
is known that only a verified chain says: chip, identifier, debug flags.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cloister.rats.claims import Claims, Level, Window
from cloister.tee.nvidia_gpu.certificate import DeviceIdentity
from cloister.tee.nvidia_gpu.endorsements import TEE
from cloister.tee.nvidia_gpu.evidence import ParsedDevice
from cloister.tee.nvidia_gpu.opaque import DRIVER_VERSION, Opaque, read_opaque
from cloister.tee.nvidia_gpu.reference import Comparison, register_name

SWITCH_ARCH: Final = "LS10"
_COCO_ARCH: Final = {"HOPPER": "Hopper", "BLACKWELL": "Blackwell", SWITCH_ARCH: "LS10"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device; `identity` and `comparison` are None where nothing was verified."""

    parsed: ParsedDevice
    opaque: Opaque
    identity: DeviceIdentity | None = None
    comparison: Comparison | None = None

    @property
    def arch(self) -> str:
        """`HOPPER`, `BLACKWELL` or `LS10`: what the chain says, else what was written beside the report, or empty."""
        if self.identity is not None:
            return self.identity.arch
        return dict(self.parsed.unsigned).get("arch", "").upper()


def device_of(parsed: ParsedDevice) -> Device:
    """Return a device that nobody verified: a report without a driver is a switch's.

    Raises:
        FormatRefused: its opaque data does not have its form (`tee.nvidia_gpu.opaque.malformed`).
    """
    kinds = {kind for kind, _ in parsed.report.opaque}
    return Device(parsed=parsed, opaque=read_opaque(parsed.report.opaque, switch=DRIVER_VERSION not in kinds))


def build_claims(devices: Sequence[Device], *, level: Level, window: Window | None) -> Claims:
    """Return the claims of all `devices` together; there is at least one."""
    alone = len(devices) == 1
    nonce = devices[0].parsed.report.nonce
    raws, natives = [_raw(device) for device in devices], [_native(device) for device in devices]
    identities = [device.identity for device in devices if device.identity is not None]
    identifiers = sorted(identity.pdi for identity in identities)
    kinds = sorted({f"{identity.chip} ({_COCO_ARCH[identity.arch]})" for identity in identities})
    first = next((device for device in devices if device.arch != SWITCH_ARCH), devices[0])
    return Claims(
        tee=TEE,
        level=level,
        debug=any(identity.debug for identity in identities),
        registers=_registers(devices),
        report_data=nonce,
        init_data=b"",
        instance_id=_instance(identifiers),
        raw=raws[0] if alone else {"devices": raws},
        platform=f"NVIDIA {', '.join(kinds) or first.arch}, {len(devices)} device{'' if alone else 's'}",
        product=f"nvidia-{first.arch.lower()}" if first.arch else "",
        window=window,
        native=natives[0] if alone else {"nonce": nonce.hex(), "devices": natives},
    )


def _instance(identifiers: Sequence[bytes]) -> str:
    """Return the identifier of one device, or one for the set of several, in whatever order they were sent."""
    if len(identifiers) == 1:
        return identifiers[0].hex()
    return hashlib.sha256(b"".join(identifiers)).hexdigest() if identifiers else ""


def _registers(devices: Sequence[Device]) -> Mapping[str, bytes]:
    """Return measurements as `measurement_<index>`, from 0 as manifests count. Of several devices the identifier comes
    before it, or the place in the evidence where there is none: reference values name devices, not their order."""
    found: dict[str, bytes] = {}
    for place, device in enumerate(devices):
        name = device.identity.pdi.hex() if device.identity is not None else f"device{place}"
        prefix = "" if len(devices) == 1 else f"{name}_"
        found |= {prefix + register_name(block.index - 1): block.value for block in device.parsed.report.blocks}
    return found


def _native(device: Device) -> Mapping[str, Any]:  # Any: JSON values
    opaque, identity, comparison = device.opaque, device.identity, device.comparison
    native: dict[str, Any] = {
        "arch": device.arch,
        "nonce": device.parsed.report.nonce.hex(),
        "vbios_version": opaque.vbios_version,
        "measurements": len(device.parsed.report.blocks),
    }
    texts = ("driver_version", "project", "project_sku", "chip_sku", "mode")
    native |= {name: text for name in texts if (text := getattr(opaque, name))}
    if opaque.fwid:
        native["fwid"] = opaque.fwid.hex()
    for name, pdis in (("switch_pdis", opaque.switch_pdis), ("gpu_pdis", opaque.gpu_pdis)):
        if pdis:
            native[name] = sorted(item.hex() for item in pdis)
    if identity is not None:
        native |= {"chip": identity.chip, "pdi": identity.pdi.hex()}
        if identity.flags is not None:
            native |= {"dice_flags": identity.flags.hex(), "debug": identity.debug}
    if comparison is not None:
        words = {True: "match", False: "differ" if comparison.differences else "not all given"}
        native["manifests"] = words[comparison.complete]
        if comparison.complete:  # NVIDIA's own verifier states both when the measurements match, and only then
            native |= {"secboot": True, "dbgstat": "disabled"}
    return native


def _raw(device: Device) -> Mapping[str, Any]:  # Any: JSON values
    """Return the claims of CoCo's local verifier, under its names."""
    return {
        "arch": _COCO_ARCH.get(device.arch, device.arch),
        "uuid": device.parsed.uuid,
        "measurements": {str(block.index): block.value.hex() for block in device.parsed.report.blocks},
        "config": dict(device.opaque.config),
    }
