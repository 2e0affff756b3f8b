"""Words of the command line to typed values, shared by the verbs that launch pods."""

from __future__ import annotations

from pathlib import Path

from cloister.errors import Refused
from cloister.host.vmm.spec import Accelerator, Backend, PortForward
from cloister.podpolicy.generate import pod_label
from cloister.protocol.resourceuri import parse_resource_uri
from cloister.rats.claims import Level
from cloister.wire.limits import KIB, RESOURCE_BYTES

_LEVEL_SHORT = {
    Level.MEASURED: "this machine's root is not kept out",
    Level.SIMULATED: "teaches the flow, protects nothing",
}

_HARDWARE_HINT = "no pod runs at level hardware in this release; `cloister doctor` lists what this machine has"


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


def parse_secret_files(items: list[str]) -> dict[str, bytes | str]:
    """Return secret files by their path in the container: content of a local file, or an address.

    Raises:
        Refused: `cli.run.secret_file`.
    """
    files: dict[str, bytes | str] = {}
    for item in items:
        path, equals, source = item.partition("=")
        if not equals or not path.startswith("/") or not source:
            raise _not_a_secret_file(item)
        if source.startswith(("kbs:///", "sealed.")):
            files[path] = source
            continue
        try:
            with Path(source).open("rb") as file:
                content = file.read(RESOURCE_BYTES + 1)
        except OSError as err:
            raise _not_a_secret_file(item, str(err.strerror)) from err
        if not 0 < len(content) <= RESOURCE_BYTES:
            raise _not_a_secret_file(item, f"1 to {RESOURCE_BYTES} bytes are possible")
        files[path] = content
    return files


def parse_sealing_keys(items: list[str]) -> dict[str, str]:
    """Return sealing keys by `kid`: `kbs:///...`, where the key broker has it, or `KID=FILE` with a PEM or JWK.

    Raises:
        Refused: `cli.run.sealing_key`, `crypto.signer.*`.
        FormatRefused: `protocol.resource.malformed`, `crypto.sealed.key`.
    """
    from cloister.crypto.sealedsecret import parse_sealing_key

    keys = {}
    for item in items:
        kid, equals, file = item.partition("=")
        if not equals:
            keys[parse_resource_uri(kid).uri] = ""
            continue
        try:
            with Path(file).open("rb") as stream:
                content = stream.read(16 * KIB)
        except OSError as err:
            raise Refused(
                "cli.run.sealing_key",
                "cannot read the sealing key",
                path=file,
                expected="kbs:///repository/type/tag, or KID=FILE",
                actual=str(err.strerror),
            ) from err
        keys[kid] = parse_sealing_key(content).pem().decode()
    return keys


def _not_a_secret_file(item: str, actual: str = "") -> Refused:
    return Refused(
        "cli.run.secret_file",
        "not a secret file",
        path="--secret-file",
        expected="PATH=FILE, PATH=kbs:///repository/type/tag or PATH=sealed.TEXT; PATH is absolute",
        actual=actual or item[:60],
    )


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
