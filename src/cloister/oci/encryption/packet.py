"""The annotation packet that carries a wrapped layer key: CoCo's `attestation-agent` key provider, versions 1 and 2.

`{"kid":"kbs:///..","wrapped_data":"..","iv":"..","wrap_type":"A256GCM"}`; version 2 adds `version`, `provider`,
`provider_settings`, `annotations`. Version 1 is written. Read are both, as far as a key of the key broker wraps: the
settings and annotations of version 2 are for other providers, and say nothing here. The KEK that the format's
reference encryptor publishes as its sample is refused in both directions, because everybody has it.

A256CTR is read as well, and authenticates nothing: whoever knows what one packet holds can write another that opens
to what he likes. An owner may open such an image (`open_packet`); a guest does not (`unwrap_private_options`).

What a packet does not do: it names neither layer nor image, so whoever wrapped it can have it moved. The manifest's
signature, the layer's MAC and the diff_id bind it (`cloister.oci.encryption.authenticate`).
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from cloister.crypto.aead import (
    AES256_KEY_BYTES,
    CTR_NONCE_BYTES,
    GCM_NONCE_BYTES,
    GCM_TAG_BYTES,
    ctr_stream,
    open_aes256gcm,
    seal_aes256gcm,
)
from cloister.errors import ImageRefused, Refused
from cloister.oci.document import Members, encode_document, parse_document
from cloister.oci.encryption.options import PrivateOptions, encode_private_options, parse_private_options
from cloister.protocol.resourceuri import ResourcePath, parse_resource_uri
from cloister.wire.base64 import decode_b64, encode_b64

WRAP_TYPE: Final = "A256GCM"
UNAUTHENTICATED_WRAP_TYPE: Final = "A256CTR"
VERSION: Final = "0.1.0"
_CODE: Final = "oci.encryption"
_PACKET_BYTES: Final = 8192
_WRAPPED_BYTES: Final = 4096
_KEK_ID_CHARS: Final = 512
# By wrap type: bytes of the nonce, and those that wrapped data is longer than what it holds.
_WRAPS: Final[Mapping[str, tuple[int, int]]] = {
    WRAP_TYPE: (GCM_NONCE_BYTES, GCM_TAG_BYTES),
    UNAUTHENTICATED_WRAP_TYPE: (CTR_NONCE_BYTES, 0),
}
# SHA-256 of the published sample KEK: enough to know it, and nothing to copy into a configuration.
_SAMPLE_KEK_SHA256: Final = "062b8e55611f471c5186828e3cd7a4c1da271e4ea1bafb39a093aa2adff8a709"


class AnnotationPacket(msgspec.Struct, frozen=True, kw_only=True):
    """A wrapped layer key and the name of the KEK that opens it. From an untrusted registry."""

    kek_id: str
    wrapped: bytes
    nonce: bytes
    wrap_type: str = WRAP_TYPE

    @property
    def kek_path(self) -> ResourcePath:
        """The KEK's place in the key broker.

        Raises:
            FormatRefused: `protocol.resource.malformed`.
        """
        return parse_resource_uri(self.kek_id)


def parse_packet(data: bytes) -> AnnotationPacket:
    """Parse a packet of version 1 or 2.

    Raises:
        ImageRefused: `oci.encryption.packet.*`: JSON, members, `wrap_type`, `provider`, `version`, `field_length`.
    """
    code = f"{_CODE}.packet"
    members = Members(parse_document(data, ceiling=_PACKET_BYTES, code=code), path="packet", code=code)
    members.only("kid", "wrapped_data", "iv", "wrap_type", "version", "provider", "provider_settings", "annotations")
    _require_value(members, "version", VERSION, VERSION)
    _require_kbs(members.text("provider", "kbs"))
    wrap_type = members.text("wrap_type", "")
    if wrap_type not in _WRAPS:
        raise _unsupported("wrap_type", " or ".join(_WRAPS), wrap_type)
    for name in ("provider_settings", "annotations"):
        if name in members:
            members.members(name)
    nonce_bytes, overhead = _WRAPS[wrap_type]
    nonce = decode_b64(members.text("iv"), path="packet.iv", ceiling=64)
    wrapped = decode_b64(members.text("wrapped_data"), path="packet.wrapped_data", ceiling=_WRAPPED_BYTES)
    kek_id = members.text("kid")
    for what, fits in (
        ("iv", len(nonce) == nonce_bytes),
        ("wrapped_data", len(wrapped) > overhead),
        ("kid", 0 < len(kek_id) <= _KEK_ID_CHARS),
    ):
        if not fits:
            raise ImageRefused(f"{code}.field_length", f"{what} has the wrong length", path=f"packet.{what}")
    return AnnotationPacket(kek_id=kek_id, wrapped=wrapped, nonce=nonce, wrap_type=wrap_type)


def encode_packet(packet: AnnotationPacket) -> bytes:
    """Return the packet as version 1, which readers of both versions take."""
    fields: Mapping[str, Any] = {
        "kid": packet.kek_id,
        "wrapped_data": encode_b64(packet.wrapped),
        "iv": encode_b64(packet.nonce),
        "wrap_type": packet.wrap_type,
    }
    return encode_document(fields)


def wrap_private_options(options: PrivateOptions, *, kek_id: str, kek: bytes) -> AnnotationPacket:
    """Wrap `options` under `kek`; see `seal_packet`."""
    return seal_packet(encode_private_options(options), kek_id=kek_id, kek=kek)


def seal_packet(options: bytes, *, kek_id: str, kek: bytes) -> AnnotationPacket:
    """Wrap the private options' JSON under `kek` with a fresh nonce.

    Raises:
        ImageRefused: `oci.encryption.sample_kek`, `oci.encryption.kek_length`.
        FormatRefused: `kek_id` is not `kbs:///repository/type/tag`.
    """
    parse_resource_uri(kek_id)
    require_kek(kek)
    nonce = os.urandom(GCM_NONCE_BYTES)
    return AnnotationPacket(kek_id=kek_id, wrapped=seal_aes256gcm(kek, nonce, options), nonce=nonce)


def unwrap_private_options(packet: AnnotationPacket, kek: bytes | bytearray) -> PrivateOptions:
    """Open `packet` with `kek`, and only if that proves that the holder of `kek` wrote it.

    Raises:
        ImageRefused: `oci.encryption.packet.wrap_type`, `oci.encryption.sample_kek`, `oci.encryption.kek_length`,
            `oci.encryption.unwrap_failed` for another KEK or a changed packet, `oci.encryption.*` for what was inside.
    """
    if packet.wrap_type != WRAP_TYPE:
        raise _unsupported("wrap_type", WRAP_TYPE, packet.wrap_type)
    require_kek(kek)
    return parse_private_options(open_packet(packet, kek))


def open_packet(packet: AnnotationPacket, kek: bytes | bytearray) -> bytes:
    """Return the private options' JSON, without judging the KEK: `require_kek` comes first.

    Raises:
        ImageRefused: `oci.encryption.unwrap_failed` for another KEK or a changed packet.
    """
    try:
        if packet.wrap_type == WRAP_TYPE:
            return open_aes256gcm(kek, packet.nonce, packet.wrapped)
        plain = b"".join(ctr_stream(kek, packet.nonce, [packet.wrapped]))
        parse_private_options(plain).wipe()  # of another key nothing but noise comes out
        return plain
    except Refused as err:
        raise ImageRefused(
            f"{_CODE}.unwrap_failed",
            "layer key does not open with this key-encryption key",
            path=packet.kek_id[:120],
            hint="the image was sealed under another key, or its annotation was changed",
        ) from err


def require_kek(kek: bytes | bytearray) -> None:
    """Return if `kek` can protect a layer key.

    Raises:
        ImageRefused: `oci.encryption.kek_length`, `oci.encryption.sample_kek`.
    """
    if len(kek) != AES256_KEY_BYTES:
        raise ImageRefused(
            f"{_CODE}.kek_length",
            "key-encryption key has the wrong length",
            expected=f"{AES256_KEY_BYTES} bytes",
            actual=f"{len(kek)} bytes",
        )
    if hmac.compare_digest(hashlib.sha256(kek).hexdigest(), _SAMPLE_KEK_SHA256):
        raise ImageRefused(
            f"{_CODE}.sample_kek",
            "key-encryption key is the published sample key, which protects nothing",
            hint="make a key of 32 random bytes and store it in the key broker",
        )


def _require_kbs(provider: str) -> None:
    if provider != "kbs":
        raise ImageRefused(
            f"{_CODE}.packet.provider",
            "the layer key was wrapped by a cloud's key management, not by a key broker",
            path="packet.provider",
            expected="kbs",
            actual=provider[:80] or "nothing",
            hint="decrypt the image with that cloud's own tool and encrypt it for a key broker",
        )


def _require_value(members: Members, name: str, expected: str, default: str) -> None:
    actual = members.text(name, default)
    if actual != expected:
        raise _unsupported(name, expected, actual)


def _unsupported(name: str, expected: str, actual: str) -> ImageRefused:
    return ImageRefused(
        f"{_CODE}.packet.{name}",
        f"{name} of the wrapped layer key is not supported",
        path=f"packet.{name}",
        expected=expected,
        actual=actual[:80] or "nothing",
    )
