"""The attestation report of a GPU or switch: an SPDM 1.1 GET_MEASUREMENTS request and the response to it, back to back.

DMTF DSP0274 1.1.1: request table 41, response table 44, measurement block tables 45 and 46. Little endian. The opaque
data is NVIDIA's own list of (type, length, value). The signature, r || s of 48 bytes each, is ECDSA on P-384 with
SHA-384 over every byte before it (SPDM 1.2's signing prefix does not exist yet in 1.1).

Strict: declared lengths decide, blocks fill the record, entries fill the opaque data, no index and no type comes
twice. After the signature nothing may follow, but for one zero byte that makes the length even: drivers of the 580
branch pad so. Parser and encoder are inverse to each other. Nothing here verifies anything.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cloister.errors import FormatRefused
from cloister.wire.binary import BinaryReader
from cloister.wire.limits import SPDM_BYTES, SPDM_OPAQUE_BYTES

VERSION: Final = 0x11
GET_MEASUREMENTS: Final = 0xE0
MEASUREMENTS: Final = 0x60
SIGNATURE_REQUESTED: Final = 0x01
ALL_MEASUREMENTS: Final = 0xFF
DMTF_SPECIFICATION: Final = 0x01
NONCE_BYTES: Final = 32
SIGNATURE_BYTES: Final = 96
_SLOTS: Final = 8
_VALUE_CEILING: Final = 64  # a SHA-512 digest
_HEAD: Final = struct.Struct("<BBHBH")  # index, specification, size of what follows; type and size of the value
_BLOCK_HEAD: Final = 3
_CODE: Final = "tee.nvidia_gpu.report"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One measurement: its index (1 to 255), DMTF value type and value (48 bytes of SHA-384 on all known devices)."""

    index: int
    kind: int
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Request and response.

    Attributes:
        nonce: of the request, 32 bytes: what the verifier asked to bind.
        slot: certificate slot asked for, and answered from.
        blocks: measurements in the order sent.
        responder_nonce: the device's own 32 random bytes.
        opaque: NVIDIA's (type, value) pairs in the order sent.
        signature: r || s, 96 bytes.
        padded: whether a zero byte follows the signature.
    """

    nonce: bytes
    slot: int
    blocks: tuple[Block, ...]
    responder_nonce: bytes
    opaque: tuple[tuple[int, bytes], ...]
    signature: bytes
    padded: bool = False


def parse_report(data: bytes) -> Report:
    """Parse a report.

    Raises:
        FormatRefused: not a request for all measurements with signature and its response, or with bytes that its own
            lengths do not account for (`tee.nvidia_gpu.report.*`).
    """
    if len(data) > SPDM_BYTES:
        raise FormatRefused(f"{_CODE}.too_long", "report too long", expected=f"at most {SPDM_BYTES} bytes")
    reader = BinaryReader(data, order="little", code=_CODE)
    _expect(reader, VERSION, "SPDM version of the request")
    _expect(reader, GET_MEASUREMENTS, "request code")
    _expect(reader, SIGNATURE_REQUESTED, "request attributes")
    _expect(reader, ALL_MEASUREMENTS, "measurement operation")
    nonce = reader.take(NONCE_BYTES, "nonce")
    slot = reader.unsigned(1, "slot")
    if slot >= _SLOTS:
        raise _malformed("slot out of range", f"below {_SLOTS}", slot)
    _expect(reader, VERSION, "SPDM version of the response")
    _expect(reader, MEASUREMENTS, "response code")
    _expect(reader, 0, "response attributes")
    _expect(reader, slot, "slot of the response")
    count = reader.unsigned(1, "number of blocks")
    record = reader.sized(3, "measurement record", ceiling=SPDM_BYTES)
    responder_nonce = reader.take(NONCE_BYTES, "nonce of the responder")
    opaque = reader.sized(2, "opaque data", ceiling=SPDM_OPAQUE_BYTES)
    signature = reader.take(SIGNATURE_BYTES, "signature")
    padded = reader.remaining == 1 and len(data) % 2 == 0 and data[-1] == 0
    if padded:
        reader.take(1, "padding")
    reader.finish()
    return Report(
        nonce=nonce,
        slot=slot,
        blocks=_parse_blocks(record, count),
        responder_nonce=responder_nonce,
        opaque=_parse_opaque(opaque),
        signature=signature,
        padded=padded,
    )


def encode_report(report: Report) -> bytes:
    """Return the bytes of `report`; the inverse of `parse_report`.

    Raises:
        RuntimeError: padding asked for where the length is even already.
    """
    signed = encode_signed(report)
    data = signed + report.signature
    if report.padded and len(data) % 2 == 0:
        raise RuntimeError("a report is padded to an even length only")
    return data + b"\0" if report.padded else data


def encode_signed(report: Report) -> bytes:
    """Return what the device signs: everything before the signature."""
    record = b"".join(
        _HEAD.pack(item.index, DMTF_SPECIFICATION, _BLOCK_HEAD + len(item.value), item.kind, len(item.value))
        + item.value
        for item in report.blocks
    )
    opaque = b"".join(struct.pack("<HH", kind, len(value)) + value for kind, value in report.opaque)
    return b"".join(
        (
            bytes((VERSION, GET_MEASUREMENTS, SIGNATURE_REQUESTED, ALL_MEASUREMENTS)),
            report.nonce,
            bytes((report.slot, VERSION, MEASUREMENTS, 0, report.slot, len(report.blocks))),
            len(record).to_bytes(3, "little"),
            record,
            report.responder_nonce,
            struct.pack("<H", len(opaque)),
            opaque,
        )
    )


def signed_part(data: bytes, report: Report) -> bytes:
    """Return the bytes of `data` that the signature of `report`, parsed from it, is over."""
    return data[: len(data) - SIGNATURE_BYTES - report.padded]


def _parse_blocks(record: bytes, count: int) -> tuple[Block, ...]:
    """Read the blocks of a record; sixty-four of them, so their heads are unpacked whole."""
    blocks: list[Block] = []
    offset, last, end = 0, 0, len(record)
    while offset < end:
        if offset + _HEAD.size > end:
            raise _cut(offset, _HEAD.size, end - offset)
        index, specification, size, kind, length = _HEAD.unpack_from(record, offset)
        offset += _HEAD.size
        if specification != DMTF_SPECIFICATION:
            raise _malformed("measurement specification is not one that is supported", "0x01", specification)
        if length > _VALUE_CEILING:
            raise _malformed("measurement is longer than any digest", f"at most {_VALUE_CEILING}", length)
        if size != _BLOCK_HEAD + length:
            raise _malformed("measurement does not fill its block", str(size - _BLOCK_HEAD), length)
        if length > end - offset:
            raise _cut(offset, length, end - offset)
        if index <= last:
            raise _malformed("measurements are not in rising order from 1", f"above {last}", index)
        blocks.append(Block(index=index, kind=kind, value=record[offset : offset + length]))
        offset, last = offset + length, index
    if len(blocks) != count or not blocks:
        raise _malformed("number of measurements is another than declared", f"{count}, at least one", len(blocks))
    return tuple(blocks)


def _parse_opaque(data: bytes) -> tuple[tuple[int, bytes], ...]:
    reader = BinaryReader(data, order="little", code=f"{_CODE}.opaque")
    found: dict[int, bytes] = {}
    while reader.remaining:
        kind = reader.unsigned(2, "type of opaque data")
        if kind in found:
            raise _malformed("a type of opaque data comes twice", "once", kind)
        found[kind] = reader.sized(2, "opaque data entry", ceiling=SPDM_OPAQUE_BYTES)
    return tuple(found.items())


def _expect(reader: BinaryReader, value: int, field: str) -> None:
    found = reader.unsigned(1, field)
    if found != value:
        raise _malformed(f"{field} is not one that is supported", f"{value:#04x}", found)


def _cut(offset: int, wanted: int, left: int) -> FormatRefused:
    return FormatRefused(
        f"{_CODE}.truncated",
        "measurement record ends inside a measurement",
        path=f"byte {offset} of the record",
        expected=f"{wanted} bytes",
        actual=f"{left} bytes",
    )


def _malformed(message: str, expected: str, actual: int) -> FormatRefused:
    return FormatRefused(f"{_CODE}.malformed", message, expected=expected, actual=f"{actual:#x}")
