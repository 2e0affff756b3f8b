"""The certificate of the key that signs reports (VEK): VCEK of a chip, VLEK of a cloud. Its extensions as typed values.

VCEK Certificate and KDS Interface Specification (AMD 57230), section 3: extensions below 1.3.6.1.4.1.3704.1. Every
component of the TCB is one of its own; a component that is missing is an error, never a zero. The hardware id is
written raw or inside an OCTET STRING, 64 bytes or 8; which one it is follows from its length alone, because a chip id
may begin with the tag of an OCTET STRING. Pure; verifies nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.x509.oid import NameOID

from cloister.crypto.x509path import load_certificate
from cloister.errors import EndorsementError
from cloister.tee.sev_snp.products import Product, product_of_name

CODE: Final = "tee.sev_snp.vek"
VCEK_NAME: Final = "SEV-VCEK"
VLEK_NAME: Final = "SEV-VLEK"

_BASE: Final = "1.3.6.1.4.1.3704.1."
_STRUCT_VERSION: Final = "1"
_PRODUCT_NAME: Final = "2"
_HWID: Final = "4"
_CSP_ID: Final = "5"
_COMPONENTS: Final = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
_RESERVED: Final = {"spl4": "3.4", "spl5": "3.5", "spl6": "3.6", "spl7": "3.7"}
_INTEGER, _OCTET_STRING, _IA5_STRING = 0x02, 0x04, 0x16
_BYTE: Final = 0xFF
_SHORT_FORM: Final = 0x80
_CACHED: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class VEK:
    """What the certificate of a VEK says.

    Attributes:
        der: the certificate.
        certificate: the same, parsed.
        key: P-384.
        product: product line of its `productName`.
        product_name: as written (`Milan-B0`).
        struct_version: `structVersion`.
        tcb: components, under the names reports use; reserved ones under their number.
        hwid: the chip, significant bytes only; empty for a VLEK.
        csp_id: the cloud of a VLEK; empty for a VCEK.
    """

    der: bytes
    certificate: x509.Certificate
    key: EllipticCurvePublicKey
    product: Product
    product_name: str
    struct_version: int
    tcb: Mapping[str, int]
    hwid: bytes
    csp_id: str


def common_name(certificate: x509.Certificate) -> str:
    """Return the one common name of the subject; empty when there is none, or more than one."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


@lru_cache(maxsize=_CACHED)
def load_vek(der: bytes) -> VEK:
    """Return what a VEK's certificate says.

    Raises:
        FormatRefused: not a certificate (`tee.sev_snp.vek.malformed`).
        EndorsementError: an extension is missing, twice or malformed (`.extension`), no known product (`.product`), or
            another kind of key (`.key`).
    """
    certificate = load_certificate(der, code=CODE)
    key = certificate.public_key()
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
        raise EndorsementError(f"{CODE}.key", "certificate is not for a P-384 key", path="VEK", expected="P-384")
    values = {
        item.oid.dotted_string.removeprefix(_BASE): item.value.value
        for item in certificate.extensions
        if isinstance(item.value, x509.UnrecognizedExtension) and item.oid.dotted_string.startswith(_BASE)
    }
    product_name = _text(values, _PRODUCT_NAME, "productName")
    product = product_of_name(product_name)
    if product is None:
        raise EndorsementError(
            f"{CODE}.product",
            "certificate names no product line that is known",
            path="productName",
            actual=product_name[:40],
            hint="a newer Cloister may know it",
        )
    struct_version = _integer(values, _STRUCT_VERSION, "structVersion")
    if struct_version != product.layout.struct_version:
        raise EndorsementError(
            f"{CODE}.product",
            "certificate does not count its TCB as its product line does",
            path="structVersion",
            expected=str(product.layout.struct_version),
            actual=str(struct_version),
        )
    tcb = {name: _integer(values, _COMPONENTS[name], name) for name in product.layout.places}
    unexpected = {name: oid for name, oid in _COMPONENTS.items() if name not in tcb} | _RESERVED
    for name, oid in unexpected.items():
        if oid in values:
            tcb[name] = _integer(values, oid, name)
    vlek = common_name(certificate) == VLEK_NAME
    return VEK(
        der=der,
        certificate=certificate,
        key=key,
        product=product,
        product_name=product_name,
        struct_version=struct_version,
        tcb=tcb,
        hwid=b"" if vlek else _hwid(values, product.hwid_bytes),
        csp_id=_text(values, _CSP_ID, "CSP id") if vlek and _CSP_ID in values else "",
    )


def _hwid(values: Mapping[str, bytes], size: int) -> bytes:
    value = _get(values, _HWID, "HWID")
    if len(value) == size:
        return value
    wrapped = bytes([_OCTET_STRING, size])
    if len(value) == size + len(wrapped) and value.startswith(wrapped):
        return value[len(wrapped) :]
    raise _malformed("HWID", f"{size} bytes, raw or in an OCTET STRING", f"{len(value)} bytes")


def _integer(values: Mapping[str, bytes], oid: str, name: str) -> int:
    """Return an INTEGER of 0 to 255 in DER: one byte, or two when the first would look like a sign."""
    value = _get(values, oid, name)
    if value[:2] == b"\x02\x01" and len(value) == 3 and value[2] < _SHORT_FORM:
        return value[2]
    if value[:3] == b"\x02\x02\x00" and len(value) == 4 and value[3] >= _SHORT_FORM:
        return value[3]
    raise _malformed(name, f"an INTEGER of 0 to {_BYTE}", value[:8].hex())


def _text(values: Mapping[str, bytes], oid: str, name: str) -> str:
    value = _get(values, oid, name)
    if len(value) < 3 or value[0] != _IA5_STRING or value[1] != len(value) - 2 or value[1] >= _SHORT_FORM:
        raise _malformed(name, "an IA5String", value[:8].hex())
    try:
        return value[2:].decode("ascii")
    except UnicodeDecodeError as err:
        raise _malformed(name, "an IA5String", value[:8].hex()) from err


def _get(values: Mapping[str, bytes], oid: str, name: str) -> bytes:
    if oid not in values:
        raise EndorsementError(
            f"{CODE}.extension", f"certificate lacks its extension {name}", path=_BASE + oid, expected=name
        )
    return values[oid]


def _malformed(name: str, expected: str, actual: str) -> EndorsementError:
    return EndorsementError(
        f"{CODE}.extension", f"extension {name} is malformed", path=name, expected=expected, actual=actual
    )
