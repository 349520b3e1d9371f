"""Tables and targets as text."""

from __future__ import annotations

from collections.abc import Iterator

Row = list[str]


def table(title: str, head: Row, rows: list[Row]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    yield f"\n{title}"
    for row in (head, ["-" * width for width in widths], *rows):
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        yield "  ".join(cells).rstrip()


def target(text: str, value: float, bound: float, unit: str, *, at_least: bool = False) -> str:
    met = value >= bound if at_least else value <= bound
    sign = ">=" if at_least else "<="
    return f"  {text}: {value:.3g} {unit}".rstrip() + f", target {sign} {bound:g}: {'met' if met else 'MISSED'}"
