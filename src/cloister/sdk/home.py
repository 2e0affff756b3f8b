"""Where an owner's state and the shared cache live on this machine.

`CLOISTER_HOME` (default `~/.local/share/cloister`) holds what must not be lost or read by others: the trust
service's database and root key, the signing key, sealed images. `CLOISTER_CACHE` (default `~/.cache/cloister`) holds
what can be made again, keyed by content.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import Unavailable

_PRIVATE = 0o700


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """The two directories and the places inside them.

    Attributes:
        root: what must not be lost or read by others.
        cache: what can be made again.
        machine: what belongs to this machine rather than to one owner on it: simulation key, software TPMs; `root` when
            None.
    """

    root: Path
    cache: Path
    machine: Path | None = None

    @property
    def trust(self) -> Path:
        """State of the trust service."""
        return self.root / "trust"

    @property
    def registry(self) -> Path:
        """Blobs of sealed images; holds ciphertext only."""
        return self.root / "registry"

    @property
    def signing_key(self) -> Path:
        """The owner's image signing key, PKCS 8 PEM."""
        return self.root / "owner" / "signing.key"

    @property
    def simulation(self) -> Path:
        """The per-machine simulation root."""
        return (self.machine or self.root) / "simulation"

    @property
    def vtpm_ca(self) -> Path:
        """The CA that endorses this machine's software TPMs."""
        return (self.machine or self.root) / "vtpm-ca"

    @property
    def vtpm_pool(self) -> Path:
        """Software TPMs made ahead of use."""
        return (self.machine or self.root) / "vtpm-pool"


def separate_home(machine: Home, root: Path) -> Home:
    """Return a home whose owner has nothing yet, on the same machine: for demonstrations, which leave no trace."""
    for directory in (root, root / "owner"):  # `parents=True` would make only the innermost private
        directory.mkdir(mode=_PRIVATE)
    return Home(root=root, cache=machine.cache, machine=machine.machine or machine.root)


def trust_directory() -> Path:
    """Return where this user's trust service keeps its state; makes nothing, for commands that may not need it."""
    return _root() / "trust"


def home_from_environment() -> Home:
    """Return the directories this user works with, made private when absent.

    Raises:
        Unavailable: they cannot be made (`sdk.home.unusable`).
    """
    root = _root()
    cache = Path(os.environ.get("CLOISTER_CACHE") or Path.home() / ".cache/cloister")
    try:
        for directory in (root, root / "owner"):
            directory.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise Unavailable(
            "sdk.home.unusable",
            f"this user's directory cannot be made: {err.strerror}",
            path=str(err.filename),
            hint="name others with CLOISTER_HOME and CLOISTER_CACHE, or a trust service with --server or --state",
        ) from err
    return Home(root=root.resolve(), cache=cache.resolve())


def _root() -> Path:
    return Path(os.environ.get("CLOISTER_HOME") or Path.home() / ".local/share/cloister")
