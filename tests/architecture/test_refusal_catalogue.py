"""Every error code in the source has an entry in the catalogue that `cloister explain` reads, and no entry is stale.

Codes are found in two ways, because they reach an error in two ways: as an argument of an error class, a finding or a
check (read from the syntax tree, f-strings by their constant head), and as plain text handed through a function of a
module (any string that looks like a code of a known area).
"""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

from cloister import errors
from cloister.cli.refusals import find_refusal
from source_trees import nodes_of

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "cloister"
CATALOGUE = SOURCE / "cli" / "refusals.toml"
NUMBER = re.compile(r"CLS-([AFGHIKP])-\d{4}")
# Which letter the codes of an area carry: what the refusal is about, not who noticed it.
LETTERS = {
    "A": (
        "appraisal", "evidence", "tee", "rats", "collateral", "crypto.x509", "crypto.dsse", "trust.session",
        "trust.attest", "trust.verifier", "trust.reference", "trust.root",
    ),
    "P": ("podpolicy",),
    "I": ("oci", "imagetool", "crypto.signer", "crypto.openpgp"),
    "G": ("guest", "guestapi", "crypto.streamseal"),
    "K": (
        "trust", "client", "protocol.kbs", "protocol.resource", "protocol.spiffe", "protocol.tenant", "crypto", "tlog",
    ),
    "H": ("host", "cli", "sdk"),
    "F": ("wire", "protocol"),
}  # fmt: skip
ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
READER_SUFFIXES = ("truncated", "too_long", "trailing_bytes")
FAMILY = "family"  # the name of a variable that holds one of several error classes
CODE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+")
FILE_NAMES = re.compile(
    r"\.(toml|json|py|img|lock|txt|pem|html|conf|efi|rom|bin|fd|sock|tar|gz|log|cfg|d|md|key|crt|der|sqlite|db|ko|so)\b"
)


@cache
def catalogue() -> dict[str, dict[str, str]]:
    return tomllib.loads(CATALOGUE.read_text("utf-8"))


@cache
def sources() -> list[tuple[Path, tuple[ast.AST, ...]]]:
    return [(path, nodes_of(path)) for path in sorted(SOURCE.rglob("*.py"))]


def name_of_call(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def text_of(node: ast.AST | None) -> str:
    """The constant text of an expression; of an f-string its constant head followed by `*`."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        head = node.values[0] if node.values else None
        return text_of(head) + "*" if isinstance(head, ast.Constant) else ""
    return ""


@cache
def codes_in_calls() -> dict[str, str]:
    """Code (or `head*`) to the place where it is given to an error, a finding, a check or a reader."""
    found: dict[str, str] = {}
    for path, nodes in sources():
        for node in nodes:
            if not isinstance(node, ast.Call):
                continue
            place = f"{path.relative_to(ROOT)}:{node.lineno}"
            name = name_of_call(node)
            keyword = next((item.value for item in node.keywords if item.arg == "code"), None)
            code = text_of(keyword) or (text_of(node.args[0]) if name in {*ERRORS, FAMILY} and node.args else "")
            if not code:
                continue
            if name == "BinaryReader":
                found.update({f"{code}.{suffix}": place for suffix in READER_SUFFIXES})
            else:
                found[code] = place
    return found


@cache
def areas() -> set[str]:
    return {code.partition(".")[0] for code in (*codes_in_calls(), *catalogue())}


@cache
def codes_in_text() -> dict[str, str]:
    """Any constant that looks like a code of a known area: those reach their error through a function."""
    known = areas()
    found: dict[str, str] = {}
    for path, nodes in sources():
        devices = {
            id(item)
            for node in nodes
            if isinstance(node, ast.Call) and name_of_call(node) == "_Device"  # names of lines of `cloister doctor`
            for item in node.args
        }
        for node in nodes:
            if (
                isinstance(node, ast.Constant)
                and id(node) not in devices
                and isinstance(node.value, str)
                and CODE.fullmatch(node.value)
                and node.value.partition(".")[0] in known
                and not FILE_NAMES.search(node.value)
            ):
                found[node.value] = f"{path.relative_to(ROOT)}:{node.lineno}"
    return found


@cache
def tails() -> set[str]:
    """Constant ends of f-strings that begin with a name: `f"{code}.empty"` makes `empty` of a code that is a text."""
    return {
        text_of(node.values[1]).removeprefix(".")
        for _, nodes in sources()
        for node in nodes
        if isinstance(node, ast.JoinedStr) and len(node.values) == 2 and text_of(node.values[1]).startswith(".")
    }


def covered(code: str) -> bool:
    """Whether the catalogue explains `code`; the head of an f-string needs an entry that ends in `.*`."""
    if code.endswith("*"):
        head = code.rstrip("*").rstrip(".")
        return any(f"{head[: len(head) - cut]}.*" in catalogue() for cut in range(len(head)) if head[: len(head) - cut])
    return find_refusal(code) is not None or find_refusal(f"{code}.x") is not None


def test_every_code_in_the_source_is_in_the_catalogue() -> None:
    missing = {code: place for code, place in {**codes_in_text(), **codes_in_calls()}.items() if not covered(code)}
    assert missing == {}


def test_no_entry_of_the_catalogue_is_stale() -> None:
    used = {**codes_in_text(), **codes_in_calls()}
    literal = {code for code in used if not code.endswith("*")}
    heads = {code.rstrip("*").rstrip(".") for code in used if code.endswith("*")}
    stale = []
    for code in catalogue():
        head = code.removesuffix(".*")
        if code.endswith(".*"):
            in_use = any(item == head or item.startswith(head + ".") for item in literal | heads)
        else:
            parent, _, last = code.rpartition(".")
            in_use = code in literal or any(code.startswith(item + ".") for item in heads)
            in_use = in_use or (parent in literal and last in tails())
        if not in_use:
            stale.append(code)
    assert stale == []


def test_every_error_is_given_a_code_that_can_be_read_here() -> None:
    """A code put together at run time from nothing constant could not be explained."""
    unreadable = []
    for path, nodes in sources():
        if path.name == "errors.py":
            continue
        for node in nodes:
            if isinstance(node, ast.Call) and name_of_call(node) in ERRORS and node.args:
                first = node.args[0]
                if isinstance(first, (ast.BinOp, ast.Call)) or (isinstance(first, ast.Constant) and not text_of(first)):
                    unreadable.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert unreadable == []


def test_entries_are_complete() -> None:
    for code, entry in catalogue().items():
        check_entry(code, entry)


def check_entry(code: str, entry: dict[str, str]) -> None:
    assert set(entry) == {"id", "title", "why", "fix"}, code
    assert CODE.fullmatch(code.removesuffix(".*") + ".x")
    assert all(value.strip() == value and value for value in entry.values())
    assert NUMBER.fullmatch(entry["id"])
    assert not entry["title"].endswith(".")
    assert entry["why"].endswith(".") and entry["fix"].endswith(".")


def test_numbers_tell_what_the_refusal_is_about() -> None:
    for code in catalogue():
        check_letter(code)


def check_letter(code: str) -> None:
    letter = catalogue()[code]["id"][4]
    best = max(
        (
            (area, candidate)
            for candidate, known in LETTERS.items()
            for area in known
            if (code + ".").startswith(area + ".")
        ),
        key=lambda pair: len(pair[0]),
    )
    assert letter == best[1], code


def test_no_entry_explains_a_whole_area() -> None:
    """A new code must be thought about: an entry for a family covers one thing of an area, never the area."""
    assert [code for code in catalogue() if code.endswith(".*") and code.count(".") < 2] == []


def test_numbers_are_unique() -> None:
    numbers = [entry["id"] for entry in catalogue().values()]
    assert sorted(set(numbers)) == sorted(numbers)


def test_published_numbers_keep_their_meaning() -> None:
    """People quote numbers in tickets: an entry may be added or reworded, never renumbered.

    `refusal_numbers.txt` is the record; adding an entry adds a line.
    """
    record = dict(
        line.split() for line in (Path(__file__).parent / "refusal_numbers.txt").read_text("utf-8").splitlines()
    )
    assert {entry["id"]: code for code, entry in catalogue().items()} == record


if __name__ == "__main__":
    missing = {**codes_in_text(), **codes_in_calls()}
    for code, place in sorted(missing.items()):
        print("ok " if covered(code) else "-- ", code, place)
