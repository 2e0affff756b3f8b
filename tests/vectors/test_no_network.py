"""Verification reaches for no network, proved for one case of every platform, and for those that lack something.

A child process verifies with an audit hook that forbids every socket, and once more inside a network namespace that has
nothing but a loopback that is down. What a vendor could be asked for (missing collateral, missing revocation lists) is
among the cases: that is where a fetch would be tempting.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from cloister.rats.result import Verdict
from cloister.sdk.evidence import PLATFORMS

NAMESPACE: Final = ("unshare", "--net", "--map-root-user")
# Forbids sockets before anything of ours is imported; a hook cannot be taken out again.
FENCE: Final = """
import sys
def hook(event, arguments):
    if event.startswith("socket."):
        raise RuntimeError(f"reached for the network: {event}")
sys.addaudithook(hook)
"""
VERIFY: Final = """
import json
from datetime import datetime
from pathlib import Path
from cloister.sdk.evidence import verify_evidence
root, given = Path(sys.argv[1]), json.loads(sys.argv[2])
def data(text):
    return None if text is None else bytes.fromhex(text)
for case in given:
    answer = verify_evidence(
        root / case["file"],
        platform=case["platform"],
        nonce=data(case.get("nonce")),
        report_data=data(case.get("report_data")),
        init_data=data(case.get("init_data")),
        endorsements=[root / item for item in case["endorsements"]],
        collateral=[root / case["collateral"]] if case["collateral"] else [],
        trust_roots=[root / item for item in case["trust_roots"]],
        insecure_no_revocation="--insecure-no-revocation" in (case.get("flags") or ()),
        at=datetime.fromisoformat(case["at"]) if case["at"] else None,
    )
    print(json.dumps([case["id"], answer.verdict.value]))
"""
SIMULATE: Final = """
import json, pathlib, tempfile
from cloister.sdk.evidence import verify_evidence
from cloister.tee.insecure.attester import SimulationAttester
with tempfile.TemporaryDirectory() as directory:
    body = SimulationAttester(directory + "/key").attest(bytes(48))
print(json.dumps(["simulated", verify_evidence(json.dumps(body).encode(), platform="simulated").verdict.value]))
"""


def chosen(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An accepted case of every platform, else any; and one of each that something of the vendor's is missing for."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for case in cases:
        if not case["kind"].startswith("evidence") or case["kind"] == "evidence-parts":
            continue
        expect = case["expect"]
        accepted = expect["verdict"] == "accept" and not case.get("flags")
        kinds = {
            "accept": expect["verdict"] == "accept",
            "strict": accepted,
            "open": "unavailable" in (expect["verdict"], *expect.get("verdict_any", ())),
            "any": True,
        }
        for kind, wanted in kinds.items():
            if wanted:
                found.setdefault((case["platform"], kind), case)
    accepted_platforms = {platform for platform, kind in found if kind == "accept"}
    return list(
        {
            case["id"]: case
            for (platform, kind), case in found.items()
            if kind != "any" or platform not in accepted_platforms
        }.values()
    )


@pytest.fixture(scope="module")
def cases(evidence_vectors: Path) -> list[dict[str, Any]]:
    return chosen(json.loads((evidence_vectors / "cases.json").read_text("utf-8")))


@pytest.fixture(scope="session")
def namespace(require_tool: Callable[[str], Path]) -> tuple[str, ...]:
    """Words that run a command without a network; skips with what the kernel says where it refuses."""
    words = (str(require_tool(NAMESPACE[0])), *NAMESPACE[1:])
    done = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"network namespaces are refused here: {done.stderr.strip()}")
    return words


def run(program: str, *arguments: str, words: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*words, sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, timeout=300
    )


def verdicts(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(line) for line in done.stdout.splitlines())


def test_every_platform_is_among_the_cases(cases: list[dict[str, Any]]) -> None:
    """But IBM's, of which there is no vector and which this build cannot verify; the simulation is made on the spot."""
    assert {case["platform"] for case in cases} | {"simulated", "sample", "se"} == set(PLATFORMS)
    assert {Verdict.ACCEPT.value, Verdict.UNAVAILABLE.value} <= {case["expect"]["verdict"] for case in cases}


@pytest.mark.parametrize("fenced", ["by the audit hook alone", "in a namespace too"])
def test_verification_opens_no_socket(
    fenced: str, cases: list[dict[str, Any]], evidence_vectors: Path, request: pytest.FixtureRequest
) -> None:
    words = request.getfixturevalue("namespace") if "namespace" in fenced else ()
    found = verdicts(run(FENCE + VERIFY, str(evidence_vectors), json.dumps(cases), words=words))
    assert found.keys() == {case["id"] for case in cases}
    for case in cases:
        assert found[case["id"]] in case["expect"].get("verdict_any", [case["expect"]["verdict"]]), case["id"]
    # The strict policy takes no simulation: what is shown is that saying so needs no network either.
    assert verdicts(run(FENCE + SIMULATE, words=words)) == {"simulated": Verdict.REFUSE.value}


def test_the_audit_hook_sees_a_socket() -> None:
    done = run(FENCE + "import socket; socket.socket()")
    assert "reached for the network: socket.__new__" in done.stderr
    done = run(FENCE + "import socket; socket.getaddrinfo('localhost', 1)")
    assert "reached for the network: socket.getaddrinfo" in done.stderr


def test_the_namespace_has_no_network(namespace: tuple[str, ...]) -> None:
    attempt = "import socket; socket.create_connection(('127.0.0.1', 9), timeout=5)"
    assert "Network is unreachable" in run(attempt, words=namespace).stderr
