"""Verifier of TPM 2.0 evidence: whose TPM is it, and what did it measure. Pure.

The shape is that of CoCo's `tpm` attester (`ak_public`, `tpm_quote`), with three members more: `ek_certificate` and
`activation`, without which nothing vouches for the AK, and `event_log`.

Trusts: the configured roots (certificates of EK CAs), the caller's session secret and time. The level is
that of the root which the EK certificate chains to. A software TPM's root is `measured`: whoever runs the TPM can make
it sign anything, so its evidence holds against everyone but the root of that machine.

Steps:
  1 parse, strictly: an unknown member, a stray bit of base64, a trailing byte refuses
  2 the EK certificate is for an EK and chains to a configured root at the given time
  3 the AK is one that only a TPM can use, and only for structures the TPM made
  4 the credential was activated: the TPM that holds this EK also holds this AK
  5 the quote's structure was made by a TPM, is a quote, and is signed by a primary key of that name
  6 the signature
  7 the signed selection is all 24 registers of the SHA-256 bank, and no other bank
  8 the register values are those quoted
  9 clock, resets and firmware version are recorded as claims; a first attestation has nothing to compare them with
 10 the event log, when there is one, replays to the quoted registers that firmware and boot stub measure

Reported for binding: the quote's extraData, and register 8, which must hold one extend by the init data digest.

Not checked, and said so in the result: revocation of EK certificates; register 0 against the log (its start value is
the launcher's measurement, which only a reference value can judge); which *events* the log describes.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

from cloister.crypto.x509path import extension, load_certificate, verify_path
from cloister.errors import EndorsementError, EvidenceError
from cloister.rats.claims import Claims, Level, Window
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import AuthenticEvidence, Evidence, Slot
from cloister.rats.result import Question, Unchecked
from cloister.tee.checklist import Checklist, shorten
from cloister.tee.tpm import constants as c
from cloister.tee.tpm import eventlog, quote
from cloister.tee.tpm.abi import ECCUnique, Public, QuoteAttest, parse_quote_attest
from cloister.tee.tpm.appraisal import TPMFacts
from cloister.tee.tpm.credential import ak_name, bound_credential
from cloister.tee.tpm.evidence import TEE, ParsedEvidence, parse_evidence
from cloister.wire.base64 import encode_b64

EK_PURPOSE: Final = x509.ObjectIdentifier("2.23.133.8.1")  # tcg-kp-EKCertificate, EK Credential Profile 3.2.16
# Registers that firmware, boot stub and kernel measure before the agent runs: the log must explain each of them whole.
# Not: 0 (starts from the launcher's measurement), 8 (init data), 10 (IMA's own log), 15 (run time),
# 16 and 23 (resettable by anyone), 17-22 (dynamic root of trust, not used).
LOGGED_PCRS: Final = (1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 13, 14)
RESETTABLE_PCRS: Final = frozenset({16, 23})  # PC Client Platform TPM Profile, table 6: locality 0 may reset them
_AK_REQUIRED: Final = c.FIXED_TPM | c.FIXED_PARENT | c.SENSITIVE_DATA_ORIGIN | c.RESTRICTED | c.SIGN_ENCRYPT
_AK_FORBIDDEN: Final = c.DECRYPT | c.ENCRYPTED_DUPLICATION | c.X509_SIGN
_UNCHECKED: Final = (
    Unchecked(reason="revocation of the EK certificate: no revocation data is used for TPM endorsement keys"),
    Unchecked(
        reason="register 0 against the event log: it starts from the launch measurement; reference values judge it"
    ),
)
_NO_LOG: Final = Unchecked(reason="the event log: the evidence carries none; reference values judge the registers")


def authenticate(
    evidence: Evidence, endorsements: Endorsements, *, at: datetime, session_secret: bytes = b""
) -> AuthenticEvidence:
    """Verify the signature chain of TPM evidence.

    Args:
        evidence: as received, for technology `tpm`.
        endorsements: roots for `tpm`: certificates of EK CAs.
        at: aware time.
        session_secret: what `challenge_for` issued.

    Raises:
        FormatRefused: a member does not parse.
        EndorsementError: the EK certificate does not hold.
        EvidenceError: any other step does not hold.
    """
    # 1
    parsed = parse_evidence(evidence)
    checks = Checklist()
    # 2
    certificate, level = _verify_ek(checks, parsed.ek_certificate, endorsements, at)
    # 3
    _verify_ak(checks, parsed.ak)
    key = quote.attestation_key(parsed.ak)
    # 4
    name = ak_name(parsed.ak_public)
    _verify_activation(checks, parsed, name, session_secret)
    # 5
    attest = parse_quote_attest(parsed.message)
    _verify_signer(checks, attest, name)
    # 6
    quote.verify_signature(checks, key, parsed.message, parsed.signature)
    # 7
    quote.verify_selection(checks, attest)
    # 8
    quote.verify_values(checks, attest, parsed.values)
    # 10 (9 is part of the claims below)
    if parsed.events is not None:
        _verify_log(checks, parsed.events, parsed.values)
    return AuthenticEvidence(
        claims=_claims(parsed, attest, certificate, key, level),
        findings=checks.findings,
        unchecked=_UNCHECKED if parsed.events is not None else (*_UNCHECKED, _NO_LOG),
        freshness=Slot(
            name="extraData", value=attest.extra_data, size=c.REPORT_DATA_BYTES, cut=True, path="tpm_quote.message"
        ),
        init_data=Slot(
            name="register 8", value=parsed.values[c.INIT_DATA_PCR], extended=True, path="tpm_quote.pcrs[8]"
        ),
        facts=TPMFacts(event_log=parsed.events is not None, firmware_version=attest.firmware_version),
    )


def _verify_ek(
    checks: Checklist, der: bytes, endorsements: Endorsements, at: datetime
) -> tuple[x509.Certificate, Level]:
    """Step 2. Return the EK certificate and the level of the root it chains to."""
    code = "tee.tpm.ek_certificate"
    certificate = load_certificate(der, code=code, path="ek_certificate")
    roots = [root for root in endorsements.roots if root.tee == TEE]
    if not roots:
        raise EndorsementError(
            "tee.tpm.no_roots",
            "no root for TPM endorsement keys is configured",
            expected="at least one CA certificate",
            actual="none",
            hint="configure the certificate of the CA that signs the EKs you trust",
        )
    anchors = [load_certificate(root.der, code="tee.tpm.root", path=root.name) for root in roots]
    # An EK certificate with an empty subject must have its subjectAltName critical (EK Credential Profile 3.2.9): TPM
    # manufacturer, model and version as a directoryName. They are recorded, not judged.
    path = verify_path(
        certificate,
        anchors=anchors,
        at=at,
        code=code,
        purpose=EK_PURPOSE,
        leaf_critical=frozenset({ExtensionOID.SUBJECT_ALTERNATIVE_NAME}),
    )
    usage = extension(certificate, x509.KeyUsage)
    if usage is None or not usage.key_encipherment or usage.digital_signature or usage.key_cert_sign:
        raise EndorsementError(
            f"{code}.key_usage",
            "certificate is not for a storage key",
            path="ek_certificate",
            expected="keyEncipherment",
        )
    root = roots[anchors.index(path[-1])]
    checks.require(
        True,
        code=code,
        question=Question.AUTHENTIC,
        message=f"EK certificate chains to a configured root, level {root.level.value}",
        otherwise="",
        expected=root.name,
        actual=" < ".join(item.subject.rfc4514_string()[:60] or "no subject" for item in path),
        origin="configured roots",
    )
    return certificate, root.level


def _verify_ak(checks: Checklist, ak: Public) -> None:
    """Step 3."""
    attributes = ak.attributes
    checks.require(
        attributes & _AK_REQUIRED == _AK_REQUIRED
        and not attributes & _AK_FORBIDDEN
        and ak.name_algorithm == c.ALG_SHA256,
        code="tee.tpm.ak_attributes",
        question=Question.AUTHENTIC,
        message="AK never leaves its TPM and signs only what the TPM made",
        otherwise="AK could sign what no TPM made, or leave its TPM",
        expected=f"{_AK_REQUIRED:#x} set, {_AK_FORBIDDEN:#x} clear, name by SHA-256",
        actual=f"{attributes:#x}, name by {ak.name_algorithm:#06x}",
        origin="TPM 2.0 part 2, table 31",
        path="ak_public",
        hint="the attestation key must be a restricted signing key created in the TPM",
    )
    unique = ak.unique
    checks.require(
        isinstance(unique, ECCUnique)
        and unique.curve == c.CURVE_P256
        and (ak.scheme, ak.scheme_hash) == (c.ALG_ECDSA, c.ALG_SHA256)
        and ak.symmetric is None,
        code="tee.tpm.ak_key",
        question=Question.AUTHENTIC,
        message="AK is a P-256 key that signs with ECDSA and SHA-256",
        otherwise="AK is of another kind",
        expected="P-256, ECDSA with SHA-256",
        actual=f"scheme {ak.scheme:#06x} with {ak.scheme_hash:#06x}",
        path="ak_public",
    )


def _verify_activation(checks: Checklist, parsed: ParsedEvidence, name: bytes, session_secret: bytes) -> None:
    """Step 4. What must have been recovered depends on EK and AK, so neither can be another than at the challenge."""
    if not session_secret:
        raise EvidenceError(
            "tee.tpm.no_session_secret",
            "this session made no credential, so nothing can tell which TPM answered",
            hint="the guest must enrol when it asks for the challenge",
        )
    expected = bound_credential(session_secret, parsed.ek_certificate, name)
    checks.require(
        hmac.compare_digest(parsed.activation, expected),
        code="tee.tpm.activation_mismatch",
        question=Question.AUTHENTIC,
        message="the TPM that holds the certified EK also holds the AK",
        otherwise="the activated credential is not the one this session issued for this TPM",
        origin="credential of this session",
        path="activation",
        hint="EK certificate and AK must be those that the session was opened with",
    )


def _verify_signer(checks: Checklist, attest: QuoteAttest, name: bytes) -> None:
    """Step 5. Magic and type were checked by the parser, which reads nothing without them."""
    expected = quote.qualified_name(c.RH_ENDORSEMENT, name)
    checks.require(
        attest.qualified_signer == expected,
        code="tee.tpm.qualified_signer",
        question=Question.AUTHENTIC,
        message="quote names the AK, a primary key of the endorsement hierarchy, as its signer",
        otherwise="quote names another signer than the AK as endorsement primary key",
        expected=shorten(expected),
        actual=shorten(attest.qualified_signer),
        origin="TPM 2.0 part 1, section 16",
        path="tpm_quote.message",
    )


def _verify_log(checks: Checklist, events: tuple[eventlog.Event, ...], values: tuple[bytes, ...]) -> None:
    """Step 10. A register the log does not mention must never have been extended."""
    differing = [
        (index, replayed)
        for index in LOGGED_PCRS
        if (replayed := eventlog.replay(events, index, eventlog.start_value(events, index))) != values[index]
    ]
    index, replayed = differing[0] if differing else (LOGGED_PCRS[0], values[LOGGED_PCRS[0]])
    checks.require(
        not differing,
        code="tee.tpm.event_log_mismatch",
        question=Question.AUTHENTIC,
        message=f"event log replays to registers {', '.join(map(str, LOGGED_PCRS))}",
        otherwise=f"event log does not replay to registers {', '.join(str(item[0]) for item in differing)}",
        expected=f"register {index}: {shorten(values[index])}",
        actual=f"register {index}: {shorten(replayed)}",
        origin="quoted registers",
        path="event_log",
        hint="the log was altered or cut, or something extended the register without logging it",
    )


def _claims(
    parsed: ParsedEvidence, attest: QuoteAttest, certificate: x509.Certificate, key: quote.AttestationKey, level: Level
) -> Claims:
    registers = {f"pcr{index:02d}": value for index, value in enumerate(parsed.values) if index not in RESETTABLE_PCRS}
    ek = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Claims(
        tee=TEE,
        level=level,
        debug=False,
        registers=registers,
        report_data=attest.extra_data,
        init_data=parsed.values[c.INIT_DATA_PCR],
        instance_id=hashlib.sha256(ek).hexdigest(),
        raw=_raw(parsed, attest, key),
        platform="TPM 2.0",
        window=Window(not_before=certificate.not_valid_before_utc, not_after=certificate.not_valid_after_utc),
        native={f"pcr{index}": value.hex() for index, value in enumerate(parsed.values)},
    )


def _raw(
    parsed: ParsedEvidence, attest: QuoteAttest, key: quote.AttestationKey
) -> Mapping[str, Any]:  # Any: JSON values
    """Return CoCo's claims (`pcr00`.., `ak_public` as SubjectPublicKeyInfo) and ours beside them."""
    raw: dict[str, Any] = {f"pcr{index:02d}": value.hex() for index, value in enumerate(parsed.values)}
    raw["ak_public"] = encode_b64(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    # 9
    raw["clock"] = {
        "milliseconds": attest.clock,
        "reset_count": attest.reset_count,
        "restart_count": attest.restart_count,
        "safe": attest.safe,
    }
    raw["firmware_version"] = f"{attest.firmware_version:016x}"
    if parsed.events is not None:
        raw["pcr00_events"] = [digest.hex() for digest in eventlog.measured(parsed.events, 0)]
    return raw
