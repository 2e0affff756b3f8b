"""Finds the signatures of an image, wherever they may be: the edge of the pure core.

Everything is looked for, whatever is asked for, so that a report can say of each signature why it does not count: the
classic tag, every referrer (Sigstore bundles, Notation), and simple signing's stores where one is given. For an image
reached through an index, both the manifest's and the index's. What one place refuses is told, not swallowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from cloister.oci.digest import Digest
from cloister.oci.signing.evaluate import FoundSignature, ImageBytes
from cloister.oci.signing.referred import read_referred
from cloister.oci.signing.requirements import AnyCandidate, OpenPGPCandidate
from cloister.oci.signing.simplesigning import read_candidates
from cloister.oci.store import ImageSource, manifest_for, read_manifest

ReadMore = Callable[[Digest], Sequence[OpenPGPCandidate]]


def read_image(source: ImageSource, selector: str, platform: str) -> ImageBytes:
    """Fetch what `selector` names, once, and from an index the manifest for `platform`, by its digest.

    Raises:
        ImageRefused, Unavailable: as `read_manifest` and `manifest_for`.
    """
    stored = read_manifest(source, selector)
    manifest = manifest_for(source, stored, platform)
    return ImageBytes(manifest, stored if stored.is_index else None)


def collect_signatures(
    source: ImageSource, image: ImageBytes, more: ReadMore | None = None
) -> tuple[FoundSignature, ...]:
    """Return every signature of the image that the source has.

    Args:
        source: where the image is.
        image: as fetched.
        more: reads simple signing's stores for a digest.

    Raises:
        ImageRefused: a list of signatures is malformed or too long.
        Unavailable: the source cannot be read now.
    """
    return tuple(
        FoundSignature(candidate, artifact)
        for artifact in image.artifacts
        for candidate in _candidates(source, Digest.of(artifact), more)
    )


def _candidates(source: ImageSource, digest: Digest, more: ReadMore | None) -> Iterator[AnyCandidate]:
    yield from read_candidates(source, digest)
    yield from read_referred(source, digest)
    if more is not None:
        yield from more(digest)
