"""Roots of TPM endorsement keys: which files are taken, and that a software TPM's CA is never more than measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.errors import FormatRefused, Unavailable
from cloister.rats.claims import Level
from cloister.tee.tpm.endorsements import parse_tpm_roots, read_swtpm_roots
from cloister.testing.tpm import EndorsementCA


def test_der_and_pem_give_the_same_root(ca: EndorsementCA) -> None:
    der, pem = ca.root.public_bytes(Encoding.DER), ca.root.public_bytes(Encoding.PEM)
    first = parse_tpm_roots(der, level=Level.HARDWARE, origin="file")
    assert first == parse_tpm_roots(pem, level=Level.HARDWARE, origin="file")
    assert (first[0].tee, first[0].level, first[0].der) == ("tpm", Level.HARDWARE, der)
    assert first[0].name == "CN=swtpm-localca-rootca (file)"


def test_a_bundle_with_words_between(ca: EndorsementCA) -> None:
    bundle = b"# mine\n" + ca.issuing.public_bytes(Encoding.PEM) + b"\nand\n" + ca.root.public_bytes(Encoding.PEM)
    roots = parse_tpm_roots(bundle, level=Level.MEASURED, origin="bundle")
    assert [root.der for root in roots] == [item.public_bytes(Encoding.DER) for item in (ca.issuing, ca.root)]


@pytest.mark.parametrize("data", [b"", b"words", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_files_that_hold_no_certificate(data: bytes) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_tpm_roots(data, level=Level.MEASURED, origin="file")
    assert (caught.value.code, caught.value.path) == ("tee.tpm.root.malformed", "file")


def test_too_many_certificates(ca: EndorsementCA) -> None:
    with pytest.raises(FormatRefused):
        parse_tpm_roots(ca.root.public_bytes(Encoding.PEM) * 65, level=Level.MEASURED, origin="file")


def test_files_that_hold_something_else(ca: EndorsementCA) -> None:
    der = ca.root.public_bytes(Encoding.DER)
    for data in (der[:-1], der + b"\x00", b"\x30\x03abc"):
        with pytest.raises(FormatRefused) as caught:
            parse_tpm_roots(data, level=Level.MEASURED, origin="file")
        assert caught.value.code == "tee.tpm.root.malformed"


def test_the_local_ca_of_swtpm_is_measured(ca: EndorsementCA, tmp_path: Path) -> None:
    (tmp_path / "issuercert.pem").write_bytes(ca.issuing.public_bytes(Encoding.PEM))
    assert [root.level for root in read_swtpm_roots(tmp_path)] == [Level.MEASURED]
    (tmp_path / "swtpm-localca-rootca-cert.pem").write_bytes(ca.root.public_bytes(Encoding.PEM))
    assert {root.level for root in read_swtpm_roots(tmp_path)} == {Level.MEASURED}


def test_a_directory_without_a_ca(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        read_swtpm_roots(tmp_path)
    assert caught.value.code == "tee.tpm.root.absent"
    (tmp_path / "issuercert.pem").mkdir()
    with pytest.raises(Unavailable):
        read_swtpm_roots(tmp_path)
