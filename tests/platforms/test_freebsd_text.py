"""What FreeBSD's tools print is read as recorded; anything else is an error that shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.errors import HilError, LabError
from hil.pci.address import Address
from hil.platforms import freebsd_text as text
from hil.platforms import freebsd_uses as uses
from hil.platforms.freebsd_text import Process, Release
from hil.platforms.freebsd_uses import Mount
from tests.recorded import all_recorded, recorded

#: Recordings of one command alone, and what reads it.
READERS: dict[str, Callable[[str], Any]] = {
    "kldstat": text.parse_kldstat,
    "kldstat -v -n vmm.ko": text.parse_kldstat,
    "sysctl hw.vmm": text.parse_sysctl,
    "sysctl hw.vmm.iommu": text.parse_sysctl,
    "sysctl dev.ppt": text.parse_sysctl,
    'kenv -q | grep -E "vmm|ppt"': text.parse_kenv,
    "kenv -q | grep vmm": text.parse_kenv,
    "vmstat -i": text.parse_vmstat,
    "devinfo": text.parse_devinfo,
    "devinfo -v": text.parse_devinfo,
    "devinfo -rv": text.parse_devinfo,
    "acpidump -t": text.parse_acpi_tables,
    "freebsd-version": text.parse_release,
    "uname -a": text.parse_release,
    "ls /dev/vmm": text.parse_names,
    "ps axwww -o pid,ppid,stat,command | grep bhyve": text.parse_ps,
}


def test_every_recording_of_these_commands_is_read() -> None:
    found = [one for one in all_recorded() if one.command in READERS and one.status == 0]
    assert {one.command for one in found} == set(READERS)
    for one in found:
        assert READERS[one.command](one.text), one.name


def test_releases_are_ordered_by_their_numbers() -> None:
    parse = text.parse_release
    assert parse(recorded("1-host-setup/003").text) == Release(13, 2, "RELEASE")
    assert parse("14.1-RELEASE-p3\n").branch == "RELEASE-p3"
    assert parse("9.3-RELEASE") < parse("13.2-STABLE") < parse("15.0-CURRENT")
    assert parse("15.0-CURRENT").current
    with pytest.raises(LabError, match="Darwin"):
        parse("Darwin 23.1")


def test_loaded_files_and_their_modules() -> None:
    loaded = text.parse_kldstat(recorded("1-host-setup/049").text)
    assert [file.name for file in loaded] == ["kernel", "vmm.ko", "nmdm.ko"]
    (vmm,) = text.parse_kldstat(recorded("1-host-setup/050").text)
    assert vmm.modules == ("acpi/ivhd", "pci/amdiommu", "pci/ppt", "vmm")
    # A CPU without VMX: the file is loaded, the module is not.
    (vmm,) = text.parse_kldstat(recorded("8-vtd-machine/016").text)
    assert "vmm" not in vmm.modules
    with pytest.raises(LabError, match="no such line"):
        text.parse_kldstat("no such line\n")


def test_sysctl_values_by_name() -> None:
    values = text.parse_sysctl(recorded("1-host-setup/009").text)
    assert values["hw.model"] == "AMD EPYC Processor (with IBPB)"
    assert text.parse_sysctl("a.b=1\nkern.x: one\n  two\n") == {"a.b": "1", "kern.x": "one\n  two"}
    assert text.parse_sysctl(recorded("1-host-setup/085").text)["dev.ppt.2.%desc"] == ""
    with pytest.raises(LabError, match="no name"):
        text.parse_sysctl("no name here")


def test_kernel_environment_and_pptdevs() -> None:
    kenv = text.parse_kenv(recorded("7-pptdevs-at-boot/029").text)
    assert kenv["hw.vmm.amdvi.enable"] == "1"
    assert text.pptdevs(kenv) == (Address(0, 0, 5, 0), Address(0, 0, 6, 0))
    assert text.pptdevs_ignored(kenv) == ()
    more = {"pptdevs": "1/0/0 pci0:2:0:0", "pptdevs3": "3/0/1 4/0", "pptdevs4": "5/0/0"}
    assert text.pptdevs(more) == (Address(0, 1, 0, 0), Address(0, 3, 0, 1))
    assert text.pptdevs_ignored(more) == ("pci0:2:0:0", "4/0", 'pptdevs4="5/0/0"')
    assert text.parse_kenv('a="one\n two"\nb=""\n') == {"a": "one\n two", "b": ""}
    for wrong in ("name=unquoted\n", 'a="never closed\n', 'b=""\nplain\n'):
        with pytest.raises(LabError, match=r"unquoted|closed|plain"):
            text.parse_kenv(wrong)


def test_bhyve_is_known_among_processes_by_its_title_or_its_arguments() -> None:
    running = text.parse_ps(recorded("4-in-use/002").text)
    assert [(one.pid, one.vm) for one in running if one.vm] == [(940, "g1")]
    plain = "  77 /usr/sbin/bhyve -c 1 -s 7,passthru,0/5/0 g2\n   1 /sbin/init\n"
    assert [one.vm for one in text.parse_ps(plain)] == ["g2", ""]
    assert Process(1, "vi bhyve").vm == Process(1, "bhyve").vm == ""
    with pytest.raises(LabError, match="nobody"):
        text.parse_ps("nobody knows\n")


def test_interrupt_lines_of_a_passed_function_are_found_by_its_numbers() -> None:
    lines = text.parse_vmstat(recorded("3-each-failure-from-fresh/029").text)
    by_irq = {line.irq: line for line in lines if line.irq is not None}
    assert (by_irq[29].name, by_irq[29].total) == ("ppt0", 19)
    assert by_irq[36].name == ""
    assert [line.source for line in lines if line.irq is None] == ["cpu0:timer", "cpu1:timer"]
    assert "Total" not in {line.source for line in lines}
    assert text.parse_vmstat("irq264: em0:rxq0  12  3\n")[0].name == "em0:rxq0"
    tree = text.parse_devinfo(recorded("2-failures-then-guest/056").text)
    assert tree.interrupts["ppt0"] == (29, 30)
    with pytest.raises(LabError, match="irq1: x"):
        text.parse_vmstat("irq1: x\n")


def test_the_device_tree_tells_what_hangs_on_what() -> None:
    tree = text.parse_devinfo(recorded("1-host-setup/027").text)
    assert list(tree.line("em1")) == ["em1", "pci1", "pcib1", "pci0", "pcib0", "acpi0", "nexus0"]
    assert tree.parents["vtblk0"] == "virtio_pci1"
    assert list(tree.line("ppt0")) == []
    full = text.parse_devinfo(recorded("1-host-setup/029").text)
    assert full.addresses["em1"] == Address(0, 1, 0, 0)
    assert full.interrupts["em0"] == (0x1D, 0x1E, 0x1F)
    assert full.parents["em1"] == "pci1"
    assert tree.parents.items() <= full.parents.items()
    with pytest.raises(LabError, match="what is this: it"):
        text.parse_devinfo("nexus0\nwhat is this: it\n")


def test_tables_of_the_firmware() -> None:
    assert text.parse_acpi_tables(recorded("1-host-setup/031").text)["IVRS"] == 304
    assert text.parse_acpi_tables(recorded("8-vtd-machine/003").text)["DMAR"] == 224


MOUNTS = """\
/dev/gpt/rootfs\t\t/\t\tufs\trw\t\t1 1
devfs\t\t\t/dev\t\tdevfs\trw\t\t0 0
zroot/ROOT/default\t/mnt/a\\040b\tzfs\trw\t\t0 0
"""


def test_mounts_and_swap() -> None:
    assert uses.parse_mounts(MOUNTS)[::2] == (
        Mount("/dev/gpt/rootfs", "/", "ufs"),
        Mount("zroot/ROOT/default", "/mnt/a\\040b", "zfs"),
    )
    swap = (
        "Device          1K-blocks     Used    Avail Capacity\n/dev/ada0p2  2097152 0 2097152 0%\n"
    )
    assert uses.parse_swapinfo(swap) == ("/dev/ada0p2",)
    with pytest.raises(LabError, match="odd"):
        uses.parse_mounts("odd\n")


# sys/geom/geom_dump.c, g_conftxt_geom; a mirror of two disks, with an encrypted partition.
GEOM = """\
0 DISK ada0 107374182400 512 hd 16 sc 63
1 PART ada0p1 524288 512 i 1 o 20480 ty freebsd-boot xs GPT xt 83bd6b9d
1 PART ada0p2 2147483648 512 i 2 o 544768 ty freebsd-swap xs GPT xt 516e7cb5
2 MIRROR mirror/swap 2147483136 512
3 ELI mirror/swap.eli 2147483136 4096
0 DISK ada1 107374182400 512 hd 16 sc 63
1 PART ada1p2 2147483648 512 i 2 o 544768 ty freebsd-swap xs GPT xt 516e7cb5
2 MIRROR mirror/swap 2147483136 512
1 LABEL gpt/my data 1024 512 i 0 o 0
0 MD md0 1024 512 u 0 s 512 f 0 fs 0 l 1024 t malloc
"""


def test_providers_lie_on_disks() -> None:
    on = uses.parse_geom(GEOM)
    assert on["mirror/swap"] == ("ada0", "ada1")
    assert on["mirror/swap.eli"] == ("ada0",)
    assert on["ada0p1"] == ("ada0",)
    assert on["gpt/my data"] == ("ada1",)
    assert on["md0"] == ("md0",)
    for wrong in ("2 PART ada0p1 1 2\n", "0 DISK ada0\n", "x\n"):
        with pytest.raises(LabError, match=wrong.strip()):
            uses.parse_geom(wrong)


ZPOOL = """\
  pool: zroot
 state: ONLINE
config:

\tNAME             STATE     READ WRITE CKSUM
\tzroot            ONLINE       0     0     0
\t  mirror-0       ONLINE       0     0     0
\t    /dev/ada0p3  ONLINE       0     0     0
\t    /dev/ada1p3  ONLINE       0     0     0
\tcache
\t  /dev/nda0      ONLINE       0     0     0

errors: No known data errors

  pool: guests
 state: ONLINE
config:

\tNAME        STATE     READ WRITE CKSUM
\tguests      ONLINE       0     0     0
\t  /dev/da0  ONLINE       0     0     0

errors: No known data errors
"""

CAMCONTROL = """\
scbus0 on ahcich0 bus 0:
<QEMU HARDDISK 2.5+>               at scbus0 target 0 lun 0 (ada0,pass0)
<>                                 at scbus0 target -1 lun ffffffff ()
scbus6 on nvme0 bus 0:
<QEMU NVMe Ctrl 7.2.0 deadbeef>    at scbus6 target 0 lun 1 (pass1,nda0)
scbus7 on umass-sim0 bus 0:
<Generic Stick 1.0>                at scbus7 target 0 lun 0 (da0,pass2)
scbus-1 on xpt0 bus 0:
<>                                 at scbus-1 target -1 lun ffffffff (xpt0)
"""


def test_pools_and_disks_of_cam() -> None:
    assert uses.parse_zpool(ZPOOL) == {
        "zroot": ("/dev/ada0p3", "/dev/ada1p3", "/dev/nda0"),
        "guests": ("/dev/da0",),
    }
    assert uses.parse_zpool("") == {}
    disks = uses.parse_camcontrol(CAMCONTROL)
    assert (disks["ada0"], disks["nda0"], disks["da0"]) == ("ahcich0", "nvme0", "umass-sim0")
    with pytest.raises(LabError, match="neither"):
        uses.parse_camcontrol("neither\n")


IFCONFIG = """\
em0: flags=1008943<UP,BROADCAST,RUNNING,PROMISC,SIMPLEX,MULTICAST,LOWER_UP> metric 0 mtu 1500
\toptions=4e524bb<RXCSUM,TXCSUM,VLAN_MTU>
\tether 52:54:00:12:34:56
\tinet 192.0.2.7 netmask 0xffffff00 broadcast 192.0.2.255
\tinet6 fe80::5054:ff:fe12:3456%em0 prefixlen 64 scopeid 0x1
\tmedia: Ethernet autoselect (1000baseT <full-duplex>)
\tstatus: active
lo0: flags=1008049<UP,LOOPBACK,RUNNING,MULTICAST,LOWER_UP> metric 0 mtu 16384
\tinet 127.0.0.1 netmask 0xff000000
\tgroups: lo
bridge0: flags=8843<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST> metric 0 mtu 1500
\tdescription: hil: guests
\tether 58:9c:fc:10:00:01
\tgroups: bridge
\tmember: tap0 flags=143<LEARNING,DISCOVER,AUTOEDGE,AUTOPTP>
\t        ifmaxaddr 0 port 4 priority 128 path cost 2000000
\tmember: em1 flags=143<LEARNING,DISCOVER,AUTOEDGE,AUTOPTP>
em0.7: flags=8843<UP> metric 0 mtu 1500
\tgroups: vlan
\tvlan: 7 vlanproto: 802.1q vlanpcp: 0 parent interface: em0
lagg0: flags=8843<UP> metric 0 mtu 1500
\tlaggproto failover lagghash l2,l3,l4
\tlaggport: igb0 flags=5<MASTER,ACTIVE>
\tgroups: lagg
"""

ROUTES = """\
Routing tables

Internet:
Destination        Gateway            Flags         Netif Expire
default            192.0.2.1          UGS             em0
127.0.0.1          link#2             UH              lo0

Internet6:
Destination                       Gateway                       Flags     Netif Expire
default                           fe80::1%em0.7                 UGS       em0.7
"""


def test_interfaces_and_default_routes() -> None:
    links = {link.name: link for link in uses.parse_ifconfig(IFCONFIG)}
    assert links["em0"].addresses == ("192.0.2.7", "fe80::5054:ff:fe12:3456")
    assert links["em0"].ether == "52:54:00:12:34:56"
    assert links["em0"].groups == ()
    assert links["bridge0"].parts == ("tap0", "em1")
    assert links["bridge0"].description == "hil: guests"
    assert links["em0.7"].parts == ("em0",)
    assert links["lagg0"].parts == ("igb0",)
    assert uses.parse_default_routes(ROUTES) == ("em0", "em0.7")
    with pytest.raises(LabError, match="no interface"):
        uses.parse_ifconfig("no interface\n")


def raised(act: Callable[[], object]) -> HilError | None:
    """The error of hil's own that ``act`` ends with; any other is the test's."""
    try:
        act()
    except HilError as error:
        return error
    return None


PARSERS = [
    getattr(module, name)
    for module in (text, uses)
    for name in dir(module)
    if name.startswith("parse_")
]
SAMPLES = [one.text for one in all_recorded() if one.command in READERS]
SAMPLES += [MOUNTS, GEOM, ZPOOL, CAMCONTROL, IFCONFIG, ROUTES]


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A recording with a piece of it replaced, or text of any kind."""
    sample = draw(st.sampled_from(SAMPLES))
    first = draw(st.integers(0, len(sample)))
    last = draw(st.integers(first, min(first + 40, len(sample))))
    return sample[:first] + draw(st.text(max_size=40)) + sample[last:]


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
@given(given_text=damaged() | st.text())
def test_no_text_makes_a_parser_fail_but_by_its_own_error(
    parse: Callable[[str], Any], given_text: str
) -> None:
    error = raised(lambda: parse(given_text))
    assert error is None or len(error.explain()) < 1000
    assert error is None or error.seen.strip() or not given_text.strip()
