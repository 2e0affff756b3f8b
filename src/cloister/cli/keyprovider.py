"""`cloister keyprovider`: skopeo, buildah, nerdctl and containerd encrypt and decrypt with keys of the owner's broker.

Bare, it answers one request of ocicrypt's key provider protocol on standard input, which is how tools call a command;
`serve` answers over gRPC; `config` prints the file that tells a tool so. Standard output carries the answer and nothing
else.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_type_hints

import typer

from cloister.cli.output import StepPrinter, stdout
from cloister.cli.refusals import refusal_number
from cloister.cli.trustservice import (
    CAOption,
    ServerOption,
    StateOption,
    TenantOption,
    TokenFileOption,
    trust_service,
)
from cloister.errors import CloisterError, Unavailable
from cloister.wire.limits import KEY_PROVIDER_CONFIG_BYTES, KEY_PROVIDER_REQUEST_BYTES

if TYPE_CHECKING:
    from cloister.imagetool.keyprovider import KEKStore, Provider
    from cloister.imagetool.keyprovider.provider import Report
    from cloister.imagetool.keyprovider.service import ServerTLS
    from cloister.protocol.resourceuri import ResourcePath

app = typer.Typer(rich_markup_mode=None)

_NAME: Final = "attestation-agent"
NameOption = Annotated[
    str, typer.Option("--name", help="What tools call this provider; guests read attestation-agent only.")
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        help="Use this 32-byte key-encryption key, whatever its address; ask and store nowhere.",
    ),
]
InitDataOption = Annotated[
    Path | None,
    typer.Option(
        "--init-data",
        metavar="FILE",
        help="Decrypt in a guest: have keys released by the broker that this init data names, by this machine's "
        "evidence.",
    ),
]
PlatformOption = Annotated[
    str,
    typer.Option("--platform", metavar="NAME", help="With --init-data: tpm, snp, simulated, .. [default: found]."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderOptions:
    """What all three share: who we are, and where keys are."""

    name: NameOption = _NAME
    key_file: KeyFileOption = None
    init_data: InitDataOption = None
    platform: PlatformOption = ""
    server: ServerOption = ""
    token_file: TokenFileOption = None
    ca: CAOption = None
    tenant: TenantOption = ""
    state: StateOption = None

    def __post_init__(self) -> None:
        if self.key_file and self.init_data:
            raise typer.BadParameter("--key-file and --init-data exclude each other", param_hint="--key-file")

    @contextmanager
    def provider(self, *, allow_key_paths: bool, report: Report = lambda operation, path: None) -> Iterator[Provider]:
        """Give the provider for as long as the block runs."""
        from cloister.imagetool.keyprovider import Provider

        with self._keys() as keys:
            yield Provider(keys, name=self.name, allow_key_paths=allow_key_paths, report=report)

    @contextmanager
    def _keys(self) -> Iterator[KEKStore]:
        from cloister.imagetool.keyprovider import AdministeredKeys, OneKey, ReleasedKeys, read_key

        if self.key_file is not None:
            yield OneKey(read_key(self.key_file))
            return
        if self.init_data is not None:
            from cloister.sdk.brokerkeys import released_resources

            with released_resources(self.init_data, self.platform) as release:
                yield ReleasedKeys(release)
            return
        yield AdministeredKeys(
            trust_service(
                server=self.server, token_file=self.token_file, ca=self.ca, tenant=self.tenant, state=self.state
            )
        )

    def words(self) -> list[str]:
        """Return the options as words of a command line that works from any directory."""
        found = []
        for item in fields(self):
            value = getattr(self, item.name)
            if value != item.default:
                text = str(value.absolute()) if isinstance(value, Path) else value
                found += ["--" + item.name.replace("_", "-"), text]
        return found


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that has the shared options and gets them as one value, its first argument."""
    names = [item.name for item in fields(ProviderOptions)]

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:  # Any: the options' own types
        command(ProviderOptions(**{name: given.pop(name) for name in names}), **given)

    word = inspect.Parameter.KEYWORD_ONLY
    hints = get_type_hints(command, include_extras=True) | get_type_hints(ProviderOptions, include_extras=True)
    own = [item.replace(annotation=hints[item.name], kind=word) for item in _parameters(command)[1:]]
    shared = [item.replace(annotation=hints[item.name], kind=word) for item in _parameters(ProviderOptions)]
    wrapped.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]  # read by typer
    wrapped.__annotations__ = {item.name: item.annotation for item in (*own, *shared)}
    del wrapped.__wrapped__  # or the signature of the command would be read instead
    return wrapped


def _parameters(thing: Callable[..., Any]) -> list[inspect.Parameter]:  # Any: whatever it returns
    return list(inspect.signature(thing).parameters.values())


@app.callback(invoke_without_command=True)
@with_options
def answer_command(
    options: ProviderOptions,
    context: typer.Context,
) -> None:
    """Let skopeo, buildah, nerdctl and containerd encrypt and decrypt images with keys of the trust service.

    Without a command: answer one request of such a tool on standard input. What a tool's user writes behind the name:
    keyid=kbs:///repository/type/tag (which key; made and stored on first use; without it every layer gets one of its
    own) and keypath=FILE (the key is in a file), joined by ::.
    """
    if context.invoked_subcommand is not None:
        return
    if sys.stdin.isatty():
        stdout.print(context.get_help())
        raise typer.Exit(2)
    request = sys.stdin.buffer.read(KEY_PROVIDER_REQUEST_BYTES + 1)
    with options.provider(allow_key_paths=True) as provider:
        answer = provider.answer(request)
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()


@app.command("serve")
@with_options
def serve_command(
    options: ProviderOptions,
    listen: Annotated[str, typer.Option(metavar="ADDRESS", help="unix:PATH, or HOST:PORT with TLS.")],
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="Certificate of a port, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key, PEM.")] = None,
    client_ca: Annotated[Path | None, typer.Option(metavar="FILE", help="CA of whoever may connect, PEM.")] = None,
    insecure_any_local_user: Annotated[
        bool, typer.Option("--insecure-any-local-user", help="Serve a local port without TLS to everybody here.")
    ] = False,
    allow_keypath: Annotated[
        bool, typer.Option("--allow-keypath", help="Let who asks name key files of this machine.")
    ] = False,
) -> None:
    """Answer over gRPC, on a socket that you alone can open or on a port with TLS, until Ctrl-C."""
    from cloister.imagetool.keyprovider.service import serving

    step = StepPrinter()
    tls = _server_tls(tls_cert, tls_key, client_ca)

    def report(operation: str, path: ResourcePath) -> None:
        step("ok", operation, path.uri)

    def complain(err: CloisterError) -> None:
        step("no", refusal_number(err.code), str(err))

    with (
        options.provider(allow_key_paths=allow_keypath, report=report) as provider,
        serving(
            provider, listen, tls=tls, complain=complain, insecure_any_local_user=insecure_any_local_user
        ) as address,
    ):
        if insecure_any_local_user and not address.startswith("unix:"):
            step("no", "no TLS", "every user of this machine can have layer keys opened here")
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        step("ok", "key provider answers", address)
        while not stop.wait(3600):
            continue


@app.command("config")
@with_options
def config_command(
    options: ProviderOptions,
    grpc: Annotated[
        str, typer.Option("--grpc", metavar="ADDRESS", help="Where `serve` listens, instead of the command.")
    ] = "",
    root_ca: Annotated[Path | None, typer.Option(metavar="FILE", help="With --grpc: CA of the server.")] = None,
    client_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --grpc: certificate of the tool.")
    ] = None,
    client_key: Annotated[Path | None, typer.Option(metavar="FILE", help="With --grpc: its private key.")] = None,
) -> None:
    """Print the file to name in OCICRYPT_KEYPROVIDER_CONFIG; the other options go into the command it calls."""
    from cloister.oci.encryption.keyprovider import (
        CommandEndpoint,
        Endpoint,
        GRPCEndpoint,
        TLSFiles,
        encode_config,
        require_address,
    )

    endpoint: Endpoint
    if grpc:
        files = {"root_ca_file": root_ca, "certificate_file": client_cert, "key_file": client_key}
        named = {field: str(file.absolute()) for field, file in files.items() if file is not None}
        require_address(grpc, protected=bool(named), path="--grpc")
        endpoint = GRPCEndpoint(address=grpc, tls=TLSFiles(**named) if named else None)
    else:
        words = [*_own_command(), "keyprovider", *options.words()]
        endpoint = CommandEndpoint(path=words[0], arguments=tuple(words[1:]))
    sys.stdout.write(encode_config(options.name, endpoint).decode() + os.linesep)


def _own_command() -> list[str]:
    """Return how this program is started, by an absolute path."""
    started = Path(sys.argv[0]).absolute()
    if started.name == "cloister" and os.access(started, os.X_OK):
        return [str(started)]
    return [sys.executable, "-m", "cloister"]


def _server_tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> ServerTLS | None:
    from cloister.imagetool.keyprovider.service import ServerTLS

    files: dict[str, Any] = {"certificate": certificate, "key": key, "client_ca": client_ca}  # Any: texts or None
    given = [file for file in files.values() if file is not None]
    if not given:
        return None
    if len(given) != len(files):
        raise typer.BadParameter("--tls-cert, --tls-key and --client-ca belong together", param_hint="--tls-cert")
    return ServerTLS(**{name: _read(file) for name, file in files.items()})


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(KEY_PROVIDER_CONFIG_BYTES)
    except OSError as err:
        raise Unavailable("cli.file.unreadable", f"cannot read the file: {err.strerror}", path=str(file)) from err
