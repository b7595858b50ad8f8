"""The time line of boots as a picture (SVG 1.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from hil.events import PhaseReached
from hil.reporting.text import one_line

_COLOURS = ("#4c78a8", "#b279a2", "#72b7b2", "#9d755d", "#eeca3b")
_KNOWN = {
    "booting": "#f58518",
    "ready": "#54a24b",
    "crashed": "#c1121f",
    "stopped": "#888888",
    "destroyed": "#555555",
}
_LEFT, _WIDTH, _RIGHT, _ROW, _TOP = 130, 780, 40, 46, 34
#: Subjects and phases that one picture shows.
_SUBJECTS, _PHASES = 24, 40


def timeline(phases: Sequence[PhaseReached], start: float, end: float) -> str:
    """One row a subject, one bar from each phase to the next, and a scale of seconds.

    Args:
        phases: in any order; those after ``end`` are left out, those before ``start``
            begin at it.
        start: seconds since the epoch at the left edge.
        end: at the right edge.

    Returns:
        An SVG document, or an empty text if there is nothing to show.
    """
    rows: dict[str, list[PhaseReached]] = {}
    for phase in sorted(phases, key=lambda phase: phase.at):
        if phase.at <= end:
            rows.setdefault(phase.subject, []).append(phase)
    if not rows:
        return ""
    span = max(end - start, 0.001)
    height = _TOP + _ROW * min(len(rows), _SUBJECTS) + 34

    def x(at: float) -> float:
        return _LEFT + _WIDTH * (min(max(at, start), end) - start) / span

    total = _LEFT + _WIDTH + _RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{height}"',
        f' viewBox="0 0 {total} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{total}" height="{height}" fill="#ffffff"/>',
    ]
    bottom = height - 30
    for tick in _ticks(span):
        at = x(start + tick)
        parts.append(
            f'<line x1="{at:.1f}" y1="{_TOP - 10}" x2="{at:.1f}" y2="{bottom}" stroke="#dddddd"/>'
            f'<text x="{at:.1f}" y="{bottom + 16}" fill="#555555" text-anchor="middle">'
            f"{tick:g} s</text>"
        )
    colours: dict[str, str] = {}
    for row, (subject, events) in enumerate(list(rows.items())[:_SUBJECTS]):
        reached = events[:_PHASES]
        top = _TOP + row * _ROW
        parts.append(
            f'<text x="{_LEFT - 8}" y="{top + 16}" fill="#222222" text-anchor="end">'
            f"{_text(subject, 18)}</text>"
        )
        free = float("-inf")
        for index, phase in enumerate(reached):
            last = index + 1 == len(reached)
            left, right = x(phase.at), x(end if last else reached[index + 1].at)
            colour = _KNOWN.get(phase.phase) or colours.setdefault(
                phase.phase, _COLOURS[len(colours) % len(_COLOURS)]
            )
            seconds = phase.at - start
            label = f"{one_line(phase.phase, 24)} {seconds:.1f}"
            parts.append(
                f'<rect x="{left:.1f}" y="{top}" width="{max(right - left, 2):.1f}" height="22" '
                f'rx="3" fill="{colour}" opacity="0.85">'
                f"<title>{_text(subject, 60)}: {_text(phase.phase, 60)} at {seconds:.3f} s"
                f"</title></rect>"
            )
            # About 6.4 pixels a character; a label with no room is told by the title alone,
            # and a bar too thin to be seen leaves the room to the next.
            if (last or right - left >= 3) and left >= free and left + 6.4 * len(label) <= total:
                parts.append(
                    f'<text x="{left:.1f}" y="{top + 35}" fill="#333333" font-size="11">'
                    f"{escape(label)}</text>"
                )
                free = left + 6.4 * len(label) + 6
    words = "seconds since the test began"
    kept = sum(min(len(events), _PHASES) for events in list(rows.values())[:_SUBJECTS])
    if left_out := sum(map(len, rows.values())) - kept:
        words += f"; {left_out} more phases left out"
    parts.append(f'<text x="{_LEFT}" y="15" fill="#555555">{words}</text></svg>')
    return "".join(parts)


def _ticks(span: float) -> list[float]:
    """Round numbers from 0 to ``span``, between five and eleven of them."""
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 10)
    return [round(step * index, 6) for index in range(int(span / step + 1e-9) + 1)]


def _text(text: str, limit: int) -> str:
    return escape(one_line(text, limit))
