"""Container images made without Cloister, for tests and for trying things out: umoci, mmdebstrap and Debian packages
only.

    python tests/images.py busybox layered redis     prints the layout of each and how long it took

Each is an OCI layout directory in `$CLOISTER_CACHE/test-images/<name>-<key>/`, tag `v1`, where the key is the hash
of the recipe: the same recipe is built once per machine, by root or by a normal user alike.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from conformance.tools import cache_directory, debian_mirror

TAG: Final = "v1"
SUITE: Final = "bookworm"
BUILD_SECONDS: Final = 540
EPOCH: Final = "1700000000"

Recipe = Callable[[Path, Path], None]


class BuildFailed(Exception):
    """An image cannot be made on this machine; the text says why."""


def busybox_image() -> Path:
    """Return the layout of a one-layer image: Debian's static busybox with a link per applet, `CMD ["sh"]`."""
    return _cached(_build_busybox)


def layered_image() -> Path:
    """Return the layout of a four-layer image.

    User `app` (1000:1000), `ENTRYPOINT ["/app/entry.sh"]`, `CMD ["hello", "world"]`, `ENV APP_MODE=layered`, working
    directory `/app/data`; its third layer changes a file of the second and hides another, by whiteouts that umoci
    wrote.
    """
    return _cached(_build_layered, busybox_image)


def redis_image() -> Path:
    """Return the layout of Debian's own redis-server, installed by mmdebstrap: one layer, device nodes and all.

    User `redis`, `ENTRYPOINT ["/usr/bin/redis-server"]`, listening on all addresses without persistence.
    """
    return _cached(_build_redis)


IMAGES: Final[dict[str, Callable[[], Path]]] = {
    "busybox": busybox_image,
    "layered": layered_image,
    "redis": redis_image,
}


def _build_busybox(layout: Path, work: Path) -> None:
    _run(["apt-get", "download", "-q", "busybox-static"], cwd=work)
    (package,) = work.glob("busybox-static_*.deb")
    _run(["dpkg-deb", "-x", str(package), str(work / "package")])
    (binary,) = (path for path in (work / "package").rglob("busybox") if path.is_file() and os.access(path, os.X_OK))
    applets = [name for name in _run([str(binary), "--list"]).split() if name != "busybox"]
    with _LayerTar(work / "layer.tar") as layer:
        for directory in ("bin", "etc", "home", "proc", "root", "sys", "dev", "var", "run"):
            layer.directory(directory)
        layer.directory("tmp", mode=0o1777)
        layer.file("bin/busybox", binary.read_bytes(), mode=0o755)
        layer.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
        layer.file("etc/group", b"root:x:0:\n")
        for applet in applets:
            layer.hard_link(f"bin/{applet}", "bin/busybox")
    _new_image(layout)
    _run(["umoci", "raw", "add-layer", "--image", f"{layout}:{TAG}", str(work / "layer.tar")])
    _configure(layout, "--config.cmd", "sh", "--config.env", "PATH=/bin")


def _build_layered(layout: Path, work: Path) -> None:
    shutil.copytree(busybox_image(), layout, dirs_exist_ok=True)
    image = f"{layout}:{TAG}"
    with _LayerTar(work / "app.tar") as layer:
        layer.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/app:/bin/sh\n")
        layer.file("etc/group", b"root:x:0:\napp:x:1000:\n")
        layer.directory("app", owner=1000)
        layer.directory("app/data", owner=1000)
        layer.file("app/data/old.txt", b"to be hidden\n", owner=1000)
        layer.file("app/data/greeting.txt", b"first\n", owner=1000)
        layer.symlink("app/data/link", "/etc/passwd")
    _run(["umoci", "raw", "add-layer", "--image", image, str(work / "app.tar")])
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    _run(["umoci", "unpack", *rootless, "--image", image, str(work / "bundle")])
    data = work / "bundle" / "rootfs" / "app" / "data"
    (data / "old.txt").unlink()
    (data / "greeting.txt").write_text("changed by the third layer\n", encoding="ascii")
    _run(["umoci", "repack", "--image", image, str(work / "bundle")])
    with _LayerTar(work / "entry.tar") as layer:
        script = b'#!/bin/sh\necho "uid=$(id -u) gid=$(id -g) cwd=$(pwd) mode=$APP_MODE args=$*"\ncat greeting.txt\n'
        layer.file("app/entry.sh", script, mode=0o755, owner=1000)
    _run(["umoci", "raw", "add-layer", "--image", image, str(work / "entry.tar")])
    _configure(
        layout,
        *("--config.user", "app"),
        *("--config.entrypoint", "/app/entry.sh"),
        *("--config.cmd", "hello", "--config.cmd", "world"),
        *("--config.env", "APP_MODE=layered"),
        *("--config.workingdir", "/app/data"),
    )


def _build_redis(layout: Path, work: Path) -> None:
    _run(
        [
            *("mmdebstrap", "--mode=root" if os.geteuid() == 0 else "--mode=unshare"),
            *("--variant=essential", "--include=redis-server", "--components=main", "--architectures=amd64"),
            *("--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"),
            *("--dpkgopt=path-exclude=/usr/share/locale/*", '--aptopt=APT::Sandbox::User "root"'),
            *(SUITE, str(work / "layer.tar"), debian_mirror()),
        ]
    )
    _new_image(layout)
    _run(["umoci", "raw", "add-layer", "--image", f"{layout}:{TAG}", str(work / "layer.tar")])
    _configure(
        layout,
        *("--config.user", "redis"),
        *("--config.entrypoint", "/usr/bin/redis-server"),
        *(
            "--config.cmd",
            "--bind",
            "--config.cmd",
            "0.0.0.0",  # noqa: S104  # the pod's own network
            "--config.cmd",
            "--protected-mode",
            "--config.cmd",
            "no",
        ),
        *("--config.cmd", "--save", "--config.cmd", "", "--config.cmd", "--dir", "--config.cmd", "/var/lib/redis"),
        *("--config.env", "PATH=/usr/local/bin:/usr/bin:/bin"),
        *("--config.workingdir", "/var/lib/redis"),
        *("--config.exposedports", "6379/tcp"),
    )


def _new_image(layout: Path) -> None:
    _run(["umoci", "init", "--layout", str(layout)])
    _run(["umoci", "new", "--image", f"{layout}:{TAG}"])


def _configure(layout: Path, *options: str) -> None:
    _run(["umoci", "config", "--image", f"{layout}:{TAG}", *options])
    _run(["umoci", "gc", "--layout", str(layout)])


class _LayerTar:
    """Writes a layer archive with fixed times."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115  # closed on exit

    def __enter__(self) -> _LayerTar:
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    def directory(self, name: str, *, mode: int = 0o755, owner: int = 0) -> None:
        self._add(name, tarfile.DIRTYPE, mode, owner)

    def file(self, name: str, content: bytes, *, mode: int = 0o644, owner: int = 0) -> None:
        import io

        self._add(name, tarfile.REGTYPE, mode, owner, content=io.BytesIO(content), size=len(content))

    def symlink(self, name: str, target: str) -> None:
        self._add(name, tarfile.SYMTYPE, 0o777, 0, link=target)

    def hard_link(self, name: str, target: str) -> None:
        self._add(name, tarfile.LNKTYPE, 0o755, 0, link=target)

    def _add(
        self, name: str, kind: bytes, mode: int, owner: int, *, link: str = "", content: object = None, size: int = 0
    ) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.linkname, info.size = kind, mode, link, size
        info.uid = info.gid = owner
        info.mtime = int(EPOCH)
        self._tar.addfile(info, content)  # type: ignore[arg-type]  # a BytesIO or None


def _cached(build: Recipe, *inputs: Callable[[], Path]) -> Path:
    """Return the layout that `build` makes, from the cache if the same recipe ran before."""
    recipe = inspect.getsource(build) + inspect.getsource(_LayerTar) + inspect.getsource(_configure) + EPOCH + SUITE
    key = hashlib.sha256((recipe + "".join(source().name for source in inputs)).encode()).hexdigest()[:16]
    name = build.__name__.removeprefix("_build_")
    home = cache_directory() / "test-images"
    home.mkdir(parents=True, exist_ok=True)
    target = home / f"{name}-{key}"
    with (home / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            work = home / f".{name}-{os.getpid()}"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            try:
                build(work / "layout", work)
                (work / "layout").rename(target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return target


def _run(command: Sequence[str], *, cwd: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": EPOCH}
    environment["PATH"] += ":/usr/sbin:/sbin"
    try:
        result = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
        )
    except FileNotFoundError as err:
        raise BuildFailed(f"{command[0]} is not installed: run `tools/setup test-packages`") from err
    if result.returncode:
        raise BuildFailed(f"{' '.join(command[:3])} .. gave {result.returncode}: {result.stderr.strip()[-500:]}")
    return result.stdout


if __name__ == "__main__":
    for wanted in sys.argv[1:] or IMAGES:
        started = time.monotonic()
        print(f"{IMAGES[wanted]()}:{TAG} {time.monotonic() - started:.1f} s")
