"""The digest by which UEFI firmware measures a program: Authenticode digest of a PE/COFF image.

Windows Authenticode Portable Executable Signature Format, "Calculating the PE Image Hash": the file without the
checksum field, the certificate table's directory entry and the certificate table; headers first, sections in order of
their file offset, then what follows. Firmware measures what it loads, so the same bytes in another layout of
sections would be another digest.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cloister.errors import FormatRefused
from cloister.imagetool.measure.pe import PEImage, parse_pe

_CHECKSUM_BYTES: Final = 4
_DIRECTORY_ENTRY_BYTES: Final = 8


def authenticode_sha256(data: bytes) -> bytes:
    """Return the Authenticode digest by SHA-256 (32 bytes), see `authenticode`."""
    return authenticode(data, algorithm="sha256")


def authenticode(data: bytes, *, algorithm: str) -> bytes:
    """Return the Authenticode digest of the PE image `data` by hash `algorithm` (a name of `hashlib`).

    Raises:
        FormatRefused: not a PE32+ image, or a structure leaves the file (`imagetool.pe.malformed`).
    """
    image = parse_pe(data)
    digest = hashlib.new(algorithm)
    digest.update(data[: image.checksum_offset])
    digest.update(data[image.checksum_offset + _CHECKSUM_BYTES : image.certificate_entry_offset])
    digest.update(data[image.certificate_entry_offset + _DIRECTORY_ENTRY_BYTES : image.headers_bytes])
    hashed = image.headers_bytes
    for section in sorted(image.sections, key=lambda section: section.file_offset):
        if section.file_bytes == 0:
            continue
        digest.update(data[section.file_offset : section.file_offset + section.file_bytes])
        hashed += section.file_bytes
    digest.update(_trailing(data, image, hashed))
    return digest.digest()


def _trailing(data: bytes, image: PEImage, hashed: int) -> bytes:
    """Return what follows the sections, without the certificate table, which must end the file."""
    end = len(data) - image.certificate_bytes
    if hashed > end:
        raise FormatRefused("imagetool.pe.malformed", "sections and certificates overlap")
    return data[hashed:end]
