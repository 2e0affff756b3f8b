"""Checks on one TPM 2.0 quote, for every profile that carries one (plain TPM, cloud vTPMs under another TEE).

TPM 2.0 Library, part 1, 31 (attestation) and part 3, 18.4 (TPM2_Quote). Signature algorithms are pinned to SHA-256
with RSASSA (2048 bits or more) or ECDSA on P-256; a SHA-1 bank or signature is never accepted. Each function makes one
check. None decides whose key the AK is: that is the caller's.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from cloister.errors import EvidenceError
from cloister.rats.result import Question
from cloister.tee.checklist import Checklist, shorten
from cloister.tee.tpm import constants as c
from cloister.tee.tpm.abi import ECCUnique, PCRSelection, Public, QuoteAttest, Signature

ALL_PCRS: Final = PCRSelection(algorithm=c.ALG_SHA256, bitmap=b"\xff\xff\xff")
_RSA_BITS: Final = range(2048, 4097)
_RSA_EXPONENT: Final = 65537
_P256_BYTES: Final = 32
_CACHED: Final = 256

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
        if modulus.bit_length() != unique.bits:
            raise ValueError("RSA key size")
        return rsa_key(modulus, unique.exponent)
    except ValueError as err:
        raise _bad_key(err) from err


@lru_cache(maxsize=_CACHED)
def rsa_key(modulus: int, exponent: int) -> rsa.RSAPublicKey:
    """Return an RSA key of a size and exponent that are accepted. The library checks a modulus for tens of
    microseconds, so keys are kept.

    Raises:
        ValueError: another size or exponent.
    """
    if modulus.bit_length() not in _RSA_BITS or exponent != _RSA_EXPONENT:
        raise ValueError("RSA key size or exponent")
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


def load_attestation_key(der: bytes) -> AttestationKey:
    """Return the AK of a SubjectPublicKeyInfo.

    Raises:
        EvidenceError: not one, not in its canonical form, or a kind or size of key that is not accepted
            (`tee.tpm.ak_key`).
    """
    try:
        key = load_der_public_key(der)
        if isinstance(key, rsa.RSAPublicKey):
            accepted = key.key_size in _RSA_BITS and key.public_numbers().e == _RSA_EXPONENT
        else:
            accepted = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
        if not accepted or not isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)):
            raise ValueError("kind or size of key")
        if encode_key(key) != der:
            raise ValueError("not in its canonical form")
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise _bad_key(err) from err
    return key


def encode_key(key: AttestationKey) -> bytes:
    """Return the SubjectPublicKeyInfo of a key."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


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


def verify_signed_values(
    checks: Checklist, attest: QuoteAttest, values: Sequence[bytes], *, required: PCRSelection | None = None
) -> Mapping[int, bytes]:
    """Return the register values by index, taken by the signed selection and nothing else.

    The selection must be exactly `required`. Where the attester chose what to quote and none is, it must be registers
    of the SHA-256 bank and of no other. `values` must be as many, in order of their index, and what the digest covers.

    Raises:
        EvidenceError: `tee.tpm.pcr_selection`, `tee.tpm.pcr_digest_mismatch`.
    """
    chosen = attest.selections[0] if len(attest.selections) == 1 else PCRSelection(algorithm=c.ALG_NULL, bitmap=b"")
    indexes = selected(chosen.bitmap)
    if required is not None:
        verify_selection(checks, attest, required)
    else:
        checks.require(
            bool(indexes) and chosen.algorithm == c.ALG_SHA256 and indexes[-1] < c.PCRS and len(indexes) == len(values),
            code="tee.tpm.pcr_selection",
            question=Question.AUTHENTIC,
            message=f"quote covers the {len(indexes)} registers that values are given for",
            otherwise="quote covers other registers than values are given for",
            expected=f"{len(values)} registers of {c.ALG_SHA256:#06x}, and no other bank",
            actual=_show(attest.selections),
            origin="values that came with the quote",
            path="tpm_quote.pcrs",
            hint="values count only by the signed selection: send one for each quoted register of the SHA-256 bank",
        )
    verify_values(checks, attest, values)
    return dict(zip(indexes, values, strict=True))


def selected(bitmap: bytes) -> tuple[int, ...]:
    """Return the registers of a TPMS_PCR_SELECTION's bitmap, ascending."""
    return tuple(index for index in range(8 * len(bitmap)) if bitmap[index // 8] >> index % 8 & 1)


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


def _bad_key(err: Exception) -> EvidenceError:
    return EvidenceError(
        "tee.tpm.ak_key",
        f"AK is not a key that is accepted: {err}"[:160],
        path="ak_public",
        expected="P-256, or RSA of 2048 to 4096 bits",
    )


def _show(selections: Sequence[PCRSelection]) -> str:
    shown = [f"{item.algorithm:#06x}:{item.bitmap.hex() or 'none'}" for item in selections[:4]]
    return " + ".join(shown) or "no register"
