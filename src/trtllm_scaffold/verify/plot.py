"""The error-per-stage plot, as SVG: where a port's forward pass leaves HF's."""

from __future__ import annotations

import math
from html import escape

from trtllm_scaffold.verify.report import LayerErrors

_WIDTH, _HEIGHT = 960, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 16, 46
#: Decades shown: fp32 rounding at the bottom, "nothing in common" at the top.
_LOW, _HIGH = -8, 1


def error_plot(errors: LayerErrors) -> str:
    """A figure with one point per stage on a logarithmic scale and the bound as a line."""
    points = [(_x(place, errors), _y(value)) for place, value in enumerate(errors.errors)]
    first = next(
        (n for n, e in zip(errors.stages, errors.errors, strict=True) if _bad(e, errors)), ""
    )
    note = f"leaves HF's at {escape(first)}" if first else "within the bound everywhere"
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f"""<figure>
<figcaption>{escape(errors.title)} <span>&middot; {note}</span></figcaption>
<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="error per stage">
{_layer_bands(errors)}
{_grid()}
<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_y(errors.bound):.1f}" y2="{_y(errors.bound):.1f}" \
stroke="var(--bad)" stroke-dasharray="5 4"/>
<text x="{_WIDTH - _RIGHT}" y="{_y(errors.bound) - 5:.1f}" text-anchor="end">bound \
{errors.bound:.0e}</text>
<polyline points="{line}" fill="none" stroke="var(--mark)" stroke-width="1.5" opacity=".6"/>
{_dots(errors, points, first)}
</svg>
</figure>"""


def _bad(error: float, errors: LayerErrors) -> bool:
    return not error <= errors.bound


def _x(place: int, errors: LayerErrors) -> float:
    steps = max(1, len(errors.stages) - 1)
    return _LEFT + 10 + place * (_WIDTH - _LEFT - _RIGHT - 20) / steps


def _y(error: float) -> float:
    decade = _HIGH if not math.isfinite(error) else math.log10(max(error, 10.0**_LOW))
    share = (min(max(decade, _LOW), _HIGH) - _LOW) / (_HIGH - _LOW)
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _grid() -> str:
    lines = []
    for decade in range(_LOW, _HIGH + 1, 2):
        y = _y(10.0**decade)
        label = "≤1e-8" if decade == _LOW else f"1e{decade}" if decade else "1"
        lines.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
            'stroke="var(--line)"/>'
            f'<text x="{_LEFT - 8}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>'
        )
    return "\n".join(lines)


def _layer_bands(errors: LayerErrors) -> str:
    """A labelled band behind the stages of each layer, every second one shaded."""
    spans: dict[str, tuple[int, int]] = {}
    for place, name in enumerate(errors.stages):
        parts = name.split(".")
        if len(parts) > 2 and parts[1] == "layers":
            start, _ = spans.get(parts[2], (place, place))
            spans[parts[2]] = (start, place)
    half = (_x(1, errors) - _x(0, errors)) / 2
    bands = []
    for order, (layer, (start, end)) in enumerate(spans.items()):
        left, right = _x(start, errors) - half, _x(end, errors) + half
        if order % 2 == 0:
            bands.append(
                f'<rect x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" '
                f'height="{_HEIGHT - _TOP - _BOTTOM}" fill="var(--line)" opacity=".35"/>'
            )
        middle = (left + right) / 2
        bands.append(
            f'<text x="{middle:.1f}" y="{_HEIGHT - 10}" text-anchor="middle">layer {layer}</text>'
        )
    return "\n".join(bands)


def _dots(errors: LayerErrors, points: list[tuple[float, float]], first: str) -> str:
    dots = []
    for name, error, (x, y) in zip(errors.stages, errors.errors, points, strict=True):
        colour = "var(--bad)" if _bad(error, errors) else "var(--mark)"
        radius = 6 if name == first else 4
        dots.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}">'
            f"<title>{escape(name)}: {error:.2e}</title></circle>"
        )
        if name == first or not name.startswith("model.layers."):
            short = name.removeprefix("model.")
            above = y < _HEIGHT - _BOTTOM - 30
            place = y - 11 if above and name == first else _HEIGHT - _BOTTOM + 14
            anchor = "end" if x > _WIDTH - 120 else "start" if x < 140 else "middle"
            dots.append(
                f'<text x="{x:.1f}" y="{place:.1f}" text-anchor="{anchor}">{escape(short)}</text>'
            )
    return "\n".join(dots)
