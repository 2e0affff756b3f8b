"""`cloister image copy` and `cloister registry serve`, as far as they need no network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister.cli.forms import Output
from cloister.cli.imagecopy import copy_command
from cloister.cli.registry import serve_command
from cloister.errors import CloisterError
from cloister.oci.digest import Digest
from cloister.oci.document import encode_document
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import OCI_INDEX, OCI_MANIFEST
from cloister.oci.store import read_manifest
from unit.oci.builders import archive, build_layout, file


@pytest.fixture
def multi(tmp_path: Path) -> tuple[str, dict[str, Digest], Digest]:
    """A layout with an index of two images: place, digest by architecture, digest of the index."""
    images = {}
    entries = []
    for name in ("amd64", "arm64"):
        built = build_layout(tmp_path / "l", archive(file(b"a", name.encode())), tag=name)
        images[name] = built.digest
        raw = read_manifest(built.layout, name).raw
        entry = {"mediaType": OCI_MANIFEST, "digest": str(built.digest), "size": len(raw)}
        entries.append({**entry, "platform": {"os": "linux", "architecture": name}})
    index = encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
    OCILayout(tmp_path / "l").write_manifest(index, OCI_INDEX, "multi")
    return f"oci:{tmp_path}/l:multi", images, Digest.of(index)


def test_an_image_is_copied_with_all_its_platforms_or_one(
    multi: tuple[str, dict[str, Digest], Digest], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, images, index = multi
    copy_command(source, f"dir:{tmp_path}/all", output=Output.JSON)
    assert json.loads(capsys.readouterr().out)["digest"] == str(index)
    assert len(list((tmp_path / "all").glob("*.manifest.json"))) == 2
    copy_command(source, f"oci:{tmp_path}/one:v1", platform="linux/arm64")
    assert str(images["arm64"]) in capsys.readouterr().err
    assert Digest.of(read_manifest(OCILayout(tmp_path / "one"), "v1").raw) == images["arm64"]
    with pytest.raises(CloisterError) as caught:
        copy_command(source, f"docker-archive:{tmp_path}/d.tar")
    assert caught.value.code == "oci.manifest.is_index"
    assert not (tmp_path / "d.tar").exists()


@pytest.mark.parametrize(
    ("listen", "tokens", "code"),
    [
        ("5000", False, "cli.registry.listen"),
        (":5000", False, "cli.registry.listen"),
        ("127.0.0.1:x", False, "cli.registry.listen"),
        ("127.0.0.1:99999", False, "cli.registry.listen"),
        ("127.0.0.1:0", True, "cli.registry.users"),
        ("not-an-address:0", False, "host.registry.port_taken"),
    ],
)
def test_a_registry_that_cannot_be_started_says_why(tmp_path: Path, listen: str, tokens: bool, code: str) -> None:
    with pytest.raises(CloisterError) as caught:
        serve_command(tmp_path / "data", listen=listen, tokens=tokens)
    assert caught.value.code == code


def test_a_registry_without_its_accounts_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(CloisterError) as caught:
        serve_command(tmp_path / "data", listen="127.0.0.1:0", users=tmp_path / "none")
    assert caught.value.code == "host.registry.users_unreadable"
    (tmp_path / "users").write_text("# nobody\n")
    with pytest.raises(CloisterError) as caught:
        serve_command(tmp_path / "data", listen="127.0.0.1:0", users=tmp_path / "users")
    assert caught.value.code == "host.registry.accounts"
