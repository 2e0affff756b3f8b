"""Verifier of simulated evidence. Pure.

It makes the same three statements as any other verifier, on the word of a key that the attested process holds itself.
The level comes from the configured root and can only be `simulated`; a root that claims more is refused.

Steps:
  1 parse, strictly; the evidence must say that it is simulated
  2 the key is one of the configured roots, of level `simulated`
  3 the signature over all other members

Reported for binding: the report data, whole, and register 8, which must hold one extend by the init data digest.

Not checked, and said so: that the registers are true.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from cloister.errors import EndorsementError, FormatRefused
from cloister.rats.claims import Claims, Level
from cloister.rats.endorsement import Endorsements, TrustedRoot
from cloister.rats.evidence import AuthenticEvidence, Evidence, Slot, UnverifiedClaims
from cloister.rats.result import Question, Unchecked
from cloister.tee.checklist import Checklist, shorten
from cloister.tee.insecure import abi
from cloister.wire.base64 import decode_b64

_UNCHECKED: Final = (Unchecked(reason="anything: the process that is attested signs for itself"),)


def authenticate(
    evidence: Evidence, endorsements: Endorsements, *, at: datetime, session_secret: bytes = b""
) -> AuthenticEvidence:
    """Verify who signed simulated evidence; `at` is not needed, as a key file has no validity, and there is no
    credential activation.

    Raises:
        FormatRefused: a member does not parse.
        EndorsementError: no root, a foreign key, or a root that claims more than `simulated`.
        EvidenceError: any other step does not hold.
    """
    # 1
    wire, public_key, report_data, signature = _parse(evidence)
    checks = Checklist()
    # 2
    root = _verify_root(checks, public_key, endorsements)
    # 3
    checks.require(
        _is_signed(root.der, wire, signature),
        code="tee.insecure.signature_invalid",
        question=Question.AUTHENTIC,
        message="evidence is signed by the simulation key",
        otherwise="evidence is not signed by the simulation key",
        path="signature",
    )
    claims = _claims(wire, public_key, report_data)
    return AuthenticEvidence(
        claims=claims,
        findings=checks.findings,
        unchecked=_UNCHECKED,
        freshness=Slot(name="report_data", value=report_data, size=abi.REPORT_DATA_BYTES, path="report_data"),
        init_data=Slot(
            name="register 8", value=claims.init_data, extended=True, path=f"registers.{abi.INIT_DATA_REGISTER}"
        ),
    )


def read_claims(evidence: Evidence) -> UnverifiedClaims:
    """Return what simulated evidence says, whoever signed it.

    Raises:
        FormatRefused, EvidenceError: it does not parse.
    """
    wire, public_key, report_data, _ = _parse(evidence)
    return UnverifiedClaims(claims=_claims(wire, public_key, report_data))


def _parse(evidence: Evidence) -> tuple[abi.SimulatedEvidence, bytes, bytes, bytes]:
    """Return the evidence, and of it public key, report data and signature."""
    wire = abi.parse_evidence(evidence)
    return (
        wire,
        _decode(wire.public_key, "public_key", abi.PUBLIC_KEY_BYTES),
        _decode(wire.report_data, "report_data", abi.REPORT_DATA_BYTES),
        _decode(wire.signature, "signature", abi.SIGNATURE_BYTES),
    )


def _claims(wire: abi.SimulatedEvidence, public_key: bytes, report_data: bytes) -> Claims:
    registers = {name: bytes.fromhex(value) for name, value in wire.registers.items()}
    return Claims(
        tee=abi.TEE,
        level=Level.SIMULATED,
        debug=False,
        registers=registers,
        report_data=report_data,
        init_data=registers.get(abi.INIT_DATA_REGISTER, b""),
        instance_id=hashlib.sha256(public_key).hexdigest(),
        raw={"simulated": True, "public_key": wire.public_key, **wire.registers},
        platform="simulation, no TEE",
        native=dict(wire.registers),
    )


def _verify_root(checks: Checklist, public_key: bytes, endorsements: Endorsements) -> TrustedRoot:
    """Step 2."""
    roots = [root for root in endorsements.roots if root.tee == abi.TEE]
    if not roots:
        raise EndorsementError(
            "tee.insecure.no_roots",
            "no simulation key is trusted",
            expected="at least one simulation key",
            actual="none",
            hint="simulated evidence proves nothing; trust this machine's simulation key only for trying things out",
        )
    for root in roots:
        if root.level is not Level.SIMULATED:
            raise EndorsementError(
                "tee.insecure.root_level",
                "a simulation key can prove no other level than simulated",
                path=root.name,
                expected=Level.SIMULATED.value,
                actual=root.level.value,
            )
    found = [root for root in roots if root.der == public_key]
    checks.require(
        bool(found),
        code="tee.insecure.key_untrusted",
        question=Question.AUTHENTIC,
        message="simulation key is a configured root, level simulated",
        otherwise="simulation key is not a configured root",
        expected=", ".join(shorten(hashlib.sha256(root.der).digest()) for root in roots[:4]),
        actual=shorten(hashlib.sha256(public_key).digest()),
        origin="configured roots",
        path="public_key",
        hint="the evidence was made on another machine",
        error=EndorsementError,
    )
    return found[0]


def _is_signed(root: bytes, wire: abi.SimulatedEvidence, signature: bytes) -> bool:
    """Return whether the root's key signed what is rebuilt here from the parsed members."""
    try:
        key = load_der_public_key(root)
    except (ValueError, UnsupportedAlgorithm) as err:
        raise EndorsementError("tee.insecure.root_malformed", "root is not a public key") from err
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise EndorsementError("tee.insecure.root_malformed", "root is not a P-256 key")
    signed = abi.signed_bytes(public_key=wire.public_key, registers=wire.registers, report_data=wire.report_data)
    try:
        key.verify(signature, signed, ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def _decode(text: str, path: str, ceiling: int) -> bytes:
    try:
        return decode_b64(text, path=path, ceiling=ceiling)
    except FormatRefused as err:
        raise FormatRefused("tee.insecure.malformed", err.message, path=path, expected=err.expected) from err
