"""The verifier service: evidence in, signed Attestation Result out.

RFC 9334 (Verifier), draft-fv-rats-ear (the result). Verification is that of `cloister.tee.<tech>.verifier`, appraisal
that of `cloister.tee.verification`; both are pure, and this module gives them time, roots, policy and reference values.

Evidence that is not authentic or not bound is an error: nobody gets a token for it. Authentic, bound, but
unacceptable evidence gets a token of tier `contraindicated`, so that the guest stops at its first resource with the
true reason. The token shows no value a guest is expected to have: those go only into the record the owner keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec

from cloister import __version__
from cloister.crypto.jwt import sign_jwt
from cloister.crypto.signer import Signer
from cloister.errors import FormatRefused, Unavailable
from cloister.protocol.kbs import TPM_EXTRA, device_report_data, parse_tpm_enrolment, report_data
from cloister.rats.ear import PRIMARY, encode_ear
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.rats.result import AttestationResult, Tier, Unchecked, Verdict
from cloister.tee.registry import authenticator_for, pins_for
from cloister.tee.verification import appraise_evidence, verify_evidence
from cloister.trust.roles import AppraisalRequest, Appraised, IssuedChallenge
from cloister.trust.store.database import Store
from cloister.trust.store.records import AppraisalRecord, new_attestation_id, stored_finding
from cloister.trust.verifier.devices import parse_additional_evidence
from cloister.trust.verifier.inputs import AppraisalInputs, AppraisalInputSource
from cloister.wire.base64 import encode_b64

_BUILD: Final = f"cloister {__version__}"
_BOUND_BY_PRIMARY: Final = Unchecked(reason="the evidence of the CPU binds the init data")
_WORST: Final = (Tier.AFFIRMING, Tier.WARNING, Tier.NONE, Tier.CONTRAINDICATED)
_DEEPEST: Final = 32  # nesting of evidence JSON; real evidence stays under 6


class VerifierService:
    """Implements `cloister.trust.roles.AttestationService`.

    Args:
        store: where policy, roots and reference values are.
        signer: signs results.
        chain: DER certificates of the signer, leaf first, for relying parties that pin a CA.
        policy_id: the appraisal policy to judge by.
    """

    def __init__(self, store: Store, signer: Signer, *, chain: Sequence[bytes], policy_id: str) -> None:
        self._inputs = AppraisalInputSource(store, policy_id)
        self._signer = signer
        self._chain = tuple(chain)

    def challenge(self, tee: str, extra_params: Any) -> IssuedChallenge:  # Any: untrusted JSON of the guest
        """Return what belongs into the challenge.

        For a guest that enrols a TPM: a credential that only the TPM with that EK and AK can open (TPM 2.0 part 1,
        section 24). Others get an empty text, as CoCo's broker sends.

        Raises:
            EvidenceError: unknown technology, or a key that no credential can be made for.
            FormatRefused: malformed enrolment.
        """
        authenticator_for(tee)
        enrolment = parse_tpm_enrolment(extra_params)
        if enrolment is None:
            return IssuedChallenge(extra_params="", secret=b"")
        from cloister.tee.tpm.credential import challenge_for

        credential_blob, encrypted_secret, secret = challenge_for(*enrolment)
        member = {"credential_blob": encode_b64(credential_blob), "encrypted_secret": encode_b64(encrypted_secret)}
        return IssuedChallenge(extra_params={TPM_EXTRA: member}, secret=secret)

    def appraise(self, request: AppraisalRequest) -> Appraised:
        """Verify, appraise and sign.

        Raises:
            EvidenceError, EndorsementError, FormatRefused: the evidence does not verify.
            AppraisalRefused: no appraisal policy is stored.
            Unavailable: the store failed.
        """
        results = self._judge(request)
        identity = new_attestation_id()
        claims = encode_ear(
            {name: _for_the_guest(result) for name, result in results.items()},
            runtime_data=msgspec.to_builtins(request.runtime_data),
            verifier=_BUILD,
            identity=identity,
        )
        return Appraised(
            token=sign_jwt(claims, self._signer, chain=self._chain),
            record=_record(identity, results),
            body=msgspec.json.encode(request.evidence),
        )

    def _judge(self, request: AppraisalRequest) -> dict[str, AttestationResult]:
        """Return the result of every device by submodule name, the CPU's first."""
        if not isinstance(request.evidence, dict) or _depth(request.evidence) > _DEEPEST:
            raise FormatRefused(
                "trust.verifier.evidence_shape",
                "primary evidence is not a JSON object of sane depth",
                path="tee-evidence.primary_evidence",
            )
        inputs = self._inputs.current()
        primary = ExpectedBinding(
            report_data=report_data(request.runtime_data, request.additional_evidence),
            init_data_digest=request.init_data.digest,
            session_secret=request.session_secret,
        )
        device = ExpectedBinding(
            report_data=device_report_data(request.runtime_data), init_data_digest=_BOUND_BY_PRIMARY
        )
        cpu = Evidence(tee=request.tee, body=request.evidence)
        results = {PRIMARY: _judge_one(cpu, primary, inputs, request, request.init_data.digest_text)}
        for name, evidence in parse_additional_evidence(request.additional_evidence).items():
            results[name] = _judge_one(evidence, device, inputs, request, "")
        return results


def _judge_one(
    evidence: Evidence, binding: ExpectedBinding, inputs: AppraisalInputs, request: AppraisalRequest, init_data: str
) -> AttestationResult:
    verified = verify_evidence(
        evidence,
        binding,
        replace(inputs.endorsements, grace=inputs.policy.grace, pins=pins_for(evidence.tee)),
        at=request.at,
    )
    result = appraise_evidence(
        verified,
        inputs.policy,
        inputs.references,
        init_data_digest=init_data,
        at=request.at,
        advisories=inputs.advisories,
    )
    _require_decided(result)
    return result


def _require_decided(result: AttestationResult) -> None:
    """Refuse to sign a result while revocation is not known and nothing else refuses: asking again may succeed.

    Raises:
        Unavailable: the code of the first finding that stays open.
    """
    if result.verdict is Verdict.UNAVAILABLE and not result.failures:
        open_finding = next(finding for finding in result.findings if finding.unknown)
        raise Unavailable(
            open_finding.code,
            open_finding.message,
            path=open_finding.path,
            expected=open_finding.expected,
            actual=open_finding.actual,
            hint=open_finding.hint,
        )


def _for_the_guest(result: AttestationResult) -> AttestationResult:
    """Return `result` without the expected values of failed findings: a token travels through the guest."""
    shown = tuple(finding if finding.ok else replace(finding, expected="", origin="") for finding in result.findings)
    return replace(result, findings=shown)


def _record(identity: str, results: Mapping[str, AttestationResult]) -> AppraisalRecord:
    """Return what the owner keeps: the CPU's result, and the findings of every device."""
    result = results[PRIMARY]
    claims = result.claims
    return AppraisalRecord(
        id=identity,
        at=result.issued_at,
        tee=claims.tee,
        level=claims.level.value,
        instance=claims.instance_id,
        init_data=result.init_data_digest,
        policy_id=result.policy_id,
        policy_digest=result.policy_digest,
        tier=max((item.tier for item in results.values()), key=_WORST.index).value,
        registers={name: value.hex() for name, value in claims.registers.items()},
        findings=tuple(stored_finding(finding) for item in results.values() for finding in item.findings),
        unchecked=tuple(unchecked.reason for item in results.values() for unchecked in item.unchecked),
    )


def _depth(value: object) -> int:
    """Return how deeply `value` nests, without recursion."""
    deepest, rest = 0, [(value, 1)]
    while rest:
        item, depth = rest.pop()
        deepest = max(deepest, depth)
        if deepest > _DEEPEST:
            break
        if isinstance(item, dict):
            rest.extend((child, depth + 1) for child in item.values())
        elif isinstance(item, list):
            rest.extend((child, depth + 1) for child in item)
    return deepest
