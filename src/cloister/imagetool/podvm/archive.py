"""Getting packages: a private apt that neither touches nor needs the one of this machine to be up to date.

The mirror is the one this machine's apt is configured for, the suite is the definition's. Trust: apt checks the
release files under the Debian archive keyring when the lock is *written*; when the lock is *used*, the only thing
that counts is the SHA-256 in the lock, so mirror, network and cache may be hostile. Runs as any user.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from cloister.errors import Refused, Unavailable
from cloister.imagetool.podvm.definition import Definition, PackageRule, matches
from cloister.imagetool.podvm.lock import LockedPackage
from cloister.imagetool.podvm.runner import run

KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_UPDATE_SECONDS: Final = 300
_DOWNLOAD_SECONDS: Final = 600
_QUERY_SECONDS: Final = 60
_SOURCE_LINE: Final = re.compile(r"^'(?P<base>[^']+?)/?dists/(?P<suite>[^']+)/InRelease' ")
_DEBIAN_SUITES: Final = re.compile(
    r"(bullseye|bookworm|trixie|forky|sid|oldoldstable|oldstable|stable|testing|unstable)(-security)?"
)
_LOCK_HINT: Final = "write a new lock from what the mirror has now: `cloister podvm lock`"

Progress = Callable[[float], None]


class PackageArchive:
    """A private apt state below `cache/apt/<suite>` and a store of downloads by hash below `cache/downloads`."""

    def __init__(self, cache: Path, definition: Definition) -> None:
        """Prepare for one definition; nothing is fetched yet."""
        self._definition = definition
        self._downloads = cache / "downloads"
        self._state = cache / "apt" / definition.suite

    def resolve(self) -> tuple[LockedPackage, ...]:
        """Return the newest version of every package of the definition that the mirror has now.

        Raises:
            Unavailable: no apt, no keyring, mirror not reachable, or a package is not there (`imagetool.apt.*`).
        """
        self._update()
        names = [self._real_name(rule) for rule in self._definition.package]
        records = _records(self._query("apt-cache", "show", "--no-all-versions", *names))
        return tuple(_locked(name, records) for name in sorted(names))

    def fetch(self, packages: Sequence[LockedPackage], progress: Progress) -> dict[str, Path]:
        """Return the verified package files by name, downloading those not stored yet.

        Raises:
            Refused: downloaded bytes are not the locked ones (`imagetool.apt.hash_mismatch`).
            Unavailable: the mirror no longer has a locked version (`imagetool.apt.version_gone`), or is not reachable.
        """
        self._downloads.mkdir(parents=True, exist_ok=True)
        missing = [package for package in packages if not self._stored(package).is_file()]
        if missing:
            self._download(missing, progress)
        progress(1.0)
        for package in packages:
            check_package_file(package, self._stored(package))
        return {package.name: self._stored(package) for package in packages}

    def _stored(self, package: LockedPackage) -> Path:
        return self._downloads / f"{package.sha256}.deb"

    def _download(self, packages: Sequence[LockedPackage], progress: Progress) -> None:
        if not (self._state / "lists" / "lock").exists():
            self._update()
        folder = self._downloads / f".partial-{os.getpid()}"
        folder.mkdir()
        try:
            self._download_into(folder, packages, progress)
        finally:
            shutil.rmtree(folder)

    def _download_into(self, folder: Path, packages: Sequence[LockedPackage], progress: Progress) -> None:
        wanted = [f"{package.name}={package.version}" for package in packages]
        progress(0.1)
        try:
            self._apt("apt-get", "download", *wanted, cwd=folder, seconds=_DOWNLOAD_SECONDS)
        except Unavailable:
            self._update()  # the stored package lists may be older than the mirror
            try:
                self._apt("apt-get", "download", *wanted, cwd=folder, seconds=_DOWNLOAD_SECONDS)
            except Unavailable as err:
                raise Unavailable(
                    "imagetool.apt.version_gone",
                    f"the mirror does not have a locked version: {err.message}",
                    hint=_LOCK_HINT,
                ) from err
        for package in packages:
            store_package(package, _downloaded(folder, package), self._stored(package))

    def _real_name(self, rule: PackageRule) -> str:
        if not rule.follow:
            return rule.name
        depends = self._query("apt-cache", "depends", "--important", "--no-recommends", rule.follow)
        names = {line.split()[-1] for line in depends.splitlines() if line.strip().startswith("Depends:")}
        found = [name for name in names if matches(name, rule.name)]
        if len(found) != 1:
            raise Unavailable(
                "imagetool.apt.not_found",
                "metapackage does not lead to one package",
                path=rule.follow,
                actual=str(found),
            )
        return found[0]

    def _update(self) -> None:
        if not KEYRING.is_file():
            raise Unavailable(
                "imagetool.apt.keyring",
                "this machine has no Debian archive keyring",
                expected=str(KEYRING),
                hint="install the package debian-archive-keyring",
            )
        for name in ("lists/partial", "archives/partial"):
            (self._state / name).mkdir(parents=True, exist_ok=True)
        (self._state / "status").touch()
        sources = "".join(f"deb [signed-by={KEYRING}] {line} main\n" for line in self._sources())
        (self._state / "sources.list").write_text(sources, encoding="utf-8")
        self._apt("apt-get", "update", seconds=_UPDATE_SECONDS)

    def _sources(self) -> list[str]:
        """Return `mirror suite` for the suite, its updates, and its security updates where the machine has them."""
        self._state.mkdir(parents=True, exist_ok=True)
        lists = self._state / "machine-lists"  # empty: the URIs come from the sources alone
        printed = run(
            ["apt-get", "--print-uris", "-o", f"Dir::State::lists={lists}", "-o", "Debug::NoLocking=true", "update"],
            seconds=_QUERY_SECONDS,
        ).decode(errors="replace")
        mirrors = debian_mirrors(printed)
        suite = self._definition.suite
        plain, security = mirrors
        lines = [f"{plain} {suite}", f"{plain} {suite}-updates"]
        return [*lines, f"{security} {suite}-security"] if security else lines

    def _query(self, tool: str, *arguments: str) -> str:
        return self._apt(tool, *arguments, seconds=_QUERY_SECONDS).decode(errors="replace")

    def _apt(self, tool: str, *arguments: str, seconds: int, cwd: Path | None = None) -> bytes:
        options = {
            "APT::Architecture": self._definition.architecture,
            "APT::Architectures": self._definition.architecture,
            "APT::Sandbox::User": "root",  # no second user: the files belong to whoever runs this
            "Acquire::Languages": "none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
            "Acquire::Retries": "3",
            "Dir::Cache": str(self._state),
            "Dir::Cache::archives": str(self._state / "archives"),
            "Dir::Etc::sourcelist": str(self._state / "sources.list"),
            "Dir::Etc::sourceparts": "-",
            "Dir::State": str(self._state),
            "Dir::State::lists": str(self._state / "lists"),
            "Dir::State::status": str(self._state / "status"),
        }
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return run([tool, "-q", *words, *arguments], seconds=seconds, cwd=cwd)


def debian_mirrors(printed: str) -> tuple[str, str]:
    """Return (Debian mirror, security mirror or nothing) from the output of `apt-get --print-uris update`.

    Raises:
        Unavailable: apt is configured with no Debian mirror (`imagetool.apt.no_mirror`).
    """
    plain = security = ""
    for line in printed.splitlines():
        match = _SOURCE_LINE.match(line)
        suite = _DEBIAN_SUITES.fullmatch(match["suite"]) if match else None
        if match is None or suite is None:
            continue
        if suite[2]:
            security = security or match["base"]
        else:
            plain = plain or match["base"]
    if not plain:
        raise Unavailable(
            "imagetool.apt.no_mirror",
            "apt on this machine is configured with no Debian mirror",
            hint="the pod-VM image is made of Debian packages: add a Debian source to /etc/apt/sources.list.d",
        )
    return plain, security


def store_package(package: LockedPackage, downloaded: Path, stored: Path) -> None:
    """Check `downloaded` against the lock and move it to its place in the store.

    Raises:
        Refused: the bytes are not the locked ones (`imagetool.apt.hash_mismatch`).
    """
    check_package_file(package, downloaded)
    downloaded.chmod(0o644)
    downloaded.replace(stored)


def check_package_file(package: LockedPackage, path: Path) -> None:
    """Compare size and SHA-256 of the file at `path` with the lock.

    Raises:
        Refused: they differ (`imagetool.apt.hash_mismatch`).
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != package.sha256 or path.stat().st_size != package.size:
        raise Refused(
            "imagetool.apt.hash_mismatch",
            "package is not the locked one",
            path=f"{package.name} {package.version}",
            expected=package.sha256,
            actual=digest.hexdigest(),
            hint=f"mirror or cache holds other bytes under this version; delete {path.name} from the cache and retry",
        )


def _downloaded(folder: Path, package: LockedPackage) -> Path:
    version = package.version.replace(":", "%3a")
    path = folder / f"{package.name}_{version}_{package.architecture}.deb"
    if not path.is_file():
        raise Unavailable(
            "imagetool.apt.version_gone", "apt downloaded something else", expected=path.name, hint=_LOCK_HINT
        )
    return path


def _records(text: str) -> list[dict[str, str]]:
    """Split the output of `apt-cache show` into records of single-line fields."""
    paragraphs = (paragraph.splitlines() for paragraph in text.split("\n\n"))
    return [dict(_fields(lines)) for lines in paragraphs if lines]


def _fields(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and not line.startswith(" "):
            yield name, value.strip()


def _locked(name: str, records: Sequence[dict[str, str]]) -> LockedPackage:
    for record in records:
        if record.get("Package") == name:
            return LockedPackage(
                name=name,
                version=record["Version"],
                architecture=record["Architecture"],
                size=int(record["Size"]),
                sha256=record["SHA256"],
            )
    raise Unavailable("imagetool.apt.not_found", "the mirror has no such package", path=name)
