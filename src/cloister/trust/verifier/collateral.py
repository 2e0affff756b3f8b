"""What vendors publish about platforms, as the service has it: read from the cache on disk, never fetched.

`cloister collateral fetch` fills the cache, in another process and ahead of time; this one looks for the items that a
piece of evidence will be judged by, and hands over whatever is had, however old: the verifier says what is stale, the
policy's grace decides. What is not had is named, with the command that gets it. A request costs one look at each file;
a file is read again only when it was replaced.

Nothing here is trusted: every item is verified under pinned or configured roots by the technology's verifier. Nor is
what the evidence says it needs, which is read before anything of it is verified: a lie makes the right item be absent.
"""

from __future__ import annotations

import shlex
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from cloister.crypto.x509path import load_certificate
from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.rats.endorsement import Document, TrustedRoot
from cloister.rats.evidence import Evidence
from cloister.tee.registry import WITHOUT_COLLATERAL

if TYPE_CHECKING:
    from cloister.tee.collateral.cache import CollateralCache
    from cloister.tee.collateral.content import Entry
    from cloister.tee.collateral.item import Item
    from cloister.tee.collateral.load import Loaded

SUBDIRECTORY: Final = "collateral"  # as the command line names it below `CLOISTER_CACHE`
_ENTRIES_KEPT: Final = 1024  # certificates of chips, mostly
_SETS_KEPT: Final = 128
_NAMED: Final = 48  # items of one machine that a message names: twelve devices, two manifests and two chains each
_CERTIFICATES: Final = frozenset({"vcek", "amd-chain"})

_Stamp = tuple[int, int, int] | None
_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """What is had for one piece of evidence; the first three fields are those of `Endorsements`.

    Attributes:
        certificates: DER.
        revocation_lists: DER.
        documents: DCAP collateral, manifests, OCSP responses.
        items: all that the evidence will be judged by, as far as it says.
        missing: those that are not had.
        loaded: the same with ages; None where the technology needs nothing.
    """

    certificates: tuple[bytes, ...] = ()
    revocation_lists: tuple[bytes, ...] = ()
    documents: tuple[Document, ...] = ()
    items: tuple[Item, ...] = ()
    missing: tuple[Item, ...] = ()
    loaded: Loaded | None = field(default=None, repr=False)

    @property
    def lacks_certificates(self) -> bool:
        """Whether a certificate is not had that a chain may need: a chain that ends nowhere then proves nothing."""
        return any(item.kind.value in _CERTIFICATES for item in self.missing)

    def wanting(self, at: datetime) -> tuple[Item, ...]:
        """Return the items that are not had or stale."""
        stale = [entry.item for entry in self.loaded.stale(at)] if self.loaded is not None else []
        return tuple(dict.fromkeys((*self.missing, *stale)))


NOTHING: Final = Collateral()


class CollateralSource:
    """Reads the cache below one directory, which need not be there. May be used by several threads.

    Args:
        directory: as `CLOISTER_CACHE` names it for the command line.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()
        self._entries: _Kept[Item, tuple[_Stamp, Entry | None, tuple[Item, ...]]] = _Kept(_ENTRIES_KEPT)
        self._cache: CollateralCache | None = None
        self._sets: _Kept[tuple[tuple[Item, _Stamp], ...], Collateral] = _Kept(_SETS_KEPT)

    def gather(self, evidence: Evidence, roots: Sequence[TrustedRoot] = ()) -> Collateral:
        """Return what is had for `evidence`, whose chains may end at `roots` without carrying them.

        Evidence that does not parse, or does not say which platform it is of, gets nothing: the verifier says why.

        Raises:
            Unavailable: an item in the cache is of no use (`trust.verifier.collateral`).
        """
        if evidence.tee in WITHOUT_COLLATERAL:
            return NOTHING
        # Parsers of every technology, and lxml: a service for TPMs alone never loads them.
        from cloister.tee.collateral.needs import needs_of

        try:
            needed = needs_of(evidence, certificates=_certificates(evidence.tee, roots))
        except Refused:
            return NOTHING
        try:
            return self._load(needed)
        except Refused as err:
            raise Unavailable(
                "trust.verifier.collateral",
                "collateral in the cache is of no use",
                path=err.path,
                actual=err.code,
                hint=f"{self.command('rm --all')}, and fetch it again",
            ) from err

    def fetch_command(self, gathered: Sequence[Collateral], at: datetime) -> str:
        """Return the shell command that gets what is not had or stale, or all anew; empty where nothing is needed."""
        wanting = dict.fromkeys(item for found in gathered for item in found.wanting(at))
        items = wanting or dict.fromkeys(item for found in gathered for item in found.items if not item.immutable)
        if not items:
            return ""
        options = [f"--item {shlex.quote(item.text)}" for item in list(items)[:_NAMED]]
        return self.command(" ".join(["fetch", *options] if wanting else ["fetch", "--refresh", *options]))

    def command(self, verb: str) -> str:
        """Return a shell command about this cache."""
        return f"CLOISTER_CACHE={shlex.quote(str(self._directory))} cloister collateral {verb}"

    def _load(self, needed: tuple[Item, ...]) -> Collateral:
        from cloister.tee.collateral.load import load

        found: dict[Item, tuple[_Stamp, Entry | None, tuple[Item, ...]]] = {}
        waiting = list(needed)
        while waiting:
            item = waiting.pop(0)
            if item not in found:
                found[item] = self._read(item)
                waiting += found[item][2]
        key = tuple((item, stamp) for item, (stamp, _, _) in found.items())
        known = self._sets.get(key)
        if known is None:
            loaded = load(tuple(found), lambda item: found[item][1])
            known = Collateral(
                certificates=loaded.certificates,
                revocation_lists=loaded.revocation_lists,
                documents=loaded.documents,
                items=tuple(found),
                missing=loaded.missing,
                loaded=loaded,
            )
            self._sets.put(key, known)
        return known

    def _read(self, item: Item) -> tuple[_Stamp, Entry | None, tuple[Item, ...]]:
        """Return what changes with the file, its entry, and what that will itself be judged by."""
        cache = self._opened_cache()
        stamp = cache.stamp(item)  # before the file is read: what is kept under it is at least as new
        known = self._entries.get(item)
        if known is not None and known[0] == stamp:
            return known
        from cloister.tee.collateral.needs import follow_up

        entry = cache.get(item) if stamp is not None else None
        fresh = (stamp, entry, follow_up(entry) if entry is not None else ())
        if entry is not None:  # what is not there is looked for each time, and an attacker names it
            self._entries.put(item, fresh)
        return fresh

    def _opened_cache(self) -> CollateralCache:
        if self._cache is None:
            from cloister.tee.collateral.cache import CollateralCache

            self._cache = CollateralCache(self._directory / SUBDIRECTORY)
        return self._cache


def _certificates(tee: str, roots: Sequence[TrustedRoot]) -> tuple[bytes, ...]:
    """Return the roots of a technology that are certificates, not raw keys."""
    found = []
    for root in roots:
        if root.tee == tee:
            try:
                load_certificate(root.der, code="collateral.needs.certificate")
            except FormatRefused:
                continue
            found.append(root.der)
    return tuple(found)


class _Kept(Generic[_Key, _Value]):
    """The newest values, by key."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[_Key, _Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: _Key) -> _Value | None:
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def put(self, key: _Key, value: _Value) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._most:
                self._values.popitem(last=False)
