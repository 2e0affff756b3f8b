"""Files about registries and texts about places: whatever they hold ends in a value or a refusal."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError, Refused
from cloister.host.registry.auth import AccessControl, parse_accounts
from cloister.oci.credentials import find_credentials
from cloister.oci.location import parse_location
from cloister.oci.mirrors import parse_rules
from cloister.oci.reference import OCIReference, parse_reference
from cloister.oci.session import is_neighbour
from cloister.oci.transport import is_inside_address

VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.text(max_size=12)
    | st.sampled_from(["images.test", "a", "YTpi"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["auth", "identitytoken", "images.test", "username", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)
CONFIG = st.dictionaries(st.sampled_from(["auths", "credHelpers", "x"]), VALUE, max_size=4)
NAME = st.sampled_from(
    ["images.test", "images.test/team", "*.test", "mirror.test:5000", "a b", "", "*.*", "/", "x" * 300]
)
APP = parse_reference("images.test/team/app:v1")


def outcome(run: Any, *arguments: Any) -> Any:
    try:
        return run(*arguments)
    except CloisterError as err:
        return err


@given(content=CONFIG.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=200))
def test_any_file_of_credentials_is_read_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "auth.json"
        path.write_bytes(content)
        outcome(find_credentials, APP, {"REGISTRY_AUTH_FILE": str(path), "PATH": folder})


@given(
    rules=st.lists(st.tuples(NAME, NAME, NAME, st.sampled_from(["all", "digest-only", "tag-only", "x"])), max_size=4),
    noise=st.sampled_from(["", "insecure = true\n", "blocked = true\n", "x = 1\n", "= ="]),
    name=st.sampled_from(["images.test/team/app:1", "images.test/a@sha256:" + "0" * 64, "redis", "other.test/x"]),
)
def test_any_rules_lead_to_references_or_are_refused(rules: list[Any], noise: str, name: str) -> None:
    text = ""
    for prefix, location, mirror, pulls in rules:
        text += f'[[registry]]\nprefix = "{prefix}"\nlocation = "{location}"\n{noise}'
        text += f'[[registry.mirror]]\nlocation = "{mirror}"\npull-from-mirror = "{pulls}"\n'
    found = outcome(parse_rules, text.encode())
    if isinstance(found, CloisterError):
        assert isinstance(found, Refused)
        return
    places = outcome(found.places, parse_reference(name))
    if not isinstance(places, CloisterError):
        assert all(isinstance(place.reference, OCIReference) for place in places)
        assert [place.mirror for place in places] == [True] * (len(places) - 1) + [False]


@given(data=st.binary(max_size=300))
def test_any_bytes_are_rules_or_refused(data: bytes) -> None:
    found = outcome(parse_rules, data)
    assert not isinstance(found, CloisterError) or isinstance(found, Refused)


@given(kind=st.sampled_from(["oci:", "oci-archive:", "docker-archive:", "dir:"]), rest=st.text(min_size=1, max_size=60))
def test_a_place_that_is_read_is_written_back_alike(kind: str, rest: str) -> None:
    location = outcome(parse_location, kind + rest)
    if not isinstance(location, CloisterError):
        assert outcome(parse_location, str(location)) == location


@given(host=st.text(max_size=40), registry=st.text(max_size=40))
def test_hosts_are_judged_whatever_they_are(host: str, registry: str) -> None:
    assert is_inside_address(host) in (True, False)
    if is_neighbour(host, registry) and not host.endswith(f".{registry}"):
        assert host.endswith(registry.partition(".")[2])


@given(
    text=st.text(max_size=60),
    authorization=st.text(max_size=60),
    form=st.dictionaries(st.text(max_size=12), st.lists(st.text(max_size=40), max_size=3), max_size=4),
)
def test_no_text_opens_a_registry(text: str, authorization: str, form: dict[str, list[str]]) -> None:
    outcome(parse_accounts, text)
    for tokens in (False, True):
        access = AccessControl({"ann": "a word nobody writes"}, tokens=tokens)
        assert not access.may(authorization, "a", "pull")
        for oauth in (False, True):
            assert access.issue(authorization, form, oauth=oauth) is None
