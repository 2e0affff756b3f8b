"""Root keys in private files: `file:///path/root.key`, plain or sealed by a passphrase or by shares.

    file:///path/root.key                                      as the file says; a plain one is made when absent
    file:///path/root.key?seal=shares                          refused unless sealed by shares
    file:///path/root.key?seal=passphrase&passphrase-file=F    opens by itself with the passphrase in F

The file is 32 random bytes, or the document of `cloister.crypto.keystore.sealedroot`. During a rotation the next root
key stands beside it as `root.key.IDENTITY`; `settle` renames it onto the first, so that at any instant every root key
that wraps something is on disk. Plain files are read for each use: no root key stays in memory, and a file another
process replaced is seen.

A plain file protects a copied database or backup, not a stolen disk. A sealed one protects a stolen disk, too; neither
protects from root on the running machine.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from cloister.crypto.keystore.envelope import identity_of, require_root, unwrap_with, wrap_under
from cloister.crypto.keystore.interface import ROOT_KEY_BYTES, UnsealProgress, sealed_error, unreachable
from cloister.crypto.keystore.sealedroot import (
    SEALED_FILE_BYTES,
    SealedRoot,
    Share,
    combine,
    not_a_share,
    open_sealed_root,
    parse_sealed_root,
    parse_share,
    passphrase_key,
    seal_again,
    seal_by_passphrase,
    seal_by_shares,
)
from cloister.crypto.keystore.uri import bad_address, read_secret, require_private, split_address
from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.wholefile import OWNER_ONLY, sync_directory, write_whole

_NEXT: Final = re.compile(r"[0-9a-f]{16}")
_ATTEMPTS: Final = 20
_SEALS: Final = ("passphrase", "shares")


def from_uri(uri: str, *, seconds: float) -> FileKeyStore:
    """Open `file:///path?..`; a file has no use for `seconds`.

    Raises:
        FormatRefused: `crypto.keystore.uri`.
        Refused: others may read the file, or it is not sealed as the address says.
        Unavailable: the file or the passphrase cannot be read.
    """
    address = split_address(uri, parameters=("seal", "passphrase-file"))
    seal = address.parameters.get("seal", "")
    source = address.parameters.get("passphrase-file")
    if address.host or address.port or address.path in ("", "/") or not address.path.startswith("/"):
        raise bad_address("a file has an absolute path and no host", expected="file:///path/root.key")
    if (seal and seal not in _SEALS) or (source and seal != "passphrase"):
        raise bad_address("no such seal", expected=" or ".join(_SEALS))
    return FileKeyStore(Path(address.path), seal=seal, passphrase_file=Path(source) if source else None)


def file_uri(path: Path) -> str:
    """Return the address of a root key file."""
    return f"file://{quote(str(path))}"


class FileKeyStore:
    """Root keys in a file and beside it; a `KeyStore`."""

    def __init__(self, path: Path, *, seal: str = "", passphrase_file: Path | None = None) -> None:
        self._path = path
        self._seal = seal
        self._passphrase_file = passphrase_file
        self._state = threading.RLock()
        self._shares: dict[int, Share] = {}
        self._unseal_key: bytes | None = None
        if path.exists() or seal:
            self._document()  # refuses what is not as the address says
        if passphrase_file is not None:
            self.unseal(read_secret(passphrase_file, "passphrase"))

    def __repr__(self) -> str:
        return f"FileKeyStore({self._path})"

    @property
    def place(self) -> str:
        """The file."""
        return file_uri(self._path)

    @property
    def sealed(self) -> bool:
        """Whether shares or a passphrase are still to be given."""
        return self._unseal_key is None and self._path.exists() and self._document() is not None

    @property
    def sealable(self) -> bool:
        """Whether the next process that opens it finds it sealed."""
        return self._passphrase_file is None and self._path.exists() and self._document() is not None

    def progress(self) -> UnsealProgress:
        """Return how far a sealed store is."""
        document = self._document() if self._path.exists() else None
        needed = document.threshold if document is not None and document.seal == "shares" else 1
        with self._state:
            return UnsealProgress(sealed=self.sealed, given=len(self._shares), needed=needed)

    def unseal(self, secret: str) -> UnsealProgress:
        """Give one share or the passphrase; see `KeyStore.unseal`."""
        with self._state:
            document = self._document()
            if document is None or self._unseal_key is not None:
                return self.progress()
            key = passphrase_key(document, secret) if document.seal == "passphrase" else self._add(document, secret)
            if key is not None:
                self._shares = {}
                open_sealed_root(document, key)
                self._unseal_key = key
            return self.progress()

    def identities(self) -> tuple[str, ...]:
        """Return the root keys on disk."""
        return tuple(self._roots())

    def create(self) -> str:
        """Make the first root key, or another beside it."""
        with self._state, self._alone():
            root = secrets.token_bytes(ROOT_KEY_BYTES)
            identity = identity_of(root)
            if not self._path.exists():
                self._write(self._path, root)
                return identity
            document = self._document()
            if document is not None:
                root = seal_again(document, self._require_open(), root)
            self._write(self._beside(identity), root)
            return identity

    def wrap(self, identity: str, purpose: str, key: bytes) -> bytes:
        """Return the wrapped key."""
        return wrap_under(require_root(self._roots(), self.place, identity), purpose, key)

    def unwrap(self, purpose: str, wrapped: bytes) -> bytes:
        """Return the key; see `KeyStore.unwrap`."""
        return unwrap_with(self._roots(), self.place, purpose, wrapped)

    def settle(self, identity: str, forget: Sequence[str]) -> None:
        """Rename the root key in use onto the file if what is there may go; remove the others that may."""
        with self._state, self._alone():
            roots = {place: identity_of(self._root(place)) for place in self._places()}
            if identity not in roots.values():
                return  # a later rotation was faster
            try:
                if roots[self._path] in forget and roots[self._path] != identity:
                    self._beside(identity).replace(self._path)
                for place, name in roots.items():
                    if place != self._path and name in forget and name != identity:
                        place.unlink()
                sync_directory(self._path.parent)
            except OSError as err:
                raise unreachable(self.place, err.strerror or "write error") from err

    def check(self) -> None:
        """Return if the root key can be read."""
        self._roots()

    def close(self) -> None:
        """Forget the unseal key."""
        with self._state:
            self._unseal_key, self._shares = None, {}

    def _add(self, document: SealedRoot, text: str) -> bytes | None:
        share = parse_share(text)
        if share.set != document.set or share.threshold != document.threshold or share.x > document.shares:
            raise not_a_share("a share of another root key")
        if share.x in self._shares:
            raise not_a_share("this share was given already")
        self._shares[share.x] = share
        return combine(document, self._shares) if len(self._shares) == document.threshold else None

    def _require_open(self) -> bytes:
        if self._unseal_key is None:
            raise sealed_error(self.place, self.progress())
        return self._unseal_key

    def _roots(self) -> dict[str, bytes]:
        """Return the root keys on disk. Another process may rename one while they are read: then once more."""
        with self._state:
            for _ in range(_ATTEMPTS):
                places = self._places()
                try:
                    roots = [self._root(place) for place in places]
                except Unavailable:
                    if self._places() == places:
                        raise
                    continue
                if self._places() == places:
                    return {identity_of(root): root for root in roots}
            raise unreachable(self.place, "its files change all the time")

    def _root(self, place: Path) -> bytes:
        data = self._read(place)
        if len(data) == ROOT_KEY_BYTES:
            if self._seal:
                raise _not_sealed(self.place, self._seal)
            return data
        return open_sealed_root(parse_sealed_root(data), self._require_open())

    def _document(self) -> SealedRoot | None:
        """Return the sealed document, None for a plain root key."""
        data = self._read(self._path)
        document = None if len(data) == ROOT_KEY_BYTES else parse_sealed_root(data)
        if self._seal and (document is None or document.seal != self._seal):
            raise _not_sealed(self.place, self._seal)
        return document

    def _places(self) -> list[Path]:
        beside = sorted(self._path.parent.glob(f"{self._path.name}.*"))
        return [
            *([self._path] if self._path.exists() else []),
            *(place for place in beside if _NEXT.fullmatch(place.name.removeprefix(f"{self._path.name}."))),
        ]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from changing what is in the directory."""
        try:
            descriptor = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as err:
            raise unreachable(self.place, err.strerror or "no such directory") from err
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _beside(self, identity: str) -> Path:
        return self._path.with_name(f"{self._path.name}.{identity}")

    def _read(self, place: Path) -> bytes:
        try:
            require_private(place)
            with place.open("rb") as file:
                data = file.read(SEALED_FILE_BYTES + 1)
        except OSError as err:
            raise unreachable(self.place, err.strerror or "read error") from err
        if len(data) != ROOT_KEY_BYTES and not data.startswith(b"{"):
            raise FormatRefused(
                "crypto.keystore.malformed",
                "not a root key",
                path=str(place),
                expected=f"{ROOT_KEY_BYTES} bytes, or a sealed root key",
                actual=f"{len(data)} bytes",
                hint="restore the root key file from its backup",
            )
        return data

    def _write(self, place: Path, data: bytes) -> None:
        try:
            write_whole(place, data, mode=OWNER_ONLY)
        except OSError as err:
            raise unreachable(self.place, err.strerror or "write error") from err


def seal_file_by_passphrase(path: Path, passphrase: str) -> None:
    """Seal the plain root key in `path` (made when absent) by a passphrase, in place.

    Raises:
        Refused: it is sealed already (`crypto.keystore.unseal`), or not private.
        Unavailable: it cannot be read or written.
    """
    FileKeyStore(path)._write(path, seal_by_passphrase(_plain_root(path), passphrase))


def seal_file_by_shares(path: Path, *, threshold: int, shares: int) -> tuple[str, ...]:
    """Seal the plain root key in `path` (made when absent) by shares, in place; return them. They exist nowhere else.

    Raises:
        Refused: `crypto.keystore.threshold`; it is sealed already (`crypto.keystore.unseal`), or not private.
        Unavailable: it cannot be read or written.
    """
    document, texts = seal_by_shares(_plain_root(path), threshold=threshold, shares=shares)
    FileKeyStore(path)._write(path, document)
    return texts


def _plain_root(path: Path) -> bytes:
    store = FileKeyStore(path)
    if not path.exists():
        return secrets.token_bytes(ROOT_KEY_BYTES)
    data = store._read(path)
    if len(data) != ROOT_KEY_BYTES or len(store._places()) > 1:
        raise Refused(
            "crypto.keystore.unseal",
            "the root key is sealed already, or a rotation is unfinished",
            path=str(path),
            hint="start the service once, and rotate the root key if its seal is to change",
        )
    return data


def _not_sealed(place: str, seal: str) -> Refused:
    return Refused(
        "crypto.keystore.malformed",
        "the root key is not sealed as the address says",
        path=place,
        expected=f"seal={seal}",
        hint="seal it with `cloister key seal`",
    )
