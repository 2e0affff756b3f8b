"""Every byte of an image that is encrypted, signed and pushed, flipped, cut, extended, swapped and replayed on its way
to the guest: refused with nothing left, or the very tree that was meant."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adversary.expect import refusal_of, require_fix
from adversary.pulls import Published, policy_of, pull
from cloister.errors import CloisterError
from cloister.oci.signing.simplesigning import signature_tag
from cloister.testing import evilregistry as evil
from conformance.registry_process import RegistryProcess
from unpacking import Node

pytestmark = pytest.mark.tool
EXAMPLES = 400
Tree = dict[bytes, Node]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    place = tmp_path_factory.mktemp("pulls")
    with RegistryProcess(place / "registry") as registry:
        yield Published(registry, place / "layout")


@pytest.fixture(scope="module")
def liar(image: Published) -> Iterator[evil.EvilRegistry]:
    with evil.EvilRegistry(image.registry.port) as registry:
        yield registry


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
    assert {"oci.document.malformed", "oci.signing.no_valid_signature"} & set(codes), codes


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
    "first byte": "oci.document.malformed",
    "cut short": "oci.document.malformed",
    "cut to nothing": "oci.document.malformed",
    "broken off": "oci.transport.interrupted",
    "extended": "oci.document.malformed",
    "twice": "oci.document.malformed",
    "empty object": "oci.manifest.media_type",
    "absent": "oci.signing.unsigned",
}


@pytest.mark.parametrize("change", SIGNATURE)
def test_the_signature_manifest(image: Published, liar: evil.EvilRegistry, tmp_path: Path, change: str) -> None:
    tag = signature_tag(image.digest)
    lie = CHANGES[change](tag, image.stored()[tag])
    refusal_of(SIGNATURE[change], told, liar, image, tmp_path, lie)
