"""Writes docs/catalogue.md: which tests of the catalogue the suites have.

Run ``python docs/catalogue.py`` after a change of the suites; tests/docs compares.  It
reads the suites' source, and needs neither a lab nor pytest.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "catalogue.md"

#: Area → id → what the test is; the number is its danger by the catalogue.
CATALOGUE: Mapping[str, Mapping[str, str]] = {
    "Preflight": {
        "PF1": "0 · the firmware has a DMAR or IVRS table, and the IOMMU is used",
        "PF2": "0 · FreeBSD: hw.vmm.amdvi.enable is set",
        "PF3": "0 · FreeBSD: the host's own dmar or amdiommu driver is off",
        "PF4": "0 · the function has MSI or MSI-X",
        "PF5": "0 · memory BARs are page aligned",
        "PF6": "0 · bhyve: the BARs fit the guest's windows",
        "PF7": "0 · the function has a reset of its own, and no NoSoftRst",
        "PF8": "0 · all functions of the card, and of the group, go together",
        "PF9": "0 · the host has room for wired guest memory",
        "PF10": "0 · FreeBSD: kenv length, PCI domain 0",
        "PF11": "0 · the device is not the host's boot disk, management NIC or console",
    },
    "Assignment": {
        "AS1": "0 · reserve, pass, return: right ids in the guest, I/O on the host afterwards",
        "AS2": "0 · bhyve: every form of the address means the same device",
        "AS3": "0 · a passed device refuses to be returned",
        "AS4": "1 · bind cycles leave nothing behind",
        "AS5": "0 · of two guests that race for a device one wins, the other is told",
        "AS6": "1 · two functions of a card, together and apart",
        "AS7": "0 · FreeBSD: a ppt number stays the same over a reboot",
    },
    "IOMMU": {
        "IO1": "0 · bhyve: a plain guest does not initialize the IOMMU",
        "IO2": "1 · the first passthrough has DMA translated",
        "IO3": "0 · without an IOMMU passthrough is refused, nothing half-made",
        "IO4": "0 · the tables at every phase are what the platform states",
        "IO5": "2 · DMA outside the guest's memory: a fault with the right source, nobody harmed",
        "IO6": "2 · peer-to-peer DMA at another device's BAR, with ACS and without",
        "IO7": "0 · two guests have domains and page tables of their own",
        "IO8": "2 · FreeBSD: kldunload and kldload cycles of vmm",
        "IO9": "3 · FreeBSD: negative control on a kernel from before r304858",
    },
    "DMA": {
        "DM1": "1 · exact bytes at all sizes, alignments and page crossings",
        "DM2": "1 · above and below 4 GiB, last page, first page behind the hole",
        "DM3": "1 · red zones on both sides, canaries in host memory",
        "DM4": "1 · scatter-gather",
        "DM5": "1 · CPU writes during DMA reads",
        "DM6": "1 · two guests, two devices: no cross-talk",
        "DM7": "1 · the host sees what the device wrote",
    },
    "Reset": {
        "RS1": "1 · registers at their defaults after a guest's power-off",
        "RS2": "3 · a guest killed at full receive rate: no DMA afterwards",
        "RS3": "1 · a reset waits long enough, ends in time, with nothing pending",
        "RS4": "1 · a sentinel register does not survive",
        "RS5": "1 · bus mastering is off while nobody owns the device",
        "RS6": "1 · a reset by the guest, then traffic",
        "RS7": "1 · a sibling keeps its traffic during a reset",
        "RS8": "2 · a GPU without FLR, 20 start and stop cycles",
        "RS9": "1 · a reset that changes nothing is found out",
    },
    "Interrupts": {
        "IN1": "1 · every vector: one message, one count",
        "IN2": "1 · mask and unmask: what was pending is delivered once",
        "IN3": "1 · affinity moves under load",
        "IN4": "1 · from MSI to MSI-X and back",
        "IN5": "1 · INTx",
        "IN6": "1 · no interrupts at the host after the guest's end",
        "IN7": "1 · too many vectors are refused cleanly",
    },
    "SR-IOV and hotplug": {
        "HP1": "1 · VFs made later: domains of their own, DMA works, no entry stays",
        "HP2": "1 · VFs in use cannot be taken away",
        "HP3": "2 · surprise removal",
        "HP4": "1 · a reused requester id gets a fresh context",
        "HP5": "0 · VFs see only their own frames",
    },
    "Life cycle": {
        "LC1": "1 · reboots",
        "LC2": "1 · triple fault, panic",
        "LC3": "2 · kill in mid-start",
        "LC4": "1 · a running guest is destroyed",
        "LC5": "2 · more wired memory than there is: refused",
        "LC6": "2 · suspend and resume",
        "LC7": "0 · nothing leaks",
        "LC8": "2 · guests side by side",
    },
    "GPU": {
        "GP1": "1 · all BARs are there, the driver loads, what it draws is on the screen",
        "GP2": "1 · patterns to the card's memory and back, pinned and pageable, 90 % of it",
        "GP3": "1 · patterns that the card makes, checked by the CPU",
        "GP4": "1 · the guest's second boot",
        "GP5": "1 · the card's audio and USB functions go with it",
        "GP6": "1 · with an option ROM and without",
        "GP7": "2 · a panic with work in flight, then another guest",
        "GP8": "1 · nothing of a guest is left in the card's memory for the next",
    },
}

HEAD = """\
# The catalogue

Which tests of the catalogue the suites have, and the control of each. This page is made
by `python docs/catalogue.py` from the suites' markers; `tests/docs` fails when it is old.

The number before each line is the danger by the catalogue: 0 none, 1 may wedge the
device, 2 may hang or reboot the host, 3 may corrupt the host's memory. A test's own
marker can differ: it is what a lab's owner allows or not.

A **control** is a run that must fail, and whose failure the suite expects: it shows that
the oracle sees what it is there to see. A control stands beside a test if both use the
same oracle; so one control can serve several rows. Where the column says *tests/*, the
oracle's control needs no device and is in the framework's own tests. A dash means that
there is none yet.

"""

#: Stands for a control that needs no device.
IN_TESTS = "*tests/*"

#: Functions that judge, beside those called ``check_…``.
JUDGES = {"echo", "write_and_read_back", "none_expected", "timed_reset"}


@dataclass(frozen=True, slots=True)
class Case:
    """A test function of the suites."""

    place: str
    """``reset/test_reset.py``."""
    name: str
    ids: tuple[str, ...]
    oracles: frozenset[str]
    """Functions that judge; in a control, only those that it expects to complain."""

    @property
    def control(self) -> bool:
        return self.name.startswith("test_control_")

    @property
    def link(self) -> str:
        words = self.name.removeprefix("test_").removeprefix("control_").replace("_", " ")
        return f"[{words}](../suites/{self.place})"


def cases(folder: Path = ROOT / "suites") -> Iterator[Case]:
    """Every test below ``folder`` that has a ``catalogue`` marker."""
    for path in sorted(folder.glob("*/test_*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and (ids := _ids(node)):
                control = node.name.startswith("test_control_")
                oracles = frozenset(_expected_to_complain(node) if control else _judges(node))
                place = path.relative_to(folder).as_posix()
                yield Case(place, node.name, ids, oracles)


def _ids(function: ast.FunctionDef) -> tuple[str, ...]:
    for mark in function.decorator_list:
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.catalogue":
            return tuple(str(a.value) for a in mark.args if isinstance(a, ast.Constant))
    return ()


def _expected_to_complain(tree: ast.AST) -> Iterator[str]:
    """What is called where pytest.raises waits for an error."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.With):
            continue
        texts = [ast.unparse(item) for item in node.items]
        waits = [number for number, text in enumerate(texts) if "pytest.raises" in text]
        if waits:
            for part in (*node.items[waits[0] :], *node.body):
                yield from _judges(part)


def _judges(part: ast.AST) -> Iterator[str]:
    for node in ast.walk(part):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name.startswith("check_") or name in JUDGES:
                yield name


def controls_in_tests(folder: Path = ROOT / "tests") -> frozenset[str]:
    """Oracles that the framework's own tests expect to complain."""
    found: set[str] = set()
    for path in sorted(folder.rglob("test_*.py")):
        found.update(_expected_to_complain(ast.parse(path.read_text("utf-8"))))
    return frozenset(found)


def page() -> str:
    """The whole page."""
    every = list(cases())
    in_tests = controls_in_tests()
    lines = [HEAD]
    for area, rows in CATALOGUE.items():
        lines += [f"## {area}\n", "| id | what | tests | controls |", "|---|---|---|---|"]
        for test_id, what in rows.items():
            mine = [case for case in every if test_id in case.ids]
            tests = [case for case in mine if not case.control]
            controls = [case for case in mine if case.control]
            used = {name for case in tests for name in case.oracles}
            # Oracles that the row's own controls leave out may have one elsewhere.
            left = used.difference(*(case.oracles for case in controls))
            controls += [
                case
                for case in every
                if case.control and case.oracles & left and case not in controls
            ]
            shown = [case.link for case in controls]
            if left.difference(*(case.oracles for case in controls)) & in_tests:
                shown.append(IN_TESTS)
            cells = [test_id, what, "<br>".join(c.link for c in tests), "<br>".join(shown)]
            lines.append("| " + " | ".join(cell or "—" for cell in cells) + " |")
        lines.append("")
    known = {test_id for rows in CATALOGUE.values() for test_id in rows}
    covered = {test_id for case in every for test_id in case.ids}
    lines.append(
        f"{len(covered & known)} of {len(known)} ids have tests: "
        f"{sum(not case.control for case in every)} test functions and "
        f"{sum(case.control for case in every)} controls, each run once for every device "
        "that has what it needs."
    )
    if strange := covered - known:
        raise SystemExit(f"not in the catalogue: {', '.join(sorted(strange))}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
