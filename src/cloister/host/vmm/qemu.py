"""Starts QEMU, and beside it a software TPM whose PCR 0 gets the launch measurement.

Shared by the QEMU back ends; what they boot and how is theirs. Order of a launch:
 1 every forwarded port is free, init data is written to its device image, the scratch disk's file is made
 2 swtpm and QEMU start, joined by the measuring proxy
 3 the launch is measured before the machine's first instruction; without that the machine is killed
Whatever fails, everything started before is ended and the TPM's state is wiped.
"""

from __future__ import annotations

import os
import socket
import tempfile
from functools import partial
from typing import BinaryIO, Final

from cloister.errors import Unavailable
from cloister.host.process import Child, find_program
from cloister.host.vmm.hcrtm import HCRTMProxy
from cloister.host.vmm.initdatafile import InitDataFile
from cloister.host.vmm.machine import Pipes, RunningVM
from cloister.host.vmm.monitor import GREETING
from cloister.host.vmm.ports import require_free
from cloister.host.vmm.qemuargs import Channels, Platform, qemu_arguments
from cloister.host.vmm.spec import Backend, VMSpec
from cloister.host.vmm.staging import HasFileno, Staging
from cloister.host.vtpm import VTPM
from cloister.protocol.launch import LaunchMeasurement
from cloister.rats.claims import Level
from cloister.wire.limits import MIB

PROGRAM: Final = "qemu-system-x86_64"
CONSOLE_FILE: Final = "console.log"
INITDATA_FILE: Final = "initdata.img"
PRIVATE: Final = 0o700


def start_qemu(
    staging: Staging,
    spec: VMSpec,
    platform: Platform,
    *,
    backend: Backend,
    level: Level,
    measured: tuple[LaunchMeasurement, VTPM] | None,
) -> RunningVM:
    """Start the machine and return it, with its launch measured when there is a TPM.

    Args:
        staging: holds what the caller made for this launch; empty when this returns.
        spec: what to launch.
        platform: how.
        backend: the caller's name.
        level: the caller's level.
        measured: what to measure and the TPM to measure it into; the TPM is wiped at the end.

    Raises:
        Refused: init data or a path cannot be used (`protocol.initdata.*`, `host.qemu.option`).
        Unavailable: a program is missing or failed, a port is taken, or the launch was not measured (`host.tool.*`,
            `host.port.*`, `host.vm.*`, `host.hcrtm.*`).
    """
    require_free(spec.ports)
    control, control_end = staging.channel()
    streams, streams_end = staging.channel()
    console, console_end = staging.channel()
    monitor, monitor_end = staging.channel()
    monitor.sendall(GREETING)  # before QEMU lives: it sends no event to a client that did not greet
    ends: list[HasFileno] = [control_end, streams_end, console_end, monitor_end]
    proxy: HCRTMProxy | None = None
    aside: dict[str, tuple[Child, int]] = {}
    if measured is not None:
        launch, vtpm = measured
        vmm_side, tpm_end = staging.channel()
        tpm_side, swtpm_end = staging.channel()
        ends.append(tpm_end)
        proxy = HCRTMProxy(vmm_side, tpm_side, launch.blob())
        aside["swtpm"] = staging.start("swtpm", _swtpm_command(swtpm_end), [swtpm_end], cwd=vtpm.directory)
    prepare_work(staging, spec, INITDATA_FILE)
    scratch = make_scratch_file(staging, spec)
    channels = Channels(
        control=control_end.fileno(),
        streams=streams_end.fileno(),
        console=console_end.fileno(),
        monitor=monitor_end.fileno(),
        tpm=ends[4].fileno() if measured else None,
        scratch=scratch.fileno() if scratch else None,
    )
    initdata = InitDataFile(spec.work / INITDATA_FILE, spec.initdata)
    arguments = qemu_arguments(spec, platform, channels, initdata.path, spec.require_bundle().root)
    inherits = [*ends, scratch] if scratch else ends
    main, output = staging.start("qemu", [str(find_program(PROGRAM)), *arguments], inherits)
    vm = RunningVM(
        name=spec.name,
        backend=backend,
        level=level,
        pipes=Pipes(control=control, streams=streams, console=console, monitor=monitor, proxy=proxy),
        console=spec.work / CONSOLE_FILE,
        launch=measured[0] if measured else None,
        initdata=initdata,
        main=main,
        main_output=output,
        aside=aside,
        clean_up=staging.hand_over(),
    )
    try:
        vm.require_measured()
    except Unavailable:
        vm.terminate()
        raise
    return vm


def prepare_work(staging: Staging, spec: VMSpec, *files: str) -> None:
    """Make the directory of the run; `files` in it are removed at the end of the pod.

    Raises:
        Unavailable: it cannot be made (`host.work`).
    """
    try:
        spec.work.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    except OSError as err:
        raise Unavailable("host.work", f"no directory for the run: {err.strerror}", path=str(spec.work)) from err
    for name in files:
        staging.leftover(partial((spec.work / name).unlink, missing_ok=True))


def make_scratch_file(staging: Staging, spec: VMSpec) -> BinaryIO | None:
    """Make the file behind the scratch disk: sparse and without a name, so that it ends with QEMU however that ends.

    Raises:
        Unavailable: it cannot be made (`host.scratch`).
    """
    if not spec.scratch_mib:
        return None
    try:
        file = tempfile.TemporaryFile(buffering=0, dir=spec.work)  # noqa: SIM115  # the staging closes it
        staging.inherited(file.close)
        os.ftruncate(file.fileno(), spec.scratch_mib * MIB)
    except OSError as err:
        raise Unavailable(
            "host.scratch",
            f"the scratch disk's file cannot be made: {err.strerror}",
            path=str(spec.work),
            hint="choose another directory with TMPDIR",
        ) from err
    return file


def _swtpm_command(control: socket.socket) -> list[str]:
    """Return swtpm's command; it runs in the directory of its state, whose path so needs no quoting."""
    channel = f"type=unixio,clientfd={control.fileno()}"
    return [str(find_program("swtpm")), "socket", "--tpm2", "--tpmstate", "dir=.,mode=0600", "--ctrl", channel]
