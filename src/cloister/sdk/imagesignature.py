"""Verify who signed an image, from any place and under any of the ways to trust; and describe signatures, unverified.

The edge of `cloister.oci.signing`: reads policies, keyrings, trust stores and lookaside directories, asks the clock,
and hands values to the evaluator. The result holds the very manifest bytes that were judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509

from cloister.crypto.pem import split_pem
from cloister.errors import ImageRefused, Refused, Unavailable
from cloister.oci.digest import Digest
from cloister.oci.distribution import RegistryClient
from cloister.oci.location import ImageLocation, LocationKind
from cloister.oci.reference import OCIReference
from cloister.oci.signing.bundle import parse_statement
from cloister.oci.signing.collect import ReadMore, collect_signatures, read_image
from cloister.oci.signing.evaluate import Evaluation, FoundSignature, ImageBytes, evaluate, form_of
from cloister.oci.signing.fulcio import load_leaf, read_identity
from cloister.oci.signing.identity import IdentityRule
from cloister.oci.signing.keyless import keyless_of_classic
from cloister.oci.signing.lookaside import LookasideConfig, parse_extension, parse_lookaside, read_lookaside
from cloister.oci.signing.notation import load_chain, verify_envelope
from cloister.oci.signing.policyjson import docker_scopes, parse_policy, path_scopes
from cloister.oci.signing.referred import EnvelopeCandidate
from cloister.oci.signing.requirements import (
    AnyCandidate,
    OpenPGPCandidate,
    OpenPGPRequirement,
    Requirement,
    load_requirement,
)
from cloister.oci.signing.simplesigning import CERTIFICATE_ANNOTATION, SignatureCandidate, parse_payload
from cloister.oci.signing.trustpolicy import NotationRequirement, parse_trust_policy, select_policy
from cloister.oci.signing.verify import BundleCandidate, VerifiedManifest, require_digest
from cloister.oci.store import ImageSource, StoredManifest
from cloister.oci.transfer import copy_blobs
from cloister.protocol.resourceuri import parse_resource_uri
from cloister.wire.limits import CERTIFICATE_BYTES, OPENPGP_KEYRING_BYTES, OPENPGP_MESSAGE_BYTES

if TYPE_CHECKING:
    from cloister.imagetool.platforms import SourceImage

_TRANSPORTS: Final = {
    LocationKind.REGISTRY: "docker",
    LocationKind.LAYOUT: "oci",
    LocationKind.ARCHIVE: "oci-archive",
    LocationKind.DOCKER_ARCHIVE: "docker-archive",
    LocationKind.DIRECTORY: "dir",
}


def verify_signatures(
    source: ImageSource,
    selector: str,
    requirements: Sequence[Requirement],
    *,
    platform: str,
    more: ReadMore | None = None,
    now: datetime | None = None,
    digest: Digest | None = None,
    not_before: datetime | None = None,
) -> Evaluation:
    """Fetch an image's manifest once, find its signatures and judge them.

    Args:
        source: where the image is.
        selector: tag or digest; a tag is resolved once, and the result names the digest.
        requirements: all of which must be fulfilled; empty accepts.
        platform: which image of an index.
        more: reads simple signing's stores; without it a registry's own are read, where they can count.
        now: aware time, the clock's by default.
        digest: of the manifest, or of the index that names it, whatever the selector is; None for any.
        not_before: aware time; older signatures do not count.

    Raises:
        ImageRefused: the image or a list of signatures cannot be read; `oci.signing.manifest_mismatch`,
            `oci.signing.age.unproved`.
        Unavailable: the source cannot be read now.
    """
    image = read_image(source, selector, platform)
    if digest is not None and all(Digest.of(raw, digest.algorithm) != digest for raw in image.artifacts):
        require_digest(image.artifacts[-1], digest)
    return judge_image(source, image, requirements, more=more, now=now, not_before=not_before)


def judge_image(
    source: ImageSource,
    image: ImageBytes,
    requirements: Sequence[Requirement],
    *,
    more: ReadMore | None = None,
    now: datetime | None = None,
    not_before: datetime | None = None,
) -> Evaluation:
    """Find the signatures of an image that was fetched, and judge them; as `verify_signatures`."""
    if more is None and isinstance(source, RegistryClient) and any(_asks_openpgp(item) for item in requirements):
        more = extension_reader(source)
    found = collect_signatures(source, image, more)
    return evaluate(image, found, requirements, now=now or datetime.now(UTC), not_before=not_before)


class SignatureCheck:
    """Verifies manifests that were read for another purpose, as the check of `decrypt_image`.

    Every manifest must be signed, or the index that names it; nothing is fetched but signatures.

    Args:
        requirements, more, not_before: as of `verify_signatures`.

    Attributes:
        signers: who signed, one for each manifest.
        proved: whether signatures made the verdict; a policy may accept an image whoever made it.
    """

    def __init__(
        self,
        requirements: Sequence[Requirement],
        *,
        more: ReadMore | None = None,
        not_before: datetime | None = None,
    ) -> None:
        self._requirements = requirements
        self._more = more
        self._not_before = not_before
        self.signers: list[str] = []
        self.proved = False

    def __call__(self, source: ImageSource, image: SourceImage) -> None:
        """Return if the image is accepted.

        Raises:
            ImageRefused: `oci.signing.unsigned`, `.no_valid_signature`, `.rejected`, `.age.unproved`.
            Unavailable: the source cannot be read now.
        """
        evaluations = []
        for manifest in image.manifests:
            found = ImageBytes(StoredManifest(manifest.raw, manifest.media_type), image.index)
            evaluation = judge_image(source, found, self._requirements, more=self._more, not_before=self._not_before)
            self.signers.append(evaluation.require().signer)
            evaluations.append(evaluation)
        self.proved = all(evaluation.proved for evaluation in evaluations)


def check_content(
    source: ImageSource, verified: VerifiedManifest, *, advance: Callable[[int], None] | None = None
) -> int:
    """Read configuration and layers of an image and compare them with what its manifest says; return how many.

    Raises:
        ImageRefused: `<source>.digest_mismatch`, `<source>.size_mismatch`, `<source>.blob_missing`.
        Unavailable: the source cannot be read now.
    """
    blobs = (verified.manifest.config, *verified.manifest.layers)
    copy_blobs(source, _Nowhere(), blobs, advance=advance)
    return len({blob.digest for blob in blobs})


class _Nowhere:
    """A sink that keeps nothing: what goes through `copy_blobs` to it was checked."""

    holds_back = True

    def has_blob(self, digest: Digest) -> bool:
        return False

    def write_blob(self, chunks: Iterable[bytes]) -> tuple[Digest, int]:
        for _ in chunks:
            pass
        return Digest.of(b""), 0

    def write_manifest(self, raw: bytes, media_type: str, tag: str = "") -> Digest:
        return Digest.of(raw)

    def write_referrer(self, raw: bytes, media_type: str) -> bool:
        return False


def policy_requirements(
    policy: bytes, location: ImageLocation, read: Callable[[str], bytes]
) -> tuple[str, tuple[Requirement, ...]]:
    """Return which scope of a `policy.json` counts for a place, and what it requires, with keys.

    Raises:
        ImageRefused: `oci.signing.policy.*`, `oci.signing.key.*`.
        Unavailable: what `read` raises.
    """
    parsed = parse_policy(policy)
    if location.reference is not None:
        scopes = docker_scopes(location.reference)
    elif location.kind is LocationKind.DOCKER_ARCHIVE:
        scopes = ()
    else:
        scopes = path_scopes(str(Path(location.path).resolve()), location.selector)
    scope, asked = parsed.requirements(_TRANSPORTS[location.kind], scopes)
    loaded = (load_requirement(item, lambda rule: IdentityRule(rule, location.reference), read) for item in asked)
    return scope, tuple(item for item in loaded if item is not None)


def notation_requirements(directory: Path, reference: OCIReference) -> tuple[NotationRequirement, ...]:
    """Read Notation's configuration directory: `trustpolicy.json` and `truststore/x509/<kind>/<name>/`.

    Returns none when the policy's level is `skip`.

    Raises:
        ImageRefused: `oci.signing.trust_policy.*`, `oci.signing.notation.certificate.*`.
        Unavailable: `oci.signing.file`.
    """
    names = [directory / name for name in ("trustpolicy.oci.json", "trustpolicy.json")]
    policy = select_policy(parse_trust_policy(read_file(next((p for p in names if p.exists()), names[1]))), reference)
    if policy.level == "skip":
        return ()
    stores = {name: _store(directory / "truststore" / "x509" / Path(*name.split(":"))) for name in policy.stores}
    return (NotationRequirement(policy=policy, stores=stores),)


def lookaside_reader(config: LookasideConfig, reference: OCIReference | None) -> ReadMore:
    """Return what reads the simple signatures of an image; nothing where no store is configured for it."""

    def more(digest: Digest) -> tuple[OpenPGPCandidate, ...]:
        entry = config.find(reference) if reference is not None else None
        if reference is None or entry is None or not entry.read:
            return ()
        found = read_lookaside(entry.read, reference, digest, _signature_file)
        return tuple(OpenPGPCandidate(raw=content, place=path) for path, content in found)

    return more


def extension_reader(client: RegistryClient) -> ReadMore:
    """Return what reads the simple signatures that a registry keeps itself, if it does."""

    def more(digest: Digest) -> tuple[OpenPGPCandidate, ...]:
        answer = client.attached_signatures(digest)
        found = () if answer is None else parse_extension(answer)
        return tuple(OpenPGPCandidate(raw=content, place=f"registry's {name[:200]}") for name, content in found)

    return more


def read_lookaside_config(directory: Path) -> LookasideConfig:
    """Read all `*.yaml` of a `registries.d`, in the order of their names.

    Raises:
        ImageRefused: `oci.signing.lookaside.*`.
        Unavailable: `oci.signing.file`.
    """
    return parse_lookaside([read_file(path) for path in sorted(directory.glob("*.yaml"))])


def key_reader(resource: Callable[[str], bytes]) -> Callable[[str], bytes]:
    """Return what reads a `keyPath`: a file, or by `resource` what a `kbs:///` address names."""

    def read(path: str) -> bytes:
        if path.startswith("kbs:///"):
            return resource(parse_resource_uri(path).uri)
        return read_file(Path(path))

    return read


def read_file(path: Path) -> bytes:
    """Return the content of a configuration file.

    Raises:
        Unavailable: `oci.signing.file`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(OPENPGP_KEYRING_BYTES + 1)
    except OSError as err:
        raise Unavailable("oci.signing.file", "file cannot be read", path=str(path), actual=err.strerror or "") from err
    if len(data) > OPENPGP_KEYRING_BYTES:
        raise Unavailable("oci.signing.file", "file is too long", path=str(path))
    return data


def describe_signatures(source: ImageSource, image: ImageBytes, more: ReadMore | None = None) -> list[dict[str, Any]]:
    """Say of each signature what it claims: form, place, what it is over, by whom. Nothing of it is verified.

    Returns:
        JSON objects with `form`, `place`, `over` (`manifest` or `index`), its `digest`, `repository`, `signer`, and
        `unreadable` (a code) where it does not parse. Texts are a stranger's: make them visible before printing.

    Raises:
        ImageRefused: a list of signatures is malformed or too long.
        Unavailable: the source cannot be read now.
    """
    return [_describe(item, image) for item in collect_signatures(source, image, more)]


def _asks_openpgp(requirement: Requirement) -> bool:
    return isinstance(requirement, OpenPGPRequirement)


def _describe(found: FoundSignature, image: ImageBytes) -> dict[str, Any]:  # Any: JSON
    described: dict[str, Any] = {  # Any: JSON
        "form": form_of(found.candidate),
        "place": found.candidate.place,
        "over": "manifest" if found.artifact == image.manifest.raw else "index",
        "digest": str(Digest.of(found.artifact)),
        "repository": "",
        "signer": "",
    }
    try:
        described["repository"], described["signer"] = _claims(found.candidate)
    except Refused as err:
        described["unreadable"] = err.code
    return described


def _claims(candidate: AnyCandidate) -> tuple[str, str]:
    """Return the repository a signature names and who it says signed."""
    if isinstance(candidate, SignatureCandidate):
        statement = parse_payload(candidate.payload)
        keyless = CERTIFICATE_ANNOTATION in candidate.annotations
        signer = _certificate_claim(keyless_of_classic(candidate).certificate) if keyless else "a key"
        return statement.repository, signer
    if isinstance(candidate, BundleCandidate):
        bundle = candidate.parse()
        names = []
        if bundle.message_digest is None:
            names = [name for name, _ in parse_statement(bundle.payload).subjects if name]
        signer = _certificate_claim(bundle.certificates[0]) if bundle.certificates else f"key {bundle.key_hint[:44]}"
        return ", ".join(names)[:300], signer
    if isinstance(candidate, EnvelopeCandidate):
        if candidate.refusal is not None:
            raise candidate.refusal
        envelope = verify_envelope(candidate.raw, candidate.media_type)
        return "", envelope.chain[0].subject.rfc4514_string()[:300]
    return "", "an OpenPGP key"


def _certificate_claim(der: bytes) -> str:
    subjects, issuer = read_identity(load_leaf(der))
    return f"{', '.join(subjects) or 'nobody'} by {issuer or 'no issuer'}"[:300]


def _signature_file(path: str) -> bytes | None:
    try:
        with Path(path).open("rb") as file:
            return file.read(OPENPGP_MESSAGE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as err:
        raise _unreadable(Path(path), err) from err


def _unreadable(path: Path, err: OSError) -> Unavailable:
    return Unavailable("oci.signing.file", "file cannot be read", path=str(path), actual=err.strerror or "")


def _store(directory: Path) -> tuple[x509.Certificate, ...]:
    files = [path for path in sorted(directory.glob("*")) if path.suffix in (".crt", ".pem", ".cer")]
    found: list[x509.Certificate] = []
    for path in files:
        data = read_file(path)
        pem = b"-----BEGIN" in data
        blocks = split_pem(data, code="oci.signing.notation.certificate", ceiling=CERTIFICATE_BYTES) if pem else [data]
        found += load_chain(blocks)
    if not found:
        raise ImageRefused("oci.signing.trust_policy.stores", "trust store holds no certificate", path=str(directory))
    return tuple(found)
