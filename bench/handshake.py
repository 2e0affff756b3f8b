"""Whole RCAR handshakes (auth, attest, resource) per second, beside the bare cryptography they cannot do without.

    python bench/handshake.py [--seconds 5] [--clients 8] [--tee cloister-simulated|tpm]

Three rows from one run on one machine: `floor` does only the signatures, verifications and key agreement of one
handshake, in a loop, in this process. `broker` calls the key broker without HTTP, one after the other, everything
else on: policy, SQLite with durable audit. `service` is the real process over TLS with several clients. As clients and
service share the machine, the service's own CPU time per handshake is what is compared with the floor.

What the floor repeats: for both technologies the signature of the evidence verified (P-256), the token signed and
verified (P-256), an ephemeral key, agreement, key wrap and AES-GCM of the answer; for `tpm` also the credential (RSA
OAEP) and two certificates of the endorsement key verified.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from cloister.client.channel import Response
from cloister.client.keybroker import KeyBrokerClient
from cloister.crypto.jwe import EphemeralKey, parse_recipient, seal_for
from cloister.protocol.initdata import BrokerAddress, build_initdata
from cloister.protocol.resourceuri import ResourcePath
from cloister.rats.claims import Level
from cloister.rats.reference import ReferenceEntry
from cloister.tee.insecure.attester import SimulationAttester
from cloister.tee.insecure.endorsements import read_machine_root
from cloister.tee.tpm.credential import challenge_for
from cloister.testing.tpm import EKProfile, EndorsementCA, FakeTPM
from cloister.trust.admin import TrustAdmin
from cloister.trust.keybroker import Credentials
from cloister.trust.keybroker.policy import ReleaseRule
from cloister.trust.service import TrustService
from cloister.trust.settings import TrustSettings

PATH = ResourcePath("default", "key", "bench")
DATA = build_initdata({"pod-policy.json": "{}"})
PREFIX = "/kbs/v0"


class Bench:
    """A furnished state directory and attesters for it."""

    def __init__(self, directory: Path, tee: str) -> None:
        self.directory, self.tee = directory, tee
        self.state = directory / "state"
        now = datetime.now(UTC)
        self.ca = EndorsementCA(now=now)
        self.profile = EKProfile(not_before=now - timedelta(days=1), not_after=now + timedelta(days=9))
        self.ek = rsa.generate_private_key(65537, 2048)
        self.machine_key = directory / "machine.key"
        roots = self.ca.roots(Level.MEASURED) if tee == "tpm" else (read_machine_root(self.machine_key),)
        level = roots[0].level
        registers = self._registers()
        with TrustAdmin(self.state) as admin:
            for root in roots:
                admin.add_root(root)
            policy = {"version": 1, "id": "default", "tees": [tee], "insecure_accept_levels": [level.value]}
            admin.put_appraisal_policy(json.dumps(policy).encode())
            entry = ReferenceEntry(
                id="bench", tee=tee, registers=registers, not_after=now + timedelta(days=9), origin="bench"
            )
            admin.add_reference_entries([entry])
            admin.put_resource(PATH, os.urandom(32))
            admin.add_release_rule(
                ReleaseRule(
                    prefix=str(PATH),
                    init_data=(DATA.digest_text,),
                    appraisal_policy="default",
                    insecure_allow_levels=(level,),
                )
            )
            self.ca_pem = admin.ca_pem()
            self.log_pins = admin.release_log_pins()

    def attester(self) -> Any:  # Any: either attester
        if self.tee == "tpm":
            made: Any = FakeTPM(self.ca, ek=self.ek, profile=self.profile, launch_blob=b"bench")
        else:
            made = SimulationAttester(str(self.machine_key))
        made.extend(8, DATA.digest)
        return made

    def client(self, channel: Any = None, url: str = "https://127.0.0.1:1") -> KeyBrokerClient:
        broker = BrokerAddress(url=url, ca_pem=self.ca_pem, release_log=self.log_pins)
        return KeyBrokerClient(broker, self.attester(), DATA.text.decode(), self.tee, channel=channel)

    def _registers(self) -> dict[str, bytes]:
        if self.tee == "tpm":
            return {"pcr00": self.attester().read_pcrs()[0]}
        return {"launch": bytes.fromhex(self.attester().attest(bytes(48))["registers"]["launch"])}


def floor(bench: Bench, seconds: float) -> float:
    """Return the CPU seconds of the cryptography of one handshake."""
    key = ec.generate_private_key(ec.SECP256R1())
    public, message, algorithm = key.public_key(), os.urandom(600), ec.ECDSA(SHA256())
    signature = key.sign(message, algorithm)
    recipient = parse_recipient(EphemeralKey.generate().public_jwk())
    secret = os.urandom(32)
    tpm = bench.attester() if bench.tee == "tpm" else None

    def once() -> None:
        if tpm is not None:
            challenge_for(tpm.ek_certificate, tpm.ak_public)
            public.verify(signature, message, algorithm)
            public.verify(signature, message, algorithm)
        public.verify(signature, message, algorithm)  # evidence
        key.sign(message, algorithm)  # token
        public.verify(signature, message, algorithm)  # token
        seal_for(recipient, secret)

    return cpu_of(once, seconds)


class Direct:
    """A channel that calls the broker."""

    def __init__(self, service: TrustService) -> None:
        self.broker = service.broker

    def request(
        self, method: str, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Response:
        headers = headers or {}
        credentials = Credentials(
            cookie=headers.get("Cookie", "").rpartition("=")[2],
            bearer=headers.get("Authorization", "").removeprefix("Bearer "),
        )
        if method == "GET":
            name = path.removeprefix(f"{PREFIX}/resource/")
            answer = self.broker.resource(name, credentials, deadline=time.monotonic() + 9)
        else:
            answer = (
                self.broker.attest(body or b"", credentials)
                if path.endswith("/attest")
                else self.broker.auth(body or b"")
            )
        given = {name.decode(): value.decode() for name, value in answer.headers}
        if answer.cookie:
            given["set-cookie"] = f"kbs-session-id={answer.cookie}"
        return Response(status=answer.status, headers=given, body=answer.body)

    def close(self) -> None:
        return None


def broker_row(bench: Bench, seconds: float) -> tuple[float, float]:
    """Return (CPU seconds per handshake of the broker's side, handshakes per second) without HTTP."""
    with TrustService(TrustSettings(state=bench.state)) as service:
        client = bench.client(Direct(service))
        client.prepare()
        spent = {"broker": 0.0}
        direct = Direct(service)

        def timed(*arguments: Any, **options: Any) -> Response:
            begun = time.process_time()
            try:
                return Direct.request(direct, *arguments, **options)
            finally:
                spent["broker"] += time.process_time() - begun

        client._channel.request = timed  # type: ignore[method-assign]  # counts the broker's share alone
        handshake(client)
        spent["broker"], count, begun = 0.0, 0, time.monotonic()
        while time.monotonic() - begun < seconds:
            handshake(client)
            count += 1
        return spent["broker"] / count, count / (time.monotonic() - begun)


def handshake(client: KeyBrokerClient) -> None:
    client.attest()
    client.get_resource(PATH)


def service_row(bench: Bench, seconds: float, clients: int) -> tuple[float, list[float], float]:
    """Return (service CPU seconds per handshake, latencies, handshakes per second) over TLS."""
    reading, writing = os.pipe()
    command = [
        sys.executable,
        "-m",
        "cloister.trust.app",
        "--data",
        str(bench.state),
        "--listen",
        "127.0.0.1:0",
        "--ready-fd",
        str(writing),
    ]
    process = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    try:
        with os.fdopen(reading) as pipe:
            url = json.loads(pipe.read())["url"]
        latencies: list[list[float]] = [[] for _ in range(clients)]
        stop, warm = threading.Event(), threading.Barrier(clients + 1)

        def run(index: int) -> None:
            client = bench.client(url=url)
            handshake(client)
            warm.wait()
            while not stop.is_set():
                begun = time.monotonic()
                handshake(client)
                latencies[index].append(time.monotonic() - begun)
            client.wipe()

        threads = [threading.Thread(target=run, args=(index,)) for index in range(clients)]
        for thread in threads:
            thread.start()
        warm.wait()
        cpu, begun = process_cpu(process.pid), time.monotonic()
        time.sleep(seconds)
        stop.set()
        for thread in threads:
            thread.join()
        elapsed, used = time.monotonic() - begun, process_cpu(process.pid) - cpu
        flat = sorted(item for each in latencies for item in each)
        return used / len(flat), flat, len(flat) / elapsed
    finally:
        process.terminate()
        process.wait(20)


def start_row(bench: Bench, repetitions: int = 5) -> float:
    """Return the seconds from starting the process until it answers."""
    times = []
    for _ in range(repetitions):
        reading, writing = os.pipe()
        begun = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "cloister.trust.app",
            "--data",
            str(bench.state),
            "--listen",
            "127.0.0.1:0",
            "--ready-fd",
            str(writing),
        ]
        process = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            pipe.read()
        times.append(time.monotonic() - begun)
        process.terminate()
        process.wait(20)
    return statistics.median(times)


def resource_rate(bench: Bench, seconds: float) -> float:
    """Return audited releases per second by one client with one token: what a commit per answer costs."""
    reading, writing = os.pipe()
    command = [
        sys.executable,
        "-m",
        "cloister.trust.app",
        "--data",
        str(bench.state),
        "--listen",
        "127.0.0.1:0",
        "--ready-fd",
        str(writing),
    ]
    process = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    try:
        with os.fdopen(reading) as pipe:
            report = json.loads(pipe.read())
        client = bench.client(url=report["url"])
        token = client.attest()
        client.wipe()
        context = ssl.create_default_context(cadata=bench.ca_pem)
        connection = http.client.HTTPSConnection("127.0.0.1", report["port"], context=context)
        count, begun = 0, time.monotonic()
        while time.monotonic() - begun < seconds:
            connection.request("GET", f"{PREFIX}/resource/{PATH}", headers={"Authorization": f"Bearer {token}"})
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                raise SystemExit(f"status {response.status}")
            count += 1
        connection.close()
        return count / (time.monotonic() - begun)
    finally:
        process.terminate()
        process.wait(20)


def cpu_of(once: Callable[[], None], seconds: float) -> float:
    once()
    count, cpu, begun = 0, time.process_time(), time.monotonic()
    while time.monotonic() - begun < seconds:
        once()
        count += 1
    return (time.process_time() - cpu) / count


def process_cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tee", choices=["cloister-simulated", "tpm"], default="cloister-simulated")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), arguments.tee)
        base = floor(bench, arguments.seconds)
        broker_cpu, broker_rate = broker_row(bench, arguments.seconds)
        service_cpu, latencies, rate = service_row(bench, arguments.seconds, arguments.clients)
        print(f"{arguments.tee}, {arguments.clients} clients, {os.cpu_count()} CPUs shared with the clients")
        print(
            f"{'row':9} {'CPU ms/handshake':>17} {'floor / row':>12} {'handshakes/s':>13} {'p50 ms':>8} {'p99 ms':>8}"
        )
        print(f"{'floor':9} {1000 * base:17.3f} {1:12.2f} {1 / base:13.0f}")
        print(f"{'broker':9} {1000 * broker_cpu:17.3f} {base / broker_cpu:12.2f} {broker_rate:13.0f}")
        p50, p99 = (1000 * latencies[int(len(latencies) * part)] for part in (0.5, 0.99))
        print(f"{'service':9} {1000 * service_cpu:17.3f} {base / service_cpu:12.2f} {rate:13.0f} {p50:8.1f} {p99:8.1f}")
        print(f"audited releases per second, one client: {resource_rate(bench, arguments.seconds):.0f}")
        print(f"start to first answer: {start_row(bench):.2f} s")


if __name__ == "__main__":
    main()
