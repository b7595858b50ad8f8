"""Writes what a host's survey prints, for hosts that a test describes.

The lines have the form that hil.platforms.linux's script gives them; that the script prints
such lines is tested on the machine that runs the tests (test_linux_live.py).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field

from hil.pci.config import ConfigSpace
from tests.fakes import config

ROOT = "../../../devices/pci0000:00"


@dataclass
class Written:
    """A function to be written down.  ``path``: where it stands below the root complex."""

    name: str
    config: ConfigSpace = field(default_factory=config)
    driver: str = ""
    group: str = ""
    links: dict[str, str] = field(default_factory=dict)
    resources: list[tuple[int, int, int]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    interfaces: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        links = dict(self.links)
        if self.driver:
            links["driver"] = f"../../../../bus/pci/drivers/{self.driver}"
        if self.group:
            links["iommu_group"] = f"../../../../kernel/iommu_groups/{self.group}"
        lines = [f"link {self.name}/ {name} {target}" for name, target in links.items()]
        texts = {
            "vendor": f"{self.config.vendor:#06x}",
            "device": f"{self.config.device:#06x}",
            **self.texts,
        }
        lines += [f"text {self.name}/{name}:{value}" for name, value in texts.items()]
        lines += [
            f"text {self.name}/resource:{start:#018x} {end:#018x} {flags:#018x}"
            for start, end, flags in self.resources
        ]
        lines += [f"interface {name} {self.path(name)}" for name in self.interfaces]
        return lines

    def path(self, name: str) -> str:
        return f"{ROOT}/0000:00:10.0/{self.name}/net/{name}"


def survey(functions: Iterable[Written], more: Iterable[str] = ()) -> str:
    """The whole text; ``more`` are lines of the host: mounts, addresses, routes, parts."""
    functions = list(functions)
    lines = [f"size {f.name}/config {len(f.config.data)}" for f in functions]
    data = b"".join(f.config.data for f in functions)
    lines.append(f"configs {base64.b64encode(data).decode()}")
    for function in functions:
        lines += function.lines()
    return "\n".join([*lines, *more, ""])
