"""The release log's tree, texts and messages: proofs against RFC 6962's own words, parsers over anything."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import Refused
from cloister.tlog import entry, tiles
from cloister.tlog.checkpoint import parse_checkpoint
from cloister.tlog.merkle import leaf_hash, verify_consistency, verify_inclusion
from cloister.tlog.note import parse_note, parse_signatures
from cloister.tlog.receipt import encode_receipt, parse_receipt
from cloister.tlog.tiles import Tile, encode_entries, parse_entries, parse_tile_path
from cloister.tlog.tree import Node, Read, consistency_ranges, hash_of, inclusion_ranges, nodes_for, nodes_of
from cloister.tlog.witness import encode_request, parse_request
from tlog_world import MemoryLog, World, mth, path, proof

SIZES = range(1, 41)
LOG = MemoryLog().fill(70)
LEAVES = [leaf_hash(item) for item in LOG.entries]
NOTE = LOG.checkpoint().encode()


def reader(held: dict[Node, bytes]) -> Read:
    return lambda level, at: held[level, at]


@pytest.mark.parametrize("size", SIZES)
def test_proofs_are_those_of_the_definition(size: int) -> None:
    root = mth(LEAVES[:size])
    for index in range(size):
        made = LOG.inclusion(index, size)
        assert made == path(index, LEAVES[:size])
        verify_inclusion(LEAVES[index], index, size, made, root)
    for old in range(size + 1):
        made = LOG.consistency(old, size)
        assert made == (proof(old, LEAVES[:size]) if old else [])
        verify_consistency(old, size, made, mth(LEAVES[:old]), root)


@pytest.mark.parametrize("size", SIZES)
def test_a_compact_range_has_the_root_of_the_definition(size: int) -> None:
    log = MemoryLog().fill(size)
    assert log.tree.root() == mth(LEAVES[:size])
    assert dict(log.tree.nodes()) == {node: log.nodes[node] for node in nodes_of((0, size))}


@given(st.integers(1, 70), st.data())
def test_no_other_place_size_leaf_or_root_verifies(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    good: list[Any] = [LEAVES[index], index, size, LOG.inclusion(index, size), mth(LEAVES[:size])]
    verify_inclusion(*good)
    changed = data.draw(st.integers(0, 4))
    if changed in (0, 4):
        good[changed] = leaf_hash(b"other")
    elif changed == 1:
        good[1] = data.draw(st.integers(0, size).filter(lambda other: other != index))
    elif changed == 2:
        # A tree whose proof for this index has another shape; some sizes share it and the root decides.
        good[2] = size + 2 ** len(good[3])
    else:
        hashes = list(good[3])
        good[3] = data.draw(st.sampled_from([[*hashes, LEAVES[0]], hashes[:-1] if hashes else [LEAVES[1]]]))
    with pytest.raises(Refused, match=r"tlog\.proof"):
        verify_inclusion(*good)


@given(st.integers(2, 70), st.data())
def test_no_fork_is_consistent(size: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, size - 1))
    edited = data.draw(st.integers(0, old - 1))
    fork = MemoryLog()
    for index, item in enumerate(LOG.entries[:size]):
        fork.add(b"edited" if index == edited else item)
    with pytest.raises(Refused, match=r"tlog\.proof\.consistency"):
        verify_consistency(old, size, fork.consistency(old, size), LOG.root(old), fork.root())
    with pytest.raises(Refused, match=r"tlog\.proof\.consistency"):
        verify_consistency(size, old, [], LOG.root(size), LOG.root(old))


@given(st.integers(0, 300), st.integers(0, 300))
def test_nodes_of_a_range_cover_it_once(low: int, length: int) -> None:
    covered = [
        place for level, index in nodes_of((low, low + length)) for place in range(index << level, (index + 1) << level)
    ]
    assert covered == list(range(low, low + length))


@given(st.integers(1, 70), st.data())
def test_everything_that_a_proof_reads_is_named_before(size: int, data: st.DataObject) -> None:
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size))
    for ranges in (inclusion_ranges(index, size), consistency_ranges(old, size)):
        held = {node: LOG.nodes[node] for node in nodes_for(ranges)}
        for wanted in ranges:
            assert hash_of(wanted, reader(held)) == mth(LEAVES[slice(*wanted)])


@given(st.one_of(st.just(tiles.ENTRIES), st.integers(0, 6)), st.integers(0, 2**40), st.integers(1, 256))
def test_addresses_of_tiles_go_both_ways(level: int, index: int, width: int) -> None:
    tile = Tile(level=level, index=index, width=width)
    assert parse_tile_path(tile.path()) == tile


@given(st.text("tile/entris0123456789x.p/", max_size=40))
def test_an_address_has_one_form(text: str) -> None:
    with contextlib.suppress(Refused):
        assert parse_tile_path(text).path() == text


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=20), st.data())
def test_bundles_go_both_ways_and_no_cut_passes(items: list[bytes], data: st.DataObject) -> None:
    tile = Tile(level=tiles.ENTRIES, index=0, width=len(items))
    bundle = encode_entries(items)
    assert parse_entries(tile, bundle) == items
    for other in (bundle[: data.draw(st.integers(0, len(bundle) - 1))], bundle + b"\x00"):
        with pytest.raises(Refused, match=r"tlog\.tile"):
            parse_entries(tile, other)


@given(st.one_of(st.text(), st.text("— example.com/log2AB=\n ", max_size=200), st.sampled_from(NOTE.split("\n"))))
@settings(max_examples=300)
def test_texts_are_parsed_or_refused(text: str) -> None:
    for parse in (parse_note, parse_checkpoint, parse_signatures, parse_receipt, parse_tile_path):
        with contextlib.suppress(Refused):
            parse(text)
    with contextlib.suppress(Refused):
        assert parse_note(text).encode() == text


@given(st.one_of(st.binary(max_size=400), st.text(max_size=200).map(str.encode)))
def test_bytes_are_parsed_or_refused(data: bytes) -> None:
    for parse in (parse_request, entry.parse_leaf):
        with contextlib.suppress(Refused):
            parse(data)


@given(st.integers(0, len(NOTE) - 1), st.characters(exclude_categories=("Cs",)))
def test_a_changed_note_is_parsed_or_refused_and_written_as_it_was(place: int, mark: str) -> None:
    text = NOTE[:place] + mark + NOTE[place + 1 :]
    with contextlib.suppress(Refused):
        assert parse_note(text).encode() == text


@given(st.integers(0, 2**53 - 1), st.lists(st.binary(min_size=32, max_size=32), max_size=63))
def test_requests_go_both_ways(old: int, hashes: list[bytes]) -> None:
    request = parse_request(encode_request(old, hashes, NOTE))
    assert (request.old, list(request.proof), request.note.encode()) == (old, hashes, NOTE)


FIELDS = st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,39}", fullmatch=True), st.text(max_size=60), min_size=1)


@given(FIELDS, st.binary(min_size=32, max_size=32), st.sampled_from(entry.KINDS))
def test_entries_open_to_what_they_were_made_of(fields: dict[str, str], salt: bytes, kind: str) -> None:
    try:
        data = entry.encode_leaf(kind, "2026-11-26T19:06:53.000000Z", salt, fields)
    except Refused as err:
        assert err.code == "tlog.entry.malformed"
        return
    leaf = entry.parse_leaf(data)
    for name, value in fields.items():
        entry.open_field(leaf, name, entry.field_salt(salt, name), value)
        with pytest.raises(Refused, match=r"tlog\.entry\.opening"):
            entry.open_field(leaf, name, entry.field_salt(salt, name), value + "x")
        with pytest.raises(Refused, match=r"tlog\.entry\.opening"):
            entry.open_field(leaf, name, entry.field_salt(salt, name + "x"), value)


def test_receipts_go_both_ways_and_no_flipped_character_is_another_receipt() -> None:
    world = World()
    receipt = world.receipt({"resource": "a/b/c"}, world.release({"resource": "a/b/c"}))
    text = encode_receipt(receipt)
    assert parse_receipt(text) == receipt
    for place in range(0, len(text), 7):
        other = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
        with contextlib.suppress(Refused):
            assert parse_receipt(other) != receipt or msgspec.json.encode(receipt) != other.encode()
