"""Clients of a chaos run: guests whose handshakes wander between replicas, replayers, and intruders."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from chaos.history import History, Release
from chaos.owner import PODS, STEADY, TOGGLED, UNRULED, Owner
from cloister.client.channel import PinnedChannel, Response
from cloister.client.keybroker import KeyBrokerClient
from cloister.crypto.jwe import EphemeralKey
from cloister.errors import CloisterError, Unavailable
from cloister.protocol.initdata import BrokerAddress, InitData
from cloister.protocol.kbs import PREFIX, RuntimeData, report_data
from cloister.protocol.resourceuri import ResourcePath
from cloister.tee.insecure.abi import TEE
from cloister.wire.canonicaljson import encode_canonical

SILENCE_SECONDS = 4.0  # longer than a request may take
PAUSE_SECONDS = 0.1
SPENT_KEPT = 200
# What never is a consequence of a fault: a key without its receipt, an answer that does not open, another server.
WRONG = (
    "client.receipt.",
    "client.broker_malformed",
    "client.server_untrusted",
    "client.answer_too_long",
    "tlog.",
    "crypto.jwe.",
)

Url = Callable[[], str]


@dataclass(slots=True)
class Sent:
    """The last read of a resource that was answered by 200."""

    replica: int = -1
    receipt: str = ""
    begun: float = 0.0
    ended: float = 0.0


class Roving:
    """A channel whose every request goes to some replica; it notes what the checkers want to know."""

    def __init__(self, urls: Sequence[Url], ca_pem: str, choose: random.Random, history: History) -> None:
        self._urls, self._ca_pem = urls, ca_pem
        self._choose, self._history = choose, history
        self._channels: dict[int, tuple[str, PinnedChannel]] = {}
        self.sent = Sent()
        self.guest_key = ""

    def request(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        replica = self._choose.randrange(len(self._urls))
        if path == f"{PREFIX}/attest" and body is not None:
            runtime = json.loads(body)["runtime-data"]
            self.guest_key = hashlib.sha256(encode_canonical(runtime["tee-pubkey"])).hexdigest()
        begun = time.monotonic()
        response = self.to(replica).request(method, path, body=body, headers=headers)
        if response.status == 200 and path == f"{PREFIX}/attest":
            self._history.accepted(runtime["nonce"], replica)
        if response.status == 200 and method == "GET":
            self.sent = Sent(replica, response.headers.get("cloister-receipt", ""), begun, time.monotonic())
        return response

    def to(self, replica: int) -> PinnedChannel:
        url = self._urls[replica]()
        known = self._channels.get(replica)
        if known is None or known[0] != url:
            if known is not None:
                known[1].close()
            self._channels[replica] = known = (url, PinnedChannel(url, self._ca_pem, timeout=SILENCE_SECONDS))
        return known[1]

    def close(self) -> None:
        """Nothing: connections are kept between guests."""

    def end(self) -> None:
        for _, channel in self._channels.values():
            channel.close()


class Load:
    """All clients. Use as a context manager.

    Args:
        urls: give the address of each replica.
        owner: whose guests.
        history: of the run.
        seed: of all choices.
        guests: threads that do handshakes.
        patience: share of its usual pauses after which a client tries again.
    """

    def __init__(
        self, urls: Sequence[Url], owner: Owner, history: History, *, seed: int, guests: int, patience: float = 1.0
    ) -> None:
        self.urls, self.owner, self.history = urls, owner, history
        self._patience = patience
        self.stop = threading.Event()
        work: list[Callable[[random.Random], None]] = [*[self._guests] * guests, self._replayers, self._intruders]
        self._threads = [
            threading.Thread(
                target=item, args=(random.Random(f"{seed} client {number}"),), name=f"chaos-client{number}"
            )
            for number, item in enumerate(work)
        ]
        self._threads.append(threading.Thread(target=owner.change, args=(self.stop, seed), name="chaos-owner"))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(60)
            if thread.is_alive():
                self.history.fault(f"{thread.name} hangs")

    def probe(self, replica: int, seconds: float) -> float | None:
        """Return the time until one replica alone does a whole handshake and release, None if it takes too long."""
        begun = time.monotonic()
        channel = Roving([self.urls[replica]], self.owner.ca_pem, random.Random(0), self.history)
        try:
            while time.monotonic() - begun < seconds:
                if self._visit(channel, self.owner.data, STEADY, who="probe", attempts=1):
                    return time.monotonic() - begun
                time.sleep(PAUSE_SECONDS * self._patience)
            return None
        finally:
            channel.end()

    # Guests

    def _guests(self, choose: random.Random) -> None:
        channel = Roving(self.urls, self.owner.ca_pem, choose, self.history)
        while not self.stop.is_set():
            wanted = choose.random()
            if wanted < 0.6:
                ok = self._visit(channel, self.owner.data, STEADY, again=choose.random() < 0.3)
            elif wanted < 0.8:
                ok = self._visit(channel, self.owner.data, TOGGLED, who="guest of a rule that comes and goes")
            else:
                ok = self._visit(channel, self.owner.pod, PODS, who="pod that is revoked")
            if not ok:
                self.stop.wait(PAUSE_SECONDS * self._patience)
        channel.end()

    def _visit(
        self,
        channel: Roving,
        data: InitData,
        path: ResourcePath,
        *,
        who: str = "guest",
        again: bool = False,
        attempts: int = 5,
    ) -> bool:
        """One guest with a key of its own: handshake and release; return whether it got what it asked for."""
        owner, history = self.owner, self.history
        broker = BrokerAddress(url="https://127.0.0.1:1", ca_pem=owner.ca_pem, release_log=owner.log_pins)
        client = KeyBrokerClient(
            broker,
            owner.attester(data),
            data.text.decode(),
            TEE,
            channel=channel,
            attempts=attempts,
            sleep=lambda seconds: time.sleep(seconds * self._patience),
        )
        try:
            for _ in range(2 if again else 1):
                content = client.get_resource(path)
                sent = channel.sent
                release = Release(
                    path=str(path),
                    guest_key=channel.guest_key,
                    init_data=data.digest_text,
                    receipt=sent.receipt,
                    replica=sent.replica,
                    begun=sent.begun,
                    ended=sent.ended,
                    who=who,
                )
                history.released(release)
                if content != owner.secrets[path]:
                    history.fault(f"{path} has another content than the owner gave it")
        except Unavailable as err:
            history.count(f"unavailable: {err.code}")
            return False
        except CloisterError as err:
            if err.code.startswith(WRONG):
                history.fault(f"{who} of {path}: {err.code} {err}")
            history.count(f"refused: {err.code}")
            return False
        finally:
            client.wipe()
        return True

    # Those who send an attestation more than once

    def _replayers(self, choose: random.Random) -> None:
        channel = Roving(self.urls, self.owner.ca_pem, choose, self.history)
        spent: list[tuple[str, str, bytes]] = []
        with ThreadPoolExecutor(2 * len(self.urls)) as pool:
            while not self.stop.is_set():
                try:
                    cookie, nonce, body = self._prepared(channel)
                except CloisterError:
                    self.stop.wait(PAUSE_SECONDS * self._patience)
                    continue
                self._fire(pool, cookie, nonce, body)
                spent.append((cookie, nonce, body))
                if len(spent) > SPENT_KEPT:
                    del spent[choose.randrange(len(spent))]
                self._fire(pool, *choose.choice(spent))
        channel.end()

    def _prepared(self, channel: Roving) -> tuple[str, str, bytes]:
        """Return cookie, nonce and the attestation that is good for them, once."""
        begin = json.dumps({"version": "0.4.0", "tee": TEE, "extra-params": ""}).encode()
        headers = {"Content-Type": "application/json"}
        response = channel.request("POST", f"{PREFIX}/auth", body=begin, headers=headers)
        if response.status != 200:
            raise Unavailable("client.broker_unavailable", "no session")
        nonce = json.loads(response.body)["nonce"]
        runtime = RuntimeData(nonce=nonce, tee_pubkey=EphemeralKey.generate().public_jwk())
        data = self.owner.data
        evidence = self.owner.attester(data).attest(report_data(runtime, ""))
        message = {
            "init-data": {"format": "toml", "body": data.text.decode()},
            "runtime-data": {"nonce": nonce, "tee-pubkey": runtime.tee_pubkey},
            "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
        }
        return response.headers["set-cookie"].split(";")[0], nonce, json.dumps(message).encode()

    def _fire(self, pool: ThreadPoolExecutor, cookie: str, nonce: str, body: bytes) -> None:
        """Send one attestation to all replicas, twice each, at once."""

        def send(replica: int) -> None:
            with PinnedChannel(self.urls[replica](), self.owner.ca_pem, timeout=SILENCE_SECONDS) as channel:
                headers = {"Content-Type": "application/json", "Cookie": cookie}
                try:
                    response = channel.request("POST", f"{PREFIX}/attest", body=body, headers=headers)
                except CloisterError:
                    return
                self.history.count(f"replay: {response.status}")
                if response.status == 200:
                    self.history.accepted(nonce, replica)

        list(pool.map(send, [*range(len(self.urls))] * 2))
        self.history.count("attestations fired at all replicas at once")

    # Those who may not have what they ask for

    def _intruders(self, choose: random.Random) -> None:
        channel = Roving(self.urls, self.owner.ca_pem, choose, self.history)
        owner = self.owner
        asked = [
            (owner.data, UNRULED, "intruder without a rule"),
            (owner.stranger, STEADY, "intruder with other init data"),
            (owner.stranger, PODS, "intruder with other init data"),
            (owner.revoked, STEADY, "intruder with revoked init data"),
            (owner.revoked, PODS, "intruder with revoked init data"),
        ]
        while not self.stop.is_set():
            data, path, who = choose.choice(asked)
            self._visit(channel, data, path, who=who)
            self.history.count("intrusions tried")
            self._without_token(channel)
            self.stop.wait(PAUSE_SECONDS * self._patience)
        channel.end()

    def _without_token(self, channel: Roving) -> None:
        """Ask with no token, and with one that somebody else signed."""
        parts = "eyJhbGciOiJFUzI1NiJ9.eyJpYXQiOjAsImV4cCI6OTk5OTk5OTk5OX0." + "A" * 86
        for headers in ({}, {"Authorization": f"Bearer {parts}"}):
            try:
                response = channel.request("GET", f"{PREFIX}/resource/{STEADY}", headers=headers)
            except CloisterError:
                continue
            if response.status == 200:
                self.history.fault("a resource was given to somebody without a token of the verifier")
