"""Checks on one TPM 2.0 quote, for every profile that carries one (plain TPM, cloud vTPMs under another TEE).

TPM 2.0 Library, part 1, 31 (attestation) and part 3, 18.4 (TPM2_Quote). Signature algorithms are pinned to SHA-256
with RSASSA (2048 bits or more) or ECDSA on P-256; a SHA-1 bank or signature is never accepted. Each function makes one
check. None decides whose key the AK is: that is the caller's.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from cloister.errors import EvidenceError
from cloister.rats.result import Question
from cloister.tee.checklist import Checklist, shorten
from cloister.tee.tpm import constants as c
from cloister.tee.tpm.abi import ECCUnique, PCRSelection, Public, QuoteAttest, Signature

ALL_PCRS: Final = PCRSelection(algorithm=c.ALG_SHA256, bitmap=b"\xff\xff\xff")
_RSA_BITS: Final = range(2048, 4097)
_P256_BYTES: Final = 32

AttestationKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


def attestation_key(public: Public) -> AttestationKey:
    """Return the AK as a verification key.

    Raises:
        EvidenceError: a kind or size of key that is not accepted, or a point off the curve (`tee.tpm.ak_key`).
    """
    unique = public.unique
    try:
        if isinstance(unique, ECCUnique):
            if unique.curve != c.CURVE_P256 or max(len(unique.x), len(unique.y)) > _P256_BYTES:
                raise ValueError("not a P-256 point")
            x, y = int.from_bytes(unique.x, "big"), int.from_bytes(unique.y, "big")
            return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
        modulus = int.from_bytes(unique.modulus, "big")
        if unique.bits not in _RSA_BITS or modulus.bit_length() != unique.bits or unique.exponent != 65537:
            raise ValueError("RSA key size or exponent")
        return rsa.RSAPublicNumbers(unique.exponent, modulus).public_key()
    except ValueError as err:
        raise EvidenceError(
            "tee.tpm.ak_key",
            f"AK is not a key that is accepted: {err}",
            path="ak_public",
            expected="P-256, or RSA of 2048 to 4096 bits",
        ) from err


def verify_signature(checks: Checklist, key: AttestationKey, message: bytes, signature: Signature) -> None:
    """Check that `key` signed `message` (a TPMS_ATTEST).

    Raises:
        EvidenceError: `tee.tpm.signature_algorithm`, `tee.tpm.signature_invalid`.
    """
    wanted = c.ALG_RSASSA if isinstance(key, rsa.RSAPublicKey) else c.ALG_ECDSA
    checks.require(
        (signature.algorithm, signature.hash_algorithm) == (wanted, c.ALG_SHA256),
        code="tee.tpm.signature_algorithm",
        question=Question.AUTHENTIC,
        message="quote is signed with the algorithm of its key and SHA-256",
        otherwise="quote is signed with another algorithm",
        expected=f"{wanted:#06x} with {c.ALG_SHA256:#06x}",
        actual=f"{signature.algorithm:#06x} with {signature.hash_algorithm:#06x}",
        origin="TPM 2.0 part 2, table 195",
        path="tpm_quote.signature",
    )
    checks.require(
        _is_signed(key, message, signature),
        code="tee.tpm.signature_invalid",
        question=Question.AUTHENTIC,
        message="quote is signed by the AK",
        otherwise="quote is not signed by the AK",
        path="tpm_quote.signature",
        hint="the quote was altered, or comes from another TPM than the AK",
    )


def verify_selection(checks: Checklist, attest: QuoteAttest, required: PCRSelection = ALL_PCRS) -> None:
    """Check that the signed selection is exactly `required`: one bank, this bitmap.

    The values travel beside the quote; only what the signed selection names is authentic.

    Raises:
        EvidenceError: `tee.tpm.pcr_selection`.
    """
    checks.require(
        attest.selections == (required,),
        code="tee.tpm.pcr_selection",
        question=Question.AUTHENTIC,
        message="quote covers exactly the registers that are read from it",
        otherwise="quote covers other registers",
        expected=_show((required,)),
        actual=_show(attest.selections),
        origin="registers this verifier reads",
        path="tpm_quote.message",
        hint="the attester must quote all 24 registers of the SHA-256 bank and no other bank",
    )


def verify_values(checks: Checklist, attest: QuoteAttest, values: Sequence[bytes]) -> None:
    """Check that `values`, in order of their index, are what the quote's digest covers.

    Raises:
        EvidenceError: `tee.tpm.pcr_digest_mismatch`.
    """
    digest = hashlib.sha256(b"".join(values)).digest()
    checks.require(
        hmac.compare_digest(attest.pcr_digest, digest),
        code="tee.tpm.pcr_digest_mismatch",
        question=Question.AUTHENTIC,
        message="register values are those that were quoted",
        otherwise="register values are not those that were quoted",
        expected=shorten(attest.pcr_digest),
        actual=shorten(digest),
        origin="pcrDigest of the quote",
        path="tpm_quote.pcrs",
        hint="the values were altered on the way",
    )


def qualified_name(hierarchy: int, name: bytes) -> bytes:
    """Return the qualified name of a primary key: hash over hierarchy handle and name (part 1, section 16)."""
    return struct.pack(">H", c.ALG_SHA256) + hashlib.sha256(struct.pack(">I", hierarchy) + name).digest()


def _is_signed(key: AttestationKey, message: bytes, signature: Signature) -> bool:
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature.values[0], message, padding.PKCS1v15(), SHA256())
        else:
            r, s = (int.from_bytes(value, "big") for value in signature.values)
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def _show(selections: Sequence[PCRSelection]) -> str:
    shown = [f"{item.algorithm:#06x}:{item.bitmap.hex() or 'none'}" for item in selections[:4]]
    return " + ".join(shown) or "no register"
