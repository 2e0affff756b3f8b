"""Tables of the reference pages, taken from the code: schemas, policy fields, QEMU command lines, exit reasons."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from cloister.cli.refusals import catalogue
from cloister.guest.server import CALLS_IN_FLIGHT
from cloister.host.vmm import exit as exits
from cloister.host.vmm.hardware import snp_platform, tdx_platform
from cloister.host.vmm.qemuargs import OVMF_MACHINE, Channels, Platform, ovmf_boot, qemu_arguments, seabios_boot
from cloister.host.vmm.spec import Accelerator, Bundle, PortForward, VMSpec
from cloister.protocol import guestapi
from cloister.protocol.admin.base import PREFIX
from cloister.protocol.initdata import build_initdata
from cloister.rats.policy import AppraisalPolicyWire
from cloister.rats.rules import PlatformRules
from cloister.tee.advisories import shipped_advisories
from cloister.trust.access import PERMISSIONS, Permission, Role
from cloister.trust.configuration import value_of, value_text
from cloister.trust.settings import TABLE, TrustSettings
from cloister.trust.web.admin.application import ROUTES
from cloister.trust.web.admin.description import openapi_document
from cloister.wire import limits

Tables = Mapping[str, Callable[[], str]]

_TYPES = {str: "text", int: "number", bool: "true or false"}


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _sentence(kind: type[Any]) -> str:
    """Return the docstring of a message on one line, safe in a table."""
    return " ".join((kind.__doc__ or "").split()).replace("|", "\\|")


def _type_text(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Annotated:
        base, *metas = typing.get_args(kind)
        meta = next(item for item in metas if isinstance(item, msgspec.Meta))
        return f"{_type_text(base)} {meta.ge} to {meta.le}"
    if typing.get_origin(kind) is list:
        return f"list of {_type_text(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) is dict:
        return "object of text"
    if isinstance(kind, types.UnionType):
        return _type_text(next(item for item in typing.get_args(kind) if item is not type(None)))
    return _TYPES.get(kind) or f"`{kind.__name__}`"


def _fields(kind: type[msgspec.Struct]) -> str:
    hints = typing.get_type_hints(kind, include_extras=True)
    parts = []
    for field in msgspec.structs.fields(kind):
        optional = "" if field.required else ", optional"
        parts.append(f"`{field.encode_name}` ({_type_text(hints[field.name])}{optional})")
    return "<br>".join(parts) or "none"


def calls() -> str:
    """Return the table of calls."""
    rows = [(f"`{name}`", _fields(params), _fields(result)) for name, (params, result) in guestapi.CALLS.items()]
    return _table(("call", "parameters", "result"), rows)


def claim() -> str:
    """Return the members of a claim."""
    return _fields(guestapi.ProcessClaim).replace("<br>", ", ")


def events() -> str:
    """Return the table of events."""
    kinds = typing.get_args(guestapi.Event)
    rows = [(f"`{kind.__struct_config__.tag}`", _sentence(kind), _fields(kind)) for kind in kinds]
    return _table(("kind", "what it says", "members"), rows)


def phases() -> str:
    """Return the names of phases."""
    return " · ".join(f"`{name}`" for name in guestapi.PHASES)


def ceilings() -> str:
    """Return the table of ceilings."""
    kib = limits.KIB
    rows = [
        ("control frame", f"{limits.GUESTAPI_FRAME_BYTES // kib} KiB"),
        ("payload of a stream frame", f"{limits.STREAM_FRAME_BYTES // kib} KiB"),
        ("first credit of a stream", f"{limits.STREAM_WINDOW_BYTES // kib} KiB"),
        ("identifier", f"{limits.GUESTAPI_ID_CHARS} characters: letters, digits, `-` `_` `.`; not first: `-` `.`"),
        ("calls under way", f"{CALLS_IN_FLIGHT}; more are answered `guestapi.busy`"),
        ("additional processes of one container at a time", str(limits.GUESTAPI_EXECS)),
        ("containers of a pod", str(limits.POLICY_CONTAINERS)),
        ("signal number", f"1 to {guestapi.LAST_SIGNAL}"),
        ("terminal size", f"{guestapi.TERMINAL_CELLS} cells each way"),
    ]
    return _table(("what", "at most"), rows)


def refusals(*prefixes: str) -> str:
    """Return the catalogue's entries under some prefixes."""
    found = [entry for code, entry in catalogue().items() if code.startswith(prefixes)]
    rows = [(f"`{entry.code}`", entry.id, entry.title) for entry in sorted(found, key=lambda item: item.id)]
    return _table(("code", "number", "title"), rows)


def _example() -> VMSpec:
    bundle = Bundle(
        kernel=Path("vmlinuz"),
        initrd=Path("initrd.img"),
        cmdline="CMDLINE",
        root=Path("root.img"),
        uki=Path("podvm.efi"),
        bios=Path("firmware/bios-256k.bin"),
        ovmf_code=Path("firmware/OVMF_CODE.fd"),
        ovmf_vars=Path("firmware/OVMF_VARS.fd"),
        option_roms={"linuxboot_dma.bin": Path("firmware/linuxboot_dma.bin")},
        ovmf_stateless=Path("firmware/OVMF.fd"),
    )
    return VMSpec(
        name="shop",
        work=Path("work"),
        initdata=build_initdata({"example": "yes"}).text,
        bundle=bundle,
        ports=(PortForward(host_ip="127.0.0.1", host_port=6379, guest_port=6379),),
    )


def _arguments(platform: Platform, *, tpm: bool, scratch: int | None = None) -> list[str]:
    spec = _example()
    channels = Channels(control=10, streams=11, console=12, monitor=13, tpm=14 if tpm else None, scratch=scratch)
    return qemu_arguments(spec, platform, channels, Path("initdata.img"), spec.require_bundle().root)


def _lines(arguments: list[str]) -> str:
    """Return options with their values, each on a line; long lists of bare options share one."""
    lines: list[str] = []
    for argument in arguments:
        if argument.startswith("-") or not lines:
            lines.append(argument)
        else:
            lines[-1] += f" {argument}"
    return "\n".join(lines)


def _seabios() -> list[str]:
    bundle = _example().require_bundle()
    return _arguments(Platform(accelerator=Accelerator.TCG, boot=seabios_boot(bundle), machine={}), tpm=True)


def seabios_command() -> str:
    """Return the command line of the default back end."""
    return f"```text\n{_lines(_seabios())}\n```"


def _difference(platform: Platform, *, tpm: bool, scratch: int | None = None) -> str:
    """Return the options that differ from the default back end's."""
    common = set(_lines(_seabios()).splitlines())
    lines = _lines(_arguments(platform, tpm=tpm, scratch=scratch)).splitlines()
    return "\n".join(line for line in lines if line not in common)


def scratch_options() -> str:
    """Return what a scratch disk adds to any back end's command line."""
    boot = seabios_boot(_example().require_bundle())
    platform = Platform(accelerator=Accelerator.TCG, boot=boot, machine={})
    return f"```text\n{_difference(platform, tpm=True, scratch=15)}\n```"


def ovmf_command() -> str:
    """Return what OVMF's command line has that SeaBIOS' has not."""
    boot = ovmf_boot(_example().require_bundle(), Path("work/ovmf-vars.fd"))
    platform = Platform(accelerator=Accelerator.TCG, boot=boot, machine=OVMF_MACHINE)
    return f"```text\n{_difference(platform, tpm=True)}\n```"


def snp_command() -> str:
    """Return what SEV-SNP's command line has that SeaBIOS' has not."""
    return f"```text\n{_difference(snp_platform(_example()), tpm=False)}\n```"


def tdx_command() -> str:
    """Return what TDX's command line has that SeaBIOS' has not."""
    return f"```text\n{_difference(tdx_platform(_example()), tpm=False)}\n```"


def exit_reasons() -> str:
    """Return the table of exit reasons."""
    rows = []
    for reason in exits.ExitReason:
        ended = exits.VMExit(reason=reason, status=None)
        error = ended.error()
        rows.append((f"`{reason.value}`", error.message, "clean" if ended.clean else f"`{error.code}`", error.hint))
    return _table(("reason", "meaning", "as an error", "hint"), rows)


def rules() -> str:
    """Return the fields of an appraisal policy by section, with defaults and meaning."""
    rows = []
    for section, kind in (("", AppraisalPolicyWire), *_sections()):
        meaning = _attributes(kind)
        for field in msgspec.structs.fields(kind):
            if field.name in PlatformRules.__struct_fields__:
                continue
            default = "required" if field.required else f"`{_default(field)}`"
            rows.append((f"`{section}`" if section else "", f"`{field.name}`", default, meaning.get(field.name, "")))
    return _table(("section", "field", "default", "meaning"), rows)


def advisories() -> str:
    """Return the rows of the shipped table of advisories."""
    rows = []
    for row in shipped_advisories():
        remedy = [f"`{name}` {least} or newer" for name, least in row.minimum_tcb.items()]
        remedy += [f"`{name}` {json.dumps(value)}" for name, value in row.required.items()]
        words = ", ".join(remedy) or "none"
        products = ", ".join((*row.products, *(f"{name} {value}" for name, value in row.where.items())))
        rows.append((f"[{row.id}]({row.link})", products, row.severity.value, row.title, words))
    return _table(("id", "products", "severity", "what", "remedy"), rows)


def _sections() -> list[tuple[str, type[msgspec.Struct]]]:
    return [(name, type(getattr(PlatformRules(), name))) for name in PlatformRules.__struct_fields__]


def _default(field: Any) -> str:
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    return json.dumps(msgspec.to_builtins(value))


def _attributes(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Return the sentences of a docstring's `Attributes:` by name."""
    found: dict[str, str] = {}
    name = ""
    for line in (kind.__doc__ or "").partition("Attributes:")[2].splitlines():
        word, colon, rest = line.strip().partition(": ")
        if colon and word in kind.__struct_fields__:
            name, found[word] = word, rest
        elif name:
            found[name] += f" {line.strip()}"
    return {name: text.strip().replace("|", "\\|") for name, text in found.items()}


def settings() -> str:
    """Return the settings table of the trust service."""
    defaults = TrustSettings(state=Path("DIR"))
    rows = []
    for row in TABLE:
        value = value_text(value_of(defaults, row.field))
        default = "required, or `$CLOISTER_HOME/trust`" if row.field == "data" else f"`{value}`" if value else ""
        rows.append((f"`{row.field}`", default, row.help, row.controls))
    return _table(("key", "default", "meaning", "what an attacker gains who controls it"), rows)


def admin_routes() -> str:
    """Return the table of administration routes with the permission each takes, and the roles that have it."""
    document = openapi_document(ROUTES)
    rows = []
    for path, item in sorted(document["paths"].items()):
        for method, operation in sorted(item.items()):
            permission = Permission(operation["description"].removeprefix("Needs `").removesuffix("`."))
            roles = [role.value for role in Role if permission in PERMISSIONS[role]]
            route = f"`{method.upper()} {path.removeprefix(PREFIX)}`"
            rows.append((route, operation["summary"], f"`{permission.value}`", ", ".join(roles)))
    return _table(("route", "what", "permission", "roles"), rows)


PAGES: Mapping[str, Tables] = {
    "docs/reference/admin-api.md": {"admin routes": admin_routes},
    "docs/reference/configuration.md": {"settings": settings},
    "docs/reference/evidence.md": {"rules": rules, "advisories": advisories},
    "docs/reference/guest-api.md": {
        "calls": calls,
        "claim": claim,
        "events": events,
        "phases": phases,
        "ceilings": ceilings,
        "refusals": lambda: refusals("guestapi.", "guest.", "podpolicy."),
    },
    "docs/reference/launchers.md": {
        "seabios": seabios_command,
        "scratch": scratch_options,
        "ovmf": ovmf_command,
        "snp": snp_command,
        "tdx": tdx_command,
        "exits": exit_reasons,
        "refusals": lambda: refusals("host."),
    },
}
