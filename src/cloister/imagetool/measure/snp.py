"""The launch digest of SEV-SNP: MEASUREMENT of the attestation report, computed from files.

AMD's SEV-SNP firmware ABI (56860), section 8.17: the digest is extended page by page with what the hypervisor loads
before the guest runs: the firmware image, the pages that its SEV metadata lists, among them the table with the hashes
of kernel, initrd and command line (QEMU's `kernel-hashes=on`), and one VMSA page per virtual processor.

The arithmetic is the library `sev-snp-measure`; here are its limits, its errors in our words, and digests instead of
files for the hash table. Its profile for QEMU only: for Amazon EC2 it differs from AMD's own tool in a register of the
VMSA, and nobody here can say which is right. Not compared with hardware by us.

What changes the digest beside the files: the number of processors, the CPU model (its signature is in a register of
the VMSA), and the SEV features that the kernel of the host turns on (0x1, or 0x21 with debug swap).
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cloister.errors import FormatRefused, Refused
from cloister.wire.limits import FIRMWARE_BYTES, FIRMWARE_MEMORY_BYTES, VCPUS

if TYPE_CHECKING:
    from sevsnpmeasure.ovmf import OVMF

DIGEST_BYTES: Final = 48
DEFAULT_VCPU_TYPE: Final = "EPYC-v4"
DEFAULT_GUEST_FEATURES: Final = 0x1
_PAGE: Final = 4096
_CODE: Final = "imagetool.snp"
_GUEST_FEATURES_CEILING: Final = 1 << 64
# What the library raises on a file it cannot read: it has no error of its own.
_LIBRARY_ERRORS: Final = (ValueError, KeyError, IndexError, RuntimeError, AssertionError, TypeError, struct.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class HashedBoot:
    """SHA-256 (32 bytes each) of what QEMU loads beside the firmware; the command line's with its zero byte."""

    kernel: bytes
    initrd: bytes
    cmdline: bytes


class SNPFirmware:
    """A firmware image, read and hashed once.

    Args:
        image: the file's bytes, which end at 4 GiB in guest memory.

    Raises:
        FormatRefused: not a firmware that SEV-SNP can launch (`imagetool.snp.firmware`).
    """

    def __init__(self, image: bytes) -> None:
        if not image or len(image) % _PAGE or len(image) > FIRMWARE_BYTES:
            raise _malformed(f"{len(image)} bytes are not whole pages up to {FIRMWARE_BYTES}")
        from sevsnpmeasure.gctx import GCTX
        from sevsnpmeasure.ovmf import OVMF

        try:
            with tempfile.NamedTemporaryFile(prefix="cloister-", suffix=".fd") as file:  # the library opens a path
                file.write(image)
                file.flush()
                self._ovmf: OVMF = OVMF(file.name)
            pages = sum(item.size for item in self._ovmf.metadata_items())
            self._reset = self._ovmf.sev_es_reset_eip()
        except _LIBRARY_ERRORS as err:
            raise _malformed(str(err) or type(err).__name__) from err
        if not pages:
            raise _malformed("it has no SEV metadata: it is not built for SEV-SNP")
        if pages > FIRMWARE_MEMORY_BYTES or any(item.size % _PAGE for item in self._ovmf.metadata_items()):
            raise _malformed(f"its metadata asks for {pages} bytes of memory")
        context = GCTX()
        context.update_normal_pages(self._ovmf.gpa(), self._ovmf.data())
        self._seed: bytes = context.ld()

    @property
    def hashes_boot(self) -> bool:
        """Whether kernel, initrd and command line are measured: only builds for direct boot (AmdSev) do that."""
        from sevsnpmeasure.ovmf import SectionType

        found: bool = self._ovmf.is_sev_hashes_table_supported() and any(
            item.section_type_int == SectionType.SNP_KERNEL_HASHES.value for item in self._ovmf.metadata_items()
        )
        return found

    def launch_digests(
        self,
        boot: HashedBoot | None,
        *,
        vcpus: Collection[int],
        vcpu_type: str = DEFAULT_VCPU_TYPE,
        guest_features: int = DEFAULT_GUEST_FEATURES,
    ) -> Mapping[int, bytes]:
        """Return the launch digest (48 bytes) by number of processors.

        Args:
            boot: what is booted directly; None when the firmware loads it from a disk, unmeasured.
            vcpus: numbers of processors, 1 to 256.
            vcpu_type: QEMU's name of the CPU model.
            guest_features: SEV_FEATURES of the VMSA.

        Raises:
            FormatRefused: the metadata has a section of unknown kind (`imagetool.snp.firmware`).
            Refused: the firmware does not measure what is booted (`imagetool.snp.no_kernel_hashes`), or a number or
                name is out of range (`imagetool.snp.shape`).
        """
        from sevsnpmeasure.gctx import GCTX
        from sevsnpmeasure.guest import snp_update_metadata_pages
        from sevsnpmeasure.sev_mode import SevMode
        from sevsnpmeasure.vmm_types import VMMType
        from sevsnpmeasure.vmsa import VMSA

        signature = _signature(vcpu_type)
        if not vcpus or not 0 < min(vcpus) <= max(vcpus) <= VCPUS or not 0 <= guest_features < _GUEST_FEATURES_CEILING:
            raise Refused(f"{_CODE}.shape", "not a shape of a machine", expected=f"1 to {VCPUS} vCPUs, 64-bit features")
        if boot is not None and not self.hashes_boot:
            raise Refused(
                f"{_CODE}.no_kernel_hashes",
                "this firmware does not measure kernel, initrd and command line",
                path="ovmf",
                expected="a build with a section for kernel hashes",
                hint="use OVMF built from OvmfPkg/AmdSev/AmdSevX64.dsc; the general build measures only itself",
            )
        context = GCTX(seed=self._seed)
        digests = {}
        try:
            table = None if boot is None else _hash_table(boot)
            snp_update_metadata_pages(context, self._ovmf, table, VMMType.QEMU)
            pages = VMSA(SevMode.SEV_SNP, self._reset, signature, guest_features, VMMType.QEMU).pages(max(vcpus))
            for number, page in enumerate(pages, 1):
                context.update_vmsa_page(page)
                if number in vcpus:
                    digests[number] = context.ld()
        except _LIBRARY_ERRORS as err:
            raise _malformed(str(err) or type(err).__name__) from err
        return digests


def vcpu_types() -> tuple[str, ...]:
    """Return the names of CPU models whose signature is known."""
    from sevsnpmeasure.vcpu_types import CPU_SIGS

    return tuple(CPU_SIGS)


def _signature(vcpu_type: str) -> int:
    from sevsnpmeasure.vcpu_types import CPU_SIGS

    found: int | None = CPU_SIGS.get(vcpu_type)
    if found is None:
        raise Refused(
            f"{_CODE}.shape", "unknown CPU model", path="vcpu_type", expected=", ".join(CPU_SIGS), actual=vcpu_type[:40]
        )
    return found


def _hash_table(boot: HashedBoot) -> object:
    """Return the library's hash table without the files it would read."""
    from sevsnpmeasure.sev_hashes import SevHashes

    table = SevHashes.__new__(SevHashes)
    table.kernel_hash, table.initrd_hash, table.cmdline_hash = boot.kernel, boot.initrd, boot.cmdline
    return table


def _malformed(reason: str) -> FormatRefused:
    return FormatRefused(f"{_CODE}.firmware", f"not a firmware that SEV-SNP can launch: {reason}"[:200], path="ovmf")
