"""The verifier of SNP: what it accepts, and each check of its list seen failing."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.crypto.x509path import load_certificate, serial_number
from cloister.errors import EndorsementError, EvidenceError, FormatRefused, Refused
from cloister.rats.claims import Level, Role
from cloister.rats.endorsement import Endorsements, PinnedRoot, TrustedRoot
from cloister.rats.evidence import AuthenticEvidence, Evidence, ExpectedBinding
from cloister.rats.policy import AppraisalPolicy
from cloister.rats.result import Finding, Severity, Unchecked, Verdict
from cloister.tee.sev_snp.abi import P384_ORDER, VLEK, encode_report, parse_report
from cloister.tee.sev_snp.chain import _KNOWN
from cloister.tee.sev_snp.cocoshape import encode_body
from cloister.tee.sev_snp.products import CLASSIC
from cloister.tee.sev_snp.verifier import authenticate, read_claims, verify_report
from cloister.tee.verification import examine_evidence, verify_evidence
from cloister.testing.snp import (
    INIT_DATA_DIGEST,
    MEASUREMENT,
    NOW,
    REPORT_DATA,
    TCBS,
    FakeAMD,
    FakeChip,
    der_ia5,
    der_integer,
)
from tampering import flipped

DAY = timedelta(days=1)
BINDING = ExpectedBinding(report_data=REPORT_DATA, init_data_digest=INIT_DATA_DIGEST)


@pytest.fixture(autouse=True)
def no_memory() -> None:
    """Each test begins with no chain known."""
    _KNOWN.cache_clear()


@pytest.fixture(scope="module")
def amd() -> FakeAMD:
    """AMD, for Genoa."""
    return FakeAMD("Genoa")


@pytest.fixture(scope="module")
def chip(amd: FakeAMD) -> FakeChip:
    """A chip of it."""
    return FakeChip.made_by(amd)


def accept(chip: FakeChip, evidence: Evidence | None = None, at: datetime = NOW, **report: Any) -> AuthenticEvidence:
    return authenticate(evidence or chip.evidence(**report), chip.amd.endorsements(), at=at)


def refuse(
    chip: FakeChip,
    evidence: Evidence | None = None,
    *,
    endorsements: Endorsements | None = None,
    at: datetime = NOW,
    **report: Any,
) -> str:
    with pytest.raises(Refused) as caught:
        authenticate(evidence or chip.evidence(**report), endorsements or chip.amd.endorsements(), at=at)
    return caught.value.code.removeprefix("tee.sev_snp.")


def der(certificate: Any) -> bytes:
    found: bytes = certificate.public_bytes(Encoding.DER)
    return found


def found(authentic: AuthenticEvidence, code: str) -> list[Finding]:
    return [finding for finding in authentic.findings if finding.code == code]


# --- what is accepted ---


@pytest.mark.parametrize("kind", [0, VLEK])
@pytest.mark.parametrize("version", [2, 3, 5])
@pytest.mark.parametrize("line", ["Milan", "Genoa", "Turin"])
def test_good_evidence_of_every_line_version_and_key(line: str, version: int, kind: int) -> None:
    chip = FakeChip.made_by(FakeAMD(line), kind=kind)
    verified = verify_evidence(chip.evidence(version=version), BINDING, chip.amd.endorsements(), at=NOW)
    claims = verified.claims
    assert (claims.tee, claims.level, claims.debug) == ("snp", Level.HARDWARE, False)
    assert (claims.platform, claims.product) == (f"AMD SEV-SNP, {line}", f"amd-{line.lower()}")
    assert claims.registers == {"measurement": MEASUREMENT}
    assert claims.measurements == {Role.LAUNCH: MEASUREMENT}
    assert claims.tcb is not None
    assert claims.tcb.reported == claims.tcb.current == claims.tcb.committed == claims.tcb.launch == TCBS[line]
    assert claims.native["signing_key"] == ("VLEK" if kind else "VCEK")
    assert claims.native["alias_check_complete"] is True
    assert claims.raw["reported_tcb_microcode"] == TCBS[line]["microcode"]
    assert claims.raw["policy_smt_allowed"] is True
    assert claims.instance_id == ("" if kind else chip.chip_id[: chip.amd.product.hwid_bytes].hex())
    assert ("silicon" in claims.native) is (version >= 3)
    assert ("current_mit_vector" in claims.native) is (version >= 5)
    assert all(finding.ok for finding in verified.findings)


def test_cocos_shape_and_a_raw_report_are_the_same_evidence(chip: FakeChip) -> None:
    report = chip.report(version=5)
    shape = Evidence(tee="snp", body=encode_body(parse_report(report), (("VCEK", chip.vek),)))
    one, other = accept(chip, shape), accept(chip, chip.evidence(report))
    assert one.claims == other.claims
    assert one.freshness == replace(other.freshness, path=one.freshness.path)


def test_certificates_may_come_as_endorsements_or_from_the_host(chip: FakeChip) -> None:
    report = chip.report()
    amd = chip.amd
    bare = Evidence(tee="snp", body={"attestation_report": base64.b64encode(report).decode()})
    assert authenticate(bare, amd.endorsements(chip.vek), at=NOW)
    assert refuse(chip, bare) == "no_vek"
    chain = [{"cert_type": name, "data": list(data)} for name, data in (("VCEK", chip.vek), ("ASK", der(amd.ask)))]
    own = replace(amd.endorsements(), certificates=())
    body = {"attestation_report": base64.b64encode(report).decode(), "cert_chain": chain}
    assert authenticate(Evidence(tee="snp", body=body), own, at=NOW)


def test_a_pinned_root_is_known_by_its_fingerprint_wherever_it_comes_from(chip: FakeChip) -> None:
    import hashlib

    ark = der(chip.amd.ark)
    pin = PinnedRoot(tee="snp", level=Level.HARDWARE, name="ARK-Genoa", sha256=hashlib.sha256(ark).digest())
    given = replace(chip.amd.endorsements(), roots=(), pins=(pin,))
    with_root = replace(given, certificates=(*given.certificates, ark))
    assert authenticate(chip.evidence(), with_root, at=NOW).claims.level is Level.HARDWARE
    assert refuse(chip, endorsements=given) == "vek.untrusted"
    other = replace(with_root, pins=(replace(pin, sha256=bytes(32)),))
    assert refuse(chip, endorsements=other) == "vek.untrusted"


def test_a_raw_report_can_be_verified_by_itself(chip: FakeChip) -> None:
    """As technologies do that embed a report in a structure of their own."""
    roots = (chip.amd.root(tee="az-snp-vtpm"),)
    endorsements = replace(chip.amd.endorsements(), roots=roots)
    verified = verify_report(chip.report(), (chip.vek,), endorsements, at=NOW, tee="az-snp-vtpm")
    assert verified.product.line == "Genoa"
    assert verified.report.measurement == MEASUREMENT
    assert verified.root is roots[0]
    with pytest.raises(EndorsementError):
        verify_report(chip.report(), (chip.vek,), endorsements, at=NOW)


@pytest.mark.parametrize("kind", [2, 4, 6])
def test_claims_are_read_of_a_report_whose_key_is_of_no_known_kind(chip: FakeChip, kind: int) -> None:
    """Nobody verified it: the number is told, and verification refuses it."""
    evidence = chip.evidence(key_info=kind << 2)
    assert read_claims(evidence).claims.native["signing_key"] == f"unknown ({kind})"
    assert refuse(chip, evidence) == "signing_key"


def test_the_window_is_that_of_certificates_and_list(chip: FakeChip) -> None:
    window = accept(chip).claims.window
    assert window is not None
    assert window.not_before == NOW - 30 * DAY
    assert window.not_after == NOW + 335 * DAY  # the list ends before the certificates


# --- 1 ---


def test_1_length_version_and_reserved_bytes(chip: FakeChip) -> None:
    """The signature covers none of the end: it would hold."""
    report = chip.report()
    assert refuse(chip, chip.evidence(report[:-1])) == "report.truncated"
    assert refuse(chip, chip.evidence(report + b"\0")) == "report.trailing_bytes"
    assert refuse(chip, chip.evidence(report[:-1] + b"\1")) == "report.malformed"
    assert refuse(chip, chip.evidence(chip.sign(b"\x04" + report[1:]))) == "report.version"
    assert refuse(chip, signature_algorithm=2) == "report.algorithm"
    assert refuse(chip, chip.evidence(encode_report(replace(parse_report(report), r=0)))) == "report.signature_range"


# --- 2 and 3 ---


def test_2_a_cpu_of_no_line(chip: FakeChip) -> None:
    assert refuse(chip, cpuid=(0x17, 0x31, 0)) == "product"


def test_2_a_cpu_of_another_line_than_the_certificate(chip: FakeChip) -> None:
    assert refuse(chip, cpuid=(25, 1, 1)) == "product"


def test_2_only_the_root_of_the_line_is_an_anchor(chip: FakeChip) -> None:
    """A chain below ARK-Milan for a certificate that says Genoa: AMD has separate roots."""
    milan = FakeAMD("Milan")
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = milan.issue(key.public_key(), hwid=bytes(64), changes={"2": der_ia5("Genoa-B0")})
    liar = replace(chip, key=key, vek=der(certificate))
    both = milan.endorsements()
    both = replace(both, roots=(*both.roots, chip.amd.root()))
    assert refuse(liar, endorsements=both) == "vek.untrusted"


def test_2_an_ark_that_arrives_with_the_evidence_is_worth_nothing(chip: FakeChip) -> None:
    stranger = FakeChip.made_by(FakeAMD("Genoa", name="stranger"))
    table = [("VCEK", stranger.vek), ("ASK", der(stranger.amd.ask)), ("ARK", der(stranger.amd.ark))]
    body = {
        "attestation_report": base64.b64encode(stranger.report()).decode(),
        "cert_chain": [{"cert_type": name, "data": list(data)} for name, data in table],
    }
    assert refuse(chip, Evidence(tee="snp", body=body)) == "vek.untrusted"


def test_2_no_roots(chip: FakeChip) -> None:
    endorsements = chip.amd.endorsements()
    assert refuse(chip, endorsements=replace(endorsements, roots=())) == "no_roots"
    others = tuple(replace(root, tee="tdx") for root in endorsements.roots)
    assert refuse(chip, endorsements=replace(endorsements, roots=others)) == "no_roots"


def test_2_cas_in_the_file_of_roots_are_no_anchors(chip: FakeChip) -> None:
    """An owner's file holds ASK, ARK and ASVK; without the ARK the others anchor nothing."""
    amd = chip.amd
    file = tuple(
        TrustedRoot(tee="snp", level=Level.HARDWARE, name="file", der=der(item)) for item in (amd.ask, amd.ark)
    )
    lists = (amd.revocation_list(),)
    assert authenticate(chip.evidence(), Endorsements(roots=file, revocation_lists=lists), at=NOW)
    assert refuse(chip, endorsements=Endorsements(roots=file[:1], revocation_lists=lists)) == "vek.untrusted"


def test_2_a_root_is_self_signed_and_named_so(chip: FakeChip) -> None:
    amd = chip.amd
    key = ec.generate_private_key(ec.SECP384R1())
    fake = amd.issue(key.public_key(), hwid=bytes(64), subject="ARK-Genoa")
    root = TrustedRoot(tee="snp", level=Level.HARDWARE, name="x", der=der(fake))
    assert refuse(chip, endorsements=replace(amd.endorsements(), roots=(root,))) == "vek.untrusted"


@pytest.mark.parametrize("kind", [2, 3, 7])
def test_3_keys_that_are_not_certified(kind: int, chip: FakeChip) -> None:
    assert refuse(chip, key_info=kind << 2) == "signing_key"


def test_3_the_report_says_which_certificate(chip: FakeChip) -> None:
    assert refuse(chip, key_info=VLEK << 2) == "no_vek"
    cloud = FakeChip.made_by(chip.amd, kind=VLEK)
    assert refuse(cloud, key_info=0) == "no_vek"


def test_3_each_kind_has_its_own_ca(amd: FakeAMD) -> None:
    assert refuse(FakeChip.made_by(amd, by="asvk")) == "vek.untrusted"
    assert refuse(FakeChip.made_by(amd, kind=VLEK, by="ask")) == "vek.untrusted"
    assert refuse(FakeChip.made_by(amd, by="ark")) == "vek.untrusted"


def test_3_subjects_are_exact(amd: FakeAMD) -> None:
    for subject in ("VCEK", "SEV-VCEK-", "sev-vcek", "SEV-VLEK"):
        assert refuse(FakeChip.made_by(amd, subject=subject)) == "no_vek"


def test_3_the_product_name_must_be_of_the_line(chip: FakeChip) -> None:
    assert refuse(FakeChip.made_by(chip.amd, changes={"2": der_ia5("Milan-B0")})) == "product"
    assert refuse(FakeChip.made_by(chip.amd, changes={"2": der_ia5("Venice")})) == "vek.product"


def test_3_version_2_believes_the_certificate_about_the_line() -> None:
    """It carries no CPU; the layout of the TCB follows the certificate, which the root of that line must vouch for."""
    turin = FakeChip.made_by(FakeAMD("Turin"))
    assert accept(turin, version=2).claims.product == "amd-turin"
    liar = FakeChip.made_by(turin.amd, changes={"2": der_ia5("Genoa"), "1": der_integer(0), "4": bytes(64)})
    assert refuse(liar, version=2) == "vek.untrusted"


# --- 4 ---


def test_4_validity(amd: FakeAMD) -> None:
    chip = FakeChip.made_by(amd, start=NOW - DAY, end=NOW + DAY)
    assert accept(chip, at=NOW + DAY)
    assert refuse(chip, at=NOW + 2 * DAY) == "vek.expired"
    assert refuse(chip, at=NOW - 2 * DAY) == "vek.not_yet_valid"
    old = FakeAMD("Genoa", name="old", start=NOW - 9 * DAY, end=NOW - DAY)
    assert refuse(FakeChip.made_by(old)) == "vek.expired"


def test_4_a_chain_that_is_remembered_still_expires(amd: FakeAMD) -> None:
    chip = FakeChip.made_by(amd, start=NOW - DAY, end=NOW + DAY)
    endorsements, evidence = amd.endorsements(), chip.evidence()
    for _ in range(2):
        assert authenticate(evidence, endorsements, at=NOW)
        assert refuse(chip, evidence, endorsements=endorsements, at=NOW + 2 * DAY) == "vek.expired"
        assert refuse(chip, evidence, endorsements=endorsements, at=NOW - 2 * DAY) == "vek.not_yet_valid"


def test_4_a_chain_that_is_remembered_does_not_survive_its_root_or_its_list(chip: FakeChip) -> None:
    endorsements, evidence = chip.amd.endorsements(), chip.evidence()
    assert authenticate(evidence, endorsements, at=NOW)
    stranger = FakeAMD("Genoa", name="stranger")
    assert refuse(chip, evidence, endorsements=replace(endorsements, roots=(stranger.root(),))) == "vek.untrusted"
    revoked = (chip.amd.revocation_list(65537),)
    assert refuse(chip, evidence, endorsements=replace(endorsements, revocation_lists=revoked)) == "revocation.revoked"
    stale = found(authenticate(evidence, endorsements, at=NOW + 336 * DAY), "tee.sev_snp.revocation")
    assert [finding.unknown for finding in stale] == [True]


def kept(at: datetime = NOW) -> bool:
    """Whether a second verification at `at` finds the chain of the first remembered."""
    return any(_KNOWN.get(key, at) is not None for key in tuple(_KNOWN._answers))


def test_4_a_chain_for_which_no_list_was_given_is_remembered_and_stays_open(chip: FakeChip) -> None:
    endorsements, evidence = chip.amd.endorsements(lists=()), chip.evidence()
    first = authenticate(evidence, endorsements, at=NOW)
    assert kept()
    assert authenticate(evidence, endorsements, at=NOW) == first
    assert [finding.unknown for finding in found(first, "tee.sev_snp.revocation")] == [True]
    graced = authenticate(evidence, replace(endorsements, grace=99 * DAY), at=NOW)
    assert [finding.unknown for finding in found(graced, "tee.sev_snp.revocation")] == [True]


def test_4_a_chain_remembered_without_a_list_still_expires(amd: FakeAMD) -> None:
    chip = FakeChip.made_by(amd, start=NOW - DAY, end=NOW + DAY)
    endorsements, evidence = amd.endorsements(lists=()), chip.evidence()
    for _ in range(2):
        assert authenticate(evidence, endorsements, at=NOW)
        assert refuse(chip, evidence, endorsements=endorsements, at=NOW + 2 * DAY) == "vek.expired"
        assert refuse(chip, evidence, endorsements=endorsements, at=NOW - 2 * DAY) == "vek.not_yet_valid"


def test_4_a_chain_remembered_without_a_list_survives_no_other_input(chip: FakeChip) -> None:
    endorsements, evidence = chip.amd.endorsements(lists=()), chip.evidence()
    assert authenticate(evidence, endorsements, at=NOW)
    stranger = FakeAMD("Genoa", name="stranger")
    assert refuse(chip, evidence, endorsements=replace(endorsements, roots=(stranger.root(),))) == "vek.untrusted"
    assert refuse(chip, evidence, endorsements=replace(endorsements, roots=())) == "no_roots"
    for lists, code in (
        ((chip.amd.revocation_list(65537),), "revocation.revoked"),
        ((stranger.revocation_list(),), "revocation.crl_signature"),
        ((b"no list",), "crl.malformed"),
    ):
        assert refuse(chip, evidence, endorsements=replace(endorsements, revocation_lists=lists)) == code
    answered = authenticate(evidence, chip.amd.endorsements(), at=NOW)
    assert [finding.ok for finding in found(answered, "tee.sev_snp.revocation")] == [True]
    without_cas = replace(endorsements, certificates=())
    assert refuse(chip, evidence, endorsements=without_cas) == "vek.untrusted"


def test_4_a_list_that_is_not_in_force_now_may_be_later(chip: FakeChip) -> None:
    """What depends on the time of the question is asked anew."""
    evidence = chip.evidence()
    for start, end in ((NOW + DAY, NOW + 3 * DAY), (NOW - 3 * DAY, NOW - DAY)):
        _KNOWN.cache_clear()
        lists = (chip.amd.revocation_list(start=start, end=end),)
        endorsements = chip.amd.endorsements(lists=lists)
        early = authenticate(evidence, endorsements, at=NOW)
        assert [finding.unknown for finding in found(early, "tee.sev_snp.revocation")] == [True]
        assert not kept()
        there = authenticate(evidence, endorsements, at=start + DAY)
        assert [finding.ok for finding in found(there, "tee.sev_snp.revocation")] == [True]
        assert kept(start + DAY)
        assert not kept(NOW)


def test_4_a_list_that_comes_into_force_ends_what_is_remembered(chip: FakeChip) -> None:
    """A newer list that is in force for a day only takes the place of one that is for a year, and then is stale."""
    short = chip.amd.revocation_list(start=NOW + DAY, end=NOW + 2 * DAY)
    endorsements, evidence = chip.amd.endorsements(lists=(chip.amd.revocation_list(), short)), chip.evidence()
    assert authenticate(evidence, endorsements, at=NOW)
    assert kept(NOW)
    assert not kept(NOW + DAY)
    late = authenticate(evidence, endorsements, at=NOW + 3 * DAY)
    assert [finding.unknown for finding in found(late, "tee.sev_snp.revocation")] == [True]


def test_4_foreign_keys_of_the_same_names(chip: FakeChip) -> None:
    stranger = FakeAMD("Genoa", name="stranger")
    assert refuse(chip, endorsements=stranger.endorsements()) == "vek.untrusted"


def revocation(chip: FakeChip, *lists: bytes, at: datetime = NOW, grace: timedelta = timedelta()) -> list[Finding]:
    endorsements = replace(chip.amd.endorsements(lists=lists), grace=grace)
    return found(authenticate(chip.evidence(), endorsements, at=at), "tee.sev_snp.revocation")


def test_4_a_missing_or_stale_list_leaves_the_answer_open(chip: FakeChip) -> None:
    amd = chip.amd
    good = amd.revocation_list(153)
    assert [finding.ok for finding in revocation(chip, good)] == [True]
    assert [finding.unknown for finding in revocation(chip)] == [True]
    old = amd.revocation_list(start=NOW - 40 * DAY, end=NOW - DAY)
    assert [finding.unknown for finding in revocation(chip, old)] == [True]
    assert [finding.ok for finding in revocation(chip, old, good)] == [True]
    (graced,) = revocation(chip, old, grace=2 * DAY)
    assert (graced.ok, graced.severity) == (False, Severity.WARNING)
    future = amd.revocation_list(start=NOW + DAY, end=NOW + 2 * DAY)
    assert [finding.unknown for finding in revocation(chip, future)] == [True]
    other_line = FakeAMD("Milan").revocation_list()
    assert [finding.unknown for finding in revocation(chip, other_line)] == [True]


def test_4_a_revoked_ca(chip: FakeChip) -> None:
    amd = chip.amd
    revoked = amd.revocation_list(65537)
    for lists in ((revoked,), (amd.revocation_list(), revoked)):
        assert refuse(chip, endorsements=amd.endorsements(lists=lists)) == "revocation.revoked"
    old = amd.revocation_list(65537, start=NOW - 40 * DAY, end=NOW - DAY)
    assert refuse(chip, endorsements=amd.endorsements(lists=(old,))) == "revocation.revoked"
    asvk_only = amd.revocation_list(65793)
    assert authenticate(chip.evidence(), amd.endorsements(lists=(asvk_only,)), at=NOW)
    cloud = FakeChip.made_by(amd, kind=VLEK)
    assert refuse(cloud, endorsements=amd.endorsements(lists=(asvk_only,))) == "revocation.revoked"
    assert authenticate(cloud.evidence(), amd.endorsements(lists=(revoked,)), at=NOW)


def test_4_forged_lists(chip: FakeChip) -> None:
    amd, stranger = chip.amd, FakeAMD("Genoa", name="stranger")
    good = amd.revocation_list()
    for forged in (stranger.revocation_list(), amd.revocation_list(by="ask", issuer="ARK-Genoa")):
        assert refuse(chip, endorsements=amd.endorsements(lists=(good, forged))) == "revocation.crl_signature"
    assert refuse(chip, endorsements=amd.endorsements(lists=(b"no list",))) == "crl.malformed"


def test_4_the_serial_number_zero_is_no_name(amd: FakeAMD) -> None:
    """All VEKs of AMD have it: zero on the list of the ARK is not about a VEK, which the ARK never issued."""
    chip = FakeChip.made_by(amd)
    assert serial_number(load_certificate(chip.vek, code="x.y")) == 0
    listed = x509.load_der_x509_crl(amd.revocation_list(0))
    assert listed.get_revoked_certificate_by_serial_number(0) is not None
    assert [finding.ok for finding in revocation(chip, amd.revocation_list(0))] == [True]
    assert any("serial" in item.reason for item in accept(chip).unchecked)


def test_4_a_list_by_a_ca_that_may_sign_none_is_refused(chip: FakeChip) -> None:
    """AMD's ASK may sign certificates only."""
    amd = chip.amd
    lists = (amd.revocation_list(), amd.revocation_list(by="ask"))
    assert refuse(chip, endorsements=amd.endorsements(lists=lists)) == "revocation.crl_signature"


def test_4_a_list_by_the_issuer_of_the_vek_is_looked_at() -> None:
    """AMD publishes none; where a CA may sign one, it counts, and its zero means every key of that number."""
    amd = FakeAMD("Genoa", cas_sign_lists=True)
    of_ark = amd.revocation_list()
    for serial in (0, 5):
        chip = FakeChip.made_by(amd, serial=serial)
        good = amd.endorsements(lists=(of_ark, amd.revocation_list(9, by="ask")))
        authentic = authenticate(chip.evidence(), good, at=NOW)
        assert [finding.ok for finding in found(authentic, "tee.sev_snp.revocation")] == [True, True]
        assert authentic.unchecked == ()
        old = amd.revocation_list(9, by="ask", start=NOW - 9 * DAY, end=NOW - DAY)
        stale = authenticate(chip.evidence(), amd.endorsements(lists=(of_ark, old)), at=NOW)
        assert [finding.ok for finding in found(stale, "tee.sev_snp.revocation")] == [True, False]
        bad = amd.endorsements(lists=(of_ark, amd.revocation_list(serial, by="ask")))
        assert refuse(chip, endorsements=bad) == "revocation.revoked"


def test_4_a_list_beside_the_report_counts_like_any(chip: FakeChip) -> None:
    amd = chip.amd
    body = dict(chip.evidence().body)
    for serial, wanted in ((153, None), (65537, "revocation.revoked")):
        entry = {"cert_type": "CRL", "data": list(amd.revocation_list(serial))}
        evidence = Evidence(tee="snp", body={**body, "cert_chain": [*body["cert_chain"], entry]})
        if wanted:
            assert refuse(chip, evidence, endorsements=amd.endorsements(lists=())) == wanted
        else:
            authentic = authenticate(evidence, amd.endorsements(lists=()), at=NOW)
            assert all(finding.ok for finding in found(authentic, "tee.sev_snp.revocation"))


# --- 5 to 7 ---


def test_5_every_signed_bit_counts(chip: FakeChip) -> None:
    good = chip.report(version=5)
    for offset in range(0, 0x330, 7):
        data = bytearray(good)
        data[offset] ^= 1 << offset % 8
        with pytest.raises((EvidenceError, FormatRefused, EndorsementError)):
            accept(chip, chip.evidence(bytes(data)))


def test_5_another_key_of_the_same_chip(chip: FakeChip) -> None:
    other = replace(chip, key=ec.generate_private_key(ec.SECP384R1()))
    assert refuse(other) == "signature_invalid"


def test_6_a_certificate_of_another_tcb(amd: FakeAMD) -> None:
    """Signature and chain hold; one test per component, the reserved ones among them."""
    for name, version in TCBS["Genoa"].items():
        chip = FakeChip.made_by(amd)
        other = CLASSIC.encode({**TCBS["Genoa"], name: version + 1})
        assert refuse(chip, reported_tcb=other) == "tcb_mismatch"
    for oid in ("3.4", "3.7", "3.9"):
        chip = FakeChip.made_by(amd, changes={oid: der_integer(1)})
        assert refuse(chip) == "tcb_mismatch"
    reserved = FakeChip.made_by(amd, changes={"3.4": der_integer(0)})
    assert accept(reserved)


def test_6_the_fmc_counts_on_turin() -> None:
    amd = FakeAMD("Turin")
    chip = FakeChip.made_by(amd)
    assert refuse(replace(chip, tcb={**chip.tcb, "fmc": 7})) == "tcb_mismatch"


def test_6_other_tcbs_of_another_layout(chip: FakeChip) -> None:
    for name in ("current_tcb", "committed_tcb", "launch_tcb"):
        assert refuse(chip, **{name: bytes([1] * 8)}) == "report.malformed"


def test_7_another_chip(chip: FakeChip) -> None:
    other = flipped(chip.chip_id, 0)
    assert refuse(chip, chip_id=other) == "chip_id_mismatch"


def test_7_what_a_short_id_leaves_over_is_zero() -> None:
    chip = FakeChip.made_by(FakeAMD("Turin"))
    for index in (8, 63):
        longer = bytearray(chip.chip_id)
        longer[index] = 1
        assert refuse(chip, chip_id=bytes(longer)) == "chip_id_mismatch"


@pytest.mark.parametrize("wrapped", [False, True])
def test_7_a_chip_whose_id_begins_like_an_octet_string(wrapped: bool, amd: FakeAMD) -> None:
    assert accept(FakeChip.made_by(amd, first=0x04, wrapped=wrapped)).claims.instance_id.startswith("04")


def test_7_a_masked_chip_is_said_to_be_unchecked(chip: FakeChip) -> None:
    authentic = accept(chip, chip_id=bytes(64))
    assert authentic.claims.instance_id == ""
    assert any("masks" in item.reason for item in authentic.unchecked)
    assert not found(authentic, "tee.sev_snp.chip_id_mismatch")
    assert found(accept(chip), "tee.sev_snp.chip_id_mismatch")[0].ok


def test_7_a_vlek_is_bound_to_no_chip(amd: FakeAMD) -> None:
    cloud = FakeChip.made_by(amd, kind=VLEK)
    assert any("cloud" in item.reason for item in accept(cloud, chip_id=bytes(range(64))).unchecked)


def test_a_fleets_store_has_the_right_one_among_many(amd: FakeAMD) -> None:
    chips = [FakeChip.made_by(amd) for _ in range(3)]
    older = FakeChip.made_by(amd, tcb={**TCBS["Genoa"], "snp": 20})
    store = amd.endorsements(older.vek, *(item.vek for item in chips))
    for item in chips:
        body = {"attestation_report": base64.b64encode(item.report()).decode()}
        assert authenticate(Evidence(tee="snp", body=body), store, at=NOW).claims.instance_id == item.chip_id.hex()


def test_a_fleets_store_may_hold_other_lines_and_broken_certificates(chip: FakeChip) -> None:
    milan = FakeChip.made_by(FakeAMD("Milan"))
    broken = [FakeChip.made_by(chip.amd, changes={oid: None}) for oid in ("4", "2")]
    masked = {"attestation_report": base64.b64encode(chip.report(chip_id=bytes(64))).decode()}
    store = chip.amd.endorsements(milan.vek, broken[0].vek, chip.vek, broken[1].vek)
    assert authenticate(Evidence(tee="snp", body=masked), store, at=NOW)
    none = chip.amd.endorsements(*(item.vek for item in broken))
    assert refuse(chip, Evidence(tee="snp", body=masked), endorsements=none) == "vek.extension"


# --- 8 to 11 ---


def test_8_to_10_facts_slots_and_claims(chip: FakeChip) -> None:
    authentic = accept(chip, version=5, policy=0xB0000, vmpl=2)
    assert authentic.claims.debug
    assert authentic.claims.native["vmpl"] == 2
    assert (authentic.freshness.size, authentic.freshness.cut) == (64, False)
    assert authentic.init_data is not None
    assert (authentic.init_data.size, authentic.init_data.value) == (32, INIT_DATA_DIGEST)


def test_10_the_whole_field_is_compared(chip: FakeChip) -> None:
    """A digest of 48 bytes is followed by zeros; anything else there is another session."""
    endorsements = chip.amd.endorsements()
    tail = REPORT_DATA.ljust(63, b"\0") + b"\1"
    with pytest.raises(EvidenceError) as caught:
        verify_evidence(chip.evidence(report_data=tail), BINDING, endorsements, at=NOW)
    assert caught.value.code == "evidence.freshness"
    exact = ExpectedBinding(report_data=tail, init_data_digest=Unchecked(reason="not asked"), exact=True)
    assert verify_evidence(chip.evidence(report_data=tail), exact, endorsements, at=NOW)


def test_11_another_signature_of_the_same_report_holds_and_is_the_same_instance(chip: FakeChip) -> None:
    report = parse_report(chip.report())
    twin = encode_report(replace(report, s=P384_ORDER - report.s))
    assert twin != encode_report(report)
    assert accept(chip, chip.evidence(twin)).claims == accept(chip, chip.evidence(encode_report(report))).claims


def test_a_policy_can_go_on_without_lists(chip: FakeChip) -> None:
    policy = AppraisalPolicy(
        id="x", tees=frozenset({"snp"}), levels=frozenset({Level.HARDWARE}), accept_debug=False, digest=""
    )
    given = (chip.evidence(), BINDING, chip.amd.endorsements(lists=()))
    for unchecked, verdict in ((False, Verdict.UNAVAILABLE), (True, Verdict.ACCEPT)):
        result = examine_evidence(
            *given, replace(policy, accept_unchecked_revocation=unchecked), Unchecked(reason="none"), at=NOW
        )
        assert result.verdict is verdict
        assert result.authentic is unchecked


def test_malformed_certificates_beside_the_report(chip: FakeChip) -> None:
    body = dict(chip.evidence().body)
    evidence = Evidence(tee="snp", body={**body, "cert_chain": [{"cert_type": "VCEK", "data": [1, 2]}]})
    assert refuse(chip, evidence) == "certificate.malformed"
