from __future__ import annotations

import pytest

from hil.emulated.qtest import QTest
from hil.errors import InventoryError, LabError
from hil.pci.address import Address


def test_memory_and_registers() -> None:
    with QTest(["edu,addr=2"], memory=16 << 20) as machine:
        machine.write(0x1000, bytes(range(256)))
        assert machine.read(0x1080, 4) == b"\x80\x81\x82\x83"
        assert machine.load(0x1004, 4) == 0x07060504
        machine.store(0x1004, 8, 0x1122334455667788)
        assert machine.read(0x1004, 8).hex() == "8877665544332211"
        machine.fill(0x1000, 8, 0xAA)
        assert machine.read(0x0FFF, 3) == b"\x00\xaa\xaa"
        base = machine.map_bar(Address.parse("00:02.0"))
        machine.enable(Address.parse("00:02.0"))
        assert machine.load(base, 4) == 0x010000ED


def test_the_process_is_gone_after_an_error_in_the_block() -> None:
    machine = QTest(memory=1 << 20)
    with pytest.raises(RuntimeError, match="in the block"), machine:
        raise RuntimeError("in the block")
    assert machine._process.returncode is not None
    assert machine._stderr.closed
    machine.close()


def test_an_unknown_device_is_told_with_qemu_s_words() -> None:
    with pytest.raises(LabError) as caught:
        QTest(["no-such-device"])
    assert "no-such-device" in caught.value.seen


def test_a_machine_that_died_is_told() -> None:
    with QTest(memory=1 << 20) as machine:
        machine._process.kill()
        machine._process.wait()
        with pytest.raises(LabError, match="QEMU ended"):
            machine.load(0, 4)


def test_a_refused_command_is_told() -> None:
    with QTest(memory=1 << 20) as machine:
        with pytest.raises(LabError, match="refused"):
            machine.command("no_such_command")
        assert machine.load(0, 4) == 0


def test_a_missing_program_and_silly_sizes() -> None:
    with pytest.raises(LabError, match="not installed"):
        QTest(binary="no-such-qemu")
    with pytest.raises(InventoryError, match="bytes of memory"):
        QTest(memory=1)


def test_what_is_not_there_is_refused() -> None:
    with QTest(["edu,addr=2"], memory=1 << 20) as machine:
        edu = Address.parse("00:02.0")
        with pytest.raises(LabError, match="no memory BAR 3"):
            machine.map_bar(edu, 3)
        with pytest.raises(InventoryError, match="no register"):
            machine.config_load(edu, 4096, 4)
        with pytest.raises(InventoryError, match="no register"):
            machine.config(Address.parse("0001:00:02.0"))
