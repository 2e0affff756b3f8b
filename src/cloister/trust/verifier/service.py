"""The verifier service: evidence in, signed Attestation Result out.

RFC 9334 (Verifier), draft-fv-rats-ear (the result). Verification is that of `cloister.tee.<tech>.verifier`, appraisal
that of `cloister.tee.verification`; both are pure, and this module gives them time, roots, policy and reference values.

Evidence that is not authentic or not bound is an error: nobody gets a token for it. Authentic, bound, but
unacceptable evidence gets a token of tier `contraindicated`, so that the guest stops at its first resource with the
true reason. The token shows no value a guest is expected to have: those go only into the record the owner keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, Protocol, TypeVar

import msgspec

from cloister import __version__
from cloister.crypto.jwt import sign_jwt
from cloister.crypto.signer import Signer
from cloister.errors import CloisterError, EndorsementError, FormatRefused, Unavailable
from cloister.protocol.initdataclaims import IDENTIFIERS, identifiers
from cloister.protocol.kbs import TPM_EXTRA, VERSION, bound_data, device_report_data, parse_tpm_enrolment
from cloister.protocol.tenants import DEFAULT_TENANT, audience_of
from cloister.rats.claims import Level
from cloister.rats.ear import PRIMARY, encode_ear
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.rats.policy import AppraisalPolicy
from cloister.rats.reference import ReferenceEntry
from cloister.rats.result import AttestationResult, Finding, Severity, Tier, Unchecked, VerifiedEvidence
from cloister.tee.registry import pins_for
from cloister.tee.regopolicy import appraise_by_vector, policy_input
from cloister.tee.verification import VerifiedDevice, appraise_evidence, verify_devices, verify_evidence
from cloister.trust.roles import AppraisalRequest, Appraised, IssuedChallenge, Undecided
from cloister.trust.store.database import Store
from cloister.trust.store.evidence import BindingRecord
from cloister.trust.store.records import AppraisalRecord, new_attestation_id, stored_finding
from cloister.trust.tracing import span
from cloister.trust.verifier.collateral import NOTHING, Collateral, CollateralSource
from cloister.trust.verifier.devices import MEMBER, name_devices, parse_additional_evidence
from cloister.trust.verifier.inputs import AppraisalInputs, AppraisalInputSource, AskRego
from cloister.trust.verifier.loading import load_technology
from cloister.wire.base64 import encode_b64

_Verified = TypeVar("_Verified", covariant=True)
_BUILD: Final = f"cloister {__version__}"
_BOUND_BY_PRIMARY: Final = Unchecked(reason="the evidence of the CPU binds the init data")
_NONE_SENT: Final = Unchecked(reason="the guest sent no init data, so the result names none")
_LEAST: Final = (Level.SIMULATED, Level.MEASURED, Level.HARDWARE)
_NO_REFERENCES: Final = "appraisal.reference_values.empty"
_WORST: Final = (Tier.AFFIRMING, Tier.WARNING, Tier.NONE, Tier.CONTRAINDICATED)
_CONTAINERS: Final = frozenset({dict, list})
_KEPT_BACK: Final = {False: ("expected", "origin"), True: ("hint",)}  # of a finding that failed, or holds
_DEEPEST: Final = 32  # nesting of evidence JSON; real evidence stays under 6


class Issuer(Protocol):
    """A token-signing key with its certificates, DER, leaf first."""

    @property
    def signer(self) -> Signer: ...

    @property
    def chain(self) -> tuple[bytes, ...]: ...


class VerifierService:
    """Implements `cloister.trust.roles.AttestationService`.

    Args:
        store: where policy, roots and reference values are.
        issuer: returns what signs results now: a key and its certificates, for relying parties that pin a CA.
        policy_id: the appraisal policy to judge by.
        collateral: what vendors publish, as far as it is had.
        tenant: whose policy, roots and reference values apply, and for whom results are made.
        ask_rego: asks appraisal policies in Rego; None where there are none.
    """

    def __init__(
        self,
        store: Store,
        issuer: Callable[[], Issuer],
        *,
        policy_id: str,
        collateral: CollateralSource,
        tenant: str = DEFAULT_TENANT,
        ask_rego: AskRego | None = None,
    ) -> None:
        self._collateral = collateral
        self._audience = audience_of(tenant)
        self._inputs = AppraisalInputSource(store, policy_id, tenant=tenant, ask_rego=ask_rego)
        self._issuer = issuer

    def challenge(self, tee: str, extra_params: Any, secret: bytes) -> IssuedChallenge:  # Any: JSON of the guest
        """Return what belongs into the challenge.

        For a guest that enrols a TPM: a credential that only the TPM with that EK and AK can open (TPM 2.0 part 1,
        section 24). Others get an empty text, as CoCo's broker sends.

        Raises:
            EvidenceError: unknown technology, or a key that no credential can be made for.
            FormatRefused: malformed enrolment.
        """
        load_technology(tee)
        enrolment = parse_tpm_enrolment(extra_params)
        if enrolment is None:
            return IssuedChallenge(extra_params="", activated=False)
        from cloister.tee.tpm.credential import challenge_for

        credential_blob, encrypted_secret, _ = challenge_for(*enrolment, secret)
        member = {"credential_blob": encode_b64(credential_blob), "encrypted_secret": encode_b64(encrypted_secret)}
        return IssuedChallenge(extra_params={TPM_EXTRA: member}, activated=True)

    def appraise(self, request: AppraisalRequest) -> Appraised:
        """Verify, appraise and sign.

        Raises:
            EvidenceError, EndorsementError, FormatRefused: the evidence does not verify.
            AppraisalRefused: no appraisal policy is stored.
            Undecided: what would decide it is not had.
            Unavailable: the store failed.
        """
        results = judge(request, self._inputs.current(), self._collateral)
        identity = new_attestation_id()
        issuer = self._issuer()
        claims = encode_ear(
            results,
            runtime_data=msgspec.to_builtins(request.runtime_data),
            verifier=_BUILD,
            identity=identity,
            audience=self._audience,
            protocol="" if request.version == VERSION else request.version,
            init_data_claims=request.init_data_claims if request.init_data is not None else None,
            tell=_for_the_guest,
        )
        return Appraised(
            token=sign_jwt(claims, issuer.signer, chain=issuer.chain),
            claims=claims,
            record=appraisal_record(identity, results),
            body=msgspec.json.encode(request.evidence),
            binding=BindingRecord(
                runtime_data=request.runtime_data,
                additional_evidence=request.additional_evidence,
                init_data=request.init_data.digest_text if request.init_data is not None else "",
                session_secret=request.session_secret,
                version=request.version,
            ),
        )


def judge(request: AppraisalRequest, inputs: AppraisalInputs, source: CollateralSource) -> dict[str, AttestationResult]:
    """Return the result of every device by submodule name, the CPU's first.

    Steps: 1 the CPU's evidence, which binds nonce, key, init data and the text of the others'; 2 that of each further
    technology, which binds nonce and key; 3 no question stays open.

    Args:
        request: evidence with what it must be bound to, and the time.
        inputs: policy, roots, reference values, advisories.
        source: what vendors publish.

    Raises:
        EvidenceError, EndorsementError, FormatRefused: the evidence does not verify.
        Undecided: what would decide it is not had.
    """
    if not isinstance(request.evidence, dict) or _depth(request.evidence) > _DEEPEST:
        raise FormatRefused(
            "trust.verifier.evidence_shape",
            "primary evidence is not a JSON object of sane depth",
            path="tee-evidence.primary_evidence",
        )
    appraisal = _Appraisal(request=request, inputs=inputs, source=source)
    # 1
    results = {PRIMARY: appraisal.judge_primary()}
    # 2
    results |= appraisal.judge_devices()
    # 3
    appraisal.require_decided(results)
    return results


class _Verify(Protocol[_Verified]):
    """`verify_evidence` or `verify_devices`."""

    def __call__(
        self, evidence: Evidence, binding: ExpectedBinding, endorsements: Endorsements, *, at: datetime
    ) -> _Verified: ...


class _Appraisal:
    """One request: its evidence, what it is judged by, and what of that is not had."""

    def __init__(self, *, request: AppraisalRequest, inputs: AppraisalInputs, source: CollateralSource) -> None:
        self._request = request
        self._inputs = inputs
        self._source = source
        self._gathered: list[Collateral] = []

    def judge_primary(self) -> AttestationResult:
        """Return the result of the CPU."""
        request = self._request
        evidence = Evidence(tee=request.tee, body=request.evidence)
        binding = ExpectedBinding(
            report_data=bound_data(request.version, request.runtime_data, request.additional_evidence),
            init_data_digest=request.init_data.digest if request.init_data is not None else _NONE_SENT,
            session_secret=request.session_secret,
        )
        with span("verify"):
            verified = self._verify(verify_evidence, evidence, binding)
        digest = request.init_data.digest_text if request.init_data is not None else ""
        with span("appraise"):
            result = self._by_rego(verified, digest)
            if result is None:
                result = self._appraise(verified, self._inputs.references, digest)
        named = identifiers(request.init_data_claims)
        if not named["validated"]:
            return result
        return replace(result, extensions={IDENTIFIERS: named, **result.extensions})

    def judge_devices(self) -> dict[str, AttestationResult]:
        """Return the result of every further device by submodule name."""
        request = self._request
        binding = ExpectedBinding(
            report_data=device_report_data(request.runtime_data), init_data_digest=_BOUND_BY_PRIMARY
        )
        devices: list[VerifiedDevice] = []
        for evidence in parse_additional_evidence(request.additional_evidence):
            try:
                devices += self._verify(verify_devices, evidence, binding)
            except CloisterError as err:
                err.path = ".".join(part for part in (MEMBER, evidence.tee, err.path) if part)
                raise
        return {name: self._judge_device(device) for name, device in name_devices(devices).items()}

    def require_decided(self, results: Mapping[str, AttestationResult]) -> None:
        """Refuse to sign results while a question is open and nothing refuses: asking again may succeed.

        Raises:
            Undecided: the code of the first finding that stays open.
        """
        findings = _all_findings(results)
        still_open = next((finding for finding in findings if finding.unknown), None)
        if still_open is None or any(result.failures for result in results.values()):
            return
        raise self._undecided(
            Unavailable(
                still_open.code,
                still_open.message,
                path=still_open.path,
                expected=still_open.expected,
                actual=still_open.actual,
                hint=still_open.hint,
            ),
            findings,
        )

    def _verify(self, verify: _Verify[_Verified], evidence: Evidence, binding: ExpectedBinding) -> _Verified:
        collateral = NOTHING
        try:
            load_technology(evidence.tee)
            collateral = self._source.gather(evidence, self._inputs.endorsements.roots)
            self._gathered.append(collateral)
            return verify(evidence, binding, self._endorsements(evidence.tee, collateral), at=self._request.at)
        except EndorsementError as err:
            if collateral.lacks_certificates:
                raise self._undecided(err, ()) from err
            raise
        except Unavailable as err:  # the cache is of no use, or this build cannot verify the technology's evidence
            raise Undecided(err, remedy=err.hint) from err

    def _endorsements(self, tee: str, collateral: Collateral) -> Endorsements:
        return replace(
            self._inputs.endorsements,
            grace=self._inputs.policy.grace,
            pins=pins_for(tee),
            certificates=collateral.certificates,
            revocation_lists=collateral.revocation_lists,
            documents=collateral.documents,
        )

    def _judge_device(self, device: VerifiedDevice) -> AttestationResult:
        """Judge by the owner's reference values of that technology, or by the vendor's where the owner has none.

        Where neither is had the verdict stays open: the vendor offers them.
        """
        tee = device.verified.claims.tee
        owned = tuple(entry for entry in self._inputs.references if entry.tee == tee)
        result = self._appraise(device.verified, owned or device.references, "", replace(self._inputs.policy, rego=""))
        if owned or device.references:
            return result
        return replace(result, findings=tuple(_left_open(finding) for finding in result.findings))

    def _by_rego(self, verified: VerifiedEvidence, digest: str) -> AttestationResult | None:
        """Return the result by the policy's Rego, None where it has none. Of several devices it judges the CPU."""
        inputs, request = self._inputs, self._request
        if not inputs.policy.rego or inputs.ask_rego is None:
            return None
        known = {
            "runtime_data_claims": msgspec.to_builtins(request.runtime_data),
            **({"init_data_claims": dict(request.init_data_claims)} if request.init_data is not None else {}),
        }
        seen = policy_input(verified, init_data_digest=digest, input_claims=known)
        return appraise_by_vector(
            verified,
            inputs.ask_rego(inputs.policy.rego, inputs.values(digest, request.at), seen),
            inputs.policy,
            init_data_digest=digest,
            at=request.at,
            advisories=inputs.advisories,
        )

    def _appraise(
        self,
        verified: VerifiedEvidence,
        references: Sequence[ReferenceEntry],
        init_data: str,
        policy: AppraisalPolicy | None = None,
    ) -> AttestationResult:
        return appraise_evidence(
            verified,
            policy or self._inputs.policy,
            references,
            init_data_digest=init_data,
            at=self._request.at,
            advisories=self._inputs.advisories,
        )

    def _undecided(self, error: CloisterError, findings: Sequence[Finding]) -> Undecided:
        command = self._source.fetch_command(self._gathered, self._request.at)
        return Undecided(error, remedy=command or error.hint, findings=findings)


def _left_open(finding: Finding) -> Finding:
    if finding.code != _NO_REFERENCES:
        return finding
    return replace(
        finding,
        severity=Severity.UNAVAILABLE,
        message="neither the owner nor the vendor's manifests say what the device may run",
        hint="fetch the vendor's manifests; for firmware that has none yet, register reference values of your own",
    )


def _all_findings(results: Mapping[str, AttestationResult]) -> tuple[Finding, ...]:
    """Return the findings of all submodules; of several, each says in its origin whose it is."""
    if len(results) == 1:
        return results[PRIMARY].findings
    return tuple(
        replace(finding, origin=f"{name}: {finding.origin}" if finding.origin else name)
        for name, result in results.items()
        for finding in result.findings
    )


def _for_the_guest(finding: Finding) -> dict[str, Any]:  # Any: JSON
    """Return a finding without the expected value if it failed: a token travels through the guest.

    Nor with its hint if it holds: the token of a machine with twelve devices is long enough.
    """
    told = finding.as_dict()
    for name in _KEPT_BACK[finding.ok]:
        told.pop(name, None)
    return told


def appraisal_record(identity: str, results: Mapping[str, AttestationResult]) -> AppraisalRecord:
    """Return what the owner keeps: the CPU's result, the findings of every device, the least level and worst tier."""
    result = results[PRIMARY]
    claims = result.claims
    return AppraisalRecord(
        id=identity,
        at=result.issued_at,
        tee=claims.tee,
        level=min((item.claims.level for item in results.values()), key=_LEAST.index).value,
        instance=claims.instance_id,
        init_data=result.init_data_digest,
        policy_id=result.policy_id,
        policy_digest=result.policy_digest,
        tier=max((item.tier for item in results.values()), key=_WORST.index).value,
        registers={name: value.hex() for name, value in claims.registers.items()},
        findings=tuple(stored_finding(finding) for finding in _all_findings(results)),
        unchecked=tuple(dict.fromkeys(unchecked.reason for item in results.values() for unchecked in item.unchecked)),
    )


def _depth(value: object) -> int:
    """Return how deeply `value` nests, level by level, without recursion; only what can hold something is looked into.

    Evidence may hold certificates as lists of thousands of numbers.
    """
    level: list[Any] = [value]  # Any: JSON
    depth = 1
    while depth <= _DEEPEST:
        inside = [item.values() if isinstance(item, dict) else item for item in level]
        if not any(inside):
            break
        # By type, as JSON is read: a list of numbers is passed over as a whole.
        inside = [children for children in inside if not _CONTAINERS.isdisjoint(map(type, children))]
        level = [child for children in inside for child in children if type(child) in _CONTAINERS]
        depth += 1
    return depth
