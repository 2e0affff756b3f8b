"""Launchers: one interface, several places a pod can run in (`docs/reference/launchers.md`).

    launcher = launcher_for(Backend.SEABIOS, places)
    with launcher.launch(VMSpec(...)) as vm:
        link = GuestLink(vm.control, vm.streams)

A launcher starts, measures, watches and ends; it does not decide whether the result deserves a key.
"""

from cloister.host.vmm.backends import LAUNCHERS, Places, launcher_for
from cloister.host.vmm.exit import ExitReason, VMExit
from cloister.host.vmm.machine import Launcher, RunningVM
from cloister.host.vmm.spec import Accelerator, Backend, Bundle, PortForward, VMSpec

__all__ = [
    "LAUNCHERS",
    "Accelerator",
    "Backend",
    "Bundle",
    "ExitReason",
    "Launcher",
    "Places",
    "PortForward",
    "RunningVM",
    "VMExit",
    "VMSpec",
    "launcher_for",
]
