"""Machine shapes and what each measures as: the tie between the files of a bundle and registers.

Profile `seabios`: PCR 0 follows from the launch blob alone. Profile `uki`: PCR 0 follows from the launch blob and the
firmware, PCR 4, 9, 11 and 12 from the unified kernel image. See spec/launch-measurement.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from cloister.errors import Refused
from cloister.imagetool.measure.pcr import replay
from cloister.protocol.launch import LaunchMeasurement, LaunchProfile, digest_text


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Shape:
    """Virtual processors and main memory in MiB."""

    vcpus: int
    memory_mib: int


COMMON_SHAPES: Final = tuple(Shape(vcpus=vcpus, memory_mib=memory) for vcpus in (1, 2, 4) for memory in (512, 1024))


@dataclass(frozen=True, slots=True, kw_only=True)
class BootParts:
    """Digests (`sha256:hex`) of what machines boot from, and the command line.

    Attributes:
        seabios: firmware file of profile `seabios`.
        option_roms: option ROMs that SeaBIOS runs, by file name.
        kernel: kernel file.
        initrd: initrd file.
        cmdline: kernel command line.
        ovmf_code: firmware file of profile `uki`.
        uki: unified kernel image.
        uki_registers: registers that follow from the unified kernel image (see `cloister.imagetool.measure.uki`).
        ovmf_digests: what OVMF itself extends into PCR 0 (see `cloister.imagetool.measure.ovmf`); empty when unknown.
    """

    seabios: str
    option_roms: Mapping[str, str]
    kernel: str
    initrd: str
    cmdline: str
    ovmf_code: str
    uki: str
    uki_registers: Mapping[str, bytes]
    ovmf_digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a machine of one shape will show.

    Attributes:
        launch: the statement the launcher must make.
        registers: register name (`pcr00`, ..) to value; exactly these are predicted.
    """

    launch: LaunchMeasurement
    registers: Mapping[str, bytes]


def predict(parts: BootParts, profile: LaunchProfile, shape: Shape) -> Prediction:
    """Return the prediction for one profile and shape.

    Raises:
        Refused: profile `uki` with firmware whose own events are not known (`imagetool.measure.firmware_unknown`).
            There is no prediction without PCR 0: firmware that nobody checks could measure anything into the others.
    """
    if profile is LaunchProfile.SEABIOS:
        launch = LaunchMeasurement(
            profile=profile,
            vcpus=shape.vcpus,
            memory_mib=shape.memory_mib,
            firmware=parts.seabios,
            kernel=parts.kernel,
            initrd=parts.initrd,
            cmdline=digest_text(parts.cmdline.encode()),
            option_roms=parts.option_roms,
        )
        return Prediction(launch=launch, registers={"pcr00": launch.pcr0_seabios()})
    if not parts.ovmf_digests:
        raise Refused(
            "imagetool.measure.firmware_unknown",
            "the image's definition has no record of what this OVMF measures",
            path="uki.firmware",
            actual=parts.ovmf_code,
            hint="add a record for this firmware: spec/launch-measurement.md, section 3",
        )
    launch = LaunchMeasurement(
        profile=profile,
        vcpus=shape.vcpus,
        memory_mib=shape.memory_mib,
        firmware=parts.ovmf_code,
        kernel=parts.uki,
        initrd=None,
        cmdline=None,
    )
    first = replay(parts.ovmf_digests, start=launch.hcrtm_start_value())
    return Prediction(launch=launch, registers={"pcr00": first, **parts.uki_registers})


def predict_all(
    parts: BootParts, shapes: Iterable[Shape], profiles: Iterable[LaunchProfile] = LaunchProfile
) -> tuple[Prediction, ...]:
    """Return the predictions for each of `profiles` and `shapes`; see `predict`."""
    wanted = list(shapes)
    return tuple(predict(parts, profile, shape) for profile in profiles for shape in wanted)
