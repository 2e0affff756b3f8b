"""Key files of image owners: what is in one is told by its content, not by its name.

Public keys and certificates of recipients, private keys of whoever opens: PEM and DER (PKCS #1, PKCS #8, SEC 1,
SubjectPublicKeyInfo, X.509), JSON Web Keys (RFC 7517), OpenPGP keyrings, and the YAML that names a key in a PKCS #11
token as ocicrypt names it. 32 bytes that are nothing else are a key-encryption key. What ocicrypt reads is read
here; a password protects PEM and DER in their two forms.

`parse_*` are pure; `read_*` and `split_key_text` touch files, and gpg is asked for its keyring. Files are the owner's
own: they are checked to be what they should be, and an error names what was expected, never a password or key.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    load_der_private_key,
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
)

from cloister.crypto.aead import AES256_KEY_BYTES
from cloister.errors import Refused
from cloister.wire.base64 import decode_b64url
from cloister.wire.limits import KIB, MIB
from cloister.wire.strictjson import JSONObject, parse_json_object

if TYPE_CHECKING:
    from cryptography import x509  # a visible part of a command's start, and public keys do without

KEY_FILE_BYTES: Final = 4 * MIB  # a keyring of a few hundred people
PASSWORD_BYTES: Final = 4 * KIB
WRAPPING_ALGORITHMS: Final = ("RSA-OAEP", "RSA-OAEP-256", "ECDH-ES+A128KW", "ECDH-ES+A192KW", "ECDH-ES+A256KW")
CURVES: Final[Mapping[str, tuple[type[ec.EllipticCurve], int]]] = {
    "P-256": (ec.SECP256R1, 32),
    "P-384": (ec.SECP384R1, 48),
    "P-521": (ec.SECP521R1, 66),
}

_GPG_SECONDS: Final = 30  # it may wait for a lock
_RSA_BITS: Final = (1024, 16384)  # what is read; whoever wraps asks for 2048
_RSA_MEMBER_BYTES: Final = 2 * KIB
_JWK_BYTES: Final = 64 * KIB
_CODE: Final = "oci.encryption.key_file"
_PUBLIC: Final = "a public key on P-256, P-384, P-521 or of RSA: PEM, DER or JWK"
_CERTIFICATE: Final = "an X.509 certificate: PEM or DER"
_PRIVATE: Final = (
    "a private key (PEM, DER, JWK), a certificate beside its key, an OpenPGP secret keyring, PKCS #11 YAML, "
    "or a key-encryption key of 32 bytes"
)
# Tags of the first packet of a keyring, RFC 9580 section 4.2: public and secret key, both header formats.
_PGP_PUBLIC: Final = frozenset((0x98, 0x99, 0x9A, 0xC6))
_PGP_SECRET: Final = frozenset((0x94, 0x95, 0x96, 0xC5))
_PGP_PUBLIC_ARMOR: Final = b"-----BEGIN PGP PUBLIC KEY BLOCK-----"
_PGP_SECRET_ARMOR: Final = b"-----BEGIN PGP PRIVATE KEY BLOCK-----"
_PEM: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----")
_TOKEN_KEY: Final = re.compile(rb"^pkcs11:(\s|$)", re.MULTILINE)

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipientKey:
    """A public key to wrap to. `algorithm` and `key_id` are a JWK's own words, empty when it says none."""

    key: PublicKey
    algorithm: str = ""
    key_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpeningKey:
    """A private key of RSA or an elliptic curve."""

    key: PrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretKeyring:
    """An OpenPGP keyring with secret keys, and the password that opens them."""

    data: bytes = field(repr=False)
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKeyFile:
    """The YAML that names a key in a PKCS #11 token; it may hold a PIN."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEncryptionKey:
    """The 32 bytes that open packets of a key broker."""

    key: bytes = field(repr=False)


KeyFile: TypeAlias = "OpeningKey | x509.Certificate | SecretKeyring | TokenKeyFile | KeyEncryptionKey"
"""What `parse_key_file` finds."""


def read_key_file(path: str) -> bytes:
    """Return the content of a key file.

    Raises:
        Refused: `oci.encryption.key_file.unreadable`, `oci.encryption.key_file.too_long`.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(KEY_FILE_BYTES + 1)
    except OSError as err:
        raise Refused(
            f"{_CODE}.unreadable", "key file cannot be read", path=path[:200], actual=err.strerror or "no file"
        ) from err
    if len(data) > KEY_FILE_BYTES:
        raise Refused(f"{_CODE}.too_long", "key file is too long", path=path[:200], expected=f"{KEY_FILE_BYTES} bytes")
    return data


def read_public_keyring() -> bytes:
    """Return the public keys of this user's GnuPG: what `gpg --export` writes, or `pubring.gpg` where there is no gpg.

    Raises:
        Refused: `oci.encryption.key_file.unreadable`: neither gives any.
    """
    program = shutil.which("gpg")
    if program is not None:
        try:
            done = subprocess.run(
                [program, "--batch", "--quiet", "--no-tty", "--export"],
                capture_output=True,
                timeout=_GPG_SECONDS,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired) as err:
            raise _no_keyring("gpg --export", str(err)) from err
        if done.returncode or not done.stdout:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise _no_keyring("gpg --export", said[-1] if said else "no keys")
        return done.stdout
    path = Path(os.environ.get("GNUPGHOME") or Path.home() / ".gnupg") / "pubring.gpg"
    try:
        return read_key_file(str(path))
    except Refused as err:
        raise _no_keyring(str(path), err.actual) from err


def _no_keyring(place: str, reason: str) -> Refused:
    return Refused(
        f"{_CODE}.unreadable",
        "keyring of OpenPGP recipients cannot be read",
        path=place[:200],
        actual=reason[:200],
        hint="import the recipients' certificates with `gpg --import`",
    )


def split_key_text(text: str) -> tuple[str, bytes | None]:
    """Split `FILE[:PASSWORD]` as ocicrypt's tools take it, and fetch the password.

    The password is one of `pass=TEXT`, `file=FILE`, `fd=NUMBER` or just the text. One line end behind the password in
    a file or pipe is not part of it. What a command line holds, others on the machine can read: prefer `file=`.

    Raises:
        Refused: `oci.encryption.key_file.password_source`, or what `read_key_file` says of the password's file.
    """
    path, mark, password = text.partition(":")
    return path, _read_password(password) if mark else None


def _read_password(text: str) -> bytes:
    kind, mark, value = text.partition("=")
    if not mark or kind not in ("pass", "file", "fd"):
        return text.encode()
    if kind == "pass":
        return value.encode()
    if kind == "file":
        return _line(read_key_file(value))
    try:
        with os.fdopen(int(value), "rb") as pipe:
            return _line(pipe.read(PASSWORD_BYTES + 1))
    except (ValueError, OSError) as err:
        raise Refused(
            f"{_CODE}.password_source", "password cannot be read", expected="fd=NUMBER of an open file", path=text[:40]
        ) from err


def _line(data: bytes) -> bytes:
    if len(data) > PASSWORD_BYTES:
        raise Refused(
            f"{_CODE}.password_source", "password is too long", expected=f"at most {PASSWORD_BYTES} bytes in one line"
        )
    return data.removesuffix(b"\n").removesuffix(b"\r")


def parse_recipient_key(data: bytes, *, path: str = "") -> RecipientKey:
    """Parse a recipient's public key: PEM, DER (SubjectPublicKeyInfo) or JWK.

    Raises:
        Refused: `oci.encryption.key_file.*`, with what the file is instead where that can be told.
    """
    if data.lstrip()[:1] == b"{":
        jwk = parse_json_object(data, ceiling=_JWK_BYTES, code=_CODE, family=Refused)
        if "d" in jwk:
            raise _unfit(_PUBLIC, "a private JWK; give away its public half only", path)
        return RecipientKey(key=_jwk_public(jwk, path), algorithm=_jwk_algorithm(jwk, path), key_id=_jwk_id(jwk))
    return RecipientKey(key=_usable_public(_spki(data, path), path))


def _spki(data: bytes, path: str) -> object:
    if _PEM.search(data):
        if not re.search(rb"-----BEGIN (RSA )?PUBLIC KEY-----", data):
            raise _unfit(_PUBLIC, describe_content(data), path)
        return _loaded(lambda: load_pem_public_key(data), _PUBLIC, data, path)
    return _loaded(lambda: load_der_public_key(data), _PUBLIC, data, path)


def parse_certificate(data: bytes, *, path: str = "") -> x509.Certificate:
    """Parse one certificate, PEM or DER; of several in a PEM file the first one, as ocicrypt does.

    Raises:
        Refused: `oci.encryption.key_file.*`.
    """
    from cryptography import x509

    if _PEM.search(data):
        return _loaded(lambda: _x509(x509.load_pem_x509_certificate, data), _CERTIFICATE, data, path)
    return _loaded(lambda: _x509(x509.load_der_x509_certificate, data), _CERTIFICATE, data, path)


def _x509(load: Callable[[bytes], x509.Certificate], data: bytes) -> x509.Certificate:
    """Load a certificate, or raise ValueError."""
    from cloister.crypto.x509path import warnings_refused

    with warnings_refused():
        return load(data)


def parse_key_file(data: bytes, password: bytes | None = None, *, path: str = "") -> KeyFile:
    """Parse the file of whoever opens.

    Raises:
        Refused: `oci.encryption.key_file.password` for a missing or wrong password, `oci.encryption.key_file.unfit`.
    """
    if is_pgp_secret(data):
        return SecretKeyring(data=data, password=None if password is None else _text(password, path))
    if data.lstrip()[:1] == b"{":
        jwk = parse_json_object(data, ceiling=_JWK_BYTES, code=_CODE, family=Refused)
        return OpeningKey(key=_jwk_private(jwk, path))
    if _PEM.search(data):
        if b"PRIVATE KEY-----" in data:
            return OpeningKey(key=_private(load_pem_private_key, data, password, path))
        if b"-----BEGIN CERTIFICATE-----" in data:
            return parse_certificate(data, path=path)
        raise _unfit(_PRIVATE, describe_content(data), path)
    if _TOKEN_KEY.search(data):
        return TokenKeyFile(data=data)
    if len(data) == AES256_KEY_BYTES:
        return KeyEncryptionKey(key=data)
    from cryptography import x509

    try:
        return _x509(x509.load_der_x509_certificate, data)
    except ValueError:
        return OpeningKey(key=_private(load_der_private_key, data, password, path))


def is_token_key(data: bytes) -> bool:
    """Whether `data` looks like the YAML of a key in a token."""
    return not _PEM.search(data) and bool(_TOKEN_KEY.search(data))


def is_pgp_secret(data: bytes) -> bool:
    """Whether `data` begins as an OpenPGP keyring with secret keys, binary or armored."""
    return data.lstrip().startswith(_PGP_SECRET_ARMOR) or (data[:1] != b"" and data[0] in _PGP_SECRET)


def describe_content(data: bytes) -> str:
    """Return what `data` seems to be, for an error."""
    pem = _PEM.search(data)
    if pem:
        return f"PEM `{pem.group(1).decode('ascii')}`"
    if not data:
        return "an empty file"
    if is_pgp_secret(data) or data[0] in _PGP_PUBLIC:
        return "an OpenPGP keyring"
    if is_token_key(data):
        return "YAML of a key in a PKCS #11 token"
    if data.lstrip()[:1] == b"{":
        return "JSON"
    return "DER of something else" if data[0] == 0x30 else "no known kind of key"


def _private(load: Callable[..., object], data: bytes, password: bytes | None, path: str) -> PrivateKey:
    # Whether the factors of a key of one's own are primes is asked when it is made; here it would take a tenth of a
    # second. That its numbers belong together is asked below.
    load = partial(load, unsafe_skip_rsa_key_validation=True)
    try:
        key = load(data, None)
    except TypeError as err:  # the key is encrypted
        if password is None:
            raise Refused(
                f"{_CODE}.password", "private key is protected by a password", path=path, hint="FILE:file=PASSWORDFILE"
            ) from err
        try:
            key = load(data, password)
        except (ValueError, TypeError) as wrong:  # TypeError: an empty password
            raise Refused(f"{_CODE}.password", "password does not open the private key", path=path) from wrong
    except (ValueError, UnsupportedAlgorithm) as err:
        raise _unfit(_PRIVATE, describe_content(data), path) from err
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise _unfit(_PRIVATE, f"a key of kind {type(key).__name__.strip('_')}", path)
    _usable_public(key.public_key(), path)
    if isinstance(key, rsa.RSAPrivateKey) and not _belongs_together(key.private_numbers()):
        raise _unfit(_PRIVATE, "numbers that are no RSA key", path)
    return key


def _belongs_together(key: rsa.RSAPrivateNumbers) -> bool:
    """Whether the numbers of an RSA key satisfy RFC 8017, section 3.2."""
    p, q, e = key.p, key.q, key.public_numbers.e
    return (
        min(p, q) > 1
        and p * q == key.public_numbers.n
        and key.d * e % (p - 1) == key.d * e % (q - 1) == 1
        and (key.dmp1, key.dmq1) == (key.d % (p - 1), key.d % (q - 1))
        and key.iqmp * q % p == 1
    )


def _usable_public(key: object, path: str) -> PublicKey:
    if isinstance(key, rsa.RSAPublicKey) and _RSA_BITS[0] <= key.key_size <= _RSA_BITS[1]:
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, tuple(kind for kind, _ in CURVES.values())):
        return key
    actual = f"{getattr(key, 'key_size', '')} {type(key).__name__.strip('_')}".strip()
    raise _unfit("RSA of 1024 to 16384 bits, or P-256, P-384, P-521", actual, path)


def _loaded(load: Callable[[], _T], expected: str, data: bytes, path: str) -> _T:
    try:
        return load()
    except (ValueError, UnsupportedAlgorithm) as err:
        raise _unfit(expected, describe_content(data), path) from err


def _text(password: bytes, path: str) -> str:
    try:
        return password.decode()
    except UnicodeDecodeError as err:
        raise Refused(f"{_CODE}.password", "password of an OpenPGP key is UTF-8", path=path) from err


def _jwk_algorithm(jwk: JSONObject, path: str) -> str:
    algorithm = jwk.get("alg", "")
    fits = {"RSA": WRAPPING_ALGORITHMS[:2], "EC": WRAPPING_ALGORITHMS[2:]}[jwk["kty"]]
    if algorithm and algorithm not in fits:
        raise _unfit(" or ".join(fits), f"a JWK for {str(algorithm)[:40]}", path)
    return str(algorithm)


def _jwk_id(jwk: JSONObject) -> str:
    key_id = jwk.get("kid", "")
    return key_id if isinstance(key_id, str) and len(key_id) <= 256 else ""


def _jwk_public(jwk: JSONObject, path: str) -> PublicKey:
    try:
        if jwk.get("kty") == "RSA":
            numbers = rsa.RSAPublicNumbers(_jwk_number(jwk, "e", path), _jwk_number(jwk, "n", path))
            return _usable_public(numbers.public_key(), path)
        return _jwk_ec_numbers(jwk, path).public_key()
    except ValueError as err:
        raise _unfit("a JWK of RSA or EC", "numbers that are no key", path) from err


def _jwk_private(jwk: JSONObject, path: str) -> PrivateKey:
    public = _jwk_public(jwk, path)
    if "d" not in jwk:
        raise _unfit(_PRIVATE, "a public JWK", path)
    secret = _jwk_number(jwk, "d", path)
    try:
        if isinstance(public, ec.EllipticCurvePublicKey):
            return ec.EllipticCurvePrivateNumbers(secret, public.public_numbers()).private_key()
        numbers = public.public_numbers()
        if "p" in jwk:
            p, q = _jwk_number(jwk, "p", path), _jwk_number(jwk, "q", path)
        else:
            p, q = rsa.rsa_recover_prime_factors(numbers.n, numbers.e, secret)
        return rsa.RSAPrivateNumbers(
            p=p,
            q=q,
            d=secret,
            dmp1=rsa.rsa_crt_dmp1(secret, p),
            dmq1=rsa.rsa_crt_dmq1(secret, q),
            iqmp=rsa.rsa_crt_iqmp(p, q),
            public_numbers=numbers,
        ).private_key()
    except (ValueError, ZeroDivisionError) as err:
        raise _unfit("a JWK of RSA or EC", "numbers that are no key", path) from err


def _jwk_ec_numbers(jwk: JSONObject, path: str) -> ec.EllipticCurvePublicNumbers:
    curve = str(jwk.get("crv", ""))
    if jwk.get("kty") != "EC" or curve not in CURVES:
        kind = f"{str(jwk.get('kty'))[:20]} {curve[:20]}".strip()
        raise _unfit("RSA, or EC on P-256, P-384, P-521", f"a JWK of {kind}", path)
    return ec.EllipticCurvePublicNumbers(_jwk_number(jwk, "x", path), _jwk_number(jwk, "y", path), CURVES[curve][0]())


def _jwk_number(jwk: JSONObject, name: str, path: str) -> int:
    value: Any = jwk.get(name)  # Any: JSON
    if not isinstance(value, str) or not value:
        raise _unfit(f"a JWK with `{name}`", "a JWK without it", path)
    return int.from_bytes(decode_b64url(value, path=name, ceiling=_RSA_MEMBER_BYTES), "big")


def _unfit(expected: str, actual: str, path: str) -> Refused:
    return Refused(f"{_CODE}.unfit", "key file holds something else", path=path[:200], expected=expected, actual=actual)
