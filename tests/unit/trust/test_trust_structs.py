"""Types of messages are ready before threads read them."""

from __future__ import annotations

import json
import subprocess
import sys

from cloister.tee.registry import TECHNOLOGIES
from cloister.trust.structs import prepare_structs

# In a process of its own: here, other tests have loaded everything.
HANDSHAKES = """
import json, sys, tempfile
from pathlib import Path
import msgspec
import cloister.trust.app
from cloister.trust.structs import _below, prepare_structs
ready = prepare_structs()
sys.path[:0] = sys.argv[1:]
from evidence_world import Site, snp_machine, tdx_machine
for machine in (snp_machine(), tdx_machine()):
    with tempfile.TemporaryDirectory() as directory:
        site = Site(Path(directory), machine).fetch()
        before = set(_below(msgspec.Struct))
        guest = site.guest()
        guest.attest()
        answer = guest.resource()
        assert answer.status == 200, answer.body
        site.close()
print(json.dumps([str(kind) for kind in set(_below(msgspec.Struct)) - before]))
"""


def test_every_technology_is_ready() -> None:
    modules = {kind.__module__ for kind in prepare_structs()}
    assert {"cloister.protocol.kbs", "cloister.rats.policy", "cloister.trust.keybroker.policy"} <= modules
    assert all(f"{package}.verifier" in sys.modules for package in TECHNOLOGIES.values())


def test_a_handshake_meets_no_type_for_the_first_time() -> None:
    paths = [path for path in sys.path if path.endswith("tests")]
    done = subprocess.run([sys.executable, "-c", HANDSHAKES, *paths], capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout.splitlines()[-1]) == []
