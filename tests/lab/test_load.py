from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.errors import InventoryError
from hil.lab.document import InvalidFileError
from hil.lab.load import BUILT_IN, SIMULATED, known_labs, load, parse
from hil.lab.models import LabKind
from hil.pci.address import Address

FILE = Path("bench.toml")

RIGHT = """
[lab]
name = "bench"
kind = "physical"

[hosts.alpha]
platform = "linux-vfio"
address = "192.0.2.1"

[hosts.beta]
platform = "freebsd-bhyve"
transport = "local"

[devices.nic0]
kind = "nic"
host = "alpha"
functions = ["0000:03:00.0"]
"""


def changed(old: str, new: str) -> str:
    assert old in RIGHT
    return RIGHT.replace(old, new, 1)


def test_a_right_inventory_gives_a_lab() -> None:
    lab = parse(RIGHT, FILE)
    assert (lab.name, lab.kind, lab.source) == ("bench", LabKind.PHYSICAL, FILE)
    assert lab.hosts["alpha"].port == 22
    assert lab.devices["nic0"].functions == (Address.parse("03:00.0"),)
    assert list(lab.devices_of("alpha")) == ["nic0"]
    assert lab.devices_of("beta") == {}


@pytest.mark.parametrize(
    "name", ["emulated", "labs/example-linux.toml", "labs/example-freebsd.toml"]
)
def test_the_inventories_that_come_with_hil_are_right(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert load(name).devices


def test_the_emulated_lab_has_four_kinds_of_devices_and_allows_all_danger() -> None:
    lab = load("emulated")
    assert {"nic", "nvme", "edu", "gpu"} <= {device.kind for device in lab.devices.values()}
    assert {host.danger for host in lab.hosts.values()} == {3}


# Each: a text, then what the error must say.  Line 0 of RIGHT is empty.
MISTAKES = {
    "unknown key": (
        changed("address =", "adress ="),
        ["bench.toml", "hosts.alpha.adress: unknown key; did you mean 'address'?", "key_file"],
    ),
    "unknown key, nothing near": (
        changed('name = "bench"', 'name = "bench"\nxyzzy = 1'),
        ["lab.xyzzy: unknown key (known: name, kind)"],
    ),
    "unknown table": (RIGHT + "\n[device.x]\n", ["device: unknown key; did you mean 'devices'?"]),
    "unknown key in an inline table": (
        RIGHT + 'match = { id = "8086:10c9", sereal = "x" }\n',
        ["devices.nic0.match.sereal: unknown key; did you mean 'serial'?"],
    ),
    "unknown key under an odd name": (
        RIGHT + '[hosts."a b"]\nplatform = "linux-vfio"\nport_ = 1\n',
        ['hosts."a b".port_: unknown key', 'hosts."a b": should be a name', 'seen: "a b"'],
    ),
    "missing key": (changed('kind = "physical"', ""), ["lab.kind: missing"]),
    "missing table": ("[lab]\nname='x'\nkind='physical'\n", ["hosts: missing"]),
    "no hosts": ("[hosts]\n[lab]\nname='x'\nkind='physical'\n", ["hosts: ", "at least 1 item"]),
    "string for a number": (
        changed("address =", 'port = "22"\naddress ='),
        ["hosts.alpha.port: should be a valid integer", 'seen: "22"'],
    ),
    "number for a string": (
        changed('name = "bench"', "name = 7"),
        ["lab.name: should be a valid string", "seen: 7"],
    ),
    "list for a table": ("hosts = []\n" + RIGHT.split("[hosts")[0], ["hosts: should be a table"]),
    "string for a list": (
        changed('["0000:03:00.0"]', '"0000:03:00.0"'),
        ["devices.nic0.functions: should be a list", 'seen: "0000:03:00.0"'],
    ),
    "out of range": (
        changed("address =", "danger = 4\naddress ="),
        ["hosts.alpha.danger: should be less than or equal to 3", "seen: 4"],
    ),
    "no such kind": (
        changed('kind = "nic"', 'kind = "nick"'),
        ["devices.nic0.kind: should be 'nic', 'nvme'", "did you mean 'nic'?", 'seen: "nick"'],
    ),
    "no such kind of lab": (
        changed('"physical"', '"real"'),
        ["lab.kind: should be 'physical', 'emulated' or 'simulated'", 'seen: "real"'],
    ),
    "not an address": (
        changed('["0000:03:00.0"]', '["0000:03:00.0", "03:00"]'),
        ["devices.nic0.functions[1]: not a PCI address", 'seen: "03:00"'],
    ),
    "address out of range": (
        changed("0000:03:00.0", "0000:03:20.0"),
        ["devices.nic0.functions[0]: ", "must be 0 to 31"],
    ),
    "address of the wrong type": (
        changed('["0000:03:00.0"]', "[3]"),
        ["devices.nic0.functions[0]: should be an address in a string", "seen: 3"],
    ),
    "bad ids": (
        RIGHT + 'match = { id = "igb" }\n',
        ["devices.nic0.match.id: should be two hexadecimal ids", 'seen: "igb"'],
    ),
    "bad serial": (
        RIGHT + 'match = { id = "8086:10C9", serial = "00-1b" }\n',
        ["devices.nic0.match.serial: should be a PCIe serial number"],
    ),
    "bad host key": (
        changed("address =", 'host_key = "abc"\naddress ='),
        ["hosts.alpha.host_key: should be a line of a .pub file"],
    ),
    "two sources of host keys": (
        changed("address =", 'host_key = "ssh-ed25519 AAAA"\nknown_hosts = "k"\naddress ='),
        ["hosts.alpha.host_key: give this or known_hosts, not both"],
    ),
    "relative image": (
        RIGHT + '[images.linux]\nroot = "linux"\n',
        ["images.linux.root: should be an absolute path"],
    ),
    "no address": (
        changed('address = "192.0.2.1"', ""),
        ["hosts.alpha.address: missing"],
    ),
    "half of it stands": (
        changed('"physical"', '"emulated"') + '[hosts.gamma]\nplatform = "linux-vfio"\n',
        ["hosts.gamma.address: missing; other hosts of the lab have one"],
    ),
    "hardware that hil keeps up": (
        changed("address =", 'power = { driver = "kept", address = "x" }\naddress ='),
        ["hosts.alpha.power.driver: what hil lab up keeps is no hardware", 'seen: "kept"'],
    ),
    "no such host": (
        changed('host = "alpha"', 'host = "alhpa"'),
        ["devices.nic0.host: no such host; did you mean 'alpha'?", "alpha, beta", 'seen: "alhpa"'],
    ),
    "no such host, and an odd name": (
        changed('host = "alpha"', 'host = "c"') + '[hosts."a\\n"]\nplatform = "linux-vfio"\n',
        ['devices.nic0.host: no such host; the lab has: alpha, beta, "a\\n"'],
    ),
    "no functions": (
        changed('functions = ["0000:03:00.0"]', ""),
        ["devices.nic0.functions: missing"],
    ),
    "function in two devices": (
        RIGHT + '[devices.nic1]\nkind="nic"\nhost="alpha"\nfunctions=["pci0:3:0:0"]\n',
        ["devices.nic1.functions[0]: already a function of devices.nic0", "0000:03:00.0"],
    ),
    "function twice in one device": (
        changed('["0000:03:00.0"]', '["0000:03:00.0", "03:00.0"]'),
        ["devices.nic0.functions[1]: listed twice"],
    ),
    "peer that is passed": (
        RIGHT + 'peer = { function = "03:00.0" }\n',
        ["devices.nic0.peer.function: belongs to devices.nic0"],
    ),
    "peer on no host": (
        RIGHT + 'peer = { host = "gamma", interface = "em0" }\n',
        ["devices.nic0.peer.host: no such host", 'seen: "gamma"'],
    ),
    "peer of nothing": (RIGHT + "peer = {}\n", ["devices.nic0.peer: give either"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_key_and_what_is_allowed(mistake: str) -> None:
    text, expected = MISTAKES[mistake]
    with pytest.raises(InvalidFileError) as caught:
        parse(text, FILE)
    explained = caught.value.explain()
    for part in ["bench.toml", *expected]:
        assert part in explained
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("kind", ["emulated", "simulated"])
def test_a_lab_whose_hosts_have_addresses_stands_and_is_still_no_hardware(kind: str) -> None:
    text = changed('"physical"', f'"{kind}"').replace('transport = "local"', 'address = "b"')
    lab = parse(text, FILE)
    assert (lab.kind, lab.provenance) == (LabKind.PHYSICAL, LabKind(kind))
    made = parse(text.replace('address = "192.0.2.1"', "").replace('address = "b"', ""), FILE)
    assert made.kind is made.provenance is LabKind(kind)


def test_the_same_function_on_two_hosts_is_two_functions() -> None:
    second = '[devices.nic1]\nkind="nic"\nhost="beta"\nfunctions=["0000:03:00.0"]\n'
    assert set(parse(RIGHT + second, FILE).devices) == {"nic0", "nic1"}


def test_all_mistakes_are_told_at_once() -> None:
    text = RIGHT.replace("physical", "real").replace("linux-vfio", "linux").replace("nic", "nick")
    with pytest.raises(InvalidFileError) as caught:
        parse(text, FILE)
    keys = [problem.key for problem in caught.value.problems]
    assert keys == ["lab.kind", "hosts.alpha.platform", "devices.nick0.kind"]
    assert "bench.toml: 3 mistakes" in caught.value.explain()


def test_a_mistake_between_sections_is_told_beside_one_within() -> None:
    text = (
        RIGHT.replace("physical", "real").replace("linux-vfio", "linux")
        + """
[devices.nic1]
kind = "nick"
host = "alpha"
[devices.nic2]
kind = "nic"
host = "gamma"
functions = ["0000:03:00.0"]
peer = { host = "alpha", function = "0000:03:00.0" }
[devices.nic3]
kind = "nic"
host = "alpha"
functions = ["0000:03:00.0"]
[clusters.pair]
devices = ["nic1", "nic4"]
[clusters.shaped]
devices = ["nic0", "nic1"]
shapes = ["by-host"]
"""
    )
    with pytest.raises(InvalidFileError) as caught:
        parse(text, FILE)
    assert [problem.key for problem in caught.value.problems] == [
        "lab.kind",
        "hosts.alpha.platform",
        "devices.nic1.kind",
        # What names a host or a device that is there, if wrong by itself, is no mistake.
        "devices.nic2.host",
        "devices.nic3.functions[0]",
        "devices.nic2.peer.function",
        "clusters.pair.devices[1]",
    ]


def test_very_many_mistakes_are_counted() -> None:
    text = RIGHT + "".join(f"[devices.x{n}]\n" for n in range(100))
    with pytest.raises(InvalidFileError, match="200 mistakes") as caught:
        parse(text, FILE)
    assert "… and 180 more" in caught.value.seen


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("[lab]\nname = bench\n", "bench.toml:2:8", "Invalid value"),
        ("[lab]\nname = 'a'\nname = 'b'\n", "bench.toml:3:11", "Cannot overwrite"),
        ("[lab\n", "bench.toml:1:5", "Expected ']'"),
        ("[lab]\nname =", "bench.toml:2:7", "Invalid value"),
        (RIGHT + "[devices.nic0]\n", "bench.toml:18:14", "Cannot declare"),
        ("a = [1,\n", "bench.toml:1:8", "end of the file"),
        ("", "", "lab: missing"),
    ],
)
def test_what_is_not_toml_is_shown_with_line_and_column(text: str, place: str, words: str) -> None:
    with pytest.raises(InventoryError) as caught:
        parse(text, FILE)
    assert place in caught.value.message
    assert words in caught.value.explain()


def test_the_caret_stands_below_the_mistake() -> None:
    with pytest.raises(InventoryError) as caught:
        parse('x = 1\ny = "aé\tb" ?\n', FILE)
    shown, caret = caught.value.seen.splitlines()
    assert shown[caret.index("^")] == "?"


@pytest.mark.parametrize("text", ["x = " + "[" * 5000, "x = " + "9" * 5000])
def test_toml_made_to_break_the_reader_is_an_error_like_others(text: str) -> None:
    with pytest.raises(InventoryError, match="cannot be read as TOML"):
        parse(text, FILE)


@given(st.text())
def test_no_text_breaks_the_reader(text: str) -> None:
    with pytest.raises(InventoryError):
        parse(text, FILE)


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["lab", "hosts", "a", "kind", "match", "peer", "%\n"]), inner
        )
    ),
    max_leaves=10,
)


def toml(value: object) -> str:
    if isinstance(value, dict):
        pairs = (f"{toml(key)} = {toml(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
    return {None: "1979-05-27", True: "true", False: "false"}.get(value, repr(value))  # type: ignore[call-overload, no-any-return]


@given(
    st.dictionaries(
        st.sampled_from(["lab", "hosts", "devices", "images", "x"]), JSONISH, min_size=1
    )
)
def test_no_structure_breaks_the_messages(document: dict[str, object]) -> None:
    text = "\n".join(f"{key} = {toml(value)}" for key, value in document.items())
    with pytest.raises(InventoryError) as caught:
        parse(text, FILE)
    assert len(caught.value.explain()) < 6000
    assert re.sub(r"[\n]", "", caught.value.explain()).isprintable()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match="does not exist") as caught:
        load(str(tmp_path / "none.toml"))
    assert str(tmp_path / "none.toml") in caught.value.message
    assert "emulated" in caught.value.hint


def test_an_unknown_name_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with pytest.raises(InventoryError) as caught:
        load("emulatde")
    assert "did you mean 'emulated'?" in caught.value.message
    assert "labs/emulatde.toml" in caught.value.message
    assert str(tmp_path / "config/hil/labs/emulatde.toml") in caught.value.message


def test_names_are_found_in_both_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for folder, name in ((Path("labs"), "here"), (tmp_path / "config/hil/labs", "mine")):
        folder.mkdir(parents=True)
        (folder / f"{name}.toml").write_text(RIGHT)
        assert load(name).name == "bench"
    assert set(known_labs()) == {*BUILT_IN, *SIMULATED, "here", "mine"}


def test_a_file_that_is_not_utf_8_is_shown_with_line_and_column(tmp_path: Path) -> None:
    (tmp_path / "l.toml").write_bytes(b'[lab]\nname = "\xe9"\n')
    with pytest.raises(InventoryError, match=r"l.toml:2:9: byte 0xe9 is not UTF-8"):
        load(str(tmp_path / "l.toml"))


@pytest.mark.parametrize("path", ["/", "a\0b.toml", "/dev/null/x.toml"])
def test_what_cannot_be_read_is_an_error_with_the_reason(path: str) -> None:
    with pytest.raises(InventoryError, match="cannot be read"):
        load(path)


def test_paths_are_relative_to_the_inventory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    lab = parse(RIGHT, Path("/etc/labs/bench.toml"))
    assert lab.file("key") == Path("/etc/labs/key")
    assert lab.file("~/key") == Path("/home/someone/key")
    assert lab.file("/key") == Path("/key")
    with pytest.raises(InventoryError, match="no home directory for ~nobody-has-this-name/key"):
        lab.file("~nobody-has-this-name/key")
