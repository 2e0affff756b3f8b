"""Machine shapes and what each measures as: the tie between the files of a bundle and registers.

Profile `seabios`: PCR 0 follows from the launch blob alone. Profile `uki`: PCR 4, 9, 11 and 12 follow from the unified
kernel image alone; PCR 0 depends on memory and processors in a way that firmware files do not tell, so only the value
it starts from is predicted, and a verifier replays the log from there. See spec/launch-measurement.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

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
    """

    seabios: str
    option_roms: Mapping[str, str]
    kernel: str
    initrd: str
    cmdline: str
    ovmf_code: str
    uki: str
    uki_registers: Mapping[str, bytes]


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
    """Return the prediction for one profile and shape."""
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
    launch = LaunchMeasurement(
        profile=profile,
        vcpus=shape.vcpus,
        memory_mib=shape.memory_mib,
        firmware=parts.ovmf_code,
        kernel=parts.uki,
        initrd=None,
        cmdline=None,
    )
    return Prediction(launch=launch, registers=parts.uki_registers)


def predict_all(parts: BootParts, shapes: Iterable[Shape]) -> tuple[Prediction, ...]:
    """Return the predictions for every profile and each of `shapes`."""
    wanted = list(shapes)
    return tuple(predict(parts, profile, shape) for profile in LaunchProfile for shape in wanted)
