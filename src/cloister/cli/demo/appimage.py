"""The demo's application as an OCI image: Debian's busybox, a script that reads a digit, and the digit. No model.

Built here so that the demo needs no registry account and no container engine; it knows nothing of Cloister.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from importlib import resources
from pathlib import Path
from typing import Final

from cloister.errors import Unavailable
from cloister.imagetool.podvm import PodVMBundle
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import OCI_CONFIG, OCI_MANIFEST
from cloister.sdk.bundle import busybox_of, find_bundle
from cloister.sdk.home import Home

TAG: Final = "1"
APP_CANARY: Final = b"Reads a handwritten digit"  # a line of the application's script
_LAYER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
_FILES: Final = ("answer.sh", "digit.txt")
_EXECUTABLE: Final = 0o755


def model() -> bytes:
    """Return the secret model."""
    return resources.files(__package__).joinpath("app/model.txt").read_bytes()


def plain_files() -> tuple[bytes, ...]:
    """Return everything that is secret at rest, in the clear."""
    app = resources.files(__package__).joinpath("app")
    return tuple(app.joinpath(name).read_bytes() for name in (*_FILES, "model.txt"))


def build_app_image(directory: Path, busybox: bytes) -> str:
    """Write the image as an OCI layout; return its location."""
    layer = _layer(busybox)
    packed = gzip.compress(layer, mtime=0)
    layout = OCILayout(directory, create=True)
    layer_digest, layer_size = layout.write_blob([packed])
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/app/answer.sh"], "Env": ["PATH=/bin"], "WorkingDir": "/app", "User": "1000:1000"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    config_digest, config_size = layout.write_blob([json.dumps(config).encode()])
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": str(config_digest), "size": config_size},
        "layers": [{"mediaType": _LAYER, "digest": str(layer_digest), "size": layer_size}],
    }
    layout.write_manifest(json.dumps(manifest).encode(), OCI_MANIFEST, TAG)
    return f"oci:{directory}:{TAG}"


def find_busybox(home: Home, bundle: PodVMBundle | None) -> bytes:
    """Return a static busybox: the pod-VM image's own, of any that was built, else this machine's.

    Raises:
        Unavailable: there is none (`cli.demo.busybox`).
    """
    known = bundle or find_bundle(home)
    place = busybox_of(known.path) if known else shutil.which("busybox")
    if place is None:
        raise Unavailable(
            "cli.demo.busybox",
            "the demo's application needs busybox",
            hint="cloister podvm build, which brings one, or apt-get install busybox-static",
        )
    return Path(place).read_bytes()


def _layer(busybox: bytes) -> bytes:
    app = resources.files(__package__).joinpath("app")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("app", "bin", "tmp"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, _EXECUTABLE
            tar.addfile(directory)
        _add(tar, "bin/busybox", busybox)
        for name in _FILES:
            _add(tar, f"app/{name}", app.joinpath(name).read_bytes())
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), _EXECUTABLE
    tar.addfile(entry, io.BytesIO(content))
