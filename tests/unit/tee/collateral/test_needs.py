"""From evidence to what it needs, from the cache to a verdict, and no socket on the way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.errors import EndorsementError, Refused
from cloister.rats.endorsement import Endorsements, TrustedRoot
from cloister.rats.evidence import AuthenticEvidence, Evidence
from cloister.rats.result import Finding
from cloister.tee.collateral.cache import CollateralCache
from cloister.tee.collateral.collector import Collector
from cloister.tee.collateral.gate import HostGate
from cloister.tee.collateral.item import Item, Kind, make_item
from cloister.tee.collateral.load import Loaded, load
from cloister.tee.collateral.needs import follow_up, needs_of
from cloister.tee.collateral.sources import ServiceSource
from cloister.tee.collateral.transport import HTTPTransport
from cloister.tee.registry import authenticator_for
from cloister.testing import dcap, nvidia, snp
from cloister.testing.published import addresses_of, publish_amd, publish_intel, publish_nvidia
from cloister.testing.snp import FakeAMD, FakeChip
from cloister.testing.vendor import FakeVendor
from cloister.wire.base64 import encode_b64

_forbidden = False


def _watch(event: str, _: tuple[object, ...]) -> None:
    if _forbidden and (event.startswith("socket.") or event in ("subprocess.Popen", "os.posix_spawn", "os.exec")):
        raise AssertionError(f"a verifier did {event}")


sys.addaudithook(_watch)


@contextmanager
def no_network() -> Iterator[None]:
    """In here every socket, and every program that could open one, is an error."""
    global _forbidden
    _forbidden = True
    try:
        yield
    finally:
        _forbidden = False


def test_the_prohibition_holds() -> None:
    import socket

    with no_network(), pytest.raises(AssertionError):
        socket.socket()
    with no_network(), pytest.raises(AssertionError):
        socket.getaddrinfo("localhost", 80)


@pytest.fixture
def service() -> Iterator[FakeVendor]:
    with FakeVendor() as made:
        yield made


def gather(directory: Path, service: FakeVendor, items: tuple[Item, ...], at: Any) -> CollateralCache:
    """Fetch `items`, and what they need themselves."""
    cache = CollateralCache(directory)
    gate = HostGate(cache.directory / "hosts", clock=lambda: 0.0, sleep=lambda seconds: None)
    source = ServiceSource(HTTPTransport(gate), addresses_of(service))
    collector = Collector(cache, [source], now=lambda: at)
    for outcome in collector.obtain_all(items):
        assert outcome.error is None, outcome.error
        assert outcome.entry is not None
        assert all(more.error is None for more in collector.obtain_all(follow_up(outcome.entry)))
    return cache


def everything(cache: CollateralCache, items: tuple[Item, ...]) -> Loaded:
    more = [other for item in items if (entry := cache.get(item)) for other in follow_up(entry)]
    return load((*items, *more), cache.get)


def authenticate(evidence: Evidence, roots: tuple[TrustedRoot, ...], loaded: Loaded, at: Any) -> AuthenticEvidence:
    with no_network():
        return authenticator_for(evidence.tee)(
            evidence,
            Endorsements(
                roots=roots,
                certificates=loaded.certificates,
                revocation_lists=loaded.revocation_lists,
                documents=loaded.documents,
            ),
            at=at,
        )


def open_questions(found: tuple[Finding, ...]) -> list[str]:
    return [finding.code for finding in found if finding.unknown]


@pytest.mark.parametrize("line", ["Milan", "Genoa", "Turin"])
def test_snp_from_a_bare_report_to_a_verdict(tmp_path: Path, service: FakeVendor, line: str) -> None:
    amd = FakeAMD(line)
    chip = FakeChip.made_by(amd)
    publish_amd(service, amd, [chip])
    evidence = Evidence(tee="snp", body={"attestation_report": encode_b64(chip.report())})
    items = needs_of(evidence)
    assert [item.kind for item in items] == [Kind.VCEK, Kind.AMD_CHAIN, Kind.AMD_CRL]
    assert items[0]["fmc"] == ("1" if line == "Turin" else "")
    cache = gather(tmp_path, service, items, snp.NOW)
    loaded = everything(cache, items)
    assert (loaded.missing, loaded.stale(snp.NOW)) == ((), ())
    before = service.count()
    found = authenticate(evidence, (amd.root(),), loaded, snp.NOW)
    assert open_questions(found.findings) == []
    assert service.count() == before
    # A year later the list is stale: the cache says how old, the verifier that it is not known, and nothing is fetched.
    later = snp.NOW + timedelta(days=340)
    assert [entry.item.kind for entry in loaded.stale(later)] == [Kind.AMD_CRL]
    assert open_questions(authenticate(evidence, (amd.root(),), loaded, later).findings) != []
    assert service.count() == before


def test_snp_without_its_list_is_open_and_still_nothing_is_fetched(tmp_path: Path, service: FakeVendor) -> None:
    amd = FakeAMD("Genoa")
    chip = FakeChip.made_by(amd)
    publish_amd(service, amd, [chip])
    evidence = chip.evidence()
    chain, crl = needs_of(evidence)  # the VCEK came with the report
    cache = gather(tmp_path, service, (chain,), snp.NOW)
    loaded = load((chain, crl), cache.get)
    assert loaded.missing == (crl,)
    assert open_questions(authenticate(evidence, (amd.root(),), loaded, snp.NOW).findings) != []


def test_snp_given_its_vcek_or_signed_by_a_vlek() -> None:
    amd = FakeAMD("Genoa")
    chip, cloud = FakeChip.made_by(amd), FakeChip.made_by(amd, kind=1)
    bare = Evidence(tee="snp", body={"attestation_report": encode_b64(chip.report(version=2))})
    with pytest.raises(Refused):
        needs_of(bare)  # version 2 does not say which product line it is of
    assert [item.kind for item in needs_of(bare, certificates=[chip.vek])] == [Kind.AMD_CHAIN, Kind.AMD_CRL]
    assert {item["signer"] for item in needs_of(cloud.evidence())} == {"vlek"}
    with pytest.raises(EndorsementError) as caught:
        needs_of(Evidence(tee="snp", body={"attestation_report": encode_b64(cloud.report())}))
    assert caught.value.code == "tee.sev_snp.no_identity"


@pytest.mark.parametrize(("kind", "report"), [("TDX", dcap.td_report), ("SGX", dcap.enclave_report)])
def test_dcap_from_a_quote_to_a_verdict(
    tmp_path: Path, service: FakeVendor, kind: str, report: Callable[[], Any]
) -> None:
    intel = dcap.FakeIntel()
    publish_intel(service, intel, kind, pccs=True)
    quote = dcap.FakePlatform(intel, kind).quote(report())
    evidence = Evidence(tee=kind.lower(), body={"quote": encode_b64(quote)})
    items = needs_of(evidence)
    assert [item.text for item in items] == [
        f"tcb-info tee={kind.lower()} fmspc={dcap.FMSPC.hex()} update=standard",
        f"qe-identity tee={kind.lower()} update=standard",
        "pck-crl ca=platform",
        "intel-root-crl",
    ]
    cache = gather(tmp_path, service, items, dcap.NOW)
    loaded = everything(cache, items)
    assert len(loaded.documents) == 1  # the nine members
    assert loaded.certificates == loaded.revocation_lists == ()
    found = authenticate(evidence, (intel.trusted(kind.lower()),), loaded, dcap.NOW)
    assert open_questions(found.findings) == []
    # A part that is missing: the others are handed over as they are.
    cache.remove(make_item(Kind.INTEL_ROOT_CRL))
    parts = everything(cache, items)
    assert parts.missing == (make_item(Kind.INTEL_ROOT_CRL),)
    assert (len(parts.documents), len(parts.revocation_lists)) == (2, 1)
    assert open_questions(authenticate(evidence, (intel.trusted(kind.lower()),), parts, dcap.NOW).findings) != []


def test_a_quote_of_another_ca_or_channel() -> None:
    intel = dcap.FakeIntel()
    processor = dcap.FakePlatform(intel, "TDX", ca=dcap.PCK_CAS[1]).quote(dcap.td_report())
    evidence = Evidence(tee="tdx", body={"quote": encode_b64(processor)})
    items = needs_of(evidence, update="early")
    assert make_item(Kind.PCK_CRL, ca="processor") in items
    assert {item["update"] for item in items[:2]} == {"early"}


def test_a_quote_of_an_unknown_ca_does_not_say_what_it_needs() -> None:
    intel = dcap.FakeIntel()
    intel.cas["Other CA"] = intel.authority("Other CA", path_length=0)
    quote = dcap.FakePlatform(intel, "TDX", ca="Other CA").quote(dcap.td_report())
    with pytest.raises(EndorsementError) as caught:
        needs_of(Evidence(tee="tdx", body={"quote": encode_b64(quote)}))
    assert caught.value.code == "collateral.needs.certificate"


def test_nvidia_from_reports_to_a_verdict(tmp_path: Path, service: FakeVendor) -> None:
    pki, manifests = nvidia.DevicePKI(), nvidia.ManifestPKI()
    devices = [pki.device(), pki.device(nvidia.SWITCH)]
    publish_nvidia(service, devices, manifests, at=nvidia.NOW)
    evidence = nvidia.evidence_of(devices)
    root = pki.root.certificate.public_bytes(Encoding.DER)
    items = needs_of(evidence, certificates=[root])
    assert sum(item.kind is Kind.RIM for item in items) == 3
    cache = gather(tmp_path, service, items, nvidia.NOW)
    loaded = everything(cache, items)
    assert loaded.missing == ()
    found = authenticate(evidence, (*pki.roots(), *manifests.roots()), loaded, nvidia.NOW)
    assert open_questions(found.findings) == []


def test_nvidia_without_a_chain_does_not_say_what_it_needs() -> None:
    device = nvidia.DevicePKI().device()
    body = {"device_evidence_list": [{"evidence": encode_b64(device.report())}]}
    with pytest.raises(EndorsementError) as caught:
        needs_of(Evidence(tee="nvidia", body=body))
    assert caught.value.code == "collateral.needs.certificate"
    given = [item.der for item in device.chain]
    assert needs_of(Evidence(tee="nvidia", body=body), certificates=given)


def test_technologies_without_collateral_need_nothing() -> None:
    for tee in ("tpm", "nitro", "cca", "cloister-simulated"):
        assert needs_of(Evidence(tee=tee, body={})) == ()
    with pytest.raises(EndorsementError) as caught:
        needs_of(Evidence(tee="pdp11", body={}))  # nothing is not the answer to "unknown"
    assert caught.value.code == "collateral.needs.unknown"


@pytest.mark.parametrize("tee", ["snp", "tdx", "sgx", "nvidia"])
def test_evidence_that_does_not_parse_is_refused(tee: str) -> None:
    with pytest.raises(Refused):
        needs_of(Evidence(tee=tee, body={"what": 1}))
