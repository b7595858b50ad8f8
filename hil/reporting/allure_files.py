"""Writes Allure's files: without secrets, within bounds, and few of them.

It takes the place of allure-pytest's own writer, so that whatever a test or a plugin hands to
Allure passes here, not only what :mod:`hil.reporting.allure` adds.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import allure_commons
import attr
from allure_commons.logger import AllureFileLogger
from allure_commons.model2 import ExecutableItem, Globals, TestResult, TestResultContainer

from hil.reporting.collector import EVIDENCE_LIMIT
from hil.reporting.text import cut_middle, redact

#: Characters of one text of a result; attachments have a limit of their own.
TEXT_LIMIT = 64 * 1024

#: What Allure finds things by, and no person writes.
_AS_IT_IS = frozenset({"uuid", "children", "source", "historyId", "testCaseId", "status", "type"})


class AllureFiles:
    """A plugin of :mod:`allure_commons`.

    Args:
        folder: Allure's folder of results; it exists.
        failed: told why a file could not be written; the run goes on without it.
    """

    def __init__(self, folder: Path, failed: Callable[[OSError], None]) -> None:
        self._folder = folder
        self._failed = failed

    @contextlib.contextmanager
    def registered(self) -> Iterator[None]:
        """While the block runs, this writes Allure's files, and allure-pytest's writer does not."""
        manager = allure_commons.plugin_manager
        writers = [p for p in manager.get_plugins() if isinstance(p, AllureFileLogger)]
        for writer in writers:
            manager.unregister(writer)
        manager.register(self)
        try:
            yield
        finally:
            manager.unregister(self)
            for writer in writers:
                manager.register(writer)

    @allure_commons.hookimpl
    def report_result(self, result: TestResult) -> None:
        """Write a test's result."""
        self._write_item(result)

    @allure_commons.hookimpl
    def report_container(self, container: TestResultContainer) -> None:
        """Write what fixtures did, if that is more than that they ran: most only cost time."""
        if any(map(_tells_something, [*container.befores, *container.afters])):
            self._write_item(container)

    @allure_commons.hookimpl
    def report_globals(self, globals_item: Globals) -> None:
        """Write what belongs to the run as a whole."""
        self._write_item(globals_item)

    @allure_commons.hookimpl
    def report_attached_file(self, source: str, file_name: str) -> None:
        """Write the file ``source`` as an attachment."""
        self.report_attached_data(Path(source).read_bytes(), file_name)

    @allure_commons.hookimpl
    def report_attached_data(self, body: str | bytes, file_name: str) -> None:
        """Write an attachment that a test made itself."""
        data = body.encode("utf-8", "replace") if isinstance(body, str) else body
        try:
            data = cut_middle(redact(data.decode("utf-8")), EVIDENCE_LIMIT).encode()
        except UnicodeDecodeError:  # not text
            if len(data) > EVIDENCE_LIMIT:
                data = f"{len(data)} bytes: over the limit, left out".encode()
        self.write(file_name, data)

    def write(self, file_name: str, data: bytes) -> None:
        """Write an attachment as it is: what is in it was redacted and bounded before."""
        try:
            (self._folder / file_name).write_bytes(data)
        except OSError as error:
            self._failed(error)

    def _write_item(self, item: Any) -> None:
        known = attr.asdict(item, filter=lambda _, value: value or value is False)
        text = json.dumps(_shown(known), ensure_ascii=False)
        name = item.file_pattern.format(prefix=uuid4())
        new = self._folder / f".{name}.{os.getpid()}"
        try:
            new.write_bytes(text.encode("utf-8", "replace"))
            new.replace(self._folder / name)
        except OSError as error:
            self._failed(error)


def _tells_something(fixture: ExecutableItem) -> bool:
    return bool(fixture.status in ("failed", "broken") or fixture.attachments or fixture.steps)


def _shown(value: Any) -> Any:
    """``value`` with each of its texts fit to be shown."""
    if isinstance(value, str):
        return cut_middle(redact(value), TEXT_LIMIT)
    if isinstance(value, dict):
        return {key: inner if key in _AS_IT_IS else _shown(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(inner) for inner in value]
    return value
