"""What the digests of an event log are digests of, as far as the digests themselves tell. Pure.

Event types, descriptions and data of a log are not measured, so nothing here reads them: only digests of a register
whose replay equals a quoted value. systemd-stub measures each section of a unified kernel image into register 11 as two
events, its name with a NUL and its content (systemd, TPM2_PCR_MEASUREMENTS): the digest of a known name says what the
digest behind it is. Other boot paths measure no names (register 4 has the Authenticode digests of programs, 9 those of
command line and initrd by the kernel's stub), and what they are is for reference values to say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

from cloister.rats.claims import Role

UKI_PCR: Final = 11
_ROLES: Final[Mapping[str, Role]] = {
    ".linux": Role.KERNEL,
    ".cmdline": Role.COMMAND_LINE,
    ".initrd": Role.INITRD,
}
_SECTIONS: Final[Mapping[bytes, str]] = {
    hashlib.sha256(name.encode() + b"\0").digest(): name
    for name in (
        *(".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".dtbauto", ".hwids", ".uname"),
        *(".sbat", ".pcrsig", ".pcrpkey", ".profile", ".efifw"),
    )
}


def measured_roles(digests: Sequence[bytes]) -> dict[Role, bytes]:
    """Return the SHA-256 digests by role in what was measured into register 11.

    The stub measures first and in pairs; the first that is no section ends what is read, so nothing that is extended
    later can pass for one. A section that was measured twice is none: which of the two runs cannot be told.
    """
    found: dict[str, bytes] = {}
    twice: set[str] = set()
    for name_digest, content in zip(digests[::2], digests[1::2], strict=False):
        name = _SECTIONS.get(name_digest)
        if name is None:
            break
        if name in found:
            twice.add(name)
        found[name] = content
    return {role: found[name] for name, role in _ROLES.items() if name in found and name not in twice}
