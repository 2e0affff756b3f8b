"""Types that were made ready can be used by several threads at once from the first moment."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import msgspec
import pytest

from cloister.wire import structs

# Fresh types again and again, each used by six threads at once; without `prepare_structs` it ends by SIGSEGV.
RACE = """
import sys, threading, types
import msgspec
from cloister.wire.structs import prepare_structs
sys.setswitchinterval(1e-5)
SOURCE = '''
from __future__ import annotations
import msgspec
class Inner(msgspec.Struct):
    a: str
    b: tuple[str, ...] = ()
class Outer(msgspec.Struct):
    x: dict[str, Inner]
    y: list[Inner]
'''
def use(kind, barrier):
    barrier.wait()
    msgspec.json.decode(b'{"x":{"k":{"a":"1"}},"y":[{"a":"2","b":["q"]}]}', type=kind)
for number in range(100):
    module = types.ModuleType(f"cloister.race{number}")
    sys.modules[module.__name__] = module
    exec(SOURCE, module.__dict__)
    prepare_structs()
    barrier = threading.Barrier(6)
    threads = [threading.Thread(target=use, args=(module.Outer, barrier)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_first_use_by_many_threads() -> None:
    done = subprocess.run([sys.executable, "-c", RACE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def fresh(monkeypatch: pytest.MonkeyPatch, name: str, fields: list[tuple[str, object]]) -> type[msgspec.Struct]:
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    return msgspec.defstruct("Fresh", fields, module=name)  # type: ignore[arg-type]  # any fields


def test_only_our_types_and_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = fresh(monkeypatch, "cloister.fresh", [("a", int)])
    others = fresh(monkeypatch, "elsewhere.fresh", [("a", int)])
    made: list[object] = []
    monkeypatch.setattr(structs, "_prepare", made.append)
    structs.prepare_structs()
    assert ours in made
    assert others not in made
    made.clear()
    structs.prepare_structs()
    assert made == []


def test_a_type_that_only_holds_values_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = fresh(monkeypatch, "cloister.holder", [("a", type | ModuleType)])
    with pytest.raises(TypeError):
        msgspec.json.Decoder(holder)
    structs.prepare_structs()
