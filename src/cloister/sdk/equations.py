"""The equations between a pod-VM image and the registers of each platform, for `cloister.sdk.explanation`.

Each says over which components a register, or one event of it, goes, and computes it for other values of them. Files
of the image and of other images that are known here are hashed when an equation needs them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cloister.errors import CloisterError, FormatRefused, Refused
from cloister.imagetool.measure.authenticode import authenticode
from cloister.imagetool.measure.events import BootEvent, replay_events
from cloister.imagetool.measure.pcr import INITIAL, extend_data, replay
from cloister.imagetool.measure.snp import DEFAULT_GUEST_FEATURES, SNPFirmware, vcpu_types
from cloister.imagetool.measure.tdx import INITIAL as TDX_INITIAL
from cloister.imagetool.measure.tdx import PageOrder, mrtd, runtime_events
from cloister.imagetool.measure.uki import load_options, uki_events
from cloister.imagetool.podvm import PodVMBundle
from cloister.imagetool.podvm import bundle as names
from cloister.imagetool.podvm.confidential import MEASUREMENT, hashed_boot, read_part, tdx_firmware
from cloister.protocol.launch import LaunchMeasurement, LaunchProfile, digest_text, parse_launch_blob
from cloister.rats.reference import Component
from cloister.sdk.explanation import (
    Equation,
    Explanation,
    Parts,
    Variations,
    command_line_edits,
    explain,
    join_command_line,
    split_command_line,
)
from cloister.sdk.measured import Measured
from cloister.sdk.references import Platform, ReferenceRequest
from cloister.wire.limits import VCPUS

_KERNEL_PARTS: Final = frozenset({Component.KERNEL, Component.INITRD, Component.COMMAND_LINE, Component.ROOT_HASH})
_TEXT: Final = frozenset({Component.COMMAND_LINE, Component.ROOT_HASH})
_UKI: Final = "unified kernel image"
_GIVEN_BY_HOST: Final = "it is not zero: the host gave the boot stub a command line, credentials or an addon"
_DIFFERS: Final = "it differs although every component it covers is the expected one: the boot stub, or further events"
_SEABIOS_SEPARATOR: Final = b"\xff" * 4
_DEBUG_SWAP: Final = 0x21  # SEV_FEATURES of newer host kernels
MEMORY_SIZES: Final = tuple(
    dict.fromkeys([*(2**power for power in range(6, 21)), *range(128, 8193, 64), *range(8192, 65537, 1024)])
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What may be compared with: the image, other images, single files, and other words.

    Attributes:
        image: what is expected.
        others: images that may have been booted instead.
        files: single files that may have been used instead: firmware, kernel, initrd.
        cmdlines: command lines that may have been used instead.
        launch: launch statement of the run (`launch.json`); empty when there is none.
    """

    image: PodVMBundle
    others: Sequence[PodVMBundle] = ()
    files: Sequence[bytes] = field(default=(), repr=False)
    cmdlines: Sequence[str] = ()
    launch: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Everything `explain` takes."""

    expected: Parts
    equations: tuple[Equation, ...]
    variations: Variations
    notes: tuple[str, ...]
    unexpected: tuple[str, ...] = ()

    def explain(self) -> Explanation:
        """Return the answer."""
        return explain(self.expected, self.equations, self.variations, notes=self.notes, unexpected=self.unexpected)


def build_problem(measured: Measured, known: Known, request: ReferenceRequest) -> Problem:
    """Return the equations of `measured` over the components of `known.image` on the machines of `request`.

    Raises:
        Refused: firmware that the platform needs is missing or of the wrong kind (`imagetool.snp.*`,
            `imagetool.tdx.*`).
        FormatRefused: the launch statement is none (`protocol.launch.*`).
    """
    if request.platform is Platform.SNP:
        return _snp(measured, known, request)
    if request.platform is Platform.TDX:
        return _tdx(measured, known, request)
    return _tpm(measured, known, request)


# -- parts and what they may have become


def _parts(bundle: PodVMBundle, firmware: str, request: ReferenceRequest) -> dict[Component, str]:
    words, verity = split_command_line(bundle.cmdline)
    return {
        Component.FIRMWARE: firmware,
        Component.KERNEL: bundle.reference.files[names.KERNEL].digest,
        Component.INITRD: bundle.reference.files[names.INITRD].digest,
        Component.COMMAND_LINE: words,
        Component.ROOT_HASH: verity,
        Component.VCPUS: str(request.vcpus[0]),
        Component.MEMORY: str(request.memory_mib[0]),
    }


def _variations(
    known: Known, request: ReferenceRequest, expected: Parts, firmware: Callable[[PodVMBundle], str]
) -> Variations:
    """Return what each component may have become."""
    shape = (Component.VCPUS, Component.MEMORY)
    wholes = [
        {name: value for name, value in _parts(other, firmware(other), request).items() if name not in shape}
        for other in known.others
    ]
    values: dict[Component, list[str]] = {
        name: [whole[name] for whole in wholes] for name in Component if name not in shape
    }
    for text in known.cmdlines:
        words, verity = split_command_line(text)
        values[Component.COMMAND_LINE].append(words)
        values[Component.ROOT_HASH].append(verity)
    for data in known.files:
        for name in (Component.FIRMWARE, Component.KERNEL, Component.INITRD):
            values[name].append(digest_text(data))
    values[Component.COMMAND_LINE] += command_line_edits(expected[Component.COMMAND_LINE])
    values[Component.VCPUS] = [str(number) for number in (*request.vcpus, *range(1, VCPUS + 1))]
    values[Component.MEMORY] = [str(size) for size in (*request.memory_mib, *MEMORY_SIZES)]
    return Variations(
        values={name: tuple(dict.fromkeys(found)) for name, found in values.items()},
        wholes=tuple(wholes),
        accepted={
            Component.VCPUS: frozenset(map(str, request.vcpus)),
            Component.MEMORY: frozenset(map(str, request.memory_mib)),
        },
    )


# -- machines with a TPM


def _tpm(measured: Measured, known: Known, request: ReferenceRequest) -> Problem:
    by_uki = any(measured.registers["pcr11"])  # only the stub of a unified kernel image extends it
    profile = LaunchProfile.UKI if by_uki else LaunchProfile.SEABIOS
    notes = list(measured.notes)
    unexpected = [] if profile in request.profiles else [f"the machine was booted by profile {profile.value}"]
    name = names.OVMF_CODE if by_uki else names.SEABIOS
    expected = _parts(known.image, known.image.reference.files[name].digest, request)
    variations = _variations(known, request, expected, lambda other: other.reference.files[name].digest)
    model = _TPMModel(known, measured)
    equations = [model.pcr0(profile)]
    if by_uki:
        equations += model.unified()
    elif measured.registers["pcr00"] == extend_data(INITIAL, _SEABIOS_SEPARATOR):
        notes.append("register 0 holds no launch measurement: the machine was started by something else than Cloister")
    if known.launch:
        launch = parse_launch_blob(known.launch)
        if launch.profile is profile and model.is_launch(launch):
            equations += _launch_equations(launch, model)
            variations = _with_launch(variations, launch)
        else:
            notes.append("the launch statement is not that of this evidence: it does not give register 0")
    return Problem(
        expected=expected,
        equations=tuple(equations),
        variations=variations,
        notes=tuple(notes),
        unexpected=tuple(unexpected),
    )


class _TPMModel:
    """Registers of a machine with a TPM, as functions of parts."""

    def __init__(self, known: Known, measured: Measured) -> None:
        images = (known.image, *known.others)
        self._measured = measured
        self._roms = {_file(image, names.SEABIOS): _option_roms(image) for image in images}
        self._default_roms = _option_roms(known.image)
        self._ovmf = {
            _file(image, names.OVMF_CODE): tuple(map(bytes.fromhex, image.reference.ovmf_events)) for image in images
        }
        self._unified = _UnifiedModel(known, algorithm="sha256", start=INITIAL)
        self.uki_digest = self._unified.uki_digest

    def pcr0(self, profile: LaunchProfile) -> Equation:
        by_uki = profile is LaunchProfile.UKI
        return Equation(
            name="pcr00",
            found=self._measured.registers["pcr00"],
            components=frozenset(Component),
            compute=self._pcr0_uki if by_uki else self._pcr0_seabios,
        )

    def unified(self) -> Iterator[Equation]:
        """Yield the equations of what OVMF, the stub and the kernel measure."""
        yield from self._unified.equations(
            self._measured, uki_events(self._unified.image_uki(), algorithm="sha256"), uki_register="pcr04"
        )
        logged = self._measured.unproven.get("pcr00", ())
        if logged:
            yield Equation(
                name="pcr00 firmware volumes",
                found=b"".join(logged),
                components=frozenset({Component.FIRMWARE}),
                compute=lambda parts: b"".join(self._ovmf.get(parts[Component.FIRMWARE], ())) or None,
                how="event log",
            )

    def is_launch(self, launch: LaunchMeasurement) -> bool:
        """Whether this statement gives the quoted register 0."""
        found = self._measured.registers["pcr00"]
        if launch.profile is LaunchProfile.SEABIOS:
            return launch.pcr0_seabios() == found
        events = [self._measured.unproven.get("pcr00", ()), *self._ovmf.values()]
        return any(replay(digests, start=launch.hcrtm_start_value()) == found for digests in events if digests)

    def _pcr0_seabios(self, parts: Parts) -> bytes | None:
        launch = LaunchMeasurement(
            profile=LaunchProfile.SEABIOS,
            vcpus=int(parts[Component.VCPUS]),
            memory_mib=int(parts[Component.MEMORY]),
            firmware=parts[Component.FIRMWARE],
            kernel=parts[Component.KERNEL],
            initrd=parts[Component.INITRD],
            cmdline=digest_text(join_command_line(parts).encode()),
            option_roms=self._roms.get(parts[Component.FIRMWARE], self._default_roms),
        )
        return launch.pcr0_seabios()

    def _pcr0_uki(self, parts: Parts) -> bytes | None:
        uki = self.uki_digest(parts)
        events = self._ovmf.get(parts[Component.FIRMWARE])
        if uki is None or not events:
            return None
        launch = LaunchMeasurement(
            profile=LaunchProfile.UKI,
            vcpus=int(parts[Component.VCPUS]),
            memory_mib=int(parts[Component.MEMORY]),
            firmware=parts[Component.FIRMWARE],
            kernel=uki,
            initrd=None,
            cmdline=None,
        )
        return replay(events, start=launch.hcrtm_start_value())


def _launch_equations(launch: LaunchMeasurement, model: _TPMModel) -> Iterator[Equation]:
    """Yield one equation for each field of a statement that gives register 0."""

    def stated(
        name: str, value: str, components: frozenset[Component], compute: Callable[[Parts], str | None]
    ) -> Equation:
        def encoded(parts: Parts) -> bytes | None:
            found = compute(parts)
            return None if found is None else found.encode()

        return Equation(name=name, found=value.encode(), components=components, compute=encoded, how="launch statement")

    def one(component: Component, value: str) -> Equation:
        return stated(component.value, value, frozenset({component}), lambda parts: parts[component])

    yield one(Component.FIRMWARE, launch.firmware)
    yield one(Component.VCPUS, str(launch.vcpus))
    yield one(Component.MEMORY, str(launch.memory_mib))
    if launch.initrd is None or launch.cmdline is None:
        yield stated(_UKI, launch.kernel, _KERNEL_PARTS, model.uki_digest)
        return
    yield one(Component.KERNEL, launch.kernel)
    yield one(Component.INITRD, launch.initrd)
    yield stated(
        "digest of the command line",
        launch.cmdline,
        _TEXT,
        lambda parts: digest_text(join_command_line(parts).encode()),
    )


def _with_launch(variations: Variations, launch: LaunchMeasurement) -> Variations:
    """Return `variations` with the values that a launch statement states in front."""
    stated = {
        Component.FIRMWARE: launch.firmware,
        Component.VCPUS: str(launch.vcpus),
        Component.MEMORY: str(launch.memory_mib),
    }
    if launch.initrd is not None:
        stated |= {Component.KERNEL: launch.kernel, Component.INITRD: launch.initrd}
    values = {name: (stated[name], *found) if name in stated else found for name, found in variations.values.items()}
    return Variations(values=values, wholes=variations.wholes, accepted=variations.accepted)


# -- what is inside a unified kernel image, by any hash


class _UnifiedModel:
    """Events of a unified kernel image, as functions of parts, by hash `algorithm`."""

    def __init__(self, known: Known, *, algorithm: str, start: bytes) -> None:
        self._images = (known.image, *known.others)
        self._algorithm = algorithm
        self._start = start
        self._files: dict[str, Callable[[], bytes]] = {
            digest_text(data): functools.partial(bytes, data) for data in known.files
        }
        for image in self._images:
            for name in (names.KERNEL, names.INITRD):
                self._files.setdefault(_file(image, name), image.file(name).read_bytes)
        self._ukis = {_uki_key(image): image for image in reversed(self._images)}
        self._hashed: dict[tuple[str, str], bytes | None] = {}

    def image_uki(self) -> bytes:
        """Return the expected image's unified kernel image."""
        return read_part(self._images[0], names.UKI)

    def uki_digest(self, parts: Parts) -> str | None:
        """Return the digest of the unified kernel image of these parts, as far as an image of them is known."""
        image = self._ukis.get(_parts_key(parts))
        return None if image is None else _file(image, names.UKI)

    def equations(
        self, measured: Measured, templates: Mapping[str, tuple[BootEvent, ...]], *, uki_register: str
    ) -> Iterator[Equation]:
        """Yield an equation for each register of `templates`, and for each of its events that the log proves."""
        for register, template in templates.items():
            covered = _covered(template, whole=register == uki_register)
            yield Equation(
                name=register,
                found=measured.registers[register],
                components=covered,
                compute=functools.partial(self._register, template),
                meaning=_DIFFERS if template else _GIVEN_BY_HOST,
            )
            logged = measured.events.get(register, ())
            if len(logged) != len(template):
                continue
            for event, digest in zip(template, logged, strict=True):
                if event.component is not None:
                    yield Equation(
                        name=f"{register} {event.name}",
                        found=digest,
                        components=_TEXT if event.component in _TEXT else frozenset({event.component}),
                        compute=functools.partial(self._event, event),
                        how="event log",
                    )

    def _register(self, template: Sequence[BootEvent], parts: Parts) -> bytes | None:
        events = []
        for event in template:
            digest = self._event(event, parts)
            if digest is None:
                return None
            events.append(BootEvent(name=event.name, digest=digest))
        return replay_events(events, start=self._start, algorithm=self._algorithm)

    def _event(self, event: BootEvent, parts: Parts) -> bytes | None:
        if event.name == _UKI:
            image = self._ukis.get(_parts_key(parts))
            return None if image is None else self._hash_file(_file(image, names.UKI), image.file(names.UKI).read_bytes)
        if event.component is Component.COMMAND_LINE:
            text = join_command_line(parts).encode()
            data = load_options(text) if event.name == "load options" else text
            return hashlib.new(self._algorithm, data).digest()
        if event.component is None:
            return event.digest
        digest = parts[event.component]
        if event.name == "kernel":
            return self._hash_file(digest, self._files.get(digest))
        if self._algorithm == "sha256":
            return bytes.fromhex(digest.removeprefix("sha256:"))
        return self._hash(digest, self._files.get(digest))

    def _hash_file(self, digest: str, read: Callable[[], bytes] | None) -> bytes | None:
        """Return the Authenticode digest of a file; None when it is not at hand or not a PE image."""
        if read is None:
            return None
        key = ("authenticode", digest)
        if key not in self._hashed:
            try:
                self._hashed[key] = authenticode(read(), algorithm=self._algorithm)
            except (OSError, FormatRefused):
                self._hashed[key] = None
        return self._hashed[key]

    def _hash(self, digest: str, read: Callable[[], bytes] | None) -> bytes | None:
        if read is None:
            return None
        key = ("file", digest)
        if key not in self._hashed:
            try:
                self._hashed[key] = hashlib.new(self._algorithm, read()).digest()
            except OSError:
                self._hashed[key] = None
        return self._hashed[key]


def _covered(template: Sequence[BootEvent], *, whole: bool) -> frozenset[Component]:
    """Return the components that a register covers; one that measures the whole image covers all inside it."""
    if whole:
        return _KERNEL_PARTS
    found = {event.component for event in template if event.component is not None}
    return frozenset(found | _TEXT) if found & _TEXT else frozenset(found)


# -- SEV-SNP


def _snp(measured: Measured, known: Known, request: ReferenceRequest) -> Problem:
    if request.firmware is None:
        raise Refused(
            "imagetool.snp.no_firmware",
            "the pod-VM image has no firmware for SEV-SNP",
            path="--ovmf",
            hint="give the file that your hosts are to boot: --ovmf OVMF.amdsev.fd",
        )
    firmware = digest_text(request.firmware)
    model = _SNPModel({firmware: request.firmware, **{digest_text(data): data for data in known.files}})
    model.require(firmware)
    expected = _parts(known.image, firmware, request)
    variations = _variations(known, request, expected, lambda _: firmware)
    found = measured.registers[MEASUREMENT]
    cpu, features = model.find_cpu(expected, found, request)
    unexpected = []
    if cpu not in request.vcpu_types:
        unexpected.append(f"the CPU model is {cpu}, expected {', '.join(request.vcpu_types)}")
    if features not in request.guest_features:
        wanted = ", ".join(f"{value:#x}" for value in request.guest_features)
        unexpected.append(f"the SEV features are {features:#x}, expected {wanted}")
    equation = Equation(
        name=MEASUREMENT,
        found=found,
        components=frozenset(Component) - {Component.MEMORY},
        compute=lambda parts: model.digest(parts, cpu, features),
    )
    return Problem(
        expected=expected,
        equations=(equation,),
        variations=variations,
        notes=measured.notes,
        unexpected=tuple(unexpected),
    )


class _SNPModel:
    """Launch digests as a function of parts; firmware is parsed and hashed once."""

    def __init__(self, firmware: Mapping[str, bytes]) -> None:
        self._images = firmware
        self._parsed: dict[str, SNPFirmware | None] = {}
        self._digests: dict[tuple[str, ...], Mapping[int, bytes]] = {}

    def require(self, digest: str) -> None:
        """Parse the expected firmware, whose faults are the caller's to hear of."""
        image = SNPFirmware(self._images[digest])
        image.launch_digests(hashed_boot(kernel="00" * 32, initrd="00" * 32, cmdline=""), vcpus=[1])
        self._parsed[digest] = image

    def digest(self, parts: Parts, vcpu_type: str, features: int) -> bytes | None:
        """Return the launch digest of these parts; None when their firmware is not at hand."""
        return self._digests_of(parts, vcpu_type, features).get(int(parts[Component.VCPUS]))

    def find_cpu(self, expected: Parts, found: bytes, request: ReferenceRequest) -> tuple[str, int]:
        """Return CPU model and features that give `found` at some number of processors, else the expected ones."""
        for vcpu_type in dict.fromkeys([*request.vcpu_types, *vcpu_types()]):
            for features in dict.fromkeys([*request.guest_features, DEFAULT_GUEST_FEATURES, _DEBUG_SWAP]):
                if found in self._digests_of(expected, vcpu_type, features).values():
                    return vcpu_type, features
        return request.vcpu_types[0], request.guest_features[0]

    def _digests_of(self, parts: Parts, vcpu_type: str, features: int) -> Mapping[int, bytes]:
        """Return the launch digests by number of processors, all of which cost little more than the last."""
        image = self._firmware(parts[Component.FIRMWARE])
        if image is None:
            return {}
        kernel, initrd, text = _parts_key(parts)
        key = (parts[Component.FIRMWARE], kernel, initrd, text, vcpu_type, f"{features:#x}")
        if key not in self._digests:
            boot = hashed_boot(kernel=kernel, initrd=initrd, cmdline=text)
            self._digests[key] = image.launch_digests(
                boot, vcpus=range(1, VCPUS + 1), vcpu_type=vcpu_type, guest_features=features
            )
        return self._digests[key]

    def _firmware(self, digest: str) -> SNPFirmware | None:
        if digest not in self._parsed:
            try:
                image = SNPFirmware(self._images[digest]) if digest in self._images else None
                self._parsed[digest] = image if image is not None and image.hashes_boot else None
            except CloisterError:
                self._parsed[digest] = None
        return self._parsed[digest]


# -- TDX


def _tdx(measured: Measured, known: Known, request: ReferenceRequest) -> Problem:
    image = tdx_firmware(known.image) if request.firmware is None else request.firmware
    firmware = digest_text(image)
    images = {firmware: image, **{digest_text(data): data for data in known.files}}
    mrtd(image)  # its faults are the caller's to hear of
    expected = _parts(known.image, firmware, request)
    variations = _variations(known, request, expected, lambda _: firmware)
    notes = [*measured.notes, "rtmr0 is not predicted: it also covers number of processors and memory"]
    order = next(
        (order for order in PageOrder if mrtd(image, order=order) == measured.registers["mrtd"]), request.orders[0]
    )
    unexpected = [] if order in request.orders else [f"the hypervisor added pages by {order.value}"]

    def compute(parts: Parts) -> bytes | None:
        data = images.get(parts[Component.FIRMWARE])
        try:
            return None if data is None else mrtd(data, order=order)
        except FormatRefused:
            return None

    model = _UnifiedModel(known, algorithm="sha384", start=TDX_INITIAL)
    equations = [
        Equation(
            name="mrtd",
            found=measured.registers["mrtd"],
            components=frozenset({Component.FIRMWARE}),
            compute=compute,
        ),
        *model.equations(measured, runtime_events(model.image_uki()), uki_register="rtmr1"),
    ]
    return Problem(
        expected=expected,
        equations=tuple(equations),
        variations=variations,
        notes=tuple(notes),
        unexpected=tuple(unexpected),
    )


def _file(image: PodVMBundle, name: str) -> str:
    return image.reference.files[name].digest


def _option_roms(image: PodVMBundle) -> Mapping[str, str]:
    return {Path(names.OPTION_ROM).name: _file(image, names.OPTION_ROM)}


def _uki_key(image: PodVMBundle) -> tuple[str, str, str]:
    return _file(image, names.KERNEL), _file(image, names.INITRD), image.cmdline


def _parts_key(parts: Parts) -> tuple[str, str, str]:
    return parts[Component.KERNEL], parts[Component.INITRD], join_command_line(parts)
