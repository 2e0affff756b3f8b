"""Why a pod's machine ended: decided in one pure function from what the launcher observed."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final

from cloister.errors import CloisterError, Refused, Unavailable

_VERITY: Final = re.compile(rb"Kernel panic - not syncing: dm-verity|cloister: verity")
_PANIC: Final = re.compile(rb"Kernel panic - not syncing: ([^\r\n]{0,200})")
_ASKED: Final = frozenset({"", "guest-shutdown"})


class ExitReason(enum.StrEnum):
    """What ended it; also the last part of the error code `host.vm.*`."""

    POWERED_OFF = "powered_off"
    TERMINATED = "terminated"
    GUEST_RESET = "guest_reset"
    KERNEL_PANIC = "kernel_panic"
    VERITY_PANIC = "verity_panic"
    QEMU_DIED = "qemu_died"
    SWTPM_DIED = "swtpm_died"
    MEASUREMENT_FAILED = "measurement_failed"
    SANDBOX_DIED = "sandbox_died"


_MESSAGES: Final[dict[ExitReason, tuple[str, str]]] = {
    ExitReason.POWERED_OFF: ("the guest powered off", "its last words are in the console log"),
    ExitReason.TERMINATED: ("the launcher ended the pod", ""),
    ExitReason.GUEST_RESET: ("the guest reset itself without a panic", "look into the console log"),
    ExitReason.KERNEL_PANIC: ("the guest kernel panicked", "look into the console log; more memory may help"),
    ExitReason.VERITY_PANIC: (
        "the root file system is not the one the measured root hash names",
        "build the pod-VM image again: cloister podvm build",
    ),
    ExitReason.QEMU_DIED: ("QEMU ended by itself", "look into qemu.log beside the console log"),
    ExitReason.SWTPM_DIED: ("the software TPM ended by itself", "look into swtpm.log beside the console log"),
    ExitReason.MEASUREMENT_FAILED: ("the launch could not be measured", "look into swtpm.log beside the console log"),
    ExitReason.SANDBOX_DIED: ("the agent ended with an error", "look into the console log"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VMExit:
    """How it ended.

    Attributes:
        reason: what ended it.
        status: exit status of the main process, negative signal number; None when it never ended by itself.
        detail: last words: of the guest's kernel, of QEMU, of the sandbox; chosen by them, so only for reading.
    """

    reason: ExitReason
    status: int | None
    detail: str = ""

    @property
    def clean(self) -> bool:
        """Whether it ended because the guest or the caller wanted it to."""
        return self.reason in {ExitReason.POWERED_OFF, ExitReason.TERMINATED}

    def error(self) -> CloisterError:
        """Return the error that says this, for a caller that needed the pod to live."""
        message, hint = _MESSAGES[self.reason]
        said = f": {self.detail}" if self.detail else ""
        status = "" if self.status is None else f"status {self.status}"
        if self.reason is ExitReason.VERITY_PANIC:
            return Refused("host.vm.verity_panic", message + said, actual=status, hint=hint)
        return Unavailable(f"host.vm.{self.reason.value}", message + said, actual=status, hint=hint)

    def require_clean(self) -> None:
        """Do nothing for a clean end.

        Raises:
            Unavailable: `host.vm.*`.
            Refused: `host.vm.verity_panic`.
        """
        if not self.clean:
            raise self.error()


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What the launcher saw of an end.

    Attributes:
        status: exit status of the main process.
        terminated: whether the caller had asked for the end.
        sandbox: whether the main process is a sandbox, not QEMU.
        swtpm_status: status of swtpm when it ended first.
        measurement: the error of the launch measurement.
        shutdown_reason: QEMU's own word.
        console: newest console output.
        log: last line the main process wrote.
    """

    status: int
    terminated: bool = False
    sandbox: bool = False
    swtpm_status: int | None = None
    measurement: CloisterError | None = None
    shutdown_reason: str = ""
    console: bytes = b""
    log: str = ""


def judge_exit(seen: Observed) -> VMExit:
    """Return how a machine ended. The first cause that explains the end is taken; a wish of the caller comes first."""
    if seen.terminated:
        return VMExit(reason=ExitReason.TERMINATED, status=seen.status)
    if seen.measurement is not None:
        return VMExit(reason=ExitReason.MEASUREMENT_FAILED, status=seen.status, detail=str(seen.measurement))
    if seen.swtpm_status is not None:
        return VMExit(reason=ExitReason.SWTPM_DIED, status=seen.swtpm_status)
    if seen.sandbox:
        reason = ExitReason.SANDBOX_DIED if seen.status else ExitReason.POWERED_OFF
        return VMExit(reason=reason, status=seen.status, detail=seen.log if seen.status else "")
    if seen.status != 0:
        return VMExit(reason=ExitReason.QEMU_DIED, status=seen.status, detail=seen.log)
    panic = _PANIC.search(seen.console)
    if panic or _VERITY.search(seen.console):
        reason = ExitReason.VERITY_PANIC if _VERITY.search(seen.console) else ExitReason.KERNEL_PANIC
        words = panic.group(1).decode("ascii", errors="replace") if panic else ""
        return VMExit(reason=reason, status=0, detail="".join(c if c.isprintable() else "?" for c in words))
    if seen.shutdown_reason not in _ASKED:
        return VMExit(reason=ExitReason.GUEST_RESET, status=0, detail=seen.shutdown_reason)
    return VMExit(reason=ExitReason.POWERED_OFF, status=0)
