"""Structures of IBM Secure Execution: attestation request, image header, exchange file. Pure; verifies nothing.

Big endian, as on the machine. Most of a request and of a header is encrypted to host keys or authenticated by a tag
that only the ultravisor can check; what is in the clear is read. Layouts after s390-tools (`rust/pv`), compared with
its test assets.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cloister.errors import FormatRefused
from cloister.wire.binary import BinaryReader
from cloister.wire.limits import SE_BYTES, SE_KEY_SLOTS

REQUEST: Final = "tee.ibm_se.request"
HEADER: Final = "tee.ibm_se.header"
EXCHANGE: Final = "tee.ibm_se.exchange"
SLOT: Final = "tee.ibm_se.key_slot"
VERSION: Final = 0x100
HMAC_SHA512: Final = 1
HEADER_MAGIC: Final = b"IBMSecEx"
EXCHANGE_MAGIC: Final = b"pvattest"
SLOT_BYTES: Final = 80
_COORDINATES_BYTES: Final = 160  # x and y of a P-521 key, 80 bytes each
_DIGEST_BYTES: Final = 64
TAG_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySlot:
    """A request's key, encrypted to one host.

    Attributes:
        host_key_hash: SHA-256 of the host key's coordinates, 32 bytes.
        wrapped: the encrypted key, 32 bytes.
        tag: 16 bytes.
    """

    host_key_hash: bytes
    wrapped: bytes
    tag: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An attestation request control block (ARCB), version 1.

    Attributes:
        iv: 12 bytes.
        flags: what the guest shall add to the measurement.
        algorithm: of the measurement; 1 is HMAC-SHA512.
        customer_key: coordinates of the requester's key, 160 bytes.
        slots: the key for each host that may answer.
        encrypted: measurement key and nonce, encrypted.
        tag: 16 bytes.
    """

    iv: bytes
    flags: int
    algorithm: int
    customer_key: bytes
    slots: tuple[KeySlot, ...]
    encrypted: bytes
    tag: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """The header of a Secure Execution image, version 1.

    Attributes:
        iv: 12 bytes.
        pages: encrypted pages.
        flags: plaintext control flags.
        customer_key: coordinates of the owner's key, 160 bytes.
        page_digest: SHA-512 of the pages' content (PLD).
        address_digest: SHA-512 of their addresses (ALD).
        tweak_digest: SHA-512 of their tweaks (TLD).
        slots: the key for each host that may run it.
        encrypted: the owner's secrets, encrypted.
        tag: 16 bytes; identifies the image.
    """

    iv: bytes
    pages: int
    flags: int
    customer_key: bytes
    page_digest: bytes
    address_digest: bytes
    tweak_digest: bytes
    slots: tuple[KeySlot, ...]
    encrypted: bytes
    tag: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What `pvattest` passes between requester and guest. Members are empty as long as nobody filled them.

    Attributes:
        request: ARCB as bytes.
        measurement: HMAC over header digests, configuration id, user data and nonce.
        additional: hashes of host keys, as the flags asked.
        user_data: of the guest.
        configuration_id: of the guest, 16 bytes.
    """

    request: bytes
    measurement: bytes
    additional: bytes
    user_data: bytes
    configuration_id: bytes


def parse_request(data: bytes) -> Request:
    """Parse an attestation request.

    Raises:
        FormatRefused: `tee.ibm_se.request.*`.
    """
    reader = _begin(data, REQUEST, b"")
    iv = reader.take(12, "iv")
    _zeros(reader, 4, REQUEST)
    slots, encrypted = _slots_and_area(reader, REQUEST)
    flags = reader.unsigned(8, "attestation flags")
    algorithm = reader.unsigned(4, "measurement algorithm")
    if algorithm != HMAC_SHA512:
        raise _malformed(REQUEST, "measurement is by another algorithm", str(HMAC_SHA512), str(algorithm))
    _zeros(reader, 4, REQUEST)
    request = Request(
        iv=iv,
        flags=flags,
        algorithm=algorithm,
        customer_key=reader.take(_COORDINATES_BYTES, "customer key"),
        slots=tuple(_read_slot(reader) for _ in range(slots)),
        encrypted=reader.take(encrypted, "encrypted area"),
        tag=reader.take(TAG_BYTES, "tag"),
    )
    reader.finish()
    return request


def parse_image_header(data: bytes) -> ImageHeader:
    """Parse an image header.

    Raises:
        FormatRefused: `tee.ibm_se.header.*`.
    """
    reader = _begin(data, HEADER, HEADER_MAGIC)
    iv = reader.take(12, "iv")
    _zeros(reader, 4, HEADER)
    slots, encrypted = _slots_and_area(reader, HEADER)
    header = ImageHeader(
        iv=iv,
        pages=reader.unsigned(8, "number of pages"),
        flags=reader.unsigned(8, "control flags"),
        customer_key=reader.take(_COORDINATES_BYTES, "customer key"),
        page_digest=reader.take(_DIGEST_BYTES, "pld"),
        address_digest=reader.take(_DIGEST_BYTES, "ald"),
        tweak_digest=reader.take(_DIGEST_BYTES, "tld"),
        slots=tuple(_read_slot(reader) for _ in range(slots)),
        encrypted=reader.take(encrypted, "encrypted area"),
        tag=reader.take(TAG_BYTES, "tag"),
    )
    reader.finish()
    return header


def parse_exchange(data: bytes) -> Exchange:
    """Parse an exchange file: a table of sizes and offsets, then the members, in order and without gaps.

    Raises:
        FormatRefused: `tee.ibm_se.exchange.*`.
    """
    reader = _begin(data, EXCHANGE, EXCHANGE_MAGIC)
    _zeros(reader, 8, EXCHANGE)
    table = [(reader.unsigned(4, "size"), reader.unsigned(4, "offset")) for _ in range(5)]
    members = []
    for size, offset in table:
        if offset != (reader.offset if size else 0):
            raise _malformed(
                EXCHANGE,
                "members overlap, leave a gap, or are empty somewhere",
                str(reader.offset if size else 0),
                str(offset),
            )
        members.append(reader.take(size, "member"))
    reader.finish()
    request, measurement, additional, user_data, configuration_id = members
    return Exchange(
        request=request,
        measurement=measurement,
        additional=additional,
        user_data=user_data,
        configuration_id=configuration_id,
    )


def parse_key_slot(data: bytes) -> KeySlot:
    """Parse a key slot of 80 bytes.

    Raises:
        FormatRefused: `tee.ibm_se.key_slot.*`.
    """
    reader = BinaryReader(data, order="big", code=SLOT)
    slot = _read_slot(reader)
    reader.finish()
    return slot


def encode_key_slot(slot: KeySlot) -> bytes:
    """Return the slot; the inverse of `parse_key_slot`."""
    return slot.host_key_hash + slot.wrapped + slot.tag


def encode_request(request: Request) -> bytes:
    """Return the request; the inverse of `parse_request`."""
    numbers = struct.pack(
        ">12s4xQQQI4x", request.iv, len(request.slots), len(request.encrypted), request.flags, request.algorithm
    )
    slots = b"".join(map(encode_key_slot, request.slots))
    return _with_head(b"", numbers + request.customer_key + slots + request.encrypted + request.tag)


def encode_image_header(header: ImageHeader) -> bytes:
    """Return the header; the inverse of `parse_image_header`."""
    numbers = struct.pack(">12s4xQQQQ", header.iv, len(header.slots), len(header.encrypted), header.pages, header.flags)
    digests = header.page_digest + header.address_digest + header.tweak_digest
    slots = b"".join(map(encode_key_slot, header.slots))
    return _with_head(HEADER_MAGIC, numbers + header.customer_key + digests + slots + header.encrypted + header.tag)


def encode_exchange(exchange: Exchange) -> bytes:
    """Return the exchange file; the inverse of `parse_exchange`. Empty members have offset zero."""
    members = (
        exchange.request,
        exchange.measurement,
        exchange.additional,
        exchange.user_data,
        exchange.configuration_id,
    )
    offset = len(EXCHANGE_MAGIC) + 8 + 8 + 8 * len(members)
    table = b""
    for member in members:
        table += struct.pack(">II", len(member), offset if member else 0)
        offset += len(member)
    return EXCHANGE_MAGIC + struct.pack(">IIQ", VERSION, offset, 0) + table + b"".join(members)


def _with_head(magic: bytes, rest: bytes) -> bytes:
    return (magic or bytes(8)) + struct.pack(">II", VERSION, 16 + len(rest)) + rest


def _begin(data: bytes, code: str, magic: bytes) -> BinaryReader:
    """Read magic (eight zeros where there is none), version and the length of the whole."""
    if len(data) > SE_BYTES:
        raise FormatRefused(
            f"{code}.too_long", "structure too long", expected=f"at most {SE_BYTES}", actual=str(len(data))
        )
    reader = BinaryReader(data, order="big", code=code)
    found = reader.take(8, "magic")
    if found != (magic or bytes(8)):
        raise _malformed(code, "structure begins with another magic", magic.decode() or "zeros", found.hex())
    version, size = reader.unsigned(4, "version"), reader.unsigned(4, "size")
    if version != VERSION:
        raise _malformed(code, "structure is of another version", f"{VERSION:#x}", f"{version:#x}")
    if size != len(data):
        raise _malformed(code, "structure has another length than it says", str(size), str(len(data)))
    return reader


def _slots_and_area(reader: BinaryReader, code: str) -> tuple[int, int]:
    slots = reader.unsigned(8, "number of key slots")
    if not 0 < slots <= SE_KEY_SLOTS:
        raise _malformed(code, "number of key slots out of range", f"1 to {SE_KEY_SLOTS}", str(slots))
    encrypted = reader.unsigned(8, "size of the encrypted area")
    if encrypted > SE_BYTES:
        raise _malformed(code, "encrypted area too long", f"at most {SE_BYTES}", str(encrypted))
    return slots, encrypted


def _zeros(reader: BinaryReader, count: int, code: str) -> None:
    found = reader.take(count, "reserved")
    if any(found):
        raise _malformed(code, "reserved bytes are not zero", "zeros", found.hex())


def _read_slot(reader: BinaryReader) -> KeySlot:
    return KeySlot(
        host_key_hash=reader.take(32, "host key hash"),
        wrapped=reader.take(32, "wrapped key"),
        tag=reader.take(TAG_BYTES, "slot tag"),
    )


def _malformed(code: str, message: str, expected: str, actual: str) -> FormatRefused:
    return FormatRefused(f"{code}.malformed", message, expected=expected, actual=actual)
