"""Hostile layers, let loose where every change is seen: each ends in its refusal or in the tree other readers make."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adversary.expect import require_fix
from conformance.tools import require_tool
from hostile_archives import CASES, Case
from unit.oci.builders import BLOCK, END, archive, directory, file, hard_link, header, pax, symlink
from unpacking import Arena, ReaderFailed, differences, gnu_tar, require_root, tree_of, umoci_unpack

pytestmark = pytest.mark.tool
SECONDS, MEMORY_MIB = 20, 512


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    require_root()
    with Arena(tmp_path_factory.mktemp("hostile") / "arena", memory_mib=MEMORY_MIB) as made:
        yield made


@pytest.mark.parametrize("name", CASES)
def test_hostile_layers_change_nothing_but_the_tree(arena: Arena, name: str) -> None:
    case = CASES[name]
    outcome = arena.unpack(case.layers)
    assert outcome.code == (f"oci.layer.{case.code}" if case.code else "")
    if case.code:
        require_fix(outcome.code)


UNPACKED = [name for name, case in CASES.items() if not case.code]


def same_as_gnu_tar(arena: Arena, place: Path, case: Case) -> None:
    assert arena.unpack(case.layers).code == ""
    try:
        found = differences(tree_of(arena.root), gnu_tar(place, case.layers))
    except ReaderFailed as err:
        found = [str(err)]
    assert bool(found) is bool(case.gnu), found


@pytest.mark.parametrize("name", [name for name in UNPACKED if not any(b".wh." in one for one in CASES[name].layers)])
def test_gnu_tar_makes_the_same_tree(arena: Arena, tmp_path: Path, name: str) -> None:
    same_as_gnu_tar(arena, tmp_path / "gnu", CASES[name])


@pytest.mark.parametrize("name", UNPACKED)
def test_umoci_makes_the_same_tree(arena: Arena, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    assert arena.unpack(case.layers).code == ""
    try:
        found = differences(tree_of(arena.root), umoci_unpack(require_tool("umoci"), tmp_path / "umoci", case.layers))
    except ReaderFailed as err:
        found = [str(err)]
    assert bool(found) is bool(case.umoci), found


def test_a_difference_between_two_trees_is_seen(arena: Arena, tmp_path: Path) -> None:
    """The comparison itself can fail, in every respect."""
    base = {"mode": 0o644, "uid": 1, "gid": 1, "mtime": 5}
    changes = [{"mode": 0o645}, {"uid": 2}, {"gid": 2}, {"mtime": 6}]
    arena.unpack([archive(file(b"f", b"1", **base), hard_link(b"h", b"f"), symlink(b"l", b"f"))])
    ours = tree_of(arena.root)
    others = [
        *(
            archive(file(b"f", b"1", **{**base, **change}), hard_link(b"h", b"f"), symlink(b"l", b"f"))
            for change in changes
        ),
        archive(file(b"f", b"2", **base), hard_link(b"h", b"f"), symlink(b"l", b"f")),
        archive(file(b"f", b"1", **base), file(b"h", b"1", **base), symlink(b"l", b"f")),
        archive(file(b"f", b"1", **base), hard_link(b"h", b"f"), symlink(b"l", b"h")),
        archive(file(b"f", b"1", **base), hard_link(b"h", b"f"), header(b"l", kind=b"6")),
        archive(file(b"f", b"1", **base), hard_link(b"h", b"f")),
        archive(
            pax([(b"SCHILY.xattr.user.x", b"y")]) + file(b"f", b"1", **base), hard_link(b"h", b"f"), symlink(b"l", b"f")
        ),
    ]
    for number, other in enumerate(others):
        assert differences(ours, gnu_tar(tmp_path / str(number), [other])), number


@pytest.mark.parametrize("change", ["content", "mode", "time", "name", "removed", "put back"])
def test_a_change_around_the_tree_is_seen(tmp_path: Path, change: str) -> None:
    require_root()
    with Arena(tmp_path / "arena") as made:
        secret = made.place / "etc" / "passwd"
        restore, before = secret.read_bytes(), made.look()
        {
            "content": lambda: secret.write_text("changed"),
            "mode": lambda: secret.chmod(0o644),
            "time": lambda: secret.touch(),
            "name": lambda: secret.rename(made.place / "elsewhere"),
            "removed": secret.unlink,
            "put back": lambda: secret.write_bytes(restore),
        }[change]()
        assert made.look() != before


# -- limits: a fresh process each, so that its peak of memory is this one's -----------------------------------------


def within_limits(place: Path, layers: list[bytes], code: str = "", **options: int) -> None:
    require_root()
    with Arena(place / "arena", memory_mib=MEMORY_MIB) as made:
        floor = made.unpack([archive(file(b"f"))]).peak_mib
        outcome = made.unpack(layers, **options)
        assert outcome.code == (f"oci.layer.{code}" if code else "")
        assert outcome.seconds < SECONDS
        assert outcome.peak_mib - floor < 200
    shutil.rmtree(place / "arena")


def test_ten_thousand_layers_of_one_file(tmp_path: Path) -> None:
    """The manifest admits 127; the unpacker itself does not slow down or grow with their number."""
    within_limits(tmp_path, [archive(file(b"f", b"%d" % number)) for number in range(10_000)])


def test_no_layer_at_all(arena: Arena) -> None:
    assert arena.unpack([]).code == ""
    assert list(tree_of(arena.root)) == [b""]


def test_thousands_of_entries_and_directories_as_deep_as_may_be(tmp_path: Path) -> None:
    deep = b"/".join([b"d"] * 255)
    many = [file(b"d/%d/f%d" % (number % 50, number)) for number in range(20_000)]
    below = [pax([(b"path", deep + b"/%d" % number)]) + file(b"f") for number in range(2_000)]
    within_limits(tmp_path, [archive(*many, *below), archive(file(b".wh.d"))])


def test_directories_that_nobody_wrote_are_counted(tmp_path: Path) -> None:
    """One entry makes 255 directories: a million would make 255 million."""
    long = b"/".join([b"%015d"] * 255)
    entries = [pax([(b"path", long.replace(b"%015d", b"%015d" % n) + b"/f")]) + file(b"f") for n in range(600)]
    within_limits(tmp_path, [archive(*entries)], "too_many_entries")


def test_hard_link_bombs(tmp_path: Path) -> None:
    """No content is there twice; a file system that takes no more names of one file is told as the image's fault."""
    links = [hard_link(b"h%d" % number, b"f") for number in range(70_000)]
    require_root()
    with Arena(tmp_path / "arena", memory_mib=MEMORY_MIB) as made:
        outcome = made.unpack([archive(file(b"f", b"x" * 4096), *links)])
        assert outcome.code in ("", "oci.layer.too_many_links")
        assert outcome.seconds < SECONDS
        assert (
            made.unpack([archive(file(b"f"), *links[:100])], entries_ceiling=100).code == "oci.layer.too_many_entries"
        )


def test_a_file_of_claimed_size(tmp_path: Path) -> None:
    within_limits(tmp_path, [header(b"big", size=8**11 - 1)], "truncated")
    within_limits(tmp_path, [header(b"big", size=8**11 - 1)], "too_large", bytes_ceiling=1 << 30)
    claims = pax([(b"size", b"%d" % (2**63 - 1))]) + file(b"f")
    within_limits(tmp_path, [claims + END], "too_large")


def test_links_that_lead_through_each_other_end_soon(tmp_path: Path) -> None:
    """Each link's target names the next twice: followed to the end, 2^50 steps."""
    targets = [b"/".join([b"g%d/.." % (n + 1)] * 20) for n in range(50)]
    chain = [pax([(b"linkpath", target)]) + symlink(b"g%d" % n, b"x") for n, target in enumerate(targets)]
    begun = time.monotonic()
    within_limits(tmp_path, [archive(*chain, directory(b"g50"), file(b"g0/x"))], "symlink_loop")
    assert time.monotonic() - begun < SECONDS


def test_headers_without_entries_end_soon(tmp_path: Path) -> None:
    comment = pax([(b"comment", b"x" * 200)], kind=b"g")
    within_limits(tmp_path, [comment * 50_000 + END], "ambiguous_header")
    within_limits(tmp_path, [archive(file(b"f")) + bytes(BLOCK) * 100_000], "trailing_bytes")
