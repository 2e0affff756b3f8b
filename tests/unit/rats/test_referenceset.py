"""Sets of reference values: strict in form; signed ones also in time and version."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cloister.crypto.dsse import sign_envelope
from cloister.crypto.jwt import key_id
from cloister.crypto.references import PAYLOAD_TYPE, SeenVersion, sign_reference_set, verify_reference_set
from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import FormatRefused, Refused
from cloister.rats.reference import Component, ReferenceEntry, encode_reference_entry, parse_reference_entry
from cloister.rats.referenceset import ReferenceSet, encode_reference_set, parse_reference_set, read_reference_values

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
ENTRY = ReferenceEntry(
    id="podvm-1",
    tee="tpm",
    registers={"pcr00": bytes(32)},
    not_after=NOW + timedelta(days=1),
    origin="test",
    components={Component.KERNEL: "sha256:00", Component.VCPUS: "2"},
)
SET = ReferenceSet(id="podvm/tpm", version=7, issued_at=NOW, not_after=NOW + timedelta(days=1), entries=(ENTRY,))
SIGNER = ECDSAP256Signer.generate()
KEYS = {key_id(SIGNER.public_key): SIGNER.public_key}


def document(**changes: Any) -> bytes:  # Any: JSON
    return json.dumps({**json.loads(encode_reference_set(SET)), **changes}).encode()


def test_round_trip() -> None:
    assert parse_reference_set(encode_reference_set(SET)) == SET
    assert json.loads(encode_reference_set(SET))["entries"][0]["components"] == {
        "kernel": "sha256:00",
        "vCPU count": "2",
    }


def test_entries_name_their_components_or_none() -> None:
    assert parse_reference_entry(encode_reference_entry(ENTRY)) == ENTRY
    plain = replace(ENTRY, components={})
    assert b"components" not in encode_reference_entry(plain)
    assert parse_reference_entry(encode_reference_entry(plain)) == plain
    wire = {**json.loads(encode_reference_entry(ENTRY)), "components": {"engine": "x"}}
    with pytest.raises(FormatRefused, match=r"rats\.reference\.malformed"):
        parse_reference_entry(json.dumps(wire).encode())


def entry_wire(**changes: Any) -> dict[str, Any]:  # Any: JSON
    return {**json.loads(encode_reference_entry(ENTRY)), **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"schema": "1"},
        {"id": ""},
        {"id": "../x"},
        {"id": "Set"},
        {"version": 0},
        {"version": -1},
        {"version": 2**53},
        {"version": "7"},
        {"issued_at": "2026-11-26T12:00:00"},
        {"not_after": "2026-11-27T12:00:00"},
        {"not_after": "2026-11-26T12:00:00Z"},
        {"not_after": "tomorrow"},
        {"entries": []},
        {"entries": [entry_wire(), entry_wire()]},
        {"entries": [entry_wire(not_after="2026-11-27T12:00:01Z")]},
        {"entries": [entry_wire(registers={})]},
        {"entries": [entry_wire(registers={"pcr00": "00"})]},
        {"entries": [entry_wire(surprise=1)]},
        {"surprise": 1},
    ],
)
def test_malformed_sets_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_reference_set(document(**changes))
    assert caught.value.code in {"rats.reference.set.malformed", "rats.reference.malformed"}


def test_a_key_twice_is_refused() -> None:
    with pytest.raises(FormatRefused, match=r"rats\.reference\.set\.duplicate_key"):
        parse_reference_set(encode_reference_set(SET).replace(b'"version": 7', b'"version": 7, "version": 8'))


def verify(data: bytes, *, at: datetime = NOW, seen: SeenVersion | None = None) -> ReferenceSet:
    known = {} if seen is None else {SET.id: seen}
    return verify_reference_set(data, KEYS, at=at, seen=known).values


def test_a_signed_set_is_accepted_and_names_what_to_remember() -> None:
    verified = verify_reference_set(sign_reference_set(SET, SIGNER), KEYS, at=NOW, seen={})
    assert verified.values == SET and verified.key_id in KEYS
    assert verified.seen.version == 7 and verified.seen.digest.startswith("sha256:")
    again = verify_reference_set(sign_reference_set(SET, SIGNER), KEYS, at=NOW, seen={SET.id: verified.seen})
    assert again.seen == verified.seen


def test_a_newer_version_replaces_an_older_one_and_other_sets_do_not_matter() -> None:
    newer = sign_reference_set(replace(SET, version=8), SIGNER)
    assert verify(newer, seen=SeenVersion(version=7, digest="sha256:x")).version == 8
    other = replace(SET, id="podvm/snp", version=1)
    seen = {"podvm/tpm": SeenVersion(version=7, digest="sha256:x")}
    assert verify_reference_set(sign_reference_set(other, SIGNER), KEYS, at=NOW, seen=seen).values == other


@pytest.mark.parametrize(
    ("at", "code"),
    [
        (SET.not_after, "expired"),
        (SET.not_after + timedelta(days=400), "expired"),
        (NOW - timedelta(minutes=1), "not_yet_valid"),
    ],
)
def test_out_of_time(at: datetime, code: str) -> None:
    with pytest.raises(Refused) as caught:
        verify(sign_reference_set(SET, SIGNER), at=at)
    assert caught.value.code == f"rats.reference.set.{code}"
    verify(sign_reference_set(SET, SIGNER), at=SET.not_after - timedelta(seconds=1))


def test_an_old_set_and_two_sets_of_one_version_are_refused() -> None:
    signed = sign_reference_set(SET, SIGNER)
    for seen, code in (
        (SeenVersion(version=8, digest="sha256:x"), "rollback"),
        (SeenVersion(version=7, digest="sha256:x"), "equivocation"),
    ):
        with pytest.raises(Refused) as caught:
            verify(signed, seen=seen)
        assert caught.value.code == f"rats.reference.set.{code}"


def test_signatures_of_others_and_altered_sets_are_refused() -> None:
    with pytest.raises(Refused, match=r"crypto\.dsse\.unknown_key"):
        verify(sign_reference_set(SET, ECDSAP256Signer.generate()))
    signed = json.loads(sign_reference_set(SET, SIGNER))
    other = json.loads(sign_reference_set(replace(SET, version=9), SIGNER))
    with pytest.raises(Refused, match=r"crypto\.dsse\.bad_signature"):
        verify(json.dumps({**signed, "payload": other["payload"]}).encode())


def test_what_is_signed_but_no_set_is_refused() -> None:
    with pytest.raises(FormatRefused, match=r"rats\.reference\.set\.malformed"):
        verify(sign_envelope(document(schema=2), SIGNER, payload_type=PAYLOAD_TYPE))
    with pytest.raises(Refused, match=r"crypto\.dsse\.payload_type"):
        verify(sign_envelope(encode_reference_set(SET), SIGNER, payload_type="application/json"))


def test_unsigned_values_are_read_in_every_form() -> None:
    one = encode_reference_entry(ENTRY)
    for data in (encode_reference_set(SET), one, b"[" + one + b"]", b" [" + one + b"] "):
        assert read_reference_values(data) == (ENTRY,)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (sign_reference_set(SET, SIGNER), "rats.reference.set.signed"),
        (document(schema=2), "rats.reference.set.malformed"),
        (b"[]", "rats.reference.malformed"),
        (b"{}", "rats.reference.malformed"),
        (b"", "rats.reference.malformed"),
        (b"{", "rats.reference.set.not_json"),
    ],
)
def test_other_forms_are_refused(data: bytes, code: str) -> None:
    with pytest.raises(FormatRefused) as caught:
        read_reference_values(data)
    assert caught.value.code == code
