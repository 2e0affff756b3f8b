"""What the reference values of the pod-VM image predict is what its machines' TPMs quote, for every common shape.

The registers are taken from the quote that the guest's agent sent and the trust service stored: signature, selection
and digest of the quote are checked here again, with `hashlib` and the evidence's own key. That this key is one of a
certified TPM, activated for this session, was the trust service's condition to store the evidence at all.

Both boot profiles are booted in each shape, two machines at a time, before the first test looks at anything. Half of
the machines have a scratch disk, each of another size: no register that is predicted may depend on it.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
from dataclasses import dataclass

import pytest

from cloister.errors import CloisterError, Unavailable
from cloister.host.vmm.spec import Backend
from cloister.host.vtpm import VTPMAuthority
from cloister.imagetool.podvm import COMMON_SHAPES, PodVMBundle, Shape, reference_values
from cloister.protocol.launch import LaunchProfile
from cloister.sdk.bundle import build_bundle, launch_files
from cloister.sdk.home import Home
from cloister.sdk.owner import podvm_references
from cloister.tee.checklist import Checklist
from cloister.tee.tpm.abi import parse_public, parse_quote_attest, parse_signature
from cloister.tee.tpm.endorsements import read_swtpm_roots
from cloister.tee.tpm.quote import ALL_PCRS, attestation_key, verify_signature
from cloister.wire.base64 import decode_b64
from conformance.tools import cache_directory, require_tool, skip_or_fail
from guest_world import World, make_world
from podvm_boots import boot_once

pytestmark = pytest.mark.vm

PROFILES = {Backend.SEABIOS: LaunchProfile.SEABIOS, Backend.OVMF: LaunchProfile.UKI}
PREDICTED = {
    LaunchProfile.SEABIOS: {"pcr00"},
    LaunchProfile.UKI: {"pcr00", "pcr04", "pcr09", "pcr11", "pcr12"},
}
CASES = [(backend, shape) for backend in PROFILES for shape in COMMON_SHAPES]
AT_ONCE = 2
SCRATCH_AT_MIB = 1024  # of memory: those machines have a scratch disk
QUOTE_BYTES = 4096

Case = tuple[Backend, Shape]


@dataclass(frozen=True)
class Boots:
    """The image, and what the trust service stored of each boot: evidence, or why there is none."""

    bundle: PodVMBundle
    evidence: dict[Case, bytes | CloisterError]

    def quoted(self, case: Case) -> dict[str, bytes]:
        """Return the quoted registers of a boot."""
        found = self.evidence[case]
        assert isinstance(found, bytes), found
        return open_quote(found)

    def predicted(self, case: Case) -> dict[str, bytes]:
        """Return the registers that the reference values name for a boot."""
        backend, shape = case
        [prediction] = reference_values(self.bundle, (shape,), (PROFILES[backend],))
        return dict(prediction.registers)


def open_quote(evidence: bytes) -> dict[str, bytes]:
    """Return the registers of TPM evidence by name, after checking that the quote covers them."""
    wire = json.loads(evidence)
    quote = wire["tpm_quote"]
    message, signature = (decode_b64(quote[name], ceiling=QUOTE_BYTES) for name in ("message", "signature"))
    key = attestation_key(parse_public(decode_b64(wire["ak_public"], ceiling=QUOTE_BYTES)))
    verify_signature(Checklist(), key, message, parse_signature(signature))
    attest = parse_quote_attest(message)
    values = [bytes.fromhex(value) for value in quote["pcrs"]]
    assert attest.selections == (ALL_PCRS,)
    assert attest.pcr_digest == hashlib.sha256(b"".join(values)).digest()
    return {f"pcr{index:02d}": value for index, value in enumerate(values)}


@pytest.fixture(scope="module")
def boots(tmp_path_factory: pytest.TempPathFactory) -> Boots:
    for name in ("qemu-system-x86_64", "swtpm"):
        require_tool(name)
    with make_world(tmp_path_factory.mktemp("world")) as world:
        home = world.owner.home
        try:
            bundle = build_bundle(Home(root=home.root, cache=cache_directory()))
        except Unavailable as err:
            skip_or_fail(str(err))
        VTPMAuthority(home.vtpm_ca).create()
        references = [entry for shape in COMMON_SHAPES for entry in podvm_references(bundle, shape)]
        world.owner.trust_platform(read_swtpm_roots(home.vtpm_ca), references)
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            results = list(pool.map(lambda case: boot(world, bundle, case), CASES))
    return Boots(bundle, dict(zip(CASES, results, strict=True)))


def boot(world: World, bundle: PodVMBundle, case: Case) -> bytes | CloisterError:
    """Boot one machine up to its attestation; return the evidence that was stored."""
    backend, shape = case
    name = f"{PROFILES[backend].value}-{shape.vcpus}x{shape.memory_mib}"
    scratch_mib = 10 * shape.vcpus if shape.memory_mib == SCRATCH_AT_MIB else 0
    return boot_once(world, name, backend, launch_files(bundle), shape, scratch_mib=scratch_mib).evidence


def case_name(case: Case) -> str:
    backend, shape = case
    return f"{PROFILES[backend].value}-{shape.vcpus}cpu-{shape.memory_mib}MiB"


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_quoted_registers_are_the_predicted_ones(boots: Boots, case: Case) -> None:
    predicted, quoted = boots.predicted(case), boots.quoted(case)
    assert predicted.keys() == PREDICTED[PROFILES[case[0]]]
    assert {name: quoted[name].hex() for name in predicted} == {name: predicted[name].hex() for name in predicted}


def test_every_shape_and_profile_has_a_launch_of_its_own(boots: Boots) -> None:
    """So a machine of another shape than the approved one is seen: no two of them quote the same PCR 0."""
    assert len({boots.quoted(case)["pcr00"] for case in CASES}) == len(CASES)


def test_what_the_image_decides_is_the_same_in_every_shape(boots: Boots) -> None:
    for name in ("pcr04", "pcr09", "pcr11"):
        assert len({boots.quoted(case)[name] for case in CASES if case[0] is Backend.OVMF}) == 1


def test_an_altered_quote_is_not_read(boots: Boots) -> None:
    """The reader of this file refuses registers that the quote does not cover."""
    evidence = boots.evidence[CASES[0]]
    assert isinstance(evidence, bytes)
    wire = json.loads(evidence)
    wire["tpm_quote"]["pcrs"][0] = wire["tpm_quote"]["pcrs"][1]
    with pytest.raises(AssertionError):
        open_quote(json.dumps(wire).encode())
