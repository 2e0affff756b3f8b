"""The cache on disk: whole or absent, the item asked for or none, newer never replaced by older, many at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import EndorsementError, FormatRefused, Unavailable
from cloister.tee.collateral import cache as module
from cloister.tee.collateral.cache import CollateralCache, Damaged, decode_entry, encode_entry
from cloister.tee.collateral.content import Content, Entry, refuse_rollback
from cloister.tee.collateral.item import Item, Kind, make_item

NOW: Final = datetime(2026, 6, 1, tzinfo=UTC)
DAY: Final = timedelta(days=1)
CRL: Final = make_item(Kind.PCK_CRL, ca="platform")
OTHER: Final = make_item(Kind.PCK_CRL, ca="processor")


def turin(fmc: str) -> Item:
    fields = {"product": "Turin", "hwid": "00" * 8, "bootloader": "1", "tee": "1", "snp": "1", "microcode": "1"}
    return make_item(Kind.VCEK, fmc=fmc, **fields)


def entry(
    item: Item = CRL, data: bytes = b"data", *, issued: datetime | None = NOW, sequence: int | None = None
) -> Entry:
    content = Content(data=data, chain="chain\n", issued=issued, expires=NOW + 30 * DAY, sequence=sequence)
    return Entry(item=item, content=content, fetched=NOW, origin="example")


@pytest.fixture
def cache(tmp_path: Path) -> CollateralCache:
    return CollateralCache(tmp_path / "cache")


def path_of(cache: CollateralCache, item: Item) -> Path:
    return cache.directory / item.kind.value / item.key


def test_what_is_put_is_got(cache: CollateralCache) -> None:
    assert cache.get(CRL) is None
    assert list(cache.entries()) == []
    cache.put(entry())
    assert cache.get(CRL) == entry()
    assert cache.get(OTHER) is None
    assert list(CollateralCache(cache.directory.parent).entries()) == [entry()]


def test_two_turin_tcbs_do_not_share_a_slot(cache: CollateralCache) -> None:
    for fmc in ("0", "1"):
        cache.put(entry(turin(fmc), fmc.encode()))
    assert [cache.get(turin(fmc)).content.data for fmc in ("0", "1")] == [b"0", b"1"]  # type: ignore[union-attr]  # both are there
    assert cache.get(turin("2")) is None


def test_a_file_under_another_items_name_is_no_hit(cache: CollateralCache) -> None:
    cache.put(entry())
    path_of(cache, CRL).rename(path_of(cache, OTHER))
    assert cache.get(OTHER) is None
    found = list(cache.entries())
    assert found == [Damaged(path_of(cache, OTHER), "it is another item's")]


@pytest.mark.parametrize("place", [0, 63, 64, 70, 200, -1])
def test_a_flipped_bit_is_no_hit_and_no_error(cache: CollateralCache, place: int) -> None:
    cache.put(entry())
    path = path_of(cache, CRL)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert cache.get(CRL) is None
    assert isinstance(next(cache.entries()), Damaged)
    assert cache.remove_damaged() == 1
    assert list(cache.entries()) == []
    cache.put(entry())
    assert cache.get(CRL) == entry()


def test_every_truncation_is_no_hit(cache: CollateralCache) -> None:
    cache.put(entry())
    path = path_of(cache, CRL)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert cache.get(CRL) is None


def test_damage_is_replaced_by_the_next_put(cache: CollateralCache) -> None:
    cache.put(entry())
    path_of(cache, CRL).write_bytes(b"")
    cache.put(entry(data=b"new"))
    assert cache.get(CRL) == entry(data=b"new")


def test_older_never_replaces_newer(cache: CollateralCache) -> None:
    cache.put(entry(sequence=7))
    for older in (entry(sequence=6), entry(issued=NOW - DAY), entry(issued=NOW - DAY, sequence=6)):
        with pytest.raises(EndorsementError) as caught:
            cache.put(older)
        assert caught.value.code == "collateral.answer.rollback"
        assert cache.get(CRL) == entry(sequence=7)
    # The number decides where both have one: Intel reissues the same evaluation with a later date, and a CA may date
    # a list back.
    cache.put(entry(issued=NOW - DAY, sequence=8))
    cache.put(entry(issued=NOW + DAY, sequence=8))
    cache.remove(CRL)
    cache.put(entry(sequence=1))


def test_undated_content_is_never_older() -> None:
    undated = Content(data=b"")
    refuse_rollback(CRL, undated, undated)
    refuse_rollback(CRL, undated, replace(undated, issued=NOW, sequence=1))
    refuse_rollback(CRL, replace(undated, issued=NOW, sequence=1), undated)


def test_absence_is_remembered_for_minutes(cache: CollateralCache) -> None:
    assert not cache.is_absent(CRL, NOW)
    cache.put_absent(CRL, NOW)
    assert cache.is_absent(CRL, NOW)
    assert cache.is_absent(CRL, NOW + timedelta(minutes=9))
    assert not cache.is_absent(CRL, NOW + timedelta(minutes=10))
    assert not cache.is_absent(CRL, NOW - DAY)  # a clock that was set back
    assert not cache.is_absent(OTHER, NOW)
    assert list(cache.entries()) == []


def test_absence_does_not_hide_what_is_had(cache: CollateralCache) -> None:
    cache.put(entry())
    cache.put_absent(CRL, NOW)
    assert cache.get(CRL) == entry()
    cache.put(entry())
    assert not cache.is_absent(CRL, NOW)
    cache.put_absent(CRL, NOW)
    assert cache.remove(CRL)
    assert not cache.is_absent(CRL, NOW)
    assert not cache.remove(CRL)


@pytest.mark.parametrize("note", [b"", b"x", b"2026-06-01T00:00:00", b"\xff"])
def test_a_damaged_note_of_absence_is_none(cache: CollateralCache, note: bytes) -> None:
    cache.put_absent(CRL, NOW)
    path_of(cache, CRL).with_suffix(".absent").write_bytes(note)
    assert not cache.is_absent(CRL, NOW)


def test_a_crash_before_the_rename_leaves_the_old(cache: CollateralCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.put(entry())

    def crash(self: Path, *_: object, **__: object) -> Path:
        raise KeyboardInterrupt  # nothing of ours goes on after it, like after a death

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        patch.setattr(Path, "unlink", crash)
        with pytest.raises(KeyboardInterrupt):
            cache.put(entry(data=b"new"))
    left = list((cache.directory / "new").iterdir())
    assert len(left) == 1  # what a dead writer leaves is beside the items, under no item's name
    assert cache.get(CRL) == entry()
    assert list(cache.entries()) == [entry()]
    old = time.time() - 2 * 24 * 3600
    os.utime(left[0], (old, old))
    cache.put(entry(data=b"new"))
    assert cache.get(CRL) == entry(data=b"new")
    assert list((cache.directory / "new").iterdir()) == []


def test_a_full_disk_leaves_the_old_and_no_rest(cache: CollateralCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.put(entry())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(Unavailable) as caught:
        cache.put(entry(data=b"new"))
    assert caught.value.code == "collateral.cache.unwritable"
    assert cache.get(CRL) == entry()
    assert list((cache.directory / "new").iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = CollateralCache(tmp_path / "file")
    assert cache.get(CRL) is None
    with pytest.raises(Unavailable):
        cache.put(entry())


def _put_many(directory: Path, mark: int, count: int) -> None:
    cache = CollateralCache(directory)
    for number in range(count):
        body = bytes([mark]) * (1000 + number)
        cache.put(entry(data=body, sequence=number))
        found = cache.get(CRL)
        if found is None or len(set(found.content.data)) != 1:
            os._exit(1)


def _put_many_ignoring_rollbacks(directory: Path, mark: int) -> None:
    cache = CollateralCache(directory)
    for number in range(1, 60):
        try:
            cache.put(entry(data=bytes([mark]) * 5000, sequence=number))
        except EndorsementError:
            continue


def test_two_processes_write_and_readers_see_whole_entries(cache: CollateralCache) -> None:
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=_put_many_ignoring_rollbacks, args=(cache.directory.parent, mark)) for mark in (1, 2)
    ]
    for writer in writers:
        writer.start()
    highest = 0
    while any(writer.is_alive() for writer in writers):
        found = cache.get(CRL)
        if found is not None:
            assert found.content.data in (b"\1" * 5000, b"\2" * 5000)
            assert found.content.sequence is not None
            assert found.content.sequence >= highest  # it never goes back
            highest = found.content.sequence
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert highest <= 59
    found = cache.get(CRL)
    assert found is not None
    assert found.content.sequence == 59
    assert list((cache.directory / "new").iterdir()) == []


def test_a_killed_writer_leaves_no_half_entry_and_no_lock(cache: CollateralCache) -> None:
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        writer = context.Process(target=_put_many, args=(cache.directory.parent, 7, 100_000))
        writer.start()
        time.sleep(0.05)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        found = cache.get(CRL)
        assert found is None or set(found.content.data) == {7}
        assert not any(isinstance(item, Damaged) for item in cache.entries())
        cache.remove(CRL)
        cache.put(entry())
        cache.remove(CRL)


def test_threads_of_one_process_wait_for_each_other(cache: CollateralCache) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda mark: _put_many_ignoring_rollbacks(cache.directory.parent, mark), range(4)))
    assert len(list(cache.entries())) == 1


def test_private(cache: CollateralCache) -> None:
    cache.put(entry())
    assert path_of(cache, CRL).parent.stat().st_mode & 0o077 == 0


def test_half_life_and_age() -> None:
    made = entry()
    assert made.due == NOW + 15 * DAY
    assert made.fresh(NOW + 30 * DAY - timedelta(seconds=1))
    assert not made.fresh(NOW + 30 * DAY)
    assert made.age(NOW + DAY) == DAY
    for_ever = replace(made, content=replace(made.content, expires=None))
    assert for_ever.due is None
    assert for_ever.fresh(NOW + 10_000 * DAY)
    nearly_over = replace(made, fetched=NOW + 30 * DAY - timedelta(minutes=2))
    assert nearly_over.due == nearly_over.fetched + timedelta(hours=1)  # not every minute


@given(st.binary(max_size=300), st.text(max_size=40), st.booleans())
def test_entries_survive_their_file(data: bytes, chain: str, dated: bool) -> None:
    content = Content(data=data, chain=chain, issued=NOW if dated else None, expires=None, sequence=None)
    made = Entry(item=CRL, content=content, fetched=NOW, origin=chain)
    assert decode_entry(encode_entry(made)) == made


@given(st.binary(max_size=300))
def test_any_bytes_are_only_ever_damaged(data: bytes) -> None:
    whole = encode_entry(entry())
    head = whole.split(b"\n")[1]
    for candidate in (data, whole[:64] + data, _resealed(data), _resealed(head[:-1] + data), _resealed(head + data)):
        try:
            found = decode_entry(candidate)
        except FormatRefused:
            continue
        assert candidate == _resealed(head + data)
        assert found.content.data == data[1:]


def _resealed(rest: bytes) -> bytes:
    return module.sha256(rest).hexdigest().encode() + b"\n" + rest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"fetched":"2026-06-01T00:00:00Z"', b'"fetched":"2026-06-01T00:00:00"'),
        (b'"fetched":"2026-06-01T00:00:00Z"', b'"fetched":1'),
        (b'"sequence":null', b'"sequence":null,"more":1'),
        (b"pck-crl ca=platform", b"pck-crl ca=other"),
        (b"pck-crl ca=platform", b"pck-crl ca=\xff"),
        (b'"sequence":null', b'"sequence":null,"more":' + b"[" * 20_000 + b"]" * 20_000),
    ],
)
def test_a_head_of_another_form_is_damage(old: bytes, new: bytes) -> None:
    rest = encode_entry(entry()).partition(b"\n")[2]
    assert old in rest
    with pytest.raises(FormatRefused):
        decode_entry(_resealed(rest.replace(old, new)))
