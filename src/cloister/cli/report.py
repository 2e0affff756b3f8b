"""`report.html` of a run: the record as one self-contained page, every value escaped, nothing fetched from anywhere.

Every value may come from an image, a guest or a host: the template escapes them all, and a content security policy
stands behind it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2

from cloister.cli.output import visible
from cloister.cli.refusals import find_refusal, refusal_number
from cloister.errors import CloisterError
from cloister.rats.result import Question, Severity
from cloister.sdk.record import RunRecord

FILE_NAME = "report.html"
_ASKS: Final = {
    Question.AUTHENTIC: "Authentic? Does a root that the owner trusts vouch for it?",
    Question.BOUND: "Bound? Was it made now, for this key and this init data?",
    Question.ACCEPTABLE: "Acceptable? Is what runs there what the owner approved?",
}
_SHOWN_DOCUMENTS: Final = {
    "pod-policy.json": "pod policy: what may run",
    "initdata.toml": "init data: what was measured into PCR 8",
    "evidence.json": "evidence, as the verifier received it",
    "launch.json": "launch statement: what was measured into PCR 0",
}
_SHOWN_CHARS: Final = 20_000  # the files beside the page are whole


def render_report(record: RunRecord) -> str:
    """Return the page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cloister.cli"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_readable,
    )
    summary = record.summary()
    run = {
        **{
            name: summary[name] for name in ("id", "image", "level", "level_meaning", "started", "proved", "not_proved")
        },
        "version": summary["cloister"],
        "outcome": "no" if record.refusal else "ok" if record.exit_status == 0 else "",
        "outcome_text": _outcome(record),
    }
    return environment.get_template(FILE_NAME).render(
        run=run,
        refusal=_refusal(record.refusal) if record.refusal else None,
        identity=record.identity,
        questions=[_question(question, record.findings) for question in Question],
        audit=[{**row, "number": refusal_number(str(row["code"]))} for row in record.audit],
        documents=list(_documents(record)),
        phases=[{"name": name, "seconds": seconds} for name, seconds in record.phases],
        longest=max((seconds for _, seconds in record.phases), default=1.0) or 1.0,
        commands=_commands(record),
        files=sorted([*record.documents, "run.json", "findings.json", "audit.json"]),
    )


def _readable(value: Any) -> Any:  # Any: what a template may hold
    """Write out what would turn the reading direction or hide: a page of evidence must read the same to everyone."""
    return "\n".join(map(visible, value.split("\n"))) if type(value) is str else value


def _refusal(error: CloisterError) -> dict[str, str]:
    entry = find_refusal(error.code)
    why, fix = (entry.why, entry.fix) if entry else ("", "")
    fields = dict.fromkeys(("code", "message", "path", "expected", "actual"), "")
    return {**fields, **error.as_dict(), "number": refusal_number(error.code), "why": why, "fix": error.hint or fix}


def _question(question: Question, findings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:  # Any: JSON
    """Return one of the three questions with its answer, which is a function of its findings."""
    fields = {
        **dict.fromkeys(("message", "expected", "actual", "origin", "hint"), ""),
        "severity": Severity.ERROR.value,
    }
    own = [{**fields, **finding} for finding in findings if finding["question"] == question.value]
    failed = sum(1 for finding in own if not finding["ok"] and finding["severity"] != Severity.WARNING.value)
    css, verdict = ("", "not answered") if not own else ("refused", "no") if failed else ("yes", "yes")
    all_of = f"{len(own)} check{'s' if len(own) > 1 else ''}"
    count = f"{failed} of {all_of} failed" if failed else f"{all_of} held" if own else "no check"
    name = question.value.capitalize()
    return {"name": name, "asks": _ASKS[question], "css": css, "verdict": verdict, "count": count, "findings": own}


def _documents(record: RunRecord) -> Iterator[tuple[str, str]]:
    for name, title in _SHOWN_DOCUMENTS.items():
        if name not in record.documents:
            continue
        text = record.documents[name].decode("utf-8", "replace")
        if name.endswith(".json"):
            with contextlib.suppress(ValueError):  # what does not parse is shown as it is
                text = json.dumps(json.loads(text), indent=2)
        cut = f"\n.. {len(text) - _SHOWN_CHARS} more characters in {name}" if len(text) > _SHOWN_CHARS else ""
        yield f"{title} ({name})", text[:_SHOWN_CHARS] + cut


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
    subjects = [str(row["denial_id"]) for row in record.audit if row["denial_id"]]
    if record.refusal:
        subjects.insert(0, refusal_number(record.refusal.code))
    lines = [f"cloister explain {subject}" for subject in subjects] + lines
    return "\n".join(lines)
