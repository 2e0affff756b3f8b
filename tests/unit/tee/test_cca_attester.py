"""The attester over a fake configfs, and the reader of configfs over files and faults."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cloister.errors import Unavailable
from cloister.rats.evidence import Evidence
from cloister.tee.cca.attester import CCAAttester
from cloister.tee.tsmreport import TSM, KernelFiles, read_tsm_report
from cloister.tee.verification import verify_evidence
from cloister.testing.cca import BINDING, NOW, REPORT_DATA, FakeCCA
from cloister.wire.limits import TSM_BLOB_BYTES


@pytest.fixture
def fake() -> FakeCCA:
    return FakeCCA()


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.mark.parametrize(("busy", "racing"), [(0, 0), (2, 0), (0, 2)])
def test_what_is_attested_verifies(fake: FakeCCA, waits: list[float], busy: int, racing: int) -> None:
    fake.busy, fake.racing = busy, racing
    with CCAAttester("/tree", files=fake, sleep=waits.append) as attester:
        assert attester.enrol() is None
        assert attester.read_pcrs() == {}
        body = attester.attest(REPORT_DATA)
    assert verify_evidence(Evidence(tee="cca", body=body), BINDING, fake.endorsements(), at=NOW).claims.tee == "cca"
    assert len(waits) == busy + racing
    assert fake.files == {}  # the request is gone


def test_a_request_left_behind_is_used_again(fake: FakeCCA, waits: list[float]) -> None:
    fake.files[f"/tree/{TSM}/cloister-{os.getpid()}"] = b"old"
    assert CCAAttester("/tree", files=fake, sleep=waits.append).attest(REPORT_DATA)["token"]


def test_a_busy_or_contested_configfs_is_told(fake: FakeCCA, waits: list[float]) -> None:
    for busy, racing in ((99, 0), (0, 99)):
        fake.busy, fake.racing = busy, racing
        with pytest.raises(Unavailable) as caught:
            CCAAttester("/tree", files=fake, sleep=waits.append).attest(REPORT_DATA)
        assert caught.value.code == "tee.cca.device"
    assert sum(waits) < 12


def test_another_provider_is_told(fake: FakeCCA) -> None:
    fake.provider = b"tdx_guest\n"
    with pytest.raises(Unavailable) as caught:
        CCAAttester(files=fake).attest(REPORT_DATA)
    assert (caught.value.expected, caught.value.actual) == ("arm_cca_guest", "tdx_guest")


def test_a_machine_without_configfs_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        CCAAttester(tmp_path).attest(REPORT_DATA)
    assert caught.value.code == "tee.cca.device"


def test_init_data_is_not_silently_unbound(fake: FakeCCA) -> None:
    with pytest.raises(Unavailable) as caught:
        CCAAttester(files=fake).extend(8, bytes(32))
    assert caught.value.code == "tee.cca.no_registers"


def test_misuse(fake: FakeCCA) -> None:
    attester = CCAAttester(files=fake)
    for misuse in (
        lambda: attester.attest(b""),
        lambda: attester.attest(bytes(65)),
        lambda: attester.activate(b"", b""),
    ):
        with pytest.raises(RuntimeError):
            misuse()
    with pytest.raises(RuntimeError):
        read_tsm_report(b"", provider="x", code="t")


class _Tree(KernelFiles):
    """Real files: a directory that is made has its attributes, as in configfs."""

    generation = b"7"
    outblob = b"signed"

    def mkdir(self, path: str) -> None:
        super().mkdir(path)
        for name, value in (("provider", b"p\n"), ("generation", b"7\n"), ("inblob", b""), ("outblob", self.outblob)):
            (Path(path) / name).write_bytes(value)

    def write(self, path: str, data: bytes) -> None:
        super().write(path, data)
        (Path(path).parent / "generation").write_bytes(self.generation)

    def rmdir(self, path: str) -> None:
        for item in Path(path).iterdir():
            item.unlink()
        super().rmdir(path)


def read(root: Path, files: _Tree) -> bytes:
    return read_tsm_report(b"in", provider="p", code="t", root=root, files=files, sleep=lambda _: None)


def test_real_files(tmp_path: Path) -> None:
    (tmp_path / TSM).mkdir(parents=True)
    files = _Tree()
    files.generation = b"8\n"
    assert read(tmp_path, files) == b"signed"
    assert list((tmp_path / TSM).iterdir()) == []
    files.outblob = bytes(TSM_BLOB_BYTES + 1)
    with pytest.raises(Unavailable, match="longer"):
        read(tmp_path, files)
    for generation in (b"7", b"9", b"x"):
        files = _Tree()
        files.generation = generation
        with pytest.raises(Unavailable) as caught:
            read(tmp_path, files)
        assert caught.value.code == "t"


def test_errors_of_the_kernel_are_told(fake: FakeCCA, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str) -> None:
        raise OSError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(fake, "mkdir", broken)
    with pytest.raises(Unavailable, match="Permission denied"):
        CCAAttester(files=fake).attest(REPORT_DATA)
