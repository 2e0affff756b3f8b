"""Formats of the pod-VM image written or read by own code: against independent programs, and against damage."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import lzma
import os
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloister.errors import CloisterError, FormatRefused, Refused
from cloister.imagetool.measure.authenticode import authenticode_sha256
from cloister.imagetool.measure.ovmf import MemoryWrite, firmware_digests
from cloister.imagetool.measure.pe import append_sections, parse_pe, section_content
from cloister.imagetool.measure.uki import uki_registers
from cloister.imagetool.podvm import build_bare_initrd
from cloister.imagetool.podvm.contents import check_read_ahead
from cloister.imagetool.podvm.cpio import write_cpio
from cloister.imagetool.podvm.elf import needed_libraries
from cloister.imagetool.podvm.elf import section_content as elf_section
from cloister.imagetool.podvm.initrd import build_initrd
from cloister.imagetool.podvm.kmod import Module, ModuleSet
from cloister.imagetool.podvm.lock import HEADER, LockedPackage, encode_lock, parse_lock
from cloister.imagetool.podvm.tree import Kind, Node, Tree
from cloister.oci.dmverity import BLOCK_BYTES, build_verity_tree

ANY_BYTES = st.binary(max_size=400)
PACKAGE = LockedPackage(name="a-1", version="1:2.3-4+b1~x", architecture="amd64", size=12, sha256="0" * 64)


def refusal(call: Callable[..., object], *arguments: object) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        call(*arguments)
    return caught.value


# -- lock


def test_lock_round_trip() -> None:
    other = LockedPackage(name="bc", version="1", architecture="all", size=1, sha256="f" * 64)
    assert parse_lock(encode_lock([other, PACKAGE])) == (PACKAGE, other)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "version"),
        (HEADER.replace("lock 1", "lock 2") + "\n", "version"),
        (HEADER + "\n", "empty"),
        (HEADER + "\naa 1 amd64 1 " + "0" * 64, "malformed"),
        (HEADER + "\naa 1 amd64 1 " + "0" * 63 + "\n", "malformed"),
        (HEADER + "\naa 1 amd64 1 " + "A" * 64 + "\n", "malformed"),
        (HEADER + "\naa 1 arm64 1 " + "0" * 64 + "\n", "malformed"),
        (HEADER + "\naa 1 amd64 0 " + "0" * 64 + "\n", "malformed"),
        (HEADER + "\n../a 1 amd64 1 " + "0" * 64 + "\n", "malformed"),
        (HEADER + "\naa  1 amd64 1 " + "0" * 64 + "\n", "malformed"),
        (HEADER + "\naa 1 amd64 1 " + "0" * 64 + "\n\n", "malformed"),
        (HEADER + "\nü 1 amd64 1 " + "0" * 64 + "\n", "malformed"),
        (HEADER + ("\naa 1 amd64 1 " + "0" * 64) * 2 + "\n", "order"),
        (HEADER + "\n" + " " * 1024 * 1024, "too_long"),
    ],
)
def test_lock_refusals(text: str, code: str) -> None:
    assert refusal(parse_lock, text.encode()).code == f"imagetool.lock.{code}"


@given(ANY_BYTES)
def test_lock_survives_any_bytes(data: bytes) -> None:
    with contextlib.suppress(FormatRefused):
        assert encode_lock(parse_lock(data)) == data


# -- tree


@pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a/."])
def test_tree_takes_clean_paths_only(path: str) -> None:
    assert refusal(Tree().add_file, path, b"").code == "imagetool.tree.path"


def test_tree_refuses_two_things_at_one_path() -> None:
    tree = Tree()
    tree.add_file("a/b", b"1")
    tree.add_file("a/b", b"1")  # the same again is no conflict
    for change in (
        lambda: tree.add_file("a/b", b"2"),
        lambda: tree.add_file("a/b", b"1", 0o755),
        lambda: tree.add_link("a/b", "c"),
        lambda: tree.add_file("a/b/c", b""),
        lambda: tree.add_file("a", b""),
    ):
        assert refusal(change).code == "imagetool.tree.conflict"
    tree.add_link("l", "/etc")
    assert refusal(tree.add_file, "l/passwd", b"").code == "imagetool.tree.conflict"


def test_a_directory_comes_before_its_content() -> None:
    tree = Tree()
    for path in ("a-b", "a/c", "a.d", "a/b/c"):
        tree.add_file(path, b"")
    assert [path for path, _ in tree] == ["a", "a/b", "a/b/c", "a/c", "a-b", "a.d"]


def sample_tree() -> Tree:
    tree = Tree()
    tree.add_file("bin/run", b"#!/bin/sh\n", 0o755)
    tree.add_file("etc/odd-length", b"12345")
    tree.add_file("etc/empty", b"")
    tree.add_link("bin/sh", "run")
    tree.add_directory("tmp", 0o1777)
    return tree


def test_tar_has_no_trace_of_the_builder() -> None:
    data = sample_tree().to_tar(mtime=1_700_000_000)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = {member.name: member for member in archive}
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members.values()} == {(0, 0, "", "", 1_700_000_000)}
    assert members["tmp"].mode == 0o1777 and members["bin/sh"].linkname == "run"
    assert data == sample_tree().to_tar(mtime=1_700_000_000)


# -- cpio


def test_cpio_is_read_by_another_program(tmp_path: Path, require_tool: Callable[[str], Path]) -> None:
    tree = sample_tree()
    archive = write_cpio(tree, mtime=1_000_000_000)
    busybox = str(require_tool("busybox"))
    subprocess.run([busybox, "cpio", "-idm"], input=archive, cwd=tmp_path, check=True, capture_output=True)
    for path, node in tree:
        made = tmp_path / path
        assert made.is_symlink() == (node.kind is Kind.LINK)
        if node.kind is Kind.FILE:
            assert made.read_bytes() == node.data
            assert made.stat().st_mode & 0o7777 == node.mode
            assert made.stat().st_mtime == 1_000_000_000
    assert os.readlink(tmp_path / "bin/sh") == "run"
    assert archive == write_cpio(tree, mtime=1_000_000_000)


def test_cpio_holds_a_device_without_privilege() -> None:
    tree = Tree()
    tree.add("dev/console", Node(kind=Kind.CHARACTER_DEVICE, mode=0o600, device=(5, 1)))
    header = write_cpio(tree, mtime=0).split(b"070701")[2]
    fields = [int(header[start : start + 8], 16) for start in range(0, 13 * 8, 8)]
    assert fields[1] == 0o020600 and fields[9:11] == [5, 1]


def test_the_bare_initrd_says_its_line() -> None:
    image = build_bare_initrd(b"busybox", line="up it is")
    assert b"up it is" in image and b"dev/console" in image and len(image) % 4 == 0


# -- dm-verity


@pytest.mark.parametrize("blocks", [2, 128, 129, 128 * 128 + 1])
def test_verity_is_what_veritysetup_verifies(tmp_path: Path, require_tool: Callable[[str], Path], blocks: int) -> None:
    data = b"".join(number.to_bytes(8, "big") * (BLOCK_BYTES // 8) for number in range(blocks))
    salt = bytes(range(32))
    tree = build_verity_tree(data, salt=salt)
    (tmp_path / "image").write_bytes(data + tree.hashes)
    command = [
        *(str(require_tool("veritysetup")), "verify", "--no-superblock", "--hash=sha256"),
        *("--data-block-size=4096", "--hash-block-size=4096", f"--data-blocks={blocks}"),
        *(f"--salt={salt.hex()}", f"--hash-offset={len(data)}"),
        *(str(tmp_path / "image"), str(tmp_path / "image")),
    ]
    assert subprocess.run([*command, tree.root_hash.hex()], capture_output=True).returncode == 0
    with (tmp_path / "image").open("r+b") as image:
        image.seek(len(data) - 1)
        image.write(b"!")
    assert subprocess.run([*command, tree.root_hash.hex()], capture_output=True).returncode != 0
    assert tree.kernel_argument() == f"{blocks}:{tree.root_hash.hex()}:{salt.hex()}"


@pytest.mark.parametrize("data", [b"", b"x", bytes(4097)])
def test_verity_takes_whole_blocks(data: bytes) -> None:
    with pytest.raises(Refused, match=r"oci\.verity\.size"):
        build_verity_tree(data, salt=bytes(32))


# -- ELF and kernel modules


def elf(sections: dict[str, bytes]) -> bytes:
    """Return a minimal ELF-64 file with these sections and a name table."""
    names = b"\0"
    content, table = bytearray(64), [bytes(64)]
    for name, data in [*sections.items(), (".shstrtab", b"")]:
        start = len(names)
        names += name.encode() + b"\0"
        data = data or names
        kind = 6 if name == ".dynamic" else 3 if name.endswith("strtab") or name == ".dynstr" else 1
        link = list(sections).index(".dynstr") + 1 if name == ".dynamic" else 0
        table.append(struct.pack("<IIQQQQIIQQ", start, kind, 0, 0, len(content), len(data), link, 0, 1, 0))
        content += data
    shape = (2, 1, 1, 0, 1, 62, 1, 0, 0, len(content), 0, 64, 0, 0, 64, len(table), len(table) - 1)
    content[:64] = struct.pack("<4sBBBB8xHHIQQQIHHHHHH", b"\x7fELF", *shape)
    return bytes(content) + b"".join(table)


DYNAMIC = struct.pack("<qQqQqQqQ", 1, 1, 14, 9, 0, 0, 1, 1)
ELF = elf({".modinfo": b"depends=a-b,c\0x=1\0", ".dynstr": b"\0libx.so.1\0", ".dynamic": DYNAMIC})


def test_elf_tells_libraries_and_sections() -> None:
    assert needed_libraries(ELF) == ("libx.so.1",)  # what follows DT_NULL is not read
    assert elf_section(ELF, ".modinfo") == b"depends=a-b,c\0x=1\0"
    assert needed_libraries(elf({".text": b"code"})) == ()
    assert refusal(elf_section, ELF, ".none").code == "imagetool.elf.malformed"


def test_elf_cut_anywhere_is_refused() -> None:
    for end in range(len(ELF)):
        assert refusal(needed_libraries, ELF[:end]).code == "imagetool.elf.malformed"


@given(st.integers(0, len(ELF) - 1), st.integers(0, 7))
def test_elf_survives_a_flipped_bit(at: int, bit: int) -> None:
    damaged = bytearray(ELF)
    damaged[at] ^= 1 << bit
    for read in (needed_libraries, lambda data: elf_section(data, ".modinfo")):
        try:
            read(bytes(damaged))
        except FormatRefused as err:
            assert err.code == "imagetool.elf.malformed"


def module(depends: str) -> bytes:
    return lzma.compress(elf({".modinfo": f"depends={depends}\0".encode()}))


def test_modules_come_after_what_they_need() -> None:
    files = {"l/a-b.ko.xz": module("c,d"), "l/c.ko.xz": module("d,built-in"), "l/d.ko.xz": module("")}
    modules = ModuleSet(files, ["kernel/built_in.ko"])
    assert [item.name for item in modules.in_load_order(["a_b", "d"])] == ["d", "c", "a_b"]
    assert modules.in_load_order(["built_in"]) == []


def test_modules_that_cannot_be_loaded_are_refused() -> None:
    files = {
        "x.ko.xz": module("y"),
        "y.ko.xz": module("x"),
        "bad.ko.xz": b"no xz",
        "cut.ko.xz": module("")[:-8],
        "lost.ko.xz": module("gone"),
    }
    modules = ModuleSet(files, [])
    for name, code in (("x", "circle"), ("gone", "unknown"), ("bad", "malformed"), ("cut", "malformed")):
        assert refusal(modules.in_load_order, [name]).code == f"imagetool.kmod.{code}"
    assert refusal(modules.in_load_order, ["lost"]).path == "gone"


SIGNATURE_MARK = b"~Module signature appended~\n"


def signed(size: int, said: int) -> bytes:
    """A module behind which a signature of `size` bytes stands, and a trailer that says it has `said`."""
    content = elf({".modinfo": b"depends=\0"})
    return lzma.compress(content + bytes(size) + bytes(8) + said.to_bytes(4, "big") + SIGNATURE_MARK)


def test_a_module_s_signature_is_stripped_and_nothing_else() -> None:
    plain = elf({".modinfo": b"depends=\0"})
    (module_,) = ModuleSet({"x.ko.xz": signed(700, 700)}, []).in_load_order(["x"])
    assert module_.data == plain
    assert (
        refusal(ModuleSet({"x.ko.xz": signed(7, 1 << 31)}, []).in_load_order, ["x"]).code == "imagetool.kmod.malformed"
    )


def test_read_ahead_names_files_of_the_image_only() -> None:
    """Else the list would go stale without a word, and the start slow."""
    definition: Any = SimpleNamespace(guest=SimpleNamespace(read_ahead=SimpleNamespace(path="list")))

    def root(text: str) -> Tree:
        tree = Tree()
        tree.add_file("usr/bin/python", b"x")
        tree.add_link("usr/bin/link", "python")
        tree.add_file("list", text.encode())
        return tree

    check_read_ahead(root("/usr/bin/python\n/usr/bin/link\n"), definition)
    for text in ("/usr/bin/gone\n", "/usr/bin\n", "\n", "/usr/bin/python\n../x\n"):
        assert refusal(check_read_ahead, root(text), definition).code == "imagetool.contents.read_ahead"


def test_the_initrd_names_each_module_s_predecessors_and_the_last_of_each_list() -> None:
    tree = Tree()
    early, late = ([Module(name=name, data=name.encode()) for name in names] for names in (("a", "b"), ("c",)))
    build_initrd(tree, "6.1-x", early, late, mtime=0)
    folder = "usr/lib/modules"
    assert tree.nodes[f"{folder}/6.1-x/modules.dep"].data == b"a.ko:\nb.ko: a.ko\nc.ko: b.ko a.ko\n"
    assert (tree.nodes[f"{folder}/early"].data, tree.nodes[f"{folder}/late"].data) == (b"b\n", b"c\n")


# -- PE, Authenticode, unified kernel image

FILE_ALIGNMENT = 512
SECTION_ALIGNMENT = 4096


def pe(*sections: tuple[str, bytes], headers: int = 1024) -> bytes:
    """Return a minimal PE32+ image."""
    optional = bytearray(240)
    struct.pack_into("<H", optional, 0, 0x20B)
    struct.pack_into("<II", optional, 32, SECTION_ALIGNMENT, FILE_ALIGNMENT)
    struct.pack_into("<I", optional, 60, headers)
    struct.pack_into("<I", optional, 108, 16)
    head = bytearray(64)
    head[:2] = b"MZ"
    struct.pack_into("<I", head, 60, 64)
    coff = struct.pack("<HHIIIHH", 0x8664, len(sections), 0, 0, 0, len(optional), 0x22)
    table, body = b"", b""
    for number, (name, data) in enumerate(sections, 1):
        padded = data + bytes(-len(data) % FILE_ALIGNMENT)
        place = (len(data), number * SECTION_ALIGNMENT, len(padded), headers + len(body), 0, 0, 0, 0, 0x40000040)
        table += struct.pack("<8sIIIIIIHHI", name.encode(), *place)
        body += padded
    return (bytes(head) + b"PE\0\0" + coff + bytes(optional) + table).ljust(headers, b"\0") + body


STUB = pe((".text", b"code" * 100), (".sbat", b"sbat,1"))


def test_sections_are_appended_and_read_back() -> None:
    uki = append_sections(STUB, [(".cmdline", b"quiet"), (".initrd", b"i" * 700), (".linux", STUB)])
    assert [section.name for section in parse_pe(uki).sections] == [".text", ".sbat", ".cmdline", ".initrd", ".linux"]
    assert section_content(uki, ".cmdline") == b"quiet"
    assert section_content(uki, ".initrd") == b"i" * 700
    assert section_content(uki, ".linux") == STUB
    assert section_content(uki, ".text") == b"code" * 100
    ends = [(s.memory_offset, s.memory_offset + s.memory_bytes) for s in parse_pe(uki).sections]
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))
    assert all(start % SECTION_ALIGNMENT == 0 for start, _ in ends)


def test_sections_that_do_not_fit_are_refused() -> None:
    full = pe(*[(f".s{number}", b"x") for number in range(17)])
    for image, added in ((full, [(".a", b"")]), (STUB, [("", b"")]), (STUB, [(".too-long", b"")])):
        assert refusal(append_sections, image, added).code == "imagetool.pe.malformed"
    signed = bytearray(STUB)
    struct.pack_into("<II", signed, parse_pe(STUB).certificate_entry_offset, len(STUB), 8)
    assert refusal(append_sections, bytes(signed) + b"signature", []).code == "imagetool.pe.malformed"


@pytest.mark.parametrize("alignment", [0, 64 * 1024 + 1, 0xFFFFFFFF])
def test_a_file_alignment_that_would_fill_memory_is_refused(alignment: int) -> None:
    changed = bytearray(STUB)
    struct.pack_into("<I", changed, 124, 64 * 1024)
    assert section_content(append_sections(bytes(changed), [(".a", b"b")]), ".a") == b"b"
    struct.pack_into("<I", changed, 124, alignment)
    assert refusal(parse_pe, bytes(changed)).code == "imagetool.pe.malformed"


def test_authenticode_leaves_out_what_the_standard_says() -> None:
    digest = authenticode_sha256(STUB)
    image = parse_pe(STUB)
    left_out = {*range(image.checksum_offset, image.checksum_offset + 4)}
    left_out |= {*range(image.certificate_entry_offset, image.certificate_entry_offset + 8)}
    expected = hashlib.sha256(bytes(value for at, value in enumerate(STUB) if at not in left_out)).digest()
    assert digest == expected
    for at in range(0, len(STUB), 7):
        changed = bytearray(STUB)
        changed[at] ^= 1
        try:
            same = authenticode_sha256(bytes(changed)) == digest
        except FormatRefused:
            continue
        assert same == (at in left_out)


@example(at=127, value=0xFF)  # an alignment that would pad a section to gigabytes
@example(at=123, value=0x80)  # an alignment with which the end does not fit 32 bits
@given(st.integers(0, 1023), st.integers(0, 255))
def test_pe_survives_damage(at: int, value: int) -> None:
    changed = bytearray(STUB)
    changed[at] = value
    for read in (parse_pe, authenticode_sha256, uki_registers, lambda data: append_sections(data, [(".a", b"b")])):
        try:
            read(bytes(changed))
        except FormatRefused as err:
            assert err.code.startswith("imagetool.")


@given(ANY_BYTES)
def test_pe_survives_any_bytes(data: bytes) -> None:
    for damaged in (data, b"MZ" + data, STUB[: len(data)]):
        with pytest.raises(FormatRefused):
            parse_pe(damaged)


def test_uki_registers_depend_on_each_part() -> None:
    def registers(cmdline: bytes = b"quiet", initrd: bytes = b"i", kernel: bytes = STUB) -> dict[str, bytes]:
        return dict(
            uki_registers(append_sections(STUB, [(".cmdline", cmdline), (".initrd", initrd), (".linux", kernel)]))
        )

    def changed(**parts: bytes) -> set[str]:
        return {name for name, value in registers(**parts).items() if value != registers()[name]}

    assert set(registers()) == {"pcr04", "pcr09", "pcr11", "pcr12"}
    assert registers()["pcr12"] == bytes(32)
    assert changed(cmdline=b"loud") == {"pcr04", "pcr09", "pcr11"}
    assert changed(initrd=b"j") == {"pcr04", "pcr09", "pcr11"}
    assert changed(kernel=pe((".text", b"other"))) == {"pcr04", "pcr11"}


@pytest.mark.parametrize("name", [".osrel", ".ucode", ".dtb", ".pcrsig", ".profile"])
def test_a_section_that_is_not_predicted_is_refused(name: str) -> None:
    sections = [(".cmdline", b"a"), (".initrd", b"b"), (".linux", STUB), (name, b"c")]
    error = refusal(uki_registers, append_sections(STUB, sections))
    assert (error.code, error.path) == ("imagetool.measure.section", name)


# -- OVMF


def ovmf(*volumes: bytes) -> bytes:
    sections = b""
    for volume in volumes:
        section = (len(volume) + 4).to_bytes(3, "little") + b"\x17" + volume
        sections += section + bytes(-len(section) % 4)
    packed = lzma.compress(sections, format=lzma.FORMAT_ALONE)
    guid = bytes.fromhex("98584eee143959429d6edc7bd79403cf")
    return b"head" * 8 + (len(packed) + 24).to_bytes(3, "little") + b"\x02" + guid + struct.pack("<HH", 24, 1) + packed


def test_ovmf_events_are_those_of_its_volumes() -> None:
    code = ovmf(b"pei volume", b"the dxe volume")
    digests = firmware_digests(code, version="v1", writes=[MemoryWrite(offset=1, data=b"EI")])
    events = ("v1\0".encode("utf-16-le"), b"pEI volume", b"the dxe volume", bytes(4))
    assert digests == tuple(hashlib.sha256(event).digest() for event in events)


@pytest.mark.parametrize(
    ("code", "offset"),
    [(b"", 0), (ovmf(b"one"), 0), (ovmf(b"1", b"2", b"3"), 0), (ovmf(b"pei", b"dxe"), 2), (ovmf(b"pei", b"dxe"), -1)],
)
def test_ovmf_that_cannot_be_predicted_is_refused(code: bytes, offset: int) -> None:
    with pytest.raises(FormatRefused, match=r"imagetool\.measure\.firmware"):
        firmware_digests(code, version="v", writes=[MemoryWrite(offset=offset, data=b"xx")])


@given(st.integers(0, 200), st.integers(0, 255))
def test_ovmf_survives_damage(at: int, value: int) -> None:
    code = bytearray(ovmf(b"pei", b"dxe"))
    code[min(at, len(code) - 1)] = value
    for damaged in (bytes(code), bytes(code[:at])):
        try:
            firmware_digests(damaged, version="v", writes=[])
        except FormatRefused as err:
            assert err.code == "imagetool.measure.firmware"
