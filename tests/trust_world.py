"""A trust service in this process, with an owner, a clock and guests that speak the protocol by hand."""

from __future__ import annotations

import atexit
import base64
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa

import made_once  # noqa: F401  # from here on
from cloister.crypto.jwe import EphemeralKey
from cloister.protocol.initdata import InitData, build_initdata
from cloister.protocol.kbs import SealedResource
from cloister.protocol.resourceuri import ResourcePath, parse_resource_path
from cloister.rats.claims import Level
from cloister.rats.reference import ReferenceEntry
from cloister.testing.tpm import NOW, EKProfile, EndorsementCA, FakeTPM
from cloister.trust.admin import TrustAdmin
from cloister.trust.keybroker import Answer, Credentials
from cloister.trust.keybroker.policy import ReleaseRule
from cloister.trust.service import TrustService
from cloister.trust.settings import TrustSettings
from store_places import PATIENT_SECONDS

MODEL = parse_resource_path("default/model/one")
CANARY = b"canary-7f1d9b3e-secret-of-the-model"
LAUNCH = b'{"profile":"test"}'
APPRAISAL = b'{"version":1,"id":"default","tees":["tpm"],"insecure_accept_levels":["measured"]}'


class Clock:
    """A clock that tests set."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **parts: float) -> None:
        self.now += timedelta(**parts)


@cache
def endorsement_key() -> rsa.RSAPrivateKey:
    """One RSA key for all fake TPMs: making one is the slowest thing here."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def init_data(**entries: str) -> InitData:
    return build_initdata({"pod-policy.json": "{}", **entries})


def booted_tpm(ca: EndorsementCA, data: InitData, *, launch: bytes = LAUNCH, now: datetime = NOW) -> FakeTPM:
    profile = EKProfile(not_before=now - timedelta(days=1), not_after=now + timedelta(days=365))
    tpm = FakeTPM(ca, ek=endorsement_key(), launch_blob=launch, profile=profile)
    tpm.extend(8, data.digest)
    return tpm


@dataclass
class World:
    """Owner, service and the CA of the TPMs."""

    state: Path
    clock: Clock
    ca: EndorsementCA
    data: InitData
    admin: TrustAdmin
    settings: TrustSettings
    service: TrustService
    guests: list[Guest] = field(default_factory=list)

    def restart(self) -> None:
        """Stop the service and start another on the same state."""
        self.service.close()
        self.service = TrustService(self.settings, clock=self.clock)

    def guest(self, data: InitData | None = None, *, launch: bytes = LAUNCH) -> Guest:
        data = data or self.data
        return Guest(self, booted_tpm(self.ca, data, launch=launch), data)

    def close(self) -> None:
        self.service.close()
        self.admin.close()


def furnish(admin: TrustAdmin, ca: EndorsementCA, data: InitData, *, now: datetime = NOW) -> None:
    """Do what an owner does before the first release: roots, policy, reference values, one resource, one rule."""
    for root in ca.roots(Level.MEASURED):
        admin.add_root(root)
    admin.put_appraisal_policy(APPRAISAL)
    pcr00 = booted_tpm(ca, data).read_pcrs()[0]
    admin.add_reference_entries(
        [
            ReferenceEntry(
                id="podvm", tee="tpm", registers={"pcr00": pcr00}, not_after=now + timedelta(days=30), origin="test"
            )
        ]
    )
    admin.put_resource(MODEL, CANARY)
    admin.add_release_rule(rule(data))


def rule(data: InitData, path: str = "default/model/*", **changes: Any) -> ReleaseRule:
    values: dict[str, Any] = {
        "prefix": path,
        "init_data": (data.digest_text,),
        "appraisal_policy": "default",
        "insecure_allow_levels": (Level.MEASURED,),
    }
    return ReleaseRule(**{**values, **changes})


@cache
def furnished() -> tuple[Path, EndorsementCA, InitData]:
    """One furnished state directory to copy from: making one costs ten commits and several keys."""
    directory = Path(tempfile.mkdtemp(prefix="cloister-trust-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    ca, data = EndorsementCA(), init_data()
    with TrustAdmin(directory / "state", clock=Clock()) as admin:
        furnish(admin, ca, data)
    return directory / "state", ca, data


@cache
def _empty(now: datetime) -> Path:
    directory = Path(tempfile.mkdtemp(prefix="cloister-trust-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    TrustAdmin(directory / "state", clock=Clock(now)).close()
    return directory / "state"


def copy_empty_state(state: Path, now: datetime) -> None:
    """Make a state directory as the first start makes it at that time; its keys are those of others."""
    shutil.copytree(_empty(now), state)


def make_world(directory: Path, **settings: Any) -> World:
    """Return a furnished world; one with a `database` of its own is furnished there."""
    template, ca, data = furnished()
    clock = Clock()
    state = directory / "state"
    chosen = TrustSettings(state=state, **{"store_seconds": PATIENT_SECONDS, **settings})
    if not chosen.database:  # a directory belongs to its database
        shutil.copytree(template, state)
    admin = TrustAdmin(state, clock=clock, database=chosen.database)
    if chosen.database:
        furnish(admin, ca, data)
    service = TrustService(chosen, clock=clock)
    return World(state=state, clock=clock, ca=ca, data=data, admin=admin, settings=chosen, service=service)


class Guest:
    """A guest that writes its messages by hand, from the protocol's description, so that tests can bend each."""

    def __init__(self, world: World, tpm: FakeTPM, data: InitData) -> None:
        self.world = world
        self.tpm = tpm
        self.data = data
        self.key = EphemeralKey.generate()
        self.cookie = ""
        self.nonce = ""
        self.secret = b""
        self.token = ""

    def auth(self) -> Answer:
        certificate, public = self.tpm.enrol()
        extra = {"cloister-tpm": {"ek_certificate": b64(certificate), "ak_public": b64(public)}}
        body = {"version": "0.4.0", "tee": "tpm", "extra-params": extra}
        answer = self.world.service.broker.auth(json.dumps(body).encode())
        if answer.status == 200:
            challenge = json.loads(answer.body)
            credential = challenge["extra-params"]["cloister-tpm"]
            self.cookie, self.nonce = answer.cookie, challenge["nonce"]
            self.secret = self.tpm.activate(
                base64.b64decode(credential["credential_blob"]), base64.b64decode(credential["encrypted_secret"])
            )
        return answer

    def attestation(self, **changes: Any) -> dict[str, Any]:
        """Return the body of /attest; `nonce`, `key`, `additional`, `data`, `evidence` replace parts consistently."""
        key = changes.get("key", self.key.public_jwk())
        nonce = changes.get("nonce", self.nonce)
        additional = changes.get("additional", "")
        bound = report_data(nonce, key, additional)
        evidence = changes["evidence"] if "evidence" in changes else self.tpm.attest(bound, self.secret)
        body: dict[str, Any] = {
            "init-data": {"format": "toml", "body": (changes.get("data") or self.data).text.decode()},
            "runtime-data": {"nonce": nonce, "tee-pubkey": key},
            "tee-evidence": {"primary_evidence": evidence, "additional_evidence": additional},
        }
        return body

    def send_attestation(self, body: Mapping[str, Any] | None = None, *, cookie: str | None = None) -> Answer:
        text = json.dumps(body if body is not None else self.attestation()).encode()
        answer = self.world.service.broker.attest(text, Credentials(cookie=self.cookie if cookie is None else cookie))
        if answer.status == 200:
            self.token = json.loads(answer.body)["token"]
        return answer

    def handshake(self) -> Guest:
        assert self.auth().status == 200
        answer = self.send_attestation()
        assert answer.status == 200, answer.body
        return self

    def resource(
        self, path: ResourcePath | str = MODEL, *, token: str | None = None, cookie: str = "", seconds: float = 5
    ) -> Answer:
        bearer = "" if cookie else (self.token if token is None else token)
        credentials = Credentials(cookie=cookie, bearer=bearer)
        return self.world.service.broker.resource(str(path), credentials, deadline=time.monotonic() + seconds)

    def open(self, answer: Answer) -> bytes:
        assert answer.status == 200, answer.body
        return self.key.open(SealedResource(**json.loads(answer.body)))


def report_data(nonce: str, key: Mapping[str, str], additional: str = "") -> bytes:
    body = {"additional-evidence": additional, "nonce": nonce, "tee-pubkey": dict(key)}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha384(text.encode()).digest()


def error_of(answer: Answer) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(answer.body)
    assert body["type"].startswith("https://github.com/confidential-containers/kbs/errors/")
    assert body["detail"]
    return body


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@contextmanager
def quick_directory() -> Iterator[Path]:
    """A directory in memory where possible, for tests that are not about the speed of disks."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as directory:
        yield Path(directory)


def all_bytes(directory: Path) -> bytes:
    """Return the content of every file below `directory`."""
    return b"".join(path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file())


def now_utc() -> datetime:
    return datetime.now(UTC)


Factory = Callable[..., World]
