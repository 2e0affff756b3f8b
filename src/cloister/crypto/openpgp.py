"""OpenPGP as images use it: keyrings, and messages encrypted to keys in them.

RFC 9580 (RFC 4880 in its version 4): packets (section 4), public-key encrypted session keys of version 3 (5.1),
secret keys (5.5.3, S2K 3.7), integrity protected data of version 1 (5.13.1), literal data (5.9).

Certificates are judged by Sequoia (`pysequoia`, the extra `pgp`): signatures over subkeys and names, expiry,
revocation. Messages are written and read here with `cryptography`. Read, because what ocicrypt writes has first
partial lengths below 512 bytes and integers with a length that counts leading zeros, which Sequoia (0.1.35) and rPGP
(0.20) refuse by RFC 9580, sections 4.2.1.4 and 3.2. Written, because Sequoia encrypts to its own certificates in
version 2 of the protected data, which ocicrypt does not read. Keys are RSA and ECDH of version 4, ciphers AES; refused
are messages without integrity protection, compressed, signed or in another order of packets.

Messages come from strangers: nothing but `FormatRefused` or `Refused` is raised for them. A message does not say who
made it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, x25519
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.crypto.openpgpkeys import (
    AES_BYTES,
    BLOCK_BYTES,
    ECDH,
    HASHES,
    KEYRING_BYTES,
    NATIVE_POINT,
    DecryptionKey,
    EncryptionKey,
    NamedKey,
    cfb,
    check_sum,
    encryption_key,
    native_point,
    read_public_key,
)
from cloister.crypto.openpgppackets import (
    CODE,
    COMPRESSED,
    LITERAL,
    PKESK,
    PUBLIC_KEY,
    PUBLIC_SUBKEY,
    SEIPD,
    Reader,
    malformed,
    read_packets,
    write_number,
    write_packet,
)
from cloister.errors import FormatRefused, Refused
from cloister.wire.limits import KIB

MESSAGE_BYTES: Final = 64 * KIB
_MDC_HEAD: Final = b"\xd3\x14"
_MDC_BYTES: Final = 20
_AES_256: Final = 9
_PADDED_BYTES: Final = 40  # RFC 9580, section 11.5: session keys of all lengths look the same
_ANONYMOUS_SENDER: Final = b"Anonymous Sender    "
_WILDCARD: Final = bytes(8)  # a session key for whoever can open it


def decrypt_message(message: bytes, keys: Sequence[DecryptionKey]) -> bytes:
    """Return what a binary message holds: session keys, then integrity protected data with one literal packet.

    Raises:
        Refused: `crypto.openpgp.not_authentic` when no key opens it, or it was altered.
        FormatRefused: `crypto.openpgp.malformed`, `crypto.openpgp.unprotected`, `crypto.openpgp.unexpected`.
    """
    packets = list(read_packets(message, ceiling=MESSAGE_BYTES))
    sealed = packets[-1] if packets else None
    if sealed is None or sealed.tag != SEIPD or any(packet.tag != PKESK for packet in packets[:-1]):
        raise FormatRefused(
            f"{CODE}.unexpected",
            "not a message encrypted to keys",
            expected="session keys, then integrity protected data",
            actual=" ".join(str(packet.tag) for packet in packets[:20]) or "nothing",
        )
    if sealed.body[:1] != b"\x01":
        raise FormatRefused(f"{CODE}.unprotected", "protection of this message is not supported", expected="version 1")
    for packet in packets[:-1]:
        for key in keys:
            session = _session_key(packet.body, key)
            content = session and _open_protected(sealed.body[1:], session)
            if content:
                return _literal(content)
    raise Refused(f"{CODE}.not_authentic", "message does not open with this keyring, or was altered")


def message_key_ids(message: bytes) -> list[str]:
    """Return the ids of the keys that a binary message says it is encrypted to, in hexadecimal; zeros hide one.

    Raises:
        FormatRefused: `crypto.openpgp.malformed`.
    """
    packets = read_packets(message, ceiling=MESSAGE_BYTES)
    return [packet.body[1:9].hex() for packet in packets if packet.tag == PKESK and packet.body[:1] == b"\x03"]


def find_recipients(keyring: bytes, names: Sequence[str]) -> list[EncryptionKey]:
    """Return the keys to encrypt to, of the certificate of each of `names` in a public keyring.

    Args:
        keyring: certificates, binary or armored.
        names: exact name, exact e-mail address, or fingerprint in hexadecimal.

    Raises:
        Refused: `crypto.openpgp.library` without the extra `pgp`, `crypto.openpgp.recipient` for a name that nobody or
            more than one has, `crypto.openpgp.certificate` for a certificate that cannot be encrypted to now.
        FormatRefused: `crypto.openpgp.malformed`.
    """
    sequoia = load_sequoia()
    certificates = _certificates(sequoia, keyring)
    return [key for name in names for key in _encryption_keys(sequoia, _certificate_of(certificates, name))]


def encrypt_message(plaintext: bytes, keys: Sequence[EncryptionKey]) -> bytes:
    """Encrypt to `keys`: AES-256, integrity protected, not compressed or signed, binary."""
    session = os.urandom(AES_BYTES[_AES_256])
    prefix = os.urandom(BLOCK_BYTES)
    content = prefix + prefix[-2:] + write_packet(LITERAL, b"b" + bytes(5) + plaintext) + _MDC_HEAD
    content += hashlib.sha1(content, usedforsecurity=False).digest()
    context = cfb(session).encryptor()
    sealed = context.update(content) + context.finalize()
    packets = [write_packet(PKESK, _wrapped_session(session, key)) for key in keys]
    return b"".join(packets) + write_packet(SEIPD, b"\x01" + sealed)


def load_sequoia() -> Any:  # Any: an optional library
    """Import `pysequoia`.

    Raises:
        Refused: `crypto.openpgp.library`.
    """
    try:
        import pysequoia
    except ImportError as err:
        raise Refused(f"{CODE}.library", "pysequoia is not installed", hint="pip install 'cloister[pgp]'") from err
    return pysequoia


def first_line(err: Exception) -> str:
    """Return the first line of what a library said: what follows is a backtrace."""
    return (str(err).splitlines() or [type(err).__name__])[0][:200]


# -- certificates, by Sequoia --------------------------------------------------------------------------------------


def _encryption_keys(sequoia: Any, certificate: Any) -> list[EncryptionKey]:  # Any: an optional library
    """Return the keys of `certificate` that Sequoia encrypts to: those that a message it makes is for."""
    try:
        probe = bytes(sequoia.encrypt(bytes=b"", recipients=[certificate], armor=False))
        whole = bytes(certificate)  # not every certificate that is read can be written again
    except (RuntimeError, ValueError) as err:
        raise Refused(
            f"{CODE}.certificate",
            "certificate cannot be encrypted to",
            path=certificate.fingerprint,
            actual=first_line(err),
            hint="it may be expired, revoked, signed with SHA-1, or without a key for encryption",
        ) from err
    accepted = {
        _recipient_id(packet.body) for packet in read_packets(probe, ceiling=MESSAGE_BYTES) if packet.tag == PKESK
    }
    packets = read_packets(whole, ceiling=KEYRING_BYTES)
    named = [read_public_key(Reader(packet.body)) for packet in packets if packet.tag in (PUBLIC_KEY, PUBLIC_SUBKEY)]
    usable = [encryption_key(key) for key in named if key is not None and key.fingerprint[-8:] in accepted]
    if not usable:
        raise Refused(
            f"{CODE}.certificate",
            "certificate has no key that other tools can read messages with",
            path=certificate.fingerprint,
            expected="RSA or ECDH (Curve25519, P-256, P-384, P-521), version 4",
        )
    return usable


def _recipient_id(body: bytes) -> bytes:
    """Return the key id of a session key packet of version 3 or 6."""
    reader = Reader(body)
    return reader.take(8) if reader.byte() == 3 else reader.take(reader.byte())[-8:]


def _certificates(sequoia: Any, keyring: bytes) -> list[Any]:  # Any: an optional library
    if len(keyring) > KEYRING_BYTES:
        raise malformed("keyring")
    try:
        return list(sequoia.Cert.split_bytes(keyring))
    except (RuntimeError, ValueError) as err:
        raise FormatRefused(
            f"{CODE}.malformed",
            "not an OpenPGP keyring",
            expected="the output of `gpg --export`; a keybox is none",
            actual=first_line(err),
        ) from err


def _user_ids(certificate: Any) -> Sequence[object]:  # Any: an optional library
    """Return the names of a certificate; one whose own signatures do not hold has none."""
    try:
        found: Sequence[object] = certificate.user_ids
    except RuntimeError:
        return ()
    return found


def _certificate_of(certificates: Sequence[Any], name: str) -> Any:  # Any: an optional library
    matching = [
        certificate
        for certificate in certificates
        if certificate.fingerprint.lower() == name.lower().replace(" ", "")
        or any(name in split_user_id(str(user)) for user in _user_ids(certificate))
    ]
    if len(matching) != 1 or not name:
        raise Refused(
            f"{CODE}.recipient",
            "name is not that of one certificate in the keyring",
            expected="the exact name, e-mail address or fingerprint",
            actual=f"{len(matching)} certificates for {name[:80]!r}",
        )
    certificate = matching[0]
    # Sequoia leaves these two to its caller; of subkeys it takes neither.
    if certificate.is_revoked or (certificate.expiration is not None and certificate.expiration <= datetime.now(UTC)):
        raise Refused(
            f"{CODE}.certificate",
            "certificate is revoked" if certificate.is_revoked else "certificate is expired",
            path=certificate.fingerprint,
            actual=str(certificate.expiration or ""),
        )
    return certificate


def split_user_id(user_id: str) -> tuple[str, ...]:
    """Return name and e-mail address of `Name (comment) <address>`, without the comment; or the text as it is."""
    name, mark, address = user_id.rpartition(" <")
    if not mark or not address.endswith(">"):
        return (user_id.removeprefix("<").removesuffix(">"),)
    return (name.partition(" (")[0], name, address[:-1])


# -- messages ------------------------------------------------------------------------------------------------------


def _wrapped_session(session: bytes, key: EncryptionKey) -> bytes:
    """Return a session key packet's body, RFC 9580 section 5.1.1 to 5.1.5."""
    content = bytes((_AES_256,)) + session + check_sum(session)
    head = b"\x03" + key.named.key_id + bytes((key.named.algorithm,))
    if isinstance(key.key, rsa.RSAPublicKey):
        return head + write_number(key.key.encrypt(content, padding.PKCS1v15()))
    if isinstance(key.key, x25519.X25519PublicKey):
        native = x25519.X25519PrivateKey.generate()
        point = bytes((NATIVE_POINT,)) + native.public_key().public_bytes_raw()
        shared = native.exchange(key.key)
    else:
        ephemeral = ec.generate_private_key(key.key.curve)
        point = ephemeral.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        shared = ephemeral.exchange(ec.ECDH(), key.key)
    padded = content + bytes((_PADDED_BYTES - len(content),)) * (_PADDED_BYTES - len(content))
    wrapped = aes_key_wrap(_wrapping_key(key.named, shared), padded)
    return head + write_number(point) + bytes((len(wrapped),)) + wrapped


def _session_key(body: bytes, key: DecryptionKey) -> bytes:
    """Return the AES key in a session key packet, nothing when it is not for `key`."""
    reader = Reader(body)
    version, key_id, algorithm = reader.byte(), reader.take(8), reader.byte()
    if version != 3 or algorithm != key.named.algorithm or key_id not in (key.named.key_id, _WILDCARD):
        return b""
    number = reader.number()
    try:
        if isinstance(key.key, rsa.RSAPrivateKey):
            # A wrong padding gives random bytes (OpenSSL 3.2), which the check sum below refuses.
            content = key.key.decrypt(number.rjust(key.key.key_size // 8, b"\0"), padding.PKCS1v15())
        else:
            wrapped = reader.take(reader.byte())
            content = _unpadded(aes_key_unwrap(_wrapping_key(key.named, _shared(key.key, number)), wrapped))
    except (InvalidUnwrap, ValueError):
        return b""
    session = content[1:-2]
    size = AES_BYTES.get(content[0]) if content else None
    return session if size == len(session) and hmac.compare_digest(check_sum(session), content[-2:]) else b""


def _shared(key: ec.EllipticCurvePrivateKey | x25519.X25519PrivateKey, point: bytes) -> bytes:
    if isinstance(key, x25519.X25519PrivateKey):
        return key.exchange(native_point(point))
    return key.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(key.curve, point))


def _wrapping_key(named: NamedKey, shared: bytes) -> bytes:
    """Return the key-wrapping key of RFC 9580, section 11.5."""
    parameters = bytes((len(named.curve),)) + named.curve + bytes((ECDH, 3, 1)) + named.kdf
    content = b"\0\0\0\1" + shared + parameters + _ANONYMOUS_SENDER + named.fingerprint
    return hashlib.new(HASHES[named.kdf[0]], content).digest()[: AES_BYTES[named.kdf[1]]]


def _unpadded(content: bytes) -> bytes:
    size = content[-1]
    if not 0 < size <= len(content) or content[-size:] != bytes((size,)) * size:
        raise ValueError("padding")
    return content[:-size]


def _open_protected(body: bytes, session: bytes) -> bytes:
    """Return the packets inside integrity protected data, nothing when they are not authentic."""
    context = cfb(session).decryptor()
    plain = context.update(body) + context.finalize()
    content, seal = plain[:-_MDC_BYTES], plain[-_MDC_BYTES:]
    digest = hashlib.sha1(content, usedforsecurity=False).digest()  # the format's own, section 5.13.1
    if len(content) < BLOCK_BYTES + 4 or not hmac.compare_digest(digest, seal) or content[-2:] != _MDC_HEAD:
        return b""
    return content[BLOCK_BYTES + 2 : -2]


def _literal(content: bytes) -> bytes:
    packets = list(read_packets(content, ceiling=MESSAGE_BYTES))
    if [packet.tag for packet in packets] != [LITERAL]:
        raise FormatRefused(
            f"{CODE}.unexpected",
            "message holds something else than plain data",
            expected="one literal packet",
            actual="compressed data" if packets and packets[0].tag == COMPRESSED else "other packets",
        )
    reader = Reader(packets[0].body)
    reader.byte()  # text or binary: the bytes are the same
    reader.take(reader.byte())  # a file name
    reader.take(4)  # a time
    return reader.rest()
