"""The table of certificates that a host may hand out beside a report (extended report, configfs `auxblob`).

GHCB Specification (AMD 56421), section 4.1.8.1: entries of a GUID, an offset and a length, an all-zero one at the end,
then the certificates. The host writes it: nothing in it is trusted. GUIDs are 16 bytes in the order they are printed,
as AMD's tools write them; the mixed order of UEFI is read, too. Pure; imports nothing that is slow inside the guest.
"""

from __future__ import annotations

import struct
from typing import Final

from cloister.errors import FormatRefused
from cloister.wire.limits import SNP_CERTIFICATE_TABLE_BYTES, SNP_CERTIFICATES

CODE: Final = "tee.sev_snp.certificate_table"
GUIDS: Final = {
    "VCEK": bytes.fromhex("63da758de6644564adc5f4b93be8accd"),
    "VLEK": bytes.fromhex("a8074bc2a25a483eaae639c045a0b8a1"),
    "ASK": bytes.fromhex("4ab7b379bbac4fe4a02f05aef327c782"),
    "ARK": bytes.fromhex("c0b406a4a803495297433fb6014cd0ae"),
    "CRL": bytes.fromhex("92f81bc358114d3d97ffd19f88dc67ea"),
}
_ENTRY: Final = struct.Struct("<16sII")
SMALLEST_TABLE_BYTES: Final = _ENTRY.size  # nothing but its end


def _mixed(guid: bytes) -> bytes:
    return guid[3::-1] + guid[5:3:-1] + guid[7:5:-1] + guid[8:]


_NAMES: Final = {guid: name for name, guid in GUIDS.items()} | {_mixed(guid): name for name, guid in GUIDS.items()}


def parse_certificate_table(data: bytes) -> tuple[tuple[str, bytes], ...]:
    """Return (kind, certificate) for each entry; entries of unknown kind are left out, their place is checked.

    An empty or all-zero table has no entries: a host need not provide any.

    Raises:
        FormatRefused: `tee.sev_snp.certificate_table.too_long`, `.truncated`, `.malformed`.
    """
    if len(data) > SNP_CERTIFICATE_TABLE_BYTES:
        raise FormatRefused(
            f"{CODE}.too_long",
            "table of certificates is longer than any real one",
            expected=f"at most {SNP_CERTIFICATE_TABLE_BYTES} bytes",
            actual=f"{len(data)} bytes",
        )
    found: list[tuple[str, bytes]] = []
    if not any(data):
        return ()
    for index in range(SNP_CERTIFICATES + 1):
        start = index * _ENTRY.size
        if start + _ENTRY.size > len(data):
            raise FormatRefused(f"{CODE}.truncated", "table of certificates has no end", path=f"entry {index}")
        guid, offset, length = _ENTRY.unpack_from(data, start)
        if not any(guid):
            if offset or length:
                raise _malformed(index, "the last entry is not all zero")
            return tuple(found)
        if offset + length > len(data) or not length or offset < start + _ENTRY.size:
            raise _malformed(index, "a certificate lies outside the table")
        if name := _NAMES.get(guid):
            found.append((name, data[offset : offset + length]))
    raise _malformed(SNP_CERTIFICATES, f"more than {SNP_CERTIFICATES} entries")


def encode_certificate_table(entries: tuple[tuple[str, bytes], ...]) -> bytes:
    """Return the table with these entries, in order."""
    offset = (len(entries) + 1) * _ENTRY.size
    head, body = b"", b""
    for name, certificate in entries:
        head += _ENTRY.pack(GUIDS[name], offset + len(body), len(certificate))
        body += certificate
    return head + bytes(_ENTRY.size) + body


def _malformed(index: int, message: str) -> FormatRefused:
    return FormatRefused(f"{CODE}.malformed", message, path=f"entry {index}")
