"""policy.json: what it may say, which part counts for an image, and which names a signature may give it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloister.oci.digest import Digest
from cloister.oci.reference import parse_reference
from cloister.oci.signing.identity import (
    ExactReference,
    ExactRepositoryName,
    IdentityRule,
    MatchExact,
    MatchRepoDigestOrExact,
    MatchRepository,
    RemapIdentity,
    SignedIdentity,
)
from cloister.oci.signing.lookaside import parse_extension, parse_lookaside, signature_paths
from cloister.oci.signing.policyjson import (
    Accept,
    KeySource,
    Reject,
    SignedBy,
    SigstoreSigned,
    docker_scopes,
    parse_policy,
    path_scopes,
)
from signing_world import refused

DIGEST = str(Digest.of(b"x"))


def policy(*requirements: dict[str, Any], scope: str = "", transport: str = "docker") -> bytes:
    document: dict[str, Any] = {"default": [{"type": "reject"}]}
    document["transports"] = {transport: {scope: list(requirements)}}
    return json.dumps(document).encode()


SIGNED = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/keys/a.gpg"}
COSIGN = {"type": "sigstoreSigned", "keyPath": "/keys/a.pub"}
FULCIO = {"caPath": "/ca.pem", "oidcIssuer": "https://iss", "subjectEmail": "a@b.test"}
PKI = {"caRootsPath": "/ca.pem", "subjectEmail": "a@b.test"}


def only(raw: bytes) -> Any:
    return parse_policy(raw).transports["docker"][""][0]


def test_every_requirement_is_read() -> None:
    assert only(policy({"type": "insecureAcceptAnything"})) == Accept()
    assert only(policy({"type": "reject"})) == Reject()
    signed = SignedBy(keyrings=(KeySource(path="/keys/a.gpg"),), identity=MatchRepoDigestOrExact())
    assert only(policy(SIGNED)) == signed
    assert only(policy({**SIGNED, "keyPath": None, "keyPaths": ["/a", "/b"]})).keyrings == (
        KeySource(path="/a"),
        KeySource(path="/b"),
    )
    assert only(policy({**SIGNED, "keyPath": None, "keyData": "AAAA"})).keyrings == (KeySource(data=b"\0\0\0"),)
    assert only(policy(COSIGN)).keys == (KeySource(path="/keys/a.pub"),)
    several = only(policy({"type": "sigstoreSigned", "keyDatas": ["AAAA", "-----BEGIN PUBLIC KEY-----"]}))
    assert several.keys == (KeySource(data=b"\0\0\0"), KeySource(data=b"-----BEGIN PUBLIC KEY-----"))
    fulcio = only(policy({"type": "sigstoreSigned", "fulcio": FULCIO, "rekorPublicKeyPath": "/r.pub"}))
    assert fulcio.fulcio.email == "a@b.test" and fulcio.rekor_keys == (KeySource(path="/r.pub"),)
    pki = only(policy({"type": "sigstoreSigned", "pki": PKI})).pki
    assert pki.email == "a@b.test" and pki.intermediates is None
    assert isinstance(only(policy({**COSIGN, "rekorPublicKeyDatas": ["AAAA"]})), SigstoreSigned)


def test_paths_may_be_addresses() -> None:
    for text, path in (("file:///a.pub", "/a.pub"), ("kbs:///default/key/1", "kbs:///default/key/1")):
        assert only(policy({**COSIGN, "keyPath": text})).keys == (KeySource(path=path),)


@pytest.mark.parametrize(
    ("requirement", "code"),
    [
        ({"type": "signedby"}, "requirement"),
        ({"type": "reject", "extra": 1}, "unknown_member"),
        ({"type": "insecureAcceptAnything", "keyPath": "/a"}, "unknown_member"),
        ({**SIGNED, "keypath": "/a"}, "unknown_member"),
        ({**SIGNED, "keyType": "X509Certificates"}, "key_type"),
        ({**SIGNED, "keyData": "AAAA"}, "combination"),
        ({"type": "signedBy", "keyType": "GPGKeys"}, "combination"),
        ({**SIGNED, "keyPath": None, "keyPaths": []}, "empty"),
        ({**SIGNED, "keyPath": "relative"}, "key_path"),
        ({**SIGNED, "keyPath": None, "keyData": "!"}, "key_data"),
        ({"type": "sigstoreSigned"}, "combination"),
        ({**COSIGN, "keyData": "AAAA"}, "combination"),
        ({**COSIGN, "rekorPublicKeyPath": "/a", "rekorPublicKeyData": "AAAA"}, "combination"),
        ({"type": "sigstoreSigned", "fulcio": FULCIO}, "combination"),
        ({"type": "sigstoreSigned", "fulcio": {**FULCIO, "caData": "AAAA"}, "rekorPublicKeyPath": "/a"}, "combination"),
        ({"type": "sigstoreSigned", "fulcio": {"caPath": "/a"}, "rekorPublicKeyPath": "/a"}, "missing_member"),
        ({"type": "sigstoreSigned", "pki": PKI, "rekorPublicKeyPath": "/a"}, "combination"),
        ({"type": "sigstoreSigned", "pki": {"caRootsPath": "/a"}}, "combination"),
        ({**COSIGN, "signedIdentity": {"type": "matchNothing"}}, "identity"),
        ({**COSIGN, "signedIdentity": {"type": "matchExact", "prefix": "a"}}, "unknown_member"),
        ({**COSIGN, "signedIdentity": {"type": "exactReference", "dockerReference": "a.test/b"}}, "identity"),
        ({**COSIGN, "signedIdentity": {"type": "exactRepository", "dockerRepository": "a.test/b:1"}}, "identity"),
        ({**COSIGN, "signedIdentity": {"type": "exactRepository", "dockerRepository": "A b"}}, "identity"),
        ({**COSIGN, "signedIdentity": {"type": "remapIdentity", "prefix": "a b", "signedPrefix": "c"}}, "identity"),
    ],
)
def test_what_the_format_does_not_define_makes_the_file_invalid(requirement: dict[str, Any], code: str) -> None:
    assert refused(lambda: parse_policy(policy(requirement))) == f"oci.signing.policy.{code}"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"{}", "missing_member"),
        (b'{"default":[]}', "empty"),
        (b'{"default":[{"type":"reject"}],"transport":{}}', "unknown_member"),
        (b'{"default":[{"type":"reject"}],"default":[]}', "duplicate_key"),
        (b"[]", "not_json"),
        (policy(), "empty"),
        (policy({"type": "reject"}, transport="dokcer"), "transport"),
        (policy({"type": "reject"}, scope="a.test/*"), "scope"),
        (policy({"type": "reject"}, scope="https://a.test"), "scope"),
        (policy({"type": "reject"}, scope="a.test/"), "scope"),
        (policy({"type": "reject"}, scope="relative", transport="oci"), "scope"),
        (policy({"type": "reject"}, scope="/a/../b", transport="dir"), "scope"),
        (policy({"type": "reject"}, scope="any", transport="docker-archive"), "scope"),
    ],
)
def test_a_file_that_is_no_policy_is_refused(raw: bytes, code: str) -> None:
    assert refused(lambda: parse_policy(raw)) == f"oci.signing.policy.{code}"


# -- scopes ---------------------------------------------------------------------------------------------------------


def test_the_most_specific_scope_counts_alone() -> None:
    names = ["*.test", "*.b.test", "a.b.test:5000", "a.b.test:5000/x", "a.b.test:5000/x/y", "a.b.test:5000/x/y:1", ""]
    known: dict[str, Any] = {name: [{"type": "insecureAcceptAnything"}] for name in names}
    reference = parse_reference("a.b.test:5000/x/y:1")
    for name in ["a.b.test:5000/x/y:1", "a.b.test:5000/x/y", "a.b.test:5000/x", "a.b.test:5000", "*.b.test", "*.test"]:
        document = {"default": [{"type": "reject"}], "transports": {"docker": known}}
        scope, found = parse_policy(json.dumps(document).encode()).requirements("docker", docker_scopes(reference))
        assert (scope, found) == (f"transports.docker.{name}", (Accept(),))
        del known[name]
    document = {"default": [{"type": "reject"}], "transports": {"docker": known}}
    parsed = parse_policy(json.dumps(document).encode())
    assert parsed.requirements("docker", docker_scopes(reference)) == ("transports.docker.(any)", (Accept(),))
    assert parsed.requirements("oci", path_scopes("/a/b")) == ("default", (Reject(),))


def test_scopes_are_not_prefixes_of_names() -> None:
    assert "a.test/team" not in docker_scopes(parse_reference("a.test/teams/app:1"))
    assert docker_scopes(parse_reference(f"busybox@{DIGEST}")) == (
        f"docker.io/library/busybox@{DIGEST}",
        "docker.io/library/busybox",
        "docker.io/library",
        "docker.io",
        "*.io",
    )
    assert path_scopes("/a/b", "t") == ("/a/b:t", "/a/b", "/a")


# -- identities -----------------------------------------------------------------------------------------------------

APP = "a.test/team/app"


@pytest.mark.parametrize(
    ("identity", "asked", "good", "bad"),
    [
        (
            MatchExact(),
            f"{APP}:1",
            [f"{APP}:1"],
            [APP, f"{APP}:2", f"{APP}@{DIGEST}", "a.test/other:1", "", "A B"],
        ),
        (MatchRepoDigestOrExact(), f"{APP}:1", [f"{APP}:1"], [APP, f"{APP}:2", "b.test/team/app:1"]),
        (MatchRepoDigestOrExact(), f"{APP}@{DIGEST}", [APP, f"{APP}:7"], ["a.test/team/other", ""]),
        (MatchRepository(), f"{APP}:1", [APP, f"{APP}:2", f"{APP}@{DIGEST}"], ["a.test/team", "a.test/team/app2", ""]),
        (ExactReference(parse_reference("b.test/x:1")), f"{APP}:1", ["b.test/x:1"], ["b.test/x", f"{APP}:1"]),
        (ExactRepositoryName(parse_reference("b.test/x")), f"{APP}:1", ["b.test/x", "b.test/x:9"], [APP, "b.test/xy"]),
        (RemapIdentity("a.test", "b.test/m"), f"{APP}:1", ["b.test/m/team/app:1"], [f"{APP}:1", "b.test/m/team/app:2"]),
        (RemapIdentity("c.test", "b.test"), f"{APP}:1", [f"{APP}:1"], ["b.test/team/app:1"]),
        (RemapIdentity("a.test/te", "b.test"), f"{APP}:1", [f"{APP}:1"], ["b.test/am/app:1"]),
    ],
)
def test_identities(identity: SignedIdentity, asked: str, good: list[str], bad: list[str]) -> None:
    rule = IdentityRule(identity, parse_reference(asked))
    for name in good:
        rule.require(name)
    for name in bad:
        assert refused(lambda name=name: rule.require(name)) == "oci.signing.other_repository"


def test_an_image_without_a_name_matches_exact_identities_only() -> None:
    for identity in (MatchExact(), MatchRepoDigestOrExact(), MatchRepository(), RemapIdentity("a", "b")):
        assert refused(lambda i=identity: IdentityRule(i, None).require(f"{APP}:1")) == "oci.signing.other_repository"
    IdentityRule(ExactRepositoryName(parse_reference(APP)), None).require(f"{APP}:1")


def test_a_name_without_tag_and_digest_is_exactly_nothing() -> None:
    for identity in (MatchExact(), MatchRepoDigestOrExact()):
        rule = IdentityRule(identity, parse_reference(APP))
        assert refused(lambda rule=rule: rule.require(APP)) == "oci.signing.other_repository"


def test_short_names_are_written_out() -> None:
    IdentityRule(MatchRepository(), parse_reference("busybox")).require("docker.io/library/busybox")
    IdentityRule(MatchExact(), parse_reference("busybox:1")).require("index.docker.io/library/busybox:1")


# -- lookaside stores -----------------------------------------------------------------------------------------------


def test_stores_are_found_by_the_most_specific_scope() -> None:
    config = parse_lookaside(
        [
            b"default-docker:\n  lookaside: file:///default\ndocker:\n  a.test/team:\n    sigstore: file:///team\n",
            b"docker:\n  a.test:\n    lookaside: file:///host\n    use-sigstore-attachments: true\n",
        ]
    )
    for name, read in (("a.test/team/app", "/team"), ("a.test/other", "/host"), ("b.test/x", "/default")):
        entry = config.find(parse_reference(name))
        assert entry is not None and entry.read == f"file://{read}"
    assert parse_lookaside([b""]).find(parse_reference(APP)) is None


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ([b"docker: [1"], "not_yaml"),
        ([b"a: &x 1\nb: *x"], "not_yaml"),
        ([b"- 1"], "wrong_type"),
        ([b"podman: {}"], "unknown_member"),
        ([b"default-docker: {look: a}"], "unknown_member"),
        ([b"default-docker: {use-sigstore-attachments: 1}"], "wrong_type"),
        ([b"default-docker: {sigstore: 'file:///a'}", b"default-docker: {sigstore: 'file:///b'}"], "conflict"),
        ([b"#" * 2_000_000], "too_long"),
    ],
)
def test_configurations_of_stores_that_are_none_are_refused(files: list[bytes], code: str) -> None:
    assert refused(lambda: parse_lookaside(files)) == f"oci.signing.lookaside.{code}"


def test_paths_of_signatures() -> None:
    paths = signature_paths("file:///var/sigs/", parse_reference(APP), Digest.of(b"x"))
    assert paths[:2] == tuple(f"/var/sigs/team/app@sha256={Digest.of(b'x').hex}/signature-{n}" for n in (1, 2))
    for base in ("https://a.test", "file://relative", "file:///a/../b", ""):
        code = refused(lambda base=base: signature_paths(base, parse_reference(APP), Digest.of(b"x")))
        assert code == "oci.signing.lookaside.base"


def test_a_registrys_own_signatures() -> None:
    entry = {"schemaVersion": 2, "name": f"{DIGEST}@a", "type": "atomic", "content": "AAAA"}
    document: dict[str, Any] = {"signatures": [entry, {**entry, "type": "other"}]}
    assert parse_extension(json.dumps(document).encode()) == ((f"{DIGEST}@a", b"\0\0\0"),)
    assert parse_extension(b"{}") == ()
    bad = json.dumps({"signatures": [{**entry, "content": "!"}]}).encode()
    assert refused(lambda: parse_extension(bad)) == "oci.signing.lookaside.extension.base64"
    many = json.dumps({"signatures": [entry] * 33}).encode()
    assert refused(lambda: parse_extension(many)) == "oci.signing.lookaside.extension.too_many"
