"""How the changes that hil makes to a Linux host are undone: see :mod:`hil.journal`.

Sources: Documentation/ABI/testing/sysfs-bus-pci, Documentation/driver-api/vfio.rst and
proc_pid_status(5).
"""

from __future__ import annotations

from hil.journal import Kind

_ADDRESS = r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
#: What hil.journal.new_run() makes.
_RUN = r"[0-9]{8}T[0-9]{6}-[0-9a-f]{6}"
_ABOVE = r"/(?!.*\.\./)[A-Za-z0-9._/-]+"

#: $1 is a function; status 0 if a guest holds it.  Opening a VFIO group is exclusive: EBUSY
#: tells that a guest holds it (vfio.rst).
HELD = r"""
g=$(readlink "/sys/bus/pci/devices/$1/iommu_group") || exit 1
g=/dev/vfio/${g##*/}
[ -e "$g" ] || exit 1
if ( : <> "$g" ) 2>/dev/null; then exit 1; fi
exit 0
"""

#: $1 the function, $2 its driver before, or "none".  To unbind a held one would wait for its
#: guest's end.
DRIVER = Kind(
    "driver",
    script=rf"""
held() {{ ( set -- "$1" {HELD} ); }}
d=/sys/bus/pci/devices/$1
[ -e "$d" ] || exit 0
driver() {{ n=$(readlink "$d/driver"); echo "${{n##*/}}"; }}
now=$(driver)
[ "$now" = vfio-pci ] || [ "$(cat "$d/driver_override")" = vfio-pci ] || exit 0
if held "$1"; then echo "a guest holds $1" >&2; exit 1; fi
echo > "$d/driver_override" || exit
[ "$now" != vfio-pci ] || echo "$1" > "$d/driver/unbind" || exit
[ "$2" != none ] || exit 0
[ -n "$(driver)" ] || echo "$1" > /sys/bus/pci/drivers_probe
now=$(driver)
[ "$now" = "$2" ] || {{ echo "bound to ${{now:-no driver}}, not to $2" >&2; exit 1; }}
""",
    accepts=(_ADDRESS, _NAME),
    by_hand="f={0}; echo > /sys/bus/pci/devices/$f/driver_override; "
    "echo $f > /sys/bus/pci/devices/$f/driver/unbind; echo $f > /sys/bus/pci/drivers_probe",
    made="{0} was taken from its driver ({1}) for vfio-pci",
)

#: $1 the PF, which had no VFs.  The kernel would take a VF out from under its guest.
VFS = Kind(
    "vfs",
    script=rf"""
held() {{ ( set -- "$1" {HELD} ); }}
d=/sys/bus/pci/devices/$1
[ -e "$d/sriov_numvfs" ] || exit 0
[ "$(cat "$d/sriov_numvfs")" != 0 ] || exit 0
for vf in "$d"/virtfn*; do
    vf=$(readlink "$vf"); vf=${{vf##*/}}
    if held "$vf"; then echo "a guest holds $vf" >&2; exit 1; fi
done
echo 0 > "$d/sriov_numvfs"
""",
    accepts=(_ADDRESS,),
    by_hand="echo 0 > /sys/bus/pci/devices/{0}/sriov_numvfs",
    made="VFs of {0} were made",
)

#: $1 the guest's folder; its QEMU is known by it.
GUEST = Kind(
    "guest",
    script=r"""
for p in $(find /proc/[0-9]*/exe -lname '*/qemu-system-*' 2>/dev/null); do
    p=${p%/exe}
    tr '\0' '\n' < "$p/cmdline" 2>/dev/null | grep -q -F -e "path=$1/" || continue
    kill -9 "${p#/proc/}" 2>/dev/null
    n=0
    # Its devices are free when it is gone, or waits for its parent only.
    while grep -q '^State:.[^ZX]' "$p/status" 2>/dev/null; do
        n=$((n + 1))
        [ "$n" -lt 300 ] || { echo "process ${p#/proc/} does not end" >&2; exit 1; }
        sleep 0.1
    done
done
rm -rf "$1" || exit
rmdir "${1%/*}" 2>/dev/null
exit 0
""",
    accepts=(f"{_ABOVE}/{_RUN}/{_NAME}",),
    by_hand="pkill -9 -f path={0}/; rm -rf {0}",
    made="the guest of {0} was made",
)

#: $1 a folder of files that only hil knows of.
FOLDER = Kind(
    "folder",
    script='rm -rf "$1"',
    accepts=(rf"/dev/shm/hil-canary\.{_RUN}\.[0-9a-f]+",),  # noqa: S108
    by_hand="rm -rf {0}",
    made="the folder {0} was made",
)

#: $1 an interface, $2 an address with its prefix length that it did not have.
ADDRESS = Kind(
    "address",
    script=r"""
[ -e "/sys/class/net/$1" ] || exit 0
ip -o addr show dev "$1" | grep -q -F -e " $2 " || exit 0
ip addr del "$2" dev "$1"
""",
    accepts=(r"[^/\s]{1,15}", r"[0-9a-f.:]+/[0-9]+"),
    by_hand="ip addr del {1} dev {0}",
    made="the interface {0} was given the address {1}",
)

KINDS = (DRIVER, VFS, GUEST, FOLDER, ADDRESS)
