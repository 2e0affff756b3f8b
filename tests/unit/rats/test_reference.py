"""Reference values: entries are conjunctions, sets are disjunctions, nothing matches an empty or expired set."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from cloister.errors import FormatRefused
from cloister.rats.claims import Claims, Level
from cloister.rats.reference import (
    ReferenceEntry,
    appraise_registers,
    encode_reference_entry,
    parse_reference_entries,
    parse_reference_entry,
)
from cloister.wire.limits import REFERENCE_ENTRIES, REFERENCE_SET_BYTES

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
WIRE = {
    "id": "podvm-1",
    "tee": "tpm",
    "registers": {"pcr00": "00" * 32, "pcr04": "11" * 32},
    "not_after": "2026-12-01T00:00:00Z",
    "origin": "podvm sha256:4f0c",
}


def _nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    "data",
    [
        _nested(100_000),
        b'[{"id":' + _nested(100_000) + b"}]",
        b'{"more":' + _nested(100_000) + b"}",
        b'["\xff"]',
        b"[" + b" " * REFERENCE_SET_BYTES + b"]",
        b"[" + b"{}," * REFERENCE_ENTRIES + b"{}]",
    ],
)
def test_what_costs_or_nests_too_much_is_refused(data: bytes) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_reference_entries(data)
    assert caught.value.code == "rats.reference.malformed"


def digest(number: int) -> bytes:
    return bytes([number]) * 32


def entry(name: str = "podvm-1", *, tee: str = "tpm", days: float = 1, **registers: int) -> ReferenceEntry:
    return ReferenceEntry(
        id=name,
        tee=tee,
        registers={key: digest(value) for key, value in registers.items()},
        not_after=NOW + timedelta(days=days),
        origin=f"build of {name}",
    )


def claims(**registers: int) -> Claims:
    return Claims(
        tee="tpm",
        level=Level.MEASURED,
        debug=False,
        registers={key: digest(value) for key, value in registers.items()},
        report_data=b"",
        init_data=b"",
        instance_id="",
    )


def parse(**changes: object) -> ReferenceEntry:
    return parse_reference_entry(json.dumps({**WIRE, **changes}).encode())


# --- text ---


def test_round_trip() -> None:
    parsed = parse()
    assert parse_reference_entry(encode_reference_entry(parsed)) == parsed
    assert parsed.registers["pcr04"] == digest(0x11)
    assert parsed.not_after == datetime(2026, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "changes",
    [
        {"registers": {}},
        {"registers": {"pcr00": ""}},
        {"registers": {"pcr00": "00" * 19}},
        {"registers": {"pcr00": "0" * 63}},
        {"registers": {"pcr00": "zz" * 32}},
        {"registers": {"pcr00": "00" * 32, "pcr04": ""}},
        {"registers": ["00" * 32]},
        {"registers": None},
        {"not_after": "2026-12-01T00:00:00"},
        {"not_after": "tomorrow"},
        {"not_after": None},
        {"unknown": 1},
        {"tee": 5},
    ],
    ids=str,
)
def test_other_entries_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatRefused) as refusal:
        parse(**changes)
    assert refusal.value.code == "rats.reference.malformed"


@pytest.mark.parametrize("name", list(WIRE))
def test_every_field_is_required(name: str) -> None:
    with pytest.raises(FormatRefused):
        parse_reference_entry(json.dumps({key: value for key, value in WIRE.items() if key != name}).encode())


@pytest.mark.parametrize("value", ["00 " * 32, " " + "00" * 32, "00" * 32 + "\n", "0A" * 32])
def test_register_values_have_one_spelling(value: str) -> None:
    """Lower-case hex and nothing else, so that equal entries are equal texts."""
    with pytest.raises(FormatRefused):
        parse(registers={"pcr00": value})


@pytest.mark.parametrize(
    "text", [b"", b"null", b"[]", b"\xff", b"[" * 100_000], ids=["", "null", "list", "utf", "deep"]
)
def test_text_that_is_no_entry_is_refused(text: bytes) -> None:
    with pytest.raises(FormatRefused) as refusal:
        parse_reference_entry(text)
    assert refusal.value.code == "rats.reference.malformed"


# --- comparison ---


def test_match_names_the_entry_and_its_origin() -> None:
    (finding,) = appraise_registers(claims(pcr00=1, pcr04=2, pcr09=9), [entry(pcr00=1, pcr04=2)], at=NOW)
    assert finding.ok
    assert (finding.code, finding.actual, finding.origin) == (
        "appraisal.reference_values",
        "podvm-1",
        "build of podvm-1",
    )


def test_an_entry_is_a_conjunction() -> None:
    (finding,) = appraise_registers(claims(pcr00=1, pcr04=9), [entry(pcr00=1, pcr04=2)], at=NOW)
    assert not finding.ok
    assert finding.code == "appraisal.reference_values.pcr04"


def test_entries_do_not_mix() -> None:
    """One register from each of two entries is no match."""
    entries = [entry("a", pcr00=1, pcr04=2), entry("b", pcr00=3, pcr04=4)]
    findings = appraise_registers(claims(pcr00=1, pcr04=4), entries, at=NOW)
    assert not all(finding.ok for finding in findings)


def test_a_set_is_a_disjunction() -> None:
    entries = [entry("a", pcr00=1), entry("b", pcr00=2)]
    assert appraise_registers(claims(pcr00=2), entries, at=NOW)[0].ok


def test_the_closest_entry_is_explained() -> None:
    entries = [entry("far", pcr00=7, pcr04=7, pcr09=7), entry("near", pcr00=1, pcr04=2, pcr09=7)]
    findings = appraise_registers(claims(pcr00=1, pcr04=2, pcr09=3), entries, at=NOW)
    assert [finding.code for finding in findings] == ["appraisal.reference_values.pcr09"]
    assert findings[0].origin.startswith("near ")
    assert (findings[0].expected, findings[0].actual) == ("07" * 8 + "..", "03" * 8 + "..")


def test_every_differing_register_is_named() -> None:
    findings = appraise_registers(claims(pcr00=9, pcr09=9), [entry(pcr00=1, pcr04=2, pcr09=9)], at=NOW)
    assert [finding.code.rpartition(".")[2] for finding in findings] == ["pcr00", "pcr04"]
    assert findings[1].actual == "absent"


def test_an_absent_register_matches_nothing() -> None:
    assert not appraise_registers(claims(), [entry(pcr00=1)], at=NOW)[0].ok


def test_an_entry_without_registers_matches_nothing() -> None:
    """The parser refuses such an entry; one built in code must not become `accept everything`."""
    assert not all(finding.ok for finding in appraise_registers(claims(pcr00=1), [entry()], at=NOW))


def test_empty_set_refuses() -> None:
    (finding,) = appraise_registers(claims(pcr00=1), [], at=NOW)
    assert (finding.ok, finding.code) == (False, "appraisal.reference_values.empty")
    assert finding.hint


def test_values_of_another_technology_are_as_good_as_none() -> None:
    (finding,) = appraise_registers(claims(pcr00=1), [entry(tee="snp", pcr00=1)], at=NOW)
    assert finding.code == "appraisal.reference_values.empty"


@pytest.mark.parametrize("days", [0, -1e-9, -1])
def test_expired_values_match_nothing(days: float) -> None:
    (finding,) = appraise_registers(claims(pcr00=1), [entry(pcr00=1, days=days)], at=NOW)
    assert (finding.ok, finding.code) == (False, "appraisal.reference_values.expired")
    assert "podvm-1" in finding.actual


def test_an_expired_match_does_not_help_a_live_mismatch() -> None:
    entries = [entry("old", pcr00=1, days=-1), entry("new", pcr00=2)]
    (finding,) = appraise_registers(claims(pcr00=1), entries, at=NOW)
    assert finding.code == "appraisal.reference_values.pcr00"
    assert finding.origin.startswith("new ")


def test_newest_of_the_expired_is_named() -> None:
    entries = [entry("older", pcr00=1, days=-9), entry("newest", pcr00=1, days=-1)]
    (finding,) = appraise_registers(claims(pcr00=1), entries, at=NOW)
    assert finding.actual.startswith("newest ")


def test_time_zones_do_not_prolong_a_life() -> None:
    elsewhere = timezone(timedelta(hours=14))
    late = replace(entry(pcr00=1), not_after=(NOW - timedelta(seconds=1)).astimezone(elsewhere))
    assert not appraise_registers(claims(pcr00=1), [late], at=NOW)[0].ok


class TestInitData:
    POD = "sha256:" + "a" * 64
    OTHER = "sha256:" + "b" * 64

    def entry(self, *init_data: str, **changes: Any) -> ReferenceEntry:
        return parse_reference_entry(json.dumps({**WIRE, "init_data": list(init_data), **changes}).encode())

    def codes(self, init_data: str, *entries: ReferenceEntry) -> dict[str, bool]:
        claims = Claims(
            tee="tpm",
            level=Level.MEASURED,
            debug=False,
            registers={"pcr00": bytes(32), "pcr04": b"\x11" * 32},
            report_data=b"",
            init_data=b"",
            instance_id="",
        )
        found = appraise_registers(claims, entries, at=NOW, init_data=init_data)
        return {finding.code.removeprefix("appraisal.reference_values"): finding.ok for finding in found}

    def test_an_entry_reads_back_with_it(self) -> None:
        entry = self.entry(self.POD, self.OTHER)
        assert entry.init_data == (self.POD, self.OTHER)
        assert parse_reference_entry(encode_reference_entry(entry)) == entry

    def test_an_entry_that_names_it_says_so(self) -> None:
        assert self.codes(self.POD, self.entry(self.OTHER, self.POD)) == {"": True, ".init_data": True}

    def test_an_entry_without_says_nothing(self) -> None:
        assert self.codes(self.POD, self.entry()) == {"": True}

    def test_one_that_names_it_is_preferred_in_any_order(self) -> None:
        for entries in ((self.entry(), self.entry(self.POD)), (self.entry(self.POD), self.entry())):
            assert self.codes(self.POD, *entries) == {"": True, ".init_data": True}

    @pytest.mark.parametrize("init_data", ["", OTHER])
    def test_other_init_data_does_not_match(self, init_data: str) -> None:
        assert self.codes(init_data, self.entry(self.POD)) == {".init_data": False}
        assert self.codes(init_data, self.entry(self.POD), self.entry()) == {"": True}

    @pytest.mark.parametrize("digest", ["", "x", "sha256:", POD.upper(), POD + "a", "md5:" + "0" * 32])
    def test_what_is_no_digest_is_refused(self, digest: str) -> None:
        with pytest.raises(FormatRefused):
            self.entry(digest)

    def test_too_many_are_refused(self) -> None:
        with pytest.raises(FormatRefused):
            self.entry(*[self.POD] * 1025)
