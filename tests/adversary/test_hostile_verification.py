"""The owner's own `image verify` before a registry that lies: every byte that is named by a digest or a signature is
bound by it, older images well signed are told apart where that is asked, and nothing is asked for twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from adversary.expect import refusal_of, require_fix
from adversary.pulls import KEK, LAYERS, NAME, SIGNER, Published
from cloister.cli.app import app
from cloister.errors import CloisterError
from cloister.imagetool.encrypt import encrypt_image
from cloister.imagetool.sign import sign_bundle, sign_image
from cloister.oci.digest import Digest
from cloister.oci.distribution import RegistryClient
from cloister.oci.encryption.wrapping import PacketWrapper
from cloister.oci.manifest import OCI_INDEX, OCI_MANIFEST
from cloister.oci.reference import parse_reference
from cloister.oci.referrers import read_referrers
from cloister.oci.signing.keys import load_public_key
from cloister.oci.signing.requirements import KeyRequirement
from cloister.oci.signing.simplesigning import signature_tag
from cloister.oci.signing.verify import ExactRepository, VerifiedManifest
from cloister.oci.transport import HTTPTransport
from cloister.sdk.imagesignature import check_content, verify_signatures
from cloister.testing import evilregistry as evil
from unit.oci.builders import KEK_ID, build_layout

pytestmark = pytest.mark.tool
EXAMPLES = 200
RELEASED = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
BEFORE = RELEASED - timedelta(days=30)
REQUIRED = (KeyRequirement(keys=(load_public_key(SIGNER.public_key.pem()),), repository=ExactRepository(NAME)),)


@dataclass(frozen=True)
class World:
    """What the registry holds: `v1`, the release; `older`, the one before; `multi`, an index; `bundled`, by referrer.

    All of one owner, one key and one repository. Only the index of `multi` is signed, not the manifest in it.
    """

    image: Published
    older: Published
    index: Digest
    platform: Digest
    bundled: Digest

    @property
    def referrers(self) -> str:
        return f"/v2/team/app/referrers/{self.bundled}"

    def manifest(self, digest: Digest) -> bytes:
        return self.image.manifest(digest)

    def stored(self) -> dict[str, bytes]:
        """Everything that verifying `v1` with its layers asks for."""
        return {"v1": self.manifest(self.image.digest), **self.image.stored()}


@pytest.fixture(scope="module")
def world(image: Published, tmp_path_factory: pytest.TempPathFactory) -> World:
    place = tmp_path_factory.mktemp("more")
    client = image.client
    older = Published(image.registry, place / "older", layers=LAYERS[:1])
    sign_image(client, older.digest, SIGNER, repository=NAME, at=BEFORE)
    plain = build_layout(place / "plain", *LAYERS)

    def sealed(tag: str) -> Digest:
        recipients = [PacketWrapper(KEK_ID, KEK)]
        return encrypt_image(plain.layout, plain.digest, client, tag=tag, recipients=recipients).digest

    bundled, platform = sealed("bundled"), sealed("unsigned")
    sign_bundle(client, bundled, SIGNER, repository=NAME)
    raw = image.manifest(platform)
    entry = {"mediaType": OCI_MANIFEST, "digest": str(platform), "size": len(raw)}
    entry["platform"] = {"os": "linux", "architecture": "amd64"}
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    index = client.write_manifest(json.dumps(document).encode(), OCI_INDEX, "multi")
    sign_image(client, index, SIGNER, repository=NAME, at=RELEASED)
    client.write_manifest(image.manifest(image.digest), OCI_MANIFEST, "v1")
    sign_image(client, image.digest, SIGNER, repository=NAME, at=RELEASED)
    return World(image, older, index, platform, bundled)


def verified(
    liar: evil.EvilRegistry, selector: Digest | str, *lies: evil.Lie, layers: bool = False, **demands: Any
) -> VerifiedManifest:
    """Verify while the registry lies, as the command does."""
    liar.lies[:] = lies
    transport = HTTPTransport()
    reference = parse_reference(f"127.0.0.1:{liar.port}/team/app")
    try:
        client = RegistryClient(transport, reference, plain_http=True, other_origins=False, sleep=lambda _: None)
        evaluation = verify_signatures(client, str(selector), REQUIRED, platform="linux/amd64", **demands)
        manifest = evaluation.require()
        if layers:
            check_content(client, manifest)
        return manifest
    finally:
        liar.lies.clear()
        transport.close()


def test_the_honest_image_is_verified_and_nothing_is_asked_for_twice(world: World, liar: evil.EvilRegistry) -> None:
    """A second answer could be another: the manifest that was judged is the one that was fetched, once."""
    liar.asked.clear()
    assert verified(liar, "v1").digest == world.image.digest
    named = {"v1", signature_tag(world.image.digest)}
    assert named <= set(liar.asked) and set(liar.asked.values()) == {1}
    layers = {layer["digest"] for layer in world.image.document()["layers"]}
    assert not layers & set(liar.asked)
    liar.asked.clear()
    assert verified(liar, "v1", layers=True).digest == world.image.digest
    assert {*named, *layers} <= set(liar.asked) and set(liar.asked.values()) == {1}
    assert verified(liar, "multi").digest == world.platform
    assert verified(liar, "bundled").digest == world.bundled


def test_any_flipped_bit_is_refused_or_makes_no_difference(world: World, liar: evil.EvilRegistry) -> None:
    """All that is asked for, by tag and by digest. What no digest names may differ where nobody reads it."""
    stored, codes = world.stored(), Counter[str]()
    tag = signature_tag(world.image.digest)

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def flip(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(stored)))
        selector = "v1" if name == "v1" else data.draw(st.sampled_from(["v1", str(world.image.digest)]))
        if name == str(world.image.digest):
            selector = name
        position = data.draw(st.integers(0, len(stored[name]) - 1))
        lie = evil.flipped(name, position, 1 << data.draw(st.integers(0, 7)))
        try:
            found = verified(liar, selector, lie, layers=True)
        except CloisterError as err:
            codes[err.code] += 1
            require_fix(err.code)
            assert err.code == "oci.distribution.digest_mismatch" or name in ("v1", tag), (name, position, err.code)
        else:
            codes[""] += 1
            assert name == tag, "a byte that is named by a digest or signed was changed and nobody noticed"
            assert found.digest == world.image.digest

    flip()
    assert codes["oci.distribution.digest_mismatch"] > EXAMPLES / 3, codes


def flipped_at(name: str, content: bytes, part: str) -> evil.Lie:
    """Flip a bit of what stands some way behind `part`, in the last place that has it; a hex digit stays one."""
    position = content.rindex(part.encode()) + len(part)
    while not {content[position], content[position] ^ 1} <= set(b"0123456789abcdef"):
        position += 1
    return evil.flipped(name, position)


def parts(world: World) -> dict[str, tuple[str, evil.Lie]]:
    """One flipped bit in each part of an image, with the tag that is verified then."""
    stored, document = world.stored(), world.image.document()
    by_tag, tag = stored["v1"], signature_tag(world.image.digest)
    (payload,) = json.loads(stored[tag])["layers"]
    (referrer,) = read_referrers(world.image.client, world.bundled)
    (bundle,) = referrer.layers
    listed = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
    index = world.manifest(world.index)
    return {
        "manifest": ("v1", flipped_at("v1", by_tag, '"digest":"sha256:')),
        "annotation": ("v1", flipped_at("v1", by_tag, '"org.opencontainers.image.enc.pubopts":"')),
        "manifest by digest": (str(world.image.digest), evil.flipped(str(world.image.digest))),
        "configuration": ("v1", evil.flipped(document["config"]["digest"])),
        "ciphertext": ("v1", evil.flipped(document["layers"][0]["digest"])),
        "last layer": ("v1", evil.flipped(document["layers"][1]["digest"])),
        "signature": ("v1", flipped_at(tag, stored[tag], '"dev.cosignproject.cosign/signature":"')),
        "signature's list": ("v1", evil.flipped(tag, 0)),
        "signed payload": ("v1", evil.flipped(payload["digest"])),
        "index": ("multi", flipped_at("multi", index, '"architecture": "')),
        "index's entry": ("multi", flipped_at("multi", index, '"digest": "sha256:')),
        "manifest in the index": ("multi", evil.flipped(str(world.platform))),
        "bundle": ("bundled", evil.flipped(str(bundle.digest))),
        "referrer": ("bundled", evil.flipped(str(referrer.digest))),
        "referrers' list": ("bundled", evil.flipped(world.referrers, 0)),
        "referrers' list emptied": ("bundled", evil.answered(world.referrers, listed, OCI_INDEX)),
    }


PARTS = {
    "manifest": "oci.signing.unsigned",  # the bytes under the tag are another manifest, which nobody signed
    "annotation": "oci.signing.unsigned",
    "manifest by digest": "oci.distribution.digest_mismatch",
    "configuration": "oci.distribution.digest_mismatch",
    "ciphertext": "oci.distribution.digest_mismatch",
    "last layer": "oci.distribution.digest_mismatch",
    "signature": "oci.signing.no_valid_signature",
    "signature's list": "oci.manifest.not_json",
    "signed payload": "oci.distribution.digest_mismatch",
    "index": "oci.manifest.no_platform",
    "index's entry": "oci.distribution.manifest_missing",
    "manifest in the index": "oci.distribution.digest_mismatch",
    "bundle": "oci.signing.no_valid_signature",
    "referrer": "oci.signing.unsigned",
    "referrers' list": "oci.manifest.not_json",
    "referrers' list emptied": "oci.signing.unsigned",
}


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_refused_with_its_code(world: World, liar: evil.EvilRegistry, part: str) -> None:
    selector, lie = parts(world)[part]
    refusal_of(PARTS[part], verified, liar, selector, lie, layers=True)


@pytest.mark.parametrize("part", ["configuration", "ciphertext", "last layer"])
def test_layers_are_checked_only_where_that_is_asked(world: World, liar: evil.EvilRegistry, part: str) -> None:
    """What is promised without `--layers`: the manifest, which names them. Whoever uses them compares them."""
    selector, lie = parts(world)[part]
    assert verified(liar, selector, lie).digest == world.image.digest


@pytest.mark.parametrize("change", ["swapped", "repeated", "left out", "config of the other image"])
def test_a_manifest_that_somebody_else_wrote(world: World, liar: evil.EvilRegistry, change: str) -> None:
    document = world.image.document()
    one, two = document["layers"]
    document["layers"] = {"swapped": [two, one], "repeated": [one, one], "left out": [one]}.get(change, [one, two])
    if change.startswith("config"):
        document["config"] = world.older.document()["config"]
    raw = json.dumps(document).encode()
    refusal_of("oci.signing.unsigned", verified, liar, "v1", evil.answered("v1", raw, OCI_MANIFEST))
    # With the good signature of the image it was made from, it is that image's signature and not its own.
    (tag, good), lie = (signature_tag(Digest.of(raw)), world.stored()[signature_tag(world.image.digest)]), raw
    lies = (evil.answered("v1", lie, OCI_MANIFEST), evil.answered(tag, good, OCI_MANIFEST))
    refused = refusal_of("oci.signing.no_valid_signature", verified, liar, "v1", *lies)
    assert "oci.signing.other_image" in refused.actual


def test_swapped_layers(world: World, liar: evil.EvilRegistry) -> None:
    one, two = (layer["digest"] for layer in world.image.document()["layers"])
    stored = world.stored()
    lies = (evil.other_bytes(one, stored[two]), evil.other_bytes(two, stored[one]))
    assert verified(liar, "v1", *lies).digest == world.image.digest
    refusal_of("oci.distribution.size_mismatch", verified, liar, "v1", *lies, layers=True)


# -- tags ---------------------------------------------------------------------------------------------------------


def moved_back(world: World) -> evil.Lie:
    """The registry has the last release under the tag, with its own good signature."""
    return evil.other_bytes("v1", world.manifest(world.older.digest))


def test_an_older_image_under_the_tag_is_told_by_its_digest(world: World, liar: evil.EvilRegistry) -> None:
    """IM7: nothing in a signature says that there is a newer one. Accepted, and the answer says which image it is."""
    assert verified(liar, "v1", moved_back(world)).digest == world.older.digest
    lie = moved_back(world)
    refusal_of("oci.signing.manifest_mismatch", verified, liar, "v1", lie, digest=world.image.digest)
    assert verified(liar, "v1", digest=world.image.digest).digest == world.image.digest
    assert verified(liar, "multi", digest=world.index).digest == world.platform
    assert verified(liar, "multi", digest=world.platform).digest == world.platform
    refusal_of("oci.signing.manifest_mismatch", verified, liar, "multi", digest=world.image.digest)
    by_digest = evil.other_bytes(str(world.image.digest), world.manifest(world.older.digest))
    refusal_of("oci.distribution.digest_mismatch", verified, liar, world.image.digest, by_digest)


def test_an_older_image_under_the_tag_is_told_by_its_age(world: World, liar: evil.EvilRegistry) -> None:
    refused = refusal_of("oci.signing.no_valid_signature", verified, liar, "v1", moved_back(world), not_before=RELEASED)
    assert "oci.signing.age.too_old" in refused.actual
    require_fix("oci.signing.age.too_old")
    assert verified(liar, "v1", not_before=RELEASED).digest == world.image.digest
    assert verified(liar, "v1", moved_back(world), not_before=BEFORE).digest == world.older.digest


def test_an_old_signature_of_the_image_itself_hides_no_newer_one(world: World, liar: evil.EvilRegistry) -> None:
    """A replayed list of signatures can only take away; the time that is signed cannot be moved."""
    tag, stored = signature_tag(world.image.digest), world.stored()
    (layer,) = json.loads(stored[tag])["layers"]
    payload = stored[layer["digest"]]
    younger = payload.replace(b'"timestamp":', b'"timestamp":9')
    assert younger != payload
    raw = stored[tag].replace(layer["digest"].encode(), str(Digest.of(younger)).encode())
    raw = raw.replace(b'"size":%d' % len(payload), b'"size":%d' % len(younger))
    lies = (evil.other_bytes(tag, raw), evil.answered(str(Digest.of(younger)), younger, "application/octet-stream"))
    refused = refusal_of("oci.signing.no_valid_signature", verified, liar, "v1", *lies)
    assert "oci.signing.bad_signature" in refused.actual


def test_a_signature_without_a_time_is_of_no_age(world: World, liar: evil.EvilRegistry) -> None:
    refused = refusal_of("oci.signing.no_valid_signature", verified, liar, "bundled", not_before=BEFORE)
    assert "oci.signing.age.unknown" in refused.actual


@pytest.mark.parametrize("selector", ["v1", "multi"])
def test_a_tag_that_moves_between_two_requests(world: World, liar: evil.EvilRegistry, selector: str) -> None:
    """IM1: the first answer is judged, and there is no second question."""
    meant = {"v1": world.image.digest, "multi": world.platform}[selector]
    liar.asked.clear()
    moved = evil.later(evil.other_bytes(selector, world.manifest(world.older.digest)))
    assert verified(liar, selector, moved, layers=True).digest == meant
    assert liar.asked[selector] == 1 and set(liar.asked.values()) == {1}


def test_two_tags_exchanged(world: World, liar: evil.EvilRegistry) -> None:
    """Both are the owner's; the answer names what was judged, and a pinned digest refuses the other."""
    raw = {"v1": world.manifest(world.image.digest), "bundled": world.manifest(world.bundled)}
    lies = (evil.other_bytes("v1", raw["bundled"]), evil.other_bytes("bundled", raw["v1"]))
    assert verified(liar, "v1", *lies).digest == world.bundled
    refusal_of("oci.signing.manifest_mismatch", verified, liar, "v1", *lies, digest=world.image.digest)


# -- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path, liar: evil.EvilRegistry) -> Iterator[Any]:
    (tmp_path / "key.pub").write_bytes(SIGNER.public_key.pem())

    def run(*words: str) -> Any:
        place = f"docker://127.0.0.1:{liar.port}/team/app:v1"
        key = ["--key", str(tmp_path / "key.pub"), "--repository", NAME, "--platform", "linux/amd64"]
        return CliRunner().invoke(app, ["image", "verify", place, *key, *words])

    yield run
    liar.lies.clear()


def test_the_command_asks_once_and_names_what_it_judged(world: World, liar: evil.EvilRegistry, command: Any) -> None:
    liar.asked.clear()
    result = command("--layers", "--output", "json")
    report = json.loads(result.stdout)
    assert report["digest"] == str(world.image.digest) and report["blobs_checked"] == 3
    assert report["requirements"][0]["signatures"][0]["signed_at"] == RELEASED.isoformat()
    del liar.asked["/v2/"]  # what asks which authentication there is
    assert set(liar.asked.values()) == {1}, liar.asked
    text = command().stdout
    assert "accepted" in text and "were not read" in text and RELEASED.isoformat() in text


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), ""),
        (("--not-before", "2026-11-01T00:00:00Z"), "oci.signing.no_valid_signature"),
        (("--digest", "sha256:" + "0" * 64), "oci.signing.manifest_mismatch"),
        (("--digest", "sha256:0"), "oci.digest.malformed"),
    ],
)
def test_the_command_refuses_an_older_image_where_that_is_asked(
    world: World, liar: evil.EvilRegistry, command: Any, words: tuple[str, ...], code: str
) -> None:
    liar.lies[:] = [moved_back(world)]
    result = command(*words)
    assert getattr(result.exception, "code", "") == code
    assert (result.exit_code == 0) == (not code)
    if not code:
        assert str(world.older.digest) in result.stdout
