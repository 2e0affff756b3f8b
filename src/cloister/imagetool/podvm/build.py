"""From definition, lock and guest sources to a bundle: the numbered steps, and nothing but orchestration.

1 key: hash of everything that goes in; a bundle under this key ends the build. 2 packages: fetched, checked against
the lock. 3 contents: files sorted into root, initrd and tools as the definition says. 4 byte code. 5 root: EROFS and
hash tree. 6 initrd. 7 unified kernel image. 8 reference values. 9 one atomic rename into the cache.

Runs as any user. Two builds into one cache wait for each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import cloister
from cloister.errors import Unavailable
from cloister.imagetool.podvm import bundle as names
from cloister.imagetool.podvm.archive import PackageArchive
from cloister.imagetool.podvm.bundle import Manifest, PackageRecord, PodVMBundle, load_bundle
from cloister.imagetool.podvm.bytecode import compile_tree
from cloister.imagetool.podvm.contents import check_read_ahead, collect_contents, rule_packages
from cloister.imagetool.podvm.definition import DEFINITION_BYTES, Definition, lock_of, parse_definition
from cloister.imagetool.podvm.erofs import build_erofs
from cloister.imagetool.podvm.guestcode import GuestSource, read_guest_source
from cloister.imagetool.podvm.initrd import build_initrd
from cloister.imagetool.podvm.lock import LockedPackage, encode_lock, parse_lock
from cloister.imagetool.podvm.reference import describe
from cloister.imagetool.podvm.tree import Tree
from cloister.imagetool.podvm.uki import UKIParts, build_uki
from cloister.oci.dmverity import build_verity_tree
from cloister.wholefile import READABLE, write_whole
from cloister.wire.canonicaljson import encode_canonical

Progress = Callable[[str, float], None]
PHASES: Final = ("packages", "unpack", "compile", "root", "initrd", "uki", "reference")
_OWN_CODE: Final = (
    "imagetool",
    "oci/dmverity.py",
    "protocol/launch.py",
    "rats/reference.py",
    "wire/canonicaljson.py",
)


def _silent(phase: str, fraction: float) -> None:
    """Take progress and do nothing with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What to build.

    Attributes:
        definition: the definition file; its lock lies beside it.
        cache: where downloads and bundles are kept.
        guest: folder of the `cloister` package whose guest code goes into the image.
        progress: called with a phase of `PHASES` and the fraction of it that is done.
    """

    definition: Path
    cache: Path
    guest: Path = field(default_factory=lambda: Path(cloister.__file__).parent)
    progress: Progress = _silent


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    """Everything that decides the bytes of the bundle."""

    definition: Definition
    definition_digest: str
    own_files: str
    lock: tuple[LockedPackage, ...]
    lock_digest: str
    guest: GuestSource
    builder: str

    def key(self) -> str:
        parts = {
            "definition": self.definition_digest,
            "own_files": self.own_files,
            "lock": self.lock_digest,
            "guest": self.guest.digest(),
            "builder": self.builder,
        }
        return hashlib.sha256(encode_canonical(parts)).hexdigest()[:32]


def build(request: BuildRequest) -> PodVMBundle:
    """Return the bundle for `request`, from the cache when its inputs were built before.

    Raises:
        Refused: definition, lock, sources or a package are not what they must be.
        Unavailable: a package, a tool or the cache cannot be reached.
    """
    inputs = _read_inputs(request)
    store = request.cache / names.FOLDER
    final = store / inputs.key()
    if (final / names.REFERENCE_FILE).is_file():
        return load_bundle(final)
    with _exclusive(store):
        if (final / names.REFERENCE_FILE).is_file():  # another build was first
            return load_bundle(final)
        with _staging(store) as stage:
            clock = _PhaseClock(request.progress)
            _build_into(stage, request, inputs, clock)
            if final.exists():
                shutil.rmtree(final)  # no reference.json: not a bundle
            stage.replace(final)
    bundle = load_bundle(final)
    return PodVMBundle(path=bundle.path, reference=bundle.reference, cached=False, phase_seconds=clock.finished())


def lock(request: BuildRequest) -> tuple[LockedPackage, ...]:
    """Write a new lock beside the definition from what this machine's mirror has now, and return it.

    Raises:
        Unavailable: the mirror cannot be reached or lacks a package (`imagetool.apt.*`).
        FormatRefused: the definition is malformed.
    """
    definition = parse_definition(_read(request.definition))
    packages = PackageArchive(request.cache, definition).resolve()
    rule_packages(definition, packages)
    write_whole(lock_of(request.definition), encode_lock(packages), mode=READABLE)
    return packages


def _build_into(stage: Path, request: BuildRequest, inputs: _Inputs, clock: _PhaseClock) -> None:
    definition = inputs.definition
    clock.begin("packages")
    locked = rule_packages(definition, inputs.lock)
    stored = PackageArchive(request.cache, definition).fetch(inputs.lock, clock.progress)
    clock.begin("unpack")
    packages = {rule: stored[package.name] for rule, package in locked.items()}
    contents = collect_contents(definition, request.definition.parent, packages, inputs.guest, clock.progress)
    clock.begin("compile")
    root = compile_tree(contents.root, definition.python)
    check_read_ahead(root, definition)
    clock.begin("root")
    image = build_erofs(root, definition, contents.tools)
    verity = build_verity_tree(image, salt=bytes.fromhex(definition.verity_salt))
    cmdline = f"{definition.kernel.cmdline} cloister.verity={verity.kernel_argument()}"
    clock.begin("initrd")
    initrd = build_initrd(
        contents.initrd,
        contents.release,
        contents.early_modules,
        contents.late_modules,
        mtime=definition.source_date_epoch,
    )
    clock.begin("uki")
    uki = build_uki(
        UKIParts(
            stub=contents.stub,
            cmdline=cmdline,
            kernel=contents.bundle[names.KERNEL],
            initrd=initrd,
        )
    )
    clock.begin("reference")
    made = {
        **contents.bundle,
        names.CMDLINE: cmdline.encode(),
        names.INITRD: initrd,
        names.ROOT: image + verity.hashes,
        names.UKI: uki,
    }
    reference = describe(inputs.key(), made, definition, cmdline=cmdline, verity=verity)
    manifest = _manifest(inputs, root, contents.initrd)
    made[names.MANIFEST_FILE] = names.encode_json(manifest)
    made[names.REFERENCE_FILE] = names.encode_json(reference)
    _write(stage, made)


def _read_inputs(request: BuildRequest) -> _Inputs:
    folder = request.definition.parent
    text = _read(request.definition)
    definition = parse_definition(text)
    lock_text = _read(lock_of(request.definition))
    guest = definition.guest
    rules = (*definition.root.files, *definition.initrd.files, guest.start, guest.read_ahead)
    own_files = {rule.source: _digest(_read(folder / rule.source)) for rule in rules if rule.source}
    return _Inputs(
        definition=definition,
        definition_digest=_digest(text),
        own_files=_digest(encode_canonical(own_files)),
        lock=parse_lock(lock_text),
        lock_digest=_digest(lock_text),
        guest=read_guest_source(request.guest, definition.guest),
        builder=_builder_digest(),
    )


def _builder_digest() -> str:
    """Return the digest of the code that decides what a bundle looks like: the builder itself."""
    package = Path(cloister.__file__).parent
    found: dict[str, str] = {}
    for name in _OWN_CODE:
        place = package / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            found[path.relative_to(package).as_posix()] = _digest(path.read_bytes())
    return _digest(encode_canonical(found))


def _manifest(inputs: _Inputs, root: Tree, initrd: Tree) -> Manifest:
    return Manifest(
        version=names.VERSION,
        key=inputs.key(),
        definition=inputs.definition_digest,
        lock=inputs.lock_digest,
        guest=inputs.guest.digest(),
        builder=inputs.builder,
        packages=tuple(
            PackageRecord(name=p.name, version=p.version, architecture=p.architecture, sha256=p.sha256)
            for p in inputs.lock
        ),
        root={path: hashlib.sha256(node.data).hexdigest() for path, node in root.files()},
        initrd={path: hashlib.sha256(node.data).hexdigest() for path, node in initrd.files()},
    )


def _write(folder: Path, made: dict[str, bytes]) -> None:
    """Write the files with fixed modes, whatever the umask."""
    folder.chmod(0o755)
    for name, data in sorted(made.items()):
        path = folder / name
        if not path.parent.exists():
            path.parent.mkdir()
            path.parent.chmod(0o755)
        path.write_bytes(data)
        path.chmod(0o644)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(DEFINITION_BYTES * 4)
    except OSError as err:
        raise Unavailable("imagetool.podvm.unreadable", f"cannot be read: {err.strerror}", path=str(path)) from err


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@contextmanager
def _exclusive(store: Path) -> Iterator[None]:
    """Hold the store's lock; clear what a killed build left behind."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        handle = os.open(store / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as err:
        raise Unavailable(
            "imagetool.podvm.cache", f"the cache cannot be written: {err.strerror}", path=str(store)
        ) from err
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for left in store.glob(".staging-*"):
            shutil.rmtree(left)
        yield
    finally:
        os.close(handle)


@contextmanager
def _staging(store: Path) -> Iterator[Path]:
    """Yield a folder in the store that is gone afterwards unless it was renamed."""
    stage = Path(tempfile.mkdtemp(prefix=".staging-", dir=store))
    try:
        yield stage
    except OSError as err:
        raise Unavailable("imagetool.podvm.cache", f"the cache cannot be written: {err.strerror}") from err
    finally:
        if stage.exists():
            shutil.rmtree(stage)


class _PhaseClock:
    """Names the phase that runs, and how long each took."""

    def __init__(self, progress: Progress) -> None:
        self._report = progress
        self._times: list[tuple[str, float]] = []
        self._phase = ""
        self._since = 0.0

    def begin(self, phase: str) -> None:
        self._end()
        self._phase, self._since = phase, time.monotonic()
        self._report(phase, 0.0)

    def progress(self, fraction: float) -> None:
        self._report(self._phase, fraction)

    def finished(self) -> tuple[tuple[str, float], ...]:
        self._end()
        return tuple(self._times)

    def _end(self) -> None:
        if self._phase:
            self._times.append((self._phase, time.monotonic() - self._since))
            self._report(self._phase, 1.0)
            self._phase = ""
