"""`cloister evidence collect|show|verify`: evidence of any TEE, in and out.

`verify` is an interface for scripts: options, JSON members and exit codes (0 accept, 1 refuse, 2 usage, 3 unavailable)
do not change; members are only added.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.text import Text

from cloister.cli.forms import Output, OutputOption
from cloister.cli.output import EXIT_REFUSED, EXIT_UNAVAILABLE, StepPrinter, print_json, stdout, visible
from cloister.cli.refusals import refusal_number
from cloister.rats.claims import LEVEL_MEANING, Claims
from cloister.rats.result import Bound, Examination, Finding, Question, Verdict

if TYPE_CHECKING:
    from cloister.sdk.evidence import Described

app = typer.Typer(no_args_is_help=True, help="Collect, look at and verify evidence of any TEE.", rich_markup_mode=None)

_EXIT: Final = {Verdict.ACCEPT: 0, Verdict.REFUSE: EXIT_REFUSED, Verdict.UNAVAILABLE: EXIT_UNAVAILABLE}
_SHOWN_HEX: Final = 24
_PLATFORM_HELP = "snp, tdx, sgx, tpm, az-snp-vtpm, az-tdx-vtpm, nitro, cca, nvidia or simulated"


def _hex(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return bytes.fromhex(text)
    except ValueError as err:
        raise typer.BadParameter("not hexadecimal") from err


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as err:
        raise typer.BadParameter("not a time as RFC 3339 writes it, for example 2026-07-01T00:00:00Z") from err
    if moment.tzinfo is None:
        raise typer.BadParameter("the time needs a zone, for example a Z at the end")
    return moment.astimezone(UTC)


def platform_choice(text: str) -> str:
    """Return the name of a platform, as given."""
    from cloister.sdk.evidence import PLATFORMS

    if text not in PLATFORMS:
        raise typer.BadParameter(f"not one of {', '.join(PLATFORMS)}")
    return text


FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="Raw evidence, or the JSON a guest sends.")
]
PlatformOption = Annotated[
    str, typer.Option("--platform", metavar="NAME", callback=platform_choice, help=_PLATFORM_HELP)
]
AtOption = Annotated[
    str | None, typer.Option("--at", metavar="RFC3339", help="Time of the verification [default: now].")
]
EndorsementOption = Annotated[
    list[Path] | None,
    typer.Option("--endorsement", metavar="FILE", exists=True, help="Certificate; not trusted by being given."),
]
CollateralOption = Annotated[
    list[Path] | None,
    typer.Option("--collateral", metavar="FILE_OR_DIR", exists=True, help="DCAP collateral, CRLs, OCSP, RIMs."),
]
RootOption = Annotated[
    list[Path] | None,
    typer.Option("--trust-root", metavar="FILE", exists=True, help="Extra root: certificate, or raw platform key."),
]


@app.command("verify")
def verify_command(
    file: FileArgument,
    platform: PlatformOption,
    at: AtOption = None,
    nonce: Annotated[
        str | None, typer.Option(metavar="HEX", help="Exact freshness bytes of TPM, Azure, Nitro, NVIDIA, CCA.")
    ] = None,
    report_data: Annotated[str | None, typer.Option(metavar="HEX", help="The 64 bytes of SNP, TDX, SGX.")] = None,
    init_data: Annotated[str | None, typer.Option(metavar="HEX", help="Raw value of the init data field.")] = None,
    endorsement: EndorsementOption = None,
    collateral: CollateralOption = None,
    trust_root: RootOption = None,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, help="Appraisal policy [default: strict]."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="FILE", exists=True, help="Reference values the registers must hold.")
    ] = None,
    advisories: Annotated[
        Path | None, typer.Option(metavar="FILE", exists=True, help="A newer table of advisories.")
    ] = None,
    insecure_no_revocation: Annotated[
        bool, typer.Option("--insecure-no-revocation", help="Accept evidence whose revocation cannot be checked.")
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Answer three questions about evidence: is it authentic, is it bound, is it acceptable?

    Nothing is fetched. Revocation data and collateral that the vendor offers and that was not given make the verdict
    `unavailable`. Exit status: 0 accept, 1 refuse, 2 usage, 3 unavailable.
    """
    from cloister.sdk import verify_evidence

    if nonce is not None and report_data is not None:
        raise typer.BadParameter("give one of --nonce and --report-data")
    answer = verify_evidence(
        file,
        platform=platform,
        nonce=_hex(nonce),
        report_data=_hex(report_data),
        init_data=_hex(init_data),
        endorsements=endorsement or (),
        collateral=collateral or (),
        trust_roots=trust_root or (),
        policy=policy,
        reference=reference,
        advisories=advisories,
        insecure_no_revocation=insecure_no_revocation,
        at=_time(at),
    )
    if output is Output.JSON:
        print_json(examination_document(answer))
    else:
        _print_examination(answer)
    raise typer.Exit(_EXIT[answer.verdict])


@app.command("show")
def show_command(
    file: FileArgument,
    platform: PlatformOption,
    at: AtOption = None,
    endorsement: EndorsementOption = None,
    collateral: CollateralOption = None,
    trust_root: RootOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show what evidence says: what it is, who signed it, TCB, measurements, days to expiry.

    What cannot be authenticated is shown too, and said to be unverified.
    """
    from cloister.sdk.evidence import describe_file

    moment = _time(at) or datetime.now(UTC)
    described = describe_file(
        file,
        platform=platform,
        endorsements=endorsement or (),
        collateral=collateral or (),
        trust_roots=trust_root or (),
        at=moment,
    )
    if output is Output.JSON:
        document = {"schema": 1, "form": described.form, "verified": described.problem is None}
        document["problem"] = described.problem.as_dict() if described.problem else None
        print_json({**document, "claims": claims_document(described.claims) if described.claims else {}})
        return
    stdout.print(Text(visible(f"{file.name}: {described.form}"), style="bold"))
    if described.problem is not None:
        line = f"NOT VERIFIED: {refusal_number(described.problem.code)} {described.problem.message}"
        stdout.print(Text(visible(line), style="red"))
    if described.claims is not None:
        _print_branches(described, described.claims, moment)


@app.command("collect")
def collect_command(
    report_data: Annotated[
        str, typer.Option("--report-data", "--nonce", metavar="HEX", help="What the evidence shall bind.")
    ],
    platform: Annotated[
        str, typer.Option(metavar="NAME", help=f"{_PLATFORM_HELP} [default: whose device is here].")
    ] = "",
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="[default: standard output]")] = None,
) -> None:
    """Collect evidence of this machine, as the JSON that guests send.

    A device that is here says nothing about trust: verify the evidence somewhere else.
    """
    from cloister.sdk.evidence import attest

    chosen, body = attest(_hex(report_data) or b"", platform=platform_choice(platform) if platform else "")
    text = json.dumps(body, indent=1) + "\n"
    if out is None:
        stdout.file.write(text)
    else:
        out.write_text(text)
    step = StepPrinter()
    step("ok", "evidence collected", f"{chosen}, {len(text):,} characters")
    step.note(f"next: cloister evidence verify {out or 'FILE'} --platform {chosen} --nonce {report_data[:16]}..")


def examination_document(answer: Examination) -> dict[str, Any]:  # Any: JSON
    """Return the JSON form of an examination, schema 1."""
    return {
        "schema": 1,
        "form": answer.form,
        "authentic": answer.authentic,
        "bound": answer.bound.value,
        "acceptable": answer.acceptable,
        "verdict": answer.verdict.value,
        "findings": [_finding_document(finding) for finding in answer.findings],
        "unchecked": [item.reason for item in answer.unchecked],
        "claims": claims_document(answer.claims) if answer.claims is not None else {},
    }


def claims_document(claims: Claims) -> dict[str, Any]:  # Any: JSON
    """Return claims as JSON: the common model, and beside it the values under the technology's own names."""
    tcb = claims.tcb
    common: dict[str, Any] = {
        "tee": claims.tee,
        "platform": claims.platform,
        "product": claims.product,
        "level": claims.level.value,
        "debug": claims.debug,
        "instance_id": claims.instance_id,
        "report_data": claims.report_data.hex(),
        "init_data": claims.init_data.hex(),
        "registers": {name: value.hex() for name, value in claims.registers.items()},
        "measurements": {role.value: value.hex() for role, value in claims.measurements.items()},
        "advisories": list(claims.advisories),
    }
    if tcb is not None:
        levels = {"reported": tcb.reported, "current": tcb.current, "committed": tcb.committed, "launch": tcb.launch}
        common["tcb"] = {name: dict(value) for name, value in levels.items() if value}
        common["tcb_status"] = tcb.status
    if claims.window is not None:
        common["not_before"] = claims.window.not_before.isoformat()
        common["not_after"] = claims.window.not_after.isoformat()
    return {**common, **claims.native}


def _finding_document(finding: Finding) -> dict[str, Any]:  # Any: JSON
    return {
        "code": finding.code,
        "number": refusal_number(finding.code),
        "question": finding.question.value,
        "ok": finding.ok,
        "severity": "info" if finding.ok else finding.severity.value,
        "path": finding.path,
        "message": finding.message,
        "expected": finding.expected,
        "actual": finding.actual,
        "origin": finding.origin,
        "hint": "" if finding.ok else finding.hint,
    }


def _print_examination(answer: Examination) -> None:
    claims = answer.claims
    what = f"{claims.platform or claims.tee}, level {claims.level.value.upper()}" if claims else "not authentic"
    stdout.print(Text(visible(f"{answer.form}: {what}")))
    answers = {
        Question.AUTHENTIC: answer.authentic,
        Question.BOUND: answer.bound is Bound.YES,
        Question.ACCEPTABLE: answer.acceptable,
    }
    for question, held in answers.items():
        own = [finding for finding in answer.findings if finding.question is question]
        mark = "ok" if held else "no"
        words = "yes" if held else "no"
        if question is Question.BOUND:
            mark, words = {"yes": "ok", "no": "no"}.get(answer.bound.value, "--"), answer.bound.value
        elif any(finding.unknown for finding in own):
            mark, words = "--", "not known"
        count = f"{sum(finding.ok for finding in own)} of {len(own)} checks held" if own else "not judged"
        _print_step(mark, f"{question.value}: {words}", count)
        for finding in own:
            if not finding.ok:
                _print_finding(finding)
    for item in answer.unchecked:
        _print_step("--", "not checked", item.reason)
    style = "green" if answer.verdict is Verdict.ACCEPT else "red"
    stdout.print(Text(f"verdict: {answer.verdict.value}", style=style))


def _print_finding(finding: Finding) -> None:
    mark = "no" if finding.refuses else "--" if finding.unknown else "!!"
    values = f": expected {finding.expected or 'nothing'}, got {finding.actual or 'nothing'}"
    shown = values if finding.expected or finding.actual else ""
    _print_step(f"   {mark}", f"{refusal_number(finding.code)} {finding.message}{shown}", "")
    if finding.hint:
        stdout.print(Text(visible(f"          {finding.hint}"), style="dim"))


def _print_step(mark: str, text: str, detail: str) -> None:
    stdout.print(Text(visible(f" {mark:<3} {text:<28} {detail}".rstrip())))


def _print_branches(described: Described, claims: Claims, at: datetime) -> None:
    """Print what evidence says as an indented tree; no line is wrapped or cut by the width of the terminal."""
    named = set(claims.measurements.values())
    registers = {name: value for name, value in claims.registers.items() if any(value) and value not in named}
    _branch("what it is", _identity(claims, verified=described.problem is None))
    signers = (item for item in described.findings if _names_signer(item))
    _branch("who signed it", (f"{item.message}: {item.actual}" for item in signers))
    _branch("TCB", _tcb(claims))
    _branch("measurements", (f"{role.value:<14}{value.hex()}" for role, value in claims.measurements.items()))
    width = max((len(name) for name in registers), default=0) + 2
    _branch("registers", (f"{name:<{width}}{value.hex()}" for name, value in registers.items()))
    _branch("bound to", _bound_to(claims))
    _branch("also says", (f"{name}: {_short(value)}" for name, value in _own_words(claims).items()))
    _branch("validity of what vouches for it", _validity(claims, at))


def _branch(title: str, lines: Iterable[str]) -> None:
    shown = list(lines)
    if shown:
        stdout.print(Text(f"  {title}", style="bold"))
        for line in shown:
            stdout.print(Text(visible(f"    {line}")))


def _validity(claims: Claims, at: datetime) -> Iterator[str]:
    if claims.window is None:
        return
    days = (claims.window.not_after - at).days
    until = claims.window.not_after.date().isoformat()
    yield f"{days} days left, until {until}" if days >= 0 else f"expired {-days} days ago, {until}"


def _identity(claims: Claims, *, verified: bool) -> Iterator[str]:
    yield f"{claims.platform or claims.tee}"
    if verified:
        yield f"level {claims.level.value}: {LEVEL_MEANING[claims.level]}"
    else:
        yield "level not known: nobody verified who signed it, so all of this may be made up"
    yield f"debug {'ON: its operator can read and alter it' if claims.debug else 'off'}"
    if claims.instance_id:
        yield f"instance {_short(claims.instance_id)}"


def _names_signer(finding: Finding) -> bool:
    return finding.question is Question.AUTHENTIC and finding.ok and " < " in finding.actual


def _tcb(claims: Claims) -> Iterator[str]:
    if claims.tcb is None:
        return
    if claims.tcb.status:
        yield f"status {claims.tcb.status}"
    levels = ("reported", "current", "committed", "launch")
    for name in levels:
        value: Mapping[str, int] = getattr(claims.tcb, name)
        if value:
            yield f"{name:<10}" + "  ".join(f"{part} {version}" for part, version in value.items())
    for advisory in claims.advisories:
        yield f"advisory {advisory}"


def _bound_to(claims: Claims) -> Iterator[str]:
    yield f"report data   {claims.report_data.hex() or 'nothing'}"
    if claims.init_data:
        yield f"init data     {claims.init_data.hex()}"


def _own_words(claims: Claims) -> dict[str, Any]:  # Any: JSON
    """Return native claims that no other branch shows."""
    told = {claims.report_data.hex(), claims.init_data.hex(), *(value.hex() for value in claims.registers.values())}
    return {
        name: value
        for name, value in claims.native.items()
        if name != "debug" and not (isinstance(value, str) and value in told)
    }


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 2 * _SHOWN_HEX else text[:_SHOWN_HEX] + ".."
