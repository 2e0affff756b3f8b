"""Reference values per platform, and the memory of versions that signed sets are held against."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloister.crypto.references import sign_reference_set
from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import FormatRefused, Refused, Unavailable
from cloister.imagetool.measure.tdx import PageOrder
from cloister.imagetool.podvm import PodVMBundle, Shape
from cloister.protocol.launch import LaunchProfile
from cloister.rats.reference import Component
from cloister.rats.referenceset import ReferenceSet
from cloister.sdk.home import Home
from cloister.sdk.owner import podvm_references
from cloister.sdk.references import Platform, ReferenceRequest, compute_references, verify_signed_references
from cloister.testing.firmware import fake_bundle, fake_firmware

NOW = datetime(2026, 11, 26, tzinfo=UTC)
UNTIL = NOW + timedelta(days=30)
SIGNER = ECDSAP256Signer.generate()


@pytest.fixture
def bundle(tmp_path: Path) -> PodVMBundle:
    return fake_bundle(tmp_path / "image")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "home" / "owner").mkdir(parents=True)
    return Home(root=tmp_path / "home", cache=tmp_path / "cache")


def test_tpm_entries_name_every_component(bundle: PodVMBundle) -> None:
    request = ReferenceRequest(platform=Platform.TPM, vcpus=[1, 3], memory_mib=[512])
    entries = compute_references(bundle, request, not_after=UNTIL)
    assert len({entry.id for entry in entries}) == len(entries) == 4
    assert len({entry.registers["pcr00"] for entry in entries}) == 4
    for entry in entries:
        assert entry.tee == "tpm" and entry.not_after == UNTIL and set(entry.components) == set(Component)
    uki = next(entry for entry in entries if "uki-3x512" in entry.id)
    assert (uki.components[Component.VCPUS], uki.components[Component.MEMORY]) == ("3", "512")
    assert set(uki.registers) == {"pcr00", "pcr04", "pcr09", "pcr11", "pcr12"}
    assert uki.components[Component.ROOT_HASH] in uki.components[Component.COMMAND_LINE]


def test_init_data_adds_its_register(bundle: PodVMBundle) -> None:
    """PCR 8 as the guest extends it; other hashes fit no register of it."""
    request = ReferenceRequest(platform=Platform.TPM, vcpus=[1], memory_mib=[512])
    plain = compute_references(bundle, request, not_after=UNTIL)
    text = b'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"aa.toml" = ""\n'
    found = compute_references(bundle, replace(request, init_data=text), not_after=UNTIL)
    value = hashlib.sha256(bytes(32) + hashlib.sha256(text).digest()).digest()
    assert [entry.registers for entry in found] == [{**entry.registers, "pcr08": value} for entry in plain]
    assert not {entry.id for entry in found} & {entry.id for entry in plain}
    for wrong, code in ((text.replace(b"sha256", b"sha384"), "imagetool.measure.length"), (b"x", "protocol.initdata")):
        with pytest.raises(Refused) as caught:
            compute_references(bundle, replace(request, init_data=wrong), not_after=UNTIL)
        assert caught.value.code.startswith(code)


def test_what_a_run_registers_is_the_same(bundle: PodVMBundle) -> None:
    shape = Shape(vcpus=2, memory_mib=512)
    request = ReferenceRequest(platform=Platform.TPM, vcpus=[2], memory_mib=[512])
    computed = compute_references(bundle, request, not_after=UNTIL)
    assert [replace(entry, not_after=UNTIL) for entry in podvm_references(bundle, shape)] == list(computed)


def test_components_are_in_the_images_own_reference(bundle: PodVMBundle) -> None:
    recorded = bundle.reference.components
    assert set(recorded) == {profile.value for profile in LaunchProfile}
    for components in recorded.values():
        assert set(components) == set(Component) - {Component.VCPUS, Component.MEMORY}
    assert recorded["seabios"][Component.FIRMWARE] != recorded["uki"][Component.FIRMWARE]
    path = bundle.file("reference.json")
    old = {name: value for name, value in json.loads(path.read_bytes()).items() if name != "components"}
    path.write_text(json.dumps(old))  # an image of an earlier version
    from cloister.imagetool.podvm import load_bundle

    assert load_bundle(bundle.path).reference.components == {}


def test_snp_entries(bundle: PodVMBundle) -> None:
    request = ReferenceRequest(
        platform=Platform.SNP,
        vcpus=range(1, 5),
        firmware=fake_firmware(),
        vcpu_types=["EPYC-v4", "EPYC-Genoa"],
        guest_features=[1, 0x21],
    )
    entries = compute_references(bundle, request, not_after=UNTIL)
    assert len(entries) == len({entry.id for entry in entries}) == 16
    assert len({entry.registers["measurement"] for entry in entries}) == 16
    assert all(entry.tee == "snp" and Component.MEMORY not in entry.components for entry in entries)


def test_snp_without_firmware_says_what_is_missing(bundle: PodVMBundle) -> None:
    with pytest.raises(Refused, match=r"imagetool\.snp\.no_firmware") as caught:
        compute_references(bundle, ReferenceRequest(platform=Platform.SNP), not_after=UNTIL)
    assert "AmdSev" in caught.value.expected


def test_tdx_entries(bundle: PodVMBundle) -> None:
    request = ReferenceRequest(platform=Platform.TDX, orders=list(PageOrder))
    entries = compute_references(bundle, request, not_after=UNTIL)
    assert [sorted(entry.registers) for entry in entries] == [["mrtd", "rtmr1", "rtmr2"]] * 2
    assert entries[0].registers["mrtd"] != entries[1].registers["mrtd"]
    assert entries[0].registers["rtmr1"] == entries[1].registers["rtmr1"]
    assert not {Component.VCPUS, Component.MEMORY} & set(entries[0].components)


def signed(bundle: PodVMBundle, version: int = 1, days: int = 1) -> bytes:
    request = ReferenceRequest(platform=Platform.TPM, vcpus=[1], memory_mib=[512])
    until = NOW + timedelta(days=days)
    entries = compute_references(bundle, request, not_after=until)
    values = ReferenceSet(id="podvm/tpm", version=version, issued_at=NOW, not_after=until, entries=entries)
    return sign_reference_set(values, SIGNER)


def test_versions_are_remembered(bundle: PodVMBundle, home: Home) -> None:
    keys = [SIGNER.public_key]
    for version in (1, 2, 2):
        verified = verify_signed_references(signed(bundle, version), keys, home=home, at=NOW)
        assert verified.values.version == version
    with pytest.raises(Refused, match=r"rats\.reference\.set\.rollback"):
        verify_signed_references(signed(bundle, 1), keys, home=home, at=NOW)
    with pytest.raises(Refused, match=r"rats\.reference\.set\.equivocation"):
        verify_signed_references(signed(bundle, 2, days=2), keys, home=home, at=NOW)
    assert verify_signed_references(signed(bundle, 3), keys, home=home, at=NOW).values.version == 3


def test_versions_of_many_sets_accepted_at_once_are_all_remembered(bundle: PodVMBundle, home: Home) -> None:
    names = [f"set/{number}" for number in range(16)]
    request = ReferenceRequest(platform=Platform.TPM, vcpus=[1], memory_mib=[512])
    entries = compute_references(bundle, request, not_after=UNTIL)

    def accept(name: str) -> None:
        values = ReferenceSet(id=name, version=5, issued_at=NOW, not_after=UNTIL, entries=entries)
        verify_signed_references(sign_reference_set(values, SIGNER), [SIGNER.public_key], home=home, at=NOW)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(accept, names))
    assert set(json.loads((home.root / "owner" / "reference-sets.json").read_text())) == set(names)


def test_a_refused_set_is_not_remembered(bundle: PodVMBundle, home: Home) -> None:
    for keys, at in (([], NOW), ([SIGNER.public_key], NOW + timedelta(days=9))):
        with pytest.raises(Refused):
            verify_signed_references(signed(bundle, 9), keys, home=home, at=at)
    assert verify_signed_references(signed(bundle, 1), [SIGNER.public_key], home=home, at=NOW).values.version == 1


def test_a_damaged_memory_is_refused_and_one_that_cannot_be_kept_too(bundle: PodVMBundle, home: Home) -> None:
    place = home.root / "owner" / "reference-sets.json"
    place.write_text("{")
    with pytest.raises(FormatRefused, match=r"rats\.reference\.set\.memory"):
        verify_signed_references(signed(bundle), [SIGNER.public_key], home=home, at=NOW)
    place.unlink()
    place.mkdir()
    with pytest.raises(Unavailable, match=r"rats\.reference\.set\.memory"):
        verify_signed_references(signed(bundle), [SIGNER.public_key], home=home, at=NOW)
    gone = replace(home, root=home.root / "gone")
    with pytest.raises(Unavailable, match=r"rats\.reference\.set\.memory"):
        verify_signed_references(signed(bundle), [SIGNER.public_key], home=gone, at=NOW)
