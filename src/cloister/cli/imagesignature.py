"""`cloister image sign|verify`: say that an image is yours, and find out whose it is."""

from __future__ import annotations

import enum
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from cloister.cli.forms import Output, OutputOption
from cloister.cli.output import StepPrinter, print_json, print_line, short_digest
from cloister.cli.progress import BytesBar
from cloister.cli.trustservice import OpenService, with_trust_service
from cloister.sdk.home import home_from_environment

if TYPE_CHECKING:
    from cloister.oci.location import ImageLocation
    from cloister.oci.signing.collect import ReadMore
    from cloister.oci.signing.evaluate import Evaluation, Finding
    from cloister.oci.signing.requirements import Requirement
    from cloister.oci.signing.verify import RepositoryRule
    from cloister.oci.store import ImageSource, ImageStore
    from cloister.sdk.imagesignature import SignatureCheck

_PLACES = "docker://REF, oci:PATH:TAG, oci-archive:PATH, docker-archive:PATH or dir:PATH"


class SignatureForm(enum.StrEnum):
    """Forms a signature is written in."""

    COSIGN = "cosign"
    BUNDLE = "bundle"
    NOTATION_JWS = "notation-jws"
    NOTATION_COSE = "notation-cose"
    SIMPLE = "simple"


def sign_command(
    image: Annotated[str, typer.Argument(help="The sealed image: docker://REF, oci:PATH:TAG or oci-archive:PATH:TAG.")],
    key: Annotated[
        Path | None,
        typer.Option(
            help="Private key, PEM: P-256; for Notation also RSA, P-384, P-521; for simple an OpenPGP secret key, "
            "FILE[:PASSWORD|:file=FILE|:fd=N] [default: the owner's key]."
        ),
    ] = None,
    form: Annotated[
        SignatureForm,
        typer.Option("--format", metavar="FORM", help="cosign, bundle, notation-jws, notation-cose or simple."),
    ] = SignatureForm.COSIGN,
    repository: Annotated[
        str,
        typer.Option(help="Registry and repository the signature names, for simple with :TAG [default: the image's]."),
    ] = "",
    lookaside: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For simple: directory that registries.d of whoever verifies names."),
    ] = None,
    certificate_chain: Annotated[
        Path | None, typer.Option(help="For Notation: the key's certificate first, the root last, PEM.")
    ] = None,
    identity_token: Annotated[
        Path | None, typer.Option(help="Sign without a key: file with an OIDC identity token. The log is public.")
    ] = None,
    fulcio_url: Annotated[str, typer.Option(help="Certificate authority.")] = "https://fulcio.sigstore.dev",
    rekor_url: Annotated[str, typer.Option(help="Transparency log.")] = "https://rekor.sigstore.dev",
    trusted_root: Annotated[
        Path | None, typer.Option(help="trusted_root.json that the two services' answers must verify against.")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Sign an image as cosign does (key, bundle, keyless), as Notation, or as skopeo (simple); they verify it."""
    from cloister.oci.location import open_sink, open_source, parse_location
    from cloister.sdk.owner import open_transport, registry_access

    simple = form is SignatureForm.SIMPLE
    if simple != (lookaside is not None) or (simple and (key is None or identity_token is not None)):
        raise typer.BadParameter("--format simple, --lookaside DIR and --key FILE belong together")
    place = parse_location(image)
    name = _signed_name(place, repository)
    with ExitStack() as stack:
        access = registry_access(place, stack.enter_context(open_transport()))
        if key is not None and lookaside is not None:  # a file elsewhere: nothing is written where the image is
            source = stack.enter_context(open_source(place, access))
            signed = _sign_simple(source, place, repository, key, lookaside)
        else:
            store = stack.enter_context(open_sink(place, access, extend=True))
            if identity_token is not None:
                signed = _sign_keyless(store, place, name, identity_token, trusted_root, fulcio_url, rekor_url)
            elif form in (SignatureForm.COSIGN, SignatureForm.BUNDLE):
                signed = _sign_with_key(store, place, name, key, form)
            else:
                signed = _sign_notation(store, place, key, certificate_chain, form)
    if output is Output.JSON:
        print_json({"schema": 1, "repository": name, **signed})
        return
    step = StepPrinter()
    step("ok", "image signed", signed["digest"])
    step("ok", f"as {name}", signed["signer"])
    step("--", "not proved", "who holds the key: give its public half to whoever verifies")
    if "file" in signed:
        step("ok", "in file", signed["file"])
        step.note(f"next: cloister image verify {image} --policy FILE --registries-d DIR; guests do not read this form")
    else:
        step.note("next: cloister run " + image)


def _signed_name(place: ImageLocation, repository: str) -> str:
    from cloister.errors import Refused

    name = repository or (place.reference.name if place.reference else "")
    if not name:
        raise Refused(
            "cli.image.repository",
            "a signature names a repository, and a path has none",
            hint="add --repository registry.example/name",
        )
    return name


def _sign_with_key(
    store: ImageStore, place: ImageLocation, name: str, key: Path | None, form: SignatureForm
) -> dict[str, str]:
    from cloister.crypto.signer import ECDSAP256Signer
    from cloister.imagetool.sign import sign_bundle, sign_image
    from cloister.sdk.owner import Owner

    signer = ECDSAP256Signer.from_pem(key.read_bytes()) if key else Owner(home_from_environment()).signer()
    if form is SignatureForm.COSIGN:
        digest = sign_image(store, place.selector, signer, repository=name, at=datetime.now(UTC))
    else:
        digest = sign_bundle(store, place.selector, signer, repository=name)
    fingerprint = signer.public_key.fingerprint
    return {"digest": str(digest), "key": fingerprint, "signer": f"key {short_digest(fingerprint)}"}


def _sign_keyless(
    store: ImageStore, place: ImageLocation, name: str, token: Path, root: Path | None, fulcio: str, rekor: str
) -> dict[str, str]:
    from contextlib import closing

    from cloister.imagetool.keyless import SigstoreServices, sign_keyless
    from cloister.oci.signing.trustedroot import parse_trusted_root
    from cloister.sdk.imagesignature import read_file

    if root is None:
        raise typer.BadParameter("signing without a key needs --trusted-root FILE")
    trusted = parse_trusted_root(read_file(root))
    text = read_file(token).decode("ascii", "replace").strip()
    with closing(SigstoreServices(fulcio=fulcio, rekor=rekor)) as services:
        digest, identity = sign_keyless(store, place.selector, services, token=text, root=trusted, repository=name)
    return {"digest": str(digest), "signer": str(identity)}


def _sign_notation(
    store: ImageStore, place: ImageLocation, key: Path | None, chain: Path | None, form: SignatureForm
) -> dict[str, str]:
    from cloister.imagetool.notation import load_signing_key, sign_notation
    from cloister.oci.signing.referred import NOTATION_COSE, NOTATION_JWS
    from cloister.sdk.imagesignature import read_file

    if key is None or chain is None:
        raise typer.BadParameter("a Notation signature needs --key FILE and --certificate-chain FILE")
    loaded = load_signing_key(read_file(key), read_file(chain))
    media_type = NOTATION_JWS if form is SignatureForm.NOTATION_JWS else NOTATION_COSE
    digest = sign_notation(store, place.selector, loaded, media_type=media_type)
    return {"digest": str(digest), "signer": loaded.chain[0].subject.rfc4514_string()}


def _sign_simple(
    source: ImageSource, place: ImageLocation, repository: str, key: Path, lookaside: Path
) -> dict[str, str]:
    from cloister.crypto.openpgpsign import MessageSigner
    from cloister.imagetool.simplesign import sign_simple
    from cloister.oci.encryption.keyfiles import split_key_text
    from cloister.oci.reference import parse_reference
    from cloister.sdk.imagesignature import read_file

    path, password = split_key_text(str(key))
    signer = MessageSigner(read_file(Path(path)), None if password is None else password.decode("utf-8", "replace"))
    identity = place.reference
    if repository or identity is None:
        identity = parse_reference(repository)
    elif identity.digest is None:
        identity = msgspec.structs.replace(identity, tag=identity.selector)  # `latest` is named, as skopeo does
    digest, signed, written = sign_simple(
        source, place.selector, signer, identity=identity, lookaside=lookaside, at=datetime.now(UTC)
    )
    return {"digest": str(digest), "signer": f"OpenPGP key {signed.fingerprint}", "file": str(written)}


@with_trust_service
def verify_command(
    service: OpenService,
    image: Annotated[str, typer.Argument(help=f"The image: {_PLACES}.")],
    policy: Annotated[
        Path | None, typer.Option(help="Accept what this policy.json of containers/image accepts.")
    ] = None,
    registries_d: Annotated[
        Path | None, typer.Option("--registries-d", help="With --policy: where simple signing's stores are configured.")
    ] = None,
    key: Annotated[
        list[Path] | None, typer.Option(help="Accept signatures by this public key, PEM; repeatable.")
    ] = None,
    certificate_identity: Annotated[
        str, typer.Option(help="Accept keyless signatures of this subject, compared whole.")
    ] = "",
    certificate_oidc_issuer: Annotated[str, typer.Option(help="Who logged that subject in, compared whole.")] = "",
    trusted_root: Annotated[
        Path | None, typer.Option(help="trusted_root.json: authorities and logs that keyless signatures rest on.")
    ] = None,
    notation_policy: Annotated[
        Path | None, typer.Option(help="Accept what the trustpolicy.json in this directory of Notation accepts.")
    ] = None,
    repository: Annotated[
        str, typer.Option(help="Registry and repository a signature must name [default: the image's own].")
    ] = "",
    predicate_type: Annotated[
        str, typer.Option(help="Kind of statement in a bundle [default: a signature, no other attestation].")
    ] = "",
    digest: Annotated[
        str, typer.Option(help="Refuse any other image than the one with this digest, whatever the tag says.")
    ] = "",
    not_before: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="Refuse signatures made before, and those of which nobody trusted says when."
        ),
    ] = "",
    layers: Annotated[
        bool, typer.Option("--layers", help="Read configuration and layers too; else only the manifest is read.")
    ] = False,
    platform: Annotated[str, typer.Option(help="Which image of an index [default: this machine's].")] = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Say whether an image is signed by whom you trust, and of every signature why it counts or not.

    The digest in the answer is the image that was judged: use it by that digest. Nothing is fetched twice. An older
    image, well signed, under a tag that was moved back is refused with --digest or --not-before only.
    """
    from cloister.cli.administered import parse_moment
    from cloister.oci.digest import parse_digest
    from cloister.oci.location import open_source, parse_location
    from cloister.oci.signing.verify import ExactRepository
    from cloister.sdk.imagesignature import check_content, verify_signatures
    from cloister.sdk.owner import PLATFORM, open_transport, registry_access

    ways = [bool(policy), bool(key), bool(certificate_identity or certificate_oidc_issuer), bool(notation_policy)]
    if sum(ways) != 1:
        raise typer.BadParameter("give one of --policy, --key, --certificate-identity, --notation-policy")
    place = parse_location(image)
    scope, more, requirements = "", None, ()  # type: tuple[str, ReadMore | None, tuple[Requirement, ...]]
    if policy is not None:
        scope, more, requirements = _by_policy(policy, registries_d, place, service)
    elif notation_policy is not None:
        requirements = _by_notation(notation_policy, place, repository)
    else:
        rule = ExactRepository(_signed_name(place, repository), allow_unnamed=not repository)
        if key:
            requirements = _by_key(key, rule, predicate_type)
        else:
            identity = certificate_identity, certificate_oidc_issuer
            requirements = _by_identity(identity, trusted_root, rule, predicate_type)
    with open_transport() as transport, open_source(place, registry_access(place, transport)) as source:
        evaluation = verify_signatures(
            source,
            place.selector,
            requirements,
            platform=platform or PLATFORM,
            more=more,
            digest=parse_digest(digest) if digest else None,
            not_before=parse_moment(not_before, "--not-before"),
        )
        read = 0
        if layers and evaluation.manifest is not None:
            with BytesBar("reading layers") as bar:
                read = check_content(source, evaluation.manifest, advance=bar.advance)
    if output is Output.JSON:
        print_json({**_as_json(evaluation, scope), "blobs_checked": read})
    else:
        _print(evaluation, scope)
        if evaluation.manifest is not None:
            print_line(f"  content    {_read_words(read)}")
    evaluation.require()


def signature_check(
    source: str,
    *,
    policy: Path | None,
    registries_d: Path | None,
    keys: list[Path] | None,
    repository: str,
    not_before: str,
    service: OpenService,
) -> SignatureCheck | None:
    """Return the check that the options of a verb ask for before it does its own work; None for none.

    Raises:
        typer.BadParameter: options that do not go together.
        ImageRefused, Unavailable: policy or keys cannot be read.
    """
    from cloister.cli.administered import parse_moment
    from cloister.oci.location import parse_location
    from cloister.oci.signing.verify import ExactRepository
    from cloister.sdk.imagesignature import SignatureCheck

    if policy is None and not keys:
        if registries_d or repository or not_before:
            raise typer.BadParameter("these options are about a signature: add --policy or --verify-key")
        return None
    if policy is not None and keys:
        raise typer.BadParameter("give one of --policy, --verify-key")
    place = parse_location(source)
    oldest = parse_moment(not_before, "--not-before")
    if policy is not None:
        _, more, requirements = _by_policy(policy, registries_d, place, service)
        return SignatureCheck(requirements, more=more, not_before=oldest)
    rule = ExactRepository(_signed_name(place, repository), allow_unnamed=not repository)
    return SignatureCheck(_by_key(keys or [], rule, ""), not_before=oldest)


def _by_policy(
    policy: Path, registries_d: Path | None, place: ImageLocation, service: OpenService
) -> tuple[str, ReadMore | None, tuple[Requirement, ...]]:
    from cloister.protocol.resourceuri import parse_resource_uri
    from cloister.sdk import imagesignature as signatures

    def resource(uri: str) -> bytes:
        with service() as client:
            return client.get_resource_content(parse_resource_uri(uri))

    read = signatures.key_reader(resource)
    scope, requirements = signatures.policy_requirements(signatures.read_file(policy), place, read)
    if registries_d is None:
        return scope, None, requirements
    config = signatures.read_lookaside_config(registries_d)
    return scope, signatures.lookaside_reader(config, place.reference), requirements


def _by_notation(directory: Path, place: ImageLocation, repository: str) -> tuple[Requirement, ...]:
    from cloister.oci.reference import parse_reference
    from cloister.sdk.imagesignature import notation_requirements

    return notation_requirements(directory, parse_reference(_signed_name(place, repository)))


def _by_key(keys: list[Path], rule: RepositoryRule, predicate_type: str) -> tuple[Requirement, ...]:
    from cloister.oci.signing.bundle import SIGN_PREDICATE
    from cloister.oci.signing.keys import load_public_key
    from cloister.oci.signing.requirements import KeyRequirement
    from cloister.sdk.imagesignature import read_file

    loaded = tuple(load_public_key(read_file(path), path=str(path)) for path in keys)
    return (KeyRequirement(keys=loaded, repository=rule, predicate_type=predicate_type or SIGN_PREDICATE),)


def _by_identity(
    identity: tuple[str, str],
    root: Path | None,
    rule: RepositoryRule,
    predicate_type: str,
) -> tuple[Requirement, ...]:
    from cloister.oci.signing.bundle import SIGN_PREDICATE
    from cloister.oci.signing.fulcio import CertificateIdentity
    from cloister.oci.signing.keyless import KeylessTrust
    from cloister.oci.signing.requirements import KeylessRequirement
    from cloister.oci.signing.trustedroot import parse_trusted_root
    from cloister.sdk.imagesignature import read_file

    subject, issuer = identity
    if not subject or not issuer or root is None:
        raise typer.BadParameter("an identity is --certificate-identity, --certificate-oidc-issuer and --trusted-root")
    trust = KeylessTrust(
        root=parse_trusted_root(read_file(root)), identities=(CertificateIdentity(subject=subject, issuer=issuer),)
    )
    return (KeylessRequirement(trust=trust, repository=rule, predicate_type=predicate_type or SIGN_PREDICATE),)


def _read_words(read: int) -> str:
    if read:
        return f"configuration and layers are as the manifest says: {read} blobs read"
    return "configuration and layers were not read (--layers reads them)"


def _moment(finding: Finding) -> str:
    return finding.signed_at.isoformat(timespec="seconds") if finding.signed_at is not None else ""


def _as_json(evaluation: Evaluation, scope: str) -> dict[str, Any]:  # Any: JSON
    results = [
        {
            "requirement": result.requirement,
            "fulfilled": result.fulfilled,
            "signatures": [
                {
                    "place": finding.place,
                    "format": finding.form,
                    "over": finding.subject,
                    **({"signer": finding.signer, "signed_at": _moment(finding)} if not finding.code else {}),
                    **({"code": finding.code, "reason": finding.reason} if finding.code else {}),
                }
                for finding in result.findings
            ],
        }
        for result in evaluation.results
    ]
    return {
        "schema": 1,
        "accepted": evaluation.manifest is not None,
        "proved": evaluation.proved,
        "digest": str(evaluation.digest),
        **({"scope": scope} if scope else {}),
        "requirements": results,
    }


def _print(evaluation: Evaluation, scope: str) -> None:
    print_line(f"{evaluation.digest}  {'accepted' if evaluation.manifest else 'REFUSED'}")
    if scope:
        print_line(f"  policy     {scope}")
    for result in evaluation.results:
        print_line(f"  {'ok' if result.fulfilled else 'no':<3} {result.requirement}")
        for finding in result.findings:
            print_line(
                f"      {'ok' if not finding.code else 'no':<3} {finding.form}, {finding.place}, over {finding.subject}"
            )
            when = f", {_moment(finding)}" if finding.signed_at is not None else ""
            print_line(f"          {f'{finding.code}: {finding.reason}' if finding.code else finding.signer + when}")
        if not result.findings:
            print_line("      no signature was found")
    if evaluation.manifest is not None and not evaluation.proved:
        print_line("  !!  NOT VERIFIED: the policy accepts this image whoever made it")
