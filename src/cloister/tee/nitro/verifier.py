"""Verifier of Nitro attestation documents: which enclave, on whose hypervisor. Pure.

Trusts: the pinned AWS root (and roots an owner configured), and the caller's time. The chain comes with the document
and is worth nothing until its first certificate is one of these roots, whole.

Steps (attestation_process.md, section 3.2):
  1 parse, strictly: sizes, types, no byte behind the message, nothing unsigned beside it
  2 the first certificate of the bundle is a trusted root
  3 the certificate of the signing key chains to it through exactly the bundle: validity at the given time,
    basicConstraints, path length, keyUsage
  4 revocation lists, when some were given: on none of them
  5 the algorithm is ES384, the key is on P-384, and it signed the bytes as received
  6 PCR 0 to 2: zero means debug mode, and is reported as such
Reported for binding: `nonce`, and `user_data` for the init data. Reported for appraisal: the document's own time.

Not checked, and said so in the result: revocation where no list is given. The intermediate certificates name lists,
but live for hours to weeks (leaf 3 hours, instance a day); no verifier in practice waits for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.crypto.cose import Algorithm, verify_sign1
from cloister.crypto.revocation import RevocationState, load_revocation_list, revocation_finding, verify_not_revoked
from cloister.crypto.x509path import extension, load_certificate, validity, verify_path
from cloister.errors import EndorsementError
from cloister.rats.claims import Claims, Level, Role, Window
from cloister.rats.endorsement import Endorsements, TrustedRoot
from cloister.rats.evidence import AuthenticEvidence, Evidence, Slot, UnverifiedClaims
from cloister.rats.result import Question, Unchecked
from cloister.tee.checklist import Checklist, shorten
from cloister.tee.nitro.abi import CODE, MEASURED_REGISTERS, REGISTER_BYTES, Document
from cloister.tee.nitro.appraisal import NitroFacts
from cloister.tee.nitro.evidence import TEE, parse_evidence

_CERTIFICATE: Final = "tee.nitro.certificate"
_UNCHECKED: Final = Unchecked(
    reason="revocation of Nitro certificates: no list in force was given; leaf and instance certificates live for hours"
)


def authenticate(
    evidence: Evidence, endorsements: Endorsements, *, at: datetime, session_secret: bytes = b""
) -> AuthenticEvidence:
    """Verify who signed a Nitro attestation document; there is no credential activation.

    Args:
        evidence: as received, for technology `nitro`.
        endorsements: pins or roots for `nitro`; revocation lists if the owner has some.
        at: aware time.
        session_secret: not used.

    Raises:
        FormatRefused: a member does not parse.
        EndorsementError: a certificate does not hold.
        EvidenceError: another algorithm or signature.
    """
    # 1
    parsed = parse_evidence(evidence)
    document = parsed.document
    checks = Checklist()
    # 2
    root = _verify_root(checks, document, endorsements)
    # 3
    path = _verify_chain(checks, document, root, at)
    # 4
    known = _verify_revocation(checks, path, endorsements, at)
    # 5
    key = path[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise EndorsementError(
            f"{_CERTIFICATE}.key", "certificate is not for an elliptic curve key", expected="P-384", path="certificate"
        )
    verify_sign1(parsed.message, key, Algorithm.ES384, code=CODE)
    checks.require(
        True,
        code=f"{CODE}.signature",
        question=Question.AUTHENTIC,
        message="document is signed by the key of its certificate (ES384)",
        otherwise="",
        actual=document.module_id[:60],
    )
    made_at = datetime.fromtimestamp(document.timestamp / 1000, UTC)
    return AuthenticEvidence(
        claims=_claims(document, root.level, path),
        findings=checks.findings,
        unchecked=() if known else (_UNCHECKED,),
        freshness=Slot(name="nonce", value=document.nonce, path="document.nonce"),
        init_data=Slot(name="user_data", value=document.user_data, path="document.user_data"),
        facts=NitroFacts(made_at=made_at),
    )


def read_claims(evidence: Evidence) -> UnverifiedClaims:
    """Return what a document says, whoever signed it.

    Raises:
        FormatRefused, EvidenceError: it does not parse.
    """
    document = parse_evidence(evidence).document
    chain = [
        load_certificate(der, code=_CERTIFICATE, path="document.certificate")
        for der in (document.certificate, *document.bundle)
    ]
    return UnverifiedClaims(claims=_claims(document, Level.SIMULATED, chain))


def _verify_root(checks: Checklist, document: Document, endorsements: Endorsements) -> TrustedRoot:
    """Step 2. Only the first certificate of the bundle can be one of the pinned roots: the others are looked up among
    what the owner configured, never among what the document carries."""
    roots = endorsements.roots_for(TEE, document.bundle[:1])
    if not roots and not any(pin.tee == TEE for pin in endorsements.pins):
        raise EndorsementError(
            "tee.nitro.no_roots",
            "no root for Nitro attestation is trusted",
            expected="the pinned root of AWS, or a configured one",
            actual="none",
            hint="use this build's pins, or configure the root certificate you trust",
        )
    found = next((root for root in roots if root.der == document.bundle[0]), None)
    if found is None:
        raise EndorsementError(
            "tee.nitro.root_untrusted",
            "the chain begins with a certificate that is not a trusted root",
            path="document.cabundle[0]",
            expected=", ".join(root.name for root in roots)[:160] or "the pinned root of AWS",
            hint="the document was not made by a Nitro hypervisor, or another root must be configured",
        )
    checks.require(
        True,
        code="tee.nitro.root_untrusted",
        question=Question.AUTHENTIC,
        message=f"the chain begins with a trusted root, level {found.level.value}",
        otherwise="",
        expected=found.name,
        actual=found.name,
        origin="pinned fingerprints and configured roots",
    )
    return found


def _verify_chain(
    checks: Checklist, document: Document, root: TrustedRoot, at: datetime
) -> tuple[x509.Certificate, ...]:
    """Step 3. Return the path, leaf first."""
    leaf = load_certificate(document.certificate, code=_CERTIFICATE, path="document.certificate")
    bundle = tuple(
        load_certificate(der, code=_CERTIFICATE, path=f"document.cabundle[{index}]")
        for index, der in enumerate(document.bundle)
    )
    path = verify_path(leaf, anchors=bundle[:1], intermediates=bundle[1:], at=at, code=_CERTIFICATE)
    checks.require(
        path == (leaf, *reversed(bundle)),
        code="tee.nitro.bundle",
        question=Question.AUTHENTIC,
        message="certificate chains to the root through the whole bundle",
        otherwise="bundle holds certificates that are not part of the chain",
        expected=root.name,
        actual=f"{len(path)} certificates",
        path="document.cabundle",
        error=EndorsementError,
    )
    usage = extension(leaf, x509.KeyUsage)
    if usage is None or not usage.digital_signature or usage.key_cert_sign:
        raise EndorsementError(
            f"{_CERTIFICATE}.key_usage",
            "certificate is not for a key that signs documents",
            path="document.certificate",
            expected="digitalSignature",
        )
    return path


def _verify_revocation(
    checks: Checklist, path: Sequence[x509.Certificate], endorsements: Endorsements, at: datetime
) -> bool:
    """Step 4. Return whether every certificate below the root is known not to be revoked."""
    lists = [load_revocation_list(data, code="tee.nitro.crl") for data in endorsements.revocation_lists]
    if not lists:
        return False
    statuses = [
        verify_not_revoked(item, issuer, lists, at=at, code=_CERTIFICATE, grace=endorsements.grace)
        for item, issuer in pairwise(path)
    ]
    good = [status for status in statuses if status.state in (RevocationState.GOOD, RevocationState.GRACE)]
    for status in good:
        checks.add(revocation_finding(status, code="tee.nitro.revocation"))
    return len(good) == len(statuses)


def _claims(document: Document, level: Level, path: Sequence[x509.Certificate]) -> Claims:
    registers = document.registers
    start, end = validity(path)
    # 6 Zero in any of the three, not only in all: no image, kernel or application has that digest.
    debug = any(registers[index] == bytes(REGISTER_BYTES) for index in MEASURED_REGISTERS)
    native = _native(document, debug)
    return Claims(
        tee=TEE,
        level=level,
        debug=debug,
        registers={f"pcr{index:02d}": value for index, value in sorted(registers.items())},
        report_data=document.nonce,
        init_data=document.user_data,
        instance_id=document.module_id,
        raw=native,  # CoCo has no Nitro verifier, so there are no other names
        platform="AWS Nitro Enclave",
        measurements={Role.LAUNCH: registers[0], Role.KERNEL: registers[1], Role.RUNTIME: registers[2]},
        window=Window(not_before=start, not_after=end),
        native=native,
    )


def _native(document: Document, debug: bool) -> Mapping[str, Any]:  # Any: JSON values
    native: dict[str, Any] = {"module_id": document.module_id, "timestamp": document.timestamp, "debug": debug}
    native |= {f"pcr{index}": value.hex() for index, value in sorted(document.registers.items())}
    for name, value in (
        ("public_key", document.public_key),
        ("user_data", document.user_data),
        ("nonce", document.nonce),
    ):
        if value:
            native[name] = value.hex()
    if document.unknown:
        native["unknown_members"] = [shorten(name.encode()) for name in document.unknown]
    return native
