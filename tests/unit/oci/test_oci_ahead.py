"""Things made ahead: the same ones in the same order, errors in their place, nobody at work afterwards, and never
more threads at work than there are processors."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pytest

from cloister.errors import ImageRefused
from cloister.oci.ahead import AHEAD_CHUNKS, Crew, made_ahead, pieces_ahead
from cloister.wire.limits import BLOB_PIECE_BYTES

SECONDS = 30  # no test comes near it unless something waits for ever


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ahead"]


def numbered(count: int, made: list[int] | None = None) -> Iterator[bytes]:
    for number in range(count):
        if made is not None:
            made.append(number)
        yield b"%d" % number


def within_time(run: Callable[[], None]) -> None:
    """Run something on a thread that is given up on when it hangs."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            run()
        except BaseException as err:  # noqa: BLE001  # raised below
            errors.append(err)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive(), "threads wait for each other"
    if errors:
        raise errors[0]


class Busy:
    """Counts how many stages are at work at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.most = 0
        self.threads: set[int] = set()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.threads.add(threading.get_ident())
        yield
        with self._lock:
            self.now -= 1

    def stage(self, source: Iterable[int], seconds: float) -> Iterator[int]:
        for number in source:
            with self():
                time.sleep(seconds)
            yield number + 1


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 3, AHEAD_CHUNKS, 50])
def test_things_come_in_order(count: int, waits: bool) -> None:
    assert list(made_ahead(numbered(count), waits=waits)) == list(numbered(count))
    assert not workers()


@pytest.mark.parametrize("waits", [False, True])
def test_an_error_comes_behind_the_last_good_thing(waits: bool) -> None:
    def failing() -> Iterator[bytes]:
        yield from numbered(3)
        raise ImageRefused("oci.test", "no more")

    got = []
    with pytest.raises(ImageRefused, match=r"oci\.test"):
        for chunk in made_ahead(failing(), waits=waits):
            got.append(chunk)  # kept up to the error
    assert got == [b"0", b"1", b"2"]
    assert not workers()


@pytest.mark.parametrize("waits", [False, True])
def test_who_stops_early_ends_all_stages(waits: bool) -> None:
    made: list[int] = []
    ended: list[str] = []

    def first() -> Iterator[bytes]:
        try:
            yield from numbered(10_000, made)
        finally:
            ended.append("first")

    def second() -> Iterator[bytes]:
        try:
            yield from made_ahead(first(), waits=waits)
        finally:
            ended.append("second")

    things = made_ahead(second(), waits=waits)
    assert [next(things) for _ in range(5)] == list(numbered(5))
    things.close()
    assert not workers()
    assert sorted(ended) == ["first", "second"]
    count = len(made)
    assert count <= 5 + 2 * (AHEAD_CHUNKS + 2)
    time.sleep(0.01)
    assert len(made) == count


@pytest.mark.parametrize("size", [1, 100_000, BLOB_PIECE_BYTES, 2 * BLOB_PIECE_BYTES])
def test_short_pieces_are_handed_over_together(size: int) -> None:
    pieces = [bytes([number]) * size for number in range(25)]
    assert list(pieces_ahead(pieces)) == pieces
    assert list(pieces_ahead([])) == []

    def failing() -> Iterator[bytes]:
        yield from pieces
        raise ImageRefused("oci.test", "no more")

    with pytest.raises(ImageRefused, match=r"oci\.test"):
        list(pieces_ahead(failing()))
    assert not workers()


def test_memory_is_bounded() -> None:
    made: list[int] = []
    things = made_ahead(numbered(10_000, made))
    for used in range(1, 200):
        next(things)
        assert len(made) <= used + AHEAD_CHUNKS + 2
    things.close()


@pytest.mark.parametrize("processors", [1, 2, 3, 8])
def test_no_more_threads_than_processors(processors: int) -> None:
    crew = Crew(processors)
    busy = Busy()
    things: Iterable[int] = iter(range(30))
    for _ in range(4):
        things = crew.ahead(busy.stage(things, 0.002), most=3)
    assert list(things) == list(range(4, 34))
    assert busy.most == min(processors, 4)
    assert len(busy.threads) <= processors
    assert processors > 1 or busy.threads == {threading.get_ident()}


@pytest.mark.parametrize("processors", [1, 2, 4])
def test_users_count_as_well(processors: int) -> None:
    crew = Crew(processors)
    busy = Busy()

    def one() -> None:
        things: Iterable[int] = iter(range(15))
        for _ in range(3):
            things = crew.ahead(busy.stage(things, 0.002), most=2)
        assert list(things) == list(range(3, 18))

    def run() -> None:
        threads = [threading.Thread(target=one) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    within_time(run)
    assert 3 <= busy.most <= max(3, processors)
    assert not workers()


def test_who_waits_for_others_keeps_nobody_from_computing() -> None:
    crew = Crew(2)
    arrived = threading.Event()

    def arriving() -> Iterator[str]:
        yield "first"
        assert arrived.wait(SECONDS)
        yield "second"

    def run() -> None:
        layers = crew.ahead(arriving(), most=2, waits=True)
        assert next(layers) == "first"
        busy = Busy()
        things = crew.ahead(busy.stage(crew.ahead(busy.stage(range(20), 0.002), most=2), 0.002), most=2)
        assert list(things) == list(range(2, 22))
        assert busy.most == 2
        arrived.set()
        assert list(layers) == ["second"]

    within_time(run)
    assert not workers()


def test_a_stage_may_stop_asking_another() -> None:
    """As for a header: the rest of it waits for its use, and that is not waited for."""
    crew = Crew(2)

    def two() -> Iterator[int]:
        header = crew.ahead(iter(range(100)), most=2)
        yield next(header)
        yield from crew.ahead(iter(range(50)), most=2)
        yield from header

    def run() -> None:
        assert list(crew.ahead(two(), most=2)) == [0, *range(50), *range(1, 100)]

    within_time(run)


def _random_chain(crew: Crew, chance: random.Random, count: int) -> Iterable[int]:
    """Return stages one behind the other: some change nothing, some join, some have their own thread."""

    def joined(source: Iterable[int]) -> Iterator[int]:
        waiting = []
        for number in source:
            waiting.append(number)
            if len(waiting) == 3:
                yield from waiting
                waiting = []
        yield from waiting

    things: Iterable[int] = range(count)
    for _ in range(chance.randint(1, 5)):
        made = joined(things) if chance.random() < 0.5 else iter(things)
        things = crew.ahead(made, most=chance.randint(1, 4), waits=chance.random() < 0.2)
    return things


@pytest.mark.parametrize("processors", [1, 2, 4])
def test_chains_of_all_kinds_at_once(processors: int) -> None:
    crew = Crew(processors)

    def several(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(15):
            count = chance.randint(0, 60)
            things = iter(_random_chain(crew, chance, count))
            wanted = chance.choice([count, chance.randint(0, count)])
            assert [next(things) for _ in range(wanted)] == list(range(wanted))
            if wanted == count:
                assert next(things, None) is None
            things.close()  # type: ignore[attr-defined]  # a generator is what it is

    def run() -> None:
        errors: list[BaseException] = []

        def one(seed: int) -> None:
            try:
                several(seed)
            except BaseException as err:  # noqa: BLE001  # raised below
                errors.append(err)

        threads = [threading.Thread(target=one, args=(seed,), daemon=True) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    within_time(run)
    assert not workers()


@pytest.mark.parametrize("waits", [False, True])
def test_who_keeps_an_error_keeps_no_stage(waits: bool) -> None:
    """Its traceback holds the frames in which the stages are."""

    def fails(things: Iterable[bytes]) -> Iterator[bytes]:
        for number, thing in enumerate(things):
            if number == 20:
                raise ImageRefused("test.refused", "no more of it")
            yield thing

    made: list[int] = []
    below = made_ahead(made_ahead(numbered(1000, made), waits=waits))
    with pytest.raises(ImageRefused) as kept:
        list(made_ahead(fails(below)))
    assert kept.value.code == "test.refused"
    within_time(lambda: [thread.join() for thread in workers()] and None)
    assert len(made) < 1000
    assert list(below) == []
