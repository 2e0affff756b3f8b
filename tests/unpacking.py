"""A place where hostile layers are unpacked and every change around it is seen, and other readers of the same bytes.

`Arena` is a directory with files worth attacking. The unpacker runs in a process of its own, for which the arena is
the whole file system (`chroot`), so that a way out by an absolute name or a link leads to what is watched.
`gnu_tar` extracts in a tree that is GNU tar's whole file system, as a layer's paths are meant; `umoci_unpack` is Go's
reader and another author's rules of whiteouts. `tree_of` tells trees apart to the byte. All of this needs root.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from cloister.errors import CloisterError
from cloister.oci.digest import Digest
from cloister.oci.document import encode_document
from cloister.oci.layer import DeviceNodes, LayerUnpacker, UnpackOptions
from cloister.oci.layout import OCILayout
from cloister.oci.manifest import OCI_CONFIG, OCI_MANIFEST
from cloister.oci.rootfs import RootDirectory

SECONDS: Final = 60
BEGUN_NS: Final = time.time_ns()
_LENGTH: Final = struct.Struct("!I")
_PIECE: Final = 65536
_GNU: Final = ".gnu"  # where GNU tar itself is, in the tree that is its whole file system


def require_root() -> None:
    """Skip where other users' files cannot be made."""
    if os.geteuid():
        pytest.skip("owners, devices and chroot are root's: run as root")


# -- what is seen -----------------------------------------------------------------------------------------------


class Node(NamedTuple):
    """One file of a tree, without what says when or where it was made."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    content: bytes
    device: int
    xattrs: tuple[tuple[str, bytes], ...]
    same_as: bytes  # the first name of this file


def tree_of(root: Path, *, without: str = "") -> dict[bytes, Node]:
    """Return every file below `root`, which is the empty name."""
    found: dict[bytes, Node] = {}
    first: dict[tuple[int, int], bytes] = {}
    for path in _walk(os.fsencode(root)):
        name = os.path.relpath(path, os.fsencode(root))
        if without and name.split(b"/")[0] == without.encode():
            continue
        status = os.lstat(path)
        same = first.setdefault((status.st_dev, status.st_ino), name)
        found[b"" if name == b"." else name] = Node(
            kind=_kind(status.st_mode),
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            content=_content(path, status.st_mode),
            device=status.st_rdev,
            xattrs=_attributes(path),
            same_as=same,
        )
    return found


def _walk(root: bytes) -> Iterator[bytes]:
    yield root
    for folder, directories, files in os.walk(root):
        for name in sorted(directories + files):
            yield os.path.join(folder, name)


def _kind(mode: int) -> str:
    return {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo"}.get(
        stat.S_IFMT(mode), "device"
    )


def _content(path: bytes, mode: int) -> bytes:
    if stat.S_ISREG(mode):
        return Path(os.fsdecode(path)).read_bytes()
    return os.readlink(path) if stat.S_ISLNK(mode) else b""


def _attributes(path: bytes) -> tuple[tuple[str, bytes], ...]:
    return tuple(
        (name, os.getxattr(path, name, follow_symlinks=False))
        for name in sorted(os.listxattr(path, follow_symlinks=False))
    )


def differences(ours: dict[bytes, Node], theirs: dict[bytes, Node], *, mode_of_parents: int = 0o755) -> list[str]:
    """Return in words where two trees differ; parents that no entry describes have no time of their own."""
    found = []
    for name in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(name), theirs.get(name)
        if one is None or other is None:
            found.append(f"{name!r} is only {'theirs' if one is None else 'ours'}")
            continue
        if one.kind == "directory" and one.mtime_ns == 0:  # nothing described it
            one = one._replace(mtime_ns=other.mtime_ns, mode=mode_of_parents)
            other = other._replace(mode=mode_of_parents)
        if one.kind == "directory" and other.mtime_ns >= BEGUN_NS:  # something was put into it since
            other = other._replace(mtime_ns=one.mtime_ns)
        for field in Node._fields:
            mine, their = getattr(one, field), getattr(other, field)
            if mine != their:
                found.append(f"{name!r}: {field} is {mine!r}, theirs {their!r}")
    return found


# -- the arena --------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What became of layers: the refusal's code, or nothing; seconds of the processor."""

    code: str
    seconds: float
    peak_mib: int


class Arena:
    """Use in a `with` statement.

    Args:
        place: a new directory.
        memory_mib: most memory of the unpacking process; 0 for no ceiling.
    """

    def __init__(self, place: Path, *, memory_mib: int = 0) -> None:
        self.place = place
        place.mkdir()
        self.root = place / "target"
        _furnish(place)
        command = [sys.executable, str(Path(__file__).resolve()), str(place), str(memory_mib)]
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
        )

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def unpack(self, layers: Sequence[bytes], **options: Any) -> Outcome:  # Any: fields of UnpackOptions
        """Unpack into the emptied target; fail when anything but the target is not as it was before."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(mode=0o755)
        os.utime(self.root, ns=(0, 0))
        self._restore()
        before = self.look()
        outcome = self._ask({"layers": [len(layer) for layer in layers], "options": options}, layers)
        assert self.look() == before, "something outside the target changed"
        return outcome

    def _restore(self) -> None:
        os.utime(self.place, ns=(0, 0))

    def _ask(self, request: dict[str, Any], layers: Sequence[bytes]) -> Outcome:
        assert self._process.stdin and self._process.stdout
        head = json.dumps(request).encode()
        self._process.stdin.write(_LENGTH.pack(len(head)) + head)
        for layer in layers:
            self._process.stdin.write(layer)
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the unpacker died: {self._process.wait()}"
        answer = json.loads(line)
        assert "escaped" not in answer, answer["escaped"]
        return Outcome(**answer)

    def look(self) -> dict[str, tuple[object, ...]]:
        """Everything that can be known of all files around the target; times of change tell what is put back."""
        seen: dict[str, tuple[object, ...]] = {}
        for path in [*_walk(os.fsencode(self.place)), os.fsencode(self.place.parent)]:
            if path.startswith(os.fsencode(self.root)):
                continue
            status = os.lstat(path)
            seen[os.fsdecode(path)] = (
                *(status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_rdev),
                *(status.st_mtime_ns, status.st_ctime_ns),
                *((status.st_size,) if not stat.S_ISDIR(status.st_mode) else ()),
                _content(path, status.st_mode),
                _attributes(path),
            )
        return seen


def _furnish(place: Path) -> None:
    """Make what an attacker would like to change."""
    for name in ("etc", "folder", "folder/sub", "proc", "proc/self", "tmp", "dev"):
        (place / name).mkdir()
    for name in ("secret", "etc/passwd", "folder/file", "folder/sub/file", "file", "tmp/file", "dev/null"):
        (place / name).write_text("outside", encoding="ascii")
    os.chmod(place / "etc/passwd", 0o600)
    os.link(place / "secret", place / "folder" / "second-name")
    (place / "link").symlink_to("folder")
    os.mkfifo(place / "pipe")


def _work(place: str, memory_mib: int) -> None:
    """The unpacking process: requests in, one line of JSON out for each."""
    import encodings.idna  # noqa: F401  # nothing can be imported behind the chroot

    os.chroot(place)
    os.chdir("/")
    if memory_mib:
        resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20, memory_mib << 20))
    while head := sys.stdin.buffer.read(_LENGTH.size):
        request = json.loads(sys.stdin.buffer.read(_LENGTH.unpack(head)[0]))
        layers = [sys.stdin.buffer.read(length) for length in request["layers"]]
        options = {"ownership": True, "devices": "skip below dev", **request["options"]}
        options["devices"] = DeviceNodes(options["devices"])
        signal.alarm(SECONDS)
        begun = time.process_time()  # other work on the machine is not the layer's fault
        answer: dict[str, object]
        try:
            code = ""
            with RootDirectory("/target") as root:
                unpacker = LayerUnpacker(root, UnpackOptions(**options))
                for layer in layers:
                    unpacker.apply(layer[i : i + _PIECE] for i in range(0, len(layer), _PIECE))
        except CloisterError as err:
            code = err.code
        except BaseException as err:
            print(json.dumps({"escaped": repr(err)}), flush=True)
            raise
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        answer = {"code": code, "seconds": time.process_time() - begun, "peak_mib": peak}
        signal.alarm(0)
        print(json.dumps(answer), flush=True)


# -- other readers ----------------------------------------------------------------------------------------------


class ReaderFailed(Exception):
    """Another reader does not take these layers; the text is what it says."""


def gnu_tar(place: Path, layers: Sequence[bytes]) -> dict[bytes, Node]:
    """Extract with GNU tar into the new directory `place` and return the tree."""
    place.mkdir(mode=0o755)
    _install_tar(place / _GNU)
    command = ["chroot", str(place), f"/{_GNU}/loader", "--library-path", f"/{_GNU}", f"/{_GNU}/tar", "-x", "-P", "-p"]
    command += [
        "--numeric-owner",
        "--same-owner",
        "--xattrs",
        "--xattrs-include=*",
    ]
    command += ["--delay-directory-restore", "-f", "-"]
    for layer in layers:
        done = subprocess.run(
            command, input=layer, capture_output=True, check=False, env={**os.environ, "LC_ALL": "C"}, umask=0o022
        )
        if done.returncode:
            raise ReaderFailed(done.stderr.decode(errors="replace"))
    return tree_of(place, without=_GNU)


def _install_tar(place: Path) -> None:
    """Put GNU tar, its libraries and their loader where a chroot finds them."""
    place.mkdir()
    tar = shutil.which("tar")
    if tar is None:
        pytest.skip("GNU tar is not on PATH")
    shutil.copy(tar, place / "tar")
    for line in subprocess.run(["ldd", tar], capture_output=True, text=True, check=True).stdout.splitlines():
        words = line.split()
        path = next((word for word in words if word.startswith("/")), "")
        if path:
            name = Path(path).name
            shutil.copy(path, place / ("loader" if name.startswith("ld-linux") else name))


def umoci_unpack(umoci: str, place: Path, layers: Sequence[bytes]) -> dict[bytes, Node]:
    """Unpack an image of these layers with umoci below the new directory `place` and return the tree."""
    place.mkdir()
    layout = OCILayout(place / "layout", create=True)
    blobs = [layout.write_blob([layer]) for layer in layers]
    config = encode_document(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [str(digest) for digest, _ in blobs]},
        }
    )
    layout.write_blob([config])
    media_type = "application/vnd.oci.image.layer.v1.tar"
    manifest = encode_document(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": str(Digest.of(config)), "size": len(config)},
            "layers": [{"mediaType": media_type, "digest": str(digest), "size": size} for digest, size in blobs],
        }
    )
    layout.write_manifest(manifest, OCI_MANIFEST, "v1")
    command = [umoci, "unpack", "--image", f"{place / 'layout'}:v1", str(place / "bundle")]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise ReaderFailed(done.stderr.decode(errors="replace"))
    return tree_of(place / "bundle" / "rootfs")


def remove(place: Path) -> None:
    """Remove a tree, or what there is of it."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(place)


if __name__ == "__main__":
    _work(sys.argv[1], int(sys.argv[2]))
