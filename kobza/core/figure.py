"""A picture as plain data, drawn by matplotlib (imported only then) or as HTML.

Because a figure is data it can be saved with a result, drawn again later in another format, and checked in tests.
"""

from __future__ import annotations

import io
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kobza.core.errors import BadValue
from kobza.core.files import write_atomic
from kobza.core.table import show

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = {
    "lines": "series: [{name, x, y, low?, high?}], hlines?: [{y, label}], vlines?, logx?, logy?, markers_only?",
    "bars": "labels, values, low?, high?, horizontal?",
    "image": "values (rows x columns), rows?, columns?, marks? (same shape, true = cross), diverging?",
    "points": "x, y, labels?, color?, named?: [{label, x, y}]",
    "map": "as points, for tens of thousands; a canvas in HTML",
    "tokens": "pieces: [{text, value?, title?, group?}]; pieces of one group share a color",
}
# Okabe & Ito's palette, legible on light and dark ground and to the color-blind
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F"]
RULE: dict[str, Any] = {"color": "#888888", "linewidth": 0.9, "linestyle": ":"}
INK = "#010203"  # stands for the text color; in an SVG it becomes currentColor, so that it follows the page's theme


@dataclass(frozen=True)
class Figure:
    """A picture as plain data.

    Attributes:
        kind: one of `KINDS`.
        data: what is drawn; the keys of each kind are listed in `KINDS`.
        title: one line above.
        caption: one or two sentences below: what is seen and how it was taken.
        x, y: axis labels with units.
    """

    kind: str
    data: Mapping[str, Any]
    title: str = ""
    caption: str = ""
    x: str = ""
    y: str = ""
    width: float = field(default=7.0)
    height: float = field(default=4.2)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadValue(f"a figure is one of {', '.join(map(repr, KINDS))}, not {self.kind!r}.")

    def axes(self, ax: Axes | None = None) -> Axes:
        """Draw with matplotlib into `ax` or a new figure, and return the Axes."""
        if ax is None:
            ax = _axes(self.width, self.height)
        ax.set_title(self.title, fontsize=11, loc="left")
        ax.set_xlabel(self.x)
        ax.set_ylabel(self.y)
        _DRAW[self.kind](ax, self.data)
        return ax

    def save(self, path: str | Path) -> Path:
        """Write .png, .svg or .html.

        Raises:
            BadValue: another suffix.
            CannotWrite: the file cannot be written.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix == ".html":
            from kobza.core.render import page

            return write_atomic(path, page(self.title or "Figure", [self]))
        if suffix == ".svg":
            return write_atomic(path, self.svg(ink="#222222", ground="white"))
        if suffix == ".png":
            return write_atomic(path, self.png())
        raise BadValue(f"cannot save a figure as {suffix!r}; suffixes: .png, .svg, .html.")

    def png(self, dots_per_inch: int = 150) -> bytes:
        """Return the picture as PNG bytes, dark on white."""
        return self._bytes(format="png", dpi=dots_per_inch, ink="#222222", ground="white")

    def svg(self, *, ink: str = "currentColor", ground: str = "none") -> str:
        """Return the picture as an SVG element; the same data gives the same text.

        Args:
            ink: color of text and axes; "currentColor" follows the page.
            ground: background color, or "none".
        """
        raw = self._bytes(format="svg", ink=INK, ground=ground).decode()
        body = raw[raw.index("<svg") :].replace(INK, ink)
        # several figures stand in one page: their element ids must not collide
        unique = "f" + uuid.uuid5(uuid.NAMESPACE_OID, body).hex[:8]
        body = re.sub(r'id="([^"]+)"', rf'id="{unique}-\1"', body)
        return re.sub(r'(url\(#|href="#)', rf"\g<1>{unique}-", body)

    def html(self) -> str:
        """Return the picture as a fragment of HTML that needs nothing from outside."""
        from kobza.core.render import html

        return html(self)

    _repr_html_ = html

    def to_json(self) -> dict[str, Any]:
        """Return the figure as plain data."""
        plain = {k: getattr(self, k) for k in ("kind", "title", "caption", "x", "y", "width", "height")}
        return {**plain, "data": _jsonable(self.data)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Figure:
        """Return the figure that `to_json` described."""
        return cls(**data)

    def _bytes(self, *, format: str, ink: str, ground: str, dpi: int = 100) -> bytes:
        import matplotlib as mpl

        inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
        style: dict[Any, Any] = dict.fromkeys(inked, ink)
        # svg.hashsalt: without it the ids, and so the file, differ from run to run
        style |= {"svg.fonttype": "none", "svg.hashsalt": "kobza", "font.family": "sans-serif", "axes.titlecolor": ink}
        out = io.BytesIO()
        with mpl.rc_context(style):
            drawn: Any = self.axes().figure
            options: dict[str, Any] = {"metadata": {"Date": None}} if format == "svg" else {"dpi": dpi}
            drawn.savefig(out, format=format, facecolor=ground, bbox_inches="tight", **options)
        return out.getvalue()


def _axes(width: float, height: float) -> Axes:
    from matplotlib.figure import Figure as Canvas  # not pyplot: no global state, no window system

    ax = Canvas(figsize=(width, height), layout="constrained").add_subplot()
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _lines(ax: Axes, data: Mapping[str, Any]) -> None:
    for i, line in enumerate(data["series"]):
        color = COLORS[i % len(COLORS)]
        x, y = list(line["x"]), [np.nan if v is None else v for v in line["y"]]
        style = "none" if data.get("markers_only") else "--" if i >= len(COLORS) else "-"
        marker = "o" if style == "none" or len(x) <= 40 else ""
        look: dict[str, Any] = {"markersize": 5 if style == "none" else 3.5, "linewidth": 1.4, "color": color}
        ax.plot(x, y, linestyle=style, marker=marker, label=line["name"], **look)
        if line.get("low") is not None and line.get("high") is not None:
            low, high = ([np.nan if v is None else v for v in line[k]] for k in ("low", "high"))
            ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    for mark in data.get("hlines", []):
        ax.axhline(mark["y"], **RULE)
        place: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "ha": "right", "va": "bottom"}
        ax.text(1.0, mark["y"], mark.get("label", ""), fontsize=8, color=RULE["color"], **place)
    for mark in data.get("vlines", []):
        ax.axvline(mark["x"], **RULE)
        place = {"transform": ax.get_xaxis_transform(), "ha": "left", "va": "top"}
        ax.text(mark["x"], 1.0, mark.get("label", ""), fontsize=8, color=RULE["color"], **place)
    if data.get("logx"):
        ax.set_xscale("log")
        _plain_numbers(ax.xaxis, ax.get_xlim())
    if data.get("logy"):
        ax.set_yscale("log")
        _plain_numbers(ax.yaxis, ax.get_ylim())
    if len(data["series"]) > 1:
        ax.legend(frameon=False, fontsize=8)


def _plain_numbers(axis: Any, limits: tuple[float, float]) -> None:
    """Name the ticks of a logarithmic axis 0.5, 1, 2 instead of 10^0; between decades only where few are in sight."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    plain = FuncFormatter(lambda value, _: f"{value:g}")
    is_short = limits[1] / limits[0] < 100
    axis.set_major_formatter(plain)
    axis.set_minor_locator(LogLocator(subs=(1.5, 2, 3, 5, 7) if limits[1] / limits[0] < 12 else (2, 5)))
    axis.set_minor_formatter(plain if is_short else NullFormatter())


def _bars(ax: Axes, data: Mapping[str, Any]) -> None:
    labels, values = [str(v) for v in data["labels"]], [np.nan if v is None else v for v in data["values"]]
    places = np.arange(len(labels))
    error = None
    if data.get("low") is not None:
        error = np.abs(np.array([np.subtract(values, data["low"]), np.subtract(data["high"], values)]))
    if data.get("horizontal", len(labels) > 12):
        ax.barh(places, values, xerr=error, color=COLORS[0])
        ax.set_yticks(places, labels, fontsize=8)
        ax.invert_yaxis()
    else:
        ax.bar(places, values, yerr=error, color=COLORS[0])
        turned = max(map(len, labels), default=0) * len(labels) > 60
        ax.set_xticks(places, labels, fontsize=8, rotation=35 if turned else 0, ha="right" if turned else "center")


def _image(ax: Axes, data: Mapping[str, Any]) -> None:
    values = np.asarray(data["values"], dtype=float)
    finite = values[np.isfinite(values)]
    diverging = data.get("diverging", bool(finite.size) and finite.min() < 0 < finite.max())
    span = float(np.abs(finite).max()) if finite.size else 1.0
    limits: dict[str, Any] = {"vmin": -span, "vmax": span} if diverging else {}
    shown = ax.imshow(
        values, aspect="auto", interpolation="nearest", cmap="RdBu_r" if diverging else "viridis", **limits
    )
    ax.get_figure().colorbar(shown, ax=ax, shrink=0.9)  # type: ignore[union-attr]
    for axis, names in ((ax.yaxis, data.get("rows")), (ax.xaxis, data.get("columns"))):
        if names is not None:
            step = max(1, len(names) // 30)
            turned: dict[str, Any] = (
                {"rotation": 90} if axis is ax.xaxis and max(map(len, map(str, names)), default=0) > 3 else {}
            )
            axis.set_ticks(range(0, len(names), step), [show(n) for n in names[::step]], fontsize=7, **turned)
    if data.get("marks") is not None:
        rows, columns = np.nonzero(np.asarray(data["marks"], dtype=bool))
        ax.plot(columns, rows, "x", color="black", markersize=4, markeredgewidth=1)


def _points(ax: Axes, data: Mapping[str, Any]) -> None:
    color = data.get("color")
    size = 12 if len(data["x"]) < 500 else 2
    style: dict[str, Any] = {"c": color, "cmap": "viridis"} if color is not None else {"color": COLORS[0]}
    ax.scatter(data["x"], data["y"], s=size, linewidths=0, alpha=0.7, rasterized=len(data["x"]) > 2000, **style)
    for mark in data.get("named", []):
        ax.plot(mark["x"], mark["y"], "o", color=COLORS[1], markersize=4)
        ax.annotate(show(mark["label"]), (mark["x"], mark["y"]), xytext=(4, 3), textcoords="offset points", fontsize=8)


def _tokens(ax: Axes, data: Mapping[str, Any]) -> None:
    from matplotlib import colormaps

    values = [p.get("value") for p in data["pieces"]]
    top = max((abs(v) for v in values if v is not None), default=1.0) or 1.0
    column, row, rows = 0.0, 0, 1
    per_line, high = 90, 0.06
    ax.set_axis_off()
    for piece, value in zip(data["pieces"], values, strict=True):
        text = show(piece["text"]).replace(" ", "\N{MIDDLE DOT}")
        if column + len(text) > per_line:
            column, row, rows = 0.0, row + 1, rows + 1
        ground = colormaps["viridis"](0.25 + 0.7 * abs(value) / top) if value is not None else "none"
        box = {"facecolor": ground, "alpha": 0.4, "edgecolor": "none", "pad": 1.0}
        ax.text(
            column / per_line, 1 - row * high, text, family="monospace", fontsize=8, bbox=box, transform=ax.transAxes
        )
        column += len(text)


_DRAW = {"lines": _lines, "bars": _bars, "image": _image, "points": _points, "map": _points, "tokens": _tokens}


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _jsonable(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return _jsonable(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
