"""Which component changed: evidence of fake machines that differ in one thing, on every platform and by every way.

The machines measure as real ones do: into a fake TPM that quotes, into reports and quotes of the right layout. The
answers go through the command line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from typer.testing import CliRunner

from cloister.cli.app import app
from cloister.errors import CloisterError, Unavailable
from cloister.imagetool.measure.events import BootEvent, replay_events
from cloister.imagetool.measure.tdx import PageOrder, mrtd, runtime_events
from cloister.imagetool.measure.uki import uki_events
from cloister.imagetool.podvm import PodVMBundle
from cloister.imagetool.podvm.bundle import INITRD, KERNEL, OPTION_ROM, OVMF_CODE, SEABIOS, UKI
from cloister.imagetool.podvm.confidential import snp_digests, tdx_firmware
from cloister.protocol.launch import LaunchMeasurement, LaunchProfile, digest_text
from cloister.sdk.equations import Known, build_problem
from cloister.sdk.explanation import command_line_edits, split_command_line
from cloister.sdk.measured import read_measured
from cloister.sdk.references import Platform, ReferenceRequest
from cloister.tee.eventlog import Event
from cloister.testing.dcap import FakeIntel, FakePlatform, enclave_report, td_report
from cloister.testing.eventlog import EV_IPL, build_event_log, seabios_events
from cloister.testing.firmware import fake_bundle, fake_firmware, fake_report
from cloister.testing.tpm import EndorsementCA, FakeTPM
from cloister.wire.base64 import encode_b64

pytestmark = pytest.mark.long  # seconds, all together

CA = EndorsementCA()
EK = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PLATFORM = FakePlatform(FakeIntel())
ALL = {"firmware", "kernel", "initrd", "command line", "root hash", "vCPU count", "memory"}
CHANGES: dict[str, dict[str, Any]] = {  # Any: arguments of fake_bundle
    "kernel": {"kernel": b"other kernel"},
    "initrd": {"initrd": b"other initrd"},
    "command line": {"words": "console=ttyS0 frobnicate=1"},
    "root hash": {"root_hash": bytes(32)},
}


@dataclass(frozen=True)
class World:
    """The expected image, and a place for others."""

    directory: Path
    image: PodVMBundle

    def other(self, **changes: Any) -> PodVMBundle:  # Any: arguments of fake_bundle
        return fake_bundle(self.directory / "other", **changes)

    def explain(self, evidence: bytes | dict[str, Any], *arguments: str) -> dict[str, Any]:  # Any: JSON
        file = self.directory / "run" / "evidence.json"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(evidence if isinstance(evidence, bytes) else json.dumps(evidence).encode())
        command = ["refs", "explain", str(file), "--image", str(self.image.path), "--output", "json", *arguments]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, (result.output, result.exception)
        answer: dict[str, Any] = json.loads(result.stdout)  # Any: JSON
        return answer


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("CLOISTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CLOISTER_CACHE", str(tmp_path / "cache"))
    return World(tmp_path, fake_bundle(tmp_path / "image"))


@pytest.fixture
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up sooner, in tests where nothing can be found."""
    monkeypatch.setattr("cloister.sdk.explanation.VARIATIONS", 10_000)


def changed(answer: dict[str, Any]) -> list[str]:  # Any: JSON
    return [change["component"] for change in answer["changed"]]


# -- machines with a TPM


def launch_of(bundle: PodVMBundle, profile: LaunchProfile, vcpus: int, memory_mib: int) -> LaunchMeasurement:
    files = {name: record.digest for name, record in bundle.reference.files.items()}
    if profile is LaunchProfile.UKI:
        return LaunchMeasurement(
            profile=profile,
            vcpus=vcpus,
            memory_mib=memory_mib,
            firmware=files[OVMF_CODE],
            kernel=files[UKI],
            initrd=None,
            cmdline=None,
        )
    return LaunchMeasurement(
        profile=profile,
        vcpus=vcpus,
        memory_mib=memory_mib,
        firmware=files[SEABIOS],
        kernel=files[KERNEL],
        initrd=files[INITRD],
        cmdline=digest_text(bundle.cmdline.encode()),
        option_roms={Path(OPTION_ROM).name: files[OPTION_ROM]},
    )


def logged(register: int, events: Iterable[bytes]) -> list[Event]:
    return [Event(register=register, kind=EV_IPL, digests={"sha256": digest}, data=b"") for digest in events]


def events_of(bundle: PodVMBundle, profile: LaunchProfile) -> Sequence[Event]:
    if profile is LaunchProfile.SEABIOS:
        return seabios_events()
    found = logged(0, map(bytes.fromhex, bundle.reference.ovmf_events))
    for name, events in uki_events(bundle.file(UKI).read_bytes(), algorithm="sha256").items():
        found += logged(int(name[3:]), (event.digest for event in events))
    return found


def tpm_evidence(
    bundle: PodVMBundle, profile: LaunchProfile, *, vcpus: int = 2, memory_mib: int = 512, log: bool = True
) -> tuple[dict[str, Any], bytes]:  # Any: JSON
    """Return evidence and launch statement of a machine that booted `bundle`."""
    launch = launch_of(bundle, profile, vcpus, memory_mib)
    tpm = FakeTPM(CA, launch_blob=launch.blob(), events=events_of(bundle, profile), ek=EK)
    body = tpm.attest(bytes(48), b"secret")
    return (body if log else {**body, "event_log": ""}), launch.blob()


PROFILES = list(LaunchProfile)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_image_itself_in_any_expected_shape(world: World, profile: LaunchProfile) -> None:
    for vcpus, memory in ((1, 1024), (4, 512)):
        body, _ = tpm_evidence(world.image, profile, vcpus=vcpus, memory_mib=memory)
        answer = world.explain(body)
        assert answer["matches"] is True and answer["changed"] == [] == answer["undetermined"]
        assert set(answer["unchanged"]) == ALL
        assert all(register["as_expected"] for register in answer["registers"])


@pytest.mark.parametrize("component", CHANGES)
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("log", [True, False], ids=["log", "no-log"])
def test_another_image_that_is_known(world: World, profile: LaunchProfile, component: str, log: bool) -> None:
    other = world.other(**CHANGES[component])
    body, _ = tpm_evidence(other, profile, log=log)
    answer = world.explain(body, "--candidate", str(other.path))
    assert changed(answer) == [component] and answer["matches"] is False
    assert answer["undetermined"] == [] and answer["changed"][0]["found"]
    assert set(answer["unchanged"]) == ALL - {component}


@pytest.mark.parametrize("component", ["kernel", "initrd"])
@pytest.mark.parametrize("profile", PROFILES)
def test_another_file_with_the_launch_statement_or_the_log(
    world: World, profile: LaunchProfile, component: str
) -> None:
    """Nothing is known of the other file: the statement (SeaBIOS) or the event log (UKI) names it."""
    body, launch = tpm_evidence(world.other(**CHANGES[component]), profile)
    (world.directory / "run").mkdir()
    (world.directory / "run" / "launch.json").write_bytes(launch)
    answer = world.explain(body)
    assert changed(answer) == [component] and answer["undetermined"] == []


@pytest.mark.parametrize("profile", PROFILES)
def test_an_edited_command_line_is_found_without_help(world: World, profile: LaunchProfile) -> None:
    other = world.other(words="console=ttyS0 quiet init=/bin/sh")
    body, _ = tpm_evidence(other, profile)
    answer = world.explain(body)
    assert changed(answer) == ["command line"]
    assert answer["changed"][0]["found"].startswith("console=ttyS0 quiet")


def test_a_command_line_that_is_given(world: World) -> None:
    other = world.other(**CHANGES["command line"])
    body, _ = tpm_evidence(other, LaunchProfile.SEABIOS)
    assert changed(world.explain(body, "--cmdline", other.cmdline)) == ["command line"]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("known", ["candidate", "launch"])
def test_other_firmware(world: World, profile: LaunchProfile, known: str) -> None:
    other = world.other(seabios=b"other SeaBIOS", ovmf=b"other volume")
    body, launch = tpm_evidence(other, profile)
    statement = world.directory / "statement.json"
    statement.write_bytes(launch)
    place = str(other.path) if known == "candidate" else str(statement)
    answer = world.explain(body, f"--{known}", place)
    assert changed(answer) == ["firmware"] and answer["undetermined"] == []


@pytest.mark.long
@pytest.mark.parametrize("profile", PROFILES)
def test_other_shapes(world: World, profile: LaunchProfile) -> None:
    for vcpus, memory, expected in (
        (3, 512, ["vCPU count"]),
        (2, 2048, ["memory"]),
        (8, 4096, ["vCPU count", "memory"]),
    ):
        body, _ = tpm_evidence(world.image, profile, vcpus=vcpus, memory_mib=memory)
        answer = world.explain(body)
        assert changed(answer) == expected and answer["undetermined"] == []
        found = {change["component"]: change["found"] for change in answer["changed"]}
        assert found.get("vCPU count", str(vcpus)) == str(vcpus) and found.get("memory", str(memory)) == str(memory)
    body, _ = tpm_evidence(world.image, profile, vcpus=2)
    assert changed(world.explain(body, "--vcpus", "1", "--memory", "512")) == ["vCPU count"]


def test_reference_values_say_what_is_expected(world: World) -> None:
    """Their machines, and their image when it is in the cache."""
    image = fake_bundle(world.directory / "cache" / "podvm" / "x", kernel=b"theirs")
    values = world.directory / "values.json"
    CliRunner().invoke(
        app, ["refs", "compute", str(image.path), "--vcpus", "3", "--memory", "768", "--output", str(values)]
    )
    file = world.directory / "evidence.json"

    def explained(vcpus: int, *arguments: str) -> Any:  # Any: JSON, or an error
        body, _ = tpm_evidence(image, LaunchProfile.UKI, vcpus=vcpus, memory_mib=768)
        file.write_text(json.dumps(body))
        command = ["refs", "explain", str(file), "--reference", str(values), "--output", "json", *arguments]
        result = CliRunner().invoke(app, command)
        return result.exception or json.loads(result.stdout)

    assert explained(3)["matches"] is True and explained(3)["image"] == image.key
    assert changed(explained(2)) == ["vCPU count"]
    assert changed(explained(3, "--image", str(world.image.path))) == ["kernel"]
    error = explained(3, "--platform", "tdx")
    assert isinstance(error, CloisterError) and error.code == "rats.reference.set.components"
    image.file("reference.json").unlink()
    error = explained(3)
    assert isinstance(error, CloisterError) and error.code == "imagetool.bundle.missing"


def test_two_things_at_once(world: World) -> None:
    other = world.other(**CHANGES["kernel"], **CHANGES["root hash"])
    body, _ = tpm_evidence(other, LaunchProfile.SEABIOS, vcpus=16)
    answer = world.explain(body, "--candidate", str(other.path))
    assert changed(answer) == ["kernel", "root hash", "vCPU count"]


def test_images_in_the_cache_are_candidates(world: World) -> None:
    other = fake_bundle(world.directory / "cache" / "podvm" / "x", **CHANGES["root hash"])
    body, _ = tpm_evidence(other, LaunchProfile.SEABIOS)
    assert changed(world.explain(body)) == ["root hash"]


@pytest.mark.usefixtures("short_search")
def test_what_cannot_be_known_stays_open(world: World) -> None:
    body, _ = tpm_evidence(world.other(**CHANGES["kernel"]), LaunchProfile.SEABIOS)
    answer = world.explain(body)
    assert answer["matches"] is False and changed(answer) == [] and set(answer["undetermined"]) == ALL
    body, launch = tpm_evidence(world.other(**CHANGES["root hash"]), LaunchProfile.SEABIOS)
    (world.directory / "run" / "launch.json").write_bytes(launch)
    assert world.explain(body)["undetermined"] == ["command line", "root hash"]


@pytest.mark.usefixtures("short_search")
def test_statement_of_another_launch_is_not_believed(world: World) -> None:
    body, _ = tpm_evidence(world.other(**CHANGES["kernel"]), LaunchProfile.SEABIOS)
    (world.directory / "run").mkdir()
    (world.directory / "run" / "launch.json").write_bytes(launch_of(world.image, PROFILES[0], 2, 512).blob())
    answer = world.explain(body)
    assert changed(answer) == [] and any("not that of this evidence" in note for note in answer["notes"])


@pytest.mark.usefixtures("short_search")
def test_a_log_that_does_not_replay_is_not_believed(world: World) -> None:
    other = world.other(**CHANGES["initrd"])
    body, _ = tpm_evidence(other, LaunchProfile.UKI)
    forged, _ = tpm_evidence(world.image, LaunchProfile.UKI)
    answer = world.explain({**body, "event_log": forged["event_log"]})
    assert answer["matches"] is False and "initrd" in answer["undetermined"]
    assert sum("does not replay" in note for note in answer["notes"]) == 3


@pytest.mark.usefixtures("short_search")
def test_another_stub_is_noted_where_no_component_changed(world: World) -> None:
    body, _ = tpm_evidence(world.other(stub=b"other stub"), LaunchProfile.UKI)
    answer = world.explain(body)
    assert answer["matches"] is False and changed(answer) == []
    assert any(note.startswith("pcr04: it differs although") for note in answer["notes"])


def test_what_the_host_gave_the_stub_is_noted(world: World) -> None:
    launch = launch_of(world.image, LaunchProfile.UKI, 2, 512)
    extra = [*events_of(world.image, LaunchProfile.UKI), *logged(12, [bytes(32)])]
    tpm = FakeTPM(CA, launch_blob=launch.blob(), events=extra, ek=EK)
    answer = world.explain(tpm.attest(bytes(48), b"secret"))
    assert answer["matches"] is False and changed(answer) == []
    assert any(note.startswith("pcr12: it is not zero") for note in answer["notes"])


@pytest.mark.usefixtures("short_search")
def test_profile_that_is_not_expected_and_launch_that_was_not_measured(world: World) -> None:
    body, _ = tpm_evidence(world.image, LaunchProfile.SEABIOS)
    answer = world.explain(body, "--profile", "uki")
    assert answer["matches"] is False and changed(answer) == [] and "seabios" in answer["notes"][0]
    tpm = FakeTPM(CA, events=seabios_events(), ek=EK)
    answer = world.explain(tpm.attest(bytes(48), b"secret"))
    assert answer["matches"] is False and any("no launch measurement" in note for note in answer["notes"])


def test_values_that_are_not_quoted_are_refused(world: World) -> None:
    body, _ = tpm_evidence(world.image, LaunchProfile.SEABIOS)
    values = list(body["tpm_quote"]["pcrs"])
    values[0] = "00" * 32
    with pytest.raises(CloisterError) as caught:
        read_measured(json.dumps({**body, "tpm_quote": {**body["tpm_quote"], "pcrs": values}}).encode(), Platform.TPM)
    assert caught.value.code == "evidence.measured.values"


# -- SEV-SNP

FIRMWARE = fake_firmware()
OTHER_FIRMWARE = fake_firmware(text=b"other firmware")


def snp_report(bundle: PodVMBundle, vcpus: int = 2, firmware: bytes = FIRMWARE, **shape: Any) -> bytes:  # Any: a table
    return fake_report(snp_digests(bundle, firmware, vcpus=[vcpus], **shape)[vcpus])


def ovmf(world: World, data: bytes = FIRMWARE, name: str = "ovmf.fd") -> str:
    place = world.directory / name
    place.write_bytes(data)
    return str(place)


def snp_explain(world: World, evidence: bytes | dict[str, Any], *arguments: str) -> dict[str, Any]:  # Any: JSON
    return world.explain(evidence, "--platform", "snp", "--ovmf", ovmf(world), *arguments)


def test_snp_same_image(world: World) -> None:
    answer = snp_explain(world, snp_report(world.image, vcpus=4))
    assert answer["matches"] is True and answer["unjudged"] == ["memory"]
    body = {"attestation_report": encode_b64(snp_report(world.image)), "cert_chain": []}
    assert snp_explain(world, body)["matches"] is True


@pytest.mark.parametrize("component", CHANGES)
def test_snp_another_image(world: World, component: str) -> None:
    other = world.other(**CHANGES[component])
    answer = snp_explain(world, snp_report(other), "--candidate", str(other.path))
    assert changed(answer) == [component] and answer["undetermined"] == []


def test_snp_files_shapes_and_firmware(world: World) -> None:
    other = world.other(**CHANGES["kernel"])
    assert changed(snp_explain(world, snp_report(other), "--candidate", str(other.file(KERNEL)))) == ["kernel"]
    assert changed(snp_explain(world, snp_report(world.image, vcpus=3))) == ["vCPU count"]
    assert changed(snp_explain(world, snp_report(world.image, vcpus=200), "--vcpus", "1-4")) == ["vCPU count"]
    report = snp_report(world.image, firmware=OTHER_FIRMWARE)
    assert snp_explain(world, report)["changed"] == []
    candidate = ovmf(world, OTHER_FIRMWARE, "other.fd")
    assert changed(snp_explain(world, report, "--candidate", candidate)) == ["firmware"]
    edited = world.other(words="console=ttyS0 quiet debug")
    assert changed(snp_explain(world, snp_report(edited))) == ["command line"]


def test_snp_cpu_model_and_features_are_noted(world: World) -> None:
    for shape, word in (({"vcpu_type": "EPYC-Genoa"}, "EPYC-Genoa"), ({"guest_features": 0x21}, "0x21")):
        report = snp_report(world.image, **shape)
        answer = snp_explain(world, report)
        assert answer["matches"] is False and changed(answer) == [] and word in answer["notes"][0]
    expected = ("--vcpu-type", "EPYC-v4", "--guest-features", "0x21", "--guest-features", "0x1")
    assert snp_explain(world, report, *expected)["matches"] is True


# -- TDX


def tdx_quote(registers: dict[str, bytes], version: int = 4) -> bytes:
    report = td_report(td15=version == 5, **{name.replace("mrtd", "mr_td"): value for name, value in registers.items()})
    return PLATFORM.quote(report)


def tdx_evidence(
    bundle: PodVMBundle, *, firmware: bytes | None = None, order: PageOrder = PageOrder.PAGE, version: int = 4
) -> tuple[bytes, bytes]:
    """Return quote and CCEL of a trust domain that booted `bundle`."""
    events = dict(runtime_events(bundle.file(UKI).read_bytes()))
    events["rtmr0"] = (BootEvent(name="TD HOB", digest=hashlib.sha384(b"hob").digest()),)
    registers = {name: replay_events(items, start=bytes(48), algorithm="sha384") for name, items in events.items()}
    registers["mrtd"] = mrtd(tdx_firmware(bundle) if firmware is None else firmware, order=order)
    log = [
        Event(register=number, kind=EV_IPL, digests={"sha384": item.digest}, data=b"")
        for number, name in ((1, "rtmr0"), (2, "rtmr1"), (3, "rtmr2"))
        for item in events[name]
    ]
    return tdx_quote(registers, version), build_event_log(log, algorithms=("sha384",))


def tdx_explain(world: World, quote: bytes, log: bytes, *arguments: str) -> dict[str, Any]:  # Any: JSON
    given = (*arguments, "--platform", "tdx")
    if log:
        (world.directory / "ccel").write_bytes(log)
        given = (*given, "--event-log", str(world.directory / "ccel"))
    return world.explain(quote, *given)


@pytest.mark.parametrize("version", [4, 5])
def test_tdx_same_image(world: World, version: int) -> None:
    quote, log = tdx_evidence(world.image, version=version)
    answer = tdx_explain(world, quote, log)
    assert answer["matches"] is True and answer["unjudged"] == ["vCPU count", "memory"]
    assert any("rtmr0" in note for note in answer["notes"])
    body = {"quote": encode_b64(quote), "cc_eventlog": encode_b64(log)}
    assert world.explain(body, "--platform", "tdx")["matches"] is True
    assert world.explain({**body, "cc_eventlog": None}, "--platform", "tdx")["matches"] is True


@pytest.mark.parametrize("component", CHANGES)
@pytest.mark.parametrize("with_log", [True, False])
def test_tdx_another_image(world: World, component: str, with_log: bool) -> None:
    other = world.other(**CHANGES[component])
    quote, log = tdx_evidence(other)
    answer = tdx_explain(world, quote, log if with_log else b"", "--candidate", str(other.path))
    assert changed(answer) == [component] and answer["undetermined"] == []


def test_tdx_log_names_an_unknown_kernel_and_mrtd_an_unknown_firmware(world: World) -> None:
    quote, log = tdx_evidence(world.other(**CHANGES["kernel"]))
    assert changed(tdx_explain(world, quote, log)) == ["kernel"]
    quote, log = tdx_evidence(world.image, firmware=OTHER_FIRMWARE)
    answer = tdx_explain(world, quote, log)
    assert changed(answer) == ["firmware"] and answer["changed"][0]["found"] is None
    candidate = ovmf(world, OTHER_FIRMWARE, "other.fd")
    answer = tdx_explain(world, quote, log, "--candidate", candidate)
    assert answer["changed"][0]["found"] == digest_text(OTHER_FIRMWARE)


def test_tdx_order_of_pages_is_noted(world: World) -> None:
    quote, log = tdx_evidence(world.image, order=PageOrder.SECTION)
    answer = tdx_explain(world, quote, log)
    assert answer["matches"] is False and "section" in " ".join(answer["notes"]) and changed(answer) == []
    assert tdx_explain(world, quote, log, "--page-order", "section")["matches"] is True


def test_an_image_without_its_files_cannot_be_compared_with(world: World) -> None:
    body, _ = tpm_evidence(world.image, LaunchProfile.UKI)
    measured = read_measured(json.dumps(body).encode(), Platform.TPM)
    world.image.file(UKI).unlink()
    with pytest.raises(Unavailable, match=r"imagetool\.bundle\.missing"):
        build_problem(measured, Known(image=world.image), ReferenceRequest(platform=Platform.TPM))


# -- evidence that is none


@pytest.mark.parametrize(
    ("data", "platform", "code"),
    [
        (b"", Platform.SNP, "tee.sev_snp.report.truncated"),
        (bytes(1184), Platform.SNP, "tee.sev_snp.report.version"),
        (fake_report(bytes(48))[:-1], Platform.SNP, "tee.sev_snp.report.truncated"),
        (fake_report(bytes(48)) + b"x", Platform.SNP, "tee.sev_snp.report.trailing_bytes"),
        (b"{}", Platform.SNP, "tee.sev_snp.malformed"),
        (b'{"attestation_report": "AAAA"}', Platform.SNP, "tee.sev_snp.report.truncated"),
        (b"", Platform.TDX, "tee.file.form"),
        (bytes(700), Platform.TDX, "tee.file.form"),
        (tdx_quote({})[:500], Platform.TDX, "tee.dcap.quote.truncated"),
        (b"{}", Platform.TDX, "tee.tdx.evidence.malformed"),
        (b'{"quote": "%"}', Platform.TDX, "tee.tdx.evidence.malformed"),
        (b'{"quote": 1}', Platform.TDX, "tee.tdx.evidence.malformed"),
        (PLATFORM.quote(enclave_report()), Platform.TDX, "tee.tdx.not_a_td"),
        (b"{", Platform.TDX, "tee.file.not_json"),
        (b"{}", Platform.TPM, "tee.tpm.malformed"),
        (b"x", Platform.TPM, "tee.tpm.attestation.unknown_field"),
    ],
)
def test_other_data_is_refused(data: bytes, platform: Platform, code: str) -> None:
    with pytest.raises(CloisterError) as caught:
        read_measured(data, platform)
    assert caught.value.code == code


def test_command_lines_are_taken_apart_and_put_together() -> None:
    assert split_command_line("a cloister.verity=1:2:3 b") == ("a \0 b", "1:2:3")
    assert split_command_line("a b") == ("a b", "")
    assert split_command_line("cloister.verity=1 cloister.verity=2") == ("cloister.verity=1 cloister.verity=2", "")
    edits = command_line_edits("quiet \0")
    assert "\0" in edits and "quiet \0 init=/bin/sh" in edits and not any("\0" not in edit for edit in edits)
