"""`cloister secret put|get|list|rm|seal`: the keys and files that a trust service releases, and signed references to
them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.administered import administered, moment, print_struct, print_table, write_private
from cloister.cli.forms import Output, OutputOption
from cloister.cli.output import print_json, print_line
from cloister.crypto.aead import AES256_KEY_BYTES
from cloister.errors import FormatRefused, Refused
from cloister.protocol.resourceuri import ResourcePath, parse_resource_uri
from cloister.wire.limits import RESOURCE_BYTES

if TYPE_CHECKING:
    from cloister.client.admin import AdminClient

app = typer.Typer(no_args_is_help=True, help="Keep secrets that are released to attested pods.", rich_markup_mode=None)

URIArgument = Annotated[str, typer.Argument(metavar="URI", help="kbs:///repository/type/tag.")]


@app.command("put")
@administered
def put_command(
    client: AdminClient,
    uri: URIArgument,
    file: Annotated[Path, typer.Option("--file", exists=True, dir_okay=False, help="What to store: 1 byte to 1 MiB.")],
    output: OutputOption = Output.TEXT,
) -> None:
    """Store a secret, replacing an older version. Nobody gets it without a release rule."""
    with file.open("rb") as stream:
        content = stream.read(RESOURCE_BYTES + 1)
    if not 0 < len(content) <= RESOURCE_BYTES:
        raise FormatRefused(
            "trust.resource.size",
            "a resource is a key or a small file",
            path=str(file),
            expected=f"1 to {RESOURCE_BYTES} bytes",
        )
    stored = client.put_resource(_path(uri), content)
    if output is Output.JSON:
        print_struct(stored)
    else:
        print_line(f"stored kbs:///{stored.path} version {stored.version}")


@app.command("get")
@administered
def get_command(
    client: AdminClient,
    uri: URIArgument,
    out: Annotated[Path | None, typer.Option("--out", help="New private file for the secret.")] = None,
    to_stdout: Annotated[bool, typer.Option("--stdout", help="Write the secret itself to standard output.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show version and time of a secret; its content only with --out or --stdout."""
    path = _path(uri)
    if out is not None and to_stdout:
        raise typer.BadParameter("--out and --stdout exclude each other", param_hint="--out")
    if to_stdout:
        sys.stdout.buffer.write(client.get_resource_content(path))
        return
    if out is not None:
        write_private(out, client.get_resource_content(path))
    found = client.get_resource(path)
    if output is Output.JSON:
        print_struct(found)
        return
    print_line(f"kbs:///{found.path} version {found.version}, {moment(found.updated_at)}")
    if out is not None:
        print_line(f"  content in {out}, readable by you alone")


@app.command("list")
@administered
def list_command(client: AdminClient, output: OutputOption = Output.TEXT) -> None:
    """List secrets, without content."""
    from cloister.protocol.admin.policies import ResourcePage

    page = client.list_resources()
    found = list(page.resources)
    while page.next:
        page = client.list_resources(after=page.next)
        found += page.resources
    if output is Output.JSON:
        print_struct(ResourcePage(resources=found))
        return
    print_table(
        ("secret", "version", "since"),
        ((f"kbs:///{item.path}", str(item.version), moment(item.updated_at)) for item in found),
    )


@app.command("rm")
@administered
def rm_command(client: AdminClient, uri: URIArgument, output: OutputOption = Output.TEXT) -> None:
    """Delete a secret; pods that have it keep it until they end."""
    done = client.delete_resource(_path(uri))
    if output is Output.JSON:
        print_struct(done)
    else:
        print_line(f"deleted kbs:///{done.subject}")


@app.command("seal")
def seal_command(
    uri: Annotated[str, typer.Argument(metavar="URI", help="kbs:///... of the secret, or of the key with --file.")],
    signing_key: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="P-256 private key, PEM.")],
    kid: Annotated[str, typer.Option(help="Name of the key, as pods know it: kbs:///... of its public half.")],
    file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Carry this secret itself, under the key at URI.")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="With --file: the 32-byte key stored at URI.")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Make a sealed secret, as CoCo's guests and ours read it: safe to put into a Kubernetes Secret.

    It is a signed reference to a secret, or with --file the encrypted secret itself. The pod policy of the pod says
    which keys may sign and what may be named.
    """
    from cloister.crypto.sealedsecret import SECRET_BYTES, seal_envelope_secret, seal_vault_secret
    from cloister.crypto.signer import ECDSAP256Signer

    path = _path(uri)
    signer = ECDSAP256Signer.from_pem(signing_key.read_bytes())
    if (file is None) != (key_file is None):
        raise typer.BadParameter("--file and --key-file go together", param_hint="--file")
    if file is None or key_file is None:
        text = seal_vault_secret(path, signer, kid=kid)
    else:
        with file.open("rb") as stream:
            content = stream.read(SECRET_BYTES + 1)
        with key_file.open("rb") as stream:
            kek = stream.read(AES256_KEY_BYTES + 1)
        text = seal_envelope_secret(content, signer, kid=kid, key_id=path, kek=kek)
    if output is Output.JSON:
        print_json({"schema": 1, "kid": kid, "resource": path.uri, "sealed": text})
    else:
        print_line(text)


def _path(uri: str) -> ResourcePath:
    try:
        return parse_resource_uri(uri)
    except FormatRefused as err:
        raise Refused(
            "cli.secret.uri",
            "not the address of a secret",
            path="URI",
            expected="kbs:///repository/type/tag",
            actual=uri[:80],
        ) from err
