"""What enclaves and TDs say of their platform, in Cloister's words and under the names of CoCo's service. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cloister.rats.claims import TCB
from cloister.tee.dcap.abi import Quote, QuoteHeader, TDReport
from cloister.tee.dcap.platform import Platform


def platform_tcb(quote: Quote, platform: Platform) -> TCB:
    """Return the versions of the platform's parts: `sgx01` to `sgx16`, `pce`, `qe`; of TDX also `tdx01` to `tdx16`,
    of which the first two are minor and major version of its module. `current` only where it is another than what the
    TD was launched with."""
    reported = _numbered("sgx", platform.pck.components)
    reported |= {"pce": platform.pck.pce_svn, "qe": platform.qe_svn}
    current: dict[str, int] = {}
    body = quote.body
    if isinstance(body, TDReport):
        reported |= _numbered("tdx", body.tee_tcb_svn)
        if body.tee_tcb_svn2 not in (None, body.tee_tcb_svn):
            current = {**reported, **_numbered("tdx", body.tee_tcb_svn2 or b"")}
    return TCB(
        reported=reported,
        current=current,
        status=platform.tcb.status if platform.tcb is not None else "",
        evaluated_at=platform.tcb.date if platform.tcb is not None else None,
    )


def _numbered(prefix: str, values: Iterable[int]) -> dict[str, int]:
    return {f"{prefix}{index:02d}": value for index, value in enumerate(values, 1)}


def instance_id(platform: Platform) -> str:
    """Return the platform instance where the certificate names one, else the PPID: hex, stable over re-certification
    of the machine."""
    return (platform.pck.platform_instance or platform.pck.ppid).hex()


def platform_native(quote: Quote, platform: Platform) -> dict[str, Any]:  # Any: JSON values
    """Return values about the platform under Intel's names, lower case."""
    native: dict[str, Any] = {
        "quote_version": quote.header.version,
        "fmspc": platform.pck.fmspc.hex(),
        "pceid": platform.pck.pce_id.hex(),
        "ppid": platform.pck.ppid.hex(),
        "sgx_type": platform.pck.sgx_type,
    }
    if platform.tcb is not None:
        native["tcb_status"] = platform.tcb.status
        native["tcb_parts"] = dict(platform.tcb.parts)
        native["advisory_ids"] = list(platform.tcb.advisories)
        native["tcb_evaluation_data_number"] = platform.evaluation_number
        if platform.tcb.date is not None:
            native["tcb_date"] = platform.tcb.date.strftime("%Y-%m-%dT%H:%M:%SZ")
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


def raw_platform(platform: Platform) -> dict[str, Any]:  # Any: JSON values
    """Return claims about platform and collateral under CoCo's names; those that need collateral only with it."""
    pck = platform.pck
    raw: dict[str, Any] = {
        "platform_provider_id": pck.ppid.hex(),
        "sgx_type": "Scalable with Integrity" if pck.sgx_type == "ScalableWithIntegrity" else pck.sgx_type,
    }
    if platform.root_key_id:
        raw["root_key_id"] = platform.root_key_id.hex()
    if pck.platform_instance:
        raw["platform_instance_id"] = pck.platform_instance[::-1].hex()  # the order CoCo writes it in
    for name, value in (
        ("is_dynamic_platform", pck.dynamic_platform),
        ("is_cached_keys", pck.cached_keys),
        ("is_smt_enabled", pck.smt_enabled),
    ):
        if value is not None:
            raw[name] = value
    for name, number in zip(("pck_crl_num", "root_ca_crl_num"), platform.crl_numbers, strict=True):
        if number is not None:
            raw[name] = number
    if platform.tcb is None:
        return raw
    raw |= {
        "tcb_status": platform.tcb.status,
        "advisory_ids": list(platform.tcb.advisories),
        "tcb_eval_num": platform.evaluation_number,
        "collateral_expiration_status": "0" if platform.current else "1",
    }
    if platform.window is not None:
        raw["latest_issue_date"] = platform.window.not_before.strftime("%Y-%m-%dT%H:%M:%SZ")
        raw["earliest_expiration_date"] = platform.window.not_after.strftime("%Y-%m-%dT%H:%M:%SZ")
    if platform.tcb.date is not None:
        raw["tcb_date"] = platform.tcb.date.strftime("%Y-%m-%dT%H:%M:%SZ")
    return raw
