"""What the pod-VM image measures as on processors with memory encryption: SEV-SNP and TDX. Nothing is booted.

SEV-SNP boots kernel, initrd and command line directly, hashed into a page of firmware that is built for it; such a
firmware is not part of the image. TDX boots the unified kernel image by the image's own OVMF, whose file carries TDX
metadata.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Final

from cloister.errors import Refused, Unavailable
from cloister.imagetool.measure.snp import DEFAULT_GUEST_FEATURES, DEFAULT_VCPU_TYPE, HashedBoot, SNPFirmware
from cloister.imagetool.measure.tdx import PageOrder, mrtd, runtime_registers
from cloister.imagetool.podvm import bundle as names
from cloister.imagetool.podvm.bundle import PodVMBundle

MEASUREMENT: Final = "measurement"  # the register's name in claims


def snp_digests(
    bundle: PodVMBundle,
    firmware: bytes | None,
    *,
    vcpus: Collection[int],
    vcpu_type: str = DEFAULT_VCPU_TYPE,
    guest_features: int = DEFAULT_GUEST_FEATURES,
) -> Mapping[int, bytes]:
    """Return the SEV-SNP launch digest of `bundle` under `firmware`, by number of processors.

    Raises:
        Refused: no firmware was given (`imagetool.snp.no_firmware`), or as `SNPFirmware` and `launch_digests`.
    """
    if firmware is None:
        raise Refused(
            "imagetool.snp.no_firmware",
            "the pod-VM image has no firmware for SEV-SNP",
            path="--ovmf",
            expected="a stateless OVMF that measures kernel, initrd and command line (AmdSev build)",
            hint="give the file that your hosts boot: --ovmf OVMF.amdsev.fd",
        )
    boot = hashed_boot(
        kernel=bundle.reference.files[names.KERNEL].digest,
        initrd=bundle.reference.files[names.INITRD].digest,
        cmdline=bundle.cmdline,
    )
    image = SNPFirmware(firmware)
    return image.launch_digests(boot, vcpus=vcpus, vcpu_type=vcpu_type, guest_features=guest_features)


def hashed_boot(*, kernel: str, initrd: str, cmdline: str) -> HashedBoot:
    """Return the entries of the hash table; files by their digests (`sha256:hex`)."""
    return HashedBoot(
        kernel=bytes.fromhex(kernel.removeprefix("sha256:")),
        initrd=bytes.fromhex(initrd.removeprefix("sha256:")),
        cmdline=hashlib.sha256(cmdline.encode() + b"\0").digest(),
    )


def tdx_registers(
    bundle: PodVMBundle, firmware: bytes | None, *, order: PageOrder = PageOrder.PAGE
) -> Mapping[str, bytes]:
    """Return `mrtd`, `rtmr1` and `rtmr2` of `bundle`; `firmware` None stands for the image's own OVMF.

    Raises:
        FormatRefused: the firmware is not one for TDX (`imagetool.tdx.firmware`).
        Unavailable: a file of the bundle cannot be read (`imagetool.bundle.missing`).
    """
    image = tdx_firmware(bundle) if firmware is None else firmware
    return {"mrtd": mrtd(image, order=order), **runtime_registers(read_part(bundle, names.UKI))}


def tdx_firmware(bundle: PodVMBundle) -> bytes:
    """Return the image's OVMF as one file, as TDX hosts load it: variables, then code.

    Raises:
        Unavailable: a file of the bundle cannot be read (`imagetool.bundle.missing`).
    """
    return read_part(bundle, names.OVMF_VARS) + read_part(bundle, names.OVMF_CODE)


def read_part(bundle: PodVMBundle, name: str) -> bytes:
    """Return the content of one of the image's files.

    Raises:
        Unavailable: it cannot be read (`imagetool.bundle.missing`).
    """
    try:
        return bundle.file(name).read_bytes()
    except OSError as err:
        raise Unavailable(
            "imagetool.bundle.missing", f"a file of the pod-VM image cannot be read: {err.strerror}", path=name
        ) from err
