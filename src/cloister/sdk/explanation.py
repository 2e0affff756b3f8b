"""Which component of a pod VM changed: evidence held against an image, by recomputing with each input varied.

A register is a digest: it says *that* something differs, not *what*. Each register, and each event of a log that
replays to its register, is one equation over a few components. Equations that hold clear their components; for one
that does not, components are varied, one after the other, then two at a time: numbers of processors, sizes of memory,
the parts of other images, edits of the command line. Where a variation gives the value found, the component and its
value are known. Where none does, what remains possible is said, and nothing else: no guess.

The evidence is read, not verified. A launch statement (`launch.json` of a run) is believed as far as it gives the
quoted register. Pure: files come in as values.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cloister.rats.reference import Component

Parts = Mapping[Component, str]
VARIATIONS: Final = 400_000  # evaluations per equation; a few seconds
_VERITY: Final = "cloister.verity="
_PLACE: Final = "\0"  # where the root hash's argument stands in a command line
_BOTH: Final = frozenset({Component.COMMAND_LINE, Component.ROOT_HASH})
# Words whose coming or going changes what a kernel or an init does: tried without being told.
KNOWN_WORDS: Final = (
    *("debug", "quiet", "ro", "rw", "single", "emergency", "rescue", "nokaslr", "nosmap", "nosmep", "mitigations=off"),
    *("init=/bin/sh", "init=/bin/bash", "rdinit=/bin/sh", "loglevel=7", "ignore_loglevel", "earlyprintk=ttyS0"),
    *("console=ttyS0", "console=tty0", "console=hvc0", "panic=0", "selinux=0", "apparmor=0", "lockdown=none"),
)


def split_command_line(text: str) -> tuple[str, str]:
    """Return the command line without the root hash's argument (a mark in its place), and that argument's value."""
    words = text.split(" ")
    found = [number for number, word in enumerate(words) if word.startswith(_VERITY)]
    if len(found) != 1:
        return text, ""
    value = words[found[0]].removeprefix(_VERITY)
    words[found[0]] = _PLACE
    return " ".join(words), value


def join_command_line(parts: Parts) -> str:
    """Return the command line of `parts`."""
    return parts[Component.COMMAND_LINE].replace(_PLACE, _VERITY + parts[Component.ROOT_HASH])


@dataclass(frozen=True, slots=True, kw_only=True)
class Equation:
    """One value of the evidence, and how it follows from components.

    Attributes:
        name: the register, or the register and the event.
        found: what the evidence holds.
        components: on which it depends.
        compute: value for given parts; None where these parts cannot be computed with.
        how: how its answer is known, in words (`register`, `event log`, `launch statement`).
        meaning: what it means when the value differs though every component is the expected one.
    """

    name: str
    found: bytes
    components: frozenset[Component]
    compute: Callable[[Parts], bytes | None]
    how: str = "register"
    meaning: str = "it differs although every component it covers is the expected one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A component that is not the expected one.

    Attributes:
        component: which.
        expected: value of the image.
        found: value that gives the evidence; empty where only the difference is known.
        how: how it is known.
    """

    component: Component
    expected: str
    found: str
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What the evidence says of each component.

    Attributes:
        matches: every equation holds for an expected machine, and nothing else is unexpected.
        changed: components that differ.
        unchanged: components that an equation clears.
        undetermined: components that may have changed: some equation over them holds for no variation tried.
        unjudged: components that nothing in this evidence depends on.
        equations: name, and whether it holds for the expected parts.
        notes: what else was seen.
    """

    matches: bool
    changed: tuple[Change, ...]
    unchanged: tuple[Component, ...]
    undetermined: tuple[Component, ...]
    unjudged: tuple[Component, ...]
    equations: tuple[tuple[str, bool], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Variations:
    """What components may have become.

    Attributes:
        values: other values by component, likely ones first.
        wholes: sets of values that belong together: other images, other launches.
        accepted: further values of a component that count as expected (several numbers of processors).
    """

    values: Mapping[Component, Sequence[str]]
    wholes: Sequence[Parts] = ()
    accepted: Mapping[Component, frozenset[str]] = field(default_factory=dict)


def explain(
    expected: Parts,
    equations: Sequence[Equation],
    variations: Variations,
    *,
    notes: Iterable[str] = (),
    unexpected: Iterable[str] = (),
) -> Explanation:
    """Return which components changed.

    Steps: 1 of the machines that count as expected, the one with the most equations that hold; 2 these equations clear
    their components; 3 every other one is solved by variation of what is not cleared, and its solution is kept for the
    next ones; 4 an equation without solution leaves its components open, unless only one of them can have changed.

    Args:
        expected: the image's values.
        equations: what the evidence says.
        variations: what may have changed.
        notes: what to say beside the answer.
        unexpected: the same, for what alone makes the machine another than the expected one.
    """
    foreign = tuple(unexpected)
    # 1
    parts = max(_accepted(expected, variations), key=lambda item: sum(_holds(equation, item) for equation in equations))
    expected = dict(parts)
    # 2
    cleared: set[Component] = set()
    for equation in equations:
        if _holds(equation, parts):
            cleared |= equation.components
    changes: dict[Component, Change] = {}
    open_components: set[Component] = set()
    remarks = [*foreign, *notes]
    # those with the fewest components first, as they leave the least to try
    for equation in sorted(equations, key=lambda item: len(item.components - cleared)):
        if _holds(equation, parts):
            cleared |= equation.components - changes.keys()
            continue
        # 3
        solution = _solve(equation, parts, variations, cleared)
        if solution is not None:
            for component, value in solution.items():
                parts[component] = value
                changes[component] = _change(component, expected, value, equation)
            cleared |= equation.components - changes.keys()
            continue
        # 4
        suspects = equation.components - cleared - changes.keys()
        if len(suspects) == 1:
            (component,) = suspects
            changes[component] = _change(component, expected, "", equation)
        elif suspects:
            open_components |= suspects
        elif not equation.components & changes.keys():
            remarks.append(f"{equation.name}: {equation.meaning}")
    counted = {name: value for name, value in parts.items() if value in variations.accepted.get(name, frozenset())}
    differing = {name: change for name, change in changes.items() if name not in counted or not change.found}
    undetermined = open_components - differing.keys() - cleared
    holding = {equation.name: _holds(equation, {**expected, **counted}) for equation in equations}
    measured = frozenset[Component]().union(*(equation.components for equation in equations))
    return Explanation(
        matches=all(holding.values()) and not foreign,
        changed=tuple(differing[name] for name in _ordered(differing)),
        unchanged=_ordered(measured - differing.keys() - undetermined),
        undetermined=_ordered(undetermined),
        unjudged=_ordered(frozenset(Component) - measured),
        equations=tuple(holding.items()),
        notes=tuple(remarks),
    )


def command_line_edits(text: str) -> tuple[str, ...]:
    """Return variations of a command line (as `split_command_line` gives it): a word less, a known word more."""
    words = text.split(" ")
    without = [" ".join(words[:at] + words[at + 1 :]) for at in range(len(words)) if words[at] != _PLACE]
    places = range(len(words), -1, -1)
    added = [" ".join([*words[:at], word, *words[at:]]) for at in places for word in KNOWN_WORDS]
    return tuple(dict.fromkeys([*without, *added]))


def _solve(
    equation: Equation, parts: Parts, variations: Variations, cleared: set[Component]
) -> dict[Component, str] | None:
    """Return the values that make `equation` hold, of those components only that had to be varied."""
    free = [component for component in Component if component in equation.components - cleared]
    for changed in itertools.islice(_candidates(free, parts, variations), VARIATIONS):
        if equation.compute({**parts, **changed}) == equation.found:
            return changed
    return None


def _candidates(free: Sequence[Component], parts: Parts, variations: Variations) -> Iterator[dict[Component, str]]:
    """Yield changes of one component, of whole images, then of two components; each in every accepted shape."""

    def others(component: Component) -> list[str]:
        return [value for value in variations.values.get(component, ()) if value != parts[component]]

    def shapes(changed: Mapping[Component, str]) -> Iterator[dict[Component, str]]:
        """Yield the accepted values of what is free and not in `changed`, the present ones first."""
        names = [name for name in variations.accepted if name in free and name not in changed]
        yield {}
        for values in itertools.product(*(sorted(variations.accepted[name]) for name in names)):
            yield {name: value for name, value in zip(names, values, strict=True) if value != parts[name]}

    def combined(changes: Iterable[dict[Component, str]]) -> Iterator[dict[Component, str]]:
        for changed in changes:
            for shape in shapes(changed):
                yield {**shape, **changed}

    yield from combined({component: value} for component in free for value in others(component))
    wholes = [
        {name: whole[name] for name in free if name in whole and whole[name] != parts[name]}
        for whole in variations.wholes
    ]
    yield from combined(wholes)
    counts = [component for component in variations.accepted if component in free]
    yield from combined({**whole, count: value} for whole in wholes for count in counts for value in others(count))
    pairs = sorted(itertools.combinations(free, 2), key=lambda pair: len(set(pair) & set(counts)))
    for first, second in pairs:
        yield from combined({first: one, second: two} for one in others(first) for two in others(second))


def _change(component: Component, expected: Parts, found: str, equation: Equation) -> Change:
    how = f"{equation.how} {equation.name}: " + ("recomputed with this value" if found else "nothing else can differ")
    return Change(
        component=component,
        expected=shown(component, expected[component]),
        found=shown(component, found) if found else "",
        how=how,
    )


def _holds(equation: Equation, parts: Parts) -> bool:
    return equation.compute(parts) == equation.found


def _accepted(expected: Parts, variations: Variations) -> Iterator[dict[Component, str]]:
    """Yield the expected parts in each shape that counts as expected, the given one first."""
    yield dict(expected)
    names = tuple(variations.accepted)
    for values in itertools.product(*(sorted(variations.accepted[name]) for name in names)):
        yield {**expected, **dict(zip(names, values, strict=True))}


def shown(component: Component, value: str) -> str:
    """Return a component's value for people: the root hash out of its argument, the command line with its gap."""
    if component is Component.COMMAND_LINE:
        return value.replace(_PLACE, f"{_VERITY}..")
    if component is Component.ROOT_HASH:
        fields = value.split(":")
        return fields[1] if len(fields) == 3 else value
    return value


def _ordered(components: Iterable[Component]) -> tuple[Component, ...]:
    found = set(components)
    return tuple(component for component in Component if component in found)
