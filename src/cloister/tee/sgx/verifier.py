"""Verifier of SGX evidence: which platform signed, and what the enclave is. Pure.

Steps:
  1 parse, strictly: an unknown member, a stray bit of base64, a length that contradicts another refuses
  2 the quote is verified as `cloister.tee.dcap.verifier` lists it

Reported for binding: REPORTDATA (64 bytes) and CONFIGID (64 bytes), which the host sets when it starts the enclave.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from cloister.rats.claims import Claims, Role
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import AuthenticEvidence, Evidence, Slot, UnverifiedClaims
from cloister.tee.dcap.appraisal import platform_facts
from cloister.tee.dcap.claims import instance_id, platform_native, platform_tcb, raw_header, raw_platform
from cloister.tee.dcap.platform import Platform, read_platform
from cloister.tee.dcap.verifier import verify_quote
from cloister.tee.sgx import abi
from cloister.tee.sgx.appraisal import SGXFacts
from cloister.tee.sgx.evidence import ParsedEvidence, parse_evidence

PRODUCT: Final = "intel-sgx"


def authenticate(
    evidence: Evidence, endorsements: Endorsements, *, at: datetime, session_secret: bytes = b""
) -> AuthenticEvidence:
    """Verify who signed SGX evidence; there is no credential activation.

    Args:
        evidence: as received, for technology `sgx`.
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
    body = parsed.body
    return AuthenticEvidence(
        claims=_claims(parsed, verified),
        findings=verified.findings,
        unchecked=(),
        freshness=Slot(name="REPORTDATA", value=body.report_data, size=abi.REPORT_DATA_BYTES, path="quote.REPORTDATA"),
        init_data=Slot(name="CONFIGID", value=body.config_id, size=abi.CONFIG_ID_BYTES, path="quote.CONFIGID"),
        facts=SGXFacts(platform=platform_facts(verified), attributes=body.flags, isv_svn=body.isv_svn),
    )


def read_claims(evidence: Evidence) -> UnverifiedClaims:
    """Return what SGX evidence says, whoever signed it.

    Raises:
        FormatRefused, EvidenceError, EndorsementError: it does not parse.
    """
    parsed = parse_evidence(evidence)
    return UnverifiedClaims(claims=_claims(parsed, read_platform(parsed.quote)))


def _claims(parsed: ParsedEvidence, platform: Platform) -> Claims:
    body = parsed.body
    return Claims(
        tee=abi.TEE,
        level=platform.level,
        debug=bool(body.flags & abi.DEBUG),
        registers={"mrenclave": body.mr_enclave, "mrsigner": body.mr_signer},
        report_data=body.report_data,
        init_data=body.config_id,
        instance_id=instance_id(platform),
        raw=_raw(parsed, platform),
        platform="Intel SGX",
        product=PRODUCT,
        tcb=platform_tcb(parsed.quote, platform),
        measurements={Role.LAUNCH: body.mr_enclave},
        advisories=platform.tcb.advisories if platform.tcb is not None else (),
        window=platform.window,
        native=_native(parsed, platform),
    )


def _native(parsed: ParsedEvidence, platform: Platform) -> Mapping[str, Any]:  # Any: JSON values
    body = parsed.body
    return {
        "mrenclave": body.mr_enclave.hex(),
        "mrsigner": body.mr_signer.hex(),
        "isvprodid": body.isv_prod_id,
        "isvsvn": body.isv_svn,
        "attributes": body.attributes.hex(),
        "miscselect": f"{body.misc_select:08x}",
        "cpusvn": body.cpu_svn.hex(),
        "configid": body.config_id.hex(),
        "configsvn": body.config_svn,
        "isvextprodid": body.isv_ext_prod_id.hex(),
        "isvfamilyid": body.isv_family_id.hex(),
        "report_data": body.report_data.hex(),
        "debug": bool(body.flags & abi.DEBUG),
        "provision_key": bool(body.flags & abi.PROVISION_KEY),
        **platform_native(parsed.quote, platform),
    }


def _raw(parsed: ParsedEvidence, platform: Platform) -> Mapping[str, Any]:  # Any: JSON values
    """Return CoCo's claims: bytes in hex, numbers as their little-endian bytes."""
    body = parsed.body
    header = raw_header(parsed.quote.header)
    reserved = header.pop("reserved")
    header["att_key_data_0"] = header.pop("tee_type")
    header |= {"qe_svn": reserved[:4], "pce_svn": reserved[4:]}
    return {
        "header": header,
        "body": {
            "cpu_svn": body.cpu_svn.hex(),
            "misc_select": body.misc_select.to_bytes(4, "little").hex(),
            "reserved1": body.reserved1.hex(),
            "isv_ext_prod_id": body.isv_ext_prod_id.hex(),
            "attributes.flags": body.attributes[:8].hex(),
            "attributes.xfrm": body.attributes[8:].hex(),
            "mr_enclave": body.mr_enclave.hex(),
            "reserved2": body.reserved2.hex(),
            "mr_signer": body.mr_signer.hex(),
            "reserved3": body.reserved3.hex(),
            "config_id": body.config_id.hex(),
            "isv_prod_id": body.isv_prod_id.to_bytes(2, "little").hex(),
            "isv_svn": body.isv_svn.to_bytes(2, "little").hex(),
            "config_svn": body.config_svn.to_bytes(2, "little").hex(),
            "reserved4": body.reserved4.hex(),
            "isv_family_id": body.isv_family_id.hex(),
            "report_data": body.report_data.hex(),
        },
        "report_data": body.report_data.hex(),
        "init_data": body.config_id.hex(),
        **raw_platform(platform),
    }
