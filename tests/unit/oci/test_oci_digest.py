"""Digests and the check of bytes against them."""

from __future__ import annotations

import hashlib

import pytest

from cloister.errors import ImageRefused
from cloister.oci.digest import Digest, DigestVerifier, parse_digest


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_text_round_trips(algorithm: str) -> None:
    digest = Digest.of(b"content", algorithm)
    assert digest.hex == hashlib.new(algorithm, b"content").hexdigest()
    assert parse_digest(str(digest)) == digest


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "oci.digest.malformed"),
        ("abc", "oci.digest.malformed"),
        ("sha256:", "oci.digest.malformed"),
        ("sha256:" + "a" * 63, "oci.digest.malformed"),
        ("sha256:" + "A" * 64, "oci.digest.malformed"),
        ("sha256:" + "a" * 62 + "/.", "oci.digest.malformed"),
        ("sha512:" + "a" * 64, "oci.digest.malformed"),
        ("md5:" + "a" * 32, "oci.digest.unsupported_algorithm"),
        ("SHA256:" + "a" * 64, "oci.digest.unsupported_algorithm"),
        ("sha256+b64:" + "a" * 64, "oci.digest.unsupported_algorithm"),
    ],
)
def test_other_texts_are_refused(text: str, code: str) -> None:
    with pytest.raises(ImageRefused) as caught:
        parse_digest(text)
    assert caught.value.code == code


def test_checked_bytes_pass_through() -> None:
    verifier = DigestVerifier(Digest.of(b"onetwo"), 6, code="oci.test", path="blob")
    assert list(verifier.checked([b"one", b"two"])) == [b"one", b"two"]


@pytest.mark.parametrize(
    ("chunks", "size", "code"),
    [
        ([b"one", b"tvo"], 6, "oci.test.digest_mismatch"),
        ([b"one"], None, "oci.test.digest_mismatch"),
        ([b"one"], 6, "oci.test.size_mismatch"),
        ([b"one", b"two", b"three"], 6, "oci.test.size_mismatch"),
        ([], 6, "oci.test.size_mismatch"),
    ],
)
def test_other_bytes_are_refused(chunks: list[bytes], size: int | None, code: str) -> None:
    verifier = DigestVerifier(Digest.of(b"onetwo"), size, code="oci.test", path="blob")
    with pytest.raises(ImageRefused) as caught:
        list(verifier.checked(chunks))
    assert caught.value.code == code
    assert caught.value.path == "blob"


def test_too_many_bytes_are_refused_before_they_are_passed_on() -> None:
    verifier = DigestVerifier(Digest.of(b"on"), 2, code="oci.test", path="blob")
    passed = []
    with pytest.raises(ImageRefused):
        for chunk in verifier.checked([b"on", b"e"]):
            passed.append(chunk)  # what came before the refusal
    assert passed == [b"on"]
