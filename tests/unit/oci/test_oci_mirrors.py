"""Rules about registries, and reading from mirrors that have less, break off, or lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import CloisterError, Unavailable
from cloister.oci.digest import Digest
from cloister.oci.distribution import RegistryClient
from cloister.oci.manifest import OCI_INDEX
from cloister.oci.mirrors import MirroredSource, parse_rules, read_rules, rule_files
from cloister.oci.reference import parse_reference
from cloister.oci.referrers import list_referrers
from cloister.oci.store import checked_blob, read_manifest
from tampering import flipped
from unit.oci.builders import client_over
from unit.oci.test_oci_distribution import BLOB, INDEX, LAYER, Answer, Script, down
from unit.oci.test_oci_referrers import SUBJECT, fake, listing

RULES = parse_rules(
    b"""
unqualified-search-registries = ["docker.io"]
short-name-mode = "enforcing"

[aliases]
"redis" = "example.test/redis"

[[registry]]
prefix = "images.test/team"
location = "store.test/teams/one"
mirror-by-digest-only = true
token-services = ["https://login.test:8443"]
[[registry.mirror]]
location = "mirror.test/team"
[[registry.mirror]]
location = "mirror.test:5000"
insecure = true
pull-from-mirror = "tag-only"

[[registry]]
location = "images.test"
insecure = true

[[registry]]
prefix = "*.corp.test"
[[registry.mirror]]
location = "mirror.test/corp"

[[registry]]
location = "bad.test"
blocked = true
"""
)


def places(text: str) -> list[tuple[str, bool, bool]]:
    found = RULES.places(parse_reference(text))
    return [(str(place.reference), place.insecure, place.mirror) for place in found]


def refused(run: Callable[[], object]) -> str:
    with pytest.raises(CloisterError) as caught:
        run()
    return caught.value.code


AT = "@sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis:7", [("docker.io/library/redis:7", False, False)]),
        ("images.test/app:1", [("images.test/app:1", True, False)]),
        ("images.test/teammate:1", [("images.test/teammate:1", True, False)]),
        (
            "images.test/team/app:1",
            [("mirror.test:5000/app:1", True, True), ("store.test/teams/one/app:1", False, False)],
        ),
        (
            f"images.test/team/app{AT}",
            [(f"mirror.test/team/app{AT}", False, True), (f"store.test/teams/one/app{AT}", False, False)],
        ),
        ("a.corp.test/x:1", [("mirror.test/corp/x:1", False, True), ("a.corp.test/x:1", False, False)]),
        ("corp.test/x:1", [("corp.test/x:1", False, False)]),
        ("images.test:5000/x:1", [("images.test:5000/x:1", True, False)]),
    ],
)
def test_where_to_pull_from(text: str, expected: list[tuple[str, bool, bool]]) -> None:
    assert places(text) == expected


def test_token_services_are_the_registrys_own() -> None:
    *mirrors, own = RULES.places(parse_reference("images.test/team/app:1"))
    assert own.token_services == ("https://login.test:8443",)
    assert all(place.token_services == () for place in mirrors)


def test_blocked_registries_are_refused() -> None:
    assert refused(lambda: places("bad.test/x")) == "oci.mirrors.blocked"
    assert places("notbad.test/x")


@pytest.mark.parametrize(
    "text",
    [
        "registry = 3",
        "[[registry]]",
        "[[registry]]\nlocation = 3",
        '[[registry]]\nlocation = "a.test"\ninsecure = "no"',
        '[[registry]]\nlocation = "a.test"\nblokced = true',
        '[[registry]]\nprefix = "*.a.test"\nlocation = "b.test"',
        '[[registry]]\nprefix = "a.*.test"',
        '[[registry]]\nlocation = "a.test"\n[[registry.mirror]]',
        '[[registry]]\nlocation = "a.test"\n[[registry.mirror]]\nlocation = "b.test"\npull-from-mirror = "never"',
        '[[registry]]\nlocation = "a.test"\n[[registry.mirror]]\nlocation = "b.test"\nblocked = true',
        '[[registry]]\nlocation = "a.test"\ntoken-services = ["http://x.test"]',
        '[[registry]]\nlocation = "a.test"\ntoken-services = "https://x.test"',
        "not toml",
        " " * ((1 << 20) + 1),
    ],
)
def test_rules_that_are_none_are_refused(text: str) -> None:
    assert refused(lambda: parse_rules(text.encode())) == "oci.mirrors.malformed"


def test_version_one_is_refused() -> None:
    assert refused(lambda: parse_rules(b'[registries.search]\nregistries = ["docker.io"]')) == "oci.mirrors.version"


def test_which_files_are_read(tmp_path: Path) -> None:
    system, environment = tmp_path / "etc", {"HOME": str(tmp_path / "home")}
    own = tmp_path / "home" / ".config" / "containers"
    assert rule_files(environment, system=system) == []
    (system / "registries.conf.d").mkdir(parents=True)
    own.mkdir(parents=True)
    (system / "registries.conf").write_text('[[registry]]\nlocation = "a.test"\nblocked = true\n')
    (system / "registries.conf.d" / "1.conf").write_text('[[registry]]\nlocation = "a.test"\ninsecure = true\n')
    rules = read_rules(rule_files(environment, system=system))
    assert (rules.rules["a.test"].blocked, rules.rules["a.test"].insecure) == (False, True)
    (own / "registries.conf").write_text("")
    assert [path.name for path in rule_files(environment, system=system)] == ["registries.conf", "1.conf"]
    assert rule_files(environment, system=system)[0].parent == own
    (tmp_path / "mine.conf").write_text("")
    named = environment | {"CONTAINERS_REGISTRIES_CONF": str(tmp_path / "mine.conf")}
    assert rule_files(named, system=system) == [tmp_path / "mine.conf"]
    assert refused(lambda: read_rules([tmp_path / "none.conf"])) == "oci.mirrors.unreadable"


# -- reading ----------------------------------------------------------------------------------------------------


def mirrored(*transports: Any) -> MirroredSource:
    return MirroredSource([client_over(transport) for transport in transports])


def index() -> Answer:
    return Answer(200, INDEX, content_type=OCI_INDEX)


@pytest.mark.parametrize("mirror", [down(), Answer(404), Answer(401), Answer(500)])
def test_a_mirror_that_has_nothing_is_passed_over(mirror: Answer | Unavailable) -> None:
    assert read_manifest(mirrored(Script(mirror), Script(index())), Digest.of(INDEX)).raw == INDEX
    assert b"".join(checked_blob(mirrored(Script(mirror), Script(Answer(200, BLOB))), LAYER)) == BLOB


def test_the_registry_is_not_asked_for_what_a_mirror_has() -> None:
    registry = Script(Answer(500))
    assert read_manifest(mirrored(Script(index()), registry), "v1").raw == INDEX
    assert b"".join(checked_blob(mirrored(Script(Answer(200, BLOB)), registry), LAYER)) == BLOB
    assert registry.asked == []


def test_where_a_mirror_breaks_off_the_registry_goes_on() -> None:
    registry = Script(Answer(206, BLOB[30_000:], content_range=f"bytes 30000-{len(BLOB) - 1}/{len(BLOB)}"))
    mirror = Script(Answer(200, BLOB[:30_000], breaks=True), down())
    assert b"".join(checked_blob(mirrored(mirror, registry), LAYER)) == BLOB
    assert registry.asked[0][2]["Range"] == "bytes=30000-"


def test_a_mirror_with_other_bytes_is_refused() -> None:
    registry = Script(index())
    source = mirrored(Script(Answer(200, INDEX + b" ", content_type=OCI_INDEX)), registry)
    assert refused(lambda: read_manifest(source, Digest.of(INDEX))) == "oci.distribution.digest_mismatch"
    source = mirrored(Script(Answer(200, flipped(BLOB))), Script(Answer(200, BLOB)))
    assert refused(lambda: list(checked_blob(source, LAYER))) == "oci.distribution.digest_mismatch"


def test_all_that_nobody_has_is_the_registrys_word() -> None:
    assert mirrored(Script(Answer(404)), Script(Answer(404))).get_manifest("v1") is None
    assert refused(lambda: mirrored(Script(Answer(404)), Script(down())).get_manifest("v1")) == (
        "oci.transport.unreachable"
    )


def test_a_mirror_cannot_hide_signatures() -> None:
    def lists(*numbers: int) -> Script:
        return Script(Answer(200, listing(*map(fake, numbers)), content_type=OCI_INDEX))

    assert [str(item.digest) for item in list_referrers(mirrored(lists(), lists(1)), SUBJECT)] == [fake(1)]
    assert len(list_referrers(mirrored(lists(1), lists(1, 2)), SUBJECT)) == 2
    assert len(list_referrers(mirrored(Script(down()), lists(1)), SUBJECT)) == 1
    assert len(list_referrers(mirrored(lists(1), Script(down())), SUBJECT)) == 1
    assert refused(lambda: list_referrers(mirrored(Script(down()), Script(down())), SUBJECT)) == (
        "oci.transport.unreachable"
    )


def test_a_mirror_gets_no_credentials_of_the_registry() -> None:
    from cloister.oci.session import Credentials

    mirror = Script(Answer(401, www_authenticate='Basic realm="x"'))
    registry = Script(Answer(401, www_authenticate='Basic realm="x"'), index())
    clients = [client_over(mirror), client_over(registry, credentials=Credentials("ann", "word"))]
    assert MirroredSource(clients).get_manifest("v1") is not None
    assert all("Authorization" not in headers for _, _, headers in mirror.asked)
    assert isinstance(clients[0], RegistryClient)
