"""Get items ahead of their use: from the cache while they are fresh, else from the sources in order, checked and kept.

Only callers that prepare use this: the command line, a service's background task. A verifier cannot: it is given
`Endorsements` and nothing that could fetch. Old content stays in the cache when a source fails; what its age means is
the policy's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from cloister.errors import CloisterError, EndorsementError
from cloister.tee.collateral.cache import CollateralCache
from cloister.tee.collateral.content import Content, Entry
from cloister.tee.collateral.item import Item, Kind
from cloister.tee.collateral.recipes import RECIPES
from cloister.tee.collateral.sources import Source
from cloister.tee.collateral.transport import NoSuchItem

# Items that do not say until when they hold, and may be published anew under the same identity: when to look again.
_LOOK_AGAIN: Final = {Kind.RIM: timedelta(days=7), Kind.OCSP: timedelta(days=1)}
CLOCKS_DIFFER: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How getting one item went.

    Attributes:
        item: what was asked for.
        entry: what is had now, perhaps old; None when nothing is.
        fetched: whether it came from a source just now.
        error: why it could not be fetched; None when it was not needed or went well.
    """

    item: Item
    entry: Entry | None
    fetched: bool = False
    error: CloisterError | None = None


class Collector:
    """Keeps a cache filled.

    Args:
        cache: where items are kept.
        sources: asked in this order.
        now: aware time.
    """

    def __init__(self, cache: CollateralCache, sources: Sequence[Source], *, now: Callable[[], datetime]) -> None:
        self._cache = cache
        self._sources = sources
        self._now = now

    def obtain(self, item: Item, *, refresh: bool = False) -> Outcome:
        """Return what is had of `item`, after fetching it when that is needed.

        Args:
            item: its identity.
            refresh: fetch also what is fresh, and what the vendor lately said it does not have.
        """
        began = self._now()
        known = self._cache.get(item)
        if known is not None and known.fresh(began) and not refresh:
            return Outcome(item=item, entry=known)
        if not refresh and self._cache.is_absent(item, began):
            error = NoSuchItem(
                "collateral.fetch.absent", "the vendor has no such item, as of minutes ago", path=item.label
            )
            return Outcome(item=item, entry=known, error=error)
        failure: CloisterError | None = None
        for source in self._sources:
            try:
                return self._fetch(item, source, known)
            except CloisterError as err:
                if failure is None or isinstance(failure, NoSuchItem):  # that one lacks it says the least
                    failure = err
        if isinstance(failure, NoSuchItem):
            self._cache.put_absent(item, began)
        return Outcome(item=item, entry=known, error=failure)

    def obtain_all(self, items: Sequence[Item], *, refresh: bool = False) -> Iterator[Outcome]:
        """Return the outcome of each of `items`, as it is known."""
        for item in dict.fromkeys(items):
            yield self.obtain(item, refresh=refresh)

    def due(self) -> tuple[Item, ...]:
        """Return the items of the cache that have used up half of their time, most urgent first."""
        at = self._now()
        waiting = [
            (entry.due, entry.item)
            for entry in self._cache.entries()
            if isinstance(entry, Entry) and entry.due is not None and entry.due <= at
        ]
        return tuple(item for _, item in sorted(waiting, key=lambda pair: (pair[0], pair[1].text)))

    def prefetch(self) -> Iterator[Outcome]:
        """Fetch what is due."""
        return self.obtain_all(self.due(), refresh=True)

    def _fetch(self, item: Item, source: Source, known: Entry | None) -> Outcome:
        with source.open(item) as read:
            other = self._cache.get(item)
            if other is not None and other != known and other.fresh(self._now()):
                return Outcome(item=item, entry=other)  # somebody else fetched it while this one waited for its turn
            answer = read()
            data, chain = RECIPES[item.kind].unwrap(item, answer)
            entry = checked_entry(item, data, chain, fetched=self._now(), origin=answer.origin)
            self._cache.put(entry)  # before the next one's turn
        return Outcome(item=item, entry=entry, fetched=True)


def checked_entry(item: Item, data: bytes, chain: str, *, fetched: datetime, origin: str) -> Entry:
    """Return the entry for what was had, after checking that it is of use and is for `item`.

    Raises:
        EndorsementError: it is for something else, malformed, already stale when it was had, or of the future
            (`collateral.answer.*`).
    """
    content = RECIPES[item.kind].inspect(item, data, chain)
    if content.issued is not None and content.issued > fetched + CLOCKS_DIFFER:
        raise EndorsementError(
            "collateral.answer.future",
            "answer is of the future",
            path=item.label,
            expected=f"issued before {fetched.isoformat(timespec='seconds')}",
            actual=content.issued.isoformat(timespec="seconds"),
            hint="compare this machine's clock",
        )
    if content.expires is not None and content.expires <= fetched:
        raise EndorsementError(
            "collateral.answer.stale",
            "answer was past its next update already when it came",
            path=item.label,
            expected=f"after {fetched.isoformat(timespec='seconds')}",
            actual=content.expires.isoformat(timespec="seconds"),
            hint="a mirror or cache on the way is behind; ask the vendor itself",
        )
    return Entry(item=item, content=_dated(item, content, fetched), fetched=fetched, origin=origin)


def _dated(item: Item, content: Content, fetched: datetime) -> Content:
    if content.expires is None and item.kind in _LOOK_AGAIN:
        return replace(content, expires=fetched + _LOOK_AGAIN[item.kind])
    return content
