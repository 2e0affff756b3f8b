"""The paravisor's report: its one form, the JSON in it, and the shapes of the evidence around it."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import Any

import pytest

from cloister.errors import EvidenceError, FormatRefused
from cloister.rats.evidence import Evidence
from cloister.tee.azure.abi import (
    SNP,
    TD_REPORT_BYTES,
    TDX,
    HCLReport,
    encode_hcl_report,
    parse_hcl_report,
    parse_runtime_claims,
)
from cloister.tee.azure.evidence import AZ_SNP, AZ_TDX, parse_evidence, read_evidence
from cloister.testing.azure import NONCE, NV_BYTES, FakeParavisor

VARIABLE = b'{"keys":[]}'
HARDWARE = bytes(range(256)) * 4 + bytes(range(160))
DATA_AT = 32 + 1184


def report(**changes: Any) -> HCLReport:
    made = HCLReport(version=1, report_type=SNP, hardware=HARDWARE, variable=VARIABLE)
    return replace(made, **changes)


@pytest.mark.parametrize("size", [0, 2048, 2600])
@pytest.mark.parametrize("version", [1, 2])
def test_a_report_of_any_nv_index_reads_back(size: int, version: int) -> None:
    for made in (report(version=version), report(version=version, report_type=TDX, hardware=HARDWARE[:1024])):
        data = encode_hcl_report(made, size=size)
        assert parse_hcl_report(data) == made
        assert encode_hcl_report(parse_hcl_report(data), size=size) == data


def test_the_length_is_the_headers_and_not_the_files() -> None:
    data = encode_hcl_report(report())
    for length in range(len(data)):
        with pytest.raises(FormatRefused) as caught:
            parse_hcl_report(data[:length])
        assert caught.value.code == "tee.azure.hcl.truncated"
    with pytest.raises(FormatRefused) as caught:
        parse_hcl_report(data + b"\0\0\1")
    assert caught.value.code == "tee.azure.hcl.trailing_bytes"
    with pytest.raises(FormatRefused) as caught:
        parse_hcl_report(data + bytes(20_000))
    assert caught.value.code == "tee.azure.hcl.too_long"


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"HCLB"),
        (4, struct.pack("<I", 0)),
        (4, struct.pack("<I", 3)),
        (8, struct.pack("<I", DATA_AT + 20 + len(VARIABLE) + 1)),
        (12, struct.pack("<I", 1)),
        (16, struct.pack("<I", 1)),
        (20, b"\1"),
        (31, b"\1"),
        (DATA_AT, struct.pack("<I", 20 + len(VARIABLE) - 1)),
        (DATA_AT + 4, struct.pack("<I", 2)),
        (DATA_AT + 8, struct.pack("<I", 3)),
        (DATA_AT + 12, struct.pack("<I", 2)),
        (DATA_AT + 16, struct.pack("<I", 0xFFFFFFFF)),
    ],
)
def test_the_header_has_one_form(offset: int, value: bytes) -> None:
    data = encode_hcl_report(report())
    with pytest.raises(FormatRefused) as caught:
        parse_hcl_report(data[:offset] + value + data[offset + len(value) :])
    assert caught.value.code == "tee.azure.hcl.malformed"


def test_every_bit_of_header_and_padding_is_fixed() -> None:
    data = encode_hcl_report(report(), size=2048)
    places = [*range(32), *range(DATA_AT, DATA_AT + 20), *range(DATA_AT + 20 + len(VARIABLE), 2048, 61)]
    for offset in places:
        for bit in range(8):
            changed = data[:offset] + bytes([data[offset] ^ 1 << bit]) + data[offset + 1 :]
            with pytest.raises(FormatRefused):
                parse_hcl_report(changed)


def test_a_td_report_leaves_zeros() -> None:
    data = encode_hcl_report(report(report_type=TDX))  # 1184 bytes, of which 160 are not the TD report's
    with pytest.raises(FormatRefused) as caught:
        parse_hcl_report(data)
    assert caught.value.code == "tee.azure.hcl.trailing_bytes"
    assert len(parse_hcl_report(encode_hcl_report(report(report_type=TDX, hardware=bytes(1024)))).hardware) == (
        TD_REPORT_BYTES
    )


# JSON


@pytest.fixture
def runtime(on_snp: FakeParavisor) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(on_snp.variable(NONCE))
    return found


def test_what_the_paravisor_says(runtime: dict[str, Any], on_snp: FakeParavisor) -> None:
    claims = parse_runtime_claims(json.dumps({**runtime, "future": 1}).encode())
    assert claims.user_data == NONCE.ljust(64, b"\0")
    assert (claims.console, claims.secure_boot, claims.tpm) == (False, True, True)
    assert claims.vm_id == "26F8BC30-774E-4290-8E7A-535F3B672AEE"
    silent = parse_runtime_claims(json.dumps({"keys": runtime["keys"], "vm-configuration": {}}).encode())
    assert (silent.user_data, silent.console, silent.secure_boot, silent.vm_id) == (None, None, None, "")


AK = {"kid": "HCLAkPub", "kty": "RSA", "n": "AQAB", "e": "AQAB"}


@pytest.mark.parametrize(
    "changes",
    [
        {"keys": []},
        {"keys": {}},
        {"keys": [AK, AK]},
        {"keys": [{**AK, "kid": "HCLEkPub"}]},
        {"keys": [AK, "key"]},
        {"keys": [AK] + [{}] * 8},
        {"keys": [{**AK, "kty": "EC"}]},
        {"keys": [{**AK, "n": 7}]},
        {"keys": [{**AK, "n": "A+"}]},
        {"keys": [{**AK, "n": "AQ=="}]},
        {"keys": [{**AK, "e": None}]},
        {"vm-configuration": []},
        {"vm-configuration": {"console-enabled": "no"}},
        {"vm-configuration": {"secure-boot": 1}},
        {"vm-configuration": {"secure-boot": None}},
        {"vm-configuration": {"vmUniqueId": 1}},
        {"user-data": ""},
        {"user-data": "00" * 63},
        {"user-data": "00" * 65},
        {"user-data": "ab" * 64},
        {"user-data": None},
        {"user-data": "0x" + "00" * 63},
    ],
)
def test_json_of_another_form(changes: dict[str, Any], runtime: dict[str, Any]) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_runtime_claims(json.dumps({**runtime, **changes}).encode())
    assert caught.value.code == "tee.azure.hcl.variable.malformed"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not_json"),
        (b"[]", "not_json"),
        (b'{"keys":[],"keys":[]}', "duplicate_key"),
        (b"{}", "malformed"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "too_deep"),
    ],
)
def test_what_is_no_such_json(data: bytes, reason: str) -> None:
    with pytest.raises(FormatRefused) as caught:
        parse_runtime_claims(data)
    assert caught.value.code == f"tee.azure.hcl.variable.{reason}"


# Evidence


@pytest.mark.parametrize("version", [0, 1, 2])
def test_every_version_of_the_evidence_says_the_same(
    version: int, on_snp: FakeParavisor, on_tdx: FakeParavisor
) -> None:
    for machine in (on_snp, on_tdx):
        parsed = parse_evidence(machine.evidence(version=version))
        assert (parsed.tee, parsed.version, len(parsed.values)) == (machine.tee, version, 24)
        assert parsed.hcl.report_type == (SNP if machine.tee == AZ_SNP else TDX)
        assert bool(parsed.vcek) is (machine.tee == AZ_SNP)
        assert bool(parsed.td_quote) is (machine.tee == AZ_TDX)


def test_evidence_of_the_other_hardware(on_snp: FakeParavisor, on_tdx: FakeParavisor) -> None:
    snp, tdx = on_snp.evidence(), on_tdx.evidence()
    crossed = [
        replace(snp, body={**snp.body, "hcl_report": tdx.body["hcl_report"]}),
        replace(tdx, body={**tdx.body, "hcl_report": snp.body["hcl_report"]}),
    ]
    for evidence in crossed:
        with pytest.raises(EvidenceError) as caught:
            parse_evidence(evidence)
        assert caught.value.code == "tee.azure.hardware"
    for evidence in (replace(snp, tee=AZ_TDX), replace(tdx, tee=AZ_SNP), replace(snp, tee="snp")):
        with pytest.raises((EvidenceError, FormatRefused)) as other:
            parse_evidence(evidence)
        assert other.value.code == "tee.azure.malformed"


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 3},
        {"version": 0},
        {"version": "1"},
        {"version": True},
        {"vcek": None},
        {"vcek": "AA+A"},
        {"vcek": "AAA"},
        {"vcek": "AAB="},
        {"hcl_report": [1, 2]},
        {"td_quote": "AAAA"},
        {"tpm_quote": {}},
    ],
)
def test_members_of_another_form(changes: dict[str, Any], on_snp: FakeParavisor) -> None:
    evidence = on_snp.evidence()
    with pytest.raises(FormatRefused) as caught:
        parse_evidence(replace(evidence, body={**evidence.body, **changes}))
    assert caught.value.code == "tee.azure.malformed"


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("message", "F" * 20),
        ("message", "fff"),
        ("message", " ff"),
        ("message", "00" * 4097),
        ("signature", "zz"),
        ("pcrs", []),
        ("pcrs", ["00" * 32] * 25),
        ("pcrs", ["00" * 31] * 24),
        ("pcrs", ["AA" * 32] * 24),
        ("pcrs", ["00" * 48] * 24),
    ],
)
def test_quotes_of_another_form(member: str, value: Any, on_snp: FakeParavisor) -> None:
    evidence = on_snp.evidence()
    quote = {**evidence.body["tpm_quote"], member: value}
    with pytest.raises(FormatRefused) as caught:
        parse_evidence(replace(evidence, body={**evidence.body, "tpm_quote": quote}))
    assert caught.value.code == "tee.azure.malformed"


@pytest.mark.parametrize(
    "changes",
    [
        {"report": [256]},
        {"report": [-1]},
        {"report": [0] * 20_000},
        {"vcek": "\xe4"},
        {"vcek": "-----BEGIN CERTIFICATE-----\n" + "A" * 40_000},
        {"extra": 1},
    ],
)
def test_version_0_of_another_form(changes: dict[str, Any], on_snp: FakeParavisor) -> None:
    evidence = on_snp.evidence(version=0)
    with pytest.raises(FormatRefused) as caught:
        parse_evidence(replace(evidence, body={**evidence.body, **changes}))
    assert caught.value.code == "tee.azure.malformed"


def test_version_0_has_one_certificate(on_snp: FakeParavisor) -> None:
    evidence = on_snp.evidence(version=0)
    pem = evidence.body["vcek"]
    for text, code in ((pem * 2, "tee.azure.malformed"), ("", "tee.azure.vcek.malformed")):
        with pytest.raises(FormatRefused) as caught:
            parse_evidence(replace(evidence, body={**evidence.body, "vcek": text}))
        assert caught.value.code == code


def test_files(on_snp: FakeParavisor) -> None:
    evidence = on_snp.evidence()
    body = json.dumps(dict(evidence.body)).encode()
    for data in (body, json.dumps({"primary_evidence": json.loads(body), "additional_evidence": ""}).encode()):
        assert read_evidence(data, tee=AZ_SNP).body == evidence.body
    with pytest.raises(FormatRefused) as caught:
        read_evidence(on_snp.hcl_report(NONCE), tee=AZ_SNP)
    assert caught.value.code == "tee.azure.hcl_alone"
    with pytest.raises(FormatRefused) as caught:
        read_evidence(b"\x00", tee=AZ_SNP)
    assert caught.value.code.startswith("tee.file.")
    assert len(on_snp.hcl_report(NONCE)) == NV_BYTES
    with pytest.raises(FormatRefused):
        parse_evidence(Evidence(tee=AZ_SNP, body=[]))  # type: ignore[arg-type]  # what a stranger may send
