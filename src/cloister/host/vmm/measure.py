"""States what is about to be booted: the launch measurement of a bundle in a given shape.

Every digest is taken from the file that QEMU will open, at launch. Digests of unchanged files are remembered within
this process, by inode, size and times.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from cloister.errors import Unavailable
from cloister.host.vmm.spec import Bundle
from cloister.protocol.launch import LaunchMeasurement, LaunchProfile, digest_text


def measure_seabios(bundle: Bundle, *, vcpus: int, memory_mib: int) -> LaunchMeasurement:
    """Return the statement for SeaBIOS with kernel, initrd and command line.

    Raises:
        Unavailable: a file cannot be read (`host.bundle.incomplete`).
    """
    return LaunchMeasurement(
        profile=LaunchProfile.SEABIOS,
        vcpus=vcpus,
        memory_mib=memory_mib,
        firmware=_digest(bundle.bios),
        kernel=_digest(bundle.kernel),
        initrd=_digest(bundle.initrd),
        cmdline=digest_text(bundle.cmdline.encode()),
        option_roms={name: _digest(file) for name, file in bundle.option_roms.items()},
    )


def measure_uki(bundle: Bundle, *, vcpus: int, memory_mib: int) -> LaunchMeasurement:
    """Return the statement for OVMF with the unified kernel image.

    Raises:
        Unavailable: a file cannot be read (`host.bundle.incomplete`).
    """
    return LaunchMeasurement(
        profile=LaunchProfile.UKI,
        vcpus=vcpus,
        memory_mib=memory_mib,
        firmware=_digest(bundle.ovmf_code),
        kernel=_digest(bundle.uki),
        initrd=None,
        cmdline=None,
    )


def _digest(file: Path) -> str:
    try:
        state = file.stat()
        return _digest_of(file, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    except OSError as err:
        raise Unavailable(
            "host.bundle.incomplete", f"a file of the pod-VM image cannot be read: {err.strerror}", path=str(file)
        ) from err


@functools.lru_cache(maxsize=64)
def _digest_of(file: Path, *_identity: int) -> str:
    with file.open("rb") as content:
        return f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"
