"""What booting a unified kernel image by OVMF leaves in PCR 4, 9, 11 and 12, event by event.

Order and content of the events were read from the log of real boots (OVMF 2025.02, systemd-stub 257, Linux 6.12) and
are compared with such a log in the tests. Clauses: TCG PC Client Platform Firmware Profile 1.06 section 3.3.4 (PCR 4),
systemd TPM2_PCR_MEASUREMENTS (PCR 11, 12), Linux drivers/firmware/efi/libstub (PCR 9).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from cloister.errors import FormatRefused
from cloister.imagetool.measure.authenticode import authenticode
from cloister.imagetool.measure.events import BootEvent, replay_events
from cloister.imagetool.measure.pcr import INITIAL
from cloister.imagetool.measure.pe import parse_pe, section_content
from cloister.rats.reference import Component

MEASURED_SECTIONS: Final = (".linux", ".cmdline", ".initrd", ".sbat")  # in the stub's order; `.sbat` is its own
BOOT_ACTION: Final = b"Calling EFI Application from Boot Option"
SEPARATOR: Final = bytes(4)
_UNPREDICTED_SECTIONS: Final = frozenset(  # the stub measures these too, or packs them into what the kernel measures
    {".osrel", ".ucode", ".splash", ".dtb", ".dtbauto", ".hwids", ".uname", ".pcrsig", ".pcrpkey", ".profile"}
)
_COMPONENTS: Final[Mapping[str, Component]] = {
    ".linux": Component.KERNEL,
    ".cmdline": Component.COMMAND_LINE,
    ".initrd": Component.INITRD,
}


def uki_registers(uki: bytes) -> Mapping[str, bytes]:
    """Return `pcr04`, `pcr09`, `pcr11`, `pcr12` after booting the unified kernel image `uki`.

    Raises:
        FormatRefused: as `uki_events`.
    """
    return {
        name: replay_events(events, start=INITIAL, algorithm="sha256")
        for name, events in uki_events(uki, algorithm="sha256").items()
    }


def uki_events(uki: bytes, *, algorithm: str) -> Mapping[str, tuple[BootEvent, ...]]:
    """Return the events of `pcr04`, `pcr09`, `pcr11`, `pcr12`, by hash `algorithm` (a name of `hashlib`).

    `pcr12` has none: anything else means the host gave the stub a command line, credentials or an addon.

    Raises:
        FormatRefused: not a PE image with the sections of a unified kernel image (`imagetool.pe.malformed`), or with
            sections whose effect is not predicted here (`imagetool.measure.section`).
    """
    unknown = sorted(_UNPREDICTED_SECTIONS & {section.name for section in parse_pe(uki).sections})
    if unknown:
        raise FormatRefused(
            "imagetool.measure.section",
            "unified kernel image holds a section whose measurement is not predicted",
            path=unknown[0],
            expected=" ".join(MEASURED_SECTIONS),
        )
    content = {name: section_content(uki, name) for name in MEASURED_SECTIONS}

    def hashed(name: str, data: bytes, component: Component | None = None) -> BootEvent:
        return BootEvent(name=name, digest=hashlib.new(algorithm, data).digest(), component=component)

    return {
        "pcr04": (
            BootEvent(name="unified kernel image", digest=authenticode(uki, algorithm=algorithm)),
            hashed("boot action", BOOT_ACTION),
            hashed("separator", SEPARATOR),
            BootEvent(
                name="kernel",
                digest=authenticode(content[".linux"], algorithm=algorithm),
                component=Component.KERNEL,
            ),
        ),
        "pcr09": (
            hashed("load options", load_options(content[".cmdline"]), Component.COMMAND_LINE),
            hashed("initrd", content[".initrd"], Component.INITRD),
        ),
        "pcr11": tuple(
            event
            for name in MEASURED_SECTIONS
            for event in (
                hashed(f"name {name}", name.encode("ascii") + b"\0"),
                hashed(name, content[name], _COMPONENTS.get(name)),
            )
        ),
        "pcr12": (),
    }


def load_options(cmdline: bytes) -> bytes:
    """Return the command line (UTF-8) as the kernel's EFI stub measures it: UTF-16 and two zero bytes.

    Raises:
        FormatRefused: not UTF-8 (`imagetool.pe.malformed`).
    """
    try:
        return cmdline.decode("utf-8").encode("utf-16-le") + bytes(2)
    except UnicodeDecodeError as err:
        raise FormatRefused("imagetool.pe.malformed", "command line is not UTF-8", path=".cmdline") from err
