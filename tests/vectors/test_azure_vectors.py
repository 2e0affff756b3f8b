"""Real reports of Azure's paravisor, for the parsers; evidence as a whole runs through the evidence cases."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from cloister.rats.evidence import Evidence
from cloister.tee.azure.abi import SNP, TDX, encode_hcl_report, parse_hcl_report, parse_runtime_claims
from cloister.tee.azure.evidence import parse_evidence
from cloister.tee.dcap.abi import TDReport, parse_quote
from cloister.tee.sev_snp.abi import parse_report
from cloister.tee.tpm.quote import rsa_key


@pytest.fixture(scope="session")
def cases(evidence_vectors: Path) -> list[dict[str, Any]]:
    """All machine-readable cases of Azure."""
    loaded: list[dict[str, Any]] = json.loads((evidence_vectors / "cases.json").read_text())
    return [case for case in loaded if case["platform"].startswith("az-")]


def test_reports_of_every_size(evidence_vectors: Path, cases: list[dict[str, Any]]) -> None:
    seen = 0
    for case in cases:
        if case["kind"] != "parse":
            continue
        data = (evidence_vectors / case["file"]).read_bytes()
        report = parse_hcl_report(data)
        assert report.report_type == case["expect"]["claims"]["report_type"]
        assert encode_hcl_report(report, size=len(data)) == data
        files = {Path(name).name: (evidence_vectors / name).read_bytes() for name in case["files"]}
        claims = parse_runtime_claims(report.variable)
        assert claims.user_data is None  # an older paravisor
        # The two files beside it are of other machines than the reports: only their form is of use.
        assert parse_runtime_claims(files["var-data.bin"]).user_data == bytes(64)
        key = load_pem_public_key(files["akpub.pem"])
        assert isinstance(key, rsa.RSAPublicKey)
        numbers = key.public_numbers()
        assert rsa_key(numbers.n, numbers.e) == key
        other = parse_hcl_report(files["hcl-report.bin"])
        assert (len(files["hcl-report.bin"]), other.report_type) == (2600, SNP)
        assert parse_runtime_claims(other.variable).user_data == bytes(64)
        seen += 1
    assert seen == 1


def test_hardware_vouches_for_the_json_in_every_sample(evidence_vectors: Path, cases: list[dict[str, Any]]) -> None:
    seen = set()
    for case in cases:
        if case["kind"] != "evidence":
            continue
        body = json.loads((evidence_vectors / case["file"]).read_text())
        parsed = parse_evidence(Evidence(tee=case["platform"], body=body))
        if parsed.hcl.report_type == TDX:
            report = parse_quote(parsed.td_quote).body
            assert isinstance(report, TDReport)
            report_data = report.report_data
        else:
            report_data = parse_report(parsed.hcl.hardware).report_data
        assert report_data == hashlib.sha256(parsed.hcl.variable).digest() + bytes(32), case["id"]
        seen.add(parsed.hcl.report_type)
    assert seen == {SNP, TDX}


def test_the_evidence_is_its_parts(evidence_vectors: Path) -> None:
    at = evidence_vectors / "az-tdx-vtpm" / "v1"
    parsed = parse_evidence(Evidence(tee="az-tdx-vtpm", body=json.loads((at / "evidence.json").read_text())))
    assert parsed.td_quote == (at / "td-quote.bin").read_bytes()
    data = (at / "hcl-report.bin").read_bytes()
    assert encode_hcl_report(parsed.hcl, size=len(data)) == data
