"""The owner's own `image decrypt` reading from places that somebody else writes to: refused, and no image written; or
the very image that was encrypted."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adversary.expect import refusal_of, require_fix
from adversary.pulls import KEK, LAYERS, NAME, SIGNER, Published
from cloister.errors import CloisterError
from cloister.imagetool.decrypt import decrypt_image
from cloister.imagetool.encrypt import encrypt_image
from cloister.imagetool.sign import sign_image
from cloister.oci.digest import Digest, parse_digest
from cloister.oci.distribution import RegistryClient
from cloister.oci.encryption.annotations import PROVIDER_KEYS, PUBLIC_OPTIONS
from cloister.oci.encryption.wrapping import PacketUnwrapper, PacketWrapper
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import OCI_INDEX, OCI_MANIFEST
from cloister.oci.reference import parse_reference
from cloister.oci.signing.keys import load_public_key
from cloister.oci.signing.requirements import KeyRequirement
from cloister.oci.signing.verify import ExactRepository
from cloister.oci.store import ImageSource
from cloister.oci.transport import HTTPTransport
from cloister.sdk.imagesignature import SignatureCheck
from cloister.testing import evilregistry as evil
from tampering import flipped
from unit.oci.builders import KEK_ID, build_layout

pytestmark = pytest.mark.tool
EXAMPLES = 150
KEYS = [PacketUnwrapper(lambda path: KEK)]


def decrypted(source: ImageSource, selector: Digest | str, place: Path, **options: Any) -> dict[str, Any]:
    """Decrypt into a new layout and return the manifest; after a refusal there must be no image."""
    shutil.rmtree(place, ignore_errors=True)
    sink = OCILayout(place, create=True)
    try:
        decrypt_image(source, selector, sink, tag="v1", **{"keys": KEYS, **options})
    except CloisterError:
        assert sink.get_manifest("v1") is None
        assert list(sink.images()) == []
        raise
    stored = sink.get_manifest("v1")
    assert stored is not None
    found: dict[str, Any] = json.loads(stored.raw)
    return found


def from_liar(
    liar: evil.EvilRegistry, selector: Digest | str, place: Path, *lies: evil.Lie, **options: Any
) -> dict[str, Any]:
    liar.lies[:] = lies
    transport = HTTPTransport()
    reference = parse_reference(f"127.0.0.1:{liar.port}/team/app")
    try:
        client = RegistryClient(transport, reference, plain_http=True, other_origins=False, sleep=lambda _: None)
        return decrypted(client, selector, place, **options)
    finally:
        liar.lies.clear()
        transport.close()


def test_the_honest_image_is_decrypted(image: Published, liar: evil.EvilRegistry, tmp_path: Path) -> None:
    found = from_liar(liar, image.digest, tmp_path / "plain")
    assert [layer["digest"] for layer in found["layers"]] == [str(Digest.of(layer)) for layer in image.plain]


def test_any_flipped_bit_of_an_image_named_by_digest_is_refused(
    image: Published, liar: evil.EvilRegistry, tmp_path: Path
) -> None:
    document = image.document()
    stored = {blob["digest"]: image.blob(blob) for blob in (document["config"], *document["layers"])}
    stored[str(image.digest)] = image.manifest(image.digest)
    codes = Counter[str]()

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def flip(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(stored)))
        position = data.draw(st.integers(0, len(stored[name]) - 1))
        lie = evil.flipped(name, position, 1 << data.draw(st.integers(0, 7)))
        with pytest.raises(CloisterError) as caught:
            from_liar(liar, image.digest, tmp_path / "plain", lie)
        codes[caught.value.code] += 1
        require_fix(caught.value.code)

    flip()
    assert set(codes) <= {"oci.distribution.digest_mismatch", "oci.encryption.mac_mismatch"}, codes


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encrypted image in a directory."""
    place = tmp_path_factory.mktemp("local")
    built = build_layout(place / "plain", *LAYERS)
    sink = OCILayout(place / "encrypted", create=True)
    encrypt_image(built.layout, built.digest, sink, tag="v1", recipients=[PacketWrapper(KEK_ID, KEK)])
    return place / "encrypted"


def test_any_flipped_bit_of_a_directory_is_refused_or_makes_no_difference(layout: Path, tmp_path: Path) -> None:
    """All files of a layout, its index and its marker among them: what names the image is the index, so that a bit
    there may hide the image, never make another of it."""
    meant = decrypted(OCILayout(layout), "v1", tmp_path / "plain")
    files = sorted(path.relative_to(layout) for path in layout.rglob("*") if path.is_file())
    codes = Counter[str]()

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def flip(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(files))
        content = bytearray((layout / name).read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(layout, copy)
        (copy / name).write_bytes(content)
        try:
            found = decrypted(OCILayout(copy), "v1", tmp_path / "plain")
        except CloisterError as err:
            codes[err.code] += 1
            require_fix(err.code)
        else:
            codes[""] += 1
            assert name.name in ("index.json", "oci-layout"), name
            assert found == meant

    flip()
    assert codes["oci.layout.digest_mismatch"] > EXAMPLES / 4, codes


def resealed(image: Published, change: str) -> tuple[Digest, list[evil.Lie]]:
    """Return another manifest, named by its own digest: what decryption has to notice without any signature."""
    document = image.document()
    one, two = document["layers"]
    if change == "layers exchanged":
        document["layers"] = [two, one]
    elif change == "keys exchanged":
        one["annotations"][PROVIDER_KEYS], two["annotations"][PROVIDER_KEYS] = (
            two["annotations"][PROVIDER_KEYS],
            one["annotations"][PROVIDER_KEYS],
        )
    elif change == "MACs exchanged":
        one["annotations"][PUBLIC_OPTIONS], two["annotations"][PUBLIC_OPTIONS] = (
            two["annotations"][PUBLIC_OPTIONS],
            one["annotations"][PUBLIC_OPTIONS],
        )
    elif change == "layer left out":
        document["layers"] = [one]
    elif change == "layer repeated":
        document["layers"] = [one, one]
    elif change == "last byte of a layer":
        content = image.blob(two)
        two.update(image.put(flipped(content)))
    raw = json.dumps(document).encode()
    return Digest.of(raw), [evil.answered(str(Digest.of(raw)), raw, OCI_MANIFEST)]


RESEALED = {
    "layers exchanged": "oci.layer.diff_id_mismatch",
    "keys exchanged": "oci.encryption.mac_mismatch",
    "MACs exchanged": "oci.encryption.mac_mismatch",
    "layer left out": "imagetool.layers.diff_ids",
    "layer repeated": "oci.layer.diff_id_mismatch",
    "last byte of a layer": "oci.encryption.mac_mismatch",
}


@pytest.mark.parametrize("change", RESEALED)
def test_a_manifest_that_somebody_else_wrote(
    image: Published, liar: evil.EvilRegistry, tmp_path: Path, change: str
) -> None:
    digest, lies = resealed(image, change)
    refusal_of(RESEALED[change], from_liar, liar, digest, tmp_path / "plain", *lies, check_diff_ids=True)
    assert not (tmp_path / "plain" / "blobs" / "sha256" / parse_digest(str(digest)).hex).exists()


@pytest.mark.parametrize("change", ["layers exchanged", "layer repeated"])
def test_whole_layers_in_another_order(image: Published, liar: evil.EvilRegistry, tmp_path: Path, change: str) -> None:
    """Each is authentic by itself. Who may write a manifest may write the configuration with its diff_ids as well, so
    that is for the signature; and whoever unpacks the result compares it with the diff_ids."""
    digest, lies = resealed(image, change)
    found = from_liar(liar, digest, tmp_path / "plain", *lies)
    honest = [str(Digest.of(layer)) for layer in image.plain]
    order = honest[::-1] if change == "layers exchanged" else [honest[0]] * 2
    assert [layer["digest"] for layer in found["layers"]] == order
    refusal_of(
        "oci.signing.unsigned", from_liar, liar, digest, tmp_path / "plain", *lies,
        check=SignatureCheck(REQUIRED), keys=[NoKey()],
    )  # fmt: skip


# -- with the signature verified first --------------------------------------------------------------------------------

REQUIRED = (KeyRequirement(keys=(load_public_key(SIGNER.public_key.pem()),), repository=ExactRepository(NAME)),)


class NoKey:
    """An unwrapper that is never to be asked."""

    def unwrap(self, *_: object) -> Any:
        raise AssertionError("a key was asked for before the image was verified")


def plain_instead(image: Published) -> bytes:
    """Return a manifest in which somebody put a plain layer of theirs into the place of an encrypted one."""
    document = image.document()
    layer = document["layers"][0]
    layer.update(image.put(image.plain[0]))
    layer["mediaType"] = layer["mediaType"].removesuffix("+encrypted")
    del layer["annotations"]
    return json.dumps(document).encode()


def test_a_plain_layer_that_somebody_put_in_is_copied_only_without_a_check(
    image: Published, liar: evil.EvilRegistry, tmp_path: Path
) -> None:
    """IM5: nothing about a plain layer can be authentic but by a signature over the manifest that names it."""
    lie = evil.answered("v1", plain_instead(image), OCI_MANIFEST)
    found = from_liar(liar, "v1", tmp_path / "plain", lie)
    assert len(found["layers"]) == 2
    check = SignatureCheck(REQUIRED)
    refusal_of("oci.signing.unsigned", from_liar, liar, "v1", tmp_path / "plain", lie, check=check, keys=[NoKey()])
    assert not check.proved and check.signers == []


def test_the_manifest_that_was_verified_is_the_one_that_is_decrypted(
    image: Published, liar: evil.EvilRegistry, tmp_path: Path
) -> None:
    """IM1: one request for a tag, whatever it would answer next; and every other thing once, too."""
    moved = evil.later(evil.answered("v1", plain_instead(image), OCI_MANIFEST))
    check = SignatureCheck(REQUIRED)
    liar.asked.clear()
    found = from_liar(liar, "v1", tmp_path / "plain", moved, check=check)
    assert [layer["digest"] for layer in found["layers"]] == [str(Digest.of(layer)) for layer in image.plain]
    assert check.proved and len(check.signers) == 1
    assert liar.asked["v1"] == 1 and set(liar.asked.values()) == {1}


@pytest.mark.parametrize("platform", ["", "linux/amd64"])
@pytest.mark.parametrize("signed", ["index", "one manifest", "nothing"])
def test_every_platform_is_signed_or_the_index_is(
    image: Published, liar: evil.EvilRegistry, tmp_path: Path, platform: str, signed: str
) -> None:
    """The second platform's manifest is somebody else's; a signature over the first one does not cover it."""
    theirs = plain_instead(image)
    other = image.client.write_manifest(theirs, OCI_MANIFEST)
    entries = [
        {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": len(image.manifest(digest))}
        | {"platform": {"os": "linux", "architecture": name}}
        for digest, name in ((image.digest if signed == "one manifest" else other, "amd64"), (other, "arm64"))
    ]
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries, "annotations": {"n": signed}})
    index = image.client.write_manifest(raw.encode(), OCI_INDEX)
    if signed == "index":
        sign_image(image.client, index, SIGNER, repository=NAME)
    check = SignatureCheck(REQUIRED)
    if signed == "index" or (signed == "one manifest" and platform):
        assert from_liar(liar, index, tmp_path / "plain", check=check, platform=platform)
        assert check.proved and len(check.signers) == (1 if platform else 2)
        return
    refusal_of(
        "oci.signing.unsigned", from_liar, liar, index, tmp_path / "plain", check=check, platform=platform,
        keys=[NoKey()],
    )  # fmt: skip
    assert not check.proved
