"""OpenPGP signed messages and the keyrings they verify with (RFC 4880, version 4; RFC 9580 section 5).

Why not a library: the ones there are either refuse the SHA-1 self-signatures that most long-lived release keys carry,
or are not kept. What is read: binary or armoured keyrings of version-4 keys; messages of one one-pass signature, one
literal and one signature, plain or compressed. Data signatures are RSA, ECDSA or EdDSA with SHA-256, SHA-384 or
SHA-512. SHA-1 counts in one place only: in a key's own statements about itself (expiry, revocation, subkeys), which an
attacker would have to forge, not to collide. A subkey counts if its primary bound it and it bound the primary, with
more than SHA-1. Versions 3 and 6, DSA, and nested messages are refused. Pure; trusts the keyring it is given.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA1, SHA256, SHA384, SHA512, HashAlgorithm

from cloister.crypto.openpgppackets import Reader, dearmor, read_packets
from cloister.errors import FormatRefused, Refused
from cloister.wire.limits import OPENPGP_KEYRING_BYTES, OPENPGP_MESSAGE_BYTES

CLOCK_SKEW: Final = timedelta(minutes=5)  # how far the signer's clock may be ahead of ours
_CODE: Final = "crypto.openpgp"
_SIGNATURE, _ONE_PASS, _PUBLIC, _COMPRESSED, _LITERAL, _USER_ID, _SUBKEY = 2, 4, 6, 8, 11, 13, 14
_IGNORED: Final = (10, 12, 17, 21)  # marker, trust, user attribute, padding
_HASHES: Final[Mapping[int, HashAlgorithm]] = {8: SHA256(), 9: SHA384(), 10: SHA512()}
_WEAK: Final[Mapping[int, HashAlgorithm]] = {2: SHA1(), **_HASHES}  # noqa: S303  # see the module's text
_RSA: Final = (1, 3)
_ECDSA, _EDDSA, _ED25519 = 19, 22, 27
_CURVES: Final[Mapping[bytes, ec.EllipticCurve]] = {
    bytes.fromhex("2a8648ce3d030107"): ec.SECP256R1(),
    bytes.fromhex("2b81040022"): ec.SECP384R1(),
    bytes.fromhex("2b81040023"): ec.SECP521R1(),
}
_ED25519_OID: Final = bytes.fromhex("2b06010401da470f01")
_BINARY: Final = 0x00
_SELF_CERTIFICATIONS: Final = (0x10, 0x11, 0x12, 0x13, 0x1F)
_BINDING, _BACK, _REVOCATION, _SUBKEY_REVOCATION = 0x18, 0x19, 0x20, 0x28
_CREATED, _EXPIRES, _KEY_EXPIRES, _ISSUER, _FLAGS, _EMBEDDED, _ISSUER_FULL = 2, 3, 9, 16, 27, 32, 33
_KNOWN_CRITICAL: Final = frozenset(
    {_CREATED, _EXPIRES, _KEY_EXPIRES, _ISSUER, _FLAGS, _EMBEDDED, _ISSUER_FULL, 11, 21, 22, 23, 25, 28, 30}
)
_MAY_SIGN: Final = 0x02
_RSA_BITS: Final = range(2048, 16385)
_Key = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class SigningKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key of a keyring that may sign data; times are seconds since 1970, no `expires` is never."""

    fingerprint: str
    primary: str
    created: int
    expires: int | None
    body: bytes

    @property
    def key_id(self) -> str:
        """The last eight bytes of the fingerprint, a hint."""
        return self.fingerprint[-16:]


class SignedMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What a verified message says."""

    content: bytes
    key: SigningKey
    signed_at: datetime


class _Signature(msgspec.Struct, frozen=True, kw_only=True):
    kind: int
    algorithm: int
    hash_id: int
    hashed: bytes  # from the version to the end of the hashed subpackets
    subpackets: Mapping[int, bytes]
    unhashed: Mapping[int, bytes]
    numbers: bytes
    unknown_critical: bool

    @property
    def created(self) -> int:
        return int.from_bytes(self.subpackets.get(_CREATED, b""), "big")

    def trailer(self) -> bytes:
        return self.hashed + b"\x04\xff" + len(self.hashed).to_bytes(4, "big")


def parse_keyring(data: bytes) -> tuple[SigningKey, ...]:
    """Return the keys of a keyring that may sign data: `pubring.gpg`, or what `gpg --export` writes.

    Raises:
        FormatRefused: not a keyring (`crypto.openpgp.keyring`), or none of its keys may sign.
    """
    found: list[SigningKey] = []
    group: list[tuple[int, bytes]] = []
    for tag, body in (*read_packets(dearmor(data), ceiling=OPENPGP_KEYRING_BYTES), (_PUBLIC, b"")):
        if tag == _PUBLIC:
            found += _keys_of(group)
            group = []
        elif not group:
            raise _malformed("keyring does not begin with a public key")
        group.append((tag, body))
    if not found:
        raise FormatRefused(f"{_CODE}.keyring", "keyring holds no key that may sign")
    return tuple(found)


def verify_message(
    data: bytes, keyring: Sequence[SigningKey], *, now: datetime, allow_sha1: bool = False
) -> SignedMessage:
    """Return the content of a signed message.

    Steps: 1 its shape; 2 a key of the keyring is named; 3 its signature holds; 4 neither key nor signature has expired,
    and the signature was made after the key and not after now.

    Args:
        data: binary or armoured message.
        keyring: who may have signed.
        now: aware time.
        allow_sha1: accept SHA-1 over the data, as GnuPG still does: whoever chose a part of what was signed may have
            chosen a second content with the same hash.

    Raises:
        FormatRefused: `crypto.openpgp.message`.
        Refused: `crypto.openpgp.unknown_key`, `.bad_signature`, `.algorithm`, `.key_expired`, `.signature_expired`,
            `.from_the_future`.
    """
    # 1
    content, raw_signature = _split_message(dearmor(data))
    signature = _parse_signature(raw_signature)
    if signature.kind != _BINARY or signature.unknown_critical:
        raise FormatRefused(f"{_CODE}.message", "signature is of another kind than over binary data")
    # 2
    named = _issuer(signature)
    candidates = [key for key in keyring if key.fingerprint == named or key.key_id == named[-16:]]
    if not candidates:
        raise Refused(
            f"{_CODE}.unknown_key",
            "message is signed by a key that is not in the keyring",
            expected=", ".join(key.key_id for key in keyring)[:200],
            actual=named[-16:] or "no key named",
        )
    # 3
    hashes = _WEAK if allow_sha1 else _HASHES
    if signature.hash_id not in hashes:
        raise Refused(
            f"{_CODE}.algorithm",
            "hash algorithm of the signature is not accepted",
            expected="SHA-256, SHA-384 or SHA-512",
            actual="SHA-1" if signature.hash_id in _WEAK else f"number {signature.hash_id}",
            hint="sign again; with GnuPG set `digest-algo SHA512`",
        )
    key = next((key for key in candidates if _holds(_parse_key(key.body), signature, content, hashes)), None)
    if key is None:
        raise Refused(f"{_CODE}.bad_signature", "signature does not verify with the key it names", actual=named[-16:])
    # 4
    seconds = int(now.timestamp())
    if key.expires is not None and seconds >= key.expires:
        raise Refused(
            f"{_CODE}.key_expired",
            "signing key has expired",
            expected=f"until {datetime.fromtimestamp(key.expires, UTC).isoformat()}",
            actual=now.isoformat(timespec="seconds"),
            hint="sign again, or give a keyring in which the key's life was extended",
        )
    lasts = int.from_bytes(signature.subpackets.get(_EXPIRES, b""), "big")
    if lasts and seconds >= signature.created + lasts:
        raise Refused(f"{_CODE}.signature_expired", "signature has expired")
    if not key.created <= signature.created:
        raise Refused(f"{_CODE}.bad_signature", "signature is older than its key")
    if signature.created > seconds + CLOCK_SKEW.total_seconds():
        raise Refused(
            f"{_CODE}.from_the_future",
            "signature is dated in the future",
            expected=f"not after {(now + CLOCK_SKEW).isoformat(timespec='seconds')}",
            actual=datetime.fromtimestamp(signature.created, UTC).isoformat(),
        )
    return SignedMessage(content=content, key=key, signed_at=datetime.fromtimestamp(signature.created, UTC))


def _split_message(data: bytes) -> tuple[bytes, bytes]:
    packets = [item for item in read_packets(data, ceiling=OPENPGP_MESSAGE_BYTES) if item[0] not in _IGNORED]
    if len(packets) == 1 and packets[0][0] == _COMPRESSED:
        plain = _decompress(packets[0][1])
        packets = [item for item in read_packets(plain, ceiling=OPENPGP_MESSAGE_BYTES) if item[0] not in _IGNORED]
    if [tag for tag, _ in packets] != [_ONE_PASS, _LITERAL, _SIGNATURE]:
        raise FormatRefused(f"{_CODE}.message", "not one signed message: other packets")
    literal = packets[1][1]
    if len(literal) < 6 or len(literal) < 6 + literal[1]:
        raise FormatRefused(f"{_CODE}.message", "literal packet is cut off")
    return literal[6 + literal[1] :], packets[2][1]


def _decompress(body: bytes) -> bytes:
    window = {1: -zlib.MAX_WBITS, 2: zlib.MAX_WBITS}.get(body[0]) if body else None
    if window is None:
        raise FormatRefused(f"{_CODE}.message", "compression is not read", actual=str(body[:1]))
    unpacker = zlib.decompressobj(window)
    try:
        plain = unpacker.decompress(body[1:], OPENPGP_MESSAGE_BYTES)
    except zlib.error as err:
        raise FormatRefused(f"{_CODE}.message", "compressed message is damaged") from err
    if not unpacker.eof or unpacker.unused_data:
        raise FormatRefused(f"{_CODE}.message", "compressed message is too long or cut off")
    return plain


def _keys_of(group: Sequence[tuple[int, bytes]]) -> list[SigningKey]:
    """Return the usable keys of one primary key with what follows it."""
    if not group or len(group[0][1]) < 6 or group[0][1][0] != 4:
        return []
    try:
        primary = group[0][1]
        key = _parse_key(primary)
    except FormatRefused:
        return []  # a kind of key that is not read: its signatures are by an unknown key
    target, weak = primary, _material(primary)
    newest: _Signature | None = None
    bindings: list[tuple[bytes, _Signature]] = []
    revoked: set[bytes] = set()
    for tag, body in group[1:]:
        if tag in (_USER_ID, _SUBKEY):
            target = body if tag == _SUBKEY else primary
            weak = _material(primary) + (_material(body) if tag == _SUBKEY else _user(body))
            continue
        if tag != _SIGNATURE:
            continue
        try:
            signature = _parse_signature(body)
        except FormatRefused:
            continue
        data = _material(primary) if signature.kind in (0x1F, _REVOCATION) else weak
        if not _holds(key, signature, data, _WEAK):
            continue
        if signature.kind == _REVOCATION:
            return []
        if signature.kind == _SUBKEY_REVOCATION:
            revoked.add(target)
        elif signature.kind in _SELF_CERTIFICATIONS:
            newest = signature if newest is None or signature.created >= newest.created else newest
        elif signature.kind == _BINDING and signature.hash_id in _HASHES:
            bindings.append((target, signature))
    own = fingerprint(primary)
    if newest is None:
        return []  # nothing says that this is a key at all
    found = [_usable(primary, own, newest, None)]
    for body, binding in bindings:
        if body not in revoked and _cross_bound(primary, body, binding):
            found.append(_usable(body, own, binding, found[0]))
    return [item for item in found if item is not None]


def _usable(body: bytes, primary: str, statement: _Signature, above: SigningKey | None) -> SigningKey | None:
    flags = statement.subpackets.get(_FLAGS)
    if flags is not None and not (flags and flags[0] & _MAY_SIGN):
        return None
    created = int.from_bytes(body[1:5], "big")
    lasts = int.from_bytes(statement.subpackets.get(_KEY_EXPIRES, b""), "big")
    ends = [created + lasts] if lasts else []
    ends += [above.expires] if above is not None and above.expires is not None else []
    return SigningKey(
        fingerprint=fingerprint(body),
        primary=primary,
        created=created,
        expires=min(ends) if ends else None,
        body=body,
    )


def _cross_bound(primary: bytes, subkey: bytes, binding: _Signature) -> bool:
    """Whether a signing subkey signed back, so that nobody adopts another's key as his own."""
    embedded = binding.subpackets.get(_EMBEDDED) or binding.unhashed.get(_EMBEDDED)
    if embedded is None:
        return False
    try:
        back, key = _parse_signature(embedded), _parse_key(subkey)
    except FormatRefused:
        return False
    return back.kind == _BACK and _holds(key, back, _material(primary) + _material(subkey), _HASHES)


def fingerprint(body: bytes) -> str:
    """Return the fingerprint of a version-4 key packet: upper-case hexadecimal SHA-1, a name and no proof."""
    return hashlib.sha1(_material(body)).hexdigest().upper()  # noqa: S324  # fixed by the format


def _material(body: bytes) -> bytes:
    return b"\x99" + len(body).to_bytes(2, "big") + body if len(body) < 65536 else b""


def _user(body: bytes) -> bytes:
    return b"\xb4" + len(body).to_bytes(4, "big") + body


def _holds(key: _Key, signature: _Signature, data: bytes, hashes: Mapping[int, HashAlgorithm]) -> bool:
    algorithm = hashes.get(signature.hash_id)
    if algorithm is None or signature.unknown_critical:
        return False
    message = data + signature.trailer()
    try:
        if isinstance(key, rsa.RSAPublicKey):
            (number,) = _numbers(signature.numbers, 1)
            if signature.algorithm not in _RSA or key.key_size not in _RSA_BITS:
                return False
            padded = number.to_bytes((key.key_size + 7) // 8, "big")
            key.verify(padded, message, padding.PKCS1v15(), algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            r, s = _numbers(signature.numbers, 2)
            if signature.algorithm != _ECDSA:
                return False
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(algorithm))
        else:
            raw = signature.numbers
            if signature.algorithm == _EDDSA:
                r, s = _numbers(raw, 2)
                raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
            elif signature.algorithm != _ED25519:
                return False
            key.verify(raw, hashlib.new(algorithm.name, message).digest())
    except (InvalidSignature, FormatRefused, OverflowError, ValueError):
        return False
    return True


def _parse_key(body: bytes) -> _Key:
    """Parse a version-4 public key packet."""
    if len(body) < 6 or body[0] != 4:
        raise _malformed("key is not of version 4")
    algorithm, rest = body[5], body[6:]
    try:
        if algorithm in _RSA:
            n, e = _numbers(rest, 2)
            return rsa.RSAPublicNumbers(e, n).public_key()
        if algorithm == _ED25519:
            return ed25519.Ed25519PublicKey.from_public_bytes(rest)
        if algorithm in (_ECDSA, _EDDSA) and rest:
            oid, point = rest[1 : 1 + rest[0]], _number_bytes(rest[1 + rest[0] :])
            if algorithm == _EDDSA and oid == _ED25519_OID and point[:1] == b"\x40":
                return ed25519.Ed25519PublicKey.from_public_bytes(point[1:])
            if algorithm == _ECDSA and oid in _CURVES:
                return ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[oid], point)
    except ValueError as err:
        raise _malformed("key has impossible numbers") from err
    raise _malformed("key is of a kind that is not read", str(algorithm))


def _parse_signature(body: bytes) -> _Signature:
    if len(body) < 6 or body[0] != 4:
        raise _malformed("signature is not of version 4")
    end = 6 + int.from_bytes(body[4:6], "big")
    second = end + 2 + int.from_bytes(body[end : end + 2], "big")
    if len(body) < second + 2:
        raise _malformed("signature is cut off")
    hashed, critical = _subpackets(body[6:end])
    unhashed, _ = _subpackets(body[end + 2 : second])
    return _Signature(
        kind=body[1],
        algorithm=body[2],
        hash_id=body[3],
        hashed=body[:end],
        subpackets=hashed,
        unhashed=unhashed,
        numbers=body[second + 2 :],
        unknown_critical=critical,
    )


def _subpackets(data: bytes) -> tuple[dict[int, bytes], bool]:
    """Return subpackets by type, the first of each, and whether one that is critical is not understood."""
    found: dict[int, bytes] = {}
    critical = False
    while data:
        length, start = _length(data)
        if length == 0 or len(data) < start + length:
            raise _malformed("subpacket is cut off")
        kind = data[start] & 0x7F
        critical = critical or (data[start] & 0x80 != 0 and kind not in _KNOWN_CRITICAL)
        found.setdefault(kind, data[start + 1 : start + length])
        data = data[start + length :]
    return found, critical


def _issuer(signature: _Signature) -> str:
    """Return the fingerprint (or only the key id) of who signed, upper-case hexadecimal: a hint."""
    for held in (signature.subpackets, signature.unhashed):
        if held.get(_ISSUER_FULL, b"")[:1] == b"\x04":
            return held[_ISSUER_FULL][1:].hex().upper()
    return (signature.subpackets.get(_ISSUER) or signature.unhashed.get(_ISSUER) or b"").hex().upper()


def _length(data: bytes) -> tuple[int, int]:
    """Return a length and how many bytes it took."""
    if not data:
        raise _malformed("length is cut off")
    if data[0] < 192:
        return data[0], 1
    if data[0] < 255:
        if len(data) < 2:
            raise _malformed("length is cut off")
        return ((data[0] - 192) << 8) + data[1] + 192, 2
    if len(data) < 5:
        raise _malformed("length is cut off")
    return int.from_bytes(data[1:5], "big"), 5


def _numbers(data: bytes, count: int) -> list[int]:
    """Return exactly `count` multiprecision integers."""
    reader = Reader(data)
    found = [int.from_bytes(reader.number(), "big") for _ in range(count)]
    if reader.rest():
        raise _malformed("bytes behind the last number")
    return found


def _number_bytes(data: bytes) -> bytes:
    reader = Reader(data)
    piece = reader.number()
    if reader.rest():
        raise _malformed("bytes behind the last number")
    return piece


def _malformed(message: str, actual: str = "") -> FormatRefused:
    return FormatRefused(f"{_CODE}.malformed", message, actual=actual)
