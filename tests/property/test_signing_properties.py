"""Parsers of signatures: any bytes end in a value or a refusal; what is written is read again."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto.openpgpverify import parse_keyring, verify_message
from cloister.errors import Refused
from cloister.oci.digest import Digest
from cloister.oci.reference import parse_reference
from cloister.oci.signing.bundle import Bundle, encode_bundle, encode_statement, parse_bundle, parse_statement
from cloister.oci.signing.fulcio import load_leaf
from cloister.oci.signing.keys import load_public_key
from cloister.oci.signing.lookaside import parse_extension, parse_lookaside
from cloister.oci.signing.notation import verify_envelope
from cloister.oci.signing.policyjson import docker_scopes, parse_policy
from cloister.oci.signing.referred import NOTATION_COSE, NOTATION_JWS
from cloister.oci.signing.rekor import parse_set_annotation
from cloister.oci.signing.timestamp import verify_timestamp
from cloister.oci.signing.trustedroot import parse_trusted_root
from cloister.oci.signing.trustpolicy import parse_trust_policy
from signing_world import keyless_bundle, sigstore
from unit.oci.test_oci_notation import envelope, policy_file

PARSERS: list[Callable[[bytes], object]] = [
    parse_bundle,
    parse_statement,
    parse_policy,
    parse_trust_policy,
    parse_trusted_root,
    parse_extension,
    load_public_key,
    load_leaf,
    parse_keyring,
    lambda data: parse_lookaside([data]),
    lambda data: parse_set_annotation(data.decode("latin-1")),
    lambda data: verify_envelope(data, NOTATION_JWS),
    lambda data: verify_envelope(data, NOTATION_COSE),
    lambda data: verify_message(data, (), now=datetime.now(UTC)),
    lambda data: verify_timestamp(data, b"signature", parse_trusted_root(sigstore().trusted_root())),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("parse", PARSERS)
@given(data=st.binary(max_size=400))
def test_any_bytes_end_in_a_value_or_a_refusal(parse: Callable[[bytes], object], data: bytes) -> None:
    try:
        parse(data)
    except Refused:
        return


def seeds() -> dict[str, tuple[Callable[[bytes], object], bytes]]:
    root = sigstore().trusted_root()
    trusted = parse_trusted_root(root)
    policy = json.dumps(
        {"default": [{"type": "sigstoreSigned", "keyPath": "/a", "signedIdentity": {"type": "matchRepository"}}]}
    ).encode()
    return {
        "bundle": (parse_bundle, keyless_bundle(sigstore(), stamped=True)),
        "root": (parse_trusted_root, root),
        "policy": (parse_policy, policy),
        "trust policy": (parse_trust_policy, policy_file()),
        "jws": (lambda data: verify_envelope(data, NOTATION_JWS), envelope(NOTATION_JWS)),
        "cose": (lambda data: verify_envelope(data, NOTATION_COSE), envelope(NOTATION_COSE)),
        "timestamp": (lambda data: verify_timestamp(data, b"s", trusted), sigstore().stamp(b"s")),
    }


SEEDS = seeds()


@pytest.mark.parametrize("name", sorted(SEEDS))
@given(data=st.data())
def test_changed_bytes_end_in_a_value_or_a_refusal(name: str, data: st.DataObject) -> None:
    parse, good = SEEDS[name]
    parse(good)
    place = data.draw(st.integers(0, len(good) - 1))
    cut = data.draw(st.integers(0, 3))
    changed = good[:place] + data.draw(st.binary(max_size=3)) + good[place + cut :]
    try:
        parse(changed)
    except Refused:
        return


@pytest.mark.parametrize("name", ["bundle", "root", "policy", "trust policy"])
@given(data=st.data())
def test_changed_members_end_in_a_value_or_a_refusal(name: str, data: st.DataObject) -> None:
    """Every place of a document holds, in turn, something else than it should."""
    parse, good = SEEDS[name]
    document = json.loads(good)
    spot: Any = document
    while True:
        keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(spot[key], (dict, list)) or not spot[key] or data.draw(st.booleans()):
            break
        spot = spot[key]
    spot[key] = data.draw(JSON)
    try:
        parse(json.dumps(document).encode())
    except Refused:
        return


@given(
    payload=st.binary(min_size=1, max_size=50),
    signature=st.binary(min_size=1, max_size=80),
    hint=st.text(max_size=20).filter(lambda text: text.isprintable()),
)
def test_bundles_are_read_as_written(payload: bytes, signature: bytes, hint: str) -> None:
    bundle = Bundle(version="0.3", payload=payload, payload_type="a/b", signature=signature, key_hint=hint)
    assert parse_bundle(encode_bundle(bundle)) == bundle


@given(content=st.binary(max_size=50), name=st.text(alphabet="abc/.-", max_size=20))
def test_statements_are_read_as_written(content: bytes, name: str) -> None:
    digest = Digest.of(content)
    statement = parse_statement(encode_statement(digest, repository=name))
    assert statement.subjects == ((name, {"sha256": digest.hex}),)


NAMES = st.from_regex(r"[a-c]{1,3}(\.[a-c]{1,3}){0,2}\.test(:[1-9]{1,3})?(/[a-c]{1,3}){1,3}:[a-z]{1,3}", fullmatch=True)


@given(name=NAMES)
def test_scopes_go_from_the_reference_to_its_domains(name: str) -> None:
    """Each scope is a whole part of the name: what it names contains what the one before names."""
    scopes = docker_scopes(parse_reference(name))
    assert scopes[0] == name and len(set(scopes)) == len(scopes)
    plain = [scope for scope in scopes if not scope.startswith("*.")]
    for longer, shorter in itertools.pairwise(plain):
        assert longer.startswith(shorter) and longer[len(shorter)] in "/:"
    host = plain[-1].partition(":")[0]
    assert all(host.endswith(scope[1:]) for scope in scopes if scope.startswith("*."))
