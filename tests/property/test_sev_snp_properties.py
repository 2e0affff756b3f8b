"""Parsers of SNP: any bytes and any JSON give a value or a typed refusal, and a value has exactly one encoding."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import Refused
from cloister.rats.evidence import Evidence
from cloister.tee.sev_snp import abi
from cloister.tee.sev_snp.certtable import GUIDS, encode_certificate_table, parse_certificate_table
from cloister.tee.sev_snp.cocoshape import encode_body, encode_shape
from cloister.tee.sev_snp.endorsements import ark_line
from cloister.tee.sev_snp.evidence import parse_evidence, read_evidence
from cloister.tee.sev_snp.products import PRODUCTS, TCBLayout
from cloister.tee.sev_snp.vek import load_vek
from cloister.tee.sev_snp.verifier import authenticate, verify_report
from cloister.testing.snp import NOW, FakeAMD, FakeChip
from cloister.wire.base64 import encode_b64

u8, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (8, 32, 64))
versions = st.tuples(u8, u8, u8)
numbers = st.integers(1, abi.P384_ORDER - 1)


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


def tcbs(layout: TCBLayout) -> st.SearchStrategy[bytes]:
    return st.fixed_dictionaries(dict.fromkeys(layout.places, u8)).map(layout.encode)


@st.composite
def reports(draw: st.DrawFn, *, any_tcb: bool = False) -> abi.Report:
    version = draw(st.sampled_from(abi.VERSIONS))
    product = draw(st.sampled_from(PRODUCTS))
    silicon = draw(st.sampled_from(product.silicon))
    tcb = exactly(8) if any_tcb else tcbs(product.layout)
    cpuid = (silicon.family, draw(st.sampled_from(silicon.models)), draw(u8))
    vectors = (draw(u64), draw(u64)) if version >= abi.WITH_MITIGATIONS else (0, 0)
    hwid = draw(exactly(product.hwid_bytes).filter(lambda item: any(item) and (len(item) == 8 or any(item[8:]))))
    return abi.Report(
        version=version,
        guest_svn=draw(u32),
        policy=draw(st.integers(0, 2**26 - 1)) | 1 << 17,
        family_id=draw(exactly(16)),
        image_id=draw(exactly(16)),
        vmpl=draw(u32),
        signature_algorithm=1,
        current_tcb=draw(tcb),
        platform_info=draw(u64),
        key_info=draw(st.integers(0, 31)),
        report_data=draw(exactly(64)),
        measurement=draw(exactly(48)),
        host_data=draw(exactly(32)),
        id_key_digest=draw(exactly(48)),
        author_key_digest=draw(exactly(48)),
        report_id=draw(exactly(32)),
        report_id_ma=draw(exactly(32)),
        reported_tcb=draw(tcb),
        cpuid=cpuid if version >= abi.WITH_CPUID else None,
        chip_id=hwid.ljust(64, b"\0"),
        committed_tcb=draw(tcb),
        current=draw(versions),
        committed=draw(versions),
        launch_tcb=draw(tcb),
        launch_mitigations=vectors[0],
        current_mitigations=vectors[1],
        r=draw(numbers),
        s=draw(numbers),
    )


@given(reports(any_tcb=True))
def test_a_report_has_one_encoding(report: abi.Report) -> None:
    data = abi.encode_report(report)
    assert len(data) == 1184
    assert abi.parse_report(data) == report


@given(reports())
def test_cocos_shape_has_one_report(report: abi.Report) -> None:
    body = {"attestation_report": encode_shape(report), "cert_chain": None}
    assert parse_evidence(Evidence(tee="snp", body=body)).report == abi.encode_report(report)


@given(st.lists(st.tuples(st.sampled_from(sorted(GUIDS)), st.binary(min_size=1, max_size=40)), max_size=16))
def test_a_certificate_table_gives_back_its_entries(entries: list[tuple[str, bytes]]) -> None:
    assert parse_certificate_table(encode_certificate_table(tuple(entries))) == tuple(entries)


@functools.cache
def chip() -> FakeChip:
    return FakeChip.made_by(FakeAMD("Turin"))


@functools.cache
def good() -> bytes:
    return chip().report(version=5)


PARSERS: dict[str, Any] = {
    "report": abi.parse_report,
    "table": parse_certificate_table,
    "file": lambda data: read_evidence(data, tee="snp"),
    "vek": load_vek,
    "root": ark_line,
    "body": lambda data: parse_evidence(Evidence(tee="snp", body={"attestation_report": encode_b64(data)})),
    "evidence": lambda data: verify_report(data, (data,), chip().amd.endorsements(), at=NOW),
}


@pytest.mark.parametrize("name", sorted(PARSERS))
@given(data=st.binary(max_size=1300))
def test_any_bytes_give_a_value_or_a_refusal(name: str, data: bytes) -> None:
    try:
        PARSERS[name](data)
    except Refused as err:
        assert err.code.startswith(("tee.sev_snp.", "tee.file."))


@pytest.mark.parametrize("name", ["report", "table", "file", "vek"])
@given(data=st.data())
def test_damaged_structures_give_a_value_or_a_refusal(name: str, data: st.DataObject) -> None:
    whole = {"report": good(), "table": chip().certificate_table(), "vek": chip().vek}
    whole["file"] = good() + chip().certificate_table()
    damaged = bytearray(whole[name])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(u8)
    try:
        PARSERS[name](bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    except Refused as err:
        assert err.code.startswith(("tee.sev_snp.", "tee.file."))


def test_a_report_cut_anywhere_is_refused() -> None:
    for size in range(1184):
        with pytest.raises(Refused):
            abi.parse_report(good()[:size])
        with pytest.raises(Refused):
            read_evidence(good()[:size], tee="snp")


def test_a_flipped_bit_anywhere_is_refused() -> None:
    endorsements = chip().amd.endorsements()
    for offset in range(1184):
        damaged = bytearray(good())
        damaged[offset] ^= 1 << offset % 8
        with pytest.raises(Refused):
            verify_report(bytes(damaged), (chip().vek,), endorsements, at=NOW)


def test_a_flipped_bit_anywhere_in_the_certificate_is_refused() -> None:
    """It is signed as a whole, and a signature has one encoding."""
    endorsements = chip().amd.endorsements()
    for offset in range(len(chip().vek)):
        damaged = bytearray(chip().vek)
        damaged[offset] ^= 1 << offset % 8
        with pytest.raises(Refused):
            verify_report(good(), (bytes(damaged),), endorsements, at=NOW)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=8,
)


@given(data=st.data())
def test_any_json_gives_a_value_or_a_refusal(data: st.DataObject) -> None:
    body = copy.deepcopy(encode_body(abi.parse_report(good()), (("VCEK", chip().vek),)))
    place: Any = body
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not place[key] or not isinstance(place[key], (dict, list)) or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(json_values)
    try:
        authenticate(Evidence(tee="snp", body=body), chip().amd.endorsements(), at=NOW)
    except Refused as err:
        assert err.code.startswith("tee.sev_snp.")
