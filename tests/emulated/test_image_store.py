"""The store of disk images, filled from files and from a server on loopback."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import lzma
import os
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hil import cli
from hil.emulated import image_store
from hil.errors import InventoryError, LabError

pytestmark = pytest.mark.usefixtures("cache_folder")

DISK = (
    bytes(510) + b"\x55\xaa" + b"EFI PART" + os.urandom(100_000) + bytes(5 << 20) + os.urandom(1000)
)
DISK += bytes(-len(DISK) % 512)


def summed(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def qcow2(*, backing: int = 0, incompatible: int = 0, size: int = 6 << 30) -> bytes:
    """The header of an image (QEMU, docs/interop/qcow2.txt), and a little more."""
    head = struct.pack(">4sIQIIQ", b"QFI\xfb", 3, backing, 0, 16, size)
    return head.ljust(72, b"\0") + struct.pack(">Q", incompatible) + bytes(2000)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "FreeBSD-14.3-RELEASE-amd64-BASIC-CI-ufs.raw"
    path.write_bytes(DISK)
    return path


def left() -> list[str]:
    folder = image_store._folder()
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


class TestWhatAFileIs:
    def test_raw(self, disk: Path) -> None:
        assert image_store.inspect(disk) == image_store.Disk(disk, "raw", len(DISK))

    def test_qcow2(self, tmp_path: Path) -> None:
        path = tmp_path / "x.qcow2"
        path.write_bytes(qcow2())
        assert image_store.inspect(path) == image_store.Disk(path, "qcow2", 6 << 30)

    @pytest.mark.parametrize("head", [qcow2(backing=104), qcow2(incompatible=4)])
    def test_a_part_of_an_image(self, tmp_path: Path, head: bytes) -> None:
        path = tmp_path / "x.qcow2"
        path.write_bytes(head)
        with pytest.raises(InventoryError, match="but a part") as error:
            image_store.inspect(path)
        assert "qemu-img convert" in error.value.hint

    @pytest.mark.parametrize(
        ("data", "message", "hint"),
        [
            (lzma.compress(DISK), "compressed by xz", "hil image add"),
            (b"\x28\xb5\x2f\xfd" + bytes(600), "compressed by Zstandard", "hil image add"),
            (b"KDMV" + bytes(600), "VMware", "raw or qcow2"),
            (b"<!DOCTYPE html>" + bytes(600), "a web server", "raw or qcow2"),
            (bytes(4096), "is no disk image", "raw or qcow2"),
            (DISK + b"x", "is no disk image", "raw or qcow2"),
            (b"", "is no disk image", "raw or qcow2"),
            (b"QFI\xfb", "is no disk image", "raw or qcow2"),
        ],
    )
    def test_no_disk_image(self, tmp_path: Path, data: bytes, message: str, hint: str) -> None:
        path = tmp_path / "x"
        path.write_bytes(data)
        with pytest.raises(InventoryError, match=message) as error:
            image_store.inspect(path)
        assert hint in error.value.hint

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(InventoryError, match="cannot be read: No such file"):
            image_store.inspect(tmp_path / "none")


class TestFromAFile:
    def test_as_it_is(self, disk: Path) -> None:
        image = image_store.add(str(disk), summed(DISK).upper())
        assert image.name == "FreeBSD-14.3-RELEASE-amd64-BASIC-CI-ufs"
        assert image.disk.path.read_bytes() == DISK
        assert image_store.images() == (image,)
        assert image_store.disk_of(image.name) == image.disk

    def test_zeros_take_no_room(self, disk: Path) -> None:
        image = image_store.add(str(disk), summed(DISK))
        assert image.disk.path.stat().st_blocks * 512 < 4 << 20 < len(DISK)

    def test_zeros_at_the_end_are_there(self, tmp_path: Path) -> None:
        data = DISK + bytes(3 << 20)
        (tmp_path / "disk.img").write_bytes(data)
        image = image_store.add(str(tmp_path / "disk.img"), summed(data))
        assert image.disk.path.read_bytes() == data

    def test_by_xz_also_in_several_streams(self, tmp_path: Path) -> None:
        packed = lzma.compress(DISK[:70_000]) + lzma.compress(DISK[70_000:])
        path = tmp_path / "disk.qcow2.xz"
        path.write_bytes(packed)
        image = image_store.add(str(path), summed(packed))
        assert (image.name, image.disk.path.read_bytes()) == ("disk", DISK)

    @pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed")
    def test_by_zstd(self, disk: Path, tmp_path: Path) -> None:
        path = tmp_path / "disk.raw.zst"
        subprocess.run(["zstd", "-q", str(disk), "-o", str(path)], check=True)
        image = image_store.add(str(path), summed(path.read_bytes()))
        assert image.disk.path.read_bytes() == DISK

    @pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed")
    def test_a_damaged_zstd(self, tmp_path: Path) -> None:
        data = b"\x28\xb5\x2f\xfd" + os.urandom(3 << 20)
        (tmp_path / "disk.zst").write_bytes(data)
        with pytest.raises(LabError, match="cannot be decompressed by zstd"):
            image_store.add(str(tmp_path / "disk.zst"), summed(data))
        assert left() == []

    @pytest.mark.parametrize("cut", [100, -10])
    def test_a_damaged_xz(self, tmp_path: Path, cut: int) -> None:
        packed = lzma.compress(DISK)[:cut]
        (tmp_path / "disk.xz").write_bytes(packed)
        with pytest.raises(LabError, match="cannot be decompressed by xz"):
            image_store.add(str(tmp_path / "disk.xz"), summed(packed))
        assert left() == []

    def test_a_wrong_sum(self, disk: Path) -> None:
        with pytest.raises(InventoryError, match="not what its sum says") as error:
            image_store.add(str(disk), "0" * 64)
        assert summed(DISK) in error.value.seen
        assert left() == []

    def test_what_follows_the_stream_is_summed_too(self, tmp_path: Path) -> None:
        packed = lzma.compress(DISK)
        (tmp_path / "disk.xz").write_bytes(packed + bytes(8))  # xz calls it padding
        with pytest.raises(InventoryError, match="not what its sum says"):
            image_store.add(str(tmp_path / "disk.xz"), summed(packed))

    def test_no_disk_image(self, tmp_path: Path) -> None:
        (tmp_path / "notes").write_bytes(b"hello")
        source = str(tmp_path / "notes")
        with pytest.raises(InventoryError, match=f"{source} is no disk image"):
            image_store.add(source, summed(b"hello"))
        assert left() == []

    def test_a_full_disk(self, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(image_store, "_write", full)
        with pytest.raises(LabError, match="is full") as error:
            image_store.add(str(disk), summed(DISK))
        assert "HIL_CACHE" in error.value.hint
        assert left() == []

    def test_interrupted(self, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(image_store, "_write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            image_store.add(str(disk), summed(DISK))
        assert left() == []

    @pytest.mark.parametrize("name", ["../x", ".x", "a/b", "x" * 65, "a b"])
    def test_a_bad_name(self, disk: Path, name: str) -> None:
        with pytest.raises(InventoryError, match="is no name"):
            image_store.add(str(disk), summed(DISK), name=name)

    def test_a_bad_sum(self, disk: Path) -> None:
        with pytest.raises(InventoryError, match="is no SHA-256 sum"):
            image_store.add(str(disk), "abc")

    def test_a_missing_file(self) -> None:
        with pytest.raises(InventoryError, match="cannot be read"):
            image_store.add("/nowhere/disk.img", "0" * 64)
        assert left() == []


class _Server(http.server.BaseHTTPRequestHandler):
    packed = lzma.compress(DISK)

    def do_GET(self) -> None:
        if self.path == "/missing.xz":
            self.send_error(404)
            return
        if self.path == "/moved.xz":
            self.send_response(302)
            self.send_header("Location", "/disk.qcow2.xz?mirror=1")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.packed)))
        self.end_headers()
        cut = len(self.packed) // 2 if self.path == "/cut.xz" else len(self.packed)
        self.wfile.write(self.packed[:cut])

    def log_message(self, *_: object) -> None:
        pass


class TestFromAServer:
    @pytest.fixture
    def url(self) -> Iterator[str]:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        server.server_close()

    @pytest.mark.parametrize("path", ["/disk.qcow2.xz", "/moved.xz"])
    def test_fetched(self, url: str, path: str) -> None:
        image = image_store.add(url + path, summed(_Server.packed))
        assert image.disk.path.read_bytes() == DISK
        assert image.name in ("disk", "moved")

    def test_missing(self, url: str) -> None:
        with pytest.raises(LabError, match="the server says 404"):
            image_store.add(f"{url}/missing.xz", "0" * 64)
        assert left() == []

    def test_broken_off(self, url: str) -> None:
        with pytest.raises(LabError, match="broke off after"):
            image_store.add(f"{url}/cut.xz", summed(_Server.packed))
        assert left() == []

    def test_nobody_there(self, url: str) -> None:
        port = http.server.HTTPServer(("127.0.0.1", 0), _Server)
        gone = f"http://127.0.0.1:{port.server_address[1]}/disk.xz"
        port.server_close()
        with pytest.raises(LabError, match="cannot be fetched") as error:
            image_store.add(gone, "0" * 64)
        assert "a file will do" in error.value.hint

    @pytest.mark.parametrize("source", ["ftp://x/disk.xz", "file:///etc/passwd"])
    def test_other_schemes(self, source: str) -> None:
        with pytest.raises(InventoryError, match="cannot be fetched"):
            image_store.add(source, "0" * 64)


class TestTheStore:
    def test_a_name_is_taken_once(self, disk: Path) -> None:
        image_store.add(str(disk), summed(DISK), name="a")
        with pytest.raises(InventoryError, match="there is an image 'a' already"):
            image_store.add(str(disk), summed(DISK), name="a")
        assert [image.name for image in image_store.images()] == ["a"]

    def test_removed(self, disk: Path) -> None:
        image_store.add(str(disk), summed(DISK), name="a")
        image_store.remove("a")
        assert left() == []
        with pytest.raises(InventoryError, match="there is no image 'a'"):
            image_store.remove("a")

    def test_an_unknown_name_tells_the_known(self, disk: Path) -> None:
        image_store.add(str(disk), summed(DISK), name="a")
        with pytest.raises(InventoryError, match="there is no image 'b'; there are: a"):
            image_store.disk_of("b")

    def test_what_a_killed_process_left_goes(self, disk: Path) -> None:
        image_store.add(str(disk), summed(DISK), name="a")
        old, new = (image_store._folder() / f".new-{word}" for word in ("old", "now"))
        for place in (old, new):
            place.mkdir()
            (place / "disk").touch()
        for path in (old / "disk", old):
            os.utime(path, (0, time.time() - 4000))
        image_store.add(str(disk), summed(DISK), name="b")
        assert left() == [".new-now", "a", "b"]

    def test_of_another_version(self, disk: Path) -> None:
        image_store.add(str(disk), summed(DISK), name="a")
        about = image_store._folder() / "a" / "about.json"
        for text in ("", "[]", "{}", json.dumps({"disk": {"shape": "round"}})):
            about.write_text(text)
            assert image_store.images() == ()


class TestTheCommand:
    def test_add_list_remove(self, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["image", "add", str(disk), "--sha256", summed(DISK), "--name", "mine"]
        assert cli.main(words) == 0
        assert "hil lab up --host-image mine" in capsys.readouterr().out
        assert cli.main(["image", "list"]) == 0
        assert "mine: raw, 0.0 GiB, from " in capsys.readouterr().out
        assert cli.main(["image", "list", "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert (row["name"], row["sha256"]) == ("mine", summed(DISK))
        assert cli.main(["image", "remove", "mine"]) == 0
        assert cli.main(["image", "list"]) == 0
        assert "no images" in capsys.readouterr().out

    def test_a_wrong_sum(self, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code = cli.main(["image", "add", str(disk), "--sha256", "0" * 64])
        assert code == InventoryError.exit_code
        assert "not what its sum says" in capsys.readouterr().err

    def test_without_a_sum(self, disk: Path) -> None:
        assert cli.main(["image", "add", str(disk)]) == 2
