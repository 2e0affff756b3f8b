"""Reference values of a pod-VM image for each platform, and their life as signed sets.

Computed from the image's files; nothing is booted. A signed set is verified with the keys the owner names and with this
machine's memory of the newest version it has accepted of each set (`CLOISTER_HOME/owner/reference-sets.json`).
"""

from __future__ import annotations

import enum
import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from cloister.crypto.jwt import key_id
from cloister.crypto.references import SeenVersion, VerifiedReferenceSet, verify_reference_set
from cloister.crypto.signer import ECDSAP256PublicKey
from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.imagetool.measure.pcr import INITIAL, extend
from cloister.imagetool.measure.snp import DEFAULT_GUEST_FEATURES, DEFAULT_VCPU_TYPE
from cloister.imagetool.measure.tdx import PageOrder
from cloister.imagetool.podvm import PodVMBundle, Shape, components, reference_values
from cloister.imagetool.podvm.confidential import MEASUREMENT, snp_digests, tdx_firmware, tdx_registers
from cloister.protocol.initdata import parse_initdata
from cloister.protocol.launch import LaunchProfile, digest_text
from cloister.rats.reference import Component, ReferenceEntry
from cloister.sdk.home import Home
from cloister.wholefile import OWNER_ONLY, write_whole

INIT_DATA_PCR: Final = 8  # spec/init-data.md
_KEY_CHARS: Final = 12  # of a bundle's key, in names
_MEMORY_BYTES: Final = 1024 * 1024  # of the file of seen versions


class Platform(enum.StrEnum):
    """Platforms whose measurements are predicted."""

    TPM = "tpm"
    SNP = "snp"
    TDX = "tdx"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceRequest:
    """For which machines to compute.

    Attributes:
        platform: whose registers.
        vcpus: numbers of processors; of no effect on `tdx`.
        memory_mib: sizes of main memory; of effect on `tpm` only.
        profiles: boot profiles, for `tpm`.
        firmware: the firmware file's bytes: needed for `snp`; for `tdx` None stands for the image's own.
        vcpu_types: QEMU's names of CPU models, for `snp`.
        guest_features: SEV_FEATURES, for `snp`.
        orders: in which order the hypervisor adds pages, for `tdx`.
        init_data: text of a pod's init data, for `tpm`: its register is then part of the values.
    """

    platform: Platform
    vcpus: Sequence[int] = (1, 2, 4)
    memory_mib: Sequence[int] = (512, 1024)
    profiles: Sequence[LaunchProfile] = tuple(LaunchProfile)
    firmware: bytes | None = field(default=None, repr=False)
    vcpu_types: Sequence[str] = (DEFAULT_VCPU_TYPE,)
    guest_features: Sequence[int] = (DEFAULT_GUEST_FEATURES,)
    orders: Sequence[PageOrder] = (PageOrder.PAGE,)
    init_data: bytes | None = field(default=None, repr=False)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Every combination of processors and memory."""
        return tuple(Shape(vcpus=vcpus, memory_mib=memory) for vcpus in self.vcpus for memory in self.memory_mib)


def compute_references(
    bundle: PodVMBundle, request: ReferenceRequest, *, not_after: datetime
) -> tuple[ReferenceEntry, ...]:
    """Return the reference values of `bundle` for the machines of `request`, valid until `not_after`.

    Raises:
        Refused: the request cannot be answered: firmware is missing, of the wrong kind or unknown, or a number is out
            of range (`imagetool.snp.*`, `imagetool.tdx.*`, `imagetool.measure.*`, `protocol.launch.*`).
    """
    if request.platform is Platform.TPM:
        entries = tpm_references(bundle, request.shapes, request.profiles, not_after=not_after)
        return entries if request.init_data is None else _with_init_data(entries, request.init_data)
    if request.platform is Platform.SNP:
        return _snp_references(bundle, request, not_after)
    return _tdx_references(bundle, request, not_after)


def tpm_references(
    bundle: PodVMBundle,
    shapes: Iterable[Shape],
    profiles: Iterable[LaunchProfile] = LaunchProfile,
    *,
    not_after: datetime,
) -> tuple[ReferenceEntry, ...]:
    """Return the reference values for machines with a TPM, of both boot profiles unless told otherwise.

    Raises:
        Refused: the firmware of profile `uki` is not known (`imagetool.measure.firmware_unknown`).
    """
    entries = []
    for prediction in reference_values(bundle, shapes, profiles):
        launch = prediction.launch
        name = "SeaBIOS" if launch.profile is LaunchProfile.SEABIOS else "OVMF"
        entries.append(
            ReferenceEntry(
                id=f"podvm-{bundle.key[:_KEY_CHARS]}-{launch.profile.value}-{launch.vcpus}x{launch.memory_mib}",
                tee=Platform.TPM.value,
                registers=prediction.registers,
                not_after=not_after,
                origin=f"{_image(bundle)}, {name}, {launch.vcpus} vCPU, {launch.memory_mib} MiB",
                components=components(
                    bundle.reference, launch.profile, vcpus=launch.vcpus, memory_mib=launch.memory_mib
                ),
            )
        )
    return tuple(entries)


def _with_init_data(entries: Iterable[ReferenceEntry], text: bytes) -> tuple[ReferenceEntry, ...]:
    """Return `entries` for one pod: the agent extends PCR 8 with the digest of its init data, once.

    Raises:
        FormatRefused: not init data (`protocol.initdata.*`).
        Refused: init data by another hash than SHA-256, which the guest refuses as well (`imagetool.measure.length`).
    """
    digest = parse_initdata(text).digest
    register = {f"pcr{INIT_DATA_PCR:02d}": extend(INITIAL, digest)}
    name = digest.hex()[:_KEY_CHARS]
    return tuple(
        replace(
            entry,
            id=f"{entry.id}-{name}",
            registers={**entry.registers, **register},
            origin=f"{entry.origin}, init data {name}",
        )
        for entry in entries
    )


def expected_by(entries: Iterable[ReferenceEntry], request: ReferenceRequest) -> ReferenceRequest:
    """Return `request` for the machines that `entries` were computed for, as far as their components say.

    Raises:
        Refused: no entry is for the platform, or none names its components (`rats.reference.set.components`).
    """
    found = [entry for entry in entries if entry.tee == request.platform.value and entry.components]
    if not found:
        raise Refused(
            "rats.reference.set.components",
            "no entry for this platform says what it was computed from",
            expected=f"entries for {request.platform.value} with components",
            hint="give values that `cloister refs compute` wrote",
        )

    def numbers(component: Component, otherwise: Sequence[int]) -> Sequence[int]:
        texts = {entry.components[component] for entry in found if component in entry.components}
        return sorted(int(text) for text in texts if text.isascii() and text.isdigit()) or otherwise

    profiles = {LaunchProfile.UKI if "pcr11" in entry.registers else LaunchProfile.SEABIOS for entry in found}
    return replace(
        request,
        vcpus=numbers(Component.VCPUS, request.vcpus),
        memory_mib=numbers(Component.MEMORY, request.memory_mib),
        profiles=sorted(profiles) if request.platform is Platform.TPM else request.profiles,
    )


def image_of(entries: Iterable[ReferenceEntry], bundles: Iterable[PodVMBundle]) -> PodVMBundle:
    """Return the image among `bundles` that `entries` were computed from.

    Raises:
        Unavailable: none of them is (`imagetool.bundle.missing`).
    """
    inside = (Component.KERNEL, Component.INITRD, Component.COMMAND_LINE)
    wanted = {tuple(entry.components.get(name, "") for name in inside) for entry in entries}
    for bundle in bundles:
        made_of = components(bundle.reference, LaunchProfile.SEABIOS)
        if tuple(made_of[name] for name in inside) in wanted:
            return bundle
    raise Unavailable(
        "imagetool.bundle.missing",
        "the pod-VM image of these reference values is not in the cache",
        hint="name its directory with --image, or build it: `cloister podvm build`",
    )


def _snp_references(bundle: PodVMBundle, request: ReferenceRequest, not_after: datetime) -> tuple[ReferenceEntry, ...]:
    entries = []
    firmware = {Component.FIRMWARE: digest_text(request.firmware or b"")}
    for vcpu_type in request.vcpu_types:
        for features in request.guest_features:
            digests = snp_digests(
                bundle, request.firmware, vcpus=request.vcpus, vcpu_type=vcpu_type, guest_features=features
            )
            entries += [
                ReferenceEntry(
                    id=f"podvm-{bundle.key[:_KEY_CHARS]}-snp-{vcpu_type.lower()}-{features:#x}-{vcpus}",
                    tee=Platform.SNP.value,
                    registers={MEASUREMENT: digest},
                    not_after=not_after,
                    origin=f"{_image(bundle)}, SEV-SNP, {vcpus} vCPU {vcpu_type}, features {features:#x}",
                    components=components(bundle.reference, LaunchProfile.SEABIOS, vcpus=vcpus) | firmware,
                )
                for vcpus, digest in sorted(digests.items())
            ]
    return tuple(entries)


def _tdx_references(bundle: PodVMBundle, request: ReferenceRequest, not_after: datetime) -> tuple[ReferenceEntry, ...]:
    firmware = tdx_firmware(bundle) if request.firmware is None else request.firmware
    return tuple(
        ReferenceEntry(
            id=f"podvm-{bundle.key[:_KEY_CHARS]}-tdx-{order.value}",
            tee=Platform.TDX.value,
            registers=tdx_registers(bundle, firmware, order=order),
            not_after=not_after,
            origin=f"{_image(bundle)}, TDX, pages added by {order.value}",
            components=components(bundle.reference, LaunchProfile.UKI) | {Component.FIRMWARE: digest_text(firmware)},
        )
        for order in request.orders
    )


def verify_signed_references(
    data: bytes, keys: Iterable[ECDSAP256PublicKey], *, home: Home, at: datetime
) -> VerifiedReferenceSet:
    """Verify a signed set and remember its version, so that an older one is refused from now on.

    Raises:
        Refused: as `cloister.crypto.references.verify_reference_set`.
        FormatRefused: what this machine remembers is damaged (`rats.reference.set.memory`).
        Unavailable: it cannot be read or written (`rats.reference.set.memory`).
    """
    place = home.root / "owner" / "reference-sets.json"
    with _exclusive(place):  # two at a time could each forget what the other accepted
        seen = _read_seen(place)
        verified = verify_reference_set(data, {key_id(key): key for key in keys}, at=at, seen=seen)
        if seen.get(verified.values.id) != verified.seen:
            _write_seen(place, {**seen, verified.values.id: verified.seen})
    return verified


@contextmanager
def _exclusive(place: Path) -> Iterator[None]:
    """Hold the lock of the record at `place`."""
    try:
        handle = os.open(place.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as err:
        raise Unavailable("rats.reference.set.memory", f"cannot be locked: {err.strerror}", path=str(place)) from err
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _read_seen(place: Path) -> Mapping[str, SeenVersion]:
    try:
        with place.open("rb") as stream:
            data = stream.read(_MEMORY_BYTES)
    except FileNotFoundError:
        return {}
    except OSError as err:
        raise Unavailable("rats.reference.set.memory", f"cannot be read: {err.strerror}", path=str(place)) from err
    try:
        return msgspec.json.decode(data, type=dict[str, SeenVersion])
    except (msgspec.MsgspecError, ValueError) as err:
        raise FormatRefused(
            "rats.reference.set.memory",
            "the record of versions seen is damaged",
            path=str(place),
            hint="without it an old set cannot be told from the current one: restore it, or remove it knowingly",
        ) from err


def _write_seen(place: Path, seen: Mapping[str, SeenVersion]) -> None:
    try:
        write_whole(place, msgspec.json.encode(seen), mode=OWNER_ONLY)
    except OSError as err:
        raise Unavailable("rats.reference.set.memory", f"cannot be written: {err.strerror}", path=str(place)) from err


def _image(bundle: PodVMBundle) -> str:
    return f"pod-VM image {bundle.key[:_KEY_CHARS]}"
