"""`cloister image encrypt|decrypt|rewrap|sign|verify|inspect`: protect an image without changing it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli import imagesignature
from cloister.cli.forms import Output, OutputOption
from cloister.cli.imageverity import verity_command
from cloister.cli.output import StepPrinter, print_json, print_line, short_digest
from cloister.cli.progress import BytesBar
from cloister.cli.trustservice import OpenService, with_trust_service
from cloister.imagetool.compression import Compress

if TYPE_CHECKING:
    from cloister.imagetool.platforms import RewrittenImage
    from cloister.sdk.images import KeyEncryptionKeys

app = typer.Typer(
    no_args_is_help=True, help="Encrypt, decrypt, sign, verify and look at container images.", rich_markup_mode=None
)

app.command("verity")(verity_command)

_PLACES = "docker://REF, oci:PATH:TAG, oci-archive:PATH:TAG, docker-archive:PATH or dir:PATH"

SourceArgument = Annotated[str, typer.Argument(help=f"The image: {_PLACES}.")]
SealedArgument = Annotated[
    str, typer.Argument(help="Where the result goes: docker://REF, oci:PATH:TAG, oci-archive:PATH:TAG or dir:PATH.")
]
PlatformOption = Annotated[
    str, typer.Option(metavar="OS/ARCH", help="Take one image out of an index [default: all, and a new index].")
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="32-byte key-encryption key of kbs [default: of the trust service, made there if there is none].",
    ),
]


@app.command("encrypt")
@with_trust_service
def encrypt_command(
    service: OpenService,
    source: SourceArgument,
    destination: SealedArgument,
    recipient: Annotated[
        list[str],
        typer.Option(
            metavar="RECIPIENT",
            help="Who can decrypt: kbs:///repository/type/tag, jwe:FILE, pkcs7:FILE, pgp:NAME, pkcs11:FILE or "
            "provider:NAME[:PARAMS]; repeatable.",
        ),
    ],
    key_file: KeyFileOption = None,
    platform: PlatformOption = "",
    compress: Annotated[
        Compress,
        typer.Option(
            metavar="FORM",
            help="none: layers stay as they are; gzip: plain and zstd ones become gzip; zstd: plain ones become zstd; "
            "guest: only zstd ones become gzip, for guests of Confidential Containers.",
        ),
    ] = Compress.NONE,
    leave_foreign: Annotated[
        bool,
        typer.Option("--leave-foreign", help="Leave layers that are fetched from elsewhere readable, as they are."),
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Encrypt an image: every layer under a fresh key, the keys wrapped for each recipient.

    The configuration keeps its digest and stays readable; only layers change. Of an index all platforms are encrypted.
    Sign afterwards.
    """
    from cloister.sdk.images import KeyEncryptionKeys, encrypt_between, parse_places

    keks = KeyEncryptionKeys(key_file, service=service)
    with BytesBar("encrypting") as bar:
        sealed = encrypt_between(
            parse_places(source, destination),
            recipient,
            keks=keks,
            platform=platform,
            compress=compress,
            leave_foreign=leave_foreign,
            progress=bar,
        )
    if output is Output.JSON:
        print_json(
            {
                **_image_json(sealed.image),
                "layers": [str(layer) for layer in sealed.layers],
                "recipients": recipient,
                "keys_made": keks.made,
                "recompressed": sealed.recompressed,
                "zstd_layers": sealed.zstd,
                "readable_layers": sealed.foreign,
            }
        )
        return
    step = StepPrinter()
    step("ok", "image encrypted", f"{sealed.digest}")
    _print_platforms(step, sealed.image)
    for text in recipient:
        step("ok", "for", f"{text}{_kek_words(text, keks, key_file)}")
    if sealed.recompressed:
        step("ok", "compression changed", f"{_count(sealed.recompressed, 'layer')}; the content is the same")
    step("--", "not hidden", "the configuration: entrypoint, environment, user stay readable to the registry")
    if sealed.zstd:
        step(
            "!!",
            "for Cloister's guests only",
            f"{_count(sealed.zstd, 'layer')} zstd and encrypted, which CoCo guests cannot read",
        )
        step.note("for a CoCo guest, encrypt the original again with --compress gzip (content stays the same)")
    if sealed.foreign:
        step("!!", "NOT encrypted", f"{_count(sealed.foreign, 'layer')} fetched from elsewhere, readable to everybody")
    step.note(f"next: cloister image sign {destination}{_naming(destination)}")


@app.command("decrypt")
@with_trust_service
def decrypt_command(
    service: OpenService,
    source: Annotated[str, typer.Argument(help=f"The encrypted image: {_PLACES}.")],
    destination: Annotated[str, typer.Argument(help=f"Where the plain image goes: {_PLACES}.")],
    key: Annotated[
        list[str],
        typer.Option(
            metavar="KEY",
            help="A recipient's private key: FILE[:PASSWORD|:file=FILE|:fd=N], provider:NAME[:PARAMS], or kbs for "
            "the keys in the trust service; repeatable.",
        ),
    ],
    key_file: KeyFileOption = None,
    platform: PlatformOption = "",
    check_diff_ids: Annotated[
        bool,
        typer.Option(
            "--check-diff-ids/--no-check-diff-ids",
            help="Also decompress layers and compare what is inside with the configuration, as whoever unpacks them "
            "does; digest and MAC are checked either way.",
        ),
    ] = False,
    verify_key: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="First verify that this public key signed the image, PEM; repeatable."),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="First verify that this policy.json accepts the image.")
    ] = None,
    registries_d: Annotated[
        Path | None, typer.Option("--registries-d", help="With --policy: where simple signing's stores are configured.")
    ] = None,
    repository: Annotated[
        str, typer.Option(help="With --verify-key: repository a signature must name [default: the image's own].")
    ] = "",
    not_before: Annotated[
        str, typer.Option(metavar="TIME", help="With --verify-key or --policy: refuse signatures made before.")
    ] = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Decrypt an image with one of its recipients' keys; no layer appears, or is looked into, unless it is authentic.

    Who made the image is proved by --verify-key or --policy only, on the manifest that is decrypted then. Without,
    anybody can have put layers that are not encrypted into it.
    """
    from cloister.sdk.images import KeyEncryptionKeys, decrypt_between, parse_places

    check = imagesignature.signature_check(
        source,
        policy=policy,
        registries_d=registries_d,
        keys=verify_key,
        repository=repository,
        not_before=not_before,
        service=service,
    )
    with BytesBar("decrypting") as bar:
        found = decrypt_between(
            parse_places(source, destination),
            key,
            keks=KeyEncryptionKeys(key_file, service=service),
            platform=platform,
            check_diff_ids=check_diff_ids,
            check=check,
            progress=bar,
        )
    if output is Output.JSON:
        counts = {"decrypted": found.decrypted, "already_plain": found.plain, "diff_ids_checked": check_diff_ids}
        verified = {"verified": check is not None and check.proved, "signers": check.signers if check else []}
        print_json({**_image_json(found.image), **counts, **verified})
        return
    step = StepPrinter()
    proved = check is not None and check.proved
    for signer in dict.fromkeys(check.signers if check is not None and proved else []):
        step("ok", "signature verified", signer)
    step("ok", "image decrypted", f"{found.digest}")
    _print_platforms(step, found.image)
    checked = "MAC, digest and diff_id hold" if check_diff_ids else "MAC and digest hold; diff_ids: --check-diff-ids"
    step("ok", _count(found.decrypted, "layer"), checked)
    if not proved:
        step("--", "signature", "NOT verified (--verify-key, --policy)")
    if found.plain:
        whose = "they are signed with the rest" if proved else "ANYBODY can have put them there"
        step("!!", "NOT encrypted", f"{_count(found.plain, 'layer')} copied as found: {whose}")
    step("!!", "readable now", f"to everybody who can read {destination}")


@app.command("rewrap")
@with_trust_service
def rewrap_command(
    service: OpenService,
    source: Annotated[str, typer.Argument(help=f"The encrypted image: {_PLACES}.")],
    destination: Annotated[
        str, typer.Argument(help="Where the image with other recipients goes [default: where it is].")
    ] = "",
    add: Annotated[
        list[str] | None, typer.Option("--add", metavar="RECIPIENT", help="As of encrypt; needs --key; repeatable.")
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option("--remove", metavar="SCHEME", help="jwe, pkcs7, pgp, pkcs11, provider.NAME or kbs; repeatable."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Remove everybody but those added.")] = False,
    key: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="A recipient's private key, as of decrypt; repeatable.")
    ] = None,
    key_file: KeyFileOption = None,
    platform: PlatformOption = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Add and remove recipients of an encrypted image without touching its layers.

    Who could open the image before and kept its old manifest still can: to lock somebody out, encrypt it anew.
    """
    from cloister.oci.encryption.annotations import PACKET_SCHEME
    from cloister.sdk.images import KeyEncryptionKeys, parse_places, rewrap_between

    with BytesBar("copying") as bar:
        found = rewrap_between(
            parse_places(source, destination or source),
            add=add or [],
            remove=[PACKET_SCHEME if scheme == "kbs" else scheme for scheme in remove or []],
            only_added=replace,
            keys=key or [],
            keks=KeyEncryptionKeys(key_file, service=service),
            platform=platform,
            progress=bar,
        )
    if output is Output.JSON:
        print_json({**_image_json(found.image), "layers_rewrapped": found.layers})
        return
    step = StepPrinter()
    step("ok", "recipients changed", f"{found.digest}")
    _print_platforms(step, found.image)
    step("ok", _count(found.layers, "layer"), "same bytes, same key, wrapped anew")
    if remove or replace:
        step("--", "not locked out", "whoever was removed and kept the old manifest can still open these layers")
    step.note(f"next: cloister image sign {destination or source}{_naming(destination or source)}")


app.command("sign")(imagesignature.sign_command)
app.command("verify")(imagesignature.verify_command)


@app.command("inspect")
def inspect_command(image: SourceArgument, platform: PlatformOption = "", output: OutputOption = Output.TEXT) -> None:
    """Show what an image is, what is encrypted and for whom, what everybody can read, and who signed it.

    Recipients and signatures are what the image says; nothing is verified but digests.
    """
    from cloister.oci.location import open_source, parse_location
    from cloister.sdk.inspection import describe_image
    from cloister.sdk.registryaccess import open_transport, registry_access

    place = parse_location(image)
    with open_transport() as transport, open_source(place, registry_access(place, transport)) as source:
        described = describe_image(source, place.selector, platform=platform)
    if output is Output.JSON:
        print_json(described)
        return
    _print_image(described)


def _image_json(image: RewrittenImage) -> dict[str, Any]:  # Any: JSON
    return {
        "schema": 1,
        "digest": str(image.digest),
        "source": str(image.source_digest),
        "platforms": {item.platform: str(item.manifest.digest) for item in image.manifests if item.platform},
        "left_out": [str(digest) for digest in image.left_out],
    }


def _print_platforms(step: StepPrinter, image: RewrittenImage) -> None:
    """Say which of several platforms were worked on."""
    if image.is_index:
        for item in image.manifests:
            step("ok", f"platform {item.platform or 'not named'}", f"{item.manifest.digest}")
    elif image.manifests[0].platform:
        step("--", "one platform", f"{image.manifests[0].platform}; the others are not in the result")
    if image.left_out:
        step(
            "--",
            "left out",
            f"{_count(len(image.left_out), 'attestation')} of the build: they describe the plain image",
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _naming(place: str) -> str:
    """Return the option that signing needs for a place that has no repository."""
    return " --repository REGISTRY/NAME" if place.startswith(("oci:", "oci-archive:", "dir:")) else ""


def _kek_words(recipient: str, keks: KeyEncryptionKeys, key_file: Path | None) -> str:
    """Say where the key of a key broker's recipient is."""
    if not recipient.startswith("kbs:"):
        return ""
    if key_file is not None:
        return f"  key from {key_file}: store it in the key broker"
    return "  new key, in the trust service" if recipient in keks.made else "  key as found in the trust service"


def _print_image(described: dict[str, Any]) -> None:  # Any: JSON
    print_line(f"{described['digest']}  {described['platform']}")
    if described["index"]:
        print_line(f"  one of     {', '.join(described['platforms'])}  (index {described['index']})")
    print_line(f"  encrypted  {described['encryption']}")
    for layer in described["layers"]:
        compression = "plain" if layer["compression"] == "none" else layer["compression"]
        protection = "encrypted" if layer["encrypted"] else "NOT encrypted"
        if layer["foreign"]:
            protection += ", fetched from elsewhere"
        print_line(
            f"  layer      {short_digest(layer['digest'])}  {layer['size']:>12,} bytes  {compression:<5}  {protection}"
        )
    for scheme, lines in _common_recipients(described["layers"]):
        for line in lines:
            print_line(f"  for        {scheme}: {line}")
    if any(layer["encrypted"] and not layer["for_guests"] for layer in described["layers"]):
        print_line("  guests     cannot open it: they need a kbs recipient")
    if any(layer["encrypted"] and layer["compression"] == "zstd" for layer in described["layers"]):
        print_line("  CoCo       guests cannot read its layers: zstd and encrypted")
    print_line("  everybody can read")
    for item in described["readable"]:
        print_line(f"    {item['what']:<28} {item['value']}")
    for signature in described["signatures"]:
        claim = f"unreadable: {signature['unreadable']}" if "unreadable" in signature else f"by {signature['signer']}"
        named = f", names {signature['repository']}" if signature["repository"] else ""
        print_line(
            f"  signature  {signature['form']}, over the {signature['over']}, {claim}{named}  (not verified here)"
        )
    if not described["signatures"]:
        print_line("  signature  none")
    else:
        print_line("  to verify  cloister image verify")


def _common_recipients(layers: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:  # Any: JSON
    """Return recipients by scheme; those that not all encrypted layers have are named with their layer."""
    encrypted = [(number, layer["recipients"]) for number, layer in enumerate(layers) if layer["encrypted"]]
    if all(recipients == encrypted[0][1] for _, recipients in encrypted):
        return list(encrypted[0][1].items()) if encrypted else []
    return [
        (f"layers[{number}] {scheme}", lines)
        for number, recipients in encrypted
        for scheme, lines in recipients.items()
    ]
