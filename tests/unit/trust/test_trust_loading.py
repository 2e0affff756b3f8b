"""A technology's code is loaded once, whole, and with its message types ready for threads."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cloister.errors import EvidenceError
from cloister.tee.registry import TECHNOLOGIES
from cloister.trust.verifier import loading

CHECK = """
import sys
import msgspec
from cloister.trust.verifier.loading import load_technology
from cloister.wire import structs
load_technology(sys.argv[1])
loaded = set(sys.modules)
ours = {struct for struct in structs._below(msgspec.Struct) if struct.__module__.startswith("cloister.")}
assert ours and ours <= structs._prepared, ours - structs._prepared
load_technology(sys.argv[1])
assert set(sys.modules) == loaded
print(sorted(name for name in loaded if name.startswith("cloister.tee.") and name.endswith(".verifier")))
"""


@pytest.mark.parametrize("tee", ["cloister-simulated", "snp"])
def test_all_types_are_ready_and_no_other_technology_is_loaded_without_need(tee: str) -> None:
    done = subprocess.run([sys.executable, "-c", CHECK, tee], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{TECHNOLOGIES[tee]}.verifier" in done.stdout
    if tee == "cloister-simulated":
        assert done.stdout.count(".verifier'") == 1, done.stdout


def test_an_unknown_technology_is_refused() -> None:
    with pytest.raises(EvidenceError) as caught:
        loading.load_technology("none")
    assert caught.value.code == "tee.unknown"
