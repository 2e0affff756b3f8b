"""Things made ahead of their use: reading beside encrypting beside writing, the next layer's MAC beside this layer's
files.

Every `made_ahead` is a stage. Stages that compute share one thread for each processor, that of their user among them:
who needs a thing that is not there makes it himself, or, while another makes it, makes what that one will need next.
So no processor is idle while there is work, and no thread of this process waits for another to get off a processor:
three threads on two processors take a third more time for the same work. Where there is one processor there is no
other thread. A stage that waits for others, as for what arrives from the network, has a thread of its own, so that it
keeps nobody from computing.

At most a few things wait in a stage. An error of the maker is raised where the thing after the last good one would
come; a user that stops early ends the maker, and whoever ends, by an error too, ends the stages it took from: they do
not wait until nobody holds the error's traceback any more. Order and content are the maker's own: nothing here looks
at them.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from functools import cache
from typing import Any, Final, TypeVar

from cloister.wire.limits import BLOB_PIECE_BYTES, MIB

AHEAD_CHUNKS: Final = 2
_KEPT_BYTES: Final = 31 * MIB
_Made = TypeVar("_Made")


def made_ahead(
    things: Iterable[_Made], *, most: int = AHEAD_CHUNKS, waits: bool = False
) -> Generator[_Made, None, None]:
    """Yield `things`, which are made on other threads; up to `most` of them wait.

    Args:
        things: made one after the other, never by two threads at once.
        most: how many may wait for their use.
        waits: making them means to wait for somebody else, not to compute.
    """
    return _CREW.ahead(things, most=most, waits=waits)


def pieces_ahead(pieces: Iterable[bytes], *, size: int = BLOB_PIECE_BYTES) -> Iterator[bytes]:
    """Yield `pieces`, short ones, made ahead as `made_ahead` does; about `size` bytes are handed over at once."""
    for group in made_ahead(_grouped(pieces, size)):
        yield from group


def _grouped(pieces: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """Yield pieces in groups of about `size`. Those before an error are not yielded: nobody needs them."""
    group: list[bytes] = []
    held = 0
    for piece in pieces:
        group.append(piece)
        held += len(piece)
        if held >= size:
            yield group
            group, held = [], 0
    if group:
        yield group


class _Stage:
    """What is made, what of it waits, and which stages it was seen to take from."""

    __slots__ = ("ended", "error", "given", "made", "most", "own", "running", "sources", "things", "user")

    def __init__(self, things: Iterator[Any], most: int, *, own: bool, user: int) -> None:
        self.things = things
        self.user = user
        self.made: deque[Any] = deque()
        self.most = most
        self.own = own
        self.running = False
        self.ended = False
        self.given = 0
        self.error: BaseException | None = None
        self.sources: set[_Stage] = set()

    @property
    def has_room(self) -> bool:
        return not (self.running or self.ended) and len(self.made) < self.most

    @property
    def is_ready(self) -> bool:
        """Whether a thing can be made without waiting for another stage, as far as is known."""
        return self.has_room and not self.own and all(source.made or source.ended for source in self.sources)


class Crew:
    """The stages of a process and those who work on them.

    Nobody waits in a circle: a thread that waits for a stage helps only with what that stage takes from, directly or
    not, and what it holds up itself takes from the stage it waits for.

    Args:
        processors: how many threads compute at once, those that use what is made among them.
    """

    def __init__(self, processors: int) -> None:
        self._processors = processors
        self._changed = threading.Condition()
        self._stages: list[_Stage] = []  # whoever asked first is nearest to the end, as a stage asks for its source
        self._helpers = self._helping = 0
        self._users: Counter[int] = Counter()  # threads that take what is made and make nothing for others
        self._local = threading.local()

    def ahead(self, things: Iterable[_Made], *, most: int, waits: bool = False) -> Generator[_Made, None, None]:
        """Yield `things`; see `made_ahead`."""
        user = 0 if self._is_at_work() else threading.get_ident()
        stage = _Stage(iter(things), most, own=waits, user=user)
        maker = threading.Thread(target=self._make, args=(stage,), name="ahead", daemon=True) if waits else None
        with self._changed:
            self._stages.append(stage)
            self._users[user] += 1
        if maker is not None:
            maker.start()
        try:
            while self._wait_made(stage):
                yield stage.made.popleft()  # nobody else takes from it
                stage.given += 1
            error, stage.error = stage.error, None
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # it holds this frame
        finally:
            idle = self._leave(stage)
            if maker is not None:
                maker.join()
            for one in (stage, *idle):
                close = getattr(one.things, "close", None)
                if close is not None:
                    close()

    def _wait_made(self, stage: _Stage) -> bool:
        """Return whether a thing is there, made here if nobody else makes it; false behind the last one."""
        user = self._local_stage()
        with self._changed:
            if user is not None:
                user.sources.add(stage)
            if stage.given == 2:  # one or two things need no help
                _keep_freed_memory()
                if self._helpers < self._processors - 1:
                    self._helpers += 1
                    threading.Thread(target=self._help, name="ahead", daemon=True).start()
            self._changed.notify_all()  # the one taken before left room
            while not (stage.made or stage.ended):
                mine = self._next_for(stage)
                if mine is None:
                    self._changed.wait()
                else:
                    self._step(mine)
            return bool(stage.made)

    def _next_for(self, stage: _Stage) -> _Stage | None:
        """Return what to make for whoever waits for `stage`, nearest first: it itself, or what it takes from."""
        seen = {stage}
        queue = deque(seen)
        while queue:
            candidate = queue.popleft()
            if candidate.is_ready:
                return candidate
            fresh = candidate.sources - seen
            seen |= fresh
            queue.extend(fresh)
        return stage if stage.has_room and not stage.own else None

    def _step(self, stage: _Stage) -> None:
        """Make one thing. Called and left with the lock, which is given back meanwhile."""
        stage.running = True
        before = self._local_stage()
        self._local.stage = stage
        self._changed.release()
        try:
            thing = next(stage.things)
        except StopIteration:
            ended, error = True, None
        except BaseException as err:  # noqa: BLE001  # handed to the user
            ended, error = True, err
        else:
            ended, error = False, None
        finally:
            self._local.stage = before
            self._changed.acquire()
            stage.running = False
        if ended:
            stage.ended, stage.error = True, error
        else:
            stage.made.append(thing)
        self._changed.notify_all()

    def _is_at_work(self) -> bool:
        """Whether this thread helps, or makes something that somebody waits for."""
        return self._local_stage() is not None or getattr(self._local, "helps", False)

    def _local_stage(self) -> _Stage | None:
        """Return the stage that this thread makes something for."""
        stage: _Stage | None = getattr(self._local, "stage", None)
        return stage

    def _help(self) -> None:
        """Work until there is no stage."""
        self._local.helps = True
        with self._changed:
            while self._stages:
                stage = next((item for item in tuple(self._stages) if item.is_ready), None)
                if stage is None or self._is_full:
                    self._changed.wait()
                    continue
                self._helping += 1
                self._step(stage)
                self._helping -= 1
            self._helpers -= 1
            self._changed.notify_all()

    def _make(self, stage: _Stage) -> None:
        """Work on one stage that has its own thread."""
        with self._changed:
            while not stage.ended:
                if stage.has_room:
                    self._step(stage)
                else:
                    self._changed.wait()

    @property
    def _is_full(self) -> bool:
        """Whether there is no processor for a helper, as so many use what is made."""
        users = len(self._users) - (0 in self._users)
        return users + self._helping >= self._processors

    def _leave(self, stage: _Stage) -> list[_Stage]:
        """Have nobody work on a stage any more, and wait for who does; return which others can be closed.

        What it took from ends as well. Nobody waits for those: one that is at work may wait for the network.
        """
        with self._changed:
            ended = self._end(stage)
            self._users += Counter()  # drops who uses nothing
            self._changed.notify_all()
            while stage.running:
                self._changed.wait()
            ended += [source for late in stage.sources for source in self._end(late)]
            idle = [one for one in ended if one is not stage and not one.running]
            for one in (stage, *idle):
                one.made.clear()
                one.sources.clear()
            while self._helpers and not self._stages and not self._is_at_work():
                self._changed.wait()
            return idle

    def _end(self, stage: _Stage) -> list[_Stage]:
        """End a stage and what it takes from; return those that had not ended so before."""
        if stage not in self._stages:
            return []
        stage.ended = True
        self._stages.remove(stage)
        self._users[stage.user] -= 1
        return [stage, *(below for source in stage.sources for below in self._end(source))]


@cache
def _keep_freed_memory() -> None:
    """Have the C library keep what a chunk leaves free for the next one.

    Otherwise it returns it to the kernel and faults it in anew for every chunk, a tenth of the time that encrypting
    takes. glibc raises both of its thresholds when a block of up to 32 MiB that it had mapped is freed (mallopt(3),
    M_MMAP_THRESHOLD); this one is never touched, so it costs two system calls, once. Elsewhere it means nothing.
    """
    bytes(_KEPT_BYTES)


_CREW: Final = Crew(len(os.sched_getaffinity(0)))
