"""SWID tags with an enveloped XML signature, in the form NVIDIA writes, or in whatever form a test asks for.

The text of a manifest and the signature over it are made apart, so that each deviation is one argument.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from lxml import etree

from cloister.tee.nvidia_gpu import xmlsignature
from cloister.wire.base64 import encode_b64


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureForm:
    """How a document is signed; the default is what NVIDIA does."""

    canonicalisation: str = xmlsignature.INCLUSIVE[0]
    transforms: tuple[str, ...] = (xmlsignature.ENVELOPED, xmlsignature.INCLUSIVE[0])
    signature_method: str = xmlsignature.ECDSA_SHA384
    digest_method: str = xmlsignature.DIGEST_SHA384
    uri: str | None = ""
    reference_attributes: str = ""
    signature_attributes: str = ""
    before_info: str = ""
    after_certificates: str = ""
    digest: bytes | None = None


def manifest_body(
    *, version: str, active: Mapping[int, Sequence[bytes]], product: str = "GH100", inactive: Sequence[int] = ()
) -> str:
    """Return the text of a manifest without signature, with namespaces as NVIDIA writes them."""
    rows = [_resource(index, values, active=True) for index, values in active.items()]
    rows += [_resource(index, [bytes(48)], active=False) for index in inactive]
    return (
        '<SoftwareIdentity xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd"'
        ' xmlns:ns0="http://standards.iso.org/iso/19770/-2/2015/schema.xsd"'
        ' xmlns:ns2="http://www.w3.org/2001/04/xmlenc#sha384" corpus="false" name="test" tagId="1" version="1.0">\n'
        '    <ns0:Entity name="NVIDIA Corporation" role="softwareCreator tagCreator"/>\n'
        f'    <ns0:Meta colloquialVersion={quoteattr(version)} edition="GPU" product={quoteattr(product)}/>\n'
        '    <ns0:Payload xmlns:SHA384="http://www.w3.org/2001/04/xmlenc#sha384">\n        '
        + "\n        ".join(rows)
        + "\n    </ns0:Payload>\n</SoftwareIdentity>\n"
    )


def sign_document(
    body: str, certificates: Sequence[bytes], key: ec.EllipticCurvePrivateKey, form: SignatureForm | None = None
) -> bytes:
    """Return `body` with an enveloped signature as the last child of its root.

    Args:
        body: an XML document; its root's end tag is the last one.
        certificates: DER, for `KeyInfo`.
        key: signs.
        form: of the signature.
    """
    form = form or SignatureForm()
    root = etree.fromstring(body.encode())
    digest = form.digest or hashlib.sha384(_canonical(root, form.transforms[-1])).digest()
    uri = "" if form.uri is None else f' URI="{form.uri}"'
    transforms = "".join(f'<ds:Transform Algorithm="{name}"/>' for name in form.transforms)
    info = (
        f'<ds:SignedInfo><ds:CanonicalizationMethod Algorithm="{form.canonicalisation}"/>'
        f'<ds:SignatureMethod Algorithm="{form.signature_method}"/>'
        f"<ds:Reference{uri}{form.reference_attributes}><ds:Transforms>{transforms}</ds:Transforms>"
        f'<ds:DigestMethod Algorithm="{form.digest_method}"/>'
        f"<ds:DigestValue>{encode_b64(digest)}</ds:DigestValue></ds:Reference></ds:SignedInfo>"
    )
    items = "".join(f"<ds:X509Certificate>{encode_b64(der)}</ds:X509Certificate>" for der in certificates)

    def whole(value: str) -> str:
        signature = (
            f'<ds:Signature xmlns:ds="http://www.w3.org/2000/09/xmldsig#"{form.signature_attributes}>'
            f"{form.before_info}{info}<ds:SignatureValue>{value}</ds:SignatureValue>"
            f"<ds:KeyInfo><ds:X509Data>{items}</ds:X509Data></ds:KeyInfo>{form.after_certificates}</ds:Signature>"
        )
        head, end, tail = body.rpartition("</")
        return head + signature + end + tail

    signed_info = etree.fromstring(whole("").encode()).find(f".//{xmlsignature.DS}SignedInfo")
    if signed_info is None:
        raise RuntimeError("the document has no SignedInfo")
    return whole(encode_b64(sign_raw(key, _canonical(signed_info, form.canonicalisation)))).encode()


def sign_raw(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """Return r || s of an ECDSA signature with SHA-384."""
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA384())))
    size = (key.key_size + 7) // 8
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def _canonical(element: etree._Element, method: str) -> bytes:
    exclusive = method == xmlsignature.EXCLUSIVE
    return etree.tostring(element, method="c14n", exclusive=exclusive, with_comments=False)


def _resource(index: int, values: Sequence[bytes], *, active: bool) -> str:
    hashes = " ".join(f'ns2:Hash{number}="{value.hex()}"' for number, value in enumerate(values))
    return (
        f'<ns0:Resource type="Measurement" index="{index}" active="{active}" alternatives="{len(values)}" {hashes}'
        f' name="Measurement_{index}" size="48"/>'
    )
