#!/bin/sh -e
# hil bisect --check: loads the module that is on the host's NVMe after the power cycle, and
# fails if it was not built from the commit that is to be tested.
# $1: the lab, as hil lab up named it.
hil lab ssh --name "$1" -- '
    cd "/lib/modules/$(uname -r)" && mkdir -p updates && tar -x -f /dev/nvme0n1 -C updates &&
    depmod && modprobe hil_quirk && cat /sys/module/hil_quirk/version
' | grep -x "$HIL_COMMIT"
