"""Which image a signature may be for, by name: the `signedIdentity` of containers' `policy.json`
(containers-policy.json(5), section "Signed Identity").

Compared are references in their full form (Docker Hub's short names are written out). A signature by cosign names a
repository without a tag, so only the two repository rules and, for an image asked for by digest,
`matchRepoDigestOrExact` accept it. A signature that names nothing (a bundle of cosign 3) matches no rule. Pure.
"""

from __future__ import annotations

import msgspec

from cloister.errors import ImageRefused
from cloister.oci.reference import OCIReference, parse_reference
from cloister.oci.signing.verify import other_repository


class MatchExact(msgspec.Struct, frozen=True):
    """The signature names the very reference that was asked for, tag or digest included."""


class MatchRepoDigestOrExact(msgspec.Struct, frozen=True):
    """As `MatchExact` for a tag; for a digest the repository is enough. The default."""


class MatchRepository(msgspec.Struct, frozen=True):
    """The signature names the repository that was asked for, with any tag."""


class ExactReference(msgspec.Struct, frozen=True):
    """The signature names this reference, whatever was asked for."""

    reference: OCIReference


class ExactRepositoryName(msgspec.Struct, frozen=True):
    """The signature names this repository, whatever was asked for."""

    repository: OCIReference


class RemapIdentity(msgspec.Struct, frozen=True):
    """As `MatchRepoDigestOrExact`, with `prefix` of what was asked for replaced: for mirrors."""

    prefix: str
    signed_prefix: str


SignedIdentity = (
    MatchExact | MatchRepoDigestOrExact | MatchRepository | ExactReference | ExactRepositoryName | RemapIdentity
)


class IdentityRule(msgspec.Struct, frozen=True):
    """A signed identity for one image; `asked` is None for an image that has no registry name (`oci:`, `dir:`).

    It is a `cloister.oci.signing.verify.RepositoryRule`.
    """

    identity: SignedIdentity
    asked: OCIReference | None

    def require(self, name: str) -> None:
        """Return if a signature that names `name` may be for the image.

        Raises:
            ImageRefused: `oci.signing.other_repository`.
        """
        expected = f"{type(self.identity).__name__} of {self.asked or 'an image without a registry name'}"
        if isinstance(self.identity, ExactReference):
            expected = str(self.identity.reference)
        elif isinstance(self.identity, ExactRepositoryName):
            expected = self.identity.repository.name
        try:
            signed = parse_reference(name)
        except ImageRefused as err:
            raise other_repository(expected, name) from err
        if not self._matches(signed):
            raise other_repository(expected, name)

    def _matches(self, signed: OCIReference) -> bool:
        identity, asked = self.identity, self.asked
        if isinstance(identity, ExactReference):
            return _same(signed, identity.reference)
        if isinstance(identity, ExactRepositoryName):
            return signed.name == identity.repository.name
        if asked is None:
            return False
        if isinstance(identity, MatchExact):
            return _same(signed, asked)
        if isinstance(identity, MatchRepository):
            return signed.name == asked.name
        if isinstance(identity, RemapIdentity):
            asked = _remapped(asked, identity)
        return signed.name == asked.name if asked.digest is not None else _same(signed, asked)


def has_prefix(text: str, prefix: str) -> bool:
    """Whether `prefix` is a host, namespace, repository or reference that `text` lies in."""
    return text == prefix or (text.startswith(prefix) and text[len(prefix)] in "/:@")


def _same(signed: OCIReference, other: OCIReference) -> bool:
    """References without tag and digest are names, and equal to nothing."""
    return bool(signed.tag or signed.digest) and signed == other


def _remapped(asked: OCIReference, identity: RemapIdentity) -> OCIReference:
    text = str(asked)
    if not has_prefix(text, identity.prefix):
        return asked
    return parse_reference(identity.signed_prefix + text[len(identity.prefix) :])
