"""Where tests find real external programs: one place, one order of search.

`find_tool("skopeo", minimum=(1, 18))` looks in `$CLOISTER_TOOLS`, then on `PATH`, then downloads the Debian trixie
package with its libraries through this machine's own apt configuration (same mirrors, same keyring, suite replaced)
into `$CLOISTER_CACHE/tools/<package>_<version>/` and runs it with the loader and libraries of that package set, so
that nothing is installed and no root is needed. A machine where none of this works gives the exact reason: tests
skip with it, and fail with it where `CI` is set.

Downloaded packages are trusted as far as apt trusts them: the release file's signature under the Debian archive
keyring.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple, NoReturn

import pytest

SUITE: Final = "trixie"
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
APT_SECONDS: Final = 300


class ToolMissing(Exception):
    """A tool cannot be had on this machine; the text is the reason."""


def cache_directory() -> Path:
    """Return the cache of Cloister, outside the tree."""
    return Path(os.environ.get("CLOISTER_CACHE") or Path.home() / ".cache" / "cloister")


def require_tool(name: str, *, minimum: tuple[int, ...] = ()) -> str:
    """Return the path of tool `name`, or skip the test; where `CI` is set, fail it."""
    try:
        return find_tool(name, minimum=minimum)
    except ToolMissing as err:
        skip_or_fail(str(err))


def skip_or_fail(reason: str) -> NoReturn:
    """Skip with `reason`, or fail where `CI` is set: CI may not skip."""
    if os.environ.get("CI"):
        pytest.fail(f"needed in CI: {reason}", pytrace=False)
    pytest.skip(reason)


@functools.cache
def find_tool(name: str, *, minimum: tuple[int, ...] = ()) -> str:
    """Return the path of a program of at least version `minimum`.

    Raises:
        ToolMissing: with the exact reason.
    """
    looked = []
    for place in (os.environ.get("CLOISTER_TOOLS"), None):
        found = shutil.which(name, path=place) if place else shutil.which(name)
        if found is None:
            continue
        have = tool_version(found)
        if have >= minimum:
            return found
        looked.append(f"{found} is {'.'.join(map(str, have))}")
    if not minimum and shutil.which("apt-get") is None:
        raise ToolMissing(f"{name} is not on PATH and this machine has no apt")
    try:
        found = install_from_suite(name)
    except (OSError, subprocess.SubprocessError, ToolMissing) as err:
        detail = getattr(err, "stderr", "") or ""
        raise ToolMissing(f"{name} {minimum}: {'; '.join(looked) or 'not on PATH'}; {err} {detail}".strip()) from err
    if tool_version(found) < minimum:
        raise ToolMissing(f"{name} of {SUITE} is older than {minimum}")
    return found


def tool_version(program: str) -> tuple[int, ...]:
    """Return the first dotted number that `program` prints for its version, or nothing."""
    for argument in ("--version", "version"):
        result = subprocess.run([program, argument], capture_output=True, text=True, timeout=60, check=False)
        match = re.search(r"\bv?(\d+(?:\.\d+)+)", result.stdout + result.stderr)
        if result.returncode == 0 and match:
            return tuple(int(part) for part in match.group(1).split("."))
    return ()


class GoTool(NamedTuple):
    """A Go command and what its environment needs."""

    program: str
    environment: dict[str, str]


def require_go(*, minimum: tuple[int, ...]) -> GoTool:
    """Return a Go of at least version `minimum`, or skip the test; where `CI` is set, fail it."""
    for place in (None, "/usr/local/go/bin", "/usr/lib/go/bin"):
        found = shutil.which("go", path=place)
        if found is None:
            continue
        said = subprocess.run([found, "env", "GOVERSION"], capture_output=True, text=True, timeout=60, check=False)
        if tuple(int(part) for part in re.findall(r"\d+", said.stdout)) >= minimum:
            return GoTool(found, {})
    try:
        launcher = Path(install_from_suite("golang-1.24-go", program="usr/lib/go-1.24/bin/go"))
    except (OSError, subprocess.SubprocessError, ToolMissing) as err:
        skip_or_fail(f"go {minimum}: {err}")
    return GoTool(str(launcher), {"GOROOT": str(launcher.parents[1] / "root" / "usr/lib/go-1.24")})


def require_go_program(module: str, version: str, package: str = ".") -> str:
    """Return a program built from a Go module, once for this machine, or skip the test; where `CI` is set, fail it.

    Built in the module itself, so with the versions that its own `go.sum` names.

    Args:
        module: its path.
        version: of the module.
        package: the program's place in the module, as `./cmd/notation`.
    """
    name = PurePosixPath(module if package == "." else package).name
    program = cache_directory() / "tools" / f"{name}_{version}" / name
    if program.exists():
        return str(program)
    go = require_go(minimum=(1, 24))
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "", **go.environment}

    def run(*arguments: str, cwd: str | Path = "/") -> str:
        command = [go.program, *arguments]
        result = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        if result.returncode:
            skip_or_fail(f"go {' '.join(arguments)}: {(result.stderr + result.stdout).strip()[-300:]}")
        return result.stdout

    source = json.loads(run("mod", "download", "-json", f"{module}@{version}"))["Dir"]
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as staging:
        run("build", "-o", f"{staging}/{name}", package, cwd=source)
        Path(staging, name).rename(program)
    return str(program)


def install_from_suite(package: str, *, program: str = "") -> str:
    """Unpack `package` of the suite with its libraries into the cache and return the path of a launcher script.

    `program` is the file to launch where it is not `usr/bin/<package>`.
    """
    for known in sorted((cache_directory() / "tools").glob(f"{package}_*/bin/{package}")):
        return str(known)
    apt = _apt_options()
    _run(["apt-get", *apt, "update"])
    plan = _run(["apt-get", *apt, "install", "--no-install-recommends", "--simulate", package])
    versions = dict(re.findall(r"^Inst (\S+) \((\S+) ", plan, re.MULTILINE))
    if package not in versions:
        raise ToolMissing(f"{SUITE} has no package {package}")
    home = cache_directory() / "tools" / f"{package}_{versions[package].replace(':', '%3a')}"
    launcher = home / "bin" / package
    if launcher.exists():
        return str(launcher)
    staging = home.with_name(f"{home.name}.{os.getpid()}")
    (staging / "debs").mkdir(parents=True)
    _run(["apt-get", *apt, "download", *sorted(versions)], cwd=staging / "debs")
    for deb in sorted((staging / "debs").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(deb), str(staging / "root")])
    shutil.rmtree(staging / "debs")
    _write_launcher(staging, home, package, program or f"usr/bin/{package}")
    try:
        staging.rename(home)
    except OSError:
        shutil.rmtree(staging)  # another run was first
    return str(launcher)


def _write_launcher(staging: Path, home: Path, package: str, program: str) -> None:
    loader = next((staging / "root").glob("usr/lib/*/ld-linux-*.so.*"), None)
    root = home / "root"
    start = f'"{root}/{program}"'
    if loader is not None:  # a program linked statically, as Go's own, brings none
        libraries = root / loader.parent.relative_to(staging / "root")
        start = f'"{libraries}/{loader.name}" --library-path "{libraries}" {start}'
    script = staging / "bin" / package
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {start} "$@"\n', encoding="utf-8")
    script.chmod(0o755)


def _apt_options() -> list[str]:
    """Options that point apt at a private state with one source: this machine's Debian mirror, suite replaced."""
    if shutil.which("apt-get") is None or not Path(KEYRING).exists():
        raise ToolMissing("this machine has no apt with a Debian archive keyring")
    state = cache_directory() / "tools" / "apt"
    for name in ("lists/partial", "archives/partial"):
        (state / name).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    (state / "sources.list").write_text(f"deb [signed-by={KEYRING}] {debian_mirror()} {SUITE} main\n", encoding="utf-8")
    options = {
        "Dir::Etc::sourcelist": str(state / "sources.list"),
        "Dir::Etc::sourceparts": "-",
        "Dir::State": str(state),
        "Dir::State::status": str(state / "status"),
        "Dir::State::lists": str(state / "lists"),
        "Dir::Cache": str(state),
        "Dir::Cache::archives": str(state / "archives"),
        "APT::Sandbox::User": "root",
        "APT::Get::List-Cleanup": "false",
        "Acquire::Retries": "3",
    }
    return ["-q", "-y", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]


def debian_mirror() -> str:
    """Return the mirror that this machine's apt uses for Debian itself.

    Raises:
        ToolMissing: apt is configured with none.
    """
    lines = _run(
        ["apt-get", "indextargets", "--format", "$(SITE)|$(REPO_URI)|$(ORIGIN)|$(SUITE)|$(COMPONENT)"]
    ).splitlines()
    for line in lines:
        _, uri, origin, suite, component = (line + "||||").split("|")[:5]
        if origin == "Debian" and component == "main" and "security" not in suite and "-updates" not in suite:
            return uri.rstrip("/")
    raise ToolMissing("apt on this machine has no Debian source")


def _run(command: Sequence[str], *, cwd: Path | None = None) -> str:
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=APT_SECONDS,
        check=False,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C"},
    )
    if result.returncode:
        raise ToolMissing(f"{' '.join(command[:2])} .. gave {result.returncode}: {result.stderr.strip()[-300:]}")
    return result.stdout


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        print(wanted, find_tool(wanted, minimum=(1, 18) if wanted == "skopeo" else ()))
