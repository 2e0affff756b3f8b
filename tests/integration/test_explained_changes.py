"""`refs explain` names the component that changed, from the evidence of machines that were booted with it changed.

Each machine differs from the image in one thing: the kernel's or the initrd's file, the command line, the root, the
firmware, the number of processors. All of them boot and attest. The evidence goes through the command line,
first with the launch statement that a run keeps, then without.

The event log of a machine with OVMF is also held against what is predicted for a trust domain: the same firmware, stub
and kernel extend the same bytes, by another hash and into other registers.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cloister.cli.app import app
from cloister.errors import Unavailable
from cloister.host.vmm.spec import Backend, Bundle
from cloister.host.vtpm import VTPMAuthority
from cloister.imagetool.measure.tdx import EXIT_ACTIONS, SectionKind, parse_tdvf, runtime_events
from cloister.imagetool.podvm import BuildRequest, PodVMBundle, Shape, build, default_definition
from cloister.imagetool.podvm.bundle import SEABIOS, UKI
from cloister.imagetool.podvm.confidential import tdx_firmware
from cloister.sdk.bundle import build_bundle, launch_files
from cloister.sdk.home import Home
from cloister.sdk.owner import podvm_references
from cloister.tee.tpm.endorsements import read_swtpm_roots
from cloister.tee.tpm.eventlog import measured, parse_event_log
from cloister.wire.base64 import decode_b64
from cloister.wire.limits import EVENT_LOG_BYTES
from conformance.tools import cache_directory, require_tool, skip_or_fail
from guest_world import make_world
from podvm_boots import Booted, boot_once

pytestmark = pytest.mark.vm

SHAPE = Shape(vcpus=1, memory_mib=512)
AT_ONCE = 2
EV_EFI_PLATFORM_FIRMWARE_BLOB2 = 0x8000000A
EXTRA_WORD = "nokaslr"  # one of the words that are tried


@dataclass(frozen=True)
class Case:
    """A machine that differs from the expected one in `changed`."""

    name: str
    backend: Backend
    changed: tuple[str, ...]
    alter: Callable[[Bundle, Path], Bundle]
    shape: Shape = SHAPE
    edit: tuple[str, str] = ("", "")  # of the image's definition, for an image of its own
    given: tuple[str, ...] = ()  # further arguments when nothing is known of the launch


def same(files: Bundle, _: Path) -> Bundle:
    return files


def other_kernel(files: Bundle, place: Path) -> Bundle:
    place.write_bytes(files.kernel.read_bytes() + bytes(512))
    return dataclasses.replace(files, kernel=place)


def other_initrd(files: Bundle, place: Path) -> Bundle:
    place.write_bytes(files.initrd.read_bytes() + bytes(512))  # zeros between archives are legal
    return dataclasses.replace(files, initrd=place)


def other_command_line(files: Bundle, _: Path) -> Bundle:
    return dataclasses.replace(files, cmdline=f"{files.cmdline} {EXTRA_WORD}")


def other_firmware(files: Bundle, place: Path) -> Bundle:
    """The same SeaBIOS with another text in its version, which nothing reads."""
    data = files.bios.read_bytes()
    changed = data.replace(b"SeaBIOS (version ", b"SeaBIOS (Version ", 1)
    assert changed != data
    place.write_bytes(changed)
    return dataclasses.replace(files, bios=place)


HOSTS = 'text = "127.0.0.1 localhost\\n'
ROOT_EDIT = (HOSTS, HOSTS + "# another root\\n")
CMDLINE_EDIT = ("loglevel=1 panic=-1", "loglevel=2 panic=-1")
CASES = [
    Case("same", Backend.SEABIOS, (), same),
    Case("kernel", Backend.SEABIOS, ("kernel",), other_kernel, given=("--candidate", "PLACE")),
    Case("initrd", Backend.SEABIOS, ("initrd",), other_initrd, given=("--candidate", "PLACE")),
    Case("cmdline", Backend.SEABIOS, ("command line",), other_command_line),
    Case("root", Backend.SEABIOS, ("root hash",), same, edit=ROOT_EDIT, given=("--candidate", "IMAGE")),
    Case("firmware", Backend.SEABIOS, ("firmware",), other_firmware, given=("--candidate", "PLACE")),
    Case("vcpus", Backend.SEABIOS, ("vCPU count",), same, shape=Shape(vcpus=2, memory_mib=512)),
    Case("uki-same", Backend.OVMF, (), same),
    Case("uki-cmdline", Backend.OVMF, ("command line",), same, edit=CMDLINE_EDIT, given=("--candidate", "IMAGE")),
    Case("uki-root", Backend.OVMF, ("root hash",), same, edit=ROOT_EDIT, given=("--candidate", "IMAGE")),
]


@dataclass(frozen=True)
class Boots:
    """The expected image, the other ones by edit, and what came of each case."""

    bundle: PodVMBundle
    images: dict[tuple[str, str], PodVMBundle]
    booted: dict[str, Booted]
    directory: Path

    def place(self, case: Case) -> Path:
        return self.directory / f"{case.name}.file"


def edited_image(edit: tuple[str, str], directory: Path) -> PodVMBundle:
    """Build the image with a changed definition, into a cache of its own that shares the downloads."""
    definition = default_definition()
    shutil.copytree(definition.parent, directory / "definition")
    text = definition.read_text("utf-8")
    assert text.count(edit[0]) == 1
    (directory / "definition" / definition.name).write_text(text.replace(*edit), "utf-8")
    cache = directory / "cache"
    cache.mkdir()
    (cache / "downloads").symlink_to(cache_directory() / "downloads")
    return build(BuildRequest(definition=directory / "definition" / definition.name, cache=cache))


@pytest.fixture(scope="module")
def boots(tmp_path_factory: pytest.TempPathFactory) -> Boots:
    for name in ("qemu-system-x86_64", "swtpm"):
        require_tool(name)
    directory = tmp_path_factory.mktemp("changes")
    with make_world(tmp_path_factory.mktemp("world")) as world:
        home = world.owner.home
        try:
            bundle = build_bundle(Home(root=home.root, cache=cache_directory()))
            images = {edit: edited_image(edit, tmp_path_factory.mktemp("image")) for edit in (ROOT_EDIT, CMDLINE_EDIT)}
        except Unavailable as err:
            skip_or_fail(str(err))
        VTPMAuthority(home.vtpm_ca).create()
        world.owner.trust_platform(read_swtpm_roots(home.vtpm_ca), podvm_references(bundle, SHAPE))

        def boot(case: Case) -> Booted:
            image = images.get(case.edit, bundle)
            files = case.alter(launch_files(image), directory / f"{case.name}.file")
            return boot_once(world, case.name, case.backend, files, case.shape)

        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            booted = dict(zip((case.name for case in CASES), pool.map(boot, CASES), strict=True))
    return Boots(bundle, images, booted, directory)


def evidence_of(boots: Boots, case: Case) -> bytes:
    evidence = boots.booted[case.name].evidence
    assert isinstance(evidence, bytes), evidence
    return evidence


def explained(
    boots: Boots, case: Case, run: Path, monkeypatch: pytest.MonkeyPatch, *further: str
) -> dict[str, Any]:  # Any: JSON
    """Run the command over evidence in the directory of a run, with an empty cache of other images."""
    run.mkdir()
    (run / "evidence.json").write_bytes(evidence_of(boots, case))
    monkeypatch.setenv("CLOISTER_HOME", str(run / "home"))
    monkeypatch.setenv("CLOISTER_CACHE", str(run / "cache"))
    shape = ("--vcpus", str(SHAPE.vcpus), "--memory", str(SHAPE.memory_mib))
    image = ("--image", str(boots.bundle.path))
    result = CliRunner().invoke(
        app, ["refs", "explain", str(run / "evidence.json"), *image, *shape, *further, "--output", "json"]
    )
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(result.stdout)  # Any: JSON
    return answer


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_launch_statement_and_candidates_name_the_component(
    boots: Boots, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = tmp_path / "statement.json"
    launch.write_bytes(boots.booted[case.name].launch)
    image = boots.images.get(case.edit, boots.bundle)
    known = ("--candidate", str(image.path)) if image is not boots.bundle else ()
    answer = explained(boots, case, tmp_path / "run", monkeypatch, "--launch", str(launch), *known)
    assert tuple(change["component"] for change in answer["changed"]) == case.changed
    assert answer["matches"] is (not case.changed)
    assert answer["undetermined"] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_recomputing_alone_names_the_component(
    boots: Boots, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a launch statement: what may have been used instead is varied."""
    words = {"PLACE": str(boots.place(case)), "IMAGE": str(boots.images.get(case.edit, boots.bundle).path)}
    given = [words.get(word, word) for word in case.given]
    answer = explained(boots, case, tmp_path / "run", monkeypatch, *given)
    assert tuple(change["component"] for change in answer["changed"]) == case.changed
    assert answer["undetermined"] == []


def test_what_cannot_be_known_is_not_guessed(boots: Boots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown kernel behind one digest over everything: all of it stays possible, nothing is named."""
    case = next(case for case in CASES if case.name == "kernel")
    answer = explained(boots, case, tmp_path / "run", monkeypatch)
    assert answer["changed"] == [] and answer["matches"] is False
    assert "kernel" in answer["undetermined"] and len(answer["undetermined"]) == 7


def test_events_predicted_for_a_trust_domain_are_those_of_this_boot(boots: Boots) -> None:
    """The log of the machine with OVMF, its registers numbered as a trust domain's, holds the predicted events."""
    case = next(case for case in CASES if case.name == "uki-same")
    log = json.loads(evidence_of(boots, case))["event_log"]
    events = parse_event_log(decode_b64(log, ceiling=EVENT_LOG_BYTES))
    predicted = runtime_events(boots.bundle.file(UKI).read_bytes(), algorithm="sha256")
    leaving = [hashlib.sha256(action).digest() for action in EXIT_ACTIONS]
    assert [event.digest for event in predicted["rtmr1"]] == [*measured(events, 4), *leaving]
    assert [digest for digest in measured(events, 5) if digest in leaving] == leaving
    order = [event for event in events if event.register in (11, 9)]
    assert [event.digest for event in predicted["rtmr2"]] == [event.digests["sha256"] for event in order]


def test_expected_firmware_is_that_of_the_bundle(boots: Boots) -> None:
    """The altered firmware of this file is another one; else its case would prove nothing."""
    case = next(case for case in CASES if case.name == "firmware")
    assert boots.place(case).read_bytes() != boots.bundle.file(SEABIOS).read_bytes()


def test_variables_of_the_images_firmware_are_what_a_real_trust_domain_measured(boots: Boots, vectors: Path) -> None:
    """The metadata of the joined file points at them; a log of a TD with the same layout holds their digest."""
    log = parse_event_log((vectors / "evidence" / "tpm/cc-eventlogs/CCEL_data_ovmf").read_bytes())
    (event,) = [event for event in log if event.kind == EV_EFI_PLATFORM_FIRMWARE_BLOB2]
    firmware = tdx_firmware(boots.bundle)
    (section,) = [section for section in parse_tdvf(firmware) if section.kind is SectionKind.CFV]
    assert event.data[-16:] == struct.pack("<QQ", section.address, section.memory_bytes)
    content = firmware[section.file_offset : section.file_offset + section.file_bytes]
    assert hashlib.sha384(content).digest() == event.digests["sha384"]
