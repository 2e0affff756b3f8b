"""What the service has of vendors' statements: read when it changed, bounded, and no network on the way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import Unavailable
from cloister.rats.endorsement import TrustedRoot
from cloister.rats.evidence import Evidence
from cloister.tee.collateral.cache import CollateralCache
from cloister.tee.collateral.collector import checked_entry
from cloister.tee.collateral.item import Kind, make_item
from cloister.testing import cca, snp
from cloister.trust.verifier import CollateralSource
from cloister.trust.verifier.collateral import NOTHING, SUBDIRECTORY
from evidence_world import GPUs, Site, snp_machine, tdx_machine
from trust_world import CANARY

_forbidden = False


def _watch(event: str, _: tuple[object, ...]) -> None:
    if _forbidden and (event.startswith("socket.") or event in ("subprocess.Popen", "os.posix_spawn", "os.exec")):
        raise AssertionError(f"a request did {event}")


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


@pytest.fixture(scope="module")
def amd() -> snp.FakeAMD:
    """One AMD."""
    return snp.FakeAMD("Turin")


@pytest.fixture
def cache(quick: Path) -> CollateralCache:
    """An empty cache."""
    return CollateralCache(quick / SUBDIRECTORY)


LIST = make_item(Kind.AMD_CRL, signer="vcek", product="Turin")


def put_list(cache: CollateralCache, amd: snp.FakeAMD, **times: Any) -> bytes:
    data = amd.revocation_list(**times)
    cache.put(checked_entry(LIST, data, "", fetched=snp.NOW, origin="test"))
    return data


def test_a_file_is_read_again_only_when_it_was_replaced(
    quick: Path, cache: CollateralCache, amd: snp.FakeAMD, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read = CollateralCache.get

    def counted(self: CollateralCache, item: Any) -> Any:
        reads.append(item.kind.value)
        return read(self, item)

    monkeypatch.setattr(CollateralCache, "get", counted)
    source, evidence = CollateralSource(quick), snp.FakeChip.made_by(amd).evidence()
    assert source.gather(evidence).revocation_lists == ()
    assert reads == []
    first = put_list(cache, amd)
    reads.clear()
    gathered = source.gather(evidence)
    assert gathered.revocation_lists == (first,)
    assert source.gather(evidence) is gathered, "the same set of files is the same answer"
    assert reads == ["amd-crl"]
    second = put_list(cache, amd, start=snp.NOW - timedelta(days=1))
    assert second != first
    reads.clear()
    assert source.gather(evidence).revocation_lists == (second,)
    assert reads == ["amd-crl"]
    cache.remove(LIST)
    assert source.gather(evidence).revocation_lists == ()


def test_missing_and_stale_are_wanted(quick: Path, cache: CollateralCache, amd: snp.FakeAMD) -> None:
    source, evidence = CollateralSource(quick), snp.FakeChip.made_by(amd).evidence()
    chain = make_item(Kind.AMD_CHAIN, signer="vcek", product="Turin")
    assert source.gather(evidence).wanting(snp.NOW) == (chain, LIST)
    put_list(cache, amd)
    found = source.gather(evidence)
    assert found.wanting(snp.NOW) == (chain,)
    assert set(found.wanting(snp.NOW + timedelta(days=336))) == {chain, LIST}
    assert found.lacks_certificates
    command = source.fetch_command([found], snp.NOW)
    assert command == f"CLOISTER_CACHE={quick} cloister collateral fetch --item 'amd-chain signer=vcek product=Turin'"


def test_where_all_is_had_it_is_had_anew(quick: Path, cache: CollateralCache, amd: snp.FakeAMD) -> None:
    """A question may stay open although nothing is missing: a responder that does not know, say."""
    put_list(cache, amd)
    source = CollateralSource(quick)
    found = source.gather(snp.FakeChip.made_by(amd).evidence())
    whole = replace(found, missing=())
    assert source.fetch_command([whole], snp.NOW).endswith(f"fetch --refresh --item '{LIST.text}'")
    assert source.fetch_command([NOTHING], snp.NOW) == ""


def test_an_entry_that_is_of_no_use_is_not_the_guests_fault(quick: Path, cache: CollateralCache) -> None:
    machine = GPUs()
    device = machine.devices[0]
    item = make_item(Kind.RIM, id=device.manifest_ids()[0])
    document = machine.manifests.for_device(device)[0]
    entry = checked_entry(item, document.data, "", fetched=snp.NOW, origin="test")
    cache.put(replace(entry, content=replace(entry.content, data=b"<SoftwareIdentity/>")))
    source = CollateralSource(quick)
    with pytest.raises(Unavailable) as caught:
        source.gather(Evidence(tee="nvidia", body=machine.evidence(bytes(32))), machine.pki.roots())
    assert caught.value.code == "trust.verifier.collateral"
    assert "collateral rm --all" in caught.value.hint


@pytest.mark.parametrize(
    "evidence",
    [
        Evidence(tee="tpm", body={}),
        Evidence(tee="cca", body={}),
        Evidence(tee="snp", body={}),
        Evidence(tee="nvidia", body={"device_evidence_list": [{}]}),
    ],
)
def test_evidence_that_names_nothing_gets_nothing(quick: Path, evidence: Evidence) -> None:
    raw = cca.FakeCCA().root()
    roots = [TrustedRoot(tee=evidence.tee, level=raw.level, name="raw key", der=raw.der)]
    assert CollateralSource(quick).gather(evidence, roots) is NOTHING
    assert not (quick / SUBDIRECTORY).exists(), "the cache is only read"


@pytest.mark.parametrize("devices", [False, True])
def test_no_request_opens_a_socket(quick: Path, devices: bool) -> None:
    site = Site(quick / "site", snp_machine(), gpus=GPUs() if devices else None).fetch()
    with no_network():
        guest = site.guest().auth()
        text = site.gpus.text(guest.device_digest()) if site.gpus is not None else ""
        assert guest.attest(additional=text).status == 200
        assert guest.open(guest.resource()) == CANARY
    site.close()


def test_nor_one_that_lacks_collateral(quick: Path) -> None:
    site = Site(quick / "site", tdx_machine())
    with no_network():
        assert site.guest().attest().status == 503
    with no_network(), pytest.raises(AssertionError):
        import socket

        socket.socket()
    site.close()
