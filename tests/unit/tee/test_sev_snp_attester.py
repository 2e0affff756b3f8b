"""The attester of SNP over a fake device tree: configfs-tsm with its generations, and the ioctls of /dev/sev-guest."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import FormatRefused, Unavailable
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.tee.sev_snp import attester as device
from cloister.tee.sev_snp.abi import REPORT_DATA_BYTES
from cloister.tee.sev_snp.attester import ATTESTER, SNPAttester
from cloister.tee.tsmreport import TSM
from cloister.tee.verification import verify_evidence
from cloister.testing.snp import INIT_DATA_DIGEST, NOW, REPORT_DATA, FakeAMD, FakeChip, FakeSEVGuest, fake_tsm, no_sleep
from cloister.testing.tsm import FakeTSM

BINDING = ExpectedBinding(report_data=REPORT_DATA, init_data_digest=INIT_DATA_DIGEST)


@pytest.fixture(scope="module")
def chip() -> FakeChip:
    """Who answers."""
    return FakeChip.made_by(FakeAMD("Genoa"))


def by_tsm(root: Path, files: Any, **options: Any) -> SNPAttester:
    return SNPAttester(str(root), files=files, sleep=no_sleep, **options)


def by_device(root: Path, guest: FakeSEVGuest, **options: Any) -> SNPAttester:
    return SNPAttester(str(root), ioctl=guest.ioctl, sleep=no_sleep, **options)


def unavailable(attester: SNPAttester) -> Unavailable:
    with pytest.raises(Unavailable) as caught:
        attester.attest(REPORT_DATA)
    assert caught.value.code == "tee.sev_snp.device"
    return caught.value


def test_what_configfs_gives_is_evidence(tmp_path: Path, chip: FakeChip) -> None:
    files = fake_tsm(tmp_path, chip, auxblob=chip.certificate_table(), version=5)
    with ATTESTER(tmp_path, files=files, sleep=no_sleep) as attester:
        body = attester.attest(REPORT_DATA, b"")
    assert body["attestation_report"]["version"] == 5
    assert [item["cert_type"] for item in body["cert_chain"]] == ["VCEK", "ASK", "ARK"]
    verify_evidence(Evidence(tee="snp", body=body), BINDING, chip.amd.endorsements(), at=NOW)
    assert files.made == files.dropped == 1


def test_what_the_device_gives_is_evidence(tmp_path: Path, chip: FakeChip) -> None:
    guest = FakeSEVGuest(tmp_path, chip, table=chip.certificate_table())
    body = by_device(tmp_path, guest).attest(REPORT_DATA)
    verify_evidence(Evidence(tee="snp", body=body), BINDING, chip.amd.endorsements(), at=NOW)
    assert guest.requests == [device.SNP_GET_EXT_REPORT]
    assert guest.vmpl == 0


def test_configfs_is_preferred(tmp_path: Path, chip: FakeChip) -> None:
    guest = FakeSEVGuest(tmp_path, chip)
    SNPAttester(str(tmp_path), files=fake_tsm(tmp_path, chip), ioctl=guest.ioctl).attest(REPORT_DATA)
    assert guest.requests == []


def test_numbers_of_the_kernel_interface() -> None:
    """_IOWR('S', nr, 32 bytes); the structures have the sizes of uapi/linux/sev-guest.h."""
    assert (3 << 30 | 32 << 16 | ord("S") << 8 | 0) == device.SNP_GET_REPORT
    assert (3 << 30 | 32 << 16 | ord("S") << 8 | 2) == device.SNP_GET_EXT_REPORT
    assert (device.REQUEST.size, device.REPORT_REQUEST.size, device.EXT_REQUEST.size) == (32, 96, 112)


@pytest.mark.parametrize("make", [by_tsm, by_device])
def test_the_privilege_level_is_asked_for(make: Callable[..., SNPAttester], tmp_path: Path, chip: FakeChip) -> None:
    guest = FakeSEVGuest(tmp_path, chip)
    body = make(tmp_path, fake_tsm(tmp_path, chip) if make is by_tsm else guest, vmpl=2).attest(REPORT_DATA)
    assert body["attestation_report"]["vmpl"] == 2
    assert (guest.vmpl == 2) is (make is by_device)


def test_no_certificates_of_the_host(tmp_path: Path, chip: FakeChip) -> None:
    for index, table in enumerate((b"", bytes(4096), None)):
        root = tmp_path / str(index)
        assert by_tsm(root, fake_tsm(root, chip, auxblob=table)).attest(REPORT_DATA)["cert_chain"] == []


@pytest.mark.parametrize(("fault", "tries"), [("busy", 3), ("racing", 2)])
def test_busy_and_raced_requests_are_made_again(fault: str, tries: int, tmp_path: Path, chip: FakeChip) -> None:
    """A generation that is not ours means: the report may answer another question."""
    files = fake_tsm(tmp_path, chip, **{fault: tries})
    waits: list[float] = []
    SNPAttester(str(tmp_path), files=files, sleep=waits.append).attest(REPORT_DATA)
    assert files.made == files.dropped == len(waits) + 1 == tries + 1


@pytest.mark.parametrize(("fault", "code"), [("busy", "tee.sev_snp.device"), ("racing", "tee.sev_snp.device.raced")])
def test_tries_have_an_end(fault: str, code: str, tmp_path: Path, chip: FakeChip) -> None:
    with pytest.raises(Unavailable) as caught:
        by_tsm(tmp_path, fake_tsm(tmp_path, chip, **{fault: 1000})).attest(REPORT_DATA)
    assert caught.value.code == code


def test_configfs_of_another_technology(tmp_path: Path, chip: FakeChip) -> None:
    error = unavailable(by_tsm(tmp_path, fake_tsm(tmp_path, chip, provider="tdx_guest")))
    assert (error.expected, error.actual) == ("sev_guest", "tdx_guest")


def test_no_device_at_all(tmp_path: Path) -> None:
    assert unavailable(SNPAttester(str(tmp_path))).path.endswith("dev/sev-guest")


def test_the_real_files_and_the_real_ioctl_are_used_by_default(tmp_path: Path, chip: FakeChip) -> None:
    """Over a plain directory the kernel's attributes are missing; over a plain file the ioctl is unknown."""
    (tmp_path / TSM).mkdir(parents=True)
    assert unavailable(SNPAttester(str(tmp_path), sleep=no_sleep)).path.endswith("provider")
    assert list((tmp_path / TSM).iterdir()) == []
    other = tmp_path / "other"
    FakeSEVGuest(other, chip)
    unavailable(SNPAttester(str(other), sleep=no_sleep))


# --- the ioctl ---


def test_a_host_with_a_longer_table_says_so(tmp_path: Path, chip: FakeChip) -> None:
    table = chip.certificate_table() + bytes(20_000)
    guest = FakeSEVGuest(tmp_path, chip, table=table)
    assert len(by_device(tmp_path, guest).attest(REPORT_DATA)["cert_chain"]) == 3
    assert guest.requests == [device.SNP_GET_EXT_REPORT] * 2


def test_a_host_without_extended_reports_gives_a_plain_one(tmp_path: Path, chip: FakeChip) -> None:
    guest = FakeSEVGuest(tmp_path, chip, extended=False)
    assert by_device(tmp_path, guest).attest(REPORT_DATA)["cert_chain"] == []
    assert guest.requests == [device.SNP_GET_EXT_REPORT, device.SNP_GET_REPORT]


def test_a_host_may_throttle(tmp_path: Path, chip: FakeChip) -> None:
    guest = FakeSEVGuest(tmp_path, chip, busy=3)
    assert by_device(tmp_path, guest).attest(REPORT_DATA)
    assert len(guest.requests) == 4
    guest = FakeSEVGuest(tmp_path, chip, busy=1000)
    assert "throttles" in unavailable(by_device(tmp_path, guest)).message


def test_what_the_secure_processor_refuses(tmp_path: Path, chip: FakeChip) -> None:
    assert "status 22" in unavailable(by_device(tmp_path, FakeSEVGuest(tmp_path, chip, status=22))).actual
    assert "0x16" in unavailable(by_device(tmp_path, FakeSEVGuest(tmp_path, chip, fault=errno.EIO))).actual


# --- the rest of the interface ---


def test_other_data_than_asked_for_is_no_answer(tmp_path: Path, chip: FakeChip) -> None:
    (tmp_path / TSM).mkdir(parents=True)
    replays = FakeTSM(lambda data, level: chip.report(), provider=device.PROVIDER)
    with pytest.raises(FormatRefused) as caught:
        by_tsm(tmp_path, replays).attest(b"other")
    assert caught.value.path == "REPORT_DATA"


@pytest.mark.parametrize("data", [b"", bytes(REPORT_DATA_BYTES + 1)])
def test_report_data_has_its_length(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        SNPAttester(str(tmp_path)).attest(data)


def test_what_snp_does_not_have(tmp_path: Path) -> None:
    with SNPAttester(str(tmp_path)) as attester:
        assert attester.read_pcrs() == {}
        assert attester.enrol() is None  # type: ignore[func-returns-value]  # that it returns nothing is the point
        with pytest.raises(Unavailable) as caught:
            attester.extend(8, bytes(32))
        assert caught.value.code == "tee.sev_snp.no_registers"
        with pytest.raises(RuntimeError):
            attester.activate(b"", b"")
