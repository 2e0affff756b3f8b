"""Parsers of Azure evidence: any bytes and any JSON give a value or a typed refusal; a value has one encoding."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import Refused
from cloister.rats.evidence import Evidence
from cloister.tee.azure import abi
from cloister.tee.azure.evidence import AZ_SNP, AZ_TDX, TEES, parse_evidence, read_evidence
from cloister.tee.azure.verifier import authenticate, read_claims
from cloister.testing.azure import NOW, FakeParavisor
from cloister.testing.dcap import FakeIntel, FakePlatform
from cloister.testing.snp import FakeAMD, FakeChip

hardware = st.binary(min_size=1184, max_size=1184)
reports = st.builds(
    abi.HCLReport,
    version=st.sampled_from(abi.VERSIONS),
    report_type=st.just(abi.SNP),
    hardware=hardware,
    variable=st.binary(max_size=300),
) | st.builds(
    abi.HCLReport,
    version=st.sampled_from(abi.VERSIONS),
    report_type=st.just(abi.TDX),
    hardware=hardware.map(lambda data: data[: abi.TD_REPORT_BYTES]),
    variable=st.binary(max_size=300),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@given(report=reports, padding=st.integers(0, 2600))
def test_reports_read_back(report: abi.HCLReport, padding: int) -> None:
    data = abi.encode_hcl_report(report, size=padding)
    assert abi.parse_hcl_report(data) == report


@given(report=reports, at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_is_seen_or_refused(report: abi.HCLReport, at: int, bit: int) -> None:
    data = bytearray(abi.encode_hcl_report(report, size=1800))
    data[at % len(data)] ^= 1 << bit
    try:
        changed = abi.parse_hcl_report(bytes(data))
    except Refused as err:
        assert err.code.startswith("tee.azure.hcl.")
    else:
        assert changed != report
        assert abi.encode_hcl_report(changed, size=1800) == bytes(data)


@given(st.binary(max_size=2000))
def test_any_bytes_give_a_report_or_a_refusal(data: bytes) -> None:
    for prefix in (b"", b"HCLA", b"HCLA\1\0\0\0"):
        try:
            abi.parse_hcl_report(prefix + data)
        except Refused as err:
            assert err.code.startswith("tee.azure.hcl.")


@given(json_values | st.fixed_dictionaries({"keys": json_values, "vm-configuration": json_values}))
def test_any_json_gives_claims_or_a_refusal(value: Any) -> None:
    try:
        abi.parse_runtime_claims(json.dumps(value).encode())
    except Refused as err:
        assert err.code.startswith("tee.azure.hcl.variable.")


@given(st.binary(max_size=300))
def test_any_file_is_a_body_or_a_refusal(data: bytes) -> None:
    for tee in TEES:
        try:
            read_evidence(data, tee=tee)
        except Refused as err:
            assert err.code.startswith(("tee.azure.", "tee.file."))


@functools.cache
def _machines() -> dict[str, FakeParavisor]:
    ak = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    made = (FakeParavisor(FakeChip.made_by(FakeAMD()), ak), FakeParavisor(FakePlatform(FakeIntel()), ak))
    return {machine.tee: machine for machine in made}


@functools.cache
def _good(tee: str, version: int) -> Evidence:
    return _machines()[tee].evidence(version=version)


@pytest.mark.parametrize("tee", TEES)
@given(value=json_values)
def test_any_json_is_refused_as_evidence(tee: str, value: Any) -> None:
    for read in (parse_evidence, read_claims):
        with pytest.raises(Refused):
            read(Evidence(tee=tee, body=value))


@pytest.mark.parametrize("tee", TEES)
@given(version=st.sampled_from([0, 1, 2]), data=st.data())
def test_any_value_of_one_member_is_refused(tee: str, version: int, data: st.DataObject) -> None:
    good = _good(tee, version)
    member = data.draw(st.sampled_from(sorted(good.body)))
    value = data.draw(json_values | st.binary(max_size=200).map(bytes.hex))
    if value == good.body[member] or (member == "version" and value == 1):
        return
    with pytest.raises(Refused):
        authenticate(Evidence(tee=tee, body={**good.body, member: value}), _machines()[tee].endorsements(), at=NOW)


def test_the_members_are_those_of_both_technologies() -> None:
    assert set(_good(AZ_SNP, 2).body) - set(_good(AZ_TDX, 2).body) == {"vcek"}
