"""Python sources become byte code in the image: compiled once, by the image's interpreter, with no trace of the build.

The `.pyc` takes the place of the `.py` (PEP 3147, "legacy" layout): one file to open instead of two to look for, which
is worth a quarter of the import time under emulation, and the image gets smaller. The interpreter runs on the build
machine through its own loader and libraries, so that it is the locked one to the byte.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cloister.errors import Unavailable
from cloister.imagetool.podvm.definition import PythonRule, matches
from cloister.imagetool.podvm.runner import run
from cloister.imagetool.podvm.tree import Kind, Tree

_SECONDS: Final = 300
_WORKER: Final = Path(__file__).with_name("bytecode_worker.py")
_STRIP_DOCSTRINGS: Final = 2


def compile_tree(tree: Tree, rule: PythonRule) -> Tree:
    """Return `tree` with every `.py` replaced by its `.pyc`, without docstrings and columns.

    Raises:
        Unavailable: the interpreter does not run here, or a source does not compile.
    """
    out = Tree()
    with tempfile.TemporaryDirectory(prefix="cloister-podvm-") as folder:
        stage = Path(folder)
        _write_files(tree, stage)
        sources = [path for path, _ in tree.files() if path.endswith(".py")]
        jobs = [
            [
                str(stage / path),
                str(stage / f"{path}c"),
                f"/{path}",
                _STRIP_DOCSTRINGS,
            ]
            for path in sources
        ]
        _run_interpreter(stage, rule, json.dumps(jobs).encode())
        for path, node in tree:
            if node.kind is Kind.FILE and path.endswith(".py"):
                out.add_file(f"{path}c", (stage / f"{path}c").read_bytes())
            else:
                out.add(path, node)
    return out


def without_excluded(paths: Iterable[str], rule: PythonRule) -> list[str]:
    """Return `paths` without the library files that the rule leaves out."""
    patterns = [f"{rule.library}/{pattern}" for pattern in rule.exclude]
    return [path for path in paths if not any(matches(path, pattern) for pattern in patterns)]


def _write_files(tree: Tree, stage: Path) -> None:
    """Write directories and files of `tree` below `stage`; links are left out, nothing here follows one."""
    for path, node in tree:
        if node.kind is Kind.DIRECTORY:
            (stage / path).mkdir(mode=0o700, exist_ok=True)
        elif node.kind is Kind.FILE:
            (stage / path).write_bytes(node.data)
            (stage / path).chmod(0o700 if node.mode & 0o100 else 0o600)


def _run_interpreter(stage: Path, rule: PythonRule, jobs: bytes) -> None:
    command = [str(stage / rule.loader), "--library-path", str(stage / rule.libraries), str(stage / rule.interpreter)]
    try:
        run(
            [*command, "-S", "-B", str(_WORKER)],
            seconds=_SECONDS,
            stdin=jobs,
            environment={
                "PYTHONHASHSEED": "0",
                "PYTHONHOME": str(stage / "usr"),
                "PYTHONNOUSERSITE": "1",
                "PYTHONNODEBUGRANGES": "1",
            },
        )
    except Unavailable as err:
        raise Unavailable(
            "imagetool.bytecode.failed",
            f"the image's interpreter could not compile: {err.message}",
            hint="this must run on an amd64 machine; otherwise a guest source has a syntax error",
        ) from err
