"""NVIDIA's real reports and manifests: the manifests by `cases.json`, the reports' claims beside CoCo's own output."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cloister.crypto.pem import split_pem
from cloister.errors import Refused
from cloister.rats.claims import Level
from cloister.rats.endorsement import Document, Endorsements, TrustedRoot
from cloister.rats.evidence import Evidence
from cloister.tee.nvidia_gpu import abi
from cloister.tee.nvidia_gpu.evidence import parse_evidence, read_evidence
from cloister.tee.nvidia_gpu.manifest import verify_manifest
from cloister.tee.nvidia_gpu.reference import Wanted, find_manifest
from cloister.tee.nvidia_gpu.verifier import authenticate
from cloister.tee.registry import pins_for
from cloister.wire.limits import CERTIFICATE_BYTES

# Which code stands for which word of the cases.
REASONS = {"expired": "tee.nvidia_gpu.rim.chain.expired"}
THEN = datetime(2025, 1, 1, tzinfo=UTC)
FORMS = {
    "nvidia/hopper/report.hex": "hex text of one report",
    "nvidia/blackwell/evidence.json": "JSON list as NVIDIA's tools write it",
    "nvidia/ppcie-8gpu-part/gpu_evidence.json": "JSON list as NVIDIA's tools write it",
    "nvidia/ppcie-8gpu-part/switch_evidence.json": "JSON list as NVIDIA's tools write it",
}


@pytest.fixture(scope="session")
def cases(evidence_vectors: Path) -> list[dict[str, Any]]:
    """The cases of kind `rim`."""
    found = json.loads((evidence_vectors / "cases.json").read_text("utf-8"))
    return [case for case in found if case["platform"] == "nvidia" and case["kind"] == "rim"]


def certificates(path: Path) -> list[bytes]:
    return split_pem(path.read_bytes(), code="test", ceiling=CERTIFICATE_BYTES)


def test_manifests_come_to_what_the_cases_say(cases: list[dict[str, Any]], evidence_vectors: Path) -> None:
    assert len(cases) >= 12
    for case in cases:
        roots = tuple(
            TrustedRoot(tee="nvidia", level=Level.HARDWARE, name=name, der=der)
            for name in case["trust_roots"]
            for der in certificates(evidence_vectors / name)
        )
        data = (evidence_vectors / case["file"]).read_bytes()
        at = datetime.fromisoformat(case["at"].replace("Z", "+00:00"))
        expected = case["expect"]
        try:
            found = verify_manifest(data, Endorsements(roots=roots), at=at)
        except Refused as err:
            assert not expected["valid"], case["id"]
            assert err.code == REASONS[expected["reason"]], case["id"]
            continue
        assert expected["valid"], case["id"]
        assert len(found.measurements) == expected["measurements"]


def test_manifests_hold_under_the_pinned_root_alone(cases: list[dict[str, Any]], evidence_vectors: Path) -> None:
    endorsements = Endorsements(roots=(), pins=pins_for("nvidia"))
    for case in cases:
        data = (evidence_vectors / case["file"]).read_bytes()
        found = verify_manifest(data, endorsements, at=THEN)
        assert found.product == "GH100"
        assert sum(item.active for item in found.measurements.values()) == 12
        for old, new in ((b'active="False"', b'active="True"'), (b'index="63"', b'index="64"'), (b"96.00.", b"96.01.")):
            with pytest.raises(Refused) as caught:
                verify_manifest(data.replace(old, new, 1), endorsements, at=THEN)
            assert caught.value.code == "tee.nvidia_gpu.rim.digest"


@pytest.mark.parametrize("name", FORMS)
def test_real_reports_read_back(evidence_vectors: Path, name: str) -> None:
    found = read_evidence((evidence_vectors / name).read_bytes(), tee="nvidia")
    assert found.form == FORMS[name]
    for device in parse_evidence(Evidence(tee="nvidia", body=found.body)):
        assert abi.encode_report(device.report) == device.data


def test_claims_are_those_of_cocos_verifier(evidence_vectors: Path) -> None:
    directory = evidence_vectors / "nvidia" / "hopper"
    body = read_evidence((directory / "report.hex").read_bytes(), tee="nvidia").body
    chain = tuple(certificates(directory / "chain.pem"))
    endorsements = Endorsements(roots=(), pins=pins_for("nvidia"), certificates=chain)
    raw = dict(authenticate(Evidence(tee="nvidia", body=body), endorsements, at=THEN).claims.raw)
    expected = json.loads((directory / "expected-claims.json.txt").read_text("utf-8"))
    assert raw | {"uuid": ""} == expected | {"uuid": ""}


def test_real_manifests_are_found_by_their_old_names(evidence_vectors: Path) -> None:
    """No report here has its manifests here; a report of that VBIOS would find it, by name or by content."""
    directory = evidence_vectors / "nvidia" / "hopper"
    body = read_evidence((directory / "report.hex").read_bytes(), tee="nvidia").body
    chain = tuple(certificates(directory / "chain.pem"))
    file = evidence_vectors / "nvidia" / "rim" / "1010_0200_882_96005E0001_PROD.swidtag"
    documents = (Document(name=file.name, data=file.read_bytes()),)
    endorsements = Endorsements(roots=(), pins=pins_for("nvidia"), certificates=chain, documents=documents)
    found = authenticate(Evidence(tee="nvidia", body=body), endorsements, at=THEN)
    assert found.claims.native["manifests"] == "not all given"  # of another VBIOS
    [device] = found.facts.devices  # type: ignore[attr-defined]  # NVIDIA's facts
    driver, vbios = device.comparison.missing
    assert (driver, vbios) == ("NV_GPU_DRIVER_GH100_550.90.07", "NV_GPU_VBIOS_1010_0200_882_96009F0001")
    for name in (file.name, "anything.xml"):
        wanted = Wanted(
            id="NV_GPU_VBIOS_1010_0200_882_96005E0001", version="96.00.5E.00.01", products=frozenset({"GH100"})
        )
        assert find_manifest(wanted, (Document(name=name, data=file.read_bytes()),)) == file.read_bytes()
