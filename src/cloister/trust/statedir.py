"""The state directory of one trust service: private files, made once, never replaced.

    root.key          32 bytes, seals resources in the database          0600
    ca.key, ca.pem    the service's own certificate authority            0600, 0644
    token.key         signs Attestation Results                          0600
    tls-N.key, .pem   server certificate of process N while it runs      0600, 0644
    trust.db          SQLite database, with -wal and -shm
    write.lock        held by whoever writes the database

A file that others than its owner may read is a refusal, not a warning. Files are written whole or not at all: to a
temporary name, synced, then linked or renamed.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from cloister.crypto.signer import ECDSAP256Signer
from cloister.crypto.tlsca import CertificateAuthority
from cloister.errors import Refused, Unavailable
from cloister.trust.rootkey import ROOT_KEY_BYTES, RootKey

_PRIVATE_FILE: Final = 0o600
_PUBLIC_FILE: Final = 0o644
_PRIVATE_DIRECTORY: Final = 0o700
_FILE_BYTES: Final = 64 * 1024


class StateDirectory:
    """Opens a state directory, making what is absent.

    Args:
        path: the directory; made private when absent.
        at: time for certificates that have to be made, aware UTC.

    Raises:
        Refused: others may read it (`trust.state.permissions`), or its content does not fit together.
        Unavailable: it cannot be read or written (`trust.state.io`).
    """

    def __init__(self, path: Path, *, at: datetime) -> None:
        self.path = path
        try:
            path.mkdir(mode=_PRIVATE_DIRECTORY, parents=True, exist_ok=True)
            _require_private(path)
            with _locked(path / "init.lock"):
                self._open(at)
        except OSError as err:
            raise Unavailable(
                "trust.state.io", f"the state directory cannot be used: {err.strerror}", path=str(path)
            ) from err

    def _open(self, at: datetime) -> None:
        self.root_key = RootKey(self._file("root.key", lambda: secrets.token_bytes(ROOT_KEY_BYTES)))
        self.token_signer = ECDSAP256Signer.from_pem(
            self._file("token.key", lambda: ECDSAP256Signer.generate().private_pem())
        )
        if not self._place("ca.pem").exists():
            fresh = CertificateAuthority.create("cloister trust service CA", at=at)
            _write(self._place("ca.key"), fresh.key_pem(), _PRIVATE_FILE)
            _write(self._place("ca.pem"), fresh.certificate_pem, _PUBLIC_FILE)
        self.authority = CertificateAuthority.from_pem(
            _read(self._place("ca.pem")), _read_private(self._place("ca.key"))
        )

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
    def issued_tls(self, names: tuple[str, ...], *, at: datetime) -> Iterator[tuple[Path, Path]]:
        """Give a fresh server certificate and key as files (certificate, key) for as long as the block runs.

        Several services may run on one directory: each has its own pair, named after its process. What a killed
        service left is removed by the next one that starts.

        Raises:
            Unavailable: the directory cannot be written (`trust.state.io`).
        """
        issued = self.authority.issue_server(names, at=at)
        certificate, key = (self._place(f"tls-{os.getpid()}.{kind}") for kind in ("pem", "key"))
        try:
            self._sweep_tls()
            _write(key, issued.key_pem, _PRIVATE_FILE)
            _write(certificate, issued.certificate_pem, _PUBLIC_FILE)
        except OSError as err:
            raise Unavailable(
                "trust.state.io", f"the state directory cannot be used: {err.strerror}", path=str(self.path)
            ) from err
        try:
            yield certificate, key
        finally:
            for file in (certificate, key):
                file.unlink(missing_ok=True)

    def _sweep_tls(self) -> None:
        for file in self.path.glob("tls-*.*"):
            owner = file.stem.removeprefix("tls-")
            if owner.isdigit() and not Path("/proc", owner).exists():
                file.unlink(missing_ok=True)

    def _place(self, name: str) -> Path:
        return self.path / name

    def _file(self, name: str, make: Callable[[], bytes]) -> bytes:
        place = self._place(name)
        if not place.exists():
            _write(place, make(), _PRIVATE_FILE)
        return _read_private(place)


def write_whole(place: Path, data: bytes, *, mode: int) -> None:
    """Write a file so that a reader sees all of it or none of it."""
    _write(place, data, mode)


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE_FILE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(place: Path, data: bytes, mode: int) -> None:
    temporary = place.with_name(f".{place.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(place)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


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
