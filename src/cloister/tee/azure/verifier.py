"""Verifier of Azure evidence: hardware vouches for a paravisor, the paravisor for a virtual TPM, the TPM for the boot.

Trusts: the roots of the hardware (AMD's or Intel's), and the caller's time. The paravisor is trusted as far as its
measurement is a reference value: it holds the virtual TPM, reads all of the guest's memory, and says what it likes in
its JSON. On TDX all run-time registers are zero: what was booted is in the registers of the virtual TPM only.

Steps:
  1 parse, strictly: an unknown member, a stray digit, a byte behind the report's end refuses
  2 the hardware's report is signed, as its own package lists it (`sev_snp.verifier`, `dcap.verifier`)
  3 its first 32 bytes of report data are the SHA-256 of the paravisor's JSON, the rest zero
  4 the AK in that JSON is an RSA key of an accepted size
  5 the quote's structure was made by a TPM, and is a quote
  6 the AK signed it, by RSASSA with SHA-256
  7 the signed selection is of the SHA-256 bank and no other, with one value for each register in it
  8 the values, taken by that selection, are those quoted
  9 where the evidence promises it (version 2), the paravisor bound the quote's nonce too: the 64 bytes of user data are
    the nonce and zeros, compared whole

Reported for binding: the quote's extraData, whole; and register 8, which must hold one extend by the init data digest.
A register outside the signed selection does not exist: no claim, and nothing that init data could be compared with.

Not checked, and said so in the result: the boot's event log (Azure offers none that is complete); attributes of the AK
(the paravisor gives the key alone, and vouches that it is its TPM's).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import rsa

from cloister.errors import EvidenceError
from cloister.rats.claims import Claims, Level
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import AuthenticEvidence, Evidence, Slot, UnverifiedClaims
from cloister.rats.result import Question, Unchecked
from cloister.tee.azure.abi import USER_DATA_BYTES, RuntimeClaims, parse_runtime_claims
from cloister.tee.azure.appraisal import AzureFacts
from cloister.tee.azure.evidence import AZ_SNP, WITH_USER_DATA, ParsedEvidence, parse_evidence
from cloister.tee.azure.hardware import verify_hardware
from cloister.tee.checklist import Checklist, shorten
from cloister.tee.tpm import constants as c
from cloister.tee.tpm import quote
from cloister.tee.tpm.abi import QuoteAttest, Signature, parse_quote_attest
from cloister.tee.tpm.verifier import RESETTABLE_PCRS
from cloister.wire.base64 import encode_b64

_HASH_BYTES: Final = 32
_CACHED: Final = 256
_NAMES: Final = tuple(f"pcr{index:02d}" for index in range(c.PCRS))  # in CoCo's claims and among the registers
_SHORT_NAMES: Final = tuple(f"pcr{index}" for index in range(c.PCRS))
_UNCHECKED: Final = (
    Unchecked(reason="the boot's event log: Azure offers none; reference values judge the registers"),
    Unchecked(reason="attributes of the AK: the paravisor gives the key alone, and vouches that it is its TPM's"),
)


def authenticate(
    evidence: Evidence, endorsements: Endorsements, *, at: datetime, session_secret: bytes = b""
) -> AuthenticEvidence:
    """Verify the signature chain of Azure evidence; there is no credential activation.

    Args:
        evidence: as received, for technology `az-snp-vtpm` or `az-tdx-vtpm`.
        endorsements: roots and pins for it, certificates, revocation lists and collateral of the hardware.
        at: aware time.
        session_secret: not used.

    Raises:
        FormatRefused: a member does not parse.
        EndorsementError: a certificate, list or statement of the hardware's vendor does not hold.
        EvidenceError: another step does not hold.
    """
    # 1
    parsed = parse_evidence(evidence)
    checks = Checklist()
    # 2
    hardware = verify_hardware(parsed, endorsements, at=at)
    # 3
    _verify_json(checks, parsed.hcl.variable, hardware.report_data)
    runtime = parse_runtime_claims(parsed.hcl.variable)
    # 4
    key = _key(runtime)
    # 5
    attest = parse_quote_attest(parsed.message)
    # 6
    signature = Signature(algorithm=c.ALG_RSASSA, hash_algorithm=c.ALG_SHA256, values=(parsed.signature,))
    quote.verify_signature(checks, key, parsed.message, signature)
    # 7 8
    values = quote.verify_signed_values(checks, attest, parsed.values)
    # 9
    fresh = _verify_user_data(checks, parsed, runtime, attest)
    return AuthenticEvidence(
        claims=_claims(parsed, hardware.claims, runtime, attest, values),
        findings=(*hardware.findings, *checks.findings),
        unchecked=(*hardware.unchecked, *_UNCHECKED),
        freshness=Slot(name="extraData", value=attest.extra_data, path="tpm_quote.message"),
        init_data=Slot(
            name="register 8", value=values[c.INIT_DATA_PCR], extended=True, path=f"tpm_quote.pcrs[{c.INIT_DATA_PCR}]"
        )
        if c.INIT_DATA_PCR in values
        else None,
        facts=AzureFacts(
            hardware=hardware.facts,
            console=runtime.console,
            secure_boot=runtime.secure_boot,
            nonce=bool(attest.extra_data),
            fresh_hardware=fresh,
        ),
    )


def read_claims(evidence: Evidence) -> UnverifiedClaims:
    """Return what the paravisor and its TPM say, whoever signed it; of the hardware only that it is there.

    Raises:
        FormatRefused, EvidenceError: it does not parse, or its values are not those its digest covers.
    """
    parsed = parse_evidence(evidence)
    runtime = parse_runtime_claims(parsed.hcl.variable)
    attest = parse_quote_attest(parsed.message)
    values = quote.verify_signed_values(Checklist(), attest, parsed.values)
    nothing = Claims(
        tee=parsed.tee, level=Level.SIMULATED, debug=False, registers={}, report_data=b"", init_data=b"", instance_id=""
    )
    _key(runtime)
    return UnverifiedClaims(claims=_claims(parsed, nothing, runtime, attest, values))


def _verify_json(checks: Checklist, variable: bytes, report_data: bytes) -> None:
    """Step 3."""
    expected = hashlib.sha256(variable).digest() + bytes(_HASH_BYTES)
    checks.require(
        hmac.compare_digest(report_data, expected),
        code="tee.azure.variable_mismatch",
        question=Question.AUTHENTIC,
        message="hardware vouches for the paravisor's JSON",
        otherwise="hardware vouches for another JSON of the paravisor",
        expected=shorten(expected),
        actual=shorten(report_data),
        origin="report data of the hardware's report",
        path="hcl_report",
        hint="the JSON was altered, or belongs to another report",
    )


def _key(runtime: RuntimeClaims) -> rsa.RSAPublicKey:
    """Step 4."""
    try:
        return quote.rsa_key(runtime.modulus, runtime.exponent)
    except ValueError as err:
        raise EvidenceError(
            "tee.azure.ak_key",
            f"AK of the virtual TPM is not a key that is accepted: {err}"[:160],
            path="hcl_report.keys.HCLAkPub",
            expected="RSA of 2048 to 4096 bits, exponent 65537",
        ) from err


def _verify_user_data(checks: Checklist, parsed: ParsedEvidence, runtime: RuntimeClaims, attest: QuoteAttest) -> bool:
    """Step 9. Return whether the paravisor bound the nonce, and so the hardware's report is of this session."""
    nonce, user_data = attest.extra_data, runtime.user_data
    fresh = (
        user_data is not None
        and 0 < len(nonce) <= USER_DATA_BYTES
        and hmac.compare_digest(user_data, nonce.ljust(USER_DATA_BYTES, b"\0"))
    )
    if parsed.version == WITH_USER_DATA:
        checks.require(
            fresh,
            code="tee.azure.user_data_mismatch",
            question=Question.AUTHENTIC,
            message="paravisor's report was made for the quote's nonce",
            otherwise="paravisor's report was not made for the quote's nonce",
            expected=f"{shorten(nonce)} and zeros, {USER_DATA_BYTES} bytes",
            actual=shorten(user_data) if user_data is not None else "no user data",
            origin="extraData of the quote",
            path="hcl_report.user-data",
            hint="the attester must write the report data to the paravisor before it reads the report",
        )
    return fresh


def _claims(
    parsed: ParsedEvidence,
    hardware: Claims,
    runtime: RuntimeClaims,
    attest: QuoteAttest,
    values: Mapping[int, bytes],
) -> Claims:
    pcrs = {_NAMES[index]: value for index, value in values.items() if index not in RESETTABLE_PCRS}
    texts = {index: value.hex() for index, value in values.items()}
    name = "Azure confidential VM"
    return replace(
        hardware,
        registers={**hardware.registers, **pcrs},
        report_data=attest.extra_data,
        init_data=values.get(c.INIT_DATA_PCR, b""),
        # The chip is shared and the VM's id is the host's word: the instance is its virtual TPM.
        instance_id=_instance(runtime.modulus, runtime.exponent),
        raw=_raw(parsed, hardware, attest, texts),
        platform=f"{name} on {hardware.platform}" if hardware.platform else name,
        native={
            **hardware.native,
            **{_SHORT_NAMES[index]: text for index, text in texts.items()},
            "hcl_version": parsed.hcl.version,
            "evidence_version": parsed.version,
            "console_enabled": runtime.console,
            "secure_boot": runtime.secure_boot,
            "vm_unique_id": runtime.vm_id,
            "vm_configuration": dict(runtime.configuration),
            "user_data": runtime.user_data.hex() if runtime.user_data is not None else "",
        },
    )


@lru_cache(maxsize=_CACHED)
def _instance(modulus: int, exponent: int) -> str:
    """Return the digest of the AK as SubjectPublicKeyInfo."""
    return hashlib.sha256(quote.encode_key(quote.rsa_key(modulus, exponent))).hexdigest()


def _raw(
    parsed: ParsedEvidence, hardware: Claims, attest: QuoteAttest, texts: Mapping[int, str]
) -> Mapping[str, Any]:  # Any: JSON values
    """Return CoCo's claims: the hardware's (of SNP all as text, the measurement in base64) and the registers."""
    raw: dict[str, Any] = dict(hardware.raw)
    if parsed.tee == AZ_SNP and raw:
        raw = {name: _text(value) for name, value in raw.items()}
        raw["measurement"] = encode_b64(hardware.registers["measurement"])
    raw["tpm"] = {_NAMES[index]: text for index, text in texts.items()}
    raw["report_data"] = attest.extra_data.hex()
    raw["init_data"] = texts.get(c.INIT_DATA_PCR, "")
    return raw


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
