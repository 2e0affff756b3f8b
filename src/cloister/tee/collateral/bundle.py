"""Collateral in one file, for machines without a way out: a tar of fixed form, the same bytes for the same content.

The first member, `manifest.json`, says of each item its identity, hash, times and origin; the items follow in that
order. `export_bundle` writes the form and `parse_bundle` accepts no other: it reads the manifest, cuts the items out at
the places that follow from it, writes the bundle again and compares. So there is no second reading, no member that the
manifest does not name, and no byte between. Nothing here is trusted: every item is checked like an answer of the
vendor, with the time it was fetched then, before it enters a cache.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

import msgspec

from cloister.errors import EndorsementError, FormatRefused
from cloister.tee.collateral.collector import CLOCKS_DIFFER, checked_entry
from cloister.tee.collateral.content import Entry
from cloister.tee.collateral.item import parse_item
from cloister.wire.limits import COLLATERAL_BUNDLE_BYTES, COLLATERAL_BUNDLE_ITEMS, COLLATERAL_BYTES

_CODE: Final = "collateral.bundle"
BUNDLE_HEAD_BYTES: Final = 512
_MANIFEST: Final = "manifest.json"
_MAGIC: Final = slice(257, 263)
_VERSION: Final = 1
_BLOCK: Final = 512
_SIZE_FIELD: Final = slice(124, 136)  # of a header, POSIX.1-1988 ustar


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    item: str
    sha256: str
    size: int
    fetched: datetime
    not_after: datetime | None
    origin: str
    chain: str


class _Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    items: tuple[_Record, ...]


def looks_like_bundle(data: bytes) -> bool:
    """Return whether `data` (its first `BUNDLE_HEAD_BYTES` are enough) begins like a bundle."""
    return data.startswith(_MANIFEST.encode() + b"\0") and data[_MAGIC] == b"ustar\0"


def export_bundle(entries: Iterable[Entry]) -> bytes:
    """Return a bundle of `entries`.

    Raises:
        FormatRefused: too many or too large together (`collateral.bundle.too_long`).
    """
    chosen = sorted(entries, key=lambda entry: entry.item.text)
    if (
        len(chosen) > COLLATERAL_BUNDLE_ITEMS
        or sum(len(entry.content.data) for entry in chosen) > COLLATERAL_BUNDLE_BYTES
    ):
        raise _too_long()
    records = tuple(
        _Record(
            item=entry.item.text,
            sha256=sha256(entry.content.data).hexdigest(),
            size=len(entry.content.data),
            fetched=entry.fetched.astimezone(UTC),
            not_after=entry.content.expires.astimezone(UTC) if entry.content.expires else None,
            origin=entry.origin,
            chain=entry.content.chain,
        )
        for entry in chosen
    )
    return _write(_Manifest(version=_VERSION, items=records), [entry.content.data for entry in chosen])


def parse_bundle(data: bytes, *, at: datetime, origin: str = "") -> tuple[Entry, ...]:
    """Return the items of a bundle, each checked to be what the manifest says.

    Args:
        data: the file.
        at: aware time of the import; an item cannot have been fetched later.
        origin: put before the origin of each item.

    Raises:
        FormatRefused: not a bundle, or not in its one form (`collateral.bundle.*`).
        EndorsementError: an item is not what it is said to be (`collateral.answer.*`, `collateral.bundle.item`).
    """
    if len(data) > COLLATERAL_BUNDLE_BYTES:
        raise _too_long()
    raw = _slice(data, 0, COLLATERAL_BUNDLE_BYTES)
    try:
        manifest = msgspec.json.decode(raw, type=_Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise _malformed("the first member is no manifest") from err
    if manifest.version != _VERSION:
        raise FormatRefused(
            f"{_CODE}.version", "bundle of another version", expected=str(_VERSION), actual=str(manifest.version)
        )
    if len(manifest.items) > COLLATERAL_BUNDLE_ITEMS:
        raise _too_long()
    place, bodies = _following(0, len(raw)), []
    for _ in manifest.items:
        bodies.append(_slice(data, place, COLLATERAL_BYTES))
        place = _following(place, len(bodies[-1]))
    if any(record.fetched.tzinfo is None for record in manifest.items) or _write(manifest, bodies) != data:
        raise _malformed("not the one form of a bundle")
    if any(record.fetched > at + CLOCKS_DIFFER for record in manifest.items):
        raise _malformed("an item was fetched in the future")
    return tuple(_entry(record, body, origin) for record, body in zip(manifest.items, bodies, strict=True))


def _entry(record: _Record, body: bytes, origin: str) -> Entry:
    item = parse_item(record.item)
    if len(body) != record.size or sha256(body).hexdigest() != record.sha256:
        raise EndorsementError(f"{_CODE}.item", "item does not have the hash the manifest says", path=item.label)
    where = f"{origin}: {record.origin}" if origin else record.origin
    entry = checked_entry(item, body, record.chain, fetched=record.fetched, origin=where)
    if entry.content.expires != record.not_after:
        raise EndorsementError(
            f"{_CODE}.item",
            "item does not end when the manifest says",
            path=item.label,
            expected=str(entry.content.expires),
            actual=str(record.not_after),
        )
    return entry


def _write(manifest: _Manifest, bodies: list[bytes]) -> bytes:
    order = [record.item for record in manifest.items]
    if order != sorted(set(order)):
        raise _malformed("items are not in their order, or one is there twice")
    raw = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, body in ((_MANIFEST, raw), *((f"items/{n:05}", body) for n, body in enumerate(bodies))):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(body), 0o644
            archive.addfile(member, io.BytesIO(body))
    return buffer.getvalue()


def _slice(data: bytes, place: int, ceiling: int) -> bytes:
    """Return the content of the member whose header is at `place`; whether the header is right is seen later."""
    digits = data[place : place + _BLOCK][_SIZE_FIELD].rstrip(b"\0 ")
    if not digits or not set(digits) <= set(b"01234567"):
        raise _malformed("not a tar, or cut short")
    size, start = int(digits, 8), place + _BLOCK
    if size > ceiling or start + size > len(data):
        raise _malformed("a member is too long, or cut short")
    return data[start : start + size]


def _following(place: int, size: int) -> int:
    return place + _BLOCK + (size + _BLOCK - 1) // _BLOCK * _BLOCK


def _malformed(message: str) -> FormatRefused:
    return FormatRefused(
        f"{_CODE}.malformed",
        f"file is not a bundle of collateral: {message}",
        hint="make one with `cloister collateral export`",
    )


def _too_long() -> FormatRefused:
    return FormatRefused(
        f"{_CODE}.too_long",
        "bundle is too large",
        expected=f"at most {COLLATERAL_BUNDLE_ITEMS} items, {COLLATERAL_BUNDLE_BYTES} bytes",
    )
