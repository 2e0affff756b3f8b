"""The attestation document of the Nitro Security Module (NSM): layout, parser and encoder. Pure; verifies nothing.

A COSE_Sign1 message whose payload is a CBOR map (attestation_process.md, section 3.1). Modules write the map with
definite or, since about 2026, with indefinite length. Keys that are not known are kept by name and not read: the
payload is signed as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cloister.errors import FormatRefused
from cloister.wire.cbor import CBOR, decode_cbor, encode_cbor
from cloister.wire.limits import CERTIFICATE_BYTES, CERTIFICATE_CHAIN, COSE_BYTES, NITRO_FIELD_BYTES

CODE: Final = "tee.nitro.document"
DIGEST: Final = "SHA384"
REGISTER_BYTES: Final = 48
REGISTERS: Final = 32
MEASURED_REGISTERS: Final = (0, 1, 2)  # image, kernel with boot ramdisk, application: zero in debug mode
_MODULE_ID_CHARS: Final = 256
_MILLISECONDS: Final = range(1, 1 << 53)  # JSON readers keep what fits a double; the year 287396


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The payload of an attestation document.

    Attributes:
        module_id: the enclave on its instance (`i-...-enc...`).
        timestamp: milliseconds since 1970, by the module's clock.
        registers: PCR values by index, 48 bytes each.
        certificate: DER, of the key that signed the document.
        bundle: DER, root first, issuer of `certificate` last.
        public_key: what the enclave asked to have signed; empty when absent.
        user_data: likewise.
        nonce: likewise.
        unknown: names of keys that are not read.
    """

    module_id: str
    timestamp: int
    registers: Mapping[int, bytes]
    certificate: bytes
    bundle: tuple[bytes, ...]
    public_key: bytes = b""
    user_data: bytes = b""
    nonce: bytes = b""
    unknown: tuple[str, ...] = ()


_KEYS: Final = (
    "module_id",
    "digest",
    "timestamp",
    "pcrs",
    "certificate",
    "cabundle",
    "public_key",
    "user_data",
    "nonce",
)


def parse_document(payload: bytes) -> Document:
    """Parse the signed payload.

    Raises:
        FormatRefused: not CBOR (`tee.nitro.document.truncated` and the other codes of `decode_cbor`), or a member is
            missing, of another type or of another size (`tee.nitro.document.malformed`).
    """
    value = decode_cbor(payload, ceiling=COSE_BYTES, code=CODE, indefinite=True)
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _malformed("payload", "a map with text keys", type(value).__name__)
    module_id, timestamp = value.get("module_id"), value.get("timestamp")
    if not isinstance(module_id, str) or not 0 < len(module_id) <= _MODULE_ID_CHARS or not module_id.isprintable():
        raise _malformed("module_id", f"1 to {_MODULE_ID_CHARS} printable characters", str(module_id)[:40])
    if value.get("digest") != DIGEST:
        raise _malformed("digest", DIGEST, str(value.get("digest"))[:40])
    if type(timestamp) is not int or timestamp not in _MILLISECONDS:
        raise _malformed("timestamp", "milliseconds since 1970", str(timestamp)[:40])
    return Document(
        module_id=module_id,
        timestamp=timestamp,
        registers=_registers(value.get("pcrs")),
        certificate=_certificate(value.get("certificate"), "certificate"),
        bundle=_bundle(value.get("cabundle")),
        public_key=_field(value, "public_key", least=1),
        user_data=_field(value, "user_data"),
        nonce=_field(value, "nonce"),
        unknown=tuple(key for key in value if key not in _KEYS),
    )


def encode_document(document: Document) -> bytes:
    """Return the payload with a map of definite length; absent fields are null, as modules write them.

    Raises:
        TypeError: a document with keys that were not read.
    """
    if document.unknown:
        raise TypeError("a document with unknown keys cannot be written again")
    return encode_cbor(
        {
            "module_id": document.module_id,
            "digest": DIGEST,
            "timestamp": document.timestamp,
            "pcrs": dict(document.registers),
            "certificate": document.certificate,
            "cabundle": list(document.bundle),
            "public_key": document.public_key or None,
            "user_data": document.user_data or None,
            "nonce": document.nonce or None,
        }
    )


def _registers(value: CBOR) -> dict[int, bytes]:
    if not isinstance(value, dict) or not all(index in value for index in MEASURED_REGISTERS):
        raise _malformed("pcrs", "a map with PCR 0 to 2 at least", type(value).__name__)
    for index, register in value.items():
        if type(index) is not int or not 0 <= index < REGISTERS:
            raise _malformed("pcrs", f"indexes 0 to {REGISTERS - 1}", str(index)[:40])
        if not isinstance(register, bytes) or len(register) != REGISTER_BYTES:
            raise _malformed(f"pcrs[{index}]", f"{REGISTER_BYTES} bytes", _kind(register))
    return value


def _bundle(value: CBOR) -> tuple[bytes, ...]:
    most = CERTIFICATE_CHAIN - 1
    if not isinstance(value, list) or not 0 < len(value) <= most:
        raise _malformed("cabundle", f"1 to {most} certificates", _kind(value))
    return tuple(_certificate(item, f"cabundle[{index}]") for index, item in enumerate(value))


def _certificate(value: CBOR, path: str) -> bytes:
    if not isinstance(value, bytes) or not 0 < len(value) <= CERTIFICATE_BYTES:
        raise _malformed(path, f"1 to {CERTIFICATE_BYTES} bytes", _kind(value))
    return value


def _field(value: Mapping[str, CBOR], name: str, *, least: int = 0) -> bytes:
    """Return an optional member; null and absent are the same."""
    found = value.get(name)
    if found is None:
        return b""
    if not isinstance(found, bytes) or not least <= len(found) <= NITRO_FIELD_BYTES:
        raise _malformed(name, f"{least} to {NITRO_FIELD_BYTES} bytes", _kind(found))
    return found


def _kind(value: CBOR) -> str:
    return f"{len(value)} bytes" if isinstance(value, bytes) else type(value).__name__


def _malformed(path: str, expected: str, actual: str) -> FormatRefused:
    return FormatRefused(
        f"{CODE}.malformed", "not the payload of an attestation document", path=path, expected=expected, actual=actual
    )
