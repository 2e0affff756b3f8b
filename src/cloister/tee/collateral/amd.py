"""AMD's Key Distribution Service: the VCEK of a chip at a TCB, the CAs of a product line, their revocation list. Pure.

VCEK Certificate and KDS Interface Specification (AMD 57230). Addresses and identities are those of
`cloister.tee.sev_snp.endorsements`. VCEK and CA certificates never change; the list has an end.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from cloister.crypto.x509path import load_certificate
from cloister.errors import EndorsementError
from cloister.tee.collateral.answers import BINARY_TYPES, answering, certificates_of, inspect_list, require_same
from cloister.tee.collateral.content import Content
from cloister.tee.collateral.item import Item, Kind, make_item
from cloister.tee.collateral.transport import Answer, Request
from cloister.tee.sev_snp.endorsements import VCEKIdentity, chain_url, crl_url, vcek_url
from cloister.tee.sev_snp.vek import VCEK_NAME, common_name, load_vek

_CACHED: Final = 1024  # identities whose items are kept: each guest of a chip asks for the same
COMPONENTS: Final = ("fmc", "bootloader", "tee", "snp", "microcode")


@lru_cache(maxsize=_CACHED)
def vcek_item(identity: VCEKIdentity) -> Item:
    """Return the item of a VCEK; a component the product does not have is empty, not absent.

    Raises:
        FormatRefused: `collateral.item.malformed`.
    """
    tcb = dict(identity.tcb)
    fields = {name: str(tcb[name]) if name in tcb else "" for name in COMPONENTS}
    return make_item(Kind.VCEK, product=identity.line, hwid=identity.hwid.hex(), **fields)


def vcek_identity_of(item: Item) -> VCEKIdentity:
    """Return the identity in the words of `sev_snp`; the inverse of `vcek_item`."""
    tcb = tuple((name, int(item[name])) for name in COMPONENTS if item[name])
    return VCEKIdentity(line=item["product"], hwid=bytes.fromhex(item["hwid"]), tcb=tcb)


@lru_cache(maxsize=_CACHED)
def chain_items(line: str, *, vlek: bool = False) -> tuple[Item, Item]:
    """Return what every report of a product line needs: the CA certificates, and the revocation list."""
    signer = "vlek" if vlek else "vcek"
    return (
        make_item(Kind.AMD_CHAIN, signer=signer, product=line),
        make_item(Kind.AMD_CRL, signer=signer, product=line),
    )


def request_vcek(item: Item, mirror: bool) -> Request:
    """Return the request for a VCEK."""
    return Request(path=vcek_url(vcek_identity_of(item), base=""), types=BINARY_TYPES)


def request_chain(item: Item, mirror: bool) -> Request:
    """Return the request for the CA certificates of a product line."""
    return Request(path=chain_url(item["product"], vlek=item["signer"] == "vlek", base=""), types=BINARY_TYPES)


def request_crl(item: Item, mirror: bool) -> Request:
    """Return the request for the revocation list of a product line."""
    return Request(path=crl_url(item["product"], vlek=item["signer"] == "vlek", base=""), types=BINARY_TYPES)


def unwrap_plain(item: Item, answer: Answer) -> tuple[bytes, str]:
    """Return the body as it came."""
    return answer.body, ""


def unwrap_certificate(item: Item, answer: Answer) -> tuple[bytes, str]:
    """Return the one certificate of the answer in DER; file stores hold PEM, too.

    Raises:
        EndorsementError: not one certificate (`collateral.answer.malformed`).
    """
    found = certificates_of(item, answer.body)
    if len(found) != 1:
        raise EndorsementError(
            "collateral.answer.malformed", "answer is not one certificate", path=item.label, actual=str(len(found))
        )
    return found[0], ""


def inspect_vcek(item: Item, data: bytes, chain: str) -> Content:
    """Return a VCEK as content: of that chip, that product line, and exactly that TCB.

    Raises:
        EndorsementError: it is not (`collateral.answer.*`).
    """
    with answering(item):
        vek = load_vek(data)
    require_same(item, "kind of key", VCEK_NAME, common_name(vek.certificate))
    require_same(item, "product line", item["product"], vek.product.line)
    require_same(item, "chip", item["hwid"], vek.hwid.hex())
    wanted = {name: int(item[name]) for name in COMPONENTS if item[name]}
    found = {name: vek.tcb[name] for name in COMPONENTS if name in vek.tcb}
    require_same(item, "TCB", _tcb_text(wanted), _tcb_text(found))
    return Content(data=data)


def inspect_chain(item: Item, data: bytes, chain: str) -> Content:
    """Return the CA certificates of a product line as content: the CA that signs VCEKs (or VLEKs), and its root.

    Raises:
        EndorsementError: they are not (`collateral.answer.*`).
    """
    certificates = [
        load_certificate(der, code="collateral.answer.chain", path=item.label) for der in certificates_of(item, data)
    ]
    line = item["product"]
    names = [f"SEV-VLEK-{line}" if item["signer"] == "vlek" else f"SEV-{line}", f"ARK-{line}"]
    require_same(item, "CA", ", ".join(names), ", ".join(map(common_name, certificates)))
    ca, root = certificates
    try:
        root.verify_directly_issued_by(root)
        ca.verify_directly_issued_by(root)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError) as err:
        raise EndorsementError(
            "collateral.answer.malformed", "certificates of the answer are no chain", path=item.label
        ) from err
    return Content(data=data)


def inspect_crl(item: Item, data: bytes, chain: str) -> Content:
    """Return the revocation list of a product line's root as content.

    Raises:
        EndorsementError: it is not (`collateral.answer.*`).
    """
    return inspect_list(item, data, chain, f"ARK-{item['product']}")


def _tcb_text(tcb: dict[str, int]) -> str:
    return ", ".join(f"{name} {version}" for name, version in tcb.items())
