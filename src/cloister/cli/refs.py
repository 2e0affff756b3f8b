"""`cloister refs compute|explain|sign|verify`: which measurements an image gives, and what changed when they differ."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from cloister.cli.forms import Output, OutputOption
from cloister.cli.output import print_json, print_line, stdout, visible
from cloister.cli.podvm import prepare_bundle
from cloister.protocol.launch import LaunchProfile
from cloister.sdk.home import home_from_environment

if TYPE_CHECKING:
    from cloister.imagetool.podvm import PodVMBundle
    from cloister.rats.reference import ReferenceEntry
    from cloister.rats.referenceset import ReferenceSet
    from cloister.sdk.explanation import Explanation
    from cloister.sdk.references import ReferenceRequest

app = typer.Typer(
    no_args_is_help=True, help="Compute, explain, sign and verify reference values.", rich_markup_mode=None
)

_NUMBERS_CEILING = 4096
_SHOWN_HEX = 24

PlatformOption = Annotated[str, typer.Option("--platform", metavar="NAME", help="tpm, snp or tdx.")]
VCPUsOption = Annotated[str, typer.Option("--vcpus", metavar="RANGE", help="Numbers of processors: 1-4 or 1,2,4.")]
MemoryOption = Annotated[str, typer.Option("--memory", metavar="RANGE", help="MiB of main memory (tpm).")]
ProfileOption = Annotated[
    list[str] | None,
    typer.Option("--profile", metavar="NAME", help="Boot profile (tpm): seabios or uki [default: both]."),
]
OVMFOption = Annotated[
    Path | None,
    typer.Option(
        "--ovmf", exists=True, dir_okay=False, help="Firmware: needed for snp; for tdx instead of the image's."
    ),
]
VCPUTypeOption = Annotated[
    list[str] | None, typer.Option("--vcpu-type", metavar="NAME", help="CPU model (snp) [default: EPYC-v4].")
]
FeaturesOption = Annotated[
    list[str] | None, typer.Option("--guest-features", metavar="HEX", help="SEV features (snp) [default: 0x1].")
]
OrderOption = Annotated[
    list[str] | None,
    typer.Option("--page-order", metavar="NAME", help="How pages are added (tdx): page or section [default: page]."),
]
KeyFileOption = Annotated[Path, typer.Option("--key", exists=True, dir_okay=False, help="Private key, PEM (P-256).")]


@app.command("compute")
def compute_command(
    image: Annotated[
        Path | None, typer.Argument(exists=True, file_okay=False, help="A pod-VM image [default: the current build].")
    ] = None,
    platform: PlatformOption = "tpm",
    vcpus: VCPUsOption = "1,2,4",
    memory: MemoryOption = "512,1024",
    profile: ProfileOption = None,
    ovmf: OVMFOption = None,
    vcpu_type: VCPUTypeOption = None,
    guest_features: FeaturesOption = None,
    page_order: OrderOption = None,
    init_data: Annotated[
        Path | None,
        typer.Option("--init-data", exists=True, dir_okay=False, help="A pod's init data: adds PCR 8 (tpm)."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="For how long the values hold.")] = 90,
    output: Annotated[
        str, typer.Option("--output", metavar="FORM", help="text, json, or a file that gets the JSON.")
    ] = "text",
) -> None:
    """Compute what machines that boot the image measure as, without booting any.

    The JSON is a set of reference values: sign it with `cloister refs sign`.
    """
    from cloister.rats.referenceset import ReferenceSet, encode_reference_set
    from cloister.sdk.references import compute_references

    request = _request(platform, vcpus, memory, profile, ovmf, vcpu_type, guest_features, page_order)
    if init_data is not None:
        request = dataclasses.replace(request, init_data=init_data.read_bytes())
    now = datetime.now(UTC).replace(microsecond=0)
    until = now + timedelta(days=days)
    entries = compute_references(_bundle(image), request, not_after=until)
    values = ReferenceSet(
        id=f"podvm/{request.platform.value}", version=int(time.time()), issued_at=now, not_after=until, entries=entries
    )
    if output == Output.TEXT:
        _print_entries(entries)
    elif output == Output.JSON:
        stdout.file.write(encode_reference_set(values).decode())
    else:
        Path(output).write_bytes(encode_reference_set(values))
        print_line(f"{len(entries)} reference values in {output}")


@app.command("explain")
def explain_command(
    evidence: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Evidence: raw, or a guest's JSON.")],
    platform: PlatformOption = "tpm",
    image: Annotated[
        Path | None,
        typer.Option("--image", exists=True, file_okay=False, help="The expected image [default: the current build]."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference", exists=True, dir_okay=False, help="Reference values: expects their image and machines."
        ),
    ] = None,
    vcpus: VCPUsOption = "1,2,4",
    memory: MemoryOption = "512,1024",
    profile: ProfileOption = None,
    ovmf: OVMFOption = None,
    vcpu_type: VCPUTypeOption = None,
    guest_features: FeaturesOption = None,
    page_order: OrderOption = None,
    candidate: Annotated[
        list[Path] | None,
        typer.Option(
            "--candidate",
            exists=True,
            help="What may have been used instead: an image, or a firmware, kernel or initrd.",
        ),
    ] = None,
    cmdline: Annotated[
        list[str] | None,
        typer.Option("--cmdline", metavar="TEXT", help="A command line that may have been used instead."),
    ] = None,
    launch: Annotated[
        Path | None,
        typer.Option(
            "--launch",
            exists=True,
            dir_okay=False,
            help="Launch statement (tpm) [default: launch.json beside EVIDENCE].",
        ),
    ] = None,
    event_log: Annotated[
        Path | None, typer.Option("--event-log", exists=True, dir_okay=False, help="CCEL of the guest (tdx).")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Say which component changed: firmware, kernel, initrd, command line, root hash, vCPU count, memory.

    Recomputes the registers with each component varied: other shapes, edits of the command line, the parts of every
    pod-VM image in the cache, and what --candidate names. Reads the evidence; does not verify it.
    """
    from cloister.sdk.equations import Known, build_problem
    from cloister.sdk.measured import read_measured
    from cloister.sdk.references import Platform

    request = _request(platform, vcpus, memory, profile, ovmf, vcpu_type, guest_features, page_order)
    if reference is not None:
        request, bundle = _expected(reference.read_bytes(), request, image)
    else:
        bundle = _bundle(image)
    statement = launch or evidence.with_name("launch.json")
    measured = read_measured(
        evidence.read_bytes(), request.platform, event_log=event_log.read_bytes() if event_log else b""
    )
    others, files = _candidates(candidate or [], bundle)
    known = Known(
        image=bundle,
        others=others,
        files=files,
        cmdlines=tuple(cmdline or ()),
        launch=statement.read_bytes() if request.platform is Platform.TPM and statement.is_file() else b"",
    )
    answer = build_problem(measured, known, request).explain()
    if output is Output.JSON:
        print_json({"schema": 1, "platform": request.platform.value, "image": bundle.key, **_as_json(answer)})
    else:
        _print_explanation(answer, bundle.key)


@app.command("sign")
def sign_command(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The JSON of `cloister refs compute`.")],
    key: KeyFileOption,
    name: Annotated[str | None, typer.Option("--id", help="Name of the set [default: as in FILE].")] = None,
    version: Annotated[
        int | None, typer.Option(help="Must grow with each issue [default: as in FILE, seconds of the clock].")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where the signed set goes [default: standard output].")] = None,
) -> None:
    """Sign a set of reference values: a DSSE envelope, ECDSA P-256."""
    from cloister.crypto.references import sign_reference_set
    from cloister.crypto.signer import ECDSAP256Signer
    from cloister.rats.referenceset import encode_reference_set, parse_reference_set

    values = parse_reference_set(file.read_bytes())
    changed = dataclasses.replace(values, id=name or values.id, version=values.version if version is None else version)
    values = parse_reference_set(encode_reference_set(changed))  # the rules hold for what the options say, too
    envelope = sign_reference_set(values, ECDSAP256Signer.from_pem(key.read_bytes()))
    if out is None:
        stdout.file.write(envelope.decode())
        return
    out.write_bytes(envelope)
    print_line(f"signed {values.id} version {values.version}, {len(values.entries)} entries, in {out}")


@app.command("verify")
def verify_command(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A signed set.")],
    key: Annotated[
        list[Path], typer.Option("--key", exists=True, dir_okay=False, help="Public key of an issuer, PEM; repeatable.")
    ],
    at: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%dT%H:%M:%SZ"], help="Judge at this time, UTC [default: now].")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where what it holds goes, for verifiers of evidence.")] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Verify a signed set: issuer, time, and that no newer version was accepted here before."""
    from cloister.crypto.signer import ECDSAP256PublicKey
    from cloister.rats.referenceset import encode_reference_set
    from cloister.sdk.references import verify_signed_references

    keys = [ECDSAP256PublicKey.from_pem(path.read_bytes()) for path in key]
    when = datetime.now(UTC) if at is None else at.replace(tzinfo=UTC)
    verified = verify_signed_references(file.read_bytes(), keys, home=home_from_environment(), at=when)
    values = verified.values
    if out is not None:
        out.write_bytes(encode_reference_set(values))
    if output is Output.JSON:
        print_json(_set_as_json(values) | {"key_id": verified.key_id, "digest": verified.seen.digest})
        return
    print_line(f"{values.id} version {values.version}: signed by {verified.key_id}")
    print_line(f"  holds until {values.not_after.isoformat(timespec='seconds')}")
    _print_entries(values.entries)


def parse_numbers(text: str, flag: str) -> list[int]:
    """Return the numbers of `1-4,8`, in that order, each once.

    Raises:
        typer.BadParameter: not a list of numbers and ranges.
    """
    found: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isascii() or not first.isdigit() or (dash and not (last.isascii() and last.isdigit())):
            raise typer.BadParameter(f"not numbers such as 1-4 or 1,2,4: {text[:40]}", param_hint=flag)
        low, high = int(first), int(last or first)
        if not 0 < low <= high or high - low >= _NUMBERS_CEILING:
            raise typer.BadParameter(f"not an ascending range of positive numbers: {part[:40]}", param_hint=flag)
        found.update(dict.fromkeys(range(low, high + 1)))
    return list(found)


def _request(
    platform: str,
    vcpus: str,
    memory: str,
    profile: list[str] | None,
    ovmf: Path | None,
    vcpu_type: list[str] | None,
    guest_features: list[str] | None,
    page_order: list[str] | None,
) -> ReferenceRequest:
    from cloister.imagetool.measure.snp import DEFAULT_GUEST_FEATURES, DEFAULT_VCPU_TYPE
    from cloister.imagetool.measure.tdx import PageOrder
    from cloister.sdk.references import Platform, ReferenceRequest

    def chosen(kind: Any, text: str, flag: str) -> Any:  # Any: one of several enumerations
        try:
            return kind(text)
        except ValueError:
            wanted = ", ".join(str(item.value) for item in kind)
            raise typer.BadParameter(f"{text[:40]!r} is none of {wanted}", param_hint=flag) from None

    def number(text: str) -> int:
        try:
            return int(text, 16)
        except ValueError:
            raise typer.BadParameter(f"not hexadecimal: {text[:40]}", param_hint="--guest-features") from None

    return ReferenceRequest(
        platform=chosen(Platform, platform, "--platform"),
        vcpus=parse_numbers(vcpus, "--vcpus"),
        memory_mib=parse_numbers(memory, "--memory"),
        profiles=[chosen(LaunchProfile, name, "--profile") for name in profile or LaunchProfile],
        firmware=ovmf.read_bytes() if ovmf else None,
        vcpu_types=vcpu_type or [DEFAULT_VCPU_TYPE],
        guest_features=[number(text) for text in guest_features or ()] or [DEFAULT_GUEST_FEATURES],
        orders=[chosen(PageOrder, name, "--page-order") for name in page_order or ["page"]],
    )


def _bundle(path: Path | None) -> PodVMBundle:
    from cloister.imagetool.podvm import load_bundle

    return prepare_bundle(home_from_environment()) if path is None else load_bundle(path)


def _expected(data: bytes, request: ReferenceRequest, image: Path | None) -> tuple[ReferenceRequest, PodVMBundle]:
    """Return what reference values expect: their machines, and their image from the cache unless it is named."""
    from cloister.rats.referenceset import read_reference_values
    from cloister.sdk.bundle import cached_bundles
    from cloister.sdk.references import expected_by, image_of

    entries = read_reference_values(data)
    expected = expected_by(entries, request)
    return expected, _bundle(image) if image else image_of(entries, cached_bundles(home_from_environment()))


def _candidates(paths: Sequence[Path], bundle: PodVMBundle) -> tuple[list[PodVMBundle], list[bytes]]:
    """Return the images and files that may have been used instead: those named, and every image in the cache."""
    from cloister.imagetool.podvm import load_bundle
    from cloister.sdk.bundle import cached_bundles

    named = [load_bundle(path) for path in paths if path.is_dir()]
    cached = cached_bundles(home_from_environment())
    others = {other.key: other for other in (*named, *cached) if other.key != bundle.key}
    return list(others.values()), [path.read_bytes() for path in paths if path.is_file()]


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")  # never shortened: people compare what is here
    return table


def _print_entries(entries: Sequence[ReferenceEntry]) -> None:
    table = _table("entry", "register", "value", "holds until")
    for entry in entries:
        for number, (name, value) in enumerate(sorted(entry.registers.items())):
            first = number == 0
            table.add_row(
                Text(visible(entry.id) if first else ""),
                Text(visible(name)),
                Text(f"{value.hex()[:_SHOWN_HEX]}.."),
                Text(entry.not_after.date().isoformat() if first else ""),
            )
    stdout.print(table)


def _print_explanation(answer: Explanation, key: str) -> None:
    if answer.matches:
        print_line(f"every register is that of pod-VM image {key[:12]}")
    elif answer.changed:
        print_line("changed: " + ", ".join(change.component.value for change in answer.changed))
    else:
        print_line("something changed, and nothing that was tried gives the values found")
    table = Table(
        "component", "", "expected", "found", "how it is known", box=None, pad_edge=False, header_style="bold"
    )
    for change in answer.changed:
        cells = (change.component.value, "CHANGED", change.expected, change.found or "unknown", change.how)
        table.add_row(*(Text(visible(cell)) for cell in cells))
    for mark, components in (
        ("as expected", answer.unchanged),
        ("UNKNOWN", answer.undetermined),
        ("not judged", answer.unjudged),
    ):
        for component in components:
            table.add_row(Text(component.value), Text(mark), Text(""), Text(""), Text(""))
    stdout.print(table)
    differing = [name for name, holds in answer.equations if not holds]
    if differing:
        print_line("differs: " + ", ".join(differing))
    for note in answer.notes:
        print_line(f"note: {note}")
    if answer.undetermined:
        print_line("to know more, name what may have been used instead: --candidate, --cmdline, --launch, --event-log")


def _as_json(answer: Explanation) -> dict[str, Any]:  # Any: JSON
    return {
        "matches": answer.matches,
        "changed": [
            {
                "component": change.component.value,
                "expected": change.expected,
                "found": change.found or None,
                "how": change.how,
            }
            for change in answer.changed
        ],
        "unchanged": [component.value for component in answer.unchanged],
        "undetermined": [component.value for component in answer.undetermined],
        "unjudged": [component.value for component in answer.unjudged],
        "registers": [{"name": name, "as_expected": holds} for name, holds in answer.equations],
        "notes": list(answer.notes),
    }


def _set_as_json(values: ReferenceSet) -> dict[str, Any]:  # Any: JSON
    import msgspec

    from cloister.rats.referenceset import encode_reference_set

    found: dict[str, Any] = msgspec.json.decode(encode_reference_set(values))  # Any: JSON
    return found
