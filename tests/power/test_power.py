"""Power drivers against what they talk to: a BMC over UDP, a Redfish service, an outlet."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

from hil.deadline import Deadline
from hil.errors import DeadlineExceeded, HilError, InventoryError, LabError
from hil.lab.document import InvalidFileError
from hil.lab.load import parse
from hil.lab.power import power_of
from hil.power import base
from hil.power.base import Power, PowerState, within
from hil.power.bmc import IpmiPower, RedfishPower, library
from hil.power.emulated import EmulatedPower
from hil.power.none import NoPower
from hil.power.outlet import OutletPower
from tests.fakes import soon
from tests.inventories import REMOTE


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "REST", 0.01)


# ---- the two management controllers -------------------------------------------------------

# It tells each thing that is done to it on standard output.
BMC = """
import sys
from pyghmi.ipmi.bmc import Bmc
from pyghmi.ipmi.private.serversession import ServerSession

# It knows SHA-1 only, and takes a client's SHA-256 for that; a real one refuses, whereupon a
# client comes again with SHA-1 (IPMI 2.0, 13.18 and 13.24: 04h, invalid algorithm).
accept = ServerSession.create_open_session_response
def create(self, request):
    answer = accept(self, request)
    answer[1] = 0 if request[12] == 1 else 4
    return answer
ServerSession.create_open_session_response = create

class Machine(Bmc):
    state = "on"
    def get_power_state(self):
        return self.state
    def power_off(self):
        self.become("off")
    def power_on(self):
        self.become("on")
    def become(self, state):
        self.state = state
        print(state, flush=True)

machine = Machine({"admin": "secret"}, port=int(sys.argv[1]))
print("ready", flush=True)
machine.listen()
"""


class Controller:
    """A management controller: the driver to ask it, and what was done to it."""

    def __init__(self, power: Power, done: Callable[[], str]) -> None:
        self.power = power
        self.next_done = done


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def ipmi() -> Iterator[Controller]:
    port = free_udp_port()
    with subprocess.Popen(
        [sys.executable, "-c", BMC, str(port)], stdout=subprocess.PIPE, text=True
    ) as bmc:
        assert bmc.stdout is not None
        assert bmc.stdout.readline() == "ready\n"
        yield Controller(
            IpmiPower("alpha", "127.0.0.1", "admin", "secret", port),
            lambda: bmc.stdout.readline().strip() if bmc.stdout else "",
        )
        bmc.kill()


class Service(BaseHTTPRequestHandler):
    """As much of a Redfish service as DSP0266 asks for one system."""

    state = "On"
    done: list[str]

    def do_GET(self) -> None:
        systems = "/redfish/v1/Systems"
        documents: dict[str, object] = {
            "/redfish/v1": {
                "@odata.id": "/redfish/v1", "Id": "Root", "Name": "Root", "RedfishVersion": "1.6.0",
                "Systems": {"@odata.id": systems},
                "Links": {"Sessions": {"@odata.id": "/redfish/v1/SessionService/Sessions"}},
            },
            systems: {"Name": "Systems", "Members": [{"@odata.id": f"{systems}/1"}]},
            f"{systems}/1": {
                "@odata.id": f"{systems}/1", "Id": "1", "Name": "alpha",
                "PowerState": type(self).state,
                "Actions": {"#ComputerSystem.Reset": {"target": f"{systems}/1/Reset"}},
            },
        }  # fmt: skip
        self.answer(documents.get(self.path.rstrip("/")))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/Reset"):
            kind = body["ResetType"]
            type(self).done.append(kind)
            type(self).state = {"ForceOff": "Off", "On": "On"}[kind]
            self.answer({"done": kind})
        else:
            self.answer(None)  # no sessions: sushy then authenticates each request

    def answer(self, document: object) -> None:
        wrong = self.headers["Authorization"] not in (None, "Basic YWRtaW46c2VjcmV0")
        self.send_response(401 if wrong else 404 if document is None else 200)
        data = json.dumps(document or {"error": {"code": "Base.1.0.GeneralError"}}).encode()
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def redfish() -> Iterator[Controller]:
    class OneService(Service):
        done: list[str] = []  # noqa: RUF012 - this one's

    with ThreadingHTTPServer(("127.0.0.1", 0), OneService) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        words = {"ForceOff": "off", "On": "on"}
        yield Controller(
            RedfishPower("alpha", url, "admin", "secret"), lambda: words[OneService.done.pop(0)]
        )
        server.shutdown()


@pytest.fixture(params=["ipmi", "redfish"])
def controller(request: pytest.FixtureRequest) -> Controller:
    found: Controller = request.getfixturevalue(request.param)
    return found


def test_a_controller_switches_its_host_and_tells_its_state(controller: Controller) -> None:
    power = controller.power
    assert power.state(soon(60)) is PowerState.ON
    power.off(soon(60))
    assert controller.next_done() == "off"
    assert power.state(soon(60)) is PowerState.OFF
    power.off(soon(60))  # what is off is left off
    power.on(soon(60))
    assert controller.next_done() == "on"
    assert power.state(soon(60)) is PowerState.ON


def test_a_cycle_is_off_and_then_on(controller: Controller) -> None:
    controller.power.cycle(soon(60))
    assert [controller.next_done(), controller.next_done()] == ["off", "on"]
    assert controller.power.state(soon(60)) is PowerState.ON


def test_a_wrong_password_is_an_error_with_a_hint(ipmi: Controller, redfish: Controller) -> None:
    for driver in (ipmi.power, redfish.power):
        driver._password = "wrong"  # type: ignore[attr-defined]
        with pytest.raises(LabError, match="power of alpha refused") as caught:
            driver.state(soon(60))
        assert "hosts.alpha.power" in caught.value.hint
        assert "wrong" not in caught.value.explain()


def test_a_controller_that_says_nothing_is_waited_for_no_longer_than_allowed() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as silent:
        silent.bind(("::", 0))
        power = IpmiPower("alpha", "127.0.0.1", "admin", "secret", silent.getsockname()[1])
        with pytest.raises(DeadlineExceeded, match="for the power, in vain"):
            power.state(Deadline(0.3, "the power"))


def test_without_the_library_a_user_is_told_what_to_install() -> None:
    with pytest.raises(LabError, match="no_such_library is not installed") as caught:
        library("no_such_library.inner")
    assert caught.value.hint == "pip install 'hil[power]'"


# ---- outlets ----------------------------------------------------------------------------


@pytest.fixture
def outlet(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A model of power unit as labgrid has them, in place of labgrid."""
    unit = ModuleType("unit")
    unit.calls = []  # type: ignore[attr-defined]
    unit.value = True  # type: ignore[attr-defined]

    def power_set(host: str, port: int | None, index: str, value: bool) -> None:
        unit.calls.append((host, port, index, value))
        unit.value = value  # type: ignore[attr-defined]

    unit.power_set = power_set  # type: ignore[attr-defined]
    unit.power_get = lambda *_: unit.value  # type: ignore[attr-defined]
    package = ModuleType("labgrid.driver.power")
    package.__path__ = ["/nowhere"]
    monkeypatch.setattr(
        "hil.power.outlet.library", lambda name: package if name.endswith("power") else unit
    )
    module = type("Found", (), {"name": "unit"})
    monkeypatch.setattr("hil.power.outlet.pkgutil.iter_modules", lambda _path: [module])
    return unit


def test_an_outlet_is_switched_by_labgrid_s_two_functions(outlet: ModuleType) -> None:
    power = OutletPower("alpha", "unit", "http://pdu/{index}/{value}", "3")
    power.cycle(soon(60))
    where = ("http://pdu/{index}/{value}", None, "3")
    assert outlet.calls == [(*where, False), (*where, True)]
    assert power.state(soon()) is PowerState.ON


def test_a_model_with_a_port_gets_its_own_or_the_inventory_s(outlet: ModuleType) -> None:
    outlet.PORT = 80  # type: ignore[attr-defined]
    OutletPower("alpha", "unit", "pdu", "3").off(soon(60))
    OutletPower("alpha", "unit", "pdu", "3", 8080).off(soon(60))
    assert [port for _, port, _, _ in outlet.calls] == [80, 8080]


def test_a_unit_that_cannot_tell_is_not_waited_for(outlet: ModuleType) -> None:
    del outlet.power_get
    power = OutletPower("alpha", "unit", "pdu", "3")
    power.off(soon(60))
    assert power.state(soon()) is PowerState.UNKNOWN


def test_a_model_that_labgrid_does_not_have_is_the_inventory_s(outlet: ModuleType) -> None:
    with pytest.raises(InventoryError, match="model 'other'") as caught:
        OutletPower("alpha", "other", "pdu", "3").on(soon())
    assert "unit" in caught.value.hint


def test_labgrid_s_own_drivers_have_these_two_functions() -> None:
    pytest.importorskip("labgrid", reason="labgrid is not installed: docs/dependencies.md says why")
    power = OutletPower("alpha", "simplerest", "http://127.0.0.1:1/{index}/{value}", "3")
    with pytest.raises(LabError, match="power of alpha refused"):
        power.off(soon(60))


# ---- the others -------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["on", "off", "cycle"])
def test_where_nothing_switches_a_person_is_told_what_to_do(action: str) -> None:
    power = NoPower("alpha")
    assert power.state(soon()) is PowerState.UNKNOWN
    with pytest.raises(LabError, match="nothing can switch the power of alpha") as caught:
        getattr(power, action)(soon())
    assert caught.value.hint.startswith("go to alpha and ")


class QemuMachine:
    def __init__(self) -> None:
        self.done: list[str] = []
        self.powered = True

    def has_power(self, deadline: Deadline) -> bool:
        return self.powered

    def power_off(self, deadline: Deadline) -> None:
        self.done.append("off")
        self.powered = False

    def power_cycle(self, deadline: Deadline) -> None:
        self.done.append("cycle")
        self.powered = True


def test_an_emulated_host_is_switched_by_qemu() -> None:
    machine = QemuMachine()
    power = EmulatedPower("host", machine)
    power.on(soon())
    assert (machine.done, power.state(soon())) == ([], PowerState.ON)
    power.off(soon())
    assert power.state(soon()) is PowerState.OFF
    power.on(soon())
    power.cycle(soon())
    assert machine.done == ["off", "cycle", "cycle"]


def test_a_state_that_is_never_reached_is_told_with_the_last_one_seen() -> None:
    power = EmulatedPower("host", QemuMachine())
    with pytest.raises(DeadlineExceeded, match="power of host to be off") as caught:
        power._reach(PowerState.OFF, Deadline(0.05, "the switch"))
    assert "it is on" in caught.value.seen


@pytest.mark.parametrize("error", [InventoryError("wrong model"), LabError("no library")])
def test_hil_s_own_errors_pass_as_they_are(error: HilError) -> None:
    def call() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        within(soon(), "alpha", call)
    assert caught.value is error


# ---- the inventory ----------------------------------------------------------------------


def driver(tmp_path: Path, power: str) -> Power:
    (tmp_path / "secret").write_text("hush\nnot this\n")
    return power_of(parse(REMOTE + power, tmp_path / "x.toml"), "alpha")


def test_the_inventory_names_the_driver(tmp_path: Path) -> None:
    assert isinstance(driver(tmp_path, ""), NoPower)
    assert isinstance(driver(tmp_path, 'power = { driver = "none" }'), NoPower)
    keys = 'address = "https://bmc", user = "admin", password_file = "secret"'
    redfish = driver(tmp_path, f'power = {{ driver = "redfish", {keys}, ca_file = "ca.pem" }}')
    assert isinstance(redfish, RedfishPower)
    assert (redfish._password, redfish._verify) == ("hush", str(tmp_path / "ca.pem"))
    ipmi = driver(tmp_path, f'power = {{ driver = "ipmi", {keys}, port = 6230 }}')
    assert isinstance(ipmi, IpmiPower)
    assert ipmi._port == 6230
    keys = 'driver = "labgrid", model = "netio", address = "pdu", index = "4"'
    assert isinstance(driver(tmp_path, f"power = {{ {keys} }}"), OutletPower)


@pytest.mark.parametrize(
    ("power", "wrong"),
    [
        ('driver = "ipmi", user = "a", password_file = "f"', "hosts.alpha.power.address"),
        ('driver = "redfish", address = "b", user = "a"', "hosts.alpha.power.password_file"),
        ('driver = "labgrid", address = "b", model = "netio"', "hosts.alpha.power.index"),
        ('driver = "labgrid", model = "../netio"', "hosts.alpha.power.model"),
        ('driver = "ipmitool"', "hosts.alpha.power.driver"),
        ('driver = "none", pasword_file = ""', "hosts.alpha.power.pasword_file"),
    ],
)
def test_what_a_driver_needs_and_lacks_is_said(tmp_path: Path, power: str, wrong: str) -> None:
    with pytest.raises(InvalidFileError) as caught:
        driver(tmp_path, f"power = {{ {power} }}")
    assert wrong in str(caught.value)


def test_a_password_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    keys = 'driver = "ipmi", address = "b", user = "a", password_file = "nowhere"'
    with pytest.raises(InventoryError, match="nowhere of the power of alpha cannot be read"):
        driver(tmp_path, f"power = {{ {keys} }}")
