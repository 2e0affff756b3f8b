"""SNP's chain without a report: certificates of a real chip, up to AMD's root as this build knows it."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cloister.crypto.pem import split_pem
from cloister.errors import EndorsementError
from cloister.rats.endorsement import Endorsements
from cloister.rats.result import Severity
from cloister.tee.registry import pins_for
from cloister.tee.sev_snp.chain import verify_chain
from cloister.tee.sev_snp.endorsements import PINS, ark_line
from cloister.tee.sev_snp.vek import load_vek
from cloister.wire.limits import CERTIFICATE_BYTES

NAMES = {"fmc": "fmc", "bl": "bootloader", "tee": "tee", "snp": "snp", "ucode": "microcode"}


@pytest.fixture(scope="session")
def endorsement_cases(evidence_vectors: Path) -> list[dict[str, Any]]:
    """Cases of kind `endorsement` for SNP."""
    cases = json.loads((evidence_vectors / "cases.json").read_text())
    return [case for case in cases if (case["platform"], case["kind"]) == ("snp", "endorsement")]


def chain_of(evidence_vectors: Path, *names: str) -> tuple[bytes, ...]:
    data = [(evidence_vectors / name).read_bytes() for name in names]
    return tuple(der for item in data for der in split_pem(item, code="x.y", ceiling=CERTIFICATE_BYTES))


def test_endorsement_cases(endorsement_cases: list[dict[str, Any]], evidence_vectors: Path) -> None:
    assert endorsement_cases
    for case in endorsement_cases:
        expect = case["expect"]
        vek = load_vek((evidence_vectors / case["file"]).read_bytes())
        assert vek.hwid.hex() == expect["claims"]["hwid"]
        assert vek.struct_version == expect["claims"]["struct_version"]
        assert {name: vek.tcb[ours] for name, ours in NAMES.items()} == {name: expect["claims"][name] for name in NAMES}
        certificates = chain_of(evidence_vectors, *case["endorsements"])
        roots = Endorsements(roots=(), pins=pins_for("snp"), certificates=certificates).roots_for("snp")
        at = datetime.fromisoformat(case["at"].replace("Z", "+00:00"))
        options: Any = {"roots": roots, "certificates": certificates, "lists": (), "grace": timedelta()}
        chain = verify_chain(vek, at=at, **options)
        assert chain.root.name == "ARK-Turin"
        held, revocation = chain.findings
        assert (held.ok, revocation.ok, revocation.severity) == (True, False, Severity.UNAVAILABLE)
        assert chain.window.not_after == datetime(2031, 11, 6, 21, 14, tzinfo=UTC)
        for other, code in (
            ({**options, "roots": ()}, "untrusted"),
            ({**options, "certificates": certificates[1:]}, "untrusted"),
        ):
            with pytest.raises(EndorsementError) as caught:
                verify_chain(vek, at=at, **other)
            assert caught.value.code == f"tee.sev_snp.vek.{code}"
        with pytest.raises(EndorsementError) as caught:
            verify_chain(vek, at=chain.window.not_after + timedelta(days=1), **options)
        assert caught.value.code == "tee.sev_snp.vek.expired"


def test_the_pins_are_amds_roots(evidence_vectors: Path) -> None:
    names = [f"roots/amd/{line}_ask_ark_asvk.pem" for line in ("milan", "genoa", "turin")]
    arks = {ark_line(der): hashlib.sha256(der).digest() for der in chain_of(evidence_vectors, *names) if ark_line(der)}
    assert {pin.name.removeprefix("ARK-"): pin.sha256 for pin in PINS} == arks
