"""The attester over a fake security module, through the memory that the ioctl points to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloister.errors import Unavailable
from cloister.rats.evidence import Evidence
from cloister.tee.nitro.attester import NSMAttester
from cloister.tee.verification import verify_evidence
from cloister.testing.nitro import BINDING, INIT_DATA_DIGEST, NOW, REPORT_DATA, FakeNSM, NitroCA
from cloister.wire.cbor import encode_cbor


@pytest.fixture(scope="module")
def ca() -> NitroCA:
    return NitroCA()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A device tree: its node is only opened, the calls go to the fake."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nsm").touch()
    return tmp_path


def test_what_is_attested_verifies(ca: NitroCA, root: Path) -> None:
    module = FakeNSM(ca)
    with NSMAttester(root, ioctl=module.ioctl) as attester:
        assert attester.enrol() is None
        attester.extend(8, INIT_DATA_DIGEST)
        attester.extend(16, b"x" * 32)
        body = attester.attest(REPORT_DATA, b"")
        assert attester.read_pcrs() == module.registers
        assert len(attester.random()) == 256
    verified = verify_evidence(Evidence(tee="nitro", body=body), BINDING, ca.endorsements(), at=NOW)
    assert verified.claims.init_data == INIT_DATA_DIGEST
    assert module.registers[16] != bytes(48)
    assert module.requests[0] == {"ExtendPCR": {"index": 16, "data": b"x" * 32}}
    assert module.requests[1] == {
        "Attestation": {"nonce": REPORT_DATA, "user_data": INIT_DATA_DIGEST, "public_key": None}
    }


def test_a_public_key_is_signed_with_the_document(ca: NitroCA, root: Path) -> None:
    module = FakeNSM(ca)
    with NSMAttester(root, ioctl=module.ioctl) as attester:
        body = attester.attest(REPORT_DATA, public_key=b"key")
    assert verify_nothing(ca, body)["public_key"] == b"key".hex()


def verify_nothing(ca: NitroCA, body: dict[str, Any]) -> Any:
    from cloister.tee.nitro.verifier import authenticate

    return authenticate(Evidence(tee="nitro", body=body), ca.endorsements(), at=NOW).claims.native


@pytest.mark.parametrize(
    "answer",
    [
        encode_cbor({"Error": "InternalError"}),
        encode_cbor({"Attestation": {"document": "text"}}),
        encode_cbor({"Attestation": {}}),
        encode_cbor({"DescribePCR": {"data": bytes(48)}}),
        encode_cbor("Attestation"),
        encode_cbor(7),
        b"",
        b"\xff",
        encode_cbor({"Attestation": {"document": b"x"}}) + b"\0",
    ],
)
def test_other_answers_are_no_document(ca: NitroCA, root: Path, answer: bytes) -> None:
    with NSMAttester(root, ioctl=FakeNSM(ca, answer=answer).ioctl) as attester, pytest.raises(Unavailable) as caught:
        attester.attest(REPORT_DATA)
    assert caught.value.code == "tee.nitro.module"


def test_a_failing_device_is_told(ca: NitroCA, root: Path) -> None:
    def broken(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    with NSMAttester(root, ioctl=broken) as attester, pytest.raises(Unavailable) as caught:
        attester.read_pcrs()
    assert caught.value.code == "tee.nitro.module"
    with NSMAttester(root) as attester, pytest.raises(Unavailable):  # the system's ioctl on a file
        attester.read_pcrs()
    with pytest.raises(Unavailable) as caught:
        NSMAttester(root / "absent")
    assert caught.value.code == "tee.nitro.device"


def test_locked_registers_and_misuse(ca: NitroCA, root: Path) -> None:
    with NSMAttester(root, ioctl=FakeNSM(ca).ioctl) as attester:
        with pytest.raises(Unavailable):
            attester.extend(0, bytes(32))
        attester.extend(8, INIT_DATA_DIGEST)
        for misuse in (
            lambda: attester.extend(8, INIT_DATA_DIGEST),
            lambda: attester.extend(32, bytes(32)),
            lambda: attester.extend(16, b""),
            lambda: attester.activate(b"", b""),
            lambda: attester.attest(bytes(5000)),
        ):
            with pytest.raises(RuntimeError):
                misuse()
