"""TPM 2.0 structures that travel in evidence: TPMT_PUBLIC, TPMS_ATTEST (quote), TPMT_SIGNATURE.

TPM 2.0 Library, part 2 "Structures" (rev. 1.59); table numbers are given where a layout is read. Big endian. Parsers
take untrusted bytes and return typed values or refuse; encoders give back the same bytes, so that no two texts mean the
same structure. Nothing here verifies anything: magic and type are checked because nothing else can be parsed, the
rest is `quote`'s and `verifier`'s.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cloister.errors import FormatRefused
from cloister.tee.tpm import constants as c
from cloister.wire.binary import BinaryReader

# Ceilings of part 2, for the largest hash (SHA-512) and RSA key (4096 bits) any TPM has.
_DIGEST_CEILING: Final = 64
_NAME_CEILING: Final = 2 + _DIGEST_CEILING
_DATA_CEILING: Final = 2 + _DIGEST_CEILING  # TPM2B_DATA holds a TPMT_HA
_RSA_CEILING: Final = 512
_ECC_CEILING: Final = 66
_SELECTIONS_CEILING: Final = 16  # HASH_COUNT: one per bank
_BITMAP_CEILING: Final = 4
_STRUCTURE_CEILING: Final = 1024

_PUBLIC_CODE: Final = "tee.tpm.ak_public"
_ATTEST_CODE: Final = "tee.tpm.attest"
_SIGNATURE_CODE: Final = "tee.tpm.signature"
_HASH_SCHEMES: Final = (c.ALG_RSASSA, c.ALG_RSAPSS, c.ALG_OAEP, c.ALG_ECDSA, c.ALG_ECDH)
_DEFAULT_EXPONENT: Final = 65537


@dataclass(frozen=True, slots=True, kw_only=True)
class RSAUnique:
    """RSA part of a public area: TPMS_RSA_PARMS (table 205) and modulus."""

    bits: int
    exponent: int
    modulus: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ECCUnique:
    """ECC part of a public area: TPMS_ECC_PARMS (table 206) and point."""

    curve: int
    x: bytes
    y: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Public:
    """TPMT_PUBLIC (table 201) of an asymmetric key.

    Attributes:
        name_algorithm: TPM_ALG_ID of the object's name.
        attributes: TPMA_OBJECT bits.
        policy: authPolicy, empty or a digest.
        symmetric: (algorithm, key bits, mode) of a storage key, None for others.
        scheme: signing or encryption scheme, `ALG_NULL` for none.
        scheme_hash: its hash, `ALG_NULL` when the scheme has none.
        unique: the key itself.
    """

    name_algorithm: int
    attributes: int
    policy: bytes
    symmetric: tuple[int, int, int] | None
    scheme: int
    scheme_hash: int
    unique: RSAUnique | ECCUnique


@dataclass(frozen=True, slots=True, kw_only=True)
class PCRSelection:
    """TPMS_PCR_SELECTION (table 94): bank and bitmap, least significant bit of the first byte is PCR 0."""

    algorithm: int
    bitmap: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteAttest:
    """TPMS_ATTEST (table 131) of type TPM_ST_ATTEST_QUOTE.

    Attributes:
        qualified_signer: qualified name of the signing key.
        extra_data: what the caller asked to bind.
        clock: milliseconds the TPM was powered.
        reset_count: resets of the TPM.
        restart_count: restarts or resumes since the last reset.
        safe: no larger clock value was reported before.
        firmware_version: vendor's number.
        selections: which registers of which banks are quoted.
        pcr_digest: hash over their values.
    """

    qualified_signer: bytes
    extra_data: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    selections: tuple[PCRSelection, ...]
    pcr_digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """TPMT_SIGNATURE (table 195). `values` is (signature,) for RSA and (r, s) for ECDSA."""

    algorithm: int
    hash_algorithm: int
    values: tuple[bytes, ...]


def parse_public(data: bytes) -> Public:
    """Parse a TPM2B_PUBLIC.

    Raises:
        FormatRefused: truncated, trailing bytes, or not an RSA or ECC key (`tee.tpm.ak_public.*`).
    """
    outer = BinaryReader(data, order="big", code=_PUBLIC_CODE)
    inner = outer.sized(2, "public area", ceiling=_STRUCTURE_CEILING)
    outer.finish()
    reader = BinaryReader(inner, order="big", code=_PUBLIC_CODE)
    kind = reader.unsigned(2, "type")
    if kind not in (c.ALG_RSA, c.ALG_ECC):
        raise _unsupported("type", kind, _PUBLIC_CODE)
    name_algorithm = reader.unsigned(2, "nameAlg")
    attributes = reader.unsigned(4, "objectAttributes")
    policy = reader.sized(2, "authPolicy", ceiling=_DIGEST_CEILING)
    symmetric = _read_symmetric(reader)
    scheme, scheme_hash = _read_scheme(reader)
    unique = _read_rsa(reader) if kind == c.ALG_RSA else _read_ecc(reader)
    reader.finish()
    return Public(
        name_algorithm=name_algorithm,
        attributes=attributes,
        policy=policy,
        symmetric=symmetric,
        scheme=scheme,
        scheme_hash=scheme_hash,
        unique=unique,
    )


def encode_public(public: Public) -> bytes:
    """Return the TPM2B_PUBLIC of `public`; the inverse of `parse_public`."""
    unique = public.unique
    kind = c.ALG_RSA if isinstance(unique, RSAUnique) else c.ALG_ECC
    data = struct.pack(">HHI", kind, public.name_algorithm, public.attributes) + _sized(public.policy)
    data += struct.pack(">HHH", *public.symmetric) if public.symmetric else struct.pack(">H", c.ALG_NULL)
    data += struct.pack(">H", public.scheme)
    if public.scheme in _HASH_SCHEMES:
        data += struct.pack(">H", public.scheme_hash)
    if isinstance(unique, RSAUnique):
        exponent = 0 if unique.exponent == _DEFAULT_EXPONENT else unique.exponent
        data += struct.pack(">HI", unique.bits, exponent) + _sized(unique.modulus)
    else:
        data += struct.pack(">HH", unique.curve, c.ALG_NULL) + _sized(unique.x) + _sized(unique.y)
    return _sized(data)


def parse_quote_attest(data: bytes) -> QuoteAttest:
    """Parse a TPMS_ATTEST that a quote signs.

    Magic and type come first: a restricted key signs a foreign message only if it does not begin with the magic, so
    nothing may be read from a structure that lacks it.

    Raises:
        FormatRefused: `tee.tpm.attest.magic`, `.type`, `.truncated`, `.trailing_bytes`, `.too_long`, `.malformed`.
    """
    reader = BinaryReader(data, order="big", code=_ATTEST_CODE)
    magic = reader.unsigned(4, "magic")
    if magic != c.GENERATED:
        raise FormatRefused(
            f"{_ATTEST_CODE}.magic",
            "the signed structure was not made by a TPM",
            expected=f"{c.GENERATED:#010x}",
            actual=f"{magic:#010x}",
        )
    kind = reader.unsigned(2, "type")
    if kind != c.ST_ATTEST_QUOTE:
        raise FormatRefused(
            f"{_ATTEST_CODE}.type",
            "the signed structure is not a quote",
            expected=f"{c.ST_ATTEST_QUOTE:#06x}",
            actual=f"{kind:#06x}",
        )
    qualified_signer = reader.sized(2, "qualifiedSigner", ceiling=_NAME_CEILING)
    extra_data = reader.sized(2, "extraData", ceiling=_DATA_CEILING)
    clock, reset_count, restart_count = (
        reader.unsigned(8, "clock"),
        reader.unsigned(4, "resetCount"),
        reader.unsigned(4, "restartCount"),
    )
    safe = reader.unsigned(1, "safe")
    if safe not in (0, 1):
        raise FormatRefused(f"{_ATTEST_CODE}.malformed", "safe is not a boolean", expected="0 or 1", actual=str(safe))
    firmware_version = reader.unsigned(8, "firmwareVersion")
    count = reader.unsigned(4, "selection count")
    if count > _SELECTIONS_CEILING:
        raise FormatRefused(f"{_ATTEST_CODE}.too_long", "too many PCR selections", actual=str(count))
    selections = tuple(
        PCRSelection(
            algorithm=reader.unsigned(2, "selection hash"),
            bitmap=reader.sized(1, "selection bitmap", ceiling=_BITMAP_CEILING),
        )
        for _ in range(count)
    )
    pcr_digest = reader.sized(2, "pcrDigest", ceiling=_DIGEST_CEILING)
    reader.finish()
    return QuoteAttest(
        qualified_signer=qualified_signer,
        extra_data=extra_data,
        clock=clock,
        reset_count=reset_count,
        restart_count=restart_count,
        safe=bool(safe),
        firmware_version=firmware_version,
        selections=selections,
        pcr_digest=pcr_digest,
    )


def encode_quote_attest(attest: QuoteAttest) -> bytes:
    """Return the TPMS_ATTEST; the inverse of `parse_quote_attest`."""
    return b"".join(
        (
            struct.pack(">IH", c.GENERATED, c.ST_ATTEST_QUOTE),
            _sized(attest.qualified_signer),
            _sized(attest.extra_data),
            struct.pack(
                ">QIIBQ", attest.clock, attest.reset_count, attest.restart_count, attest.safe, attest.firmware_version
            ),
            struct.pack(">I", len(attest.selections)),
            *(struct.pack(">HB", item.algorithm, len(item.bitmap)) + item.bitmap for item in attest.selections),
            _sized(attest.pcr_digest),
        )
    )


def parse_signature(data: bytes) -> Signature:
    """Parse a TPMT_SIGNATURE of an RSA or ECDSA key.

    Raises:
        FormatRefused: truncated, trailing bytes, or another algorithm (`tee.tpm.signature.*`).
    """
    reader = BinaryReader(data, order="big", code=_SIGNATURE_CODE)
    algorithm = reader.unsigned(2, "sigAlg")
    if algorithm not in (c.ALG_RSASSA, c.ALG_RSAPSS, c.ALG_ECDSA):
        raise _unsupported("sigAlg", algorithm, _SIGNATURE_CODE)
    hash_algorithm = reader.unsigned(2, "hash")
    if algorithm == c.ALG_ECDSA:
        values: tuple[bytes, ...] = (
            reader.sized(2, "signatureR", ceiling=_ECC_CEILING),
            reader.sized(2, "signatureS", ceiling=_ECC_CEILING),
        )
    else:
        values = (reader.sized(2, "sig", ceiling=_RSA_CEILING),)
    reader.finish()
    return Signature(algorithm=algorithm, hash_algorithm=hash_algorithm, values=values)


def encode_signature(signature: Signature) -> bytes:
    """Return the TPMT_SIGNATURE; the inverse of `parse_signature`."""
    head = struct.pack(">HH", signature.algorithm, signature.hash_algorithm)
    return head + b"".join(map(_sized, signature.values))


def _read_symmetric(reader: BinaryReader) -> tuple[int, int, int] | None:
    """Read a TPMT_SYM_DEF_OBJECT (table 141)."""
    algorithm = reader.unsigned(2, "symmetric algorithm")
    if algorithm == c.ALG_NULL:
        return None
    if algorithm != c.ALG_AES:
        raise _unsupported("symmetric algorithm", algorithm, _PUBLIC_CODE)
    return algorithm, reader.unsigned(2, "symmetric key bits"), reader.unsigned(2, "symmetric mode")


def _read_scheme(reader: BinaryReader) -> tuple[int, int]:
    """Read a TPMT_RSA_SCHEME or TPMT_ECC_SCHEME (tables 178, 184)."""
    scheme = reader.unsigned(2, "scheme")
    if scheme in (c.ALG_NULL, c.ALG_RSAES):
        return scheme, c.ALG_NULL
    if scheme not in _HASH_SCHEMES:
        raise _unsupported("scheme", scheme, _PUBLIC_CODE)
    return scheme, reader.unsigned(2, "scheme hash")


def _read_rsa(reader: BinaryReader) -> RSAUnique:
    bits, exponent = reader.unsigned(2, "keyBits"), reader.unsigned(4, "exponent")
    if exponent == _DEFAULT_EXPONENT:
        # Table 205: zero means 65537. Both spellings of one key would have two names; TPMs write zero.
        raise FormatRefused(f"{_PUBLIC_CODE}.malformed", "the default exponent is written as zero")
    modulus = reader.sized(2, "modulus", ceiling=_RSA_CEILING)
    return RSAUnique(bits=bits, exponent=exponent or _DEFAULT_EXPONENT, modulus=modulus)


def _read_ecc(reader: BinaryReader) -> ECCUnique:
    curve, kdf = reader.unsigned(2, "curve"), reader.unsigned(2, "kdf")
    if kdf != c.ALG_NULL:
        raise _unsupported("kdf", kdf, _PUBLIC_CODE)
    x = reader.sized(2, "x", ceiling=_ECC_CEILING)
    return ECCUnique(curve=curve, x=x, y=reader.sized(2, "y", ceiling=_ECC_CEILING))


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _unsupported(field: str, value: int, code: str) -> FormatRefused:
    return FormatRefused(f"{code}.unsupported", f"{field} is not one that is supported", actual=f"{value:#06x}")
