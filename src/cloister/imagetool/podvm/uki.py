"""The unified kernel image: stub, command line, initrd and kernel as one UEFI program (UAPI.5).

Sections are appended by our own writer: the bytes of the image are a reference value, so they may not depend on a
version of binutils. There is no `.osrel`: the stub would pack it into a second initrd, for nobody to read.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloister.imagetool.measure.pe import append_sections


@dataclass(frozen=True, slots=True, kw_only=True)
class UKIParts:
    """What a unified kernel image is made of; the command line becomes UTF-8 without terminator."""

    stub: bytes
    cmdline: str
    kernel: bytes
    initrd: bytes


def build_uki(parts: UKIParts) -> bytes:
    """Return the image.

    Raises:
        FormatRefused: the stub is not a PE image with room for three more sections.
    """
    sections = [
        (".cmdline", parts.cmdline.encode()),
        (".initrd", parts.initrd),
        (".linux", parts.kernel),
    ]
    return append_sections(parts.stub, sections)
