"""Secret sharing: enough shares give the secret, fewer give nothing, and the field is the one of AES."""

from __future__ import annotations

import itertools
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto.keystore import shamir
from cloister.crypto.keystore.shamir import combine_shares, split_secret
from cloister.errors import Refused


@given(st.binary(min_size=1, max_size=40), st.integers(2, 6), st.integers(0, 4), st.randoms())
def test_any_threshold_shares_give_the_secret(secret: bytes, threshold: int, more: int, random: object) -> None:
    shares = split_secret(secret, threshold=threshold, shares=threshold + more, random=secrets.token_bytes)
    for chosen in itertools.combinations(shares, threshold):
        assert combine_shares({x: shares[x] for x in chosen}) == secret
    assert combine_shares(shares) == secret


def test_one_share_short_every_secret_is_as_likely() -> None:
    """With one share missing, each value of the missing one gives another secret: nothing is ruled out."""
    shares = split_secret(b"\x2a", threshold=3, shares=3, random=secrets.token_bytes)
    found = {combine_shares({1: shares[1], 2: shares[2], 3: bytes([guess])}) for guess in range(256)}
    assert len(found) == 256


def test_the_field_is_that_of_aes() -> None:
    """FIPS 197, section 4.2: {57} * {83} = {c1}, {57} * {13} = {fe}; each but 0 has an inverse."""
    assert shamir._multiply(0x57, 0x83) == 0xC1
    assert shamir._multiply(0x57, 0x13) == 0xFE
    assert all(shamir._multiply(value, shamir._invert(value)) == 1 for value in range(1, 256))


def test_a_known_sharing() -> None:
    """Worked by hand: the polynomial 0x2a + 0x01 x takes the values 0x2b, 0x28, 0x29 at 1, 2, 3."""
    shares = split_secret(b"\x2a", threshold=2, shares=3, random=lambda count: b"\x01" * count)
    assert shares == {1: b"\x2b", 2: b"\x28", 3: b"\x29"}


@pytest.mark.parametrize(("threshold", "shares"), [(1, 3), (0, 0), (4, 3), (2, 256)])
def test_numbers_that_make_no_sense_are_refused(threshold: int, shares: int) -> None:
    with pytest.raises(Refused) as caught:
        split_secret(b"x", threshold=threshold, shares=shares, random=secrets.token_bytes)
    assert caught.value.code == "crypto.keystore.threshold"


@pytest.mark.parametrize("shares", [{}, {1: b"ab", 2: b"a"}, {0: b"a", 1: b"b"}, {256: b"a", 1: b"b"}])
def test_what_is_no_set_of_shares_is_refused(shares: dict[int, bytes]) -> None:
    with pytest.raises(Refused):
        combine_shares(shares)
