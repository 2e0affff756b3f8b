"""Which trust service a verb works with: the options `--server --token-file --ca --tenant --state`, always the same.

    @with_trust_service
    def encrypt_command(service: OpenService, recipient: ...) -> None: ...

The decorator adds the options to a verb and gives it what opens a client instead. Nothing is opened, and no library of
the network loaded, before the verb asks for it. Without a server it is the state directory of this machine.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_type_hints

import typer

from cloister.sdk.home import home_from_environment, trust_directory

if TYPE_CHECKING:
    from cloister.client.admin import AdminClient

OpenService = Callable[[], AbstractContextManager["AdminClient"]]

_CONTEXT: Final = "context"
_COLLATERAL: Final = "collateral"  # an option of a verb that is for whoever judges: the service that runs here

ServerOption = Annotated[
    str,
    typer.Option("--server", metavar="URL", envvar="CLOISTER_SERVER", help="Address of the trust service."),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        envvar="CLOISTER_TOKEN_FILE",
        help="File with an access token; with --server.",
    ),
]
CAOption = Annotated[
    Path | None,
    typer.Option(
        "--ca", metavar="FILE", envvar="CLOISTER_CA", help="CA certificate of the service [default: the system's CAs]."
    ),
]
TenantOption = Annotated[str, typer.Option("--tenant", metavar="NAME", help="Whose [default: the token's own].")]
StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state", metavar="DIR", help="Without --server: the state directory [default: $CLOISTER_HOME/trust]."
    ),
]
_OPTIONS: Final[Sequence[tuple[str, Any, Any]]] = (  # Any: annotations and defaults of options
    ("server", ServerOption, ""),
    ("token_file", TokenFileOption, None),
    ("ca", CAOption, None),
    ("tenant", TenantOption, ""),
    ("state", StateOption, None),
)


def trust_service(
    *,
    server: str = "",
    token_file: Path | None = None,
    ca: Path | None = None,
    tenant: str = "",
    state: Path | None = None,
    collateral: Path | None = None,
) -> OpenService:
    """Return what opens the service that the options name; see `AdministrationTarget` for errors and arguments."""

    def opened() -> AbstractContextManager[AdminClient]:
        from cloister.sdk.administration import AdministrationTarget, open_administration

        if not server and state is None:
            home_from_environment()  # made private; a command for a server needs no home, and may have none
        return open_administration(
            AdministrationTarget(
                server=server,
                token_file=token_file,
                ca_file=ca,
                tenant=tenant,
                state=state or trust_directory(),
                collateral=collateral,
            )
        )

    return opened


def with_trust_service(verb: Callable[..., None], *, group: bool = False) -> Callable[..., None]:
    """Return a command that takes the shared options and calls `verb` with an `OpenService` as its first argument.

    Args:
        verb: the command without the shared options.
        group: whether it is what a group of commands does when none of them is named.
    """

    @functools.wraps(verb)
    def command(
        *,
        server: str,
        token_file: Path | None,
        ca: Path | None,
        tenant: str,
        state: Path | None,
        **own: Any,  # Any: the verb's own options
    ) -> None:
        context: typer.Context | None = own.pop(_CONTEXT, None)
        if context is not None and context.invoked_subcommand is not None:
            return  # the group of a verb of its own: the verb does the work
        collateral: Path | None = own.pop(_COLLATERAL, None)
        service = trust_service(
            server=server, token_file=token_file, ca=ca, tenant=tenant, state=state, collateral=collateral
        )
        verb(service, **own)

    # The client's own type is not loaded for this: it brings the network library into every start.
    hints = get_type_hints(verb, localns={"AdminClient": object}, include_extras=True)
    kept = [item.replace(annotation=hints[item.name]) for item in inspect.signature(verb).parameters.values()][1:]
    if group:
        kept.insert(0, inspect.Parameter(_CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, annotation, default in _OPTIONS
    ]
    keyword = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in kept]
    command.__signature__ = inspect.Signature([*keyword, *shared])  # type: ignore[attr-defined]  # read by typer
    command.__annotations__ = {item.name: item.annotation for item in (*keyword, *shared)}
    del command.__wrapped__  # or the signature of the verb would be read instead
    return command
