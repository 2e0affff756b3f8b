"""The JSON shape of simulated evidence (technology `cloister-simulated`, version 1), and the bytes it signs. Pure.

Members: `simulated` (must be true), `version`, `public_key` (SubjectPublicKeyInfo of the machine's simulation key),
`registers` (name to hexadecimal digest), `report_data` (48 bytes, base64), `signature` (ECDSA on P-256 with SHA-256,
DER, base64) over a domain label and the canonical JSON of the other members.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from cloister.errors import EvidenceError, FormatRefused
from cloister.rats.evidence import Evidence
from cloister.wire.canonicaljson import encode_canonical

TEE: Final = "cloister-simulated"
VERSION: Final = 1
REGISTER_BYTES: Final = 32
REPORT_DATA_BYTES: Final = 48
INIT_DATA_REGISTER: Final = "pcr08"
LAUNCH_REGISTER: Final = "launch"
PUBLIC_KEY_BYTES: Final = 256  # a P-256 SubjectPublicKeyInfo has 91
SIGNATURE_BYTES: Final = 80  # DER of two 32-byte integers
PCRS: Final = 24
_LABEL: Final = b"cloister simulated evidence v1\x00"
_HEX_DIGITS: Final = frozenset("0123456789abcdef")


class SimulatedEvidence(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Evidence as sent; nothing of it is verified."""

    simulated: bool
    version: int
    public_key: str
    registers: dict[str, str]
    report_data: str
    signature: str


def launch_digest(version: str) -> bytes:
    """Return the register `launch` that an agent of `version` declares about itself."""
    return hashlib.sha256(f"cloister agent {version}".encode()).digest()


def register_name(index: int) -> str:
    """Return the name of register `index`, as a TPM's registers are called."""
    return f"pcr{index:02d}"


def extended(value: bytes, digest: bytes) -> bytes:
    """Return `value` extended with `digest`, as a TPM does it."""
    return hashlib.sha256(value + digest).digest()


_REGISTER_NAMES: Final = frozenset({LAUNCH_REGISTER, *map(register_name, range(PCRS))})


def signed_bytes(*, public_key: str, registers: Mapping[str, str], report_data: str) -> bytes:
    """Return what the simulation key signs: label and canonical JSON of every other member."""
    body: dict[str, Any] = {  # Any: JSON values
        "simulated": True,
        "version": VERSION,
        "public_key": public_key,
        "registers": dict(registers),
        "report_data": report_data,
    }
    return _LABEL + encode_canonical(body)


def parse_evidence(evidence: Evidence) -> SimulatedEvidence:
    """Parse the members of `evidence`.

    Raises:
        FormatRefused: wrong shape or version (`tee.insecure.malformed`).
        EvidenceError: evidence of another technology (`tee.insecure.malformed`), or one that does not say that it is
            simulated (`tee.insecure.not_simulated`).
    """
    if evidence.tee != TEE:
        raise EvidenceError(
            "tee.insecure.malformed", "evidence of another technology", expected=TEE, actual=evidence.tee[:40]
        )
    try:
        wire = msgspec.convert(evidence.body, SimulatedEvidence)
    except msgspec.ValidationError as err:
        raise FormatRefused("tee.insecure.malformed", f"not simulated evidence: {err}") from err
    if wire.simulated is not True:
        raise EvidenceError("tee.insecure.not_simulated", "simulated evidence must say so", path="simulated")
    if wire.version != VERSION:
        raise FormatRefused(
            "tee.insecure.malformed", "unknown version", path="version", expected=str(VERSION), actual=str(wire.version)
        )
    for name, value in wire.registers.items():
        if name not in _REGISTER_NAMES or len(value) != 2 * REGISTER_BYTES or set(value) - _HEX_DIGITS:
            raise FormatRefused(
                "tee.insecure.malformed", "not a register and its digest", path=f"registers.{name[:20]}"
            )
    return wire
