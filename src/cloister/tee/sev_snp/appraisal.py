"""The owner's rules for SNP (section `snp` of the appraisal policy): steps 8 to 10 of the checklist, one finding each.

A rule that demands nothing makes no finding. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cloister.rats.claims import TCB
from cloister.rats.result import Finding, Question, Severity
from cloister.rats.rules import Handling, PlatformRules, SNPRules

_SECTION: Final = "of section snp"
_VMPLS: Final = 4
_UPDATE: Final = "update the platform's firmware, or lower the minimum"


@dataclass(frozen=True, slots=True, kw_only=True)
class SNPFacts:
    """What the rules judge.

    Attributes:
        line: product line.
        signing_key: `VCEK` or `VLEK`.
        vmpl: privilege level that asked for the report; 0xFFFFFFFF when the host did.
        migration_agent: the guest may be associated with a migration agent.
        migration_agent_id: REPORT_ID_MA, hex; all ones when there is none.
        smt: the guest may run, or runs, with simultaneous multithreading.
        single_socket: the guest runs on one socket only.
        chip_id: the platform says which chip it is.
        current: firmware that runs: major, minor, build.
        committed: firmware that cannot be rolled back below.
        guest_svn: security version of the guest.
        tcb: the four TCB versions.
        launch_mitigations: mitigation vector at launch; None before report version 5.
        current_mitigations: mitigation vector now; None before report version 5.
        platform_info: bits of PLATFORM_INFO by name.
        id_key_digest: hex, zero without an ID block.
        author_key_digest: hex, zero without an author key.
    """

    line: str
    signing_key: str
    vmpl: int
    migration_agent: bool
    migration_agent_id: str
    smt: bool
    single_socket: bool
    chip_id: bool
    current: tuple[int, int, int]
    committed: tuple[int, int, int]
    guest_svn: int
    tcb: TCB
    launch_mitigations: int | None
    current_mitigations: int | None
    platform_info: Mapping[str, bool]
    id_key_digest: str
    author_key_digest: str


def appraise_platform(facts: object, rules: PlatformRules, *, at: datetime) -> tuple[Finding, ...]:
    """Judge the facts of authentic SNP evidence; `at` is not needed.

    Raises:
        TypeError: facts of another technology.
    """
    if not isinstance(facts, SNPFacts):
        raise TypeError("facts of another technology")
    snp = rules.snp
    return (*_guest(facts, snp), *_platform(facts, snp), *_tcb(facts, snp), *_identity(facts, snp))


def _guest(facts: SNPFacts, rules: SNPRules) -> Iterator[Finding]:
    """Step 8, what the guest's policy lets the host do. DEBUG is judged for all technologies alike."""
    yield _finding(
        "appraisal.snp.vmpl",
        facts.vmpl in rules.vmpls and facts.vmpl < _VMPLS,
        "privilege level that asked for the report",
        expected=" or ".join(map(str, rules.vmpls)) or "none",
        actual=str(facts.vmpl) if facts.vmpl < _VMPLS else "the host",
        rule="vmpls",
        hint="a report of a lower level may be of code that the guest does not trust; name the level if you do",
        path="VMPL",
    )
    pinned = facts.migration_agent_id in map(str.lower, rules.migration_agents)
    yield _finding(
        "appraisal.snp.migration_agent",
        not facts.migration_agent or pinned or rules.insecure_accept_migration_agent,
        "migration agent may take the guest elsewhere" if facts.migration_agent else "no migration agent is allowed",
        expected="none, or one that is named" if not rules.insecure_accept_migration_agent else "any",
        actual=f"allowed, {facts.migration_agent_id[:16]}.." if facts.migration_agent else "none",
        rule="migration_agents",
        hint="start the guest without MIGRATE_MA in its policy",
        path="POLICY",
    )
    if not rules.accept_smt:
        yield _finding(
            "appraisal.snp.smt",
            not facts.smt,
            "simultaneous multithreading",
            expected="off",
            actual="on or allowed" if facts.smt else "off",
            rule="accept_smt",
            hint="start the guest with a policy that forbids it, on a platform that has it off",
            path="POLICY",
        )
    if rules.require_single_socket:
        yield _finding(
            "appraisal.snp.single_socket",
            facts.single_socket,
            "the guest is bound to one socket",
            expected="one socket",
            actual="one socket" if facts.single_socket else "any",
            rule="require_single_socket",
            hint="start the guest with SINGLE_SOCKET in its policy",
            path="POLICY",
        )
    if rules.minimum_guest_svn:
        yield _finding(
            "appraisal.snp.guest_svn",
            facts.guest_svn >= rules.minimum_guest_svn,
            "security version of the guest",
            expected=f"at least {rules.minimum_guest_svn}",
            actual=str(facts.guest_svn),
            rule="minimum_guest_svn",
            hint="start a newer guest",
            path="GUEST_SVN",
        )


def _platform(facts: SNPFacts, rules: SNPRules) -> Iterator[Finding]:
    """Step 8, the platform."""
    if rules.products:
        yield _finding(
            "appraisal.snp.product",
            facts.line in rules.products,
            "product line",
            expected=" or ".join(rules.products),
            actual=facts.line,
            rule="products",
            hint="run on a product line that is accepted",
            path="CPUID",
        )
    if rules.signing_keys:
        yield _finding(
            "appraisal.snp.signing_key",
            facts.signing_key in rules.signing_keys,
            "kind of key that signed",
            expected=" or ".join(rules.signing_keys),
            actual=facts.signing_key,
            rule="signing_keys",
            hint="a VLEK is of the cloud, not of the chip; a VCEK names its chip",
            path="SIGNING_KEY",
        )
    if rules.require_chip_id:
        yield _finding(
            "appraisal.snp.chip_id",
            facts.chip_id,
            "report names its chip",
            expected="a chip id",
            actual="a chip id" if facts.chip_id else "masked",
            rule="require_chip_id",
            hint="the platform masks its chip id (MASK_CHIP_ID), or a VLEK signed",
            path="CHIP_ID",
        )
    for name, wanted in rules.platform_info.items():
        found = facts.platform_info.get(name)
        yield _finding(
            "appraisal.snp.platform_info",
            found is wanted,
            f"state of the platform: {name}",
            expected=str(wanted).lower(),
            actual="unknown" if found is None else str(found).lower(),
            rule="platform_info",
            hint="set the platform up so, or do not ask for it",
            path="PLATFORM_INFO",
        )
    if any(rules.minimum_abi):
        lowest = min(facts.current[:2], facts.committed[:2])
        yield _finding(
            "appraisal.snp.abi",
            lowest >= tuple(rules.minimum_abi),
            "interface version of the firmware, the lower of the running and the committed one",
            expected="at least {}.{}".format(*rules.minimum_abi),
            actual="{}.{}".format(*lowest),
            rule="minimum_abi",
            hint=_UPDATE,
            path="COMMITTED_VERSION",
        )


def _tcb(facts: SNPFacts, rules: SNPRules) -> Iterator[Finding]:
    """Step 9. Reported alone would not do: what is not committed can be rolled back, what runs may be older."""
    if rules.minimum_tcb:
        for name in ("reported", "current", "committed"):
            yield _minimum("appraisal.snp.minimum_tcb", name, getattr(facts.tcb, name), rules.minimum_tcb)
    if rules.minimum_launch_tcb:
        # A guest that was started before an update was loaded by the firmware of then.
        yield _minimum("appraisal.snp.minimum_launch_tcb", "launch", facts.tcb.launch, rules.minimum_launch_tcb)
    settled = facts.current == facts.committed and facts.tcb.current == facts.tcb.committed
    yield _finding(
        "appraisal.snp.provisional_firmware",
        settled or rules.provisional_firmware is Handling.ACCEPT,
        "firmware that runs is committed" if settled else "firmware that runs is not committed: it may be rolled back",
        expected=f"committed {_words(facts.tcb.committed)}",
        actual=f"current {_words(facts.tcb.current)}",
        rule="provisional_firmware",
        hint="commit the firmware (SNP_COMMIT), or accept it",
        path="COMMITTED_TCB",
        severity=Severity.ERROR if rules.provisional_firmware is Handling.REFUSE else Severity.WARNING,
    )
    for name, found, wanted in (
        ("launch", facts.launch_mitigations, rules.required_mitigations),
        ("current", facts.current_mitigations, rules.required_current_mitigations),
    ):
        if wanted:
            yield _finding(
                "appraisal.snp.mitigations",
                (found or 0) & wanted == wanted,
                f"mitigations in force ({name})",
                expected=f"bits {wanted:#x}",
                actual="not reported" if found is None else f"{found:#x}",
                rule="required_mitigations" if name == "launch" else "required_current_mitigations",
                hint="update the firmware and start the guest anew; report versions before 5 have no vector",
                path=f"{name.upper()}_MIT_VECTOR",
            )


def _identity(facts: SNPFacts, rules: SNPRules) -> Iterator[Finding]:
    """Step 10, the ID block; measurement, HOST_DATA and REPORT_DATA are judged for all technologies alike."""
    for name, found, wanted in (
        ("id_key", facts.id_key_digest, rules.id_key_digests),
        ("author_key", facts.author_key_digest, rules.author_key_digests),
    ):
        if wanted:
            yield _finding(
                f"appraisal.snp.{name}_digest",
                bool(found.strip("0")) and found in map(str.lower, wanted),
                f"key of the ID block: {name.replace('_', ' ')}",
                expected=" or ".join(f"{item[:16]}.." for item in wanted),
                actual=f"{found[:16]}.." if found.strip("0") else "none",
                rule=f"{name}_digests",
                hint="start the guest with an ID block signed by a key that is accepted",
                path=f"{name.upper()}_DIGEST",
            )


def _minimum(code: str, name: str, found: Mapping[str, int], least: Mapping[str, int]) -> Finding:
    """A component that this product line does not have is below every minimum."""
    below = [item for item, version in least.items() if found.get(item, -1) < version]
    return _finding(
        code,
        not below,
        f"{name} TCB" + (f": {', '.join(below)} below the minimum" if below else ""),
        expected="at least " + _words(least),
        actual=_words(found),
        rule=code.rpartition(".")[2],
        hint=_UPDATE,
        path=f"{name.upper()}_TCB",
    )


def _words(tcb: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {version}" for name, version in tcb.items()) or "none"


def _finding(
    code: str,
    ok: bool,
    message: str,
    *,
    expected: str,
    actual: str,
    rule: str,
    hint: str,
    path: str,
    severity: Severity = Severity.ERROR,
) -> Finding:
    return Finding(
        code=code,
        question=Question.ACCEPTABLE,
        ok=ok,
        message=message,
        expected=expected,
        actual=actual,
        origin=f"{rule} {_SECTION}",
        hint=hint,
        path=path,
        severity=severity,
    )
