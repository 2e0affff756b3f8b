"""TPM evidence: each step of the verifier refused for its own reason, and what comes out when all of them hold."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cloister.errors import EndorsementError, EvidenceError, FormatRefused, Refused
from cloister.rats.claims import Level
from cloister.rats.endorsement import Endorsements, TrustedRoot
from cloister.rats.evidence import ExpectedBinding
from cloister.rats.result import Question
from cloister.tee.tpm import commands
from cloister.tee.tpm import constants as c
from cloister.tee.tpm.abi import PCRSelection, encode_public, parse_public
from cloister.tee.tpm.credential import ak_name, bound_credential, challenge_for
from cloister.tee.tpm.eventlog import EV_NO_ACTION, hcrtm_start, parse_event_log, replay_digests
from cloister.tee.tpm.quote import qualified_name
from cloister.tee.tpm.verifier import LOGGED_PCRS
from cloister.tee.verification import verify_evidence
from cloister.testing.eventlog import EV_SEPARATOR, build_event_log, event, ovmf_events, seabios_events
from cloister.testing.tpm import (
    INIT_DATA_DIGEST,
    LAUNCH_BLOB,
    NOW,
    REPORT_DATA,
    EKProfile,
    EndorsementCA,
    FakeTPM,
    QuoteFaults,
    Session,
    run_session,
)
from cloister.wire.base64 import decode_b64, encode_b64
from tampering import flipped

ZEROS = bytes(32)


def session_of(tpm: FakeTPM, faults: QuoteFaults | None = None) -> Session:
    return run_session(tpm, report_data=REPORT_DATA, init_data_digest=INIT_DATA_DIGEST, faults=faults)


def refusal(session: Session, endorsements: Endorsements, **changes: Any) -> Refused:
    """Return the refusal of `session` with members of its evidence or binding changed."""
    body = dict(session.evidence.body)
    quote = dict(body["tpm_quote"])
    binding = session.binding
    at = changes.pop("at", NOW)
    for name, value in changes.items():
        if name in quote:
            quote[name] = value
        elif name in body:
            body[name] = value
        else:
            binding = replace(binding, **{name: value})
    body["tpm_quote"] = quote
    with pytest.raises(Refused) as caught:
        verify_evidence(replace(session.evidence, body=body), binding, endorsements, at=at)
    return caught.value


def test_good_evidence_says_what_was_proved(tpm: FakeTPM, ca: EndorsementCA) -> None:
    session = session_of(tpm)
    result = verify_evidence(session.evidence, session.binding, ca.endorsements(), at=NOW)
    claims = result.claims
    assert (claims.tee, claims.level, claims.debug) == ("tpm", Level.MEASURED, False)
    assert claims.report_data == REPORT_DATA[:32]
    assert claims.init_data == hashlib.sha256(ZEROS + INIT_DATA_DIGEST).digest()
    assert claims.registers["pcr00"] == tpm.read_pcrs()[0]
    assert claims.raw["pcr08"] == claims.init_data.hex()
    assert decode_b64(claims.raw["ak_public"], ceiling=200)[:2] == b"\x30\x59"
    assert claims.raw["clock"] == {"milliseconds": 1000, "reset_count": 1, "restart_count": 0, "safe": True}
    assert {finding.question for finding in result.findings} == {Question.AUTHENTIC, Question.BOUND}
    assert all(finding.ok and finding.code.startswith(("tee.tpm.", "evidence.")) for finding in result.findings)
    assert any("revocation" in item.reason for item in result.unchecked)


def test_the_instance_is_the_endorsement_key_not_the_boot(ca: EndorsementCA, ek: rsa.RSAPrivateKey) -> None:
    def instance(key: rsa.RSAPrivateKey) -> str:
        fake = FakeTPM(ca, ek=key)
        fake.extend(8, INIT_DATA_DIGEST)
        session = session_of(fake)
        return verify_evidence(session.evidence, session.binding, ca.endorsements(), at=NOW).claims.instance_id

    assert instance(ek) == instance(ek)
    assert instance(ek) != instance(rsa.generate_private_key(public_exponent=65537, key_size=2048))


def test_resettable_registers_are_no_claims_that_a_reference_value_could_match(tpm: FakeTPM, ca: EndorsementCA) -> None:
    session = session_of(tpm)
    claims = verify_evidence(session.evidence, session.binding, ca.endorsements(), at=NOW).claims
    assert "pcr16" not in claims.registers
    assert "pcr23" not in claims.registers
    assert len(claims.registers) == 22


# Step 1


@pytest.mark.parametrize(
    "pcrs",
    [
        [],
        [ZEROS.hex()] * 23,
        [ZEROS.hex()] * 25,
        ["AA" * 32] + [ZEROS.hex()] * 23,
        [" " + ZEROS.hex()[1:]] + [ZEROS.hex()] * 23,
        ["00" * 20] * 24,
    ],
)
def test_register_values_must_be_24_lower_case_digests(pcrs: list[str], tpm: FakeTPM, ca: EndorsementCA) -> None:
    err = refusal(session_of(tpm), ca.endorsements(), pcrs=pcrs)
    assert (err.code, err.path) == ("tee.tpm.malformed", "tpm_quote.pcrs")


def test_base64_must_be_canonical(tpm: FakeTPM, ca: EndorsementCA) -> None:
    session = session_of(tpm)
    loose = session.evidence.body["activation"].rstrip("=")
    assert refusal(session, ca.endorsements(), activation=loose).code == "tee.tpm.malformed"
    assert refusal(session, ca.endorsements(), activation="\ud800").code == "tee.tpm.malformed"


def test_coco_evidence_without_an_ek_certificate_has_its_own_code(tpm: FakeTPM, ca: EndorsementCA) -> None:
    session = session_of(tpm)
    coco = {name: session.evidence.body[name] for name in ("ak_public", "tpm_quote")}
    with pytest.raises(EvidenceError) as caught:
        verify_evidence(replace(session.evidence, body=coco), session.binding, ca.endorsements(), at=NOW)
    assert caught.value.code == "tee.tpm.no_ek_certificate"
    assert caught.value.hint


def test_evidence_without_an_activated_credential_has_its_own_code(tpm: FakeTPM, ca: EndorsementCA) -> None:
    assert refusal(session_of(tpm), ca.endorsements(), activation="").code == "tee.tpm.no_activation"


# Step 2


@pytest.mark.parametrize(
    ("profile", "code"),
    [
        (EKProfile(not_after=NOW - timedelta(hours=1)), "tee.tpm.ek_certificate.expired"),
        (EKProfile(not_before=NOW + timedelta(hours=1)), "tee.tpm.ek_certificate.not_yet_valid"),
        (EKProfile(purposes=()), "tee.tpm.ek_certificate.purpose"),
        (EKProfile(key_encipherment=False), "tee.tpm.ek_certificate.key_usage"),
        (EKProfile(digital_signature=True), "tee.tpm.ek_certificate.key_usage"),
        (EKProfile(ca=True), "tee.tpm.ek_certificate.leaf_is_ca"),
        (EKProfile(unknown_critical=True), "tee.tpm.ek_certificate.critical_extension"),
    ],
)
def test_an_ek_certificate_that_does_not_hold(
    profile: EKProfile, code: str, ca: EndorsementCA, ek: rsa.RSAPrivateKey
) -> None:
    fake = FakeTPM(ca, profile=profile, ek=ek)
    fake.extend(8, INIT_DATA_DIGEST)
    err = refusal(session_of(fake), ca.endorsements())
    assert (type(err), err.code) == (EndorsementError, code)


def test_an_ek_certificate_of_a_foreign_ca_with_the_same_name(tpm: FakeTPM, foreign_ca: EndorsementCA) -> None:
    err = refusal(session_of(tpm), foreign_ca.endorsements())
    assert err.code == "tee.tpm.ek_certificate.untrusted"
    assert "swtpm-localca" in err.actual
    assert err.hint


def test_the_root_alone_does_not_vouch_for_what_an_unknown_issuing_ca_signed(tpm: FakeTPM, ca: EndorsementCA) -> None:
    only_root = Endorsements(roots=ca.roots()[1:])
    assert refusal(session_of(tpm), only_root).code == "tee.tpm.ek_certificate.untrusted"


def test_an_expired_root_is_no_root(tpm: FakeTPM, ca: EndorsementCA) -> None:
    late = NOW + timedelta(days=4000)
    fake = FakeTPM(ca, profile=EKProfile(not_after=late + timedelta(days=1)))
    fake.extend(8, INIT_DATA_DIGEST)
    assert refusal(session_of(fake), ca.endorsements(), at=late).code == "tee.tpm.ek_certificate.expired"


def test_a_root_that_is_no_certificate_is_the_owners_mistake(tpm: FakeTPM) -> None:
    broken = Endorsements(roots=(TrustedRoot(tee="tpm", level=Level.MEASURED, name="mine", der=b"\x30\x00"),))
    err = refusal(session_of(tpm), broken)
    assert (err.code, err.path) == ("tee.tpm.root.malformed", "mine")


@pytest.mark.parametrize("level", [Level.HARDWARE, Level.MEASURED])
def test_the_level_is_the_roots_whatever_the_evidence_says(level: Level, tpm: FakeTPM, ca: EndorsementCA) -> None:
    session = session_of(tpm)
    result = verify_evidence(session.evidence, session.binding, ca.endorsements(level), at=NOW)
    assert result.claims.level is level


def test_evidence_cannot_name_its_level(tpm: FakeTPM, ca: EndorsementCA) -> None:
    session = session_of(tpm)
    body = {**session.evidence.body, "level": "hardware"}
    with pytest.raises(FormatRefused, match="level"):
        verify_evidence(replace(session.evidence, body=body), session.binding, ca.endorsements(), at=NOW)


# Step 3


@pytest.mark.parametrize(
    "attributes",
    [
        commands.AK_ATTRIBUTES & ~c.RESTRICTED,
        commands.AK_ATTRIBUTES & ~c.FIXED_TPM,
        commands.AK_ATTRIBUTES & ~c.FIXED_PARENT,
        commands.AK_ATTRIBUTES & ~c.SENSITIVE_DATA_ORIGIN,
        commands.AK_ATTRIBUTES & ~c.SIGN_ENCRYPT,
        commands.AK_ATTRIBUTES | c.DECRYPT,
        commands.AK_ATTRIBUTES | c.ENCRYPTED_DUPLICATION,
        commands.AK_ATTRIBUTES | c.X509_SIGN,
    ],
)
def test_an_ak_that_could_sign_what_no_tpm_made(attributes: int, ca: EndorsementCA, ek: rsa.RSAPrivateKey) -> None:
    fake = FakeTPM(ca, ak_attributes=attributes, ek=ek)
    fake.extend(8, INIT_DATA_DIGEST)
    assert refusal(session_of(fake), ca.endorsements()).code == "tee.tpm.ak_attributes"


@pytest.mark.parametrize("scheme", [(c.ALG_ECDSA, c.ALG_SHA1), (c.ALG_ECDSA, c.ALG_SHA384), (c.ALG_NULL, c.ALG_NULL)])
def test_an_ak_of_another_scheme(scheme: tuple[int, int], ca: EndorsementCA, ek: rsa.RSAPrivateKey) -> None:
    fake = FakeTPM(ca, ak_scheme=scheme, ek=ek)
    fake.extend(8, INIT_DATA_DIGEST)
    assert refusal(session_of(fake), ca.endorsements()).code == "tee.tpm.ak_key"


def test_an_ak_named_by_another_hash(tpm: FakeTPM, ca: EndorsementCA) -> None:
    sha1 = encode_public(replace(parse_public(tpm.ak_public), name_algorithm=c.ALG_SHA1))
    assert refusal(session_of(tpm), ca.endorsements(), ak_public=encode_b64(sha1)).code == "tee.tpm.ak_attributes"


def test_an_ak_off_its_curve(tpm: FakeTPM, ca: EndorsementCA) -> None:
    moved = flipped(tpm.ak_public)
    assert refusal(session_of(tpm), ca.endorsements(), ak_public=encode_b64(moved)).code == "tee.tpm.ak_key"


# Step 4


def test_another_session_secret(tpm: FakeTPM, ca: EndorsementCA) -> None:
    assert refusal(session_of(tpm), ca.endorsements(), session_secret=bytes(32)).code == "tee.tpm.activation_mismatch"


def test_a_session_without_a_secret_accepts_nothing(tpm: FakeTPM, ca: EndorsementCA) -> None:
    session = session_of(tpm)
    empty = encode_b64(bound_credential(b"", tpm.ek_certificate, tpm.name))
    err = refusal(session, ca.endorsements(), session_secret=b"", activation=empty)
    assert err.code == "tee.tpm.no_session_secret"


def test_the_credential_of_another_session(tpm: FakeTPM, ca: EndorsementCA) -> None:
    older, newer = session_of(tpm), session_of(tpm)
    err = refusal(newer, ca.endorsements(), activation=older.evidence.body["activation"])
    assert err.code == "tee.tpm.activation_mismatch"


def test_a_software_ek_cannot_stand_in_for_the_genuine_one_it_names(
    tpm: FakeTPM, ca: EndorsementCA, foreign_ca: EndorsementCA
) -> None:
    """The attack that comparing the secret alone would miss.

    The attacker enrols with an EK of its own making, so it can decrypt the credential, and with an AK of its own
    making; then it presents the stranger's genuine EK certificate beside its AK.
    """
    attacker = FakeTPM(foreign_ca)
    attacker.extend(8, INIT_DATA_DIGEST)
    session = session_of(attacker)
    err = refusal(session, ca.endorsements(), ek_certificate=encode_b64(tpm.ek_certificate))
    assert err.code == "tee.tpm.activation_mismatch"


def test_a_genuine_ek_cannot_vouch_for_another_ak_than_it_enrolled(
    tpm: FakeTPM, ca: EndorsementCA, ek: rsa.RSAPrivateKey
) -> None:
    other = FakeTPM(ca, ek=ek)
    other.extend(8, INIT_DATA_DIGEST)
    session = session_of(tpm)
    stolen = other.attest(REPORT_DATA, decode_b64(session.evidence.body["activation"], ceiling=64))
    body = {**stolen, "ek_certificate": session.evidence.body["ek_certificate"]}
    with pytest.raises(EvidenceError) as caught:
        verify_evidence(replace(session.evidence, body=body), session.binding, ca.endorsements(), at=NOW)
    assert caught.value.code == "tee.tpm.activation_mismatch"


def test_what_the_tpm_recovers_is_not_the_session_secret(tpm: FakeTPM) -> None:
    blob, encrypted, secret = challenge_for(*tpm.enrol())
    recovered = tpm.activate(blob, encrypted)
    assert recovered != secret
    assert recovered == bound_credential(secret, tpm.ek_certificate, ak_name(tpm.ak_public))


# Steps 5 to 9


@pytest.mark.parametrize(
    ("faults", "code"),
    [
        (QuoteFaults(magic=0), "tee.tpm.attest.magic"),
        (QuoteFaults(magic=0xFF544346), "tee.tpm.attest.magic"),
        (QuoteFaults(kind=0x8017), "tee.tpm.attest.type"),
        (QuoteFaults(append_to_message=b"\x00"), "tee.tpm.attest.trailing_bytes"),
        (QuoteFaults(append_to_signature=b"\x00"), "tee.tpm.signature.trailing_bytes"),
        (QuoteFaults(qualified_signer=b""), "tee.tpm.qualified_signer"),
        (QuoteFaults(qualified_signer=qualified_name(c.RH_OWNER, b"\x00\x0b" + bytes(32))), "tee.tpm.qualified_signer"),
        (QuoteFaults(hash_algorithm=c.ALG_SHA1), "tee.tpm.signature_algorithm"),
        (QuoteFaults(signing_key=ec.generate_private_key(ec.SECP256R1())), "tee.tpm.signature_invalid"),
        (QuoteFaults(extra_data=b""), "evidence.freshness"),
        (QuoteFaults(extra_data=bytes(32)), "evidence.freshness"),
        (QuoteFaults(extra_data=REPORT_DATA[:31]), "evidence.freshness"),
        (QuoteFaults(extra_data=REPORT_DATA), "evidence.freshness"),
        (QuoteFaults(selections=()), "tee.tpm.pcr_selection"),
        (
            QuoteFaults(selections=(PCRSelection(algorithm=c.ALG_SHA256, bitmap=b"\xff\xfe\xff"),)),
            "tee.tpm.pcr_selection",
        ),
        (QuoteFaults(selections=(PCRSelection(algorithm=c.ALG_SHA256, bitmap=b"\xff\xff"),)), "tee.tpm.pcr_selection"),
        (
            QuoteFaults(selections=(PCRSelection(algorithm=c.ALG_SHA1, bitmap=b"\xff\xff\xff"),)),
            "tee.tpm.pcr_selection",
        ),
        (
            QuoteFaults(selections=(PCRSelection(algorithm=c.ALG_SHA256, bitmap=b"\xff\xff\xff"),) * 2),
            "tee.tpm.pcr_selection",
        ),
        (QuoteFaults(values=[ZEROS] * 24), "tee.tpm.pcr_digest_mismatch"),
        (QuoteFaults(quoted_values=[ZEROS] * 24), "tee.tpm.pcr_digest_mismatch"),
    ],
)
def test_a_quote_that_does_not_hold(faults: QuoteFaults, code: str, tpm: FakeTPM, ca: EndorsementCA) -> None:
    assert refusal(session_of(tpm, faults), ca.endorsements()).code == code


def test_a_swapped_register_value_outside_the_digest_is_found(tpm: FakeTPM, ca: EndorsementCA) -> None:
    """Values travel beside the quote: an edited register 8 must not become the init data."""
    values = list(tpm.read_pcrs().values())
    values[8] = hashlib.sha256(ZEROS + bytes(32)).digest()
    session = session_of(tpm, QuoteFaults(values=values))
    err = refusal(session, ca.endorsements(), init_data_digest=bytes(32))
    assert err.code == "tee.tpm.pcr_digest_mismatch"


def test_a_quote_for_another_nonce(tpm: FakeTPM, ca: EndorsementCA) -> None:
    err = refusal(session_of(tpm), ca.endorsements(), report_data=bytes(48))
    assert err.code == "evidence.freshness"
    assert err.expected.startswith("0000")
    assert err.actual.startswith("0001")


def test_an_unsafe_clock_is_recorded_not_refused(tpm: FakeTPM, ca: EndorsementCA) -> None:
    session = session_of(tpm, QuoteFaults(safe=False))
    result = verify_evidence(session.evidence, session.binding, ca.endorsements(), at=NOW)
    assert result.claims.raw["clock"]["safe"] is False


# Step 11


def test_an_ovmf_log_replays_and_register_0_is_left_to_its_start_value(
    ca: EndorsementCA, ek: rsa.RSAPrivateKey
) -> None:
    fake = FakeTPM(ca, launch_blob=LAUNCH_BLOB, events=ovmf_events(), ek=ek)
    fake.extend(8, INIT_DATA_DIGEST)
    session = session_of(fake)
    claims = verify_evidence(session.evidence, session.binding, ca.endorsements(), at=NOW).claims
    digests = [bytes.fromhex(text) for text in claims.raw["pcr00_events"]]
    assert len(digests) == 3
    assert replay_digests(digests, hcrtm_start(LAUNCH_BLOB)) == claims.registers["pcr00"]
    assert replay_digests(digests, hcrtm_start(b"another launch")) != claims.registers["pcr00"]


def test_evidence_without_a_log_says_that_none_was_checked(ca: EndorsementCA, ek: rsa.RSAPrivateKey) -> None:
    fake = FakeTPM(ca, ek=ek)
    fake.extend(8, INIT_DATA_DIGEST)
    session = session_of(fake)
    result = verify_evidence(session.evidence, session.binding, ca.endorsements(), at=NOW)
    assert any("event log" in item.reason for item in result.unchecked)
    assert "pcr00_events" not in result.claims.raw


@pytest.mark.parametrize("register", LOGGED_PCRS)
def test_an_extend_that_the_log_does_not_tell(register: int, tpm: FakeTPM, ca: EndorsementCA) -> None:
    tpm.extend(register, bytes(32))
    err = refusal(session_of(tpm), ca.endorsements())
    assert err.code == "tee.tpm.event_log_mismatch"
    assert err.expected.startswith(f"register {register}:")


@pytest.mark.parametrize(
    "change",
    [
        lambda events: events[1:],
        lambda events: events[:-1],
        lambda events: (*events, events[-1]),
        lambda events: (*events[1:], event(1, EV_SEPARATOR, b"other")),
        lambda events: (*events, event(9, EV_SEPARATOR, b"never happened")),
        lambda events: (replace(events[0], kind=EV_NO_ACTION), *events[1:]),
    ],
)
def test_a_log_that_tells_another_story(change: Callable[[Any], Any], tpm: FakeTPM, ca: EndorsementCA) -> None:
    log = encode_b64(build_event_log(change(seabios_events())))
    assert refusal(session_of(tpm), ca.endorsements(), event_log=log).code == "tee.tpm.event_log_mismatch"


def test_every_flipped_digest_bit_of_a_logged_register_is_found(tpm: FakeTPM, ca: EndorsementCA) -> None:
    session = session_of(tpm)
    log = decode_b64(session.evidence.body["event_log"], ceiling=4096)
    tried = start = 0
    for item in parse_event_log(log):
        start = log.index(item.digests["sha256"], start + 1)
        if item.register not in LOGGED_PCRS:
            continue
        for offset in range(start, start + 32, 7):
            flipped = log[:offset] + bytes([log[offset] ^ 0x10]) + log[offset + 1 :]
            err = refusal(session, ca.endorsements(), event_log=encode_b64(flipped))
            assert err.code == "tee.tpm.event_log_mismatch"
            tried += 1
    assert tried > 30


def test_a_malformed_log_is_refused(tpm: FakeTPM, ca: EndorsementCA) -> None:
    err = refusal(session_of(tpm), ca.endorsements(), event_log=encode_b64(b"not a log"))
    assert err.code == "tee.tpm.eventlog.truncated"


# Step 12


def test_register_8_extended_twice(tpm: FakeTPM, ca: EndorsementCA) -> None:
    tpm.extend(8, bytes(32))
    assert refusal(session_of(tpm), ca.endorsements()).code == "evidence.init_data"


def test_register_8_never_extended(ca: EndorsementCA, ek: rsa.RSAPrivateKey) -> None:
    err = refusal(session_of(FakeTPM(ca, ek=ek)), ca.endorsements())
    assert err.code == "evidence.init_data"


def test_stale_init_data(tpm: FakeTPM, ca: EndorsementCA) -> None:
    newer = hashlib.sha256(b"init data of the next version").digest()
    err = refusal(session_of(tpm), ca.endorsements(), init_data_digest=newer)
    assert (err.code, err.path) == ("evidence.init_data", "tpm_quote.pcrs[8]")
    assert err.hint


@pytest.mark.parametrize("size", [0, 20, 31, 33, 48, 64])
def test_init_data_of_another_hash_is_not_cut_or_padded(size: int, tpm: FakeTPM, ca: EndorsementCA) -> None:
    err = refusal(session_of(tpm), ca.endorsements(), init_data_digest=bytes(size))
    assert err.code == "evidence.init_data.length"


def test_a_naive_time_is_a_mistake_of_the_caller(tpm: FakeTPM, ca: EndorsementCA) -> None:
    session = session_of(tpm)
    with pytest.raises(RuntimeError, match="aware"):
        verify_evidence(session.evidence, session.binding, ca.endorsements(), at=NOW.replace(tzinfo=None))


def test_refusals_hold_no_secret(tpm: FakeTPM, ca: EndorsementCA) -> None:
    session = session_of(tpm)
    binding: ExpectedBinding = session.binding
    err = refusal(session, ca.endorsements(), activation=encode_b64(bytes(32)))
    text = str(err.as_dict())
    assert binding.session_secret.hex() not in text
    assert bound_credential(binding.session_secret, tpm.ek_certificate, tpm.name).hex()[:12] not in text
