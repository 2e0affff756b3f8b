"""Notation's signature envelopes, JWS and COSE: format, algorithms, certificate chain (Notary Project,
signature-specification.md, signature-envelope-jws.md, signature-envelope-cose.md).

An envelope holds a payload that describes the image, signed attributes, and the signer's certificate chain up to its
root. What is verified here needs no trust: that the chain's first key signed these bytes with the one algorithm that
goes with its kind and size, that every critical attribute is understood, and that the certificates have the shape the
specification asks. Whom to trust, expiry and times are `cloister.oci.signing.trustpolicy`. RFC 3161 countersignatures
are not read, so that a certificate must be valid when the signature is verified. Pure.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from cloister.crypto.cose import SIGN1_TAG, parse_sign1, signed_bytes
from cloister.crypto.x509path import PARSE_ERRORS, extension, load_certificate
from cloister.errors import FormatRefused, ImageRefused, Refused
from cloister.oci.digest import Digest, parse_digest
from cloister.oci.document import Members, encode_document, parse_document
from cloister.oci.signing.referred import NOTATION_COSE, NOTATION_JWS
from cloister.wire.base64 import decode_b64, decode_b64url, encode_b64, encode_b64url
from cloister.wire.cbor import CBOR, Tagged, encode_cbor
from cloister.wire.limits import CERTIFICATE_BYTES, CERTIFICATE_CHAIN, SIGNATURE_BYTES, SIGNATURE_PAYLOAD_BYTES

PAYLOAD_TYPE: Final = "application/vnd.cncf.notary.payload.v1+json"
THUMBPRINTS: Final = "io.cncf.notary.x509chain.thumbprint#S256"
_SCHEME: Final = "io.cncf.notary.signingScheme"
_TIME: Final = "io.cncf.notary.signingTime"
_AUTHENTIC_TIME: Final = "io.cncf.notary.authenticSigningTime"
_EXPIRY: Final = "io.cncf.notary.expiry"
_CRITICAL: Final = frozenset({_SCHEME, _AUTHENTIC_TIME, _EXPIRY})
_X5CHAIN: Final = 33  # RFC 9360
_EPOCH_TAG: Final = 1  # RFC 8949, section 3.4.2
_LATEST: Final = 2**40
_CODE: Final = "oci.signing.notation"
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:Z|[+-]\d\d:\d\d)")
_FORBIDDEN_PURPOSES: Final = (
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
    ExtendedKeyUsageOID.SERVER_AUTH,
    ExtendedKeyUsageOID.EMAIL_PROTECTION,
    ExtendedKeyUsageOID.TIME_STAMPING,
    ExtendedKeyUsageOID.OCSP_SIGNING,
)
_PROCESSED: Final = (ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, ExtensionOID.EXTENDED_KEY_USAGE)
SigningKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class Scheme(enum.Enum):
    """How the signer's time is known: not at all, or by a signing authority that is trusted for it."""

    X509 = "notary.x509"
    SIGNING_AUTHORITY = "notary.x509.signingAuthority"


class Algorithm(enum.Enum):
    """A signature algorithm: JOSE name and COSE number."""

    PS256 = ("PS256", -37)
    PS384 = ("PS384", -38)
    PS512 = ("PS512", -39)
    ES256 = ("ES256", -7)
    ES384 = ("ES384", -35)
    ES512 = ("ES512", -36)


_RSA: Final = {2048: Algorithm.PS256, 3072: Algorithm.PS384, 4096: Algorithm.PS512}
_CURVES: Final = {"secp256r1": Algorithm.ES256, "secp384r1": Algorithm.ES384, "secp521r1": Algorithm.ES512}
_HASHES: Final[Mapping[str, HashAlgorithm]] = {"256": SHA256(), "384": SHA384(), "512": SHA512()}


class TargetArtifact(msgspec.Struct, frozen=True, kw_only=True):
    """What was signed: a descriptor of the manifest."""

    media_type: str
    digest: Digest
    size: int


class VerifiedEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """An envelope whose signature holds; whether its signer is trusted is another question."""

    target: TargetArtifact
    scheme: Scheme
    signed_at: datetime
    expires: datetime | None
    chain: tuple[x509.Certificate, ...]


class _Parts(msgspec.Struct, frozen=True, kw_only=True):
    """An envelope in one form, whichever it came in."""

    algorithm: str | int
    content_type: str
    critical: frozenset[str]
    attributes: Mapping[str, object]
    chain: tuple[bytes, ...]
    payload: bytes
    message: bytes
    signature: bytes


def verify_envelope(raw: bytes, media_type: str) -> VerifiedEnvelope:
    """Return what an envelope says, once its signature held.

    Steps: 1 the format; 2 the chain's shape; 3 the algorithm goes with the key; 4 the signature; 5 the signed
    attributes; 6 the payload.

    Raises:
        ImageRefused: `oci.signing.notation.*`, `oci.signing.bad_signature`.
    """
    # 1
    try:
        parts = _parse_cose(raw) if media_type == NOTATION_COSE else _parse_jws(raw)
        # 2
        chain = tuple(load_certificate(der, code=f"{_CODE}.certificate") for der in parts.chain)
    except FormatRefused as err:
        code = err.code if err.code.startswith(_CODE) else f"{_CODE}.malformed"
        raise ImageRefused(code, err.message, path=err.path, expected=err.expected, actual=err.actual) from err
    check_chain(chain)
    # 3
    key = chain[0].public_key()
    algorithm = algorithm_of(key)
    if parts.algorithm not in algorithm.value:
        raise ImageRefused(
            f"{_CODE}.algorithm",
            "algorithm is not the one that goes with the key",
            expected=algorithm.name,
            actual=str(parts.algorithm)[:40],
        )
    # 4
    _verify(key, algorithm, parts.message, parts.signature)
    # 5
    scheme, signed_at, expires = _attributes(parts)
    # 6
    target = _parse_payload(parts.payload)
    return VerifiedEnvelope(target=target, scheme=scheme, signed_at=signed_at, expires=expires, chain=chain)


def algorithm_of(key: object) -> Algorithm:
    """Return the one algorithm that goes with a public key (signature-specification.md, "Algorithm Selection").

    Raises:
        ImageRefused: `oci.signing.notation.key`.
    """
    found = None
    if isinstance(key, rsa.RSAPublicKey):
        found = _RSA.get(key.key_size)
    elif isinstance(key, ec.EllipticCurvePublicKey):
        found = _CURVES.get(key.curve.name)
    if found is None:
        raise ImageRefused(
            f"{_CODE}.key",
            "key is of a kind or size that is not accepted",
            expected="RSA of 2048, 3072 or 4096 bits, or P-256, P-384, P-521",
            actual=type(key).__name__,
        )
    return found


def check_chain(chain: Sequence[x509.Certificate]) -> None:
    """Return if certificates have the shape that signers must have ("Certificate Requirements").

    The signer's first, each signed by the next, the last by itself; a code-signing end-entity certificate under CAs.

    Raises:
        ImageRefused: `oci.signing.notation.chain`.
    """
    if not 0 < len(chain) <= CERTIFICATE_CHAIN:
        raise _chain("impossible number of certificates", str(len(chain)))
    for certificate, issuer in zip(chain, (*chain[1:], chain[-1]), strict=True):
        try:
            if not isinstance(certificate.signature_hash_algorithm, (SHA256, SHA384, SHA512)):
                raise _chain("certificate is signed with another hash than SHA-2", certificate.subject.rfc4514_string())
            certificate.verify_directly_issued_by(issuer)
        except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm) as err:
            raise _chain("a certificate is not signed by the next", certificate.subject.rfc4514_string()) from err
    try:
        _check_signer(chain[0])
        for below, authority in enumerate(chain[1:]):
            _check_authority(authority, below)
        for certificate in chain:
            _check_critical(certificate)
    except PARSE_ERRORS as err:
        raise _chain("an extension of a certificate does not parse", "") from err


def _check_signer(leaf: x509.Certificate) -> None:
    constraints = extension(leaf, x509.BasicConstraints)
    usage = extension(leaf, x509.KeyUsage)
    purposes = extension(leaf, x509.ExtendedKeyUsage)
    if constraints is not None and constraints.ca:
        raise _chain("the signer's certificate is a CA", leaf.subject.rfc4514_string())
    if usage is None or not usage.digital_signature or usage.key_cert_sign:
        raise _chain("the signer's certificate is not for signatures", leaf.subject.rfc4514_string())
    if not leaf.extensions.get_extension_for_class(x509.KeyUsage).critical:
        raise _chain("key usage of the signer's certificate is not critical", leaf.subject.rfc4514_string())
    if purposes is not None and any(purpose in _FORBIDDEN_PURPOSES for purpose in purposes):
        raise _chain("the signer's certificate is for another purpose", leaf.subject.rfc4514_string())


def _check_critical(certificate: x509.Certificate) -> None:
    for item in certificate.extensions:
        if item.critical and item.oid not in _PROCESSED:
            raise _chain("a critical extension is not understood", item.oid.dotted_string)


def _check_authority(authority: x509.Certificate, below: int) -> None:
    """Check one CA with `below` CAs between it and the signer."""
    constraints = extension(authority, x509.BasicConstraints)
    usage = extension(authority, x509.KeyUsage)
    if constraints is None or not constraints.ca or usage is None or not usage.key_cert_sign:
        raise _chain("an issuer is not a CA that may sign certificates", authority.subject.rfc4514_string())
    if constraints.path_length is not None and below > constraints.path_length:
        raise _chain("more CAs follow than a certificate allows", authority.subject.rfc4514_string())


def _chain(message: str, actual: str) -> ImageRefused:
    return ImageRefused(f"{_CODE}.chain", message, actual=actual[:160])


def _verify(key: object, algorithm: Algorithm, message: bytes, signature: bytes) -> None:
    algorithm_hash = _HASHES[algorithm.name[2:]]
    try:
        if isinstance(key, rsa.RSAPublicKey):
            scheme = padding.PSS(mgf=padding.MGF1(algorithm_hash), salt_length=padding.PSS.DIGEST_LENGTH)
            key.verify(signature, message, scheme, algorithm_hash)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            size = (key.key_size + 7) // 8
            if len(signature) != 2 * size:
                raise InvalidSignature
            r, s = int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(algorithm_hash))
    except InvalidSignature as err:
        raise ImageRefused("oci.signing.bad_signature", "signature is not by the certificate's key") from err


def _parse_jws(raw: bytes) -> _Parts:
    code = f"{_CODE}.jws"
    top = Members(parse_document(raw, ceiling=SIGNATURE_PAYLOAD_BYTES, code=code), path="", code=code)
    top.only("payload", "protected", "header", "signature")
    protected = top.text("protected")
    head = decode_b64url(protected, path="protected", ceiling=SIGNATURE_PAYLOAD_BYTES)
    document = parse_document(head, ceiling=SIGNATURE_PAYLOAD_BYTES, code=code)
    members = Members(document, path="protected", code=code)
    critical = members.texts("crit", ceiling=len(_CRITICAL) + 8)
    unknown = [name for name in critical if name not in _CRITICAL]
    if unknown or any(name not in document for name in critical) or len(set(critical)) != len(critical):
        raise ImageRefused(
            f"{_CODE}.critical", "a critical attribute is not understood", actual=", ".join(unknown or critical)[:120]
        )
    header = top.members("header")
    return _Parts(
        algorithm=members.text("alg"),
        content_type=members.text("cty"),
        critical=frozenset(critical),
        attributes=document,
        chain=tuple(
            decode_b64(text, path="header.x5c", ceiling=CERTIFICATE_BYTES)
            for text in header.texts("x5c", ceiling=CERTIFICATE_CHAIN)
        ),
        payload=decode_b64url(top.text("payload"), path="payload", ceiling=SIGNATURE_PAYLOAD_BYTES),
        message=f"{protected}.{top.text('payload')}".encode(),
        signature=decode_b64url(top.text("signature"), path="signature", ceiling=SIGNATURE_BYTES),
    )


def _parse_cose(raw: bytes) -> _Parts:
    code = f"{_CODE}.cose"
    if raw[:1] != bytes([0xC0 | SIGN1_TAG]):
        raise ImageRefused(f"{code}.malformed", "not a tagged COSE_Sign1")
    message = parse_sign1(raw, code=code, critical=_CRITICAL)
    header = message.header
    algorithm, content_type = header.get(1), header.get(3)
    if not isinstance(algorithm, int) or isinstance(algorithm, bool) or not isinstance(content_type, str):
        raise ImageRefused(f"{code}.malformed", "message has no algorithm or content type")
    chain = message.unprotected.get(_X5CHAIN)
    certificates = [chain] if isinstance(chain, bytes) else chain
    if not isinstance(certificates, list) or not all(isinstance(item, bytes) for item in certificates):
        raise ImageRefused(f"{code}.malformed", "message has no chain of certificates")
    labels = header.get(2)
    critical = [label for label in labels if isinstance(label, str)] if isinstance(labels, list) else []
    return _Parts(
        algorithm=algorithm,
        content_type=content_type,
        critical=frozenset(critical),
        attributes={name: value for name, value in header.items() if isinstance(name, str)},
        chain=tuple(item for item in certificates if isinstance(item, bytes)),
        payload=message.payload,
        message=signed_bytes(message.protected, message.payload),
        signature=message.signature,
    )


def _attributes(parts: _Parts) -> tuple[Scheme, datetime, datetime | None]:
    """Return scheme, time and expiry; what must be critical is, and each scheme has its own time and no other."""
    if parts.content_type != PAYLOAD_TYPE:
        raise ImageRefused(
            f"{_CODE}.content_type",
            "envelope holds another kind of document",
            expected=PAYLOAD_TYPE,
            actual=parts.content_type[:80],
        )
    named = parts.attributes.get(_SCHEME)
    scheme = next((item for item in Scheme if item.value == named), None)
    if scheme is None:
        raise ImageRefused(f"{_CODE}.scheme", "signing scheme is not known", actual=str(named)[:80])
    authority = scheme is Scheme.SIGNING_AUTHORITY
    own, other = (_AUTHENTIC_TIME, _TIME) if authority else (_TIME, _AUTHENTIC_TIME)
    required = {_SCHEME, *([_AUTHENTIC_TIME] if authority else []), *([_EXPIRY] if _EXPIRY in parts.attributes else [])}
    if other in parts.attributes or not required <= parts.critical:
        raise ImageRefused(
            f"{_CODE}.critical",
            "attributes of the signing scheme are not marked critical, or are those of another scheme",
            expected=", ".join(sorted(required)),
            actual=", ".join(sorted(parts.critical)),
        )
    expiry = parts.attributes.get(_EXPIRY)
    return scheme, _time(parts.attributes.get(own), own), None if expiry is None else _time(expiry, _EXPIRY)


def _time(value: object, name: str) -> datetime:
    """Read a time: RFC 3339 text in JWS; seconds, tagged or not, in COSE."""
    if isinstance(value, Tagged) and value.tag == _EPOCH_TAG:
        value = value.value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LATEST:
        return datetime.fromtimestamp(value, UTC)
    if isinstance(value, str) and _RFC3339.fullmatch(value):
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            pass
    raise ImageRefused(f"{_CODE}.time", "not a time", path=name, actual=str(value)[:40])


def _parse_payload(payload: bytes) -> TargetArtifact:
    code = f"{_CODE}.payload"
    top = Members(parse_document(payload, ceiling=SIGNATURE_PAYLOAD_BYTES, code=code), path="", code=code)
    top.only("targetArtifact")
    target = top.members("targetArtifact")
    target.only("mediaType", "digest", "size", "annotations", "artifactType")
    return TargetArtifact(
        media_type=target.text("mediaType"), digest=parse_digest(target.text("digest")), size=target.unsigned("size")
    )


def sign_envelope(
    target: TargetArtifact,
    key: SigningKey,
    chain: Sequence[x509.Certificate],
    *,
    media_type: str,
    at: datetime,
    expires: datetime | None = None,
) -> bytes:
    """Return an envelope of the scheme `notary.x509`.

    Args:
        target: what is signed.
        key: the private half of the first certificate's key.
        chain: the signer's certificate first, the root last.
        media_type: `NOTATION_JWS` or `NOTATION_COSE`.
        at: aware time of the signature.
        expires: aware time after which it does not count.

    Raises:
        ImageRefused: `oci.signing.notation.chain`, `.key`, or `.other_key` when the key is not the certificate's.
    """
    check_chain(chain)
    algorithm = algorithm_of(chain[0].public_key())
    if key.public_key() != chain[0].public_key():
        raise ImageRefused(f"{_CODE}.other_key", "private key is not that of the first certificate")
    descriptor = {"mediaType": target.media_type, "digest": str(target.digest), "size": target.size}
    payload = encode_document({"targetArtifact": descriptor})
    certificates = [certificate.public_bytes(Encoding.DER) for certificate in chain]
    critical = [_SCHEME, *([_EXPIRY] if expires else [])]
    if media_type == NOTATION_JWS:
        head: dict[str, Any] = {  # Any: JSON
            "alg": algorithm.value[0],
            "crit": critical,
            "cty": PAYLOAD_TYPE,
            **({_EXPIRY: _rfc3339(expires)} if expires else {}),
            _SCHEME: Scheme.X509.value,
            _TIME: _rfc3339(at),
        }
        protected, body = encode_b64url(encode_document(head)), encode_b64url(payload)
        signature = _sign(key, algorithm, f"{protected}.{body}".encode())
        document = {
            "payload": body,
            "protected": protected,
            "header": {"x5c": [encode_b64(der) for der in certificates], "io.cncf.notary.signingAgent": "cloister"},
            "signature": encode_b64url(signature),
        }
        return encode_document(document)
    header: dict[int | str, CBOR] = {1: algorithm.value[1], 2: list(critical), 3: PAYLOAD_TYPE}
    header |= {_SCHEME: Scheme.X509.value, _TIME: Tagged(tag=_EPOCH_TAG, value=int(at.timestamp()))}
    if expires:
        header[_EXPIRY] = Tagged(tag=_EPOCH_TAG, value=int(expires.timestamp()))
    encoded = encode_cbor(header)
    unprotected: dict[int | str, CBOR] = {_X5CHAIN: list(certificates), "io.cncf.notary.signingAgent": "cloister"}
    signature = _sign(key, algorithm, signed_bytes(encoded, payload))
    return encode_cbor(Tagged(tag=SIGN1_TAG, value=[encoded, unprotected, payload, signature]))


def thumbprints(chain: Sequence[x509.Certificate]) -> str:
    """Return the value of the manifest's annotation `THUMBPRINTS`."""
    prints = [certificate.fingerprint(SHA256()).hex() for certificate in chain]
    return "[" + ",".join(f'"{text}"' for text in prints) + "]"


def load_chain(pem_blocks: Sequence[bytes]) -> tuple[x509.Certificate, ...]:
    """Parse a chain of DER certificates.

    Raises:
        ImageRefused: `oci.signing.notation.certificate.malformed`.
    """
    try:
        return tuple(load_certificate(der, code=f"{_CODE}.certificate") for der in pem_blocks)
    except Refused as err:
        raise ImageRefused(f"{_CODE}.certificate.malformed", err.message) from err


def _sign(key: SigningKey, algorithm: Algorithm, message: bytes) -> bytes:
    algorithm_hash = _HASHES[algorithm.name[2:]]
    if isinstance(key, rsa.RSAPrivateKey):
        scheme = padding.PSS(mgf=padding.MGF1(algorithm_hash), salt_length=padding.PSS.DIGEST_LENGTH)
        return key.sign(message, scheme, algorithm_hash)
    size = (key.key_size + 7) // 8
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(algorithm_hash)))
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
