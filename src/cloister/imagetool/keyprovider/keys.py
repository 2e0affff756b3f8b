"""Where the provider has key-encryption keys from: the owner's trust service, a release to this guest, or a file.

The trust service is opened for each key and closed again: a daemon holds no session with it, and a key is in this
process for as long as it takes to use it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from cloister.crypto.aead import AES256_KEY_BYTES
from cloister.errors import CloisterError, Refused, Unavailable
from cloister.oci.encryption.packet import require_kek
from cloister.protocol.resourceuri import ResourcePath

if TYPE_CHECKING:
    from cloister.client.admin import AdminClient

_MISSING: Final = "trust.resource.missing"
_CONFLICT: Final = "trust.resource.conflict"
_NONE: Final = 0  # the version of what is not there


class KEKStore(Protocol):
    """Where key-encryption keys are. Used by several threads at once."""

    def existing(self, path: ResourcePath) -> bytes:
        """Return the key at `path`.

        Raises:
            Refused: there is none, or it is not for us.
            Unavailable: the store cannot be reached.
        """
        ...

    def obtain(self, path: ResourcePath) -> bytes:
        """Return the key at `path`, made and stored when there is none; raises as `existing`."""
        ...


class AdministeredKeys:
    """Keys in a trust service, as its administrator reads and stores them.

    Args:
        open_administration: connects to it.
        made: told of each key that was made and stored.
    """

    def __init__(
        self,
        open_administration: Callable[[], AbstractContextManager[AdminClient]],
        *,
        made: Callable[[ResourcePath], None] = lambda _: None,
    ) -> None:
        self._open = open_administration
        self._made = made

    def existing(self, path: ResourcePath) -> bytes:
        """Return the key at `path`."""
        with self._open() as client:
            return client.get_resource_content(path)

    def obtain(self, path: ResourcePath) -> bytes:
        """Return the key at `path`; of several that make it at once, the service takes one, and all use that."""
        with self._open() as client:
            try:
                return client.get_resource_content(path)
            except Refused as err:
                if err.code != _MISSING:
                    raise
            key = secrets.token_bytes(AES256_KEY_BYTES)
            try:
                client.put_resource(path, key, replaces=_NONE)
            except CloisterError as err:
                if err.code != _CONFLICT:
                    raise
                return client.get_resource_content(path)
            self._made(path)
            return key


class ReleasedKeys:
    """Keys that a key broker releases to this guest, by its evidence. None can be made.

    Args:
        release: asks the broker.
    """

    def __init__(self, release: Callable[[ResourcePath], bytes]) -> None:
        self._release = release

    def existing(self, path: ResourcePath) -> bytes:
        """Return the key at `path`."""
        return self._release(path)

    def obtain(self, path: ResourcePath) -> bytes:
        """Return the key at `path`, when there is one."""
        return self._release(path)


class OneKey:
    """The key in a file, whatever its address is said to be. Nothing is stored anywhere.

    Args:
        key: the key.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def existing(self, path: ResourcePath) -> bytes:
        """Return the key."""
        return self._key

    def obtain(self, path: ResourcePath) -> bytes:
        """Return the key."""
        return self._key


def read_key(path: Path) -> bytes:
    """Return the 32-byte key-encryption key in a file.

    Raises:
        ImageRefused: `oci.encryption.kek_length`, `oci.encryption.sample_kek`.
        Unavailable: it cannot be read (`imagetool.keyprovider.key_file`).
    """
    try:
        with path.open("rb") as file:
            key = file.read(AES256_KEY_BYTES + 1)
    except OSError as err:
        raise Unavailable(
            "imagetool.keyprovider.key_file", f"cannot read the key: {err.strerror}", path=str(path)[:200]
        ) from err
    require_kek(key)
    return key
