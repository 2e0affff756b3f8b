"""One claim model over all TEEs, and the three honest levels.

The level is a typed field here and everywhere it travels (evidence, token, log, command line). It is derived from
the root that signed, never from what the evidence says about itself.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final


class Level(enum.StrEnum):
    """How much a platform proves (`docs/explanation/levels.md`)."""

    HARDWARE = "hardware"
    MEASURED = "measured"
    SIMULATED = "simulated"


LEVEL_MEANING: Final[Mapping[Level, str]] = {
    Level.HARDWARE: "memory encrypted and evidence signed by the vendor's hardware",
    Level.MEASURED: (
        "boot and code integrity against everyone but this machine's root; memory is readable to that root"
    ),
    Level.SIMULATED: "the flow only; protects nothing",
}


class Role(enum.StrEnum):
    """What a measurement is a measurement of, in the same words for every technology."""

    FIRMWARE = "firmware"
    KERNEL = "kernel"
    INITRD = "initrd"
    COMMAND_LINE = "command line"
    ROOT_HASH = "root hash"
    RUNTIME = "runtime"
    LAUNCH = "launch"  # one value over everything that was loaded at launch


@dataclass(frozen=True, slots=True, kw_only=True)
class TCB:
    """Versions of what the platform itself runs, by component (`snp`, `microcode`, `pce`, ...).

    Attributes:
        reported: what the evidence is signed for.
        current: what runs now.
        committed: what cannot be rolled back below.
        launch: what ran when the guest was started.
        status: the vendor's word for `reported` (`UpToDate`, `OutOfDate`, ...), empty where the vendor has none.
        evaluated_at: date of the vendor's statement behind `status`.
    """

    reported: Mapping[str, int] = field(default_factory=dict)
    current: Mapping[str, int] = field(default_factory=dict)
    committed: Mapping[str, int] = field(default_factory=dict)
    launch: Mapping[str, int] = field(default_factory=dict)
    status: str = ""
    evaluated_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The time in which everything the verification relied on is valid: latest start, earliest end."""

    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What authentic evidence says, in the same words for every technology.

    Attributes:
        tee: wire name of the technology (`tpm`, `snp`, ...).
        level: derived from the endorsing root.
        debug: whether the platform lets its operator read or alter the guest by design.
        registers: measurement registers by name (`pcr00` .. `pcr23`, `measurement`, `mrtd`, `rtmr0` ..), raw bytes.
        report_data: the field that binds nonce and key.
        init_data: the field or register that holds the init data, empty when the technology has none.
        instance_id: identity of the chip or vTPM, stable over the instance's life; empty when masked.
        raw: the technology's own claims under the names CoCo's policies expect.
        platform: make and model in words (`AMD SEV-SNP, Genoa`).
        product: key of the advisory table (`amd-genoa`), empty where it has no rows.
        tcb: versions of the platform's own parts; None where the technology reports none.
        measurements: what is known to be measured, by role.
        advisories: the vendor's advisories that apply to the reported TCB.
        window: validity of endorsements and collateral relied on; None where nothing expires.
        native: values under the technology's own names (`mrtd`, `host_data`, `vmpl`), for people and scripts; JSON.
    """

    tee: str
    level: Level
    debug: bool
    registers: Mapping[str, bytes]
    report_data: bytes
    init_data: bytes
    instance_id: str
    raw: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON values as the technology defines them
    platform: str = ""
    product: str = ""
    tcb: TCB | None = None
    measurements: Mapping[Role, bytes] = field(default_factory=dict)
    advisories: tuple[str, ...] = ()
    window: Window | None = None
    native: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON values
