"""Resource addresses of the key broker: `kbs:///<repository>/<type>/<tag>` (CoCo RESOURCE_URI.md).

Rules are about prefixes of them: `repository/type/tag`, `repository/type/*`, `repository/*/*` or `*`.

The host part is ignored by CoCo's guest and must be empty here: which broker answers is said by the measured init
data, never by an address inside an image that an untrusted registry serves.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from cloister.errors import FormatRefused
from cloister.wire.limits import RESOURCE_SEGMENT_CHARS

_SEGMENT: Final = re.compile(r"[a-zA-Z0-9_\-]+[a-zA-Z0-9_\-.]*")
_SCHEME: Final = "kbs:///"
_WILDCARD: Final = "*"
_SEGMENTS: Final = 3


class ResourcePath(msgspec.Struct, frozen=True, order=True):
    """Repository, type and tag of one resource."""

    repository: str
    type: str
    tag: str

    def __post_init__(self) -> None:
        for name in ("repository", "type", "tag"):
            segment = getattr(self, name)
            if len(segment) > RESOURCE_SEGMENT_CHARS or not _SEGMENT.fullmatch(segment):
                raise FormatRefused(
                    "protocol.resource.malformed",
                    "not a resource path segment",
                    path=name,
                    expected="letters, digits, - _ . and not starting with a dot",
                    actual=segment[:40],
                )

    def __str__(self) -> str:
        return f"{self.repository}/{self.type}/{self.tag}"

    @property
    def uri(self) -> str:
        """The `kbs:///` form."""
        return _SCHEME + str(self)


def parse_resource_path(text: str) -> ResourcePath:
    """Parse `repository/type/tag`.

    Raises:
        FormatRefused: not exactly three valid segments (`protocol.resource.malformed`).
    """
    segments = text.split("/")
    if len(segments) != 3:
        raise FormatRefused(
            "protocol.resource.malformed", "not a resource path", expected="repository/type/tag", actual=text[:80]
        )
    return ResourcePath(*segments)


def parse_resource_uri(text: str) -> ResourcePath:
    """Parse `kbs:///repository/type/tag`.

    Raises:
        FormatRefused: other scheme, a host part, or a malformed path.
    """
    if not text.startswith(_SCHEME):
        raise FormatRefused(
            "protocol.resource.malformed",
            "not a key broker address",
            expected="kbs:///repository/type/tag",
            actual=text[:80],
        )
    return parse_resource_path(text[len(_SCHEME) :])


def parse_prefix_spelling(text: str) -> str:
    """Return the one spelling of a prefix that people write in several ways.

    With or without `kbs:///`; with or without a slash or wildcards at its end: `shop`, `shop/`, `shop/*` and
    `kbs:///shop` are all `shop/*/*`. Everything is `*` and must be said: nothing at all is not everything, because
    a script's variable may be empty.

    Raises:
        FormatRefused: empty, a wildcard before a name or inside one, a host part, or too long
            (`protocol.resource.malformed`).
    """
    body = text.removeprefix(_SCHEME)
    segments = (body[:-1] if body.endswith("/") else body).split("/")
    names = list(segments)
    while names and names[-1] == _WILDCARD:
        names.pop()
    try:
        if len(segments) > _SEGMENTS:
            raise FormatRefused("protocol.resource.malformed", "not a prefix of resources")
        ResourcePath(*(names + ["x"] * (_SEGMENTS - len(names))))
    except FormatRefused as err:
        raise FormatRefused(
            "protocol.resource.malformed",
            "not a prefix of resources",
            path="PREFIX",
            expected="repository/type/tag, repository/type/*, repository/*/* or *",
            actual=text[:80],
        ) from err
    return "/".join(names + [_WILDCARD] * (_SEGMENTS - len(names))) if names else _WILDCARD
