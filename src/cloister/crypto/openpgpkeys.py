"""Keys of OpenPGP that encrypt and decrypt: their packets, and the passwords that protect secret ones.

RFC 9580 sections 5.5.2 (public), 5.5.3 (secret), 3.7 (passwords to keys), 11.3 (curves). RSA and ECDH on Curve25519,
P-256, P-384 and P-521, version 4; secret halves in the clear or protected by AES. Whether a key may be used is not
judged here: `cloister.crypto.openpgp`. Nothing but `Refused` is raised.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES

from cloister.crypto.openpgppackets import CODE, SECRET_KEY, SECRET_SUBKEY, Reader, dearmor, malformed, read_packets
from cloister.errors import Refused
from cloister.wire.limits import MIB

try:  # newer releases keep CFB, which OpenPGP prescribes, in their module of old ciphers
    from cryptography.hazmat.decrepit.ciphers.modes import CFB
except ImportError:
    from cryptography.hazmat.primitives.ciphers.modes import CFB

KEYRING_BYTES: Final = 4 * MIB
ECDH: Final = 18
NATIVE_POINT: Final = 0x40  # RFC 9580, section 9.2.1: a native point of 32 bytes follows
BLOCK_BYTES: Final = 16
AES_BYTES: Final = {7: 16, 8: 24, 9: 32}
HASHES: Final = {2: "sha1", 8: "sha256", 9: "sha384", 10: "sha512", 11: "sha224"}
_RSA: Final = frozenset((1, 2))  # 3 is for signatures
_X25519_OID: Final = bytes.fromhex("2b060104019755010501")
_CURVES: Final[dict[bytes, type[ec.EllipticCurve]]] = {
    bytes.fromhex("2a8648ce3d030107"): ec.SECP256R1,
    bytes.fromhex("2b81040022"): ec.SECP384R1,
    bytes.fromhex("2b81040023"): ec.SECP521R1,
}
_S2K_COUNT_CEILING: Final = 65_011_712  # the largest that one octet can say


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedKey:
    """What the packet of a key says in the clear. ECDH: the curve's OID, and how the key-wrapping key is made."""

    fingerprint: bytes
    algorithm: int
    numbers: tuple[bytes, ...]
    curve: bytes = b""
    kdf: bytes = b""

    @property
    def key_id(self) -> bytes:
        """The last 8 bytes of the fingerprint."""
        return self.fingerprint[-8:]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptionKey:
    """A key or subkey to encrypt to."""

    named: NamedKey
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | x25519.X25519PublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class DecryptionKey:
    """A secret key or subkey that opens session keys."""

    named: NamedKey
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | x25519.X25519PrivateKey = field(repr=False)


def open_secret_keyring(data: bytes, password: str | None = None) -> list[DecryptionKey]:
    """Return the keys of a keyring that can decrypt, binary or armored.

    Their certificates are not judged: a key that was revoked still opens what was encrypted to it.

    Raises:
        FormatRefused: `crypto.openpgp.malformed`.
        Refused: `crypto.openpgp.password` when a key needs another password, `crypto.openpgp.no_secret` when none can
            be used here.
    """
    found: list[DecryptionKey] = []
    locked = 0
    for packet in read_packets(dearmor(data), ceiling=KEYRING_BYTES):
        if packet.tag in (SECRET_KEY, SECRET_SUBKEY):
            try:
                key = _secret_key(packet.body, password)
            except _Locked:
                locked += 1
                continue
            if key is not None:
                found.append(key)
    if not found and locked:
        raise Refused(
            f"{CODE}.password",
            "password does not open the keyring" if password is not None else "keyring is protected by a password",
            hint="FILE:file=PASSWORDFILE",
        )
    if not found:
        raise Refused(
            f"{CODE}.no_secret", "keyring has no secret key that can decrypt here", expected="RSA or ECDH, version 4"
        )
    return found


class _Locked(Exception):
    """A password is needed, or it is another one."""


def read_public_key(reader: Reader) -> NamedKey | None:
    """Take the public half of a key packet, nothing for kinds that are not used here.

    Raises:
        FormatRefused: `crypto.openpgp.malformed`.
    """
    version, _, algorithm = reader.byte(), reader.take(4), reader.byte()
    if version != 4 or (algorithm not in _RSA and algorithm != ECDH):
        return None
    curve, kdf = b"", b""
    if algorithm in _RSA:
        numbers: tuple[bytes, ...] = (reader.number(), reader.number())
    else:
        curve = reader.take(reader.byte())
        numbers = (reader.number(),)
        kdf = reader.take(reader.byte())[1:]
        known = curve == _X25519_OID or curve in _CURVES
        if not known or len(kdf) != 2 or kdf[0] not in HASHES or kdf[1] not in AES_BYTES:
            return None
    body = reader.data[: reader.at]
    digest = hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body, usedforsecurity=False).digest()
    return NamedKey(fingerprint=digest, algorithm=algorithm, numbers=numbers, curve=curve, kdf=kdf)


def encryption_key(named: NamedKey) -> EncryptionKey:
    """Return the key to encrypt with.

    Raises:
        FormatRefused: `crypto.openpgp.malformed`.
    """
    try:
        if named.algorithm in _RSA:
            n, e = (int.from_bytes(number, "big") for number in named.numbers)
            return EncryptionKey(named=named, key=rsa.RSAPublicNumbers(e, n).public_key())
        if named.curve == _X25519_OID:
            return EncryptionKey(named=named, key=native_point(named.numbers[0]))
        point = ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[named.curve](), named.numbers[0])
    except ValueError as err:
        raise malformed("key") from err
    return EncryptionKey(named=named, key=point)


def _secret_key(body: bytes, password: str | None) -> DecryptionKey | None:
    """Return the key of a secret key packet, nothing for kinds that do not decrypt here.

    Raises:
        _Locked: the password does not open it.
        FormatRefused: `crypto.openpgp.malformed`.
    """
    reader = Reader(body)
    named = read_public_key(reader)
    secret = None if named is None else _unlocked(reader, password)
    if named is None or secret is None:
        return None
    try:
        if named.algorithm in _RSA:
            return DecryptionKey(named=named, key=_rsa_key(named.numbers, secret))
        return DecryptionKey(named=named, key=_ecdh_key(named.curve, secret.number()))
    except ValueError as err:
        raise malformed("key") from err


def _unlocked(reader: Reader, password: str | None) -> Reader | None:
    """Return the secret numbers, nothing when they are not in the packet (on a card, or left out)."""
    usage = reader.byte()
    if usage == 0:
        return Reader(_summed(reader.rest(), None))
    if usage not in (254, 255):  # the cipher itself: an old form of version 3
        return None
    cipher, kind = reader.byte(), reader.byte()
    if cipher not in AES_BYTES or kind not in (0, 1, 3):
        return None
    digest = HASHES.get(reader.byte())
    salt = reader.take(8) if kind else b""
    coded = reader.byte() if kind == 3 else 0
    if digest is None:
        return None
    if password is None:
        raise _Locked
    count = (16 + (coded & 15)) << ((coded >> 4) + 6) if kind == 3 else 0
    key = _string_to_key(digest, salt, password.encode(), count, AES_BYTES[cipher])
    context = cfb(key, reader.take(BLOCK_BYTES)).decryptor()
    return Reader(_summed(context.update(reader.rest()) + context.finalize(), usage))


def _summed(content: bytes, usage: int | None) -> bytes:
    """Return `content` without its check sum.

    Raises:
        _Locked: it does not hold, which means another password.
    """
    if usage == 254:
        body, seal = content[:-20], content[-20:]
        good = hmac.compare_digest(hashlib.sha1(body, usedforsecurity=False).digest(), seal)
    else:
        body, seal = content[:-2], content[-2:]
        good = hmac.compare_digest(check_sum(body), seal)
    if not good:
        if usage is None:
            raise malformed("check sum")
        raise _Locked
    return body


def _string_to_key(digest: str, salt: bytes, password: bytes, count: int, size: int) -> bytes:
    """RFC 9580, section 3.7.1: simple, salted, or iterated and salted."""
    text = salt + password
    total = max(min(count, _S2K_COUNT_CEILING), len(text))
    block = text * 1024
    key = b""
    while len(key) < size:
        context = hashlib.new(digest, bytes(len(key) // hashlib.new(digest).digest_size), usedforsecurity=False)
        whole, rest = divmod(total, max(len(block), 1))
        for _ in range(whole):
            context.update(block)
        context.update(block[:rest])
        key += context.digest()
    return key[:size]


def _rsa_key(public: Sequence[bytes], secret: Reader) -> rsa.RSAPrivateKey:
    n, e = (int.from_bytes(number, "big") for number in public)
    d, p, q, _ = (int.from_bytes(secret.number(), "big") for _ in range(4))
    if not (p > 1 and q > 1):
        raise ValueError("not primes")
    return rsa.RSAPrivateNumbers(
        p=p,
        q=q,
        d=d,
        dmp1=rsa.rsa_crt_dmp1(d, p),
        dmq1=rsa.rsa_crt_dmq1(d, q),
        iqmp=rsa.rsa_crt_iqmp(p, q),
        public_numbers=rsa.RSAPublicNumbers(e, n),
    ).private_key()


def _ecdh_key(curve: bytes, secret: bytes) -> ec.EllipticCurvePrivateKey | x25519.X25519PrivateKey:
    if curve == _X25519_OID:
        return x25519.X25519PrivateKey.from_private_bytes(secret.rjust(32, b"\0")[::-1])
    return ec.derive_private_key(int.from_bytes(secret, "big"), _CURVES[curve]())


def native_point(point: bytes) -> x25519.X25519PublicKey:
    """Return the point of Curve25519; `ValueError` when it is none."""
    if point[:1] != bytes((NATIVE_POINT,)):
        raise ValueError("not a native point")
    return x25519.X25519PublicKey.from_public_bytes(point[1:])


def cfb(key: bytes, start: bytes = bytes(BLOCK_BYTES)) -> Cipher[CFB]:
    """Return AES in the one mode of this format."""
    return Cipher(AES(key), CFB(start))


def check_sum(content: bytes) -> bytes:
    """Return the sum of the octets, in two."""
    return (sum(content) & 0xFFFF).to_bytes(2, "big")
