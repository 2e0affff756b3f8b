"""Intel's root, and where the collateral for a quote is had: pure functions, nothing is fetched here.

Intel SGX and TDX Provisioning Certification Service API, version 4. A caching service (PCCS) has the same paths. The
answers' issuer chains travel in headers, as URL-encoded PEM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from cloister.errors import EndorsementError
from cloister.rats.claims import Level
from cloister.rats.endorsement import PinnedRoot
from cloister.tee.dcap.abi import TDX, Quote
from cloister.tee.dcap.chain import PCK_CAS, common_name, parse_quote_chain
from cloister.tee.dcap.pck import parse_pck_extension
from cloister.wire.limits import HTTP_HEAD_BYTES

SERVICE: Final = "https://api.trustedservices.intel.com"
ROOT_CRL: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
ROOT_SHA256: Final = bytes.fromhex("44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3")
TCB_INFO_CHAIN: Final = "TCB-Info-Issuer-Chain"
QE_IDENTITY_CHAIN: Final = "SGX-Enclave-Identity-Issuer-Chain"
PCK_CRL_CHAIN: Final = "SGX-PCK-CRL-Issuer-Chain"
_CAS: Final = ("platform", "processor")


@dataclass(frozen=True, slots=True, kw_only=True)
class CollateralIdentity:
    """What collateral a quote needs.

    Attributes:
        tcb_type: `tdx` or `sgx`: whose TCB info and enclave identity.
        fmspc: 6 bytes, the kind of platform.
        ca: `platform` or `processor`: whose revocation list.
    """

    tcb_type: str
    fmspc: bytes
    ca: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CollateralURLs:
    """Where the four parts are."""

    tcb_info: str
    qe_identity: str
    pck_crl: str
    root_crl: str


def intel_root(tee: str) -> PinnedRoot:
    """Return Intel's root by fingerprint, for `tdx` or `sgx`."""
    return PinnedRoot(tee=tee, level=Level.HARDWARE, name="Intel SGX Root CA", sha256=ROOT_SHA256)


def collateral_identity(quote: Quote) -> CollateralIdentity:
    """Return what collateral is needed to judge `quote`, which is not verified by that.

    Raises:
        FormatRefused: its certificates do not parse.
        EndorsementError: the PCK certificate has no SGX extension, or an unknown issuer (`tee.dcap.pck_chain`).
    """
    certificates = parse_quote_chain(quote.data.certification)
    issuer = common_name(certificates[1])
    if issuer not in PCK_CAS:
        raise EndorsementError(
            "tee.dcap.pck_chain",
            "PCK certificate of an unknown CA",
            expected=" or ".join(PCK_CAS),
            actual=issuer[:80],
        )
    return CollateralIdentity(
        tcb_type="tdx" if quote.tee_type == TDX else "sgx",
        fmspc=parse_pck_extension(certificates[0]).fmspc,
        ca=_CAS[PCK_CAS.index(issuer)],
    )


def collateral_urls(
    identity: CollateralIdentity, *, service: str = SERVICE, update: str = "standard"
) -> CollateralURLs:
    """Return the addresses of the collateral.

    Args:
        identity: what is needed.
        service: base address of Intel's service or of a caching one.
        update: `standard`, or `early` to have a TCB recovery's data from its first day.
    """
    base = f"{service.rstrip('/')}/{identity.tcb_type}/certification/v4"
    sgx = f"{service.rstrip('/')}/sgx/certification/v4"
    return CollateralURLs(
        tcb_info=f"{base}/tcb?fmspc={identity.fmspc.hex().upper()}&update={update}",
        qe_identity=f"{base}/qe/identity?update={update}",
        pck_crl=f"{sgx}/pckcrl?ca={identity.ca}&encoding=der",
        root_crl=f"{sgx}/rootcacrl" if service != SERVICE else ROOT_CRL,
    )


def issuer_chain(headers: Mapping[str, str], name: str) -> str:
    """Return the PEM text of an issuer chain from an answer's headers.

    Args:
        headers: of the answer; names in any case.
        name: `TCB_INFO_CHAIN`, `QE_IDENTITY_CHAIN` or `PCK_CRL_CHAIN`.

    Raises:
        EndorsementError: absent or too long (`tee.dcap.collateral.malformed`).
    """
    found = next((value for key, value in headers.items() if key.lower() == name.lower()), "")
    if not found or len(found) > HTTP_HEAD_BYTES:
        raise EndorsementError(
            "tee.dcap.collateral.malformed", "answer has no issuer chain", path=name, actual=f"{len(found)} characters"
        )
    return unquote(found)
