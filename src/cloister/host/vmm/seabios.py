"""Back end `qemu-seabios`, the default: SeaBIOS, kernel, initrd and command line, all in PCR 0. Level `measured`.

SeaBIOS itself measures nothing of what it boots, so the launcher measures everything before it runs (`hcrtm`): one
value covers firmware, kernel, initrd, command line, option ROMs and the machine's shape.
"""

from __future__ import annotations

from pathlib import Path

from cloister.host.vmm.kvm import choose_accelerator
from cloister.host.vmm.machine import RunningVM
from cloister.host.vmm.measure import measure_seabios
from cloister.host.vmm.qemu import start_qemu
from cloister.host.vmm.qemuargs import Platform, seabios_boot
from cloister.host.vmm.spec import Backend, VMSpec
from cloister.host.vmm.staging import Staging
from cloister.host.vtpm import VTPMPool
from cloister.rats.claims import Level


class SeaBIOSLauncher:
    """Boots a bundle under SeaBIOS.

    Args:
        vtpms: where TPMs come from.
        cache: directory that keeps the verdict on KVM.
    """

    backend = Backend.SEABIOS
    level = Level.MEASURED

    def __init__(self, vtpms: VTPMPool, cache: Path) -> None:
        self._vtpms = vtpms
        self._cache = cache

    def launch(self, spec: VMSpec) -> RunningVM:
        """Start a pod, see `Launcher`."""
        bundle = spec.require_bundle()
        bundle.require(bundle.kernel, bundle.initrd, bundle.root, bundle.bios, *bundle.option_roms.values())
        accelerator = choose_accelerator(spec.accelerator, bundle, self._cache)
        launch = measure_seabios(bundle, vcpus=spec.vcpus, memory_mib=spec.memory_mib)
        platform = Platform(accelerator=accelerator, boot=seabios_boot(bundle), machine={})
        with Staging() as staging:
            vtpm = self._vtpms.take()
            staging.leftover(vtpm.wipe)
            vm = start_qemu(staging, spec, platform, backend=self.backend, level=self.level, measured=(launch, vtpm))
        self._vtpms.refill_in_background()
        return vm
