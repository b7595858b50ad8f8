"""One HTML page out of the folder that Allure's generator makes.

Allure can write a single page itself: with everything in it as base64, which for ten
thousand results is more than a quarter of a gigabyte that the browser reads before it shows
anything, and past half a gigabyte Node.js refuses.  Its other form is a folder of files, which
browsers do not read from a disk.  So the folder's files are packed here: in blocks,
compressed, and unpacked by the browser when they are looked at.

The page is Allure's ``index.html``.  Allure's program looks its files up by name in
``window.allureReportData``, waits for ``window.allureReportDataReady``, and takes a promise of
base64 for an answer; a script of ours answers.  See ``@allurereport/web-commons``, ``data.ts``.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from hil.errors import LabError

#: Bytes of files that are compressed together: many are small and alike.
BLOCK = 512 * 1024

#: A script of a web statistics service, for which Allure's page asks; a lab's report must not.
_FOREIGN = re.compile(r"""<script[^<>]*\ssrc=["']?https?://[^<>]*>\s*</script>""")
_PROGRAM = re.compile(r"""<script[^<>]*\ssrc=["']([\w.-]+\.js)["'][^<>]*>\s*</script>""")
_STYLE = re.compile(r"""<link[^<>]*\shref=["']([\w.-]+\.css)["'][^<>]*>""")
_FONT = re.compile(r"""<link[^<>]*\shref=["'][\w.-]+\.woff2?["'][^<>]*>""")
#: What says in Allure's page that the data are files beside it.
_READY = re.compile(r"<script[^<>]*>\s*window\.allureReportDataReady = true;\s*</script>")


def pack(folder: Path, page: IO[str]) -> None:
    """Write Allure's report in ``folder`` to ``page``, as one file that needs no other.

    Raises:
        LabError: the report is not as the Allure version that hil knows writes it.
    """
    index = _FOREIGN.sub("", (folder / "index.html").read_text("utf-8"))
    programs: list[str] = _PROGRAM.findall(index)
    index = _FONT.sub("", _PROGRAM.sub("", index))
    index = _STYLE.sub(lambda match: _inline(folder / match[1]), index)
    head, *rest = _READY.split(index)
    if len(rest) != 1 or not programs:
        raise LabError(
            "Allure's page is made otherwise than hil knows it",
            seen=f"{len(programs)} scripts, {len(rest)} marks of where its data are",
            hint="is its version the one that docs/dependencies.md names?",
        )
    page.write(head)
    names: list[list[tuple[str, int]]] = []
    for number, block in enumerate(_blocks(folder, programs)):
        names.append([(path.relative_to(folder).as_posix(), len(data)) for path, data in block])
        _write(page, f"hil-{number}", b"".join(data for _, data in block))
    _write(page, "hil-index", json.dumps({"programs": programs, "blocks": names}).encode())
    page.write(f"<script>{_SCRIPT}</script>\n{rest[0]}")


def _inline(style: Path) -> str:
    return f"<style>{style.read_text('utf-8')}</style>"


def _blocks(folder: Path, programs: list[str]) -> Iterator[list[tuple[Path, bytes]]]:
    """The files with their bytes, by folder and suffix: what is alike stands together.

    Of those beside the page only its programs are data; the rest are its parts, or for others.
    """
    block: list[tuple[Path, bytes]] = []
    size = 0
    files = (path for path in folder.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: (path.parent, path.suffix, path.name)):
        if path.parent == folder and path.name not in programs:
            continue
        data = path.read_bytes()
        if block and size + len(data) > BLOCK:
            yield block
            block, size = [], 0
        block.append((path, data))
        size += len(data)
    if block:
        yield block


def _write(page: IO[str], name: str, data: bytes) -> None:
    text = base64.b64encode(zlib.compress(data, 6)).decode("ascii")
    page.write(f'<script type="application/octet-stream" id="{name}">{text}</script>\n')


_SCRIPT = """
(() => {
  "use strict";
  const complain = (words) => {
    const loader = document.getElementById("allure-app-loader");
    if (loader) { loader.textContent = words; }
  };
  if (!("DecompressionStream" in window)) {
    complain("This report needs a browser of 2023 or later (DecompressionStream).");
    return;
  }
  const unpack = async (id) => {
    const text = document.getElementById(id).textContent;
    const packed = await (await fetch("data:application/octet-stream;base64," + text)).blob();
    const plain = packed.stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(plain).blob();
  };
  const kept = new Map();  // the blocks looked at last: block number -> promise of a Blob
  const block = (number) => {
    const found = kept.get(number) || unpack("hil-" + number);
    kept.delete(number);
    kept.set(number, found);
    if (kept.size > 16) { kept.delete(kept.keys().next().value); }
    return found;
  };
  const places = new Map();  // name -> [block number, from, to]
  const file = async (name) => {
    const [number, from, to] = places.get(name);
    return (await block(number)).slice(from, to);
  };
  const base64 = (blob) => new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
  window.allureReportDataReady = false;
  window.allureReportData = new Proxy({}, {
    has: (_, name) => places.has(name),
    get: (_, name) => places.has(name) ? file(name).then(base64) : undefined,
  });
  unpack("hil-index").then((blob) => blob.text()).then(async (text) => {
    const index = JSON.parse(text);
    index.blocks.forEach((files, number) => {
      let from = 0;
      for (const [name, size] of files) {
        places.set(name, [number, from, from + size]);
        from += size;
      }
    });
    window.allureReportDataReady = true;
    for (const name of index.programs) {
      const script = document.createElement("script");
      script.src = URL.createObjectURL(new Blob([await file(name)], {type: "text/javascript"}));
      document.body.append(script);
    }
  }).catch((error) => complain("This report cannot be read: " + error));
})();
"""
