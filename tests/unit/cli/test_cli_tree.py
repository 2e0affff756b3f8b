"""The tree that is built for one command line has what the whole tree has there, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import typer.main

from cloister.cli.app import app, build_app


def commands(tree: Any) -> dict[tuple[str, ...], list[str]]:  # Any: typer's own click
    """Return every command by its path, with the names of its parameters."""
    found: dict[tuple[str, ...], list[str]] = {}

    def walk(path: tuple[str, ...], command: Any) -> None:
        found[path] = [parameter.name for parameter in command.params]
        for name, inner in getattr(command, "commands", {}).items():
            walk((*path, name), inner)

    walk((), typer.main.get_command(tree))
    return found


WHOLE = commands(app)


@pytest.mark.parametrize("words", sorted({path[:2] for path in WHOLE if path}), ids=" ".join)
def test_a_named_command_is_the_same(words: tuple[str, ...]) -> None:
    found = commands(build_app(*words))
    assert found == {path: parameters for path, parameters in found.items() if WHOLE[path] == parameters}
    below = {path for path in WHOLE if path[: len(words)] == words}
    assert below <= set(found)
    top = {path[0] for path in found if path}
    assert top == {words[0]}


def test_a_named_verb_comes_alone() -> None:
    assert set(commands(build_app("image", "encrypt"))) == {(), ("image",), ("image", "encrypt")}


@pytest.mark.parametrize("words", [(), ("nonsense",), ("--help",), ("nonsense", "encrypt")])
def test_what_names_nothing_gets_the_whole_tree(words: tuple[str, ...]) -> None:
    assert commands(build_app(*words)) == WHOLE


@pytest.mark.parametrize("word", ["nonsense", "--help"])
def test_a_group_with_another_word_is_whole(word: str) -> None:
    assert {path for path in WHOLE if path[:1] == ("refs",)} <= set(commands(build_app("refs", word)))
