"""Images made of packages of the tests' own: a kernel, a busybox and two modules."""

from __future__ import annotations

import dataclasses
import io
import lzma
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hil.emulated import debian, images
from hil.errors import LabError
from tests.emulated.test_formats import bzimage, elf, module, read_cpio

Fake = Callable[[str, str], None]
TOOLS = ("sqfstar", "unsquashfs", "depmod")
pytestmark = pytest.mark.skipif(
    any(shutil.which(tool, path="/usr/bin:/usr/sbin:/sbin") is None for tool in TOOLS),
    reason=f"one of {', '.join(TOOLS)} is not installed",
)
RECIPE = images.Recipe("small", ("busybox-static",), ("igb",), ("igb",))
PYTHON = f"usr/lib/python{sys.version_info.major}.{sys.version_info.minor}"
MODULES = "./lib/modules/6.1.0-1/"


def packages(path: Path, version: str = "1.35") -> None:
    ring = lzma.compress(module(b"license=GPL\0name=virtio_ring\0"))
    files = {
        "./hil-packages": f"busybox-static_{version}_amd64.deb\n".encode(),
        "./boot/vmlinuz-6.1.0-1": bzimage(lzma.compress(elf(b"kernel"))),
        "./bin/busybox": b"a static program",
        "./usr/bin/real": b"a program",
        "./usr/sbin/less": b"better than busybox's",
        "./usr/share/doc/busybox/copyright": b"words",
        f"{MODULES}kernel/igb.ko": module(b"depends=\0name=igb\0"),
        f"{MODULES}kernel/virtio_blk.ko": module(b"depends=virtio_ring\0name=virtio_blk\0"),
        f"{MODULES}kernel/virtio_ring.ko.xz": ring,
        f"{MODULES}kernel/unwanted.ko": module(b"name=unwanted\0"),
        f"{MODULES}modules.builtin": b"",
        f"{MODULES}modules.builtin.modinfo": b"",
        f"{MODULES}modules.order": b"",
        f"./{PYTHON}/module.py": b"def answer(): return 42\n",
        f"./{PYTHON}/folder/test/wrong.py": b"def",
        f"./{PYTHON}/wrong.py": b"def",
        "./usr/lib/python2.7/old.py": b"print 42\n",
    }
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime, info.uid = len(data), 0o755, 12345, 1000
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("./bin/alias")
        link.type, link.linkname = tarfile.SYMTYPE, "real"
        tar.addfile(link)


@pytest.fixture
def mirror(fake: Fake, tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-in for mmdebstrap takes packages from, and notes that it ran."""
    monkeypatch.setattr(debian, "sources", lambda: debian.Sources("bookworm"))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(images, "SPACE_NEEDED", 0)
    packages(tmp_path / "packages.tar")
    # The archive is the last argument.
    script = f'echo x >>{tmp_path}/ran; while [ $# -gt 1 ]; do shift; done; cp "$S" "$1"'
    fake("mmdebstrap", f"S={tmp_path}/packages.tar\n{script}")
    return tmp_path / "packages.tar"


def contents(squashfs: Path, into: Path) -> Path:
    command = ["unsquashfs", "-quiet", "-no-progress", "-dest", str(into), str(squashfs)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return into


def test_an_image(mirror: Path, tmp_path: Path) -> None:
    image = images.build(RECIPE)
    assert image.packages == {"busybox-static": "1.35"}
    assert image.kernel.read_bytes().endswith(b"kernel")
    initrd = {name: data for name, _, data in read_cpio(image.initrd.read_bytes())}
    assert initrd["order"] == b"/modules/virtio_ring.ko\n/modules/virtio_blk.ko\n"
    assert initrd["modules/virtio_ring.ko"].startswith(b"\x7fELF"), "unpacked"
    assert initrd["bin/busybox"] == b"a static program"
    root = contents(image.root, tmp_path / "root")
    assert (root / "bin").readlink() == Path("usr/bin")
    assert (root / "usr/bin/real").read_bytes() == b"a program"
    assert (root / "usr/bin/alias").readlink() == Path("real")
    assert (root / "usr/bin/vi").readlink() == Path("busybox")
    assert not (root / "usr/bin/less").exists(), "a package has a better one"
    assert not (root / "usr/share/doc").exists()
    modules = {path.name for path in (root / "usr/lib/modules/6.1.0-1").rglob("*.ko*")}
    assert modules == {"igb.ko", "virtio_blk.ko", "virtio_ring.ko"}
    assert "kernel/igb.ko:" in (root / "usr/lib/modules/6.1.0-1/modules.dep").read_text()
    assert (root / "etc/hil/modules").read_text() == "igb\n"
    assert not list((root / "etc/ssh").glob("*key*")), "keys are given, not baked in"
    assert not (root / "etc/machine-id").exists()


def test_pythons_library_is_compiled(mirror: Path, tmp_path: Path) -> None:
    root = contents(images.build(RECIPE).root, tmp_path / "root")
    compiled = [str(path.relative_to(root)) for path in root.rglob("*.pyc")]
    assert compiled == [f"{PYTHON}/__pycache__/module.{sys.implementation.cache_tag}.pyc"]
    # The source says otherwise now, and is not looked at any more.
    (root / PYTHON / "module.py").write_text("def answer(): return 0")
    command = [sys.executable, "-S", "-c", "import module; print(module.answer())"]
    done = subprocess.run(
        command, cwd=root / PYTHON, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(root / PYTHON)},
    )  # fmt: skip
    assert done.stdout == "42\n"


def test_made_once(mirror: Path, tmp_path: Path) -> None:
    assert images.build(RECIPE) == images.build(RECIPE)
    assert (tmp_path / "ran").read_text() == "x\n"


def test_the_same_packages_give_the_same_bytes(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = images.build(RECIPE)
    monkeypatch.setenv("HIL_CACHE", str(tmp_path / "another"))
    second = images.build(RECIPE)
    assert first.root != second.root
    assert first.key == second.key
    for one, other in ((first.root, second.root), (first.initrd, second.initrd)):
        assert one.read_bytes() == other.read_bytes()


def test_the_key_covers_what_went_in(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {images.build(RECIPE).key}
    keys.add(images.build(dataclasses.replace(RECIPE, load=())).key)
    packages(mirror, "1.36")
    monkeypatch.setenv("HIL_CACHE", str(tmp_path / "another"))
    keys.add(images.build(RECIPE).key)
    assert len(keys) == 3


def test_a_bundle_holds_each_image_below_its_name(mirror: Path, tmp_path: Path) -> None:
    image = images.build(RECIPE)
    root = contents(images.bundle([image]), tmp_path / "bundle")
    for name in ("kernel", "initrd", "root.squashfs"):
        assert (root / "small" / name).read_bytes() == (image.root.parent / name).read_bytes()


def left(cache: Path) -> list[str]:
    return [path.name for path in (cache / "images").iterdir() if path.suffix != ".lock"]


def test_packages_without_a_kernel(mirror: Path, cache_folder: Path) -> None:
    with tarfile.open(mirror, "w") as tar:
        info = tarfile.TarInfo("./hil-packages")
        tar.addfile(info, io.BytesIO())
    with pytest.raises(LabError, match="no boot/vmlinuz"):
        images.build(RECIPE)
    assert left(cache_folder) == []


def test_a_squashfs_that_cannot_be_written(mirror: Path, cache_folder: Path, fake: Fake) -> None:
    fake("sqfstar", "echo 'FATAL ERROR: No space left on device' >&2; exit 1")
    with pytest.raises(LabError, match="writing a squashfs failed") as error:
        images.build(RECIPE)
    assert "No space left" in error.value.seen
    assert left(cache_folder) == []


def test_a_tool_that_is_missing(
    mirror: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(LabError, match="sqfstar is not installed") as error:
        images.build(RECIPE)
    assert error.value.hint == "apt-get install squashfs-tools"
    assert left(cache_folder) == []


def test_too_little_disk(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "SPACE_NEEDED", 1 << 60)
    with pytest.raises(LabError, match="GiB are needed"):
        images.build(RECIPE)
    assert not (tmp_path / "ran").exists()
