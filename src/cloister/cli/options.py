"""Words of the command line to typed values, shared by the verbs that launch pods."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from cloister.errors import Refused
from cloister.host.vmm.spec import Accelerator, Backend, PortForward
from cloister.podpolicy.generate import pod_label
from cloister.rats.claims import Level

_LEVEL_SHORT = {
    Level.MEASURED: "this machine's root is not kept out",
    Level.SIMULATED: "teaches the flow, protects nothing",
}

_HARDWARE_HINT = "no pod runs at level hardware in this release; `cloister doctor` lists what this machine has"


class Output(enum.StrEnum):
    """Forms of a result."""

    TEXT = "text"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", metavar="FORM", help="text or json.")]


def parse_level(text: str) -> Level:
    """Return the level the user named; `hardware` cannot be had by asking for it here.

    Raises:
        Refused: `cli.run.option`.
    """
    return Level(_choice("--level", text, [Level.MEASURED.value, Level.SIMULATED.value]))


def choose_backend(level: str, profile: str) -> Backend:
    """Return the back end for a level and a boot profile.

    Raises:
        Refused: `cli.run.option`.
    """
    if parse_level(level) is Level.SIMULATED:
        return Backend.PROCESS
    chosen = _choice("--profile", profile, ["seabios", "uki"])
    return Backend.SEABIOS if chosen == "seabios" else Backend.OVMF


def parse_environment(items: list[str]) -> dict[str, str]:
    """Return variables; NAME without a value is refused rather than read from this shell.

    Raises:
        Refused: `cli.run.env`.
    """
    env = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise Refused(
                "cli.run.env",
                "not a variable with its value",
                path="--env",
                expected="NAME=VALUE",
                actual=item[:60],
                hint="write the value: this shell's own is never read in, so that what is measured is what was written",
            )
        env[key] = value
    return env


def parse_publish(text: str) -> PortForward:
    """Return the port forward `[IP:]HOST:POD`; the address is 127.0.0.1 unless said otherwise.

    Raises:
        Refused: `cli.run.publish`, `host.spec.port_forward`.
    """
    parts = text.removesuffix("/tcp").split(":")
    if len(parts) == 2:
        parts = ["127.0.0.1", *parts]
    if len(parts) != 3 or not parts[1].isdigit() or not parts[2].isdigit():
        raise Refused(
            "cli.run.publish",
            "not a published port",
            path="--publish",
            expected="[IP:]HOST:POD, TCP",
            actual=text[:60],
            hint="for example -p 6379:6379",
        )
    return PortForward(host_ip=parts[0], host_port=int(parts[1]), guest_port=int(parts[2]))


def parse_name(text: str) -> str:
    """Return the name of a pod; empty stands for one that is made up.

    Raises:
        Refused: `cli.run.name`.
    """
    if text and pod_label(text) != text:
        raise Refused(
            "cli.run.name",
            "not a name for a pod",
            path="--name",
            expected="lower-case letters, digits and hyphens",
            actual=text[:60],
            hint=f"try --name {pod_label(text)}",
        )
    return text


def choose_accelerator(text: str) -> Accelerator:
    """Return how QEMU shall execute the guest.

    Raises:
        Refused: `cli.run.option`.
    """
    return Accelerator(_choice("--accel", text, [item.value for item in Accelerator]))


def level_line(backend: Backend) -> str:
    """Return what a back end can prove, in a line."""
    level = Level.SIMULATED if backend is Backend.PROCESS else Level.MEASURED
    platform = "process sandbox" if backend is Backend.PROCESS else "QEMU + software TPM"
    return f"platform: {platform} -> level {level.value.upper()} ({_LEVEL_SHORT[level]})"


def _choice(flag: str, text: str, allowed: list[str]) -> str:
    if text not in allowed:
        raise Refused(
            "cli.run.option",
            f"{flag} has no such value",
            path=flag,
            expected=", ".join(allowed),
            actual=text[:40],
            hint=_HARDWARE_HINT if text == Level.HARDWARE.value else f"write {flag} {allowed[0]}",
        )
    return text
