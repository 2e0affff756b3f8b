"""OCSP responses collected before: who may sign them, when they count, what each state comes to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA1, SHA224, SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.crypto.ocsp import WITHOUT_NEXT_UPDATE, load_ocsp_response, verify_not_revoked
from cloister.crypto.revocation import RevocationState, RevocationStatus, revocation_finding
from cloister.errors import EndorsementError, FormatRefused
from cloister.rats.result import Severity
from cloister.testing.nvidia import NOW, Authority, issue, ocsp_response
from cloister.wire.limits import OCSP_BYTES

HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class CA:
    """A CA, a certificate of it, and a delegate of the responder."""

    issuer: Authority
    subject: Authority
    delegate: Authority

    def response(self, **arguments: Any) -> bytes:
        return ocsp_response(self.subject.certificate, self.issuer, **arguments)

    def judge(
        self, *responses: bytes, at: datetime = NOW, grace: timedelta = timedelta(), subject: Authority | None = None
    ) -> RevocationStatus:
        return verify_not_revoked(
            (subject or self.subject).certificate,
            self.issuer.certificate,
            [load_ocsp_response(data, code="test") for data in responses],
            at=at,
            code="test",
            grace=grace,
        )

    def refusal(self, *responses: bytes, at: datetime = NOW) -> EndorsementError:
        with pytest.raises(EndorsementError) as caught:
            self.judge(*responses, at=at)
        return caught.value


@pytest.fixture(scope="module")
def ca() -> CA:
    issuer = issue("issuer")
    return CA(issuer, issue("subject", issuer), delegate_of(issuer))


def delegate_of(issuer: Authority, **arguments: Any) -> Authority:
    purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])
    return issue("responder", issuer, **{"extensions": [purpose], "ca": False, **arguments})


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("algorithm", [SHA1(), SHA256(), SHA384(), SHA512()])  # noqa: S303  # CertID, no signature
def test_the_issuer_says_good(ca: CA, by_name: bool, algorithm: HashAlgorithm) -> None:
    status = ca.judge(ca.response(by_name=by_name, algorithm=algorithm))
    assert status.state is RevocationState.GOOD
    assert (status.this_update, status.next_update) == (NOW - HOUR, NOW + timedelta(days=1))
    assert revocation_finding(status, code="test").ok


@pytest.mark.parametrize("by_name", [False, True])
def test_a_delegate_says_good(ca: CA, by_name: bool) -> None:
    assert ca.judge(ca.response(responder=ca.delegate, by_name=by_name)).state is RevocationState.GOOD


def test_revoked_refuses_whatever_the_age(ca: CA) -> None:
    revoked = ca.response(status=ocsp.OCSPCertStatus.REVOKED, reason=x509.ReasonFlags.key_compromise)
    for at in (NOW, NOW + timedelta(days=400), NOW - timedelta(days=1)):
        assert ca.refusal(revoked, at=at).code == "test.revoked"
    assert ca.refusal(ca.response(this_update=NOW), revoked).code == "test.revoked"
    without_reason = ca.response(status=ocsp.OCSPCertStatus.REVOKED)
    assert ca.refusal(without_reason).code == "test.revoked"


def test_on_hold_is_a_state_of_its_own(ca: CA) -> None:
    hold = ca.response(status=ocsp.OCSPCertStatus.REVOKED, reason=x509.ReasonFlags.certificate_hold)
    error = ca.refusal(hold)
    assert error.code == "test.on_hold"
    assert error.actual == "since 2025-12-31T23:00:00+00:00"
    # A later response that says good lifts it; an earlier one does not.
    assert ca.judge(hold, ca.response(this_update=NOW)).state is RevocationState.GOOD
    assert ca.refusal(hold, ca.response(this_update=NOW - 2 * HOUR)).code == "test.on_hold"


def test_unknown_leaves_the_answer_open(ca: CA) -> None:
    status = ca.judge(ca.response(status=ocsp.OCSPCertStatus.UNKNOWN))
    assert status.state is RevocationState.UNKNOWN
    finding = revocation_finding(status, code="test")
    assert (finding.ok, finding.severity) == (False, Severity.UNAVAILABLE)
    assert "does not know" in finding.actual


def test_age_and_grace(ca: CA) -> None:
    response, end = ca.response(), NOW + timedelta(days=1)
    assert ca.judge(response, at=end).state is RevocationState.GOOD
    assert ca.judge(response, at=end + HOUR).state is RevocationState.STALE
    assert ca.judge(response, at=end + HOUR, grace=HOUR).state is RevocationState.GRACE
    assert ca.judge(response, at=end + HOUR + timedelta(seconds=1), grace=HOUR).state is RevocationState.STALE
    assert ca.judge(response, at=NOW - 2 * HOUR).state is RevocationState.STALE
    assert ca.judge().state is RevocationState.MISSING


def test_without_next_update_a_response_lasts_a_day(ca: CA) -> None:
    response = ca.response(next_update=None)
    last = NOW - HOUR + WITHOUT_NEXT_UPDATE
    assert ca.judge(response, at=last).state is RevocationState.GOOD
    assert ca.judge(response, at=last + timedelta(seconds=1)).state is RevocationState.STALE


def test_answers_about_others_say_nothing(ca: CA) -> None:
    other = issue("subject", ca.issuer)
    assert ca.judge(ca.response(), subject=other).state is RevocationState.MISSING
    namesake = issue("issuer")  # same name, other key
    response = ocsp_response(ca.subject.certificate, namesake)
    assert ca.judge(response).state is RevocationState.MISSING
    revoked = ocsp_response(ca.subject.certificate, namesake, status=ocsp.OCSPCertStatus.REVOKED)
    assert ca.judge(revoked).state is RevocationState.MISSING


def test_the_newest_counts(ca: CA) -> None:
    old = ca.response(this_update=NOW - timedelta(days=9), next_update=NOW - timedelta(days=8))
    assert ca.judge(old).state is RevocationState.STALE
    assert ca.judge(old, ca.response()).state is RevocationState.GOOD


def test_a_flipped_bit_of_the_signed_part_or_the_signature_refuses(ca: CA) -> None:
    response = ca.response()
    parsed = ocsp.load_der_ocsp_response(response)
    start = response.index(parsed.tbs_response_bytes)
    where = response.index(parsed.signature)
    flipped = bytearray(response)
    flipped[where + len(parsed.signature) - 1] ^= 1
    assert ca.refusal(bytes(flipped)).code == "test.ocsp_signature"
    accepted = 0
    for offset in range(start, start + len(parsed.tbs_response_bytes)):
        flipped = bytearray(response)
        flipped[offset] ^= 1
        try:
            accepted += ca.judge(bytes(flipped)).state is RevocationState.GOOD
        except (FormatRefused, EndorsementError):
            continue
    assert accepted == 0


@pytest.mark.parametrize(
    ("responder", "code"),
    [
        (lambda ca: delegate_of(issue("issuer")), "test.ocsp_responder.untrusted"),
        (lambda ca: delegate_of(issue("elsewhere")), "test.ocsp_responder.untrusted"),
        (lambda ca: issue("responder", ca.issuer, ca=False), "test.ocsp_responder.purpose"),
        (lambda ca: delegate_of(ca.issuer, end=NOW - 2 * HOUR), "test.ocsp_responder.expired"),
        (lambda ca: delegate_of(ca.issuer, start=NOW + HOUR), "test.ocsp_responder.not_yet_valid"),
        (lambda ca: delegate_of(ca.issuer, ca=True), "test.ocsp_responder.leaf_is_ca"),
        (
            lambda ca: delegate_of(ca.issuer, extensions=[x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])]),
            "test.ocsp_responder.purpose",
        ),
        (lambda ca: ca.subject, "test.ocsp_responder.leaf_is_ca"),
    ],
)
def test_not_every_certificate_is_a_responder(ca: CA, responder: Any, code: str) -> None:
    assert ca.refusal(ca.response(responder=responder(ca))).code == code


def test_a_foreign_responder_cannot_revoke_either(ca: CA) -> None:
    forged = ca.response(status=ocsp.OCSPCertStatus.REVOKED, responder=delegate_of(issue("issuer")))
    assert ca.refusal(forged).code == "test.ocsp_responder.untrusted"


def test_a_response_that_bears_the_issuers_name_is_the_issuers(ca: CA) -> None:
    namesake = delegate_of(issue("issuer"))
    signed_by_namesake = ca.response(responder=issue("issuer", namesake), by_name=True)
    assert ca.refusal(signed_by_namesake).code == "test.ocsp_signature"


def test_a_delegate_that_does_not_come_along_is_none(ca: CA) -> None:
    builder = ocsp.OCSPResponseBuilder().add_response(
        ca.subject.certificate,
        ca.issuer.certificate,
        SHA256(),
        ocsp.OCSPCertStatus.GOOD,
        NOW - HOUR,
        NOW + HOUR,
        None,
        None,
    )
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, ca.delegate.certificate)
    response = builder.sign(ca.delegate.key, SHA384()).public_bytes(Encoding.DER)
    assert ca.refusal(response).code == "test.ocsp_signature"


def test_critical_extensions(ca: CA) -> None:
    assert ca.judge(ca.response(extension=x509.OCSPNonce(b"x" * 32))).state is RevocationState.GOOD
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
    error = ca.refusal(ca.response(extension=unknown))
    assert (error.code, error.actual) == ("test.ocsp_extension", "1.3.6.1.4.1.99999.1")


def test_what_is_no_usable_response(ca: CA) -> None:
    unsuccessful = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
    response = ca.response()
    for data in (
        b"",
        b"\x30",
        response[:-1],
        response + b"\0",
        unsuccessful.public_bytes(Encoding.DER),
        b"\x30" * (OCSP_BYTES + 1),
        ca.subject.der,
    ):
        with pytest.raises(FormatRefused) as caught:
            load_ocsp_response(data, code="test")
        assert caught.value.code == "test.malformed"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (bytes.fromhex("a003020102"), bytes.fromhex("a00302017f")),  # a version that there is not
        (bytes.fromhex("03620004"), bytes.fromhex("03620005")),  # a public key that is no point
        (bytes.fromhex("0603551d25"), bytes.fromhex("0603551d0f")),  # an extension whose content is another's
    ],
)
def test_a_responder_that_does_not_parse_is_no_usable_response(ca: CA, old: bytes, new: bytes) -> None:
    """The library parses parts of it late: they must not be met first where no refusal is expected."""
    broken = ca.delegate.der.replace(old, new, 1)
    assert broken != ca.delegate.der
    data = ca.response(responder=ca.delegate).replace(ca.delegate.der, broken)
    with pytest.raises(FormatRefused) as caught:
        load_ocsp_response(data, code="test")
    assert caught.value.code == "test.malformed"


def test_an_rsa_ca_and_keys_that_cannot_sign(ca: CA) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "RSA CA")])
    issuer = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - HOUR)
        .not_valid_after(NOW + HOUR)
        .sign(key, SHA256())
    )
    subject = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(name)
        .public_key(ca.subject.certificate.public_key())
        .serial_number(2)
        .not_valid_before(NOW - HOUR)
        .not_valid_after(NOW + HOUR)
        .sign(key, SHA256())
    )

    def respond(algorithm: HashAlgorithm) -> bytes:
        builder = ocsp.OCSPResponseBuilder().add_response(
            subject, issuer, SHA256(), ocsp.OCSPCertStatus.GOOD, NOW - HOUR, NOW + HOUR, None, None
        )
        builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, issuer)
        return builder.sign(key, algorithm).public_bytes(Encoding.DER)

    def judge(data: bytes) -> RevocationStatus:
        return verify_not_revoked(subject, issuer, [load_ocsp_response(data, code="test")], at=NOW, code="test")

    assert judge(respond(SHA512())).state is RevocationState.GOOD
    with pytest.raises(EndorsementError) as caught:
        judge(respond(SHA224()))  # a hash that is not accepted
    assert caught.value.code == "test.ocsp_signature"
    flipped = bytearray(respond(SHA256()))
    flipped[-1] ^= 1
    with pytest.raises(EndorsementError) as caught:
        judge(bytes(flipped))
    assert caught.value.code == "test.ocsp_signature"
