"""What the hostile admin does in the demo: real attacks with what an admin of the machine has.

Each returns the refusal it met. An attack that succeeds is an error of Cloister, and the demo says so and fails.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from cloister.client.keybroker import KeyBrokerClient
from cloister.errors import CloisterError, Refused, Unavailable
from cloister.host.vmm.spec import VMSpec
from cloister.oci.digest import Digest
from cloister.protocol.guestapi import ProcessClaim
from cloister.protocol.initdata import BrokerAddress
from cloister.sdk.run import CONTAINER, Pod
from cloister.sdk.session import PodSession
from cloister.wire.base64 import decode_b64
from cloister.wire.limits import CERTIFICATE_BYTES, TPM_RESPONSE_BYTES

_SECRET_BYTES: Final = 64
_DATABASE: Final = "trust.db"
_HIGH_WATER: Final = "log.highwater"


class AttackSucceeded(Exception):  # the name is what happened
    """An attack was not refused; its text says what came instead."""


def met(attack: Callable[[], object], *, instead: str = "") -> CloisterError:
    """Return the refusal that `attack` met.

    Args:
        attack: what is tried.
        instead: code of the error by which a service refuses to work at all.

    Raises:
        AttackSucceeded: it met none.
        Unavailable: it could not be carried out.
    """
    try:
        outcome = attack()
    except Refused as refusal:
        return refusal
    except Unavailable as error:
        if error.code != instead:
            raise
        return error
    raise AttackSucceeded("it went through" if outcome is None else f"it went through and gave {str(outcome)[:40]!r}")


@contextlib.contextmanager
def swapped_image(registry: Path, digest: Digest) -> Iterator[None]:
    """Replace the manifest in the registry's files by another image's; put it back afterwards."""
    place = registry / "blobs" / digest.algorithm / digest.hex
    honest = place.read_bytes()
    document = json.loads(honest)
    document["annotations"] = {"org.example.swapped": "yes"}
    try:
        place.write_bytes(json.dumps(document).encode())
        yield
    finally:
        place.write_bytes(honest)


def preload_claim(pod: Pod, env: tuple[str, ...], args: tuple[str, ...]) -> ProcessClaim:
    """Return what a host would ask for to slip a library into the process."""
    container = pod.plan.policy.containers[0]
    return ProcessClaim(
        args=list(args),
        env=[*env, "LD_PRELOAD=/tmp/steal.so"],
        cwd=container.cwd or "/app",
        user=container.user or "1000:1000",
    )


def other_kernel_line(spec: VMSpec) -> VMSpec:
    """Boot the same files with one more word on the kernel's command line."""
    bundle = spec.require_bundle()
    return dataclasses.replace(spec, bundle=dataclasses.replace(bundle, cmdline=f"{bundle.cmdline} init=/bin/sh"))


class ReplayedEvidence:
    """An attester that has no TPM, only a recording of one."""

    def __init__(self, recorded: dict[str, Any]) -> None:  # Any: JSON
        self._recorded = recorded

    def enrol(self) -> tuple[bytes, bytes] | None:
        """Return the recorded certificate and key."""
        if "ek_certificate" not in self._recorded:
            return None
        return (
            decode_b64(self._recorded["ek_certificate"], ceiling=CERTIFICATE_BYTES),
            decode_b64(self._recorded["ak_public"], ceiling=TPM_RESPONSE_BYTES),
        )

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Return the recorded secret: only the TPM could open the new one."""
        return decode_b64(self._recorded["activation"], ceiling=_SECRET_BYTES)

    def attest(self, report_data: bytes, secret: bytes) -> dict[str, Any]:  # Any: JSON
        """Return the recording."""
        return self._recorded


def replay(broker: BrokerAddress, tee: str, init_data: str, recorded: bytes) -> str:
    """Present recorded evidence in a new handshake; return the token, which nobody should ever get."""
    client = KeyBrokerClient(broker, ReplayedEvidence(json.loads(recorded)), init_data, tee)
    try:
        return client.attest()
    finally:
        client.wipe()


def keep_copy(state: Path, place: Path) -> None:
    """Keep a backup of a trust service that runs: its files, and its database as of now."""
    place.mkdir(mode=0o700)
    for file in state.iterdir():
        if not file.name.startswith(_DATABASE):
            shutil.copy2(file, place)
    copy = place / _DATABASE
    copy.touch(mode=0o600)
    with (
        contextlib.closing(sqlite3.connect(state / _DATABASE)) as source,
        contextlib.closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)


def roll_back(copy: Path, place: Path) -> None:
    """Restore that backup, without the mark beside it that tells how far the log was: only witnesses still know."""
    shutil.copytree(copy, place)
    (place / _HIGH_WATER).unlink()


def search_at_rest(places: tuple[Path, ...], canary: bytes) -> tuple[int, int]:
    """Search all files below `places` for `canary`; return how many were searched and how many hold it."""
    searched = found = 0
    for root in places:
        for file in root.rglob("*"):
            if file.is_file() and not file.is_symlink():
                searched += 1
                found += canary in file.read_bytes()
    return searched, found


def is_found(files: tuple[bytes, ...], canary: bytes) -> bool:
    """Whether the search of `search_at_rest` finds `canary` where it is in the clear."""
    return any(canary in content for content in files)


def create_by_host(session: PodSession, registry: str, claim: ProcessClaim | None = None) -> None:
    """Create a container the way a host does."""
    session.create(CONTAINER, registry=registry, stream_key=b"", claim=claim)
