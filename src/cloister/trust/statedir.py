"""The state directory of one trust service: private files, made once.

    root.key          the root key, when it is kept in a file            0600
    key-store         address of the key store, when it is elsewhere     0600
    database          address of the database, when it is elsewhere      0600
    keys.seen         highest generation of the data keys ever seen      0600
    ca.pem            CA certificate for clients, written at each start  0644
    tls-N.key, .pem   server certificate of process N while it runs      0600, 0644
    tls-kept.key, ..  the same, for a service that starts sealed         0600, 0644
    trust.db          SQLite database, with -wal and -shm
    write.lock        held by whoever writes the database

A file that others than its owner may read is a refusal, not a warning. Files are written whole or not at all: to a
temporary name, synced, then renamed.

Older directories hold `token.key` and `ca.key`, and rows that `root.key` sealed directly: `legacy` gives them to
whoever takes them over, `taken_over` removes the files.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cloister.crypto.keystore.file import file_uri
from cloister.crypto.keystore.interface import ROOT_KEY_BYTES
from cloister.crypto.tlsca import CertificateAuthority
from cloister.errors import Refused, Unavailable
from cloister.wholefile import OWNER_ONLY, READABLE, write_whole

_PRIVATE_DIRECTORY: Final = 0o700
_FILE_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LegacyKeys:
    """Keys of a directory that an older version made; None where there is none.

    Attributes:
        root: sealed rows directly; also the root key of a file key store from now on.
        token_pem: signed tokens.
        authority: the service's own CA.
    """

    root: bytes | None
    token_pem: bytes | None
    authority: CertificateAuthority | None


class StateDirectory:
    """Opens a state directory, making it when absent.

    Args:
        path: the directory; made private when absent.

    Raises:
        Refused: others may read it (`trust.state.permissions`).
        Unavailable: it cannot be read or written (`trust.state.io`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()  # addresses that are remembered, such as the key store's, hold wherever one stands
        with self.files():
            self.path.mkdir(mode=_PRIVATE_DIRECTORY, parents=True, exist_ok=True)
            _require_private(self.path)

    @property
    def root_key_file(self) -> Path:
        """Where the root key is unless the key store is elsewhere."""
        return self._place("root.key")

    @property
    def seen_file(self) -> Path:
        """Remembers the highest generation of the data keys."""
        return self._place("keys.seen")

    def key_store(self, wanted: str = "") -> str:
        """Return the address of the key store: the wanted one, which is remembered, the remembered, or `root.key`.

        Raises:
            Unavailable: the directory cannot be written (`trust.state.io`).
        """
        if wanted:
            self.remember("key-store", wanted)
            return wanted
        return self.remembered("key-store") or file_uri(self.root_key_file)

    def remember(self, name: str, text: str) -> None:
        """Keep a text in the private file of that name.

        Raises:
            Unavailable: the directory cannot be written (`trust.state.io`).
        """
        place = self._place(name)
        with self.files():
            if not place.exists() or _read_private(place) != text.encode():
                write_whole(place, text.encode(), mode=OWNER_ONLY)

    def remembered(self, name: str) -> str:
        """Return the text in the private file of that name, empty when there is none.

        Raises:
            Refused: others can read it (`trust.state.permissions`).
            Unavailable: it cannot be read (`trust.state.io`).
        """
        place = self._place(name)
        with self.files():
            return _read_private(place).decode() if place.exists() else ""

    def legacy(self) -> LegacyKeys:
        """Return the keys that an older version kept in files.

        Raises:
            Refused: others can read them, or they do not fit together.
            Unavailable: they cannot be read, or one of two is missing (`trust.state.io`).
        """
        with self.files():
            root = self._optional("root.key")
            token, ca = self._optional("token.key"), self._place("ca.key")
            authority = None
            if ca.exists() or (self._place("ca.pem").exists() and token is not None):
                authority = CertificateAuthority.from_pem(_read(self._place("ca.pem")), _read_private(ca))
            return LegacyKeys(
                root=root if root is not None and len(root) == ROOT_KEY_BYTES else None,
                token_pem=token,
                authority=authority,
            )

    def taken_over(self, names: Sequence[str]) -> None:
        """Remove files whose keys are in the database now."""
        with self.files():
            for name in names:
                self._place(name).unlink(missing_ok=True)

    def publish_ca(self, pem: bytes) -> None:
        """Write the CA certificate for clients."""
        with self.files():
            if not self.ca_file.exists() or _read(self.ca_file) != pem:
                write_whole(self.ca_file, pem, mode=READABLE)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes of this directory from making or taking over keys."""
        with self.files(), _locked(self._place("init.lock")):
            yield

    @contextmanager
    def files(self) -> Iterator[None]:
        """Turn failures of the disk into `trust.state.io`."""
        try:
            yield
        except OSError as err:
            raise Unavailable(
                "trust.state.io", f"the state directory cannot be used: {err.strerror}", path=str(self.path)
            ) from err

    @property
    def database(self) -> Path:
        """The SQLite database."""
        return self._place("trust.db")

    @property
    def write_lock(self) -> Path:
        """Held by whoever writes the database."""
        return self._place("write.lock")

    @property
    def ca_file(self) -> Path:
        """The CA certificate that guests pin."""
        return self._place("ca.pem")

    @contextmanager
    def issued_tls(
        self, authority: CertificateAuthority | None, names: tuple[str, ...], *, at: datetime, keep: bool = False
    ) -> Iterator[tuple[Path, Path]]:
        """Give a server certificate and key as files (certificate, key) for as long as the block runs.

        Several services may run on one directory: each has its own pair, named after its process. What a killed
        service left is removed by the next one that starts.

        Args:
            authority: issues a fresh pair; None while the service is sealed: then the kept one is given.
            names: subjectAltNames.
            at: aware UTC.
            keep: keep a copy for a start that is sealed.

        Raises:
            Unavailable: the directory cannot be written (`trust.state.io`), or nothing was kept (`trust.keys.sealed`).
        """
        if authority is None:
            yield self._kept_tls()
            return
        issued = authority.issue_server(names, at=at)
        certificate, key = (self._place(f"tls-{os.getpid()}.{kind}") for kind in ("pem", "key"))
        with self.files():
            self._sweep_tls()
            for base in (certificate, *((self._place("tls-kept.pem"),) if keep else ())):
                write_whole(base.with_suffix(".key"), issued.key_pem, mode=OWNER_ONLY)
                write_whole(base, issued.certificate_pem, mode=READABLE)
        try:
            yield certificate, key
        finally:
            for file in (certificate, key):
                file.unlink(missing_ok=True)

    @property
    def has_kept_tls(self) -> bool:
        """Whether a service that starts sealed has a certificate to answer with."""
        return self._place("tls-kept.pem").exists() and self._place("tls-kept.key").exists()

    def _kept_tls(self) -> tuple[Path, Path]:
        certificate, key = (self._place(f"tls-kept.{kind}") for kind in ("pem", "key"))
        if not certificate.exists() or not key.exists():
            raise Unavailable(
                "trust.keys.sealed",
                "the service is sealed and has no certificate to answer with yet",
                path=str(certificate),
                hint="start it once with the passphrase in a file or the root key unsealed",
            )
        with self.files():
            _require_private(key)
        return certificate, key

    def _sweep_tls(self) -> None:
        for file in self.path.glob("tls-*.*"):
            owner = file.stem.removeprefix("tls-")
            if owner.isdigit() and not Path("/proc", owner).exists():
                file.unlink(missing_ok=True)

    def _place(self, name: str) -> Path:
        return self.path / name

    def _optional(self, name: str) -> bytes | None:
        place = self._place(name)
        return _read_private(place) if place.exists() else None


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, OWNER_ONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(place: Path) -> bytes:
    with place.open("rb") as file:
        return file.read(_FILE_BYTES)


def _read_private(place: Path) -> bytes:
    _require_private(place)
    return _read(place)


def _require_private(place: Path) -> None:
    status = place.stat()
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise Refused(
            "trust.state.permissions",
            "others can reach the state of the trust service",
            path=str(place),
            expected="owned by this user, no access for others",
            actual=f"uid {status.st_uid} mode {stat.S_IMODE(status.st_mode):04o}",
            hint=f"chmod go-rwx {place}",
        )
