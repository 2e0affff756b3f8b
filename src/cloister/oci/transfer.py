"""Copies the blobs of an image from one store into another, several at a time.

For the owner's tools. Every blob is checked while it passes; the first refusal stops those that are not begun, and is
the one that is told. A manifest is written only when all its blobs are there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from cloister.errors import ImageRefused
from cloister.oci.digest import Digest
from cloister.oci.manifest import Descriptor, ImageIndex, parse_either
from cloister.oci.store import ImageSink, ImageSource, copy_blob, read_manifest

TRANSFERS: Final = 4  # at once: what registries and tools settled on
_NESTED_INDEXES: Final = 4


def copy_blobs(
    source: ImageSource,
    sink: ImageSink,
    descriptors: Iterable[Descriptor],
    *,
    at_once: int = TRANSFERS,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Copy blobs, each digest once, beginning in the order given.

    Args:
        source: read by several threads.
        sink: written by several threads.
        descriptors: what to copy.
        at_once: how many blobs are on their way.
        advance: told of bytes that went, one call at a time.

    Raises:
        ImageRefused, Unavailable: of the first blob, in the order given, that could not be copied.
    """
    each = {descriptor.digest: descriptor for descriptor in descriptors}.values()
    lock = threading.Lock()

    def tell(count: int) -> None:
        if advance is not None:
            with lock:
                advance(count)

    with ThreadPoolExecutor(at_once, "transfer") as pool:
        copies = [pool.submit(copy_blob, source, sink, descriptor, advance=tell) for descriptor in each]
        try:
            for copy in copies:
                copy.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def copy_image(
    source: ImageSource,
    selector: str | Digest,
    sink: ImageSink,
    tag: str,
    *,
    at_once: int = TRANSFERS,
    advance: Callable[[int], None] | None = None,
) -> Digest:
    """Copy an image, or an index with all its images, without changing a byte, and return its digest.

    Raises:
        ImageRefused: `oci.manifest.nested`, or as `copy_blobs` and `read_manifest`.
        Unavailable: a store cannot be used now.
    """
    return _copy(source, selector, sink, tag, _NESTED_INDEXES, at_once, advance)


def _copy(
    source: ImageSource,
    selector: str | Digest,
    sink: ImageSink,
    tag: str,
    depth: int,
    at_once: int,
    advance: Callable[[int], None] | None,
) -> Digest:
    stored = read_manifest(source, selector)
    document = parse_either(stored.raw, media_type=stored.media_type)
    if isinstance(document, ImageIndex):
        if not depth:
            raise ImageRefused(
                "oci.manifest.nested", "index in an index in an index", expected=f"at most {_NESTED_INDEXES}"
            )
        for child in document.manifests:
            _copy(source, child.digest, sink, "", depth - 1, at_once, advance)
    else:
        copy_blobs(source, sink, (document.config, *document.layers), at_once=at_once, advance=advance)
    return sink.write_manifest(stored.raw, document.media_type, tag)
