"""What verification remembers can be forgotten, all of it: no measurement of a first verification is of a second."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

from cloister.crypto.remembered import Remembered
from cloister.testing.caches import find_caches, forget_everything
from cloister.testing.snp import NOW, FakeAMD, FakeChip

SOURCE = Path(__file__).resolve().parents[2] / "src"
PLACES = ("crypto", "rats", "tee", "wire")
CACHES = {"lru_cache", "cache"}


def names_of(node: ast.AST) -> set[str]:
    return {item.id if isinstance(item, ast.Name) else getattr(item, "attr", "") for item in ast.walk(node)}


def written() -> set[str]:
    """Qualified names of all caches in the source of what verifies."""
    found: set[str] = set()
    for place in PLACES:
        for path in (SOURCE / "cloister" / place).rglob("*.py"):
            module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.FunctionDef) and any(names_of(item) & CACHES for item in node.decorator_list):
                    found.add(f"{module}.{node.name}")
                if (
                    isinstance(node, ast.AnnAssign)
                    and isinstance(node.value, ast.Call)
                    and isinstance(node.target, ast.Name)
                ) and "Remembered" in names_of(node.value.func):
                    found.add(f"{module}.{node.target.id}")
    return found


def test_every_cache_is_found() -> None:
    names = written()
    assert {"cloister.tee.sev_snp.chain._KNOWN", "cloister.crypto.x509path._parse"} <= names
    for name in names:
        importlib.import_module(name.rpartition(".")[0])
    assert names <= find_caches().keys()


def test_everything_is_forgotten() -> None:
    from cloister.crypto import x509path
    from cloister.tee.sev_snp import chain
    from cloister.tee.sev_snp.verifier import authenticate

    chip = FakeChip.made_by(FakeAMD("Genoa"))
    authenticate(chip.evidence(), chip.amd.endorsements(), at=NOW)
    memories: list[Remembered[object]] = [chain._KNOWN, x509path._KNOWN_PATHS]  # type: ignore[list-item]  # any answers
    assert all(len(memory) for memory in memories)
    assert x509path._parse.cache_info().currsize
    forget_everything()
    assert not any(len(memory) for memory in memories)
    assert not x509path._parse.cache_info().currsize
