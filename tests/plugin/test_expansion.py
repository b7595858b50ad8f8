"""Which tests are made of a marker, what they are skipped for, and in which order they run."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import LAB, RunHil


def one(needs: str, argument: str = "device", extra: str = "") -> str:
    return f"""
@pytest.fixture
def device(request): return request.param
@pytest.fixture
def devices(request): return request.param
@pytest.fixture
def host(request): return request.param
{extra}
@pytest.mark.needs({needs})
def test_a({argument}): pass
"""


@pytest.mark.parametrize(
    ("needs", "tests"),
    [
        ("", ["nic0", "nic1", "nvme0", "edu0"]),
        ("device='nic'", ["nic0", "nic1"]),
        ("device=['nvme', 'edu']", ["nvme0", "edu0"]),
        ("capability='flr'", ["nic0"]),
        ("capability=['flr', 'sriov']", ["nic0"]),
        ("device='nic', without='flr'", ["nic1"]),
        ("peer=True", ["nic0"]),
        ("vfs=4", ["nic0"]),
    ],
)
def test_a_test_is_made_for_each_device_that_has_what_it_needs(
    run_hil: RunHil, needs: str, tests: list[str]
) -> None:
    ran = run_hil(one(needs))
    assert ran.statuses == {f"test_a[{name}]": "passed" for name in tests}


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        (
            "device='nvme', capability='flr'",
            "the lab 'rack' has no nvme with FLR (nvme0: no FLR)",
        ),
        ("device='gpu'", "the lab 'rack' has no gpu"),
        (
            "device='nvme', capability='compute'",
            "the lab 'rack' has no nvme with OpenCL (nvme0: no OpenCL)",
        ),
        (
            "device='nvme', rom=True",
            "the lab 'rack' has no nvme with an option ROM (nvme0: no option ROM named)",
        ),
        (
            "vfs=5, device='nic'",
            "the lab 'rack' has no nic with 5 VFs (nic0: 4 VFs, not 5; nic1: 0 ",
        ),
        (
            "device='nvme', count=2",
            "the lab 'rack' has 1 nvme; this test needs 2 on one host",
        ),
        ("hosts=3", "the lab 'rack' has 2 host(s); this test needs 3"),
        ("guest='freebsd'", "the guests of the lab 'rack' run linux; this test needs freebsd"),
    ],
)
def test_a_test_that_no_device_satisfies_is_skipped_once_with_its_reason(
    run_hil: RunHil, needs: str, reason: str
) -> None:
    ran = run_hil(one(needs, argument="" if needs.startswith(("hosts", "guest")) else "device"))
    assert list(ran.statuses.values()) == ["skipped"]
    assert ran.reason(ran.order[0]).startswith(reason)
    assert reason[:60] in ran.text


def test_a_test_about_another_platform_is_left_out_and_counted(run_hil: RunHil) -> None:
    ran = run_hil(
        one("platform=['freebsd-bhyve', 'illumos-bhyve']")
        + one("platform=['freebsd-bhyve', 'linux-vfio'], device='edu'").replace("test_a", "test_b")
    )
    assert ran.statuses == {"test_b[edu0]": "passed"}
    assert "4 deselected" in ran.text
    assert "not for this lab: 4 tests: they are for freebsd-bhyve or illumos-bhyve" in ran.text


GPU = """
[devices.{name}]
kind = "gpu"
host = "beta"
functions = ["0000:0{bus}:00.0"]
match = {{ id = "{id}" }}
capabilities = [{has}]
"""
VIRTIO = GPU.format(name="gpu0", bus=6, id="1af4:1050", has="")
BOCHS = GPU.format(name="gpu1", bus=7, id="1234:1111", has='"vram"')
NVIDIA = GPU.format(name="gpu2", bus=8, id="10de:1b39", has="")
COMPUTES = one("device='gpu', capability='compute'") + one("").replace("test_a", "test_b")


def test_what_no_device_of_the_lab_can_ever_have_is_left_out_and_told(run_hil: RunHil) -> None:
    ran = run_hil(COMPUTES, lab=LAB + VIRTIO + BOCHS)
    assert "test_a[none]" not in ran.statuses
    assert "not for this lab: 1 test: no gpu of it can ever have OpenCL" in ran.text


def test_told_too_where_nothing_else_was_asked_for(run_hil: RunHil) -> None:
    ran = run_hil(COMPUTES, "-k", "test_a", lab=LAB + VIRTIO)
    assert ran.statuses == {}
    assert "not for this lab: 1 test: no gpu of it can ever have OpenCL" in ran.text


@pytest.mark.parametrize(
    ("cards", "near"),
    [
        (VIRTIO + NVIDIA, "gpu0: no OpenCL; gpu2: no OpenCL"),
        (NVIDIA, "gpu2: no OpenCL"),
        # Which card it is, nobody has said.
        (VIRTIO.replace("match", "# match"), "gpu0: no OpenCL"),
    ],
)
def test_what_a_device_of_the_lab_could_have_and_has_not_is_skipped(
    run_hil: RunHil, cards: str, near: str
) -> None:
    ran = run_hil(COMPUTES, lab=LAB + cards)
    assert ran.statuses["test_a[none]"] == "skipped"
    assert ran.reason("test_a[none]") == f"the lab 'rack' has no gpu with OpenCL ({near})"
    assert "not for this lab" not in ran.text


def test_a_lab_without_any_such_device_is_told_so(run_hil: RunHil) -> None:
    ran = run_hil(COMPUTES)
    assert ran.reason("test_a[none]") == "the lab 'rack' has no gpu with OpenCL"


def test_a_need_is_checked_without_the_argument_too(run_hil: RunHil) -> None:
    ran = run_hil(one("device='gpu'", argument=""))
    assert ran.statuses == {"test_a": "skipped"}
    assert ran.reason("test_a") == "the lab 'rack' has no gpu"


def test_several_devices_of_one_host_are_chosen_together(run_hil: RunHil) -> None:
    ran = run_hil(one("count=2", argument="devices"))
    assert ran.order == ["test_a[nic0+nic1]", "test_a[nic0+nvme0]", "test_a[nic1+nvme0]"]


def test_a_test_of_the_host_is_made_for_each_host(run_hil: RunHil) -> None:
    ran = run_hil(one("", argument="host"))
    assert ran.order == ["test_a[alpha]", "test_a[beta]"]


def test_markers_of_the_module_count_and_the_nearest_wins(run_hil: RunHil) -> None:
    ran = run_hil(
        "pytestmark = pytest.mark.needs(device='nic', capability='flr')\n"
        + one("device='nvme'")
        + "def test_b(device): pass\n@pytest.mark.needs(device='nic', capability=[])\n"
        + "def test_c(device): pass\n"
    )
    assert sorted(ran.statuses) == ["test_a[none]", "test_b[nic0]", "test_c[nic0]", "test_c[nic1]"]


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        ("needs(devise='nic')", "unknown: devise"),
        ("needs('nic')", "each by name"),
        ("danger(4)", "one number from 0 to 3"),
        ("danger('high')", "one number from 0 to 3"),
        ("needs(device={})", "a word or a list of words"),
    ],
)
def test_a_marker_written_wrongly_is_one_clear_error(
    run_hil: RunHil, marker: str, words: str
) -> None:
    ran = run_hil(f"@pytest.mark.{marker}\ndef test_a(): pass\ndef test_b(): pass\n")
    assert ran.result.ret == pytest.ExitCode.USAGE_ERROR
    assert words in ran.text
    assert "test_it.py::test_a" in ran.text
    assert "Traceback" not in ran.text


def test_danger_is_refused_above_what_the_host_allows(run_hil: RunHil) -> None:
    ran = run_hil(
        one("device=['nic', 'edu'], without='flr'").replace(
            "@pytest.mark.needs", "@pytest.mark.danger(2)\n@pytest.mark.needs"
        )
    )
    assert ran.statuses == {"test_a[nic1]": "skipped", "test_a[edu0]": "passed"}
    assert ran.reason("test_a[nic1]") == (
        "danger 2 (may hang or reboot the host): the lab 'rack' allows 1 on host 'alpha' "
        "(hosts.alpha.danger in rack.toml)"
    )


def test_danger_is_refused_above_the_option(run_hil: RunHil) -> None:
    ran = run_hil("@pytest.mark.danger(1)\ndef test_a(): assert False\n", "--hil-danger=0")
    assert ran.reason("test_a") == "danger 1 (may wedge the device): refused by --hil-danger 0"


def test_tests_run_in_the_order_of_what_is_booted(run_hil: RunHil) -> None:
    ran = run_hil(
        """
@pytest.fixture
def device(request): return request.param
@pytest.fixture
def guest(): pass
@pytest.fixture
def pristine_lab(): pass
@pytest.fixture
def lab_without_iommu(): pass
@pytest.mark.danger(0)
def test_none(lab_without_iommu): pass
@pytest.mark.needs(device=["nic"])
def test_restored(device, pristine_lab): pass
def test_plain(): pass
@pytest.mark.needs(device=["nic", "edu"])
def test_guest(device, guest): pass
@pytest.mark.needs(device=["nic", "edu"])
def test_device(device): pass
"""
    )
    assert ran.order == [
        "test_device[nic0]",
        "test_guest[nic0]",
        "test_device[nic1]",
        "test_guest[nic1]",
        "test_device[edu0]",
        "test_guest[edu0]",
        "test_restored[nic0]",
        "test_restored[nic1]",
        "test_none",
    ]
    ran.result.assert_outcomes(passed=10)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--hil-danger=4", "'4' is not a whole number from 0 to 3"),
        ("--hil-danger=x", "'x' is not a whole number from 0 to 3"),
        ("--hil-cycles=0", "not a whole number from 1"),
        ("--hil-watch=-1", "not a number of seconds"),
        ("--hil-watch=nan", "not a number of seconds"),
        ("--hil-lab=missing.toml", "missing.toml does not exist"),
        ("--hil-lab=nosuch", "there is no lab"),
        ("--hil-report=rack.toml", "report folder rack.toml cannot be written"),
    ],
)
def test_a_wrong_option_is_a_clear_error(run_hil: RunHil, option: str, words: str) -> None:
    ran = run_hil("@pytest.mark.danger(0)\ndef test_a(): pass\n", option)
    assert ran.result.ret == pytest.ExitCode.USAGE_ERROR
    assert words in ran.text
    assert "Traceback" not in ran.text


def test_a_broken_inventory_is_told_once_with_its_line(run_hil: RunHil) -> None:
    ran = run_hil(one(""), lab="[lab]\nname = \n")
    assert ran.result.ret == pytest.ExitCode.USAGE_ERROR
    assert "rack.toml:2:8: not TOML" in ran.text


def test_options_reach_the_fixtures(run_hil: RunHil) -> None:
    ran = run_hil(
        "@pytest.mark.danger(0)\ndef test_a(cycles, watch): assert (cycles, watch) == (7, 1.5)\n",
        "--hil-cycles=7",
        "--hil-watch=1.5",
    )
    assert ran.statuses == {"test_a": "passed"}


def test_a_run_without_hil_tests_loads_nothing_heavy(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(
        """
        import sys
        def test_a():
            heavy = {"pydantic", "paramiko", "rich", "typer", "pexpect", "hil.lab", "hil.bench"}
            assert not heavy & set(sys.modules)
            assert "hil.fixtures.plugin" in sys.modules
        """
    )
    result = pytester.runpytest_subprocess("-p", "hil.fixtures.plugin")
    result.assert_outcomes(passed=1)
