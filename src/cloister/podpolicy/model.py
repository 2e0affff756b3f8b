"""The pod policy: typed model and its strict JSON form, version 1 (`spec/pod-policy.md`).

A policy lists every container the pod consists of, in order. What a container runs is *derived inside the guest*:
the verified image config, overlaid with the policy's own `command`, `args`, `env`, `cwd`, `user`, by the rules
Kubernetes users know (a `command` replaces entrypoint and cmd, `args` replace cmd). Nothing here is a pattern: each
value is exact, so there is nothing to widen.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Mapping
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from cloister.errors import FormatRefused
from cloister.protocol.resourceuri import ResourcePath, parse_resource_uri
from cloister.wire.canonicaljson import encode_canonical
from cloister.wire.limits import LEASE_SECONDS, POLICY_BYTES, POLICY_CONTAINERS, POLICY_LIST_ITEMS, POLICY_VALUE_BYTES

VERSION: Final = 1
DEFAULT_SIGNALS: Final = frozenset({1, 2, 3, 9, 10, 12, 15, 28})  # HUP INT QUIT KILL USR1 USR2 TERM WINCH
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.\-]{0,61}[a-z0-9])?")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,63}(:[A-Za-z0-9_][A-Za-z0-9_.\-]{0,63})?")
_LAST_SIGNAL: Final = 64
_KERNEL_TREES: Final = frozenset({"proc", "sys", "dev"})  # hidden by mounts, or not the container's own
SEALED_PREFIX: Final = "sealed."  # how a sealed secret begins, `spec/sealed-secret.md`
_SHORTEST_LEASE: Final = 2  # a renewal takes a tenth of a second where the guest is emulated

ContainerKind = Literal["init", "app"]
StreamsMode = Literal["sealed", "host", "none"]


class _ContainerWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    name: str
    kind: ContainerKind
    image_digest: str
    repository: str
    signature_keys: list[str]
    command: list[str] | None = None
    args: list[str] | None = None
    env: dict[str, str] = msgspec.field(default_factory=dict)
    env_resource: str = ""
    cwd: str | None = None
    user: str | None = None
    terminal: bool = False
    stdin: bool = False
    exec: list[list[str]] = msgspec.field(default_factory=list)
    signals: list[int] = msgspec.field(default_factory=lambda: sorted(DEFAULT_SIGNALS))
    resources: list[str] = msgspec.field(default_factory=list)
    files: dict[str, str] = msgspec.field(default_factory=dict)
    sealing_keys: dict[str, str] = msgspec.field(default_factory=dict)
    unseal: list[str] = msgspec.field(default_factory=list)


class _StreamsWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    mode: StreamsMode
    key: str = ""


class _PolicyWire(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    version: int
    pod: str
    containers: list[_ContainerWire]
    streams: _StreamsWire
    lease_seconds: int = 0


class ContainerPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """One container of the pod.

    Attributes:
        name: name within the pod (DNS label).
        kind: `init` containers run one after the other to exit status 0 before any `app` container is created.
        image_digest: digest of the manifest that is verified and executed.
        repository: repository part of the reference, for the signature's identity rule.
        signature_keys: PEM public keys, any of which must have signed the manifest; empty refuses everything.
        command: replaces entrypoint *and* cmd of the image, or None.
        args: replaces cmd of the image, or None.
        env: set over the image's environment; the host can read it, because it is part of the init data.
        env_resource: where the key broker keeps further variables (JSON object of text), which the host cannot read.
        cwd: replaces the working directory, or None.
        user: replaces the user (`uid`, `name`, `uid:gid`), or None.
        terminal: whether the first process has a terminal.
        stdin: whether the first process has standard input.
        exec: argument lists that may be run additionally.
        signals: signal numbers the host may deliver.
        resources: what the container may fetch from the key broker through the guest.
        files: secret files by absolute path: `kbs:///...` of the key broker, or a sealed secret. They are written
            before the container starts, in its own memory, readable to its user alone.
        sealing_keys: public keys of sealed secrets by `kid`: PEM, or empty when `kid` is the `kbs:///...` where the
            key broker has the key. Without any, a sealed secret is refused.
        unseal: what sealed secrets of this container may name: resources, and key-encryption keys of envelopes.
    """

    name: str
    kind: ContainerKind
    image_digest: str
    repository: str
    signature_keys: tuple[str, ...]
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] | None = None
    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    env_resource: ResourcePath | None = None
    cwd: str | None = None
    user: str | None = None
    terminal: bool = False
    stdin: bool = False
    exec: tuple[tuple[str, ...], ...] = ()
    signals: frozenset[int] = DEFAULT_SIGNALS
    resources: tuple[ResourcePath, ...] = ()
    files: Mapping[str, str] = msgspec.field(default_factory=dict)
    sealing_keys: Mapping[str, str] = msgspec.field(default_factory=dict)
    unseal: tuple[ResourcePath, ...] = ()

    @property
    def prepared(self) -> tuple[ResourcePath, ...]:
        """What the guest itself needs of the key broker for secret files and sealed secrets."""
        files = [parse_resource_uri(text) for text in self.files.values() if not text.startswith(SEALED_PREFIX)]
        keys = [parse_resource_uri(kid) for kid, key in self.sealing_keys.items() if not key]
        return (*files, *keys, *self.unseal)


class StreamsPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Where standard streams may go.

    `sealed`: to whoever holds the stream key `key` (the owner), as ciphertext through the host; `host`: in clear;
    `none`: drained and dropped.
    """

    mode: StreamsMode
    key: ResourcePath | None = None


class PodPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A whole pod policy; `digest` is `sha256:` over its canonical JSON.

    `lease_seconds` is how long the pod may run on one attestation: the guest renews with fresh evidence well within
    it, and stops when the key broker says no or has not answered by its end. 0 is no lease.
    """

    pod: str
    containers: tuple[ContainerPolicy, ...]
    streams: StreamsPolicy
    lease_seconds: int = 0

    @property
    def digest(self) -> str:
        """`sha256:` of the canonical JSON form."""
        return "sha256:" + hashlib.sha256(encode_pod_policy(self)).hexdigest()

    def container(self, name: str) -> ContainerPolicy | None:
        """Return the container of that name, or None."""
        return next((item for item in self.containers if item.name == name), None)


class ImageDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What a verified image config says about its process."""

    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: str


class ProcessSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The process that runs: complete, nothing left to a default of the host."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: str
    terminal: bool


def resolve_process(container: ContainerPolicy, image: ImageDefaults) -> ProcessSpec:
    """Overlay the policy on the verified image config.

    Raises:
        FormatRefused: there is nothing to run, or an image variable has no `=` (`podpolicy.process`).
    """
    if container.command is not None:
        args = container.command + (container.args or ())
    elif container.args is not None:
        args = image.entrypoint + container.args
    else:
        args = image.entrypoint + image.cmd
    if not args or not args[0]:
        raise FormatRefused(
            "podpolicy.process",
            "neither the image nor the pod policy says what to run",
            path=f"containers.{container.name}",
            expected="entrypoint, cmd, command or args",
            actual="none",
            hint="add a command: `cloister run IMAGE COMMAND`",
        )
    env: dict[str, str] = {}
    for item in image.env:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise FormatRefused("podpolicy.process", "image environment entry has no name", actual=item[:40])
        env[name] = value
    env.update(container.env)
    env.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    cwd = container.cwd if container.cwd is not None else (image.cwd or "/")
    user = container.user if container.user is not None else (image.user or "0")
    return ProcessSpec(
        args=args,
        env=tuple(f"{name}={value}" for name, value in env.items()),
        cwd=cwd,
        user=user,
        terminal=container.terminal,
    )


def with_secret_env(container: ContainerPolicy, data: bytes | bytearray) -> ContainerPolicy:
    """Return `container` with the variables of its `env_resource` set over its own.

    Raises:
        FormatRefused: not a JSON object of text, or a name or value the policy would refuse (`podpolicy.env_resource`).
    """
    path = f"containers.{container.name}.env_resource"
    try:
        secret = msgspec.json.decode(bytes(data), type=dict[str, str])
        _check_values(list(secret.values()), path)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, FormatRefused) as err:
        raise FormatRefused("podpolicy.env_resource", "resource is no JSON object of text", path=path) from err
    if not all(_ENV_NAME.fullmatch(name) for name in secret):
        raise FormatRefused("podpolicy.env_resource", "resource holds a name that is no variable", path=path)
    return replace(container, env={**container.env, **secret}, env_resource=None)


def parse_pod_policy(data: bytes) -> PodPolicy:
    """Parse policy JSON.

    Raises:
        FormatRefused: unknown version or field, no container, duplicate name, an init container after an app
        container, or a value out of bounds (`podpolicy.malformed`).
    """
    if len(data) > POLICY_BYTES:
        raise _malformed("policy too long", expected=f"at most {POLICY_BYTES} bytes", actual=str(len(data)))
    try:
        wire = msgspec.json.decode(data, type=_PolicyWire)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise _malformed(f"not a pod policy: {err}") from err
    if wire.version != VERSION:
        raise _malformed("unknown version", path="version", expected=str(VERSION), actual=str(wire.version))
    _check_name(wire.pod, "pod")
    if not 0 < len(wire.containers) <= POLICY_CONTAINERS:
        raise _malformed("number of containers", path="containers", expected=f"1..{POLICY_CONTAINERS}")
    _check_lease(wire)
    containers = tuple(_container(item, f"containers[{index}]") for index, item in enumerate(wire.containers))
    names = [item.name for item in containers]
    if len(set(names)) != len(names):
        raise _malformed("two containers share a name", path="containers")
    kinds = [item.kind for item in containers]
    if kinds != sorted(kinds, key=("init", "app").index):
        raise _malformed("an init container follows an app container", path="containers")
    return PodPolicy(
        pod=wire.pod, containers=containers, streams=_streams(wire.streams), lease_seconds=wire.lease_seconds
    )


def encode_pod_policy(policy: PodPolicy) -> bytes:
    """Return the canonical JSON; `parse_pod_policy` reads it back equal."""
    containers = [
        {
            "name": item.name,
            "kind": item.kind,
            "image_digest": item.image_digest,
            "repository": item.repository,
            "signature_keys": list(item.signature_keys),
            "command": None if item.command is None else list(item.command),
            "args": None if item.args is None else list(item.args),
            "env": dict(item.env),
            "env_resource": item.env_resource.uri if item.env_resource else "",
            "cwd": item.cwd,
            "user": item.user,
            "terminal": item.terminal,
            "stdin": item.stdin,
            "exec": [list(argv) for argv in item.exec],
            "signals": sorted(item.signals),
            "resources": [path.uri for path in item.resources],
            "files": dict(item.files),
            "sealing_keys": dict(item.sealing_keys),
            "unseal": [path.uri for path in item.unseal],
        }
        for item in policy.containers
    ]
    streams = {"mode": policy.streams.mode, "key": policy.streams.key.uri if policy.streams.key else ""}
    return encode_canonical(
        {
            "version": VERSION,
            "pod": policy.pod,
            "containers": containers,
            "streams": streams,
            "lease_seconds": policy.lease_seconds,
        }
    )


def _check_lease(wire: _PolicyWire) -> None:
    """A renewal asks for the stream key again: the owner's rule for it is what a revocation takes away."""
    if wire.lease_seconds and not _SHORTEST_LEASE <= wire.lease_seconds <= LEASE_SECONDS:
        raise _malformed(
            "lease out of range",
            path="lease_seconds",
            expected=f"0, or {_SHORTEST_LEASE}..{LEASE_SECONDS}",
            actual=str(wire.lease_seconds),
        )
    if wire.lease_seconds and wire.streams.mode != "sealed":
        raise _malformed("a lease is renewed by the stream key, so it goes with sealed streams", path="lease_seconds")


def _container(wire: _ContainerWire, path: str) -> ContainerPolicy:
    _check_name(wire.name, f"{path}.name")
    if not _DIGEST.fullmatch(wire.image_digest):
        raise _malformed(
            "image is not named by digest",
            path=f"{path}.image_digest",
            expected="sha256:<64 hex>",
            actual=wire.image_digest[:30],
        )
    if not wire.signature_keys:
        raise _malformed("no signature key: nothing could ever be verified", path=f"{path}.signature_keys")
    if not wire.repository or "" in wire.signature_keys:
        raise _malformed("empty repository or signature key", path=path)
    for values, name in (
        (wire.command, "command"),
        (wire.args, "args"),
        (wire.signature_keys, "signature_keys"),
        ([wire.repository], "repository"),
    ):
        _check_values(values or [], f"{path}.{name}")
    for argv in wire.exec:
        _check_values(argv, f"{path}.exec")
        if not argv:
            raise _malformed("empty argument list", path=f"{path}.exec")
    if len(wire.exec) > POLICY_LIST_ITEMS or len(wire.resources) > POLICY_LIST_ITEMS:
        raise _malformed("list too long", path=path, expected=f"at most {POLICY_LIST_ITEMS}")
    _check_values(list(wire.env.values()), f"{path}.env")
    for name in wire.env:
        if not _ENV_NAME.fullmatch(name):
            raise _malformed("not a variable name", path=f"{path}.env", actual=name[:40])
    if wire.cwd is not None and (not wire.cwd.startswith("/") or "\0" in wire.cwd):
        raise _malformed("working directory is not absolute", path=f"{path}.cwd", actual=wire.cwd[:40])
    if wire.user is not None and not _USER.fullmatch(wire.user):
        raise _malformed("not a user", path=f"{path}.user", expected="user or user:group", actual=wire.user[:40])
    _check_secrets(wire, path)
    if any(not 0 < number <= _LAST_SIGNAL for number in wire.signals):
        raise _malformed("not a signal number", path=f"{path}.signals", expected=f"1..{_LAST_SIGNAL}")
    return ContainerPolicy(
        name=wire.name,
        kind=wire.kind,
        image_digest=wire.image_digest,
        repository=wire.repository,
        signature_keys=tuple(wire.signature_keys),
        command=None if wire.command is None else tuple(wire.command),
        args=None if wire.args is None else tuple(wire.args),
        env=dict(wire.env),
        env_resource=parse_resource_uri(wire.env_resource) if wire.env_resource else None,
        cwd=wire.cwd,
        user=wire.user,
        terminal=wire.terminal,
        stdin=wire.stdin,
        exec=tuple(tuple(argv) for argv in wire.exec),
        signals=frozenset(wire.signals),
        resources=tuple(parse_resource_uri(item) for item in wire.resources),
        files=dict(wire.files),
        sealing_keys=dict(wire.sealing_keys),
        unseal=tuple(parse_resource_uri(item) for item in wire.unseal),
    )


def _check_secrets(wire: _ContainerWire, path: str) -> None:
    """Check what says where sealed secrets and secret files come from."""
    if max(len(wire.unseal), len(wire.sealing_keys), len(wire.files)) > POLICY_LIST_ITEMS:
        raise _malformed("list too long", path=path, expected=f"at most {POLICY_LIST_ITEMS}")
    for kid, key in wire.sealing_keys.items():
        _check_values([kid, key], f"{path}.sealing_keys")
        if not kid:
            raise _malformed("sealing key has no name", path=f"{path}.sealing_keys")
        if not key:
            parse_resource_uri(kid)
    for place, source in wire.files.items():
        _check_values([place, source], f"{path}.files")
        if posixpath.normpath(place) != place or not place.startswith("/") or place.startswith("//") or place == "/":
            raise _malformed("not the absolute path of a file", path=f"{path}.files", actual=place[:80])
        if place.split("/")[1] in _KERNEL_TREES:
            raise _malformed(
                "no secret file can lie in a file system of the kernel", path=f"{path}.files", actual=place[:80]
            )
        if not source.startswith(SEALED_PREFIX):
            parse_resource_uri(source)


def _streams(wire: _StreamsWire) -> StreamsPolicy:
    if (wire.mode == "sealed") != bool(wire.key):
        raise _malformed("a stream key goes with mode sealed, and only with it", path="streams")
    return StreamsPolicy(mode=wire.mode, key=parse_resource_uri(wire.key) if wire.key else None)


def _check_name(name: str, path: str) -> None:
    if not _NAME.fullmatch(name):
        raise _malformed("not a name", path=path, expected="lower-case letters, digits, - and .", actual=name[:40])


def _check_values(values: list[str], path: str) -> None:
    if len(values) > POLICY_LIST_ITEMS:
        raise _malformed("list too long", path=path, expected=f"at most {POLICY_LIST_ITEMS}")
    for value in values:
        if "\0" in value or len(value) > POLICY_VALUE_BYTES:
            raise _malformed("value holds a NUL or is too long", path=path)


def _malformed(message: str, *, path: str = "", expected: str = "", actual: str = "") -> FormatRefused:
    return FormatRefused("podpolicy.malformed", message, path=path, expected=expected, actual=actual)
