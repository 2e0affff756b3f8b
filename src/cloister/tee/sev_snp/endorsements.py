"""What AMD publishes for SNP: pinned roots, addresses at its Key Distribution Service, and what identifies each piece.

VCEK Certificate and KDS Interface Specification (AMD 57230), section 4. Names and addresses only; nothing is fetched.
A VCEK is identified by product line, chip and every component of the TCB: leaving one out (`fmc`) would make two keys
share a place in a cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cloister.crypto.x509path import load_certificate
from cloister.errors import EndorsementError
from cloister.rats.claims import Level
from cloister.rats.endorsement import PinnedRoot
from cloister.tee.sev_snp.abi import VLEK, Report
from cloister.tee.sev_snp.products import PRODUCTS, Product, product_of_cpu
from cloister.tee.sev_snp.vek import common_name

TEE: Final = "snp"
PINS: Final[tuple[PinnedRoot, ...]] = tuple(
    PinnedRoot(tee=TEE, level=Level.HARDWARE, name=f"ARK-{item.line}", sha256=item.ark_sha256) for item in PRODUCTS
)
KDS: Final = "https://kdsintf.amd.com"
_QUERY: Final = {
    "fmc": "fmcSPL",
    "bootloader": "blSPL",
    "tee": "teeSPL",
    "snp": "snpSPL",
    "microcode": "ucodeSPL",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VCEKIdentity:
    """Which VCEK signed a report: all that its address, its file name and its place in a cache are made of.

    Attributes:
        line: product line.
        hwid: the chip, significant bytes only.
        tcb: the reported TCB, component and version, in the order of the KDS.
    """

    line: str
    hwid: bytes
    tcb: tuple[tuple[str, int], ...]


def vcek_identity(report: Report, product: Product | None = None) -> VCEKIdentity:
    """Return which VCEK signs `report`.

    Args:
        report: of a chip that is not masked.
        product: product line; needed for version 2, which does not say.

    Raises:
        EndorsementError: the report is signed by a VLEK, its chip id is masked, or its product line is not known
            (`tee.sev_snp.no_identity`).
        FormatRefused: the reported TCB is of another layout (`tee.sev_snp.report.malformed`).
    """
    if report.cpuid is not None:
        product = product_of_cpu(*report.cpuid[:2])
    if product is None or report.signing_key == VLEK or report.chip_id_masked:
        raise EndorsementError(
            "tee.sev_snp.no_identity",
            "report does not say which VCEK signed it",
            expected="a known product line, a VCEK and a chip id",
            hint="have the certificate handed out with the report",
        )
    components = product.layout.decode(report.reported_tcb, code="tee.sev_snp.report", path="REPORTED_TCB")
    return VCEKIdentity(line=product.line, hwid=report.chip_id[: product.hwid_bytes], tcb=tuple(components.items()))


def vcek_url(identity: VCEKIdentity, *, base: str = KDS) -> str:
    """Return where the KDS has this VCEK."""
    query = "&".join(f"{_QUERY[name]}={version:02}" for name, version in identity.tcb)
    return f"{base}/vcek/v1/{identity.line}/{identity.hwid.hex()}?{query}"


def chain_url(line: str, *, vlek: bool = False, base: str = KDS) -> str:
    """Return where the KDS has the CA certificates of a product line: ASK (or ASVK) and ARK."""
    return f"{base}/{'vlek' if vlek else 'vcek'}/v1/{line}/cert_chain"


def crl_url(line: str, *, vlek: bool = False, base: str = KDS) -> str:
    """Return where the KDS has the revocation list of a product line's ARK."""
    return f"{base}/{'vlek' if vlek else 'vcek'}/v1/{line}/crl"


def store_names(identity: VCEKIdentity) -> tuple[str, str]:
    """Return the file names under which Trustee's offline store has this VCEK, the exact one first."""
    tcb: Mapping[str, int] = dict(identity.tcb)
    name = "bl{bootloader:02}_tee{tee:02}_snp{snp:02}_ucode{microcode:02}".format_map(tcb)
    if "fmc" in tcb:
        name += f"_fmc{tcb['fmc']:02}"
    directory = f"vcek/{identity.hwid.hex()}"
    return f"{directory}/{name}_vcek.der", f"{directory}/vcek.der"


def ark_line(der: bytes) -> str:
    """Return the product line whose root a certificate claims to be; empty when it claims to be none.

    A root for SNP is self-signed and named `ARK-` and the line: ASK and ASVK, which AMD hands out in the same file, are
    no anchors whoever configured them.

    Raises:
        FormatRefused: not a certificate (`tee.sev_snp.root.malformed`).
    """
    certificate = load_certificate(der, code="tee.sev_snp.root")
    prefix, _, line = common_name(certificate).partition("-")
    known = prefix == "ARK" and any(item.line == line for item in PRODUCTS)
    return line if known and certificate.subject == certificate.issuer else ""
