"""The trust service as a process: start, TLS, end, faults of disk and lock, sudden death."""

from __future__ import annotations

import base64
import fcntl
import http.client
import http.cookiejar
import json
import os
import random
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cloister.crypto.jwe import EphemeralKey
from cloister.errors import KeyReleaseDenied, Refused, Unavailable
from cloister.protocol.kbs import SealedResource
from cloister.protocol.resourceuri import parse_resource_path
from cloister.trust.store.records import RELEASED
from trust_process import (
    Owner,
    Running,
    attestation_body,
    command,
    enrolment,
    make_owner,
    prepared_attestation,
    running,
)
from trust_world import CANARY, MODEL, all_bytes, b64, init_data, rule

RESOURCE = f"/kbs/v0/resource/{MODEL}"


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    return make_owner(tmp_path)


@pytest.fixture
def service(owner: Owner) -> Iterator[Running]:
    with running(owner.state, "--store-seconds", "1", "--request-seconds", "3") as made:
        yield made


def code(body: bytes) -> str:
    value: str = json.loads(body)["code"]
    return value


class TestFlow:
    def test_our_client_gets_its_resource(self, owner: Owner, service: Running) -> None:
        client = service.client(owner)
        assert client.get_resource(MODEL) == CANARY
        client.wipe()
        with owner.admin() as admin:
            [row] = admin.list_audit()
        assert (row.decision, row.level, row.resource) == (RELEASED, "measured", str(MODEL))
        answered = [line for line in service.lines() if line["event"] == "answered"]
        assert [line["route"] for line in answered] == ["auth", "attest", "resource"]
        assert {line["request"] for line in answered} == {row.request}, "one id from guest to decision"

    def test_a_client_with_a_cookie_jar_gets_it(self, owner: Owner, service: Running) -> None:
        """CoCo's `kbs-client`: one HTTP client with a jar, no token shown."""
        jar = http.cookiejar.CookieJar()
        context = ssl.create_default_context(cadata=service.ca_pem)
        opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=context), urllib.request.HTTPCookieProcessor(jar)
        )
        base = service.report["url"] + "/kbs/v0"
        tpm, key = owner.tpm(), EphemeralKey.generate()
        challenge = json.load(opener.open(base + "/auth", enrolment(tpm)))
        body = attestation_body(owner, tpm, key, challenge)
        assert json.load(opener.open(base + "/attest", body))["token"]
        sealed = json.load(opener.open(f"{base}/resource/{MODEL}"))
        assert key.open(SealedResource(**sealed)) == CANARY
        assert [cookie.path for cookie in jar] == ["/kbs/v0"]

    def test_its_token_is_signed_by_a_published_key(self, owner: Owner, service: Running) -> None:
        client = service.client(owner)
        client.attest()
        header = json.loads(base64.urlsafe_b64decode(client.token.split(".")[0] + "=="))
        client.wipe()
        status, _, body = service.request("GET", "/.well-known/jwks.json")
        assert status == 200
        [key] = [key for key in json.loads(body)["keys"] if key["kid"] == header["kid"]]
        assert key["use"] == "sig" and "d" not in key
        assert {name: header["jwk"][name] for name in ("x", "y")} == {name: key[name] for name in ("x", "y")}

    @pytest.mark.parametrize("services", [1, 2])
    def test_one_nonce_from_twenty_connections(self, owner: Owner, service: Running, services: int) -> None:
        """To one service, and to two on the same state directory."""
        with ExitStack() as stack:
            second = stack.enter_context(running(owner.state)) if services == 2 else service
            cookie, attestation = prepared_attestation(owner, service)

            def send(index: int) -> tuple[int, dict[str, str], bytes]:
                target = (service, second)[index % 2]
                return target.request("POST", "/kbs/v0/attest", attestation, Cookie=cookie)

            with ThreadPoolExecutor(20) as threads:
                answers = list(threads.map(send, range(20)))
        assert sorted(answer[0] for answer in answers) == [200, *([401] * 19)]
        assert {code(answer[2]) for answer in answers if answer[0] == 401} == {"trust.session.nonce_used"}

    def test_a_handshake_goes_on_after_a_restart(self, owner: Owner) -> None:
        with running(owner.state) as first:
            client = first.client(owner)
            client.attest()
            port = first.report["port"]
            assert first.end() == 0
        with running(owner.state, "--listen", f"127.0.0.1:{port}"):
            assert client.get_resource(MODEL) == CANARY
        client.wipe()

    def test_a_service_that_comes_late_is_waited_for(self, owner: Owner) -> None:
        started = threading.Event()
        with running(owner.state) as first:
            client = first.client(owner, sleep=lambda _: bool(started.wait(20)))
            port = first.report["port"]
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(client.get_resource, MODEL)
            with running(owner.state, "--listen", f"127.0.0.1:{port}"):
                started.set()
                assert waiting.result(20) == CANARY
        client.wipe()

    def test_denied_and_missing(self, owner: Owner, service: Running) -> None:
        other = init_data(pod="two")
        client = service.client(owner, owner.tpm(other), data=other)
        with pytest.raises(KeyReleaseDenied) as denied:
            client.get_resource(MODEL)
        assert denied.value.code == "trust.release.init_data"
        with pytest.raises(Refused) as missing:
            client.get_resource(parse_resource_path("default/model/none"))
        assert missing.value.code == "client.resource_not_found"
        client.wipe()
        with owner.admin() as admin:
            record = admin.get_denial(denied.value.path)
        assert owner.data.digest_text[:20] in next(item.expected for item in record.findings if not item.ok)


class TestCoCoClients:
    """What unmodified clients do with errors: they repeat 401, stop at 404, and show the body of the rest."""

    @pytest.mark.parametrize("resource_path", ["default/model/none", str(MODEL), "a", "a/b/c/d"])
    @pytest.mark.parametrize("credential", ["none", "token", "forged"])
    def test_every_refused_read_has_type_and_detail(
        self, owner: Owner, service: Running, resource_path: str, credential: str
    ) -> None:
        headers = {}
        if credential != "none":
            client = service.client(owner)
            client.attest()
            headers["Authorization"] = "Bearer " + client.token[: None if credential == "token" else -8]
            client.wipe()
        status, _, body = service.request("GET", f"/kbs/v0/resource/{resource_path}", **headers)
        if status == 200:
            assert (credential, resource_path) == ("token", str(MODEL))
            return
        error = json.loads(body)
        assert error["type"].startswith("https://github.com/confidential-containers/kbs/errors/") and error["detail"]
        assert status in (400, 401, 403, 404)

    @pytest.mark.parametrize(("path", "status"), [("default/model/none", 404), ("other/model/denied", 403)])
    def test_missing_and_denied_cost_one_attempt(self, owner: Owner, service: Running, path: str, status: int) -> None:
        with owner.admin() as admin:
            admin.put_resource(parse_resource_path("other/model/denied"), b"x")
        client = service.client(owner)
        handshakes, reads = 0, []
        for _ in range(3):  # the client's own loop: a new handshake after each 401, at most three
            handshakes += 1
            token = client.attest()
            reads.append(service.request("GET", f"/kbs/v0/resource/{path}", Authorization=f"Bearer {token}"))
            if reads[-1][0] != 401:
                break
        client.wipe()
        assert handshakes == 1 and reads[-1][0] == status
        assert json.loads(reads[-1][2])["denial-id"] in json.loads(reads[-1][2])["detail"]

    def test_the_version_mismatch_keeps_its_phrase(self, service: Running) -> None:
        status, _, body = service.request("POST", "/kbs/v0/auth", b'{"version":"0.3.0","tee":"snp","extra-params":""}')
        phrase = "KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is 0.3.0"
        assert status == 401 and json.loads(body)["detail"].startswith(phrase)


class TestChannel:
    def test_another_ca_is_refused(self, owner: Owner, service: Running, tmp_path: Path) -> None:
        with make_owner(tmp_path / "other").admin() as admin:
            foreign = admin.ca_pem()
        service.ca_pem = foreign
        client = service.client(owner)
        with pytest.raises(Refused) as caught:
            client.attest()
        assert caught.value.code == "client.server_untrusted"

    def test_another_name_is_refused(self, owner: Owner) -> None:
        with running(owner.state, "--names", "trust.example,10.0.2.2") as service:
            with pytest.raises(Refused) as caught:
                service.client(owner).attest()
            assert caught.value.code == "client.server_untrusted"

    def test_older_tls_is_refused(self, service: Running) -> None:
        context = ssl.create_default_context(cadata=service.ca_pem)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            socket.create_connection(("127.0.0.1", service.report["port"])) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1", do_handshake_on_connect=False) as channel,
            pytest.raises(ssl.SSLError),
        ):
            channel.do_handshake()

    def test_plain_http_gets_nothing(self, service: Running) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", service.report["port"], timeout=10)
        with pytest.raises((http.client.HTTPException, OSError)):
            connection.request("GET", "/healthz")
            connection.getresponse()
        connection.close()

    def test_a_silent_server_is_given_up(self, owner: Owner, service: Running) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            service.report["url"] = f"https://127.0.0.1:{silent.getsockname()[1]}"
            client = service.client(owner, timeout=0.2, attempts=2, sleep=lambda _: None)
            with pytest.raises(Unavailable) as caught:
                client.attest()
        assert caught.value.code == "client.unreachable"

    def test_an_answer_without_end_is_cut(self, owner: Owner, tmp_path: Path) -> None:
        """Even the right server cannot fill a guest's memory."""
        from datetime import UTC, datetime

        from cloister.client.channel import PinnedChannel
        from cloister.crypto.tlsca import CertificateAuthority

        authority = CertificateAuthority.create("test", at=datetime.now(UTC))
        issued = authority.issue_server(["127.0.0.1"], at=datetime.now(UTC))
        (tmp_path / "chain.pem").write_bytes(issued.certificate_pem + issued.key_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "chain.pem")

        def flood(listener: socket.socket) -> None:
            raw, _ = listener.accept()
            try:
                with context.wrap_socket(raw, server_side=True) as peer:
                    peer.recv(4096)
                    peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    for _ in range(64):
                        peer.sendall(bytes(1024 * 1024))
            except OSError:
                return

        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=flood, args=(listener,))
            thread.start()
            url = f"https://127.0.0.1:{listener.getsockname()[1]}"
            channel = PinnedChannel(url, authority.certificate_pem.decode(), timeout=10)
            with pytest.raises(Refused) as caught:
                channel.request("GET", "/")
            assert caught.value.code == "client.answer_too_long"
            thread.join(20)


class TestProcess:
    def test_it_starts_quickly_and_reports(self, owner: Owner, tmp_path: Path) -> None:
        report = tmp_path / "ready.json"
        begun = time.monotonic()
        process = subprocess.Popen(command(owner.state, "--ready-file", str(report)), stderr=subprocess.DEVNULL)
        try:
            while not report.exists():
                assert process.poll() is None and time.monotonic() - begun < 20
                time.sleep(0.01)
            ready = json.loads(report.read_text())
            assert ready["pid"] == process.pid and ready["url"] == f"https://127.0.0.1:{ready['port']}"
            assert Path(ready["ca_file"]).read_text().startswith("-----BEGIN CERTIFICATE-----")
            socket.create_connection(("127.0.0.1", ready["port"])).close()
        finally:
            process.terminate()
            assert process.wait(20) == 0

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_it_ends_cleanly(self, owner: Owner, number: int) -> None:
        with running(owner.state) as service:
            client = service.client(owner)
            client.get_resource(MODEL)
            assert service.end(number) == 0
            events = [line["event"] for line in service.lines()]
            assert events[0] == "ready" and events[-2:] == ["stopping", "stopped"]
            client.wipe()
        assert not list(owner.state.glob("*-wal")), "the log was folded into the database"

    def test_it_ends_with_its_parent(self, owner: Owner, tmp_path: Path) -> None:
        child = command(owner.state, "--die-with-parent", "--ready-file", str(tmp_path / "r"))
        script = f"import subprocess, time\np = subprocess.Popen({child!r})\ntime.sleep(60)\n"
        parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
        report = tmp_path / "r"
        until = time.monotonic() + 20
        while not report.exists() and time.monotonic() < until:
            time.sleep(0.01)
        pid = json.loads(report.read_text())["pid"]
        parent.kill()
        parent.wait()
        while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                break
            time.sleep(0.01)
        assert time.monotonic() < until

    def test_a_taken_port_is_refused(self, owner: Owner, service: Running, tmp_path: Path) -> None:
        """Even though granian's listeners could share a port, by the same user."""
        other = make_owner(tmp_path / "other")
        listen = f"127.0.0.1:{service.report['port']}"
        done = subprocess.run(command(other.state, "--listen", listen), capture_output=True, text=True, timeout=30)
        assert done.returncode == 1 and "trust.app.address_in_use" in done.stderr

    def test_a_readable_state_directory_is_refused(self, owner: Owner) -> None:
        owner.state.chmod(0o755)
        done = subprocess.run(command(owner.state), capture_output=True, text=True, timeout=30)
        assert done.returncode == 1 and "trust.state.permissions" in done.stderr
        owner.state.chmod(0o700)


class TestFaults:
    def test_oversized_and_unfinished_requests(self, service: Running) -> None:
        assert service.request("POST", "/kbs/v0/auth", bytes(3 * 1024 * 1024))[0] == 413
        connection = service.connect()
        connection.putrequest("POST", "/kbs/v0/auth")
        connection.putheader("Content-Length", "100")
        connection.endheaders(b"half")
        assert connection.getresponse().status == 503, "given up after the deadline"
        connection.close()
        assert service.request("GET", "/healthz")[0] == 200

    def test_a_full_disk_releases_nothing_and_heals(self, owner: Owner, service: Running) -> None:
        """The kernel refuses to let the service's files grow; lifting the limit is all that recovery needs."""
        client = service.client(owner)
        client.attest()
        headers = {"Authorization": f"Bearer {client.token}"}
        assert service.request("GET", RESOURCE, **headers)[0] == 200
        _, hard = resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (0, hard))
        for _ in range(3):
            begun = time.monotonic()
            status, answer_headers, body = service.request("GET", RESOURCE, **headers)
            assert (status, code(body)) == (503, "trust.store.failed") and answer_headers["retry-after"]
            assert time.monotonic() - begun < 5
        assert service.request("GET", "/healthz")[0] == 503
        assert service.request("POST", "/kbs/v0/auth", b"{}")[0] == 503, "no record of a refusal, no refusal"
        status, _, body = service.request("GET", "/readyz")
        assert status == 503 and json.loads(body)["checks"]["store"].endswith("(trust.store.failed)")
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        assert service.request("GET", RESOURCE, **headers)[0] == 200
        assert service.request("GET", "/healthz")[0] == 200
        until = time.monotonic() + 5
        while service.request("GET", "/readyz")[0] != 200:
            assert time.monotonic() < until
        client.wipe()
        with owner.admin() as admin:
            assert [row.decision for row in admin.list_audit()] == [RELEASED, RELEASED]

    def test_a_stalled_store_refuses_in_time_and_heals(self, owner: Owner, service: Running) -> None:
        client = service.client(owner)
        client.attest()
        headers = {"Authorization": f"Bearer {client.token}"}
        with (owner.state / "write.lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            begun = time.monotonic()
            with ThreadPoolExecutor(12) as threads:
                answers = list(threads.map(lambda _: service.request("GET", RESOURCE, **headers), range(12)))
            assert {answer[0] for answer in answers} == {503}
            assert {code(answer[2]) for answer in answers} <= {
                "trust.store.locked",
                "trust.store.timeout",
                "trust.request.timeout",
            }
            assert time.monotonic() - begun < 10
        until = time.monotonic() + 10
        while service.request("GET", RESOURCE, **headers)[0] != 200:
            assert time.monotonic() < until
        client.wipe()
        with owner.admin() as admin:
            assert [row.decision for row in admin.list_audit()] == [RELEASED]

    def test_no_secret_in_log_or_state(self, owner: Owner, service: Running) -> None:
        client = service.client(owner)
        assert client.get_resource(MODEL) == CANARY
        token = client.token
        client.wipe()
        service.request("GET", RESOURCE, Authorization=f"Bearer {token[:-5]}")
        service.request("GET", f"/kbs/v0/resource/{CANARY.decode()}/b/c", Authorization=f"Bearer {token}")
        service.request("POST", "/kbs/v0/attest", CANARY, Cookie="kbs-session-id=" + "0" * 32)
        service.request("GET", "/" + CANARY.decode())
        service.end()
        log = service.log.read_bytes()
        assert len(service.lines()) >= 8
        for secret in (CANARY, token.encode(), token[:80].encode(), b64(CANARY).encode()):
            assert secret not in log
        assert CANARY in all_bytes(owner.state), "a path that a guest asks for is on record: it is no secret"
        (owner.state / "trust.db").unlink()
        assert CANARY not in all_bytes(owner.state)


def test_no_acknowledged_release_is_missing_after_kill_9(owner: Owner) -> None:
    """Sudden death at random points between audit and answer: what a guest got is on record."""
    points = random.Random(20261124)
    acknowledged: Counter[str] = Counter()
    tpm = owner.tpm()
    for _ in range(12):
        with running(owner.state) as service:
            client = service.client(owner, tpm)
            client.attest()
            token = client.token
            client.wipe()
            stop = threading.Event()

            def fetch(service: Running = service, token: str = token, stop: threading.Event = stop) -> int:
                connection, got = service.connect(), 0
                try:
                    while not stop.is_set():
                        connection.request("GET", RESOURCE, headers={"Authorization": f"Bearer {token}"})
                        response = connection.getresponse()
                        body = response.read()
                        got += response.status == 200 and len(body) > 100
                except (OSError, http.client.HTTPException):
                    return got
                finally:
                    connection.close()
                return got

            with ThreadPoolExecutor(4) as threads:
                fetching = [threads.submit(fetch) for _ in range(4)]
                time.sleep(points.uniform(0.02, 0.3))
                service.end(signal.SIGKILL)
                stop.set()
                acknowledged[attestation_of(token)] += sum(future.result() for future in fetching)
    with owner.admin() as admin:
        rows, after = [], 0
        while page := admin.list_audit(after=after):
            rows += page
            after = page[-1].sequence
    recorded = Counter(row.attestation for row in rows if row.decision == RELEASED)
    assert sum(acknowledged.values()) > 50, "the clients did get something before each death"
    assert not {name for name, count in acknowledged.items() if recorded[name] < count}
    assert [row.sequence for row in rows] == sorted(row.sequence for row in rows)


def attestation_of(token: str) -> str:
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    identity: str = claims["jti"]
    return identity


def test_rules_changed_by_a_command_apply_to_the_running_service(owner: Owner, service: Running) -> None:
    client = service.client(owner)
    assert client.get_resource(MODEL) == CANARY
    with owner.admin() as admin:
        admin.add_release_rule(rule(owner.data, init_data=()))
    with pytest.raises(KeyReleaseDenied):
        client.get_resource(MODEL)
    client.wipe()


def test_it_survives_many_commands_of_the_owner_at_once(owner: Owner, service: Running) -> None:
    client = service.client(owner)
    client.attest()
    stop = threading.Event()

    def administer() -> int:
        rounds = 0
        while not stop.is_set():
            with owner.admin() as admin:
                admin.put_resource(MODEL, CANARY + os.urandom(4))
            rounds += 1
        return rounds

    with ThreadPoolExecutor(2) as threads:
        busy = [threads.submit(administer) for _ in range(2)]
        for _ in range(50):
            assert client.get_resource(MODEL).startswith(CANARY)
        stop.set()
        assert sum(future.result() for future in busy) > 2
    client.wipe()
