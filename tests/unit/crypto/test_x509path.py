"""Certification paths: what leads to an anchor, and each rule of RFC 5280 that a path must not break."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA224, SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.crypto.x509path import extension, load_certificate, verify_path
from cloister.errors import EndorsementError, FormatRefused
from cloister.wire.limits import CERTIFICATE_BYTES, CERTIFICATE_CHAIN

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
PURPOSE = x509.ObjectIdentifier("2.23.133.8.1")
Key = Any  # any private key the library can sign with


def name_of(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(False, False, True, False, False, sign, False, False, False)


def certificate(
    subject: str,
    key: Key,
    issuer: str,
    issuer_key: Key,
    *,
    ca: bool = True,
    path_length: int | None = None,
    start: datetime = NOW - DAY,
    end: datetime = NOW + DAY,
    sign: bool | None = None,
    purposes: Sequence[x509.ObjectIdentifier] = (),
    critical: x509.ExtensionType | None = None,
    constraints: bool = True,
    algorithm: Any = None,
    rsa_padding: Any = None,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(name_of(subject))
        .issuer_name(name_of(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )
    if constraints:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    builder = builder.add_extension(usage(sign=ca if sign is None else sign), critical=True)
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=True)
    if critical is not None:
        builder = builder.add_extension(critical, critical=True)
    if isinstance(issuer_key, ed25519.Ed25519PrivateKey):
        return builder.sign(issuer_key, None)
    return builder.sign(issuer_key, algorithm or SHA256(), rsa_padding=rsa_padding)


@pytest.fixture(scope="module")
def keys() -> list[ec.EllipticCurvePrivateKey]:
    """One key per place in a path."""
    return [ec.generate_private_key(ec.SECP256R1()) for _ in range(CERTIFICATE_CHAIN + 2)]


@pytest.fixture
def root(keys: list[Key]) -> x509.Certificate:
    """A root without a path length."""
    return certificate("root", keys[0], "root", keys[0])


def code_of(leaf: x509.Certificate, *anchors: x509.Certificate, at: datetime = NOW, **options: Any) -> str:
    with pytest.raises(EndorsementError) as caught:
        verify_path(leaf, anchors=anchors, at=at, code="x", **options)
    return caught.value.code


def test_a_leaf_directly_under_an_anchor(root: x509.Certificate, keys: list[Key]) -> None:
    leaf = certificate("leaf", keys[1], "root", keys[0], ca=False)
    assert verify_path(leaf, anchors=[root], at=NOW, code="x") == (leaf, root)


def test_intermediates_in_any_order_and_with_strangers_between(root: x509.Certificate, keys: list[Key]) -> None:
    upper = certificate("upper", keys[1], "root", keys[0])
    lower = certificate("lower", keys[2], "upper", keys[1])
    stranger = certificate("lower", keys[5], "root", keys[0])
    leaf = certificate("leaf", keys[3], "lower", keys[2], ca=False)
    path = verify_path(leaf, anchors=[root], intermediates=[stranger, lower, upper], at=NOW, code="x")
    assert path == (leaf, lower, upper, root)


def test_the_path_ends_at_the_first_anchor(root: x509.Certificate, keys: list[Key]) -> None:
    issuing = certificate("issuing", keys[1], "root", keys[0])
    leaf = certificate("leaf", keys[2], "issuing", keys[1], ca=False)
    assert verify_path(leaf, anchors=[root, issuing], at=NOW, code="x") == (leaf, issuing)


def test_an_intermediate_is_not_trusted_by_being_given(root: x509.Certificate, keys: list[Key]) -> None:
    issuing = certificate("issuing", keys[1], "other root", keys[4])
    leaf = certificate("leaf", keys[2], "issuing", keys[1], ca=False)
    assert code_of(leaf, root, intermediates=[issuing]) == "x.untrusted"


def test_no_anchor_and_a_foreign_anchor_of_the_same_name(root: x509.Certificate, keys: list[Key]) -> None:
    leaf = certificate("leaf", keys[1], "root", keys[4], ca=False)
    assert code_of(leaf) == "x.untrusted"
    assert code_of(leaf, root) == "x.untrusted"


def test_a_name_alone_or_a_key_alone_makes_no_issuer(root: x509.Certificate, keys: list[Key]) -> None:
    assert code_of(certificate("leaf", keys[1], "else", keys[0], ca=False), root) == "x.untrusted"


@pytest.mark.parametrize(("at", "code"), [(NOW - 2 * DAY, "x.not_yet_valid"), (NOW + 2 * DAY, "x.expired")])
def test_validity_of_the_leaf(at: datetime, code: str, keys: list[Key]) -> None:
    always = certificate("root", keys[0], "root", keys[0], start=NOW - 9 * DAY, end=NOW + 9 * DAY)
    leaf = certificate("leaf", keys[1], "root", keys[0], ca=False)
    assert code_of(leaf, always, at=at) == code


def test_validity_ends_are_inclusive(keys: list[Key]) -> None:
    always = certificate("root", keys[0], "root", keys[0], start=NOW - 9 * DAY, end=NOW + 9 * DAY)
    leaf = certificate("leaf", keys[1], "root", keys[0], ca=False)
    for at in (NOW - DAY, NOW + DAY):
        assert verify_path(leaf, anchors=[always], at=at, code="x")


def test_validity_of_the_anchor(keys: list[Key]) -> None:
    old = certificate("root", keys[0], "root", keys[0], start=NOW - 9 * DAY, end=NOW - DAY)
    leaf = certificate("leaf", keys[1], "root", keys[0], ca=False)
    assert code_of(leaf, old) == "x.expired"


def test_a_renewed_anchor_of_the_same_key_is_found_beside_the_expired_one(keys: list[Key]) -> None:
    old = certificate("root", keys[0], "root", keys[0], start=NOW - 9 * DAY, end=NOW - DAY)
    new = certificate("root", keys[0], "root", keys[0])
    leaf = certificate("leaf", keys[1], "root", keys[0], ca=False)
    assert verify_path(leaf, anchors=[old, new], at=NOW, code="x") == (leaf, new)


def test_an_issuer_that_is_no_ca(keys: list[Key]) -> None:
    leaf = certificate("leaf", keys[1], "root", keys[0], ca=False)
    for anchor in (
        certificate("root", keys[0], "root", keys[0], ca=False),
        certificate("root", keys[0], "root", keys[0], sign=False),
        certificate("root", keys[0], "root", keys[0], constraints=False),
    ):
        assert code_of(leaf, anchor) == "x.not_a_ca"


def test_a_ca_is_no_leaf(root: x509.Certificate, keys: list[Key]) -> None:
    assert code_of(certificate("leaf", keys[1], "root", keys[0]), root) == "x.leaf_is_ca"


def test_path_length(keys: list[Key]) -> None:
    tight = certificate("root", keys[0], "root", keys[0], path_length=0)
    issuing = certificate("issuing", keys[1], "root", keys[0])
    leaf = certificate("leaf", keys[2], "issuing", keys[1], ca=False)
    direct = certificate("leaf", keys[2], "root", keys[0], ca=False)
    assert code_of(leaf, tight, intermediates=[issuing]) == "x.path_length"
    assert verify_path(direct, anchors=[tight], at=NOW, code="x")


def test_paths_have_an_end(keys: list[Key], root: x509.Certificate) -> None:
    chain = [certificate("0", keys[1], "root", keys[0])]
    for place in range(1, CERTIFICATE_CHAIN):
        chain.append(certificate(str(place), keys[place + 1], str(place - 1), keys[place]))
    for length, good in ((CERTIFICATE_CHAIN - 2, True), (CERTIFICATE_CHAIN - 1, False)):
        leaf = certificate("leaf", keys[0], str(length - 1), keys[length], ca=False)
        if good:
            assert len(verify_path(leaf, anchors=[root], intermediates=chain, at=NOW, code="x")) == CERTIFICATE_CHAIN
        else:
            assert code_of(leaf, root, intermediates=chain) == "x.untrusted"


def test_cas_that_sign_each_other_do_not_catch_the_search(keys: list[Key]) -> None:
    one = certificate("one", keys[1], "two", keys[2])
    two = certificate("two", keys[2], "one", keys[1])
    leaf = certificate("leaf", keys[3], "one", keys[1], ca=False)
    assert code_of(leaf, intermediates=[one, two]) == "x.untrusted"


def test_many_cas_of_one_name_do_not_cost_without_bound(root: x509.Certificate, keys: list[Key]) -> None:
    crowd = [certificate("same", keys[1], "same", keys[1], path_length=place) for place in range(40)]
    leaf = certificate("leaf", keys[2], "same", keys[1], ca=False)
    assert code_of(leaf, root, intermediates=crowd) == "x.untrusted"


def test_purpose(root: x509.Certificate, keys: list[Key]) -> None:
    def leaf(*purposes: x509.ObjectIdentifier, issuer: str = "root", key: Key = keys[0]) -> x509.Certificate:
        return certificate("leaf", keys[2], issuer, key, ca=False, purposes=purposes)

    assert verify_path(leaf(PURPOSE), anchors=[root], at=NOW, code="x", purpose=PURPOSE)
    assert code_of(leaf(), root, purpose=PURPOSE) == "x.purpose"
    assert code_of(leaf(ExtendedKeyUsageOID.SERVER_AUTH), root, purpose=PURPOSE) == "x.purpose"
    assert code_of(leaf(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE), root, purpose=PURPOSE) == "x.purpose"
    for purposes, good in (((PURPOSE,), True), ((ExtendedKeyUsageOID.SERVER_AUTH,), False)):
        issuing = certificate("issuing", keys[1], "root", keys[0], purposes=purposes)
        below = leaf(PURPOSE, issuer="issuing", key=keys[1])
        if good:
            assert verify_path(below, anchors=[issuing], at=NOW, code="x", purpose=PURPOSE)
        else:
            assert code_of(below, issuing, purpose=PURPOSE) == "x.purpose"


def test_critical_extensions_that_nobody_processes(root: x509.Certificate, keys: list[Key]) -> None:
    names = x509.SubjectAlternativeName([x509.DirectoryName(name_of("model"))])
    leaf = certificate("leaf", keys[1], "root", keys[0], ca=False, critical=names)
    assert code_of(leaf, root) == "x.critical_extension"
    assert verify_path(leaf, anchors=[root], at=NOW, code="x", leaf_critical=frozenset({names.oid}))
    constrained = certificate(
        "root", keys[0], "root", keys[0], critical=x509.NameConstraints([x509.DNSName("a.example")], None)
    )
    plain = certificate("leaf", keys[1], "root", keys[0], ca=False)
    assert code_of(plain, constrained) == "x.critical_extension"
    with_usage = certificate("leaf", keys[1], "root", keys[0], ca=False, purposes=[PURPOSE])
    assert code_of(with_usage, root) == "x.critical_extension"


@pytest.mark.parametrize("kind", ["pkcs1", "pss", "p384", "p521"])
def test_signature_algorithms_that_are_accepted(kind: str, keys: list[Key]) -> None:
    key: Key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    options: dict[str, Any] = {}
    if kind == "pss":
        options["rsa_padding"] = padding.PSS(mgf=padding.MGF1(SHA256()), salt_length=32)
    if kind == "p384":
        key, options["algorithm"] = ec.generate_private_key(ec.SECP384R1()), SHA384()
    if kind == "p521":
        key, options["algorithm"] = ec.generate_private_key(ec.SECP521R1()), SHA512()
    anchor = certificate("ca", key, "ca", key, **options)
    leaf = certificate("leaf", keys[1], "ca", key, ca=False, **options)
    assert verify_path(leaf, anchors=[anchor], at=NOW, code="x") == (leaf, anchor)


@pytest.mark.parametrize("kind", ["ed25519", "p256k1", "rsa-1024"])
def test_signature_algorithms_that_are_not(kind: str, keys: list[Key]) -> None:
    key: Key = ed25519.Ed25519PrivateKey.generate()
    if kind == "p256k1":
        key = ec.generate_private_key(ec.SECP256K1())
    if kind == "rsa-1024":
        key = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505
    anchor = certificate("ca", key, "ca", key)
    leaf = certificate("leaf", keys[1], "ca", key, ca=False)
    assert code_of(leaf, anchor) == "x.algorithm"


def test_a_short_hash_is_not_accepted(root: x509.Certificate, keys: list[Key]) -> None:
    leaf = certificate("leaf", keys[1], "root", keys[0], ca=False, algorithm=SHA224())
    leaf.verify_directly_issued_by(root)
    assert code_of(leaf, root) == "x.algorithm"


def test_a_good_certificate_may_be_too_long(keys: list[Key]) -> None:
    names = x509.SubjectAlternativeName([x509.DNSName(f"{place:060d}.example") for place in range(300)])
    der = certificate("leaf", keys[1], "root", keys[0], ca=False, critical=names).public_bytes(Encoding.DER)
    assert x509.load_der_x509_certificate(der)
    with pytest.raises(FormatRefused) as caught:
        load_certificate(der, code="x")
    assert caught.value.actual == str(len(der))


def test_one_flipped_bit_anywhere_is_refused(root: x509.Certificate, keys: list[Key]) -> None:
    der = certificate("leaf", keys[1], "root", keys[0], ca=False).public_bytes(Encoding.DER)
    for offset in range(len(der)):
        flipped = der[:offset] + bytes([der[offset] ^ (1 << offset % 8)]) + der[offset + 1 :]
        with pytest.raises((FormatRefused, EndorsementError)):
            verify_path(load_certificate(flipped, code="x"), anchors=[root], at=NOW, code="x")


def _sequence(body: bytes) -> bytes:
    return b"\x30\x82" + len(body).to_bytes(2, "big") + body


def test_a_certificate_of_version_1_has_nothing_to_check(root: x509.Certificate, keys: list[Key]) -> None:
    """Version 1 knows no extensions, so none of the rules for them could be broken."""
    builder = x509.CertificateBuilder().subject_name(name_of("leaf")).issuer_name(name_of("root"))
    builder = builder.public_key(keys[1].public_key()).serial_number(1)
    leaf = builder.not_valid_before(NOW - DAY).not_valid_after(NOW + DAY).sign(keys[0], SHA256())
    signed = leaf.tbs_certificate_bytes
    assert signed[4:9] == b"\xa0\x03\x02\x01\x02" or signed[3:8] == b"\xa0\x03\x02\x01\x02"
    body = signed[signed.index(b"\xa0\x03\x02\x01\x02") + 5 :]
    old = _sequence(body) if len(body) > 255 else b"\x30\x81" + bytes([len(body)]) + body
    signature = keys[0].sign(old, ec.ECDSA(SHA256()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    der = _sequence(old + algorithm + b"\x03" + bytes([len(signature) + 1]) + b"\x00" + signature)
    version_1 = load_certificate(der, code="x")
    version_1.verify_directly_issued_by(root)
    assert code_of(version_1, root) == "x.malformed"


def test_loading_refuses_what_is_not_one_certificate(root: x509.Certificate) -> None:
    der = root.public_bytes(Encoding.DER)
    assert load_certificate(der, code="x") == root
    for data in (b"", b"\x30\x00", der[:-1], der + b"\x00", bytes(CERTIFICATE_BYTES + 1)):
        with pytest.raises(FormatRefused) as caught:
            load_certificate(data, code="x", path="here")
        assert (caught.value.code, caught.value.path) == ("x.malformed", "here")


def test_extensions_by_kind(root: x509.Certificate) -> None:
    constraints = extension(root, x509.BasicConstraints)
    assert constraints is not None
    assert constraints.ca
    assert extension(root, x509.ExtendedKeyUsage) is None


def test_a_naive_time_is_a_mistake_of_the_caller(root: x509.Certificate) -> None:
    with pytest.raises(RuntimeError):
        verify_path(root, anchors=[root], at=NOW.replace(tzinfo=None), code="x")


# --- what is remembered ---


def test_a_path_that_is_remembered_does_not_outlive_its_validity(keys: list[Key]) -> None:
    always = certificate("root", keys[0], "root", keys[0], start=NOW - 9 * DAY, end=NOW + 9 * DAY)
    middle = certificate("middle", keys[1], "root", keys[0], start=NOW - 2 * DAY, end=NOW + DAY)
    leaf = certificate("leaf", keys[2], "middle", keys[1], ca=False, start=NOW - DAY, end=NOW + 5 * DAY)
    for _ in range(2):
        assert verify_path(leaf, anchors=[always], intermediates=[middle], at=NOW, code="x")
        assert code_of(leaf, always, intermediates=[middle], at=NOW + 2 * DAY) == "x.expired"
        assert code_of(leaf, always, intermediates=[middle], at=NOW - 2 * DAY) == "x.not_yet_valid"


def test_a_path_that_is_remembered_does_not_survive_another_anchor(root: x509.Certificate, keys: list[Key]) -> None:
    leaf = certificate("leaf", keys[1], "root", keys[0], ca=False)
    stranger = certificate("root", keys[3], "root", keys[3])
    for _ in range(2):
        assert verify_path(leaf, anchors=[root], at=NOW, code="x")
        assert code_of(leaf, stranger) == "x.untrusted"
        assert code_of(leaf) == "x.untrusted"
    assert verify_path(leaf, anchors=[stranger, root], at=NOW, code="x") == (leaf, root)


def test_a_path_that_is_remembered_is_of_its_intermediates_and_purpose(root: x509.Certificate, keys: list[Key]) -> None:
    middle = certificate("middle", keys[1], "root", keys[0])
    leaf = certificate("leaf", keys[2], "middle", keys[1], ca=False, purposes=[PURPOSE])
    allowed = frozenset({ExtendedKeyUsageOID.SERVER_AUTH})
    for _ in range(2):
        assert verify_path(leaf, anchors=[root], intermediates=[middle], at=NOW, code="x", purpose=PURPOSE)
        assert code_of(leaf, root, purpose=PURPOSE) == "x.untrusted"
        assert code_of(leaf, root, intermediates=[middle]) == "x.critical_extension"
        assert code_of(leaf, root, intermediates=[middle], purpose=ExtendedKeyUsageOID.SERVER_AUTH) == "x.purpose"
        assert code_of(leaf, root, intermediates=[middle], leaf_critical=allowed) == "x.critical_extension"


def test_a_code_that_is_remembered_is_the_callers(root: x509.Certificate, keys: list[Key]) -> None:
    leaf = certificate("leaf", keys[1], "root", keys[0], ca=False)
    assert verify_path(leaf, anchors=[root], at=NOW, code="x")
    with pytest.raises(EndorsementError) as caught:
        verify_path(leaf, anchors=[], at=NOW, code="y")
    assert caught.value.code == "y.untrusted"


def test_a_refusal_is_not_remembered(root: x509.Certificate, keys: list[Key]) -> None:
    leaf = certificate("leaf", keys[1], "root", keys[0], ca=False, start=NOW, end=NOW + DAY)
    assert code_of(leaf, root, at=NOW - timedelta(seconds=1)) == "x.not_yet_valid"
    assert verify_path(leaf, anchors=[root], at=NOW, code="x") == (leaf, root)


def test_what_is_remembered_is_bounded(root: x509.Certificate, keys: list[Key]) -> None:
    from cloister.crypto import x509path

    leaf = certificate("leaf", keys[1], "root", keys[0], ca=False)
    for number in range(x509path._CACHED + 5):
        verify_path(leaf, anchors=[root], at=NOW, code=f"x{number}")
    assert len(x509path._KNOWN_PATHS) == x509path._CACHED


def test_serial_number_zero_is_read_without_a_warning() -> None:
    """All keys of AMD's chips have it; the library warns, and warnings are errors here."""
    from cloister.crypto.x509path import serial_number
    from cloister.testing.snp import FakeAMD, FakeChip

    chip = load_certificate(FakeChip.made_by(FakeAMD()).vek, code="x")
    assert serial_number(chip) == 0
    with pytest.warns(UserWarning, match="serial number"):
        assert chip.serial_number == 0


def test_no_bit_of_a_certificate_is_free(keys: list[Key]) -> None:
    """A signature whose last bit is zero could have it called unused: another certificate, and it would verify."""
    for _ in range(40):
        leaf = certificate("leaf", keys[1], "root", keys[0], ca=False)
        if leaf.signature[-1] & 1:
            continue
        der = leaf.public_bytes(Encoding.DER)
        unused = len(der) - len(leaf.signature) - 1
        assert der[unused] == 0
        with pytest.raises(FormatRefused) as caught:
            load_certificate(der[:unused] + b"\x01" + der[unused + 1 :], code="x")
        assert caught.value.code == "x.malformed"
        return
    raise AssertionError("no signature ended in a zero bit")
