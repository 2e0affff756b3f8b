"""Root keys in a hardware security module: `pkcs11:token=T;object=O?module-path=M&pin-source=file:/path`.

RFC 7512 (the address), PKCS #11 2.40 (OASIS), AES-256-GCM in the module (CKM_AES_GCM). Root keys are made inside it,
sensitive and not extractable; this process hands in a data key and gets it back wrapped. Identity of a root key: its
CKA_ID when that has 8 bytes, as those made here have; else the first 8 bytes of SHA-256 of label and CKA_ID.

A module may hang or vanish. Each call runs in a thread of its own and is given up after its time; the next one opens
a new session, and initialises the module anew if it has to. A refused PIN is not tried again until its file changes:
three tries lock most modules. `settle` destroys nothing: older backups may need an older root key, and only a person
can know (`pkcs11-tool --delete-object`).

Needs the extra `pkcs11`. Trusts the module: it is code in this process, named by the owner.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, TypeVar

from cloister.crypto.aead import AES256_KEY_BYTES, GCM_NONCE_BYTES
from cloister.crypto.keystore.interface import (
    IDENTITY_BYTES,
    UnsealProgress,
    denied,
    join_wrapped,
    not_authentic,
    split_wrapped,
    unknown_root,
    unreachable,
    wrapped_header,
)
from cloister.crypto.keystore.uri import bad_address, read_secret, split_parameters
from cloister.errors import CloisterError, Refused, Unavailable

_T = TypeVar("_T")
_PATH: Final = ("token", "object", "serial", "manufacturer", "model", "type")
_QUERY: Final = ("module-path", "pin-source")
_AES_BITS: Final = 256
_MODULES: Final[dict[str, threading.Lock]] = {}  # a module is one thing per process, whoever uses it
_MODULES_LOCK: Final = threading.Lock()


def from_uri(uri: str, *, seconds: float) -> PKCS11KeyStore:
    """Open `pkcs11:..`; the module is loaded with the first use.

    Raises:
        FormatRefused: `crypto.keystore.uri`.
        Unavailable: the library is not installed (`crypto.keystore.library`).
    """
    try:
        import pkcs11
    except ImportError as err:
        raise Unavailable(
            "crypto.keystore.library",
            "python-pkcs11 is not installed",
            hint="pip install 'cloister[pkcs11]'",
        ) from err
    del pkcs11
    path, _, query = uri.partition(":")[2].partition("?")
    attributes = split_parameters(path, ";", _PATH)
    parameters = split_parameters(query, "&", _QUERY)
    if not {"token", "object"} <= attributes.keys() or attributes.get("type", "secret-key") != "secret-key":
        raise bad_address("token and object are needed", expected="pkcs11:token=T;object=O?module-path=M&pin-source=P")
    if parameters.keys() != set(_QUERY):
        raise bad_address("module-path and pin-source are needed; a PIN does not belong into an address")
    return PKCS11KeyStore(attributes, parameters, seconds=seconds)


class PKCS11KeyStore:
    """Root keys of one label in one token; a `KeyStore`."""

    sealed: Final = False
    sealable: Final = False

    def __init__(self, attributes: dict[str, str], parameters: dict[str, str], *, seconds: float) -> None:
        self._attributes = attributes
        self._label = attributes["object"]
        self._module_path = parameters["module-path"]
        self._pin_file = Path(parameters["pin-source"].removeprefix("file://").removeprefix("file:"))
        self._seconds = seconds
        self.place: Final = f"pkcs11:token={attributes['token']};object={self._label}"
        with _MODULES_LOCK:
            self._module = _MODULES.setdefault(self._module_path, threading.Lock())
        self._session: Any = None  # Any: of an optional library
        self._failed = False
        self._refused_pin = b""

    def __repr__(self) -> str:
        return f"PKCS11KeyStore({self.place})"

    def progress(self) -> UnsealProgress:
        """Never sealed: the PIN opens it."""
        return UnsealProgress(sealed=False, given=0, needed=0)

    def unseal(self, secret: str) -> UnsealProgress:
        """Nothing to give here."""
        return self.progress()

    def identities(self) -> tuple[str, ...]:
        """Return the AES keys of this label in the token."""
        return self._call(lambda session: tuple(self._keys(session)))

    def create(self) -> str:
        """Generate another AES-256 key in the token."""
        from pkcs11 import Attribute, KeyType

        identity = os.urandom(IDENTITY_BYTES)

        def work(session: Any) -> str:  # Any: of an optional library
            session.generate_key(
                KeyType.AES,
                _AES_BITS,
                id=identity,
                label=self._label,
                store=True,
                template={
                    Attribute.SENSITIVE: True,
                    Attribute.EXTRACTABLE: False,
                    Attribute.ENCRYPT: True,
                    Attribute.DECRYPT: True,
                    Attribute.WRAP: False,
                    Attribute.UNWRAP: False,
                },
            )
            return identity.hex()

        return self._call(work)

    def wrap(self, identity: str, purpose: str, key: bytes) -> bytes:
        """Return the wrapped key."""
        nonce = os.urandom(GCM_NONCE_BYTES)

        def work(session: Any) -> bytes:  # Any: of an optional library
            return bytes(self._key(session, identity).encrypt(key, **_gcm(identity, nonce, purpose)))

        return join_wrapped(identity, nonce + self._call(work))

    def unwrap(self, purpose: str, wrapped: bytes) -> bytes:
        """Return the key; see `KeyStore.unwrap`."""
        identity, body = split_wrapped(wrapped)
        nonce, sealed = body[:GCM_NONCE_BYTES], body[GCM_NONCE_BYTES:]
        if len(nonce) != GCM_NONCE_BYTES:
            raise not_authentic()

        def work(session: Any) -> bytes:  # Any: of an optional library
            return self._decrypt(self._key(session, identity), sealed, _gcm(identity, nonce, purpose))

        return self._call(work)

    def settle(self, identity: str, forget: Sequence[str]) -> None:
        """Destroys nothing; see the module."""
        self._call(lambda session: self._key(session, identity))

    def check(self) -> None:
        """Return if the token answers and holds a key."""
        self.identities()

    def close(self) -> None:
        """Close the session."""
        if self._session is not None and self._module.acquire(timeout=self._seconds):
            try:
                self._drop()
            finally:
                self._module.release()

    def _decrypt(self, key: Any, sealed: bytes, mechanism: dict[str, Any]) -> bytes:  # Any: of an optional library
        from pkcs11 import exceptions

        wrong = (
            exceptions.EncryptedDataInvalid,
            exceptions.EncryptedDataLenRange,
            exceptions.GeneralError,  # what SoftHSM says of a tag that does not hold
            exceptions.FunctionFailed,
        )
        try:
            plain = bytes(key.decrypt(sealed, **mechanism))
        except wrong as err:
            raise not_authentic() from err
        if len(plain) != AES256_KEY_BYTES:
            raise not_authentic()
        return plain

    def _key(self, session: Any, identity: str) -> Any:  # Any: of an optional library
        keys = self._keys(session)
        if identity not in keys:
            raise unknown_root(identity, self.place, tuple(keys))
        return keys[identity]

    def _keys(self, session: Any) -> dict[str, Any]:  # Any: of an optional library
        from pkcs11 import Attribute, KeyType, ObjectClass

        found = session.get_objects(
            {
                Attribute.CLASS: ObjectClass.SECRET_KEY,
                Attribute.KEY_TYPE: KeyType.AES,
                Attribute.LABEL: self._label,
            }
        )
        return {_identity(self._label, bytes(key[Attribute.ID])): key for key in found}

    def _call(self, work: Callable[[Any], _T]) -> _T:  # Any: of an optional library
        """Run `work` with a session, within the time; a session that broke is replaced once."""
        result: Future[_T] = Future()

        def run() -> None:
            try:
                value = self._attempt(work)
            except BaseException as err:  # noqa: BLE001  handed to the thread that waits
                result.set_exception(err)
            else:
                result.set_result(value)

        if not self._module.acquire(timeout=self._seconds):
            raise unreachable(self.place, "the module hangs")
        # A thread each: one that hangs keeps the module's lock, so that there is never more than one.
        threading.Thread(target=_then_release, args=(run, self._module), name="keystore-pkcs11", daemon=True).start()
        try:
            return result.result(self._seconds)
        except TimeoutError as err:
            raise unreachable(self.place, f"no answer within {self._seconds:g} s") from err

    def _attempt(self, work: Callable[[Any], _T]) -> _T:  # Any: of an optional library
        from pkcs11 import PKCS11Error

        fresh = self._session is None
        try:
            return work(self._connected())
        except Refused as err:
            # A token that was pulled may just look empty; what a fresh look does not find is not there.
            if fresh or err.code != "crypto.keystore.unknown_root":
                raise
            self._drop()
            self._failed = True
        except PKCS11Error as err:
            self._drop()
            self._failed = True
            if fresh:
                raise self._converted(err) from err
        try:
            return work(self._connected())
        except PKCS11Error as err:
            self._drop()
            raise self._converted(err) from err

    def _connected(self) -> Any:  # Any: of an optional library
        import pkcs11

        if self._session is None:
            module = pkcs11.lib(self._module_path)
            if self._failed:  # the module may not have seen that the token came back
                module.reinitialize()
            token = self._token(module)
            pin = self._pin()
            try:
                self._session = token.open(rw=True, user_pin=pin)
            except pkcs11.UserAlreadyLoggedIn:  # another session of this process
                self._session = token.open(rw=True)
            except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange) as err:
                self._refused_pin = _digest(pin)
                raise denied(self.place, "the PIN is wrong") from err
            self._failed = False
        return self._session

    def _token(self, module: Any) -> Any:  # Any: of an optional library
        wanted = self._attributes
        for token in module.get_tokens(token_label=wanted["token"]):
            facts = {
                "serial": token.serial.decode("ascii", "replace"),
                "manufacturer": token.manufacturer_id,
                "model": token.model,
            }
            if all(wanted.get(name, value).rstrip() == value.rstrip() for name, value in facts.items()):
                return token
        self._failed = True
        raise unreachable(self.place, "the module shows no such token")

    def _pin(self) -> str:
        pin = read_secret(self._pin_file, "PIN")
        if self._refused_pin and _digest(pin) == self._refused_pin:
            raise denied(self.place, "the PIN is wrong, and was not changed since")
        return pin

    def _drop(self) -> None:
        from pkcs11 import PKCS11Error

        session, self._session = self._session, None
        if session is not None:
            try:
                session.close()
            except PKCS11Error:
                self._failed = True  # it is gone with its token

    def _converted(self, err: Exception) -> CloisterError:
        import pkcs11

        if isinstance(err, pkcs11.PinLocked | pkcs11.PinExpired | pkcs11.UserPinNotInitialized):
            return denied(self.place, type(err).__name__)
        return unreachable(self.place, type(err).__name__)


def _then_release(run: Callable[[], None], lock: threading.Lock) -> None:
    try:
        run()
    finally:
        lock.release()


def _gcm(identity: str, nonce: bytes, purpose: str) -> dict[str, Any]:  # Any: of an optional library
    from pkcs11 import GCMParams, Mechanism

    associated = wrapped_header(identity) + purpose.encode()
    return {"mechanism": Mechanism.AES_GCM, "mechanism_param": GCMParams(nonce, associated, 128)}


def _identity(label: str, name: bytes) -> str:
    if len(name) == IDENTITY_BYTES:
        return name.hex()
    return hashlib.sha256(label.encode() + b"\0" + name).digest()[:IDENTITY_BYTES].hex()


def _digest(pin: str) -> bytes:
    return hashlib.sha256(b"pin:" + pin.encode()).digest()
