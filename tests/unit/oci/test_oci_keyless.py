"""Keyless signatures: what the test Sigstore signs is accepted, and every step refuses with its own code."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from cloister.oci.digest import Digest
from cloister.oci.signing.bundle import (
    SIGN_PREDICATE,
    Bundle,
    LogEntry,
    encode_bundle,
    encode_statement,
    parse_bundle,
)
from cloister.oci.signing.fulcio import CertificateIdentity, load_leaf
from cloister.oci.signing.keyless import (
    KeylessTrust,
    keyless_of_bundle,
    keyless_of_classic,
    verify_keyless,
)
from cloister.oci.signing.requirements import KeylessRequirement
from cloister.oci.signing.timestamp import verify_timestamp
from cloister.oci.signing.trustedroot import parse_trusted_root
from cloister.oci.signing.verify import BundleCandidate, ExactRepository
from cloister.testing.sigstore import TestSigstore, dsse_body
from signing_world import (
    MANIFEST,
    NOW,
    REPOSITORY,
    classic_keyless,
    keyless_bundle,
    manifest_bytes,
    pem_of,
    refused,
    sigstore,
    trust,
)

RULE = ExactRepository(REPOSITORY)


def judge(raw: bytes, believed: KeylessTrust | None = None, artifact: bytes = MANIFEST) -> str:
    requirement = KeylessRequirement(trust=believed or trust(sigstore()), repository=RULE)
    return requirement.judge(BundleCandidate(raw=raw), artifact, NOW).name


def test_a_keyless_bundle_is_accepted() -> None:
    assert judge(keyless_bundle(sigstore())) == "dev@example.test by https://login.example.test"


def test_a_message_signature_over_the_manifest_is_accepted_where_no_repository_is_asked() -> None:
    raw = keyless_bundle(sigstore(), message=True)
    requirement = KeylessRequirement(
        trust=trust(sigstore()), repository=ExactRepository(REPOSITORY, allow_unnamed=True)
    )
    assert requirement.judge(BundleCandidate(raw=raw), MANIFEST, NOW)
    assert refused(lambda: judge(raw)) == "oci.signing.other_repository"
    assert refused(lambda: judge(raw, artifact=manifest_bytes(1))) == "oci.signing.bad_signature"


def test_a_timestamp_may_take_the_place_of_the_promise() -> None:
    assert judge(keyless_bundle(sigstore(), promise=False, stamped=True))
    assert refused(lambda: judge(keyless_bundle(sigstore(), promise=False))) == "oci.signing.no_time"


def other_signature(bundle: Bundle) -> Bundle:
    return msgspec.structs.replace(bundle, signature=parse_bundle(keyless_bundle(sigstore())).signature)


def other_certificate(bundle: Bundle) -> Bundle:
    return msgspec.structs.replace(bundle, certificates=parse_bundle(keyless_bundle(sigstore())).certificates)


def no_certificate(bundle: Bundle) -> Bundle:
    return msgspec.structs.replace(bundle, certificates=(), key_hint="x")


def broken_certificate(bundle: Bundle) -> Bundle:
    return msgspec.structs.replace(bundle, certificates=(b"\x30\x00",))


def other_stamp(bundle: Bundle) -> Bundle:
    return msgspec.structs.replace(bundle, timestamps=(sigstore().stamp(b"another signature"),))


def broken_stamp(bundle: Bundle) -> Bundle:
    return msgspec.structs.replace(bundle, timestamps=(b"\x30\x00",))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (other_signature, "oci.signing.bad_signature"),
        (other_certificate, "oci.signing.bad_signature"),
        (no_certificate, "oci.signing.not_keyless"),
        (broken_certificate, "oci.signing.fulcio.malformed"),
        (other_stamp, "oci.signing.timestamp.untrusted"),
        (broken_stamp, "oci.signing.timestamp.malformed"),
    ],
)
def test_changed_bundles_are_refused(change: Callable[[Bundle], Bundle], code: str) -> None:
    assert refused(lambda: judge(keyless_bundle(sigstore(), change=change))) == code


def changed(**fields: Any) -> Callable[[LogEntry], LogEntry]:
    return lambda entry: msgspec.structs.replace(entry, **fields)


def changed_proof(**fields: Any) -> Callable[[LogEntry], LogEntry]:
    def change(entry: LogEntry) -> LogEntry:
        assert entry.proof is not None
        return msgspec.structs.replace(entry, proof=msgspec.structs.replace(entry.proof, **fields))

    return change


def forged_checkpoint(entry: LogEntry) -> LogEntry:
    assert entry.proof is not None
    text = entry.proof.checkpoint.replace("rekor.test - 1", "rekor.test - 2")
    return msgspec.structs.replace(entry, proof=msgspec.structs.replace(entry.proof, checkpoint=text))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (changed(log_id=b"x" * 32), "oci.signing.rekor.unknown_log"),
        (changed(integrated_seconds=1), "oci.signing.rekor.promise"),
        (changed(log_index=77), "oci.signing.rekor.promise"),
        (changed(promise=b"x"), "oci.signing.rekor.promise"),
        (changed(proof=None), "oci.signing.rekor.unproved"),
        (changed(kind="hashedrekord"), "oci.signing.rekor.other_entry"),
        (changed_proof(log_index=0), "oci.signing.rekor.inclusion"),
        (changed_proof(hashes=()), "oci.signing.rekor.inclusion"),
        (changed_proof(tree_size=999), "oci.signing.rekor.checkpoint"),
        (changed_proof(root=b"x" * 32), "oci.signing.rekor.checkpoint"),
        (changed_proof(checkpoint="no checkpoint"), "oci.signing.rekor.checkpoint"),
        (forged_checkpoint, "oci.signing.rekor.checkpoint"),
    ],
)
def test_changed_log_entries_are_refused(change: Callable[[LogEntry], LogEntry], code: str) -> None:
    assert refused(lambda: judge(keyless_bundle(sigstore(), change_entry=change))) == code


def test_a_signature_that_was_not_logged_is_refused() -> None:
    assert refused(lambda: judge(keyless_bundle(sigstore(), logged=False, stamped=True))) == "oci.signing.rekor.missing"


def test_an_entry_of_another_signature_is_refused() -> None:
    """The log's word is true, and about something else: of the same signer, for the same statement."""
    services = sigstore()
    other = parse_bundle(keyless_bundle(services))
    raw = keyless_bundle(services, change=lambda bundle: msgspec.structs.replace(bundle, entries=other.entries))
    assert refused(lambda: judge(raw)) == "oci.signing.rekor.other_entry"


def test_an_entry_that_names_another_certificate_is_refused() -> None:
    """The very signature, logged under somebody else's certificate."""
    services = sigstore()
    other = load_leaf(parse_bundle(keyless_bundle(services)).certificates[0])

    def logged_otherwise(bundle: Bundle) -> Bundle:
        entry = services.log(dsse_body(b"{}", bundle.payload, bundle.signature, pem_of(other)))
        return msgspec.structs.replace(bundle, entries=(entry,))

    assert refused(lambda: judge(keyless_bundle(services, change=logged_otherwise))) == "oci.signing.rekor.other_entry"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"apiVersion":"0.0.1","kind":"rpm","spec":{}}', "oci.signing.rekor.entry_kind"),
        (b'{"apiVersion":"0.0.1","kind":"dsse","spec":{}}', "oci.signing.rekor.missing_member"),
        (
            dsse_body(b"{}", encode_statement(Digest.of(MANIFEST), repository=REPOSITORY), b"s", b"no certificate"),
            "oci.signing.rekor.other_entry",
        ),
    ],
)
def test_entries_of_other_content_are_refused(body: bytes, code: str) -> None:
    services = sigstore()
    entry = services.log(body)
    raw = keyless_bundle(services, change=lambda bundle: msgspec.structs.replace(bundle, entries=(entry,)))
    assert refused(lambda: judge(raw)) == code


# -- the certificate ------------------------------------------------------------------------------------------------


def test_a_certificate_without_transparency_is_refused() -> None:
    raw = keyless_bundle(sigstore(), sct=False)
    assert refused(lambda: judge(raw)) == "oci.signing.fulcio.no_sct"
    assert judge(raw, trust(sigstore(), require_sct=False))


def test_a_certificate_of_another_log_is_refused() -> None:
    root = json.loads(sigstore().trusted_root())
    root["ctlogs"] = json.loads(TestSigstore(at=NOW).trusted_root())["ctlogs"]
    believed = trust(sigstore(), root=json.dumps(root).encode())
    assert refused(lambda: judge(keyless_bundle(sigstore()), believed)) == "oci.signing.fulcio.sct"


def test_a_signature_before_or_after_the_life_of_its_certificate_is_refused() -> None:
    """Ten minutes: what was logged later may have been signed by whoever found the key."""
    for shift, code in (
        (timedelta(minutes=11), "oci.signing.fulcio.expired"),
        (timedelta(minutes=-1), "not_yet_valid"),
    ):
        services = TestSigstore(at=NOW)
        raw = keyless_bundle(services)
        bundle = parse_bundle(raw)
        services.now += shift
        entry = services.log(bundle.entries[0].body)
        late = keyless_bundle_with(bundle, entry)
        assert refused(lambda late=late, services=services: judge(late, trust(services))).endswith(code)


def keyless_bundle_with(bundle: Bundle, entry: LogEntry) -> bytes:
    return encode_bundle(msgspec.structs.replace(bundle, entries=(entry,)))


def test_another_authority_is_refused() -> None:
    root = json.loads(sigstore().trusted_root())
    root["certificateAuthorities"] = json.loads(TestSigstore(at=NOW).trusted_root())["certificateAuthorities"]
    believed = trust(sigstore(), root=json.dumps(root).encode())
    assert refused(lambda: judge(keyless_bundle(sigstore()), believed)) == "oci.signing.fulcio.untrusted"


@pytest.mark.parametrize("kind", ["certificateAuthorities", "tlogs", "ctlogs"])
def test_what_was_not_yet_trusted_at_the_time_is_refused(kind: str) -> None:
    root = json.loads(sigstore().trusted_root())
    for item in root[kind]:
        (item if kind == "certificateAuthorities" else item["publicKey"])["validFor"] = {
            "start": "2027-01-01T00:00:00Z"
        }
    believed = trust(sigstore(), root=json.dumps(root).encode())
    codes = {"certificateAuthorities": "fulcio.untrusted", "tlogs": "rekor.log_period", "ctlogs": "fulcio.sct"}
    assert refused(lambda: judge(keyless_bundle(sigstore()), believed)) == f"oci.signing.{codes[kind]}"


@pytest.mark.parametrize(
    ("subject", "issuer"),
    [
        ("dev@example.test", "https://login.example.test/"),
        ("Dev@example.test", "https://login.example.test"),
        ("dev@example.test.evil", "https://login.example.test"),
        ("", ""),
    ],
)
def test_another_identity_is_refused(subject: str, issuer: str) -> None:
    believed = trust(sigstore(), identities=(CertificateIdentity(subject=subject, issuer=issuer),))
    assert refused(lambda: judge(keyless_bundle(sigstore()), believed)) == "oci.signing.fulcio.identity"


def test_nobody_is_nobody() -> None:
    assert refused(lambda: judge(keyless_bundle(sigstore()), trust(sigstore(), identities=()))) == (
        "oci.signing.fulcio.identity"
    )


def test_what_the_signature_is_about_must_be_the_image() -> None:
    services = sigstore()
    other = encode_statement(Digest.of(b"other"), repository=REPOSITORY)
    assert refused(lambda: judge(keyless_bundle(services, statement=other))) == "oci.signing.other_image"
    elsewhere = encode_statement(Digest.of(MANIFEST), repository="images.test/other")
    assert refused(lambda: judge(keyless_bundle(services, statement=elsewhere))) == "oci.signing.other_repository"
    unnamed = encode_statement(Digest.of(MANIFEST), repository="")
    assert refused(lambda: judge(keyless_bundle(services, statement=unnamed))) == "oci.signing.other_repository"
    report = encode_statement(Digest.of(MANIFEST), repository=REPOSITORY, predicate_type="https://scan.test/failed")
    assert refused(lambda: judge(keyless_bundle(services, statement=report))) == "oci.signing.statement.predicate"
    assert SIGN_PREDICATE in encode_statement(Digest.of(MANIFEST), repository="").decode()


# -- the classic form -----------------------------------------------------------------------------------------------


def judge_classic(**changes: str) -> str:
    requirement = KeylessRequirement(trust=trust(sigstore()), repository=RULE)
    return requirement.judge(classic_keyless(sigstore(), **changes), MANIFEST, NOW).name


def test_a_classic_keyless_signature_is_accepted() -> None:
    assert judge_classic() == "dev@example.test by https://login.example.test"


@pytest.mark.parametrize(
    ("annotation", "text", "code"),
    [
        ("certificate", "", "oci.signing.not_keyless"),
        ("certificate", "no PEM", "oci.signing.fulcio.malformed"),
        ("chain", "no PEM", "oci.signing.fulcio.malformed"),
        ("bundle", "", "oci.signing.rekor.missing"),
        ("bundle", "{}", "oci.signing.rekor.missing_member"),
        (
            "bundle",
            '{"SignedEntryTimestamp":"AA==","Payload":{"body":"AA==","integratedTime":1,"logIndex":1,"logID":"xx"}}',
            "oci.signing.rekor.malformed",
        ),
    ],
)
def test_changed_classic_signatures_are_refused(annotation: str, text: str, code: str) -> None:
    assert refused(lambda: judge_classic(**{annotation: text})) == code


def test_the_parts_of_both_forms_are_the_same_kind() -> None:
    services = sigstore()
    for parts in (
        keyless_of_bundle(parse_bundle(keyless_bundle(services)), MANIFEST),
        keyless_of_classic(classic_keyless(services)),
    ):
        assert verify_keyless(parts, trust(services)).identity.subject == "dev@example.test"


# -- the trusted root -----------------------------------------------------------------------------------------------


def changed_root(change: Callable[[dict[str, Any]], object]) -> bytes:
    root = json.loads(sigstore().trusted_root())
    change(root)
    return json.dumps(root).encode()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda root: root.update(mediaType="application/json"), "version"),
        (lambda root: root.update(certificateAuthorities=[]), "empty"),
        (lambda root: root.update(extra=1), "unknown_member"),
        (lambda root: root["tlogs"][0].update(hashAlgorithm="SHA1"), "hash"),
        (lambda root: root["tlogs"][0]["publicKey"].pop("validFor"), "missing_member"),
        (lambda root: root["certificateAuthorities"][0].pop("validFor"), "missing_member"),
        (lambda root: root["certificateAuthorities"][0]["validFor"].update(start="yesterday"), "time"),
        (lambda root: root["certificateAuthorities"][0]["validFor"].update(start="2026-01-01T00:00:00"), "time"),
        (lambda root: root["certificateAuthorities"][0]["certChain"].update(certificates=[]), "empty"),
        (
            lambda root: root["certificateAuthorities"][0]["certChain"].update(certificates=[{"rawBytes": "AA=="}]),
            "certificate",
        ),
    ],
)
def test_a_trusted_root_that_is_none_is_refused(change: Callable[[dict[str, Any]], object], code: str) -> None:
    assert refused(lambda: parse_trusted_root(changed_root(change))) == f"oci.signing.trusted_root.{code}"


def test_keys_of_a_trusted_root_are_of_accepted_kinds() -> None:
    raw = changed_root(lambda root: root["tlogs"][0]["publicKey"].update(rawBytes="AAAA"))
    assert refused(lambda: parse_trusted_root(raw)) == "oci.signing.key.malformed"


def test_a_timestamp_with_a_certificate_of_a_negative_serial_number() -> None:
    world = sigstore()
    stamp = bytearray(world.stamp(b"signature"))
    at = stamp.index(b"\xa0\x03\x02\x01\x02\x02") + 7  # behind the version: tag and length of the serial number
    stamp[at] |= 0x80
    root = parse_trusted_root(world.trusted_root())
    assert refused(lambda: verify_timestamp(bytes(stamp), b"signature", root)) == "oci.signing.timestamp.untrusted"


def test_a_timestamp_with_a_certificate_of_no_known_version() -> None:
    world = sigstore()
    stamp = world.stamp(b"signature")
    version = stamp.index(b"\xa0\x03\x02\x01\x02") + 4
    altered = stamp[:version] + b"\x03" + stamp[version + 1 :]
    root = parse_trusted_root(world.trusted_root())
    assert refused(lambda: verify_timestamp(altered, b"signature", root)) == "oci.signing.timestamp.untrusted"
