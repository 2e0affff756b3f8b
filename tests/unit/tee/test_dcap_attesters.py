"""The guest's side of TDX and SGX over a fake device tree."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import FormatRefused, Unavailable
from cloister.rats.evidence import Evidence
from cloister.tee.sgx.attester import SGXAttester
from cloister.tee.sgx.verifier import authenticate as authenticate_sgx
from cloister.tee.tdx import abi
from cloister.tee.tdx.attester import GET_REPORT0, LOG, LOG_TABLE, PROVIDER, REGISTERS, TDXAttester
from cloister.tee.tdx.verifier import authenticate
from cloister.testing.dcap import (
    NOW,
    REPORT_DATA,
    FakeIntel,
    FakePlatform,
    boot_log,
    enclave_report,
    logged_report,
    td_report,
)
from cloister.testing.eventlog import build_event_log
from cloister.testing.tsm import FakeTSM

ROOT = "/tree"


def ccel(area: int = 4096, *, kind: int = 2, signature: bytes = b"CCEL") -> bytes:
    head = struct.pack("<4sIBB6s8sI4sI", signature, 56, 1, 0, b"CLSTR ", b"TEST    ", 1, b"CLST", 1)
    table = bytearray(head + struct.pack("<BBHQQ", kind, 0, 0, area, 0x1000))
    table[9] = -sum(table) & 0xFF
    return bytes(table)


class Guest:
    """A TD whose registers live in the fake tree, and whose quotes say what they hold."""

    def __init__(self, intel: FakeIntel, **options: Any) -> None:
        self.platform = FakePlatform(intel)
        self.events = boot_log()
        booted = logged_report(self.events)
        log = build_event_log(self.events, algorithms=("sha384",)).ljust(4096, b"\xff")
        self.files = FakeTSM(
            self.quote,
            attributes={
                **{f"{ROOT}/{REGISTERS}/rtmr{index}:sha384": value for index, value in enumerate(booted.rtmrs)},
                f"{ROOT}/{LOG}": log,
                f"{ROOT}/{LOG_TABLE}": ccel(),
            },
            **{"provider": PROVIDER, **options},
        )
        self.waits: list[float] = []

    def quote(self, report_data: bytes, privlevel: int) -> bytes:
        names = [f"{ROOT}/{REGISTERS}/rtmr{index}:sha384" for index in range(4)]
        rtmrs = {f"rtmr{index}": self.files.attributes.get(name, bytes(48)) for index, name in enumerate(names)}
        return self.platform.quote(td_report(report_data=report_data, **rtmrs))

    def attester(self) -> TDXAttester:
        return TDXAttester(ROOT, files=self.files, sleep=self.waits.append)


def test_a_quote_with_its_log_is_accepted(intel: FakeIntel) -> None:
    guest = Guest(intel)
    with guest.attester() as attester:
        assert attester.enrol() is None
        body = attester.attest(REPORT_DATA, b"")
    found = authenticate(Evidence(tee="tdx", body=body), intel.endorsements("tdx"), at=NOW)
    assert found.claims.report_data == REPORT_DATA.ljust(64, b"\0")
    assert found.unchecked == ()
    assert guest.files.requests == {}  # the request is gone again
    assert guest.waits == []


@pytest.mark.parametrize(("pcr", "register"), [(8, 2), (15, 2), (16, 3), (23, 3)])
def test_what_the_guest_extends_is_in_the_log(intel: FakeIntel, pcr: int, register: int) -> None:
    guest = Guest(intel)
    attester = guest.attester()
    before = attester.read_pcrs()
    digest = hashlib.sha256(b"init data").digest()
    attester.extend(pcr, digest)
    after = attester.read_pcrs()
    assert [index for index in range(4) if before[index] != after[index]] == [register]
    found = authenticate(Evidence(tee="tdx", body=attester.attest(REPORT_DATA)), intel.endorsements("tdx"), at=NOW)
    last = found.claims.raw["uefi_event_logs"][-1]
    assert last["details"]["data"] == {
        "domain": "cloister",
        "operation": f"extend-pcr{pcr}",
        "content": digest.hex(),
    }
    assert (last["digest_matches_event"], last["index"]) == (True, register + 1)


@pytest.mark.parametrize("pcr", [0, 7, 24, -1])
def test_registers_of_firmware_are_not_extended(intel: FakeIntel, pcr: int) -> None:
    with pytest.raises(RuntimeError):
        Guest(intel).attester().extend(pcr, bytes(32))


def test_a_kernel_without_registers_as_files(intel: FakeIntel, tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "tdx_guest").write_bytes(b"")
    report = bytearray(abi.TDREPORT_BYTES)
    report[720 : 720 + 192] = b"".join(bytes([index]) * 48 for index in range(4))
    seen: list[tuple[int, bytes]] = []

    def ioctl(descriptor: int, request: int, argument: bytearray) -> None:
        seen.append((request, bytes(argument[:64])))
        argument[64:] = report

    attester = TDXAttester(tmp_path, files=FakeTSM(lambda data, _: data, provider=PROVIDER), ioctl=ioctl)
    assert attester.read_pcrs() == {index: bytes([index]) * 48 for index in range(4)}
    assert seen == [(GET_REPORT0, bytes(64))]
    assert 3 << 30 | (64 + 1024) << 16 | ord("T") << 8 | 1 == GET_REPORT0
    assert attester.tdreport(b"\x05" * 64) == bytes(report)
    with pytest.raises(Unavailable) as caught:
        attester.extend(8, bytes(32))
    assert caught.value.code == "tee.tdx.register"


def test_no_device_at_all(tmp_path: Path) -> None:
    attester = TDXAttester(tmp_path)
    for call in (attester.read_pcrs, lambda: attester.attest(REPORT_DATA), lambda: attester.tdreport(bytes(64))):
        with pytest.raises(Unavailable) as caught:
            call()
        assert caught.value.code == "tee.tdx.device"
    with pytest.raises(Unavailable):
        attester.extend(8, bytes(32))
    assert attester.read_log() == b""


def test_a_register_of_another_length(intel: FakeIntel) -> None:
    guest = Guest(intel)
    guest.files.attributes[f"{ROOT}/{REGISTERS}/rtmr3:sha384"] = bytes(32)
    with pytest.raises(Unavailable) as caught:
        guest.attester().read_pcrs()
    assert caught.value.code == "tee.tdx.register"


def test_another_technology_answers(intel: FakeIntel) -> None:
    guest = Guest(intel, provider="sev_guest")
    with pytest.raises(Unavailable) as caught:
        guest.attester().attest(REPORT_DATA)
    assert (caught.value.code, caught.value.actual) == ("tee.tdx.device", "sev_guest")
    assert guest.files.requests == {}


def test_a_busy_quoting_service_is_asked_again(intel: FakeIntel) -> None:
    guest = Guest(intel, busy=3)
    guest.attester().attest(REPORT_DATA)
    assert guest.waits == [0.02, 0.04, 0.08]
    forever = Guest(intel, busy=1000)
    with pytest.raises(Unavailable) as caught:
        forever.attester().attest(REPORT_DATA)
    assert caught.value.code == "tee.tdx.device"
    assert len(forever.waits) == 8


def test_a_request_that_another_process_writes_to_is_made_again(intel: FakeIntel) -> None:
    guest = Guest(intel, racing=2)
    body = guest.attester().attest(REPORT_DATA)
    found = authenticate(Evidence(tee="tdx", body=body), intel.endorsements("tdx"), at=NOW)
    assert found.claims.report_data == REPORT_DATA.ljust(64, b"\0")
    with pytest.raises(Unavailable) as caught:
        Guest(intel, racing=1000).attester().attest(REPORT_DATA)
    assert caught.value.code == "tee.tdx.device.raced"


@pytest.mark.parametrize("size", [0, 65])
def test_report_data_has_its_length(intel: FakeIntel, size: int) -> None:
    with pytest.raises(RuntimeError):
        Guest(intel).attester().attest(bytes(size))
    with pytest.raises(RuntimeError):
        SGXAttester().attest(bytes(size))


def test_a_guest_without_a_log(intel: FakeIntel) -> None:
    guest = Guest(intel)
    del guest.files.attributes[f"{ROOT}/{LOG_TABLE}"]
    assert guest.attester().attest(REPORT_DATA)["cc_eventlog"] is None


def test_the_table_says_how_long_the_log_is(intel: FakeIntel) -> None:
    guest = Guest(intel)
    guest.files.attributes[f"{ROOT}/{LOG_TABLE}"] = ccel(2048)
    assert len(guest.attester().read_log()) == 2048


@pytest.mark.parametrize(
    "table",
    [
        b"",
        ccel()[:-1],
        ccel(signature=b"CCEI"),
        ccel(kind=1),
        ccel(0),
        ccel(1 << 40),
        ccel()[:-1] + b"\x01",
    ],
)
def test_odd_tables(intel: FakeIntel, table: bytes) -> None:
    guest = Guest(intel)
    guest.files.attributes[f"{ROOT}/{LOG_TABLE}"] = table
    with pytest.raises(FormatRefused) as caught:
        guest.attester().read_log()
    assert caught.value.code == "tee.tdx.ccel.malformed"


def test_a_tdreport_of_another_length() -> None:
    with pytest.raises(FormatRefused):
        abi.tdreport_rtmrs(bytes(1023))


def test_there_is_no_credential_activation() -> None:
    for attester in (TDXAttester(), SGXAttester()):
        with pytest.raises(RuntimeError):
            attester.activate(b"", b"")


def _gramine(tmp_path: Path, quote: bytes, kind: str = "dcap\n") -> Path:
    directory = tmp_path / "dev" / "attestation"
    directory.mkdir(parents=True)
    (directory / "attestation_type").write_text(kind)
    (directory / "user_report_data").write_bytes(b"")
    (directory / "quote").write_bytes(quote)
    return directory


def test_an_enclave_under_gramine(intel: FakeIntel, tmp_path: Path) -> None:
    quote = FakePlatform(intel, "SGX").quote(enclave_report())
    directory = _gramine(tmp_path, quote)
    with SGXAttester(tmp_path) as attester:
        assert (attester.enrol(), attester.read_pcrs()) == (None, {})
        body = attester.attest(REPORT_DATA)
    assert (directory / "user_report_data").read_bytes() == REPORT_DATA.ljust(64, b"\0")
    authenticate_sgx(Evidence(tee="sgx", body=body), intel.endorsements("sgx"), at=NOW)
    with pytest.raises(Unavailable):
        attester.extend(8, bytes(32))


@pytest.mark.parametrize(("quote", "kind"), [(b"x", "none"), (b"x", "epid"), (b"", "dcap"), (b"x" * 100_000, "dcap")])
def test_gramine_without_dcap(tmp_path: Path, quote: bytes, kind: str) -> None:
    _gramine(tmp_path, quote, kind)
    with pytest.raises(Unavailable) as caught:
        SGXAttester(tmp_path).attest(REPORT_DATA)
    assert caught.value.code == "tee.sgx.device"


def test_no_gramine(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        SGXAttester(tmp_path).attest(REPORT_DATA)
