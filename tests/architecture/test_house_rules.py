"""Rules of the house that a linter does not know: what a tracked file may and may not hold."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest

from source_trees import nodes_of, tree_of

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MODULE_LINES = 600
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "stuff"}
# Spelled in pieces, so that this file does not hold what it looks for.
NOTES = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error")))
WORKPLACE = re.compile(
    "|".join(
        (
            "/" + "work/(main|shared|" + r"\.library)",
            r"\." + "library/",
            r"https?://[^\s\"'<>]*" + "/simple" + r"\b",
            r"https?://[^\s\"'<>]*" + "/debian(-security)?[/ \"'\n]",
            r"https?://"
            + r"registry\.(?!(example|test|invalid)\b)",  # names reserved for examples (RFC 2606) are no place
            r"https?://[a-z0-9.-]*" + r"(artifactory|nexus|mirror|proxy)[a-z0-9.-]*[/:]",
        )
    )
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tracked() -> list[Path]:
    """Every file that is or is about to be part of the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@cache
def text_of(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")


def test_modules_open_with_a_docstring() -> None:
    assert [name_of(path) for path in SOURCES if not ast.get_docstring(tree_of(path))] == []


def test_modules_are_one_idea() -> None:
    assert [name_of(path) for path in SOURCES if len(text_of(path).splitlines()) > MODULE_LINES] == []
    assert [name_of(path) for path in SOURCES if VAGUE_NAMES & set(path.relative_to(ROOT).with_suffix("").parts)] == []


def test_source_holds_no_assertion_and_no_note_to_self() -> None:
    suspects = [path for path in SOURCES if "assert" in text_of(path)]
    asserts = [path for path in suspects if any(isinstance(node, ast.Assert) for node in nodes_of(path))]
    assert [name_of(path) for path in asserts] == []
    assert [name_of(path) for path in SOURCES if NOTES.search(text_of(path))] == []


def test_every_type_exception_names_code_and_reason() -> None:
    bare = [
        f"{name_of(path)}:{number}"
        for path in (*SOURCES, *TESTS)
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if re.search(r"#\s*type:" + r"\s*ignore", line)
        and not re.search(r"# type" + r": ignore\[[a-z, -]+\]  # \S", line)
    ]
    assert bare == []


EDGES = {  # the outermost loop of a process or of a thread that serves many: log, refuse, go on
    "guest/keyservice.py",
    "guest/lifecycle.py",
    "guest/secrets.py",
    "guest/server.py",
    "trust/web/router.py",
    "trust/store/database.py",
}


def test_broad_handlers_stay_at_process_edges() -> None:
    """`except Exception` hides bugs. Tidying up and raising again, or handing the error to another thread, does not."""
    hiding = []
    for path in SOURCES:
        lines = text_of(path).splitlines()
        for node in nodes_of(path) if "except" in text_of(path) else ():
            if not isinstance(node, ast.ExceptHandler):
                continue
            kind = node.type.id if isinstance(node.type, ast.Name) else "" if node.type else "everything"
            at_edge = str(path.relative_to(ROOT / "src" / "cloister")) in EDGES
            kept = isinstance(node.body[-1], ast.Raise) or "handed to" in lines[node.lineno - 1]
            if (kind in ("Exception", "everything") and not at_edge) or (kind == "BaseException" and not kept):
                hiding.append(f"{name_of(path)}:{node.lineno}")
    assert hiding == []


def test_root_package_is_a_docstring_and_a_version() -> None:
    """It is loaded inside the guest, too."""
    body = ast.parse(text_of(ROOT / "src" / "cloister" / "__init__.py")).body
    assert [type(node) for node in body] == [ast.Expr, ast.Assign]


def test_no_tracked_file_names_a_workplace_or_a_package_mirror() -> None:
    found = [f"{name_of(path)}: {match.group()!r}" for path in tracked() for match in WORKPLACE.finditer(text_of(path))]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "see /" + "work/shared/design",
        'open("../.' + 'library/x")',
        "index-url = https://packages.example.test/repository" + "/simple/",
        "deb http://archive.example.test" + "/debian trixie main",
        "https://" + "registry.somewhere.net/v2/",
    ],
)
def test_the_workplace_rule_fires(line: str) -> None:
    assert WORKPLACE.search(line)


LOCKS = sorted((ROOT / "requirements").glob("*.lock"))


@pytest.mark.parametrize("path", LOCKS, ids=name_of)
def test_python_locks_have_versions_and_hashes_and_no_addresses(path: Path) -> None:
    text = text_of(path)
    assert "://" not in text
    assert not re.search(r"^\s*(-i|-f|--index-url|--extra-index-url|--find-links|--trusted-host)\b", text, re.MULTILINE)
    joined = re.sub(r"\\\n", " ", text)
    requirements = [line for line in joined.splitlines() if line and not line.lstrip().startswith("#")]
    assert requirements
    for line in requirements:
        assert re.match(r"[a-z0-9][a-z0-9._\[\]-]*==\S+ ", line), line[:80]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), line[:80]


def test_there_are_locks() -> None:
    assert {path.name for path in LOCKS} >= {"runtime.lock", "dev.lock"}


def test_direct_dependencies_are_locked_and_explained() -> None:
    """Each dependency line says why it is there; each is in the lock of what a user installs."""
    text = text_of(ROOT / "pyproject.toml")
    lines = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert lines
    assert all("#" in line for line in lines[1].splitlines())
    locked = set(re.findall(r"^([a-z0-9-]+)==", text_of(ROOT / "requirements" / "runtime.lock"), re.MULTILINE))
    named = tomllib.loads(text)["project"]["dependencies"]
    assert {re.split(r"[<>=\[ ]", item)[0] for item in named} <= locked


def test_package_locks_of_images_have_no_addresses() -> None:
    for path in sorted((ROOT / "images").rglob("*")):
        if path.is_file() and "lock" in path.name:
            assert "://" not in text_of(path), name_of(path)


def test_vectors_are_not_copied_into_the_repository() -> None:
    assert not [name_of(path) for path in tracked() if "vectors" in path.parts and path.suffix != ".py"]
