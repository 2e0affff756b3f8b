"""A PostgreSQL server of a test's own: made by `initdb`, run by `postgres`, ended by its process id."""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psycopg

from conformance.tools import skip_or_fail

START_SECONDS = 20.0
USER = "cloister"
PACKAGED = Path("/usr/lib/postgresql")  # where Debian puts each version's programs, not on PATH


@cache
def programs() -> Path | None:
    """The directory of `initdb` and `postgres`, None when there is none."""
    found = [place.parent for place in PACKAGED.glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda place: int(place.parent.name))
    control = shutil.which("pg_ctl")
    return None if control is None else Path(control).resolve().parent


def require_programs() -> Path:
    place = programs()
    if place is None:
        skip_or_fail("no initdb in /usr/lib/postgresql/*/bin and no pg_ctl on PATH: run `tools/setup test-packages`")
    return place


@cache
def template() -> Path:
    """A data directory that was initialised once; servers start on copies."""
    directory = Path(tempfile.mkdtemp(prefix="cloister-postgres-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    _own(directory)
    command = [str(require_programs() / "initdb"), "-D", str(directory / "data"), "-U", USER, "--no-sync"]
    command += ["-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/", **_unprivileged())
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


class PostgreSQLServer:
    """A server on a copy of the template: unix socket and loopback port.

    Attributes:
        process: the running server.
        port: its TCP port on 127.0.0.1.
    """

    def __init__(
        self,
        directory: Path,
        *,
        fsync: bool = False,
        options: dict[str, str] | None = None,
        files: dict[str, bytes] | None = None,
    ) -> None:
        """Make it; `files` are settings whose value is a file with that content."""
        self.directory = directory
        shutil.copytree(template() / "data", directory / "data", dirs_exist_ok=True)
        for name, content in (files or {}).items():
            (directory / name).write_bytes(content)
            (directory / name).chmod(0o600)
        _own(directory)
        self.port = _free_port()
        settings = {
            "fsync": "on" if fsync else "off",
            "full_page_writes": "on" if fsync else "off",
            "listen_addresses": "127.0.0.1,127.0.0.2",
            "port": str(self.port),
            "unix_socket_directories": str(directory),
            "shared_buffers": "32MB",
            "max_connections": "100",
            "log_min_messages": "warning",
            **(options or {}),
            **{name: str(directory / name) for name in files or {}},
        }
        with (directory / "data" / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    "setpriv",
                    "--pdeathsig",
                    "QUIT",
                    str(require_programs() / "postgres"),
                    "-D",
                    f"{self.directory}/data",
                ],
                stdout=log,
                stderr=log,
                cwd="/",
                **_unprivileged(),
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(host=str(self.directory), port=self.port, user=USER, dbname="postgres").close()
                return
            except psycopg.OperationalError:
                assert self.process.poll() is None, (self.directory / "log").read_text()
                assert time.monotonic() < deadline, "postgres does not answer"
                time.sleep(0.02)

    def end(self, number: int = signal.SIGINT) -> None:
        """End the server: SIGINT is its fast shutdown; SIGKILL takes its children too."""
        if self.process is None or self.process.poll() is not None:
            return
        family = self.pids()
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            for pid in family:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
        self.process.wait(20)
        if number == signal.SIGKILL:
            (self.directory / "data" / "postmaster.pid").unlink(missing_ok=True)

    def pids(self) -> list[int]:
        """Process ids of the server and of the processes it made."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Let all its processes say nothing within the block."""
        family = self.pids()
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in family:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def url(self, database: str, *, tcp: bool = False) -> str:
        host = "" if tcp else f"?host={self.directory}&port={self.port}"
        return f"postgresql://{USER}@{f'127.0.0.1:{self.port}' if tcp else ''}/{database}{host}"

    def create_database(self) -> str:
        """Make an empty database; return its name."""
        name = f"t{os.urandom(6).hex()}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return name

    def drop_database(self, name: str) -> None:
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        with psycopg.connect(
            host=str(self.directory), port=self.port, user=USER, dbname=database, autocommit=True
        ) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


@contextmanager
def running(*, fsync: bool = False, **more: Any) -> Iterator[PostgreSQLServer]:
    """Start a server; end it, whatever the test did to it. `more` is what `PostgreSQLServer` takes."""
    require_programs()
    memory = Path("/dev/shm") if not fsync and os.access("/dev/shm", os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="cloister-postgres-", dir=memory))
    server = PostgreSQLServer(directory, fsync=fsync, **more)
    try:
        server.start()
        yield server
    finally:
        server.end(signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _unprivileged() -> dict[str, Any]:
    """Options that make a child another user where root runs the tests: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    user = _user()
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _own(directory: Path) -> None:
    if os.geteuid() == 0:
        user = _user()
        for path in (directory, *directory.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid)
    directory.chmod(0o700)
