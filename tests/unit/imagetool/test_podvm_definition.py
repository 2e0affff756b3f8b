"""What goes into the pod-VM image: definition, packages, mirrors, and what machines of an image measure as."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError, FormatRefused, Refused, Unavailable
from cloister.imagetool.measure.pcr import INITIAL, extend, extend_data, replay
from cloister.imagetool.measure.shapes import COMMON_SHAPES, BootParts, Shape, predict, predict_all
from cloister.imagetool.podvm import default_definition
from cloister.imagetool.podvm.archive import check_package_file, debian_mirrors, store_package
from cloister.imagetool.podvm.contents import check_libraries, rule_packages
from cloister.imagetool.podvm.debs import read_package
from cloister.imagetool.podvm.definition import lock_of, matches, parse_definition, select, select_one
from cloister.imagetool.podvm.guestcode import read_guest_source
from cloister.imagetool.podvm.lock import LockedPackage, parse_lock
from cloister.imagetool.podvm.runner import run
from cloister.imagetool.podvm.tree import Kind, Tree
from cloister.protocol.launch import LaunchProfile, digest_text
from unit.imagetool.test_podvm_formats import ELF

DEFINITION = default_definition().read_bytes()


def refusal(call: Callable[..., object], *arguments: object) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        call(*arguments)
    return caught.value


# -- definition


def test_the_definition_and_its_lock_agree() -> None:
    definition = parse_definition(DEFINITION)
    locked = parse_lock(lock_of(default_definition()).read_bytes())
    assert set(rule_packages(definition, locked)) == {rule.name for rule in definition.package}
    assert all(rule.why for rule in definition.package)


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (b"version = 1\n", b"version = 2\n", "version"),
        (b"version = 1\n", b"version = 1\nextra = 1\n", "malformed"),
        (b"version = 1\n", b"version = \n", "malformed"),
        (b'verity_salt = "', b'verity_salt = "zz', "malformed"),
        (b'verity_salt = "', b'verity_salt = "00', "malformed"),
        (b'data = "0806"', b'data = "0"', "malformed"),
    ],
)
def test_definitions_that_are_refused(old: bytes, new: bytes, code: str) -> None:
    assert old in DEFINITION
    assert refusal(parse_definition, DEFINITION.replace(old, new, 1)).code == f"imagetool.definition.{code}"


def test_a_definition_beyond_bounds_or_with_a_rule_twice_is_refused() -> None:
    assert refusal(parse_definition, DEFINITION + b"#" * 256 * 1024).code == "imagetool.definition.too_long"
    again = b'\n[[package]]\nname = "ovmf"\nwhy = "again"\n'
    assert refusal(parse_definition, DEFINITION + again).path == "package"


@given(st.binary(max_size=200))
def test_definition_survives_any_bytes(data: bytes) -> None:
    with pytest.raises(FormatRefused):
        parse_definition(data)


@pytest.mark.parametrize(
    ("pattern", "path", "same"),
    [
        ("usr/*/a", "usr/b/a", True),
        ("usr/*/a", "usr/b/c/a", False),
        ("usr/**/a", "usr/b/c/a", True),
        ("usr/**", "usr/b/c", True),
        ("a.b", "axb", False),
        ("a", "a/b", False),
        ("a", "b/a", False),
        ("a+", "aa", False),
    ],
)
def test_patterns(pattern: str, path: str, same: bool) -> None:
    assert matches(path, pattern) is same


def test_a_pattern_that_matches_nothing_or_too_much_is_refused() -> None:
    paths = ["usr/b", "usr/a", "etc/a"]
    assert select(paths, "usr/*") == ["usr/a", "usr/b"]
    assert refusal(select, paths, "opt/*").code == "imagetool.definition.matches_nothing"
    assert refusal(select_one, paths, "usr/*").code == "imagetool.definition.matches_several"


def test_definition_and_lock_that_differ_are_refused() -> None:
    definition = parse_definition(DEFINITION)
    locked = parse_lock(lock_of(default_definition()).read_bytes())
    foreign = LockedPackage(name="foreign", version="1", architecture="all", size=1, sha256="0" * 64)
    for packages in (locked[1:], (*locked, foreign), (*locked, replace(locked[0], version="2"))):
        assert refusal(rule_packages, definition, packages).code == "imagetool.lock.mismatch"


# -- packages


def debian_package(folder: Path, *members: tarfile.TarInfo) -> Path:
    """Return a package with these members, written as dpkg-deb would (deb(5))."""

    def pack(infos: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:xz", format=tarfile.GNU_FORMAT) as archive:
            for info, data in infos:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return out.getvalue()

    control = pack([(tarfile.TarInfo("./control"), b"Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x\n")])
    data = pack([(info, info.name.encode() if info.isreg() else b"") for info in members])
    package = folder / "x.deb"
    content = b"!<arch>\n"
    for name, part in (("debian-binary", b"2.0\n"), ("control.tar.xz", control), ("data.tar.xz", data)):
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(part):<10}`\n".encode()
        content += header + part + b"\n" * (len(part) % 2)
    package.write_bytes(content)
    return package


def member(name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname = kind, mode, link
    return info


def test_a_package_is_read_without_unpacking(tmp_path: Path, require_tool: Callable[[str], Path]) -> None:
    require_tool("dpkg-deb")
    found = read_package(
        debian_package(
            tmp_path,
            member("./usr/", tarfile.DIRTYPE, 0o755),
            member("./usr/run", mode=0o4711),
            member("./usr/again", tarfile.LNKTYPE, link="./usr/run"),
            member("./usr/link", tarfile.SYMTYPE, link="/etc/passwd"),
            member("./usr/data", mode=0o600),
        )
    )
    assert set(found) == {"usr/run", "usr/again", "usr/link", "usr/data"}
    assert found["usr/run"] == found["usr/again"]
    assert (found["usr/run"].mode, found["usr/data"].mode) == (0o755, 0o644)  # no set-uid comes into the image
    assert (found["usr/link"].kind, found["usr/link"].target) == (Kind.LINK, "/etc/passwd")


def test_a_package_with_a_device_is_refused(tmp_path: Path, require_tool: Callable[[str], Path]) -> None:
    require_tool("dpkg-deb")
    assert refusal(read_package, debian_package(tmp_path, member("./dev/x", tarfile.CHRTYPE))).path == "./dev/x"
    (tmp_path / "x.deb").write_bytes(b"no package")
    assert refusal(read_package, tmp_path / "x.deb").code == "imagetool.tool.failed"


def test_only_the_locked_bytes_are_stored(tmp_path: Path) -> None:
    data = b"package"
    locked = LockedPackage(
        name="ab", version="1", architecture="all", size=len(data), sha256=hashlib.sha256(data).hexdigest()
    )
    fresh, stored = tmp_path / "fresh", tmp_path / "stored"
    for other in (b"Package", data + b"x", b""):
        fresh.write_bytes(other)
        assert refusal(store_package, locked, fresh, stored).code == "imagetool.apt.hash_mismatch"
        assert not stored.exists()
    fresh.write_bytes(data)
    store_package(locked, fresh, stored)
    check_package_file(locked, stored)
    assert not fresh.exists() and stored.stat().st_mode & 0o777 == 0o644
    wrong_size = replace(locked, size=8)
    assert refusal(check_package_file, wrong_size, stored).code == "imagetool.apt.hash_mismatch"


def test_mirrors_are_those_of_this_machines_apt() -> None:
    first, second, third = (f"http://{name}.example/{path}" for name, path in (("a", "d"), ("b", "d"), ("a", "s")))
    printed = (
        f"'{first}/dists/bookworm/InRelease' mirror_InRelease 0 \n"
        f"'{second}/dists/bookworm-updates/InRelease' x 0 \n"
        f"'{third}/dists/bookworm-security/InRelease' x 0 \n"
        f"'{second}/dists/main/InRelease' x 0 \n"
    )
    assert debian_mirrors(printed) == (first, third)
    assert debian_mirrors(printed.splitlines()[0]) == (first, "")
    assert refusal(debian_mirrors, printed.splitlines()[3]).code == "imagetool.apt.no_mirror"


def test_every_library_is_in_the_image() -> None:
    tree = Tree()
    tree.add_file("usr/bin/x", ELF)
    tree.add_file("usr/bin/script", b"#!/bin/sh\n")
    error = refusal(check_libraries, "root", tree)
    assert (error.code, error.expected) == ("imagetool.contents.library_missing", "libx.so.1")
    tree.add_link("usr/lib/libx.so.1", "libx.so.1.2")
    check_libraries("root", tree)


def test_the_guests_code_must_be_there_and_bounded(tmp_path: Path) -> None:
    rule = parse_definition(DEFINITION).guest
    assert refusal(read_guest_source, tmp_path, rule).code == "imagetool.guest.no_agent"
    (tmp_path / "guest").mkdir()
    agent = tmp_path / "guest/agent.py"
    agent.write_text("pass\n")
    before = read_guest_source(tmp_path, rule)
    agent.write_text("pass \n")
    assert read_guest_source(tmp_path, rule).digest() != before.digest()
    agent.write_bytes(b"#" * (1024 * 1024 + 1))
    assert refusal(read_guest_source, tmp_path, rule).code == "imagetool.guest.too_long"


# -- running other programs


def test_a_program_gets_a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("LANG", "de_DE")
    names = {line.partition(b"=")[0] for line in run(["env"], seconds=10).splitlines()}
    assert {b"PATH", b"LC_ALL", b"HOME", b"TZ"} <= names
    assert not names & {b"SECRET", b"LANG", b"LD_PRELOAD", b"PYTHONPATH"}


def test_programs_that_fail_are_told_with_their_last_words() -> None:
    assert refusal(lambda: run(["/no/such"], seconds=1)).code == "imagetool.tool.missing"
    assert refusal(lambda: run(["sleep", "9"], seconds=0)).code == "imagetool.tool.timeout"
    error = refusal(lambda: run(["sh", "-c", "echo why >&2; exit 3"], seconds=10))
    assert error.code == "imagetool.tool.failed" and "gave 3: why" in error.message
    assert isinstance(error, Unavailable)
    assert "sh -c 'echo why" in error.hint
    assert subprocess.run(error.hint.partition(": ")[2], shell=True, capture_output=True).returncode == 3  # noqa: S602


# -- registers


def digest(name: str) -> str:
    return digest_text(name.encode())


PARTS = BootParts(
    seabios=digest("seabios"),
    option_roms={"rom.bin": digest("rom")},
    kernel=digest("kernel"),
    initrd=digest("initrd"),
    cmdline="quiet",
    ovmf_code=digest("ovmf"),
    uki=digest("uki"),
    uki_registers={"pcr04": b"4" * 32, "pcr09": b"9" * 32, "pcr11": b"b" * 32},
    ovmf_digests=(b"1" * 32, b"2" * 32),
)
SHAPE = Shape(vcpus=2, memory_mib=512)


def test_every_part_of_a_seabios_launch_is_in_its_register() -> None:
    honest = predict(PARTS, LaunchProfile.SEABIOS, SHAPE).registers
    assert set(honest) == {"pcr00"}
    other = digest("other")
    for change in (
        replace(PARTS, seabios=other),
        replace(PARTS, option_roms={"rom.bin": other}),
        replace(PARTS, option_roms={}),
        replace(PARTS, kernel=other),
        replace(PARTS, initrd=other),
        replace(PARTS, cmdline="loud"),
    ):
        assert predict(change, LaunchProfile.SEABIOS, SHAPE).registers != honest
    unused = replace(PARTS, ovmf_code=other, uki=other, uki_registers={}, ovmf_digests=())
    assert predict(unused, LaunchProfile.SEABIOS, SHAPE).registers == honest


def test_every_part_of_a_uki_launch_is_in_its_registers() -> None:
    prediction = predict(PARTS, LaunchProfile.UKI, SHAPE)
    honest = prediction.registers
    assert set(honest) == {"pcr00", "pcr04", "pcr09", "pcr11"}
    assert honest["pcr00"] == replay(PARTS.ovmf_digests, start=prediction.launch.hcrtm_start_value())
    for change in (
        replace(PARTS, ovmf_code=digest("other")),
        replace(PARTS, uki=digest("other")),
        replace(PARTS, ovmf_digests=(b"2" * 32, b"1" * 32)),
    ):
        assert predict(change, LaunchProfile.UKI, SHAPE).registers["pcr00"] != honest["pcr00"]


def test_firmware_that_nobody_knows_has_no_prediction() -> None:
    error = refusal(predict, replace(PARTS, ovmf_digests=()), LaunchProfile.UKI, SHAPE)
    assert (error.code, error.actual) == ("imagetool.measure.firmware_unknown", PARTS.ovmf_code)
    assert isinstance(error, Refused)


def test_no_two_shapes_measure_the_same() -> None:
    predictions = predict_all(PARTS, COMMON_SHAPES)
    assert len(predictions) == 2 * len(COMMON_SHAPES)
    assert len({item.registers["pcr00"] for item in predictions}) == len(predictions)


def test_registers_are_extended_as_a_tpm_does() -> None:
    first = hashlib.sha256(INITIAL + hashlib.sha256(b"event").digest()).digest()
    assert extend_data(INITIAL, b"event") == first
    assert replay([hashlib.sha256(b"event").digest(), b"x" * 32]) == hashlib.sha256(first + b"x" * 32).digest()
    for register, value in ((b"", b"x" * 32), (INITIAL, b"x"), (INITIAL, b"x" * 48)):
        assert refusal(extend, register, value).code == "imagetool.measure.length"
