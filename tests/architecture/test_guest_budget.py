"""What runs inside the pod VM is a budget: listed by name, and cheap before the first word to the host.

`guest_hello.txt` is what the agent loads up to its first word, parents' `__init__` included, behind the fork of the key
process, which happens before anything else is loaded.
`guest_closure.txt` is every module of ours that the guest can ever load, late imports included: that is what an owner
trusts. A change of either is a change of a tracked file. `python tests/architecture/test_guest_budget.py` rewrites
both.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

import grimp
import pytest

from cloister.crypto.signer import ECDSAP256Signer
from cloister.guest.background import CONTAINER_LIBRARIES, PULL_LIBRARIES, SEAL_LIBRARIES
from cloister.imagetool.podvm.definition import parse_definition
from cloister.imagetool.podvm.guestcode import read_guest_source

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "src"
AGENT = "cloister.guest.agent"
LIFECYCLE = "cloister.guest.lifecycle"
KEY_SERVICE = "cloister.guest.keyservice"
BEFORE_FORK = ["cloister", "cloister.guest", AGENT, "cloister.guest.keyfork"]
# Each costs a noticeable part of a second inside an emulated machine; together more than the firmware.
EXPENSIVE = [
    "dataclasses",
    "cryptography",
    "http.client",
    "ssl",
    "asyncio",
    "tarfile",
    "subprocess",
    "email",
    "urllib.request",
]
ALLOWED_DISTRIBUTIONS = {"msgspec", "cryptography", "isal", "zstandard"}
OUTSIDE = ["testing", "cli", "sdk", "trust", "host", "imagetool"]


@cache
def loaded_by_importing(module: str) -> frozenset[str]:
    """Names of all modules that a fresh interpreter, without site hooks, loads for `module`."""
    program = (
        f"import sys; sys.path[:0] = [{str(SOURCE)!r}, {sysconfig.get_path('purelib')!r}]; "
        f"import {module}; print(*sys.modules, sep='\\n')"
    )
    result = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    return frozenset(result.stdout.split())


@cache
def closure() -> tuple[frozenset[str], frozenset[str]]:
    """Modules of ours that the guest package can reach by any import statement, and the foreign packages they name.

    Attesters are reached by name through `cloister.tee.registry`, so they are roots as well.
    """
    graph = grimp.build_graph(
        "cloister", include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
    )
    roots = [
        name
        for name in graph.modules
        if name.startswith("cloister.guest.") or (name.startswith("cloister.tee.") and name.endswith(".attester"))
    ]
    seen = set(roots)
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        parent = {name.rpartition(".")[0]} if name.startswith("cloister.") else set()
        new = (graph.find_modules_directly_imported_by(name) | parent) - seen
        seen |= new
        waiting += new
    ours = {name for name in seen if name.partition(".")[0] == "cloister"}
    return frozenset(ours), frozenset(seen - ours)


def ours(names: frozenset[str]) -> list[str]:
    return sorted(name for name in names if name.partition(".")[0] == "cloister")


def listed(file: str) -> list[str]:
    return (HERE / file).read_text("utf-8").split()


def test_the_key_process_is_forked_before_there_is_anything() -> None:
    """Not even `threading`: a process is forked by one thread, and what is loaded later is loaded beside each other."""
    loaded = loaded_by_importing(AGENT)
    assert ours(loaded) == sorted(BEFORE_FORK)
    assert not loaded & {"threading", "typing", "msgspec", "collections"}


@pytest.mark.parametrize("module", [LIFECYCLE, KEY_SERVICE])
@pytest.mark.parametrize("name", EXPENSIVE)
def test_both_processes_begin_without(module: str, name: str) -> None:
    loaded = loaded_by_importing(module)
    assert module in loaded
    assert name not in loaded


def test_the_process_that_faces_the_host_loads_no_client_of_the_broker() -> None:
    program = "cloister.guest.background; from cloister.guest.background import *; from importlib import import_module"
    program += "; [import_module(name) for name in (*PULL_LIBRARIES, *CONTAINER_LIBRARIES)]; import sys"
    loaded = loaded_by_importing(program)
    assert "cloister.oci.distribution" in loaded
    assert not loaded & {"cloister.client.keybroker", "cloister.crypto.jwe", "cloister.tee.tpm.attester", "ssl"}


def test_an_image_is_verified_without_the_formats_of_other_keys() -> None:
    """`cryptography`'s serialization brings SSH keys and `dataclasses`: 0.2 s of an emulated start."""
    pem = ECDSAP256Signer.generate().public_key.pem().decode()
    program = (
        "cloister.crypto.signer; from cloister.crypto.signer import *; from contextlib import suppress\n"
        f"with suppress(Refused): ECDSAP256PublicKey.from_pem({pem!r}.encode()).verify(b'', b'')\n"
        "import cloister.oci.signing.verify"
    )
    loaded = loaded_by_importing(program)
    assert "cryptography.hazmat.primitives.asymmetric.ec" in loaded
    assert not loaded & {"cryptography.hazmat.primitives.serialization", "dataclasses"}


def test_the_guest_does_without_what_its_start_leaves_out() -> None:
    """All of it loads, and `msgspec` reads and writes, with the stand-ins of the pod VM's start; nobody names one."""
    head, begin, _ = (SOURCE.parent / "images/podvm/start.py").read_text("utf-8").partition("from cloister.guest.agent")
    assert begin
    names = (LIFECYCLE, KEY_SERVICE, *PULL_LIBRARIES, *CONTAINER_LIBRARIES, *SEAL_LIBRARIES)
    loaded = loaded_by_importing(
        f"gc; exec({head!r}); from importlib import import_module; [import_module(name) for name in {names!r}]; "
        'import msgspec; assert msgspec.json.decode(b\'{"a":[1.5]}\', type=dict[str, list[float]]) == {"a": [1.5]}; '
        'assert msgspec.json.encode({"a": (1.5, None)}) == b\'{"a":[1.5,null]}\''
    )
    assert "decimal" in loaded and not loaded & {"_decimal", "numbers", "textwrap"}
    assert not {"decimal", "textwrap"} & closure()[1]
    for name in closure()[0]:
        place = SOURCE / name.replace(".", "/")
        text = (place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).read_text("utf-8")
        assert "msgspec.inspect" not in text and "json.schema" not in text, name


@pytest.mark.parametrize("name", EXPENSIVE)
def test_the_probe_sees_expensive_modules(name: str) -> None:
    """The check above must be able to fail."""
    assert name in loaded_by_importing(name)


def test_modules_before_hello_are_the_listed_ones() -> None:
    assert ours(loaded_by_importing(LIFECYCLE)) == listed("guest_hello.txt")


def test_modules_the_guest_can_load_are_the_listed_ones() -> None:
    assert sorted(closure()[0]) == listed("guest_closure.txt")


def test_the_image_holds_every_module_the_guest_can_load() -> None:
    """A module that is left out is found missing only by a pod, at its first use. Verifiers are named, never loaded."""
    rule = parse_definition((SOURCE.parent / "images/podvm.toml").read_bytes()).guest
    held = set(read_guest_source(SOURCE / "cloister", rule).files)
    lacking = []
    for name in closure()[0]:
        place = name.removeprefix("cloister").lstrip(".").replace(".", "/")
        if not {f"{place}.py", f"{place}/__init__.py".lstrip("/")} & held:
            lacking.append(name)
    assert lacking == []


def test_hello_is_part_of_the_closure() -> None:
    assert set(ours(loaded_by_importing(LIFECYCLE))) <= closure()[0]


@pytest.mark.parametrize("package", OUTSIDE)
def test_guest_never_loads_code_of_another_plane(package: str) -> None:
    prefix = f"cloister.{package}"
    assert not [name for name in closure()[0] if name == prefix or name.startswith(prefix + ".")]


def test_guest_needs_four_distributions_only() -> None:
    """The pod-VM image holds Debian's builds of these and nothing else beyond the standard library."""
    foreign = {name.partition(".")[0] for name in closure()[1]} - set(sys.stdlib_module_names)
    assert foreign <= ALLOWED_DISTRIBUTIONS


if __name__ == "__main__":
    (HERE / "guest_hello.txt").write_text("\n".join(ours(loaded_by_importing(LIFECYCLE))) + "\n", encoding="utf-8")
    (HERE / "guest_closure.txt").write_text("\n".join(sorted(closure()[0])) + "\n", encoding="utf-8")
