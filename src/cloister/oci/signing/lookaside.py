"""Where simple-signing signatures lie: lookaside directories that `registries.d` names (containers-registries.d(5)),
and the answer of a registry that keeps them itself (OpenShift's extension, `X-Registry-Supports-Signatures`).

A signature of `host/team/app` with digest `sha256:<hex>` is `<base>/team/app@sha256=<hex>/signature-1`, the next
`signature-2`, until one is missing. Only `file://` bases are read. The configuration decides nothing but where to look;
what lies there is untrusted. Members that the format does not define are refused; two files that say different things
about one place are as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import yaml

from cloister.errors import FormatRefused, ImageRefused
from cloister.oci.digest import Digest
from cloister.oci.document import Members, parse_document
from cloister.oci.reference import OCIReference
from cloister.oci.signing.policyjson import docker_scopes
from cloister.wire.base64 import decode_b64
from cloister.wire.limits import (
    IMAGE_SIGNATURES,
    MIB,
    OPENPGP_MESSAGE_BYTES,
    SIGNATURE_POLICY_BYTES,
    SIGNATURE_POLICY_ITEMS,
)

_CODE: Final = "oci.signing.lookaside"
_EXTENSION_BYTES: Final = 4 * MIB
_NAMES: Final = ("lookaside", "lookaside-staging", "sigstore", "sigstore-staging", "use-sigstore-attachments")


class Lookaside(msgspec.Struct, frozen=True, kw_only=True):
    """One entry: where to read and where to write; empty is nowhere."""

    read: str = ""
    write: str = ""
    attachments: bool = False


class LookasideConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All entries: by scope of `docker`, and the one for everything else."""

    default: Lookaside | None
    docker: Mapping[str, Lookaside]

    def find(self, reference: OCIReference) -> Lookaside | None:
        """Return the most specific entry for an image, None where there is none."""
        for scope in docker_scopes(reference):
            if scope in self.docker:
                return self.docker[scope]
        return self.default


def parse_lookaside(files: Sequence[bytes]) -> LookasideConfig:
    """Merge the files of `registries.d`.

    Raises:
        ImageRefused: `oci.signing.lookaside.*`.
    """
    default: Lookaside | None = None
    docker: dict[str, Lookaside] = {}
    for number, data in enumerate(files):
        top = Members(_yaml(data, number), path=f"file {number}", code=_CODE)
        top.only("default-docker", "docker")
        if "default-docker" in top:
            default = _merged(default, _entry(top.members("default-docker")), top.place("default-docker"))
        scopes = top.members("docker") if "docker" in top else Members({}, path="", code=_CODE)
        if len(scopes.names()) > SIGNATURE_POLICY_ITEMS:
            raise ImageRefused(f"{_CODE}.too_many", "configuration has too many scopes")
        for scope in scopes.names():
            docker[scope] = _merged(docker.get(scope), _entry(scopes.members(scope)), scopes.place(scope[:80]))
    return LookasideConfig(default=default, docker=docker)


def signature_paths(base: str, reference: OCIReference, digest: Digest) -> tuple[str, ...]:
    """Return the paths of the signatures of one image below a `file://` base, in their order.

    Raises:
        ImageRefused: another kind of base (`oci.signing.lookaside.base`).
    """
    root = base.removeprefix("file://")
    if not base.startswith("file:///") or "/../" in f"{root}/":
        raise ImageRefused(
            f"{_CODE}.base", "store is not one that is read", expected="file:///absolute/path", actual=base[:120]
        )
    folder = f"{root.rstrip('/')}/{reference.repository}@{digest.algorithm}={digest.hex}"
    return tuple(f"{folder}/signature-{number}" for number in range(1, IMAGE_SIGNATURES + 1))


def read_lookaside(
    base: str, reference: OCIReference, digest: Digest, read: Callable[[str], bytes | None]
) -> tuple[tuple[str, bytes], ...]:
    """Return paths and contents of the signatures of one image; `read` returns None for a file that is not there.

    Raises:
        ImageRefused: `oci.signing.lookaside.base`.
    """
    found = []
    for path in signature_paths(base, reference, digest):
        content = read(path)
        if content is None:
            break
        found.append((path, content))
    return tuple(found)


def parse_extension(data: bytes) -> tuple[tuple[str, bytes], ...]:
    """Return names and contents of the signatures in a registry's answer to a request for them.

    Raises:
        ImageRefused: `oci.signing.lookaside.extension.*`.
    """
    code = f"{_CODE}.extension"
    top = Members(parse_document(data, ceiling=_EXTENSION_BYTES, code=code), path="", code=code)
    found = []
    for number, item in enumerate(top.array("signatures", ceiling=IMAGE_SIGNATURES)):
        signature = Members(item, path=f"signatures[{number}]", code=code)
        if signature.unsigned("schemaVersion") != 2 or signature.text("type") != "atomic":
            continue
        try:
            content = decode_b64(signature.text("content"), path="content", ceiling=OPENPGP_MESSAGE_BYTES)
        except FormatRefused as err:
            raise ImageRefused(f"{code}.base64", err.message, path=signature.place("content")) from err
        found.append((signature.text("name", ""), content))
    return tuple(found)


def _yaml(data: bytes, number: int) -> Any:  # Any: YAML values, typed by whoever reads them
    if len(data) > SIGNATURE_POLICY_BYTES:
        raise ImageRefused(f"{_CODE}.too_long", "configuration is too long", path=f"file {number}")
    if b"&" in data or b"*" in data:
        raise ImageRefused(f"{_CODE}.not_yaml", "configuration uses aliases", path=f"file {number}")
    try:
        return yaml.safe_load(data) or {}
    except (yaml.YAMLError, RecursionError, ValueError) as err:
        raise ImageRefused(f"{_CODE}.not_yaml", "configuration is not YAML", path=f"file {number}") from err


def _entry(members: Members) -> Lookaside:
    members.only(*_NAMES)
    return Lookaside(
        read=members.text("lookaside", "") or members.text("sigstore", ""),
        write=members.text("lookaside-staging", "") or members.text("sigstore-staging", ""),
        attachments=members.flag("use-sigstore-attachments"),
    )


def _merged(old: Lookaside | None, new: Lookaside, place: str) -> Lookaside:
    if old is not None and old != new:
        raise ImageRefused(f"{_CODE}.conflict", "two files say different things", path=place)
    return new
