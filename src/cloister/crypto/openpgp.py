"""OpenPGP as images use it: keyrings, and messages encrypted to keys in them.

RFC 9580 (RFC 4880 in its version 4): packets (section 4), public-key encrypted session keys of version 3 (5.1),
secret keys (5.5.3, S2K 3.7), integrity protected data of version 1 (5.13.1), literal data (5.9).

Two halves. Writing needs certificates judged: signatures over subkeys and names, expiry, revocation. That is Sequoia
(`pysequoia`, the extra `pgp`), which also encrypts. Reading is done here with `cryptography`: what ocicrypt writes has
first partial lengths below 512 bytes and integers with a length that counts leading zeros, which Sequoia (0.1.35) and
rPGP (0.20) refuse by RFC 9580, sections 4.2.1.4 and 3.2. Read are RSA and ECDH keys of version 4, and AES; refused are
messages without integrity protection, compressed, signed or in another order of packets.

Messages come from strangers: nothing but `FormatRefused` or `Refused` is raised for them. A message does not say who
made it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, x25519
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

from cloister.errors import FormatRefused, Refused
from cloister.wire.limits import KIB, MIB

try:  # newer releases keep CFB, which OpenPGP prescribes, in their module of old ciphers
    from cryptography.hazmat.decrepit.ciphers.modes import CFB
except ImportError:
    from cryptography.hazmat.primitives.ciphers.modes import CFB

_CODE: Final = "crypto.openpgp"
KEYRING_BYTES: Final = 4 * MIB
MESSAGE_BYTES: Final = 64 * KIB
_PACKETS: Final = 4096

_PKESK: Final = 1
_SECRET_KEY: Final = 5
_SECRET_SUBKEY: Final = 7
_COMPRESSED: Final = 8
_LITERAL: Final = 11
_SEIPD: Final = 18
_MDC_HEAD: Final = b"\xd3\x14"
_MDC_BYTES: Final = 20

_RSA: Final = frozenset((1, 2))  # 3 is for signatures
_ECDH: Final = 18
_AES_BYTES: Final = {7: 16, 8: 24, 9: 32}
_HASHES: Final = {2: "sha1", 8: "sha256", 9: "sha384", 10: "sha512", 11: "sha224"}
_X25519_OID: Final = bytes.fromhex("2b060104019755010501")
_CURVES: Final[dict[bytes, type[ec.EllipticCurve]]] = {
    bytes.fromhex("2a8648ce3d030107"): ec.SECP256R1,
    bytes.fromhex("2b81040022"): ec.SECP384R1,
    bytes.fromhex("2b81040023"): ec.SECP521R1,
}
_COFACTOR_POINT: Final = 0x40  # RFC 9580, section 9.2.1: a native point of 32 bytes follows
_ANONYMOUS_SENDER: Final = b"Anonymous Sender    "
_S2K_COUNT_CEILING: Final = 65_011_712  # the largest that one octet can say
_WILDCARD: Final = bytes(8)  # a session key for whoever can open it
_BODY: Final = re.compile(rb"\n\r?\n([A-Za-z0-9+/\s]+=*)")


class _Packet(NamedTuple):
    tag: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DecryptionKey:
    """A secret key or subkey that opens session keys."""

    key_id: bytes
    fingerprint: bytes
    algorithm: int
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | x25519.X25519PrivateKey = field(repr=False)
    curve: bytes = b""  # ECDH: the curve's OID, and how the key-wrapping key is made
    kdf: bytes = b""


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
    for packet in _packets(dearmor(data), ceiling=KEYRING_BYTES):
        if packet.tag in (_SECRET_KEY, _SECRET_SUBKEY):
            try:
                key = _secret_key(packet.body, password)
            except _Locked:
                locked += 1
                continue
            if key is not None:
                found.append(key)
    if not found and locked:
        raise Refused(
            f"{_CODE}.password",
            "password does not open the keyring" if password is not None else "keyring is protected by a password",
            hint="FILE:file=PASSWORDFILE",
        )
    if not found:
        raise Refused(
            f"{_CODE}.no_secret", "keyring has no secret key that can decrypt here", expected="RSA or ECDH, version 4"
        )
    return found


def decrypt_message(message: bytes, keys: Sequence[DecryptionKey]) -> bytes:
    """Return what a binary message holds: session keys, then integrity protected data with one literal packet.

    Raises:
        Refused: `crypto.openpgp.not_authentic` when no key opens it, or it was altered.
        FormatRefused: `crypto.openpgp.malformed`, `crypto.openpgp.unprotected`, `crypto.openpgp.unexpected`.
    """
    packets = list(_packets(message, ceiling=MESSAGE_BYTES))
    sealed = packets[-1] if packets else None
    if sealed is None or sealed.tag != _SEIPD or any(packet.tag != _PKESK for packet in packets[:-1]):
        raise FormatRefused(
            f"{_CODE}.unexpected",
            "not a message encrypted to keys",
            expected="session keys, then integrity protected data",
            actual=" ".join(str(packet.tag) for packet in packets[:20]) or "nothing",
        )
    if sealed.body[:1] != b"\x01":
        raise FormatRefused(f"{_CODE}.unprotected", "protection of this message is not supported", expected="version 1")
    for packet in packets[:-1]:
        for key in keys:
            session = _session_key(packet.body, key)
            content = session and _open_protected(sealed.body[1:], session)
            if content:
                return _literal(content)
    raise Refused(f"{_CODE}.not_authentic", "message does not open with this keyring, or was altered")


def message_key_ids(message: bytes) -> list[str]:
    """Return the ids of the keys that a binary message says it is encrypted to, in hexadecimal; zeros hide one.

    Raises:
        FormatRefused: `crypto.openpgp.malformed`.
    """
    found = []
    for packet in _packets(message, ceiling=MESSAGE_BYTES):
        if packet.tag == _PKESK and packet.body[:1] == b"\x03":
            found.append(packet.body[1:9].hex())
    return found


def encrypt_message(plaintext: bytes, keyring: bytes, names: Sequence[str]) -> bytes:
    """Encrypt to the holders of `names` in a public keyring: AES-256, integrity protected, not compressed or signed.

    Args:
        plaintext: what to encrypt.
        keyring: certificates, binary or armored.
        names: of recipients: exact name, exact e-mail address, or fingerprint in hexadecimal.

    Raises:
        Refused: `crypto.openpgp.library` without the extra `pgp`, `crypto.openpgp.recipient` for a name that nobody or
            more than one has, `crypto.openpgp.certificate` for a certificate that cannot be encrypted to.
        FormatRefused: `crypto.openpgp.malformed`.
    """
    sequoia = load_sequoia()
    certificates = _certificates(sequoia, keyring)
    chosen = [_certificate_of(certificates, name) for name in names]
    try:
        message = bytes(sequoia.encrypt(bytes=plaintext, recipients=chosen, armor=False))
    except (RuntimeError, ValueError) as err:
        raise Refused(
            f"{_CODE}.certificate",
            "certificate cannot be encrypted to",
            actual=first_line(err),
            hint="it may be expired, revoked, signed with SHA-1, or without a key for encryption",
        ) from err
    if next(packet.body[:1] for packet in _packets(message, ceiling=MESSAGE_BYTES) if packet.tag == _SEIPD) != b"\x01":
        raise Refused(
            f"{_CODE}.certificate",
            "certificate asks for a form of encryption that other tools cannot read",
            expected="a certificate of RFC 4880",
        )
    return message


def load_sequoia() -> Any:  # Any: an optional library
    """Import `pysequoia`.

    Raises:
        Refused: `crypto.openpgp.library`.
    """
    try:
        import pysequoia
    except ImportError as err:
        raise Refused(f"{_CODE}.library", "pysequoia is not installed", hint="pip install 'cloister[pgp]'") from err
    return pysequoia


def first_line(err: Exception) -> str:
    """Return the first line of what a library said: what follows is a backtrace."""
    return (str(err).splitlines() or [type(err).__name__])[0][:200]


def dearmor(data: bytes) -> bytes:
    """Return the bytes of the first armored block, or `data` when it is binary (RFC 9580, section 6).

    Raises:
        FormatRefused: `crypto.openpgp.malformed`.
    """
    import base64
    import binascii

    if not data.lstrip().startswith(b"-----BEGIN PGP "):
        return data
    block = data.partition(b"-----END PGP ")[0]
    body = _BODY.search(block)
    try:
        return base64.b64decode(b"".join(body.group(1).split()) if body else b"", validate=True)
    except binascii.Error as err:
        raise _malformed("armor") from err


# -- certificates, by Sequoia --------------------------------------------------------------------------------------


def _certificates(sequoia: Any, keyring: bytes) -> list[Any]:  # Any: an optional library
    if len(keyring) > KEYRING_BYTES:
        raise _malformed("keyring")
    try:
        return list(sequoia.Cert.split_bytes(keyring))
    except (RuntimeError, ValueError) as err:
        raise FormatRefused(
            f"{_CODE}.malformed",
            "not an OpenPGP keyring",
            expected="the output of `gpg --export`; a keybox is none",
            actual=first_line(err),
        ) from err


def _certificate_of(certificates: Sequence[Any], name: str) -> Any:  # Any: an optional library
    matching = [
        certificate
        for certificate in certificates
        if certificate.fingerprint.lower() == name.lower().replace(" ", "")
        or any(name in split_user_id(str(user)) for user in certificate.user_ids)
    ]
    if len(matching) != 1 or not name:
        raise Refused(
            f"{_CODE}.recipient",
            "name is not that of one certificate in the keyring",
            expected="the exact name, e-mail address or fingerprint",
            actual=f"{len(matching)} certificates for {name[:80]!r}",
        )
    if matching[0].is_revoked:
        raise Refused(f"{_CODE}.certificate", "certificate is revoked", actual=matching[0].fingerprint)
    return matching[0]


def split_user_id(user_id: str) -> tuple[str, ...]:
    """Return name and e-mail address of `Name (comment) <address>`, without the comment; or the text as it is."""
    name, mark, address = user_id.rpartition(" <")
    if not mark or not address.endswith(">"):
        return (user_id.removeprefix("<").removesuffix(">"),)
    return (name.partition(" (")[0], name, address[:-1])


# -- packets -------------------------------------------------------------------------------------------------------


def _packets(data: bytes, *, ceiling: int) -> Iterator[_Packet]:
    """Yield the packets of `data`, partial bodies joined whatever the length of their parts."""
    if len(data) > ceiling:
        raise _malformed("length")
    at = 0
    for _ in range(_PACKETS):
        if at == len(data):
            return
        head = data[at]
        if not head & 0x80:
            raise _malformed("packet")
        if head & 0x40:
            body, at = _new_body(data, at + 1)
            yield _Packet(head & 0x3F, body)
        else:
            width = (1, 2, 4, 0)[head & 3]
            start = at + 1 + width
            at = start + int.from_bytes(data[at + 1 : start], "big")
            if not width or at > len(data):
                raise _malformed("packet")
            yield _Packet((head >> 2) & 0x0F, data[start:at])
    if at != len(data):
        raise _malformed("packets")


def _new_body(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the body whose length stands at `at` in the new format, and where the next packet begins."""
    parts = []
    partial = True
    while partial:
        reader = _Reader(data, at)
        first = reader.byte()
        partial = 224 <= first < 255
        if first < 192:
            size = first
        elif first < 224:
            size = ((first - 192) << 8) + reader.byte() + 192
        elif partial:
            size = 1 << (first & 0x1F)
        else:
            size = int.from_bytes(reader.take(4), "big")
        parts.append(reader.take(size))
        at = reader.at
    return b"".join(parts), at


class _Reader:
    """Takes bytes from the front, and refuses when there are none left."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise _malformed("packet")
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> bytes:
        """Take a multiprecision integer. Its length may count leading zeros, as Go's library writes it."""
        return self.take((int.from_bytes(self.take(2), "big") + 7) // 8)

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.at)


# -- messages ------------------------------------------------------------------------------------------------------


def _session_key(body: bytes, key: DecryptionKey) -> bytes:
    """Return the AES key in a session key packet, nothing when it is not for `key`."""
    reader = _Reader(body)
    version, key_id, algorithm = reader.byte(), reader.take(8), reader.byte()
    if version != 3 or algorithm != key.algorithm or key_id not in (key.key_id, _WILDCARD):
        return b""
    number = reader.number()
    try:
        if isinstance(key.key, rsa.RSAPrivateKey):
            # A wrong padding gives random bytes (OpenSSL 3.2), which the check sum below refuses.
            content = key.key.decrypt(number.rjust(key.key.key_size // 8, b"\0"), padding.PKCS1v15())
        else:
            wrapped = reader.take(reader.byte())
            content = _unpadded(aes_key_unwrap(_agreed(key, number), wrapped))
    except (InvalidUnwrap, ValueError):
        return b""
    session = content[1:-2]
    size = _AES_BYTES.get(content[0]) if content else None
    check = (sum(session) & 0xFFFF).to_bytes(2, "big")
    return session if size == len(session) and hmac.compare_digest(check, content[-2:]) else b""


def _agreed(key: DecryptionKey, point: bytes) -> bytes:
    """Return the key-wrapping key of RFC 9580, section 11.5."""
    if isinstance(key.key, x25519.X25519PrivateKey):
        if point[:1] != bytes((_COFACTOR_POINT,)):
            raise ValueError("not a native point")
        shared = key.key.exchange(x25519.X25519PublicKey.from_public_bytes(point[1:]))
    elif isinstance(key.key, ec.EllipticCurvePrivateKey):
        other = ec.EllipticCurvePublicKey.from_encoded_point(key.key.curve, point)
        shared = key.key.exchange(ec.ECDH(), other)
    else:
        raise TypeError("an RSA key agrees on nothing")
    digest, cipher = _HASHES[key.kdf[0]], key.kdf[1]
    parameters = bytes((len(key.curve),)) + key.curve + bytes((_ECDH, 3, 1)) + key.kdf
    content = b"\0\0\0\1" + shared + parameters + _ANONYMOUS_SENDER + key.fingerprint
    return hashlib.new(digest, content).digest()[: _AES_BYTES[cipher]]


def _unpadded(content: bytes) -> bytes:
    size = content[-1]
    if not 0 < size <= len(content) or content[-size:] != bytes((size,)) * size:
        raise ValueError("padding")
    return content[:-size]


def _open_protected(body: bytes, session: bytes) -> bytes:
    """Return the packets inside integrity protected data, nothing when they are not authentic."""
    block = AES.block_size // 8
    context = Cipher(AES(session), CFB(bytes(block))).decryptor()
    plain = context.update(body) + context.finalize()
    content, seal = plain[:-_MDC_BYTES], plain[-_MDC_BYTES:]
    digest = hashlib.sha1(content, usedforsecurity=False).digest()  # the format's own, section 5.13.1
    if len(content) < block + 4 or not hmac.compare_digest(digest, seal) or content[-2:] != _MDC_HEAD:
        return b""
    return content[block + 2 : -2]


def _literal(content: bytes) -> bytes:
    packets = list(_packets(content, ceiling=MESSAGE_BYTES))
    if [packet.tag for packet in packets] != [_LITERAL]:
        raise FormatRefused(
            f"{_CODE}.unexpected",
            "message holds something else than plain data",
            expected="one literal packet",
            actual="compressed data" if packets and packets[0].tag == _COMPRESSED else "other packets",
        )
    reader = _Reader(packets[0].body)
    reader.byte()  # text or binary: the bytes are the same
    reader.take(reader.byte())  # a file name
    reader.take(4)  # a time
    return reader.rest()


# -- secret keys ---------------------------------------------------------------------------------------------------


class _Locked(Exception):
    """A password is needed, or it is another one."""


def _secret_key(body: bytes, password: str | None) -> DecryptionKey | None:
    """Return the key of a secret key packet, nothing for kinds that do not decrypt here.

    Raises:
        _Locked: the password does not open it.
        FormatRefused: `crypto.openpgp.malformed`.
    """
    reader = _Reader(body)
    version, _, algorithm = reader.byte(), reader.take(4), reader.byte()
    if version != 4 or (algorithm not in _RSA and algorithm != _ECDH):
        return None
    curve, kdf, public = b"", b"", []
    if algorithm in _RSA:
        public = [reader.number(), reader.number()]
    else:
        curve = reader.take(reader.byte())
        public = [reader.number()]
        kdf = reader.take(reader.byte())[1:]
        known = curve == _X25519_OID or curve in _CURVES
        if not known or len(kdf) != 2 or kdf[0] not in _HASHES or kdf[1] not in _AES_BYTES:
            return None
    public_body = body[: reader.at]
    fingerprint = hashlib.sha1(
        b"\x99" + len(public_body).to_bytes(2, "big") + public_body, usedforsecurity=False
    ).digest()
    secret = _unlocked(reader, password)
    if secret is None:
        return None
    try:
        key = _rsa_key(public, secret) if algorithm in _RSA else _ecdh_key(curve, secret.number())
    except ValueError as err:
        raise _malformed("key") from err
    return DecryptionKey(
        key_id=fingerprint[-8:], fingerprint=fingerprint, algorithm=algorithm, key=key, curve=curve, kdf=kdf
    )


def _unlocked(reader: _Reader, password: str | None) -> _Reader | None:
    """Return the secret numbers, nothing when they are not in the packet (on a card, or left out)."""
    usage = reader.byte()
    if usage == 0:
        return _Reader(_summed(reader.rest(), None))
    if usage not in (254, 255):  # the cipher itself: an old form of version 3
        return None
    cipher, kind = reader.byte(), reader.byte()
    if cipher not in _AES_BYTES or kind not in (0, 1, 3):
        return None
    digest = _HASHES.get(reader.byte())
    salt = reader.take(8) if kind else b""
    coded = reader.byte() if kind == 3 else 0
    if digest is None:
        return None
    if password is None:
        raise _Locked
    count = (16 + (coded & 15)) << ((coded >> 4) + 6) if kind == 3 else 0
    key = _string_to_key(digest, salt, password.encode(), count, _AES_BYTES[cipher])
    context = Cipher(AES(key), CFB(reader.take(AES.block_size // 8))).decryptor()
    return _Reader(_summed(context.update(reader.rest()) + context.finalize(), usage))


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
        good = hmac.compare_digest((sum(body) & 0xFFFF).to_bytes(2, "big"), seal)
    if not good:
        if usage is None:
            raise _malformed("check sum")
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


def _rsa_key(public: Sequence[bytes], secret: _Reader) -> rsa.RSAPrivateKey:
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


def _malformed(what: str) -> FormatRefused:
    return FormatRefused(f"{_CODE}.malformed", f"{what} of OpenPGP data is malformed", path="openpgp")
