"""One claim model over all TEEs, and the three honest levels.

The level is a typed field here and everywhere it travels (evidence, token, log, command line). It is derived from
the root that signed, never from what the evidence says about itself.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What verified evidence says, in the same words for every technology.

    Attributes:
        tee: wire name of the technology (`tpm`, `snp`, ...).
        level: derived from the endorsing root.
        debug: whether the platform lets its operator read or alter the guest by design.
        registers: measurement registers by name (`pcr00` .. `pcr23`, `launch`, `rtmr0` ..), raw bytes.
        report_data: what the evidence binds (hash of nonce and key).
        init_data: the register value that holds the init data, empty when the technology has none.
        instance_id: identity of the chip or vTPM, stable over the instance's life.
        raw: the technology's own claims under the names CoCo's policies expect.
    """

    tee: str
    level: Level
    debug: bool
    registers: Mapping[str, bytes]
    report_data: bytes
    init_data: bytes
    instance_id: str
    raw: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON values as the technology defines them
