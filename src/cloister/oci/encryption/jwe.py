"""Layer keys in JSON Web Encryption, as ocicrypt writes and reads it (keywrap/jwe).

RFC 7516 in its JSON serialisations, RFC 7518 sections 4.3 (RSA-OAEP with SHA-1 and SHA-256), 4.6 (ECDH-ES with AES key
wrap) and 5 (AES-GCM, AES-CBC with HMAC). Written: AES-256-GCM; `RSA-OAEP` or `ECDH-ES+A256KW`, or what the
recipient's JWK asks for; flattened for one recipient, general for several. Read: every combination of these.

RSA-OAEP with SHA-1 is what ocicrypt writes for PEM keys; a SHA-1 collision does not help against it (RFC 8017,
section 7.1: the hash is a mask and the label's digest). A JWE does not say who made it; the manifest's signature does.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap
from cryptography.hazmat.primitives.padding import PKCS7

from cloister.crypto.jwe import agree_wrapping_key
from cloister.errors import ImageRefused
from cloister.oci.document import Members, encode_document, parse_document
from cloister.oci.encryption.keyfiles import CURVES, OpeningKey, RecipientKey
from cloister.oci.encryption.options import unwrap_failed
from cloister.wire.base64 import decode_b64url, encode_b64url
from cloister.wire.limits import KIB, WRAPPED_KEY_BYTES

SCHEME: Final = "jwe"
_CODE: Final = "oci.encryption.jwe"
_ENCRYPTION: Final = "A256GCM"
_CEK_BYTES: Final = 32
_IV_BYTES: Final = 12
_TAG_BYTES: Final = 16
_RECIPIENTS: Final = 32
_HEADER_BYTES: Final = 4 * KIB
_KEY_BYTES: Final = 2 * KIB  # an RSA key of 16384 bits
_MINIMUM_RSA_BITS: Final = 2048  # RFC 7518, section 4.3
_OAEP: Final[Mapping[str, type[hashes.HashAlgorithm]]] = {
    "RSA-OAEP": hashes.SHA1,  # the format's own choice; see the module
    "RSA-OAEP-256": hashes.SHA256,
}
_KEY_WRAP_BITS: Final[Mapping[str, int]] = {"ECDH-ES+A128KW": 128, "ECDH-ES+A192KW": 192, "ECDH-ES+A256KW": 256}
_GCM_KEY_BYTES: Final[Mapping[str, int]] = {"A128GCM": 16, "A192GCM": 24, "A256GCM": 32}
# RFC 7518, section 5.2.3 to 5.2.5: the key is one for the MAC and one for the cipher, of the same length.
_CBC_HASHES: Final[Mapping[str, tuple[int, str]]] = {
    "A128CBC-HS256": (32, "sha256"),
    "A192CBC-HS384": (48, "sha384"),
    "A256CBC-HS512": (64, "sha512"),
}


class JWEWrapper:
    """Writes one JWE for all recipients; a `KeyWrapper`."""

    scheme: Final = SCHEME

    def __init__(self, recipients: Sequence[RecipientKey]) -> None:
        """Take the recipients.

        Raises:
            ImageRefused: `oci.encryption.jwe.too_many`, `oci.encryption.jwe.weak_key`.
        """
        if not 0 < len(recipients) <= _RECIPIENTS:
            raise ImageRefused(f"{_CODE}.too_many", "too many recipients", expected=f"1 to {_RECIPIENTS}")
        for recipient in recipients:
            if isinstance(recipient.key, rsa.RSAPublicKey) and recipient.key.key_size < _MINIMUM_RSA_BITS:
                raise ImageRefused(
                    f"{_CODE}.weak_key",
                    "RSA key is too short to wrap to",
                    expected=f"{_MINIMUM_RSA_BITS} bits or more",
                    actual=f"{recipient.key.key_size} bits",
                )
        self._recipients = tuple(recipients)

    def wrap(self, options: bytes) -> bytes:
        """Return the JWE."""
        cek, iv = os.urandom(_CEK_BYTES), os.urandom(_IV_BYTES)
        wrapped = [_wrap(recipient, cek) for recipient in self._recipients]
        keys: dict[str, object]
        if len(wrapped) == 1:
            header, encrypted_key = wrapped[0]
            shared = {"alg": header.pop("alg"), "enc": _ENCRYPTION} | header
            keys = {"encrypted_key": encode_b64url(encrypted_key)}
        else:
            shared = {"enc": _ENCRYPTION}
            keys = {"recipients": [{"header": header, "encrypted_key": encode_b64url(key)} for header, key in wrapped]}
        protected = encode_b64url(encode_document(shared))
        sealed = AESGCM(cek).encrypt(iv, options, protected.encode("ascii"))
        return encode_document(
            {"protected": protected}
            | keys
            | {
                "iv": encode_b64url(iv),
                "ciphertext": encode_b64url(sealed[:-_TAG_BYTES]),
                "tag": encode_b64url(sealed[-_TAG_BYTES:]),
            }
        )


class JWEUnwrapper:
    """Opens JWEs with one private key; a `KeyUnwrapper`."""

    scheme: Final = SCHEME

    def __init__(self, key: OpeningKey) -> None:
        self._key = key.key

    def unwrap(self, element: bytes) -> bytes:
        """Try every recipient whose algorithm is this key's; see `KeyUnwrapper.unwrap`.

        Raises:
            ImageRefused: `oci.encryption.unwrap_failed`, `oci.encryption.jwe.*`.
            FormatRefused: `wire.base64.*`.
        """
        document = Members(parse_document(element, ceiling=WRAPPED_KEY_BYTES, code=_CODE), path="jwe", code=_CODE)
        # go-jose writes the first recipient's `encrypted_key` a second time beside `recipients`.
        document.only("protected", "recipients", "header", "encrypted_key", "iv", "ciphertext", "tag")
        protected = document.text("protected")
        shared = parse_document(
            decode_b64url(protected, path="jwe.protected", ceiling=_HEADER_BYTES), ceiling=_HEADER_BYTES, code=_CODE
        )
        encryption = Members(shared, path="jwe.protected", code=_CODE).text("enc")
        iv = decode_b64url(document.text("iv"), path="jwe.iv", ceiling=_TAG_BYTES)
        text = decode_b64url(document.text("ciphertext"), path="jwe.ciphertext", ceiling=WRAPPED_KEY_BYTES)
        tag = decode_b64url(document.text("tag"), path="jwe.tag", ceiling=2 * _TAG_BYTES)
        for header, encrypted_key in _recipients(document, shared):
            try:
                cek = _unwrap(self._key, header, encrypted_key)
                if cek is not None:
                    return _decrypt(encryption, cek, iv, text, tag, protected.encode("ascii"))
            except (InvalidUnwrap, InvalidTag, ValueError):
                continue  # another recipient's, or altered
        raise unwrap_failed(SCHEME)


def _recipients(document: Members, shared: dict[str, Any]) -> Iterator[tuple[Members, bytes]]:  # Any: JSON
    """Yield joint header and encrypted key of each recipient.

    Raises:
        ImageRefused: `oci.encryption.jwe.header`: a name twice, or one that changes what the JWE means.
    """
    single = {"header": document.raw_members("header"), "encrypted_key": document.text("encrypted_key", "")}
    for entry in document.array("recipients", ceiling=_RECIPIENTS) or [single]:
        recipient = Members(entry, path="jwe.recipients", code=_CODE)
        own = recipient.raw_members("header")
        # RFC 7516, section 7.2.1: the names are disjoint. `crit` would name what is not understood here.
        if own.keys() & shared.keys() or "enc" in own or (own.keys() | shared.keys()) & {"crit", "zip"}:
            raise ImageRefused(f"{_CODE}.header", "header is not one for layer keys", path="jwe.header")
        encrypted_key = decode_b64url(recipient.text("encrypted_key", ""), path="jwe.encrypted_key", ceiling=_KEY_BYTES)
        yield Members(shared | own, path="jwe.header", code=_CODE), encrypted_key


def _wrap(recipient: RecipientKey, cek: bytes) -> tuple[dict[str, object], bytes]:
    named: dict[str, object] = {"kid": recipient.key_id} if recipient.key_id else {}
    if isinstance(recipient.key, rsa.RSAPublicKey):
        algorithm = recipient.algorithm or "RSA-OAEP"
        return {"alg": algorithm} | named, recipient.key.encrypt(cek, _oaep(algorithm))
    algorithm = recipient.algorithm or "ECDH-ES+A256KW"
    ephemeral = ec.generate_private_key(recipient.key.curve)
    kek = agree_wrapping_key(ephemeral, recipient.key, algorithm=algorithm, bits=_KEY_WRAP_BITS[algorithm])
    return {"alg": algorithm, "epk": _point(ephemeral.public_key())} | named, aes_key_wrap(kek, cek)


def _unwrap(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, header: Members, encrypted_key: bytes) -> bytes | None:
    """Return the content-encryption key, or nothing when the algorithm is not for this kind of key.

    Raises:
        InvalidUnwrap, ValueError: another key, or altered.
    """
    algorithm = header.text("alg")
    if isinstance(key, rsa.RSAPrivateKey):
        return key.decrypt(encrypted_key, _oaep(algorithm)) if algorithm in _OAEP else None
    if algorithm not in _KEY_WRAP_BITS:
        return None
    epk = header.members("epk")
    curve = epk.text("crv")
    if epk.text("kty") != "EC" or curve not in CURVES or not isinstance(key.curve, CURVES[curve][0]):
        return None
    x, y = (_coordinate(epk, name, CURVES[curve][1]) for name in ("x", "y"))
    kek = agree_wrapping_key(
        key,
        ec.EllipticCurvePublicNumbers(x, y, CURVES[curve][0]()).public_key(),
        algorithm=algorithm,
        bits=_KEY_WRAP_BITS[algorithm],
        party_u=decode_b64url(header.text("apu", ""), path="jwe.apu", ceiling=_HEADER_BYTES),
        party_v=decode_b64url(header.text("apv", ""), path="jwe.apv", ceiling=_HEADER_BYTES),
    )
    return aes_key_unwrap(kek, encrypted_key)


def _decrypt(encryption: str, cek: bytes, iv: bytes, text: bytes, tag: bytes, associated: bytes) -> bytes:
    """Return the plaintext.

    Raises:
        ImageRefused: `oci.encryption.jwe.unknown_encryption`.
        InvalidTag, ValueError: altered, or the key is another's.
    """
    if encryption in _GCM_KEY_BYTES:
        if len(cek) != _GCM_KEY_BYTES[encryption] or len(iv) != _IV_BYTES or len(tag) != _TAG_BYTES:
            raise ValueError("another length than the algorithm has")
        return AESGCM(cek).decrypt(iv, text + tag, associated)
    if encryption not in _CBC_HASHES:
        raise ImageRefused(
            f"{_CODE}.unknown_encryption",
            "content encryption is not supported",
            path="jwe.protected.enc",
            expected=", ".join((*_GCM_KEY_BYTES, *_CBC_HASHES)),
            actual=encryption[:40],
        )
    key_bytes, digest = _CBC_HASHES[encryption]
    half = key_bytes // 2
    if len(cek) != key_bytes:
        raise ValueError("another length than the algorithm has")
    mac = hmac.new(cek[:half], associated + iv + text + (8 * len(associated)).to_bytes(8, "big"), digest).digest()
    if not hmac.compare_digest(mac[:half], tag):
        raise InvalidTag
    context = Cipher(AES(cek[half:]), CBC(iv)).decryptor()
    unpadder = PKCS7(8 * len(iv)).unpadder()
    return unpadder.update(context.update(text) + context.finalize()) + unpadder.finalize()


def _oaep(algorithm: str) -> padding.OAEP:
    digest = _OAEP[algorithm]
    return padding.OAEP(padding.MGF1(digest()), digest(), None)


def _point(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    name, width = next((name, width) for name, (curve, width) in CURVES.items() if isinstance(key.curve, curve))
    numbers = key.public_numbers()
    x, y = (encode_b64url(number.to_bytes(width, "big")) for number in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": name, "x": x, "y": y}


def _coordinate(epk: Members, name: str, width: int) -> int:
    data = decode_b64url(epk.text(name), path=f"jwe.epk.{name}", ceiling=width)
    if len(data) != width:
        raise ValueError("another length than the curve has")
    return int.from_bytes(data, "big")
