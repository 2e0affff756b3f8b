"""Vendors' collateral for the owner: fetch what evidence needs, keep it, carry it to machines without a way out.

    from cloister.sdk.collateral import fetch_items, items_for, open_collector
    collector = open_collector(home)
    for outcome in fetch_items(collector, items_for(Path("report.bin"), platform="snp")):
        print(outcome.item.label, outcome.error or "ok")

The edge around `cloister.tee.collateral`: opens the cache in the owner's directory, names the services, takes the time.
Verification uses none of this; it is given what was loaded.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cloister.errors import EndorsementError, Refused, Unavailable
from cloister.rats.evidence import Evidence
from cloister.sdk.evidence import PLATFORMS
from cloister.sdk.home import Home
from cloister.tee.collateral.bundle import export_bundle, parse_bundle
from cloister.tee.collateral.cache import CollateralCache
from cloister.tee.collateral.collector import Collector, Outcome
from cloister.tee.collateral.content import Entry
from cloister.tee.collateral.files import sort_endorsement_files
from cloister.tee.collateral.gate import HostGate
from cloister.tee.collateral.item import Item, Service
from cloister.tee.collateral.needs import follow_up, needs_of
from cloister.tee.collateral.sources import ServiceSource, Source, StoreSource
from cloister.tee.collateral.transport import HTTPTransport
from cloister.tee.registry import reader_for
from cloister.wire.limits import COLLATERAL_BUNDLE_BYTES, COLLATERAL_BYTES, EVIDENCE_FILE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What came of importing a bundle: items kept, and those of which something newer was had already."""

    kept: tuple[Entry, ...]
    older: tuple[Entry, ...]


def open_cache(home: Home) -> CollateralCache:
    """Return the cache of this user."""
    return CollateralCache(home.cache / "collateral")


def open_collector(
    home: Home,
    *,
    addresses: Mapping[Service, str] | None = None,
    stores: Sequence[Path] = (),
    tls_ca: Path | None = None,
) -> Collector:
    """Return what keeps the cache of this user filled.

    Args:
        home: where the cache is.
        addresses: services that replace the vendors' own: a PCCS, a mirror. Only one named here may be plain HTTP.
        stores: directories of VCEKs in Trustee's layout, asked before the services.
        tls_ca: PEM file of CAs that certify the services, beside those of the machine.

    Raises:
        Refused: not an address, or not a CA file (`collateral.fetch.address`, `collateral.fetch.ca`).
        Unavailable: the CA file cannot be read (`collateral.file.unreadable`).
    """
    cache = open_cache(home)
    gate = HostGate(cache.directory / "hosts", clock=time.time, sleep=time.sleep)
    transport = HTTPTransport(gate, tls=_tls(tls_ca) if tls_ca is not None else None)
    sources: list[Source] = [*map(StoreSource, stores), ServiceSource(transport, addresses)]
    return Collector(cache, sources, now=lambda: datetime.now(UTC))


def items_for(
    evidence: Path, *, platform: str, endorsements: Sequence[Path] = (), update: str = "standard"
) -> tuple[Item, ...]:
    """Return the items that a file of evidence will be judged by.

    Args:
        evidence: raw, or the JSON a guest sends.
        platform: one of `cloister.sdk.evidence.PLATFORMS`.
        endorsements: files given beside it; certificates in them need not be had.
        update: Intel's channel, `standard` or `early`.

    Raises:
        Refused: it does not parse, or does not say which platform it is of.
        Unavailable: a file cannot be read (`collateral.file.unreadable`).
    """
    tee = PLATFORMS[platform]
    read = reader_for(tee)(_read(evidence, EVIDENCE_FILE_BYTES), tee=tee)
    given = sort_endorsement_files([(str(path), _read(path, COLLATERAL_BYTES)) for path in endorsements])
    return needs_of(Evidence(tee=tee, body=read.body), certificates=given.certificates, update=update)


def fetch_items(collector: Collector, items: Sequence[Item], *, refresh: bool = False) -> Iterator[Outcome]:
    """Return the outcome of each item, and of what the items themselves will be judged by, as it is known."""
    waiting, seen = list(dict.fromkeys(items)), set(items)
    while waiting:
        outcome = collector.obtain(waiting.pop(0), refresh=refresh)
        yield outcome
        more = follow_up(outcome.entry) if outcome.entry is not None else ()
        waiting.extend(item for item in more if item not in seen)
        seen.update(more)


def export_file(home: Home, path: Path, items: Sequence[Item] | None = None) -> tuple[Entry, ...]:
    """Write a bundle of what is had (of `items`, or of everything); return what is in it.

    Raises:
        FormatRefused: too much for one bundle (`collateral.bundle.too_long`).
        Unavailable: an item is not had, or the file cannot be written (`collateral.bundle.missing`,
            `collateral.bundle.unwritable`).
    """
    cache = open_cache(home)
    if items is None:
        entries = [entry for entry in cache.entries() if isinstance(entry, Entry)]
    else:
        entries = list(_had(cache, items))
    data = export_bundle(entries)
    try:
        path.write_bytes(data)
    except OSError as err:
        raise Unavailable("collateral.bundle.unwritable", f"cannot write: {err.strerror}", path=str(path)) from err
    return tuple(entries)


def import_file(home: Home, path: Path) -> Imported:
    """Put the items of a bundle into the cache, each checked like an answer of its vendor.

    Raises:
        Refused: not a bundle, or an item of it is not what it says (`collateral.bundle.*`, `collateral.answer.*`).
        Unavailable: the file cannot be read, or the cache not be written.
    """
    cache = open_cache(home)
    data = _read(path, COLLATERAL_BUNDLE_BYTES)
    kept, older = [], []
    for entry in parse_bundle(data, at=datetime.now(UTC), origin=path.name):
        try:
            cache.put(entry)
        except EndorsementError as err:
            if err.code != "collateral.answer.rollback":
                raise
            older.append(entry)
        else:
            kept.append(entry)
    return Imported(kept=tuple(kept), older=tuple(older))


def _had(cache: CollateralCache, items: Sequence[Item]) -> Iterator[Entry]:
    waiting, seen = list(dict.fromkeys(items)), set(items)
    while waiting:
        item = waiting.pop(0)
        entry = cache.get(item)
        if entry is None:
            raise Unavailable(
                "collateral.bundle.missing",
                "item is not in the cache",
                path=item.label,
                hint="fetch it first: `cloister collateral fetch`",
            )
        yield entry
        more = follow_up(entry)
        waiting.extend(other for other in more if other not in seen)
        seen.update(more)


def _tls(path: Path) -> ssl.SSLContext:
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(cadata=_read(path, COLLATERAL_BYTES).decode("ascii"))
    except (ssl.SSLError, ValueError) as err:
        raise Refused("collateral.fetch.ca", "not a file of CA certificates in PEM", path=str(path)) from err
    return context


def _read(path: Path, ceiling: int) -> bytes:
    """Return at most one byte more than `ceiling`, so that the reader's own ceiling refuses it."""
    try:
        with path.open("rb") as file:
            return file.read(ceiling + 1)
    except OSError as err:
        raise Unavailable("collateral.file.unreadable", f"cannot read: {err.strerror}", path=str(path)) from err
