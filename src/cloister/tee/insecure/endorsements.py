"""The root of the simulation: the public half of the machine's simulation key, level `simulated` and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cloister.rats.claims import Level
from cloister.rats.endorsement import PinnedRoot, TrustedRoot
from cloister.tee.insecure.abi import TEE
from cloister.tee.insecure.machinekey import load_machine_key, public_der

PINS: Final[tuple[PinnedRoot, ...]] = ()  # every machine has its own simulation key


def read_machine_root(key_path: Path) -> TrustedRoot:
    """Return the root of this machine; the key is made when there is none yet.

    Raises:
        Unavailable: the key file cannot be used (`tee.insecure.machine_key`).
    """
    return simulation_root(
        public_der(load_machine_key(str(key_path))), name=f"simulation key of this machine ({key_path})"
    )


def simulation_root(public_key_der: bytes, *, name: str) -> TrustedRoot:
    """Return the root for a simulation key given as SubjectPublicKeyInfo."""
    return TrustedRoot(tee=TEE, level=Level.SIMULATED, name=name, der=public_key_der)
