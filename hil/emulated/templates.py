"""Saved guests of the emulated lab, kept in the cache from run to run.

A guest is saved on a disk of its own that is plugged into the lab host when it is first
wanted::

    templates/KEY/   disk            what QEMU inside the host migrated to, from byte 0
                     template.json   the rest of hil.platforms.contract.Template; mode 0600
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hil.deadline import Deadline
from hil.emulated import cache
from hil.emulated.machine import EmulatedLab
from hil.platforms.contract import Template
from hil.transport.keys import KeyPair

#: Size of a template's disk, bytes; sparse (measured: 0.1 GB of it written).
SIZE = 1 << 30
#: Raise it when guests are saved in another state than before.
_FORMAT = 6


class Shelf:
    """Where one lab finds, or puts, the saved guest that others continue.

    Args:
        lab: the lab host.
        kind: all that a guest is made from beside the lab itself.
    """

    def __init__(self, lab: EmulatedLab, kind: str) -> None:
        self._lab = lab
        words = f"{_FORMAT} {lab.key} {kind}"
        self._name = f"templates/{hashlib.sha256(words.encode()).hexdigest()[:16]}"

    def template(self, make: Callable[[str], Template], deadline: Deadline) -> Template:
        """The template of the cache; ``make`` saves one at a path on the host if there is none.

        Raises:
            LabError: as ``make`` does; or the disk could not be plugged in.
        """
        made: list[Template] = []

        def build(place: Path) -> None:
            disk = place / "disk"
            with disk.open("wb") as file:
                file.truncate(SIZE)
            template = make(self._lab.plug_disk(disk, deadline, read_only=False))
            self._lab.ssh(deadline).run(["sync"], deadline=deadline).check()
            about = place / "template.json"
            about.touch(mode=0o600)
            about.write_text(_to_json(template))
            made.append(template)

        folder = cache.entry(self._name, build, deadline=deadline, space=SIZE // 4)
        if made:
            return made[0]
        try:
            template = _from_json((folder / "template.json").read_text())
        except (OSError, ValueError, KeyError, TypeError):
            self.forget()
            return self.template(make, deadline)
        disk = self._lab.plug_disk(folder / "disk", deadline, read_only=True)
        return replace(template, path=disk)

    def forget(self) -> None:
        """It is of no use: the next lab saves another."""
        shutil.rmtree(cache.directory() / self._name, ignore_errors=True)


def _to_json(template: Template) -> str:
    key = template.host_key
    return json.dumps(
        {
            "image": template.image,
            "memory": template.memory,
            "cpus": template.cpus,
            "private": key.private,
            "public": key.public,
            "shell": template.shell,
        }
    )


def _from_json(text: str) -> Template:
    fields = json.loads(text)
    return Template(
        image=str(fields["image"]),
        memory=int(fields["memory"]),
        cpus=int(fields["cpus"]),
        path=os.devnull,
        host_key=KeyPair(str(fields["private"]), str(fields["public"])),
        shell=str(fields["shell"]),
    )
