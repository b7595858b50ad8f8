"""Debian images for the emulated lab, made from packages and kept in the cache.

Two recipes: :data:`HOST`, the lab host's system (sshd, QEMU, VFIO), and :data:`GUEST`, a
small one for the guests inside it.  An image is three files: an uncompressed kernel (an
ELF with a PVH note, which QEMU starts without a boot loader: decompression takes seconds
under emulation), an initrd of a few modules and a busybox, and a read-only squashfs that
a tmpfs is laid over, so that all that is writable lives in the machine's memory.

In the cache::

    images/NAME-KEY/   kernel initrd root.squashfs image.json; KEY: what was asked for
    bundles/KEY/       images.squashfs: guest images, as the lab host sees them

``Image.key`` covers all that went in: the recipe, the scripts, this code's format, the
mirrors, the Python that compiled the library of the image's, and the versions of the packages
that came of it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import lzma
import marshal
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hil.deadline import Deadline
from hil.emulated import cache, debian
from hil.emulated.formats import Cpio, decompress_zstd, kernel_elf, module_info
from hil.errors import LabError

Progress = Callable[[str], None]

#: Disk that making one image takes while it runs, bytes (measured: 1.1 GB).
SPACE_NEEDED = 2 << 30
#: Seconds in which an image is made, at most: a slow mirror counts.
BUILD_LIMIT = 900.0
#: Time stamp of every file in an image, seconds since the epoch.
EPOCH = 1_735_689_600
#: Raise it whenever the code here makes another image of the same recipe.
FORMAT = 4

_SCRIPTS = Path(__file__).parent / "rootfs"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an image is made from."""

    name: str
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    """Kernel modules by name; those they depend on come along."""
    load: tuple[str, ...]
    """Modules to load at every boot although no bus names them."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image in the cache."""

    name: str
    kernel: Path
    initrd: Path
    root: Path
    key: str
    """Hash of everything that went into it, hexadecimal."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Version of each package, by name."""


_BASE_PACKAGES = (
    "base-files", "bash", "busybox-static", "coreutils", "dash", "debianutils", "diffutils",
    "ethtool", "findutils", "grep", "gzip", "iproute2", "iputils-ping", "kmod", "libc-bin",
    "libpython3-stdlib", "linux-image-amd64", "nvme-cli", "openssh-server", "pci.ids", "pciutils",
    "procps", "python3-minimal", "sed", "tar", "util-linux",
)  # fmt: skip
_BASE_MODULES = (
    "8021q", "bochs", "e1000e", "i6300esb", "iTCO_wdt", "igb", "igbvf", "loop", "msr", "nvme",
    "overlay", "pvpanic-pci", "qemu_fw_cfg", "squashfs", "uio_pci_generic", "vfio-pci",
    "vfio_iommu_type1", "virtio-gpu",
    "virtio-rng", "virtio_balloon", "virtio_blk", "virtio_console", "virtio_net", "virtio_pci",
)  # fmt: skip
_INITRD_MODULES = ("virtio_pci", "virtio_blk", "squashfs", "overlay")

HOST = Recipe(
    name="host",
    packages=(*_BASE_PACKAGES, "qemu-system-x86", "socat", "tcpdump"),
    modules=(
        *_BASE_MODULES,
        "bridge",
        "kvm-amd",
        "kvm-intel",
        "tun",
        "vhost_net",
    ),
    load=(
        "qemu_fw_cfg",
        "nvme",
        "igbvf",
        "kvm-amd",
        "kvm-intel",
        "tun",
        "vfio-pci",
        "vfio_iommu_type1",
    ),
)
GUEST = Recipe(
    name="guest",
    packages=_BASE_PACKAGES,
    modules=_BASE_MODULES,
    load=("qemu_fw_cfg",),
)


def build(recipe: Recipe, progress: Progress = lambda _: None) -> Image:
    """The image of ``recipe``: from the cache, or made now.

    Raises:
        LabError: a tool is missing, the mirror cannot be reached, the disk is full, a
            step failed; nothing half-made stays.
    """
    origin = debian.sources()
    request = _request(recipe, origin)
    deadline = Deadline(BUILD_LIMIT, f"the image {recipe.name}")

    def make(place: Path) -> None:
        for tool, package in (("sqfstar", "squashfs-tools"), ("depmod", "kmod")):
            _tool(tool, package)
        progress(f"unpacking Debian packages for the image {recipe.name} (once, about 20 s)")
        archive = place / "packages.tar"
        packages = debian.unpack(origin, recipe.packages, archive, deadline)
        progress(f"composing the image {recipe.name}")
        with tarfile.open(archive) as tar:
            _Composer(recipe, tar, place).run()
        archive.unlink()
        key = _hash(request, *(f"{name} {packages[name]}" for name in sorted(packages)))
        (place / "image.json").write_text(json.dumps({"key": key, "packages": packages}, indent=1))

    path = cache.entry(
        f"images/{recipe.name}-{request[:16]}",
        make,
        deadline=deadline,
        progress=progress,
        space=SPACE_NEEDED,
    )
    made = json.loads((path / "image.json").read_text())
    return Image(
        recipe.name,
        path / "kernel",
        path / "initrd",
        path / "root.squashfs",
        made["key"],
        made["packages"],
    )


def bundle(images: Sequence[Image], progress: Progress = lambda _: None) -> Path:
    """A disk image for a lab host: ``/NAME/{kernel,initrd,root.squashfs}`` of each image."""
    key = _hash(*(f"{image.name} {image.key}" for image in images))

    def make(place: Path) -> None:
        out = place / "images.squashfs"
        with _squashfs(out) as tar:
            for image in images:
                _add_folder(tar, image.name, 0o755)
                for path in (image.kernel, image.initrd, image.root):
                    info = _info(f"{image.name}/{path.name}", 0o644)
                    info.size = path.stat().st_size
                    with path.open("rb") as file:
                        tar.addfile(info, file)

    size = sum(p.stat().st_size for i in images for p in (i.kernel, i.initrd, i.root))
    deadline = Deadline(BUILD_LIMIT, "the bundle of guest images")
    path = cache.entry(
        f"bundles/{key[:16]}", make, deadline=deadline, progress=progress, space=2 * size
    )
    return path / "images.squashfs"


def _request(recipe: Recipe, origin: debian.Sources) -> str:
    scripts = (path.read_text() for path in sorted(_SCRIPTS.iterdir()) if path.is_file())
    return _hash(str(FORMAT), repr(recipe), repr(origin), str(_CACHE_TAG), *scripts)


def _hash(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()


def _tool(name: str, package: str) -> str:
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise LabError(f"{name} is not installed", hint=f"apt-get install {package}")
    return path


# ---- from packages to an image -----------------------------------------------------

# What no test needs, by path prefix: half of what the packages hold.
_DROPPED = (
    "boot/", "etc/apt/", "etc/machine-id", "hil-packages", "usr/bin/perl",
    "usr/bin/qemu-system-i386", "usr/bin/qemu-system-x86_64-microvm", "usr/lib/klibc",
    "usr/lib/systemd", "usr/lib/udev", "usr/lib/x86_64-linux-gnu/perl", "usr/share/alsa",
    "usr/share/bash-completion", "usr/share/common-licenses", "usr/share/debconf",
    "usr/share/doc", "usr/share/info", "usr/share/initramfs-tools", "usr/share/lintian",
    "usr/share/locale", "usr/share/man", "usr/share/perl", "usr/share/qemu/edk2",
    "usr/share/qemu/hppa", "usr/share/qemu/openbios", "usr/share/qemu/opensbi",
    "usr/share/qemu/palcode", "usr/share/qemu/skiboot", "usr/share/qemu/u-boot",
    "usr/share/zoneinfo", "var/cache/", "var/lib/apt/", "var/log/",
)  # fmt: skip
#: Folders that are links into /usr (UsrMerge); some packages still use the old places.
_MERGED = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
_MODULE = re.compile(r"usr/lib/modules/([^/]+)/(.*/)?([^/]+)\.ko(\.xz|\.zst)?")
_CACHE_TAG = sys.implementation.cache_tag
#: Modules whose byte code can be made here: of this Python's own version.
_COMPILED = re.compile(
    rf"usr/lib/python{sys.version_info.major}\.{sys.version_info.minor}/(?!.*test/).*\.py"
)
#: A header's flag: valid for as long as it is there (PEP 552).
_UNCHECKED_HASH = 1
#: Programs from busybox, unless a package has a better one.
_APPLETS = (
    "awk", "bc", "clear", "cpio", "devmem", "getty", "halt", "hexdump", "init", "killall",
    "less", "login", "losetup", "mount", "nc", "pidof", "poweroff", "reboot", "reset", "strings",
    "su", "time", "umount", "unzip", "usleep", "vi", "wget", "which", "xxd",
)  # fmt: skip
_IN_SBIN = {"getty", "halt", "init", "losetup", "poweroff", "reboot"}
_FOLDERS = ("dev", "etc/hil", "etc/ssh", "images", "mnt", "proc", "root", "run", "sys", "tmp")
_MODES = {"root": 0o700, "tmp": 0o1777}

_FILES: Mapping[str, tuple[int, str]] = {
    "etc/passwd": (
        0o644,
        (
            "root:x:0:0:root:/root:/bin/sh\n"
            "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
            "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
        ),
    ),
    "etc/group": (0o644, "root:x:0:\ntty:x:5:\nkvm:x:101:\nnogroup:x:65534:\n"),
    # No password on the console, which only the lab's owner reaches; by SSH, keys only.
    "etc/shadow": (0o600, "root::20000:0:99999:7:::\nsshd:*:20000::::::\nnobody:*:20000::::::\n"),
    "etc/resolv.conf": (0o644, "nameserver 10.0.2.3\n"),
    "etc/nsswitch.conf": (0o644, "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"),
    "etc/profile": (
        0o644,
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin\nexport PATH\n",
    ),
}


class _Composer:
    def __init__(self, recipe: Recipe, tar: tarfile.TarFile, out: Path) -> None:
        self._recipe = recipe
        self._tar = tar
        self._out = out
        self._members = {_merged(member.name): member for member in tar}
        self._version = self._kernel().removeprefix("boot/vmlinuz-")

    def run(self) -> None:
        (self._out / "kernel").write_bytes(kernel_elf(self._read(self._kernel())))
        needed = self._modules(_INITRD_MODULES)
        (self._out / "initrd").write_bytes(self._initrd(needed))
        modules = self._modules((*_INITRD_MODULES, *self._recipe.modules, *self._recipe.load))
        files = {
            path: (mode, text.encode()) for path, (mode, text) in _FILES.items()
        } | self._scripts()
        files |= self._module_files(modules)
        files |= self._byte_code()
        self._root(files)

    def _kernel(self) -> str:
        for path in self._members:
            if path.startswith("boot/vmlinuz-"):
                return path
        raise LabError("the kernel package holds no boot/vmlinuz")

    def _read(self, path: str) -> bytes:
        member = self._members[path]
        while member.issym():
            path = _merged(posixpath.join(posixpath.dirname(path), member.linkname))
            member = self._members[path]
        file = self._tar.extractfile(member)
        if file is None:
            raise LabError(f"{path} of the packages is no file")
        return file.read()

    def _modules(self, wanted: Sequence[str]) -> dict[str, bytes]:
        """Path to contents of modules, each after those that it depends on."""
        places = {}
        for path in self._members:
            if match := _MODULE.fullmatch(path):
                places[match[3].replace("-", "_")] = path
        found: dict[str, bytes] = {}

        def add(name: str) -> None:
            # Built in, or not in this release: boot goes on without.
            place = places.get(name.replace("-", "_"))
            if place is None or place in found:
                return
            data = self._read(place)
            if place.endswith(".xz"):
                data = lzma.decompress(data)
            elif place.endswith(".zst"):
                data = decompress_zstd(data)
            info = module_info(data)
            for need in info.get("depends", "").split(","):
                add(need)
            found[place] = data

        for name in wanted:
            add(name)
        return found

    def _initrd(self, modules: Mapping[str, bytes]) -> bytes:
        archive = Cpio()
        for folder in ("bin", "dev", "lower", "modules", "proc", "root", "sys", "upper"):
            archive.directory(folder)
        archive.device("dev/console", 5, 1)
        archive.file("bin/busybox", self._read("usr/bin/busybox"), 0o755)
        for applet in (
            "grep",
            "insmod",
            "mkdir",
            "mount",
            "poweroff",
            "sh",
            "switch_root",
            "usleep",
        ):
            archive.link(f"bin/{applet}", "busybox")
        archive.file("init", (_SCRIPTS / "initrd-init").read_bytes(), 0o755)
        order = []
        for path, data in modules.items():
            name = _plain_name(path)
            archive.file(f"modules/{name}", data)
            order.append(f"/modules/{name}\n")
        archive.file("order", "".join(order).encode())
        return archive.finish()

    def _scripts(self) -> dict[str, tuple[int, bytes]]:
        name = self._recipe.name
        return {
            "etc/hil/start": (0o755, (_SCRIPTS / "start").read_bytes()),
            "etc/hil/modules": (0o644, "\n".join((*self._recipe.load, "")).encode()),
            "etc/inittab": (0o644, (_SCRIPTS / "inittab").read_bytes()),
            "etc/ssh/sshd_config": (0o644, (_SCRIPTS / "sshd_config").read_bytes()),
            "etc/hostname": (0o644, f"{name}\n".encode()),
            "etc/hosts": (0o644, f"127.0.0.1 localhost {name}\n".encode()),
        }

    def _module_files(self, modules: Mapping[str, bytes]) -> dict[str, tuple[int, bytes]]:
        """The modules with the indexes that modprobe wants."""
        with tempfile.TemporaryDirectory(dir=self._out) as top:
            base = Path(top, "lib/modules", self._version)
            for path, data in modules.items():
                inside = path.split(f"/{self._version}/", 1)[1]
                place = base / posixpath.dirname(inside) / _plain_name(path)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
            for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
                (base / name).write_bytes(self._read(f"usr/lib/modules/{self._version}/{name}"))
            _run([_tool("depmod", "kmod"), "-b", top, self._version], "indexing kernel modules")
            return {
                f"usr/lib/modules/{self._version}/{path.relative_to(base)}": (
                    0o644,
                    path.read_bytes(),
                )
                for path in sorted(base.rglob("*"))
                if path.is_file()
            }

    def _byte_code(self) -> dict[str, tuple[int, bytes]]:
        """The image's Python library compiled, if the Python that runs this is of its version.

        The packages' own scripts would compile it, but do not run; a guest that does takes four
        seconds for the imports of one probe.
        """
        files = {}
        for path in self._members:
            if not _COMPILED.fullmatch(path) or not self._members[path].isreg():
                continue
            source = self._read(path)
            folder, name = posixpath.split(path)
            try:
                code = compile(source, f"/{path}", "exec", dont_inherit=True)
            except (SyntaxError, ValueError):
                continue
            files[f"{folder}/__pycache__/{name.removesuffix('.py')}.{_CACHE_TAG}.pyc"] = (
                0o644,
                importlib.util.MAGIC_NUMBER
                + _UNCHECKED_HASH.to_bytes(4, "little")
                + importlib.util.source_hash(source)
                + marshal.dumps(code),
            )
        return files

    def _links(self) -> dict[str, str]:
        links = {
            folder: f"usr/{folder}"
            for folder in _MERGED
            if any(path.startswith(f"usr/{folder}/") for path in self._members)
        }
        for applet in _APPLETS:
            packaged = any(f"usr/{folder}/{applet}" in self._members for folder in ("bin", "sbin"))
            # util-linux's getty would start a login that asks PAM.
            if packaged and applet != "getty":
                continue
            if applet in _IN_SBIN:
                links[f"usr/sbin/{applet}"] = "../bin/busybox"
            else:
                links[f"usr/bin/{applet}"] = "busybox"
        if "usr/bin/sh" not in self._members:
            links["usr/bin/sh"] = "dash"
        return links

    def _root(self, files: Mapping[str, tuple[int, bytes]]) -> None:
        links = self._links()
        kept = {
            path: member
            for path, member in self._members.items()
            if (member.isreg() or member.issym() or member.islnk())
            and not path.startswith(_DROPPED)
            and not path.startswith("usr/lib/modules/")
            and path not in files
            and path not in links
        }
        folders = {
            folder
            for path in (*_FOLDERS, *(f"{path}/x" for path in _FOLDERS), *kept, *files, *links)
            for folder in _parents(path)
        }
        with _squashfs(self._out / "root.squashfs") as tar:
            for path in sorted({*folders, *kept, *files, *links}):
                if path in files:
                    mode, data = files[path]
                    info = _info(path, mode)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                elif path in links:
                    _add_link(tar, path, links[path])
                elif path in folders:
                    _add_folder(tar, path, _MODES.get(path, 0o755))
                elif kept[path].issym():
                    _add_link(tar, path, kept[path].linkname)
                else:
                    # A hard link becomes a file of its own; squashfs keeps one copy.
                    info = _info(path, kept[path].mode & 0o777)
                    data = self._read(path)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def _merged(path: str) -> str:
    """The place of a package's file in a system whose /bin is /usr/bin."""
    path = posixpath.normpath(path).lstrip("/")
    first, _, rest = path.partition("/")
    return f"usr/{path}" if first in _MERGED and rest else path


def _plain_name(module: str) -> str:
    return posixpath.basename(module).removesuffix(".xz").removesuffix(".zst")


def _parents(path: str) -> Iterator[str]:
    while path := posixpath.dirname(path):
        yield path


def _info(path: str, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.mode = mode
    info.mtime = EPOCH
    return info


def _add_folder(tar: tarfile.TarFile, path: str, mode: int) -> None:
    info = _info(path, mode)
    info.type = tarfile.DIRTYPE
    tar.addfile(info)


def _add_link(tar: tarfile.TarFile, path: str, target: str) -> None:
    info = _info(path, 0o777)
    info.type = tarfile.SYMTYPE
    info.linkname = target
    tar.addfile(info)


class _squashfs:  # noqa: N801 - used as a function
    """A tar archive to write, which becomes the uncompressed squashfs ``out``.

    Uncompressed: the disk is the machine's page cache, and unpacking costs emulated time.
    """

    def __init__(self, out: Path) -> None:
        options = ["-noI", "-noD", "-noF", "-noX", "-no-xattrs", "-all-root"]
        options += ["-mkfs-time", str(EPOCH), "-all-time", str(EPOCH), "-root-mode", "0755"]
        options += ["-quiet", "-no-progress"]
        self._command = [_tool("sqfstar", "squashfs-tools"), *options, str(out)]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=self._said, stderr=self._said
        )
        assert self._process.stdin is not None
        self._tar = tarfile.open(  # noqa: SIM115 - closed in __exit__
            fileobj=self._process.stdin, mode="w|", format=tarfile.GNU_FORMAT
        )

    def __enter__(self) -> tarfile.TarFile:
        return self._tar

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._process.stdin is not None
        with self._said:
            if kind is not None and not issubclass(kind, BrokenPipeError):
                self._process.kill()
                self._process.stdin.close()
                self._process.wait()
                return
            try:
                self._tar.close()
                self._process.stdin.close()
            except BrokenPipeError:
                pass
            if self._process.wait() != 0:
                self._said.seek(0)
                raise LabError(
                    "writing a squashfs failed",
                    seen=self._said.read(4000).decode("utf-8", "replace"),
                    command=self._command,
                ) from None


def _run(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        raise LabError(
            f"{what} failed", seen=done.stderr.decode("utf-8", "replace"), command=command
        )
