"""The simulation: same flow, same refusals, one level, and no way to claim another."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

import cloister
from cloister.errors import EndorsementError, EvidenceError, Refused, Unavailable
from cloister.rats.claims import Level
from cloister.rats.endorsement import Endorsements, TrustedRoot
from cloister.rats.evidence import Evidence, ExpectedBinding
from cloister.tee.insecure import abi
from cloister.tee.insecure.attester import SimulationAttester
from cloister.tee.insecure.endorsements import read_machine_root, simulation_root
from cloister.tee.insecure.machinekey import load_machine_key, public_der
from cloister.tee.verification import verify_evidence
from cloister.testing.tpm import INIT_DATA_DIGEST, NOW, REPORT_DATA
from cloister.wire.base64 import encode_b64

BINDING = ExpectedBinding(report_data=REPORT_DATA, init_data_digest=INIT_DATA_DIGEST)


@pytest.fixture
def key_path(tmp_path: Path) -> Path:
    """Where the simulation key of this test's machine is."""
    return tmp_path / "simulation-key.pem"


@pytest.fixture
def body(key_path: Path) -> dict[str, Any]:
    """One good evidence body."""
    with SimulationAttester(str(key_path)) as attester:
        attester.extend(8, INIT_DATA_DIGEST)
        return attester.attest(REPORT_DATA)


def code_of(body: dict[str, Any], roots: tuple[TrustedRoot, ...]) -> str:
    with pytest.raises(Refused) as caught:
        verify_evidence(Evidence(tee=abi.TEE, body=body), BINDING, Endorsements(roots=roots), at=NOW)
    return caught.value.code


def resign(body: dict[str, Any], key_path: Path, **changes: Any) -> dict[str, Any]:
    """Return `body` with members changed and signed again by the same key, as a hostile guest can."""
    changed = {**body, **changes}
    signed = abi.signed_bytes(
        public_key=changed["public_key"], registers=changed["registers"], report_data=changed["report_data"]
    )
    signature = load_machine_key(str(key_path)).sign(signed, ec.ECDSA(SHA256()))
    return {**changed, "signature": encode_b64(signature)}


def test_good_evidence_is_simulated_and_says_so(body: dict[str, Any], key_path: Path) -> None:
    roots = Endorsements(roots=(read_machine_root(key_path),))
    result = verify_evidence(Evidence(tee=abi.TEE, body=body), BINDING, roots, at=NOW)
    assert result.claims.level is Level.SIMULATED
    assert result.claims.registers == {
        "launch": hashlib.sha256(f"cloister agent {cloister.__version__}".encode()).digest(),
        "pcr08": hashlib.sha256(bytes(32) + INIT_DATA_DIGEST).digest(),
    }
    assert result.claims.init_data == result.claims.registers["pcr08"]
    assert result.claims.raw["simulated"] is True
    assert result.unchecked


def test_the_methods_are_those_of_a_real_attester(key_path: Path) -> None:
    with SimulationAttester(str(key_path), launch=b"l" * 32) as attester:
        assert attester.enrol() is None
        assert attester.read_pcrs() == {index: bytes(32) for index in range(24)}
        attester.extend(11, b"d" * 32)
        assert attester.read_pcrs()[11] == hashlib.sha256(bytes(32) + b"d" * 32).digest()
        assert attester.attest(REPORT_DATA, b"ignored")["registers"]["launch"] == (b"l" * 32).hex()
        with pytest.raises(RuntimeError):
            attester.activate(b"", b"")
        with pytest.raises(RuntimeError):
            attester.attest(b"short")
        for pcr, size in ((8, 31), (24, 32)):
            with pytest.raises(RuntimeError):
                attester.extend(pcr, bytes(size))


@pytest.mark.parametrize("level", [Level.HARDWARE, Level.MEASURED])
def test_a_root_that_claims_a_higher_level_is_refused(level: Level, body: dict[str, Any], key_path: Path) -> None:
    root = replace(read_machine_root(key_path), level=level)
    assert code_of(body, (root,)) == "tee.insecure.root_level"


def test_another_machines_key(body: dict[str, Any], tmp_path: Path) -> None:
    assert code_of(body, (read_machine_root(tmp_path / "other.pem"),)) == "tee.insecure.key_untrusted"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"simulated": False}, "tee.insecure.not_simulated"),
        ({"version": 2}, "tee.insecure.malformed"),
        ({"registers": {}}, "evidence.init_data"),
        ({"registers": {"pcr8": "00" * 32}}, "tee.insecure.malformed"),
        ({"registers": {"pcr24": "00" * 32}}, "tee.insecure.malformed"),
        ({"registers": {"pcr08": "00" * 31}}, "tee.insecure.malformed"),
        ({"registers": {"pcr08": "AA" * 32}}, "tee.insecure.malformed"),
        ({"registers": {f"pcr{index:02d}": "00" * 32 for index in range(99)}}, "tee.insecure.malformed"),
        ({"report_data": encode_b64(bytes(48))}, "evidence.freshness"),
        ({"report_data": encode_b64(REPORT_DATA[:47])}, "evidence.freshness"),
        ({"report_data": encode_b64(REPORT_DATA + b"\0" * 9)}, "tee.insecure.malformed"),
    ],
)
def test_a_signed_lie_is_refused_all_the_same(
    changes: dict[str, Any], code: str, body: dict[str, Any], key_path: Path
) -> None:
    assert code_of(resign(body, key_path, **changes), (read_machine_root(key_path),)) == code


def test_changed_members_break_the_signature(body: dict[str, Any], key_path: Path) -> None:
    launch = {**body["registers"], "launch": "00" * 32}
    roots = (read_machine_root(key_path),)
    assert code_of({**body, "registers": launch}, roots) == "tee.insecure.signature_invalid"
    added = {**body["registers"], "pcr09": "00" * 32}
    assert code_of({**body, "registers": added}, roots) == "tee.insecure.signature_invalid"


def test_a_root_that_is_no_p256_key(body: dict[str, Any]) -> None:
    ed = ed25519.Ed25519PrivateKey.generate().public_key()
    der = ed.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert code_of({**body, "public_key": encode_b64(der)}, (simulation_root(der, name="ed"),)) == (
        "tee.insecure.root_malformed"
    )
    assert code_of({**body, "public_key": encode_b64(b"junk")}, (simulation_root(b"junk", name="junk"),)) == (
        "tee.insecure.root_malformed"
    )


def test_the_key_is_made_once_and_only_its_owner_may_read_it(key_path: Path) -> None:
    first = public_der(load_machine_key(str(key_path)))
    assert public_der(load_machine_key(str(key_path))) == first
    assert key_path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(key_path.parent) == [key_path.name]


def _public_of(path: str) -> bytes:
    return public_der(load_machine_key(path))


def test_processes_that_race_for_the_first_use_agree_on_one_key(key_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert len(set(pool.map(_public_of, [str(key_path)] * 8))) == 1


@pytest.mark.parametrize("content", [b"", b"not a key", None])
def test_a_key_file_that_cannot_be_used(content: bytes | None, key_path: Path) -> None:
    if content is None:
        key = ec.generate_private_key(ec.SECP384R1())
        content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    key_path.write_bytes(content)
    with pytest.raises(Unavailable) as caught:
        load_machine_key(str(key_path))
    assert caught.value.code == "tee.insecure.machine_key"


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(Unavailable), SimulationAttester(str(tmp_path / "absent" / "key.pem")) as attester:
        attester.attest(REPORT_DATA)


def test_simulated_evidence_is_no_tpm_evidence(body: dict[str, Any], key_path: Path) -> None:
    from cloister.tee.verification import verify_evidence as verify_tpm

    roots = Endorsements(roots=(replace(read_machine_root(key_path), tee="tpm"),))
    with pytest.raises((EvidenceError, EndorsementError, Refused)) as caught:
        verify_tpm(Evidence(tee="tpm", body=body), BINDING, roots, at=NOW)
    assert caught.value.code == "tee.tpm.malformed"
