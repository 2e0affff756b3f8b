"""Getting items: from the cache while fresh, else from the sources, checked against their identity, never guessed."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto.x509path import load_certificate
from cloister.errors import Refused, Unavailable
from cloister.tee.collateral.amd import chain_items, vcek_item
from cloister.tee.collateral.cache import CollateralCache
from cloister.tee.collateral.collector import Collector, Outcome
from cloister.tee.collateral.gate import HostGate
from cloister.tee.collateral.intel import platform_items
from cloister.tee.collateral.item import Item, Kind, Service, make_item
from cloister.tee.collateral.needs import follow_up, needs_of
from cloister.tee.collateral.nvidia import ocsp_item, rim_item
from cloister.tee.collateral.recipes import RECIPES
from cloister.tee.collateral.sources import ADDRESSES, ServiceSource, Source, StoreSource, parse_addresses
from cloister.tee.collateral.transport import Answer, HTTPTransport
from cloister.tee.sev_snp.abi import parse_report
from cloister.tee.sev_snp.endorsements import store_names, vcek_identity
from cloister.testing import dcap, nvidia, vendor
from cloister.testing.published import (
    addresses_of,
    publish_amd,
    publish_intel,
    publish_manifest,
    publish_nvidia,
)
from cloister.testing.snp import FakeAMD, FakeChip
from cloister.testing.vendor import FakeVendor, Reply

NOW: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)
INTEL_NOW: Final = dcap.NOW
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


class Desk:
    """A collector over one fake service, with a clock of its own."""

    def __init__(self, directory: Path, service: FakeVendor, at: datetime = NOW) -> None:
        self.at = at
        self.seconds = 0.0
        self.cache = CollateralCache(directory / "cache")
        self.source = self.make_source(service)
        self.collector = self.make([self.source])

    def make_source(self, service: FakeVendor) -> ServiceSource:
        gate = HostGate(self.cache.directory / "hosts", clock=lambda: self.seconds, sleep=self.sleep)
        transport = HTTPTransport(gate, clock=lambda: self.seconds, sleep=self.sleep, jitter=lambda: 0.0)
        return ServiceSource(transport, addresses_of(service))

    def make(self, sources: Sequence[Source]) -> Collector:
        return Collector(self.cache, sources, now=lambda: self.at)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def get(self, item: Item, *, refresh: bool = False) -> Outcome:
        return self.collector.obtain(item, refresh=refresh)

    def got(self, item: Item) -> bytes:
        outcome = self.get(item)
        assert outcome.error is None, outcome.error
        assert outcome.entry is not None
        return outcome.entry.content.data

    def refused(self, item: Item) -> str:
        outcome = self.get(item)
        assert outcome.error is not None
        assert not outcome.fetched
        return outcome.error.code


@pytest.fixture
def service() -> Iterator[FakeVendor]:
    made = FakeVendor()
    yield made
    made.close()


@pytest.fixture
def desk(tmp_path: Path, service: FakeVendor) -> Desk:
    return Desk(tmp_path, service)


def vcek_of(chip: FakeChip) -> Item:
    return vcek_item(vcek_identity(parse_report(chip.report())))


# -- AMD ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["Milan", "Genoa", "Turin"])
def test_everything_of_amd(desk: Desk, service: FakeVendor, line: str) -> None:
    amd = FakeAMD(line)
    chip = FakeChip.made_by(amd)
    publish_amd(service, amd, [chip])
    with service:
        assert desk.got(vcek_of(chip)) == chip.vek
        chain, crl = chain_items(line)
        assert desk.got(chain).count(b"BEGIN") == 2
        assert desk.got(crl)
        for item in chain_items(line, vlek=True):
            assert desk.got(item)
        assert service.count() == 5
        for item in (vcek_of(chip), chain, crl):
            assert not desk.get(item).fetched  # from the cache
        assert service.count() == 5
    query = next(call.path for call in service.calls if "?" in call.path)
    assert query.partition("?")[2].startswith("fmcSPL=01&blSPL=03" if line == "Turin" else "blSPL=")


def test_two_turin_tcbs_that_differ_in_fmc_alone(desk: Desk, service: FakeVendor) -> None:
    amd = FakeAMD("Turin")
    tcb = {"fmc": 1, "bootloader": 3, "tee": 2, "snp": 5, "microcode": 97}
    one = FakeChip.made_by(amd, tcb=tcb)
    newer = {**tcb, "fmc": 2}
    two = FakeChip(
        amd=amd,
        key=one.key,
        chip_id=one.chip_id,
        kind=one.kind,
        tcb=newer,
        vek=amd.issue(one.key.public_key(), hwid=one.chip_id[:8], tcb=newer).public_bytes(Encoding.DER),
        cpuid=one.cpuid,
    )
    publish_amd(service, amd, [one, two])
    with service:
        assert (desk.got(vcek_of(one)), desk.got(vcek_of(two))) == (one.vek, two.vek)
        assert (desk.got(vcek_of(one)), desk.got(vcek_of(two))) == (one.vek, two.vek)
        assert service.count() == 2
        # A mirror that drops fmc from its key answers with the other one: refused, not kept.
        desk.cache.remove(vcek_of(two))
        service.personality = vendor.mixing(service.calls[0].path, service)
        assert desk.refused(vcek_of(two)) == "collateral.answer.other"
        assert desk.cache.get(vcek_of(two)) is None


def test_a_vcek_of_another_chip_tcb_or_line(desk: Desk, service: FakeVendor) -> None:
    amd = FakeAMD("Genoa")
    chip, other = FakeChip.made_by(amd), FakeChip.made_by(amd)
    older = FakeChip.made_by(amd, tcb={"bootloader": 9, "tee": 0, "snp": 28, "microcode": 90})
    milan, cloud = FakeChip.made_by(FakeAMD("Milan")), FakeChip.made_by(amd, kind=1)
    publish_amd(service, amd, [chip])
    path = next(path for path in service.answers if "blSPL" in path)
    with service:
        for wrong in (other.vek, older.vek, milan.vek, cloud.vek):
            service.serve(path, wrong, "application/octet-stream")
            assert desk.refused(vcek_of(chip)) == "collateral.answer.other"
        two = b"".join(amd_pem(item) for item in (chip.vek, other.vek))
        for broken in (
            b"",
            b"x",
            chip.vek[:-1],
            chip.vek + b"\0",
            two,
            amd.revocation_list(),
            amd.ask.public_bytes(Encoding.DER),
        ):
            service.serve(path, broken, "application/octet-stream")
            assert desk.refused(vcek_of(chip)) in ("collateral.answer.malformed", "collateral.answer.other")
        assert list(desk.cache.entries()) == []
        service.serve(path, amd_pem(chip.vek), "application/x-pem-file")  # a mirror that keeps PEM
        assert desk.got(vcek_of(chip)) == chip.vek


def amd_pem(der: bytes) -> bytes:
    return load_certificate(der, code="test").public_bytes(Encoding.PEM)


def test_chains_of_others_are_refused(desk: Desk, service: FakeVendor) -> None:
    amd, stranger = FakeAMD("Genoa"), FakeAMD("Genoa", name="stranger")
    publish_amd(service, amd)
    chain, _ = chain_items("Genoa")

    def pem(*certificates: object) -> bytes:
        return b"".join(item.public_bytes(Encoding.PEM) for item in certificates)  # type: ignore[attr-defined]  # x509

    milan = FakeAMD("Milan")
    wrong = {
        "collateral.answer.other": [
            pem(milan.ask, milan.ark),
            pem(amd.asvk, amd.ark),
            pem(amd.ark, amd.ask),
            pem(amd.ask),
            pem(amd.ask, amd.ark, amd.ark),
        ],
        "collateral.answer.malformed": [
            pem(amd.ask, stranger.ark),
            pem(amd.ask, amd.ark)[:-40],
            pem(amd.ask, amd.ark) + amd_crl_pem(amd),
            b"",
        ],
    }
    with service:
        for code, bodies in wrong.items():
            for body in bodies:
                service.serve("/vcek/v1/Genoa/cert_chain", body, "text/plain")
                assert desk.refused(chain) == code


def amd_crl_pem(amd: FakeAMD) -> bytes:
    return x509.load_der_x509_crl(amd.revocation_list()).public_bytes(Encoding.PEM)


def test_lists_of_others_stale_ones_and_those_of_the_future(desk: Desk, service: FakeVendor) -> None:
    amd = FakeAMD("Genoa")
    publish_amd(service, amd)
    _, crl = chain_items("Genoa")
    cases = {
        amd.revocation_list(by="ask"): "collateral.answer.other",
        FakeAMD("Milan").revocation_list(): "collateral.answer.other",
        amd.revocation_list(end=NOW): "collateral.answer.stale",
        amd.revocation_list(start=NOW + 2 * DAY): "collateral.answer.future",
        amd.revocation_list()[:-1]: "collateral.answer.malformed",
        amd.ark.public_bytes(Encoding.DER): "collateral.answer.malformed",
    }
    with service:
        for body, code in cases.items():
            service.serve("/vcek/v1/Genoa/crl", body, "application/pkix-crl")
            assert desk.refused(crl) == code
    assert desk.cache.get(crl) is None


# -- freshness, half life, rollback, absence ----------------------------------------------------------------------


def test_a_list_is_fetched_again_after_its_end_only_or_when_due(desk: Desk, service: FakeVendor) -> None:
    amd = FakeAMD("Genoa")
    publish_amd(service, amd, start=NOW - DAY, end=NOW + 10 * DAY)
    chain, crl = chain_items("Genoa")
    with service:
        desk.got(crl)
        desk.got(chain)
        desk.at = NOW + 5 * DAY - HOUR
        assert desk.collector.due() == ()
        desk.got(crl)
        assert service.count() == 2
        desk.at = NOW + 5 * DAY
        assert desk.collector.due() == (crl,)  # immutable items never are
        publish_amd(service, amd, start=NOW + 4 * DAY, end=NOW + 14 * DAY)
        outcomes = list(desk.collector.prefetch())
        assert [(outcome.item, outcome.fetched, outcome.error) for outcome in outcomes] == [(crl, True, None)]
        assert desk.collector.due() == ()
        assert service.count() == 3


def test_what_is_old_stays_when_the_vendor_is_down_and_its_age_is_told(desk: Desk, service: FakeVendor) -> None:
    amd = FakeAMD("Genoa")
    publish_amd(service, amd, start=NOW - DAY, end=NOW + 10 * DAY)
    _, crl = chain_items("Genoa")
    with service:
        data = desk.got(crl)
        desk.at = NOW + 11 * DAY
        service.personality = vendor.down
        outcome = desk.get(crl)
    assert isinstance(outcome.error, Unavailable)
    assert outcome.entry is not None
    assert outcome.entry.content.data == data
    assert not outcome.entry.fresh(desk.at)
    assert outcome.entry.age(desk.at) == 11 * DAY
    assert desk.collector.due() == (crl,)


def test_a_mirror_that_goes_back_is_refused_and_the_newer_stays(desk: Desk, service: FakeVendor) -> None:
    amd = FakeAMD("Genoa")
    _, crl = chain_items("Genoa")
    publish_amd(service, amd, start=NOW - DAY, end=NOW + 10 * DAY)
    with service:
        newer = desk.got(crl)
        publish_amd(service, amd, start=NOW - 2 * DAY, end=NOW + 300 * DAY)
        outcome = desk.get(crl, refresh=True)
        assert outcome.error is not None
        assert outcome.error.code == "collateral.answer.rollback"
        assert desk.got(crl) == newer


def test_absence_is_remembered_and_asked_again_on_request(desk: Desk, service: FakeVendor) -> None:
    amd = FakeAMD("Genoa")
    chip = FakeChip.made_by(amd)
    with service:
        for _ in range(3):
            assert desk.refused(vcek_of(chip)) == "collateral.fetch.absent"
        assert service.count() == 1
        publish_amd(service, amd, [chip])
        assert desk.refused(vcek_of(chip)) == "collateral.fetch.absent"
        assert desk.get(vcek_of(chip), refresh=True).fetched
        desk.cache.remove(vcek_of(chip))
        assert desk.got(vcek_of(chip)) == chip.vek


def test_absence_ends_by_itself(desk: Desk, service: FakeVendor) -> None:
    amd = FakeAMD("Genoa")
    chip = FakeChip.made_by(amd)
    with service:
        desk.refused(vcek_of(chip))
        publish_amd(service, amd, [chip])
        desk.at += timedelta(minutes=11)
        assert desk.got(vcek_of(chip)) == chip.vek


@pytest.mark.parametrize(
    ("personality", "code"),
    [
        (vendor.throttling(99, "600"), "collateral.host.resting"),
        (vendor.throttling(99), "collateral.fetch.status"),
        (vendor.failing(503), "collateral.fetch.status"),
        (vendor.failing(403), "collateral.fetch.status"),
        (vendor.down, "collateral.fetch.unreachable"),
        (vendor.truncating, "collateral.fetch.unreachable"),
        (vendor.shortening, "collateral.answer.malformed"),
        (vendor.oversized, "collateral.answer.too_long"),
        (vendor.portal, "collateral.answer.type"),
        (vendor.redirecting("https://evil.invalid/"), "collateral.answer.redirect"),
    ],
)
@pytest.mark.parametrize("kind", ["amd", "intel", "rim"])
def test_every_bad_personality_leaves_the_cache_as_it_was(
    tmp_path: Path, service: FakeVendor, kind: str, personality: vendor.Personality, code: str
) -> None:
    desk = Desk(tmp_path, service, INTEL_NOW if kind == "intel" else NOW)
    if kind == "amd":
        amd = FakeAMD("Genoa")
        chip = FakeChip.made_by(amd)
        publish_amd(service, amd, [chip])
        item = vcek_of(chip)
    elif kind == "intel":
        publish_intel(service, dcap.FakeIntel())
        item = platform_items("tdx", dcap.FMSPC, "platform")[0]
    else:
        device = nvidia.DevicePKI().device()
        publish_nvidia(service, [device], nvidia.ManifestPKI(), at=NOW)
        item = rim_item(device.manifest_ids()[0])
    with service:
        service.personality = personality
        assert desk.refused(item) == code
        assert list(desk.cache.entries()) == []
        service.personality = vendor.honest
        desk.seconds += 601
        good = desk.got(item)
        service.personality = personality
        outcome = desk.get(item, refresh=True)
        assert outcome.error is not None
        assert outcome.error.code == code
        assert desk.got(item) == good  # what was had is kept


# -- Intel --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pccs", [False, True])
@pytest.mark.parametrize("kind", ["TDX", "SGX"])
def test_everything_of_intel(tmp_path: Path, service: FakeVendor, kind: str, pccs: bool) -> None:
    desk = Desk(tmp_path, service, INTEL_NOW)
    intel = dcap.FakeIntel()
    publish_intel(service, intel, kind, pccs=pccs)
    items = platform_items(kind.lower(), dcap.FMSPC, "platform")
    if not pccs:  # Intel's static host is another than its API
        source = ServiceSource(
            HTTPTransport(HostGate(tmp_path / "h", clock=lambda: 0.0, sleep=desk.sleep)),
            {**addresses_of(service), Service.INTEL_ROOT: service.address.replace("127.0.0.1", "localhost")},
        )
        desk.collector = desk.make([source])
    with service:
        outcomes = list(desk.collector.obtain_all(items))
    assert [outcome.error for outcome in outcomes] == [None] * 4
    tcb, identity, pck, root = [outcome.entry.content for outcome in outcomes if outcome.entry is not None]
    assert (tcb.sequence, identity.sequence, pck.sequence) == (19, 19, 1)
    assert tcb.chain.count("BEGIN") == pck.chain.count("BEGIN") == 2
    assert root.chain == ""
    assert tcb.expires == identity.expires == dcap.NEXT_UPDATE


def test_the_early_channel_is_another_item(tmp_path: Path, service: FakeVendor) -> None:
    desk = Desk(tmp_path, service, INTEL_NOW)
    intel = dcap.FakeIntel()
    publish_intel(service, intel)
    publish_intel(service, intel, update="early", tcb_info={"tcbEvaluationDataNumber": 20})
    standard, early = (platform_items("tdx", dcap.FMSPC, "platform", update=name)[0] for name in ("standard", "early"))
    with service:
        desk.got(early)
        desk.got(standard)
    numbers = [desk.cache.get(item).content.sequence for item in (standard, early)]  # type: ignore[union-attr]  # had
    assert numbers == [19, 20]


def _intel_answers(service: FakeVendor) -> dict[str, str]:
    return {
        "tcb": next(path for path in service.answers if "/tcb?" in path),
        "qe": next(path for path in service.answers if "/qe/" in path),
        "pck": next(path for path in service.answers if "/pckcrl" in path),
    }


def test_intels_answers_for_something_else(tmp_path: Path, service: FakeVendor) -> None:
    desk = Desk(tmp_path, service, INTEL_NOW)
    intel = dcap.FakeIntel()
    publish_intel(service, intel)
    tcb_item, qe_item, pck_item, _ = platform_items("tdx", dcap.FMSPC, "platform")
    paths = _intel_answers(service)
    right = dict(service.answers)
    scratch = FakeVendor()
    scratch.close()

    def other(**changes: object) -> dict[str, Reply]:
        scratch.answers.clear()
        publish_intel(scratch, intel, **changes)  # type: ignore[arg-type]  # keywords of publish_intel
        found = _intel_answers(scratch)
        return {name: scratch.answers[path] for name, path in found.items()}

    wrong = [
        (tcb_item, "tcb", other(tcb_info={"fmspc": "00906ED50000"})["tcb"], "collateral.answer.other"),
        (tcb_item, "tcb", other(kind="SGX")["tcb"], "collateral.answer.other"),
        (tcb_item, "tcb", other()["qe"], "collateral.answer.malformed"),
        (tcb_item, "tcb", other(tcb_info={"nextUpdate": "2026-01-02T00:00:00Z"})["tcb"], "collateral.answer.stale"),
        (tcb_item, "tcb", other(tcb_info={"version": 2})["tcb"], "collateral.answer.malformed"),
        (tcb_item, "tcb", other(signer=intel.cas[dcap.PCK_CAS[0]])["tcb"], "collateral.answer.other"),
        (qe_item, "qe", other(kind="SGX")["qe"], "collateral.answer.other"),
        (qe_item, "qe", other()["tcb"], "collateral.answer.malformed"),
        (pck_item, "pck", other(ca=dcap.PCK_CAS[1])["pck"], "collateral.answer.other"),
    ]
    with service:
        for item, name, reply, code in wrong:
            service.answers[paths[name]] = reply
            assert desk.refused(item) == code, (name, code)
            service.answers[paths[name]] = right[paths[name]]
        for name, item in (("tcb", tcb_item), ("qe", qe_item), ("pck", pck_item)):
            plain = right[paths[name]]
            for headers in ({}, {next(iter(plain.headers)): plain.headers["Content-Type"]}):
                service.answers[paths[name]] = Reply(body=plain.body, headers=headers)
                assert desk.refused(item) == "collateral.answer.malformed"  # no issuer chain
            service.answers[paths[name]] = vendor.flipping(None, plain)  # type: ignore[arg-type]  # the call is not read
            assert desk.refused(item) == "collateral.answer.malformed"
        assert list(desk.cache.entries()) == []


def test_the_evaluation_number_never_goes_back(tmp_path: Path, service: FakeVendor) -> None:
    desk = Desk(tmp_path, service, INTEL_NOW)
    intel = dcap.FakeIntel()
    item = platform_items("tdx", dcap.FMSPC, "platform")[0]
    publish_intel(service, intel, tcb_info={"tcbEvaluationDataNumber": 20})
    with service:
        desk.got(item)
        publish_intel(service, intel)
        outcome = desk.get(item, refresh=True)
    assert outcome.error is not None
    assert outcome.error.code == "collateral.answer.rollback"


# -- NVIDIA -------------------------------------------------------------------------------------------------------


def test_everything_of_nvidia(tmp_path: Path, service: FakeVendor) -> None:
    desk = Desk(tmp_path, service)
    devices, manifests = nvidia.DevicePKI(), nvidia.ManifestPKI()
    device = devices.device()
    publish_nvidia(service, [device], manifests, at=NOW)
    root = device.chain[-1].der
    needed = needs_of(nvidia.evidence_of([device]), certificates=[root])
    assert [item.kind for item in needed] == [Kind.RIM] * 2 + [Kind.OCSP] * 3
    with service:
        outcomes = list(desk.collector.obtain_all(needed))
        assert [outcome.error for outcome in outcomes] == [None] * 5
        entries = [outcome.entry for outcome in outcomes if outcome.entry is not None]
        more = [item for entry in entries for item in follow_up(entry)]
        assert [outcome.error for outcome in desk.collector.obtain_all(more)] == [None] * 3
    rim = entries[0]
    assert rim.content.expires == NOW + 7 * DAY  # by our own rule: the vendor gives no end
    assert not rim.item.immutable
    state = entries[2]
    assert state.content.expires == NOW + DAY


def test_nvidias_answers_for_something_else(tmp_path: Path, service: FakeVendor) -> None:
    desk = Desk(tmp_path, service)
    device, manifests = nvidia.DevicePKI().device(), nvidia.ManifestPKI()
    publish_nvidia(service, [device], manifests, at=NOW)
    first, second = device.manifest_ids()
    document = manifests.for_device(device)[0]
    path = f"/v1/rim/{first}"
    good = json.loads(service.answers[path].body)
    with service:
        for changes, code in (
            ({"id": second}, "collateral.answer.other"),
            ({"id": None}, "collateral.answer.other"),
            ({"sha256": "00" * 32}, "collateral.answer.malformed"),
            ({"rim": "????"}, "collateral.answer.malformed"),
            ({"rim": None}, "collateral.answer.malformed"),
        ):
            service.serve(path, json.dumps({**good, **changes}).encode(), "application/json")
            assert desk.refused(rim_item(first)) == code
        publish_manifest(service, first, document.data[:-40])
        assert desk.refused(rim_item(first)) == "collateral.answer.malformed"
        publish_manifest(service, first, document.data.replace(b"GH100", b"GH200", 1))
        assert desk.refused(rim_item(first)) == "collateral.answer.malformed"  # the signature says so
        leaf, brom, provisioner, *_ = device.chain
        asked = ocsp_item(brom.certificate, provisioner.certificate)
        about_another = nvidia.ocsp_response(leaf.certificate, brom)
        stale = nvidia.ocsp_response(brom.certificate, provisioner, next_update=NOW - HOUR)
        for body, code in (
            (about_another, "collateral.answer.other"),
            (stale, "collateral.answer.stale"),
            (b"\x30\x03\x0a\x01\x06", "collateral.answer.malformed"),  # unauthorized
            (b"", "collateral.answer.malformed"),
        ):
            service.responders["/"] = lambda call, body=body: Reply(  # type: ignore[misc]  # default binds the loop's
                body=body, headers={"Content-Type": "application/ocsp-response"}
            )
            assert desk.refused(asked) == code
    assert desk.refused(make_item(Kind.OCSP, request="0000")).startswith("collateral.")


# -- sources ------------------------------------------------------------------------------------------------------


def test_a_directory_in_trustees_layout(tmp_path: Path, desk: Desk) -> None:
    turin = FakeAMD("Turin")
    chip = FakeChip.made_by(turin)
    identity = vcek_identity(parse_report(chip.report()))
    exact, flat = store_names(identity)
    assert exact == f"vcek/{chip.chip_id[:8].hex()}/bl03_tee02_snp05_ucode97_fmc01_vcek.der"
    store = tmp_path / "store"
    desk.collector = desk.make([StoreSource(store)])
    assert desk.refused(vcek_of(chip)) == "collateral.fetch.absent"
    desk.at += HOUR
    (store / flat).parent.mkdir(parents=True)
    other = FakeChip.made_by(turin)
    (store / flat).write_bytes(other.vek)
    assert desk.refused(vcek_of(chip)) == "collateral.answer.other"  # the content decides, not the name
    (store / flat).write_bytes(chip.vek)
    assert desk.got(vcek_of(chip)) == chip.vek
    desk.cache.remove(vcek_of(chip))
    (store / flat).write_bytes(b"")
    (store / exact).write_bytes(chip.vek)
    assert desk.got(vcek_of(chip)) == chip.vek
    chain, _ = chain_items("Turin")
    assert desk.refused(chain) == "collateral.fetch.absent"
    (store / exact).unlink()
    (store / exact).mkdir()
    desk.cache.remove(vcek_of(chip))
    assert desk.refused(vcek_of(chip)) == "collateral.store.unreadable"


def test_sources_are_asked_in_order_and_the_most_telling_error_is_kept(
    tmp_path: Path, desk: Desk, service: FakeVendor
) -> None:
    amd = FakeAMD("Genoa")
    chip = FakeChip.made_by(amd)
    publish_amd(service, amd, [chip])
    desk.collector = desk.make([StoreSource(tmp_path / "none"), desk.source])
    with service:
        service.personality = vendor.portal
        assert desk.refused(vcek_of(chip)) == "collateral.answer.type"
        service.personality = vendor.honest
        assert desk.got(vcek_of(chip)) == chip.vek  # a failure was not taken for absence


def test_without_sources_nothing_is_fetched(desk: Desk) -> None:
    outcome = desk.make([]).obtain(make_item(Kind.INTEL_ROOT_CRL))
    assert (outcome.entry, outcome.fetched) == (None, False)


def test_the_vendors_own_addresses_are_https() -> None:
    assert set(ADDRESSES) == set(Service)
    assert all(address.startswith("https://") for address in ADDRESSES.values())


def test_addresses_are_read_from_words() -> None:
    named = parse_addresses(["intel-pcs=https://pccs:8081/sgx/certification/v4/", "amd-kds=http://kds.local"])
    assert named == {Service.INTEL_PCS: "https://pccs:8081", Service.AMD_KDS: "http://kds.local"}
    for wrong in ("x", "amd-kds", "amd=https://x", "amd-kds=x", "amd-kds=ftp://x", "amd-kds=https://u@x"):
        with pytest.raises(Refused) as caught:
            parse_addresses([wrong])
        assert caught.value.code == "collateral.fetch.address"


def test_only_one_of_many_fetches_an_item(tmp_path: Path, service: FakeVendor) -> None:
    amd = FakeAMD("Genoa")
    chip = FakeChip.made_by(amd)
    publish_amd(service, amd, [chip])
    service.personality = vendor.slow(0.1)
    desks = [Desk(tmp_path, service, datetime.now(UTC)) for _ in range(4)]
    for desk in desks:
        gate = HostGate(desk.cache.directory / "hosts", clock=time.time, sleep=time.sleep)
        source = ServiceSource(HTTPTransport(gate), addresses_of(service))
        desk.collector = Collector(desk.cache, [source], now=lambda: datetime.now(UTC))
    outcomes: list[Outcome] = []
    with service:
        threads = [
            threading.Thread(target=lambda desk=desk: outcomes.append(desk.get(vcek_of(chip)))) for desk in desks
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert service.count() == 1
    assert sum(outcome.fetched for outcome in outcomes) == 1
    assert {outcome.entry.content.data for outcome in outcomes if outcome.entry} == {chip.vek}


def _fetch_in_a_process(directory: Path, address: str, item: Item, result: multiprocessing.queues.Queue[bool]) -> None:
    cache = CollateralCache(directory)
    gate = HostGate(cache.directory / "hosts", clock=time.time, sleep=time.sleep)
    source = ServiceSource(HTTPTransport(gate), dict.fromkeys(Service, address))
    outcome = Collector(cache, [source], now=lambda: datetime.now(UTC)).obtain(item)
    result.put(outcome.fetched and outcome.error is None)


def test_two_processes_ask_once(tmp_path: Path, service: FakeVendor) -> None:
    amd = FakeAMD("Genoa")
    chip = FakeChip.made_by(amd)
    publish_amd(service, amd, [chip])
    service.personality = vendor.slow(0.2)
    context = multiprocessing.get_context("fork")
    result: multiprocessing.queues.Queue[bool] = context.Queue()
    with service:
        arguments = (tmp_path, service.address, vcek_of(chip), result)
        processes = [context.Process(target=_fetch_in_a_process, args=arguments) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert sorted(result.get(timeout=10) for _ in processes) == [False, True]
    assert service.count() == 1


# -- whatever comes ------------------------------------------------------------------------------------------------


def test_lists_in_every_form_a_pccs_writes(tmp_path: Path, service: FakeVendor) -> None:
    desk = Desk(tmp_path, service, INTEL_NOW)
    intel = dcap.FakeIntel()
    publish_intel(service, intel, pccs=True)
    path = "/sgx/certification/v4/rootcacrl"
    der = intel.revocation_list(intel.root)
    pem = x509.load_der_x509_crl(der).public_bytes(Encoding.PEM)
    item = make_item(Kind.INTEL_ROOT_CRL)
    with service:
        for good in (der, pem, der.hex().encode(), der.hex().upper().encode() + b"\n"):
            service.serve(path, good, "text/html")
            outcome = desk.get(item, refresh=True)
            assert outcome.entry is not None and outcome.error is None
            assert outcome.entry.content.data == der
        for bad in (
            pem + pem.replace(b"-----BEGIN", b"\n-----BEGIN"),
            der.hex().encode()[:-1],
            b"30zz",
            b"",
            intel.root_der,
        ):
            service.serve(path, bad, "text/html")
            refused = desk.get(item, refresh=True).error
            if bad.count(b"BEGIN") != 2:  # the same list twice is one list
                assert refused is not None
                assert refused.code == "collateral.answer.malformed"


def test_a_list_without_an_end_is_refused(desk: Desk, service: FakeVendor) -> None:
    amd = FakeAMD("Genoa")
    _, crl = chain_items("Genoa")
    whole = amd.revocation_list(start=NOW - DAY, end=NOW + DAY)
    end = x509.load_der_x509_crl(whole).next_update_utc
    assert end is not None
    tagged = b"\x17\x0d" + end.strftime("%y%m%d%H%M%SZ").encode()
    assert whole.count(tagged) == 1
    without = _without(whole, tagged)
    assert x509.load_der_x509_crl(without).next_update_utc is None
    service.serve("/vcek/v1/Genoa/crl", without, "application/pkix-crl")
    with service:
        assert desk.refused(crl) == "collateral.answer.malformed"


def _without(der: bytes, part: bytes) -> bytes:
    """Return a CRL without a part of what is signed; the two lengths around it (of two bytes and of one) are mended."""
    assert (der[1], der[5]) == (0x82, 0x81)
    outer, inner = int.from_bytes(der[2:4], "big") - len(part), der[6] - len(part)
    return (der[:2] + outer.to_bytes(2, "big") + der[4:6] + bytes([inner]) + der[7:]).replace(part, b"", 1)


@pytest.mark.parametrize("header", ["%ff", "%", "x" * 20_000, "", "%2D%2D", "\xe9"])
def test_issuer_chains_of_any_text(tmp_path: Path, service: FakeVendor, header: str) -> None:
    desk = Desk(tmp_path, service, INTEL_NOW)
    publish_intel(service, dcap.FakeIntel())
    item = platform_items("tdx", dcap.FMSPC, "platform")[0]
    path = next(path for path in service.answers if "/tcb?" in path)
    body = service.answers[path].body
    service.serve(path, body, "application/json", {"TCB-Info-Issuer-Chain": header})
    with service:
        assert desk.refused(item) == "collateral.answer.malformed"


@given(st.binary(max_size=300), st.text(st.characters(max_codepoint=0x7F), max_size=60), st.sampled_from(list(Kind)))
def test_any_answer_is_the_item_or_refused(body: bytes, header: str, kind: Kind) -> None:
    items = {
        Kind.VCEK: vcek_of(_CHIP),
        **{item.kind: item for item in chain_items("Genoa")},
        **{item.kind: item for item in platform_items("tdx", dcap.FMSPC, "platform")},
        Kind.RIM: rim_item("NV_GPU_DRIVER_GH100_550.90.07"),
        Kind.OCSP: make_item(Kind.OCSP, request="3003020101"),
    }
    names = ("tcb-info-issuer-chain", "sgx-enclave-identity-issuer-chain", "sgx-pck-crl-issuer-chain")
    recipe, item = RECIPES[kind], items[kind]
    for data in (body, b"{" + body, b"\x30\x82" + body, b"-----BEGIN CERTIFICATE-----\n" + body, body.hex().encode()):
        answer = Answer(body=data, headers=dict.fromkeys(names, header))
        with pytest.raises(Refused):
            recipe.inspect(item, *recipe.unwrap(item, answer))
        with pytest.raises(Refused):
            recipe.inspect(item, data, header)


_CHIP: Final = FakeChip.made_by(FakeAMD("Genoa"))
