"""The run that the life of a confidential pod follows is one run: its blocks are filled and agree with each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explanation" / "life-of-a-confidential-pod.md"
BLOCK = re.compile(r"<!-- life:([a-z]+) -->\n(.*?)<!-- end -->", re.DOTALL)
PCR0 = re.compile(r"PCR 0 in the end +([0-9a-f]{64})$", re.MULTILINE)
NAMES = {
    *("podvm", "plain", "encrypt", "sign", "sealed", "run", "identity", "policy", "initdata", "qemu", "launch"),
    *("evidence", "findings", "audit", "denial", "put", "revoke"),
}


def blocks(text: str) -> dict[str, str]:
    return dict(BLOCK.findall(text))


def contradictions(found: dict[str, str]) -> list[str]:
    """Names of the facts on which blocks differ, or that a block lacks."""
    wrong = [f"{name} is empty" for name in sorted(NAMES) if not found.get(name, "").strip()]
    if wrong:
        return wrong
    facts = dict(re.findall(r"^([a-z ]+?)  +(\S+)$", found["identity"], re.MULTILINE))
    sealed, init_data = facts.get("sealed manifest", ""), facts.get("init data", "")
    launched = PCR0.search(found["launch"])
    pcr0 = launched[1] if launched else ""
    denial = re.search(r"\bd-[a-z0-9]+", found["denial"])
    podvm = re.search(r"pod-VM image ([0-9a-f]{32})", found["podvm"])
    root = re.search(r"root hash +([0-9a-f]{64})", found["podvm"])
    expected = {
        "sealed manifest": (sealed, ("encrypt", "sign", "sealed", "policy")),
        "sealed manifest, shortened": (sealed[:19], ("run",)),
        "init data": (init_data, ("audit", "denial")),
        "init data, shortened": (init_data[:19], ("run",)),
        "pod policy, shortened": (facts.get("pod policy", "")[7:15], ("run",)),
        "PCR 0": (pcr0, ("evidence", "audit")),
        "PCR 0, shortened": (f"pcr00 {pcr0[:16]}", ("podvm",)),
        "pod-VM image": (podvm[1] if podvm else "", ("qemu",)),
        "root hash": (root[1] if root else "", ("qemu",)),
        "denial": (denial[0] if denial else "", ("audit", "run")),
        "answer": ("digit = 7", ("run",)),
        "secret": ("kbs:///default/model/digits", ("put", "identity")),
        "what is revoked": (init_data, ("revoke",)),
    }
    return [
        f"{fact} of {place}"
        for fact, (value, places) in expected.items()
        for place in places
        if not value or value not in found[place]
    ]


def test_blocks_are_those_of_one_run() -> None:
    found = blocks(PAGE.read_text("utf-8"))
    assert set(found) == NAMES
    assert contradictions(found) == []


def test_every_released_key_is_one_that_was_approved() -> None:
    found = blocks(PAGE.read_text("utf-8"))
    released = set(re.findall(r"^ *\d+  release +(\S+)", found["audit"], re.MULTILINE))
    approved = set(re.findall(r"kbs:///([\w/-]+)", found["identity"]))
    assert released == approved
    assert len(released) == 3


@pytest.mark.parametrize("name", sorted(NAMES))
def test_an_empty_block_is_noticed(name: str) -> None:
    found = blocks(PAGE.read_text("utf-8"))
    assert contradictions({**found, name: "\n"}) != []


@pytest.mark.parametrize(
    "name", ["encrypt", "sign", "sealed", "policy", "audit", "denial", "run", "identity", "launch"]
)
def test_a_digest_of_another_run_is_noticed(name: str) -> None:
    found = blocks(PAGE.read_text("utf-8"))
    other = re.sub(r"[0-9a-f]{8}(?=[0-9a-f]*)", "0123abcd", found[name])
    assert contradictions({**found, name: other}) != []
