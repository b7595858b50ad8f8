"""How the changes that hil makes to a FreeBSD host are undone: see :mod:`hil.journal`.

Sources: devctl(8), iovctl(8), bhyvectl(8), ifconfig(8), zfs-destroy(8), mdconfig(8).
"""

from __future__ import annotations

from hil.journal import Kind

_SELECTOR = r"pci[0-9]+:[0-9]+:[0-9]+:[0-7]"
_DRIVER = r"[A-Za-z][A-Za-z0-9_]*"

#: $1 a function, $2 its driver before, or "none".  A name of ppt's stays with a function that
#: ppt has let go; ``pciconf -a`` tells the two apart.  Clearing gives an unclaimed function an
#: error although ppt lets go, and a function of ``pptdevs`` back to ppt without one.
DRIVER = Kind(
    "ppt-driver",
    script=r"""
now=$(pciconf -l "$1") || exit
case $now in ppt[0-9]*@*) ;; *) exit 0 ;; esac
if [ "$2" = none ]; then
    said=$(devctl clear driver -f "$1" 2>&1)
    if pciconf -a "$1" >/dev/null; then
        echo "${said:-ppt still has $1}" >&2
        exit 1
    fi
    exit 0
fi
devctl clear driver -f "$1" || exit
now=$(pciconf -l "$1")
case $now in "$2"[0-9]*@*) if pciconf -a "$1" >/dev/null; then exit 0; fi ;; esac
devctl set driver -f "$1" "$2"
""",
    accepts=(_SELECTOR, _DRIVER),
    by_hand="devctl clear driver -f {0}; pciconf -l {0}  # before: {1}",
    made="{0} was taken from its driver ({1}) for ppt",
)

#: $1 the PF's driver and unit.  iovctl refuses while ppt has a VF for a guest, and says
#: ECHILD where there are none (sys/dev/pci/pci_iov.c).
VFS = Kind(
    "iov",
    script=r"""
said=$(iovctl -D -d "$1" 2>&1) && exit 0
case $said in *"No child processes"* | *"No such file"*) exit 0 ;; esac
echo "$said" >&2
exit 1
""",
    accepts=(rf"{_DRIVER}[0-9]+",),
    by_hand="iovctl -D -d {0}",
    made="VFs of {0} were made",
)

#: $1 the virtual machine, $2 its folder, $3 the unit of its tap and bridge, $4 its ZVOL or "none".
GUEST = Kind(
    "bhyve-guest",
    script=r"""
left=0
if [ -e "/dev/vmm/$1" ]; then bhyvectl --vm="$1" --destroy || left=1; fi
for interface in "bridge$3" "tap$3"; do
    if ifconfig "$interface" 2>/dev/null | grep -q "description: $1\$"; then
        ifconfig "$interface" destroy || left=1
    fi
done
rm -rf "$2" || left=1
rmdir "${2%/*}" 2>/dev/null
if [ "$4" != none ] && zfs list "$4" >/dev/null 2>&1; then zfs destroy "$4" || left=1; fi
exit "$left"
""",
    accepts=(
        r"hil-[A-Za-z0-9._-]+",
        r"/(?!.*\.\./)[A-Za-z0-9._/-]+/hil-[A-Za-z0-9._-]+",
        r"[0-9]{1,5}",
        r"none|[A-Za-z0-9][A-Za-z0-9._/-]*-hil-[A-Za-z0-9._-]+",
    ),
    by_hand="bhyvectl --vm={0} --destroy; ifconfig bridge{2} destroy; ifconfig tap{2} destroy; "
    "rm -rf {1}; zfs destroy {3}",
    made="the guest {0} was made",
)

#: $1 a memory disk that only hil knows of.
MEMORY_DISK = Kind(
    "md",
    script='[ ! -e "/dev/$1" ] || mdconfig -d -u "$1"',
    accepts=(r"md[0-9]{4,6}",),
    by_hand="mdconfig -d -u {0}",
    made="the memory disk {0} was made",
)

#: $1 an interface, $2 an address with its prefix length that it did not have.
ADDRESS = Kind(
    "address",
    script=r"""
ifconfig "$1" inet 2>/dev/null | grep -q -F "inet ${2%/*} " || exit 0
ifconfig "$1" inet "${2%/*}" -alias
""",
    accepts=(r"[^/\s]{1,15}", r"[0-9a-f.:]+/[0-9]+"),
    by_hand="ifconfig {0} inet {1} -alias",
    made="the interface {0} was given the address {1}",
)

KINDS = (DRIVER, VFS, GUEST, MEMORY_DISK, ADDRESS)
