"""The few things the guest puts into an unpacked image before it runs: name files, secret files, and the working
directory.

`/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` are the guest's, whatever the image has there; a missing working
directory is made, as docker does. Everything goes through `RootDirectory`, so that no link in the image leads out of
its tree. The name server is the network's, that is, the host's: names prove nothing, keys and digests do.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence

from cloister.errors import ImageRefused
from cloister.oci.rootfs import CREATE_FILE, RootDirectory, split_path

_MODE = 0o644
_SECRET_MODE = 0o400


def place_files(root: RootDirectory, hostname: str, resolv_conf: bytes) -> None:
    """Write the name files.

    Raises:
        ImageRefused: the image has something other than a file or link in their place (`guest.rootfiles.blocked`).
    """
    hosts = f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 {hostname}\n"
    for name, content in (
        (b"hosts", hosts.encode()),
        (b"hostname", f"{hostname}\n".encode()),
        (b"resolv.conf", resolv_conf),
    ):
        _write(root, [b"etc"], name, content, _MODE)


def place_secrets(root: RootDirectory, files: Mapping[str, bytes], owner: tuple[int, int] | None) -> None:
    """Write secret files, readable to `owner` (user and group) alone; None leaves them to whoever runs this.

    Missing directories on the way are made. What the image has in a file's place is replaced; a link there as well,
    never followed.

    Raises:
        ImageRefused: the image has a directory there (`guest.rootfiles.blocked`), or the path leads through a file
            or out of the tree (`oci.layer.*`).
    """
    for path, content in files.items():
        folder, _, name = path.rpartition("/")
        _write(root, split_path(folder.encode()), name.encode(), content, _SECRET_MODE, owner)


def make_working_directory(root: RootDirectory, path: str) -> None:
    """Make the directories of `path` that are missing.

    Raises:
        ImageRefused: the path leads through a file (`oci.layer.parent_not_directory`), or out of the tree.
    """
    root.find(split_path(posixpath.normpath(path).encode()), create=True)


def _write(
    root: RootDirectory,
    folder: Sequence[bytes],
    name: bytes,
    content: bytes,
    mode: int,
    owner: tuple[int, int] | None = None,
) -> None:
    directory = root.find(list(folder), create=True)
    if directory is None:
        raise RuntimeError("a directory that was to be made is missing")
    try:
        os.unlink(name, dir_fd=directory.fd)
    except FileNotFoundError:
        pass
    except OSError as err:
        place = b"/".join((b"", *folder, name)).decode(errors="replace")
        raise ImageRefused("guest.rootfiles.blocked", "the image has no plain file here", path=place) from err
    fd = os.open(name, CREATE_FILE, mode, dir_fd=directory.fd)
    with os.fdopen(fd, "wb") as file:
        if owner is not None:
            os.fchown(fd, *owner)
        os.fchmod(fd, mode)
        file.write(content)
