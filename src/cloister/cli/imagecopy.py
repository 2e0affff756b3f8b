"""`cloister image copy`: bring an image from one place to another as it is."""

from __future__ import annotations

from typing import Annotated

import typer

from cloister.cli.forms import Output, OutputOption
from cloister.cli.output import StepPrinter, print_json
from cloister.cli.progress import BytesBar

_PLACES = "docker://REF, oci:PATH:TAG, oci-archive:PATH:TAG, docker-archive:PATH:REF or dir:PATH"


def copy_command(
    source: Annotated[str, typer.Argument(help=f"The image: {_PLACES}.")],
    destination: Annotated[str, typer.Argument(help="Where it goes, in the same words.")],
    platform: Annotated[
        str, typer.Option(help="Only the image for this platform, as linux/arm64 [default: all of them].")
    ] = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Copy an image without changing a byte of it, every blob checked on its way.

    Digests stay as they are, so signatures stay good; they are copied by themselves. A docker archive holds layers
    unpacked and no manifest: what is read from one has another digest.
    """
    from cloister.oci.digest import Digest
    from cloister.oci.location import open_sink, open_source, parse_location
    from cloister.oci.store import resolve_platform
    from cloister.oci.transfer import copy_image
    from cloister.sdk.registryaccess import open_transport, registry_access

    origin, target = parse_location(source), parse_location(destination)
    with (
        open_transport() as transport,
        open_source(origin, registry_access(origin, transport)) as image,
        open_sink(target, registry_access(target, transport)) as sink,
        BytesBar("copying") as bar,
    ):
        chosen: str = origin.selector
        if platform:
            chosen = str(Digest.of(resolve_platform(image, chosen, platform).raw))
        digest = copy_image(image, chosen, sink, target.selector or "latest", advance=bar.advance)
    if output is Output.JSON:
        print_json({"schema": 1, "digest": str(digest), "destination": str(target)})
        return
    StepPrinter()("ok", "image copied", f"{digest}")
