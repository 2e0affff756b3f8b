"""Where the collateral of a quote is had."""

from __future__ import annotations

from urllib.parse import quote as escape

import pytest

from cloister.errors import EndorsementError, FormatRefused
from cloister.tee.dcap.abi import parse_quote
from cloister.tee.dcap.chain import PCK_CAS
from cloister.tee.dcap.endorsements import (
    PCK_CRL_CHAIN,
    TCB_INFO_CHAIN,
    CollateralIdentity,
    collateral_identity,
    collateral_urls,
    issuer_chain,
)
from cloister.testing.dcap import FMSPC, FakeIntel, FakePlatform, enclave_report, pem, td_report


@pytest.mark.parametrize(("ca", "word"), [(PCK_CAS[0], "platform"), (PCK_CAS[1], "processor")])
def test_what_a_quote_needs(intel: FakeIntel, ca: str, word: str) -> None:
    td = parse_quote(FakePlatform(intel, ca=ca).quote(td_report()))
    assert collateral_identity(td) == CollateralIdentity(tcb_type="tdx", fmspc=FMSPC, ca=word)
    enclave = parse_quote(FakePlatform(intel, "SGX", ca=ca).quote(enclave_report()))
    assert collateral_identity(enclave).tcb_type == "sgx"


def test_a_quote_of_unknown_issuer(intel: FakeIntel) -> None:
    platform = FakePlatform(intel)
    changed = {"certification": pem(platform.pck, intel.root.certificate).encode()}
    with pytest.raises(EndorsementError) as caught:
        collateral_identity(parse_quote(platform.quote(td_report(), data=changed)))
    assert caught.value.code == "tee.dcap.pck_chain"
    with pytest.raises(FormatRefused):
        collateral_identity(parse_quote(platform.quote(td_report(), data={"certification": b""})))


def test_addresses() -> None:
    tdx = CollateralIdentity(tcb_type="tdx", fmspc=FMSPC, ca="platform")
    urls = collateral_urls(tdx)
    assert urls.tcb_info.endswith("/tdx/certification/v4/tcb?fmspc=90C06F0000FF&update=standard")
    assert urls.qe_identity.endswith("/tdx/certification/v4/qe/identity?update=standard")
    assert urls.pck_crl.endswith("/sgx/certification/v4/pckcrl?ca=platform&encoding=der")
    assert urls.root_crl.startswith("https://certificates.trustedservices.intel.com/")
    own = collateral_urls(
        CollateralIdentity(tcb_type="sgx", fmspc=FMSPC, ca="processor"), service="https://pccs.test/", update="early"
    )
    assert own.tcb_info == "https://pccs.test/sgx/certification/v4/tcb?fmspc=90C06F0000FF&update=early"
    assert own.root_crl == "https://pccs.test/sgx/certification/v4/rootcacrl"


def test_issuer_chains_come_in_headers(intel: FakeIntel) -> None:
    text = pem(intel.tcb_signing.certificate, intel.root.certificate)
    assert issuer_chain({"tcb-info-issuer-chain": escape(text)}, TCB_INFO_CHAIN) == text
    for headers in ({}, {PCK_CRL_CHAIN: ""}, {PCK_CRL_CHAIN: "x" * 100_000}):
        with pytest.raises(EndorsementError):
            issuer_chain(headers, PCK_CRL_CHAIN)
