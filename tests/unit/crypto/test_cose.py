"""COSE_Sign1: what was signed is what was received, by the algorithm of the caller's key and no other."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.crypto.cose import Algorithm, algorithm_of, parse_ec2_key, parse_point, parse_sign1, verify_sign1
from cloister.errors import EvidenceError, FormatRefused
from cloister.testing.cose import cose_key, sign1
from cloister.wire.cbor import Tagged, decode_cbor, encode_cbor

KEYS = {
    Algorithm.ES256: ec.generate_private_key(ec.SECP256R1()),
    Algorithm.ES384: ec.generate_private_key(ec.SECP384R1()),
    Algorithm.ES512: ec.generate_private_key(ec.SECP521R1()),
}
algorithms = pytest.mark.parametrize("algorithm", Algorithm)


def verify(data: bytes, algorithm: Algorithm, key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    message = parse_sign1(data, code="t")
    verify_sign1(message, (key or KEYS[algorithm]).public_key(), algorithm, code="t")
    return message.payload


def code_of(data: bytes, algorithm: Algorithm = Algorithm.ES256, key: ec.EllipticCurvePrivateKey | None = None) -> str:
    with pytest.raises((FormatRefused, EvidenceError)) as caught:
        verify(data, algorithm, key)
    return caught.value.code


@algorithms
@pytest.mark.parametrize("tagged", [True, False])
def test_a_signed_payload_comes_out_as_it_went_in(algorithm: Algorithm, tagged: bool) -> None:
    payload = bytes.fromhex("bf61610161629f0203ffff")  # not what an encoder here would write
    assert verify(sign1(payload, KEYS[algorithm], tagged=tagged), algorithm) == payload


@algorithms
def test_every_flipped_bit_of_protected_payload_and_signature_is_refused(algorithm: Algorithm) -> None:
    good = sign1(b"payload", KEYS[algorithm], tagged=False)
    for offset in range(len(good)):
        changed = bytearray(good)
        changed[offset] ^= 1 << offset % 8
        assert code_of(bytes(changed), algorithm).startswith("t.")


@algorithms
def test_another_key_is_refused(algorithm: Algorithm) -> None:
    other = ec.generate_private_key(KEYS[algorithm].curve)
    assert code_of(sign1(b"payload", KEYS[algorithm]), algorithm, other) == "t.signature"


@pytest.mark.parametrize(("named", "expected"), [(a, b) for a in Algorithm for b in Algorithm if a != b])
def test_the_message_does_not_choose_the_algorithm(named: Algorithm, expected: Algorithm) -> None:
    assert code_of(sign1(b"payload", KEYS[named]), expected, KEYS[expected]) == "t.algorithm"
    assert code_of(sign1(b"payload", KEYS[named], header={1: int(expected)}), expected, KEYS[named]) == "t.algorithm"


@pytest.mark.parametrize("header", [{}, {1: None}, {1: "ES256"}, {1: True}, {4: b"kid"}, {1: 5}])
def test_a_message_without_its_algorithm_is_refused(header: dict[int, Any]) -> None:
    assert code_of(sign1(b"payload", KEYS[Algorithm.ES256], header=header)) == "t.algorithm"


@pytest.mark.parametrize(
    ("header", "unprotected"),
    [
        ({1: -7, 2: [4]}, {}),
        ({1: -7}, {2: [4]}),
        ({1: -7}, {1: -7}),
        ({4: b"kid"}, {1: -7}),
        ({1: -7, 4: b"kid"}, {4: b"kid"}),
    ],
)
def test_critical_doubled_and_unprotected_algorithm_headers_are_refused(header: Any, unprotected: Any) -> None:
    data = sign1(b"payload", KEYS[Algorithm.ES256], header=header, unprotected=unprotected)
    assert code_of(data) == "t.malformed"


def test_other_headers_are_handed_out() -> None:
    data = sign1(b"p", KEYS[Algorithm.ES256], header={1: -7, 3: "x"}, unprotected={4: b"kid"})
    message = parse_sign1(data, code="t")
    verify_sign1(message, KEYS[Algorithm.ES256].public_key(), Algorithm.ES256, code="t")
    assert (message.header, message.unprotected) == ({1: -7, 3: "x"}, {4: b"kid"})


@pytest.mark.parametrize("change", range(4))
def test_members_of_other_types_are_refused(change: int) -> None:
    members = decode_cbor(sign1(b"p", KEYS[Algorithm.ES256], tagged=False), ceiling=1000, code="t")
    members[change] = None
    assert code_of(encode_cbor(members)) == "t.malformed"


@pytest.mark.parametrize(
    "value",
    [
        {},
        [b"", {}, b"p"],
        [b"", {}, b"p", b"s", b"s"],
        Tagged(tag=17, value=[b"", {}, b"p", b"s"]),
        Tagged(tag=18, value=Tagged(tag=18, value=[b"", {}, b"p", b"s"])),
        [b"\x80", {}, b"p", b"s"],
    ],
)
def test_other_structures_are_refused(value: Any) -> None:
    assert code_of(encode_cbor(value)) == "t.malformed"


def test_signatures_of_another_length_are_refused() -> None:
    members = decode_cbor(sign1(b"p", KEYS[Algorithm.ES256], tagged=False), ceiling=1000, code="t")
    for signature in (b"", members[3][:-1], members[3] + b"\0", bytes(64), b"\xff" * 64):
        assert code_of(encode_cbor([*members[:3], signature])) == "t.signature"


@algorithms
def test_keys_read_back(algorithm: Algorithm) -> None:
    public = KEYS[algorithm].public_key()
    assert parse_ec2_key(encode_cbor(cose_key(public)), code="t").public_numbers() == public.public_numbers()
    assert parse_ec2_key(encode_cbor({**cose_key(public), 3: int(algorithm)}), code="t") == public
    assert algorithm_of(public) is algorithm


@pytest.mark.parametrize(
    "change",
    [
        {1: 1},
        {1: None},
        {-1: 8},
        {-1: None},
        {-1: True},
        {3: -35},
        {-3: True},
        {-3: b""},
        {-2: bytes(31)},
        {-3: bytes(32)},
        {-2: bytes(33)},
    ],
)
def test_other_keys_are_refused(change: dict[int, Any]) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_ec2_key(encode_cbor({**cose_key(KEYS[Algorithm.ES256].public_key()), **change}), code="t")
    assert caught.value.code == "t.malformed"


@pytest.mark.parametrize("point", [b"", b"\x04", b"\x04" + bytes(96), b"\x02" + bytes(48), b"\x05" + b"\1" * 96])
def test_no_points(point: bytes) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_point(point, Algorithm.ES384, code="t")
    assert caught.value.code == "t.malformed"


def test_a_curve_without_an_algorithm() -> None:
    assert algorithm_of(ec.generate_private_key(ec.SECP256K1()).public_key()) is None
    with pytest.raises(FormatRefused):
        parse_ec2_key(encode_cbor(["no", "map"]), code="t")
