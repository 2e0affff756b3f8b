"""NVIDIA's RIM service and OCSP responder: reference manifests by id, and the state of a certificate. Pure.

RIM service API version 1: JSON around the signed XML, with the hash of it. OCSP: RFC 6960, without nonce, because an
answer is kept for as long as it says. The request, which holds serial number and issuer, is itself the identity.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from cloister.crypto.ocsp import load_ocsp_response
from cloister.errors import FormatRefused
from cloister.tee.collateral.answers import JSON_TYPES, answering, require_same
from cloister.tee.collateral.content import Content
from cloister.tee.collateral.files import unwrap_manifest
from cloister.tee.collateral.item import Item, Kind, make_item
from cloister.tee.collateral.transport import Answer, Request
from cloister.tee.nvidia_gpu.endorsements import rim_url
from cloister.tee.nvidia_gpu.xmlsignature import verify_signed_document
from cloister.wire.limits import COLLATERAL_BYTES
from cloister.wire.strictjson import parse_json_object

_OCSP_TYPES: Final = frozenset({"application/ocsp-response"})
_CODE: Final = "collateral.answer.rim"


def rim_item(rim_id: str) -> Item:
    """Return the item of a reference manifest.

    Raises:
        FormatRefused: not an id (`collateral.item.malformed`).
    """
    return make_item(Kind.RIM, id=rim_id)


def ocsp_item(certificate: x509.Certificate, issuer: x509.Certificate) -> Item:
    """Return the item of the state of `certificate`, which `issuer` issued."""
    request = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, SHA384()).build()
    return make_item(Kind.OCSP, request=request.public_bytes(Encoding.DER).hex())


def request_rim(item: Item, mirror: bool) -> Request:
    """Return the request for a manifest."""
    return Request(path=urlsplit(rim_url(item["id"])).path, types=JSON_TYPES)


def request_ocsp(item: Item, mirror: bool) -> Request:
    """Return the request for the state of a certificate."""
    body = bytes.fromhex(item["request"])
    return Request(path="/", types=_OCSP_TYPES, body=body, body_type="application/ocsp-request")


def unwrap_rim(item: Item, answer: Answer) -> tuple[bytes, str]:
    """Return the XML of the answer.

    Raises:
        EndorsementError: not an answer for that id (`collateral.answer.*`).
    """
    with answering(item):
        value = parse_json_object(answer.body, ceiling=COLLATERAL_BYTES, code=_CODE, family=FormatRefused)
        require_same(item, "id", item["id"], str(value.get("id")))
        return unwrap_manifest(value, path=item.label), ""


def unwrap_ocsp(item: Item, answer: Answer) -> tuple[bytes, str]:
    """Return the response as it came."""
    return answer.body, ""


def inspect_rim(item: Item, data: bytes, chain: str) -> Content:
    """Return a manifest as content, signed by the first certificate in it. It does not hold its id: the service's word
    is all there is for that, until a verifier compares what the manifest is for with what the device says.

    Raises:
        EndorsementError: not a manifest, or not signed so (`collateral.answer.malformed`).
    """
    with answering(item):
        signed = verify_signed_document(data)
    return Content(data=data, issued=signed.certificates[0].not_valid_before_utc)


def inspect_ocsp(item: Item, data: bytes, chain: str) -> Content:
    """Return an OCSP response as content: successful, and about the certificate asked for.

    Raises:
        EndorsementError: it is not (`collateral.answer.*`).
    """
    with answering(item):
        parsed = load_ocsp_response(data, code="collateral.answer.ocsp", path=item.label).parsed
        asked = _asked(item)
    require_same(item, "certificate", _name(asked), _name(parsed))
    return Content(data=data, issued=parsed.this_update_utc, expires=parsed.next_update_utc)


def _asked(item: Item) -> ocsp.OCSPRequest:
    try:
        return ocsp.load_der_ocsp_request(bytes.fromhex(item["request"]))
    except ValueError as err:
        raise FormatRefused("collateral.item.malformed", "identity is no OCSP request", path=item.label) from err


def _name(part: ocsp.OCSPRequest | ocsp.OCSPResponse) -> str:
    return f"{part.serial_number:x} of {part.issuer_key_hash.hex()[:16]} {part.issuer_name_hash.hex()[:16]}"
