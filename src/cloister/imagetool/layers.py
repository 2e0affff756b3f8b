"""Work on the layers of an image: what each is, several at once, and how far it is.

Layers are independent of each other, so as many are worked on at once as there are processors, up to a few; each has
its own threads besides. The first that fails ends the others. Nothing here looks at content.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from cloister.errors import ImageRefused
from cloister.oci.digest import Digest
from cloister.oci.manifest import (
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    ImageManifest,
    LayerType,
    parse_layer_type,
)

if TYPE_CHECKING:
    from concurrent.futures import Future

LAYERS_AT_ONCE: Final = 4  # each holds some MiB; more than this hides no more latency

T = TypeVar("T")


class Progress(Protocol):
    """Told about the work: the total, which may grow, then every step, in bytes of layers. Called by several threads,
    one at a time."""

    def begin(self, total_bytes: int) -> None:
        """The layers are this long together."""
        ...

    def advance(self, count: int) -> None:
        """So many more bytes are done."""
        ...


class NoProgress:
    """A `Progress` that tells nobody."""

    def begin(self, total_bytes: int) -> None:
        """Take notice."""

    def advance(self, count: int) -> None:
        """Take notice."""


class Work:
    """One run over an image's layers, of one or more platforms.

    Args:
        progress: told about it.
        at_once: most layers at a time.
    """

    def __init__(self, progress: Progress | None = None, *, at_once: int = LAYERS_AT_ONCE) -> None:
        self._progress = progress or NoProgress()
        self._at_once = max(1, min(at_once, os.cpu_count() or 1))
        self._lock = threading.Lock()
        self._total = 0
        self._stopped = False

    def expect(self, count: int) -> None:
        """Say that so many more bytes of layers are to be worked on."""
        self._total += count
        self._progress.begin(self._total)

    def counted(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Pass `chunks` through and count them; ends with an error as soon as another layer failed."""
        for chunk in chunks:
            self.advance(len(chunk))
            yield chunk

    def advance(self, count: int) -> None:
        """Count bytes of layers; ends the caller as `counted` does."""
        if self._stopped:
            raise _Stopped
        with self._lock:
            self._progress.advance(count)

    def run(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """Run one job for each layer and return what they return, in order; raises what the first to fail raises."""
        if len(jobs) < 2 or self._at_once < 2:
            return [job() for job in jobs]
        from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait  # which one layer does not pay for

        with ThreadPoolExecutor(min(len(jobs), self._at_once), thread_name_prefix="layer") as pool:
            futures = [pool.submit(job) for job in jobs]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                # Reached with an error of a job, or an interrupt from the keyboard: the others end at their next chunk.
                self._stopped = not all(future.done() for future in futures)
                pool.shutdown(cancel_futures=self._stopped)
        self._raise_first(futures)
        return [future.result() for future in futures]

    def _raise_first(self, futures: Sequence[Future[T]]) -> None:
        errors = [future.exception() for future in futures if not future.cancelled()]
        for error in errors:
            if error is not None and not isinstance(error, _Stopped):
                raise error


class _Stopped(Exception):
    """Ends the work on a layer because another failed."""


def layer_types(manifest: ImageManifest, *, foreign: bool) -> list[LayerType]:
    """Return the type of every layer.

    Args:
        manifest: of the image.
        foreign: accept layers that are fetched from elsewhere.

    Raises:
        ImageRefused: `oci.manifest.foreign_layer`, `oci.manifest.unknown_layer_type`.
    """
    return [
        parse_layer_type(layer.media_type, path=f"layers[{number}]", foreign=foreign)
        for number, layer in enumerate(manifest.layers)
    ]


def require_diff_ids(manifest: ImageManifest, config: ImageConfig, types: Sequence[LayerType]) -> tuple[Digest, ...]:
    """Return the diff_id of every layer. Of layers that are plain archives it is their digest, so those are checked.

    Raises:
        ImageRefused: `imagetool.layers.diff_ids`, `oci.layer.diff_id_mismatch`.
    """
    if len(config.diff_ids) != len(manifest.layers):
        raise ImageRefused(
            "imagetool.layers.diff_ids",
            "manifest and configuration disagree on the layers",
            path="rootfs.diff_ids",
            expected=str(len(manifest.layers)),
            actual=str(len(config.diff_ids)),
        )
    for number, (layer, diff_id, layer_type) in enumerate(zip(manifest.layers, config.diff_ids, types, strict=True)):
        if layer_type == LayerType("", encrypted=False):
            require_diff_id(layer.digest, diff_id, f"layers[{number}]")
    return config.diff_ids


def require_diff_id(digest: Digest, diff_id: Digest, path: str) -> None:
    """Return if a plain archive with `digest` is the one the configuration names.

    Raises:
        ImageRefused: `oci.layer.diff_id_mismatch`.
    """
    if digest != diff_id:
        raise ImageRefused(
            "oci.layer.diff_id_mismatch",
            "content does not have the digest it is named by",
            path=path,
            expected=str(diff_id),
            actual=str(digest),
        )


def layer_bytes(layers: Iterable[Descriptor]) -> int:
    """Return how many bytes the layers have together, as they are stored."""
    return sum(layer.size for layer in layers)


def finish_manifest(document: dict[str, Any]) -> None:  # Any: JSON
    """Give a manifest OCI's names; members this program does not know stay as they are."""
    document["mediaType"] = OCI_MANIFEST
    document["config"]["mediaType"] = OCI_CONFIG
