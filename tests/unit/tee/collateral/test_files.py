"""Files of a user are sorted by content; what is unknown is refused; only what was named as a root is one."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import FormatRefused
from cloister.rats.claims import Level
from cloister.tee.collateral.files import parse_trust_roots, sort_endorsement_files, split_bundle
from cloister.wire.base64 import encode_b64url
from cloister.wire.limits import COLLATERAL_BYTES, COLLATERAL_DOCUMENTS

if TYPE_CHECKING:
    from conftest import SmallPKI

PEM, DER = Encoding.PEM, Encoding.DER
RIM = b'\xef\xbb\xbf<?xml version="1.0"?>\n<SoftwareIdentity xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd"/>'
DCAP = b'{"tcb_info": "{}", "qe_identity": "{}"}'


def der(certificate: x509.Certificate | x509.CertificateRevocationList) -> bytes:
    return certificate.public_bytes(DER)


def spki(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey, form: Encoding = DER) -> bytes:
    return key.public_bytes(form, PublicFormat.SubjectPublicKeyInfo)


def refused(*files: tuple[str, bytes]) -> str:
    with pytest.raises(FormatRefused) as caught:
        sort_endorsement_files(files)
    return caught.value.code


def refused_root(data: bytes) -> str:
    with pytest.raises(FormatRefused) as caught:
        parse_trust_roots("snp", Level.HARDWARE, [("file", data)])
    return caught.value.code


def test_every_form_is_known_by_its_content(pki: SmallPKI) -> None:
    crl, answer = pki.revocation_list(), pki.ocsp_response()
    mixed = b"text before\n" + pki.inter.public_bytes(PEM) + crl.public_bytes(PEM) + pki.root.public_bytes(PEM)
    found = sort_endorsement_files(
        [
            ("leaf.txt", der(pki.leaf)),
            ("mixed.json", mixed),
            ("crl", der(crl)),
            ("c.der", DCAP),
            ("x", RIM),
            ("o", answer),
        ]
    )
    assert found.certificates == (der(pki.leaf), der(pki.inter), der(pki.root))
    assert found.revocation_lists == (der(crl),)  # the one in PEM is the same list
    assert [document.data for document in found.documents] == [DCAP, RIM, answer]
    assert [document.name for document in found.documents] == ["c.der", "x", "o"]
    assert found.ignored == ()


def test_json_that_holds_pem_is_collateral() -> None:
    chain = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    data = json.dumps({"tcb_info": "{}", "qe_identity": "{}", "pck_crl_issuer_chain": chain}, indent=1).encode()
    assert sort_endorsement_files([("c", data)]).documents[0].data == data


def test_the_answer_of_a_rim_service_is_unwrapped() -> None:
    answer = {"id": "NV", "rim": base64.b64encode(RIM).decode(), "sha256": hashlib.sha256(RIM).hexdigest()}
    assert sort_endorsement_files([("a", json.dumps(answer).encode())]).documents[0].data == RIM
    assert refused(("a", json.dumps({**answer, "sha256": "00" * 32}).encode())) == "collateral.file.malformed"
    assert refused(("a", json.dumps({**answer, "rim": "!"}).encode())) == "collateral.file.malformed"
    assert refused(("a", json.dumps({"rim": base64.b64encode(b"<other/>").decode()}).encode())) == (
        "collateral.file.malformed"
    )


def test_unknown_files_are_refused_unless_a_directory_is_read(pki: SmallPKI) -> None:
    strange = [
        b"",
        b"hello",
        b"\x30",
        b"\x30\x82\x00\x01\x00",
        b'{"keys": 1}',
        b"<html>SoftwareId</html>",
        der(pki.leaf) + b"\0",
        pki.leaf_key.private_bytes(PEM, PrivateFormat.PKCS8, NoEncryption()),
        pki.leaf.public_bytes(PEM) + spki(pki.leaf_key.public_key(), PEM),
    ]
    for data in strange:
        assert refused(("f", data)) == "collateral.file.unknown", data[:20]
    files = [(f"f{number}", data) for number, data in enumerate(strange)]
    found = sort_endorsement_files([*files, ("leaf", der(pki.leaf))], ignore_unknown=True)
    assert found.ignored == tuple(name for name, _ in files)
    assert found.certificates == (der(pki.leaf),)


def test_damaged_files_are_refused_also_in_a_directory(pki: SmallPKI) -> None:
    pem = pki.leaf.public_bytes(PEM)
    for data in (pem[:-20], pem.replace(b"MII", b"MIJ", 1), b"{", b'{"tcb_info": 1, "tcb_info": 2}'):
        with pytest.raises(FormatRefused) as caught:
            sort_endorsement_files([("f", data)], ignore_unknown=True)
        assert caught.value.code == "collateral.file.malformed"
        assert caught.value.path == "f"


def test_sizes_and_counts_are_bounded() -> None:
    assert refused(("f", b" " * (COLLATERAL_BYTES + 1))) == "collateral.file.too_long"
    assert refused(*[("f", b"")] * (COLLATERAL_DOCUMENTS + 1)) == "collateral.file.too_many"
    many = [(str(number), RIM + b" " * number) for number in range(COLLATERAL_DOCUMENTS)]
    assert len(sort_endorsement_files(many).documents) == COLLATERAL_DOCUMENTS
    assert refused_root(b" " * (COLLATERAL_BYTES + 1)) == "collateral.root.too_long"


def test_items_are_bounded_not_only_files(pki: SmallPKI) -> None:
    many = [(str(number), RIM + b" " * number) for number in range(COLLATERAL_DOCUMENTS - 1)]
    two = der(pki.leaf), pki.inter.public_bytes(PEM)
    assert refused(*many[:-1], ("a", two[0]), ("b", two[1] + pki.root.public_bytes(PEM))) == "collateral.file.too_many"


def test_split_bundle(pki: SmallPKI) -> None:
    assert split_bundle(pki.inter.public_bytes(PEM) + pki.root.public_bytes(PEM)).certificates == (
        der(pki.inter),
        der(pki.root),
    )
    with pytest.raises(FormatRefused) as caught:
        split_bundle(RIM)
    assert caught.value.code == "collateral.file.unknown"


def test_one_certificate_is_the_anchor_even_an_intermediate(pki: SmallPKI) -> None:
    for certificate in (pki.root, pki.inter):
        for form in (PEM, DER):
            found = parse_trust_roots("snp", Level.HARDWARE, [("f", certificate.public_bytes(form))])
            assert [root.der for root in found.roots] == [der(certificate)]
            assert found.certificates == ()
    assert found.roots[0].tee == "snp"
    assert found.roots[0].level is Level.HARDWARE
    assert found.roots[0].name == "CN=Inter (f)"


def test_of_several_certificates_only_the_self_signed_are_anchors(pki: SmallPKI) -> None:
    data = pki.inter.public_bytes(PEM) + pki.root.public_bytes(PEM)
    found = parse_trust_roots("snp", Level.HARDWARE, [("f", data)])
    assert [root.der for root in found.roots] == [der(pki.root)]
    assert found.certificates == (der(pki.inter),)
    assert refused_root(pki.inter.public_bytes(PEM) + pki.leaf.public_bytes(PEM)) == "collateral.root.no_anchor"


def test_a_certificate_that_only_names_itself_as_issuer_is_no_anchor(pki: SmallPKI) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    forged = pki._issue("Root", other, "Root", pki.inter_key)
    data = forged.public_bytes(PEM) + pki.leaf.public_bytes(PEM)
    assert refused_root(data) == "collateral.root.no_anchor"


def test_raw_keys(pki: SmallPKI) -> None:
    for key in (pki.leaf_key.public_key(), rsa.generate_private_key(65537, 2048).public_key()):
        for form in (PEM, DER):
            found = parse_trust_roots("cca", Level.HARDWARE, [("f", spki(key, form))])
            assert [root.der for root in found.roots] == [spki(key)]
            assert found.roots[0].name == f"key {hashlib.sha256(spki(key)).hexdigest()[:16]} (f)"


def test_web_keys(pki: SmallPKI) -> None:
    keys = [ec.generate_private_key(curve) for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())]
    jwks = []
    for key, (curve, width) in zip(keys, {"P-256": 32, "P-384": 48, "P-521": 66}.items(), strict=True):
        numbers = key.public_key().public_numbers()
        x, y = (encode_b64url(value.to_bytes(width, "big")) for value in (numbers.x, numbers.y))
        jwks.append({"kty": "EC", "crv": curve, "x": x, "y": y, "kid": curve, "d": "not read", "use": "enc"})
    single = parse_trust_roots("cca", Level.HARDWARE, [("f", json.dumps(jwks[0]).encode())])
    assert [(root.name, root.der) for root in single.roots] == [("key 'P-256' (f)", spki(keys[0].public_key()))]
    several = parse_trust_roots("cca", Level.HARDWARE, [("f", json.dumps({"keys": jwks}).encode())])
    assert [root.der for root in several.roots] == [spki(key.public_key()) for key in keys]
    numbers_rsa = rsa.generate_private_key(65537, 2048).public_key().public_numbers()
    n, e = (encode_b64url(v.to_bytes((v.bit_length() + 7) // 8, "big")) for v in (numbers_rsa.n, numbers_rsa.e))
    found = parse_trust_roots("cca", Level.HARDWARE, [("f", json.dumps({"kty": "RSA", "n": n, "e": e}).encode())])
    assert found.roots[0].der == spki(numbers_rsa.public_key())
    good = jwks[0]
    for bad in (
        {**good, "x": good["y"]},  # off the curve
        {**good, "x": good["x"][:-2]},
        {**good, "crv": "P-192"},
        {**good, "crv": ["P-256"]},
        {**good, "kty": "oct"},
        {key: value for key, value in good.items() if key != "y"},
        {**good, "x": 1},
        {"kty": "RSA", "n": "AQ", "e": e},
        {"keys": []},
        {"keys": [1]},
        {},
    ):
        assert refused_root(json.dumps(bad).encode()) == "collateral.root.malformed", bad
    assert refused_root(b"{") == "collateral.root.malformed"


def test_what_is_no_root_is_refused(pki: SmallPKI) -> None:
    small = rsa.generate_private_key(65537, 1024).public_key()  # noqa: S505 (the weakness is the point)
    for data in (
        b"",
        b"hello",
        spki(ed25519.Ed25519PrivateKey.generate().public_key()),
        spki(small),
        pki.root_key.private_bytes(PEM, PrivateFormat.PKCS8, NoEncryption()),
        der(pki.revocation_list()),
        der(pki.root)[:-1],
        b"\x30" * 5000,
    ):
        assert refused_root(data) == "collateral.root.malformed"


@given(st.binary(max_size=400))
def test_any_bytes_only_ever_refuse(data: bytes) -> None:
    for prefix in (b"", b"\x30\x82", b"{", b"-----BEGIN CERTIFICATE-----\n"):
        for call in (
            lambda data: sort_endorsement_files([("f", data)]),
            lambda data: parse_trust_roots("snp", Level.HARDWARE, [("f", data)]),
        ):
            with contextlib.suppress(FormatRefused):
                call(prefix + data)
