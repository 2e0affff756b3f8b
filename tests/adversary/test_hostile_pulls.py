"""Every byte of an image that is encrypted, signed and pushed, flipped, cut, extended, swapped and replayed on its way
to the guest: refused with nothing left, or the very tree that was meant."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adversary.expect import refusal_of, require_fix
from adversary.pulls import LAYERS, NAME, SIGNER, Published, policy_of, pull
from cloister.crypto.signer import ECDSAP256Signer
from cloister.errors import CloisterError
from cloister.oci.encryption.annotations import PROVIDER_KEYS, PUBLIC_OPTIONS
from cloister.oci.manifest import OCI_INDEX, OCI_MANIFEST
from cloister.oci.signing.simplesigning import (
    SignatureCandidate,
    Statement,
    encode_payload,
    encode_signatures,
    signature_tag,
)
from cloister.testing import evilregistry as evil
from tampering import flipped
from unpacking import Node

pytestmark = pytest.mark.tool
EXAMPLES = 300
Tree = dict[bytes, Node]


@pytest.fixture(scope="module")
def meant(image: Published, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The tree that the owner means."""
    return pull(f"http://{image.registry.address}", policy_of(image.digest), tmp_path_factory.mktemp("meant"))


def told(liar: evil.EvilRegistry, image: Published, place: Path, *lies: evil.Lie) -> Tree:
    """Pull while the registry lies."""
    liar.lies[:] = lies
    try:
        return pull(liar.url, policy_of(image.digest), place)
    finally:
        liar.lies.clear()


def test_the_honest_image_is_pulled_and_nothing_else_is_asked_for(
    image: Published, liar: evil.EvilRegistry, meant: Tree, tmp_path: Path
) -> None:
    """What is stored beside it, tags, index and referrers' lists, is never looked at: no byte of it can matter."""
    assert sorted(meant) == [b"", b"app", b"app/run", b"start"]
    assert meant[b"app/run"].content == b"two" * 300
    liar.asked.clear()
    assert told(liar, image, tmp_path) == meant
    assert set(liar.asked) == set(image.stored())
    assert set(liar.asked.values()) == {1}, "nothing is asked for twice: a second answer could be another"


# -- one bit ------------------------------------------------------------------------------------------------------


def outcome(liar: evil.EvilRegistry, image: Published, place: Path, *lies: evil.Lie) -> tuple[str, Tree]:
    try:
        return "", told(liar, image, place, *lies)
    except CloisterError as err:
        return err.code, {}


def test_any_flipped_bit_is_refused_or_makes_no_difference(
    image: Published, liar: evil.EvilRegistry, meant: Tree, tmp_path: Path
) -> None:
    stored, codes = image.stored(), Counter[str]()
    tag = signature_tag(image.digest)

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def flip(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(stored)))
        position = data.draw(st.integers(0, len(stored[name]) - 1))
        mask = 1 << data.draw(st.integers(0, 7))
        code, tree = outcome(liar, image, tmp_path, evil.flipped(name, position, mask))
        codes[code] += 1
        if code:
            require_fix(code)
            assert code == "oci.distribution.digest_mismatch" or name == tag, (name, position, mask, code)
        else:
            assert name == tag, "a byte that is named by a digest was changed and nobody noticed"
            assert tree == meant

    flip()
    assert codes["oci.distribution.digest_mismatch"] > EXAMPLES / 3, codes


def test_every_byte_of_the_signatures_own_manifest(
    image: Published, liar: evil.EvilRegistry, meant: Tree, tmp_path: Path
) -> None:
    """The only bytes on the way that no digest binds. Those that may differ are what the signature is not made of:
    the description of its configuration, which is not fetched, names of annotations nobody reads, spaces."""
    tag = signature_tag(image.digest)
    raw = image.stored()[tag]
    harmless = bytearray(raw)
    codes = Counter[str]()
    for position in range(len(raw)):
        code, tree = outcome(liar, image, tmp_path, evil.flipped(tag, position))
        codes[code] += 1
        if not code:
            assert tree == meant
            harmless[position] = ord("_")
    document = json.loads(raw)
    (layer,) = document["layers"]
    for bound in (layer["digest"].encode(), *(value[:-4].encode() for value in layer["annotations"].values())):
        assert bound in harmless, "a byte of the payload's digest or of the signature may differ"
    assert codes[""] < len(raw) / 2, codes
    assert {"oci.manifest.not_json", "oci.signing.no_valid_signature"} <= set(codes), codes


CHANGES: dict[str, Callable[[str, bytes], evil.Lie]] = {
    "first byte": lambda name, body: evil.flipped(name, 0),
    "middle byte": lambda name, body: evil.flipped(name, len(body) // 2),
    "last byte": lambda name, body: evil.flipped(name, -1),
    "high bit": lambda name, body: evil.flipped(name, len(body) // 3, 0x80),
    "cut short": lambda name, body: evil.truncated(name, 1, declared=False),
    "cut to nothing": lambda name, body: evil.truncated(name, len(body), declared=False),
    "broken off": lambda name, body: evil.truncated(name, 1, declared=True),
    "extended": lambda name, body: evil.other_bytes(name, body + b"\0"),
    "twice": lambda name, body: evil.other_bytes(name, body + body),
    "empty object": lambda name, body: evil.other_bytes(name, b"{}"),
    "absent": lambda name, body: evil.absent(name),
}
EXPECTED = {
    "manifest": {
        "broken off": "oci.transport.interrupted",
        "absent": "oci.distribution.manifest_missing",
        "": "oci.distribution.digest_mismatch",
    },
    "blob": {
        "cut short": "oci.distribution.size_mismatch",
        "cut to nothing": "oci.distribution.size_mismatch",
        "broken off": "oci.transport.interrupted",
        "extended": "oci.distribution.size_mismatch",
        "twice": "oci.distribution.size_mismatch",
        "empty object": "oci.distribution.size_mismatch",
        "absent": "oci.distribution.blob_missing",
        "": "oci.distribution.digest_mismatch",
    },
}


def named(image: Published) -> dict[str, str]:
    document = image.document()
    (payload,) = json.loads(image.manifest(signature_tag(image.digest)))["layers"]
    return {
        "manifest": str(image.digest),
        "configuration": document["config"]["digest"],
        "lower layer": document["layers"][0]["digest"],
        "upper layer": document["layers"][1]["digest"],
        "signature payload": payload["digest"],
    }


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("part", ["manifest", "configuration", "lower layer", "upper layer", "signature payload"])
def test_parts_named_by_digest(
    image: Published, liar: evil.EvilRegistry, tmp_path: Path, part: str, change: str
) -> None:
    selector = named(image)[part]
    codes = EXPECTED["manifest" if part == "manifest" else "blob"]
    lie = CHANGES[change](selector, image.stored()[selector])
    refusal_of(codes.get(change, codes[""]), told, liar, image, tmp_path, lie)


SIGNATURE: dict[str, str] = {
    "first byte": "oci.manifest.not_json",
    "cut short": "oci.manifest.not_json",
    "cut to nothing": "oci.manifest.not_json",
    "broken off": "oci.transport.interrupted",
    "extended": "oci.manifest.not_json",
    "twice": "oci.manifest.not_json",
    "empty object": "oci.manifest.missing_member",
    "absent": "oci.signing.unsigned",
}


@pytest.mark.parametrize("change", SIGNATURE)
def test_the_signature_manifest(image: Published, liar: evil.EvilRegistry, tmp_path: Path, change: str) -> None:
    tag = signature_tag(image.digest)
    lie = CHANGES[change](tag, image.stored()[tag])
    refusal_of(SIGNATURE[change], told, liar, image, tmp_path, lie)


# -- swaps and replays on the way -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def older(image: Published, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The last release: another image of the same owner, same key, same repository."""
    other = Published(image.registry, tmp_path_factory.mktemp("older") / "layout", layers=LAYERS[:1])
    return {"manifest": other.manifest(other.digest), "signature": other.manifest(signature_tag(other.digest))}


def test_replayed_manifest(image: Published, liar: evil.EvilRegistry, tmp_path: Path, older: dict[str, bytes]) -> None:
    """IM7: what excludes an older image, well signed as it is, is the digest in the measured policy."""
    lie = evil.other_bytes(str(image.digest), older["manifest"])
    refusal_of("oci.distribution.digest_mismatch", told, liar, image, tmp_path, lie)


def test_replayed_signature(image: Published, liar: evil.EvilRegistry, tmp_path: Path, older: dict[str, bytes]) -> None:
    lie = evil.other_bytes(signature_tag(image.digest), older["signature"])
    refusal_of("oci.signing.no_valid_signature", told, liar, image, tmp_path, lie)


def test_replayed_manifest_with_its_signature(
    image: Published, liar: evil.EvilRegistry, tmp_path: Path, older: dict[str, bytes]
) -> None:
    lies = (
        evil.other_bytes(str(image.digest), older["manifest"]),
        evil.other_bytes(signature_tag(image.digest), older["signature"]),
    )
    refusal_of("oci.distribution.digest_mismatch", told, liar, image, tmp_path, *lies)


@pytest.mark.parametrize("wrong", ["another key", "another payload", "no signature at all"])
def test_forged_signature(image: Published, liar: evil.EvilRegistry, tmp_path: Path, wrong: str) -> None:
    """The right payload, under a signature that is not the owner's over it."""
    payload = encode_payload(Statement(NAME, image.digest))
    signature = {
        "another key": ECDSAP256Signer.generate().sign(payload),
        "another payload": SIGNER.sign(payload + b" "),
        "no signature at all": bytes(64),
    }[wrong]
    raw, _ = encode_signatures([SignatureCandidate(payload, signature)])
    lie = evil.other_bytes(signature_tag(image.digest), raw)
    refusal_of("oci.signing.no_valid_signature", told, liar, image, tmp_path, lie)


@pytest.mark.parametrize(("one", "other"), [("lower layer", "upper layer"), ("configuration", "signature payload")])
def test_swapped_blobs(image: Published, liar: evil.EvilRegistry, tmp_path: Path, one: str, other: str) -> None:
    names, stored = named(image), image.stored()
    lies = (
        evil.other_bytes(names[one], stored[names[other]]),
        evil.other_bytes(names[other], stored[names[one]]),
    )
    with pytest.raises(CloisterError) as caught:
        told(liar, image, tmp_path, *lies)
    assert caught.value.code in ("oci.distribution.size_mismatch", "oci.distribution.digest_mismatch")


@pytest.mark.parametrize("part", ["manifest", "configuration", "upper layer", "signature payload"])
def test_two_answers_to_two_requests(
    image: Published, liar: evil.EvilRegistry, meant: Tree, tmp_path: Path, part: str
) -> None:
    """IM1: the first pull is told the truth and keeps it; the second one is lied to and refused."""
    selector = named(image)[part]
    liar.asked.clear()
    liar.lies[:] = [evil.later(evil.flipped(selector))]
    try:
        assert pull(liar.url, policy_of(image.digest), tmp_path) == meant
        refusal_of("oci.distribution.digest_mismatch", pull, liar.url, policy_of(image.digest), tmp_path)
    finally:
        liar.lies.clear()


def test_what_lies_in_the_hosts_cache_never_matters(image: Published, meant: Tree, tmp_path: Path) -> None:
    """HH22: every file of the registry's store, which stands for any cache of the node, is poisoned in its turn."""
    url, poisoned = f"http://{image.registry.address}", 0
    wanted = {name.removeprefix("sha256:") for name in image.stored()}
    for path in sorted((image.registry.root / "blobs" / "sha256").iterdir()):
        if path.name not in wanted:
            continue
        honest = path.read_bytes()
        for content in (flipped(honest), honest + b" ", b"", LAYERS[0]):
            path.write_bytes(content)
            try:
                with pytest.raises(CloisterError) as caught:
                    pull(url, policy_of(image.digest), tmp_path)
            finally:
                path.write_bytes(honest)
            require_fix(caught.value.code)
            poisoned += 1
    assert poisoned >= 4 * (len(image.stored()) - 1)
    assert pull(url, policy_of(image.digest), tmp_path) == meant


# -- altered and signed again: what a stolen signing key could make ---------------------------------------------------

Document = dict[str, Any]
Change = Callable[[Published, Document], object]


def changed(part: str, **members: Any) -> Change:
    """Set members of the first layer, of the configuration's descriptor, or of the manifest itself."""

    def change(image: Published, document: Document) -> None:
        target = {"layer": document["layers"][0], "config": document["config"], "manifest": document}[part]
        target.update(members)

    return change


def ciphertext(position: float) -> Change:
    def change(image: Published, document: Document) -> None:
        layer = document["layers"][0]
        content = bytearray(image.blob(layer))
        content[int(position * (len(content) - 1))] ^= 0x10
        layer.update(image.put(bytes(content)))

    return change


def replaced_layer(make: Callable[[bytes], bytes]) -> Change:
    def change(image: Published, document: Document) -> None:
        layer = document["layers"][0]
        layer.update(image.put(make(image.blob(layer))))

    return change


def annotation(name: str, change_json: Callable[[Document], object]) -> Change:
    """Change what stands in an annotation of the first layer."""

    def change(image: Published, document: Document) -> None:
        annotations = document["layers"][0]["annotations"]
        value = json.loads(base64.b64decode(annotations[name]))
        change_json(value)
        annotations[name] = base64.b64encode(json.dumps(value).encode()).decode()

    return change


def flipped_member(*path: str) -> Callable[[Document], object]:
    """Flip one bit of a base64 member."""

    def change(value: Document) -> None:
        for name in path[:-1]:
            value = value[name]
        raw = bytearray(base64.b64decode(value[path[-1]]))
        raw[0] ^= 1
        value[path[-1]] = base64.b64encode(bytes(raw)).decode()

    return change


def without(name: str) -> Change:
    return lambda image, document: document["layers"][0]["annotations"].pop(name)


def exchanged(name: str) -> Change:
    def change(image: Published, document: Document) -> None:
        one, two = (layer["annotations"] for layer in document["layers"])
        one[name], two[name] = two[name], one[name]

    return change


def plain_layers(*indexes: int) -> Change:
    """IM5: some layers, or all, as they were before they were encrypted."""

    def change(image: Published, document: Document) -> None:
        for index in indexes:
            layer = document["layers"][index]
            layer.update(image.put(image.plain[index]))
            layer["mediaType"] = layer["mediaType"].removesuffix("+encrypted")
            del layer["annotations"]

    return change


def counted(number: int) -> Change:
    """So many layers, each the same one, and a configuration that agrees."""

    def change(image: Published, document: Document) -> None:
        config = json.loads(image.blob(document["config"]))
        config["rootfs"]["diff_ids"] = config["rootfs"]["diff_ids"][:1] * number
        document["config"].update(image.put(json.dumps(config).encode()))
        kept = ("mediaType", "digest", "size") if number > 1000 else tuple(document["layers"][0])  # within the 4 MiB
        document["layers"] = [{name: document["layers"][0][name] for name in kept}] * number

    return change


def configured(change_config: Callable[[Document], object]) -> Change:
    def change(image: Published, document: Document) -> None:
        config = json.loads(image.blob(document["config"]))
        change_config(config)
        document["config"].update(image.put(json.dumps(config).encode()))

    return change


SIGNED: dict[str, tuple[Change, str]] = {
    "first byte of a layer": (ciphertext(0), "oci.encryption.mac_mismatch"),
    "middle byte of a layer": (ciphertext(0.5), "oci.encryption.mac_mismatch"),
    "last byte of a layer": (ciphertext(1), "oci.encryption.mac_mismatch"),
    "layer cut short": (replaced_layer(lambda content: content[:-1]), "oci.encryption.mac_mismatch"),
    "layer extended": (replaced_layer(lambda content: content + b"\0"), "oci.encryption.mac_mismatch"),
    "empty layer": (replaced_layer(lambda content: b""), "oci.encryption.mac_mismatch"),
    "one plain layer among encrypted ones": (plain_layers(0), "guest.images.not_encrypted"),
    "the last layer plain": (plain_layers(1), "guest.images.not_encrypted"),
    "all layers plain": (plain_layers(0, 1), "guest.images.not_encrypted"),
    "no public options": (without(PUBLIC_OPTIONS), "oci.encryption.missing_pubopts"),
    "no keys": (without(PROVIDER_KEYS), "oci.encryption.no_recipient"),
    "public options of the other layer": (exchanged(PUBLIC_OPTIONS), "oci.encryption.mac_mismatch"),
    "keys of the other layer": (exchanged(PROVIDER_KEYS), "oci.encryption.mac_mismatch"),
    "bit in the MAC": (annotation(PUBLIC_OPTIONS, flipped_member("hmac")), "oci.encryption.mac_mismatch"),
    "bit in the wrapped key": (
        annotation(PROVIDER_KEYS, flipped_member("wrapped_data")),
        "oci.encryption.unwrap_failed",
    ),
    "bit in the nonce of the key": (annotation(PROVIDER_KEYS, flipped_member("iv")), "oci.encryption.unwrap_failed"),
    "another cipher": (
        annotation(PUBLIC_OPTIONS, lambda value: value.update(cipher="AES_256_CTR_HMAC_SHA512")),
        "oci.encryption.unknown_cipher",
    ),
    "a nonce that the owner did not choose": (
        annotation(PUBLIC_OPTIONS, lambda value: value.update(cipheroptions={"nonce": "A" * 22 + "=="})),
        "oci.encryption.two_nonces",
    ),
    "no layers": (counted(0), "oci.signing.layer_count"),
    "a layer twice": (counted(2), ""),
    "128 layers": (counted(128), "oci.manifest.too_many"),
    "10 000 layers": (counted(10_000), "oci.manifest.too_many"),
    "other content than the configuration says": (
        configured(lambda config: config["rootfs"]["diff_ids"].reverse()),
        "oci.layer.diff_id_mismatch",
    ),
    "fewer layers in the configuration": (
        configured(lambda config: config["rootfs"]["diff_ids"].pop()),
        "oci.signing.layer_count",
    ),
    "configuration of another type": (
        changed("config", mediaType="application/vnd.example.config.v1+json"),
        "oci.signing.config_type",
    ),
    "layer of another type": (
        changed("layer", mediaType="application/vnd.example.layer.v1.tar+encrypted"),
        "oci.manifest.unknown_layer_type",
    ),
    "layer that may be fetched elsewhere": (
        changed("layer", urls=["http://169.254.169.254/latest"]),
        "",
    ),
    "manifest that says it is an index": (changed("manifest", mediaType=OCI_INDEX), "oci.manifest.ambiguous"),
    "manifest with the members of an index": (changed("manifest", manifests=[]), "oci.manifest.ambiguous"),
    "manifest of another version": (changed("manifest", schemaVersion=1), "oci.manifest.schema_version"),
    "layer of negative size": (changed("layer", size=-1), "oci.manifest.wrong_type"),
    "layer of impossible size": (changed("layer", size=2**62), "oci.manifest.wrong_type"),
    "layer of another size": (changed("layer", size=17), "oci.distribution.size_mismatch"),
    "digest of another kind": (changed("layer", digest="md5:" + "0" * 32), "oci.digest.unsupported_algorithm"),
}


def signed_pull(
    image: Published, liar: evil.EvilRegistry, raw: bytes, place: Path, *, media_type: str = OCI_MANIFEST
) -> Tree:
    digest, liar.lies[:] = image.signed(raw, media_type=media_type)
    try:
        return pull(liar.url, policy_of(digest), place)
    finally:
        liar.lies.clear()


@pytest.mark.parametrize("change", SIGNED)
def test_signed_again(image: Published, liar: evil.EvilRegistry, tmp_path: Path, change: str) -> None:
    alter, code = SIGNED[change]
    document = image.document()
    alter(image, document)
    raw = json.dumps(document).encode()
    if code:
        refusal_of(code, signed_pull, image, liar, raw, tmp_path)
    else:
        assert signed_pull(image, liar, raw, tmp_path)


def described(image: Published) -> dict[str, Any]:
    raw = image.manifest(image.digest)
    return {"mediaType": OCI_MANIFEST, "digest": str(image.digest), "size": len(raw)}


def index(image: Published) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [described(image)]}).encode()


RAW: dict[str, tuple[Callable[[Published], bytes], str]] = {
    "an index": (index, "oci.manifest.is_index"),
    "a member twice": (
        lambda image: image.manifest(image.digest).replace(b'"layers":', b'"layers":[],"layers":', 1),
        "oci.manifest.duplicate_key",
    ),
    "a member twice, escaped": (
        lambda image: image.manifest(image.digest).replace(b'"layers":', b'"l\\u0061yers":[],"layers":', 1),
        "oci.manifest.duplicate_key",
    ),
    "bytes behind it": (lambda image: image.manifest(image.digest) + b"{}", "oci.manifest.not_json"),
    "a byte order mark": (lambda image: b"\xef\xbb\xbf" + image.manifest(image.digest), "oci.manifest.not_json"),
    "UTF-16": (lambda image: image.manifest(image.digest).decode().encode("utf-16"), "oci.manifest.not_json"),
    "deep nesting": (lambda image: b"[" * 100_000 + b"]" * 100_000, "oci.manifest.too_deep"),
    "a list": (lambda image: b"[]", "oci.manifest.not_json"),
    "the signature's own manifest": (lambda image: image.manifest(signature_tag(image.digest)), ""),
    "the configuration": (lambda image: image.blob(image.document()["config"]), "oci.manifest.missing_member"),
}


@pytest.mark.parametrize("kind", RAW)
@pytest.mark.parametrize("media_type", [OCI_MANIFEST, OCI_INDEX, "", "application/octet-stream"])
def test_something_else_than_a_manifest(
    image: Published, liar: evil.EvilRegistry, tmp_path: Path, kind: str, media_type: str
) -> None:
    make, code = RAW[kind]
    with pytest.raises(CloisterError) as caught:
        signed_pull(image, liar, make(image), tmp_path, media_type=media_type)
    require_fix(caught.value.code)
    assert not code or media_type != OCI_MANIFEST or caught.value.code == code


def test_any_flipped_bit_of_an_annotation_is_refused_even_when_signed(
    image: Published, liar: evil.EvilRegistry, meant: Tree, tmp_path: Path
) -> None:
    """Public options, MAC and wrapped keys, in the JSON they are, or as the base64 text they are written in."""
    codes = Counter[str]()

    @settings(max_examples=EXAMPLES // 2, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def flip(data: st.DataObject) -> None:
        document = image.document()
        annotations = document["layers"][data.draw(st.integers(0, 1))]["annotations"]
        name = data.draw(st.sampled_from([PUBLIC_OPTIONS, PROVIDER_KEYS]))
        inside = data.draw(st.booleans())
        raw = bytearray(base64.b64decode(annotations[name]) if inside else annotations[name].encode())
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 6))
        annotations[name] = (base64.b64encode(raw) if inside else raw).decode()
        try:
            tree = signed_pull(image, liar, json.dumps(document).encode(), tmp_path)
        except CloisterError as err:
            codes[err.code] += 1
            require_fix(err.code)
        else:
            codes[""] += 1
            assert tree == meant

    flip()
    assert codes["oci.encryption.mac_mismatch"] and codes["oci.encryption.unwrap_failed"], codes
    assert codes[""] < EXAMPLES / 10, codes
