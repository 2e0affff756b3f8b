"""Whoever boots something else, or answers the trust service with something else than a pod's own fresh evidence.

The trust service is the real one, on a clock of the test; the TPM is `FakeTPM`, which signs real structures. Each lie
stands beside the honest answer, which gets the key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from adversary.expect import refusal_of, require_fix
from cloister.protocol.launch import LaunchMeasurement, LaunchProfile, digest_text
from cloister.protocol.resourceuri import ResourcePath
from cloister.rats.reference import ReferenceEntry
from cloister.tee.tpm import constants as c
from cloister.tee.tpm.abi import PCRSelection
from cloister.testing.eventlog import seabios_events
from cloister.testing.tpm import NOW, EKProfile, EndorsementCA, FakeTPM, QuoteFaults
from cloister.trust.keybroker import Answer
from cloister.trust.store.records import DENIED, DenialRecord
from trust_world import (
    CANARY,
    MODEL,
    Guest,
    World,
    b64,
    endorsement_key,
    error_of,
    init_data,
    make_world,
    quick_directory,
    report_data,
    rule,
)


@pytest.fixture
def trust() -> Iterator[World]:
    """A service that releases one resource to one pod."""
    with quick_directory() as directory:
        made = make_world(directory)
        yield made
        made.close()


def denied(trust: World, answer: Answer, code: str, status: int = 403) -> DenialRecord:
    """Fail unless `answer` is the refusal `code`, was recorded and holds no secret; return what the owner reads."""
    body = error_of(answer)
    assert (answer.status, body["code"]) == (status, code)
    assert CANARY not in answer.body
    require_fix(code)
    record = trust.admin.get_denial(body["denial-id"])
    assert record.code == code
    assert trust.admin.list_audit()[-1].decision == DENIED
    return record


def challenged(guest: Guest) -> Guest:
    assert guest.auth().status == 200
    return guest


def answered(guest: Guest, tpm: FakeTPM | None = None, faults: QuoteFaults | None = None) -> Answer:
    """Answer the challenge with a quote that has `faults`."""
    evidence = (tpm or guest.tpm).attest(report_data(guest.nonce, guest.key.public_jwk()), guest.secret, faults)
    return guest.send_attestation(guest.attestation(evidence=evidence))


def gets_the_key(guest: Guest) -> None:
    """The baseline: the same pod, answering honestly."""
    assert guest.open(guest.handshake().resource()) == CANARY


# --- another machine -----------------------------------------------------------------------------------------------

LAUNCH = LaunchMeasurement(
    profile=LaunchProfile.SEABIOS,
    vcpus=2,
    memory_mib=512,
    firmware=digest_text(b"firmware"),
    kernel=digest_text(b"kernel"),
    initrd=digest_text(b"initrd"),
    cmdline=digest_text(b"quiet cloister.verity=1:" + b"0" * 64),
    option_roms={"linuxboot_dma.bin": digest_text(b"option ROM")},
)
LAUNCHES: dict[str, dict[str, Any]] = {
    "kernel line": {"cmdline": digest_text(b"quiet init=/bin/sh cloister.verity=1:" + b"0" * 64)},
    "root hash": {"cmdline": digest_text(b"quiet cloister.verity=1:" + b"f" * 64)},
    "initrd": {"initrd": digest_text(b"initrd with a shell")},
    "kernel": {"kernel": digest_text(b"older kernel")},
    "firmware": {"firmware": digest_text(b"other firmware")},
    "option ROM": {"option_roms": {"linuxboot_dma.bin": digest_text(b"other option ROM")}},
    "further option ROM": {"option_roms": {**LAUNCH.option_roms, "efi-virtio.rom": digest_text(b"x")}},
    "processors": {"vcpus": 1},
    "memory": {"memory_mib": 1024},
}


def launched(trust: World, launch: LaunchMeasurement) -> Guest:
    """A pod on a machine with a genuine TPM that was launched so."""
    guest = trust.guest()
    events = seabios_events()
    guest.tpm = FakeTPM(trust.ca, ek=endorsement_key(), launch_blob=launch.blob(), events=events)
    guest.tpm.extend(8, trust.data.digest)
    return guest


@pytest.fixture
def measured(trust: World) -> World:
    """A service whose owner expects `LAUNCH`."""
    registers = {"pcr00": LAUNCH.pcr0_seabios()}
    entry = ReferenceEntry(id="podvm", tee="tpm", registers=registers, not_after=NOW.replace(year=2027), origin="test")
    trust.admin.add_reference_entries([entry])
    return trust


@pytest.mark.parametrize("what", LAUNCHES)
def test_another_launch_gets_no_key(measured: World, what: str) -> None:
    changed = replace(LAUNCH, **LAUNCHES[what])
    guest = launched(measured, changed).handshake()
    record = denied(measured, guest.resource(), "appraisal.reference_values.pcr00")
    failed = next(finding for finding in record.findings if finding.code == record.code)
    assert LAUNCH.pcr0_seabios().hex().startswith(failed.expected.rstrip("."))
    assert changed.pcr0_seabios().hex().startswith(failed.actual.rstrip("."))
    gets_the_key(launched(measured, LAUNCH))


def test_a_launch_statement_of_the_machine_after_the_start_gets_no_key(measured: World) -> None:
    """The genuine statement, but extended by software that already runs: the start value is another."""
    guest = launched(measured, replace(LAUNCH, kernel=digest_text(b"other")))
    guest.tpm = FakeTPM(measured.ca, ek=endorsement_key())
    for digest in (LAUNCH.digest().removeprefix("sha256:"), digest_text(b"\xff" * 4).removeprefix("sha256:")):
        guest.tpm.extend(0, bytes.fromhex(digest))
    guest.tpm.extend(8, measured.data.digest)
    denied(measured, guest.handshake().resource(), "appraisal.reference_values.pcr00")


def test_other_init_data_gets_no_key(trust: World) -> None:
    """Told as it is: the pod runs, and gets nothing."""
    other = init_data(more="x")
    record = denied(trust, trust.guest(other).handshake().resource(), "trust.release.init_data")
    assert record.init_data == other.digest_text
    gets_the_key(trust.guest())


def test_other_init_data_than_was_measured_is_refused(trust: World) -> None:
    """Told otherwise: the pod was started with its own, and shows the approved."""
    guest = challenged(trust.guest(init_data(more="x")))
    denied(trust, guest.send_attestation(guest.attestation(data=trust.data)), "evidence.init_data")
    gets_the_key(trust.guest())


# --- another TPM, another quote ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["someone-else", "swtpm-localca"])
def test_a_tpm_with_a_foreign_ek_is_refused(trust: World, name: str) -> None:
    """Of another maker, who may call himself what he likes."""
    honest, trust.ca = trust.ca, EndorsementCA(name)
    denied(trust, answered(challenged(trust.guest())), "tee.tpm.ek_certificate.untrusted")
    trust.ca = honest
    gets_the_key(trust.guest())


def test_an_ek_certificate_that_is_no_endorsement_is_refused(trust: World) -> None:
    """The owner's CA signed it, for another purpose."""
    guest = trust.guest()
    profile = EKProfile(purposes=())
    guest.tpm = FakeTPM(trust.ca, ek=endorsement_key(), profile=profile)
    guest.tpm.extend(8, trust.data.digest)
    denied(trust, answered(challenged(guest)), "tee.tpm.ek_certificate.purpose")


def selecting(bitmap: bytes, algorithm: int = c.ALG_SHA256) -> QuoteFaults:
    return QuoteFaults(selections=(PCRSelection(algorithm=algorithm, bitmap=bitmap),))


QUOTES: dict[str, tuple[QuoteFaults, str]] = {
    "without the launch": (selecting(b"\xfe\xff\xff"), "tee.tpm.pcr_selection"),
    "without init data": (selecting(b"\xff\xfe\xff"), "tee.tpm.pcr_selection"),
    "of nothing": (selecting(bytes(3)), "tee.tpm.pcr_selection"),
    "of another bank": (selecting(b"\xff\xff\xff", c.ALG_SHA1), "tee.tpm.pcr_selection"),
    "of other values than are told": (QuoteFaults(values=(b"\x01" * 32,) * c.PCRS), "tee.tpm.pcr_digest_mismatch"),
    "by a key in no TPM": (
        QuoteFaults(signing_key=ec.generate_private_key(ec.SECP256R1())),
        "tee.tpm.signature_invalid",
    ),
    "by another of its keys": (QuoteFaults(qualified_signer=b"\0\x0b" + bytes(32)), "tee.tpm.qualified_signer"),
    "that is no quote": (QuoteFaults(magic=0x11223344), "tee.tpm.attest.magic"),
}


@pytest.mark.parametrize("what", QUOTES)
def test_a_quote_over_other_registers_is_refused(trust: World, what: str) -> None:
    faults, code = QUOTES[what]
    answer = answered(challenged(trust.guest()), faults=faults)
    denied(trust, answer, code, answer.status)
    assert answer.status in (400, 403)
    gets_the_key(trust.guest())


# --- old evidence, old nonces --------------------------------------------------------------------------------------


def test_recorded_evidence_is_refused(trust: World) -> None:
    """A recording of an honest pod, played by somebody without its TPM."""
    recorded = trust.guest().handshake().attestation()["tee-evidence"]["primary_evidence"]
    guest = challenged(trust.guest())
    denied(trust, guest.send_attestation(guest.attestation(evidence=recorded)), "tee.tpm.activation_mismatch")


def test_recorded_evidence_with_the_tpm_at_hand_is_refused(trust: World) -> None:
    """The same, by somebody who can open the new challenge but not have its nonce quoted."""
    old = trust.guest().handshake()
    recorded = old.attestation()["tee-evidence"]["primary_evidence"]
    guest = trust.guest()
    guest.tpm, guest.key = old.tpm, old.key
    challenged(guest)
    recorded["activation"] = b64(guest.secret)
    denied(trust, guest.send_attestation(guest.attestation(evidence=recorded)), "evidence.freshness")
    gets_the_key(old)


def test_a_nonce_is_good_once(trust: World) -> None:
    guest = challenged(trust.guest())
    body = guest.attestation()
    assert guest.send_attestation(body).status == 200
    denied(trust, guest.send_attestation(body), "trust.session.nonce_used", 401)
    denied(trust, guest.send_attestation(), "trust.session.nonce_used", 401)
    trust.restart()
    denied(trust, guest.send_attestation(body), "trust.session.nonce_used", 401)
    assert guest.open(guest.resource()) == CANARY


def test_a_nonce_of_another_session_is_refused(trust: World) -> None:
    guest, other = challenged(trust.guest()), challenged(trust.guest())
    body = guest.attestation(nonce=other.nonce)
    denied(trust, guest.send_attestation(body), "trust.session.nonce_mismatch", 401)


# --- another pod's key ---------------------------------------------------------------------------------------------


def test_the_key_of_another_pod_is_refused(trust: World) -> None:
    """Both pods are approved, each for its own."""
    other = init_data(more="x")
    place = ResourcePath("default", "other", "one")
    trust.admin.put_resource(place, b"of the other pod")
    trust.admin.add_release_rule(rule(other, "default/other/*"))
    first, second = trust.guest().handshake(), trust.guest(other).handshake()
    denied(trust, first.resource(place), "trust.release.init_data")
    denied(trust, second.resource(), "trust.release.init_data")
    assert second.open(second.resource(place)) == b"of the other pod"
    assert first.open(first.resource()) == CANARY


def test_a_key_released_to_another_pod_does_not_open(trust: World) -> None:
    """Whoever carries the answer to another pod, or a session or token to themselves, carries ciphertext."""
    first, second = trust.guest().handshake(), trust.guest().handshake()
    answer = first.resource()
    assert CANARY not in answer.body
    refusal_of("crypto.jwe.not_authentic", second.open, answer)
    assert first.open(answer) == CANARY


def test_a_key_put_in_by_somebody_in_between_is_refused(trust: World) -> None:
    guest = challenged(trust.guest())
    body = guest.attestation()
    body["runtime-data"]["tee-pubkey"] = trust.guest().key.public_jwk()
    denied(trust, guest.send_attestation(body), "evidence.freshness")


def test_a_revoked_pod_gets_no_key_again(trust: World) -> None:
    guest = trust.guest().handshake()
    assert guest.open(guest.resource()) == CANARY
    trust.admin.revoke(trust.data.digest_text)
    denied(trust, guest.resource(), "trust.release.revoked")
    denied(trust, trust.guest().handshake().resource(), "trust.release.revoked")


def test_a_path_without_a_rule_is_never_released(trust: World) -> None:
    guest = trust.guest().handshake()
    place = ResourcePath("other", "key", "x")
    trust.admin.put_resource(place, b"nobody was approved")
    denied(trust, guest.resource(place), "trust.release.no_rule")
    assert guest.open(guest.resource(MODEL)) == CANARY
