"""`cloister serve` as scripts use it: the fixed interface."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest


def cloister(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cloister", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=30, env={**os.environ, **environment}, check=False
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_healthy(url: str, ca: Path | None, process: subprocess.Popen[bytes]) -> None:
    """Ask `/healthz` until it is 200, as a script would."""
    until = time.monotonic() + 20
    while True:
        assert process.poll() is None and time.monotonic() < until
        try:
            context = ssl.create_default_context(cafile=ca) if ca is not None else None
            with urllib.request.urlopen(f"{url}/healthz", context=context, timeout=5) as answer:
                assert answer.status == 200
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.05)


@pytest.mark.parametrize("more", [[], ["--workers", "2"], ["--insecure-http"]], ids=["one", "workers", "http"])
def test_first_start_on_nothing(tmp_path: Path, more: list[str]) -> None:
    data, port = tmp_path / "data", free_port()
    config = tmp_path / "serve.toml"
    config.write_text(f'listen = "127.0.0.1:{port}"\nstore_seconds = 2\n')
    command = [sys.executable, "-m", "cloister", "serve", "--data", str(data), "--config", str(config), *more]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log)
    try:
        plain = "--insecure-http" in more
        url = f"{'http' if plain else 'https'}://127.0.0.1:{port}"
        wait_healthy(url, None if plain else data / "ca.pem", process)
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        assert (data / "ca.pem").read_text().startswith("-----BEGIN CERTIFICATE-----")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait(20)
    text = (tmp_path / "log").read_text()
    assert ("plain HTTP" in text) == plain


class TestCheckConfig:
    def test_it_prints_every_setting_and_starts_nothing(self, tmp_path: Path) -> None:
        config = tmp_path / "serve.toml"
        config.write_text("queue = 7\n")
        done = cloister(
            "serve",
            "--data",
            str(tmp_path / "d"),
            "--config",
            str(config),
            "--check-config",
            CLOISTER_SERVE_CONCURRENCY="9",
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert f"queue = 7  # {config}:1" in lines
        assert "concurrency = 9  # CLOISTER_SERVE_CONCURRENCY" in lines
        assert f'data = "{tmp_path}/d"  # --data' in lines and "workers = 1  # default" in lines
        assert not (tmp_path / "d").exists()

    def test_what_it_prints_is_a_configuration(self, tmp_path: Path) -> None:
        first = cloister("serve", "--data", str(tmp_path), "--workers", "3", "--check-config").stdout
        config = tmp_path / "serve.toml"
        config.write_text("".join(line + "\n" for line in first.splitlines() if '= ""' not in line))
        second = cloister("serve", "--config", str(config), "--check-config").stdout
        values = [[line.partition("  #")[0] for line in text.splitlines()] for text in (first, second)]
        assert values[0] == values[1]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("qeue = 7", ["no such setting: qeue", "serve.toml:1", "did you mean queue?"]),
            ("queue = 'x'", ["serve.toml:1", "not a value"]),
            ("insecure_http = true\nlisten = '0.0.0.0:1'", ["plain HTTP", "127.0.0.1"]),
            ("webhook_url = 'https://a/'", ["webhook_secret_file"]),
        ],
    )
    def test_what_is_wrong_is_refused_with_its_place(self, tmp_path: Path, text: str, words: list[str]) -> None:
        config = tmp_path / "serve.toml"
        config.write_text(text)
        done = cloister("serve", "--data", str(tmp_path / "d"), "--config", str(config), "--check-config")
        assert done.returncode == 1 and not done.stdout
        for word in words:
            assert word in done.stderr, done.stderr
