"""The extension by which a certificate says what its holder proved.

    id-cloister-attestation  2.25.20564653172434925222276701029284789396  (not critical)

    CloisterAttestation ::= SEQUENCE {
        version      INTEGER (1),
        level        UTF8String,   -- hardware, measured or simulated
        policyDigest UTF8String,   -- sha256: of the appraisal policy the evidence was judged by
        contractId   UTF8String,   -- empty when the workload is under no contract
        initData     UTF8String,   -- digest of the init data, which holds the pod policy
        attestation  UTF8String }  -- id of the Attestation Result in the issuer's records

DER, so that one value has one encoding. `openssl asn1parse` shows it as text. Not critical: relying parties that
know SPIFFE alone must be able to use the certificate. That they cannot overlook a level below `hardware` is what the
name is for: a grant that accepts such a level has the level in its names.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Final

from cloister.errors import FormatRefused

_SEQUENCE: Final = 0x30
_UTF8: Final = 0x0C
_VERSION: Final = b"\x02\x01\x01"
_BYTES: Final = 1024
_CODE: Final = "protocol.spiffe.extension"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationStatement:
    """What the extension says; see the module."""

    level: str
    policy_digest: str
    contract_id: str
    init_data: str
    attestation: str


def encode_statement(statement: AttestationStatement) -> bytes:
    """Return the DER of the extension's value.

    Raises:
        FormatRefused: too long (`protocol.spiffe.extension`).
    """
    content = _VERSION + b"".join(_tlv(_UTF8, text.encode()) for text in astuple(statement))
    if len(content) > _BYTES:
        raise FormatRefused(_CODE, "attestation statement too long", expected=f"at most {_BYTES} bytes")
    return _tlv(_SEQUENCE, content)


def parse_statement(data: bytes) -> AttestationStatement:
    """Parse the extension's value.

    Raises:
        FormatRefused: not this DER, another version, trailing bytes (`protocol.spiffe.extension`).
    """
    content, rest = _take(data, _SEQUENCE)
    if rest or not content.startswith(_VERSION):
        raise _malformed()
    left, texts = content[len(_VERSION) :], []
    for _ in range(5):
        text, left = _take(left, _UTF8)
        try:
            texts.append(text.decode())
        except UnicodeDecodeError as err:
            raise _malformed() from err
    found = AttestationStatement(
        level=texts[0], policy_digest=texts[1], contract_id=texts[2], init_data=texts[3], attestation=texts[4]
    )
    if left or encode_statement(found) != data:  # the one encoding, and nothing behind it
        raise _malformed()
    return found


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _take(data: bytes, tag: int) -> tuple[bytes, bytes]:
    if len(data) < 2 or len(data) > 2 * _BYTES or data[0] != tag:
        raise _malformed()
    size, at = data[1], 2
    if size & 0x80:
        width = size & 0x7F
        if width not in (1, 2):
            raise _malformed()
        size, at = int.from_bytes(data[2 : 2 + width], "big"), 2 + width
    if len(data) < at + size:
        raise _malformed()
    return data[at : at + size], data[at + size :]


def _malformed() -> FormatRefused:
    return FormatRefused(_CODE, "not an attestation statement")
