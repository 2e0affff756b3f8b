"""Credential activation, the verifier's side: TPM2_MakeCredential in software.

TPM 2.0 Library, part 1 "Architecture" (rev. 1.59), section 24 (credential protection), 11.4.10.2 (KDFa) and B.4
(OAEP). It proves that the TPM which holds the certified EK also holds the AK: only that TPM recovers the secret.

What the guest must send back is not the session's secret but `bound_credential`: a MAC under it over the EK
certificate and the AK's name. So evidence that names another EK certificate or AK than the challenge did cannot pass,
and the verifier needs no memory of the challenge but the secret. (Else an attacker could enrol with a software EK,
decrypt the secret, and present it beside a stranger's genuine EK certificate.)

Supported EKs: RSA of 2048 bits made from the low-range template (AES-128-CFB, SHA-256 name), which every TPM has. Not
done: ECC EKs. The challenge does not verify the EK certificate: the verifier does when it sees the evidence.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from cloister.crypto.x509path import load_certificate
from cloister.errors import EndorsementError, EvidenceError
from cloister.tee.tpm import constants as c

try:  # newer releases keep CFB, which TPM 2.0 prescribes here, in their module of old ciphers
    from cryptography.hazmat.decrepit.ciphers.modes import CFB
except ImportError:
    from cryptography.hazmat.primitives.ciphers.modes import CFB

SECRET_BYTES: Final = 32
_SEED_BYTES: Final = 32  # of the EK's name algorithm, SHA-256
_EK_BITS: Final = 2048
_EK_EXPONENT: Final = 65537
_OAEP_LABEL: Final = b"IDENTITY\x00"
_BINDING_LABEL: Final = b"cloister tpm credential v1\x00"


def ak_name(tpm2b_public: bytes) -> bytes:
    """Return the name of an object whose name algorithm is SHA-256 (part 1, section 16).

    Raises:
        EvidenceError: another name algorithm, or not a TPM2B (`tee.tpm.ak_attributes`).
    """
    area = tpm2b_public[2:]
    if len(area) < 4 or len(area) != int.from_bytes(tpm2b_public[:2], "big"):
        raise EvidenceError("tee.tpm.ak_public.truncated", "not one whole TPM2B_PUBLIC", path="ak_public")
    if int.from_bytes(area[2:4], "big") != c.ALG_SHA256:
        raise EvidenceError(
            "tee.tpm.ak_attributes", "AK has another name algorithm", path="ak_public", expected="SHA-256"
        )
    return struct.pack(">H", c.ALG_SHA256) + hashlib.sha256(area).digest()


def bound_credential(session_secret: bytes, ek_certificate_der: bytes, name: bytes) -> bytes:
    """Return what the guest must recover: a MAC over EK certificate and AK name, under the session's secret."""
    message = _BINDING_LABEL + hashlib.sha256(ek_certificate_der).digest() + name
    return hmac.digest(session_secret, message, "sha256")


def challenge_for(
    ek_certificate_der: bytes, ak_public: bytes, session_secret: bytes = b""
) -> tuple[bytes, bytes, bytes]:
    """Make the credential for one EK and AK under a session secret.

    Args:
        ek_certificate_der: as the guest sent it, not yet verified.
        ak_public: TPM2B_PUBLIC.
        session_secret: 32 bytes that nobody can guess and no other session has; drawn when absent.

    Returns:
        TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET (both for the guest), and the session secret, which the verifier keeps
        and passes as `ExpectedBinding.session_secret`. The guest never learns it.

    Raises:
        FormatRefused: not a certificate.
        EndorsementError: the EK is not RSA-2048 (`tee.tpm.ek_key`).
        EvidenceError: malformed AK.
    """
    key = ek_public_key(ek_certificate_der)
    name = ak_name(ak_public)
    session_secret = session_secret or secrets.token_bytes(SECRET_BYTES)
    credential = bound_credential(session_secret, ek_certificate_der, name)
    blob, encrypted = make_credential(key, name, credential, seed=secrets.token_bytes(_SEED_BYTES))
    return blob, encrypted, session_secret


def ek_public_key(ek_certificate_der: bytes) -> rsa.RSAPublicKey:
    """Return the RSA EK of a certificate that is not yet verified.

    Raises:
        FormatRefused: not a certificate.
        EndorsementError: another kind of key (`tee.tpm.ek_key`).
    """
    key = load_certificate(ek_certificate_der, code="tee.tpm.ek_certificate", path="ek_certificate").public_key()
    # The exponent is part of the template; a huge one would also make the verifier compute for long.
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size != _EK_BITS or key.public_numbers().e != _EK_EXPONENT:
        raise _unusable_key()
    return key


def make_credential(
    ek_public_key: rsa.RSAPublicKey, ak_name: bytes, secret: bytes, *, seed: bytes
) -> tuple[bytes, bytes]:
    """Return (TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET) that hand `secret` to the TPM holding both keys.

    Args:
        ek_public_key: RSA-2048 EK.
        ak_name: name of the object the secret is bound to.
        secret: at most 32 bytes.
        seed: 32 fresh random bytes.

    Raises:
        EndorsementError: the modulus is none that RSA works with (`tee.tpm.ek_key`).
    """
    if len(seed) != _SEED_BYTES or not 0 < len(secret) <= SECRET_BYTES:
        raise RuntimeError("a credential holds up to 32 bytes under a seed of 32")
    oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=_OAEP_LABEL)
    try:
        encrypted_seed = ek_public_key.encrypt(seed, oaep)
    except ValueError as err:  # whoever made the certificate chose the modulus: an even one is none
        raise _unusable_key() from err
    storage_key, integrity_key = credential_keys(seed, ak_name)
    encryptor = identity_cipher(storage_key).encryptor()
    identity = encryptor.update(_sized(secret)) + encryptor.finalize()
    tag = hmac.digest(integrity_key, identity + ak_name, "sha256")
    return _sized(_sized(tag) + identity), _sized(encrypted_seed)


def credential_keys(seed: bytes, ak_name: bytes) -> tuple[bytes, bytes]:
    """Return (AES-128 key, HMAC-SHA256 key) of a credential (part 1, 24.4 and 24.5)."""
    return _kdfa(seed, b"STORAGE\x00", ak_name, 128), _kdfa(seed, b"INTEGRITY\x00", b"", 256)


def identity_cipher(storage_key: bytes) -> Cipher[CFB]:
    """Return the cipher of a credential's content; the zero IV is safe because the key is fresh with the seed."""
    return Cipher(algorithms.AES(storage_key), CFB(bytes(16)))


def _unusable_key() -> EndorsementError:
    return EndorsementError(
        "tee.tpm.ek_key",
        "endorsement key is not one that credentials can be made for",
        path="ek_certificate",
        expected=f"RSA of {_EK_BITS} bits, exponent {_EK_EXPONENT}",
        hint="use the certificate of the low-range RSA EK, NV index 0x1c00002",
    )


def _kdfa(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """KDFa (part 1, 11.4.10.2; SP 800-108 in counter mode) for up to one block of SHA-256."""
    message = struct.pack(">I", 1) + label + context + struct.pack(">I", bits)
    return hmac.digest(key, message, "sha256")[: bits // 8]


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data
