"""`cloister explain`: what a refusal means, by number, by code, or the whole record of one denial."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from cloister.cli.forms import Output, OutputOption
from cloister.cli.output import print_json, print_line
from cloister.cli.refusals import Refusal, find_refusal, refusal_number
from cloister.cli.trustservice import CAOption, ServerOption, StateOption, TenantOption, TokenFileOption
from cloister.errors import Refused
from cloister.rats.result import Severity
from cloister.sdk.home import trust_directory

if TYPE_CHECKING:
    from cloister.protocol.admin.records import Denial

_DENIAL_PREFIX = "d-"


def explain_command(
    subject: Annotated[str, typer.Argument(help="A number (CLS-P-0101), a code, or a denial id (d-..).")],
    server: ServerOption = "",
    token_file: TokenFileOption = None,
    ca: CAOption = None,
    tenant: TenantOption = "",
    state: StateOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Explain a refusal: cause, expected and actual value, and what to change."""
    if subject.startswith(_DENIAL_PREFIX):
        from cloister.sdk.administration import AdministrationTarget, open_administration  # brings the network library

        target = AdministrationTarget(
            server=server,
            token_file=token_file,
            ca_file=ca,
            tenant=tenant,
            state=state or trust_directory(),
        )
        with open_administration(target) as client:
            _explain_denial(client.get_denial(subject), output)
        return
    entry = find_refusal(subject)
    if entry is None:
        raise Refused(
            "cli.explain.unknown",
            "no such refusal",
            actual=subject[:80],
            hint="all of them are listed in docs/reference/refusals.md",
        )
    if output is Output.JSON:
        print_json({"schema": 1, **dataclasses.asdict(entry)})
        return
    _print_entry(entry)


def _explain_denial(record: Denial, output: Output) -> None:
    if output is Output.JSON:
        print_json({"schema": 1, "denial": msgspec.to_builtins(record)})
        return
    print_line(f"{record.id}  denied at {record.stage}, {record.at.isoformat(timespec='seconds')}")
    rows: dict[str, Any] = {  # Any: text
        "cause": f"{refusal_number(record.code)} {record.message}  ({record.code})",
        "place": record.path,
        "expected": record.expected,
        "actual": record.actual,
        "resource": record.resource,
        "level": record.level,
        "init data": record.init_data,
        "fix": record.hint,
    }
    for name, value in rows.items():
        if value:
            print_line(f"  {name:<10}{value}")
    if record.findings:
        print_line("  all checks, as they were made then:")
    for finding in record.findings:
        differs = not finding.ok and (finding.expected or finding.actual)
        values = f"expected {finding.expected}, got {finding.actual or 'none'}" if differs else finding.actual
        shown = f": {values}" if values else ""
        origin = f"  [{finding.origin}]" if finding.origin else ""
        refuses = finding.severity in ("", Severity.ERROR)
        mark = "ok" if finding.ok else ("no" if refuses else "!!")
        print_line(f"    {mark}  {finding.question:<11}{finding.message}{shown}{origin}")
    if record.attestation:
        print_line(f"  evidence kept as {record.attestation}")
    entry = find_refusal(record.code)
    if entry is not None:
        _print_entry(entry)


def _print_entry(entry: Refusal) -> None:
    print_line(f"{entry.id}  {entry.title}  ({entry.code})")
    print_line(f"  why  {entry.why}")
    print_line(f"  fix  {entry.fix}")
