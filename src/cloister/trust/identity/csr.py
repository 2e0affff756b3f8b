"""Certificate requests of guests: a proof that the sender holds a key, and nothing else.

PKCS #10 (RFC 2986). Only the key is used, and a request that asks for anything more is refused rather than trimmed: a
CA flag, a usage, a second name, or a name other than the one it gets says that its maker expects another certificate.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.crypto.signer import ECDSA_P256_SIGNATURE_BYTES
from cloister.errors import FormatRefused, Refused
from cloister.protocol.spiffe import CSR_BYTES, SPIFFEID

_CODE = "trust.identity.csr"
_BIT_STRING = 0x03


def parse_csr(data: bytes) -> x509.CertificateSigningRequest:
    """Return a request whose signature proves that its sender holds its P-256 key.

    Raises:
        FormatRefused: not DER, trailing bytes, too long (`trust.identity.csr`).
        Refused: another key than P-256, another hash than SHA-256 (`trust.identity.csr.key`); a signature that does
            not hold (`trust.identity.csr.proof`).
    """
    if len(data) > CSR_BYTES:
        raise FormatRefused(_CODE, "certificate request too long", expected=f"at most {CSR_BYTES} bytes")
    try:
        request = x509.load_der_x509_csr(data)
        key, algorithm, proven = request.public_key(), request.signature_hash_algorithm, request.is_signature_valid
    except UnsupportedAlgorithm as err:
        raise _weak_key() from err
    except (ValueError, x509.InvalidVersion) as err:
        raise FormatRefused(_CODE, "not a certificate request", expected="PKCS #10, DER") from err
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _weak_key()
    if not isinstance(algorithm, hashes.SHA256) or len(request.signature) > ECDSA_P256_SIGNATURE_BYTES:
        raise _weak_key()
    # A BIT STRING that declares unused bits would be a second request with the same signature (X.690, section 11.2).
    signature = request.signature
    if not data.endswith(bytes((_BIT_STRING, len(signature) + 1, 0)) + signature):
        raise FormatRefused(_CODE, "certificate request is not in its one encoding")
    if not proven:
        raise Refused("trust.identity.csr.proof", "the request is not signed with the key it asks a certificate for")
    return request


def certified_key(request: x509.CertificateSigningRequest, name: SPIFFEID) -> ec.EllipticCurvePublicKey:
    """Return the key of a parsed request that asks for no more than `name`.

    Raises:
        Refused: it does (`trust.identity.csr.asks_more`).
    """
    try:
        extensions = list(request.extensions)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as err:
        raise _asks_more("extensions that do not parse") from err
    for extension in extensions:
        if not isinstance(extension.value, x509.SubjectAlternativeName):
            raise _asks_more(extension.oid.dotted_string)
        names = list(extension.value)
        if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier) or names[0].value != str(name):
            raise _asks_more(", ".join(str(item.value) for item in names)[:200] or "no name", expected=str(name))
    key = request.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise RuntimeError("parse_csr let another kind of key pass")
    return key


def _weak_key() -> Refused:
    return Refused(
        "trust.identity.csr.key",
        "the request's key or signature is not of an accepted kind",
        expected="P-256 with SHA-256",
        hint="make the key with `openssl ecparam -name prime256v1 -genkey`",
    )


def _asks_more(actual: str, *, expected: str = "no extension, or the SPIFFE ID alone as subjectAltName") -> Refused:
    return Refused(
        "trust.identity.csr.asks_more",
        "the request asks for more than the guest gets",
        path="csr",
        expected=expected,
        actual=actual,
        hint="send a request without extensions: name and usage follow from what was attested",
    )
