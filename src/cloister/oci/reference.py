"""Image references: `[registry[:port]/]repository[:tag][@digest]` (grammar of the CNCF Distribution project).

A text without a registry means Docker Hub, as every tool reads it, and is normalised to `docker.io/library/name`. A
tag is a mutable name that its registry may point anywhere; only a reference with a digest names bytes. Trusts nobody.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from cloister.errors import ImageRefused
from cloister.oci.digest import Digest, parse_digest

DEFAULT_REGISTRY: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
_DOCKER_HUB_NAMES: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_REFERENCE_CHARS: Final = 512
_NAME_CHARS: Final = 255

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class OCIReference(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed reference; `tag` and `digest` are empty where the text had none.

    Raises:
        ImageRefused: `oci.reference.malformed`, naming the part.
    """

    registry: str
    repository: str
    tag: str = ""
    digest: Digest | None = None

    def __post_init__(self) -> None:
        _require(_REGISTRY, self.registry, "registry")
        require_repository(self.repository)
        if self.tag:
            require_tag(self.tag)

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest: what a signature's identity names."""
        return f"{self.registry}/{self.repository}"

    @property
    def selector(self) -> str:
        """What a registry is asked for: the digest if there is one, else the tag, else `latest`."""
        return str(self.digest) if self.digest else self.tag or DEFAULT_TAG

    def at(self, digest: Digest) -> OCIReference:
        """Return the same repository at `digest`, without a tag."""
        return OCIReference(registry=self.registry, repository=self.repository, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")


def parse_reference(text: str) -> OCIReference:
    """Parse a reference as `docker pull` takes it.

    Raises:
        ImageRefused: `oci.reference.malformed`.
    """
    if len(text) > _REFERENCE_CHARS:
        raise ImageRefused(
            "oci.reference.malformed", "reference is too long", expected=f"{_REFERENCE_CHARS} characters"
        )
    name, at, digest = text.partition("@")
    head, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # the last colon belongs to a port
        head, tag = name, ""
    elif not tag:
        raise ImageRefused("oci.reference.malformed", "reference ends in a colon", actual=text)
    registry, repository = _split_registry(head)
    return OCIReference(registry=registry, repository=repository, tag=tag, digest=parse_digest(digest) if at else None)


def require_repository(text: str) -> str:
    """Return `text` if it is a repository name, for servers that take it from a path."""
    if len(text) > _NAME_CHARS:
        raise ImageRefused(
            "oci.reference.malformed", "repository name is too long", expected=f"{_NAME_CHARS} characters"
        )
    return _require(_REPOSITORY, text, "repository")


def require_tag(text: str) -> str:
    """Return `text` if it is a tag."""
    return _require(_TAG, text, "tag")


def _split_registry(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    looks_like_host = "." in first or ":" in first or first == "localhost" or first != first.lower()
    if not slash or not looks_like_host:
        return DEFAULT_REGISTRY, name if slash else f"library/{name}"
    if first in _DOCKER_HUB_NAMES:
        return DEFAULT_REGISTRY, rest if "/" in rest else f"library/{rest}"
    return first, rest


def _require(pattern: re.Pattern[str], text: str, part: str) -> str:
    if not pattern.fullmatch(text):
        raise ImageRefused("oci.reference.malformed", f"not a valid {part}", path=part, actual=text[:80])
    return text
