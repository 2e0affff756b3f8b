"""A host that drives a TPM itself, without a pod behind it: a real swtpm answers the real trust service over TLS.

The TPM is genuine (the owner trusts its CA) unless the test says otherwise; what it is asked to say is the host's.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from adversary.expect import refusal_of
from cloister.cli.demo.hostile import ReplayedEvidence
from cloister.client.keybroker import KeyBrokerClient
from cloister.protocol.initdata import InitData
from cloister.rats.reference import ReferenceEntry
from cloister.sdk.owner import SealedReference
from cloister.tee.insecure.endorsements import read_machine_root
from cloister.tee.tpm import commands
from cloister.tee.tpm.attester import TPMAttester
from cloister.tee.tpm.endorsements import read_swtpm_roots
from cloister.tee.tpm.transport import SocketTransport
from guest_world import STREAM_KEY, World
from swtpm_process import SoftwareTPM

pytestmark = pytest.mark.tool

ALL_REGISTERS = bytes([3, 0xFF, 0xFF, 0xFF])  # size and bitmap, at the end of TPM2_Quote


class Liar(TPMAttester):
    """Asks the TPM to leave registers out, and tells their values all the same.

    Attributes:
        bitmap: of the registers that are quoted.
        recorded: the evidence it gave last.
    """

    bitmap = ALL_REGISTERS
    recorded: dict[str, Any]

    def attest(self, report_data: bytes, secret: bytes) -> dict[str, Any]:
        body = super().attest(report_data, secret)
        command = commands.quote(self._attestation_key()[0], report_data[:32])
        assert command.endswith(ALL_REGISTERS)
        partial = command.removesuffix(ALL_REGISTERS) + self.bitmap
        message, signature = commands.parse_quote(self._run(partial, "quoting"))
        body["tpm_quote"] |= {"message": b64(message), "signature": b64(signature)}
        self.recorded = body
        return body


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def genuine(world: World, manufacture: Callable[[], SoftwareTPM]) -> SoftwareTPM:
    """A TPM whose CA the owner trusts."""
    made = manufacture()
    until = datetime.now(UTC) + timedelta(days=1)
    entry = ReferenceEntry(id="tpm", tee="tpm", registers={"pcr00": b"\1" * 32}, not_after=until, origin="test")
    world.owner.trust_platform((*read_swtpm_roots(made.ca), read_machine_root(world.key_file)), [entry])
    return made


@pytest.fixture
def approved(world: World, busybox: SealedReference) -> InitData:
    return world.prepare(world.policy(busybox, "sh", "-c", "echo hostile host"), busybox)


@contextmanager
def answering(tpm: SoftwareTPM, extended: InitData) -> Iterator[Liar]:
    """Power the TPM on and extend init data, as an agent would have."""
    with (
        tempfile.TemporaryDirectory(prefix="swtpm", dir="/tmp") as short,
        tpm.powered(Path(short)) as address,
        Liar(transport=SocketTransport(address), event_log=None) as attester,
    ):
        attester.extend(8, extended.digest)
        yield attester


@contextmanager
def talking(world: World, attester: Any, told: InitData) -> Iterator[KeyBrokerClient]:
    client = KeyBrokerClient(world.broker("127.0.0.1"), attester, told.text.decode(), "tpm")
    try:
        yield client
    finally:
        client.wipe()


def refused_attestation(code: str, world: World, attester: Any, told: InitData) -> None:
    with talking(world, attester, told) as client:
        refusal_of(code, client.attest)


def test_a_machine_nobody_launched_gets_no_key(world: World, genuine: SoftwareTPM, approved: InitData) -> None:
    """All of it genuine, only that no pod VM was ever measured: the baseline of the lies below gets a verdict."""
    with answering(genuine, approved) as attester, talking(world, attester, approved) as client:
        client.attest()
        error = refusal_of("appraisal.reference_values.pcr00", client.get_resource, STREAM_KEY)
        assert error.path.startswith("d-")


@pytest.mark.parametrize("bitmap", [b"\xfe\xff\xff", b"\xff\xfe\xff", b"\0\0\0"], ids=["launch", "init data", "all"])
def test_a_quote_without_registers_is_refused(
    world: World, genuine: SoftwareTPM, approved: InitData, bitmap: bytes
) -> None:
    with answering(genuine, approved) as attester:
        attester.bitmap = bytes([3]) + bitmap
        refused_attestation("tee.tpm.pcr_selection", world, attester, approved)


def test_init_data_that_was_not_measured_is_refused(world: World, genuine: SoftwareTPM, approved: InitData) -> None:
    other = world.init_data(world.several())
    with answering(genuine, other) as attester:
        refused_attestation("evidence.init_data", world, attester, approved)


def test_a_tpm_with_a_foreign_ek_is_refused(
    world: World, genuine: SoftwareTPM, manufacture: Callable[[], SoftwareTPM], approved: InitData
) -> None:
    with answering(manufacture(), approved) as attester:
        refused_attestation("tee.tpm.ek_certificate.untrusted", world, attester, approved)


def test_recorded_evidence_is_refused(world: World, genuine: SoftwareTPM, approved: InitData) -> None:
    with answering(genuine, approved) as attester:
        with talking(world, attester, approved) as client:
            client.attest()
        refused_attestation("tee.tpm.activation_mismatch", world, ReplayedEvidence(attester.recorded), approved)
