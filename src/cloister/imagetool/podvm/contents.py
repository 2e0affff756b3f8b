"""Sorting: which file of which package goes where, as the definition says; and the check that nothing is missing.

Every library that any program or library in root or initrd needs must be in the same tree: what would fail in the
guest at the first use fails here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from cloister.errors import Refused
from cloister.imagetool.podvm.bytecode import without_excluded
from cloister.imagetool.podvm.debs import read_package
from cloister.imagetool.podvm.definition import (
    Definition,
    FileRule,
    LayoutRule,
    PackageRule,
    matches,
    select,
    select_one,
)
from cloister.imagetool.podvm.elf import MAGIC, needed_libraries
from cloister.imagetool.podvm.guestcode import GuestSource
from cloister.imagetool.podvm.kmod import Module, ModuleSet
from cloister.imagetool.podvm.lock import LockedPackage
from cloister.imagetool.podvm.tree import Kind, Node, Tree

PACKAGE: Final = "cloister"
_MODULE_FOLDER: Final = "usr/lib/modules"
_ORDER_FILE: Final = "order"


@dataclass(slots=True, kw_only=True)
class Contents:
    """What the packages and our own files add up to, before anything has a form on disk.

    Attributes:
        root: the root file system, Python still as source.
        initrd: the initrd without its modules.
        release: of the kernel.
        early_modules: what mounting the root needs, in load order.
        late_modules: what the agent needs, in load order, without those before.
        tools: what the builder runs.
        bundle: bundle file name to content.
        stub: the UEFI stub.
    """

    root: Tree = field(default_factory=Tree)
    initrd: Tree = field(default_factory=Tree)
    release: str = ""
    early_modules: list[Module] = field(default_factory=list)
    late_modules: list[Module] = field(default_factory=list)
    tools: Tree = field(default_factory=Tree)
    bundle: dict[str, bytes] = field(default_factory=dict)
    stub: bytes = b""


def rule_packages(definition: Definition, locked: Iterable[LockedPackage]) -> dict[str, LockedPackage]:
    """Return rule name to locked package.

    Raises:
        Refused: definition and lock do not name the same packages (`imagetool.lock.mismatch`).
    """
    packages = list(locked)
    paired = {}
    for rule in definition.package:
        found = [package for package in packages if matches(package.name, rule.name)]
        if len(found) != 1:
            raise _lock_mismatch(f"rule has {len(found)} locked packages", rule.name)
        paired[rule.name] = found[0]
    unused = {package.name for package in packages} - {package.name for package in paired.values()}
    if unused:
        raise _lock_mismatch("locked packages have no rule", " ".join(sorted(unused)))
    return paired


def collect_contents(
    definition: Definition,
    folder: Path,
    packages: Mapping[str, Path],
    guest: GuestSource,
    progress: Callable[[float], None],
) -> Contents:
    """Read all packages (rule name to file) and sort their files; own files are read beside the definition in `folder`.

    Raises:
        Refused: a pattern matches nothing, a library is missing, two files at one path.
    """
    contents = Contents()
    for number, rule in enumerate(definition.package):
        progress(number / len(definition.package))
        _sort_package(contents, definition, rule, read_package(packages[rule.name]))
    _add_guest(contents.root, definition, folder, guest)
    _add_layout(contents.root, definition.root, folder)
    _add_layout(contents.initrd, definition.initrd, folder)
    for name, tree in (("root", contents.root), ("initrd", contents.initrd)):
        check_libraries(name, tree)
    return contents


def check_libraries(name: str, tree: Tree) -> None:
    """Check that every library any ELF file of `tree` needs is in `tree`.

    Raises:
        Refused: one is not (`imagetool.contents.library_missing`).
    """
    have = {path.rsplit("/", 1)[-1] for path, node in tree if node.kind in {Kind.FILE, Kind.LINK}}
    for path, node in tree.files():
        if not node.data.startswith(MAGIC) or path.endswith(".ko"):
            continue
        for library in needed_libraries(node.data):
            if library not in have:
                raise Refused(
                    "imagetool.contents.library_missing",
                    "a file needs a library that the image does not hold",
                    path=f"{name}: {path}",
                    expected=library,
                    hint="add the package that holds the library to images/podvm.toml",
                )


def check_read_ahead(root: Tree, definition: Definition) -> None:
    """Check that every path of the read-ahead list is a file of the finished root.

    Raises:
        Refused: one is not (`imagetool.contents.read_ahead`).
    """
    text = root.nodes[definition.guest.read_ahead.path].data.decode()
    for line in text.splitlines():
        node = root.nodes.get(line.removeprefix("/"))
        if node is None or node.kind not in {Kind.FILE, Kind.LINK}:
            raise Refused(
                "imagetool.contents.read_ahead",
                "the read-ahead list names a file that the image does not hold",
                path=line[:200],
                hint="correct images/podvm/read-ahead",
            )


def _sort_package(contents: Contents, definition: Definition, rule: PackageRule, found: dict[str, Node]) -> None:
    kept = without_excluded(found, definition.python)
    for patterns, tree in ((rule.root, contents.root), (rule.initrd, contents.initrd), (rule.tools, contents.tools)):
        for pattern in patterns:
            for path in select(kept, pattern):
                tree.add(path, found[path])
    for name, pattern in rule.bundle.items():
        contents.bundle[name] = found[select_one(found, pattern)].data
    if rule.name == definition.kernel.package:
        _sort_modules(contents, definition, found)
    if rule.name == definition.uki.package:
        contents.stub = found[select_one(found, definition.uki.stub)].data


def _sort_modules(contents: Contents, definition: Definition, found: dict[str, Node]) -> None:
    kernel = definition.kernel
    builtin = found[select_one(found, kernel.builtin)].data.decode("utf-8", "replace").splitlines()
    modules = ModuleSet({path: found[path].data for path in select(found, kernel.modules)}, builtin)
    contents.release = PurePosixPath(select_one(found, kernel.builtin)).parent.name
    contents.early_modules = modules.in_load_order(kernel.early_modules)
    contents.late_modules = _without(modules.in_load_order(kernel.late_modules), contents.early_modules)
    loaded = [*contents.early_modules, *contents.late_modules]
    later = _without(modules.in_load_order(kernel.root_modules), loaded)
    for module in later:
        contents.root.add_file(f"{_MODULE_FOLDER}/{module.name}.ko", module.data)
    order = "".join(f"{module.name}\n" for module in later)
    contents.root.add_file(f"{_MODULE_FOLDER}/{_ORDER_FILE}", order.encode())


def _without(modules: list[Module], there: list[Module]) -> list[Module]:
    known = {module.name for module in there}
    return [module for module in modules if module.name not in known]


def _add_guest(root: Tree, definition: Definition, folder: Path, guest: GuestSource) -> None:
    for path, data in guest.files.items():
        root.add_file(f"{definition.guest.directory}/{PACKAGE}/{path}", data)
    _add_own_file(root, definition.guest.start, folder)
    _add_own_file(root, definition.guest.read_ahead, folder)


def _add_layout(tree: Tree, layout: LayoutRule, folder: Path) -> None:
    for path in layout.directories:
        tree.add_directory(path)
    for path, target in layout.links.items():
        tree.add_link(path, target)
    for rule in layout.files:
        _add_own_file(tree, rule, folder)


def _add_own_file(tree: Tree, rule: FileRule, folder: Path) -> None:
    data = (folder / rule.source).read_bytes() if rule.source else rule.text.encode()
    tree.add_file(rule.path, data, 0o755 if rule.executable else 0o644)


def _lock_mismatch(reason: str, path: str) -> Refused:
    return Refused(
        "imagetool.lock.mismatch", f"definition and lock differ: {reason}", path=path, hint="run `cloister podvm lock`"
    )
