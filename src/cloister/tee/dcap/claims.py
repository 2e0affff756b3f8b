"""What enclaves and TDs say of their platform, in Cloister's words and under the names of CoCo's service. Pure."""

from __future__ import annotations

from typing import Any

from cloister.rats.claims import TCB
from cloister.tee.dcap.abi import QuoteHeader, TDReport
from cloister.tee.dcap.verifier import VerifiedQuote


def platform_tcb(verified: VerifiedQuote) -> TCB:
    """Return the versions of the platform's parts: `sgx01` to `sgx16`, `pce`, `qe`; of TDX also `tdx01` to `tdx16`,
    of which the first two are minor and major version of its module."""
    reported = {f"sgx{index:02d}": value for index, value in enumerate(verified.pck.components, 1)}
    reported |= {"pce": verified.pck.pce_svn, "qe": verified.qe_svn}
    current = dict(reported)
    body = verified.quote.body
    if isinstance(body, TDReport):
        reported |= {f"tdx{index:02d}": value for index, value in enumerate(body.tee_tcb_svn, 1)}
        current |= {f"tdx{index:02d}": value for index, value in enumerate(body.tee_tcb_svn2 or body.tee_tcb_svn, 1)}
    return TCB(
        reported=reported,
        current=current,
        status=verified.tcb.status if verified.tcb is not None else "",
        evaluated_at=verified.tcb.date if verified.tcb is not None else None,
    )


def instance_id(verified: VerifiedQuote) -> str:
    """Return the platform instance where the certificate names one, else the PPID: hex, stable over re-certification
    of the machine."""
    return (verified.pck.platform_instance or verified.pck.ppid).hex()


def platform_native(verified: VerifiedQuote) -> dict[str, Any]:  # Any: JSON values
    """Return values about the platform under Intel's names, lower case."""
    native: dict[str, Any] = {
        "quote_version": verified.quote.header.version,
        "fmspc": verified.pck.fmspc.hex(),
        "pceid": verified.pck.pce_id.hex(),
        "ppid": verified.pck.ppid.hex(),
        "sgx_type": verified.pck.sgx_type,
    }
    if verified.tcb is not None:
        native["tcb_status"] = verified.tcb.status
        native["tcb_parts"] = dict(verified.tcb.parts)
        native["advisory_ids"] = list(verified.tcb.advisories)
        native["tcb_evaluation_data_number"] = verified.evaluation_number
        if verified.tcb.date is not None:
            native["tcb_date"] = verified.tcb.date.strftime("%Y-%m-%dT%H:%M:%SZ")
    return native


def raw_header(header: QuoteHeader) -> dict[str, str]:
    """Return the quote's header as CoCo's service writes it for TDX: little-endian bytes in hex."""
    return {
        "version": header.version.to_bytes(2, "little").hex(),
        "att_key_type": header.key_type.to_bytes(2, "little").hex(),
        "tee_type": header.tee_type.to_bytes(4, "little").hex(),
        "reserved": header.reserved.hex(),
        "vendor_id": header.vendor_id.hex(),
        "user_data": header.user_data.hex(),
    }


def raw_platform(verified: VerifiedQuote) -> dict[str, Any]:  # Any: JSON values
    """Return claims about platform and collateral under CoCo's names; those that need collateral only with it."""
    pck = verified.pck
    raw: dict[str, Any] = {
        "platform_provider_id": pck.ppid.hex(),
        "sgx_type": "Scalable with Integrity" if pck.sgx_type == "ScalableWithIntegrity" else pck.sgx_type,
        "root_key_id": verified.root_key_id.hex(),
    }
    if pck.platform_instance:
        raw["platform_instance_id"] = pck.platform_instance[::-1].hex()  # the order CoCo writes it in
    for name, value in (
        ("is_dynamic_platform", pck.dynamic_platform),
        ("is_cached_keys", pck.cached_keys),
        ("is_smt_enabled", pck.smt_enabled),
    ):
        if value is not None:
            raw[name] = value
    for name, number in zip(("pck_crl_num", "root_ca_crl_num"), verified.crl_numbers, strict=True):
        if number is not None:
            raw[name] = number
    if verified.tcb is None:
        return raw
    stale = any(not finding.ok for finding in verified.findings)
    raw |= {
        "tcb_status": verified.tcb.status,
        "advisory_ids": list(verified.tcb.advisories),
        "tcb_eval_num": verified.evaluation_number,
        "collateral_expiration_status": "1" if stale else "0",
        "latest_issue_date": verified.window.not_before.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "earliest_expiration_date": verified.window.not_after.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    if verified.tcb.date is not None:
        raw["tcb_date"] = verified.tcb.date.strftime("%Y-%m-%dT%H:%M:%SZ")
    return raw
