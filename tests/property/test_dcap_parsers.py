"""Parsers of DCAP: any bytes give a value or a typed refusal, and a value has exactly one encoding."""

from __future__ import annotations

import functools
import json
import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import Refused
from cloister.rats.endorsement import Document
from cloister.rats.evidence import Evidence
from cloister.tee import uefi
from cloister.tee.dcap import abi
from cloister.tee.dcap.chain import parse_quote_chain
from cloister.tee.dcap.collateral import read_collateral
from cloister.tee.dcap.pck import _read_extension
from cloister.tee.dcap.statements import parse_qe_identity, parse_tcb_info
from cloister.tee.eventlog import Event, append_events, parse_event_log
from cloister.tee.sgx.evidence import parse_evidence as parse_sgx
from cloister.tee.sgx.evidence import read_evidence as read_sgx
from cloister.tee.tdx.abi import parse_ccel_table, tdreport_rtmrs
from cloister.tee.tdx.evidence import parse_evidence as parse_tdx
from cloister.tee.tdx.evidence import read_evidence as read_tdx
from cloister.tee.tdx.verifier import authenticate
from cloister.testing.dcap import (
    NOW,
    FakeIntel,
    FakePlatform,
    Machine,
    enclave_report,
    pem,
    qe_identity_of,
    tcb_info_of,
    td_report,
)
from cloister.testing.eventlog import build_event_log
from cloister.wire.base64 import encode_b64

u16, u32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)


def fixed(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


td_reports = st.builds(
    abi.TDReport,
    *(fixed(size) for size in (16, 48, 48, 8, 8, 8, 48, 48, 48, 48, 48, 48, 48, 48, 64)),
)
td15_reports = st.builds(
    abi.TDReport,
    *(fixed(size) for size in (16, 48, 48, 8, 8, 8, 48, 48, 48, 48, 48, 48, 48, 48, 64, 16, 48)),
)
enclave_reports = st.builds(
    abi.EnclaveReport,
    fixed(16), u32, fixed(12), fixed(16), fixed(16), fixed(32), fixed(32), fixed(32), fixed(32), fixed(64),
    u16, u16, u16, fixed(42), fixed(16), fixed(64),
)  # fmt: skip
signature_data = st.builds(
    abi.SignatureData,
    signature=fixed(64),
    attestation_key=fixed(64),
    qe_report=fixed(384),
    qe_signature=fixed(64),
    authentication=st.binary(max_size=40),
    certification_type=st.just(abi.PCK_CHAIN),
    certification=st.binary(max_size=80),
)


def _quote(version: int, body: Any, data: abi.SignatureData, tail: bytes, rest: tuple[bytes, bytes, bytes]) -> bytes:
    tee = abi.TDX if isinstance(body, abi.TDReport) else abi.SGX
    header = abi.QuoteHeader(version, abi.ECDSA_P256, tee, *rest)
    body_type = None
    if version == 5:
        body_type = {384: 1, 584: 2, 648: 3}[len(body.encode())]
    return abi.Quote(header=header, body_type=body_type, body=body, signed=b"", data=data, tail=tail).encode()


quotes = st.one_of(
    st.tuples(st.just(3), enclave_reports),
    st.tuples(st.just(4), td_reports),
    st.tuples(st.just(5), enclave_reports | td_reports | td15_reports),
).flatmap(
    lambda pair: st.builds(
        _quote,
        st.just(pair[0]),
        st.just(pair[1]),
        signature_data,
        st.binary(max_size=20),
        st.tuples(fixed(4), fixed(16), fixed(20)),
    )
)


@functools.cache
def intel() -> FakeIntel:
    return FakeIntel()


@functools.cache
def good() -> dict[str, bytes]:
    """One good piece of everything that is parsed here."""
    return {
        "td": FakePlatform(intel()).quote(td_report(td15=True)),
        "enclave": FakePlatform(intel(), "SGX").quote(enclave_report()),
        "collateral": intel().collateral("TDX"),
        "tcb": json.dumps(tcb_info_of("TDX")).encode(),
        "identity": json.dumps(qe_identity_of("TDX")).encode(),
        "extension": Machine().extension(),
        "chain": pem(*FakePlatform(intel()).chain).encode(),
    }


PARSERS = {
    "td": abi.parse_quote,
    "enclave": abi.parse_quote,
    "collateral": lambda data: read_collateral(Document(name="", data=data)),
    "tcb": parse_tcb_info,
    "identity": parse_qe_identity,
    "extension": _read_extension,
    "chain": parse_quote_chain,
}


@given(data=quotes)
def test_a_quote_has_one_encoding(data: bytes) -> None:
    assert abi.parse_quote(data).encode() == data


@given(report=td_reports | td15_reports)
def test_a_td_report_has_one_encoding(report: abi.TDReport) -> None:
    assert abi.parse_td_report(report.encode()) == report


@given(report=enclave_reports)
def test_an_enclave_report_has_one_encoding(report: abi.EnclaveReport) -> None:
    assert abi.parse_enclave_report(report.encode()) == report


@given(name=st.sampled_from(sorted(PARSERS)), data=st.binary(max_size=400))
def test_any_bytes_are_a_value_or_a_refusal(name: str, data: bytes) -> None:
    try:
        PARSERS[name](data)
    except Refused:
        return


@settings(max_examples=300)
@given(name=st.sampled_from(sorted(PARSERS)), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_a_value_or_a_refusal(name: str, place: float, bit: int) -> None:
    data = good()[name]
    offset = int(place * len(data))
    try:
        PARSERS[name](data[:offset] + bytes([data[offset] ^ 1 << bit]) + data[offset + 1 :])
    except Refused:
        return


@given(name=st.sampled_from(sorted(PARSERS)), place=st.floats(0, 1, exclude_max=True))
def test_a_cut_is_a_refusal(name: str, place: float) -> None:
    """But for a document: cut before its first telling member it is one of another technology."""
    data = good()[name]
    cut = data[: int(place * len(data))]
    try:
        found = PARSERS[name](cut)
    except Refused:
        return
    if name == "chain":  # between two blocks, or before the last line's end
        assert cut.endswith((b"-----", b"-----\n", b"-----\r\n"))
    else:
        assert name == "collateral"
        assert found.tcb_infos == ()


@given(name=st.sampled_from(["tcb", "identity", "collateral"]), data=st.data())
def test_any_json_is_a_value_or_a_refusal(name: str, data: st.DataObject) -> None:
    document = json.loads(good()[name])
    key = data.draw(st.sampled_from(sorted(document)))
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    document[key] = data.draw(st.recursive(leaves, lambda part: st.lists(part, max_size=3), max_leaves=5))
    try:
        PARSERS[name](json.dumps(document).encode())
    except Refused:
        return


@given(data=st.binary(max_size=200) | quotes)
def test_any_file_is_a_body_or_a_refusal(data: bytes) -> None:
    for read, parse, tee in ((read_tdx, parse_tdx, "tdx"), (read_sgx, parse_sgx, "sgx")):
        try:
            parse(Evidence(tee=tee, body=read(data, tee=tee).body))
        except Refused:
            continue


bodies = st.dictionaries(
    st.sampled_from(["quote", "cc_eventlog", "aa_eventlog", "x"]),
    st.none() | st.integers() | st.text(max_size=20) | st.binary(max_size=60).map(encode_b64),
)


@given(body=bodies)
def test_any_body_is_refused(body: dict[str, Any]) -> None:
    try:
        authenticate(Evidence(tee="tdx", body=body), intel().endorsements("tdx"), at=NOW)
    except Refused:
        return
    raise RuntimeError("evidence without a quote was accepted")


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_of_good_evidence_is_refused(place: float, bit: int) -> None:
    data = good()["td"]
    offset = int(place * len(data))
    changed = data[:offset] + bytes([data[offset] ^ 1 << bit]) + data[offset + 1 :]
    try:
        authenticate(Evidence(tee="tdx", body={"quote": encode_b64(changed)}), intel().endorsements("tdx"), at=NOW)
    except Refused:
        return
    raise RuntimeError(f"bit {bit} of byte {offset} does not count")


kinds = st.sampled_from([1, 4, 6, 13, 0x80000001, 0x80000003, 0x8000000A, 0x8000000B]) | u32
events = st.builds(
    lambda register, kind, digest, data: Event(register=register, kind=kind, digests={"sha384": digest}, data=data),
    st.integers(1, 4),
    kinds.filter(bool),
    fixed(48),
    st.binary(max_size=120),
)


@given(found=st.lists(events, max_size=6).map(tuple), more=st.lists(events, max_size=3).map(tuple))
def test_a_log_is_continued(found: tuple[Event, ...], more: tuple[Event, ...]) -> None:
    log = build_event_log(found, algorithms=("sha384",), fill=b"\xff" * 9)
    assert parse_event_log(append_events(log, more, code="x"), code="x") == (*found, *more)


@given(found=st.lists(events, max_size=6))
def test_what_any_event_says_is_json(found: list[Event]) -> None:
    json.dumps(uefi.event_claims(found))
    uefi.measured_roles(found, kernel=2, options=3, algorithm="sha384")


@given(data=st.binary(max_size=80) | fixed(56) | fixed(1024))
def test_any_table_is_a_value_or_a_refusal(data: bytes) -> None:
    for parse in (parse_ccel_table, tdreport_rtmrs):
        try:
            parse(data)
        except Refused:
            continue


@given(size=st.integers(0, 2**32 - 1))
def test_no_declared_length_is_believed(size: int) -> None:
    data = good()["td"]
    offset = 54 + abi.TD15_BYTES
    changed = data[:offset] + struct.pack("<I", size) + data[offset + 4 :]
    if changed == data:
        return
    try:
        abi.parse_quote(changed)
    except Refused:
        return
    raise RuntimeError("a wrong length was accepted")
