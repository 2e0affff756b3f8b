"""XML signatures of one strict profile: the enveloped signature over a whole document that NVIDIA's manifests carry.

W3C XML Signature 1.1, of which one shape is accepted: one `Signature`, the last child of the root; one `Reference`
with `URI=""`; transforms enveloped-signature and then at most one canonicalisation; ECDSA P-384 with SHA-384, r || s;
certificates in `KeyInfo`, leaf first. Canonicalisation is inclusive (1.0 or 1.1) or exclusive, without comments; for
whole documents without `xml:` attributes, which are refused, 1.0 and 1.1 are the same.

What is returned is parsed again from the very bytes that were digested, so nothing that is not signed can be read:
wrapped or moved content is either in those bytes or gone. Before anything else the text is refused when it is not
plain UTF-8, has a document type, an entity, a comment or a processing instruction, or is too long. No network, no DTD.
Trust in the signer's certificate is the caller's business. Pure.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import re
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from lxml import etree

from cloister.crypto.x509path import load_certificate
from cloister.errors import EndorsementError, FormatRefused
from cloister.wire.base64 import decode_b64
from cloister.wire.limits import (
    CERTIFICATE_BYTES,
    CERTIFICATE_CHAIN,
    RIM_ALTERNATIVES,
    RIM_BYTES,
    RIM_DEPTH,
    RIM_ELEMENTS,
    RIM_NAMESPACES,
)

DS: Final = "{http://www.w3.org/2000/09/xmldsig#}"
ENVELOPED: Final = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"
ECDSA_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
DIGEST_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#sha384"
INCLUSIVE: Final = ("http://www.w3.org/2006/12/xml-c14n11", "http://www.w3.org/TR/2001/REC-xml-c14n-20010315")
EXCLUSIVE: Final = "http://www.w3.org/2001/10/xml-exc-c14n#"

_XML: Final = "{http://www.w3.org/XML/1998/namespace}"
_DECLARATION: Final = re.compile(
    r"""<\?xml\s+version=["']1\.0["'](\s+encoding=["'](?i:utf-8)["'])?(\s+standalone=["'](yes|no)["'])?\s*\?>"""
)
_DIGEST_BYTES: Final = 48
_SIGNATURE_BYTES: Final = 96
_CODE: Final = "tee.nvidia_gpu.rim"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedDocument:
    """A document whose signature holds under the first of `certificates`, whoever that belongs to.

    Attributes:
        canonical: the bytes that were digested: the document without its signature, in canonical form.
        certificates: as they came in `KeyInfo`, leaf first; not trusted by being there.
    """

    canonical: bytes
    certificates: tuple[x509.Certificate, ...]


def verify_signed_document(data: bytes) -> SignedDocument:
    """Return what is signed in `data`, and the certificates that came with it.

    Raises:
        FormatRefused: not XML of this profile (`tee.nvidia_gpu.rim.malformed`, `.profile`).
        EndorsementError: digest or signature do not hold (`tee.nvidia_gpu.rim.digest`, `.signature`).
    """
    root = parse_plain_xml(data)
    signatures = list(root.iter(f"{DS}Signature"))
    if len(signatures) != 1 or len(root) == 0 or root[-1] is not signatures[0]:
        raise _profile("one Signature, the last child of the root", f"{len(signatures)} found")
    signature = signatures[0]
    info, value, key_info = _children(signature, "SignedInfo", "SignatureValue", "KeyInfo")
    method, algorithm, reference = _children(info, "CanonicalizationMethod", "SignatureMethod", "Reference")
    info_method = _algorithm(method, (*INCLUSIVE, EXCLUSIVE))
    _algorithm(algorithm, (ECDSA_SHA384,))
    document_method, digest = _read_reference(reference)
    signed_info = _canonical(info, info_method)
    certificates = _read_certificates(key_info)
    raw = _decode(value, _SIGNATURE_BYTES)

    _detach(root, signature)
    canonical = _canonical(root, document_method)
    if not hmac.compare_digest(hashlib.sha384(canonical).digest(), digest):
        raise EndorsementError(f"{_CODE}.digest", "document is not the one that was signed", path="DigestValue")
    _verify(certificates[0], raw, signed_info)
    return SignedDocument(canonical=canonical, certificates=certificates)


def parse_plain_xml(data: bytes) -> etree._Element:
    """Parse XML that consists of elements, attributes and text in UTF-8, and of nothing else.

    Raises:
        FormatRefused: `tee.nvidia_gpu.rim.malformed`.
    """
    if len(data) > RIM_BYTES:
        raise _malformed("manifest too long", f"at most {RIM_BYTES} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as err:
        raise _malformed("not UTF-8") from err
    declaration = _DECLARATION.match(text)
    body = text[declaration.end() :] if declaration else text
    # Before the parser sees it: what declares or hides something is refused, not interpreted.
    if "<!" in body or "<?" in body or "\0" in body or text.startswith("\ufeff"):
        raise _malformed("document type, comment, CDATA or processing instruction", "elements and text only")
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, huge_tree=False
    )
    try:
        root = etree.fromstring(body.encode(), parser)
    except (etree.XMLSyntaxError, ValueError) as err:
        raise _malformed(f"not XML: {err}"[:160]) from err
    if sum(1 for _ in itertools.islice(root.iter(), RIM_ELEMENTS + 1)) > RIM_ELEMENTS:
        raise _malformed("too many elements", f"at most {RIM_ELEMENTS}")
    _refuse_unusual(root, depth=1)
    return root


def _refuse_unusual(element: etree._Element, *, depth: int) -> None:
    """Refuse what canonicalisation treats in a way of its own, or takes more than linear time for."""
    if not isinstance(element.tag, str):
        raise _malformed("a node that is no element", "elements and text only")
    if any(str(name).startswith(_XML) for name in element.attrib):
        raise _malformed("an attribute of the namespace xml", "none")
    if depth > RIM_DEPTH:
        raise _malformed("elements nest too deep", f"at most {RIM_DEPTH}")
    if len(element.attrib) > RIM_ALTERNATIVES or len(element.nsmap) > RIM_NAMESPACES:
        raise _malformed("too many attributes", f"at most {RIM_ALTERNATIVES}, {RIM_NAMESPACES} namespaces")
    for child in element:
        _refuse_unusual(child, depth=depth + 1)


def _read_reference(reference: etree._Element) -> tuple[str, bytes]:
    """Return canonicalisation and digest of the one reference, which must be to the whole document."""
    if _attributes(reference) != {"URI": ""}:
        raise _profile('a Reference with URI="" and nothing else', str(_attributes(reference))[:80])
    names = ("Transforms", "DigestMethod", "DigestValue")
    transforms, method, value = _children(reference, *names, attributes={"URI": ""})
    steps = [_algorithm(item, (ENVELOPED, *INCLUSIVE, EXCLUSIVE)) for item in _only(transforms, "Transform")]
    if not 1 <= len(steps) <= 2 or steps[0] != ENVELOPED or ENVELOPED in steps[1:]:
        raise _profile("enveloped-signature, then at most one canonicalisation", ", ".join(steps)[:120])
    _algorithm(method, (DIGEST_SHA384,))
    return (steps[1] if len(steps) == 2 else INCLUSIVE[1]), _decode(value, _DIGEST_BYTES)


def _read_certificates(key_info: etree._Element) -> tuple[x509.Certificate, ...]:
    (data,) = _children(key_info, "X509Data")
    items = _only(data, "X509Certificate")
    if not 1 <= len(items) <= CERTIFICATE_CHAIN:
        raise _profile(f"1 to {CERTIFICATE_CHAIN} certificates", str(len(items)))
    return tuple(
        load_certificate(
            _base64(item, CERTIFICATE_BYTES),
            code=f"{_CODE}.certificate",
            path="X509Certificate",
        )
        for item in items
    )


def _verify(leaf: x509.Certificate, raw: bytes, signed: bytes) -> None:
    key = leaf.public_key()
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
        raise EndorsementError(f"{_CODE}.signature", "signer's key is of another kind", expected="P-384")
    half = len(raw) // 2
    der = encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))
    try:
        key.verify(der, signed, ECDSA(SHA384()))
    except InvalidSignature as err:
        raise EndorsementError(
            f"{_CODE}.signature", "manifest is not signed by the certificate it carries", path="SignatureValue"
        ) from err


def _canonical(element: etree._Element, method: str) -> bytes:
    try:
        return etree.tostring(element, method="c14n", exclusive=method == EXCLUSIVE, with_comments=False)
    except (etree.C14NError, ValueError) as err:  # a namespace that is no absolute address
        raise _malformed("has no canonical form") from err


def _detach(root: etree._Element, signature: etree._Element) -> None:
    """Remove the signature, and leave the text behind it: that is signed."""
    tail = signature.tail or ""
    before = signature.getprevious()
    if before is None:
        root.text = (root.text or "") + tail
    else:
        before.tail = (before.tail or "") + tail
    root.remove(signature)


def _children(
    element: etree._Element, *names: str, attributes: dict[str, str] | None = None
) -> tuple[etree._Element, ...]:
    """Return the children, which must be exactly these in this order; no attributes but those given, no text."""
    if [item.tag for item in element] != [f"{DS}{name}" for name in names]:
        found = ", ".join(str(item.tag).rpartition("}")[2] for item in element)
        raise _profile(f"{_local(element)} of {', '.join(names)}", found[:80])
    if _attributes(element) != (attributes or {}) or _has_text(element):
        raise _profile(f"{_local(element)} without other attributes or text", str(_attributes(element))[:80])
    return tuple(element)


def _only(element: etree._Element, name: str) -> tuple[etree._Element, ...]:
    return _children(element, *[name] * len(element))


def _algorithm(element: etree._Element, accepted: tuple[str, ...]) -> str:
    """Return the algorithm an element names; it must have no parameters."""
    found = element.get("Algorithm", "")
    if len(element) or len(element.attrib) != 1 or found not in accepted or (element.text or "").strip():
        raise _profile(f"{_local(element)} {' or '.join(accepted)}"[:160], found[:80])
    return found


def _decode(element: etree._Element, size: int) -> bytes:
    data = _base64(element, size)
    if len(data) != size:
        raise _profile(f"{_local(element)} of {size} bytes", str(len(data)))
    return data


def _base64(element: etree._Element, ceiling: int) -> bytes:
    if len(element) or element.attrib:
        raise _profile(f"{_local(element)} of base64 alone", "more")
    try:
        return decode_b64("".join((element.text or "").split()), path=_local(element), ceiling=ceiling)
    except FormatRefused as err:
        raise _profile(f"{_local(element)} of base64", err.message) from err


def _has_text(element: etree._Element) -> bool:
    return any((text or "").strip() for text in (element.text, *(item.tail for item in element)))


def _attributes(element: etree._Element) -> dict[str, str]:
    return {str(name): str(value) for name, value in element.attrib.items()}


def _local(element: etree._Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _profile(expected: str, actual: str) -> FormatRefused:
    return FormatRefused(
        f"{_CODE}.profile", "signature is not of the one accepted form", expected=expected, actual=actual
    )


def _malformed(message: str, expected: str = "") -> FormatRefused:
    return FormatRefused(f"{_CODE}.malformed", message, expected=expected)
