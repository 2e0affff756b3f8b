"""Verifier of TPM 2.0 evidence: whose TPM is it, and what did it measure. Pure.

Evidence is of one of two profiles. A guest of Cloister enrols: it sends its EK certificate, activates the credential of
this session, and quotes all 24 registers. Other evidence (CoCo's `tpm` attester, Google's virtual TPMs, files of
tpm2-tools) comes with an AK that the owner trusts or that has a certificate, and quotes what its attester chose.

Trusts: the configured roots (CAs of EKs and AKs, and AKs themselves), the caller's session secret and time. The level
is that of the root. A software TPM's root is `measured`: whoever runs the TPM can make it sign anything, so its
evidence holds against everyone but the root of that machine.

Steps:
  1 parse, strictly: an unknown member, a stray bit of base64, a trailing byte refuses
  2 somebody vouches for the TPM: the owner for this AK, or a CA that chains to a configured root for the EK or the AK
  3 the AK, where its public area was sent, is one that only a TPM can use, and only for structures the TPM made
  4 where it is the EK that is certified, the credential was activated: the TPM that holds this EK also holds this AK
  5 the quote's structure was made by a TPM and is a quote; of an enrolled guest, by a primary key of that name
  6 the signature
  7 the signed selection is of the SHA-256 bank and no other; of an enrolled guest, all 24 registers
  8 the register values, taken by that selection, are those quoted
  9 clock, resets and firmware version are recorded as claims; a first attestation has nothing to compare them with
 10 the event log, when there is one, replays to the quoted registers

Reported for binding: the quote's extraData, and register 8, which must hold one extend by the init data digest.

Not checked, and said so in the result: register 0 of an enrolled guest against the log (its start value is the
launcher's measurement, which only a reference value can judge); registers a log does not mention; which *events* the
log describes; whether the attributes sent with a key that was not activated are its own; revocation where a CA offers
none.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.errors import EvidenceError
from cloister.rats.claims import Claims, Level
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import AuthenticEvidence, Evidence, Slot, UnverifiedClaims
from cloister.rats.result import Question, Unchecked
from cloister.tee.checklist import Checklist, shorten
from cloister.tee.tpm import constants as c
from cloister.tee.tpm import eventlog, quote
from cloister.tee.tpm.abi import ECCUnique, Public, QuoteAttest, parse_quote_attest
from cloister.tee.tpm.appraisal import TPMFacts
from cloister.tee.tpm.credential import ak_name, bound_credential
from cloister.tee.tpm.evidence import TEE, ParsedEvidence, parse_evidence
from cloister.tee.tpm.measurements import UKI_PCR, measured_roles
from cloister.tee.tpm.vouching import Vouched, verify_ak_certificate, verify_ek, verify_trusted_key
from cloister.wire.base64 import encode_b64

# Registers that firmware, boot stub and kernel measure before the agent runs: the log must explain each of them whole.
# Not: 0 (starts from the launcher's measurement), 8 (init data), 10 (IMA's own log), 15 (run time),
# 16 and 23 (resettable by anyone), 17-22 (dynamic root of trust, not used).
LOGGED_PCRS: Final = (1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 13, 14)
RESETTABLE_PCRS: Final = frozenset({16, 23})  # PC Client Platform TPM Profile, table 6: locality 0 may reset them
FIRMWARE_PCRS: Final = range(8)  # of these a log tells everything, whoever wrote it
COCO_REPORT_DATA_BYTES: Final = 64  # CoCo's attester of today pads report data to this, older ones cut it to 32
_AK_REQUIRED: Final = c.FIXED_TPM | c.FIXED_PARENT | c.SENSITIVE_DATA_ORIGIN | c.RESTRICTED | c.SIGN_ENCRYPT
_AK_FORBIDDEN: Final = c.DECRYPT | c.ENCRYPTED_DUPLICATION | c.X509_SIGN
_REGISTER_0: Final = Unchecked(
    reason="register 0 against the event log: it starts from the launch measurement; reference values judge it"
)
_NO_LOG: Final = Unchecked(reason="the event log: the evidence carries none; reference values judge the registers")
_ATTRIBUTES: Final = Unchecked(
    reason="attributes of the AK: nobody signed them; who vouches for the key says that it is a TPM's"
)


def authenticate(
    evidence: Evidence, endorsements: Endorsements, *, at: datetime, session_secret: bytes = b""
) -> AuthenticEvidence:
    """Verify the signature chain of TPM evidence.

    Args:
        evidence: as received, for technology `tpm`.
        endorsements: roots for `tpm`: certificates of CAs for EKs and AKs, or AKs; intermediates; revocation lists.
        at: aware time.
        session_secret: what `challenge_for` issued.

    Raises:
        FormatRefused: a member does not parse.
        EndorsementError: a certificate or revocation list does not hold.
        EvidenceError: any other step does not hold.
    """
    # 1
    parsed = parse_evidence(evidence)
    checks = Checklist()
    # 2
    key = _key(parsed)
    vouched, by_ek = _verify_vouching(checks, parsed, key, endorsements, at)
    # 3
    enrolled = bool(parsed.ek_certificate)
    if parsed.ak is not None:
        _verify_ak(checks, parsed.ak, enrolled=enrolled)
    # 4
    name = ak_name(parsed.ak_public) if parsed.ak is not None else b""
    if by_ek:
        _verify_activation(checks, parsed, name, session_secret)
    # 5
    attest = parse_quote_attest(parsed.message)
    if enrolled:
        _verify_signer(checks, attest, name)
    # 6
    quote.verify_signature(checks, key, parsed.message, parsed.signature)
    # 7 and 8
    required = quote.ALL_PCRS if enrolled else None
    values = quote.verify_signed_values(checks, attest, parsed.values, required=required)
    # 10 (9 is part of the claims below)
    unchecked = list(vouched.unchecked)
    if not by_ek:  # activation is by the AK's name, a digest over its whole public area; a key is only a key
        unchecked.append(_ATTRIBUTES)
    if parsed.events is None:
        unchecked.append(_NO_LOG)
    elif enrolled:
        verify_log(checks, parsed.events, values, LOGGED_PCRS)
        unchecked.append(_REGISTER_0)
    else:
        unchecked.extend(verify_foreign_log(checks, parsed.events, values))
    return AuthenticEvidence(
        claims=_claims(parsed, attest, vouched, key, values),
        findings=(*checks.findings, *vouched.findings),
        unchecked=tuple(unchecked),
        freshness=_freshness(attest, enrolled=enrolled),
        init_data=Slot(
            name="register 8", value=values[c.INIT_DATA_PCR], extended=True, path=f"tpm_quote.pcrs[{c.INIT_DATA_PCR}]"
        )
        if c.INIT_DATA_PCR in values
        else None,
        facts=TPMFacts(
            event_log=parsed.events is not None,
            firmware_version=attest.firmware_version,
            nonce=bool(attest.extra_data),
        ),
    )


def read_claims(evidence: Evidence) -> UnverifiedClaims:
    """Return what TPM evidence says, whoever signed it.

    Raises:
        FormatRefused, EvidenceError: it does not parse, or its values are not those its digest covers.
    """
    parsed = parse_evidence(evidence)
    attest = parse_quote_attest(parsed.message)
    values = quote.verify_signed_values(Checklist(), attest, parsed.values)
    return UnverifiedClaims(claims=_claims(parsed, attest, Vouched(level=Level.SIMULATED), _key(parsed), values))


def _key(parsed: ParsedEvidence) -> quote.AttestationKey:
    if parsed.ak is not None:
        return quote.attestation_key(parsed.ak)
    return quote.load_attestation_key(parsed.ak_public)


def _verify_vouching(
    checks: Checklist, parsed: ParsedEvidence, key: quote.AttestationKey, endorsements: Endorsements, at: datetime
) -> tuple[Vouched, bool]:
    """Step 2. Return who vouches, and whether it is for the EK, so that step 4 is needed."""
    key_der = quote.encode_key(key)
    roots = endorsements.roots_for(TEE, parsed.ak_intermediates)
    trusted = verify_trusted_key(checks, key_der, roots)
    if trusted is not None:
        return trusted, False
    if parsed.ek_certificate:
        if not parsed.activation:
            raise EvidenceError(
                "tee.tpm.no_activation",
                "nothing ties the AK to the EK: the evidence has no activated credential",
                path="activation",
                hint="the guest must activate the credential of this session",
            )
        return verify_ek(checks, parsed.ek_certificate, roots, endorsements, at), True
    if not parsed.ak_certificate:
        raise EvidenceError(
            "tee.tpm.no_ek_certificate",
            "nothing vouches for the AK: it is no configured root, and the evidence has neither EK nor AK certificate",
            path="ak_public",
            hint="configure the AK itself as a root if you know whose it is; or use a guest that enrols, which CoCo's "
            "`tpm` attester does not",
        )
    certificate, carried = parsed.ak_certificate, parsed.ak_intermediates
    return verify_ak_certificate(checks, certificate, key_der, carried, roots, endorsements, at), False


def _verify_ak(checks: Checklist, ak: Public, *, enrolled: bool) -> None:
    """Step 3. The kind of key itself was checked when it was loaded."""
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
    p256 = isinstance(ak.unique, ECCUnique)
    scheme = c.ALG_ECDSA if p256 else c.ALG_RSASSA
    checks.require(
        (p256 or not enrolled) and (ak.scheme, ak.scheme_hash) == (scheme, c.ALG_SHA256) and ak.symmetric is None,
        code="tee.tpm.ak_key",
        question=Question.AUTHENTIC,
        message="AK signs with the algorithm of its key and SHA-256, and nothing else",
        otherwise="AK is of another kind",
        expected="P-256, ECDSA with SHA-256" + ("" if enrolled else "; or RSA, RSASSA with SHA-256"),
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


def verify_log(
    checks: Checklist,
    events: tuple[eventlog.Event, ...],
    values: Mapping[int, bytes],
    registers: tuple[int, ...],
) -> None:
    """Step 10. Check that the log explains each of `registers` whole; one it does not mention was never extended.

    Raises:
        EvidenceError: `tee.tpm.event_log_mismatch`.
        FormatRefused: the log has no SHA-256 bank, or a misplaced locality record (`tee.tpm.eventlog.*`).
    """
    differing = [
        (index, replayed)
        for index in registers
        if (replayed := eventlog.replay(events, index, eventlog.start_value(events, index))) != values[index]
    ]
    index, replayed = differing[0] if differing else (registers[0], values[registers[0]])
    checks.require(
        not differing,
        code="tee.tpm.event_log_mismatch",
        question=Question.AUTHENTIC,
        message=f"event log replays to registers {', '.join(map(str, registers))}",
        otherwise=f"event log does not replay to registers {', '.join(str(item[0]) for item in differing)}",
        expected=f"register {index}: {shorten(values[index])}",
        actual=f"register {index}: {shorten(replayed)}",
        origin="quoted registers",
        path="event_log",
        hint="the log was altered or cut, or something extended the register without logging it",
    )


def verify_foreign_log(
    checks: Checklist, events: tuple[eventlog.Event, ...], values: Mapping[int, bytes]
) -> tuple[Unchecked, ...]:
    """Step 10 for evidence of any boot path: what is quoted and either firmware's or mentioned must be explained.

    Returns which registers the log explains nothing of.

    Raises:
        EvidenceError, FormatRefused: as `verify_log`.
    """
    mentioned = {event.register for event in events if event.kind != eventlog.EV_NO_ACTION}
    explained = tuple(index for index in sorted(values) if index in mentioned or index in FIRMWARE_PCRS)
    if explained:
        verify_log(checks, events, values, explained)
    rest = [str(index) for index in sorted(values) if index not in explained]
    if not rest:
        return ()
    return (Unchecked(reason=f"registers {', '.join(rest)} against the event log: it does not mention them"),)


def _freshness(attest: QuoteAttest, *, enrolled: bool) -> Slot:
    """Return the slot of the nonce. What others than our guest put there has the length it has; CoCo's two forms of
    fitting a digest are told apart by it, and either binds at least 32 bytes."""
    size: int | None = c.REPORT_DATA_BYTES
    if not enrolled and len(attest.extra_data) != size:
        size = COCO_REPORT_DATA_BYTES if len(attest.extra_data) == COCO_REPORT_DATA_BYTES else None
    return Slot(name="extraData", value=attest.extra_data, size=size, cut=size is not None, path="tpm_quote.message")


def _claims(
    parsed: ParsedEvidence,
    attest: QuoteAttest,
    vouched: Vouched,
    key: quote.AttestationKey,
    values: Mapping[int, bytes],
) -> Claims:
    # The instance is the EK where that is what is certified, else the AK.
    identity = vouched.certificate.public_key() if vouched.certificate is not None else key
    spki = identity.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    native: dict[str, Any] = {f"pcr{index}": value.hex() for index, value in values.items()}
    native["ak_algorithm"] = "RSASSA" if isinstance(key, rsa.RSAPublicKey) else "ECDSA"
    if vouched.instance is not None:
        native["gce_instance"] = vouched.instance.as_dict()
    return Claims(
        tee=TEE,
        level=vouched.level,
        debug=False,
        registers={f"pcr{index:02d}": value for index, value in values.items() if index not in RESETTABLE_PCRS},
        report_data=attest.extra_data,
        init_data=values.get(c.INIT_DATA_PCR, b""),
        instance_id=hashlib.sha256(spki).hexdigest(),
        raw=_raw(parsed, attest, vouched, key, values),
        platform="TPM 2.0" if vouched.instance is None else "TPM 2.0, virtual, of Google Compute Engine",
        measurements=measured_roles(eventlog.measured(parsed.events, UKI_PCR))
        if parsed.events is not None and UKI_PCR in values
        else {},
        window=vouched.window,
        native=native,
    )


def _raw(
    parsed: ParsedEvidence,
    attest: QuoteAttest,
    vouched: Vouched,
    key: quote.AttestationKey,
    values: Mapping[int, bytes],
) -> Mapping[str, Any]:  # Any: JSON values
    """Return CoCo's claims (`pcr00`.., `ak_public` as SubjectPublicKeyInfo) and ours beside them."""
    raw: dict[str, Any] = {f"pcr{index:02d}": value.hex() for index, value in values.items()}
    raw["ak_public"] = encode_b64(quote.encode_key(key))
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
    if vouched.instance is not None:
        raw["gce_instance"] = vouched.instance.as_dict()
    return raw
