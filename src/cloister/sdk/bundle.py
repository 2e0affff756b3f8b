"""The pod-VM image of this installation: build it or find it in the cache, and hand it to launchers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cloister.errors import CloisterError
from cloister.host.vmm.spec import Bundle
from cloister.imagetool import podvm
from cloister.imagetool.podvm import PodVMBundle
from cloister.imagetool.podvm.bundle import (
    BUSYBOX,
    FOLDER,
    INITRD,
    KERNEL,
    OPTION_ROM,
    OVMF_CODE,
    OVMF_VARS,
    REFERENCE_FILE,
    ROOT,
    SEABIOS,
    UKI,
)
from cloister.imagetool.podvm.definition import lock_of
from cloister.sdk.home import Home

Progress = Callable[[str, float], None]


def build_bundle(home: Home, *, progress: Progress | None = None) -> PodVMBundle:
    """Return the pod-VM image for the current sources, building it when it is not cached (about a minute).

    Raises:
        Refused, Unavailable: as `cloister.imagetool.podvm.build`.
    """
    return podvm.build(_request(home, progress))


def find_bundle(home: Home) -> PodVMBundle | None:
    """Return the newest pod-VM image in the cache, of whatever sources; None when none was built."""
    built = sorted((home.cache / FOLDER).glob(f"*/{REFERENCE_FILE}"), key=lambda file: file.stat().st_mtime)
    return podvm.load_bundle(built[-1].parent) if built else None


def cached_bundles(home: Home) -> tuple[PodVMBundle, ...]:
    """Return every pod-VM image in the cache that this version can read, newest first."""
    built = sorted((home.cache / FOLDER).glob(f"*/{REFERENCE_FILE}"), key=lambda file: -file.stat().st_mtime)
    found = []
    for file in built:
        try:
            found.append(podvm.load_bundle(file.parent))
        except CloisterError:  # of another version, or damaged: not an image this one could have booted
            continue
    return tuple(found)


def lock_packages(home: Home, *, progress: Progress | None = None) -> tuple[Path, bool]:
    """Rewrite the package lock; return its path and whether it changed.

    Raises:
        Unavailable: the mirror cannot be reached or lacks a package.
    """
    path = lock_of(podvm.default_definition())
    before = path.read_bytes() if path.exists() else b""
    podvm.lock(_request(home, progress))
    return path, path.read_bytes() != before


def launch_files(bundle: PodVMBundle) -> Bundle:
    """Return the files of a pod-VM image as a launcher wants them."""
    option_rom = bundle.file(OPTION_ROM)
    return Bundle(
        kernel=bundle.file(KERNEL),
        initrd=bundle.file(INITRD),
        cmdline=bundle.cmdline,
        root=bundle.file(ROOT),
        uki=bundle.file(UKI),
        bios=bundle.file(SEABIOS),
        ovmf_code=bundle.file(OVMF_CODE),
        ovmf_vars=bundle.file(OVMF_VARS),
        option_roms={option_rom.name: option_rom},
    )


def busybox_of(bundle: Path) -> Path:
    """Return the static busybox inside a pod-VM image's directory: an application for demonstrations."""
    return bundle / BUSYBOX


def _request(home: Home, progress: Progress | None) -> podvm.BuildRequest:
    definition = podvm.default_definition()
    if progress is None:
        return podvm.BuildRequest(definition=definition, cache=home.cache)
    return podvm.BuildRequest(definition=definition, cache=home.cache, progress=progress)
