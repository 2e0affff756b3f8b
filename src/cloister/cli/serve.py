"""`cloister serve`: run the trust service in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.output import StepPrinter
from cloister.sdk.home import home_from_environment


def serve_command(
    listen: Annotated[str, typer.Option(help="Address and port; port 0 takes a free one.")] = "127.0.0.1:7070",
    state: Annotated[Path | None, typer.Option(help="State directory [default: $CLOISTER_HOME/trust].")] = None,
    database: Annotated[
        str, typer.Option(help="postgresql://USER@HOST/DATABASE, for replicas [default: SQLite in STATE].")
    ] = "",
    database_password_file: Annotated[
        Path | None, typer.Option(help="File with the password of the database's user [default: PGPASSFILE].")
    ] = None,
    collateral: Annotated[
        Path | None, typer.Option(help="CLOISTER_CACHE of what `cloister collateral` fetches [default: STATE].")
    ] = None,
    names: Annotated[
        str, typer.Option(help="Names and addresses in the TLS certificate, comma-separated.")
    ] = "localhost,127.0.0.1,10.0.2.2",
    trust_domain: Annotated[str, typer.Option(help="SPIFFE trust domain of identities [default: no identities].")] = "",
    identity_issuer: Annotated[str, typer.Option(help="https address that JWT-SVIDs name as issuer.")] = "",
) -> None:
    """Run the trust service: verifier, reference values, key broker.

    Speaks the key broker protocol 0.4.0 over TLS with its own CA (made on first start, kept in the state directory).
    Stops on Ctrl-C after answering what it has begun.
    """
    from cloister.protocol.spiffe import parse_trust_domain
    from cloister.trust.app import serve  # the service's libraries are needed by this verb alone
    from cloister.trust.settings import TrustSettings, parse_listen

    host, port = parse_listen(listen)
    directory = state or home_from_environment().trust
    step = StepPrinter()
    step("ok", "trust service starts", f"https://{host}:{port}  state {directory}")
    step.note("next: cloister run IMAGE, or point a guest's init data at this address; stop with Ctrl-C")
    settings = TrustSettings(
        state=directory,
        database=database,
        database_password_file=database_password_file,
        host=host,
        port=port,
        names=tuple(names.split(",")),
        collateral=collateral,
        trust_domain=parse_trust_domain(trust_domain) if trust_domain else "",
        identity_issuer=identity_issuer,
    )
    serve(settings)
