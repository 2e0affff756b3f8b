"""Root keys in KV version 2 of HashiCorp Vault or OpenBao: `vault://host[:port]/mount/path?token-file=F&ca-file=C`.

API of both: https://openbao.org/api-docs/secret/kv/kv-v2/. The secret has one member per root key, named by its
identity, of base64. It is written by check-and-set, so that two replicas that make a root key at once cannot both
win. The root key is fetched for each use and not kept; who can read the secret has the root key, so the token's
policy should allow `read`, `create` and `update` on this one path and nothing else.

TLS always, by the CAs in `ca-file` or the system's. The token is read from its file with every request: an agent may
renew it there. Optional: `namespace`. Redirects are refused: a standby forwards by itself.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final

import httpx
import msgspec

from cloister.crypto.keystore.envelope import identity_of, require_root, unwrap_with, wrap_under
from cloister.crypto.keystore.interface import ROOT_KEY_BYTES, UnsealProgress, denied, unreachable
from cloister.crypto.keystore.uri import StoreAddress, bad_address, read_secret, split_address
from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.wire.base64 import decode_b64, encode_b64
from cloister.wire.limits import KIB

PORT: Final = 8200
ANSWER_BYTES: Final = 64 * KIB
_MOST_ROOTS: Final = 16
_ATTEMPTS: Final = 3


class _Metadata(msgspec.Struct, frozen=True):
    version: int


class _Secret(msgspec.Struct, frozen=True):
    metadata: _Metadata
    data: dict[str, str] | None = None  # null: this version was deleted


class _Answer(msgspec.Struct, frozen=True):
    data: _Secret


def from_uri(uri: str, *, seconds: float) -> VaultKeyStore:
    """Open `vault://host[:port]/mount/path?..`.

    Raises:
        FormatRefused: `crypto.keystore.uri`.
        Unavailable: the CA file cannot be read (`crypto.keystore.unreachable`).
    """
    address = split_address(uri, parameters=("token-file", "ca-file", "namespace"))
    mount, _, path = address.path.strip("/").partition("/")
    parts = [mount, *path.split("/")]
    if not address.host or not all(part and part not in (".", "..") and part.isprintable() for part in parts):
        raise bad_address("host, mount and path are needed", expected="vault://host/mount/path?token-file=F")
    if "token-file" not in address.parameters:
        raise bad_address("the token is read from a file", expected="?token-file=F")
    return VaultKeyStore(address, mount, path, seconds=seconds)


class VaultKeyStore:
    """Root keys in one KV secret; a `KeyStore`."""

    sealed: Final = False
    sealable: Final = False

    def __init__(self, address: StoreAddress, mount: str, path: str, *, seconds: float) -> None:
        host = f"[{address.host}]" if ":" in address.host else address.host
        self._base = f"https://{host}:{address.port or PORT}"
        self._route = f"/v1/{mount}/data/{path}"
        self.place: Final = f"vault://{host}:{address.port or PORT}/{mount}/{path}"
        self._token_file = Path(address.parameters["token-file"])
        self._namespace = address.parameters.get("namespace", "")
        context = _tls_context(self.place, address.parameters.get("ca-file"))
        # The environment's proxies and netrc have no say in where a root key goes. Asked every few minutes: no
        # connection is kept.
        self._client = httpx.Client(
            base_url=self._base,
            verify=context,
            timeout=seconds,
            limits=httpx.Limits(max_keepalive_connections=0),
            follow_redirects=False,
            trust_env=False,
        )

    def __repr__(self) -> str:
        return f"VaultKeyStore({self.place})"

    def progress(self) -> UnsealProgress:
        """Never sealed: Vault has its own seal, and answers 503 under it."""
        return UnsealProgress(sealed=False, given=0, needed=0)

    def unseal(self, secret: str) -> UnsealProgress:
        """Nothing to give here."""
        return self.progress()

    def identities(self) -> tuple[str, ...]:
        """Return the root keys in the secret."""
        return tuple(self._read()[0])

    def create(self) -> str:
        """Add a root key to the secret, by check-and-set."""
        root = secrets.token_bytes(ROOT_KEY_BYTES)
        identity = identity_of(root)
        self._change(lambda roots: {**roots, identity: root})
        return identity

    def wrap(self, identity: str, purpose: str, key: bytes) -> bytes:
        """Return the wrapped key."""
        return wrap_under(require_root(self._read()[0], self.place, identity), purpose, key)

    def unwrap(self, purpose: str, wrapped: bytes) -> bytes:
        """Return the key; see `KeyStore.unwrap`."""
        return unwrap_with(self._read()[0], self.place, purpose, wrapped)

    def settle(self, identity: str, forget: Sequence[str]) -> None:
        """Remove root keys from the secret. Vault keeps older versions of it as its mount says."""

        def without(roots: dict[str, bytes]) -> dict[str, bytes]:
            require_root(roots, self.place, identity)
            return {name: root for name, root in roots.items() if name == identity or name not in forget}

        if set(self._read()[0]) & set(forget) - {identity}:
            self._change(without)

    def check(self) -> None:
        """Return if the secret can be read."""
        self._read()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _change(self, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
        for attempt in range(_ATTEMPTS):
            roots, version = self._read()
            changed = change(roots)
            if len(changed) > _MOST_ROOTS:
                raise Refused("crypto.keystore.conflict", "the secret holds too many root keys", path=self.place)
            body = {
                "options": {"cas": version},
                "data": {identity: encode_b64(root) for identity, root in changed.items()},
            }
            answer = self._ask("POST", body)
            if answer.status_code == HTTPStatus.OK:
                return
            # A failed check-and-set is 400, the only one that a well-formed write can get.
            if answer.status_code != HTTPStatus.BAD_REQUEST or attempt == _ATTEMPTS - 1:
                break
        raise Unavailable(
            "crypto.keystore.conflict",
            "the secret could not be written",
            path=self.place,
            actual=f"status {answer.status_code}",
            hint="another process writes it, or the mount is not KV version 2",
        )

    def _read(self) -> tuple[dict[str, bytes], int]:
        """Return the root keys by identity, and the version of the secret; 0 when there is none."""
        answer = self._ask("GET", None)
        if answer.status_code == HTTPStatus.NOT_FOUND and not _is_secret(answer.content):
            return {}, 0
        try:
            secret = msgspec.json.decode(answer.content, type=_Answer).data
            roots = {
                identity: decode_b64(text, path=self.place, ceiling=ROOT_KEY_BYTES)
                for identity, text in (secret.data or {}).items()
            }
        except (msgspec.MsgspecError, UnicodeDecodeError, FormatRefused) as err:
            raise unreachable(self.place, "its answer is not a KV version 2 secret of root keys") from err
        if any(len(root) != ROOT_KEY_BYTES or identity_of(root) != identity for identity, root in roots.items()):
            raise FormatRefused(
                "crypto.keystore.malformed",
                "the secret does not hold root keys",
                path=self.place,
                hint="name a path of its own; the service makes the secret",
            )
        return roots, secret.metadata.version

    def _ask(self, method: str, body: object) -> httpx.Response:
        headers = {"X-Vault-Token": read_secret(self._token_file, "token"), "X-Vault-Request": "true"}
        if self._namespace:
            headers["X-Vault-Namespace"] = self._namespace
        try:
            answer = self._client.request(method, self._route, json=body, headers=headers)
        except (httpx.HTTPError, ssl.SSLError, UnicodeError) as err:
            raise unreachable(self.place, type(err).__name__) from err
        status = answer.status_code
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise denied(self.place, f"status {status}")
        accepted = (HTTPStatus.OK, HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND)
        if status not in accepted or (status == HTTPStatus.BAD_REQUEST and method == "GET"):
            raise unreachable(self.place, f"status {status}")
        if len(answer.content) > ANSWER_BYTES:
            raise unreachable(self.place, "its answer is too long")
        return answer


def _is_secret(body: bytes) -> bool:
    """A deleted version is 404, too, but says which: the next write has to name it."""
    try:
        msgspec.json.decode(body, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return True


def _tls_context(place: str, ca_file: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as err:
        raise unreachable(place, "its CA file cannot be read") from err
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
