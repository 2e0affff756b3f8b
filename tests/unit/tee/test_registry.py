"""The registry of technologies: names to packages, loaded one at a time, cheap inside the guest."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cloister.errors import EvidenceError
from cloister.tee.insecure.attester import SimulationAttester
from cloister.tee.registry import TECHNOLOGIES, appraiser_for, attester_for, authenticator_for, pins_for, reader_for
from cloister.tee.tpm.attester import TPMAttester
from cloister.tee.tpm.verifier import authenticate


def test_each_name_leads_to_its_verifier_and_attester() -> None:
    assert authenticator_for("tpm") is authenticate
    assert attester_for("tpm") is TPMAttester
    assert attester_for("cloister-simulated") is SimulationAttester
    for look_up in (authenticator_for, appraiser_for, reader_for, attester_for):
        assert all(callable(look_up(tee)) for tee in TECHNOLOGIES)
    assert all(pin.tee == tee and len(pin.sha256) == 32 for tee in TECHNOLOGIES for pin in pins_for(tee))


@pytest.mark.parametrize("tee", ["", "TPM", "SNP", "os", "tpm/../insecure", "x" * 500])
def test_an_unknown_name_is_refused(tee: str) -> None:
    for look_up in (authenticator_for, appraiser_for, reader_for, pins_for, attester_for):
        with pytest.raises(EvidenceError) as caught:
            look_up(tee)
        assert caught.value.code == "tee.unknown"
        assert len(caught.value.actual) <= 40


@pytest.mark.parametrize("tee", TECHNOLOGIES)
def test_the_guest_loads_nothing_slow_with_an_attester(tee: str) -> None:
    """`cryptography` costs seconds under emulation, and the modules of the verifier are not needed there."""
    program = (
        "import sys\n"
        "from cloister.tee.registry import attester_for\n"
        f"attester_for({tee!r})\n"
        "slow = {'cryptography', 'socket', 'ssl', 'asyncio', 'subprocess', 'http.client', 'email', 'pathlib'}\n"
        "owners = {name for name in sys.modules if name.endswith(('.verifier', '.x509path', '.credential'))}\n"
        "print(*sorted(slow & set(sys.modules) | owners))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True, timeout=60)
    before = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; print(*sorted(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert set(done.stdout.split()) - set(before.stdout.split()) == set()
