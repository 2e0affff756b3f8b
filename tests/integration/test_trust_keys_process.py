"""Keys of a trust service as a process: killed in the middle of a rotation, sealed at its start."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloister.cli.key import app
from cloister.crypto.keystore.file import FileKeyStore
from cloister.errors import Refused
from cloister.trust.admin import TrustAdmin
from trust_process import make_owner, running
from trust_world import CANARY, MODEL

# Forks for each point; the fork ends itself there, without any tidying: before or after a call that a rotation makes.
KILLED = """
import json, os, signal, sys
from pathlib import Path
from cloister.cli.key import app
from cloister.crypto.keystore.file import FileKeyStore
from cloister.errors import Refused
from cloister.trust.admin import TrustAdmin
from cloister.trust.keys import administration, reseal, ring
from cloister.trust.store.database import Store

OWNERS = {"FileKeyStore": FileKeyStore, "Path": Path, "ring": ring, "reseal": reseal, "Store": Store,
    "administration": administration}

def rotate(state, which, point, when):
    owner, _, name = point.partition(".")
    admin = TrustAdmin(Path(state))
    call = getattr(OWNERS[owner], name)

    def killing(*arguments, **options):
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        call(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(OWNERS[owner], name, killing)
    getattr(admin.keys, which)()

for job in json.load(sys.stdin):
    child = os.fork()
    if not child:
        rotate(*job)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
POINTS = (
    ("rotate_root", "FileKeyStore.create", "before"),
    ("rotate_root", "FileKeyStore.create", "after"),
    ("rotate_root", "FileKeyStore.wrap", "after"),
    ("rotate_root", "ring.write_ring", "before"),
    ("rotate_root", "ring.write_ring", "after"),  # in the transaction, before its commit
    ("rotate_root", "Store.write", "after"),
    ("rotate_root", "FileKeyStore.settle", "before"),
    ("rotate_root", "Path.replace", "before"),
    ("rotate_root", "FileKeyStore.settle", "after"),
    ("rotate_data_key", "FileKeyStore.wrap", "after"),
    ("rotate_data_key", "ring.write_ring", "after"),
    ("rotate_data_key", "reseal._seal_anew", "after"),
    ("rotate_data_key", "reseal._step", "after"),
    ("rotate_data_key", "administration.reseal_step", "after"),
)


def test_killed_at_any_step_of_a_rotation_everything_opens(tmp_path: Path) -> None:
    """Each directory is then opened, used and rotated, and nothing is left of what was cut short."""
    with TrustAdmin(tmp_path / "state") as admin:
        admin.put_resource(MODEL, CANARY)
    jobs = [(str(tmp_path / str(number)), *point) for number, point in enumerate(POINTS)]
    for state, *_ in jobs:
        shutil.copytree(tmp_path / "state", state)
    ended = subprocess.run(
        [sys.executable, "-c", KILLED], input=json.dumps(jobs), capture_output=True, text=True, timeout=120, check=True
    )
    assert ended.stdout.split() == [str(-signal.SIGKILL)] * len(POINTS), ended.stderr
    for state, *point in jobs:
        with TrustAdmin(Path(state)) as admin:
            assert admin.get_resource(MODEL) == CANARY, point
            admin.keys.rotate_root()
            admin.keys.rotate_data_key()
            assert admin.get_resource(MODEL) == CANARY, point
        assert [place.name for place in Path(state).glob("root.key*")] == ["root.key"], point


def test_killed_by_the_clock(tmp_path: Path) -> None:
    """Kills at no chosen point: a process that rotates all the time, ended after some milliseconds, again and again."""
    rotating = (
        "import sys; from pathlib import Path; from cloister.trust.admin import TrustAdmin\n"
        "admin = TrustAdmin(Path(sys.argv[1])); print('ready', flush=True)\n"
        "while True: admin.keys.rotate_root(); admin.keys.rotate_data_key()\n"
    )
    with TrustAdmin(tmp_path / "state") as admin:
        admin.put_resource(MODEL, CANARY)
    for milliseconds in (3, 17, 41):
        child = subprocess.Popen(
            [sys.executable, "-c", rotating, str(tmp_path / "state")], stdout=subprocess.PIPE, text=True
        )
        with child:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            time.sleep(milliseconds / 1000)
            child.kill()
        with TrustAdmin(tmp_path / "state") as admin:
            assert admin.get_resource(MODEL) == CANARY


def test_a_sealed_service(tmp_path: Path) -> None:
    """From the command line: seal, start, look into its memory, two shares, look again, the third, serve."""
    owner = make_owner(tmp_path)
    root = (owner.state / "root.key").read_bytes()
    with owner.admin() as admin:
        pins = admin.release_log_pins()
    sealed = cloister("key", "seal", "--data", str(owner.state), "--shares", "5", "--threshold", "3")
    shares = sealed.stdout.split()
    assert len(shares) == 5 and root not in (owner.state / "root.key").read_bytes()
    with running(owner.state, "--key-store", f"file://{owner.state}/root.key?seal=shares") as service:
        pid = service.process.pid
        for route, method, body in (
            ("/healthz", "GET", None),
            ("/kbs/v0/auth", "POST", b'{"version":"0.4.0","tee":"tpm","extra-params":""}'),
            ("/kbs/v0/attest", "POST", b"{}"),
            (f"/kbs/v0/resource/{MODEL}", "GET", None),
        ):
            status, headers, answer = service.request(method, route, body)
            assert status == 503 and "retry-after" in headers, route
            assert b"trust.keys.sealed" in answer, route
        for number, share in enumerate(shares[:2], 1):
            assert given(owner.state, share).stdout == f"{number} of 3 shares\n"
        assert given(owner.state, shares[0]).returncode == 1
        assert root not in memory_of(pid), "two shares of three, and no root key in the process"
        assert given(owner.state, shares[3]).stdout == "open\n"
        assert service.request("GET", "/healthz")[0] == 200
        service.pinned = pins
        client = service.client(owner)
        assert client.get_resource(MODEL) == CANARY
        client.wipe()
        assert given(owner.state, shares[3]).returncode == 3, "nothing waits for shares any more"
    for text in (owner.state.parent / f"{owner.state.name}.log").read_text(), sealed.stderr:
        assert not any(share in text for share in shares)


def test_the_look_into_memory_finds_what_is_there(tmp_path: Path) -> None:
    place = tmp_path / "root.key"
    FileKeyStore(place).create()
    keeping = "import sys; root = open(sys.argv[1], 'rb').read(); print('ready', flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", keeping, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        assert place.read_bytes() in memory_of(child.pid)
        child.kill()


def cloister(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cloister", *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=False)


def given(state: Path, share: str) -> subprocess.CompletedProcess[str]:
    return cloister("key", "unseal", "--data", str(state), given=share + "\n")


def memory_of(pid: int) -> bytes:
    """Everything readable and private in a process' memory; needs to be allowed to trace it."""
    found = []
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
            for line in maps:
                span, modes, *_ = line.split()
                if not modes.startswith("rw") or "[v" in line:
                    continue
                start, end = (int(part, 16) for part in span.split("-"))
                memory.seek(start)
                try:
                    found.append(memory.read(end - start))
                except OSError:
                    continue
    except PermissionError:
        pytest.skip("this machine lets no process look into another's memory (ptrace_scope)")
    return b"".join(found)


def test_the_list_of_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state"

    def run(*arguments: str) -> str:
        app([*arguments, "--data", str(state)], standalone_mode=False)
        return capsys.readouterr().out

    listed = json.loads(run("list", "--output", "json"))
    assert {key["purpose"] for key in listed["keys"]} == {"root", "data", "token", "ca", "log"}
    rotated = run("rotate", "token").strip()
    with pytest.raises(Refused) as caught:
        run("rotate", "token")
    assert caught.value.code == "trust.keys.pending"
    text = run("list")
    assert "token  next" in text and rotated in text and f"file://{state}/root.key" in text
    assert run("rotate", "data").strip() in run("list")
    assert run("rotate", "root").strip() in run("list")
    assert run("reseal") == "0 rows sealed anew\n"
    moved = f"file://{tmp_path}/elsewhere.key"
    assert run("move", moved).strip() in run("list") and moved in run("list")
    assert not (state / "root.key").exists()
