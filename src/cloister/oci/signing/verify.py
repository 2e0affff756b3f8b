"""Turns manifest bytes into a verified manifest, and that with its configuration into a verified image.

The steps, in order; each has its own code:

1. the bytes have the digest that the policy or the caller names     oci.signing.manifest_mismatch
2. they parse as one image manifest                                  oci.manifest.*
3. there is a signature                                              oci.signing.unsigned
4. per signature: it is by one of the given keys over its payload    oci.signing.bad_signature
5.                the payload parses                                 oci.signing.payload.*, .bundle.*, .statement.*
6.                it names this very digest                          oci.signing.other_image
7.                it names an accepted repository                    oci.signing.other_repository
8. at least one signature passed 4 to 7                              oci.signing.no_valid_signature
9. the configuration has the digest the manifest names, and is one   oci.signing.config_mismatch, config_type
10. and as many diff_ids as there are layers, at least one           oci.signing.layer_count

One good signature is enough, and bad ones beside it do no harm: anybody can push another layer to a signature tag, or
another referrer. The bytes verified are the bytes used: a `VerifiedManifest` holds them, nothing is fetched again by
tag, and only this module and `cloister.oci.signing.evaluate` make one. Trusts the given keys. Says nothing of
freshness: an older image signed by the same key verifies too; the digest that the measured pod policy names is what
excludes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from cloister.errors import ImageRefused, Refused
from cloister.oci.digest import Digest
from cloister.oci.manifest import DOCKER_CONFIG, OCI_CONFIG, ImageConfig, ImageManifest, parse_config, parse_manifest
from cloister.oci.signing.bundle import (
    IN_TOTO_TYPE,
    SIGN_PREDICATE,
    Bundle,
    names_of,
    parse_bundle,
    parse_statement,
    require_sign_predicate,
)
from cloister.oci.signing.simplesigning import COSIGN_TYPES, SignatureCandidate, parse_payload

_MADE_HERE: Final = object()


class SignatureKey(Protocol):
    """A public key that checks signatures: `crypto.signer.ECDSAP256PublicKey`, `oci.signing.keys.PublicKey`."""

    @property
    def fingerprint(self) -> str:
        """Lower-case hexadecimal SHA-256 of the DER SubjectPublicKeyInfo."""
        ...

    def verify(self, message: bytes, signature: bytes) -> None:
        """Return if `signature` is this key's over `message`; raise `Refused` if not."""
        ...


class RepositoryRule(Protocol):
    """Which names a signature may give the image."""

    def require(self, name: str) -> None:
        """Return if a signature that names `name` (empty: none) is for this image.

        Raises:
            ImageRefused: `oci.signing.other_repository`.
        """
        ...


class ExactRepository(msgspec.Struct, frozen=True):
    """Accept only signatures that name this repository (`registry/name`, no tag).

    Attributes:
        repository: the name.
        allow_unnamed: also accept those that name none, which cosign 3 writes: for where the digest itself is pinned.
    """

    repository: str
    allow_unnamed: bool = False

    def require(self, name: str) -> None:
        """See `RepositoryRule`."""
        if name != self.repository and (name or not self.allow_unnamed):
            raise other_repository(self.repository, name)


class UncheckedRepository(msgspec.Struct, frozen=True):
    """Accept signatures that name any repository; the reason is for the report."""

    reason: str

    def require(self, name: str) -> None:
        """See `RepositoryRule`."""


class BundleCandidate(msgspec.Struct, frozen=True, kw_only=True):
    """A Sigstore bundle that refers to the image, as fetched; `place` is for the report.

    `refusal` says why it could not be fetched.
    """

    raw: bytes
    place: str = ""
    refusal: ImageRefused | None = None

    def parse(self) -> Bundle:
        """Return the bundle.

        Raises:
            ImageRefused: `oci.signing.bundle.*`, or why it could not be fetched.
        """
        if self.refusal is not None:
            raise self.refusal
        return parse_bundle(self.raw)


Candidate = SignatureCandidate | BundleCandidate


class VerifiedManifest:
    """A manifest that one of the owner's keys signed. Made by `verify_manifest` only."""

    __slots__ = ("manifest", "signer")

    def __init__(self, made_here: object, manifest: ImageManifest, signer: str) -> None:
        if made_here is not _MADE_HERE:
            raise TypeError("a VerifiedManifest is made by verify_manifest")
        self.manifest = manifest
        self.signer = signer

    @property
    def digest(self) -> Digest:
        """The digest of the verified bytes."""
        return self.manifest.digest

    def bind_config(self, raw: bytes) -> VerifiedImage:
        """Return the image, given the bytes of its configuration.

        Raises:
            ImageRefused: `oci.signing.config_mismatch`, `oci.signing.config_type`, `oci.config.*`,
                `oci.signing.layer_count`.
        """
        named = self.manifest.config
        actual = Digest.of(raw, named.digest.algorithm)
        if actual != named.digest or len(raw) != named.size:
            raise ImageRefused(
                "oci.signing.config_mismatch",
                "configuration is not the one the signed manifest names",
                path="config",
                expected=str(named.digest),
                actual=str(actual),
            )
        if named.media_type not in (OCI_CONFIG, DOCKER_CONFIG):
            raise ImageRefused(
                "oci.signing.config_type",
                "configuration is not that of a container image",
                path="config.mediaType",
                expected=OCI_CONFIG,
                actual=named.media_type[:80],
            )
        config = parse_config(raw)
        if not self.manifest.layers or len(config.diff_ids) != len(self.manifest.layers):
            raise ImageRefused(
                "oci.signing.layer_count",
                "manifest and configuration disagree on the layers",
                path="rootfs.diff_ids",
                expected=f"{len(self.manifest.layers)}, at least 1",
                actual=str(len(config.diff_ids)),
            )
        return VerifiedImage(_MADE_HERE, self, config)


class VerifiedImage:
    """A verified manifest with the configuration it names. Made by `VerifiedManifest.bind_config` only."""

    __slots__ = ("config", "verified_manifest")

    def __init__(self, made_here: object, verified_manifest: VerifiedManifest, config: ImageConfig) -> None:
        if made_here is not _MADE_HERE:
            raise TypeError("a VerifiedImage is made by VerifiedManifest.bind_config")
        self.verified_manifest = verified_manifest
        self.config = config

    @property
    def manifest(self) -> ImageManifest:
        """The verified manifest's content."""
        return self.verified_manifest.manifest

    @property
    def digest(self) -> Digest:
        """The digest of the verified manifest."""
        return self.verified_manifest.digest


def require_digest(raw: bytes, expected: Digest) -> None:
    """Return if manifest bytes are those that were asked for: step 1.

    Raises:
        ImageRefused: `oci.signing.manifest_mismatch`.
    """
    actual = Digest.of(raw, expected.algorithm)
    if actual != expected:
        raise ImageRefused(
            "oci.signing.manifest_mismatch",
            "manifest is not the one that was asked for",
            path="manifest",
            expected=str(expected),
            actual=str(actual),
        )


def verify_manifest(
    raw: bytes,
    *,
    expected: Digest,
    candidates: Sequence[Candidate],
    keys: Sequence[SignatureKey],
    repository: RepositoryRule,
) -> VerifiedManifest:
    """Verify that one of `keys` signed the manifest `raw`.

    Args:
        raw: manifest bytes as received.
        expected: the digest the policy names; the image is this one or none.
        candidates: signatures found, see `simplesigning.read_candidates` and `referred.read_bundles`.
        keys: the owner's public keys.
        repository: which repository a signature must name.

    Raises:
        ImageRefused: with the code of the step that failed, see above.
    """
    require_digest(raw, expected)
    manifest = parse_manifest(raw)
    if not candidates:
        raise ImageRefused(
            "oci.signing.unsigned",
            "image has no signature",
            path=str(expected),
            hint="sign it with `cloister image sign` or `cosign sign --key`, after encrypting",
        )
    findings = []
    for number, candidate in enumerate(candidates):
        try:
            signer = verify_by_key(candidate, raw, keys, repository)
        except Refused as err:
            findings.append(f"signature {number}: {err.code} {err.actual[:200]}".strip())
        else:
            return VerifiedManifest(_MADE_HERE, manifest, signer.fingerprint)
    raise ImageRefused(
        "oci.signing.no_valid_signature",
        "no signature of the image is good",
        path=str(expected),
        expected=", ".join(f"key {key.fingerprint[:16]}" for key in keys) or "a key",
        actual="; ".join(findings)[:1000],
        hint="sign the manifest with the key the pod policy names, under the repository it names",
    )


def accept_evaluated(manifest: ImageManifest, signer: str) -> VerifiedManifest:
    """Return the verified type for `cloister.oci.signing.evaluate`, which found the manifest acceptable."""
    return VerifiedManifest(_MADE_HERE, manifest, signer)


def verify_by_key(
    candidate: Candidate,
    raw: bytes,
    keys: Sequence[SignatureKey],
    repository: RepositoryRule,
    predicate_type: str = SIGN_PREDICATE,
) -> SignatureKey:
    """Return which of `keys` made a good signature over the manifest or index `raw`: steps 4 to 7.

    Raises:
        ImageRefused: with the code of the step that failed.
    """
    if isinstance(candidate, SignatureCandidate):
        signer = _signer(keys, candidate.payload, candidate.signature)
        require_payload(candidate.payload, raw, repository)
        return signer
    bundle = candidate.parse()
    if bundle.certificates:
        raise ImageRefused("oci.signing.keyless", "bundle is signed under a certificate, not by a key")
    signer = _signer(keys, bundle.signed_bytes(raw), bundle.signature)
    require_content(bundle, raw, repository, predicate_type)
    return signer


def require_payload(
    payload: bytes, raw: bytes, repository: RepositoryRule, types: Sequence[str] = COSIGN_TYPES
) -> None:
    """Return if a classic payload, whose signature held, is about the manifest `raw`: steps 5 to 7.

    Raises:
        ImageRefused: `oci.signing.payload.*`, `oci.signing.other_image`, `oci.signing.other_repository`.
    """
    statement = parse_payload(payload, types)
    require_same_image(statement.digest, raw)
    repository.require(statement.repository)


def require_content(bundle: Bundle, raw: bytes, repository: RepositoryRule, predicate_type: str) -> None:
    """Return if a bundle, whose signature held, is about the manifest `raw`: steps 5 to 7.

    Raises:
        ImageRefused: `oci.signing.bundle.*`, `oci.signing.statement.*`, `oci.signing.other_image`,
            `oci.signing.other_repository`.
    """
    if bundle.message_digest is not None:
        require_same_image(bundle.message_digest, raw)
        repository.require("")
        return
    if bundle.payload_type != IN_TOTO_TYPE:
        raise ImageRefused(
            "oci.signing.bundle.payload_type",
            "envelope holds another kind of document",
            expected=IN_TOTO_TYPE,
            actual=bundle.payload_type[:80],
        )
    statement = parse_statement(bundle.payload)
    require_sign_predicate(statement, predicate_type)
    refusal: ImageRefused | None = None
    for name in names_of(statement, Digest.of(raw)):
        try:
            repository.require(name)
        except ImageRefused as err:
            refusal = refusal or err
        else:
            return
    raise refusal or ImageRefused("oci.signing.other_image", "signature is for another image")


def require_same_image(named: Digest, raw: bytes) -> None:
    """Return if `named` is the digest of `raw`.

    Raises:
        ImageRefused: `oci.signing.other_image`.
    """
    actual = Digest.of(raw, named.algorithm)
    if named != actual:
        raise ImageRefused(
            "oci.signing.other_image", "signature is for another image", expected=str(actual), actual=str(named)
        )


def other_repository(expected: str, name: str) -> ImageRefused:
    """Return the refusal of a signature that names another repository than it must."""
    return ImageRefused(
        "oci.signing.other_repository",
        "signature is for another repository",
        expected=expected[:200],
        actual=name[:200] or "no name",
    )


def _signer(keys: Sequence[SignatureKey], message: bytes, signature: bytes) -> SignatureKey:
    for key in keys:
        try:
            key.verify(message, signature)
        except Refused:
            continue
        return key
    raise ImageRefused("oci.signing.bad_signature", "signature is by none of the given keys")
