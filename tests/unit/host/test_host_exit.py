"""How an end is judged, and what a guest's console or QEMU's monitor may contain."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import Refused, Unavailable
from cloister.host.vmm import boundedlog
from cloister.host.vmm.boundedlog import BoundedLog
from cloister.host.vmm.exit import ExitReason, Observed, VMExit, judge_exit
from cloister.host.vmm.monitor import MonitorReader

PANIC = b"[  1.2] Kernel panic - not syncing: VFS: Unable to mount root fs\r\nmore"
VERITY = b"[  9.9] Kernel panic - not syncing: dm-verity device corrupted\r\n"
FAILURE = Unavailable("host.hcrtm.refused", "no")


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (Observed(status=0), ExitReason.POWERED_OFF),
        (Observed(status=0, shutdown_reason="guest-shutdown"), ExitReason.POWERED_OFF),
        (Observed(status=0, shutdown_reason="guest-reset"), ExitReason.GUEST_RESET),
        (Observed(status=0, shutdown_reason="host-signal"), ExitReason.GUEST_RESET),
        (Observed(status=0, shutdown_reason="guest-reset", console=PANIC), ExitReason.KERNEL_PANIC),
        (Observed(status=0, shutdown_reason="guest-reset", console=VERITY), ExitReason.VERITY_PANIC),
        (Observed(status=1, log="qemu: cannot"), ExitReason.QEMU_DIED),
        (Observed(status=-9, console=PANIC), ExitReason.QEMU_DIED),
        (Observed(status=-9, swtpm_status=-11), ExitReason.SWTPM_DIED),
        (Observed(status=-9, measurement=FAILURE), ExitReason.MEASUREMENT_FAILED),
        (Observed(status=-15, terminated=True, console=PANIC), ExitReason.TERMINATED),
        (Observed(status=0, sandbox=True), ExitReason.POWERED_OFF),
        (Observed(status=1, sandbox=True, log="cloister: guest.internal"), ExitReason.SANDBOX_DIED),
    ],
)
def test_every_end_has_one_reason(seen: Observed, reason: ExitReason) -> None:
    end = judge_exit(seen)
    assert end.reason is reason
    assert end.error().code == f"host.vm.{reason.value}"
    assert end.clean == (reason in {ExitReason.POWERED_OFF, ExitReason.TERMINATED})
    if end.clean:
        end.require_clean()
    else:
        with pytest.raises((Refused, Unavailable), match=f"host.vm.{reason.value}"):
            end.require_clean()


def test_a_corrupted_root_is_a_refusal() -> None:
    assert isinstance(VMExit(reason=ExitReason.VERITY_PANIC, status=0).error(), Refused)
    assert isinstance(VMExit(reason=ExitReason.KERNEL_PANIC, status=0).error(), Unavailable)


def test_last_words_are_told() -> None:
    assert judge_exit(Observed(status=0, console=PANIC)).detail == "VFS: Unable to mount root fs"
    assert "qemu: cannot" in str(judge_exit(Observed(status=1, log="qemu: cannot")).error())


def test_terminal_codes_of_a_guest_do_not_reach_a_person() -> None:
    end = judge_exit(Observed(status=0, console=b"Kernel panic - not syncing: \x1b]0;evil\x07\n"))
    assert "\x1b" not in end.detail and "\x07" not in end.detail


@given(st.binary(max_size=300))
def test_any_console_is_judged(console: bytes) -> None:
    assert judge_exit(Observed(status=0, console=console)).reason in ExitReason


def test_monitor_tells_why() -> None:
    monitor = MonitorReader()
    monitor.feed(b'{"QMP":{}}\r\n{"return":{}}\n{"event":"RESUME"}\n{"event":"SHUT')
    assert monitor.shutdown_reason == ""
    monitor.feed(b'DOWN","data":{"guest":true,"reason":"guest-reset"}}\r\n')
    assert monitor.shutdown_reason == "guest-reset"
    monitor.feed(b'{"event":"SHUTDOWN","data":{"reason":"host-signal"}}\n')
    assert monitor.shutdown_reason == "guest-reset"


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_monitor_survives_any_bytes(parts: list[bytes]) -> None:
    monitor = MonitorReader()
    for part in parts:
        monitor.feed(part)
    assert len(monitor.shutdown_reason) <= 40


def test_monitor_keeps_no_endless_line() -> None:
    monitor = MonitorReader()
    for _ in range(40):
        monitor.feed(b"x" * 8192)
    assert len(monitor._buffer) <= 64 * 1024
    monitor.feed(b'\n{"event":"SHUTDOWN","data":{"reason":"guest-panic"}}\n')
    assert monitor.shutdown_reason == "guest-panic"


def test_log_keeps_head_and_tail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundedlog, "HEAD_BYTES", 10)
    monkeypatch.setattr(boundedlog, "TAIL_BYTES", 6)
    log = BoundedLog(tmp_path / "console.log")
    for part in (b"0123", b"456789ab", b"cdefgh", b"ijklm\n"):
        log.write(part)
    assert log.tail() == b"ijklm\n"
    assert (tmp_path / "console.log").read_bytes() == b"0123456789"
    log.close()
    log.close()
    assert (tmp_path / "console.log").read_bytes() == b"0123456789\n[cloister: 8 bytes left out]\nijklm\n"


def test_log_left_out_nothing(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "log")
    log.write(b"one\ntwo\x1b[0m\n \n")
    log.close()
    assert log.last_line() == "two?[0m"
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\x1b[0m\n \n"


@given(parts=st.lists(st.binary(max_size=50), max_size=20))
def test_log_is_bounded_and_exact(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    log = BoundedLog(path)
    for part in parts:
        log.write(part)
    log.close()
    assert path.read_bytes() == b"".join(parts)


def test_full_disk_ends_no_pod() -> None:
    log = BoundedLog(Path("/dev/full"))
    log.write(b"words")
    log.close()
    assert log.tail() == b"words"
