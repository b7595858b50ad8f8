"""No secret reaches a file of a run, whatever way it takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from hil import secrets
from hil.reporting import html
from hil.reporting.text import REDACTED, KeyBlocks
from hil.transport import keys
from tests.plugin.conftest import LAB, RunHil, labs, run_hil
from tests.reporting.allure_tool import ALLURE, needs_allure
from tests.reporting.test_page import unpacked

__all__ = ["labs", "run_hil"]

PASSWORD, IN_URL, IN_COMMAND = "Tr0ub4dor&3-of-the-BMC", "pdu-pass-4711", "sol-word-0815"
UNKNOWN = "hunter2hunter2"
"""Known to nobody, but told as a password."""

SUITE = """
import logging, warnings, sys
from pathlib import Path
import allure
from hil import events
pytestmark = pytest.mark.danger(0)
PASSWORD, IN_URL, IN_COMMAND, UNKNOWN = {secrets!r}
KEY = Path("key").read_text()
ALL = f"{{PASSWORD}} {{IN_URL}} {{IN_COMMAND}} password={{UNKNOWN}}\\n{{KEY}}"

def test_commands():
    events.emit(events.CommandRun("h", f"ipmitool -P {{PASSWORD}} -p 1", 1, 0.1, ALL, ALL))
    events.emit(events.CommandRun("h", "cat key", 0, 0.1, KEY))
def test_consoles():
    for line in ("$ cat key", *KEY.splitlines(), f"login: {{PASSWORD}}"):
        events.emit(events.ConsoleLine("g", line))
    for line in {other!r}.splitlines():  # one that nobody told of
        events.emit(events.ConsoleLine("g", line))
def test_evidence():
    events.emit(events.Evidence(f"of {{PASSWORD}}", ALL.encode()))
    events.emit(events.Evidence("json", repr(ALL).encode(), "application/json"))
    events.emit(events.PhaseReached(PASSWORD, IN_URL))
def test_steps():
    with events.step(f"log in with {{PASSWORD}}"), events.step("inner"):
        raise LabError(ALL, seen=ALL, hint=ALL, command=["x", PASSWORD], console=ALL.splitlines())
def test_an_assertion():
    assert ALL == "nothing", ALL
def test_a_bug():
    local = ALL
    raise KeyError(ALL)
def test_a_chain():
    try:
        raise GuestError(ALL)
    except GuestError as error:
        raise ValueError(ALL) from error
def test_a_skip():
    pytest.skip(f"no luck with {{PASSWORD}}")
@pytest.mark.xfail(reason=PASSWORD, strict=True)
def test_an_expected_failure():
    assert not ALL
def test_output():
    print(ALL)
    print(ALL, file=sys.stderr)
    logging.getLogger("x").warning(ALL)
    warnings.warn(PASSWORD)
    raise LabError("see the output")
def test_allure(tmp_path):
    allure.attach(ALL, "text")
    (tmp_path / "file").write_text(ALL)
    allure.attach.file(str(tmp_path / "file"))
    allure.dynamic.title(PASSWORD)
    allure.dynamic.description(ALL)
    allure.dynamic.parameter("name", ALL)
    with allure.step(f"step {{PASSWORD}}"):
        pass
@pytest.fixture
def bad():
    with allure.step(f"fixture {{PASSWORD}}"):
        raise LabError(ALL, seen=ALL)
def test_a_fixture(bad): pass
@pytest.fixture
def bad_end():
    yield
    raise RuntimeError(ALL)
def test_a_fixtures_end(bad_end): pass
def test_properties(record_property):
    record_property("key", ALL)
@pytest.mark.parametrize("value", [PASSWORD])
def test_parameters(value): pass
"""

POWER = f"""
key_file = "key"
power = {{ driver = "ipmi", address = "b", user = "u", password_file = "bmc.secret" }}
console = ["ipmitool", "-P", "{IN_COMMAND}", "sol", "activate"]

[hosts.gamma]
platform = "linux-vfio"
address = "192.0.2.3"
power = {{ driver = "labgrid", model = "rest", address = "http://u:{IN_URL}@pdu", index = "1" }}

[hosts.beta]
"""


@needs_allure
def test_no_secret_is_in_any_file_that_a_run_writes(
    run_hil: RunHil, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "_known", {})
    key, other = keys.generate().private, keys.generate().private
    (pytester.path / "key").write_text(key)
    (pytester.path / "bmc.secret").write_text(PASSWORD + "\n")
    suite = SUITE.format(secrets=(PASSWORD, IN_URL, IN_COMMAND, UNKNOWN), other=other)
    ran = run_hil(suite, "-rA", "--showlocals", lab=LAB.replace("\n[hosts.beta]\n", POWER))
    assert len(ran.statuses) == 15, ran.text
    monkeypatch.setenv("HIL_ALLURE", ALLURE)
    html.generate(ran.run)

    planted = [PASSWORD, IN_URL, IN_COMMAND, UNKNOWN]
    planted += [line for line in (key + other).splitlines() if "-----" not in line]
    found = []
    contents = files(pytester.path / "reports")
    for name, data in contents.items():
        # Lines of a key that are short may stand anywhere by chance.
        found += [f"{word} in {name}" for word in planted if len(word) > 8 and word in data]
    assert not found, "\n".join(found)
    assert sum(REDACTED in data for data in contents.values()) > 20
    assert any("/history/" in name for name in contents)
    assert any(name.endswith("junit.xml") for name in contents)
    on_terminal = [word for word in planted if len(word) > 8 and word in ran.text]
    assert not on_terminal, ran.text


def files(folder: Path) -> dict[str, str]:
    """Every file, and what is packed in pages."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            text = path.read_bytes().decode("utf-8", "replace")
            found[str(path)] = text
            if path.suffix == ".html":
                for name, data in unpacked(text).items():
                    if not name.endswith(".js"):
                        found[f"{path}: {name}"] = data.decode("utf-8", "replace")
    assert len(found) > 40
    return found


def test_a_key_that_comes_line_by_line_is_taken_out_and_what_stands_in_it_stays() -> None:
    first, *body, last = keys.generate().private.splitlines()
    blocks = KeyBlocks()
    lines = ["boot", first, *body[:2], "[   12.0] usb 1-1: new device", *body[2:], last, "login:"]
    shown = [blocks.redact(line) for line in lines]
    assert shown[0] == "boot"
    assert shown[4] == "[   12.0] usb 1-1: new device"
    assert shown[-2:] == [last, "login:"]
    assert all(line not in "\n".join(shown) for line in body)


def test_a_key_whose_end_is_lost_ends_by_itself() -> None:
    blocks = KeyBlocks()
    blocks.redact("-----BEGIN PRIVATE KEY-----")
    shown = [blocks.redact("word") for _ in range(KeyBlocks.LONGEST + 1)]
    assert shown == [REDACTED] * KeyBlocks.LONGEST + ["word"]
