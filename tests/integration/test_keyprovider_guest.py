"""The key provider inside a guest, at the simulated level: keys are released by a broker, to evidence, and not had."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cloister
from cloister.oci.digest import Digest
from cloister.oci.encryption.keyprovider import UnwrapRequest, encode_request, parse_unwrap_answer
from cloister.oci.encryption.options import PrivateOptions, encode_private_options
from cloister.oci.encryption.packet import encode_packet, seal_packet
from cloister.protocol.initdata import AGENT_ENTRY, BrokerAddress, broker_entry, build_initdata
from cloister.protocol.resourceuri import ResourcePath
from cloister.rats.claims import Level
from cloister.sdk.home import home_from_environment
from cloister.sdk.owner import Owner
from cloister.sdk.simulation import simulation_references, simulation_roots
from trust_process import running
from trust_world import rule

PATH = ResourcePath("default", "image-kek", "guest")
KEK = bytes(range(32))
OPTIONS = encode_private_options(PrivateOptions(key=b"k" * 32, digest=Digest.of(b"plain"), nonce=b"n" * 16))


def ask(init_data: Path, path: ResourcePath = PATH) -> subprocess.CompletedProcess[bytes]:
    packet = encode_packet(seal_packet(OPTIONS, kek_id=path.uri, kek=KEK))
    request = encode_request(UnwrapRequest(parameters={"attestation-agent": (b"Enabled",)}, annotation=packet))
    command = [sys.executable, "-m", cloister.__name__, "keyprovider", "--platform", "simulated"]
    return subprocess.run(
        [*command, "--init-data", str(init_data)], input=request, capture_output=True, timeout=120, check=False
    )


def test_a_guest_has_the_key_released(private_home: Path, tmp_path: Path) -> None:
    home = home_from_environment()
    home.simulation.mkdir(mode=0o700)
    owner = Owner(home)
    owner.trust_platform(simulation_roots(home.simulation / "key"), simulation_references())
    with running(home.trust) as service:
        broker = BrokerAddress(url=service.report["url"], ca_pem=service.ca_pem, release_log=service.log_pins)
        mine, other = (build_initdata({AGENT_ENTRY: broker_entry(broker), "contract-id": word}) for word in ("a", "b"))
        with owner.admin() as admin:
            admin.put_resource(PATH, KEK)
            admin.add_release_rule(rule(mine, "default/image-kek/*", insecure_allow_levels=(Level.SIMULATED,)))
        (tmp_path / "mine").write_bytes(mine.text)
        (tmp_path / "other").write_bytes(other.text)
        done = ask(tmp_path / "mine")
        assert done.returncode == 0, done.stderr
        assert parse_unwrap_answer(done.stdout) == OPTIONS
        # Another pod's init data: authentic evidence, and no rule lets it have the key.
        for place, path in (("other", PATH), ("mine", ResourcePath("default", "elsewhere", "guest"))):
            denied = ask(tmp_path / place, path)
            assert denied.returncode == 1 and denied.stdout == b"", denied.stderr
            assert b"cloister: error: CLS-" in denied.stderr
