"""Every place a pod can run in, by name. Reading this dict is reading the list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.host.vmm.hardware import SNPLauncher, TDXLauncher
from cloister.host.vmm.machine import Launcher
from cloister.host.vmm.ovmf import OVMFLauncher
from cloister.host.vmm.sandbox import ProcessLauncher
from cloister.host.vmm.seabios import SeaBIOSLauncher
from cloister.host.vmm.spec import Backend
from cloister.host.vtpm import VTPMAuthority, VTPMPool


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where launchers keep things on this machine.

    Attributes:
        vtpm_ca: directory of the CA of software TPMs.
        vtpm_pool: directory of software TPMs made ahead.
        simulation_key: file of the simulation key.
        cache: directory of verdicts that can be found again.
    """

    vtpm_ca: Path
    vtpm_pool: Path
    simulation_key: Path
    cache: Path

    def pool(self) -> VTPMPool:
        """Return the pool of software TPMs."""
        return VTPMPool(VTPMAuthority(self.vtpm_ca), self.vtpm_pool)


LAUNCHERS: Final[Mapping[Backend, Callable[[Places], Launcher]]] = {
    Backend.PROCESS: lambda places: ProcessLauncher(places.simulation_key),
    Backend.SEABIOS: lambda places: SeaBIOSLauncher(places.pool(), places.cache),
    Backend.OVMF: lambda places: OVMFLauncher(places.pool(), places.cache),
    Backend.SNP: lambda places: SNPLauncher(),
    Backend.TDX: lambda places: TDXLauncher(),
}


def launcher_for(backend: Backend, places: Places) -> Launcher:
    """Return the launcher of a back end. There is no fall-back from one to another."""
    return LAUNCHERS[backend](places)
