from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hil.deadline import Deadline
from hil.emulated import debian
from hil.errors import DeadlineExceeded, LabError

Fake = Callable[[str, str], None]
ORIGIN = debian.Sources("bookworm", ("deb http://mirror.example/debian bookworm main",))


def limit(seconds: float = 20) -> Deadline:
    return Deadline(seconds, "the image")


@pytest.fixture(autouse=True)
def _as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)


@pytest.mark.usefixtures("cache_folder")
class TestSources:
    TARGETS = "\n".join(
        [
            "Debian|http://m.example/debian/|bookworm|bookworm|main|",
            "Debian|http://m.example/debian/|bookworm|bookworm|contrib|",
            "Debian|http://m.example/security/|bookworm-security|bookworm-security|main|/k.gpg",
            "Node|http://n.example/|nodistro|nodistro|main|",
            "Debian|http://m.example/debian/|sid|sid|main|",
        ]
    )

    @pytest.fixture(autouse=True)
    def _bookworm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(debian, "_codename", lambda: "bookworm")

    def test_the_machines_own_and_backports(self, fake: Fake) -> None:
        fake("apt-get", f"cat <<'E'\n{self.TARGETS}\nE")
        fake("apt-config", "echo 'Acquire::http::Proxy \"http://p.example\";'; echo 'Dir \"/\";'")
        assert debian.sources() == debian.Sources(
            "bookworm",
            (
                "deb http://m.example/debian/ bookworm main",
                "deb [signed-by=/k.gpg] http://m.example/security/ bookworm-security main",
                "deb http://m.example/debian/ bookworm-backports main",
            ),
            ('Acquire::Languages "none";', 'Acquire::http::Proxy "http://p.example";'),
        )

    def test_asked_once(self, fake: Fake, tmp_path: Path) -> None:
        fake("apt-get", f"echo x >> {tmp_path}/asked; cat <<'E'\n{self.TARGETS}\nE")
        assert debian.sources() == debian.sources()
        assert (tmp_path / "asked").read_text() == "x\n"

    def test_a_machine_that_is_not_debian(self, fake: Fake) -> None:
        fake("apt-get", "echo 'Ubuntu|http://u.example/|noble|noble|main|'")
        found = debian.sources()
        assert (found.release, found.lines) == (debian.FALLBACK, ())

    def test_a_machine_without_apt(self, fake: Fake) -> None:
        fake("apt-get", "exit 100")
        assert debian.sources().lines == ()


def archive(path: Path, listing: str) -> None:
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("./hil-packages")
        info.size = len(listing)
        tar.addfile(info, io.BytesIO(listing.encode()))


def test_versions_of_what_came(fake: Fake, tmp_path: Path) -> None:
    archive(tmp_path / "ready", "kmod_30+20221128-1_amd64.deb\nqemu_1%3a10.0_all.deb\npartial\n")
    # The archive is the argument before the last, which is "-": sources come on stdin.
    fake(
        "mmdebstrap",
        f'cat > {tmp_path}/stdin; while [ $# -gt 2 ]; do shift; done; cp {tmp_path}/ready "$1"',
    )
    versions = debian.unpack(ORIGIN, ["kmod", "qemu"], tmp_path / "out.tar", limit())
    assert versions == {"kmod": "30+20221128-1", "qemu": "1:10.0"}
    assert (tmp_path / "stdin").read_text() == "deb http://mirror.example/debian bookworm main\n"


@pytest.mark.parametrize(
    ("said", "words", "hint"),
    [
        ("E: Could not resolve 'mirror.example'", "mirror cannot be reached", "network"),
        ("tar: write error: No space left on device", "disk is full", "HIL_CACHE"),
        ("NO_PUBKEY 0E98404D386FA1D9", "signature", "debian-archive-keyring"),
        ("E: Unable to locate package nonesuch", "missing on the mirror", "apt-get update"),
        ("E: newuidmap: write to uid_map failed", "user namespace", "add-subuids"),
        ("something never seen", "mmdebstrap failed", "by hand"),
    ],
)
def test_why_it_failed(said: str, words: str, hint: str, fake: Fake, tmp_path: Path) -> None:
    fake("mmdebstrap", f'echo "I: downloading packages with apt..." >&2; echo "{said}" >&2; exit 1')
    with pytest.raises(LabError, match=words) as error:
        debian.unpack(ORIGIN, ["kmod"], tmp_path / "out.tar", limit())
    assert "(downloading packages with apt)" in error.value.message
    assert hint in error.value.hint
    assert said in error.value.seen
    assert error.value.command[0] == "mmdebstrap"


def test_only_the_last_lines_are_shown(fake: Fake, tmp_path: Path) -> None:
    fake("mmdebstrap", "seq 1000 >&2; exit 1")
    with pytest.raises(LabError) as error:
        debian.unpack(ORIGIN, ["kmod"], tmp_path / "out.tar", limit())
    assert error.value.seen.splitlines() == [str(number) for number in range(986, 1001)]


def test_a_mirror_that_hangs(fake: Fake, tmp_path: Path) -> None:
    fake("mmdebstrap", "echo 'I: running apt-get update...' >&2; exec sleep 60")
    with pytest.raises(DeadlineExceeded) as error:
        debian.unpack(ORIGIN, ["kmod"], tmp_path / "out.tar", limit(0.1))
    assert "running apt-get update" in error.value.seen


def test_without_mmdebstrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="mmdebstrap is not installed") as error:
        debian.unpack(ORIGIN, ["kmod"], tmp_path / "out.tar", limit())
    assert error.value.hint == "apt-get install mmdebstrap"


def test_an_ordinary_user_without_uidmap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="newuidmap is not installed") as error:
        debian.unpack(ORIGIN, ["kmod"], tmp_path / "out.tar", limit())
    assert error.value.hint == "apt-get install uidmap"
