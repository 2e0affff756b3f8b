"""`cloister registry serve`: the embedded registry for people, in the foreground."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.output import StepPrinter
from cloister.errors import Refused

app = typer.Typer(no_args_is_help=True, help="Run an image registry.", rich_markup_mode=None)


@app.callback()
def _registry() -> None:
    pass


@app.command("serve")
def serve_command(
    data: Annotated[Path, typer.Option(help="Directory for blobs and manifests; made if it is not there.")],
    listen: Annotated[str, typer.Option(help="Address and port; port 0 lets the kernel choose.")] = "127.0.0.1:5000",
    users: Annotated[
        Path | None, typer.Option(help="File of name:password lines; without it everybody may do everything.")
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Ask for tokens instead of passwords.")] = False,
    anonymous_pull: Annotated[bool, typer.Option("--anonymous-pull", help="Let everybody read.")] = False,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate and its chain, PEM [default: plain HTTP].")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="The certificate's private key, PEM.")] = None,
) -> None:
    """Serve an image registry (OCI distribution 1.1) from a directory, over TLS or plain HTTP.

    For one machine, tests and air-gapped sites. It is not trusted with anything: what has to stay secret is encrypted
    before it is pushed, and what has to be right is signed. Stops on Ctrl-C.
    """
    from cloister.host.registry.__main__ import read_accounts, serve, tls_files
    from cloister.host.registry.auth import AccessControl

    host, port = _split_listen(listen)
    access = None
    if users is not None:
        access = AccessControl(read_accounts(users), tokens=tokens, anonymous_pull=anonymous_pull)
    elif tokens or anonymous_pull:
        raise Refused("cli.registry.users", "nobody has an account", hint="add --users FILE")
    tls = tls_files(tls_cert, tls_key)
    step = StepPrinter()

    def tell(ready_port: int) -> None:
        place = f"{host}:{ready_port}"
        step("ok", "registry answers", f"{'https' if tls else 'http'}://{place}  data {data}")
        if tls is None and not host.startswith("127.") and host != "::1":
            step("no", "plain HTTP", "whoever is on the way sees names, passwords and whatever is not encrypted")
        named = f"NAME-IN-THE-CERTIFICATE:{ready_port}" if tls else place
        step.note(f"next: cloister image encrypt IMAGE docker://{named}/NAME:TAG ...; stop with Ctrl-C")

    asyncio.run(serve(data, port, tell, address=host, access=access, tls=tls))


def _split_listen(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise Refused("cli.registry.listen", "not an address and a port", expected="127.0.0.1:5000", actual=text[:80])
    return host.removeprefix("[").removesuffix("]"), int(port)
