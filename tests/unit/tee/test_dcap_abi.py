"""Layout of DCAP quotes: every version and body, and every way in which lengths and types can contradict each other."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

from cloister.errors import FormatRefused
from cloister.tee.dcap import abi
from cloister.testing.dcap import FakeIntel, FakePlatform, enclave_report, td_report
from cloister.wire.limits import DCAP_QUOTE_BYTES


@pytest.fixture(scope="module")
def td(intel: FakeIntel) -> FakePlatform:
    return FakePlatform(intel)


@pytest.fixture(scope="module")
def enclave(intel: FakeIntel) -> FakePlatform:
    return FakePlatform(intel, "SGX")


def refused(data: bytes) -> str:
    with pytest.raises(FormatRefused) as caught:
        abi.parse_quote(data)
    return caught.value.code


@pytest.mark.parametrize(
    ("version", "td15", "body_type"), [(4, False, None), (5, False, 2), (5, True, 3)], ids=["v4", "v5 1.0", "v5 1.5"]
)
def test_quotes_of_tds(td: FakePlatform, version: int, td15: bool, body_type: int | None) -> None:
    report = td_report(td15=td15)
    data = td.quote(report, version=version)
    quote = abi.parse_quote(data)
    assert (quote.header.version, quote.body_type, quote.tee_type) == (version, body_type, abi.TDX)
    assert quote.body == report
    assert quote.encode() == data


@pytest.mark.parametrize(("version", "body_type"), [(3, None), (5, 1)])
def test_quotes_of_enclaves(enclave: FakePlatform, version: int, body_type: int | None) -> None:
    report = enclave_report(misc_select=0x01020304, isv_prod_id=0x0506, config_svn=9)
    data = enclave.quote(report, version=version)
    quote = abi.parse_quote(data)
    assert (quote.body_type, quote.tee_type, quote.body) == (body_type, abi.SGX, report)
    assert quote.encode() == data


def test_offsets_of_the_specifications(td: FakePlatform, enclave: FakePlatform) -> None:
    report = td.quote(td_report())[48 : 48 + abi.TD10_BYTES]
    assert report[136:184] == b"\xab" * 48  # MRTD
    assert report[328:376] == b"\xc0" * 48  # RTMR0
    assert report[120:128] == bytes.fromhex("0000001000000000")  # attributes
    body = enclave.quote(enclave_report())[48 : 48 + abi.REPORT_BYTES]
    assert body[64:96] == b"\x99" * 32  # MRENCLAVE
    assert body[128:160] == b"\x88" * 32  # MRSIGNER
    assert body[258:260] == b"\x03\x00"  # ISVSVN


def test_padding_is_kept_apart(td: FakePlatform) -> None:
    plain = td.quote(td_report())
    padded = abi.parse_quote(plain + bytes(70))
    assert padded.signed == abi.parse_quote(plain).signed
    assert (padded.tail, padded.foreign_bytes) == (bytes(70), 0)
    assert abi.parse_quote(plain + b"\0\0x\0").foreign_bytes == 3
    assert padded.encode() == plain + bytes(70)


def test_every_truncation_is_refused(td: FakePlatform, enclave: FakePlatform) -> None:
    for data in (td.quote(td_report(td15=True)), enclave.quote(enclave_report())):
        for end in range(len(data)):
            assert refused(data[:end]).startswith("tee.dcap.quote.truncated"), end


def _set(offset: int, layout: str, value: int) -> Callable[[bytes], bytes]:
    size = struct.calcsize(layout)
    return lambda data: data[:offset] + struct.pack(layout, value) + data[offset + size :]


_SIZE = 48 + abi.TD10_BYTES
_NESTED = _SIZE + 4 + 128
_AUTHENTICATION = _NESTED + 6 + 384 + 64


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (_set(0, "<H", 2), "tee.dcap.quote.version"),
        (_set(0, "<H", 6), "tee.dcap.quote.version"),
        (_set(0, "<H", 3), "tee.dcap.quote.tee_type"),
        (_set(2, "<H", 3), "tee.dcap.quote.key_type"),
        (_set(4, "<I", 0), "tee.dcap.quote.tee_type"),
        (_set(4, "<I", 0x82), "tee.dcap.quote.tee_type"),
        (_set(_SIZE, "<I", 0), "tee.dcap.quote.truncated"),
        (_set(_SIZE, "<I", DCAP_QUOTE_BYTES + 1), "tee.dcap.quote.too_long"),
        (_set(_NESTED, "<H", 5), "tee.dcap.certification_type"),
        (_set(_NESTED, "<H", 7), "tee.dcap.certification_type"),
        (_set(_NESTED + 2, "<I", 10), "tee.dcap.quote.trailing_bytes"),
        (_set(_AUTHENTICATION, "<H", 0xFFFF), "tee.dcap.quote.truncated"),
        (_set(_AUTHENTICATION + 2 + 32, "<H", 1), "tee.dcap.certification_type"),
        (_set(_AUTHENTICATION + 2 + 32, "<H", 6), "tee.dcap.certification_type"),
        (_set(_AUTHENTICATION + 2 + 32 + 2, "<I", 10), "tee.dcap.quote.trailing_bytes"),
    ],
)
def test_contradictions_are_refused(td: FakePlatform, change: Callable[[bytes], bytes], code: str) -> None:
    assert refused(change(td.quote(td_report()))) == code


@pytest.mark.parametrize(
    "change",
    [_set(48, "<H", 1), _set(48, "<H", 3), _set(48, "<H", 4), _set(50, "<I", 583), _set(50, "<I", 648)],
)
def test_version_5_declares_its_body(td: FakePlatform, change: Callable[[bytes], bytes]) -> None:
    assert refused(change(td.quote(td_report(), version=5))) == "tee.dcap.quote.body_type"


def test_signature_data_may_not_be_longer_than_what_is_in_it(td: FakePlatform) -> None:
    data = td.quote(td_report()) + bytes(70)
    longer = _set(_SIZE, "<I", struct.unpack_from("<I", data, _SIZE)[0] + 70)(data)
    assert refused(longer) == "tee.dcap.quote.trailing_bytes"


def test_a_quote_over_the_ceiling_is_refused(td: FakePlatform) -> None:
    assert refused(td.quote(td_report()) + bytes(DCAP_QUOTE_BYTES)) == "tee.dcap.quote.too_long"


@pytest.mark.parametrize("size", [0, 383, 385])
def test_an_enclave_report_has_its_length(size: int) -> None:
    with pytest.raises(FormatRefused):
        abi.parse_enclave_report(bytes(size))


@pytest.mark.parametrize("size", [0, 583, 585, 647, 649])
def test_a_td_report_has_one_of_two_lengths(size: int) -> None:
    with pytest.raises(FormatRefused):
        abi.parse_td_report(bytes(size))


def test_attributes_as_numbers() -> None:
    assert enclave_report().flags == 5
    assert td_report().flags == 1 << 28
    assert replace(td_report(), td_attributes=b"\x01" + bytes(6) + b"\x80").flags == 1 | 1 << 63
