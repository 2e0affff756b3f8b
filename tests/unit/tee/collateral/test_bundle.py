"""A bundle has one form: what was exported is imported, and every other file is refused."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import EndorsementError, FormatRefused, Refused
from cloister.tee.collateral import bundle as module
from cloister.tee.collateral.amd import chain_items, vcek_item
from cloister.tee.collateral.bundle import BUNDLE_HEAD_BYTES, export_bundle, looks_like_bundle, parse_bundle
from cloister.tee.collateral.collector import checked_entry
from cloister.tee.collateral.content import Entry
from cloister.tee.collateral.intel import platform_items
from cloister.tee.collateral.item import Item
from cloister.tee.collateral.nvidia import rim_item
from cloister.tee.sev_snp.abi import parse_report
from cloister.tee.sev_snp.endorsements import vcek_identity
from cloister.testing import dcap, nvidia
from cloister.testing.snp import FakeAMD, FakeChip

NOW: Final = datetime(2026, 7, 1, 12, tzinfo=UTC)
AMD: Final = FakeAMD("Turin")
CHIP: Final = FakeChip.made_by(AMD)


def entry(item: Item, data: bytes, chain: str = "", at: datetime = NOW) -> Entry:
    return checked_entry(item, data, chain, fetched=at, origin="kds.example")


def make_entries() -> list[Entry]:
    chain, crl = chain_items("Turin")
    pem = b"".join(item.public_bytes(Encoding.PEM) for item in (AMD.ask, AMD.ark))
    members = dcap.FakeIntel().collateral_members("TDX")
    signed = f'{{"tcbInfo":{members["tcb_info"]},"signature":"{members["tcb_info_signature"]}"}}'.encode()
    device = nvidia.DevicePKI().device()
    document = nvidia.ManifestPKI().for_device(device)[0]
    return [
        entry(vcek_item(vcek_identity(parse_report(CHIP.report()))), CHIP.vek),
        entry(chain, pem),
        entry(crl, AMD.revocation_list(end=NOW + timedelta(days=30))),
        entry(platform_items("tdx", dcap.FMSPC, "platform")[0], signed, members["tcb_info_issuer_chain"]),
        entry(rim_item(document.name), document.data),
    ]


ENTRIES: Final = make_entries()
WHOLE: Final = export_bundle(ENTRIES)


def refused(data: bytes, at: datetime = NOW) -> str:
    with pytest.raises(Refused) as caught:
        parse_bundle(data, at=at)
    return caught.value.code


def rewritten(**changes: object) -> bytes:
    """A bundle in its one form whose first record is changed."""
    return _rewritten(lambda record: msgspec.structs.replace(record, **changes))


def _rewritten(change: object, body: bytes | None = None) -> bytes:
    raw = module._slice(WHOLE, 0, len(WHOLE))
    manifest = msgspec.json.decode(raw, type=module._Manifest)
    place, bodies = module._following(0, len(raw)), []
    for _ in manifest.items:
        bodies.append(module._slice(WHOLE, place, len(WHOLE)))
        place = module._following(place, len(bodies[-1]))
    records = [change(manifest.items[0]), *manifest.items[1:]]  # type: ignore[operator]  # a function
    if body is not None:
        bodies[0] = body
    return module._write(module._Manifest(version=1, items=tuple(records)), bodies)


def test_what_is_exported_is_imported() -> None:
    found = parse_bundle(WHOLE, at=NOW)
    assert list(found) == sorted(ENTRIES, key=lambda item: item.item.text)
    assert looks_like_bundle(WHOLE[:BUNDLE_HEAD_BYTES])
    named = parse_bundle(WHOLE, at=NOW, origin="b.tar")
    assert named[0].origin == "b.tar: kds.example"


def test_the_same_content_gives_the_same_bytes() -> None:
    assert export_bundle(reversed(ENTRIES)) == WHOLE
    assert export_bundle(parse_bundle(WHOLE, at=NOW)) == WHOLE
    assert parse_bundle(export_bundle([]), at=NOW) == ()


def test_any_tar_tool_reads_it() -> None:
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as archive:
        assert archive.getnames() == ["manifest.json", *(f"items/{n:05}" for n in range(len(ENTRIES)))]
        assert {member.mtime for member in archive} == {0}


def test_an_item_may_be_stale_by_now_and_stays_what_it_is() -> None:
    later = NOW + timedelta(days=400)
    assert not parse_bundle(WHOLE, at=later)[1].fresh(later)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024, len(WHOLE) - 1])
def test_truncations(size: int) -> None:
    assert refused(WHOLE[:size]).startswith("collateral.bundle.")


def test_every_block_is_accounted_for() -> None:
    for place in range(0, len(WHOLE), 512):
        for shift in (0, 100, 300, 511):
            changed = bytearray(WHOLE)
            changed[place + shift] ^= 1
            try:
                found = parse_bundle(bytes(changed), at=NOW)
            except Refused:
                continue
            assert export_bundle(found) == changed  # words of the manifest for people, such as the origin


@pytest.mark.parametrize("tail", [b"\0", b"x", bytes(512), bytes(10240)])
def test_nothing_may_follow(tail: bytes) -> None:
    assert refused(WHOLE + tail) == "collateral.bundle.malformed"


def test_other_tars_are_refused() -> None:
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with (
            tarfile.open(fileobj=io.BytesIO(WHOLE)) as source,
            tarfile.open(fileobj=buffer, mode="w", format=form) as target,
        ):
            for member in source:
                member.mtime = 1
                target.addfile(member, source.extractfile(member))
        assert refused(buffer.getvalue()) == "collateral.bundle.malformed"


def test_items_that_are_not_what_they_are_said_to_be() -> None:
    other = FakeChip.made_by(AMD)
    assert rewritten() == WHOLE
    assert refused(rewritten(sha256="00" * 32)) == "collateral.bundle.item"
    assert refused(rewritten(size=1)) == "collateral.bundle.item"
    crl = next(item for item in ENTRIES if item.item.kind.value == "amd-crl")
    assert refused(rewritten(item=crl.item.text.replace("Turin", "Genoa"))).startswith("collateral.")
    assert refused(rewritten(item="amd-chain nonsense")) == "collateral.item.malformed"
    assert refused(rewritten(not_after=NOW)) == "collateral.bundle.item"
    assert refused(rewritten(fetched=NOW + timedelta(days=2))) == "collateral.bundle.malformed"
    assert refused(rewritten(fetched=NOW.replace(tzinfo=None))) == "collateral.bundle.malformed"
    # A body whose hash is right, but that is for another chip: what a forger of bundles would write.
    vceks = export_bundle([item for item in ENTRIES if item.item.kind.value == "vcek"])
    forged = export_bundle(
        [replace(parse_bundle(vceks, at=NOW)[0], content=replace(ENTRIES[0].content, data=other.vek))]
    )
    with pytest.raises(EndorsementError) as caught:
        parse_bundle(forged, at=NOW)
    assert caught.value.code == "collateral.answer.other"


def test_items_have_an_order() -> None:
    raw = module._slice(WHOLE, 0, len(WHOLE))
    manifest = msgspec.json.decode(raw, type=module._Manifest)
    for records in (manifest.items[::-1], (manifest.items[0], manifest.items[0])):
        with pytest.raises(FormatRefused) as caught:
            module._write(module._Manifest(version=1, items=records), [])
        assert caught.value.code == "collateral.bundle.malformed"


def test_versions_and_unknown_members() -> None:
    raw = module._slice(WHOLE, 0, len(WHOLE))
    for old, new, code in (
        (b'"version": 1', b'"version": 2', "collateral.bundle.version"),
        (b'"version": 1', b'"varsion": 1', "collateral.bundle.malformed"),
    ):
        assert old in raw
        assert refused(WHOLE.replace(old, new, 1)) == code


def test_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COLLATERAL_BUNDLE_ITEMS", 4)
    assert refused(WHOLE) == "collateral.bundle.too_long"
    with pytest.raises(FormatRefused):
        export_bundle(ENTRIES)
    monkeypatch.setattr(module, "COLLATERAL_BUNDLE_ITEMS", 10)
    monkeypatch.setattr(module, "COLLATERAL_BUNDLE_BYTES", len(WHOLE) - 1)
    assert refused(WHOLE) == "collateral.bundle.too_long"


@given(st.binary(max_size=2000), st.integers(0, len(WHOLE) - 1))
def test_any_bytes_are_a_bundle_or_refused(data: bytes, place: int) -> None:
    for candidate in (data, WHOLE[:place] + data + WHOLE[place + len(data) :], WHOLE[:512] + data):
        if candidate == WHOLE:
            continue
        try:
            found = parse_bundle(candidate, at=NOW)
        except Refused:
            continue
        assert export_bundle(found) == candidate
