"""The KVM probe: made-up QEMUs that run, refuse, hang or lie, and a verdict that is kept."""

from __future__ import annotations

import json
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloister.errors import Unavailable
from cloister.host.vmm import kvm
from cloister.host.vmm.kvm import KVMVerdict, choose_accelerator, probe_kvm
from cloister.host.vmm.spec import Accelerator, Bundle

SECTOR_RUNS = 'case "$*" in *isa-debug-exit*) exit 67;; esac; '
KERNEL_RUNS = "echo 'Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)'; exit 0"


@dataclass
class Machine:
    """A machine with a KVM device and some QEMU."""

    directory: Path
    bundle: Bundle

    @property
    def device(self) -> Path:
        return self.directory / "kvm"

    @property
    def cache(self) -> Path:
        return self.directory / "cache"

    @property
    def runs(self) -> int:
        log = self.directory / "runs"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def probe(self, script: str) -> KVMVerdict:
        qemu = self.directory / "qemu"
        qemu.write_text(f"#!/bin/sh\necho run >> {self.directory}/runs\n{script}\n")
        qemu.chmod(0o755)
        return probe_kvm(self.bundle, self.cache, qemu=qemu, device=self.device)


@pytest.fixture
def machine(tmp_path: Path, bundle: Bundle) -> Machine:
    made = Machine(tmp_path, bundle)
    made.device.touch()
    return made


def test_kvm_that_works(machine: Machine) -> None:
    assert machine.probe(SECTOR_RUNS + KERNEL_RUNS).works
    assert machine.runs == 2


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo 'qemu: error: failed to set MSR'; exit 134", "a boot sector ends with status 134: qemu: error"),
        ("exit 0", "a boot sector ends with status 0"),
        ("exit 66", "a boot sector ends with status 66"),
        (SECTOR_RUNS + "echo 'KVM internal error. Suberror: 1'; exit 1", "the guest kernel ends with status 1: KVM"),
        (SECTOR_RUNS + "exit 0", "the guest kernel ends with status 0"),
        (SECTOR_RUNS + "echo 'Unable to mount root fs'; exit 1", "the guest kernel ends with status 1"),
    ],
)
def test_kvm_that_does_not(machine: Machine, script: str, why: str) -> None:
    verdict = machine.probe(script)
    assert not verdict.works
    assert verdict.why.startswith(why)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exec sleep 1000", "a boot sector hangs"),
        (SECTOR_RUNS + "echo 'emulation failure'; exec sleep 1000", "the guest kernel hangs: emulation failure"),
    ],
)
def test_kvm_that_hangs_is_killed(machine: Machine, monkeypatch: pytest.MonkeyPatch, script: str, why: str) -> None:
    monkeypatch.setattr(kvm, "SECTOR_SECONDS", 0.3)
    monkeypatch.setattr(kvm, "KERNEL_SECONDS", 0.3)
    began = time.monotonic()
    verdict = machine.probe(script)
    assert time.monotonic() - began < 10
    assert (verdict.works, verdict.why) == (False, why)


def test_verdict_is_kept_until_something_changes(machine: Machine) -> None:
    script = SECTOR_RUNS + KERNEL_RUNS
    machine.probe(script)
    qemu = machine.directory / "qemu"
    assert probe_kvm(machine.bundle, machine.cache, qemu=qemu, device=machine.device).works
    assert machine.runs == 2
    os.utime(machine.bundle.kernel, ns=(1, 1))
    assert probe_kvm(machine.bundle, machine.cache, qemu=qemu, device=machine.device).works
    assert machine.runs == 4


def test_verdict_of_another_boot_does_not_count(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.probe(SECTOR_RUNS + KERNEL_RUNS)
    monkeypatch.setattr(kvm, "_boot_id", lambda: "another")
    assert not machine.probe("exit 1").works


@pytest.mark.parametrize("content", [b"", b"{", b'{"verdicts": 1}', b"\xff", b'{"verdicts":{},"more":1}'])
def test_broken_memory_means_probing_again(machine: Machine, content: bytes) -> None:
    machine.cache.mkdir()
    (machine.cache / "kvm-probe.json").write_bytes(content)
    assert machine.probe(SECTOR_RUNS + KERNEL_RUNS).works
    assert len(json.loads((machine.cache / "kvm-probe.json").read_bytes())["verdicts"]) == 1


def test_memory_is_bounded(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "_REMEMBERED", 3)
    for number in range(5):
        os.utime(machine.bundle.kernel, ns=(number, number))
        machine.probe("exit 1")
    assert len(json.loads((machine.cache / "kvm-probe.json").read_bytes())["verdicts"]) == 3


def test_no_device(machine: Machine) -> None:
    machine.device.unlink()
    assert machine.probe("exit 67").why.endswith("does not exist")
    assert machine.runs == 0


def test_device_of_others(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.device.chmod(stat.S_IRUSR)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may do everything: made up here
    assert machine.probe("exit 67").why.endswith("not accessible to this user")
    assert machine.runs == 0


def test_incomplete_bundle(machine: Machine) -> None:
    machine.bundle.bios.unlink()
    with pytest.raises(Unavailable, match=r"host\.bundle\.incomplete"):
        machine.probe("exit 67")


@pytest.mark.parametrize(
    ("wanted", "works", "expected"),
    [
        (Accelerator.TCG, True, Accelerator.TCG),
        (Accelerator.AUTO, True, Accelerator.KVM),
        (Accelerator.AUTO, False, Accelerator.TCG),
        (Accelerator.KVM, True, Accelerator.KVM),
    ],
)
def test_choice(
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: Accelerator,
    works: bool,
    expected: Accelerator,
) -> None:
    monkeypatch.setattr(kvm, "probe_kvm", lambda *_: KVMVerdict(works=works, why="made up"))
    assert choose_accelerator(wanted, bundle, tmp_path) is expected


def test_kvm_by_name_where_it_does_not_work(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "probe_kvm", lambda *_: KVMVerdict(works=False, why="hangs"))
    with pytest.raises(Unavailable, match=r"host\.kvm\.unusable") as error:
        choose_accelerator(Accelerator.KVM, bundle, tmp_path)
    assert error.value.actual == "hangs"
