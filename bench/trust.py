"""Whole RCAR handshakes (auth, attest, resource) of the real service, beside the bare cryptography of one.

    python bench/trust.py [--tee snp,tpm,sample,cloister-simulated] [--seconds 5] [--clients 8] [--check]

The service is `cloister serve` over TLS with audit and release log on; guests are processes of their own whose
signing is not counted. Before anything is timed the resource that a guest opens is compared with the one stored, and
the receipt is verified. Clients and service share the machine, so the service's own CPU time per handshake is what is
compared with the floor; the rates beside it are lower the fewer CPUs there are. What clients and their guests' TEEs
spend is told beside it.

The floor, one after the other in this process: the signatures that are new with each piece of evidence; for `tpm` the
credential (RSA-OAEP, AES, HMAC); a token signed and verified (P-256); the guest's key taken from its coordinates, an
ephemeral key, agreement, key derivation and wrap, AES-GCM of the answer; AES-GCM of every byte that goes over TLS in
its direction, a record each; the sealed rows; the log's commitments, its leaf and its share of a signature (as many
entries per signature as the service had). Not in it: TLS handshakes (connections are kept), JSON, HTTP, SQL. A service
that has just signed a token does not verify it again when it comes back; the floor does, as any other relying party.

A loop finds its code and data in the processor's caches; what answers requests, between which others run, does not.
So a second floor, the same calls with pauses, as often as the service had handshakes, is told beside the first. The
target is about the first.

Where the service's time goes is measured with names on its threads: the event loop, those that work on requests, the
store's writer, the HTTP server (TLS, HTTP). How many writes shared a commit is what the service itself counts.

With `--check` a missed target is exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import functools
import hashlib
import hmac
import json
import multiprocessing
import os
import random
import socket
import sqlite3
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from floors import floor_of, quote_signature

from cloister.client.keybroker import KeyBrokerClient
from cloister.crypto.jwe import EphemeralKey
from cloister.protocol.initdata import BrokerAddress, build_initdata
from cloister.protocol.kbs import RuntimeData, SealedResource, report_data
from cloister.protocol.resourceuri import ResourcePath
from cloister.rats.claims import Level
from cloister.rats.endorsement import Endorsements, TrustedRoot
from cloister.rats.evidence import Evidence
from cloister.rats.reference import ReferenceEntry
from cloister.tee.collateral.cache import CollateralCache
from cloister.tee.collateral.collector import Collector
from cloister.tee.collateral.gate import HostGate
from cloister.tee.collateral.needs import follow_up, needs_of
from cloister.tee.collateral.sources import ServiceSource
from cloister.tee.collateral.transport import HTTPTransport
from cloister.tee.insecure.attester import SimulationAttester
from cloister.tee.insecure.endorsements import read_machine_root
from cloister.tee.tpm.credential import challenge_for
from cloister.testing import snp
from cloister.testing.published import addresses_of, publish_amd
from cloister.testing.tpm import EKProfile, EndorsementCA, FakeTPM
from cloister.testing.vendor import FakeVendor
from cloister.trust.admin import TrustAdmin
from cloister.trust.keybroker.policy import ReleaseRule
from cloister.wire.base64 import decode_b64, encode_b64

PATH = ResourcePath("default", "key", "bench")
DATA = build_initdata({"pod-policy.json": "{}"})
SECRET = bytes(range(32))
KBS = "/kbs/v0"
TEES = ("snp", "tpm", "sample", "cloister-simulated")
CPUS = os.cpu_count() or 1
# Targets: the floor's share of the service's CPU time, p99 of p50 at half load, cost of audit and log, of the policy.
SHARE, SPREAD, RECORDS, POLICY = 0.75, 5.0, 0.10, 0.05
OVERLOAD = 10
PAIRS = 10  # of runs with audit and log and without: of fewer the median jumps where other work comes and goes
QUEUE = 32  # admitted at once in the overload row
# Names of the service's threads, as far as the kernel keeps them, and what they are.
PARTS = {"trust-request": "requests", "trust-store-wri": "store's writer"}
BUCKET = "cloister_store_batch_writes_bucket"
_PR_SET_NAME = 15


class Technology:
    """What guests of one technology are made of.

    Attributes:
        roots: that the owner trusts.
        level: of the evidence.
        register: that the owner knows the value of, None where nothing is measured.
    """

    level = Level.SIMULATED
    register: tuple[str, bytes] | None = None
    roots: Sequence[TrustedRoot] = ()

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.prepare()

    def prepare(self) -> None:
        return None

    def publish(self, state: Path) -> None:
        """Put what vendors say into the service's cache."""

    def extra(self) -> Any:
        return ""

    def activate(self, challenge: dict[str, Any]) -> bytes:
        return b""

    def evidence(self, bound: bytes, secret: bytes) -> dict[str, Any]:
        raise NotImplementedError

    def endorsements(self) -> Endorsements:
        return Endorsements(roots=tuple(self.roots))

    def signatures(self) -> Sequence[Callable[[], object]]:
        """Return what must be verified of new evidence."""
        body = self.evidence(bytes(48), b"")
        return floor_of(Evidence(tee=self.tee, body=body), self.endorsements()).warm

    tee = ""


class Sample(Technology):
    tee = "sample"

    def evidence(self, bound: bytes, secret: bytes) -> dict[str, Any]:
        return {"svn": "1", "report_data": encode_b64(bound)}

    def signatures(self) -> Sequence[Callable[[], object]]:
        return ()


class Simulated(Technology):
    tee = "cloister-simulated"

    def prepare(self) -> None:
        self.key = self.directory / "machine.key"
        self.roots = (read_machine_root(self.key),)
        self.attester = SimulationAttester(str(self.key))
        self.attester.extend(8, DATA.digest)
        self.register = ("launch", bytes.fromhex(self.attester.attest(bytes(48))["registers"]["launch"]))

    def evidence(self, bound: bytes, secret: bytes) -> dict[str, Any]:
        return self.attester.attest(bound)


class TPM(Technology):
    tee = "tpm"
    level = Level.MEASURED

    def prepare(self) -> None:
        now = datetime.now(UTC)
        ca = EndorsementCA(now=now)
        profile = EKProfile(not_before=now - timedelta(days=1), not_after=now + timedelta(days=9))
        key = rsa.generate_private_key(65537, 2048)
        self.tpm = FakeTPM(ca, ek=key, profile=profile, launch_blob=b"bench")
        self.roots = ca.roots(Level.MEASURED)
        self.register = ("pcr00", self.tpm.read_pcrs()[0])
        self.tpm.extend(8, DATA.digest)

    def extra(self) -> Any:
        certificate, public = self.tpm.enrol()
        return {"cloister-tpm": {"ek_certificate": encode_b64(certificate), "ak_public": encode_b64(public)}}

    def activate(self, challenge: dict[str, Any]) -> bytes:
        member = challenge["extra-params"]["cloister-tpm"]
        blobs = (decode_b64(member[name], path=name, ceiling=4096) for name in ("credential_blob", "encrypted_secret"))
        return self.tpm.activate(*blobs)

    def evidence(self, bound: bytes, secret: bytes) -> dict[str, Any]:
        return self.tpm.attest(bound, secret)

    def signatures(self) -> Sequence[Callable[[], object]]:
        body = self.tpm.attest(bytes(48), bytes(32))
        quote = quote_signature(Evidence(tee="tpm", body=body), self.tpm.ak_key.public_key())
        certificate, public = self.tpm.enrol()
        return (quote, lambda: challenge_for(certificate, public))


class SNP(Technology):
    tee = "snp"
    level = Level.HARDWARE

    def prepare(self) -> None:
        now, days = datetime.now(UTC), timedelta(days=30)
        self.within = {"start": now - days, "end": now + days}
        self.amd = snp.FakeAMD("Turin")
        self.chip = snp.FakeChip.made_by(self.amd, **self.within)
        self.roots = (self.amd.root(),)
        self.register = ("measurement", snp.MEASUREMENT)

    def evidence(self, bound: bytes, secret: bytes) -> dict[str, Any]:
        return dict(self.chip.evidence(version=5, report_data=bound.ljust(64, b"\0"), host_data=DATA.digest).body)

    def endorsements(self) -> Endorsements:
        return self.amd.endorsements(self.chip.vek, lists=(self.amd.revocation_list(**self.within),))

    def publish(self, state: Path) -> None:
        cache = CollateralCache(state / "collateral")
        with FakeVendor() as vendor:
            publish_amd(vendor, self.amd, [self.chip], **self.within)
            gate = HostGate(cache.directory / "hosts", clock=lambda: 0.0, sleep=lambda seconds: None)
            collector = Collector(cache, [ServiceSource(HTTPTransport(gate), addresses_of(vendor))], now=_now)
            for outcome in collector.obtain_all(needs_of(Evidence(tee="snp", body=self.evidence(bytes(48), b"")))):
                if outcome.error is not None or outcome.entry is None:
                    raise SystemExit(f"collateral: {outcome.error}")
                collector.obtain_all(follow_up(outcome.entry))


KINDS: dict[str, type[Technology]] = {kind.tee: kind for kind in (SNP, TPM, Sample, Simulated)}


class Site:
    """A furnished state directory and guests for it."""

    def __init__(self, directory: Path, tee: str) -> None:
        directory.mkdir()
        self.state = directory / "state"
        self.made = made = KINDS[tee](directory)
        with TrustAdmin(self.state) as admin:
            for root in made.roots:
                admin.add_root(root)
            policy: dict[str, Any] = {"version": 1, "id": "default", "tees": [tee]}
            levels = () if made.level is Level.HARDWARE else (made.level,)
            if levels:
                policy["insecure_accept_levels"] = [level.value for level in levels]
            admin.put_appraisal_policy(json.dumps(policy).encode())
            if made.register is not None:
                end = _now() + timedelta(days=9)
                values = dict([made.register])
                entry = ReferenceEntry(id="bench", tee=tee, registers=values, not_after=end, origin="bench")
                admin.add_reference_entries([entry])
            admin.put_resource(PATH, SECRET)
            admin.add_release_rule(
                ReleaseRule(prefix=str(PATH), init_data=(DATA.digest_text,), insecure_allow_levels=levels)
            )
            self.ca_pem, self.pins = admin.ca_pem(), admin.release_log_pins()
        made.publish(self.state)

    def check(self, url: str) -> None:
        """Let our own client do a handshake: the resource must be the stored one, its receipt must hold."""
        made, last = self.made, {"secret": b""}

        class Attester:
            def enrol(self) -> Any:
                return made.tpm.enrol() if isinstance(made, TPM) else None

            def activate(self, *blobs: bytes) -> bytes:
                last["secret"] = made.tpm.activate(*blobs) if isinstance(made, TPM) else b""
                return last["secret"]

            def attest(self, report: bytes, secret: bytes) -> dict[str, Any]:
                return made.evidence(report, secret)

        broker = BrokerAddress(url=url, ca_pem=self.ca_pem, release_log=self.pins)
        client = KeyBrokerClient(broker, Attester(), DATA.text.decode(), made.tee)
        if client.get_resource(PATH) != SECRET:
            raise SystemExit("the resource that came is not the one stored")
        client.wipe()


class Guest:
    """One guest after another, over one connection, with no more work than must be."""

    def __init__(self, made: Technology) -> None:
        self.made = made
        enrolment = {"version": "0.4.0", "tee": made.tee, "extra-params": made.extra()}
        self.begin = _request("POST", "auth", json.dumps(enrolment).encode())

    def attestation(self, head: bytes, body: bytes) -> tuple[bytes, EphemeralKey]:
        """Return the second request, for the answer to the first."""
        challenge = json.loads(body)
        cookie = head.partition(b"kbs-session-id=")[2].partition(b";")[0].decode()
        secret, key = self.made.activate(challenge), EphemeralKey.generate()
        runtime = RuntimeData(nonce=challenge["nonce"], tee_pubkey=key.public_jwk())
        message = {
            "init-data": {"format": "toml", "body": DATA.text.decode()},
            "runtime-data": {"nonce": runtime.nonce, "tee-pubkey": runtime.tee_pubkey},
            "tee-evidence": {
                "primary_evidence": self.made.evidence(report_data(runtime, ""), secret),
                "additional_evidence": "",
            },
        }
        request = _request("POST", "attest", json.dumps(message).encode(), f"Cookie: kbs-session-id={cookie}")
        return request, key

    def release(self, body: bytes) -> bytes:
        """Return the third request, for the answer to the second."""
        return _request("GET", f"resource/{PATH}", b"", f"Authorization: Bearer {json.loads(body)['token']}")


def _request(method: str, route: str, body: bytes, header: str = "") -> bytes:
    extra = f"{header}\r\n" if header else ""
    kind = "Content-Type: application/json\r\n" if body else ""
    length = f"Content-Length: {len(body)}\r\n" if method == "POST" else ""
    return f"{method} {KBS}/{route} HTTP/1.1\r\nHost: bench\r\n{kind}{extra}{length}\r\n".encode() + body


def _context(ca_pem: str) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=ca_pem)


class Wire:
    """A TLS connection, or one after another, that counts its bytes and the time until answers are whole."""

    def __init__(self, port: int, ca_pem: str, *, fresh: bool = False) -> None:
        self._port, self._context, self._fresh = port, _context(ca_pem), fresh
        self.socket = self._connected()
        self.records: list[tuple[int, int]] = []
        self.waited = 0.0

    def _connected(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self._port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._context.wrap_socket(plain, server_hostname="127.0.0.1")

    def ask(self, request: bytes) -> tuple[bytes, bytes]:
        begun = time.perf_counter()
        if self._fresh:
            self.socket.close()
            self.socket = self._connected()
        self.socket.sendall(request)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += self._more()
        self.waited += time.perf_counter() - begun
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"refused: {head[:40]!r} {body[:300]!r}")
        self.records.append((len(request), len(head) + 4 + length))
        return head, body

    def _more(self) -> bytes:
        data = self.socket.recv(65536)
        if not data:
            raise SystemExit("the service closed the connection")
        return data


def handshake(guest: Guest, wire: Wire, *, opened: bool = False) -> None:
    head, body = wire.ask(guest.begin)
    request, key = guest.attestation(head, body)
    _, body = wire.ask(request)
    _, sealed = wire.ask(guest.release(body))
    if opened and key.open(SealedResource(**json.loads(sealed))) != SECRET:
        raise SystemExit("the resource that came is not the one stored")


@dataclass
class Load:
    """What clients saw."""

    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float = 0.0
    clients: float = 0.0

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def cost(self) -> float:
        """CPU seconds of the service per handshake."""
        return self.cpu / len(self.latencies)

    def at(self, part: float) -> float:
        return sorted(self.latencies)[int(len(self.latencies) * part)]


def load(site: Site, service: Service, seconds: float, clients: int, rate: float = 0.0, *, fresh: bool = False) -> Load:
    """Let clients do handshakes, each in a process of its own: without pause, or so many per second in all.

    With `fresh` each request has a TLS connection of its own, as CoCo's command line tools do it.
    """
    forked = multiprocessing.get_context("fork")
    warm, ends = forked.Barrier(clients + 1), [forked.Pipe(duplex=False) for _ in range(clients)]

    def run(writing: Any) -> None:
        guest, wire = Guest(site.made), Wire(service.port, site.ca_pem, fresh=fresh)
        handshake(guest, wire, opened=True)
        handshake(guest, wire)
        warm.wait()
        found, begun, cpu = [], time.monotonic(), time.process_time()
        pause = clients / rate if rate else 0.0
        due = begun + random.random() * pause  # noqa: S311  when a guest knocks is no secret
        while time.monotonic() < begun + seconds:
            if pause:
                time.sleep(max(0.0, due - time.monotonic()))
                due += pause * random.uniform(0.5, 1.5)  # noqa: S311  the same
            wire.waited = 0.0
            handshake(guest, wire)
            found.append(wire.waited)
        writing.send((found, time.process_time() - cpu))

    processes = [forked.Process(target=run, args=(writing,)) for _, writing in ends]
    for process in processes:
        process.start()
    warm.wait()
    cpu, begun = service.cpu(), time.monotonic()
    seen = Load()
    for reading, _ in ends:
        found, spent = reading.recv()
        seen.latencies += found
        seen.clients += spent
    seen.seconds, seen.cpu = time.monotonic() - begun, service.cpu() - cpu
    for process in processes:
        process.join()
    return seen


@dataclass
class Service:
    """A running service."""

    process: subprocess.Popen[bytes]
    port: int
    url: str
    trusts: ssl.SSLContext

    def cpu(self) -> float:
        """CPU seconds of the process and its workers."""
        return sum(self.parts().values())

    def parts(self) -> Counter[str]:
        """CPU seconds by names of threads; a service that was not asked to name them has one for all."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        found: Counter[str] = Counter()
        for pid in (str(self.process.pid), *children):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                name = (thread / "comm").read_text().strip()
                part = next((part for begin, part in PARTS.items() if name.startswith(begin)), "HTTP server")
                spent = int((thread / "schedstat").read_text().split()[0]) / 1e9
                found["event loop" if thread.name == pid else part] += spent  # type: ignore[assignment]  # seconds
        return found

    def batches(self) -> Counter[float]:
        """Commits so far, by how many writes they were of: at most the number, more than the one before."""
        with urllib.request.urlopen(f"{self.url}/metrics", context=self.trusts) as answer:
            lines = answer.read().decode().splitlines()
        marks = [line.split('le="')[1].split('"} ') for line in lines if line.startswith(BUCKET)]
        return Counter({float(most): float(count) for most, count in marks})  # type: ignore[dict-item]  # counts


@contextmanager
def serving(site: Site, *options: str, how: str = "") -> Iterator[Service]:
    """Start `cloister serve`, or a service of this file's own: without audit and log, or with names on its threads."""
    reading, writing = os.pipe()
    program = [__file__, how] if how else ["-m", "cloister", "serve"]
    command = [sys.executable, *program, "--data", str(site.state), "--listen", "127.0.0.1:0"]
    command += ["--ready-fd", str(writing), *options]
    process = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    os.close(writing)
    try:
        with os.fdopen(reading) as pipe:
            text = pipe.read()
        if not text:
            raise SystemExit(f"the service does not start: {' '.join(command)}")
        report = json.loads(text)
        yield Service(process, report["port"], report["url"], _context(site.ca_pem))
    finally:
        process.terminate()
        process.wait(30)


def serve_named(arguments: Sequence[str]) -> int:
    """Run the service with the names of its threads where the kernel shows them: only to tell their CPU times apart."""
    from cloister.trust import app

    begin, library = threading.Thread.run, ctypes.CDLL(None)

    def named(self: threading.Thread) -> None:
        library.prctl(_PR_SET_NAME, self.name.encode()[:15])
        begin(self)

    threading.Thread.run = named  # type: ignore[method-assign]  # this is the switch
    return app.main(arguments)


def serve_without_records(arguments: Sequence[str]) -> int:
    """Run the service without audit rows and without entries in the log: only to measure what they cost."""
    from cloister.trust import app
    from cloister.trust.keybroker import broker
    from cloister.trust.releaselog import ReleaseLog

    def nothing(*_arguments: object, **_options: object) -> None:
        return None

    broker.store_audit = nothing  # type: ignore[assignment]  # this is the switch
    ReleaseLog.append = nothing  # type: ignore[method-assign,assignment]  # the same
    ReleaseLog.receipt = lambda *_arguments, **_options: ""  # type: ignore[method-assign]  # the same
    return app.main(arguments)


def floor(made: Technology, records: Sequence[tuple[int, int]], batch: float) -> Callable[[], None]:
    """Return the cryptography of one handshake."""
    signatures = made.signatures()
    token_key, token_text, ecdsa = ec.generate_private_key(ec.SECP256R1()), os.urandom(6000), ec.ECDSA(hashes.SHA256())
    token_public, signature = token_key.public_key(), token_key.sign(token_text, ecdsa)
    curve = ec.SECP256R1()
    guest = ec.generate_private_key(curve).public_key().public_numbers()
    tls, row, log_key = AESGCM(os.urandom(32)), AESGCM(os.urandom(32)), Ed25519PrivateKey.generate()
    incoming = [[tls.encrypt(bytes(12), os.urandom(part), b"12345") for part in _parts(size)] for size, _ in records]
    outgoing = [[os.urandom(part) for part in _parts(size)] for _, size in records]
    sealed, bound = row.encrypt(bytes(12), SECRET, b"row"), os.urandom(600)
    fields = [(f"field{number}".encode(), os.urandom(64)) for number in range(12)]
    signed, carried = os.urandom(120), {"entries": 0.0}

    def once() -> None:
        for parts in incoming:
            for part in parts:
                tls.decrypt(bytes(12), part, b"12345")
        for check in signatures:
            check()
        hashlib.sha384(bound).digest()
        token_key.sign(token_text, ecdsa)
        token_public.verify(signature, token_text, ecdsa)
        row.encrypt(os.urandom(12), bound, b"row")
        row.decrypt(bytes(12), sealed, b"row")
        recipient = ec.EllipticCurvePublicNumbers(guest.x, guest.y, curve).public_key()
        ephemeral, key = ec.generate_private_key(curve), os.urandom(32)
        shared = ephemeral.exchange(ec.ECDH(), recipient)
        aes_key_wrap(ConcatKDFHash(hashes.SHA256(), 32, b"other").derive(shared), key)
        AESGCM(key).encrypt(os.urandom(12), SECRET, bound)
        salt = os.urandom(32)
        for name, value in fields:
            hmac.digest(salt, name, "sha256")
            hashlib.sha256(salt + value).digest()
        hashlib.sha256(bound * 3).digest()
        carried["entries"] += 1
        if carried["entries"] >= batch:
            carried["entries"] -= batch
            log_key.sign(signed)
        for parts in outgoing:
            for part in parts:
                tls.encrypt(bytes(12), part, b"12345")

    return once


def _parts(size: int) -> list[int]:
    return [min(16384, size - start) for start in range(0, size, 16384)]


def cpu_of(once: Callable[[], None], seconds: float) -> float:
    """Return CPU seconds of one call."""
    once()
    count, cpu, begun = 0, time.process_time(), time.monotonic()
    while time.monotonic() - begun < seconds:
        once()
        count += 1
    return (time.process_time() - cpu) / count


def paced_cost(once: Callable[[], None], seconds: float, rate: float) -> float:
    """Return CPU seconds of one call when there are so many per second, with pauses between them."""
    count, spent, begun = 0, 0.0, time.monotonic()
    while time.monotonic() - begun < seconds:
        time.sleep(max(0.0, begun + count / rate - time.monotonic()) or 1e-4)
        cpu = time.process_time()
        once()
        spent += time.process_time() - cpu
        count += 1
    return spent / count


def rate_of(once: Callable[[], None], seconds: float, processes: int) -> float:
    """Return calls per second of so many processes at once."""
    forked = multiprocessing.get_context("fork")
    warm, ends = forked.Barrier(processes), [forked.Pipe(duplex=False) for _ in range(processes)]

    def run(writing: Any) -> None:
        once()
        warm.wait()
        count, begun = 0, time.monotonic()
        while time.monotonic() - begun < seconds:
            once()
            count += 1
        writing.send(count / (time.monotonic() - begun))

    started = [forked.Process(target=run, args=(writing,)) for _, writing in ends]
    for process in started:
        process.start()
    total = sum(reading.recv() for reading, _ in ends)
    for process in started:
        process.join()
    return float(total)


def batch_of(site: Site, before: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """Return the entries and checkpoints of the log since `before`."""
    with closing(sqlite3.connect(site.state / "trust.db")) as database:
        entries = int(database.execute("SELECT count(*) FROM log_entries").fetchone()[0])
        checkpoints = int(database.execute("SELECT count(*) FROM log_checkpoints").fetchone()[0])
    return entries - before[0], checkpoints - before[1]


def policy_cost(site: Site, seconds: float) -> tuple[float, float]:
    """Return CPU seconds per handshake of the release decision and of the appraisal, measured in this process."""
    from cloister.trust.keybroker import Credentials, broker
    from cloister.trust.service import TrustService
    from cloister.trust.settings import TrustSettings
    from cloister.trust.verifier import service as verifier

    spent = {"release": 0.0, "appraisal": 0.0}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*arguments: Any, **options: Any) -> Any:
            begun = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                spent[name] += time.thread_time() - begun

        return wrapper

    decide, appraise = broker.KeyBroker._decide, verifier.appraise_evidence
    broker.KeyBroker._decide = timed("release", decide)  # type: ignore[method-assign]  # timed for this figure
    verifier.appraise_evidence = timed("appraisal", appraise)  # type: ignore[assignment]  # the same
    try:
        with TrustService(TrustSettings(state=site.state)) as service:
            guest = Guest(site.made)

            def once() -> None:
                answer = service.broker.auth(guest.begin.partition(b"\r\n\r\n")[2])
                request, _ = guest.attestation(f"kbs-session-id={answer.cookie};".encode(), answer.body)
                body = request.partition(b"\r\n\r\n")[2]
                attested = service.broker.attest(body, Credentials(cookie=answer.cookie))
                credentials = Credentials(bearer=json.loads(attested.body)["token"])
                released = service.broker.resource(str(PATH), credentials, deadline=time.monotonic() + 9)
                if released.status != 200:
                    raise SystemExit(f"refused: {released.body!r}")

            once()
            spent.update(release=0.0, appraisal=0.0)
            count, begun = 0, time.monotonic()
            while time.monotonic() - begun < seconds:
                once()
                count += 1
        return spent["release"] / count, spent["appraisal"] / count
    finally:
        broker.KeyBroker._decide = decide  # type: ignore[method-assign]  # as before
        verifier.appraise_evidence = appraise


async def _flood(site: Site, service: Service, seconds: float, connections: int) -> Counter[str]:
    found: Counter[str] = Counter()
    context = _context(site.ca_pem)
    begun = asyncio.Event()

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[bytes, bytes]:
        """Return head and body of an answer that is not 503."""
        while True:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            lower = head.lower()
            body = await reader.readexactly(int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0]))
            status = head[9:12].decode()
            found[status] += 1
            if status != "503":
                return head, body
            found["503 without Retry-After"] += b"\r\nretry-after:" not in lower

    async def knock(until: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port, ssl=context)
        guest = Guest(site.made)
        await begun.wait()
        while time.monotonic() < until:
            head, body = await ask(reader, writer, guest.begin)
            request, _ = guest.attestation(head, body)
            _, body = await ask(reader, writer, request)
            head, _ = await ask(reader, writer, guest.release(body))
            found["handshakes"] += 1
        writer.close()

    until = time.monotonic() + seconds + 3
    tasks = [asyncio.ensure_future(knock(until)) for _ in range(connections)]
    await asyncio.sleep(3)  # all connections are there
    begun.set()
    await asyncio.gather(*tasks)
    return found


@dataclass
class Report:
    """Rows as they are printed, and the targets that were missed."""

    missed: list[str] = field(default_factory=list)

    def judge(self, text: str, holds: bool) -> str:
        if not holds:
            self.missed.append(text)
        return "met" if holds else "MISSED"


def measure(tee: str, directory: Path, arguments: argparse.Namespace, report: Report) -> None:
    seconds, clients = arguments.seconds, arguments.clients
    site = Site(directory / tee, tee)
    with serving(site) as service:
        site.check(service.url)
        wire = Wire(service.port, site.ca_pem)
        handshake(Guest(site.made), wire, opened=True)
        before = batch_of(site)
        one = load(site, service, seconds, clients)
        entries, checkpoints = batch_of(site, before)
        batch = max(1.0, entries / max(1, checkpoints))
        bare = floor(site.made, wire.records, batch)
        costs = [cpu_of(bare, seconds / 2)]
        costs.append(load(site, service, seconds, clients).cost)  # not reported: the floor stands between two loads
        again = costs.pop()
        costs.append(cpu_of(bare, seconds / 2))
        base, paced = statistics.mean(costs), paced_cost(bare, seconds / 2, one.rate)
        half = load(site, service, seconds, clients, rate=one.rate / 2)
        strangers = load(site, service, seconds, clients, fresh=True)
    cost = statistics.mean((one.cost, again))
    print(f"\n{tee}: {clients} clients, {CPUS} CPUs shared with them, {batch:.1f} entries per signature of the log")
    print(f"{'row':22} {'CPU ms/handshake':>17} {'floor / row':>12} {'handshakes/s':>13} {'p50 ms':>8} {'p99 ms':>8}")
    floors = {workers: rate_of(bare, seconds / 2, workers) for workers in (1, 2)}
    for workers in (1, 2):
        print(f"{f'floor, {workers} process(es)':22} {1000 * base:17.3f} {1:12.2f} {floors[workers]:13.0f}")
    print(f"{'floor, with pauses':22} {1000 * paced:17.3f} {base / paced:12.2f}")
    _row("1 worker", cost, base, one)
    with serving(site, "--workers", "2") as service:
        site.check(service.url)
        two = load(site, service, seconds, clients)
    _row("2 workers", two.cost, base, two)
    _row("half load, 1 worker", half.cost, base, half)
    _row("3 connections each", strangers.cost, base, strangers)
    verdict = report.judge(f"{tee}: floor / service", base / cost >= SHARE)
    print(f"floor / service, CPU: {base / cost:.2f} (>= {SHARE}: {verdict}); rates, 1 worker:"
          f" {one.rate / floors[1]:.2f}, 2: {two.rate / floors[2]:.2f}, with the clients on the same CPUs")  # fmt: skip
    print(f"floor with pauses / service, CPU: {paced / cost:.2f}; clients with their TEEs:"
          f" {1000 * one.clients / len(one.latencies):.2f} CPU ms/handshake")  # fmt: skip
    measure_parts(site, arguments)
    spread = half.at(0.99) / half.at(0.5)
    verdict = report.judge(f"{tee}: p99 / p50 at half load", spread <= SPREAD)
    print(f"p99 / p50 at half load: {spread:.1f} (<= {SPREAD:.0f}: {verdict})")
    release, appraisal = policy_cost(site, seconds / 2)
    share = (release + appraisal) / cost
    verdict = report.judge(f"{tee}: policy", share <= POLICY)
    print(f"policy: release {1e6 * release:.0f} us, appraisal {1e6 * appraisal:.0f} us:"
          f" {share:.1%} of a handshake (<= {POLICY:.0%}: {verdict})")  # fmt: skip


def measure_parts(site: Site, arguments: argparse.Namespace) -> None:
    """Print where the service's CPU time goes, and how many writes shared a commit."""
    with serving(site, how="serve-named") as service:
        site.check(service.url)
        before, commits = service.parts(), service.batches()
        seen = load(site, service, arguments.seconds, arguments.clients)
        after, counted = service.parts(), service.batches()
    count = len(seen.latencies)
    parts = ", ".join(f"{name} {1000 * (after[name] - before[name]) / count:.2f}" for name in sorted(after))
    print(f"CPU ms/handshake by part: {parts}")
    total, below, shares = counted[float("inf")] - commits[float("inf")], 0.0, []
    for most in sorted(counted):
        upto = counted[most] - commits[most]
        if upto > below:
            shares.append(f"{'more' if most == float('inf') else f'<= {most:.0f}'} {(upto - below) / total:.0%}")
        below = upto
    print(f"writes in one commit, share of commits: {', '.join(shares)}; {total / count:.2f} commits/handshake")


def _row(name: str, cost: float, base: float, seen: Load) -> None:
    print(f"{name:22} {1000 * cost:17.3f} {base / cost:12.2f} {seen.rate:13.0f}"
          f" {1000 * seen.at(0.5):8.1f} {1000 * seen.at(0.99):8.1f}")  # fmt: skip


def measure_records(tee: str, directory: Path, arguments: argparse.Namespace, report: Report) -> None:
    """Compare CPU time with audit and log and without, in turn, now one first and now the other."""
    site = Site(directory / f"{tee}-records", tee)
    with serving(site) as whole, serving(site, how="serve-without-records") as bare:
        site.check(whole.url)
        pairs = []
        for number in range(PAIRS):
            order = (whole, bare) if number % 2 else (bare, whole)
            first, second = (load(site, service, arguments.seconds / 2, arguments.clients) for service in order)
            pairs.append((first, second) if number % 2 else (second, first))
    extra = statistics.median(on.cost / off.cost - 1 for on, off in pairs)
    slower = statistics.median(1 - on.rate / off.rate for on, off in pairs)
    verdict = report.judge(f"{tee}: audit and log", extra <= RECORDS)
    print(f"\naudit and log, {tee}: {extra:+.1%} CPU (<= {RECORDS:.0%}: {verdict}), {slower:+.1%} fewer handshakes/s")


def measure_overload(tee: str, directory: Path, arguments: argparse.Namespace, report: Report) -> None:
    site = Site(directory / f"{tee}-overload", tee)
    with serving(site, "--queue", str(QUEUE)) as service:
        found = asyncio.run(_flood(site, service, arguments.seconds, OVERLOAD * QUEUE))
    others = {status: count for status, count in found.items() if status not in ("200", "503", "handshakes") and count}
    verdict = report.judge("overload", not others and found["503"] > 0 and found["handshakes"] > 0)
    print(
        f"\noverload, {OVERLOAD * QUEUE} clients without pause, {QUEUE} admitted: {found['200']} requests 200,"
        f" {found['503']} 503 with Retry-After, others {others or 'none'}; {found['handshakes']} whole handshakes"
        f" ({verdict})"
    )


def _now() -> datetime:
    return datetime.now(UTC)


def main() -> int:
    own = {"serve-without-records": serve_without_records, "serve-named": serve_named}.get("".join(sys.argv[1:2]))
    if own is not None:
        return own(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tee", default=",".join(TEES))
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--only", choices=["handshake", "records", "overload"], help="one part alone")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    tees, report = arguments.tee.split(","), Report()
    print(f"load before: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as name:
        if arguments.only in (None, "handshake"):
            for tee in tees:
                measure(tee, Path(name), arguments, report)
        if arguments.only in (None, "records"):
            measure_records(tees[0], Path(name), arguments, report)
        if arguments.only in (None, "overload"):
            measure_overload(tees[0], Path(name), arguments, report)
    print(f"load after: {os.getloadavg()[0]:.1f}")
    if report.missed:
        print("missed: " + "; ".join(report.missed))
    return int(arguments.check and bool(report.missed))


if __name__ == "__main__":
    sys.exit(main())
