"""What the owner has to believe for the simulated level: this machine's simulation key, and the agent's own version."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cloister import __version__
from cloister.rats.endorsement import TrustedRoot
from cloister.rats.reference import ReferenceEntry
from cloister.tee.insecure.abi import TEE, launch_digest
from cloister.tee.insecure.endorsements import read_machine_root

_LIFETIME: Final = timedelta(days=1)


def simulation_roots(key: Path) -> tuple[TrustedRoot, ...]:
    """Return the simulation root of this machine; its key is made on first use."""
    return (read_machine_root(key),)


def simulation_references() -> tuple[ReferenceEntry, ...]:
    """Return the one value that simulated evidence declares of itself. It proves nothing."""
    return (
        ReferenceEntry(
            id=f"simulated-{__version__}",
            tee=TEE,
            registers={"launch": launch_digest(__version__)},
            not_after=datetime.now(UTC) + _LIFETIME,
            origin=f"agent {__version__}, by its own word",
        ),
    )
