"""Sealed secrets of Confidential Containers: a signed reference to a secret, safe to hand to a hostile cluster
(`spec/sealed-secret.md`; guest-components, confidential-data-hub).

    sealed.<header>.<payload>.<signature>       a JWS in compact form, ES256 only, `kid` names the sealing key

Payload, JSON: `vault` names a resource of the key broker; `envelope` carries the secret itself, encrypted under a
data key, which is wrapped under a key-encryption key of the broker. Two differences to CoCo, both stricter: there is
no way to skip the signature, and `kbs` wraps envelope keys too (CoCo knows only cloud providers there, which are
refused here).

Text and payload are untrusted until `verify_sealed_secret` returns; only it makes a `VaultSecret` or an
`EnvelopeSecret`. A verified one says what its signer meant, not that this pod may have it: that is the pod policy's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from cloister.crypto.aead import AES256_KEY_BYTES, GCM_NONCE_BYTES, GCM_TAG_BYTES, open_aes256gcm, seal_aes256gcm
from cloister.crypto.jwt import sign_es256, verify_es256
from cloister.crypto.signer import ECDSAP256PublicKey, Signer
from cloister.errors import FormatRefused, Refused
from cloister.protocol.resourceuri import ResourcePath, parse_resource_uri
from cloister.wire.base64 import decode_b64, decode_b64url, encode_b64, encode_b64url
from cloister.wire.limits import KIB

PREFIX: Final = "sealed."
SEALED_BYTES: Final = 96 * KIB  # of the whole text: an environment value holds 128
SECRET_BYTES: Final = 48 * KIB  # of the secret in an envelope
VERSION: Final = "0.1.0"
PROVIDER: Final = "kbs"
WRAP_TYPE: Final = "A256GCM"
_ALGORITHM: Final = "ES256"
_HEADER_BYTES: Final = 4 * KIB
_SIGNATURE_BYTES: Final = 64
_JWK_BYTES: Final = 4 * KIB
_COORDINATE_BYTES: Final = 32
_KEY_LABEL: Final = b"cloister/sealed-secret/data-key/v1\0"  # associated data of the wrapped data key
_WRAPPED_KEY_BYTES: Final = GCM_NONCE_BYTES + AES256_KEY_BYTES + GCM_TAG_BYTES
_MADE_HERE: Final = object()
_CODE: Final = "crypto.sealed"


class _Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    alg: str
    kid: str
    typ: str = ""


class _Payload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: str
    type: Literal["vault", "envelope"]
    provider: str
    provider_settings: dict[str, Any] = msgspec.field(default_factory=dict)  # Any: JSON; must be empty
    annotations: dict[str, Any] = msgspec.field(default_factory=dict)  # Any: JSON; for people
    name: str = ""
    key_id: str = ""
    encrypted_key: str = ""
    encrypted_data: str = ""
    wrap_type: str = ""
    iv: str = ""


class _JWK(msgspec.Struct, frozen=True, kw_only=True):
    """The members of a P-256 JWK that matter here; others (`use`, `kid`, also a private `d`) are not looked at."""

    kty: str
    crv: str
    x: str
    y: str


class VaultSecret:
    """A verified reference to the resource `name`. Made by `verify_sealed_secret` only."""

    __slots__ = ("name",)

    def __init__(self, made_here: object, name: ResourcePath) -> None:
        _require_made_here(made_here)
        self.name = name

    @property
    def resource(self) -> ResourcePath:
        """What is asked of the key broker: the secret itself."""
        return self.name


class EnvelopeSecret:
    """A verified envelope: opened with the key-encryption key `key_id`. Made by `verify_sealed_secret` only."""

    __slots__ = ("_data", "_nonce", "_wrapped_key", "key_id")

    def __init__(self, made_here: object, key_id: ResourcePath, wrapped_key: bytes, nonce: bytes, data: bytes) -> None:
        _require_made_here(made_here)
        self.key_id = key_id
        self._wrapped_key = wrapped_key
        self._nonce = nonce
        self._data = data

    @property
    def resource(self) -> ResourcePath:
        """What is asked of the key broker: the key-encryption key."""
        return self.key_id

    def open(self, kek: bytes | bytearray) -> bytes:
        """Return the secret, given the 32 bytes of the key-encryption key.

        Raises:
            Refused: `crypto.sealed.kek_length`, `crypto.sealed.not_opened`: another key, or not what was sealed.
        """
        _require_kek(kek, self.key_id)
        nonce, wrapped = self._wrapped_key[:GCM_NONCE_BYTES], self._wrapped_key[GCM_NONCE_BYTES:]
        try:
            key = open_aes256gcm(kek, nonce, wrapped, _key_context(self.key_id))
            return open_aes256gcm(key, self._nonce, self._data)
        except Refused as err:
            raise Refused(
                f"{_CODE}.not_opened",
                "sealed secret does not open with the key it names",
                path=self.key_id.uri,
                hint="the key in the key broker was replaced since; seal the secret again",
            ) from err


SealedSecret = VaultSecret | EnvelopeSecret


def is_sealed(text: str) -> bool:
    """Whether `text` claims to be a sealed secret: it begins with `sealed.`."""
    return text.startswith(PREFIX)


def read_key_id(text: str) -> str:
    """Return the `kid` a sealed secret claims: only to find the key to verify it with.

    Raises:
        FormatRefused: `crypto.sealed.malformed`.
        Refused: `crypto.sealed.algorithm`.
    """
    return _header(_split(text)[0]).kid


def verify_sealed_secret(text: str, keys: Mapping[str, ECDSAP256PublicKey]) -> SealedSecret:
    """Return what a sealed secret refers to.

    Steps: 1 `sealed.` and three parts within the ceiling; 2 the header names ES256, a key in `keys`, and nothing
    unknown; 3 the signature holds; 4 version, provider and type are ones that can be honoured, and nothing in the
    payload is unknown or would be ignored.

    Args:
        text: the sealed secret.
        keys: accepted sealing keys by `kid`.

    Raises:
        FormatRefused: `crypto.sealed.malformed`.
        Refused: `crypto.sealed.algorithm`, `.unknown_key`, `.bad_signature`, `.version`, `.provider`,
            `.provider_settings`, `.wrap_type`.
    """
    # 1, 2
    head, body, tail = _split(text)
    kid = _header(head).kid
    key = keys.get(kid)
    if key is None:
        raise Refused(
            f"{_CODE}.unknown_key",
            "sealed secret is not signed by a sealing key that is accepted here",
            path="header.kid",
            expected=", ".join(sorted(keys))[:200] or "no key at all",
            actual=kid[:120],
            hint="add the key to `sealing_keys` of the container in the pod policy",
        )
    # 3
    signature = _decode(tail, "signature", _SIGNATURE_BYTES)
    try:
        verify_es256(key, f"{head}.{body}".encode("ascii"), signature)
    except Refused as err:
        raise Refused(
            f"{_CODE}.bad_signature",
            "sealed secret is not signed by the key it names",
            path="signature",
            actual=kid[:120],
            hint="it was changed, or made with another key; seal it again",
        ) from err
    # 4
    payload: _Payload = _parse(_decode(body, "payload", SEALED_BYTES), "payload", _Payload)
    return _secret(payload)


def seal_vault_secret(name: ResourcePath, signer: Signer, *, kid: str) -> str:
    """Return the sealed secret that refers to resource `name`."""
    return _seal(
        {
            "version": VERSION,
            "type": "vault",
            "name": name.uri,
            "provider": PROVIDER,
            "provider_settings": {},
            "annotations": {},
        },
        signer,
        kid,
    )


def seal_envelope_secret(
    secret: bytes, signer: Signer, *, kid: str, key_id: ResourcePath, kek: bytes | bytearray
) -> str:
    """Return the sealed secret that carries `secret` under a fresh data key, wrapped under `kek`.

    Args:
        secret: at most `SECRET_BYTES`.
        signer: the sealing key.
        kid: its name, as the guest's pod policy has it.
        key_id: where the key broker keeps `kek`.
        kek: 32 bytes.

    Raises:
        Refused: `crypto.sealed.too_long`, `crypto.sealed.kek_length`.
    """
    _require_kek(kek, key_id)
    if len(secret) > SECRET_BYTES:
        raise Refused(
            f"{_CODE}.too_long",
            "secret is too long for an envelope",
            expected=f"at most {SECRET_BYTES} bytes",
            actual=str(len(secret)),
            hint="store it with `cloister secret put` and seal a reference to it",
        )
    key, nonce, key_nonce = os.urandom(AES256_KEY_BYTES), os.urandom(GCM_NONCE_BYTES), os.urandom(GCM_NONCE_BYTES)
    return _seal(
        {
            "version": VERSION,
            "type": "envelope",
            "key_id": key_id.uri,
            "encrypted_key": encode_b64(key_nonce + seal_aes256gcm(kek, key_nonce, key, _key_context(key_id))),
            "encrypted_data": encode_b64(seal_aes256gcm(key, nonce, secret)),
            "wrap_type": WRAP_TYPE,
            "iv": encode_b64(nonce),
            "provider": PROVIDER,
            "provider_settings": {},
            "annotations": {},
        },
        signer,
        kid,
    )


def parse_sealing_key(data: bytes | bytearray) -> ECDSAP256PublicKey:
    """Parse a sealing key as a key broker holds it: a P-256 JWK (RFC 7517), or a PEM `PUBLIC KEY`.

    Raises:
        Refused: `crypto.signer.*` for PEM.
        FormatRefused: `crypto.sealed.key` for anything else that is no P-256 public key.
    """
    content = bytes(data)
    if content.lstrip().startswith(b"-----BEGIN"):
        return ECDSAP256PublicKey.from_pem(content)
    if len(content) > _JWK_BYTES:
        raise _bad_key("key is too long")
    try:
        jwk = msgspec.json.decode(content, type=_JWK)
        if (jwk.kty, jwk.crv) != ("EC", "P-256"):
            raise _bad_key("key is of another kind")
        x, y = (_coordinate(text) for text in (jwk.x, jwk.y))
        return ECDSAP256PublicKey.from_point(x, y)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise _bad_key("key is no JWK") from err
    except Refused as err:
        raise _bad_key("key is no point of the curve") from err


def _require_kek(kek: bytes | bytearray, key_id: ResourcePath) -> None:
    if len(kek) != AES256_KEY_BYTES:
        raise Refused(
            f"{_CODE}.kek_length",
            "key-encryption key of a sealed secret has the wrong length",
            path=key_id.uri,
            expected=f"{AES256_KEY_BYTES} bytes",
            actual=f"{len(kek)} bytes",
        )


def _secret(payload: _Payload) -> SealedSecret:
    if payload.version != VERSION:
        raise _unsupported(f"{_CODE}.version", "version of the sealed secret", VERSION, payload.version)
    if payload.provider != PROVIDER:
        raise _unsupported(f"{_CODE}.provider", "provider of the sealed secret", PROVIDER, payload.provider)
    if payload.provider_settings:
        raise _unsupported(
            f"{_CODE}.provider_settings",
            "settings for the provider",
            "none",
            ", ".join(sorted(payload.provider_settings)),
        )
    envelope = (payload.key_id, payload.encrypted_key, payload.encrypted_data, payload.wrap_type, payload.iv)
    if payload.type == "vault":
        if any(envelope):
            raise _malformed("payload", "a vault secret carries no key and no data")
        return VaultSecret(_MADE_HERE, _resource(payload.name, "name"))
    if payload.name:
        raise _malformed("payload.name", "an envelope has no name")
    if payload.wrap_type != WRAP_TYPE:
        raise _unsupported(f"{_CODE}.wrap_type", "cipher of the sealed secret", WRAP_TYPE, payload.wrap_type)
    wrapped = _bytes(payload.encrypted_key, "encrypted_key", _WRAPPED_KEY_BYTES)
    nonce = _bytes(payload.iv, "iv", GCM_NONCE_BYTES)
    data = decode_b64(payload.encrypted_data, path="payload.encrypted_data", ceiling=SECRET_BYTES + GCM_TAG_BYTES)
    return EnvelopeSecret(_MADE_HERE, _resource(payload.key_id, "key_id"), wrapped, nonce, data)


def _seal(payload: Mapping[str, Any], signer: Signer, kid: str) -> str:  # Any: JSON
    header = {"alg": _ALGORITHM, "kid": kid}
    signed = ".".join(encode_b64url(msgspec.json.encode(part)) for part in (header, payload))
    text = f"{PREFIX}{signed}.{encode_b64url(sign_es256(signer, signed.encode('ascii')))}"
    read_key_id(text)  # a `kid` that readers refuse is refused here
    return text


def _split(text: str) -> tuple[str, str, str]:
    if len(text) > SEALED_BYTES or not text.isascii() or not is_sealed(text):
        raise _malformed("", f"not a sealed secret of at most {SEALED_BYTES} bytes")
    parts = text[len(PREFIX) :].split(".")
    if len(parts) != 3:
        raise _malformed("", "a sealed secret has three parts")
    return parts[0], parts[1], parts[2]


def _header(part: str) -> _Header:
    header: _Header = _parse(_decode(part, "header", _HEADER_BYTES), "header", _Header)
    if header.alg != _ALGORITHM:
        raise _unsupported(f"{_CODE}.algorithm", "signature of the sealed secret", _ALGORITHM, header.alg)
    if not header.kid or not header.kid.isprintable() or header.typ.upper() not in ("", "JWT", "JWS", "JOSE"):
        raise _malformed("header", "a sealed secret names its key")
    return header


def _parse(data: bytes, place: str, kind: Any) -> Any:  # Any: msgspec's type argument and its instance
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise _malformed(place, f"{place} of a sealed secret is not of the expected shape") from err


def _decode(part: str, place: str, ceiling: int) -> bytes:
    try:
        return decode_b64url(part, path=place, ceiling=ceiling)
    except FormatRefused as err:
        raise _malformed(place, f"{place} of a sealed secret is no base64url") from err


def _bytes(text: str, name: str, length: int) -> bytes:
    data = decode_b64(text, path=f"payload.{name}", ceiling=length)
    if len(data) != length:
        raise _malformed(f"payload.{name}", f"{name} of a sealed secret has {length} bytes")
    return data


def _coordinate(text: str) -> bytes:
    data = decode_b64url(text, path="key", ceiling=_COORDINATE_BYTES)
    if len(data) != _COORDINATE_BYTES:
        raise _bad_key("coordinate has another length")
    return data


def _resource(text: str, name: str) -> ResourcePath:
    try:
        return parse_resource_uri(text)
    except FormatRefused as err:
        raise _malformed(f"payload.{name}", "a sealed secret names a resource as kbs:///repository/type/tag") from err


def _key_context(key_id: ResourcePath) -> bytes:
    return _KEY_LABEL + key_id.uri.encode("ascii")


def _require_made_here(made_here: object) -> None:
    if made_here is not _MADE_HERE:
        raise TypeError("a sealed secret is verified by verify_sealed_secret")


def _malformed(place: str, message: str) -> FormatRefused:
    return FormatRefused(f"{_CODE}.malformed", message, path=place)


def _bad_key(message: str) -> FormatRefused:
    return FormatRefused(f"{_CODE}.key", message, path="sealing key", expected="a P-256 public key as JWK or PEM")


def _unsupported(code: str, what: str, expected: str, actual: str) -> Refused:
    return Refused(
        code,
        f"{what} is not supported",
        path=code.rpartition(".")[2],
        expected=expected,
        actual=actual[:80] or "nothing",
    )
