"""A guest gets its SPIFFE identity from the trust service: X509-SVID, JWT-SVID, bundle.

What is asked for travels as a plugin request of the key broker protocol (`kbs+spiffe:///...`), and comes back sealed
to the guest's key. The private key of an X509-SVID is made here and never leaves; the broker is believed about names,
because the measured init data name it, but a certificate for another key or under another name is refused.

`cryptography` is imported with the first request: this module is loaded inside the pod VM.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol, TypeVar
from urllib.parse import quote

import msgspec

from cloister.errors import FormatRefused, Refused
from cloister.protocol.spiffe import (
    BUNDLE,
    CSR_BYTES,
    JWT_SVID,
    X509_SVID,
    JWTSVIDAnswer,
    SVIDRequest,
    X509SVIDAnswer,
    parse_spiffe_id,
)
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.limits import CERTIFICATE_BYTES

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

PLUGIN: Final = "spiffe"
_AUTHORITIES: Final = 16  # of one trust domain at once; with monthly rotation two or three
_CODE: Final = "client.svid"
_Answer = TypeVar("_Answer", X509SVIDAnswer, JWTSVIDAnswer)


class PluginCaller(Protocol):
    """What is used of a key broker client."""

    def plugin(self, name: str, path: str, *, query: str = "", body: bytes = b"") -> bytes:
        """Send one request to a plugin of the broker; return its answer, opened."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class X509SVID:
    """An identity for TLS, as files of a TLS library hold it.

    Attributes:
        spiffe_id: the name.
        certificate_pem: leaf first.
        key_pem: PKCS #8; secret.
        bundle_pem: authorities that peers of the same trust domain are verified by.
        expires_at: aware UTC; fetch another at half of what is left.
    """

    spiffe_id: str
    certificate_pem: bytes
    key_pem: bytes
    bundle_pem: bytes
    expires_at: datetime


def fetch_x509_svid(broker: PluginCaller, *, init_data: str = "", name: str = "") -> X509SVID:
    """Make a key and get a certificate for it.

    Args:
        broker: where.
        init_data: the measured text, for names that are made of what is in it.
        name: which SPIFFE ID, where the guest has several.

    Raises:
        Refused: no such identity for this guest, or an answer that is not for its key (`client.svid`).
        Unavailable: no connection, or the broker cannot tell now.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    request = SVIDRequest(csr=encode_b64(_request(key)), init_data=init_data)
    query = f"id={quote(str(parse_spiffe_id(name)), safe='')}" if name else ""
    data = broker.plugin(PLUGIN, X509_SVID, query=query, body=msgspec.json.encode(request))
    answer = _decode(data, X509SVIDAnswer)
    chain = _certificates(answer.x509_svid, "x509_svid")
    authorities = _certificates(answer.bundle, "bundle")
    if chain[0].public_key() != key.public_key():
        raise Refused(_CODE, "the certificate is not for the key it was asked for", path="x509_svid")
    if _name_of(chain[0]) != answer.spiffe_id or (name and answer.spiffe_id != name):
        raise Refused(_CODE, "the certificate has another name", expected=name or answer.spiffe_id[:120])
    return X509SVID(
        spiffe_id=answer.spiffe_id,
        certificate_pem=b"".join(item.public_bytes(Encoding.PEM) for item in chain),
        key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        bundle_pem=b"".join(item.public_bytes(Encoding.PEM) for item in authorities),
        expires_at=chain[0].not_valid_after_utc,
    )


def fetch_jwt_svid(broker: PluginCaller, *audiences: str, init_data: str = "", name: str = "") -> JWTSVIDAnswer:
    """Get a JWT-SVID for exactly these relying parties.

    Raises:
        Refused: no such identity for this guest, or an audience its owner did not list.
        Unavailable: no connection, or the broker cannot tell now.
    """
    parts = [f"audience={quote(audience, safe='')}" for audience in audiences]
    if name:
        parts.append(f"id={quote(str(parse_spiffe_id(name)), safe='')}")
    body = msgspec.json.encode(SVIDRequest(init_data=init_data)) if init_data else b""
    answer = _decode(broker.plugin(PLUGIN, JWT_SVID, query="&".join(parts), body=body), JWTSVIDAnswer)
    if name and answer.spiffe_id != name:
        raise Refused(_CODE, "the token has another name", expected=name)
    return answer


def fetch_bundle(broker: PluginCaller) -> bytes:
    """Return the trust domain's bundle, a JWK set as the SPIFFE specifications define it."""
    return broker.plugin(PLUGIN, BUNDLE)


def _request(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding

    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256())
    data = made.public_bytes(Encoding.DER)
    if len(data) > CSR_BYTES:
        raise RuntimeError("our own certificate request is too long")
    return data


def _certificates(text: str, path: str) -> list[x509.Certificate]:
    """Return certificates that stand one behind the other, DER, at least one."""
    from cryptography.x509 import InvalidVersion, load_der_x509_certificate

    data = decode_b64(text, path=path, ceiling=_AUTHORITIES * CERTIFICATE_BYTES)
    found: list[x509.Certificate] = []
    while data and len(found) < _AUTHORITIES:
        # DER: tag, length in long form, content (X.690, section 8.1.3); a certificate is longer than 255 bytes.
        end = 4 + int.from_bytes(data[2:4], "big") if data[:2] == b"\x30\x82" else 0
        try:
            found.append(load_der_x509_certificate(data[:end]))
        except (ValueError, InvalidVersion) as err:
            raise FormatRefused(_CODE, "not certificates one behind the other", path=path) from err
        data = data[end:]
    if data or not found:
        raise FormatRefused(_CODE, "too many certificates, or none", path=path)
    return found


def _name_of(certificate: x509.Certificate) -> str:
    from cryptography.x509 import ExtensionNotFound, SubjectAlternativeName, UniformResourceIdentifier

    try:
        names = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
    except (ExtensionNotFound, ValueError):
        return ""
    uris = names.get_values_for_type(UniformResourceIdentifier)
    return uris[0] if len(names) == 1 and len(uris) == 1 else ""


def _decode(data: bytes, kind: type[_Answer]) -> _Answer:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise FormatRefused(_CODE, "the broker's answer is no SVID") from err
