"""Where to pull an image from: mirrors, other locations, blocked and insecure registries, as
containers-registries.conf(5) version 2 has them.

Read from `$CLOISTER_REGISTRIES_CONF` or `$CONTAINERS_REGISTRIES_CONF` alone if one is set; else from
`~/.config/containers/registries.conf`, else `/etc/containers/registries.conf`, each followed by its `.d/*.conf` in
order, where a later `[[registry]]` of the same prefix replaces the earlier. `token-services` is Cloister's own: origins
that may see the credentials of a registry beside itself. Short names are not searched: `redis` is Docker Hub's.

A mirror is trusted with nothing: bytes asked for by digest have it or are refused. A tag is what the mirror says it is,
as it is what the registry says; `mirror-by-digest-only` or `pull-from-mirror` keep tags with the registry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from cloister.errors import FormatRefused, ImageRefused, Unavailable
from cloister.oci.digest import Digest
from cloister.oci.distribution import RegistryClient
from cloister.oci.manifest import Descriptor
from cloister.oci.reference import OCIReference
from cloister.oci.session import CODE
from cloister.oci.store import StoredManifest
from cloister.wire.limits import MIB, REFERRERS
from cloister.wire.stricttoml import parse_toml

FILE_BYTES: Final = 1 * MIB
_T = TypeVar("_T")
_CODE: Final = "oci.mirrors"
_FILES: Final = 256
_REGISTRIES: Final = 1024
_MIRRORS: Final = 16
_PULLS: Final = ("all", "digest-only", "tag-only")
_KNOWN: Final = frozenset(
    {"prefix", "location", "insecure", "blocked", "mirror", "mirror-by-digest-only", "token-services"}
)
_KNOWN_OF_MIRROR: Final = frozenset({"location", "insecure", "pull-from-mirror"})


class Mirror(msgspec.Struct, frozen=True, kw_only=True):
    """Another place with the same content; `pulls` is `all`, `digest-only` or `tag-only`."""

    location: str
    insecure: bool
    pulls: str


class RegistryRule(msgspec.Struct, frozen=True, kw_only=True):
    """One `[[registry]]`: for references that begin with `prefix`."""

    prefix: str
    location: str
    insecure: bool
    blocked: bool
    mirrors: tuple[Mirror, ...]
    token_services: tuple[str, ...]


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A repository to pull from, and whether its certificate is not checked, or plain HTTP spoken."""

    reference: OCIReference
    insecure: bool
    mirror: bool
    token_services: tuple[str, ...] = ()


class RegistryRules(msgspec.Struct, frozen=True):
    """All rules, by prefix."""

    rules: Mapping[str, RegistryRule] = msgspec.field(default_factory=dict)

    def places(self, reference: OCIReference) -> tuple[Place, ...]:
        """Return where to ask for `reference`, in order; the last is the registry itself.

        Raises:
            ImageRefused: `oci.mirrors.blocked`, `oci.reference.malformed` where a rule makes no reference.
        """
        matching = [rule for rule in self.rules.values() if _matches(rule.prefix, reference.name)]
        if not matching:
            return (Place(reference=reference, insecure=False, mirror=False),)
        rule = max(matching, key=lambda rule: len(rule.prefix))
        if rule.blocked:
            raise ImageRefused(
                f"{_CODE}.blocked",
                "registry is blocked on this machine",
                path=reference.name,
                actual=rule.prefix,
                hint="see registries.conf",
            )
        by = "digest-only" if reference.digest is not None else "tag-only"
        mirrors = [
            Place(reference=_relocated(reference, rule.prefix, mirror.location), insecure=mirror.insecure, mirror=True)
            for mirror in rule.mirrors
            if mirror.pulls in ("all", by)
        ]
        own = Place(
            reference=_relocated(reference, rule.prefix, rule.location),
            insecure=rule.insecure,
            mirror=False,
            token_services=rule.token_services,
        )
        return (*mirrors, own)


class MirroredSource:
    """Reads from the first of several registries that has something, in order.

    What one serves is checked like any other source's: a mirror with other bytes is refused, not passed over in
    silence. One that cannot be reached, or has nothing, is passed over.

    Args:
        clients: mirrors first, the registry itself last.
    """

    code = CODE

    def __init__(self, clients: Sequence[RegistryClient]) -> None:
        self._clients = tuple(clients)

    def get_manifest(self, selector: str) -> StoredManifest | None:
        """Return the first that is served; see `ImageSource.get_manifest`."""
        return self._first(lambda client: client.get_manifest(selector))

    def referrers(self, digest: Digest) -> list[Descriptor] | None:
        """Return what all of them list together, or None where none has such a list by itself.

        A mirror seldom has the signatures of what it mirrors, and must not hide them.
        """
        found: list[Descriptor] | None = None
        unreachable: Unavailable | None = None
        for client in self._clients:
            try:
                listed = client.referrers(digest)
                if listed is not None:
                    found = [*(found or []), *islice(listed, REFERRERS + 1)]
            except Unavailable as err:
                unreachable = err
        if found is None and unreachable is not None:
            raise unreachable
        return found

    def stream_blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield a blob's bytes; where one registry breaks off, the next goes on behind them."""
        done = 0
        for client in self._clients[:-1]:
            try:
                for chunk in client.stream_blob(descriptor, start=done):
                    done += len(chunk)
                    yield chunk
                return
            except Unavailable:
                continue
            except ImageRefused as err:
                if err.code != f"{CODE}.blob_missing":
                    raise
        yield from self._clients[-1].stream_blob(descriptor, start=done)

    def _first(self, ask: Callable[[RegistryClient], _T | None]) -> _T | None:
        for client in self._clients[:-1]:
            try:
                found = ask(client)
            except Unavailable:
                continue
            if found is not None:
                return found
        return ask(self._clients[-1])


def rule_files(environment: Mapping[str, str], *, system: Path = Path("/etc/containers")) -> list[Path]:
    """Return the files to read, in order; those that are not there are left out."""
    for variable in ("CLOISTER_REGISTRIES_CONF", "CONTAINERS_REGISTRIES_CONF"):
        if environment.get(variable):
            return [Path(environment[variable])]
    config = Path(environment.get("XDG_CONFIG_HOME") or Path(environment.get("HOME") or "/") / ".config")
    own = config / "containers" / "registries.conf"
    main = own if own.is_file() else system / "registries.conf"
    files = [main] if main.is_file() else []
    for directory in (system / "registries.conf.d", config / "containers" / "registries.conf.d"):
        files += sorted(directory.glob("*.conf"))[:_FILES]
    return files


def read_rules(files: Sequence[Path]) -> RegistryRules:
    """Read and join files of rules.

    Raises:
        ImageRefused: as `parse_rules`.
        Unavailable: `oci.mirrors.unreadable`.
    """
    rules: dict[str, RegistryRule] = {}
    for path in files:
        try:
            with path.open("rb") as file:
                raw = file.read(FILE_BYTES + 1)
        except OSError as err:
            raise Unavailable(
                f"{_CODE}.unreadable", "cannot read a file of registries", path=str(path), actual=str(err.strerror)
            ) from err
        rules |= parse_rules(raw, path=str(path)).rules
    return RegistryRules(rules)


def parse_rules(raw: bytes, *, path: str = "") -> RegistryRules:
    """Parse one file; members of other tables than `[[registry]]` are other tools' and not looked at.

    Raises:
        ImageRefused: `oci.mirrors.malformed`, `oci.mirrors.version`.
    """
    try:
        top = parse_toml(raw, ceiling=FILE_BYTES, code=f"{_CODE}.malformed", path=path)
    except FormatRefused as err:
        raise ImageRefused(f"{_CODE}.malformed", err.message, path=path) from err
    if isinstance(top.get("registries"), dict):
        raise ImageRefused(
            f"{_CODE}.version", "file is of version 1, which nobody writes any more", path=path, expected="[[registry]]"
        )
    rules = {}
    for number, table in enumerate(_tables(top, "registry", _REGISTRIES, path)):
        rule = _rule(table, f"{path}: registry[{number}]")
        rules[rule.prefix] = rule
    return RegistryRules(rules)


def _rule(table: Mapping[str, Any], place: str) -> RegistryRule:  # Any: TOML values
    _require_known(table, _KNOWN, place)
    location, prefix = _text(table, "location", place), _text(table, "prefix", place)
    wildcard = prefix.startswith("*.")
    if not (location or prefix) or (wildcard and location) or "*" in prefix.removeprefix("*."):
        raise _malformed(place, "a prefix, a location, or both; a wildcard prefix stands alone")
    digest_only = _flag(table, "mirror-by-digest-only", place)
    mirrors = []
    for number, item in enumerate(_tables(table, "mirror", _MIRRORS, place)):
        where = f"{place}.mirror[{number}]"
        _require_known(item, _KNOWN_OF_MIRROR, where)
        pulls = _text(item, "pull-from-mirror", where) or ("digest-only" if digest_only else "all")
        if pulls not in _PULLS or not _text(item, "location", where):
            raise _malformed(where, "a location, and pull-from-mirror one of " + ", ".join(_PULLS))
        mirrors.append(Mirror(location=item["location"], insecure=_flag(item, "insecure", where), pulls=pulls))
    services = table.get("token-services", [])
    if not isinstance(services, list) or not all(
        isinstance(item, str) and re.fullmatch(r"https://[^/@\s]{1,255}", item) for item in services
    ):
        raise _malformed(place, "token-services are origins: https://HOST[:PORT]")
    return RegistryRule(
        prefix=prefix or location,
        location=location or ("" if wildcard else prefix),
        insecure=_flag(table, "insecure", place),
        blocked=_flag(table, "blocked", place),
        mirrors=tuple(mirrors),
        token_services=tuple(services),
    )


def _matches(prefix: str, name: str) -> bool:
    if prefix.startswith("*."):
        host = name.partition("/")[0].partition(":")[0]
        rest = prefix[1:]
        return host.endswith(rest.partition("/")[0]) and "/" not in rest
    return name == prefix or name.startswith(f"{prefix}/") or (":" not in prefix and name.startswith(f"{prefix}:"))


def _relocated(reference: OCIReference, prefix: str, location: str) -> OCIReference:
    """Put `location` where `prefix` stands in the name of `reference`."""
    if not location:
        return reference
    rest = "" if prefix.startswith("*.") else reference.name.removeprefix(prefix)
    if prefix.startswith("*."):
        rest = f"/{reference.repository}"
    registry, _, repository = f"{location}{rest}".partition("/")
    return OCIReference(registry=registry, repository=repository, tag=reference.tag, digest=reference.digest)


def _tables(table: Mapping[str, Any], name: str, ceiling: int, place: str) -> list[dict[str, Any]]:  # Any: TOML values
    value = table.get(name, [])
    if not isinstance(value, list) or len(value) > ceiling or not all(isinstance(item, dict) for item in value):
        raise _malformed(place, f"[[{name}]], at most {ceiling}")
    return value


def _text(table: Mapping[str, Any], name: str, place: str) -> str:  # Any: TOML values
    value = table.get(name, "")
    if not isinstance(value, str):
        raise _malformed(place, f"{name} is a text")
    return value.rstrip("/")


def _flag(table: Mapping[str, Any], name: str, place: str) -> bool:  # Any: TOML values
    value = table.get(name, False)
    if not isinstance(value, bool):
        raise _malformed(place, f"{name} is true or false")
    return value


def _require_known(table: Mapping[str, Any], known: frozenset[str], place: str) -> None:  # Any: TOML values
    for name in table:
        if name not in known:
            raise _malformed(place, ", ".join(sorted(known)), name)


def _malformed(place: str, expected: str, actual: str = "") -> ImageRefused:
    return ImageRefused(
        f"{_CODE}.malformed", "not a rule about registries", path=place, expected=expected, actual=actual[:80]
    )
