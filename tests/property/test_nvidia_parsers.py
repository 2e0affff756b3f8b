"""Parsers of NVIDIA evidence and statements: any bytes give a value or a typed refusal, a value has one encoding."""

from __future__ import annotations

import functools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto.ocsp import load_ocsp_response
from cloister.errors import Refused
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import Evidence
from cloister.tee.nvidia_gpu import abi, opaque
from cloister.tee.nvidia_gpu.endorsements import document_id
from cloister.tee.nvidia_gpu.evidence import read_evidence
from cloister.tee.nvidia_gpu.manifest import verify_manifest
from cloister.tee.nvidia_gpu.verifier import authenticate, read_claims
from cloister.testing import nvidia
from cloister.testing.nvidia import NOW, DevicePKI, FakeDevice, ManifestPKI
from cloister.wire.base64 import encode_b64

blocks = st.builds(abi.Block, index=st.integers(1, 255), kind=st.integers(0, 255), value=st.binary(max_size=64))
reports = st.builds(
    abi.Report,
    nonce=st.binary(min_size=32, max_size=32),
    slot=st.integers(0, 7),
    blocks=st.lists(blocks, min_size=1, max_size=20, unique_by=lambda item: item.index).map(
        lambda items: tuple(sorted(items, key=lambda item: item.index))
    ),
    responder_nonce=st.binary(min_size=32, max_size=32),
    opaque=st.dictionaries(st.integers(0, 65535), st.binary(max_size=40), max_size=12).map(
        lambda items: tuple(items.items())
    ),
    signature=st.binary(min_size=96, max_size=96),
)
scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.floats(allow_nan=False)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)


@functools.cache
def world() -> tuple[FakeDevice, Endorsements, bytes, Endorsements, bytes]:
    """Return a device, what endorses it, a manifest, what endorses that, and an OCSP response."""
    pki, manifests = DevicePKI(), ManifestPKI()
    device = pki.device()
    manifest = manifests.manifest(version="1.2", active={0: [nvidia.measurement(0)]})
    response = nvidia.ocsp_response(device.chain[1].certificate, device.chain[2])
    return device, nvidia.endorse(pki, [device]), manifest, Endorsements(roots=manifests.roots()), response


@given(report=reports)
def test_reports_read_back(report: abi.Report) -> None:
    data = abi.encode_report(report)
    assert abi.parse_report(data) == report
    if len(data) % 2:
        assert abi.encode_report(abi.parse_report(data + b"\0")) == data + b"\0"


@given(data=st.binary(max_size=2000) | st.binary(max_size=300).map(lambda tail: bytes.fromhex("11e001ff") + tail))
def test_any_bytes_are_a_report_or_a_refusal(data: bytes) -> None:
    try:
        report = abi.parse_report(data)
    except Refused:
        return
    assert abi.encode_report(report) == data


@given(report=reports, data=st.data())
def test_altered_reports_have_one_encoding(report: abi.Report, data: st.DataObject) -> None:
    good = abi.encode_report(report)
    offset, bit = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 7))
    changed = good[:offset] + bytes([good[offset] ^ 1 << bit]) + good[offset + 1 :]
    try:
        found = abi.parse_report(changed)
    except Refused:
        return
    assert abi.encode_report(found) == changed
    assert found != report


kinds = st.sampled_from([3, 6, 11, 12, 15, 17, 18, 20, 21, 22, 26, 34, 35, 36]) | st.integers(0, 65535)


@given(entries=st.dictionaries(kinds, st.binary(max_size=80), max_size=8), switch=st.booleans())
def test_opaque_data_is_typed_or_refused(entries: dict[int, bytes], switch: bool) -> None:
    try:
        found = opaque.read_opaque(tuple(entries.items()), switch=switch)
    except Refused:
        return
    json.dumps(dict(found.config))


@given(body=st.dictionaries(st.just("device_evidence_list") | st.text(max_size=5), values, max_size=2))
def test_any_json_is_refused(body: dict[str, Any]) -> None:
    _, endorsements, *_ = world()
    for call in (lambda item: authenticate(item, endorsements, at=NOW), read_claims):
        try:
            call(Evidence(tee="nvidia", body=body))
        except Refused:
            continue
        raise AssertionError("accepted")


@given(
    name=st.sampled_from(["arch", "uuid", "evidence", "certificate", "nonce", "driver_version", "version"]),
    value=values | st.binary(max_size=200).map(encode_b64),
)
def test_one_member_of_another_value(name: str, value: Any) -> None:
    device, endorsements, *_ = world()
    body = {"device_evidence_list": [{**device.entry(), name: value}]}
    try:
        found = authenticate(Evidence(tee="nvidia", body=body), endorsements, at=NOW)
    except Refused:
        return
    assert found.freshness.value == nvidia.NONCE


@given(data=st.binary(max_size=400) | st.text(alphabet='[{"}],:0123456789abcdef ', max_size=60).map(str.encode))
def test_any_file_is_read_or_refused(data: bytes) -> None:
    try:
        found = read_evidence(data, tee="nvidia")
    except Refused:
        return
    assert found.form
    assert isinstance(found.body, dict)


@given(data=st.data())
def test_altered_manifests_say_the_same_or_are_refused(data: st.DataObject) -> None:
    _, _, good, endorsements, _ = world()
    expected = verify_manifest(good, endorsements, at=NOW)
    offset = data.draw(st.integers(0, len(good) - 1))
    piece = data.draw(st.binary(max_size=3) | st.sampled_from([b"<!--x-->", b"<?x?>", b"&#48;", b"<x/>", b" ", b"\n"]))
    changed = good[:offset] + piece + good[offset + data.draw(st.integers(0, 4)) :]
    try:
        found = verify_manifest(changed, endorsements, at=NOW)
    except Refused:
        return
    assert (found.product, found.version, found.measurements) == (
        expected.product,
        expected.version,
        expected.measurements,
    )


@given(text=st.binary(max_size=200) | st.text(alphabet="<>/=\"'&;!?x: \n", max_size=60).map(str.encode))
def test_any_text_is_no_manifest(text: bytes) -> None:
    _, _, _, endorsements, _ = world()
    try:
        verify_manifest(text, endorsements, at=NOW)
    except Refused:
        return
    raise AssertionError("accepted")


@given(data=st.data())
def test_altered_responses_parse_or_are_refused(data: st.DataObject) -> None:
    *_, good = world()
    offset = data.draw(st.integers(0, len(good) - 1))
    changed = good[:offset] + data.draw(st.binary(max_size=3)) + good[offset + data.draw(st.integers(0, 4)) :]
    for text in (changed, data.draw(st.binary(max_size=200))):
        try:
            load_ocsp_response(text, code="test")
        except Refused:
            continue


@given(name=st.text(max_size=60))
def test_any_name_has_an_id(name: str) -> None:
    assert document_id(name) == document_id(name).upper()
