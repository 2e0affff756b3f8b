"""Makes a root file system from a verified image and its authenticated layers; all of it or nothing.

The types are the argument: no other code path leads from bytes of a registry to `LayerUnpacker`. Trusts the types.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from cloister.errors import ImageRefused, Unavailable
from cloister.oci.encryption.authenticate import AuthenticatedLayer
from cloister.oci.layer import LayerUnpacker, UnpackOptions
from cloister.oci.rootfs import RootDirectory
from cloister.oci.signing.verify import VerifiedImage

_ROOT_MODE = 0o755


def unpack_image(
    image: VerifiedImage, layers: Iterable[AuthenticatedLayer], root: str | os.PathLike[str], options: UnpackOptions
) -> None:
    """Create directory `root` and unpack all layers of `image` into it.

    Args:
        image: the verified image.
        layers: its layers in order, each taken when the one before is unpacked.
        root: must not exist, in a directory that only the caller writes to. Gone again after any error.
        options: ownership, devices, ceilings.

    Raises:
        ImageRefused: `oci.unpack.wrong_layer`, `oci.unpack.missing_layer`, and what layers refuse.
        Unavailable: `oci.unpack.no_root`, `oci.layer.no_space`, `oci.layer.write_failed`.
    """
    try:
        os.mkdir(root, _ROOT_MODE)  # noqa: PTH102  # pathlib is 10 ms of a guest's start
    except OSError as err:
        raise Unavailable(
            "oci.unpack.no_root", "cannot make the root directory", path=str(root), actual=str(err.strerror)
        ) from err
    try:
        with RootDirectory(root) as tree:
            os.fchmod(tree.top.fd, _ROOT_MODE)
            os.utime(tree.top.fd, ns=(0, 0))
            unpacker = LayerUnpacker(tree, options)
            done = 0
            for layer in layers:
                if layer.image is not image or layer.index != done:
                    raise ImageRefused(
                        "oci.unpack.wrong_layer", "layer is not the next one of this image", path=f"layers[{done}]"
                    )
                unpacker.apply(layer.open(ceiling=options.archive_ceiling, keep=False))
                done += 1
            if done != len(image.manifest.layers):
                raise ImageRefused("oci.unpack.missing_layer", "image has more layers", path=f"layers[{done}]")
    except BaseException:
        _remove_tree(root)
        raise


def _remove_tree(root: str | os.PathLike[str]) -> None:
    import shutil  # only on the way out

    shutil.rmtree(root)
