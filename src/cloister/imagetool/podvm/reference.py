"""Reference values of a bundle: the schema'd statement of a build, and the registers of any machine shape."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from cloister.imagetool.measure.ovmf import MemoryWrite, firmware_digests
from cloister.imagetool.measure.shapes import COMMON_SHAPES, BootParts, Prediction, Shape, predict_all
from cloister.imagetool.measure.uki import uki_registers
from cloister.imagetool.podvm import bundle as names
from cloister.imagetool.podvm.bundle import (
    FileRecord,
    PodVMBundle,
    Reference,
    RegisterRecord,
    VerityRecord,
)
from cloister.imagetool.podvm.definition import Definition
from cloister.oci.dmverity import BLOCK_BYTES, VerityTree
from cloister.protocol.launch import LaunchProfile
from cloister.rats.reference import Component


def describe(
    key: str, made: Mapping[str, bytes], definition: Definition, *, cmdline: str, verity: VerityTree
) -> Reference:
    """Return the reference of a bundle whose files are `made` (file name to content)."""
    records = {
        name: FileRecord(size=len(made[name]), digest=f"sha256:{hashlib.sha256(made[name]).hexdigest()}")
        for name in names.FILES
    }
    registers = {name: value.hex() for name, value in uki_registers(made[names.UKI]).items()}
    events = _firmware_events(made[names.OVMF_CODE], records[names.OVMF_CODE].digest, definition)
    parts = _parts(records, cmdline, registers, events)
    profiles = [profile for profile in LaunchProfile if events or profile is not LaunchProfile.UKI]
    return Reference(
        version=names.VERSION,
        key=key,
        cmdline=cmdline,
        verity=VerityRecord(
            root_hash=verity.root_hash.hex(),
            salt=verity.salt.hex(),
            data_blocks=verity.data_blocks,
            block_bytes=BLOCK_BYTES,
        ),
        files=records,
        uki_registers=registers,
        ovmf_events=events,
        common=tuple(_record(prediction) for prediction in predict_all(parts, COMMON_SHAPES, profiles)),
        components={
            profile.value: _components(records, cmdline, verity.root_hash.hex(), profile) for profile in profiles
        },
    )


def components(
    reference: Reference, profile: LaunchProfile, *, vcpus: int | None = None, memory_mib: int | None = None
) -> dict[Component, str]:
    """Return what a machine of `profile` is made of: digests (`sha256:hex`), the command line, the root hash, counts.

    `vcpus` and `memory_mib` are left out where they are None: not every platform measures them.
    """
    found = _components(reference.files, reference.cmdline, reference.verity.root_hash, profile)
    shape = {Component.VCPUS: vcpus, Component.MEMORY: memory_mib}
    return found | {name: str(number) for name, number in shape.items() if number is not None}


def reference_values(
    bundle: PodVMBundle, shapes: Iterable[Shape], profiles: Iterable[LaunchProfile] = LaunchProfile
) -> tuple[Prediction, ...]:
    """Return what machines of each of `profiles` and `shapes` will show when they boot `bundle`.

    Computed from `reference.json` alone: neither files nor machine are needed.

    Raises:
        Refused: profile `uki` was asked for, and the firmware of the bundle is not known
            (`imagetool.measure.firmware_unknown`).
    """
    reference = bundle.reference
    parts = _parts(reference.files, reference.cmdline, reference.uki_registers, reference.ovmf_events)
    return predict_all(parts, shapes, profiles)


def _firmware_events(code: bytes, digest: str, definition: Definition) -> tuple[str, ...]:
    """Return the digests of OVMF's own events, hex; none when the definition has no record of this file."""
    for record in definition.uki.firmware:
        if record.digest == digest:
            writes = [MemoryWrite(offset=write.offset, data=bytes.fromhex(write.data)) for write in record.writes]
            return tuple(event.hex() for event in firmware_digests(code, version=record.version, writes=writes))
    return ()


def _parts(
    records: Mapping[str, FileRecord], cmdline: str, registers: Mapping[str, str], events: Sequence[str]
) -> BootParts:
    return BootParts(
        seabios=records[names.SEABIOS].digest,
        option_roms={names.OPTION_ROM.rsplit("/", 1)[-1]: records[names.OPTION_ROM].digest},
        kernel=records[names.KERNEL].digest,
        initrd=records[names.INITRD].digest,
        cmdline=cmdline,
        ovmf_code=records[names.OVMF_CODE].digest,
        uki=records[names.UKI].digest,
        uki_registers={name: bytes.fromhex(value) for name, value in registers.items()},
        ovmf_digests=tuple(bytes.fromhex(event) for event in events),
    )


def _components(
    records: Mapping[str, FileRecord], cmdline: str, root_hash: str, profile: LaunchProfile
) -> dict[Component, str]:
    firmware = names.SEABIOS if profile is LaunchProfile.SEABIOS else names.OVMF_CODE
    return {
        Component.FIRMWARE: records[firmware].digest,
        Component.KERNEL: records[names.KERNEL].digest,
        Component.INITRD: records[names.INITRD].digest,
        Component.COMMAND_LINE: cmdline,
        Component.ROOT_HASH: root_hash,
    }


def _record(prediction: Prediction) -> RegisterRecord:
    launch = prediction.launch
    return RegisterRecord(
        profile=launch.profile.value,
        vcpus=launch.vcpus,
        memory_mib=launch.memory_mib,
        launch=launch.digest(),
        hcrtm_start=launch.hcrtm_start_value().hex(),
        registers={name: value.hex() for name, value in prediction.registers.items()},
    )
