"""`report.html` of a run: the record as one self-contained page, every value escaped."""

from __future__ import annotations

from pathlib import Path

import jinja2

from cloister.cli.refusals import refusal_number
from cloister.sdk.record import RunRecord

FILE_NAME = "report.html"


def render_report(record: RunRecord) -> str:
    """Return the page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cloister.cli"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    summary = record.summary()
    run = {
        **{
            name: summary[name] for name in ("id", "image", "level", "level_meaning", "started", "proved", "not_proved")
        },
        "version": summary["cloister"],
        "outcome": "refused" if record.refusal else "ran",
        "outcome_text": _outcome(record),
    }
    refusal = None
    if record.refusal:
        fields = dict.fromkeys(("code", "message", "path", "expected", "actual", "hint"), "")
        refusal = {**fields, **record.refusal.as_dict(), "number": refusal_number(record.refusal.code)}
    phases = [{"name": name, "seconds": seconds} for name, seconds in record.phases]
    fields = dict.fromkeys(("message", "expected", "actual", "origin"), "")
    return environment.get_template(FILE_NAME).render(
        run=run,
        refusal=refusal,
        identity=record.identity,
        findings=[{**fields, **finding} for finding in record.findings],
        audit=record.audit,
        phases=phases,
        longest=max((seconds for _, seconds in record.phases), default=1.0) or 1.0,
        commands=_commands(record),
        files=sorted([*record.documents, "run.json", "findings.json", "audit.json"]),
    )


def write_report(record: RunRecord, directory: Path) -> Path:
    """Write the record and its page; return the page's path."""
    record.write(directory)
    page = directory / FILE_NAME
    page.write_text(render_report(record), "utf-8")
    return page


def _outcome(record: RunRecord) -> str:
    if record.refusal:
        return f"Refused: {refusal_number(record.refusal.code)} {record.refusal.message}."
    if record.exit_status is None:
        return "The workload did not start."
    return f"The workload ran and ended with status {record.exit_status}."


def _commands(record: RunRecord) -> str:
    lines = [
        "sha256sum initdata.toml        # what PCR 8 was extended with",
        "python3 -m json.tool findings.json",
        "cloister podvm inspect         # the pod VM's reference values",
    ]
    if record.refusal:
        lines.insert(0, f"cloister explain {refusal_number(record.refusal.code)}")
    return "\n".join(lines)
