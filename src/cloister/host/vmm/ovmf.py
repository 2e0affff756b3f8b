"""Back end `qemu-ovmf`: OVMF boots a unified kernel image and logs every step into the TPM. Level `measured`.

The launcher puts firmware, image and shape into PCR 0 first, as for SeaBIOS; OVMF and the image's stub then measure
what they load into PCRs 4, 9 and 11, as on a real machine. Slower, because firmware hashes without acceleration.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from cloister.host.vmm.kvm import choose_accelerator
from cloister.host.vmm.machine import RunningVM
from cloister.host.vmm.measure import measure_uki
from cloister.host.vmm.qemu import prepare_work, start_qemu
from cloister.host.vmm.qemuargs import OVMF_MACHINE, Platform, ovmf_boot
from cloister.host.vmm.spec import Backend, VMSpec
from cloister.host.vmm.staging import Staging
from cloister.host.vtpm import VTPMPool
from cloister.rats.claims import Level

VARIABLES_FILE: Final = "ovmf-vars.fd"


class OVMFLauncher:
    """Boots a bundle's unified kernel image under OVMF.

    Args:
        vtpms: where TPMs come from.
        cache: directory that keeps the verdict on KVM.
    """

    backend = Backend.OVMF
    level = Level.MEASURED

    def __init__(self, vtpms: VTPMPool, cache: Path) -> None:
        self._vtpms = vtpms
        self._cache = cache

    def launch(self, spec: VMSpec) -> RunningVM:
        """Start a pod, see `Launcher`."""
        bundle = spec.require_bundle()
        bundle.require(bundle.uki, bundle.root, bundle.ovmf_code, bundle.ovmf_vars)
        accelerator = choose_accelerator(spec.accelerator, bundle, self._cache)
        launch = measure_uki(bundle, vcpus=spec.vcpus, memory_mib=spec.memory_mib)
        with Staging() as staging:
            prepare_work(staging, spec, VARIABLES_FILE)
            variables = Path(shutil.copyfile(bundle.ovmf_vars, spec.work / VARIABLES_FILE))
            variables.chmod(0o600)
            platform = Platform(accelerator=accelerator, boot=ovmf_boot(bundle, variables), machine=OVMF_MACHINE)
            vtpm = self._vtpms.take()
            staging.leftover(vtpm.wipe)
            vm = start_qemu(staging, spec, platform, backend=self.backend, level=self.level, measured=(launch, vtpm))
        self._vtpms.refill_in_background()
        return vm
