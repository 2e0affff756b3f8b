"""A root key at rest that needs people to open: sealed by a passphrase, or by k of n shares.

    {"version":1,"seal":"passphrase","cost":131072,"salt":"..","sealed":".."}
    {"version":1,"seal":"shares","threshold":3,"shares":5,"set":"..","sealed":".."}

`sealed` is nonce, ciphertext and tag of AES-256-GCM under the unseal key, with all other members as associated data.
The unseal key is scrypt (RFC 7914; r = 8, p = 1) of the passphrase, or 32 random bytes shared by
`cloister.crypto.keystore.shamir`. A share as people keep it is one line:

    cloister-share.SET.THRESHOLD.X.BASE64URL(share and 4 bytes of SHA-256 over all that stands before it and the share)

The check finds a slip of the hand; what finds a wrong share is that the root key does not open. Guessing a passphrase
costs its guesser one scrypt each, 128 MiB and about half a second; a share short of the threshold is worth nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from cloister.crypto.aead import GCM_NONCE_BYTES, open_aes256gcm, seal_aes256gcm
from cloister.crypto.keystore.interface import ROOT_KEY_BYTES
from cloister.crypto.keystore.shamir import MOST_SHARES, combine_shares, split_secret
from cloister.errors import FormatRefused, Refused
from cloister.wire.base64 import decode_b64url, encode_b64url
from cloister.wire.canonicaljson import encode_canonical

SCRYPT_COST: Final = 2**17  # OWASP's first choice for scrypt
LEAST_COST: Final = 2**14
MOST_COST: Final = 2**20  # 1 GiB; the file must not choose more
PASSPHRASE_CHARS: Final = 1024
SEALED_FILE_BYTES: Final = 4096
_SALT_BYTES: Final = 16
_SET_BYTES: Final = 4
_CHECK_BYTES: Final = 4
_SHARE_PREFIX: Final = "cloister-share"
_NUMBER: Final = r"([1-9][0-9]{0,2})"
_SHARE: Final = re.compile(rf"{_SHARE_PREFIX}\.([0-9a-f]{{8}})\.{_NUMBER}\.{_NUMBER}\.([A-Za-z0-9_-]{{48}})")
_SALT: Final = re.compile(r"[A-Za-z0-9_-]{22}")
_SET: Final = re.compile(r"[0-9a-f]{8}")
_MALFORMED: Final = "crypto.keystore.malformed"


class SealedRoot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The document; see the module."""

    version: Literal[1]
    seal: Literal["passphrase", "shares"]
    sealed: str
    cost: int = 0
    salt: str = ""
    threshold: int = 0
    shares: int = 0
    set: str = ""

    def __repr__(self) -> str:
        return f"SealedRoot({self.seal})"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Share:
    """One share, parsed."""

    set: str
    threshold: int
    x: int
    value: bytes


def parse_sealed_root(data: bytes) -> SealedRoot:
    """Parse the document.

    Raises:
        FormatRefused: `crypto.keystore.malformed`.
    """
    try:
        document = msgspec.json.decode(data[:SEALED_FILE_BYTES], type=SealedRoot)
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise _malformed("not a sealed root key") from err
    by_passphrase = document.seal == "passphrase"
    cost = document.cost
    if by_passphrase and not (
        LEAST_COST <= cost <= MOST_COST and cost & (cost - 1) == 0 and _SALT.fullmatch(document.salt)
    ):
        raise _malformed("no such cost or salt")
    if not by_passphrase and not (
        2 <= document.threshold <= document.shares <= MOST_SHARES and _SET.fullmatch(document.set)
    ):
        raise _malformed("no such sharing")
    return document


def seal_by_passphrase(root: bytes, passphrase: str, *, cost: int = SCRYPT_COST) -> bytes:
    """Return the document for `root`.

    Raises:
        Refused: an empty or endless passphrase (`crypto.keystore.unseal`).
    """
    salt = encode_b64url(os.urandom(_SALT_BYTES))
    draft = SealedRoot(version=1, seal="passphrase", sealed="", cost=cost, salt=salt)
    return seal_again(draft, passphrase_key(draft, passphrase), root)


def seal_by_shares(
    root: bytes, *, threshold: int, shares: int, random: Callable[[int], bytes] = secrets.token_bytes
) -> tuple[bytes, tuple[str, ...]]:
    """Return the document for `root` and its shares, one line each, which are kept nowhere else.

    Raises:
        Refused: `crypto.keystore.threshold`.
    """
    key = random(ROOT_KEY_BYTES)
    parts = split_secret(key, threshold=threshold, shares=shares, random=random)
    name = random(_SET_BYTES).hex()
    draft = SealedRoot(version=1, seal="shares", sealed="", threshold=threshold, shares=shares, set=name)
    texts = tuple(_encode_share(name, threshold, x, value) for x, value in parts.items())
    return seal_again(draft, key, root), texts


def seal_again(like: SealedRoot, key: bytes, root: bytes) -> bytes:
    """Return a document for another root key under the unseal key of `like`: the same people open it."""
    nonce = os.urandom(GCM_NONCE_BYTES)
    sealed = nonce + seal_aes256gcm(key, nonce, root, _associated(like))
    return msgspec.json.encode(msgspec.structs.replace(like, sealed=encode_b64url(sealed)))


def open_sealed_root(document: SealedRoot, key: bytes) -> bytes:
    """Return the root key.

    Raises:
        Refused: the unseal key is another (`crypto.keystore.unseal`).
    """
    sealed = decode_b64url(document.sealed, path="sealed", ceiling=SEALED_FILE_BYTES)
    try:
        root = open_aes256gcm(key, sealed[:GCM_NONCE_BYTES], sealed[GCM_NONCE_BYTES:], _associated(document))
    except Refused as err:
        raise Refused(
            "crypto.keystore.unseal",
            "this does not open the root key",
            hint="all shares given so far are forgotten: give the right ones, of one set, from the first",
        ) from err
    if len(root) != ROOT_KEY_BYTES:
        raise _malformed("the sealed root key has the wrong length")
    return root


def passphrase_key(document: SealedRoot, passphrase: str) -> bytes:
    """Return the unseal key of a passphrase, compared in Unicode's NFKC so that keyboards do not matter.

    Raises:
        Refused: an empty or endless passphrase (`crypto.keystore.unseal`).
    """
    text = unicodedata.normalize("NFKC", passphrase)
    if not 0 < len(text) <= PASSPHRASE_CHARS or any("\ud800" <= char <= "\udfff" for char in text):
        raise Refused("crypto.keystore.unseal", "no passphrase was given")
    salt = decode_b64url(document.salt, path="salt", ceiling=64)
    memory = 256 * document.cost * 8
    return hashlib.scrypt(text.encode(), salt=salt, n=document.cost, r=8, p=1, maxmem=memory, dklen=ROOT_KEY_BYTES)


def parse_share(text: str) -> Share:
    """Parse one line.

    Raises:
        Refused: not a share, or mistyped (`crypto.keystore.share`).
    """
    parts = _SHARE.fullmatch(text.strip())
    if parts is None:
        raise not_a_share("not a share")
    name, threshold, x, body = parts.groups()
    data = decode_b64url(body, path="share", ceiling=ROOT_KEY_BYTES + _CHECK_BYTES)
    value, check = data[:ROOT_KEY_BYTES], data[ROOT_KEY_BYTES:]
    share = Share(set=name, threshold=int(threshold), x=int(x), value=value)
    if not hmac.compare_digest(check, _check(share)):
        raise not_a_share("a share with a slip in it")
    return share


def combine(document: SealedRoot, given: Mapping[int, Share]) -> bytes:
    """Return the unseal key that the shares make; whether it is the right one, `open_sealed_root` finds."""
    return combine_shares({x: share.value for x, share in given.items()})


def not_a_share(reason: str) -> Refused:
    """Return the refusal of a share."""
    return Refused(
        "crypto.keystore.share", reason, expected="one line that begins with cloister-share.", hint="copy it whole"
    )


def _encode_share(name: str, threshold: int, x: int, value: bytes) -> str:
    share = Share(set=name, threshold=threshold, x=x, value=value)
    return f"{_head(share)}{encode_b64url(value + _check(share))}"


def _head(share: Share) -> str:
    return f"{_SHARE_PREFIX}.{share.set}.{share.threshold}.{share.x}."


def _check(share: Share) -> bytes:
    return hashlib.sha256(_head(share).encode() + share.value).digest()[:_CHECK_BYTES]


def _associated(document: SealedRoot) -> bytes:
    return encode_canonical(msgspec.to_builtins(msgspec.structs.replace(document, sealed="")))


def _malformed(reason: str) -> FormatRefused:
    return FormatRefused(_MALFORMED, reason, hint="restore the root key file from its backup")
