"""The owner's rules for SGX evidence (section `sgx` of the appraisal policy), one finding each. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cloister.rats.result import Finding, Question
from cloister.rats.rules import PlatformRules
from cloister.tee.dcap.appraisal import PlatformFacts, appraise_common
from cloister.tee.sgx import abi


@dataclass(frozen=True, slots=True, kw_only=True)
class SGXFacts:
    """What the rules judge.

    Attributes:
        platform: TCB, collateral, padding.
        attributes: of the enclave, low 64 bits.
        isv_svn: security version of the enclave.
    """

    platform: PlatformFacts
    attributes: int
    isv_svn: int


def appraise_platform(facts: object, rules: PlatformRules, *, at: datetime) -> tuple[Finding, ...]:
    """Judge the facts of authentic SGX evidence; `at` is not needed. Debug is judged for all technologies alike.

    Raises:
        TypeError: facts of another technology.
    """
    if not isinstance(facts, SGXFacts):
        raise TypeError("facts of another technology")
    provisioning = bool(facts.attributes & abi.PROVISION_KEY)
    return (
        *appraise_common(facts.platform, rules.sgx, section=abi.TEE, code="appraisal.sgx"),
        Finding(
            code="appraisal.sgx.provisioning_key",
            question=Question.ACCEPTABLE,
            ok=not provisioning or rules.sgx.insecure_accept_provisioning_key,
            message=f"the enclave may {'' if provisioning else 'not '}derive the provisioning key",
            expected="any" if rules.sgx.insecure_accept_provisioning_key else "no",
            actual="yes" if provisioning else "no",
            origin="insecure_accept_provisioning_key of section sgx",
            hint="build the enclave without the attribute PROVISION_KEY",
        ),
        Finding(
            code="appraisal.sgx.isv_svn",
            question=Question.ACCEPTABLE,
            ok=facts.isv_svn >= rules.sgx.minimum_isv_svn,
            message="security version of the enclave",
            expected=f"at least {rules.sgx.minimum_isv_svn}",
            actual=str(facts.isv_svn),
            origin="minimum_isv_svn of section sgx",
            hint="run a newer build of the enclave",
        ),
    )
