"""The doctor's facts against made-up device trees."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import Unavailable
from cloister.host import probe
from cloister.host.probe import EARLIEST, ProbeLine, probe_machine
from cloister.host.process import ToolOutput
from cloister.host.vmm.kvm import KVMVerdict
from cloister.host.vmm.spec import Bundle
from cloister.rats.claims import Level

NOW = datetime(2026, 11, 24, tzinfo=UTC)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for directory in ("dev", "proc", "sys/module/kvm_amd/parameters", "sys/kernel/config"):
        (root / directory).mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal: 2 kB\nMemAvailable:    4194304 kB\n")
    return root


@pytest.fixture(autouse=True)
def programs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that programs are there and new enough: running them ten times per test costs seconds."""
    if request.node.get_closest_marker("tool"):
        return
    monkeypatch.setattr(probe, "find_program", lambda name: Path("/opt") / name)
    monkeypatch.setattr(probe, "run_tool", lambda command, **_: said(b'99.0 "version": "99.0"'))


def said(text: bytes) -> ToolOutput:
    return ToolOutput(stdout=text, stderr=b"")


def facts(tree: Path, **more: Any) -> dict[str, ProbeLine]:
    arguments: dict[str, Any] = {"cache": tree / "cache", "now": NOW, "root": tree, **more}
    lines = probe_machine(**arguments)
    assert len({line.name for line in lines}) == len(lines)
    for line in lines:
        assert line.detail
        assert bool(line.fix) != line.ok
    return {line.name: line for line in lines}


def test_nothing_of_a_tee(tree: Path) -> None:
    devices = {name: line for name, line in facts(tree).items() if name.startswith("tee.")}
    assert len(devices) == 10
    assert not any(line.ok for line in devices.values())
    assert {line.level for line in devices.values()} == {Level.HARDWARE}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("tee.sev-guest", "dev/sev-guest"),
        ("tee.tdx-guest", "dev/tdx_guest"),
        ("tee.tpm", "dev/tpmrm0"),
        ("tee.nsm", "dev/nsm"),
        ("tee.sgx", "dev/sgx_enclave"),
        ("tee.sev-host", "dev/sev"),
        ("tee.tsm", "sys/kernel/config/tsm/report"),
    ],
)
def test_device_that_is_there(tree: Path, name: str, place: str) -> None:
    (tree / place).parent.mkdir(parents=True, exist_ok=True)
    (tree / place).touch()
    found = facts(tree)
    assert [line.name for line in found.values() if line.name.startswith("tee.") and line.ok] == [name]


def test_device_of_others(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "dev/tpmrm0").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may do everything: made up here
    assert facts(tree)["tee.tpm"].fix == "give this user access to /dev/tpmrm0"


@pytest.mark.parametrize(("value", "ok"), [("Y\n", True), ("1\n", True), ("N\n", False), ("0\n", False), ("", False)])
def test_parameter_must_say_yes(tree: Path, value: str, ok: bool) -> None:
    (tree / "sys/module/kvm_amd/parameters/sev_snp").write_text(value)
    assert facts(tree)["tee.snp-host"].ok is ok


def test_kvm_needs_an_image(tree: Path) -> None:
    line = facts(tree)["kvm"]
    assert not line.ok
    assert line.fix == "run: cloister podvm build"


@pytest.mark.parametrize("works", [True, False])
def test_kvm_verdict(tree: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    monkeypatch.setattr(probe, "probe_kvm", lambda *_, **__: KVMVerdict(works=works, why="seen"))
    line = facts(tree, bundle=bundle)["kvm"]
    assert (line.ok, line.detail) == (works, "seen")


def test_kvm_that_cannot_be_tried(tree: Path, bundle: Bundle) -> None:
    (tree / "dev/kvm").touch()
    bundle.kernel.unlink()
    assert "lacks a file" in facts(tree, bundle=bundle)["kvm"].detail


def test_firmware(tree: Path, bundle: Bundle) -> None:
    assert not facts(tree)["firmware"].ok
    assert facts(tree, bundle=bundle)["firmware"].ok
    bundle.ovmf_code.unlink()
    assert facts(tree, bundle=bundle)["firmware"].detail == "missing: OVMF_CODE.fd"


@pytest.mark.parametrize(
    ("text", "ok", "detail"),
    [
        (b"QEMU emulator version 7.2.22 (Debian)", True, "version 7.2"),
        (b"QEMU emulator version 10.0.2", True, "version 10.0"),
        (b"QEMU emulator version 6.9.0", False, "version 6.9"),
        (b"something else", False, "no version"),
    ],
)
def test_versions(tree: Path, monkeypatch: pytest.MonkeyPatch, text: bytes, ok: bool, detail: str) -> None:
    monkeypatch.setattr(probe, "run_tool", lambda command, **_: said(text))
    line = facts(tree)["tool.qemu"]
    assert line.ok is ok
    assert line.detail == f"/opt/qemu-system-x86_64: {detail}"


def test_missing_programs(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Path:
        raise Unavailable("host.tool.missing", f"{name} is not installed", hint=f"apt-get install {name}")

    monkeypatch.setattr(probe, "find_program", missing)
    found = facts(tree)
    assert not any(found[name].ok for name in found if name.startswith("tool.") or name == "userns")
    assert found["tool.swtpm"].fix == "apt-get install swtpm"


def test_disk(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    for free, ok in ((probe.CACHE_BYTES, True), (probe.CACHE_BYTES - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda place, free=free: usage._replace(free=free))
        assert facts(tree)["disk"].ok is ok


@pytest.mark.parametrize(
    ("text", "ok"), [("MemAvailable: 1048576 kB\n", True), ("MemAvailable: 1048575 kB\n", False), ("", False)]
)
def test_memory(tree: Path, text: str, ok: bool) -> None:
    (tree / "proc/meminfo").write_text(text)
    assert facts(tree)["memory"].ok is ok
    (tree / "proc/meminfo").unlink()
    assert not facts(tree)["memory"].ok


@pytest.mark.parametrize(
    ("now", "ok"),
    [(NOW, True), (EARLIEST - timedelta(seconds=1), False), (datetime(2150, 1, 1, tzinfo=UTC), False)],
)
def test_clock(tree: Path, now: datetime, ok: bool) -> None:
    assert facts(tree, now=now)["clock"].ok is ok


@pytest.mark.tool
def test_programs_of_this_machine(tree: Path, require_tool: Any) -> None:
    for name in ("qemu-system-x86_64", "swtpm", "swtpm_setup", "bwrap", "setpriv"):
        require_tool(name)
    found = facts(tree)
    assert all(line.ok for name, line in found.items() if name.startswith("tool.")), found
