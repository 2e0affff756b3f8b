"""TPM evidence of attesters that do not enrol: an AK with a certificate, or one the owner trusts; partial quotes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.errors import EndorsementError, EvidenceError, FormatRefused, Refused
from cloister.rats.claims import Level, Role
from cloister.rats.endorsement import Endorsements, TrustedRoot
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.rats.policy import AppraisalPolicy
from cloister.rats.result import Bound, Examination, Severity, Unchecked, Verdict
from cloister.rats.rules import PlatformRules, TPMRules
from cloister.tee.collateral.files import parse_trust_roots
from cloister.tee.tpm import commands
from cloister.tee.tpm import constants as c
from cloister.tee.tpm.abi import PCRSelection
from cloister.tee.tpm.measurements import measured_roles
from cloister.tee.tpm.verifier import authenticate, read_claims
from cloister.tee.verification import examine_evidence
from cloister.testing.eventlog import build_event_log, event, ovmf_events, seabios_events
from cloister.testing.tpm import (
    AK_PROFILE,
    EK_PURPOSE,
    INIT_DATA_DIGEST,
    NOW,
    EKProfile,
    EndorsementCA,
    FakeTPM,
    QuoteFaults,
)
from cloister.wire.base64 import encode_b64

NONCE = bytes(range(9))
CRL_URL = "http://ca.example/list.crl"
NOT_ASKED = Unchecked(reason="not asked for")


@pytest.fixture
def cloud(ca: EndorsementCA, ek: rsa.RSAPrivateKey, rsa_ak: rsa.RSAPrivateKey) -> FakeTPM:
    """A virtual TPM of a cloud: an RSA AK, a log, init data in register 8."""
    fake = FakeTPM(ca, events=seabios_events(), ek=ek, ak=rsa_ak)
    fake.extend(8, INIT_DATA_DIGEST)
    return fake


def certificate_of(issuer: EndorsementCA, tpm: FakeTPM, /, **changes: Any) -> bytes:
    return issuer.issue(tpm.ak_key.public_key(), replace(AK_PROFILE, **changes))


def key_root(tpm: FakeTPM, level: Level = Level.MEASURED) -> Endorsements:
    der = tpm.ak_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Endorsements(roots=parse_trust_roots("tpm", level, [("ak.der", der)]).roots)


def examine(
    evidence: Evidence, endorsements: Endorsements, *, nonce: bytes | Unchecked = NONCE, **policy: Any
) -> Examination:
    return examine_evidence(
        evidence,
        ExpectedBinding(report_data=nonce, init_data_digest=NOT_ASKED, exact=True),
        endorsements,
        AppraisalPolicy(
            id="p", tees=frozenset({"tpm"}), levels=frozenset(Level), accept_debug=False, digest="", **policy
        ),
        NOT_ASKED,
        at=NOW,
    )


def refusal(evidence: Evidence, endorsements: Endorsements, *, at: Any = NOW) -> Refused:
    with pytest.raises(Refused) as caught:
        authenticate(evidence, endorsements, at=at)
    return caught.value


# Who vouches


def test_a_certified_ak_without_revocation_is_accepted_and_says_so(cloud: FakeTPM, ca: EndorsementCA) -> None:
    result = examine(cloud.foreign_evidence(NONCE, certificate=certificate_of(ca, cloud)), ca.endorsements())
    assert (result.verdict, result.bound, result.authentic) == (Verdict.ACCEPT, Bound.YES, True)
    assert result.claims is not None
    assert result.claims.level is Level.MEASURED
    assert result.claims.native["ak_algorithm"] == "RSASSA"
    assert any("its CA offers none" in item.reason for item in result.unchecked)


def test_the_certificate_may_come_through_an_intermediate_from_either_side(cloud: FakeTPM, ca: EndorsementCA) -> None:
    root = Endorsements(roots=ca.roots()[1:])
    certificate, issuing = certificate_of(ca, cloud), ca.issuing.public_bytes(Encoding.DER)
    assert refusal(cloud.foreign_evidence(NONCE, certificate=certificate), root).code.endswith(".untrusted")
    carried = cloud.foreign_evidence(NONCE, certificate=certificate, intermediates=[issuing])
    assert authenticate(carried, root, at=NOW).claims.level is Level.MEASURED
    given = replace(root, certificates=(issuing,))
    assert authenticate(cloud.foreign_evidence(NONCE, certificate=certificate), given, at=NOW)


def test_an_anchor_in_the_evidence_is_none(cloud: FakeTPM, ca: EndorsementCA, foreign_ca: EndorsementCA) -> None:
    everything = [item.public_bytes(Encoding.DER) for item in (ca.issuing, ca.root)]
    evidence = cloud.foreign_evidence(NONCE, certificate=certificate_of(ca, cloud), intermediates=everything)
    assert refusal(evidence, foreign_ca.endorsements()).code == "tee.tpm.ak_certificate.untrusted"
    assert refusal(evidence, Endorsements(roots=())).code == "tee.tpm.no_roots"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"not_after": NOW - timedelta(hours=1)}, "expired"),
        ({"not_before": NOW + timedelta(hours=1)}, "not_yet_valid"),
        ({"digital_signature": False}, "key_usage"),
        ({"key_encipherment": True}, "key_usage"),
        ({"key_agreement": True}, "key_usage"),
        ({"purposes": (AK_PROFILE.purposes[0], EKProfile().purposes[0].__class__("1.3.6.1.5.5.7.3.1"))}, "key_usage"),
        ({"ca": True}, "leaf_is_ca"),
        ({"unknown_critical": True}, "critical_extension"),
    ],
)
def test_an_ak_certificate_that_does_not_hold(
    changes: dict[str, Any], reason: str, cloud: FakeTPM, ca: EndorsementCA
) -> None:
    evidence = cloud.foreign_evidence(NONCE, certificate=certificate_of(ca, cloud, **changes))
    err = refusal(evidence, ca.endorsements())
    assert (type(err), err.code) == (EndorsementError, f"tee.tpm.ak_certificate.{reason}")


@pytest.mark.parametrize("purposes", [(), AK_PROFILE.purposes, (EK_PURPOSE,)])
def test_purposes_that_clouds_write(purposes: Sequence[Any], cloud: FakeTPM, ca: EndorsementCA) -> None:
    evidence = cloud.foreign_evidence(NONCE, certificate=certificate_of(ca, cloud, purposes=tuple(purposes)))
    assert authenticate(evidence, ca.endorsements(), at=NOW)


def test_an_ek_certificate_is_no_certificate_of_an_ak(
    cloud: FakeTPM, ca: EndorsementCA, rsa_ak: rsa.RSAPrivateKey
) -> None:
    evidence = cloud.foreign_evidence(NONCE, certificate=ca.issue(rsa_ak.public_key()))
    assert refusal(evidence, ca.endorsements()).code == "tee.tpm.ak_certificate.key_usage"


def test_a_genuine_certificate_of_another_ak(cloud: FakeTPM, tpm: FakeTPM, ca: EndorsementCA) -> None:
    err = refusal(cloud.foreign_evidence(NONCE, certificate=certificate_of(ca, tpm)), ca.endorsements())
    assert (type(err), err.code) == (EvidenceError, "tee.tpm.ak_certificate.key")


def test_nothing_vouches_for_a_bare_ak(cloud: FakeTPM, ca: EndorsementCA) -> None:
    for key_only in (False, True):
        err = refusal(cloud.foreign_evidence(NONCE, key_only=key_only), ca.endorsements())
        assert err.code == "tee.tpm.no_ek_certificate"


@pytest.mark.parametrize("key_only", [False, True])
@pytest.mark.parametrize("level", [Level.MEASURED, Level.HARDWARE])
def test_an_ak_that_the_owner_trusts(key_only: bool, level: Level, cloud: FakeTPM) -> None:
    found = authenticate(cloud.foreign_evidence(NONCE, key_only=key_only), key_root(cloud, level), at=NOW)
    assert found.claims.level is level
    assert any("attributes of the AK" in item.reason for item in found.unchecked)
    assert any("trusts the key itself" in item.reason for item in found.unchecked)


def test_a_trusted_key_is_that_key_and_of_this_technology(cloud: FakeTPM, tpm: FakeTPM) -> None:
    evidence = cloud.foreign_evidence(NONCE, key_only=True)
    assert refusal(evidence, key_root(tpm)).code == "tee.tpm.no_ek_certificate"
    other = Endorsements(roots=tuple(replace(root, tee="nitro") for root in key_root(cloud).roots))
    assert refusal(evidence, other).code == "tee.tpm.no_ek_certificate"


def test_a_trusted_key_is_no_ca(cloud: FakeTPM, ca: EndorsementCA, tpm: FakeTPM) -> None:
    """A configured AK must not make its owner's certificate check find an empty or broken list of CAs."""
    evidence = cloud.foreign_evidence(NONCE, certificate=certificate_of(ca, cloud))
    assert refusal(evidence, key_root(tpm)).code == "tee.tpm.no_roots"


def test_an_enrolled_guest_may_be_verified_later_by_its_ak(tpm: FakeTPM) -> None:
    """Without the session's secret the activation says nothing; an owner who kept the AK needs none."""
    evidence = Evidence(tee="tpm", body=tpm.attest(bytes(48), b"whatever"))
    assert authenticate(evidence, key_root(tpm), at=NOW).claims.level is Level.MEASURED


# Keys


@pytest.mark.parametrize(
    "attributes",
    [commands.AK_ATTRIBUTES & ~c.RESTRICTED, commands.AK_ATTRIBUTES & ~c.FIXED_TPM, commands.AK_ATTRIBUTES | c.DECRYPT],
)
def test_attributes_are_judged_where_they_are_known(attributes: int, ca: EndorsementCA, ek: rsa.RSAPrivateKey) -> None:
    fake = FakeTPM(ca, ak_attributes=attributes, ek=ek)
    for endorsements in (key_root(fake), ca.endorsements()):
        evidence = fake.foreign_evidence(NONCE, certificate=certificate_of(ca, fake))
        assert refusal(evidence, endorsements).code == "tee.tpm.ak_attributes"


def test_schemes_of_foreign_keys(ca: EndorsementCA, ek: rsa.RSAPrivateKey, rsa_ak: rsa.RSAPrivateKey) -> None:
    for scheme in ((c.ALG_RSAPSS, c.ALG_SHA256), (c.ALG_RSASSA, c.ALG_SHA1), (c.ALG_NULL, c.ALG_NULL)):
        fake = FakeTPM(ca, ek=ek, ak=rsa_ak, ak_scheme=scheme)
        assert refusal(fake.foreign_evidence(NONCE), key_root(fake)).code == "tee.tpm.ak_key"


def test_an_enrolled_guest_signs_with_p256(ca: EndorsementCA, ek: rsa.RSAPrivateKey, rsa_ak: rsa.RSAPrivateKey) -> None:
    fake = FakeTPM(ca, ek=ek, ak=rsa_ak)
    assert refusal(Evidence(tee="tpm", body=fake.attest(bytes(48), b"x")), key_root(fake)).code == "tee.tpm.ak_key"


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP521R1())])
def test_bare_keys_of_other_kinds(key: ec.EllipticCurvePrivateKey, cloud: FakeTPM) -> None:
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    body = {**cloud.foreign_evidence(NONCE).body, "ak_public": encode_b64(der)}
    assert refusal(Evidence(tee="tpm", body=body), key_root(cloud)).code == "tee.tpm.ak_key"


def test_a_short_rsa_key_and_bytes_that_are_no_key(cloud: FakeTPM) -> None:
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()  # noqa: S505  # that is the point
    der = small.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for data in (der, b"\x30\x00", der + b"\0"):
        body = {**cloud.foreign_evidence(NONCE).body, "ak_public": encode_b64(data)}
        assert refusal(Evidence(tee="tpm", body=body), key_root(cloud)).code == "tee.tpm.ak_key"


def test_a_key_has_one_spelling(tpm: FakeTPM) -> None:
    """The same point, compressed: were both spellings keys, one root would have two names."""
    spki = tpm.ak_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    x, y = spki[-64:-32], spki[-32:]
    head = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")
    body = {**tpm.foreign_evidence(NONCE).body, "ak_public": encode_b64(head + bytes([2 + y[-1] % 2]) + x)}
    err = refusal(Evidence(tee="tpm", body=body), key_root(tpm))
    assert (err.code, "canonical" in err.message) == ("tee.tpm.ak_key", True)


def test_an_enrolled_guest_quotes_all_registers_in_one_spelling(tpm: FakeTPM) -> None:
    wider = QuoteFaults(selections=(PCRSelection(algorithm=c.ALG_SHA256, bitmap=b"\xff\xff\xff\0"),))
    enrolled = Evidence(tee="tpm", body=tpm.attest(bytes(48), b"x", wider))
    assert refusal(enrolled, key_root(tpm)).code == "tee.tpm.pcr_selection"
    partial = Evidence(tee="tpm", body={**tpm.foreign_evidence(NONCE, (1, 8)).body, "ek_certificate": "AAAA"})
    assert refusal(partial, key_root(tpm)).code == "tee.tpm.malformed"


# Revocation


def offering(cloud: FakeTPM, ca: EndorsementCA) -> tuple[Evidence, bytes]:
    certificate = certificate_of(ca, cloud, crl_url=CRL_URL)
    return cloud.foreign_evidence(NONCE, certificate=certificate), certificate


def test_a_list_that_is_offered_and_not_given_leaves_the_verdict_open(cloud: FakeTPM, ca: EndorsementCA) -> None:
    evidence, _ = offering(cloud, ca)
    result = examine(evidence, ca.endorsements())
    assert (result.verdict, result.authentic, result.bound) == (Verdict.UNAVAILABLE, False, Bound.YES)
    accepted = examine(evidence, ca.endorsements(), accept_unchecked_revocation=True)
    assert (accepted.verdict, accepted.authentic) == (Verdict.ACCEPT, True)
    (finding,) = (item for item in accepted.findings if item.code == "tee.tpm.ak_certificate.revocation")
    assert (finding.ok, finding.severity) == (False, Severity.WARNING)


def test_a_list_in_force(cloud: FakeTPM, ca: EndorsementCA) -> None:
    evidence, _ = offering(cloud, ca)
    good = replace(ca.endorsements(), revocation_lists=(ca.revocation_list(),))
    found = authenticate(evidence, good, at=NOW)
    assert all(item.ok for item in found.findings)
    assert found.claims.window is not None
    assert found.claims.window.not_after == NOW + timedelta(days=30)
    assert examine(evidence, good).verdict is Verdict.ACCEPT


def test_a_list_past_its_next_update(cloud: FakeTPM, ca: EndorsementCA) -> None:
    evidence, _ = offering(cloud, ca)
    late = replace(ca.endorsements(), revocation_lists=(ca.revocation_list(next_update=NOW - timedelta(hours=1)),))
    assert examine(evidence, late).verdict is Verdict.UNAVAILABLE
    assert examine(evidence, late, grace=timedelta(days=1)).verdict is Verdict.ACCEPT


@pytest.mark.parametrize("url", ["", CRL_URL])
def test_a_revoked_ak_is_refused_even_where_no_list_was_announced(url: str, cloud: FakeTPM, ca: EndorsementCA) -> None:
    certificate = certificate_of(ca, cloud, crl_url=url)
    evidence = cloud.foreign_evidence(NONCE, certificate=certificate)
    revoked = replace(ca.endorsements(), revocation_lists=(ca.revocation_list([certificate]),))
    assert refusal(evidence, revoked).code == "tee.tpm.ak_certificate.revoked"


def test_a_forged_list(cloud: FakeTPM, ca: EndorsementCA, foreign_ca: EndorsementCA) -> None:
    evidence, _ = offering(cloud, ca)
    forged = replace(ca.endorsements(), revocation_lists=(ca.revocation_list(signing_key=foreign_ca.issuing_key),))
    assert refusal(evidence, forged).code == "tee.tpm.ak_certificate.crl_signature"
    broken = replace(ca.endorsements(), revocation_lists=(b"\x30\x00",))
    assert refusal(evidence, broken).code == "tee.tpm.crl.malformed"


# What was quoted


def test_values_are_taken_by_the_signed_selection(cloud: FakeTPM) -> None:
    registers = (1, 4, 8, 14, 16)
    found = authenticate(cloud.foreign_evidence(NONCE, registers), key_root(cloud), at=NOW)
    assert set(found.claims.registers) == {"pcr01", "pcr04", "pcr08", "pcr14"}  # never what anyone may reset
    assert found.claims.registers["pcr08"] == cloud.read_pcrs()[8]
    assert found.claims.native["pcr4"] == cloud.read_pcrs()[4].hex()
    assert "pcr0" not in found.claims.native


def test_init_data_outside_the_selection_is_bound_to_nothing(cloud: FakeTPM) -> None:
    """The values travel beside the quote: a register 8 that nobody signed must not become the init data."""
    registers = [index for index in range(24) if index != 8]
    evidence = cloud.foreign_evidence(NONCE, registers)
    found = authenticate(evidence, key_root(cloud), at=NOW)
    assert (found.init_data, found.claims.init_data) == (None, b"")
    values = list(cloud.read_pcrs().values())
    with_eight = cloud.foreign_evidence(NONCE, registers, faults=QuoteFaults(values=values))
    assert refusal(with_eight, key_root(cloud)).code == "tee.tpm.pcr_selection"
    result = examine_evidence(
        evidence,
        ExpectedBinding(report_data=NONCE, init_data_digest=INIT_DATA_DIGEST, exact=True),
        key_root(cloud),
        AppraisalPolicy(id="p", tees=frozenset({"tpm"}), levels=frozenset(Level), accept_debug=False, digest=""),
        NOT_ASKED,
        at=NOW,
    )
    assert (result.verdict, result.bound) == (Verdict.REFUSE, Bound.NO)


def select(algorithm: int, bitmap: str) -> tuple[PCRSelection, ...]:
    return (PCRSelection(algorithm=algorithm, bitmap=bytes.fromhex(bitmap)),)


@pytest.mark.parametrize(
    "selections",
    [
        (),
        select(c.ALG_SHA1, "ffffff"),
        select(c.ALG_SHA384, "ffffff"),
        select(c.ALG_SHA256, "ffff7f"),
        select(c.ALG_SHA256, "ffffff01"),
        select(c.ALG_SHA256, "feffff01"),
        select(c.ALG_SHA256, "000000"),
        select(c.ALG_SHA256, ""),
        select(c.ALG_SHA256, "ffffff") + select(c.ALG_SHA1, "000001"),
        select(c.ALG_SHA256, "0f0000") + select(c.ALG_SHA256, "f0ffff"),
    ],
)
def test_selections_that_values_cannot_be_taken_by(selections: tuple[PCRSelection, ...], cloud: FakeTPM) -> None:
    evidence = cloud.foreign_evidence(NONCE, faults=QuoteFaults(selections=selections))
    assert refusal(evidence, key_root(cloud)).code == "tee.tpm.pcr_selection"


def test_edited_values_of_a_partial_quote(cloud: FakeTPM) -> None:
    values = [cloud.read_pcrs()[4], bytes(32)]
    evidence = cloud.foreign_evidence(NONCE, (4, 8), faults=QuoteFaults(values=values))
    assert refusal(evidence, key_root(cloud)).code == "tee.tpm.pcr_digest_mismatch"
    with pytest.raises(FormatRefused) as caught:
        authenticate(cloud.foreign_evidence(NONCE, (4,), faults=QuoteFaults(values=[])), key_root(cloud), at=NOW)
    assert caught.value.code == "tee.tpm.malformed"


@pytest.mark.parametrize(
    ("faults", "code"),
    [
        (QuoteFaults(magic=0), "tee.tpm.attest.magic"),
        (QuoteFaults(kind=0x8017), "tee.tpm.attest.type"),
        (QuoteFaults(hash_algorithm=c.ALG_SHA1), "tee.tpm.signature_algorithm"),
        (QuoteFaults(signing_key=ec.generate_private_key(ec.SECP256R1())), "tee.tpm.signature_algorithm"),
        (QuoteFaults(append_to_message=b"\0"), "tee.tpm.attest.trailing_bytes"),
    ],
)
def test_a_foreign_quote_that_does_not_hold(faults: QuoteFaults, code: str, cloud: FakeTPM) -> None:
    assert refusal(cloud.foreign_evidence(NONCE, faults=faults), key_root(cloud)).code == code


# The nonce


@pytest.mark.parametrize("nonce", [NONCE[:-1], NONCE + b"\0", b"\x01", bytes(32), bytes(64)])
def test_a_nonce_is_compared_whole(nonce: bytes, cloud: FakeTPM) -> None:
    assert examine(cloud.foreign_evidence(NONCE), key_root(cloud), nonce=nonce).bound is Bound.NO


def test_a_quote_without_a_nonce_is_not_acceptable_by_itself(cloud: FakeTPM) -> None:
    evidence = cloud.foreign_evidence(b"")
    unasked = examine(evidence, key_root(cloud), nonce=NOT_ASKED)
    assert (unasked.authentic, unasked.bound, unasked.verdict) == (True, Bound.NOT_REQUESTED, Verdict.REFUSE)
    assert any(item.code == "appraisal.tpm.nonce" and item.refuses for item in unasked.findings)
    assert examine(evidence, key_root(cloud)).bound is Bound.NO
    lenient = PlatformRules(tpm=TPMRules(insecure_accept_empty_nonce=True))
    assert examine(evidence, key_root(cloud), nonce=NOT_ASKED, rules=lenient).verdict is Verdict.ACCEPT


@pytest.mark.parametrize("size", [32, 64])
def test_both_ways_in_which_coco_fits_report_data(size: int, cloud: FakeTPM) -> None:
    digest = hashlib.sha384(b"session").digest()
    slot = authenticate(
        cloud.foreign_evidence(digest[:size].ljust(size, b"\0"), key_only=True), key_root(cloud), at=NOW
    ).freshness
    assert slot.value == slot.fit(digest)
    assert slot.value != slot.fit(hashlib.sha384(b"another").digest())


def test_a_digest_that_was_fitted_otherwise_does_not_match(cloud: FakeTPM) -> None:
    digest = hashlib.sha384(b"session").digest()
    for extra in (digest[:31], digest + bytes(15), digest + bytes(8)):
        slot = authenticate(cloud.foreign_evidence(extra), key_root(cloud), at=NOW).freshness
        assert slot.value != slot.fit(digest)


# The log


def test_a_log_explains_what_is_quoted_and_the_rest_is_said(cloud: FakeTPM) -> None:
    found = authenticate(cloud.foreign_evidence(NONCE, (0, 4, 8, 10)), key_root(cloud), at=NOW)
    assert any("registers 8, 10 against the event log" in item.reason for item in found.unchecked)
    all_explained = authenticate(cloud.foreign_evidence(NONCE, (0, 4)), key_root(cloud), at=NOW)
    assert not any("event log" in item.reason for item in all_explained.unchecked)
    none = authenticate(cloud.foreign_evidence(NONCE, (8,)), key_root(cloud), at=NOW)
    assert any("registers 8 against" in item.reason for item in none.unchecked)


@pytest.mark.parametrize("register", [0, 4, 7])
def test_a_firmware_register_that_the_log_does_not_explain(register: int, cloud: FakeTPM) -> None:
    cloud.extend(register, bytes(32))
    assert refusal(cloud.foreign_evidence(NONCE), key_root(cloud)).code == "tee.tpm.event_log_mismatch"


def test_a_log_that_leaves_a_firmware_register_out(cloud: FakeTPM) -> None:
    events = [item for item in seabios_events() if item.register != 4]
    body = {**cloud.foreign_evidence(NONCE).body, "event_log": encode_b64(build_event_log(events))}
    assert refusal(Evidence(tee="tpm", body=body), key_root(cloud)).code == "tee.tpm.event_log_mismatch"


def test_a_log_without_the_bank_that_is_quoted(cloud: FakeTPM) -> None:
    log = build_event_log([event(4, 4, b"x", algorithms=("sha1",))], algorithms=("sha1",))
    body = {**cloud.foreign_evidence(NONCE).body, "event_log": encode_b64(log)}
    assert refusal(Evidence(tee="tpm", body=body), key_root(cloud)).code == "tee.tpm.eventlog.bank"


def test_sections_of_a_unified_kernel_image_have_their_roles(ca: EndorsementCA, ek: rsa.RSAPrivateKey) -> None:
    fake = FakeTPM(ca, events=ovmf_events(), ek=ek)
    found = authenticate(fake.foreign_evidence(NONCE), key_root(fake), at=NOW)
    assert found.claims.measurements == {
        Role.KERNEL: hashlib.sha256(b"content of .linuxuki").digest(),
        Role.COMMAND_LINE: hashlib.sha256(b"content of .cmdlineuki").digest(),
        Role.INITRD: hashlib.sha256(b"content of .initrduki").digest(),
    }
    partial = authenticate(fake.foreign_evidence(NONCE, (0, 4)), key_root(fake), at=NOW)
    assert partial.claims.measurements == {}  # register 11 was not quoted: its log proves nothing


def test_a_certificate_as_root_is_never_taken_for_a_key(cloud: FakeTPM) -> None:
    odd = Endorsements(roots=(TrustedRoot(tee="tpm", level=Level.MEASURED, name="odd", der=b"\x30\x00"),))
    assert refusal(cloud.foreign_evidence(NONCE), odd).code == "tee.tpm.no_ek_certificate"


def test_claims_may_be_looked_at_before_anybody_vouches(cloud: FakeTPM) -> None:
    claims = read_claims(cloud.foreign_evidence(NONCE, (4, 8), key_only=True)).claims
    assert (claims.level, set(claims.registers)) == (Level.SIMULATED, {"pcr04", "pcr08"})
    with pytest.raises(EvidenceError):
        read_claims(cloud.foreign_evidence(NONCE, faults=QuoteFaults(values=[bytes(32)] * 24)))


def test_more_certificates_than_any_path_has(cloud: FakeTPM, ca: EndorsementCA) -> None:
    issuing = ca.issuing.public_bytes(Encoding.DER)
    evidence = cloud.foreign_evidence(NONCE, certificate=certificate_of(ca, cloud), intermediates=[issuing] * 7)
    assert refusal(evidence, ca.endorsements()).code == "tee.tpm.malformed"


def digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def test_what_the_digests_of_register_11_tell() -> None:
    linux, initrd, other = digest(b".linux\0"), digest(b".initrd\0"), digest(b".osrel\0")
    kernel, second = digest(b"kernel"), digest(b"second")
    assert measured_roles([]) == {}
    assert measured_roles([linux]) == {}
    assert measured_roles([linux, kernel, other, second]) == {Role.KERNEL: kernel}
    assert measured_roles([linux, kernel, linux, second]) == {}  # which of the two runs cannot be told
    # What is extended after the stub's sections may be anything, also by the guest itself.
    assert measured_roles([linux, kernel, digest(b"enter-initrd"), initrd, second, kernel]) == {Role.KERNEL: kernel}
    assert measured_roles([kernel, linux, second]) == {}
