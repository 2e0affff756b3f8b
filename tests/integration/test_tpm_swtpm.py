"""A real software TPM: manufactured by `swtpm_setup`, spoken to over its socket by the guest's own attester.

Everything between the two ends is the shipped code: enrol, make a credential, activate it, quote, verify.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import statistics
import struct
import subprocess
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloister.errors import EndorsementError, EvidenceError, Unavailable
from cloister.rats.claims import Level
from cloister.rats.endorsement import Endorsements
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.tee.azure import attester as azure
from cloister.tee.azure.abi import HCLReport, encode_hcl_report
from cloister.tee.collateral.files import parse_trust_roots
from cloister.tee.tpm import commands
from cloister.tee.tpm import constants as c
from cloister.tee.tpm.abi import RSAUnique, encode_public, parse_public, parse_quote_attest
from cloister.tee.tpm.attester import TPMAttester
from cloister.tee.tpm.credential import ak_name, bound_credential, challenge_for, ek_public_key, make_credential
from cloister.tee.tpm.quote import attestation_key, encode_key, qualified_name
from cloister.tee.tpm.transport import SocketTransport
from cloister.tee.verification import verify_evidence
from cloister.testing.eventlog import build_event_log, seabios_events
from cloister.testing.snp import NOW as SNP_NOW
from cloister.testing.snp import FakeAMD, FakeChip
from cloister.testing.tpm import AK_PROFILE, EndorsementCA
from cloister.wire.base64 import decode_b64, encode_b64, encode_b64url
from swtpm_process import START_SECONDS, SoftwareTPM
from tampering import flipped

pytestmark = pytest.mark.tool

REPORT_DATA = bytes(range(48))
INIT_DATA_DIGEST = hashlib.sha256(b"init data").digest()
LATENCY_CEILING_SECONDS = 0.5  # far above the milliseconds it takes: a hang, not a slow machine, breaks it


@pytest.fixture(scope="module")
def machine(manufacture: Callable[[], SoftwareTPM]) -> SoftwareTPM:
    """The TPM most tests share; each powers it on anew."""
    return manufacture()


@pytest.fixture
def short_path() -> Generator[Path, None, None]:
    """A directory whose name is short enough for a socket."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="swtpm", dir="/tmp") as directory:
        yield Path(directory)


@pytest.fixture
def attester(machine: SoftwareTPM, short_path: Path) -> Generator[TPMAttester, None, None]:
    """The guest's attester on a freshly started TPM, init data extended."""
    with (
        machine.powered(short_path) as address,
        TPMAttester(transport=SocketTransport(address), event_log=None) as tpm,
    ):
        tpm.extend(8, INIT_DATA_DIGEST)
        yield tpm


def answer(tpm: TPMAttester) -> tuple[Evidence, ExpectedBinding]:
    """Play challenge and answer."""
    blob, encrypted, secret = challenge_for(*tpm.enrol())
    evidence = Evidence(tee="tpm", body=tpm.attest(REPORT_DATA, tpm.activate(blob, encrypted)))
    return evidence, ExpectedBinding(report_data=REPORT_DATA, init_data_digest=INIT_DATA_DIGEST, session_secret=secret)


def now() -> datetime:
    return datetime.now(UTC)


def test_a_real_tpm_proves_itself(attester: TPMAttester, machine: SoftwareTPM) -> None:
    evidence, binding = answer(attester)
    result = verify_evidence(evidence, binding, machine.endorsements, at=now())
    assert result.claims.level is Level.MEASURED
    assert result.claims.registers["pcr08"] == hashlib.sha256(bytes(32) + INIT_DATA_DIGEST).digest()
    assert result.claims.registers["pcr17"] == b"\xff" * 32
    assert attester.read_pcrs()[8] == result.claims.init_data
    certificate = decode_b64(evidence.body["ek_certificate"], ceiling=4096)
    assert len(ek_public_key(certificate).public_numbers().n.to_bytes(256, "big")) == 256


def test_a_real_tpm_is_vouched_for_by_a_certificate_of_its_ak(attester: TPMAttester) -> None:
    """The way of clouds: no enrolment, a CA certifies the AK; and the way of owners: the AK itself is the root."""
    ca = EndorsementCA(now=now())
    key = attestation_key(parse_public(attester.enrol()[1]))
    profile = replace(AK_PROFILE, not_before=now() - timedelta(hours=1), not_after=now() + timedelta(hours=1))
    quoted = attester.attest(REPORT_DATA, b"")
    body = {name: quoted[name] for name in ("ak_public", "tpm_quote")}
    certified = Evidence(tee="tpm", body={**body, "ak_certificate": encode_b64(ca.issue(key, profile))})
    binding = ExpectedBinding(report_data=REPORT_DATA, init_data_digest=INIT_DATA_DIGEST)
    result = verify_evidence(certified, binding, ca.endorsements(), at=now())
    assert result.claims.registers["pcr08"] == hashlib.sha256(bytes(32) + INIT_DATA_DIGEST).digest()
    root = parse_trust_roots("tpm", Level.MEASURED, [("ak", encode_key(key))]).roots
    bare = Evidence(tee="tpm", body={**body, "ak_public": encode_b64(encode_key(key))})
    assert verify_evidence(bare, binding, Endorsements(roots=root), at=now()).claims.level is Level.MEASURED
    other = ca.issue(EndorsementCA().root_key.public_key(), profile)
    with pytest.raises(EvidenceError) as caught:
        stolen = Evidence(tee="tpm", body={**body, "ak_certificate": encode_b64(other)})
        verify_evidence(stolen, binding, ca.endorsements(), at=now())
    assert caught.value.code == "tee.tpm.ak_certificate.key"


def test_what_the_tpm_writes_is_what_our_encoders_write(attester: TPMAttester) -> None:
    ak = attester.enrol()[1]
    assert encode_public(parse_public(ak)) == ak
    assert parse_public(ak).attributes == commands.AK_ATTRIBUTES
    message = decode_b64(attester.attest(REPORT_DATA, b"")["tpm_quote"]["message"], ceiling=4096)
    assert parse_quote_attest(message).qualified_signer == qualified_name(c.RH_ENDORSEMENT, ak_name(ak))


def test_the_key_and_the_instance_outlive_a_power_cycle(machine: SoftwareTPM, short_path: Path) -> None:
    seen = set()
    for _ in range(2):
        with (
            machine.powered(short_path) as address,
            TPMAttester(transport=SocketTransport(address), event_log=None) as tpm,
        ):
            tpm.extend(8, INIT_DATA_DIGEST)
            evidence, binding = answer(tpm)
            claims = verify_evidence(evidence, binding, machine.endorsements, at=now()).claims
            seen.add((claims.instance_id, claims.raw["ak_public"]))
    assert len(seen) == 1


def test_a_tpm_with_a_foreign_ek_is_refused(
    machine: SoftwareTPM, manufacture: Callable[[], SoftwareTPM], short_path: Path
) -> None:
    foreign = manufacture()
    with (
        foreign.powered(short_path) as address,
        TPMAttester(transport=SocketTransport(address), event_log=None) as tpm,
    ):
        tpm.extend(8, INIT_DATA_DIGEST)
        evidence, binding = answer(tpm)
        assert verify_evidence(evidence, binding, foreign.endorsements, at=now())
        with pytest.raises(EndorsementError) as caught:
            verify_evidence(evidence, binding, machine.endorsements, at=now())
        assert caught.value.code == "tee.tpm.ek_certificate.untrusted"
        # ... nor may it borrow the certificate of the genuine one.
        with machine.powered(short_path) as other, TPMAttester(transport=SocketTransport(other)) as genuine:
            body = {**evidence.body, "ek_certificate": genuine.attest(REPORT_DATA, b"")["ek_certificate"]}
        with pytest.raises(EvidenceError) as borrowed:
            verify_evidence(replace(evidence, body=body), binding, machine.endorsements, at=now())
        assert borrowed.value.code == "tee.tpm.activation_mismatch"


def test_a_tpm_does_not_activate_what_was_made_for_another_key(attester: TPMAttester) -> None:
    certificate, ak = attester.enrol()
    key = ek_public_key(certificate)
    name = ak_name(ak)
    other = flipped(name)
    with pytest.raises(EvidenceError) as caught:
        attester.activate(*make_credential(key, other, b"secret", seed=os.urandom(32)))
    assert caught.value.code == "tee.tpm.credential_refused"
    good = make_credential(key, name, b"secret", seed=os.urandom(32))
    for blob, encrypted in ((flipped(good[0]), good[1]), (good[0], flipped(good[1])), (b"", b""), (b"\0\0", b"\0\0")):
        with pytest.raises(EvidenceError):
            attester.activate(blob, encrypted)
    assert attester.activate(*good) == b"secret"


def test_many_sessions_leak_no_handles(attester: TPMAttester) -> None:
    """A TPM without a resource manager has room for three keys and three sessions."""
    certificate, ak = attester.enrol()
    key = ek_public_key(certificate)
    for _ in range(8):
        with pytest.raises(EvidenceError):
            attester.activate(*make_credential(key, b"no such name", b"secret", seed=os.urandom(32)))
        blob, encrypted, secret = challenge_for(certificate, ak)
        assert attester.activate(blob, encrypted) == bound_credential(secret, certificate, ak_name(ak))


def test_other_init_data_another_nonce_and_a_second_extend_are_refused(
    attester: TPMAttester, machine: SoftwareTPM
) -> None:
    evidence, binding = answer(attester)
    other = replace(binding, init_data_digest=hashlib.sha256(b"other").digest())
    with pytest.raises(EvidenceError) as caught:
        verify_evidence(evidence, other, machine.endorsements, at=now())
    assert caught.value.code == "evidence.init_data"
    with pytest.raises(EvidenceError) as caught:
        verify_evidence(evidence, replace(binding, report_data=bytes(48)), machine.endorsements, at=now())
    assert caught.value.code == "evidence.freshness"
    attester.extend(8, bytes(32))
    evidence, binding = answer(attester)
    with pytest.raises(EvidenceError) as caught:
        verify_evidence(evidence, binding, machine.endorsements, at=now())
    assert caught.value.code == "evidence.init_data"


def test_a_quote_over_other_registers_is_refused(attester: TPMAttester, machine: SoftwareTPM) -> None:
    """A guest that asks its TPM to leave registers out: everything is genuine, and says too little."""
    evidence, binding = answer(attester)
    body = {**evidence.body, "tpm_quote": dict(evidence.body["tpm_quote"])}
    ak = attester._attestation_key()[0]
    command = commands.quote(ak, REPORT_DATA[:32])
    partial = command[:-3] + bytes([0xFE, 0xFF, 0xFF])
    message, signature = commands.parse_quote(attester._run(partial, "quoting"))
    import base64

    body["tpm_quote"] |= {
        "message": base64.b64encode(message).decode(),
        "signature": base64.b64encode(signature).decode(),
    }
    with pytest.raises(EvidenceError) as caught:
        verify_evidence(replace(evidence, body=body), binding, machine.endorsements, at=now())
    assert caught.value.code == "tee.tpm.pcr_selection"


def test_a_firmware_log_travels_and_replays(machine: SoftwareTPM, short_path: Path) -> None:
    log = short_path / "log"
    log.write_bytes(build_event_log(seabios_events(), fill=b"\xff" * 8))
    with (
        machine.powered(short_path) as address,
        TPMAttester(transport=SocketTransport(address), event_log=str(log)) as tpm,
    ):
        for item in seabios_events():
            tpm.extend(item.register, item.digests["sha256"])
        tpm.extend(8, INIT_DATA_DIGEST)
        evidence, binding = answer(tpm)
        result = verify_evidence(evidence, binding, machine.endorsements, at=now())
        assert "tee.tpm.event_log_mismatch" in {finding.code for finding in result.findings}
        assert len(result.claims.raw["pcr00_events"]) == 1
        tpm.extend(9, bytes(32))
        evidence, binding = answer(tpm)
        with pytest.raises(EvidenceError) as caught:
            verify_evidence(evidence, binding, machine.endorsements, at=now())
        assert caught.value.code == "tee.tpm.event_log_mismatch"


def test_a_tpm_whose_ek_is_not_persistent_makes_it_again(
    manufacture: Callable[[], SoftwareTPM], short_path: Path
) -> None:
    other = manufacture()
    with (
        other.powered(short_path) as address,
        TPMAttester(transport=SocketTransport(address), event_log=None) as tpm,
    ):
        # TPM2_EvictControl by the owner, whose password a fresh TPM leaves empty.
        evict = bytes.fromhex("80020000002300000120400000018101000100000009400000090000000000") + b"\x81\x01\x00\x01"
        tpm._run(evict, "evicting the EK")
        tpm.extend(8, INIT_DATA_DIGEST)
        evidence, binding = answer(tpm)
        assert verify_evidence(evidence, binding, other.endorsements, at=now())


def test_a_tpm_that_dies_is_unavailable(machine: SoftwareTPM, short_path: Path) -> None:
    with machine.powered(short_path) as address:
        tpm = TPMAttester(transport=SocketTransport(address), event_log=None)
        tpm.enrol()
    with pytest.raises(Unavailable) as caught:
        tpm.attest(REPORT_DATA, b"")
    assert caught.value.code == "tee.tpm.device"
    tpm.close()


def test_over_tcp_as_well(machine: SoftwareTPM, require_tool: Callable[[str], Path]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            str(require_tool("swtpm")),
            "socket",
            "--tpm2",
            "--tpmstate",
            f"dir={machine.state}",
            "--server",
            f"type=tcp,port={port}",
            "--flags",
            "not-need-init,startup-clear",
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                way = SocketTransport(("127.0.0.1", port))
                break
            except Unavailable:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        with TPMAttester(transport=way, event_log=None) as tpm:
            assert len(tpm.read_pcrs()) == 24
    finally:
        process.terminate()
        process.wait(timeout=10)


def test_latencies_are_those_of_a_tpm_not_of_a_program_per_command(
    attester: TPMAttester, machine: SoftwareTPM, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate, ak = attester.enrol()
    times: dict[str, list[float]] = {"activate": [], "attest": [], "verify": []}
    for _ in range(10):
        blob, encrypted, secret = challenge_for(certificate, ak)
        marks = [time.perf_counter()]
        recovered = attester.activate(blob, encrypted)
        marks.append(time.perf_counter())
        evidence = Evidence(tee="tpm", body=attester.attest(REPORT_DATA, recovered))
        marks.append(time.perf_counter())
        binding = ExpectedBinding(report_data=REPORT_DATA, init_data_digest=INIT_DATA_DIGEST, session_secret=secret)
        verify_evidence(evidence, binding, machine.endorsements, at=now())
        marks.append(time.perf_counter())
        for name, start, end in zip(times, marks, marks[1:], strict=False):
            times[name].append(end - start)
    for name, values in times.items():
        with capsys.disabled():
            print(f"\n  swtpm {name}: median {statistics.median(values) * 1000:.2f} ms", end="")
        assert statistics.median(values) < LATENCY_CEILING_SECONDS


# The virtual TPM of Azure: the same commands, another key, two NV indices

RSA_AK = struct.pack(
    ">HHIHHHHHIH",
    c.ALG_RSA,
    c.ALG_SHA256,
    commands.AK_ATTRIBUTES,
    0,
    c.ALG_NULL,
    c.ALG_RSASSA,
    c.ALG_SHA256,
    2048,
    0,
    0,
)
CC_EVICT_CONTROL = 0x120


class Paravisor:
    """Between the attester and a real TPM: keeps the report's index as Azure's paravisor does, signed by fake AMD."""

    def __init__(self, transport: SocketTransport, chip: FakeChip) -> None:
        self._transport, self._chip = transport, chip
        response = self._run(commands.create_primary(c.RH_OWNER, RSA_AK))
        handle, public = commands.parse_create_primary(response)
        unique = parse_public(public).unique
        assert isinstance(unique, RSAUnique)
        self._modulus = unique.modulus
        evict = struct.pack(">III", c.RH_OWNER, handle, 9) + struct.pack(">IHBH", c.RS_PASSWORD, 0, 0, 0)
        evict += struct.pack(">I", azure.AK_HANDLE)
        self._run(struct.pack(">HII", c.ST_SESSIONS, 10 + len(evict), CC_EVICT_CONTROL) + evict)
        self._run(commands.flush_context(handle))
        self._renew(bytes(64), define=True)

    def exchange(self, command: bytes) -> bytes:
        answer = self._transport.exchange(command)
        if command[6:10] == b"\0\0\1\x37" and not commands.response_code(answer):  # TPM2_NV_Write of user data
            self._renew(command[-66:-2])
        return answer

    def close(self) -> None:
        self._transport.close()

    def _renew(self, user_data: bytes, *, define: bool = False) -> None:
        key = {"kid": "HCLAkPub", "kty": "RSA", "e": "AQAB", "n": encode_b64url(self._modulus)}
        parsed = {"keys": [key], "vm-configuration": {"secure-boot": True}, "user-data": user_data.hex().upper()}
        variable = json.dumps(parsed).encode()
        report = self._chip.report(report_data=hashlib.sha256(variable).digest() + bytes(32))
        data = encode_hcl_report(HCLReport(version=2, report_type=2, hardware=report, variable=variable), size=2048)
        if define:
            attributes = c.NV_OWNER_READ | c.NV_OWNER_WRITE
            self._run(commands.nv_define_space(azure.REPORT_INDEX, len(data), attributes, authority=c.RH_OWNER))
        for start in range(0, len(data), 512):
            command = bytearray(commands.nv_write(azure.REPORT_INDEX, data[start : start + 512], authority=c.RH_OWNER))
            command[-2:] = struct.pack(">H", start)
            self._run(bytes(command))

    def _run(self, command: bytes) -> bytes:
        answer = self._transport.exchange(command)
        assert commands.response_code(answer) == 0, hex(commands.response_code(answer))
        return answer


def test_a_real_tpm_attests_as_azures_does(manufacture: Callable[[], SoftwareTPM], short_path: Path) -> None:
    chip = FakeChip.made_by(FakeAMD("Genoa"))
    pem = f"-----BEGIN CERTIFICATE-----\n{base64.encodebytes(chip.vek).decode()}-----END CERTIFICATE-----\n"

    def fetch(method: str, path: str, *, headers: Mapping[str, str], body: bytes = b"") -> bytes:
        assert (method, path, headers["Metadata"]) == ("GET", azure.THIM, "true")
        return json.dumps({"vcekCert": pem}).encode()

    endorsements = chip.amd.endorsements()
    endorsements = replace(endorsements, roots=(chip.amd.root(tee="az-snp-vtpm"),))
    with manufacture().powered(short_path) as address:
        paravisor = Paravisor(SocketTransport(address), chip)
        with azure.AzureAttester(transport=paravisor, fetch=fetch) as tpm:
            tpm.extend(8, INIT_DATA_DIGEST)
            for nonce in (REPORT_DATA, bytes(range(64))):  # the second as long as the paravisor's field
                evidence = Evidence(tee="az-snp-vtpm", body=tpm.attest(nonce, b""))
                binding = ExpectedBinding(report_data=nonce, init_data_digest=INIT_DATA_DIGEST)
                result = verify_evidence(evidence, binding, endorsements, at=SNP_NOW)
                assert evidence.body["version"] == 2
                assert result.claims.level is Level.HARDWARE
                assert result.claims.registers["pcr08"] == tpm.read_pcrs()[8]
                with pytest.raises(EvidenceError):
                    verify_evidence(evidence, replace(binding, report_data=bytes(48)), endorsements, at=SNP_NOW)
