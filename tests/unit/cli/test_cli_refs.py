"""`cloister refs`: computing, signing and verifying from the command line, and words that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from cloister.cli.app import app
from cloister.cli.refs import parse_numbers
from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import CloisterError
from cloister.imagetool.podvm import PodVMBundle
from cloister.imagetool.podvm.confidential import snp_digests
from cloister.rats.referenceset import parse_reference_set
from cloister.testing.dcap import FakeIntel, FakePlatform, td_report
from cloister.testing.firmware import fake_bundle, fake_firmware, fake_report


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PodVMBundle:
    monkeypatch.setenv("CLOISTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CLOISTER_CACHE", str(tmp_path / "cache"))
    return fake_bundle(tmp_path / "image")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["refs", *map(str, arguments)])


def code_of(result: Result) -> str:
    assert isinstance(result.exception, CloisterError), result.output
    return result.exception.code


def test_numbers() -> None:
    assert parse_numbers("1-4", "--vcpus") == [1, 2, 3, 4]
    assert parse_numbers("2,1-3,8", "--vcpus") == [2, 1, 3, 8]


@pytest.mark.parametrize("text", ["", "0", "-1", "4-1", "1-", "-4", "a", "1,,2", "1.5", "1-4-8", "\u0661", "1-99999"])
def test_other_numbers_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_numbers(text, "--vcpus")


def test_compute_in_every_form(bundle: PodVMBundle, tmp_path: Path) -> None:
    shown = run("compute", bundle.path, "--vcpus", "1-2", "--memory", "512")
    assert shown.exit_code == 0 and "pcr11" in shown.stdout and "uki-2x512" in shown.stdout
    parsed = parse_reference_set(run("compute", bundle.path, "--vcpus", "1-2", "--output", "json").stdout.encode())
    assert parsed.id == "podvm/tpm" and len(parsed.entries) == 8
    file = tmp_path / "values.json"
    written = run("compute", bundle.path, "--platform", "tdx", "--output", file)
    assert written.exit_code == 0
    (entry,) = parse_reference_set(file.read_bytes()).entries
    assert (entry.tee, sorted(entry.registers)) == ("tdx", ["mrtd", "rtmr1", "rtmr2"])


def test_compute_for_snp_needs_firmware(bundle: PodVMBundle, tmp_path: Path) -> None:
    assert code_of(run("compute", bundle.path, "--platform", "snp")) == "imagetool.snp.no_firmware"
    firmware = tmp_path / "ovmf.fd"
    firmware.write_bytes(fake_firmware())
    result = run("compute", bundle.path, "--platform", "snp", "--vcpus", "1-3", "--ovmf", firmware, "--output", "json")
    assert [entry.tee for entry in parse_reference_set(result.stdout.encode()).entries] == ["snp"] * 3
    firmware.write_bytes(b"none")
    assert code_of(run("compute", bundle.path, "--platform", "snp", "--ovmf", firmware)) == "imagetool.snp.firmware"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--platform", "sgx"),
        ("--vcpus", "none"),
        ("--memory", "0"),
        ("--profile", "bios"),
        ("--page-order", "random"),
        ("--guest-features", "zz"),
        ("--ovmf", "/gone"),
        ("--days", "0"),
    ],
)
def test_wrong_words_are_usage_errors(bundle: PodVMBundle, arguments: tuple[str, str]) -> None:
    assert run("compute", bundle.path, *arguments).exit_code == 2


def test_impossible_shapes_are_refused(bundle: PodVMBundle) -> None:
    assert code_of(run("compute", bundle.path, "--vcpus", "257")) == "protocol.launch.range"
    assert run("compute", bundle.path.parent).exit_code != 0


def test_sign_and_verify(bundle: PodVMBundle, tmp_path: Path) -> None:
    values, signed, key, public = (tmp_path / name for name in ("values", "signed", "key.pem", "key.pub"))
    signer = ECDSAP256Signer.generate()
    key.write_bytes(signer.private_pem())
    public.write_bytes(signer.public_key.pem())
    assert run("compute", bundle.path, "--output", values).exit_code == 0
    assert run("sign", values, "--key", key, "--id", "prod/web", "--version", "3", "--out", signed).exit_code == 0
    shown = run("verify", signed, "--key", public)
    assert shown.exit_code == 0 and "prod/web version 3" in shown.stdout and "pcr00" in shown.stdout
    answer = json.loads(run("verify", signed, "--key", public, "--output", "json").stdout)
    assert answer["version"] == 3 and answer["key_id"] and len(answer["entries"]) == 12
    accepted = tmp_path / "accepted"
    assert run("verify", signed, "--key", public, "--out", accepted).exit_code == 0
    assert parse_reference_set(accepted.read_bytes()).id == "prod/web"
    stdout = run("sign", values, "--key", key, "--id", "prod/web", "--version", "2")
    signed.write_text(stdout.stdout)
    assert code_of(run("verify", signed, "--key", public)) == "rats.reference.set.rollback"
    assert (
        code_of(run("verify", signed, "--key", public, "--at", "2099-01-01T00:00:00Z")) == "rats.reference.set.expired"
    )
    public.write_bytes(ECDSAP256Signer.generate().public_key.pem())
    assert code_of(run("verify", signed, "--key", public)) == "crypto.dsse.unknown_key"


def test_what_cannot_be_signed(bundle: PodVMBundle, tmp_path: Path) -> None:
    values, key = tmp_path / "values", tmp_path / "key.pem"
    key.write_bytes(ECDSAP256Signer.generate().private_pem())
    run("compute", bundle.path, "--output", values)
    assert code_of(run("sign", values, "--key", key, "--version", "0")) == "rats.reference.set.malformed"
    assert code_of(run("sign", values, "--key", key, "--id", "Prod Web")) == "rats.reference.set.malformed"
    assert code_of(run("sign", values, "--key", values)) == "crypto.signer.malformed_key"
    assert code_of(run("sign", key, "--key", key)) == "rats.reference.set.not_json"
    assert run("sign", values).exit_code == 2


def test_explanation_in_words(bundle: PodVMBundle, tmp_path: Path) -> None:
    firmware, report = tmp_path / "ovmf.fd", tmp_path / "report.bin"
    firmware.write_bytes(fake_firmware())
    report.write_bytes(fake_report(bytes(48)))
    result = run("explain", report, "--platform", "snp", "--ovmf", firmware, "--image", bundle.path)
    assert result.exit_code == 0 and "UNKNOWN" in result.stdout and "--candidate" in result.stdout
    report.write_bytes(b"x")
    arguments = ("explain", report, "--platform", "snp", "--ovmf", firmware, "--image", bundle.path)
    assert code_of(run(*arguments)) == "tee.sev_snp.report.truncated"
    assert code_of(run("explain", report, "--platform", "snp", "--image", bundle.path)).startswith("tee.sev_snp")
    report.write_bytes(fake_report(bytes(48)))
    assert code_of(run("explain", report, "--platform", "snp", "--image", bundle.path)) == "imagetool.snp.no_firmware"


def test_explanation_of_a_changed_machine_in_words(bundle: PodVMBundle, tmp_path: Path) -> None:
    firmware, report = tmp_path / "ovmf.fd", tmp_path / "report.bin"
    firmware.write_bytes(fake_firmware())

    def explain(vcpus: int) -> str:
        digests = snp_digests(bundle, fake_firmware(), vcpus=[vcpus], guest_features=0x21)
        report.write_bytes(fake_report(digests[vcpus]))
        shape = ("--vcpus", "2", "--guest-features", "0x1", "--guest-features", "0x21")
        result = run("explain", report, "--platform", "snp", "--ovmf", firmware, "--image", bundle.path, *shape)
        assert result.exit_code == 0
        return result.stdout

    assert "every register is that of pod-VM image" in explain(2)
    text = explain(7)
    assert text.startswith("changed: vCPU count\n") and "CHANGED" in text and "differs: measurement" in text
    assert "note: " not in text
    (tmp_path / "quote.bin").write_bytes(FakePlatform(FakeIntel()).quote(td_report()))
    result = run("explain", tmp_path / "quote.bin", "--platform", "tdx", "--image", bundle.path)
    assert "note: rtmr0 is not predicted" in result.stdout
