"""Verifier of TDX evidence: which platform signed, what the TD is and measured. Pure.

Steps:
  1 parse, strictly: an unknown member, a stray bit of base64, a length that contradicts another refuses
  2 the quote is verified as `cloister.tee.dcap.verifier` lists it
  3 the event log, when there is one, replays to all four run-time registers

Reported for binding: REPORTDATA (64 bytes) and MRCONFIGID (48 bytes), which the host sets when it starts the TD.

Not checked, and said so: what an `aa_eventlog` of an older guest says. Which *events* a log describes is the host's
word; only their digests are authentic.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from cloister.errors import EvidenceError
from cloister.rats.claims import Claims, Role
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import AuthenticEvidence, Evidence, Slot, UnverifiedClaims
from cloister.rats.result import Finding, Question, Unchecked
from cloister.tee import uefi
from cloister.tee.checklist import Checklist, shorten
from cloister.tee.dcap.abi import TDReport
from cloister.tee.dcap.appraisal import platform_facts
from cloister.tee.dcap.claims import instance_id, platform_native, platform_tcb, raw_header, raw_platform
from cloister.tee.dcap.platform import Platform, read_platform
from cloister.tee.dcap.verifier import VerifiedQuote, verify_quote
from cloister.tee.eventlog import Event, measured, replay_digests
from cloister.tee.tdx import abi
from cloister.tee.tdx.appraisal import TDXFacts
from cloister.tee.tdx.evidence import LOG_CODE, ParsedEvidence, parse_evidence

PRODUCT: Final = "intel-tdx"
_NO_LOG: Final = Unchecked(reason="the event log: the evidence carries none; reference values judge the registers")
_OTHER_LOG: Final = Unchecked(reason="the attestation agent's own event log: only logs that replay are read")


def authenticate(
    evidence: Evidence, endorsements: Endorsements, *, at: datetime, session_secret: bytes = b""
) -> AuthenticEvidence:
    """Verify who signed TDX evidence; there is no credential activation.

    Args:
        evidence: as received, for technology `tdx`.
        endorsements: Intel's root by fingerprint, or a configured one; collateral as documents and lists.
        at: aware time.
        session_secret: not used.

    Raises:
        FormatRefused: a member or certificate does not parse.
        EndorsementError: a certificate, list or statement of the vendor does not hold.
        EvidenceError: another step does not hold.
    """
    # 1
    parsed = parse_evidence(evidence)
    # 2
    verified = verify_quote(parsed.quote, endorsements, tee=abi.TEE, at=at)
    # 3
    findings: tuple[Finding, ...] = verified.findings
    if parsed.events is not None:
        findings += _verify_log(parsed.events, parsed.body)
    return AuthenticEvidence(
        claims=_claims(parsed, verified),
        findings=findings,
        unchecked=(
            *((_NO_LOG,) if parsed.events is None else ()),
            *((_OTHER_LOG,) if parsed.other_log else ()),
        ),
        freshness=Slot(
            name="REPORTDATA", value=parsed.body.report_data, size=abi.REPORT_DATA_BYTES, path="quote.REPORTDATA"
        ),
        init_data=Slot(
            name="MRCONFIGID", value=parsed.body.mr_config_id, size=abi.CONFIG_ID_BYTES, path="quote.MRCONFIGID"
        ),
        facts=td_facts(verified, parsed.body),
    )


def read_claims(evidence: Evidence) -> UnverifiedClaims:
    """Return what TDX evidence says, whoever signed it.

    Raises:
        FormatRefused, EvidenceError, EndorsementError: it does not parse.
    """
    parsed = parse_evidence(evidence)
    return UnverifiedClaims(claims=_claims(parsed, read_platform(parsed.quote)))


def td_facts(verified: VerifiedQuote, body: TDReport) -> TDXFacts:
    """Return what the rules of section `tdx` judge."""
    return TDXFacts(
        platform=platform_facts(verified),
        attributes=body.flags,
        mr_signer_seam=body.mr_signer_seam,
        mr_service_td=body.mr_service_td,
    )


def _verify_log(events: tuple[Event, ...], body: TDReport) -> tuple[Finding, ...]:
    """Step 3. A register the log does not mention must never have been extended."""
    checks = Checklist()
    for index, value in enumerate(body.rtmrs):
        digests = measured(events, abi.log_register(index), algorithm=abi.ALGORITHM, code=LOG_CODE)
        replayed = replay_digests(digests, bytes(abi.RTMR_BYTES), algorithm=abi.ALGORITHM)
        checks.require(
            replayed == value,
            code="tee.tdx.event_log_mismatch",
            question=Question.AUTHENTIC,
            message=f"event log replays to RTMR {index}",
            otherwise=f"event log does not replay to RTMR {index}",
            expected=shorten(value),
            actual=shorten(replayed),
            origin="quote",
            path="cc_eventlog",
            hint="the log was altered or cut, or something extended the register without logging it",
            error=EvidenceError,
        )
    return checks.findings


def _claims(parsed: ParsedEvidence, platform: Platform) -> Claims:
    body = parsed.body
    registers = {"mrtd": body.mr_td, **{f"rtmr{index}": value for index, value in enumerate(body.rtmrs)}}
    roles: dict[Role, bytes] = {Role.LAUNCH: body.mr_td}
    if parsed.events is not None:
        roles |= uefi.measured_roles(
            parsed.events, kernel=abi.log_register(1), options=abi.log_register(2), algorithm=abi.ALGORITHM
        )
    return Claims(
        tee=abi.TEE,
        level=platform.level,
        debug=bool(body.flags & abi.TUD),
        registers=registers,
        report_data=body.report_data,
        init_data=body.mr_config_id,
        instance_id=instance_id(platform),
        raw=_raw(parsed, platform),
        platform=f"Intel TDX, TD report {'1.0' if body.tee_tcb_svn2 is None else '1.5'}",
        product=PRODUCT,
        tcb=platform_tcb(parsed.quote, platform),
        measurements=roles,
        advisories=platform.tcb.advisories if platform.tcb is not None else (),
        window=platform.window,
        native=_native(parsed, platform),
    )


def _native(parsed: ParsedEvidence, platform: Platform) -> Mapping[str, Any]:  # Any: JSON values
    body = parsed.body
    native: dict[str, Any] = {
        "mrtd": body.mr_td.hex(),
        **{f"rtmr{index}": value.hex() for index, value in enumerate(body.rtmrs)},
        "mrconfigid": body.mr_config_id.hex(),
        "mrowner": body.mr_owner.hex(),
        "mrownerconfig": body.mr_owner_config.hex(),
        "mrseam": body.mr_seam.hex(),
        "mrsignerseam": body.mr_signer_seam.hex(),
        "seam_attributes": body.seam_attributes.hex(),
        "td_attributes": body.td_attributes.hex(),
        "xfam": body.xfam.hex(),
        "tee_tcb_svn": body.tee_tcb_svn.hex(),
        "report_data": body.report_data.hex(),
        "debug": bool(body.flags & abi.TUD),
        "sept_ve_disable": bool(body.flags & abi.SEPT_VE_DISABLE),
        "migratable": bool(body.flags & abi.MIGRATABLE),
        **platform_native(parsed.quote, platform),
    }
    if body.tee_tcb_svn2 is not None and body.mr_service_td is not None:
        native |= {"tee_tcb_svn2": body.tee_tcb_svn2.hex(), "mrservicetd": body.mr_service_td.hex()}
    return native


def _raw(parsed: ParsedEvidence, platform: Platform) -> Mapping[str, Any]:  # Any: JSON values
    """Return CoCo's claims."""
    body = parsed.body
    fields = {
        "tcb_svn": body.tee_tcb_svn,
        "mr_seam": body.mr_seam,
        "mrsigner_seam": body.mr_signer_seam,
        "seam_attributes": body.seam_attributes,
        "td_attributes": body.td_attributes,
        "xfam": body.xfam,
        "mr_td": body.mr_td,
        "mr_config_id": body.mr_config_id,
        "mr_owner": body.mr_owner,
        "mr_owner_config": body.mr_owner_config,
        **{f"rtmr_{index}": value for index, value in enumerate(body.rtmrs)},
        "report_data": body.report_data,
    }
    if body.tee_tcb_svn2 is not None and body.mr_service_td is not None:
        fields |= {"tee_tcb_svn2": body.tee_tcb_svn2, "mr_servicetd": body.mr_service_td}
    quote: dict[str, Any] = {
        "header": raw_header(parsed.quote.header),
        "body": {name: value.hex() for name, value in fields.items()},
    }
    if parsed.quote.body_type is not None:
        quote["type"] = parsed.quote.body_type.to_bytes(2, "little").hex()
        quote["size"] = len(body.encode()).to_bytes(4, "little").hex()
    raw: dict[str, Any] = {
        "quote": quote,
        "report_data": body.report_data.hex(),
        "init_data": body.mr_config_id.hex(),
        "td_attributes": {
            "debug": bool(body.flags & 1),
            "septve_disable": bool(body.flags & abi.SEPT_VE_DISABLE),
            "protection_keys": bool(body.flags & abi.PROTECTION_KEYS),
            "key_locker": bool(body.flags & abi.KEY_LOCKER),
            "perfmon": bool(body.flags & abi.PERFMON),
        },
        **raw_platform(platform),
    }
    if parsed.events is not None:
        raw["uefi_event_logs"] = uefi.event_claims(parsed.events)
    return raw
