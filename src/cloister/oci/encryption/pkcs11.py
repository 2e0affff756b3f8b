"""Layer keys wrapped by RSA keys in PKCS #11 tokens, as ocicrypt writes and reads them (crypto/pkcs11).

One JSON document, `{"version":0,"recipients":[{"version":0,"blob":"..","hash":"sha256"}]}`, with an RSA-OAEP
ciphertext (RFC 8017, section 7.1, empty label) of the private options for each recipient. No `hash` means SHA-1. The
options are 193 bytes long: with SHA-256 a key of 2048 bits is too short for them. `OCICRYPT_OAEP_HASHALG=sha1` asks
for SHA-1, which SoftHSM's tokens need.

A key is named by YAML, `pkcs11: {uri: pkcs11:..}` and `module: {env: {..}}` (RFC 7512); a recipient may also be a PEM
file of the public key. A module is code in this process: only those run that the configuration of ocicrypt allows
(`OCICRYPT_CONFIG`, `ocicrypt.conf`: `pkcs11: {module-directories, allowed-module-paths}`; `internal` allows the
usual directories). Needs the extra `pkcs11`. Trusts the module and the file that allows it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from cloister.errors import ImageRefused, Refused, Unavailable
from cloister.oci.document import Members, encode_document, parse_document
from cloister.oci.encryption.keyfiles import TokenKeyFile, is_token_key, parse_recipient_key, read_key_file
from cloister.oci.encryption.options import unwrap_failed
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.limits import KIB, WRAPPED_KEY_BYTES

SCHEME: Final = "pkcs11"
CONFIG_VARIABLE: Final = "OCICRYPT_CONFIG"
HASH_VARIABLE: Final = "OCICRYPT_OAEP_HASHALG"
_CODE: Final = "oci.encryption.pkcs11"
_VERSION: Final = 0
_RECIPIENTS: Final = 32
_YAML_BYTES: Final = 64 * KIB
_YAML_DEPTH: Final = 8  # real ones have three
_PIN_BYTES: Final = 4 * KIB
_BLOB_BYTES: Final = 2 * KIB  # a key of 16384 bits
_MINIMUM_RSA_BITS: Final = 2048
_HASHES: Final[Mapping[str, type[hashes.HashAlgorithm]]] = {"sha256": hashes.SHA256, "sha1": hashes.SHA1}
_DEFAULT_HASH: Final = "sha256"
_UNNAMED_HASH: Final = "sha1"  # what ocicrypt meant before it named the hash
_PATH_ATTRIBUTES: Final = frozenset((
    "token", "object", "id", "slot-id", "serial", "manufacturer", "model", "type", "slot-manufacturer",
    "slot-description", "library-manufacturer", "library-description", "library-version",
))  # fmt: skip
_QUERY_ATTRIBUTES: Final = frozenset(("module-path", "module-name", "pin-value", "pin-source"))
_USUAL_DIRECTORIES: Final = (
    "/usr/lib64/pkcs11/",
    "/usr/lib/pkcs11/",
    "/usr/local/lib/pkcs11/",
    "/usr/lib/softhsm/",
    "/usr/lib/x86_64-linux-gnu/softhsm/",
    "/usr/lib/aarch64-linux-gnu/softhsm/",
    "/usr/lib/x86_64-linux-gnu/pkcs11/",
    "/usr/lib/aarch64-linux-gnu/pkcs11/",
)
_ONE_AT_A_TIME: Final = threading.Lock()  # a module reads the environment of the process


_T = TypeVar("_T")


class ModulePolicy(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """Where modules are looked for, and which may run: paths, or directories with a slash at the end."""

    module_directories: tuple[str, ...] = ()
    allowed_module_paths: tuple[str, ...] = ()


class _Config(msgspec.Struct, frozen=True, kw_only=True):
    pkcs11: ModulePolicy = ModulePolicy()


class _KeyAddress(msgspec.Struct, frozen=True, kw_only=True):
    uri: str


class _Module(msgspec.Struct, frozen=True, kw_only=True):
    env: dict[str, str | int] = {}


class _KeyYAML(msgspec.Struct, frozen=True, kw_only=True):
    pkcs11: _KeyAddress
    module: _Module | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKey:
    """A key in a token: by label, id or both, in a token by its label or slot."""

    module: str
    token: str
    slot: int | None
    label: str
    key_id: bytes
    pin: str | None = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)


class PKCS11Wrapper:
    """Writes one document for all recipients; a `KeyWrapper`. Public keys are used outside of tokens."""

    scheme: Final = SCHEME

    def __init__(self, recipients: Sequence[rsa.RSAPublicKey], *, hash_name: str = "") -> None:
        """Take the recipients.

        Args:
            recipients: their public keys.
            hash_name: `sha256`, `sha1` or nothing for what the environment says.

        Raises:
            ImageRefused: `oci.encryption.pkcs11.too_many`, `oci.encryption.pkcs11.hash`.
        """
        if not 0 < len(recipients) <= _RECIPIENTS:
            raise ImageRefused(f"{_CODE}.too_many", "too many recipients", expected=f"1 to {_RECIPIENTS}")
        self._hash = (hash_name or os.environ.get(HASH_VARIABLE, "") or _DEFAULT_HASH).lower()
        self._oaep = _oaep(self._hash)
        self._recipients = tuple(recipients)

    def wrap(self, options: bytes) -> bytes:
        """Return the document.

        Raises:
            ImageRefused: `oci.encryption.pkcs11.key_too_short`.
        """
        overhead = 2 * _HASHES[self._hash]().digest_size + 2
        shortest = min(key.key_size for key in self._recipients)
        if shortest < _MINIMUM_RSA_BITS or shortest // 8 - overhead < len(options):
            raise ImageRefused(
                f"{_CODE}.key_too_short",
                "RSA key is too short for a layer key",
                expected=f"{max(_MINIMUM_RSA_BITS, 8 * (len(options) + overhead))} bits or more",
                actual=f"{shortest} bits with {self._hash}",
                hint=f"use a key of 3072 bits, or {HASH_VARIABLE}=sha1",
            )
        return encode_document(
            {
                "version": _VERSION,
                "recipients": [
                    {
                        "version": _VERSION,
                        "blob": encode_b64(key.encrypt(options, self._oaep)),
                        "hash": self._hash,
                    }
                    for key in self._recipients
                ],
            }
        )


class PKCS11Unwrapper:
    """Opens documents with one key in a token; a `KeyUnwrapper`."""

    scheme: Final = SCHEME

    def __init__(self, key: TokenKey) -> None:
        self._key = key

    def unwrap(self, element: bytes) -> bytes:
        """Try every recipient; see `KeyUnwrapper.unwrap`.

        Raises:
            ImageRefused: `oci.encryption.unwrap_failed`, `oci.encryption.pkcs11.*`.
            FormatRefused: `wire.base64.*`.
            Refused, Unavailable: as `token_session`.
        """
        blobs = parse_blobs(element)
        with token_session(self._key) as session:
            key = _find(session, self._key, private=True)
            for blob, hash_name in blobs:
                plain = _decrypted(key, blob, hash_name)
                if plain:
                    return plain
        raise unwrap_failed(SCHEME)


def parse_blobs(element: bytes) -> list[tuple[bytes, str]]:
    """Return ciphertext and name of the hash of each recipient.

    Raises:
        ImageRefused: `oci.encryption.pkcs11.*`.
        FormatRefused: `wire.base64.*`.
    """
    document = Members(parse_document(element, ceiling=WRAPPED_KEY_BYTES, code=_CODE), path=SCHEME, code=_CODE)
    document.only("version", "recipients")
    _require_version(document)
    found = []
    for number, entry in enumerate(document.array("recipients", ceiling=_RECIPIENTS, required=True)):
        recipient = Members(entry, path=f"{SCHEME}.recipients[{number}]", code=_CODE)
        recipient.only("version", "blob", "hash")
        _require_version(recipient)
        hash_name = recipient.text("hash", "") or _UNNAMED_HASH
        _oaep(hash_name)
        found.append((decode_b64(recipient.text("blob"), path=recipient.place("blob"), ceiling=_BLOB_BYTES), hash_name))
    return found


def open_pkcs11_recipient(path: str) -> rsa.RSAPublicKey:
    """Return the RSA key of a recipient: of a PEM, DER or JWK file, or read from the token that YAML names.

    Raises:
        Refused: `oci.encryption.key_file.*`, `oci.encryption.pkcs11.*`.
        Unavailable: the token does not answer.
    """
    data = read_key_file(path)
    if not is_token_key(data):
        key = parse_recipient_key(data, path=path).key
        if not isinstance(key, rsa.RSAPublicKey):
            raise Refused(f"{_CODE}.key", "not an RSA key", path=path[:200], expected="RSA")
        return key
    named = open_token_key(TokenKeyFile(data=data))
    with token_session(named) as session:
        return _public_key(_find(session, named, private=False))


def open_token_key(file: TokenKeyFile) -> TokenKey:
    """Parse the YAML of a key by the module policy of this user.

    Raises:
        Refused: `oci.encryption.pkcs11.*`, `oci.encryption.key_file.*`.
    """
    return parse_token_key(file.data, read_module_policy())


def read_module_policy() -> ModulePolicy:
    """Return which modules this user allows: `$OCICRYPT_CONFIG`, `$XDG_CONFIG_HOME/ocicrypt.conf`,
    `~/.config/ocicrypt.conf`, `/etc/ocicrypt.conf`, the first that is there.

    Raises:
        Refused: `oci.encryption.pkcs11.no_config`: there is none; `oci.encryption.key_file.*`.
    """
    named = os.environ.get(CONFIG_VARIABLE, "")
    if named == "internal":
        return ModulePolicy(module_directories=_USUAL_DIRECTORIES, allowed_module_paths=_USUAL_DIRECTORIES)
    places = [os.environ.get("XDG_CONFIG_HOME", ""), str(Path.home() / ".config"), "/etc"]
    for path in [named] if named else [f"{place}/ocicrypt.conf" for place in places if place]:
        if named or Path(path).exists():
            return _parse_yaml(read_key_file(path), _Config).pkcs11
    raise Refused(
        f"{_CODE}.no_config",
        "no configuration says which PKCS #11 modules may run",
        expected=f"{CONFIG_VARIABLE}=FILE, or ocicrypt.conf in ~/.config or /etc",
        hint=f"{CONFIG_VARIABLE}=internal allows the usual directories",
    )


def parse_token_key(data: bytes, policy: ModulePolicy) -> TokenKey:
    """Parse the YAML of a key, and find its module among those that `policy` allows. Reads directories and a PIN file.

    Raises:
        Refused: `oci.encryption.pkcs11.yaml`, `oci.encryption.pkcs11.uri`, `oci.encryption.pkcs11.module`,
            `oci.encryption.key_file.*` of the PIN's file.
    """
    parsed = _parse_yaml(data, _KeyYAML)
    scheme, _, rest = parsed.pkcs11.uri.partition(":")
    path, _, query = rest.partition("?")
    attributes = _attributes(path, ";", _PATH_ATTRIBUTES)
    parameters = _attributes(query, "&", _QUERY_ATTRIBUTES)
    slot = attributes.get("slot-id", b"")
    if scheme != "pkcs11" or not {"object", "id"} & attributes.keys() or not {"token", "slot-id"} & attributes.keys():
        raise _bad_uri("object or id, and token or slot-id are needed")
    if slot and not (slot.isdigit() and len(slot) <= 10):
        raise _bad_uri("slot-id is no number")
    return TokenKey(
        module=_module_path(parameters, policy),
        token=_text(attributes.get("token", b"")),
        slot=int(slot) if slot else None,
        label=_text(attributes.get("object", b"")),
        key_id=attributes.get("id", b""),
        pin=_pin(parameters),
        environment={name: str(value) for name, value in (parsed.module or _Module()).env.items()},
    )


@contextmanager
def token_session(key: TokenKey) -> Iterator[Any]:  # Any: of an optional library
    """Give a session with the token of `key`, one at a time in this process.

    Raises:
        Refused: `oci.encryption.pkcs11.library` without the extra, `oci.encryption.pkcs11.pin`.
        Unavailable: `oci.encryption.pkcs11.token`: the module or token does not answer.
    """
    try:
        import pkcs11
    except ImportError as err:
        raise _no_library("python-pkcs11") from err
    with _ONE_AT_A_TIME, _environment(key.environment):
        try:
            with _token(pkcs11.lib(key.module), key).open(user_pin=key.pin) as session:
                yield session
        except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange, pkcs11.PinLocked) as err:
            raise Refused(f"{_CODE}.pin", "token does not accept the PIN", actual=type(err).__name__) from err
        except (pkcs11.PKCS11Error, RuntimeError, OSError) as err:
            raise Unavailable(
                f"{_CODE}.token", "token does not answer", path=key.token or f"slot {key.slot}", actual=_said(err)
            ) from err


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the time of a module's work, as ocicrypt does."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _token(module: Any, key: TokenKey) -> Any:  # Any: of an optional library
    if key.slot is not None:
        for slot in module.get_slots(token_present=True):
            if slot.slot_id == key.slot:
                return slot.get_token()
    else:
        for token in module.get_tokens(token_label=key.token):
            return token
    raise Unavailable(f"{_CODE}.token", "module shows no such token", path=key.token or f"slot {key.slot}")


def _find(session: Any, named: TokenKey, *, private: bool) -> Any:  # Any: of an optional library
    from pkcs11 import Attribute, KeyType, ObjectClass

    wanted: dict[Any, Any] = {  # Any: of an optional library
        Attribute.CLASS: ObjectClass.PRIVATE_KEY if private else ObjectClass.PUBLIC_KEY,
        Attribute.KEY_TYPE: KeyType.RSA,
    }
    if named.label:
        wanted[Attribute.LABEL] = named.label
    if named.key_id:
        wanted[Attribute.ID] = named.key_id
    found = list(session.get_objects(wanted))
    if len(found) != 1:
        raise Refused(
            f"{_CODE}.key",
            "token does not hold one such RSA key",
            path=named.label or named.key_id.hex(),
            expected="1 private key" if private else "1 public key",
            actual=str(len(found)),
            hint="private keys are seen with a PIN only: pin-source=file:/path in the address" if private else "",
        )
    return found[0]


def _public_key(found: Any) -> rsa.RSAPublicKey:  # Any: of an optional library
    from pkcs11 import Attribute

    modulus, exponent = (int.from_bytes(found[name], "big") for name in (Attribute.MODULUS, Attribute.PUBLIC_EXPONENT))
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError as err:
        raise Refused(f"{_CODE}.key", "token's public key is no RSA key") from err


def _decrypted(key: Any, blob: bytes, hash_name: str) -> bytes:  # Any: of an optional library
    """Return what is in `blob`, nothing when it is another key's.

    Raises:
        Refused: `oci.encryption.pkcs11.hash`: the token cannot do this hash.
    """
    import pkcs11

    hashed, mask = {
        "sha1": (pkcs11.Mechanism.SHA_1, pkcs11.MGF.SHA1),
        "sha256": (pkcs11.Mechanism.SHA256, pkcs11.MGF.SHA256),
    }[hash_name]
    try:
        # CKZ_DATA_SPECIFIED with an empty label: None would be read as no source by some modules.
        return bytes(key.decrypt(blob, mechanism=pkcs11.Mechanism.RSA_PKCS_OAEP, mechanism_param=(hashed, mask, None)))
    except (pkcs11.ArgumentsBad, pkcs11.MechanismParamInvalid, pkcs11.MechanismInvalid) as err:
        raise Refused(
            f"{_CODE}.hash",
            "token cannot open a layer key wrapped with this hash",
            actual=hash_name,
            hint=f"encrypt with {HASH_VARIABLE}=sha1; SoftHSM knows no other",
        ) from err
    except (
        pkcs11.EncryptedDataInvalid,
        pkcs11.EncryptedDataLenRange,
        pkcs11.GeneralError,  # what SoftHSM says of a padding that does not hold
        pkcs11.FunctionFailed,
    ):
        return b""


def _module_path(parameters: Mapping[str, bytes], policy: ModulePolicy) -> str:
    path, name = _text(parameters.get("module-path", b"")), _text(parameters.get("module-name", b""))
    candidates = [path] if path else []
    if name and not path:
        if "/" in name:
            raise _bad_uri("module-name is no path")
        names = (name, f"{name}.so", f"lib{name}.so")
        candidates = [str(Path(place) / file) for place in policy.module_directories for file in names]
        candidates = [candidate for candidate in candidates if Path(candidate).is_file()]
    for candidate in candidates:
        folder = candidate[: candidate.rfind("/") + 1]
        if candidate.startswith("/") and {candidate, folder} & set(policy.allowed_module_paths):
            return candidate
    raise Refused(
        f"{_CODE}.module",
        "PKCS #11 module is not found among those allowed",
        path=(path or name or "no module-path")[:200],
        expected=", ".join(policy.allowed_module_paths)[:200] or "nothing is allowed",
        hint=f"add it to allowed-module-paths of the file {CONFIG_VARIABLE} names",
    )


def _pin(parameters: Mapping[str, bytes]) -> str | None:
    if "pin-source" in parameters:
        source = _text(parameters["pin-source"]).removeprefix("file://").removeprefix("file:")
        return _text(read_key_file(source)[:_PIN_BYTES].removesuffix(b"\n"))
    return _text(parameters["pin-value"]) if "pin-value" in parameters else None


def _attributes(text: str, separator: str, known: frozenset[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for pair in filter(None, text.split(separator)):
        name, mark, value = pair.partition("=")
        if name not in known or name in found or not mark:
            raise _bad_uri(f"attribute {name[:40]} is unknown, or there twice")
        found[name] = unquote_to_bytes(value)
    return found


def _parse_yaml(data: bytes, kind: type[_T]) -> _T:
    if len(data) > _YAML_BYTES:
        raise Refused(f"{_CODE}.yaml", "YAML is too long", expected=f"at most {_YAML_BYTES} bytes")
    try:
        _require_shallow(data)
        return msgspec.yaml.decode(data, type=kind)
    except ImportError as err:
        raise _no_library("PyYAML") from err
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as err:
        raise Refused(
            f"{_CODE}.yaml",
            "not the YAML of ocicrypt",
            expected="pkcs11: {uri: pkcs11:..}, module: {env: {..}}; pkcs11: {allowed-module-paths: [..]}",
            actual=_said(err),
        ) from err


def _require_shallow(data: bytes) -> None:
    """Refuse what nests or refers to itself: PyYAML follows it on the C stack, to the end of the process.

    Raises:
        ValueError: it does, or is no YAML.
        ImportError: without PyYAML.
    """
    import yaml

    depth = 0
    try:
        for event in yaml.parse(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _YAML_DEPTH or isinstance(event, yaml.AliasEvent):
                raise ValueError("nests too deep, or holds an alias")
    except yaml.YAMLError as err:
        raise ValueError(str(err)) from err


def _require_version(members: Members) -> None:
    version = members.unsigned("version", ceiling=2**32)
    if version != _VERSION:
        raise ImageRefused(
            f"{_CODE}.version",
            "version of the wrapped layer key is not supported",
            path=members.place("version"),
            expected=str(_VERSION),
            actual=str(version),
        )


def _oaep(hash_name: str) -> padding.OAEP:
    if hash_name not in _HASHES:
        raise ImageRefused(
            f"{_CODE}.hash", "hash of RSA-OAEP is not supported", expected=" or ".join(_HASHES), actual=hash_name[:40]
        )
    digest = _HASHES[hash_name]
    return padding.OAEP(padding.MGF1(digest()), digest(), None)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as err:
        raise _bad_uri("an attribute is not UTF-8") from err


def _bad_uri(reason: str) -> Refused:
    return Refused(
        f"{_CODE}.uri",
        f"address of a key in a token is not usable: {reason}",
        expected="pkcs11:token=T;object=O?module-path=M&pin-source=file:P",
    )


def _no_library(name: str) -> Refused:
    return Refused(f"{_CODE}.library", f"{name} is not installed", hint="pip install 'cloister[pkcs11]'")


def _said(err: Exception) -> str:
    return (str(err).splitlines() or [""])[0][:120] or type(err).__name__
