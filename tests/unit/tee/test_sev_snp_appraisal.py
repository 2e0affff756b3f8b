"""The owner's rules for SNP: each seen holding and failing, with its own code, and the strict default."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from cloister.rats.claims import TCB
from cloister.rats.policy import parse_appraisal_policy
from cloister.rats.result import Finding, Question, Severity
from cloister.rats.rules import Handling, PlatformRules, SNPRules
from cloister.tee.sev_snp.appraisal import SNPFacts, appraise_platform
from cloister.testing.snp import NOW

VERSION = {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219}
FACTS = SNPFacts(
    line="Milan",
    signing_key="VCEK",
    vmpl=0,
    migration_agent=False,
    migration_agent_id="ff" * 32,
    smt=True,
    single_socket=False,
    chip_id=True,
    current=(1, 55, 29),
    committed=(1, 55, 29),
    guest_svn=2,
    tcb=TCB(reported=VERSION, current=VERSION, committed=VERSION, launch=VERSION),
    launch_mitigations=0b110,
    current_mitigations=0b111,
    platform_info={"alias_check_complete": True, "tsme_enabled": False},
    id_key_digest="ab" * 48,
    author_key_digest="00" * 48,
)


def judge(facts: SNPFacts = FACTS, **rules: Any) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in appraise_platform(facts, PlatformRules(snp=SNPRules(**rules)), at=NOW):
        assert finding.question is Question.ACCEPTABLE
        assert finding.expected
        assert finding.actual
        assert finding.origin.endswith("of section snp")
        found.setdefault(finding.code.removeprefix("appraisal.snp."), []).append(finding)
    return found


def ok(code: str, facts: SNPFacts = FACTS, **rules: Any) -> bool:
    return all(finding.ok for finding in judge(facts, **rules)[code])


def facts(**changes: Any) -> SNPFacts:
    return replace(FACTS, **changes)


def test_the_default_asks_for_what_every_guest_can_have() -> None:
    found = judge()
    assert set(found) == {"vmpl", "migration_agent", "provisional_firmware"}
    assert all(finding.ok for findings in found.values() for finding in findings)


RULES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # code, rules, facts that hold, facts that do not
    ("vmpl", {}, {"vmpl": 0}, {"vmpl": 1}),
    ("vmpl", {"vmpls": (0, 2)}, {"vmpl": 2}, {"vmpl": 3}),
    ("vmpl", {"vmpls": (0, 0xFFFFFFFF)}, {"vmpl": 0}, {"vmpl": 0xFFFFFFFF}),  # the host asked for it
    ("vmpl", {"vmpls": (1,)}, {"vmpl": 1}, {"vmpl": 0}),
    ("migration_agent", {}, {}, {"migration_agent": True}),
    (
        "migration_agent",
        {"migration_agents": ("AA" * 32,)},
        {"migration_agent": True, "migration_agent_id": "aa" * 32},
        {"migration_agent": True, "migration_agent_id": "bb" * 32},
    ),
    ("smt", {"accept_smt": False}, {"smt": False}, {"smt": True}),
    ("single_socket", {"require_single_socket": True}, {"single_socket": True}, {}),
    ("guest_svn", {"minimum_guest_svn": 2}, {}, {"guest_svn": 1}),
    ("product", {"products": ("Milan", "Turin")}, {}, {"line": "Genoa"}),
    ("signing_key", {"signing_keys": ("VCEK",)}, {}, {"signing_key": "VLEK"}),
    ("chip_id", {"require_chip_id": True}, {}, {"chip_id": False}),
    ("platform_info", {"platform_info": {"alias_check_complete": True}}, {}, {"platform_info": {}}),
    ("platform_info", {"platform_info": {"tsme_enabled": False}}, {}, {"platform_info": {"tsme_enabled": True}}),
    ("abi", {"minimum_abi": (1, 55)}, {}, {"committed": (1, 54, 99)}),
    ("abi", {"minimum_abi": (1, 55)}, {}, {"current": (1, 54, 99)}),
    ("mitigations", {"required_mitigations": 0b10}, {}, {"launch_mitigations": 0b101}),
    ("mitigations", {"required_mitigations": 0b10}, {}, {"launch_mitigations": None}),
    ("mitigations", {"required_current_mitigations": 0b101}, {}, {"current_mitigations": 0b001}),
    ("id_key_digest", {"id_key_digests": ("AB" * 48,)}, {}, {"id_key_digest": "ac" * 48}),
    ("id_key_digest", {"id_key_digests": ("00" * 48,)}, {"id_key_digest": "00" * 48}, {}),
    ("author_key_digest", {"author_key_digests": ("cd" * 48,)}, {"author_key_digest": "cd" * 48}, {}),
]


@pytest.mark.parametrize(("code", "rules", "good", "bad"), RULES)
def test_each_rule(code: str, rules: dict[str, Any], good: dict[str, Any], bad: dict[str, Any]) -> None:
    if code == "id_key_digest" and rules["id_key_digests"] == ("00" * 48,):
        assert not ok(code, facts(**good), **rules)  # no ID block is no key, whatever the policy lists
    else:
        assert ok(code, facts(**good), **rules)
    assert not ok(code, facts(**bad), **rules)
    assert all(finding.refuses for finding in judge(facts(**bad), **rules)[code] if not finding.ok)


def test_insecure_accepts_any_migration_agent() -> None:
    assert ok("migration_agent", facts(migration_agent=True), insecure_accept_migration_agent=True)


@pytest.mark.parametrize("which", ["reported", "current", "committed"])
def test_the_minimum_counts_for_three_versions(which: str) -> None:
    """What is not committed can be rolled back; what runs may be older than what is reported of it."""
    least = {"snp": 24, "microcode": 219}
    assert ok("minimum_tcb", minimum_tcb=least)
    old = replace(FACTS.tcb, **{which: {**VERSION, "snp": 23}})
    findings = judge(facts(tcb=old), minimum_tcb=least)["minimum_tcb"]
    assert [(finding.path, finding.ok) for finding in findings] == [
        (f"{name.upper()}_TCB", name != which) for name in ("reported", "current", "committed")
    ]
    assert all("snp" in finding.message for finding in findings if not finding.ok)


def test_launch_has_its_own_minimum() -> None:
    old = facts(tcb=replace(FACTS.tcb, launch={**VERSION, "microcode": 1}))
    assert ok("minimum_tcb", old, minimum_tcb={"microcode": 219})
    assert not ok("minimum_launch_tcb", old, minimum_launch_tcb={"microcode": 219})
    assert ok("minimum_launch_tcb", minimum_launch_tcb={"microcode": 219})


def test_a_component_that_the_line_lacks_is_below_every_minimum() -> None:
    assert not ok("minimum_tcb", minimum_tcb={"fmc": 0})


@pytest.mark.parametrize(
    ("handling", "held", "severity"),
    [
        (Handling.ACCEPT, True, Severity.WARNING),
        (Handling.WARN, False, Severity.WARNING),
        (Handling.REFUSE, False, Severity.ERROR),
    ],
)
def test_provisional_firmware_in_three_ways(handling: Handling, held: bool, severity: Severity) -> None:
    newer = {**VERSION, "microcode": 220}
    for provisional in (facts(current=(1, 55, 30)), facts(tcb=replace(FACTS.tcb, current=newer))):
        (finding,) = judge(provisional, provisional_firmware=handling)["provisional_firmware"]
        assert (finding.ok, finding.severity) == (held, severity)
    assert ok("provisional_firmware", provisional_firmware=handling)


def test_facts_of_another_technology() -> None:
    with pytest.raises(TypeError):
        appraise_platform(object(), PlatformRules(), at=NOW)


def test_the_section_in_a_policy_text() -> None:
    text = b"""
version = 1
id = "snp"
tees = ["snp"]
[snp]
vmpls = [0, 1]
minimum_tcb = {snp = 24, microcode = 219}
platform_info = {alias_check_complete = true}
signing_keys = ["VCEK"]
provisional_firmware = "refuse"
"""
    rules = parse_appraisal_policy(text).rules.snp
    assert rules.minimum_tcb == {"snp": 24, "microcode": 219}
    assert rules.provisional_firmware is Handling.REFUSE
    assert msgspec.structs.asdict(rules)["platform_info"] == {"alias_check_complete": True}
