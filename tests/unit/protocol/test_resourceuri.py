"""Resource addresses: three segments of the broker's own alphabet, and no way out of them."""

from __future__ import annotations

import pytest

from cloister.errors import FormatRefused
from cloister.protocol.resourceuri import (
    ResourcePath,
    parse_prefix_spelling,
    parse_resource_path,
    parse_resource_uri,
)


def test_uri_and_path_name_the_same_resource() -> None:
    path = ResourcePath("default", "image-key", "app_1.2")
    assert parse_resource_uri("kbs:///default/image-key/app_1.2") == path
    assert parse_resource_path("default/image-key/app_1.2") == path
    assert path.uri == "kbs:///default/image-key/app_1.2"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a/b",
        "a/b/c/d",
        "a//c",
        "/a/b/c",
        "a/b/c/",
        "a/b/..",
        "../b/c",
        "a/.b/c",
        "a/b/c d",
        "a/b/c\n",
        "a/b/c?x=1",
        "a/b/c#x",
        "a/b/%2e%2e",
        "a/b/ç",
        "a/b/" + "c" * 129,
        "a/b/\0",
        "a\\b\\c",
    ],
)
def test_other_paths_are_refused(text: str) -> None:
    with pytest.raises(FormatRefused) as refusal:
        parse_resource_path(text)
    assert refusal.value.code == "protocol.resource.malformed"


@pytest.mark.parametrize(
    "text",
    [
        "default/type/tag",
        "kbs://default/type/tag",
        "kbs://evil.example/default/type/tag",
        "kbs:////default/type/tag",
        "KBS:///default/type/tag",
        "https:///default/type/tag",
        " kbs:///default/type/tag",
        "kbs+plugin:///default/type/tag",
    ],
)
def test_an_address_never_names_a_broker(text: str) -> None:
    """Which broker answers is measured; an image from an untrusted registry must not choose one."""
    with pytest.raises(FormatRefused) as refusal:
        parse_resource_uri(text)
    assert refusal.value.code == "protocol.resource.malformed"


def test_longest_segment_fits() -> None:
    assert parse_resource_path("a/b/" + "c" * 128).tag == "c" * 128


def test_a_path_cannot_be_built_around_the_parser() -> None:
    with pytest.raises(FormatRefused):
        ResourcePath("default", "type", "../../etc/passwd")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("repo/type/tag", "repo/type/tag"),
        ("kbs:///repo/type/tag", "repo/type/tag"),
        ("repo/type/tag/", "repo/type/tag"),
        ("repo/type", "repo/type/*"),
        ("repo/type/", "repo/type/*"),
        ("repo/type/*", "repo/type/*"),
        ("repo/type/*/", "repo/type/*"),
        ("kbs:///repo/type", "repo/type/*"),
        ("kbs:///repo/type/*", "repo/type/*"),
        ("repo", "repo/*/*"),
        ("repo/", "repo/*/*"),
        ("repo/*", "repo/*/*"),
        ("repo/*/*", "repo/*/*"),
        ("kbs:///repo", "repo/*/*"),
        ("kbs:///repo/*/", "repo/*/*"),
        ("*", "*"),
        ("*/*", "*"),
        ("*/*/*", "*"),
        ("kbs:///*", "*"),
    ],
)
def test_spellings_of_a_prefix(written: str, meant: str) -> None:
    assert parse_prefix_spelling(written) == meant
    assert parse_prefix_spelling(meant) == meant


@pytest.mark.parametrize(
    "written",
    [
        "",
        "/",
        "//",
        "kbs:///",
        "kbs:////",
        "kbs://host/repo/type/tag",
        "https://repo/type",
        "/repo/type/tag",
        "repo//tag",
        "repo/*/tag",
        "*/type",
        "*/type/tag",
        "repo/type/t*",
        "re*",
        "**",
        "repo/type/tag/*",
        "repo/type/tag/more",
        "repo/..",
        "repo/type/tag\n",
        "repo/" + "a" * 5000,
    ],
)
def test_a_prefix_that_could_mean_something_else(written: str) -> None:
    with pytest.raises(FormatRefused) as refused:
        parse_prefix_spelling(written)
    assert refused.value.code == "protocol.resource.malformed" and refused.value.path == "PREFIX"
