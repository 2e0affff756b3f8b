"""What booting a unified kernel image by OVMF leaves in PCR 4, 9, 11 and 12.

Order and content of the events were read from the log of real boots (OVMF 2025.02, systemd-stub 257, Linux 6.12) and
are compared with such a log in the tests. Clauses: TCG PC Client Platform Firmware Profile 1.06 section 3.3.4 (PCR 4),
systemd TPM2_PCR_MEASUREMENTS (PCR 11, 12), Linux drivers/firmware/efi/libstub (PCR 9).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cloister.errors import FormatRefused
from cloister.imagetool.measure.authenticode import authenticode_sha256
from cloister.imagetool.measure.pcr import INITIAL, extend, extend_data
from cloister.imagetool.measure.pe import parse_pe, section_content

MEASURED_SECTIONS: Final = (".linux", ".cmdline", ".initrd", ".sbat")  # in the stub's order; `.sbat` is its own
_UNPREDICTED_SECTIONS: Final = frozenset(  # the stub measures these too, or packs them into what the kernel measures
    {".osrel", ".ucode", ".splash", ".dtb", ".dtbauto", ".hwids", ".uname", ".pcrsig", ".pcrpkey", ".profile"}
)
_BOOT_ACTION: Final = b"Calling EFI Application from Boot Option"
_SEPARATOR: Final = bytes(4)


def uki_registers(uki: bytes) -> Mapping[str, bytes]:
    """Return `pcr04`, `pcr09`, `pcr11`, `pcr12` after booting the unified kernel image `uki`.

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
    return {
        "pcr04": _boot_manager(uki, content[".linux"]),
        "pcr09": _kernel(content[".cmdline"], content[".initrd"]),
        "pcr11": _stub(content),
        "pcr12": INITIAL,  # anything else means the host gave the stub a command line, credentials or an addon
    }


def _boot_manager(uki: bytes, kernel: bytes) -> bytes:
    register = extend(INITIAL, authenticode_sha256(uki))
    register = extend_data(register, _BOOT_ACTION)
    register = extend_data(register, _SEPARATOR)
    return extend(register, authenticode_sha256(kernel))


def _kernel(cmdline: bytes, initrd: bytes) -> bytes:
    load_options = cmdline.decode("utf-8").encode("utf-16-le") + bytes(2)
    return extend_data(extend_data(INITIAL, load_options), initrd)


def _stub(content: Mapping[str, bytes]) -> bytes:
    register = INITIAL
    for name in MEASURED_SECTIONS:
        register = extend_data(register, name.encode("ascii") + b"\0")
        register = extend_data(register, content[name])
    return register
