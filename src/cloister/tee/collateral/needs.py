"""Which items a piece of evidence will be judged by, read from the evidence before anything of it is verified. Pure.

What is read here only chooses what to fetch: a lie makes the wrong item be fetched, and the verifier then lacks the
right one. Evidence that does not parse, or does not say which platform it is of, needs nothing that could be named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final

from cryptography import x509

from cloister.crypto.x509path import load_certificate
from cloister.errors import EndorsementError
from cloister.rats.evidence import Evidence
from cloister.tee.azure.evidence import parse_evidence as parse_azure
from cloister.tee.collateral.amd import chain_items, vcek_item
from cloister.tee.collateral.content import Entry
from cloister.tee.collateral.intel import PCK_CAS, STANDARD, platform_items
from cloister.tee.collateral.item import Item, Kind
from cloister.tee.collateral.nvidia import ocsp_item, rim_item
from cloister.tee.dcap.abi import TDX, Quote, parse_quote
from cloister.tee.dcap.chain import parse_quote_chain
from cloister.tee.dcap.pck import parse_pck_extension
from cloister.tee.nvidia_gpu.certificate import DeviceIdentity, names_a_device_key, read_chip
from cloister.tee.nvidia_gpu.evidence import parse_evidence as parse_devices
from cloister.tee.nvidia_gpu.opaque import read_opaque
from cloister.tee.nvidia_gpu.reference import wanted_manifests
from cloister.tee.nvidia_gpu.xmlsignature import verify_signed_document
from cloister.tee.registry import WITHOUT_COLLATERAL
from cloister.tee.sev_snp.abi import VLEK, Report, parse_report
from cloister.tee.sev_snp.endorsements import vcek_identity
from cloister.tee.sev_snp.evidence import parse_evidence as parse_snp
from cloister.tee.sev_snp.vek import VCEK_NAME, VLEK_NAME, common_name, load_vek
from cloister.tee.sgx.evidence import parse_evidence as parse_sgx
from cloister.tee.tdx.evidence import parse_evidence as parse_tdx

_CODE: Final = "collateral.needs.certificate"
_NAMED_CAS: Final = {name: ca for ca, name in PCK_CAS.items()}


def needs_of(evidence: Evidence, *, certificates: Sequence[bytes] = (), update: str = STANDARD) -> tuple[Item, ...]:
    """Return the items that `evidence` will be judged by, each once; none for technologies without collateral.

    Args:
        evidence: as received.
        certificates: DER, given beside it: what is among them need not be had, and issuers are found there.
        update: Intel's channel, `standard` or `early`.

    Raises:
        Refused: the evidence does not parse, or does not say which platform it is of.
    """
    if evidence.tee in WITHOUT_COLLATERAL:
        return ()
    find = _FINDERS.get(evidence.tee)
    if find is None:
        raise EndorsementError(
            "collateral.needs.unknown",
            "what this technology needs is not known here",
            expected=", ".join((*_FINDERS, *sorted(WITHOUT_COLLATERAL))),
            actual=evidence.tee[:40],
        )
    return tuple(dict.fromkeys(find(evidence, tuple(certificates), update)))


def follow_up(entry: Entry) -> tuple[Item, ...]:
    """Return what `entry` itself will be judged by: the state of the certificates that signed a manifest.

    Raises:
        Refused: it does not parse.
    """
    if entry.item.kind is not Kind.RIM:
        return ()
    return tuple(_states(verify_signed_document(entry.content.data).certificates, ()))


def quote_needs(quote: Quote, update: str = STANDARD) -> tuple[Item, ...]:
    """Return what a DCAP quote will be judged by.

    Raises:
        Refused: the PCK certificate in it does not parse, or is of no known CA (`collateral.needs.certificate`).
    """
    leaf = parse_quote_chain(quote.data.certification)[0]
    names = leaf.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    ca = _NAMED_CAS.get(str(names[0].value)) if len(names) == 1 else None
    if ca is None:
        raise EndorsementError(
            _CODE,
            "PCK certificate is of no CA that is known",
            expected=" or ".join(_NAMED_CAS),
            actual=leaf.issuer.rfc4514_string()[:120],
        )
    tee = "tdx" if quote.tee_type == TDX else "sgx"
    return platform_items(tee, parse_pck_extension(leaf).fmspc, ca, update=update)


def report_needs(report: Report, certificates: Sequence[bytes] = ()) -> tuple[Item, ...]:
    """Return what an SNP report will be judged by.

    Args:
        report: as parsed.
        certificates: DER, as they came with it: a VCEK or VLEK among them need not be had, and says what the report of
            version 2 does not.

    Raises:
        Refused: neither says which product line it is (`tee.sev_snp.no_identity`).
    """
    named = [_name_of(der) for der in certificates]
    pairs = zip(certificates, named, strict=True)
    vek = next((load_vek(der) for der, name in pairs if name in (VCEK_NAME, VLEK_NAME)), None)
    if vek is not None:
        return chain_items(vek.product.line, vlek=report.signing_key == VLEK)
    identity = vcek_identity(report)
    return (vcek_item(identity), *chain_items(identity.line))


@lru_cache(maxsize=256)
def _name_of(der: bytes) -> str:
    """Return the common name of a certificate: the same few come with all evidence."""
    return common_name(load_certificate(der, code=_CODE, path="cert_chain"))


def _snp(evidence: Evidence, given: tuple[bytes, ...], update: str) -> Sequence[Item]:
    parsed = parse_snp(evidence)
    return report_needs(parse_report(parsed.report), (*parsed.certificates, *given))


def _tdx(evidence: Evidence, given: tuple[bytes, ...], update: str) -> Sequence[Item]:
    return quote_needs(parse_tdx(evidence).quote, update)


def _sgx(evidence: Evidence, given: tuple[bytes, ...], update: str) -> Sequence[Item]:
    return quote_needs(parse_sgx(evidence).quote, update)


def _azure_snp(evidence: Evidence, given: tuple[bytes, ...], update: str) -> Sequence[Item]:
    parsed = parse_azure(evidence)
    return report_needs(parse_report(parsed.hcl.hardware), (parsed.vcek, *given))


def _azure_tdx(evidence: Evidence, given: tuple[bytes, ...], update: str) -> Sequence[Item]:
    return quote_needs(parse_quote(parse_azure(evidence).td_quote), update)


def _nvidia(evidence: Evidence, given: tuple[bytes, ...], update: str) -> Sequence[Item]:
    needed: list[Item] = []
    others = [load_certificate(der, code=_CODE) for der in given]
    for device in parse_devices(evidence):
        chain = [load_certificate(der, code=_CODE, path=device.path) for der in device.certificates] or others
        leaf = next((item for item in chain if names_a_device_key(item)), None)
        if leaf is None:
            raise EndorsementError(
                _CODE,
                "no certificate of the device's key",
                path=device.path,
                hint="give the device's chain beside the evidence",
            )
        chip, arch = read_chip(leaf)
        identity = DeviceIdentity(chip=chip, arch=arch, pdi=b"", fwids=(), flags=None, names=())
        opaque = read_opaque(device.report.opaque, switch=identity.switch)
        needed += [rim_item(wanted.id) for wanted in wanted_manifests(identity, opaque)]
        # The responder knows no leaf: the device makes it anew with each firmware.
        needed += _states([item for item in chain if item is not leaf], others)
    return needed


def _states(chain: Sequence[x509.Certificate], others: Sequence[x509.Certificate]) -> list[Item]:
    """Return the state of each certificate whose issuer is among `chain` or `others`, but not of roots."""
    pool = [*chain, *others]
    return [
        ocsp_item(item, issuer)
        for item in chain
        for issuer in pool
        if item.issuer == issuer.subject and item.issuer != item.subject
    ]


_Finder = Callable[[Evidence, tuple[bytes, ...], str], Sequence[Item]]
_FINDERS: Final[Mapping[str, _Finder]] = {
    "snp": _snp,
    "tdx": _tdx,
    "sgx": _sgx,
    "az-snp-vtpm": _azure_snp,
    "az-tdx-vtpm": _azure_tdx,
    "nvidia": _nvidia,
}
