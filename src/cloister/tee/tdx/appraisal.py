"""The owner's rules for TDX evidence (section `tdx` of the appraisal policy), one finding each. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cloister.rats.result import Finding, Question
from cloister.rats.rules import PlatformRules, TDXRules
from cloister.tee.checklist import shorten
from cloister.tee.dcap.appraisal import PlatformFacts, appraise_common
from cloister.tee.tdx import abi

_ZERO: Final = bytes(48)


@dataclass(frozen=True, slots=True, kw_only=True)
class TDXFacts:
    """What the rules judge.

    Attributes:
        platform: TCB, collateral, padding.
        attributes: of the TD, 64 bits.
        mr_signer_seam: signer of the TDX module, 48 bytes; zero is Intel.
        mr_service_td: service TDs bound to the TD, 48 bytes; zero is none; None in TD 1.0 reports.
    """

    platform: PlatformFacts
    attributes: int
    mr_signer_seam: bytes
    mr_service_td: bytes | None


def appraise_platform(facts: object, rules: PlatformRules, *, at: datetime) -> tuple[Finding, ...]:
    """Judge the facts of authentic TDX evidence; `at` is not needed. Debug is judged for all technologies alike.

    Raises:
        TypeError: facts of another technology.
    """
    if not isinstance(facts, TDXFacts):
        raise TypeError("facts of another technology")
    return (
        *appraise_common(facts.platform, rules.tdx, section=abi.TEE, code="appraisal.tdx"),
        *_judge_attributes(facts.attributes, rules.tdx),
        *_judge_signers(facts, rules.tdx),
    )


def _judge_attributes(attributes: int, rules: TDXRules) -> tuple[Finding, ...]:
    sept_ve, migratable = not attributes & abi.SEPT_VE_DISABLE, bool(attributes & abi.MIGRATABLE)
    unknown = attributes & ~abi.KNOWN_ATTRIBUTES
    return (
        Finding(
            code="appraisal.tdx.sept_ve_disable",
            question=Question.ACCEPTABLE,
            ok=not sept_ve or rules.insecure_accept_sept_ve,
            message="the host cannot inject exceptions by unmapping pages"
            if not sept_ve
            else "the host can inject exceptions by unmapping pages",
            expected="any" if rules.insecure_accept_sept_ve else "SEPT_VE_DISABLE set",
            actual="clear" if sept_ve else "set",
            origin="insecure_accept_sept_ve of section tdx",
            hint="start the TD with SEPT_VE_DISABLE",
        ),
        Finding(
            code="appraisal.tdx.migratable",
            question=Question.ACCEPTABLE,
            ok=not migratable or rules.insecure_accept_migration,
            message="the TD may be migrated" if migratable else "the TD stays on its platform",
            expected="any" if rules.insecure_accept_migration else "not migratable",
            actual="migratable" if migratable else "not migratable",
            origin="insecure_accept_migration of section tdx",
            hint="start the TD without the attribute MIGRATABLE",
        ),
        Finding(
            code="appraisal.tdx.attributes",
            question=Question.ACCEPTABLE,
            ok=not unknown,
            message="every attribute of the TD is one this build knows",
            expected="no others",
            actual=f"{unknown:#x}" if unknown else "no others",
            hint="a newer Cloister may know them",
        ),
    )


def _judge_signers(facts: TDXFacts, rules: TDXRules) -> tuple[Finding, ...]:
    signers = rules.mr_signer_seams or (_ZERO.hex(),)
    services = rules.mr_service_tds or (_ZERO.hex(),)
    service = facts.mr_service_td if facts.mr_service_td is not None else _ZERO
    return (
        Finding(
            code="appraisal.tdx.mr_signer_seam",
            question=Question.ACCEPTABLE,
            ok=facts.mr_signer_seam.hex() in {text.lower() for text in signers},
            message="signer of the TDX module",
            expected=", ".join(text[:16] + ".." for text in signers),
            actual=shorten(facts.mr_signer_seam),
            origin="mr_signer_seams of section tdx",
            hint="the host loaded a TDX module of another signer",
        ),
        Finding(
            code="appraisal.tdx.mr_service_td",
            question=Question.ACCEPTABLE,
            ok=service.hex() in {text.lower() for text in services},
            message="service TDs bound to the TD" if service != _ZERO else "no service TD is bound to the TD",
            expected=", ".join(text[:16] + ".." for text in services),
            actual=shorten(service),
            origin="mr_service_tds of section tdx",
            hint="a service TD, such as one for migration, may read what the TD has: list it only if you trust it",
        ),
    )
