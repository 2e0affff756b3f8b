"""SEV-SNP launch digests: each input counts, and files or shapes that cannot be launched are refused."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from cloister.errors import FormatRefused, Refused
from cloister.imagetool.measure.snp import HashedBoot, SNPFirmware, vcpu_types
from cloister.imagetool.podvm.bundle import INITRD, KERNEL
from cloister.imagetool.podvm.confidential import snp_digests
from cloister.testing.firmware import PAGE, SEV_SECTIONS, fake_bundle, fake_firmware


def sha(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


BOOT = HashedBoot(kernel=sha(b"kernel"), initrd=sha(b"initrd"), cmdline=sha(b"quiet\0"))


def digest(firmware: bytes = b"", boot: HashedBoot | None = BOOT, vcpus: int = 2, **shape: object) -> bytes:
    image = SNPFirmware(firmware or fake_firmware())
    return image.launch_digests(boot, vcpus=[vcpus], **shape)[vcpus]  # type: ignore[arg-type]  # names in the table


def test_every_input_is_in_the_digest() -> None:
    honest = digest()
    changed = [
        digest(fake_firmware(text=b"other")),
        digest(fake_firmware(size=5 * PAGE)),
        digest(boot=replace(BOOT, kernel=sha(b"x"))),
        digest(boot=replace(BOOT, initrd=sha(b"x"))),
        digest(boot=replace(BOOT, cmdline=sha(b"loud\0"))),
        digest(boot=None),
        digest(vcpus=1),
        digest(vcpus=3),
        digest(vcpu_type="EPYC-Milan"),
        digest(guest_features=0x21),
    ]
    assert len(honest) == 48
    assert len({honest, *changed}) == len(changed) + 1


def test_digests_of_several_shapes_are_those_of_each() -> None:
    image = SNPFirmware(fake_firmware())
    several = image.launch_digests(BOOT, vcpus=[4, 1, 256])
    assert several == {number: digest(vcpus=number) for number in (1, 4, 256)}


def test_first_page_by_hand() -> None:
    """SEV-SNP firmware ABI, 8.17.2: digest, SHA-384 of the page, length, type, flags, address; from zeros."""
    firmware = fake_firmware(size=PAGE, sev_sections=((0x80D000, PAGE, 2),))
    first = bytes(48) + hashlib.sha384(firmware).digest() + b"\x70\x00\x01\x00" + bytes(4)
    value = hashlib.sha384(first + (2**32 - PAGE).to_bytes(8, "little")).digest()
    secrets = value + bytes(48) + b"\x70\x00\x05\x00" + bytes(4) + (0x80D000).to_bytes(8, "little")
    before_vmsa = hashlib.sha384(secrets).digest()
    from sevsnpmeasure.gctx import GCTX

    context = GCTX()
    context.update_normal_pages(2**32 - PAGE, firmware)
    context.update_secrets_page(0x80D000)
    assert context.ld() == before_vmsa
    assert digest(firmware, None, 1) != digest(firmware, None, 2)


@pytest.mark.parametrize(
    "firmware",
    [
        b"x",
        bytes(PAGE),
        fake_firmware()[:-1],
        fake_firmware(sev_sections=()),
        fake_firmware(sev_sections=((0x800000, 0, 1),)),
        fake_firmware(sev_sections=((0x800000, 100, 1),)),
        fake_firmware(sev_sections=((0, 0xFFFFF000, 1),)),
        fake_firmware().replace(b"ASEV", b"ASEX"),
        fake_firmware().replace(b"ASEV\x40", b"ASEV\x20"),
        fake_firmware().replace(b"\xde\x71\xf7\x00", b"\xdf\x71\xf7\x00"),
    ],
    ids=range(10),
)
def test_other_files_are_refused(firmware: bytes) -> None:
    with pytest.raises(FormatRefused) as caught:
        SNPFirmware(firmware)
    assert caught.value.code == "imagetool.snp.firmware"


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(FormatRefused, match=r"imagetool\.snp\.firmware"):
        SNPFirmware(b"")


def test_sections_of_unknown_kind_are_refused() -> None:
    with pytest.raises(FormatRefused, match=r"imagetool\.snp\.firmware"):
        digest(fake_firmware(sev_sections=(*SEV_SECTIONS, (0x900000, PAGE, 99))))


@pytest.mark.parametrize("firmware", [fake_firmware(hash_table=0), fake_firmware(sev_sections=SEV_SECTIONS[:3])])
def test_firmware_that_does_not_measure_the_kernel_is_refused(firmware: bytes) -> None:
    assert not SNPFirmware(firmware).hashes_boot
    with pytest.raises(Refused, match=r"imagetool\.snp\.no_kernel_hashes"):
        digest(firmware)
    assert len(digest(firmware, None)) == 48


def test_a_hash_table_that_leaves_its_page_is_refused() -> None:
    with pytest.raises(FormatRefused, match=r"imagetool\.snp\.firmware"):
        digest(fake_firmware(hash_table=0x810FF0))


@pytest.mark.parametrize("vcpus", [0, -1, 257])
def test_impossible_numbers_of_processors_are_refused(vcpus: int) -> None:
    with pytest.raises(Refused, match=r"imagetool\.snp\.shape"):
        digest(vcpus=vcpus)


def test_other_impossible_shapes_are_refused() -> None:
    for shape in ({"vcpu_type": "Xeon"}, {"guest_features": -1}, {"guest_features": 1 << 64}):
        with pytest.raises(Refused, match=r"imagetool\.snp\.shape"):
            digest(**shape)
    with pytest.raises(Refused, match=r"imagetool\.snp\.shape"):
        SNPFirmware(fake_firmware()).launch_digests(BOOT, vcpus=[])
    assert {"EPYC-v4", "EPYC-Milan", "EPYC-Genoa", "EPYC-Turin"} <= set(vcpu_types())


def test_digest_of_an_image_is_the_librarys_over_the_files(tmp_path: Path) -> None:
    """The hash table is made from recorded digests here, from the files there."""
    from sevsnpmeasure.guest import calc_launch_digest
    from sevsnpmeasure.sev_mode import SevMode
    from sevsnpmeasure.vcpu_types import CPU_SIGS

    bundle = fake_bundle(tmp_path / "image")
    firmware = tmp_path / "ovmf.fd"
    firmware.write_bytes(fake_firmware())
    files = (str(firmware), str(bundle.file(KERNEL)), str(bundle.file(INITRD)), bundle.cmdline)
    found = snp_digests(bundle, fake_firmware(), vcpus=[1, 5])
    for vcpus, digest in found.items():
        assert digest == calc_launch_digest(SevMode.SEV_SNP, vcpus, CPU_SIGS["EPYC-v4"], *files, guest_features=1)
