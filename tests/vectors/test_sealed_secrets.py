"""Sealed secrets of CoCo's guest components and those made from its test keys, each with its verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloister.crypto.sealedsecret import VaultSecret, parse_sealing_key, read_key_id, verify_sealed_secret
from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import CloisterError
from unit.crypto.test_sealedsecret import sealed


@pytest.fixture(scope="module")
def folder(guest_vectors: Path) -> Path:
    return guest_vectors / "sealed-secret"


@pytest.fixture(scope="module")
def cases(folder: Path) -> dict[str, dict[str, Any]]:
    found = json.loads((folder / "sealed-cases.json").read_text())["cases"]
    return {case["name"]: case for case in found}


def test_every_case_has_its_verdict(folder: Path, cases: dict[str, dict[str, Any]]) -> None:
    key = parse_sealing_key((folder / "test-key.json").read_bytes())
    verdicts = {}
    for name, case in cases.items():
        try:
            found = verify_sealed_secret(case["sealed"], {"test-key": key})
        except CloisterError as err:
            verdicts[name] = err.code
        else:
            assert isinstance(found, VaultSecret)
            assert found.resource.uri == case["payload"]["name"]
            verdicts[name] = "valid"
    assert {name for name, verdict in verdicts.items() if verdict == "valid"} == {
        name for name, case in cases.items() if case["expect"] == "valid"
    }
    assert verdicts["wrong-key"] == "crypto.sealed.bad_signature"
    assert len(verdicts) >= 6


def test_another_key_of_the_vectors_does_not_verify(folder: Path, cases: dict[str, dict[str, Any]]) -> None:
    other = parse_sealing_key((folder / "test-key-2.json").read_bytes())
    text = cases["vault-valid"]["sealed"]
    with pytest.raises(CloisterError) as caught:
        verify_sealed_secret(text, {read_key_id(text): other})
    assert caught.value.code == "crypto.sealed.bad_signature"


def test_payloads_of_guest_components(folder: Path) -> None:
    """The one for the key broker is a reference; those of cloud providers are refused for their provider."""
    signer = ECDSAP256Signer.generate()
    verdicts = {}
    for name in ("vault-1", "vault-2", "envelope-1"):
        text = sealed(signer, json.loads((folder / f"{name}.json").read_text()), {"alg": "ES256", "kid": "k"})
        try:
            verdicts[name] = verify_sealed_secret(text, {"k": signer.public_key}).resource.uri
        except CloisterError as err:
            verdicts[name] = err.code
    assert verdicts == {
        "vault-1": "crypto.sealed.provider",
        "vault-2": "kbs:///one/2/trois",
        "envelope-1": "crypto.sealed.provider",
    }
