"""Fake firmware, PE images, pod-VM images and reports: small, but with every structure that predictions read.

Nothing here boots. Layouts: the table of GUIDs at the end of an OVMF file, SEV metadata (OVMF's OvmfSevMetadata), TDX
metadata (TDX Virtual Firmware Design Guide, section 11), an LZMA section with two firmware volumes, PE32+ headers.
"""

from __future__ import annotations

import hashlib
import lzma
import struct
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from cloister.imagetool.measure.pe import append_sections
from cloister.imagetool.podvm import PodVMBundle, default_definition, load_bundle
from cloister.imagetool.podvm import bundle as names
from cloister.imagetool.podvm.definition import FirmwareRule, parse_definition
from cloister.imagetool.podvm.reference import describe
from cloister.oci.dmverity import VerityTree

FOUR_GIB: Final = 1 << 32
PAGE: Final = 4096
FOOTER: Final = "96b582de-1fb2-45f7-baea-a366c55a082d"
SEV_METADATA: Final = "dc886566-984a-4798-a75e-5585a7bf67cc"
SEV_HASH_TABLE: Final = "7255371f-3a3b-4b04-927b-1da6efa8d454"
SEV_RESET: Final = "00f771de-1a7e-4fcb-890e-68c77e2fb44e"
TDX_METADATA: Final = "e47a6535-984a-4798-865e-4685a7bf8ec2"
HASH_TABLE_ADDRESS: Final = 0x810C00
SEV_SECTIONS: Final = ((0x800000, 0x9000, 1), (0x80D000, PAGE, 2), (0x80E000, PAGE, 3), (0x810000, PAGE, 0x10))
_SECTION_ALIGNMENT: Final = 4096
_FILE_ALIGNMENT: Final = 512


def fake_firmware(
    *,
    size: int = 4 * PAGE,
    text: bytes = b"firmware",
    sev_sections: Sequence[tuple[int, int, int]] = SEV_SECTIONS,
    tdx_sections: Sequence[tuple[int, int, int, int, int, int]] | None = None,
    hash_table: int = HASH_TABLE_ADDRESS,
) -> bytes:
    """Return a firmware file with SEV and TDX metadata.

    Args:
        size: of the file.
        text: what it begins with.
        sev_sections: address, size and type of each section; none leaves SEV metadata out.
        tdx_sections: file offset, file size, address, memory size, type, attributes; by default the whole file as
            measured volume and one page of memory; an empty sequence leaves TDX metadata out.
        hash_table: guest address of the table of kernel hashes; 0 leaves it out.
    """
    if tdx_sections is None:
        tdx_sections = ((0, size, FOUR_GIB - size, size, 0, 1), (0, 0, 0x809000, PAGE, 2, 0))
    image = bytearray(text.ljust(size, b"\xff"))
    entries = [(SEV_RESET, (0x80B004).to_bytes(4, "little"))]
    if hash_table:
        entries.append((SEV_HASH_TABLE, struct.pack("<II", hash_table, 0x400)))
    if sev_sections:
        body = b"".join(struct.pack("<III", *section) for section in sev_sections)
        place = size - 2048
        _put(image, place, struct.pack("<4sIII", b"ASEV", 16 + len(body), 1, len(sev_sections)) + body)
        entries.append((SEV_METADATA, (size - place).to_bytes(4, "little")))
    if tdx_sections:
        body = b"".join(struct.pack("<IIQQII", *section) for section in tdx_sections)
        place = size - 1024
        _put(image, place, struct.pack("<4sIII", b"TDVF", 16 + len(body), 1, len(tdx_sections)) + body)
        entries.append((TDX_METADATA, (size - place).to_bytes(4, "little")))
    table = b"".join(data + struct.pack("<H", len(data) + 18) + uuid.UUID(guid).bytes_le for guid, data in entries)
    table += struct.pack("<H", len(table) + 18) + uuid.UUID(FOOTER).bytes_le
    _put(image, size - 32 - len(table), table)
    return bytes(image)


def fake_ovmf(*volumes: bytes) -> bytes:
    """Return what follows OVMF's code file as far as PCR 0 goes: an LZMA section with firmware volumes."""
    sections = b""
    for volume in volumes:
        section = (len(volume) + 4).to_bytes(3, "little") + b"\x17" + volume
        sections += section + bytes(-len(section) % 4)
    packed = lzma.compress(sections, format=lzma.FORMAT_ALONE)
    guid = uuid.UUID("ee4e5898-3914-4259-9d6e-dc7bd79403cf").bytes_le
    return b"head" * 8 + (len(packed) + 24).to_bytes(3, "little") + b"\x02" + guid + struct.pack("<HH", 24, 1) + packed


def fake_pe(*sections: tuple[str, bytes]) -> bytes:
    """Return a minimal PE32+ image."""
    headers = 1024
    optional = bytearray(240)
    struct.pack_into("<H", optional, 0, 0x20B)
    struct.pack_into("<II", optional, 32, _SECTION_ALIGNMENT, _FILE_ALIGNMENT)
    struct.pack_into("<I", optional, 60, headers)
    struct.pack_into("<I", optional, 108, 16)
    head = bytearray(64)
    head[:2] = b"MZ"
    struct.pack_into("<I", head, 60, 64)
    coff = struct.pack("<HHIIIHH", 0x8664, len(sections), 0, 0, 0, len(optional), 0x22)
    table, body = b"", b""
    for number, (name, data) in enumerate(sections, 1):
        padded = data + bytes(-len(data) % _FILE_ALIGNMENT)
        place = (len(data), number * _SECTION_ALIGNMENT, len(padded), headers + len(body), 0, 0, 0, 0, 0x40000040)
        table += struct.pack("<8sIIIIIIHHI", name.encode(), *place)
        body += padded
    return bytes((bytes(head) + b"PE\0\0" + coff + bytes(optional) + table).ljust(headers, b"\0") + body)


def fake_bundle(
    directory: Path,
    *,
    kernel: bytes = b"kernel",
    initrd: bytes = b"initrd",
    words: str = "console=ttyS0 quiet",
    root_hash: bytes = bytes(range(32)),
    seabios: bytes = b"SeaBIOS",
    ovmf: bytes = b"dxe volume",
    stub: bytes = b"stub",
) -> PodVMBundle:
    """Write a pod-VM image of these parts into `directory`, and return it as loaded from there.

    `kernel`, `ovmf` and `stub` are texts inside files of the right format.
    """
    program = fake_pe((".text", kernel))
    salt = bytes(32)
    cmdline = f"{words} cloister.verity=4508:{root_hash.hex()}:{salt.hex()}"
    uki_stub = fake_pe((".text", stub), (".sbat", b"sbat,1"))
    code = fake_ovmf(b"pei volume", ovmf)
    variables = fake_firmware(text=ovmf)
    made = {
        names.BUSYBOX: b"busybox",
        names.CMDLINE: cmdline.encode(),
        names.KERNEL: program,
        names.INITRD: initrd,
        names.ROOT: b"root",
        names.UKI: append_sections(
            uki_stub, [(".cmdline", cmdline.encode()), (".initrd", initrd), (".linux", program)]
        ),
        names.SEABIOS: seabios,
        names.OPTION_ROM: b"rom",
        names.OVMF_CODE: code + variables,  # TDX loads variables and code; the metadata ends the joined file
        names.OVMF_VARS: bytes(PAGE),
    }
    digest = f"sha256:{hashlib.sha256(made[names.OVMF_CODE]).hexdigest()}"
    definition = parse_definition(default_definition().read_bytes())
    known = (FirmwareRule(digest=digest, version="fake", writes=()),)
    definition = msgspec.structs.replace(definition, uki=msgspec.structs.replace(definition.uki, firmware=known))
    verity = VerityTree(root_hash=root_hash, salt=salt, data_blocks=4508, hashes=b"")
    key = hashlib.sha256(b"".join(made.values())).hexdigest()[:32]
    reference = describe(key, made, definition, cmdline=cmdline, verity=verity)
    for name, data in {**made, names.REFERENCE_FILE: names.encode_json(reference)}.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return load_bundle(directory)


def fake_report(measurement: bytes) -> bytes:
    """Return an SEV-SNP report (version 2) with this measurement, of the right form and signed by nobody."""
    report = bytearray(1184)
    report[0] = 2
    report[8:16] = (1 << 17).to_bytes(8, "little")  # the policy bit that must be one
    report[0x34] = 1  # ECDSA P-384
    report[0x90:0xC0] = measurement
    report[0x2A0] = report[0x2A0 + 72] = 1  # R and S
    return bytes(report)


def _put(image: bytearray, place: int, data: bytes) -> None:
    image[place : place + len(data)] = data
