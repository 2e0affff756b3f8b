"""The pod-VM image is the same to the byte wherever, whenever and by whomever it is built; the cache believes nothing.

Two builds run side by side, from two copies of the sources in different directories: one as root in the year 2019,
one as a normal user in 2031, with other file times, file modes, umask, home, time zone, locale and hash seed. The date
is that of every program of the build, by the library of `faketime`. Neither has a network: packages come from the cache
that `cloister podvm build` filled.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import pty
import select
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from cloister.errors import CloisterError, Unavailable
from cloister.imagetool import podvm
from cloister.imagetool.podvm import PHASES, BuildRequest, PodVMBundle, inspect, load_bundle
from cloister.imagetool.podvm.bundle import FILES, MANIFEST_FILE, REFERENCE_FILE, ROOT
from cloister.sdk.bundle import build_bundle
from cloister.sdk.home import Home
from conformance.tools import cache_directory, skip_or_fail
from tampering import flipped

pytestmark = pytest.mark.tool

NOBODY = 65534
LOCKED_AWAY = 0o700
FAKETIME = "usr/lib/*/faketime/libfaketime.so.1"
# What runs in each copy: the builder of that copy, with the fake date handed on to the programs it starts.
DRIVER = """
import json, select, sys, time
from pathlib import Path
time.sleep = lambda seconds: select.select([], [], [], seconds)  # faketime's own sleep fails under Python
place, cache = Path(sys.argv[1]), Path(sys.argv[2])
sys.path[:0] = [str(place / "src"), str(place / "site")]
from cloister.imagetool.podvm import BuildRequest, build, runner
runner._PASSED_ON += ("LD_PRELOAD", "FAKETIME")
steps = []
request = BuildRequest(
    definition=place / "images/podvm.toml",
    cache=cache,
    progress=lambda phase, fraction: steps.append([phase, fraction]),
)
bundle = build(request)
again = build(request)
years = [time.localtime().tm_year, int(runner.run(["date", "+%Y"], seconds=10))]
print(json.dumps({"path": str(bundle.path), "cached": [bundle.cached, again.cached], "steps": steps,
                  "years": years, "source": sys.modules["cloister"].__file__}))
"""


@dataclass(frozen=True)
class Surroundings:
    """Everything about a build that must not show."""

    name: str
    root: bool
    year: int
    umask: int
    environment: dict[str, str]


BUILDS = (
    Surroundings("a", True, 2019, 0o077, {"TZ": "Pacific/Apia", "LC_ALL": "C", "PYTHONHASHSEED": "1"}),
    Surroundings("directory of b", False, 2031, 0o000, {"TZ": "UTC", "LC_ALL": "tr_TR.UTF-8", "PYTHONHASHSEED": "2"}),
)


@pytest.fixture(scope="module")
def built() -> PodVMBundle:
    """The image of this working tree in the shared cache."""
    try:
        bundle = build_bundle(Home(root=Path("/nonexistent"), cache=cache_directory()))
    except Unavailable as err:
        skip_or_fail(str(err))
    missing = [name for name in package_files(bundle) if not (cache_directory() / "downloads" / name).is_file()]
    if missing:
        skip_or_fail(f"the cache lacks packages of the image: {missing}")
    return bundle


def package_files(bundle: PodVMBundle) -> list[str]:
    return [f"{package.sha256}.deb" for package in inspect(bundle.path).manifest.packages]


@pytest.fixture(scope="module")
def places() -> Iterator[Path]:
    """A directory that every user reaches, which pytest's own is not."""
    directory = Path(tempfile.mkdtemp(prefix="cloister-test-podvm-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def reports(built: PodVMBundle, places: Path, repository_copy: Path) -> list[dict[str, object]]:
    """Build in both surroundings at once; return what each said."""
    preload = next(iter(sorted(Path("/").glob(FAKETIME))), None)
    if preload is None:
        skip_or_fail("libfaketime is not installed: run `tools/setup test-packages`")
    for surroundings in BUILDS:
        furnish(places / surroundings.name, built, repository_copy, surroundings)
    with concurrent.futures.ThreadPoolExecutor(len(BUILDS)) as pool:
        return list(pool.map(lambda item: build_in(places / item.name, item, preload), BUILDS))


@pytest.fixture(scope="module")
def repository_copy() -> Path:
    return Path(__file__).resolve().parents[2]


def furnish(place: Path, built: PodVMBundle, repository: Path, surroundings: Surroundings) -> None:
    """Copy sources, the builder's one library and the packages; give all of it strange times, modes and an owner."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(repository / "src/cloister", place / "src/cloister", ignore=ignored)
    shutil.copytree(repository / "images", place / "images", ignore=ignored)
    shutil.copytree(Path(msgspec.__file__).parent, place / "site/msgspec")
    (place / "cache/downloads").mkdir(parents=True)
    for name in package_files(built):
        shutil.copyfile(cache_directory() / "downloads" / name, place / "cache/downloads" / name)
    owned = os.geteuid() == 0 and not surroundings.root
    for number, path in enumerate([place, *sorted(place.rglob("*"))]):
        moment = (surroundings.year - 1990) * 31_557_600 + number * 7919
        path.chmod((0o700 if path.is_dir() or number % 2 else 0o600) | (0o077 & ~surroundings.umask))
        if owned:
            os.chown(path, NOBODY, NOBODY)
        os.utime(path, (moment, moment))


def build_in(place: Path, surroundings: Surroundings, preload: Path) -> dict[str, object]:
    am_root = os.geteuid() == 0
    command = [os.path.realpath(sys.executable), "-S", "-B", "-c", DRIVER, str(place), str(place / "cache")]
    if surroundings.root and not am_root:
        command = ["unshare", "--user", "--map-root-user", *command]
    drop = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if am_root and not surroundings.root else {}
    date = {"LD_PRELOAD": str(preload), "FAKETIME": f"@{surroundings.year}-02-03 04:05:06", "DONT_FAKE_MONOTONIC": "1"}
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(place / "nowhere"), **date, **surroundings.environment}
    done = subprocess.run(
        command, capture_output=True, timeout=400, umask=surroundings.umask, env=environment, cwd="/", **drop
    )
    assert done.returncode == 0, done.stderr.decode()
    return dict(json.loads(done.stdout))


def contents(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and bytes of every file below `directory`."""
    return {
        path.relative_to(directory).as_posix(): (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_two_builds_are_identical(reports: list[dict[str, object]], places: Path, built: PodVMBundle) -> None:
    first, second = (Path(str(report["path"])) for report in reports)
    assert first.is_relative_to(places / BUILDS[0].name) and second.is_relative_to(places / BUILDS[1].name)
    assert [report["years"] for report in reports] == [[2019, 2019], [2031, 2031]]
    assert first.name == second.name == built.key
    ours, theirs = contents(first), contents(second)
    assert set(ours) == set(theirs) == {*FILES, REFERENCE_FILE, MANIFEST_FILE}
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert [name for name, found in contents(built.path).items() if ours[name] != found] == []


def test_nothing_of_the_builder_is_in_the_image(reports: list[dict[str, object]], places: Path) -> None:
    """Neither a path of the build nor a name of its machine: what is the same twice by luck would show here."""
    for report, surroundings in zip(reports, BUILDS, strict=True):
        assert str(report["source"]).startswith(str(places / surroundings.name))
        for name, (_, data) in contents(Path(str(report["path"]))).items():
            assert str(places).encode() not in data, name
            assert b"cloister-podvm-" not in data, name
            assert b"site-packages" not in data or name == ROOT, name


def test_progress_is_told_phase_by_phase(reports: list[dict[str, object]]) -> None:
    for report in reports:
        steps = report["steps"]
        assert isinstance(steps, list)
        assert list(dict.fromkeys(phase for phase, _ in steps)) == list(PHASES)
        for phase in PHASES:
            fractions = [fraction for name, fraction in steps if name == phase]
            assert fractions[0] == 0.0 and fractions[-1] == 1.0 and fractions == sorted(fractions)


def test_the_second_build_is_a_look_up(reports: list[dict[str, object]], places: Path, repository_copy: Path) -> None:
    """Found by content, outside the tree; nothing of a build stays behind."""
    for report, surroundings in zip(reports, BUILDS, strict=True):
        assert report["cached"] == [False, True]
        store = places / surroundings.name / "cache/podvm"
        assert {path.name for path in store.iterdir()} == {Path(str(report["path"])).name, ".lock"}
    assert not cache_directory().is_relative_to(repository_copy)


# -- a cache that lies: a copy of the bundle and of the packages' names, where any attempt to build is seen ----------


@pytest.fixture
def sources(tmp_path: Path, repository_copy: Path) -> Path:
    shutil.copytree(
        repository_copy / "src/cloister", tmp_path / "cloister", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(repository_copy / "images", tmp_path / "images")
    return tmp_path


@pytest.fixture
def lying_cache(built: PodVMBundle, tmp_path: Path) -> Path:
    """The bundle is there; every package file holds other bytes."""
    cache = tmp_path / "cache"
    shutil.copytree(built.path, cache / "podvm" / built.key)
    (cache / "downloads").mkdir()
    for name in package_files(built):
        (cache / "downloads" / name).write_bytes(b"something else")
    return cache


def refused_build(request: BuildRequest) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        podvm.build(request)
    return caught.value


def test_a_package_that_is_not_the_locked_one_is_refused(sources: Path, lying_cache: Path, built: PodVMBundle) -> None:
    shutil.rmtree(lying_cache / "podvm")
    request = BuildRequest(definition=sources / "images/podvm.toml", cache=lying_cache, guest=sources / "cloister")
    error = refused_build(request)
    assert (error.code, error.path.split()[0]) == ("imagetool.apt.hash_mismatch", "busybox-static")
    assert error.expected in package_files(built)[0] and error.hint
    assert {path.name for path in (lying_cache / "podvm").iterdir()} == {".lock"}
    one = lying_cache / "downloads" / f"{error.expected}.deb"
    honest = (cache_directory() / "downloads" / one.name).read_bytes()
    one.write_bytes(flipped(honest))
    assert refused_build(request).path == error.path
    one.write_bytes(honest)
    assert refused_build(request).path != error.path


@pytest.mark.parametrize(
    "changed", ["cloister/guest/agent.py", "cloister/wire/limits.py", "images/podvm.lock", "images/podvm.toml"]
)
def test_each_input_changes_the_key(sources: Path, lying_cache: Path, built: PodVMBundle, changed: str) -> None:
    """With the same sources the bundle is found; with one byte more it would have to be built."""
    request = BuildRequest(definition=sources / "images/podvm.toml", cache=lying_cache, guest=sources / "cloister")
    found = podvm.build(request)
    assert found.cached and found.key == built.key
    with (sources / changed).open("ab") as file:
        file.write(b"# \n" if not changed.endswith(".lock") else b"zz-new 1 amd64 1 " + b"0" * 64 + b"\n")
    assert refused_build(request).code in {"imagetool.apt.hash_mismatch", "imagetool.lock.mismatch"}


def test_files_beside_the_guest_do_not_change_the_key(sources: Path, lying_cache: Path) -> None:
    """What is not in the image does not make it another one: the host's side may change freely."""
    request = BuildRequest(definition=sources / "images/podvm.toml", cache=lying_cache, guest=sources / "cloister")
    with (sources / "cloister/sdk/run.py").open("ab") as file:
        file.write(b"# more\n")
    assert podvm.build(request).cached


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found(lying_cache: Path, built: PodVMBundle, name: str) -> None:
    copy = lying_cache / "podvm" / built.key
    assert inspect(copy).bundle.reference == built.reference
    flip(copy / name)
    with pytest.raises(CloisterError) as caught:
        inspect(copy)
    assert (caught.value.code, caught.value.path) == ("imagetool.bundle.damaged", name)


def test_a_cut_or_missing_file_is_found_without_hashing(lying_cache: Path, built: PodVMBundle) -> None:
    copy = lying_cache / "podvm" / built.key
    os.truncate(copy / ROOT, 4096)
    with pytest.raises(CloisterError) as caught:
        load_bundle(copy)
    assert (caught.value.code, caught.value.path) == ("imagetool.bundle.damaged", ROOT)
    (copy / ROOT).unlink()
    with pytest.raises(CloisterError) as caught:
        load_bundle(copy)
    assert caught.value.code == "imagetool.bundle.damaged"


@pytest.mark.parametrize(
    ("file", "change", "code"),
    [
        (REFERENCE_FILE, {"version": 2}, "imagetool.bundle.version"),
        (REFERENCE_FILE, {"extra": 1}, "imagetool.bundle.malformed"),
        (REFERENCE_FILE, {"files": {}}, "imagetool.bundle.malformed"),
        (MANIFEST_FILE, {"key": "0" * 32}, "imagetool.bundle.malformed"),
        (MANIFEST_FILE, {"extra": 1}, "imagetool.bundle.malformed"),
    ],
)
def test_altered_statements_are_refused(
    lying_cache: Path, built: PodVMBundle, file: str, change: dict[str, object], code: str
) -> None:
    copy = lying_cache / "podvm" / built.key
    (copy / file).write_text(json.dumps({**json.loads((copy / file).read_bytes()), **change}))
    with pytest.raises(CloisterError) as caught:
        inspect(copy)
    assert caught.value.code == code


# -- the commands ---------------------------------------------------------------------------------------------------


def cli(cache: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "CLOISTER_CACHE": str(cache)}
    return subprocess.run([sys.executable, "-m", "cloister", "podvm", *words], capture_output=True, env=environment)


def test_build_command_finds_what_is_built(built: PodVMBundle) -> None:
    done = cli(cache_directory(), "build", "--output", "json")
    assert done.returncode == 0, done.stderr
    path = str(built.path.resolve())
    assert json.loads(done.stdout) == {"schema": 1, "path": path, "key": built.key, "cached": True}
    done = cli(cache_directory(), "build")
    assert done.returncode == 0 and done.stdout == b""
    for words in (path, "(cached)", built.reference.verity.root_hash, "next: cloister podvm inspect"):
        assert words.encode() in done.stderr


def test_inspect_command_shows_parts_and_registers(built: PodVMBundle) -> None:
    done = cli(cache_directory(), "inspect", str(built.path))
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    assert built.key in text and built.reference.verity.root_hash in text
    assert all(name in text for name in FILES)
    for entry in built.reference.common:
        assert all(f"{name} {value[:16]}.." in text for name, value in entry.registers.items())
    done = cli(cache_directory(), "inspect", "--output", "json")
    assert json.loads(done.stdout) == {"schema": 1, "reference": json.loads((built.path / REFERENCE_FILE).read_bytes())}


def test_inspect_command_refuses(lying_cache: Path, built: PodVMBundle, tmp_path: Path) -> None:
    copy = lying_cache / "podvm" / built.key
    flip(copy / ROOT)
    done = cli(lying_cache, "inspect")
    assert done.returncode == 1 and done.stdout == b""
    for words in (b"cloister: error: CLS-", b"imagetool.bundle.damaged", b"root.img", b"cloister: hint: "):
        assert words in done.stderr
    done = cli(lying_cache, "inspect", str(tmp_path))
    assert done.returncode == 3 and b"imagetool.bundle.missing" in done.stderr


def test_build_command_refuses_a_tampered_package_behind_its_bar(lying_cache: Path) -> None:
    """The bar is for people: it is there on a terminal, and not in a file."""
    shutil.rmtree(lying_cache / "podvm")
    done = cli(lying_cache, "build")
    assert done.returncode == 1 and b"imagetool.apt.hash_mismatch" in done.stderr
    assert b"pod-VM image: packages" not in done.stderr
    ours, theirs = pty.openpty()
    environment = {**os.environ, "CLOISTER_CACHE": str(lying_cache), "TERM": "xterm", "COLUMNS": "120"}
    command = [sys.executable, "-m", "cloister", "podvm", "build"]
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, env=environment) as process:
        os.close(theirs)
        seen = read_terminal(ours)
        assert process.wait(60) == 1
    assert b"pod-VM image: packages" in seen and b"imagetool.apt.hash_mismatch" in seen


def read_terminal(ours: int) -> bytes:
    """Return what is written to a terminal until its other side is closed."""
    seen = b""
    try:
        while select.select([ours], [], [], 60)[0]:
            seen += os.read(ours, 65536)
    except OSError:  # EIO: the last writer left
        pass
    finally:
        os.close(ours)
    return seen
