"""`cloister image verity`: an image's root file system as one image with one hash."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from cloister.cli.forms import Output, OutputOption
from cloister.cli.output import StepPrinter, print_json
from cloister.cli.progress import BytesBar
from cloister.cli.trustservice import OpenService, with_trust_service


@with_trust_service
def verity_command(
    service: OpenService,
    source: Annotated[str, typer.Argument(help="The image, in any place that `image inspect` reads.")],
    destination: Annotated[
        Path | None, typer.Argument(help="File for the root image; without it only the hash is computed.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help="For an encrypted image: a recipient's private key, as of decrypt; repeatable."
        ),
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Compute the root file system of an image as EROFS with a dm-verity tree behind it, and its root hash.

    The same layers give the same root hash on any machine. Needs no root. Open it with `veritysetup` and mount
    what that makes, read-only.
    """
    from cloister.imagetool.verity import compute_image_root
    from cloister.oci.location import open_source, parse_location
    from cloister.sdk.images import KeyEncryptionKeys, decrypt_between, parse_places
    from cloister.sdk.owner import PLATFORM, open_transport, registry_access

    with ExitStack() as stack:
        plain = source
        if key:
            scratch = stack.enter_context(TemporaryDirectory(prefix="cloister-verity-"))
            plain = f"oci:{scratch}/plain:root"
            with BytesBar("decrypting") as bar:
                decrypt_between(
                    parse_places(source, plain),
                    key,
                    keks=KeyEncryptionKeys(service=service),
                    platform=PLATFORM,  # diff_ids are checked below
                    progress=bar,
                )
        place = parse_location(plain)
        transport = stack.enter_context(open_transport())
        image = stack.enter_context(open_source(place, registry_access(place, transport)))
        progress = stack.enter_context(BytesBar("reading layers"))
        made = compute_image_root(image, place.selector, destination, platform=PLATFORM, progress=progress)
    root = made.root
    if output is Output.JSON:
        print_json(
            {
                "schema": 1,
                "digest": str(made.digest),
                "root_hash": root.root_hash.hex(),
                "salt": root.salt.hex(),
                "block_size": 4096,
                "data_blocks": root.data_blocks,
                "hash_blocks": root.hash_blocks,
                "hash_offset": root.hash_offset,
            }
        )
        return
    step = StepPrinter()
    step("ok", "image", f"{made.digest}")
    step("ok", "root hash", root.root_hash.hex())
    step("--", "salt", root.salt.hex())
    step("--", "data", f"{root.data_blocks} blocks of 4096 bytes, then {root.hash_blocks} of hashes")
    if destination is None:
        step.note(f"next: cloister image verity {source} FILE")
    else:
        step.note(
            "next: veritysetup open --no-superblock --hash=sha256 --data-block-size=4096 --hash-block-size=4096 "
            f"--data-blocks={root.data_blocks} --hash-offset={root.hash_offset} --salt={root.salt.hex()} "
            f"{destination} NAME {destination} {root.root_hash.hex()}"
        )
