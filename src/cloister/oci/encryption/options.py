"""The two option objects of an encrypted layer (containers/ocicrypt, blockcipher): public in clear, private wrapped.

Public: cipher name and HMAC of the ciphertext. Private: layer key, digest of the plain (still compressed) layer,
nonce. Only `AES_256_CTR_HMAC_SHA256` exists. The nonce may stand in either object, as in ocicrypt; where it stands in
both and differs, a layer is refused. Public options come from an untrusted registry; private ones are trusted as far
as the KEK they were wrapped with.
"""

from __future__ import annotations

from typing import Final

import msgspec

from cloister.crypto.aead import AES256_KEY_BYTES, CTR_NONCE_BYTES
from cloister.errors import ImageRefused
from cloister.oci.digest import Digest, parse_digest
from cloister.oci.document import Members, encode_document, parse_document
from cloister.wire.base64 import decode_b64, encode_b64

CIPHER: Final = "AES_256_CTR_HMAC_SHA256"
HMAC_BYTES: Final = 32
_CODE: Final = "oci.encryption"
_OPTIONS_BYTES: Final = 4096


class PublicOptions(msgspec.Struct, frozen=True):
    """What everybody may know of an encrypted layer: the HMAC-SHA256 of its ciphertext, and rarely the nonce."""

    hmac: bytes
    nonce: bytes | None = None


class PrivateOptions:
    """What only the key holder knows of an encrypted layer. The repr holds no key.

    `wipe` overwrites the key in the one buffer this object owns; copies inside `cryptography` live until they are
    freed.
    """

    __slots__ = ("digest", "key", "nonce")

    def __init__(self, *, key: bytes | bytearray, digest: Digest, nonce: bytes | None) -> None:
        _require_length("symkey", key, AES256_KEY_BYTES)
        if nonce is not None:
            _require_length("nonce", nonce, CTR_NONCE_BYTES)
        self.key = bytearray(key)
        self.digest = digest
        self.nonce = nonce

    def __repr__(self) -> str:
        return f"PrivateOptions(digest={str(self.digest)!r}, key=<hidden>)"

    def wipe(self) -> None:
        """Overwrite the key; the object cannot decrypt any more."""
        self.key[:] = bytes(len(self.key))


def agreed_nonce(public: PublicOptions, private: PrivateOptions, *, path: str) -> bytes:
    """Return the nonce of a layer.

    The MAC is over the ciphertext only. A nonce in the private options came sealed with the key; one that says
    otherwise in the public ones would have other bytes come out.

    Raises:
        ImageRefused: `oci.encryption.missing_nonce`, `oci.encryption.two_nonces`.
    """
    nonce = public.nonce or private.nonce
    if nonce is None:
        raise ImageRefused("oci.encryption.missing_nonce", "encrypted layer has no nonce", path=path)
    if private.nonce not in (None, nonce):
        raise ImageRefused("oci.encryption.two_nonces", "encrypted layer has two nonces that differ", path=path)
    return nonce


def encode_public_options(options: PublicOptions) -> bytes:
    """Return the JSON that ocicrypt writes; a fresh nonce goes into the private options."""
    kept = {} if options.nonce is None else {"nonce": encode_b64(options.nonce)}
    return encode_document({"cipher": CIPHER, "hmac": encode_b64(options.hmac), "cipheroptions": kept})


def encode_private_options(options: PrivateOptions) -> bytes:
    """Return the JSON that ocicrypt writes. It holds the layer key: wrap it at once."""
    if options.nonce is None:
        raise RuntimeError("private options are written with their nonce")
    return encode_document(
        {
            "symkey": encode_b64(bytes(options.key)),
            "digest": str(options.digest),
            "cipheroptions": {"nonce": encode_b64(options.nonce)},
        }
    )


def parse_public_options(data: bytes) -> PublicOptions:
    """Parse public options.

    Raises:
        ImageRefused: `oci.encryption.unknown_cipher`, `oci.encryption.empty_hmac`, `oci.encryption.field_length`, or
            another `oci.encryption.*` for the JSON itself.
    """
    members = Members(parse_document(data, ceiling=_OPTIONS_BYTES, code=_CODE), path="pubopts", code=_CODE)
    members.only("cipher", "hmac", "cipheroptions")
    cipher = members.text("cipher", "")
    if cipher != CIPHER:
        raise ImageRefused(
            f"{_CODE}.unknown_cipher",
            "layer cipher is not supported",
            path="pubopts.cipher",
            expected=CIPHER,
            actual=cipher[:80],
        )
    hmac = decode_b64(members.text("hmac", ""), path="pubopts.hmac", ceiling=HMAC_BYTES)
    if not hmac:
        raise ImageRefused(f"{_CODE}.empty_hmac", "layer has no authentication code", path="pubopts.hmac")
    _require_length("hmac", hmac, HMAC_BYTES)
    return PublicOptions(hmac, _parse_nonce(members, "pubopts"))


def parse_private_options(data: bytes) -> PrivateOptions:
    """Parse unwrapped private options; errors as `parse_public_options`."""
    members = Members(parse_document(data, ceiling=_OPTIONS_BYTES, code=_CODE), path="privopts", code=_CODE)
    members.only("symkey", "digest", "cipheroptions")
    return PrivateOptions(
        key=decode_b64(members.text("symkey"), path="privopts.symkey", ceiling=AES256_KEY_BYTES),
        digest=parse_digest(members.text("digest")),
        nonce=_parse_nonce(members, "privopts"),
    )


def unwrap_failed(scheme: str) -> ImageRefused:
    """Return the refusal of a key that does not open an element: another key, or a changed element; who knows."""
    return ImageRefused(
        f"{_CODE}.unwrap_failed",
        "layer key does not open with this key",
        path=scheme,
        hint="the image was encrypted for other keys, or its annotation was changed",
    )


def _parse_nonce(members: Members, path: str) -> bytes | None:
    if "cipheroptions" not in members:
        return None
    options = members.members("cipheroptions")
    options.only("nonce")
    if "nonce" not in options:
        return None
    nonce = decode_b64(options.text("nonce"), path=f"{path}.cipheroptions.nonce", ceiling=CTR_NONCE_BYTES)
    _require_length("nonce", nonce, CTR_NONCE_BYTES)
    return nonce


def _require_length(what: str, value: bytes | bytearray, length: int) -> None:
    if len(value) != length:
        raise ImageRefused(
            f"{_CODE}.field_length",
            f"{what} has the wrong length",
            path=what,
            expected=f"{length} bytes",
            actual=f"{len(value)} bytes",
        )
