"""The trust service as its own process, with real sockets, real TLS and the real clock."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloister.client.keybroker import KeyBrokerClient
from cloister.crypto.jwe import EphemeralKey
from cloister.protocol.initdata import BrokerAddress, InitData, ReleaseLogPins
from cloister.testing.tpm import EndorsementCA, FakeTPM
from cloister.trust.admin import TrustAdmin
from trust_world import b64, booted_tpm, furnish, init_data, now_utc, report_data


@dataclass
class Owner:
    """A furnished state directory and the CA of its TPMs."""

    state: Path
    ca: EndorsementCA
    data: InitData
    database: str = ""

    def tpm(self, data: InitData | None = None, **options: Any) -> FakeTPM:
        return booted_tpm(self.ca, data or self.data, now=now_utc(), **options)

    def admin(self) -> TrustAdmin:
        return TrustAdmin(self.state, database=self.database)


@dataclass
class Running:
    """A service that answers."""

    process: subprocess.Popen[bytes]
    report: dict[str, Any]
    ca_pem: str
    log: Path
    connections: list[http.client.HTTPSConnection] = field(default_factory=list)
    pinned: ReleaseLogPins | None = None

    @property
    def log_pins(self) -> ReleaseLogPins:
        """What guests pin of its release log; of a directory that is sealed, what was pinned before."""
        if self.pinned is not None:
            return self.pinned
        with TrustAdmin(Path(self.report["ca_file"]).parent) as admin:
            return admin.release_log_pins()

    def connect(self, timeout: float = 20) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cadata=self.ca_pem)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        connection = http.client.HTTPSConnection("127.0.0.1", self.report["port"], timeout=timeout, context=context)
        self.connections.append(connection)
        return connection

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = self.connect()
        connection.request(method, path, body=body, headers=headers)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, data

    def client(self, owner: Owner, tpm: FakeTPM | None = None, **options: Any) -> KeyBrokerClient:
        broker = BrokerAddress(url=self.report["url"], ca_pem=self.ca_pem, release_log=self.log_pins)
        text = options.pop("data", owner.data).text.decode()
        return KeyBrokerClient(broker, tpm or owner.tpm(), text, "tpm", **options)

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(20)
        for connection in self.connections:
            connection.close()
        return code

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def make_owner(directory: Path, database: str = "") -> Owner:
    state = directory / "state"
    owner = Owner(state=state, ca=EndorsementCA(now=now_utc()), data=init_data(), database=database)
    with owner.admin() as admin:
        furnish(admin, owner.ca, owner.data, now=now_utc())
    return owner


def enrolment(tpm: FakeTPM) -> bytes:
    """Return the body of /auth."""
    certificate, public = tpm.enrol()
    extra = {"cloister-tpm": {"ek_certificate": b64(certificate), "ak_public": b64(public)}}
    return json.dumps({"version": "0.4.0", "tee": "tpm", "extra-params": extra}).encode()


def attestation_body(owner: Owner, tpm: FakeTPM, key: EphemeralKey, challenge: dict[str, Any]) -> bytes:
    """Return the body of /attest for a challenge."""
    credential = challenge["extra-params"]["cloister-tpm"]
    secret = tpm.activate(*(base64.b64decode(credential[name]) for name in ("credential_blob", "encrypted_secret")))
    evidence = tpm.attest(report_data(challenge["nonce"], key.public_jwk()), secret)
    body = {
        "init-data": {"format": "toml", "body": owner.data.text.decode()},
        "runtime-data": {"nonce": challenge["nonce"], "tee-pubkey": key.public_jwk()},
        "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
    }
    return json.dumps(body).encode()


def prepared_attestation(owner: Owner, service: Running) -> tuple[str, bytes]:
    """Return a cookie and the attestation that is good for it, once."""
    tpm = owner.tpm()
    _, headers, body = service.request("POST", "/kbs/v0/auth", enrolment(tpm))
    message = attestation_body(owner, tpm, EphemeralKey.generate(), json.loads(body))
    return headers["set-cookie"].split(";")[0], message


def command(state: Path, *arguments: str) -> list[str]:
    return [
        sys.executable,
        "-W",
        "error",
        "-m",
        "cloister.trust.app",
        "--data",
        str(state),
        "--listen",
        "127.0.0.1:0",
        *arguments,
    ]


@contextmanager
def running(state: Path, *arguments: str) -> Iterator[Running]:
    """Start a service; it answers when this yields. Ends it, whatever the test did to it."""
    log = state.parent / f"{state.name}.log"
    reading, writing = os.pipe()
    with log.open("ab") as errors:
        process = subprocess.Popen(
            command(state, "--ready-fd", str(writing), "--die-with-parent", *arguments),
            pass_fds=[writing],
            stderr=errors,
            stdout=errors,
        )
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    if not text:
        raise RuntimeError(f"service ended with {process.wait(20)}: {log.read_text()}")
    report = json.loads(text)
    service = Running(process=process, report=report, ca_pem=Path(report["ca_file"]).read_text(), log=log)
    try:
        yield service
    finally:
        service.end(signal.SIGKILL)
