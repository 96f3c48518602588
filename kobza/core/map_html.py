"""The interactive map of many points as an HTML fragment: canvas, no network, no WebGL, no eval.

Points travel as base64 uint16 numbers over their range (a step is 1/65534 of it), labels as JSON; 49,152 points
take about 1 MB. Nothing from the data is ever put into markup or script as code: text is escaped, and the script
writes it with `textContent` and `fillText` alone.

Figure data of kind "map" (lists or arrays of N values each; only x and y are needed):

    x, y, z       positions [finite]; with z the map turns in three dimensions
    labels        what hovering shows [text]; absent: "row 17"
    color         one value per point for the color scale [number; NaN is drawn grey]
    color_name    the name of that value with its unit, e.g. "norm"
    colors        several such channels {name: values}; a person chooses among them
    groups        a kind per point instead of a color scale [index into group_names]
    group_names   the names of the kinds
    named         points always labelled: [{"label", "index"}] or [{"label", "x", "y"[, "z"]}]
    ids, row      what the hover text counts: row numbers [default 0 ..] and their word [default "id"]
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np

from kobza.core.errors import BadValue

CODES = 65534
"""Steps of the quantized numbers; the code 65535 stands for "no value"."""

SHADED = (1.0, 99.0)
"""The color scale spans these percentiles, so that single outliers do not flatten it."""

HINT = (
    "Hover for a label, wheel or + and - to zoom, drag or arrow keys to move{turn}, type to find, "
    "0 shows all, n and p step through what was found."
)


def assets() -> tuple[str, str]:
    """The style sheet and the script of the map, as text."""
    folder = files("kobza.core") / "assets"
    scripts = [(folder / name).read_text("utf-8") for name in ("map_points.js", "map_hands.js", "map.js")]
    return (folder / "map.css").read_text("utf-8"), "\n".join(scripts)


def map_html(figure: Any, *, script: bool = True) -> str:
    """A figure of kind "map" as one HTML fragment that works wherever it is put.

    Args:
        figure: an object with `.data` (see the module), `.title`, `.x`, `.y` [axis names].
        script: put style sheet and script into the fragment; False for pages that load `assets()` once themselves
            (a page that adds fragments later calls `kobzaMaps(element)`).

    Returns:
        A `<div>` element; the caption is left to the page around it.

    Raises:
        BadValue: no points, lists of unequal length, or a position that is not a finite number.
    """
    block = json.dumps(payload(figure), separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")
    style, code = assets() if script else ("", "")
    hint = HINT.format(turn=" (with Shift: shift the view)" if figure.data.get("z") is not None else "")
    title = f'<p class="kz-map-title">{html.escape(figure.title)}</p>' if figure.title else ""
    return (
        (f"<style>{style}</style>" if script else "")
        + f'<div class="kz-map">{title}<div class="kz-map-place">'
        + "<noscript>This map needs JavaScript; the same figures are in the table beside it.</noscript></div>"
        + f'<p class="kz-map-hint">{html.escape(hint)}</p>'
        + f'<script type="application/json">{block}</script></div>'
        + (f"<script>{code}</script>" if script else "")
    )


def payload(figure: Any) -> dict[str, Any]:
    """What the script reads: positions and channels as codes, labels, names, and words for a screen reader."""
    data: Mapping[str, Any] = figure.data
    axes = [key for key in ("x", "y", "z") if data.get(key) is not None]
    places = {key: _places(data[key], key) for key in axes}
    count = len(places["x"])
    labels = [str(label) for label in _given(data, "labels", [f"row {i}" for i in range(count)])]
    ids = [int(i) for i in _given(data, "ids", range(count))]
    for name, values in [*places.items(), ("labels", labels), ("ids", ids)]:
        _same_length(name, values, count)
    first = ids[0]
    block: dict[str, Any] = {key: _encoded(values) for key, values in places.items()}
    block["labels"] = labels
    block["first"] = first
    if ids != list(range(first, first + count)):
        block["ids"] = ids
    block["row"] = str(_given(data, "row", "id"))
    block["colors"] = [_channel(name, values, count) for name, values in _channels(data).items()]
    if data.get("groups") is not None:
        block["groups"] = _groups(data, count)
    block["named"] = [_named(name, count) for name in _given(data, "named", [])]
    block["axes"] = " · ".join(f"{arrow} {text}" for arrow, text in (("→", figure.x), ("↑", figure.y)) if text)
    block["about"] = f"map of {count} points, {figure.title or 'untitled'}; arrow keys move, plus and minus zoom"
    return block


def _given(data: Mapping[str, Any], key: str, default: Any) -> Any:
    value = data.get(key)
    return default if value is None else value


def _places(values: Any, key: str) -> np.ndarray:
    """Positions (N,) in float64, all finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise BadValue(f"a map needs at least one point; {key} has the shape {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise BadValue(f"position {key}[{bad[0]}] is {array[bad[0]]}; positions on a map are finite numbers")
    return array


def _same_length(name: str, values: Any, count: int) -> None:
    if len(values) != count:
        raise BadValue(f"a map of {count} points got {len(values)} values of {name!r}; each point needs one")


def _encoded(values: np.ndarray) -> dict[str, Any]:
    """Numbers (N,) as {low, high, codes}: uint16 little-endian in base64, NaN as 65535."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    step = (high - low) / CODES or 1.0
    codes = np.full(len(values), CODES + 1, dtype="<u2")
    is_finite = np.isfinite(values)
    codes[is_finite] = np.round((values[is_finite] - low) / step).astype("<u2")
    return {"low": low, "high": high, "codes": base64.b64encode(codes.tobytes()).decode("ascii")}


def _channels(data: Mapping[str, Any]) -> dict[str, Any]:
    """The color channels by name: `colors`, or the single `color`."""
    channels = dict(_given(data, "colors", {}))
    if data.get("color") is not None:
        channels = {str(_given(data, "color_name", "value")): data["color"], **channels}
    return channels


def _channel(name: str, values: Any, count: int) -> dict[str, Any]:
    array = np.asarray(values, dtype=np.float64)
    _same_length(name, array, count)
    finite = array[np.isfinite(array)]
    low, high = np.percentile(finite, SHADED) if len(finite) else (0.0, 0.0)
    return {"name": str(name), **_encoded(array), "from": float(low), "to": float(high)}


def _groups(data: Mapping[str, Any], count: int) -> dict[str, Any]:
    names = [str(name) for name in _given(data, "group_names", [])]
    groups = np.asarray(data["groups"], dtype=np.int64)
    _same_length("groups", groups, count)
    if len(groups) and not (groups.min() >= 0 and groups.max() < len(names)):
        raise BadValue(f"groups reach from {groups.min()} to {groups.max()}, but group_names has {len(names)} names")
    return {"names": names, "codes": base64.b64encode(groups.astype("<u2").tobytes()).decode("ascii")}


def _named(name: Mapping[str, Any], count: int) -> dict[str, Any]:
    """A named point: by index into the map, or by a place of its own."""
    label = str(name["label"])
    if "index" in name:
        if not 0 <= int(name["index"]) < count:
            raise BadValue(f"named point {label!r} has index {name['index']}; the map has points 0 .. {count - 1}")
        return {"label": label, "index": int(name["index"])}
    return {"label": label, **{key: float(name[key]) for key in ("x", "y", "z") if key in name}}
