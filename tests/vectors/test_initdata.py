"""Init data against the files that Kata Containers and Confidential Containers test with."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import FormatRefused
from cloister.protocol.initdata import parse_initdata, unpack_device


@pytest.fixture(scope="session")
def folder(guest_vectors: Path) -> Path:
    return guest_vectors / "initdata"


@pytest.fixture(scope="session")
def expected(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "sample-initdata.expected.json").read_text("utf-8"))


def test_sample_text_is_its_own_algorithms_digest(folder: Path, expected: dict[str, Any]) -> None:
    sample = parse_initdata((folder / "sample-initdata.toml").read_bytes())
    assert sample.algorithm == "sha384"
    assert sample.digest.hex() == expected["digests"]["sha384"]["raw"]
    assert set(sample.entries) == {"aa.toml", "policy.rego"}


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_sample_digest_fits_every_hardware_field(algorithm: str, expected: dict[str, Any]) -> None:
    """A digest meets a field of another size by cutting or by zeros on the right; the vectors say the same."""
    fields = expected["digests"][algorithm]
    raw = bytes.fromhex(fields["raw"])
    for name, size in (("snp_hostdata_32", 32), ("tdx_mrconfigid_48", 48), ("cca_rpv_64", 64)):
        assert bytes.fromhex(fields[name]) == raw[:size].ljust(size, b"\0")


def test_sample_register_value(expected: dict[str, Any]) -> None:
    raw = bytes.fromhex(expected["digests"]["sha256"]["raw"])
    assert hashlib.sha256(bytes(32) + raw).hexdigest() == expected["vtpm_pcr8_sha256_after_extend_from_zero"]


def test_sample_device_carries_the_sample_text(folder: Path) -> None:
    text = (folder / "sample-initdata.toml").read_bytes()
    assert unpack_device((folder / "sample-initdata.img").read_bytes()).text == text


def test_sample_annotation_carries_the_sample_text(folder: Path, expected: dict[str, Any]) -> None:
    text = gzip.decompress(base64.b64decode(expected["annotation_value"], validate=True))
    assert parse_initdata(text).text == (folder / "sample-initdata.toml").read_bytes()


def test_default_text_is_empty_and_valid(folder: Path) -> None:
    default = parse_initdata((folder / "kata-default-initdata.toml").read_bytes())
    assert (default.algorithm, dict(default.entries)) == ("sha256", {})


def test_documented_annotation_parses(folder: Path) -> None:
    text = gzip.decompress(base64.b64decode((folder / "kata-docs-annotation.b64").read_text("ascii"), validate=False))
    parsed = parse_initdata(text)
    assert parsed.algorithm == "sha256"
    assert "policy.rego" in parsed.entries


def test_device_whose_content_is_no_init_data_is_refused_for_its_text(folder: Path) -> None:
    """Kata's own test device holds the words `some content`: the device is well formed, the text is not."""
    with pytest.raises(FormatRefused) as refusal:
        unpack_device((folder / "initdata.img").read_bytes())
    assert refusal.value.code == "protocol.initdata.malformed"
