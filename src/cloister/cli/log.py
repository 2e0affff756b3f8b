"""`cloister log key|witness|monitor|verify`: watch release logs, from any machine."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli.forms import Output, OutputOption
from cloister.cli.output import StepPrinter, print_json, print_line
from cloister.errors import CloisterError, Refused, Unavailable
from cloister.sdk.home import home_from_environment

if TYPE_CHECKING:
    from cloister.sdk.logmonitor import Seen

app = typer.Typer(no_args_is_help=True, help="Witness, watch and check release logs.", rich_markup_mode=None)
_RECEIPT_BYTES = 256 * 1024


@app.command("key")
def key_command(
    state: Annotated[
        Path | None, typer.Option(help="State directory of the trust service [default: $CLOISTER_HOME/trust].")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Print the key of the trust service's release log, and the witnesses it asks: what others pin."""
    from cloister.trust.admin import TrustAdmin

    with TrustAdmin(state or home_from_environment().trust) as admin:
        pins = admin.release_log_pins()
    if output is Output.JSON:
        print_json({"key": pins.key, "witnesses": list(pins.witnesses), "cosignatures": pins.cosignatures})
        return
    print_line(pins.key)
    for witness in pins.witnesses:
        print_line(f"  witness: {witness}")


@app.command("witness")
def witness_command(
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Key and memory of the witness.")],
    listen: Annotated[str, typer.Option(help="Address and port.")] = "127.0.0.1:7080",
    allow: Annotated[
        list[str] | None, typer.Option("--allow", metavar="VKEY", help="Key of a log to witness; remembered.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the witness when it is made [default: a random one].")] = "",
    ready_fd: Annotated[int | None, typer.Option("--ready-fd", hidden=True)] = None,
) -> None:
    """Cosign what logs show, as long as it continues what they showed before.

    A log that was cut, edited or forked is not cosigned. Stops on Ctrl-C. Speaks C2SP tlog-witness over HTTP.
    """
    from cloister.sdk.logwitness import LogWitness, WitnessServer  # a server of its own, for this verb alone
    from cloister.trust.settings import parse_listen

    step = StepPrinter()
    with LogWitness(data, allow=allow or (), name=name, now=time.time) as witness:
        if not witness.logs:
            raise Refused(
                "tlog.witness.unknown_log",
                "no log to witness",
                hint="--allow VKEY; `cloister log key` prints a service's",
            )
        with WitnessServer(parse_listen(listen), witness) as server:
            host, port = server.server_address[0], server.server_address[1]
            step("ok", "witness starts", f"http://{host!s}:{port}  {len(witness.logs)} logs")
            address = f"{witness.key}@http://{host!s}:{port}"
            print_line(address)
            if ready_fd is not None:
                with os.fdopen(ready_fd, "w") as report:
                    report.write(json.dumps({"port": port, "witness": address}) + "\n")
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                step.note("stopped")


@app.command("monitor")
def monitor_command(
    url: Annotated[str, typer.Argument(metavar="URL", help="The log, for example https://trust.example:7070/log.")],
    vkey: Annotated[str, typer.Option("--vkey", metavar="VKEY", help="The log's key.")],
    ca: Annotated[
        Path | None, typer.Option("--ca", metavar="FILE", exists=True, help="CA to accept [default: the system's].")
    ] = None,
    expect: Annotated[
        Path | None, typer.Option("--expect", metavar="FILE", exists=True, dir_okay=False, help="What entries may be.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="FILE", help="What is known [default: below $CLOISTER_HOME].")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    whole: Annotated[bool, typer.Option("--whole", help="Read old entries again, too.")] = False,
    interval: Annotated[float, typer.Option(min=1, help="Seconds between looks.")] = 60.0,
    webhook: Annotated[str, typer.Option("--webhook", metavar="URL", help="Where alarms are sent, JSON by POST.")] = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Watch a release log; end with exit status 1 and an alarm when it is not the log it was.

    Alarms: it became smaller, another history, an edited entry, unexpected entries. A log that does not answer is no
    alarm: with --once exit status 3, else it is asked again.
    """
    from cloister.sdk.logmonitor import Expectations, fetcher, load_known, look, parse_expectations, store_known
    from cloister.tlog.note import ED25519, parse_verifier_key

    key = parse_verifier_key(vkey, kind=ED25519)
    expected = parse_expectations(expect.read_bytes()) if expect else Expectations()
    place = state or home_from_environment().root / "monitor" / f"{hashlib.sha256(vkey.encode()).hexdigest()[:32]}.json"
    fetch = fetcher(url, ca)
    while True:
        known = load_known(place, key)
        try:
            seen, known = look(fetch, key, known, expected=expected, whole=whole)
        except Unavailable as err:
            if once:
                raise
            StepPrinter()("--", "the log does not answer", str(err))
        except Refused as err:
            _report(err, key.name, webhook)
            raise
        else:
            store_known(place, known)
            _show(seen, output)
        if once:
            return
        time.sleep(interval)


@app.command("verify")
def verify_command(
    receipt: Annotated[
        Path, typer.Argument(metavar="RECEIPT", exists=True, dir_okay=False, help="Value of the header.")
    ],
    vkey: Annotated[str, typer.Option("--vkey", metavar="VKEY", help="The log's key.")],
    witness: Annotated[
        list[str] | None, typer.Option("--witness", metavar="VKEY", help="Key of a witness that counts.")
    ] = None,
    cosignatures: Annotated[int, typer.Option(min=0, help="How many of them must have cosigned.")] = 0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Check that a release is in the log, by its receipt alone."""
    from cloister.tlog.receipt import parse_pins, parse_receipt, verify_receipt

    pins = parse_pins(vkey, tuple(witness or ()), cosignatures)
    with receipt.open("rb") as file:
        text = file.read(_RECEIPT_BYTES).decode("utf-8", "replace").strip()
    entry = verify_receipt(parse_receipt(text), pins)
    if output is Output.JSON:
        print_json(
            {
                "log": entry.checkpoint.origin,
                "size": entry.checkpoint.size,
                "index": entry.index,
                "kind": entry.kind,
                "at": entry.at,
                "fields": dict(entry.fields),
                "cosigned_by": list(entry.cosigned_by),
            }
        )
        return
    size, origin = entry.checkpoint.size, entry.checkpoint.origin
    print_line(f"entry {entry.index} of {size} in {origin}: {entry.kind} at {entry.at}")
    for name, value in sorted(entry.fields.items()):
        print_line(f"  {name}: {value}")
    print_line(f"  cosigned by: {', '.join(entry.cosigned_by) or 'nobody that was asked about'}")


def _show(seen: Seen, output: Output) -> None:
    if output is Output.JSON:
        print_json({"size": seen.size, "new": seen.new, "kinds": dict(seen.kinds)})
    elif seen.new:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(seen.kinds.items()))
        print_line(f"{seen.size} entries, {seen.new} new: {kinds}")
    else:
        print_line(f"{seen.size} entries, none new")


def _report(error: CloisterError, origin: str, webhook: str) -> None:
    """Send an alarm; that it cannot be sent does not hide it."""
    if not webhook:
        return
    import httpx

    body: dict[str, Any] = {"log": origin, **error.as_dict()}  # Any: JSON
    body |= {name: getattr(error, name) for name in ("before", "after") if hasattr(error, name)}
    try:
        httpx.post(webhook, json=body, timeout=10)
    except (httpx.HTTPError, httpx.InvalidURL) as err:
        StepPrinter()("!!", "the alarm could not be sent", str(err))
