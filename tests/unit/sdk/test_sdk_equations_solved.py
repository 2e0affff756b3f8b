"""The search itself, on made-up equations: what clears a component, what names it, what stays open."""

from __future__ import annotations

from collections.abc import Mapping

from cloister.rats.reference import Component
from cloister.sdk.explanation import Equation, Explanation, Parts, Variations, explain

F, K, N, V = Component.FIRMWARE, Component.KERNEL, Component.INITRD, Component.VCPUS
EXPECTED: Parts = dict.fromkeys(Component, "x")


def equation(name: str, found: Mapping[Component, str]) -> Equation:
    """A register that holds the text of its components, `found` as in the machine."""

    def text(parts: Parts) -> bytes:
        return " ".join(parts[component] for component in found).encode()

    return Equation(name=name, found=text(found), components=frozenset(found), compute=text)


def solve(
    *equations: Equation, accepted: Mapping[Component, frozenset[str]] | None = None, **values: str
) -> Explanation:
    known = {Component[name]: tuple(text) for name, text in values.items()}
    return explain(EXPECTED, equations, Variations(values=known, accepted=accepted or {}))


def changed(answer: Explanation) -> dict[Component, str]:
    return {change.component: change.found for change in answer.changed}


def test_what_holds_clears_its_components_for_all_others() -> None:
    """The first cannot be solved; that the second holds leaves one component that can have changed."""
    answer = solve(equation("first", {F: "x", K: "?"}), equation("second", {F: "x", N: "x"}))
    assert changed(answer) == {K: ""} and answer.undetermined == () and not answer.matches
    assert answer.unchanged == (F, N)


def test_what_holds_after_a_solution_clears_the_rest_of_its_components() -> None:
    answer = solve(
        equation("one", {F: "y"}), equation("two", {F: "y", K: "x"}), equation("three", {K: "x", N: "?"}), FIRMWARE="y"
    )
    assert changed(answer) == {F: "y", N: ""} and answer.unchanged == (K,)


def test_what_has_no_solution_stays_open() -> None:
    answer = solve(equation("one", {F: "?", K: "x"}), KERNEL="abc")
    assert changed(answer) == {} and answer.undetermined == (F, K) and not answer.matches
    assert set(answer.unjudged) == set(Component) - {F, K}


def test_one_component_is_preferred_to_two() -> None:
    """`f k` is had by one change or by two."""
    answer = solve(equation("one", {F: "f", K: "x"}), FIRMWARE="gf", KERNEL="k")
    assert changed(answer) == {F: "f"}
    assert changed(solve(equation("one", {F: "f", K: "k"}), FIRMWARE="gf", KERNEL="k")) == {F: "f", K: "k"}


def test_accepted_values_are_no_change() -> None:
    accepted = {V: frozenset({"x", "y"})}
    answer = solve(equation("one", {V: "y", K: "x"}), accepted=accepted, VCPUS="xyz")
    assert answer.matches and answer.unchanged == (K, V)
    answer = solve(equation("one", {V: "z", K: "x"}), accepted=accepted, VCPUS="xyz")
    assert changed(answer) == {V: "z"} and not answer.matches
    answer = solve(equation("one", {V: "y", K: "k"}), accepted=accepted, VCPUS="xyz", KERNEL="k")
    assert changed(answer) == {K: "k"} and answer.undetermined == ()


def test_what_no_component_explains_is_noted() -> None:
    constant = Equation(name="sealed", found=b"other", components=frozenset(), compute=lambda _: b"zero", meaning="why")
    answer = explain(EXPECTED, [constant], Variations(values={}), notes=["a note"], unexpected=["a stranger"])
    assert answer.notes == ("a stranger", "a note", "sealed: why") and not answer.matches
    fine = explain(EXPECTED, [equation("one", {F: "x"})], Variations(values={}), unexpected=["a stranger"])
    assert not fine.matches and changed(fine) == {}
