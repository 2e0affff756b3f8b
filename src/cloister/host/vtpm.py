"""Software TPMs: their certificate authority, their manufacture, and a pool of ones made ahead.

A vTPM is a directory that swtpm (libtpms) runs from. `swtpm_setup` makes its endorsement key and has `swtpm_localca`
sign the certificate under a CA of this machine's owner, whose root the owner's verifier is told to trust. Only the
SHA-256 bank is active, so that firmware hashes once.

Each state is used by one VM and wiped afterwards: two VMs with one endorsement key could answer for each other. A
state belongs to the process that holds the lock on its directory; whatever is found without a lock was left by a
process that died, and is wiped. Root of this machine can read the keys: that is what the level `measured` says.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cloister.errors import CloisterError, Refused, Unavailable
from cloister.host.heldplace import try_lock, wipe_directory
from cloister.host.process import find_program, run_tool

MANUFACTURE_SECONDS: Final = 60.0  # 0.7 s on an idle machine, 1.6 s with a new CA
_PRIVATE: Final = 0o700
_ISSUER_FILE: Final = "issuer"
_ROOT_CERTIFICATE: Final = "swtpm-localca-rootca-cert.pem"
_ISSUER_CERTIFICATE: Final = "issuercert.pem"
_PLAIN_PATH: Final = re.compile(r"[^\x00-\x20,$'\"\\{}\x7f]+")  # what needs no quoting in swtpm's options and files
_NEW, _READY, _USED = "making-", "ready-", "used-"


class VTPMAuthority:
    """The CA that certifies the endorsement keys of this machine's software TPMs.

    Args:
        directory: where root, issuing key and serial number are kept; made on first use.
    """

    def __init__(self, directory: Path) -> None:
        """Check the path.

        Raises:
            Refused: swtpm's tools cannot express the path (`host.vtpm.path`).
        """
        self.directory = _plain(directory)

    @property
    def root_certificate(self) -> Path:
        """PEM file of the root: what the owner's verifier must trust. Exists after `create`."""
        return self.directory / _ROOT_CERTIFICATE

    @property
    def issuer_certificate(self) -> Path:
        """PEM file of the CA below the root that signs endorsement certificates. Exists after `create`."""
        return self.directory / _ISSUER_CERTIFICATE

    def create(self) -> None:
        """Make root and issuer unless they are there; of several processes one makes them.

        Raises:
            Unavailable: a tool is missing or failed (`host.tool.*`).
        """
        self.directory.parent.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        lock_file = self.directory.with_name(self.directory.name + ".lock")
        with _locked_file(lock_file):
            if self.issuer_certificate.is_file() and self.root_certificate.is_file():
                return
            draft = self.directory.with_name(self.directory.name + ".new")
            for leftover in (draft, self.directory):
                wipe_directory(leftover)
            draft.mkdir(mode=_PRIVATE)
            sample = draft / "sample"
            sample.mkdir(mode=_PRIVATE)
            _manufacture(sample, draft)  # the first certificate makes the CA
            wipe_directory(sample)
            draft.rename(self.directory)

    def fingerprint(self) -> str:
        """Return SHA-256 of the issuing certificate's file: which CA a state belongs to.

        Raises:
            Unavailable: there is no CA yet (`host.vtpm.ca`).
        """
        try:
            return hashlib.sha256(self.issuer_certificate.read_bytes()).hexdigest()
        except OSError as err:
            raise Unavailable("host.vtpm.ca", f"the CA cannot be read: {err.strerror}", path=str(err.filename)) from err

    def manufacture(self, directory: Path) -> None:
        """Make a TPM's state with a certified endorsement key (RSA-2048, and P-384) in an empty directory.

        Raises:
            Refused: swtpm's tools cannot express the path (`host.vtpm.path`).
            Unavailable: a tool is missing or failed (`host.tool.*`).
        """
        self.create()
        _manufacture(_plain(directory), self.directory)
        (directory / _ISSUER_FILE).write_text(self.fingerprint())


class VTPM:
    """One software TPM's state, owned by this process.

    Attributes:
        directory: what swtpm runs from.
    """

    def __init__(self, directory: Path, lock: int) -> None:
        self.directory = directory
        self._lock = lock

    def wipe(self) -> None:
        """Overwrite and remove the state; further calls do nothing. Whoever used it must have ended."""
        if self._lock < 0:
            return
        wipe_directory(self.directory)
        os.close(self._lock)
        self._lock = -1


class VTPMPool:
    """States made ahead, so that a launch does not wait for a key to be generated.

    Args:
        authority: the CA.
        directory: where states lie; on one file system, private to the user.
        ahead: how many are kept ready.
    """

    def __init__(self, authority: VTPMAuthority, directory: Path, *, ahead: int = 1) -> None:
        self.authority = authority
        self.directory = _plain(directory)
        self._ahead = ahead
        self._filling = threading.Lock()

    def take(self) -> VTPM:
        """Return a state nobody else has or will have; it is made now when none is ready.

        Raises:
            Unavailable: a tool is missing or failed (`host.tool.*`).
        """
        self.authority.create()
        with self._locked():
            self._sweep()
            for candidate in sorted(self.directory.glob(f"{_READY}*")):
                vtpm = self._adopt(candidate)
                if vtpm is not None:
                    return vtpm
        return self._make()

    def refill(self) -> None:
        """Make states until enough are ready; of several threads one does.

        Raises:
            Unavailable: a tool is missing or failed (`host.tool.*`).
        """
        with self._filling:
            while len(list(self.directory.glob(f"{_READY}*"))) < self._ahead:
                made = self._make()
                with self._locked():
                    made.directory.rename(self._named(_READY))
                    os.close(made._lock)

    def refill_in_background(self) -> None:
        """Do the same without waiting. Failure is not told: the next `take` meets it again and tells."""

        def fill() -> None:
            with contextlib.suppress(CloisterError, OSError):
                self.refill()

        threading.Thread(target=fill, name="vtpm-pool", daemon=True).start()

    def _make(self) -> VTPM:
        with self._locked():  # so that no sweep sees the directory before its lock
            directory = self._named(_NEW)
            directory.mkdir(mode=_PRIVATE)
            vtpm = VTPM(directory, try_lock(directory))
        try:
            self.authority.manufacture(directory)
            with self._locked():
                vtpm.directory = directory.rename(self._named(_USED))
        except BaseException:
            vtpm.wipe()
            raise
        return vtpm

    def _adopt(self, candidate: Path) -> VTPM | None:
        """Take over a ready state, unless it is of another CA: then it is wiped."""
        lock = try_lock(candidate)
        if lock < 0:
            return None
        try:
            issuer = (candidate / _ISSUER_FILE).read_text()
        except OSError:
            issuer = ""
        if issuer != self.authority.fingerprint():
            VTPM(candidate, lock).wipe()
            return None
        return VTPM(candidate.rename(self._named(_USED)), lock)

    def _sweep(self) -> None:
        """Wipe what dead processes left."""
        for pattern in (f"{_NEW}*", f"{_USED}*"):
            for leftover in self.directory.glob(pattern):
                lock = try_lock(leftover)
                if lock >= 0:
                    VTPM(leftover, lock).wipe()

    def _named(self, state: str) -> Path:
        return self.directory / f"{state}{secrets.token_hex(8)}"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.directory.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        with _locked_file(self.directory / "lock"):
            yield


def _manufacture(directory: Path, ca: Path) -> None:
    """Run swtpm_setup with configuration files of our own, so that /etc and /var/lib/swtpm-localca play no part."""
    settings = directory / "setup"
    settings.mkdir(mode=_PRIVATE)
    (settings / "options").write_text("--platform-manufacturer Cloister\n--platform-version 1\n--platform-model vTPM\n")
    (settings / "localca.conf").write_text(
        f"statedir = {ca}\nsigningkey = {ca}/signkey.pem\nissuercert = {ca}/{_ISSUER_CERTIFICATE}\n"
        f"certserial = {ca}/certserial\n"
    )
    (settings / "setup.conf").write_text(
        f"create_certs_tool = {find_program('swtpm_localca')}\n"
        f"create_certs_tool_config = {settings}/localca.conf\n"
        f"create_certs_tool_options = {settings}/options\n"
    )
    command = ["nice", "-n", "19", str(find_program("swtpm_setup")), "--tpm2", "--config", f"{settings}/setup.conf"]
    command += ["--tpm-state", str(directory), "--create-ek-cert", "--pcr-banks", "sha256", "--lock-nvram"]
    if os.geteuid() == 0:
        command += ["--runas", "root"]  # by default root's run becomes user tss, who may not enter our directories
    run_tool(command, seconds=MANUFACTURE_SECONDS, environment={"TMPDIR": str(settings)})
    shutil.rmtree(settings)


def _plain(path: Path) -> Path:
    path = path.absolute()
    if not _PLAIN_PATH.fullmatch(str(path)):
        raise Refused(
            "host.vtpm.path",
            "swtpm cannot be given this path",
            path=repr(str(path)),
            expected="no space, comma, quote, backslash, brace, dollar or control character",
            hint="set CLOISTER_HOME to a plain path",
        )
    return path


@contextlib.contextmanager
def _locked_file(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, made when absent; waits for other processes."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
