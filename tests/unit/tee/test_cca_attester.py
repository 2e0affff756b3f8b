"""The attester of a realm over a fake configfs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.errors import Unavailable
from cloister.rats.evidence import Evidence
from cloister.tee.cca.attester import CCAAttester
from cloister.tee.verification import verify_evidence
from cloister.testing.cca import BINDING, NOW, REPORT_DATA, FakeCCA


@pytest.fixture
def fake() -> FakeCCA:
    return FakeCCA()


@pytest.mark.parametrize(("busy", "racing"), [(0, 0), (2, 0), (0, 2)])
def test_what_is_attested_verifies(fake: FakeCCA, busy: int, racing: int) -> None:
    files, waits = fake.tsm(busy=busy, racing=racing), []
    with CCAAttester("/tree", files=files, sleep=waits.append) as attester:
        assert attester.enrol() is None
        assert attester.read_pcrs() == {}
        body = attester.attest(REPORT_DATA)
    assert verify_evidence(Evidence(tee="cca", body=body), BINDING, fake.endorsements(), at=NOW).claims.tee == "cca"
    assert len(waits) == busy + racing
    assert files.requests == {}  # the request is gone


def test_a_busy_or_contested_configfs_is_told(fake: FakeCCA) -> None:
    for fault, code in (("busy", "tee.cca.device"), ("racing", "tee.cca.device.raced")):
        with pytest.raises(Unavailable) as caught:
            CCAAttester("/tree", files=fake.tsm(**{fault: 99}), sleep=lambda _: None).attest(REPORT_DATA)
        assert caught.value.code == code


def test_another_provider_is_told(fake: FakeCCA) -> None:
    with pytest.raises(Unavailable) as caught:
        CCAAttester(files=fake.tsm(provider="tdx_guest")).attest(REPORT_DATA)
    assert (caught.value.expected, caught.value.actual) == ("arm_cca_guest", "tdx_guest")


def test_a_machine_without_configfs_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        CCAAttester(tmp_path).attest(REPORT_DATA)
    assert caught.value.code == "tee.cca.device"


def test_init_data_is_not_silently_unbound(fake: FakeCCA) -> None:
    with pytest.raises(Unavailable) as caught:
        CCAAttester(files=fake.tsm()).extend(8, bytes(32))
    assert caught.value.code == "tee.cca.no_registers"


def test_misuse(fake: FakeCCA) -> None:
    attester = CCAAttester(files=fake.tsm())
    for misuse in (
        lambda: attester.attest(b""),
        lambda: attester.attest(bytes(65)),
        lambda: attester.activate(b"", b""),
    ):
        with pytest.raises(RuntimeError):
            misuse()
