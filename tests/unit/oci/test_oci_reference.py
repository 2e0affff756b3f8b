"""Image references."""

from __future__ import annotations

import pytest

from cloister.errors import ImageRefused
from cloister.oci.digest import Digest
from cloister.oci.reference import parse_reference

HEX = "a" * 64


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "canonical"),
    [
        ("redis", "docker.io", "library/redis", "", "docker.io/library/redis"),
        ("redis:7", "docker.io", "library/redis", "7", "docker.io/library/redis:7"),
        ("docker.io/redis", "docker.io", "library/redis", "", "docker.io/library/redis"),
        ("index.docker.io/a/b:c", "docker.io", "a/b", "c", "docker.io/a/b:c"),
        ("a/b", "docker.io", "a/b", "", "docker.io/a/b"),
        ("localhost/a:x", "localhost", "a", "x", "localhost/a:x"),
        ("127.0.0.1:5000/a/b:v1", "127.0.0.1:5000", "a/b", "v1", "127.0.0.1:5000/a/b:v1"),
        ("registry:5000/a", "registry:5000", "a", "", "registry:5000/a"),
        ("[fd00::1]:5000/a:b", "[fd00::1]:5000", "a", "b", "[fd00::1]:5000/a:b"),
        ("ghcr.io/a/b__c/d-e.f:T_1.2-3", "ghcr.io", "a/b__c/d-e.f", "T_1.2-3", "ghcr.io/a/b__c/d-e.f:T_1.2-3"),
    ],
)
def test_references_are_read_as_docker_reads_them(
    text: str, registry: str, repository: str, tag: str, canonical: str
) -> None:
    reference = parse_reference(text)
    assert (reference.registry, reference.repository, reference.tag) == (registry, repository, tag)
    assert str(reference) == canonical
    assert parse_reference(canonical) == reference


def test_digest_goes_before_tag() -> None:
    reference = parse_reference(f"127.0.0.1:5000/a:v1@sha256:{HEX}")
    assert reference.tag == "v1"
    assert reference.digest == Digest("sha256", HEX)
    assert reference.selector == f"sha256:{HEX}"
    assert str(reference) == f"127.0.0.1:5000/a:v1@sha256:{HEX}"
    assert str(reference.at(Digest("sha256", "b" * 64))) == f"127.0.0.1:5000/a@sha256:{'b' * 64}"


def test_no_tag_selects_latest() -> None:
    assert parse_reference("a/b").selector == "latest"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":tag",
        "UPPER",
        "a/UPPER",
        "a//b",
        "a/../b",
        "/a",
        "a/",
        "a b",
        "a:",
        "a:tag with space",
        "a:" + "t" * 129,
        "host:99999999/a",
        "http://host/a",
        "-a/b",
        "a" * 256,
        "x/" * 300 + "a",
        "a@sha256:short",
        "a@",
        "a\n",
        "a:v1\n",
        "host.test/a/_manifests",
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(ImageRefused) as caught:
        parse_reference(text)
    assert caught.value.code.startswith(("oci.reference.malformed", "oci.digest."))
