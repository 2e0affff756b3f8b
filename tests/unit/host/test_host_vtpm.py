"""Software TPMs: the pool gives each state once, wipes it, and survives dead and concurrent processes."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloister.errors import Refused, Unavailable
from cloister.host.heldplace import wipe_directory
from cloister.host.vtpm import VTPMAuthority, VTPMPool


class FakeAuthority(VTPMAuthority):
    """Makes states of a random key file instead of a TPM's; everything else is the real thing."""

    made = 0
    fail = False

    def create(self) -> None:
        if self.issuer_certificate.exists():
            return
        self.directory.mkdir(parents=True)
        self.issuer_certificate.write_bytes(secrets.token_bytes(32))

    def manufacture(self, directory: Path) -> None:
        if self.fail:
            raise Unavailable("host.tool.failed", "swtpm_setup gave 1")
        self.made += 1
        (directory / "tpm2-00.permall").write_bytes(secrets.token_bytes(64))
        (directory / "issuer").write_text(self.fingerprint())


@pytest.fixture
def pool(tmp_path: Path) -> VTPMPool:
    return VTPMPool(FakeAuthority(tmp_path / "ca"), tmp_path / "pool", ahead=2)


def authority_of(pool: VTPMPool) -> FakeAuthority:
    assert isinstance(pool.authority, FakeAuthority)
    return pool.authority


def states(pool: VTPMPool, kind: str) -> list[Path]:
    return sorted(pool.directory.glob(f"{kind}-*"))


def test_empty_pool_makes_one_now(pool: VTPMPool) -> None:
    vtpm = pool.take()
    assert (vtpm.directory / "tpm2-00.permall").stat().st_size == 64
    assert vtpm.directory.stat().st_mode & 0o777 == 0o700
    assert states(pool, "used") == [vtpm.directory]
    vtpm.wipe()
    vtpm.wipe()
    assert not vtpm.directory.exists()


def test_ready_states_are_taken_first_and_once(pool: VTPMPool) -> None:
    pool.authority.create()
    pool.directory.mkdir()
    pool.refill()
    ready = {state.joinpath("tpm2-00.permall").read_bytes() for state in states(pool, "ready")}
    assert len(ready) == authority_of(pool).made == 2
    taken = [pool.take() for _ in range(3)]
    keys = [vtpm.directory.joinpath("tpm2-00.permall").read_bytes() for vtpm in taken]
    assert ready == set(keys[:2])
    assert len(set(keys)) == 3
    assert authority_of(pool).made == 3
    for vtpm in taken:
        vtpm.wipe()
    assert list(pool.directory.iterdir()) == [pool.directory / "lock"]


def test_refill_fills_up_only(pool: VTPMPool) -> None:
    pool.authority.create()
    pool.refill()
    pool.refill()
    assert len(states(pool, "ready")) == 2


def test_refill_in_background_tells_no_failure(pool: VTPMPool) -> None:
    authority_of(pool).fail = True
    pool.refill_in_background()
    for thread in threading.enumerate():
        if thread.name == "vtpm-pool":
            thread.join()
    assert states(pool, "ready") == []
    with pytest.raises(Unavailable, match=r"host\.tool\.failed"):
        pool.take()
    assert list(pool.directory.iterdir()) == [pool.directory / "lock"]


def test_states_of_another_ca_are_not_given(pool: VTPMPool) -> None:
    pool.authority.create()
    pool.refill()
    old = states(pool, "ready")
    pool.authority.issuer_certificate.write_bytes(b"another CA")
    vtpm = pool.take()
    assert not any(state.exists() for state in old)
    assert vtpm.directory.joinpath("issuer").read_text() == pool.authority.fingerprint()
    vtpm.wipe()


def test_state_without_statement_of_its_ca_is_not_given(pool: VTPMPool) -> None:
    pool.authority.create()
    pool.refill()
    for state in states(pool, "ready"):
        (state / "issuer").unlink()
    vtpm = pool.take()
    assert authority_of(pool).made == 3
    vtpm.wipe()


def test_many_threads(pool: VTPMPool) -> None:
    pool.authority.create()
    pool.refill()
    barrier = threading.Barrier(8)

    def take() -> bytes:
        barrier.wait()
        vtpm = pool.take()
        key = vtpm.directory.joinpath("tpm2-00.permall").read_bytes()
        pool.refill()
        vtpm.wipe()
        return key

    with ThreadPoolExecutor(8) as threads:
        keys = list(threads.map(lambda _: take(), range(8)))
    assert len(set(keys)) == 8
    assert states(pool, "used") == states(pool, "making") == []


TAKE = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from test_host_vtpm import FakeAuthority
from cloister.host.vtpm import VTPMPool
pool = VTPMPool(FakeAuthority(Path({root!r}) / "ca"), Path({root!r}) / "pool")
vtpm = pool.take()
print(vtpm.directory.joinpath("tpm2-00.permall").read_bytes().hex(), flush=True)
sys.stdin.read()
{end}
"""


@pytest.fixture
def process(tmp_path: Path) -> Callable[[str], subprocess.Popen[bytes]]:
    def start(end: str) -> subprocess.Popen[bytes]:
        script = TAKE.format(here=str(Path(__file__).parent), root=str(tmp_path), end=end)
        return subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    return start


def test_many_processes(pool: VTPMPool, process: Callable[[str], subprocess.Popen[bytes]]) -> None:
    pool.authority.create()
    pool.refill()
    running = [process("vtpm.wipe()") for _ in range(4)]
    keys = [child.stdout.readline() for child in running if child.stdout]
    assert len(set(keys)) == 4
    assert len(states(pool, "used")) == 4
    mine = pool.take()  # the sweep leaves the states of living processes alone
    assert len(states(pool, "used")) == 5
    for child in running:
        child.communicate()
        assert child.returncode == 0
    mine.wipe()
    assert states(pool, "used") == []


def test_state_of_a_killed_process_is_wiped(pool: VTPMPool, process: Callable[[str], subprocess.Popen[bytes]]) -> None:
    child = process("")
    assert child.stdout is not None
    key = bytes.fromhex(child.stdout.readline().decode())
    [left] = states(pool, "used")
    child.kill()
    child.communicate()
    assert left.joinpath("tpm2-00.permall").read_bytes() == key
    vtpm = pool.take()
    assert vtpm.directory.joinpath("tpm2-00.permall").read_bytes() != key
    assert states(pool, "used") == [vtpm.directory]
    vtpm.wipe()


def test_unfinished_state_is_wiped(pool: VTPMPool) -> None:
    left = pool.directory / "making-0"
    left.mkdir(parents=True)
    (left / "tpm2-00.permall").write_bytes(b"half")
    pool.take().wipe()
    assert not left.exists()


def test_wiping_overwrites(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    (directory / "below").mkdir(parents=True)
    file = directory / "below" / "key"
    file.write_bytes(b"secret" * 100)
    (directory / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"keep")
    descriptor = os.open(file, os.O_RDONLY)
    wipe_directory(directory)
    assert os.read(descriptor, 1000) == bytes(600)
    os.close(descriptor)
    assert not directory.exists()
    assert (tmp_path / "elsewhere").read_bytes() == b"keep"
    wipe_directory(directory)


@pytest.mark.parametrize("name", ["a b", "a,mode=0777", "a\nb", "a$HOME", "a'b", 'a"b', "a\\b", "a{b}"])
def test_paths_swtpm_would_misread(tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused, match=r"host\.vtpm\.path"):
        VTPMAuthority(tmp_path / name)
    with pytest.raises(Refused, match=r"host\.vtpm\.path"):
        VTPMPool(VTPMAuthority(tmp_path / "ca"), tmp_path / name)


def test_no_ca_yet(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"host\.vtpm\.ca"):
        VTPMAuthority(tmp_path / "ca").fingerprint()
