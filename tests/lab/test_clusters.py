"""Clusters of an inventory: which guests they can form, which tests get them, what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.needs import Needs
from hil.lab.document import InvalidFileError
from hil.lab.load import load, parse
from hil.lab.models import Lab

FILE = Path("farm.toml")

FARM = """
[lab]
name = "farm"
kind = "physical"

[hosts.alpha]
platform = "linux-vfio"
address = "192.0.2.1"

[hosts.beta]
platform = "freebsd-bhyve"
address = "192.0.2.2"

[devices.gpu0]
kind = "gpu"
host = "alpha"
functions = ["0000:03:00.0"]
capabilities = ["vram"]
capture = { by = "v4l2", device = "/dev/video0", tolerance = 8 }

[devices.gpu1]
kind = "gpu"
host = "alpha"
functions = ["0000:04:00.0"]
areas = ["gpu"]

[devices.gpu2]
kind = "gpu"
host = "beta"
functions = ["0000:03:00.0"]
areas = []

[devices.edu0]
kind = "edu"
host = "alpha"
functions = ["0000:05:00.0"]

[clusters.desk]
devices = ["gpu0", "gpu1"]

[clusters.room]
devices = ["gpu0", "gpu1", "gpu2"]

[clusters.mixed]
devices = ["edu0", "gpu0"]

[clusters.far]
devices = ["gpu0", "gpu2"]
"""


@pytest.fixture
def farm() -> Lab:
    return parse(FARM, FILE)


@pytest.mark.parametrize(
    ("cluster", "forms"),
    [
        (
            "desk",
            {"together": (("gpu0", "gpu1"),), "apart": (("gpu0",), ("gpu1",))},
        ),
        (
            "room",
            {
                "by-host": (("gpu0", "gpu1"), ("gpu2",)),
                "apart": (("gpu0",), ("gpu1",), ("gpu2",)),
            },
        ),
        ("far", {"apart": (("gpu0",), ("gpu2",))}),
    ],
)
def test_the_topologies_of_a_cluster(
    farm: Lab, cluster: str, forms: dict[str, tuple[tuple[str, ...], ...]]
) -> None:
    found = farm.topologies(cluster)
    assert {topology.shape: topology.guests for topology in found} == forms
    assert [str(topology) for topology in found] == [f"{cluster}-{shape}" for shape in forms]
    assert set(found[0].devices) == set(farm.clusters[cluster].devices)


def test_only_the_shapes_that_the_inventory_names() -> None:
    lab = parse(FARM.replace('["gpu0", "gpu1"]', '["gpu0", "gpu1"]\nshapes = ["apart"]'), FILE)
    assert [str(topology) for topology in lab.topologies("desk")] == ["desk-apart"]
    assert len(lab.topologies("room")) == 2


def names(needs: Needs, lab: Lab) -> list[str]:
    return [str(topology) for topology in needs.topologies(lab)]


def test_which_topologies_a_test_gets(farm: Lab) -> None:
    gpus = Needs(device=("gpu",))
    assert names(gpus, farm) == [
        *("desk-together", "desk-apart", "room-by-host", "room-apart", "far-apart")
    ]
    assert names(Needs(device=("gpu",), count=3), farm) == ["room-by-host", "room-apart"]
    assert names(Needs(cluster=("edu", "vram")), farm) == ["mixed-together", "mixed-apart"]
    assert names(Needs(shape=("by-host",)), farm) == ["room-by-host"]
    assert names(Needs(device=("nic",)), farm) == []


def test_why_a_test_gets_none(farm: Lab) -> None:
    assert Needs(cluster=("edu", "msi"), shape=("together",)).no_cluster(farm) == (
        "the lab 'farm' has no cluster of edu and MSI, together "
        "(its clusters: desk, room, mixed, far)"
    )


def test_areas_keep_a_device_from_tests_that_use_it_alone(farm: Lab) -> None:
    gpus = Needs(device=("gpu",))
    assert gpus.groups(farm, "gpu") == (("gpu0",), ("gpu1",))
    assert gpus.groups(farm, "reset") == (("gpu0",),)
    assert Needs(device=("gpu",), count=2).groups(farm, "reset") == (("gpu0", "gpu1"),)


def test_an_area_may_be_a_file_of_one() -> None:
    farm = parse(FARM.replace('areas = ["gpu"]', 'areas = ["gpu/display", "reset"]'), FILE)
    gpus = Needs(device=("gpu",))
    for place in ("gpu/display", "reset/reset"):
        assert gpus.groups(farm, place) == (("gpu0",), ("gpu1",))
    for place in ("gpu/card", "dma/display"):
        assert gpus.groups(farm, place) == (("gpu0",),)


def test_a_captured_display(farm: Lab) -> None:
    assert Needs(device=("gpu",), capture=True).groups(farm, "gpu") == (("gpu0",),)
    blind = parse(FARM.replace("capture = {", "#"), FILE)
    assert Needs(device=("gpu",), capture=True).reason(blind) == (
        "the lab 'farm' has no gpu with a captured display (gpu0: no capture of its display; "
        "gpu1: no capture of its display; gpu2: no capture of its display)"
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('["gpu0", "gpu2"]', '["gpu0", "gpu9"]', "clusters.far.devices[1]: no such device"),
        ('["gpu0", "gpu2"]', '["gpu0", "gpu0"]', "clusters.far.devices[1]: listed twice"),
        ('["gpu0", "gpu2"]', '["gpu0"]', "clusters.far.devices"),
        (
            '["gpu0", "gpu2"]',
            '["gpu0", "gpu2"]\nshapes = ["apart", "together"]',
            "clusters.far.shapes[1]: cannot be formed: its devices are on alpha, beta",
        ),
        (
            '["edu0", "gpu0"]',
            '["edu0", "gpu0"]\nshapes = ["by-host"]',
            "clusters.mixed.shapes[0]: cannot be formed: its devices are on alpha",
        ),
        ('["edu0", "gpu0"]', '["edu0", "gpu0"]\nshapes = ["beside"]', "mixed.shapes[0]"),
        ('by = "v4l2", device = "/dev/video0"', 'by = "v4l2"', "capture.device: missing"),
        (
            'by = "v4l2", device = "/dev/video0"',
            'by = "screenshot"',
            "only an emulated lab makes screenshots",
        ),
        ('device = "/dev/video0"', 'device = "video0"', "absolute path"),
        ("tolerance = 8", "tolerance = 300", "tolerance"),
    ],
)
def test_mistakes(old: str, new: str, words: str) -> None:
    assert old in FARM
    with pytest.raises(InvalidFileError) as caught:
        parse(FARM.replace(old, new), FILE)
    assert words in str(caught.value)


def test_the_emulated_labs_own() -> None:
    lab = load("emulated")
    assert names(Needs(cluster=("edu", "vram"), shape=("together",)), lab) == ["cards-together"]
    assert names(Needs(device=("gpu", "edu")), lab) == ["cards-together", "guests-apart"]
    # Tests of one device are not run once more for each of several that are alike.
    assert ("gpu1",) not in Needs().groups(lab, "gpu")
    assert ("vram0",) in Needs().groups(lab, "gpu/display")
    assert ("vram0",) not in Needs().groups(lab, "preflight")


def test_two_hosts_of_a_simulated_lab() -> None:
    lab = load("simulated-pair")
    assert {name: host.model for name, host in lab.hosts.items()} == {
        "alpha": "freebsd-15-intel-cards",
        "beta": "freebsd-15-amd",
    }
    both = {form.shape: form.guests for form in lab.topologies("both")}
    assert both == {
        "by-host": (("edu0", "edu1"), ("edu2",)),
        "apart": (("edu0",), ("edu1",), ("edu2",)),
    }


def test_only_a_host_of_a_simulated_lab_is_a_model() -> None:
    wrong = FARM.replace('platform = "', 'model = "freebsd-15-amd"\nplatform = "', 1)
    with pytest.raises(InvalidFileError, match=r"model: only a host of a simulated lab has one"):
        parse(wrong, FILE)
