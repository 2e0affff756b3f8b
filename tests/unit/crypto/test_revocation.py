"""Revocation lists: whose they are, what they say, and when they are in force."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.crypto.revocation import (
    RevocationList,
    RevocationState,
    RevocationStatus,
    load_revocation_list,
    revocation_finding,
    verify_not_revoked,
)
from cloister.errors import EndorsementError, FormatRefused
from cloister.rats.result import Question, Severity
from cloister.wire.limits import REVOCATION_LIST_BYTES

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
KEY = ec.generate_private_key(ec.SECP256R1())
STRANGER = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def name_of(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certificate(
    subject: str, serial: int, *, key: Any = KEY, crl_sign: bool | None = None, issuer: str = "ca"
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(name_of(subject))
        .issuer_name(name_of(issuer))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(NOW - 99 * DAY)
        .not_valid_after(NOW + 99 * DAY)
    )
    if crl_sign is not None:
        usage = x509.KeyUsage(False, False, False, False, False, True, crl_sign, False, False)
        builder = builder.add_extension(usage, critical=True)
    return builder.sign(KEY, SHA256())


CA = certificate("ca", 1)
LEAF = certificate("leaf", 7)


def revocation_list(
    *serials: int,
    key: Any = KEY,
    issuer: str = "ca",
    start: datetime = NOW - DAY,
    end: datetime = NOW + DAY,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    rsa_padding: Any = None,
) -> RevocationList:
    builder = x509.CertificateRevocationListBuilder().issuer_name(name_of(issuer)).last_update(start).next_update(end)
    for serial in serials:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(start).build()
        )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    signed = builder.sign(key, SHA384(), rsa_padding=rsa_padding)
    return load_revocation_list(signed.public_bytes(Encoding.DER), code="x.y")


def state(*lists: RevocationList, at: datetime = NOW, grace: timedelta = timedelta()) -> str:
    return verify_not_revoked(LEAF, CA, lists, at=at, code="x.y", grace=grace).state.value


def refuse(*lists: RevocationList, ca: x509.Certificate = CA, at: datetime = NOW) -> str:
    with pytest.raises(EndorsementError) as caught:
        verify_not_revoked(LEAF, ca, lists, at=at, code="x.y")
    return caught.value.code.removeprefix("x.y.")


def test_a_list_in_force_says_good() -> None:
    status = verify_not_revoked(LEAF, CA, [revocation_list(1, 2, 3)], at=NOW, code="x.y")
    assert (status.state, status.subject) == (RevocationState.GOOD, "CN=leaf")
    assert (status.this_update, status.next_update) == (NOW - DAY, NOW + DAY)


def test_no_list_of_the_issuer_says_nothing() -> None:
    assert state() == "missing"
    assert state(revocation_list(7, issuer="another", key=STRANGER)) == "missing"


def test_the_times_of_a_list_are_inclusive() -> None:
    item = revocation_list()
    assert [state(item, at=at) for at in (NOW - DAY, NOW + DAY)] == ["good", "good"]
    second = timedelta(seconds=1)
    assert [state(item, at=at) for at in (NOW - DAY - second, NOW + DAY + second)] == ["stale", "stale"]


def test_grace() -> None:
    item = revocation_list()
    assert state(item, at=NOW + 2 * DAY, grace=DAY) == "grace"
    assert state(item, at=NOW + 2 * DAY + timedelta(seconds=1), grace=DAY) == "stale"
    assert state(item, at=NOW - 2 * DAY, grace=9 * DAY) == "stale"  # not begun: no grace before


def test_the_newest_that_has_begun_counts() -> None:
    old = revocation_list(start=NOW - 9 * DAY, end=NOW - DAY)
    future = revocation_list(start=NOW + DAY, end=NOW + 2 * DAY)
    assert state(old, revocation_list(), future) == "good"
    assert state(old, future) == "stale"
    assert state(future) == "stale"
    newer_but_shorter = revocation_list(start=NOW - timedelta(hours=2), end=NOW - timedelta(hours=1))
    assert state(revocation_list(), newer_but_shorter) == "stale"


def test_a_list_without_an_end_could_be_replayed_for_ever() -> None:
    """The library writes none: the field is cut out, and the rest signed again."""
    item = revocation_list().parsed
    der, signed = item.public_bytes(Encoding.DER), item.tbs_certlist_bytes
    times = [signed.index(b"\x17\x0d"), signed.rindex(b"\x17\x0d")]
    assert times[1] == times[0] + 15
    changed = bytearray(signed[: times[1]] + signed[times[1] + 15 :])
    changed[1] -= 15
    start = der.index(signed)
    algorithm = der[start + len(signed) : der.rindex(b"\x03", 0, len(der) - len(item.signature))]
    signature = KEY.sign(bytes(changed), ec.ECDSA(SHA384()))
    body = bytes(changed) + algorithm + b"\x03" + bytes([len(signature) + 1]) + b"\0" + signature
    head = b"\x30\x81" + bytes([len(body)]) if len(body) > 127 else b"\x30" + bytes([len(body)])
    parsed = load_revocation_list(head + body, code="x.y")
    assert parsed.parsed.next_update_utc is None
    assert state(parsed) == "stale"


def test_a_revoked_certificate_is_refused_however_old_the_list_is() -> None:
    assert refuse(revocation_list(7)) == "revoked"
    assert refuse(revocation_list(), revocation_list(7, start=NOW - 9 * DAY, end=NOW - 8 * DAY)) == "revoked"
    assert refuse(revocation_list(7, start=NOW + DAY, end=NOW + 2 * DAY)) == "revoked"


def test_a_list_must_be_signed_by_the_issuer_whose_name_it_bears() -> None:
    forged = revocation_list(key=STRANGER)
    assert refuse(forged) == "crl_signature"
    assert refuse(revocation_list(), forged) == "crl_signature"
    assert refuse(revocation_list(key=RSA)) == "crl_signature"
    rsa_ca = certificate("ca", 1, key=RSA)
    assert refuse(revocation_list(), ca=rsa_ca) == "crl_signature"
    pss = padding.PSS(mgf=padding.MGF1(SHA384()), salt_length=48)
    good = revocation_list(key=RSA, rsa_padding=pss)
    assert verify_not_revoked(LEAF, rsa_ca, [good], at=NOW, code="x.y").state is RevocationState.GOOD


def test_an_answer_about_one_issuer_is_none_about_another_of_its_name() -> None:
    """What is remembered of a list is remembered with the issuer it was verified with."""
    item = revocation_list()
    other = certificate("ca", 1, key=STRANGER)
    for _ in range(2):
        assert state(item) == "good"
        assert refuse(item, ca=other) == "crl_signature"


def test_an_issuer_that_may_not_sign_lists() -> None:
    assert refuse(revocation_list(), ca=certificate("ca", 1, crl_sign=False)) == "crl_signature"
    assert verify_not_revoked(LEAF, certificate("ca", 1, crl_sign=True), [revocation_list()], at=NOW, code="x.y")
    assert verify_not_revoked(LEAF, certificate("ca", 1, crl_sign=False), [], at=NOW, code="x.y")


def test_critical_parts_that_are_not_understood() -> None:
    partial = x509.IssuingDistributionPoint(None, None, True, False, None, False, False)
    assert refuse(revocation_list(extensions=[(partial, True)])) == "crl_extension"
    delta = x509.DeltaCRLIndicator(5)
    assert refuse(revocation_list(extensions=[(delta, True)])) == "crl_extension"
    assert state(revocation_list(extensions=[(x509.CRLNumber(5), True)])) == "good"
    assert state(revocation_list(extensions=[(partial, False)])) == "good"


def test_one_flipped_bit_anywhere_is_refused() -> None:
    der = revocation_list(3).parsed.public_bytes(Encoding.DER)
    for offset in range(len(der)):
        changed = bytearray(der)
        changed[offset] ^= 1 << offset % 8
        try:
            item = load_revocation_list(bytes(changed), code="x.y")
            verdict = state(item)
        except (EndorsementError, FormatRefused):
            continue
        assert verdict == "missing"  # it bears another name now


def test_loading() -> None:
    item = revocation_list(3)
    der, pem = item.parsed.public_bytes(Encoding.DER), item.parsed.public_bytes(Encoding.PEM)
    assert load_revocation_list(der, code="x.y") == load_revocation_list(pem, code="x.y") == item
    for data in (
        b"",
        der[:-1],
        der + b"\0",
        pem[:-40],
        CA.public_bytes(Encoding.DER),
        bytes(REVOCATION_LIST_BYTES + 1),
    ):
        with pytest.raises(FormatRefused) as caught:
            load_revocation_list(data, code="x.y", path="list")
        assert (caught.value.code, caught.value.path) == ("x.y.malformed", "list")


def test_a_list_of_a_version_that_there_is_not_is_malformed() -> None:
    der = revocation_list(3).public_bytes(Encoding.DER)
    changed = der.replace(b"\x02\x01\x01", b"\x02\x01\x4e", 1)
    assert changed != der
    with pytest.raises(FormatRefused) as caught:
        load_revocation_list(changed, code="x.y")
    assert caught.value.code == "x.y.malformed"


def test_a_list_has_a_most_of_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    from cloister.crypto import revocation

    monkeypatch.setattr(revocation, "REVOCATION_LIST_ENTRIES", 2)
    assert load_revocation_list(revocation_list(1, 2).parsed.public_bytes(Encoding.DER), code="x.y")
    with pytest.raises(FormatRefused):
        load_revocation_list(revocation_list(1, 2, 3).parsed.public_bytes(Encoding.DER), code="x.y")


@pytest.mark.parametrize(
    ("value", "ok", "severity"),
    [
        (RevocationState.GOOD, True, Severity.UNAVAILABLE),
        (RevocationState.GRACE, False, Severity.WARNING),
        (RevocationState.STALE, False, Severity.UNAVAILABLE),
        (RevocationState.MISSING, False, Severity.UNAVAILABLE),
    ],
)
def test_what_a_state_means_for_the_verdict(value: RevocationState, ok: bool, severity: Severity) -> None:
    status = RevocationStatus(state=value, subject="CN=leaf", this_update=NOW, next_update=NOW + DAY)
    finding = revocation_finding(status, code="x.y")
    assert (finding.code, finding.question, finding.path) == ("x.y", Question.AUTHENTIC, "CN=leaf")
    assert (finding.ok, finding.severity) == (ok, severity)
    assert bool(finding.hint) is not ok
    assert finding.actual
