"""``hil image``: disk images that emulated hosts boot."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from hil.cli.app import JsonOption, app, command, say

if TYPE_CHECKING:
    from hil.emulated.image_store import Image

image_app = typer.Typer(
    no_args_is_help=True, help="Disk images of FreeBSD for emulated hosts: add, list, remove."
)
app.add_typer(image_app, name="image")


@image_app.command()
@command
def add(
    source: Annotated[str, typer.Argument(metavar="URL|FILE", help="Raw or qcow2; xz, zstd.")],
    sha256: Annotated[str, typer.Option(metavar="SUM", help="Of URL or FILE as it is.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="What to call it.")] = "",
) -> None:
    """Fetch an image, or copy it, into hil's cache; nothing is ever fetched unasked."""
    from hil.emulated import image_store

    image = image_store.add(source, sha256, name=name, progress=say)
    typer.echo(f"{image.name}: {_size(image)}; next: hil lab up --host-image {image.name}")


@image_app.command("list")
@command
def list_images(as_json: JsonOption = False) -> None:
    """List the images that were added."""
    from hil.emulated import image_store
    from hil.reporting.text import one_line

    images = image_store.images()
    if as_json:
        typer.echo(json.dumps([asdict(image) for image in images], indent=1, default=str))
        return
    for image in images:
        typer.echo(one_line(f"{image.name}: {_size(image)}, from {image.source}", 500))
    if not images:
        typer.echo("no images; add one with: hil image add URL|FILE --sha256 SUM")


def _size(image: Image) -> str:
    return f"{image.disk.format}, {image.disk.size / 2**30:.1f} GiB"


@image_app.command()
@command
def remove(name: Annotated[str, typer.Argument(metavar="NAME", help="As listed.")]) -> None:
    """Remove an image that was added."""
    from hil.emulated import image_store

    image_store.remove(name)
    typer.echo(f"the image {name} is removed")
