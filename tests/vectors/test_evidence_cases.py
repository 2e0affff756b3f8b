"""Every shared evidence case through the command line, and nothing else: file in, verdict, exit code and claims out.

An entry of `cases.json` that no rule here and no other module of this directory takes fails the suite: a case that is
silently skipped proves nothing.
"""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path
from typing import Any, Final

import pytest
from typer.testing import CliRunner

from cloister.cli.app import app

VECTORS: Final = Path(os.environ.get("CLOISTER_VECTORS", Path(__file__).resolve().parents[3] / "shared" / "vectors"))
EVIDENCE: Final = VECTORS / "evidence"
EXIT: Final = {"accept": 0, "refuse": 1, "unavailable": 3}
THROUGH_THE_COMMAND: Final = ("evidence", "evidence-ambiguous", "evidence-unsupported")
# Kinds that are no evidence by themselves, by the module that runs them.
ELSEWHERE: Final = {
    ("endorsement", "snp"): "test_snp_vectors.py",
    ("measurement", "snp"): "test_measurement_vectors.py",
    ("eventlog", "tdx"): "test_dcap_vectors.py",
    ("eventlog", "tpm"): "test_tpm_vectors.py",
    ("endorsement", "tpm"): "test_tpm_vectors.py",
    ("evidence-parts", "tpm"): "test_tpm_vectors.py",
    ("parse", "az-snp-vtpm"): "test_azure_vectors.py",
    ("claims", "cca"): "test_cose_vectors.py",
    ("rim", "nvidia"): "test_nvidia_vectors.py",
    ("endorsement", "ibm-se"): "test_cose_vectors.py",
    ("parse", "ibm-se"): "test_cose_vectors.py",
}
# Which codes may stand for the reason that a case gives.
REASONS: Final = {
    "debug": r"appraisal\.debug",
    "nonce": r"evidence\.freshness",
    "init_data": r"evidence\.init_data",
    "vmpl": r"appraisal\.snp\.vmpl",
    "expired": r"tee\..*\.expired",
    "chain": r"tee\.(sev_snp\.vek|nvidia_gpu\.chain|dcap\.pck_chain)\..*|tee\.dcap\.untrusted_root|tee\.cca\.no_anchor",
    "signature": r"tee\..*signature.*",
    "truncated": r"tee\..*\.truncated",
    "format": r"tee\..*",
    "tcb_mismatch": r"tee\.sev_snp\.tcb_mismatch",
    "revoked": r"tee\..*[._]revoked",
    "tcb_outdated": r"appraisal\.(tdx|sgx)\.tcb_status",
    "td_attributes": r"appraisal\.tdx\.sept_ve.*",
    "crl_signature": r"tee\..*\.crl_signature",
    "stale_collateral": r"tee\.dcap\.collateral\.stale",
    "collateral_signature": r"tee\.dcap\.(tcb_info|qe_identity)\.signature.*",
    "qe_identity": r"tee\.dcap\.qe_.*",
    "fmspc": r"tee\.dcap\.fmspc",
    "qe_binding": r"tee\.dcap\.qe_binding",
    "tcb_unsupported": r"appraisal\.(tdx|sgx)\.tcb_unsupported",
    "collateral_missing": r"tee\.dcap\.collateral\.missing",
    "pcr_digest": r"tee\.tpm\.pcr_digest_mismatch",
    "ak_untrusted": r"tee\.tpm\.no_ek_certificate",
    "unsupported": r"tee\..*\.cannot_verify",
}


@functools.cache
def cases() -> list[dict[str, Any]]:
    """All machine-readable cases; none where the vectors are absent."""
    if not EVIDENCE.is_dir():
        return []
    found: list[dict[str, Any]] = json.loads((EVIDENCE / "cases.json").read_text())
    return found


def commanded() -> list[dict[str, Any]]:
    return [case for case in cases() if case["kind"] in THROUGH_THE_COMMAND]


def arguments(case: dict[str, Any]) -> list[str]:
    """The command line of a case."""
    words = ["evidence", "verify", str(EVIDENCE / case["file"]), "--platform", case["platform"], "--output", "json"]
    for option, value in (
        ("--at", case["at"]),
        ("--nonce", case.get("nonce")),
        ("--report-data", case.get("report_data")),
        ("--init-data", case.get("init_data")),
    ):
        if value is not None:
            words += [option, value]
    for path in case["endorsements"]:
        words += ["--endorsement", str(EVIDENCE / path)]
    if case["collateral"]:
        words += ["--collateral", str(EVIDENCE / case["collateral"])]
    for path in case["trust_roots"]:
        words += ["--trust-root", str(EVIDENCE / path)]
    return words + case.get("flags", [])


def run(words: list[str]) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    document: dict[str, Any] = json.loads(done.stdout)
    return done.exit_code, document


def contradictions(case: dict[str, Any], status: int, document: dict[str, Any]) -> list[str]:
    """In what ways the answer is not the expected one."""
    expect = case["expect"]
    found = []
    verdicts = expect.get("verdict_any", [expect["verdict"]])
    if document["verdict"] not in verdicts or status != EXIT[document["verdict"]]:
        found.append(f"verdict {document['verdict']} with status {status}, not {' or '.join(verdicts)}")
    for name in ("authentic", "bound"):
        if expect[name] is not None and document[name] != expect[name]:
            found.append(f"{name} is {document[name]}, not {expect[name]}")
    if document["verdict"] == "accept" and expect["verdict"] != "accept":
        return found
    for name, value in expect.get("claims", {}).items() if document["claims"] else ():
        if document["claims"].get(name) != value:
            found.append(f"claim {name} is {document['claims'].get(name)!r}, not {value!r}")
    if expect.get("tcb_status") and document["claims"] and document["claims"]["tcb_status"] != expect["tcb_status"]:
        found.append(f"TCB status is {document['claims']['tcb_status']}")
    told = [item["code"] for item in document["findings"] if not item["ok"] and item["severity"] != "warning"]
    if expect["reason"] and not any(re.fullmatch(REASONS[expect["reason"]], code) for code in told):
        found.append(f"refused for {told}, not for {expect['reason']}")
    return found


@pytest.mark.parametrize("case", commanded(), ids=lambda case: case["id"])
def test_evidence_case(case: dict[str, Any], vectors: Path) -> None:
    status, document = run(arguments(case))
    assert contradictions(case, status, document) == [], json.dumps(document["findings"], indent=1)


def test_every_case_has_a_rule(vectors: Path) -> None:
    here = Path(__file__).parent
    without = [
        case["id"]
        for case in cases()
        if case["kind"] not in THROUGH_THE_COMMAND
        and not (here / ELSEWHERE.get((case["kind"], case["platform"]), "-")).is_file()
    ]
    assert without == []
    assert len(commanded()) >= 113


def test_every_reason_has_its_codes(vectors: Path) -> None:
    assert {case["expect"]["reason"] for case in commanded()} - set(REASONS) == {None}


def test_a_wrong_answer_is_noticed(vectors: Path) -> None:
    """The comparison itself can fail, in each of its parts."""
    case = {
        "expect": {"verdict": "accept", "authentic": True, "bound": "yes", "reason": "debug", "claims": {"vmpl": 0}}
    }
    document = {"verdict": "refuse", "authentic": False, "bound": "no", "claims": {"vmpl": 1}, "findings": []}
    assert len(contradictions(case, 0, document)) == 5
