"""The reader of configfs-tsm over a fake kernel, over real files, and over faults of either."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import Unavailable
from cloister.tee.tsmreport import INBLOB_BYTES, TSM, KernelFiles, TSMReport, read_tsm_report
from cloister.testing.tsm import FakeTSM
from cloister.wire.limits import TSM_BLOB_BYTES

ENTRY = f"/tree/{TSM}/cloister-{os.getpid()}"


def fake(**options: Any) -> FakeTSM:
    return FakeTSM(lambda data, level: b"%d:" % level + data, **{"provider": "p", **options})


def read(files: Any, inblob: bytes = b"in", **options: Any) -> TSMReport:
    return read_tsm_report(
        inblob, **{"provider": "p", "code": "t", "root": "/tree", "sleep": lambda _: None, "files": files, **options}
    )


def unavailable(files: Any, **options: Any) -> Unavailable:
    with pytest.raises(Unavailable) as caught:
        read(files, **options)
    return caught.value


def test_a_report_and_the_blobs_beside_it() -> None:
    assert read(fake()) == TSMReport(b"0:in", b"", b"")
    files = fake(auxblob=b"aux", manifestblob=b"manifest")
    assert read(files) == TSMReport(b"0:in", b"aux", b"manifest")
    assert files.written == [(f"{ENTRY}/inblob", b"in")]
    assert (files.made, files.dropped, files.requests) == (1, 1, {})


def test_the_privilege_level_is_decimal_text_and_a_write_of_ours() -> None:
    files = fake()
    assert read(files, privlevel=3).outblob == b"3:in"
    assert files.written[-1] == (f"{ENTRY}/privlevel", b"3")
    assert read(files, privlevel=0).outblob == b"0:in"
    assert len(files.written) == 4


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ETIMEDOUT])
@pytest.mark.parametrize("place", ["mkdir", "write", "read"])
def test_busy_is_asked_again(number: int, place: str) -> None:
    files, waits, left = fake(), [], 3
    work = getattr(files, place)

    def busy(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise OSError(number, os.strerror(number))
        return work(*arguments)

    setattr(files, place, busy)
    assert read(files, sleep=waits.append).outblob == b"0:in"
    assert waits == [0.02, 0.04, 0.08]
    assert files.requests == {}


@pytest.mark.parametrize("privlevel", [None, 1])
def test_what_others_write_is_noticed(privlevel: int | None) -> None:
    """The report read then answers their question."""
    files = fake(racing=2)
    assert read(files, privlevel=privlevel).outblob.endswith(b":in")
    assert files.made == files.dropped == 3


@pytest.mark.parametrize(("fault", "code"), [("busy", "t"), ("racing", "t.raced")])
def test_tries_have_an_end_and_leave_nothing_behind(fault: str, code: str) -> None:
    files, waits = fake(**{fault: 1000}), []
    assert unavailable(files, sleep=waits.append).code == code
    assert len(waits) == 8
    assert 4 < sum(waits) < 6
    assert files.requests == {}


def test_a_generation_that_stands_still_is_not_our_write() -> None:
    """A kernel that took no write has answered something older."""

    class Deaf(FakeTSM):
        def write(self, path: str, data: bytes) -> None:
            super().write(path, data)
            self.requests[path.rpartition("/")[0]]["generation"] = b"0\n"

    assert unavailable(Deaf(lambda data, _: data, provider="p")).code == "t.raced"


def test_a_directory_left_behind_is_used_again() -> None:
    files = fake()
    files.mkdir(ENTRY)
    files.write(f"{ENTRY}/inblob", b"old")
    assert read(files).outblob == b"0:in"
    assert files.requests == {}


def test_a_directory_that_cannot_be_dropped_spoils_no_report() -> None:
    class Sticky(FakeTSM):
        def rmdir(self, path: str) -> None:
            raise OSError(errno.EBUSY, "busy", path)

    files = Sticky(lambda data, _: data, provider="p", busy=1)
    assert read(files).outblob == b"in"


def test_another_provider_is_asked_nothing() -> None:
    files = fake(provider="sev_guest")
    error = unavailable(files)
    assert (error.code, error.expected, error.actual) == ("t", "p", "sev_guest")
    assert files.written == []
    assert files.requests == {}


@pytest.mark.parametrize("name", ["outblob", "auxblob", "manifestblob"])
def test_a_blob_longer_than_any(name: str) -> None:
    long = bytes(TSM_BLOB_BYTES + 1)
    files = FakeTSM(lambda *_: long, provider="p") if name == "outblob" else fake(**{name: long})
    error = unavailable(files)
    assert error.path == f"{ENTRY}/{name}"
    fits = long[:-1]
    files = FakeTSM(lambda *_: fits, provider="p") if name == "outblob" else fake(**{name: fits})
    assert getattr(read(files), name) == fits


def test_a_generation_that_is_no_number() -> None:
    class Odd(FakeTSM):
        def read(self, path: str) -> bytes:
            return b"many" if path.endswith("generation") else super().read(path)

    assert "no number" in unavailable(Odd(lambda data, _: data, provider="p")).message


@pytest.mark.parametrize("place", ["mkdir", "write", "read"])
def test_errors_of_the_kernel_are_told(place: str) -> None:
    files = fake()

    def denied(path: str, *_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    setattr(files, place, denied)
    error = unavailable(files)
    assert "Permission denied" in error.message
    assert error.path.startswith(ENTRY)
    assert files.requests == {}


def test_a_machine_without_configfs_is_told(tmp_path: Path) -> None:
    assert unavailable(None, root=tmp_path).path.endswith(f"cloister-{os.getpid()}")


def test_over_a_plain_directory_attributes_are_missing(tmp_path: Path) -> None:
    (tmp_path / TSM).mkdir(parents=True)
    assert unavailable(None, root=tmp_path).path.endswith("provider")
    assert list((tmp_path / TSM).iterdir()) == []


@pytest.mark.parametrize("size", [0, INBLOB_BYTES + 1])
def test_misuse(size: int) -> None:
    with pytest.raises(RuntimeError):
        read(fake(), bytes(size))


class _Tree(KernelFiles):
    """Real files: a directory that is made has its attributes, as in configfs."""

    generation = b"8\n"

    def mkdir(self, path: str) -> None:
        super().mkdir(path)
        for name, value in (("provider", b"p\n"), ("generation", b"7\n"), ("inblob", b""), ("outblob", b"signed")):
            (Path(path) / name).write_bytes(value)

    def write(self, path: str, data: bytes) -> None:
        super().write(path, data)
        (Path(path).parent / "generation").write_bytes(self.generation)

    def rmdir(self, path: str) -> None:
        for item in Path(path).iterdir():
            item.unlink()
        super().rmdir(path)


def test_real_files(tmp_path: Path) -> None:
    (tmp_path / TSM).mkdir(parents=True)
    assert read(_Tree(), root=tmp_path) == TSMReport(b"signed", b"", b"")
    assert list((tmp_path / TSM).iterdir()) == []
    for generation, code in ((b"7", "t.raced"), (b"9", "t.raced"), (b"x", "t")):
        files = _Tree()
        files.generation = generation
        assert unavailable(files, root=tmp_path).code == code


def test_attributes_are_read_and_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = KernelFiles(4)
    entry = tmp_path / "request"
    files.mkdir(str(entry))
    (entry / "inblob").touch()
    files.write(str(entry / "inblob"), b"abcdefgh")
    assert (entry / "inblob").read_bytes() == b"abcdefgh"
    assert files.read(str(entry / "inblob")) == b"abcde"  # one byte over its ceiling shows that there is more
    assert KernelFiles().read(str(entry / "inblob")) == b"abcdefgh"
    monkeypatch.setattr(os, "write", lambda descriptor, data: len(data) - 1)
    with pytest.raises(OSError, match="short write"):
        files.write(str(entry / "inblob"), b"abcdefgh")
    (entry / "inblob").unlink()
    files.rmdir(str(entry))
    assert not entry.exists()
