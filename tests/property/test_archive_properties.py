"""Layers that nobody thought of: nothing but the tree changes, and what we make of them others make too."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.tools import require_tool
from fuzz.mutate import mutate
from hostile_archives import CASES, attribute
from unit.oci.builders import archive, directory, file, gnu, hard_link, header, pax, symlink
from unpacking import Arena, ReaderFailed, differences, gnu_tar, remove, require_root, tree_of, umoci_unpack

pytestmark = pytest.mark.tool
EXAMPLES = 250
EACH = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))

PARTS = st.sampled_from([b"a", b"b", b"d", b"link", b"folder", b"file", b"etc", b"n" * 60])
ODD = st.sampled_from([b"..", b".", b"", b"secret", b"\xff", b"e\xcc\x81"])
WHITEOUTS = st.sampled_from([b".wh.a", b".wh.d", b".wh.link", b".wh.file", b".wh..wh..opq", b".wh."])


def paths(last: st.SearchStrategy[bytes], odd: bool) -> st.SearchStrategy[bytes]:
    above = st.lists(PARTS | ODD if odd else PARTS, max_size=4 if odd else 2)
    return st.tuples(above, last).map(lambda pair: b"/".join([*pair[0], pair[1]]))


CLEAN, ANY = paths(PARTS, odd=False), paths(PARTS | ODD, odd=True)
TARGETS = st.sampled_from(
    [b"..", b"../folder", b"/folder", b"/", b"d", b"a/b", b"/d", b"../d", b"link", b"/etc/passwd"]
)
DETAILS = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.integers(0, 0o7777),
        "uid": st.integers(0, 70_000),
        "gid": st.integers(0, 70_000),
        "mtime": st.integers(0, 1_700_000_000),
        "magic": st.sampled_from([b"ustar\x0000", b"ustar  \0", bytes(8)]),
    },
)


def entries(names: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    content = st.binary(max_size=600)
    short = names.map(lambda name: name[:100])
    return st.one_of(
        st.builds(lambda name, body, details: file(name, body, **details), short, content, DETAILS),
        st.builds(lambda name, details: directory(name, **details), short, DETAILS),
        st.builds(
            lambda name, target, details: symlink(name, target[:100], **details), short, TARGETS | names, DETAILS
        ),
        st.builds(lambda name, target: hard_link(name, target[:100]), short, names | TARGETS),
        st.builds(lambda name, details: header(name, kind=b"6", **details), short, DETAILS),
        st.builds(lambda name, body: pax([(b"path", name), (b"mtime", b"1.5")]) + file(b"x", body), names, content),
        st.builds(lambda name, body: gnu(b"L", name) + file(b"x", body, magic=b"ustar  \0"), names, content),
        st.builds(lambda name: attribute(b"user.note") + file(name), short),
    )


HOSTILE = st.lists(st.lists(entries(ANY | paths(WHITEOUTS, odd=True)), max_size=8), min_size=1, max_size=3)
PLAUSIBLE = st.lists(entries(CLEAN), min_size=1, max_size=6)
STACKS = st.lists(
    st.lists(
        st.one_of(entries(CLEAN), st.builds(lambda name: file(name[:100]), paths(WHITEOUTS, odd=False))),
        min_size=1,
        max_size=5,
    ),
    min_size=2,
    max_size=3,
)


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    require_root()
    with Arena(tmp_path_factory.mktemp("property") / "arena", memory_mib=512) as made:
        yield made


def test_nothing_but_the_tree_changes(arena: Arena) -> None:
    seen: Counter[str] = Counter()

    @EACH
    @given(layers=HOSTILE)
    def unpack(layers: list[list[bytes]]) -> None:
        seen[arena.unpack([archive(*members) for members in layers]).code] += 1

    unpack()
    assert seen[""] > EXAMPLES / 20 and len(seen) > 5, seen


def test_changed_cases_of_the_corpus_change_nothing_but_the_tree(arena: Arena) -> None:
    seen: Counter[bool] = Counter()
    names = list(CASES)

    @EACH
    @given(name=st.sampled_from(names), numbers=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=2))
    def unpack(name: str, numbers: list[int]) -> None:
        layers = list(CASES[name].layers)
        for number in numbers:
            layers[number % len(layers)] = mutate(layers[number % len(layers)], number)
        seen[bool(arena.unpack(layers).code)] += 1

    unpack()
    assert seen[True] > EXAMPLES / 10


def test_gnu_tar_makes_the_same_tree_of_one_layer(arena: Arena, tmp_path: Path) -> None:
    compared, number = Counter[str](), itertools.count()

    @EACH
    @given(members=PLAUSIBLE)
    def compare(members: list[bytes]) -> None:
        layer = archive(*members)
        if arena.unpack([layer]).code:
            compared["refused"] += 1
            return
        place = tmp_path / str(next(number))
        try:
            found = differences(tree_of(arena.root), gnu_tar(place, [layer]))
        except ReaderFailed as err:
            assert "Cannot" in str(err) or "nknown" in str(err), err  # a link to nothing is in the way
            compared["failed"] += 1
            return
        finally:
            remove(place)
        assert found == []
        compared["same"] += 1

    compare()
    assert compared["same"] > EXAMPLES / 5, compared
    assert compared["failed"] < EXAMPLES / 5, compared


def test_umoci_makes_the_same_tree_of_several_layers(arena: Arena, tmp_path: Path) -> None:
    umoci = require_tool("umoci")
    compared, number = Counter[str](), itertools.count()

    @EACH
    @given(layers=STACKS)
    def compare(layers: list[list[bytes]]) -> None:
        archives = [archive(*members) for members in layers]
        if arena.unpack(archives).code:
            compared["refused"] += 1
            return
        place = tmp_path / str(next(number))
        try:
            found = differences(tree_of(arena.root), umoci_unpack(umoci, place, archives))
        except ReaderFailed:
            compared["failed"] += 1
            return
        finally:
            remove(place)
        assert found == []
        compared["same"] += 1

    compare()
    assert compared["same"] > EXAMPLES / 10, compared
