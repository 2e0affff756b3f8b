"""TPM structures: read back what is written, refuse what a TPM does not write."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.errors import EvidenceError, FormatRefused, Refused
from cloister.tee.tpm import commands
from cloister.tee.tpm import constants as c
from cloister.tee.tpm.abi import (
    ECCUnique,
    PCRSelection,
    Public,
    QuoteAttest,
    RSAUnique,
    Signature,
    encode_public,
    encode_quote_attest,
    encode_signature,
    parse_public,
    parse_quote_attest,
    parse_signature,
)
from cloister.tee.tpm.quote import attestation_key

ECC = Public(
    name_algorithm=c.ALG_SHA256,
    attributes=commands.AK_ATTRIBUTES,
    policy=b"",
    symmetric=None,
    scheme=c.ALG_ECDSA,
    scheme_hash=c.ALG_SHA256,
    unique=ECCUnique(curve=c.CURVE_P256, x=b"x" * 32, y=b"y" * 32),
)
RSA = replace(
    ECC,
    scheme=c.ALG_NULL,
    scheme_hash=c.ALG_NULL,
    symmetric=(c.ALG_AES, 128, c.ALG_CFB),
    unique=RSAUnique(bits=2048, exponent=65537, modulus=b"n" * 256),
)
ATTEST = QuoteAttest(
    qualified_signer=b"\x00\x0b" + bytes(32),
    extra_data=b"nonce",
    clock=1,
    reset_count=2,
    restart_count=3,
    safe=True,
    firmware_version=4,
    selections=(PCRSelection(algorithm=c.ALG_SHA256, bitmap=b"\xff\xff\xff"),),
    pcr_digest=bytes(32),
)
SIGNATURE = Signature(algorithm=c.ALG_ECDSA, hash_algorithm=c.ALG_SHA256, values=(b"r" * 32, b"s" * 32))


@pytest.mark.parametrize("public", [ECC, RSA, replace(RSA, unique=RSAUnique(bits=2048, exponent=3, modulus=b"n"))])
def test_public_areas_read_back(public: Public) -> None:
    assert parse_public(encode_public(public)) == public


@pytest.mark.parametrize("attest", [ATTEST, replace(ATTEST, selections=(), extra_data=b"", safe=False)])
def test_quotes_read_back(attest: QuoteAttest) -> None:
    assert parse_quote_attest(encode_quote_attest(attest)) == attest


@pytest.mark.parametrize(
    "signature", [SIGNATURE, Signature(algorithm=c.ALG_RSASSA, hash_algorithm=c.ALG_SHA256, values=(b"s" * 256,))]
)
def test_signatures_read_back(signature: Signature) -> None:
    assert parse_signature(encode_signature(signature)) == signature


def test_the_ek_template_is_the_profiles() -> None:
    template = parse_public(commands.sized(commands.EK_TEMPLATE))
    assert template.attributes == 0x000300B2
    assert template.symmetric == (c.ALG_AES, 128, c.ALG_CFB)
    assert template.unique == RSAUnique(bits=2048, exponent=65537, modulus=bytes(256))


@pytest.mark.parametrize(
    ("offset", "value", "code"),
    [
        (2, 0x0008, "tee.tpm.ak_public.unsupported"),  # a keyed hash object
        (12, 0x0026, "tee.tpm.ak_public.unsupported"),  # a symmetric algorithm that is not AES
        (14, 0x001A, "tee.tpm.ak_public.unsupported"),  # ECDAA, whose scheme has another layout
        (20, 0x0020, "tee.tpm.ak_public.unsupported"),  # a key derivation
        (0, 0x0001, "tee.tpm.ak_public.trailing_bytes"),
        (0, 0x0800, "tee.tpm.ak_public.too_long"),
    ],
)
def test_public_areas_that_are_not_ours_to_read(offset: int, value: int, code: str) -> None:
    data = bytearray(encode_public(ECC))
    data[offset : offset + 2] = value.to_bytes(2, "big")
    with pytest.raises(FormatRefused) as caught:
        parse_public(bytes(data))
    assert caught.value.code == code


def test_the_default_exponent_has_one_spelling() -> None:
    data = bytearray(encode_public(RSA))
    place = data.index((2048).to_bytes(2, "big") + bytes(4)) + 2
    data[place : place + 4] = (65537).to_bytes(4, "big")
    with pytest.raises(FormatRefused) as caught:
        parse_public(bytes(data))
    assert caught.value.code == "tee.tpm.ak_public.malformed"


def test_magic_is_read_before_anything_else() -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_quote_attest(bytes(4))
    assert caught.value.code == "tee.tpm.attest.magic"


def test_a_boolean_is_zero_or_one() -> None:
    data = encode_quote_attest(ATTEST)
    place = 6 + 2 + 34 + 2 + 5 + 8 + 4 + 4
    with pytest.raises(FormatRefused) as caught:
        parse_quote_attest(data[:place] + b"\x02" + data[place + 1 :])
    assert caught.value.code == "tee.tpm.attest.malformed"


def test_selections_are_bounded() -> None:
    many = replace(ATTEST, selections=ATTEST.selections * 17)
    with pytest.raises(FormatRefused) as caught:
        parse_quote_attest(encode_quote_attest(many))
    assert caught.value.code == "tee.tpm.attest.too_long"


def test_a_signature_of_another_kind_of_key() -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_signature(b"\x00\x05\x00\x0b" + bytes(32))  # HMAC
    assert caught.value.code == "tee.tpm.signature.unsupported"


@pytest.mark.parametrize(
    ("parse", "data"),
    [
        (parse_public, encode_public(ECC)),
        (parse_public, encode_public(RSA)),
        (parse_quote_attest, encode_quote_attest(ATTEST)),
        (parse_signature, encode_signature(SIGNATURE)),
    ],
)
def test_every_cut_and_every_surplus_byte_is_refused(parse: object, data: bytes) -> None:
    assert callable(parse)
    for length in range(len(data)):
        with pytest.raises(Refused):
            parse(data[:length])
    with pytest.raises(Refused):
        parse(data + b"\x00")


def test_a_point_counts_on_the_curve_it_names_only() -> None:
    numbers = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
    point = ECCUnique(curve=c.CURVE_P256, x=numbers.x.to_bytes(32, "big"), y=numbers.y.to_bytes(32, "big"))
    assert attestation_key(replace(ECC, unique=point))
    rsa_key = RSAUnique(bits=2048, exponent=65537, modulus=b"\xff" * 256)
    assert attestation_key(replace(RSA, unique=rsa_key))
    for unique in (
        replace(point, curve=c.CURVE_P384),
        replace(point, x=b"\x00" + point.x),
        replace(point, x=point.y, y=point.x),
        replace(rsa_key, exponent=3),
        replace(rsa_key, modulus=b"\x0f" * 256),
        RSAUnique(bits=1024, exponent=65537, modulus=b"\xff" * 128),
    ):
        with pytest.raises(EvidenceError) as caught:
            attestation_key(replace(ECC, unique=unique))
        assert caught.value.code == "tee.tpm.ak_key"
