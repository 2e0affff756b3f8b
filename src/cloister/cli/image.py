"""`cloister image encrypt|sign|inspect`: protect an image without changing it."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated, Any

import typer

from cloister.cli.options import Output, OutputOption
from cloister.cli.output import StepPrinter, print_json, print_line, short_digest
from cloister.cli.progress import BytesBar
from cloister.sdk.home import home_from_environment

app = typer.Typer(no_args_is_help=True, help="Encrypt, sign and look at container images.", rich_markup_mode=None)

_PLACES = "docker://REF, oci:PATH:TAG, oci-archive:PATH:TAG, docker-archive:PATH or dir:PATH"


@app.command("encrypt")
def encrypt_command(
    source: Annotated[str, typer.Argument(help=f"The image: {_PLACES}.")],
    destination: Annotated[
        str,
        typer.Argument(
            help="Where the sealed image goes: docker://REF, oci:PATH:TAG, oci-archive:PATH:TAG or dir:PATH."
        ),
    ],
    recipient: Annotated[str, typer.Option(help="Where the guest asks for the key: kbs:///repository/type/tag.")],
    key_file: Annotated[
        Path | None,
        typer.Option(help="32-byte key-encryption key; without it one is made and stored in the trust service."),
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Seal an image: every layer under a fresh key, the keys wrapped for the key broker.

    The configuration keeps its digest and stays readable; only layers change. Sign afterwards.
    """
    from cloister.imagetool.encrypt import encrypt_image
    from cloister.oci.location import open_sink, open_source, parse_location
    from cloister.protocol.resourceuri import parse_resource_uri
    from cloister.sdk.owner import PLATFORM, Owner, open_transport, registry_access

    path = parse_resource_uri(recipient)
    origin, target = parse_location(source), parse_location(destination)
    if key_file is not None:
        key = key_file.read_bytes()
    else:
        key = secrets.token_bytes(32)
        with Owner(home_from_environment()).admin() as admin:
            admin.put_resource(path, key)
    with (
        open_transport() as transport,
        open_source(origin, registry_access(origin, transport)) as image,
        open_sink(target, registry_access(target, transport), sealed=True) as sink,
        BytesBar("encrypting") as bar,
    ):
        sealed = encrypt_image(
            image,
            origin.selector,
            sink,
            tag=target.selector or "latest",
            kek_id=path.uri,
            kek=key,
            platform=PLATFORM,
            progress=bar,
        )
    if output is Output.JSON:
        layers = [str(layer) for layer in sealed.layers]
        print_json({"schema": 1, "digest": str(sealed.digest), "source": str(sealed.source_digest), "layers": layers})
        return
    step = StepPrinter()
    step("ok", "image encrypted", f"{sealed.digest}")
    step("ok", "key-encryption key", f"{path.uri}  {'from ' + str(key_file) if key_file else 'in the trust service'}")
    step("--", "not hidden", "the configuration: entrypoint, environment, user stay readable to the registry")
    naming = "" if target.reference else " --repository REGISTRY/NAME"
    step.note(f"next: cloister image sign {destination}{naming}")


@app.command("sign")
def sign_command(
    image: Annotated[str, typer.Argument(help="The sealed image: docker://REF, oci:PATH:TAG or oci-archive:PATH:TAG.")],
    key: Annotated[Path | None, typer.Option(help="P-256 private key, PEM [default: the owner's key].")] = None,
    repository: Annotated[
        str, typer.Option(help="Registry and repository the signature names [default: the image's own].")
    ] = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Sign an image as cosign does in key mode; cosign verifies it."""
    from cloister.crypto.signer import ECDSAP256Signer
    from cloister.errors import Refused
    from cloister.imagetool.sign import sign_image
    from cloister.oci.location import open_sink, parse_location
    from cloister.sdk.owner import Owner, open_transport, registry_access

    place = parse_location(image)
    name = repository or (place.reference.name if place.reference else "")
    if not name:
        raise Refused(
            "cli.image.repository",
            "a signature names a repository, and a path has none",
            hint="add --repository registry.example/name",
        )
    signer = ECDSAP256Signer.from_pem(key.read_bytes()) if key else Owner(home_from_environment()).signer()
    with (
        open_transport() as transport,
        open_sink(place, registry_access(place, transport), extend=True) as store,
    ):
        digest = sign_image(store, place.selector, signer, repository=name)
    public = signer.public_key
    if output is Output.JSON:
        print_json({"schema": 1, "digest": str(digest), "repository": name, "key": public.fingerprint})
        return
    step = StepPrinter()
    step("ok", "image signed", f"{digest}")
    step("ok", f"as {name}", f"key {short_digest(public.fingerprint)}")
    step("--", "not proved", "who holds the key: give its public half to whoever verifies")
    step.note("next: cloister run " + image)


@app.command("inspect")
def inspect_command(
    image: Annotated[str, typer.Argument(help=f"The image: {_PLACES}.")], output: OutputOption = Output.TEXT
) -> None:
    """Show what an image is, how each layer is protected, and who signed it (signatures are listed, not verified)."""
    from cloister.oci.location import open_source, parse_location
    from cloister.sdk.inspection import describe_image
    from cloister.sdk.owner import open_transport, registry_access

    place = parse_location(image)
    with open_transport() as transport, open_source(place, registry_access(place, transport)) as source:
        described = describe_image(source, place.selector)
    if output is Output.JSON:
        print_json(described)
        return
    _print_image(described)


def _print_image(described: dict[str, Any]) -> None:  # Any: JSON
    print_line(f"{described['digest']}  {described['platform']}")
    for name in ("entrypoint", "cmd", "user", "cwd"):
        print_line(f"  {name:<11}{described[name]}")
    for layer in described["layers"]:
        protection = f"encrypted, key {layer['key']}" if layer["encrypted"] else "NOT encrypted"
        print_line(f"  layer      {short_digest(layer['digest'])}  {layer['size']:>12,} bytes  {protection}")
    for signature in described["signatures"]:
        print_line(f"  signature  names {signature['repository']}  (not verified here)")
    if not described["signatures"]:
        print_line("  signature  none")
