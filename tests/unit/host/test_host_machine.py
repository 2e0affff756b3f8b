"""A running pod made of small scripts: every end is noticed, judged, and takes the rest with it."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import Unavailable
from cloister.host.vmm.exit import ExitReason
from cloister.host.vmm.hcrtm import Command, HCRTMProxy
from cloister.host.vmm.initdatafile import InitDataFile
from cloister.host.vmm.machine import Pipes, RunningVM
from cloister.host.vmm.spec import Backend
from cloister.host.vmm.staging import Staging
from cloister.rats.claims import Level

ALIVE = "import time; time.sleep(1000)"
Maker = Callable[..., RunningVM]


@pytest.fixture
def cleaned() -> list[str]:
    """What was cleaned up, in order."""
    return []


@pytest.fixture
def make(tmp_path: Path, cleaned: list[str]) -> Iterator[Maker]:
    """Return a function that starts a machine of one script, or two with `swtpm`.

    The scripts find descriptors of their ends as `control`, `streams`, `console`, `monitor`, `tpm`.
    """
    made: list[RunningVM] = []

    def start(script: str, *, swtpm: str = "", measured: bool = False, backend: Backend = Backend.SEABIOS) -> RunningVM:
        with Staging() as staging:
            staging.leftover(lambda: cleaned.append("files"))
            ours: dict[str, socket.socket] = {}
            theirs: dict[str, socket.socket] = {}
            for name in ("control", "streams", "console", "monitor", "vmm", "tpm"):
                ours[name], theirs[name] = staging.channel()
            main_ends = [theirs[name] for name in ("control", "streams", "console", "monitor", "vmm")]
            aside = {}
            if swtpm:
                aside["swtpm"] = staging.start("swtpm", python(swtpm, tpm=theirs["tpm"]), [theirs["tpm"]])
            names = dict(zip(("control", "streams", "console", "monitor", "tpm"), main_ends, strict=True))
            main, output = staging.start("qemu", python(script, **names), main_ends)
            sandboxed = backend is Backend.PROCESS
            proxy = HCRTMProxy(ours["vmm"], ours["tpm"], b"blob") if measured else None
            vm = RunningVM(
                name="pod-1",
                backend=backend,
                level=Level.MEASURED,
                pipes=Pipes(
                    control=ours["control"],
                    streams=ours["streams"],
                    console=None if sandboxed else ours["console"],
                    monitor=None if sandboxed else ours["monitor"],
                    proxy=proxy,
                ),
                console=tmp_path / "console.log",
                launch=None,
                initdata=InitDataFile(tmp_path / "initdata", None),
                main=main,
                main_output=output,
                aside=aside,
                clean_up=staging.hand_over(),
            )
            unused = [ours[name] for name in ("vmm", "tpm") if not measured]
            unused += [ours[name] for name in ("console", "monitor") if sandboxed]
        for end in unused:
            end.close()
        made.append(vm)
        return vm

    yield start
    for vm in made:
        vm.terminate()


def python(script: str, **ends: socket.socket) -> list[str]:
    prologue = "import os, sys\n" + "".join(f"{name} = {end.fileno()}\n" for name, end in ends.items())
    return [sys.executable, "-I", "-S", "-c", prologue + script]


def ended(vm: RunningVM) -> ExitReason:
    end = vm.wait(20)
    assert end is not None
    return end.reason


def test_channels_console_and_power_off(make: Maker, cleaned: list[str], tmp_path: Path) -> None:
    vm = make(
        "os.write(control, b'hello'); os.write(console, b'words\\n'); print('log line', flush=True)\n"
        "assert os.read(streams, 10) == b'stdin'\n"
        'os.write(monitor, b\'{"event":"SHUTDOWN","data":{"reason":"guest-shutdown"}}\\n\')'
    )
    assert vm.control.recv(10) == b"hello"
    vm.streams.sendall(b"stdin")
    assert ended(vm) is ExitReason.POWERED_OFF
    assert cleaned == ["files"]
    assert vm.console.read_bytes() == b"words\n"
    assert (tmp_path / "qemu.log").read_bytes() == b"log line\n"
    assert vm.terminate().reason is ExitReason.POWERED_OFF
    assert vm.terminate().reason is ExitReason.POWERED_OFF


def test_last_words_are_kept_even_if_they_come_at_the_end(make: Maker) -> None:
    vm = make("os.write(console, b'x' * 100000 + b'\\nKernel panic - not syncing: end\\n'); os._exit(0)")
    assert ended(vm) is ExitReason.KERNEL_PANIC
    assert vm.console.stat().st_size == 100000 + 33


def test_reset_is_told_from_power_off(make: Maker) -> None:
    vm = make('os.write(monitor, b\'{"event":"SHUTDOWN","data":{"reason":"guest-reset"}}\\n\')')
    assert ended(vm) is ExitReason.GUEST_RESET


def test_main_process_that_fails(make: Maker) -> None:
    vm = make("print('qemu: bad option', flush=True); sys.exit(1)", swtpm=ALIVE)
    end = vm.wait(20)
    assert end is not None
    assert (end.reason, end.status, end.detail) == (ExitReason.QEMU_DIED, 1, "qemu: bad option")
    with pytest.raises(Unavailable, match=r"host\.vm\.qemu_died"):
        end.require_clean()


def test_terminate_is_idempotent_and_ends_all(make: Maker, cleaned: list[str]) -> None:
    vm = make(ALIVE, swtpm=ALIVE)
    descriptors = [os.pidfd_open(pid) for pid in vm.pids.values()]
    assert set(vm.pids) == {"qemu", "swtpm"}
    assert vm.wait(0) is None
    assert vm.terminate().reason is ExitReason.TERMINATED
    assert vm.terminate().reason is ExitReason.TERMINATED
    assert cleaned == ["files"]
    assert vm.control.fileno() == vm.streams.fileno() == -1
    for descriptor in descriptors:
        assert select.select([descriptor], [], [], 0)[0]
        os.close(descriptor)


def test_main_process_killed_from_outside(make: Maker) -> None:
    vm = make(ALIVE, swtpm=ALIVE)
    swtpm = os.pidfd_open(vm.pids["swtpm"])
    os.kill(vm.pids["qemu"], signal.SIGKILL)
    assert ended(vm) is ExitReason.QEMU_DIED
    assert select.select([swtpm], [], [], 0)[0]
    os.close(swtpm)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_tpm_killed_from_outside(make: Maker, number: int) -> None:
    vm = make(ALIVE, swtpm=ALIVE)
    os.kill(vm.pids["swtpm"], number)
    assert ended(vm) is ExitReason.SWTPM_DIED


def test_tpm_that_leaves_without_being_told(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    from cloister.host.vmm import machine

    monkeypatch.setattr(machine, "GRACE_SECONDS", 0.2)
    assert ended(make(ALIVE, swtpm="pass")) is ExitReason.SWTPM_DIED


def test_tpm_that_leaves_just_before_the_machine(make: Maker) -> None:
    vm = make("os.read(control, 1)", swtpm="os._exit(0)")
    assert vm._aside["swtpm"].wait(20) == 0
    vm.control.sendall(b"x")
    assert ended(vm) is ExitReason.POWERED_OFF


INIT = "os.write(tpm, (2).to_bytes(4, 'big') + bytes(4)); assert os.read(tpm, 4) == bytes(4)\n"
TPM = "while data := os.read(tpm, 100): os.write(tpm, bytes(4))"


def test_launch_is_measured(make: Maker) -> None:
    vm = make(INIT + "os.read(control, 1)", swtpm=TPM, measured=True)
    vm.require_measured(20)
    vm.control.sendall(b"x")
    assert ended(vm) is ExitReason.POWERED_OFF


def test_tpm_refuses_the_measurement(make: Maker) -> None:
    refuse = (
        f"os.read(tpm, 8); os.write(tpm, bytes(4)); os.read(tpm, 4); os.write(tpm, b'\\0\\0\\0{chr(Command.INIT)}')\n"
    )
    vm = make(INIT + ALIVE, swtpm=refuse + ALIVE, measured=True)
    with pytest.raises(Unavailable, match=r"host\.vm\.measurement_failed.*HASH_START"):
        vm.require_measured(20)


def test_machine_that_ends_before_it_is_measured(make: Maker) -> None:
    vm = make("print('no firmware'); sys.exit(1)", swtpm=TPM, measured=True)
    with pytest.raises(Unavailable, match=r"host\.vm\.qemu_died.*no firmware"):
        vm.require_measured(20)


def test_machine_that_never_powers_its_tpm_on(make: Maker) -> None:
    vm = make(ALIVE, swtpm=TPM, measured=True)
    with pytest.raises(Unavailable, match=r"host\.hcrtm\.no_answer"):
        vm.require_measured(0.1)


def test_nothing_to_measure(make: Maker) -> None:
    make(ALIVE).require_measured(0)


def test_sandbox_writes_to_the_console(make: Maker) -> None:
    vm = make("print('cloister: guest.internal', flush=True); sys.exit(1)", backend=Backend.PROCESS)
    end = vm.wait(20)
    assert end is not None
    assert (end.reason, end.detail) == (ExitReason.SANDBOX_DIED, "cloister: guest.internal")
    assert vm.console.read_bytes() == b"cloister: guest.internal\n"


def test_a_failing_clean_up_hangs_nobody(make: Maker, cleaned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    vm = make("os.read(control, 1)")

    def fail() -> None:
        raise OSError("disk gone")

    monkeypatch.setattr(vm, "_clean_up", fail)
    vm.control.sendall(b"x")
    assert ended(vm) is ExitReason.POWERED_OFF


def test_staging_undoes_a_failed_launch() -> None:
    done: list[str] = []
    with pytest.raises(RuntimeError), Staging() as staging:
        staging.leftover(lambda: done.append("leftover"))
        staging.own(lambda: done.append("own"))
        ours, theirs = staging.channel()
        child, _ = staging.start("x", ["/bin/sleep", "1000"])
        raise RuntimeError
    assert (ours.fileno(), theirs.fileno()) == (-1, -1)
    assert child.status == -signal.SIGKILL
    assert done == ["own", "leftover"]


def test_staging_gives_up_what_is_handed_over() -> None:
    done: list[str] = []
    with Staging() as staging:
        staging.leftover(lambda: done.append("leftover"))
        ours, theirs = staging.channel()
        clean_up = staging.hand_over()
    assert theirs.fileno() == -1
    assert ours.fileno() >= 0
    ours.close()
    assert done == []
    clean_up()
    assert done == ["leftover"]


LAUNCHER = """
import sys, pathlib
sys.path.insert(0, {here!r})
from cloister.host.vmm.machine import *
from cloister.host.vmm.initdatafile import InitDataFile
from cloister.host.vmm.spec import Backend
from cloister.host.vmm.staging import Staging
with Staging() as staging:
    control, _ = staging.channel(); streams, _ = staging.channel()
    aside = {{"swtpm": staging.start("swtpm", ["/bin/sleep", "1000"])}}
    main, output = staging.start("qemu", ["/bin/sleep", "1000"])
    vm = RunningVM(name="x", backend=Backend.SEABIOS, level=Level.MEASURED, launch=None, main=main, main_output=output,
        initdata=InitDataFile(pathlib.Path({console!r}).with_name("initdata"), None),
        pipes=Pipes(control=control, streams=streams), console=pathlib.Path({console!r}), aside=aside,
        clean_up=staging.hand_over())
print(*vm.pids.values(), flush=True)
sys.stdin.read()
"""


def test_launcher_killed(tmp_path: Path) -> None:
    script = LAUNCHER.format(here=str(Path(__file__).parent), console=str(tmp_path / "console.log"))
    launcher: Any = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    descriptors = [os.pidfd_open(int(word)) for word in launcher.stdout.readline().split()]
    assert len(descriptors) == 2
    launcher.kill()
    launcher.communicate()
    for descriptor in descriptors:
        assert select.select([descriptor], [], [], 20)[0]
        os.close(descriptor)
