"""TDX: MRTD as the module computes it, metadata that lies, and the events of a unified kernel image by SHA-384."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest

from cloister.errors import FormatRefused, Refused
from cloister.imagetool.measure.authenticode import authenticode
from cloister.imagetool.measure.tdx import PageOrder, SectionKind, mrtd, parse_tdvf, runtime_events, runtime_registers
from cloister.imagetool.podvm.bundle import INITRD, KERNEL, UKI
from cloister.imagetool.podvm.confidential import snp_digests, tdx_firmware, tdx_registers
from cloister.testing.firmware import FOUR_GIB, PAGE, fake_bundle, fake_firmware

SIZE = 4 * PAGE
VOLUME = (0, SIZE, FOUR_GIB - SIZE, SIZE, 0, 1)


def record(name: bytes, address: int) -> bytes:
    return name.ljust(16, b"\0") + struct.pack("<Q", address) + bytes(104)


def by_hand(firmware: bytes, order: PageOrder) -> bytes:
    """MRTD of a firmware whose one measured section is the whole file, and whose second is a page of memory."""
    start = FOUR_GIB - len(firmware)
    adds = [record(b"MEM.PAGE.ADD", start + at) for at in range(0, len(firmware), PAGE)]
    extends = [
        b"".join(record(b"MR.EXTEND", start + at) + firmware[at : at + 256] for at in range(page, page + PAGE, 256))
        for page in range(0, len(firmware), PAGE)
    ]
    if order is PageOrder.SECTION:
        text = b"".join(adds) + b"".join(extends)
    else:
        text = b"".join(add + extend for add, extend in zip(adds, extends, strict=True))
    return hashlib.sha384(text + record(b"MEM.PAGE.ADD", 0x809000)).digest()


@pytest.mark.parametrize("order", list(PageOrder))
def test_mrtd_is_the_digest_of_added_and_extended_pages(order: PageOrder) -> None:
    firmware = fake_firmware()
    assert mrtd(firmware, order=order) == by_hand(firmware, order)


def test_orders_and_contents_differ() -> None:
    values = {mrtd(fake_firmware(), order=order) for order in PageOrder}
    values |= {mrtd(fake_firmware(text=b"other")), mrtd(fake_firmware(size=5 * PAGE))}
    assert len(values) == 4


def test_what_is_not_measured_does_not_count() -> None:
    """A volume without the attribute is added, its content is not extended: variables, for one."""
    sections = ((0, SIZE, FOUR_GIB - SIZE, SIZE, 1, 0),)
    first, second = (fake_firmware(text=text, tdx_sections=sections) for text in (b"one", b"two"))
    assert mrtd(first) == mrtd(second)


def test_a_section_shorter_than_its_memory_is_filled_with_zeros() -> None:
    sections = ((0, 100, 0x1000, PAGE, 0, 1),)
    firmware = fake_firmware(tdx_sections=sections)
    page = firmware[:100].ljust(PAGE, b"\0")
    text = record(b"MEM.PAGE.ADD", 0x1000)
    text += b"".join(record(b"MR.EXTEND", 0x1000 + at) + page[at : at + 256] for at in range(0, PAGE, 256))
    assert mrtd(firmware) == hashlib.sha384(text).digest()


def test_pages_that_the_guest_accepts_later_are_not_added() -> None:
    firmware = fake_firmware(tdx_sections=((0, 0, 0x1000, PAGE, 4, 2), (0, 0, 0x8000, PAGE, 4, 0)))
    for order in PageOrder:
        assert mrtd(firmware, order=order) == hashlib.sha384(record(b"MEM.PAGE.ADD", 0x8000)).digest()


def test_sections_are_read() -> None:
    volume, memory = parse_tdvf(fake_firmware())
    assert (volume.kind, volume.file_bytes, volume.address) == (SectionKind.BFV, SIZE, FOUR_GIB - SIZE)
    assert (memory.kind, memory.memory_bytes, memory.attributes) == (SectionKind.TD_HOB, PAGE, 0)


def with_section(*section: int) -> bytes:
    return fake_firmware(tdx_sections=(tuple(section),))  # type: ignore[arg-type]  # wrong on purpose at times


@pytest.mark.parametrize(
    "firmware",
    [
        b"",
        bytes(PAGE),
        fake_firmware(tdx_sections=()),
        fake_firmware().replace(b"TDVF", b"TDVX"),
        fake_firmware()[:-1],
        fake_firmware(tdx_sections=(VOLUME,) * 65),
        with_section(0, SIZE + 1, 0, 2 * SIZE, 0, 1),
        with_section(1, SIZE, 0, SIZE, 0, 1),
        with_section(0, SIZE, 0, PAGE, 0, 1),
        with_section(0, 0, 100, PAGE, 0, 0),
        with_section(0, 0, 0, 100, 0, 0),
        with_section(0, 0, (1 << 52) - PAGE, 2 * PAGE, 0, 0),
        with_section(0, 0, 0, 1 << 40, 3, 0),
        with_section(0, 0, 0, PAGE, 7, 0),
        with_section(0, 0, 0, PAGE, 0, 4),
        with_section(0, 0, 0, PAGE, 0, 3),
    ],
    ids=range(16),
)
def test_other_files_are_refused(firmware: bytes) -> None:
    with pytest.raises(FormatRefused) as caught:
        mrtd(firmware)
    assert caught.value.code == "imagetool.tdx.firmware"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (struct.pack("<4sIII", b"TDVF", 80, 1, 2), struct.pack("<4sIII", b"TDVF", 80, 2, 2)),
        (struct.pack("<4sIII", b"TDVF", 80, 1, 2), struct.pack("<4sIII", b"TDVF", 80, 1, 0)),
        (struct.pack("<4sIII", b"TDVF", 80, 1, 2), struct.pack("<4sIII", b"TDVF", 79, 1, 2)),
        (struct.pack("<I", 1024) + b"\x16\0", struct.pack("<I", 1 << 30) + b"\x16\0"),
        (struct.pack("<I", 1024) + b"\x16\0", struct.pack("<I", 20) + b"\x16\0"),
        (struct.pack("<I", 1024) + b"\x16\0", struct.pack("<I", 1024) + b"\x00\0"),
        (struct.pack("<I", 1024) + b"\x16\0", struct.pack("<I", 1024) + b"\xff\xff"),
        (struct.pack("<I", 1024) + b"\x16\0", struct.pack("<I", 1024) + b"\x15\0"),
    ],
)
def test_lies_of_the_metadata_are_refused(old: bytes, new: bytes) -> None:
    firmware = fake_firmware()
    assert firmware.count(old) == 1
    with pytest.raises(FormatRefused, match=r"imagetool\.tdx\.firmware"):
        parse_tdvf(firmware.replace(old, new))


def sha384(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def test_events_of_a_unified_kernel_image(tmp_path: Path) -> None:
    bundle = fake_bundle(tmp_path)
    uki, kernel = bundle.file(UKI).read_bytes(), bundle.file(KERNEL).read_bytes()
    cmdline = bundle.cmdline.encode()
    events = runtime_events(uki)
    assert [event.digest for event in events["rtmr1"]] == [
        authenticode(uki, algorithm="sha384"),
        sha384(b"Calling EFI Application from Boot Option"),
        sha384(bytes(4)),
        authenticode(kernel, algorithm="sha384"),
        sha384(b"Exit Boot Services Invocation"),
        sha384(b"Exit Boot Services Returned with Success"),
    ]
    texts = [b".linux\0", kernel, b".cmdline\0", cmdline, b".initrd\0", b"initrd", b".sbat\0", b"sbat,1"]
    texts += [cmdline.decode().encode("utf-16-le") + bytes(2), bundle.file(INITRD).read_bytes()]
    assert [event.digest for event in events["rtmr2"]] == [sha384(text) for text in texts]
    value = bytes(48)
    for event in events["rtmr2"]:
        value = sha384(value + event.digest)
    assert runtime_registers(uki)["rtmr2"] == value


def test_registers_of_the_image_and_what_they_depend_on(tmp_path: Path) -> None:
    def registers(name: str, **changes: object) -> dict[str, bytes]:
        return dict(tdx_registers(fake_bundle(tmp_path / name, **changes), None))  # type: ignore[arg-type]  # a table

    honest = registers("honest")
    changes = {
        "ovmf": {"mrtd"},
        "kernel": {"rtmr1", "rtmr2"},
        "initrd": {"rtmr1", "rtmr2"},
        "root_hash": {"rtmr1", "rtmr2"},
        "stub": {"rtmr1"},
        "seabios": set(),
    }
    for name, expected in changes.items():
        value = bytes(32) if name == "root_hash" else b"other"
        changed = registers(name, **{name: value})
        assert {register for register in honest if changed[register] != honest[register]} == expected, name


def test_firmware_of_the_image_is_its_two_files(tmp_path: Path) -> None:
    bundle = fake_bundle(tmp_path)
    assert tdx_registers(bundle, tdx_firmware(bundle)) == tdx_registers(bundle, None)
    assert tdx_registers(bundle, fake_firmware())["mrtd"] == mrtd(fake_firmware())
    with pytest.raises(FormatRefused, match=r"imagetool\.tdx\.firmware"):
        tdx_registers(bundle, b"no firmware")


def test_the_image_has_no_firmware_for_snp(tmp_path: Path) -> None:
    bundle = fake_bundle(tmp_path)
    with pytest.raises(Refused) as caught:
        snp_digests(bundle, None, vcpus=[1])
    assert caught.value.code == "imagetool.snp.no_firmware" and "--ovmf" in caught.value.hint
    assert set(snp_digests(bundle, fake_firmware(), vcpus=[1, 3])) == {1, 3}
