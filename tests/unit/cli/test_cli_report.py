"""The page of a run: nothing in it can act, whatever images, guests and hosts put into its values."""

from __future__ import annotations

import html.parser
import re

import pytest

from cloister.cli.report import render_report
from cloister.errors import Refused
from cloister.rats.claims import LEVEL_MEANING, Level
from cloister.sdk.record import RunRecord

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}\u202e</pre></table>\x00\x1b[31m"
ELEMENTS = {
    *("html", "head", "meta", "title", "style", "body", "div", "strong", "h1", "h2", "h3", "p", "table", "tr", "th"),
    *("td", "code", "pre", "span", "b", "br", "details", "summary"),
}
FINDING = {"code": "tee.x", "question": "authentic", "ok": True, "message": "m", "expected": "e", "actual": "a"}


class Page(html.parser.HTMLParser):
    """Collects elements, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def record(*, refused: bool = False, value: str = "plain", level: Level = Level.MEASURED) -> RunRecord:
    made = RunRecord(id="abc", image=value, level=level)
    made.identity = [(value, value)]
    made.phases = [(value, 0.25), ("workload", 0.0)]
    made.proved, made.not_proved = [value], [value]
    made.exit_status = None if refused else 0
    made.documents = {
        "pod-policy.json": b'{"a": "' + value.encode().replace(b'"', b"") + b'"}',
        "evidence.json": b"\xff",
    }
    made.findings = [{**FINDING, "message": value, "origin": value}, {**FINDING, "question": "bound", "ok": False}]
    row = {"id": 1, "at": value, "path": value, "decision": "deny", "denial_id": value, "instance": value}
    made.audit = [{**row, "init_data": value, "code": value, "level": value, "pcr00": value}]
    if refused:
        made.refusal = Refused("podpolicy.claim.env", value, path=value, expected=value, actual=value, hint=value)
    return made


@pytest.mark.parametrize("refused", [False, True])
def test_hostile_values_stay_text(refused: bool) -> None:
    text = render_report(record(refused=refused, value=HOSTILE))
    page = Page(text)
    assert page.elements <= ELEMENTS
    assert page.attributes <= {"lang", "charset", "name", "content", "http-equiv", "class", "style"}
    assert "<script>alert(1)</script>" in page.text and "{{ 7*7 }}" in page.text
    assert all(char.isprintable() or char == "\n" for char in page.text)
    assert "\\u202e" in page.text and "\\x1b" in page.text


def test_nothing_is_fetched() -> None:
    text = render_report(record())
    assert not re.search(r"https?:|url\(|@import|src=|href=", text)
    assert "default-src 'none'" in text


@pytest.mark.parametrize("level", list(Level))
def test_level_is_stamped_with_its_meaning(level: Level) -> None:
    text = Page(render_report(record(level=level))).text
    assert level.value.upper() in text and LEVEL_MEANING[level] in text


def test_three_questions_are_answered_by_their_findings() -> None:
    text = " ".join(Page(render_report(record())).text.split())
    assert re.search(r"Authentic\? [^?]*\? ?yes ?1 check held", text), text
    assert re.search(r"Bound\? [^?]*\? ?no ?1 of 1 check failed", text)
    assert re.search(r"Acceptable\? [^?]*\? ?not answered ?no check", text)


def test_refusal_has_cause_place_values_reason_and_fix() -> None:
    text = Page(render_report(record(refused=True, value="other"))).text
    for word in ("CLS-P-0117", "podpolicy.claim.env", "other", "LD_PRELOAD", "cloister explain CLS-P-0117"):
        assert word in text


def test_nothing_happened_is_said() -> None:
    bare = RunRecord(id="abc", image="x", level=Level.SIMULATED)
    text = Page(render_report(bare)).text
    for words in ("Nothing was launched", "none was released", "not answered", "Nothing was proved", "did not start"):
        assert words in text
