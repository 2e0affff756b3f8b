"""Turns manifest bytes into a verified manifest, and that with its configuration into a verified image.

The steps, in order; each has its own code:

1. the bytes have the digest that the policy or the caller names     oci.signing.manifest_mismatch
2. they parse as one image manifest                                  oci.manifest.*
3. there is a signature                                              oci.signing.unsigned
4. per signature: it is by one of the given keys over its payload    bad_signature
5.                the payload parses                                 oci.signing.payload.*
6.                it names this very digest                          other_image
7.                it names an accepted repository                    other_repository
8. at least one signature passed 4 to 7                              oci.signing.no_valid_signature
9. the configuration has the digest the manifest names, and is one   oci.signing.config_mismatch, config_type
10. and as many diff_ids as there are layers, at least one           oci.signing.layer_count

One good signature is enough, and bad ones beside it do no harm: anybody can push another layer to a signature tag.
The bytes verified are the bytes used: a `VerifiedManifest` holds them, nothing is fetched again by tag, and only
this module makes one. Trusts the given keys. Says nothing of freshness: an older image signed by the same key
verifies too; the digest that the measured pod policy names is what excludes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from cloister.crypto.signer import ECDSAP256PublicKey
from cloister.errors import ImageRefused, Refused
from cloister.oci.digest import Digest
from cloister.oci.manifest import DOCKER_CONFIG, OCI_CONFIG, ImageConfig, ImageManifest, parse_config, parse_manifest
from cloister.oci.signing.simplesigning import SignatureCandidate, Statement, parse_payload

_MADE_HERE: Final = object()


class ExactRepository(msgspec.Struct, frozen=True):
    """Accept only signatures that name this repository (`registry/name`, no tag)."""

    repository: str


class UncheckedRepository(msgspec.Struct, frozen=True):
    """Accept signatures that name any repository; the reason is for the report."""

    reason: str


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


def verify_manifest(
    raw: bytes,
    *,
    expected: Digest,
    candidates: Sequence[SignatureCandidate],
    keys: Sequence[ECDSAP256PublicKey],
    repository: ExactRepository | UncheckedRepository,
) -> VerifiedManifest:
    """Verify that one of `keys` signed the manifest `raw`.

    Args:
        raw: manifest bytes as received.
        expected: the digest the policy names; the image is this one or none.
        candidates: signatures found, see `simplesigning.read_candidates`.
        keys: the owner's public keys.
        repository: which repository a signature must name.

    Raises:
        ImageRefused: with the code of the step that failed, see above.
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
    manifest = parse_manifest(raw)
    if not candidates:
        raise ImageRefused(
            "oci.signing.unsigned",
            "image has no signature",
            path=str(expected),
            hint="sign it with `cloister image sign` or `cosign sign --key`, after encrypting",
        )
    findings = []
    for candidate in candidates:
        outcome = _judge(candidate, expected, keys, repository)
        if isinstance(outcome, ECDSAP256PublicKey):
            return VerifiedManifest(_MADE_HERE, manifest, outcome.fingerprint)
        findings.append(outcome)
    raise ImageRefused(
        "oci.signing.no_valid_signature",
        "no signature of the image is good",
        path=str(expected),
        expected=", ".join(f"key {key.fingerprint[:16]}" for key in keys) or "a key",
        actual="; ".join(f"signature {number}: {finding}" for number, finding in enumerate(findings))[:1000],
        hint="sign the manifest with the key the pod policy names, under the repository it names",
    )


def _judge(
    candidate: SignatureCandidate,
    expected: Digest,
    keys: Sequence[ECDSAP256PublicKey],
    repository: ExactRepository | UncheckedRepository,
) -> ECDSAP256PublicKey | str:
    """Return the key that made a good signature, or why there is none."""
    signer = next((key for key in keys if _is_by(key, candidate)), None)
    if signer is None:
        return "bad_signature"
    try:
        statement = parse_payload(candidate.payload)
    except Refused as err:
        return err.code
    return _judge_statement(statement, expected, repository) or signer


def _judge_statement(statement: Statement, expected: Digest, repository: ExactRepository | UncheckedRepository) -> str:
    if statement.digest != expected:
        return f"other_image {statement.digest}"
    if isinstance(repository, ExactRepository) and statement.repository != repository.repository:
        return f"other_repository {statement.repository[:200]}"
    return ""


def _is_by(key: ECDSAP256PublicKey, candidate: SignatureCandidate) -> bool:
    try:
        key.verify(candidate.payload, candidate.signature)
    except Refused:
        return False
    return True
