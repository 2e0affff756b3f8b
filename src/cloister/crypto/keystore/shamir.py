"""Secret sharing: any `threshold` of the shares give the secret, fewer give nothing at all.

Shamir, "How to share a secret" (CACM 22, 1979), per byte over GF(2**8) with the polynomial of AES (FIPS 197, section
4.2), shares at x = 1..255. Sharing is information-theoretic: it authenticates nothing. Whoever combines shares checks
the result (here: it opens a sealed root key). Multiplication takes the same steps for all values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from cloister.errors import Refused

MOST_SHARES: Final = 255
_POLYNOMIAL: Final = 0x11B


def split_secret(secret: bytes, *, threshold: int, shares: int, random: Callable[[int], bytes]) -> dict[int, bytes]:
    """Return `shares` shares by their x, each as long as the secret.

    Args:
        secret: what to share; not empty.
        threshold: shares needed, at least 2.
        shares: shares made, at most 255.
        random: returns that many unpredictable bytes.

    Raises:
        Refused: numbers that make no sense (`crypto.keystore.threshold`).
    """
    if not 2 <= threshold <= shares <= MOST_SHARES or not secret:
        raise Refused(
            "crypto.keystore.threshold",
            "no such sharing",
            expected=f"2 <= threshold <= shares <= {MOST_SHARES}",
            actual=f"{threshold} of {shares}",
        )
    made = {x: bytearray(len(secret)) for x in range(1, shares + 1)}
    for position, octet in enumerate(secret):
        coefficients = (octet, *random(threshold - 1))
        for x, share in made.items():
            share[position] = _evaluate(coefficients, x)
    return {x: bytes(share) for x, share in made.items()}


def combine_shares(shares: Mapping[int, bytes]) -> bytes:
    """Return the value at 0 of the polynomial through `shares`: the secret, if they are enough and right.

    Raises:
        Refused: none, of different lengths, or at an x that no share has (`crypto.keystore.threshold`).
    """
    lengths = {len(share) for share in shares.values()}
    if len(lengths) != 1 or not all(1 <= x <= MOST_SHARES for x in shares):
        raise Refused("crypto.keystore.threshold", "these are not shares of one secret")
    secret = bytearray(lengths.pop())
    for x, share in shares.items():
        weight = 1
        for other in shares:
            if other != x:  # Lagrange basis at 0; subtraction is XOR
                weight = _multiply(weight, _multiply(other, _invert(other ^ x)))
        for position, octet in enumerate(share):
            secret[position] ^= _multiply(octet, weight)
    return bytes(secret)


def _evaluate(coefficients: tuple[int, ...], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = _multiply(value, x) ^ coefficient
    return value


def _multiply(a: int, b: int) -> int:
    product = 0
    for bit in range(8):
        product ^= -((b >> bit) & 1) & a
        a = (a << 1) ^ (-(a >> 7) & _POLYNOMIAL)
    return product


def _invert(a: int) -> int:
    """a**254, the inverse of any a but 0."""
    result, power = 1, a
    for _ in range(7):
        power = _multiply(power, power)
        result = _multiply(result, power)
    return result
