"""Options of a technique, read once from its signature and docstring.

From them come the options of the command line, the checks of a recipe and the fields of a form. A line of the
docstring's "Args:" section carries unit and range in brackets:

    rank: directions kept per matrix [count, 1 .. min(rows, columns)].

A bound that is not a number (`min(rows, columns)`) is shown, and checked by the technique itself.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kobza.core.errors import BadValue, OutOfRange, UnknownOption, guess

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_SCALARS = {"int": "int", "float": "float", "str": "str", "bool": "bool"}
_HOUSE = Path(__file__).resolve().parents[1]
_REQUIRED: Any = inspect._empty  # what Parameter.empty is; mypy loses the type of that name now and then
_PART = re.compile(r"""[^,=]*=\s*(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')\s*(?=,|$)|[^,]*""", re.DOTALL)


@dataclass(frozen=True)
class Option:
    """One keyword of a technique.

    Attributes:
        name: its name, everywhere.
        kinds: types tried in order: "int", "float", "str", "bool", "choice", "ints", "floats", "strs".
        default: the value when it is not given.
        required: True when there is no default.
        nullable: True when None is allowed (spelled "none").
        choices: allowed words of a "choice".
        doc: one sentence of explanation, without unit and range.
        unit: what the number counts; "" when the docstring names none.
        range: the range as written in the docstring.
        low, high: its numeric bounds, or None; `open_low`, `open_high` say that the bound itself is excluded.
    """

    name: str
    kinds: tuple[str, ...]
    default: Any = None
    required: bool = False
    nullable: bool = False
    choices: tuple[str, ...] = ()
    doc: str = ""
    unit: str = ""
    range: str = ""
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False

    def allowed(self) -> str:
        """Return what is allowed, in words: "count, 1 .. 576" or "one of 'a', 'b'"."""
        if self.choices:
            return "one of " + ", ".join(repr(c) for c in self.choices)
        return ", ".join(part for part in (self.unit or " or ".join(self.kinds), self.range) if part)


@dataclass(frozen=True)
class Step:
    """A technique and its options as plain data: one element of a recipe."""

    name: str
    options: Mapping[str, Any]


def options(function: Callable[..., Any]) -> list[Option]:
    """Return the options of a function: its keyword-only parameters of a plain type.

    Parameters of other types (a Model, a Tensor) are handed in by the caller and are not options.
    """
    signature = inspect.signature(function)
    found = [
        (p.name, p.annotation if isinstance(p.annotation, str) else inspect.formatannotation(p.annotation), p.default)
        for p in signature.parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]
    return _read(found, inspect.getdoc(function) or "")


def options_in(source: str | Path, function: str) -> list[Option]:
    """Return the options of a function in a source file without importing it (torch stays out of `--help`).

    Defaults must be literals, or names of constants of the same file or of a module of ours it imports them from.
    """
    tree = ast.parse(source.read_text(encoding="utf-8") if isinstance(source, Path) else source)
    constants = _imported(tree) | _constants(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            found = [
                (a.arg, ast.unparse(a.annotation) if a.annotation else "str", _literal(default, constants))
                for a, default in pairs
            ]
            return _read(found, ast.get_docstring(node) or "")
    return []


def check(
    function: Callable[..., Any] | list[Option], values: Mapping[str, Any], *, what: str = "this"
) -> dict[str, Any]:
    """Return the values as keywords of the right types.

    Args:
        function: the technique, or its options.
        values: words or values by name.
        what: how an error names the technique: "edit 'lowrank'".

    Raises:
        UnknownOption: a name it does not have; the message lists the nearest.
        BadValue: a value of the wrong type, or a required option missing.
        OutOfRange: a number outside the documented bounds.
    """
    known = {o.name: o for o in (function if isinstance(function, list) else options(function))}
    unknown = [name for name in values if name not in known]
    if unknown:
        raise UnknownOption(f"{what} has no option {unknown[0]!r}.{guess(unknown[0], known)}")
    missing = [o.name for o in known.values() if o.required and o.name not in values]
    if missing:
        raise BadValue(f"{what} needs the option {missing[0]!r} ({known[missing[0]].allowed()}).")
    return {name: coerce(known[name], value, what=what) for name, value in values.items()}


def coerce(option: Option, value: Any, *, what: str = "this") -> Any:
    """Return `value` (a word, or a value from YAML) as the option's type, within its bounds."""
    if value is None or (isinstance(value, str) and value.lower() in ("none", "null") and option.nullable):
        if option.nullable:
            return None
        raise BadValue(f"{what}: {option.name} may not be empty; allowed: {option.allowed()}.")
    for kind in option.kinds:
        try:
            converted = _CONVERT[kind](value, option)
        except (ValueError, TypeError):
            continue
        _within(option, converted, what)
        return converted
    near = guess(str(value), option.choices) if option.choices else ""
    raise BadValue(f"{what}: {option.name}={value!r} is not allowed; allowed: {option.allowed()}.{near}")


def parse(spec: str) -> Step:
    """Read `name:key=value,key=value`; a value with a comma or blanks at its ends stands in quotes.

    >>> parse('neighbors:token=" lava",k=5')
    Step(name='neighbors', options={'token': ' lava', 'k': '5'})
    """
    name, _, rest = spec.strip().partition(":")
    if not re.fullmatch(r"[A-Za-z_][\w.-]*", name.strip()):
        raise BadValue(f"{spec!r} does not start with a name.", "Write name:option=value,option=value")
    values: dict[str, Any] = {}
    for part in _split(rest):
        key, equals, value = part.partition("=")
        if not equals or not key.strip().isidentifier():
            raise BadValue(f"{part!r} in {spec!r} is not option=value.", "Write name:option=value,option=value")
        if key.strip() in values:
            raise BadValue(f"{key.strip()!r} is given twice in {spec!r}.")
        values[key.strip()] = _unquote(value, spec)
    return Step(name.strip(), values)


def spell(step: Step) -> str:
    """Return the step as one line that `parse` reads back to equal words."""
    parts = [f"{key}={_quote(word(value))}" for key, value in step.options.items()]
    return f"{step.name}:{','.join(parts)}" if parts else step.name


def word(value: Any) -> str:
    """Return a value as it is written on the command line: lists with ';', None as "none"."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return ";".join(word(v) for v in value)
    return repr(value) if isinstance(value, float) else str(value)


# --- reading signatures -------------------------------------------------------------------------------------------


def _read(found: list[tuple[str, str, Any]], doc: str) -> list[Option]:
    lines = arguments(doc)
    result = []
    for name, annotation, default in found:
        typed = _kinds(annotation)
        if typed is None:
            continue
        kinds, choices, nullable = typed
        text, unit, span = _bracket(lines.get(name, ""))
        low, high, open_low, open_high = _bounds(span)
        required = default is _REQUIRED
        option = Option(
            name, kinds, None if required else default, required, nullable, choices, text, unit, span, low, high,
            open_low, open_high,
        )  # fmt: skip
        result.append(option)
    return result


def arguments(doc: str) -> dict[str, str]:
    """Return the entries of a docstring's "Args:" section as {name: text}."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", inspect.cleandoc(doc), re.MULTILINE)
    if not section:
        return {}
    body = textwrap.dedent(section.group(1))
    entries: dict[str, str] = {}
    for match in re.finditer(r"^(\*{0,2}\w+(?:, \w+)*): ?(.*(?:\n[ \t]+.*)*)", body, re.MULTILINE):
        for name in match.group(1).split(", "):
            entries[name.lstrip("*")] = " ".join(match.group(2).split())
    return entries


def _kinds(annotation: str) -> tuple[tuple[str, ...], tuple[str, ...], bool] | None:
    """Return (kinds, choices, nullable), or None for a type that is no option."""
    kinds: list[str] = []
    choices: list[str] = []
    nullable = False
    for part in _union(ast.parse(annotation.replace("typing.", ""), mode="eval").body):
        text = ast.unparse(part)
        if text == "None":
            nullable = True
        elif text in _SCALARS:
            kinds.append(text)
        elif text.startswith("Literal[") and isinstance(part, ast.Subscript):
            items = part.slice.elts if isinstance(part.slice, ast.Tuple) else [part.slice]
            choices += [str(ast.literal_eval(i)) for i in items]
            kinds.append("choice")
        elif match := re.fullmatch(r"(?:list|tuple|Sequence)\[(int|float|str)(?:, \.\.\.)?\]", text):
            kinds.append(match.group(1) + "s")
        else:
            return None
    return (tuple(kinds), tuple(choices), nullable) if kinds else None


def _union(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union(node.left) + _union(node.right)
    return [node]


def _bracket(text: str) -> tuple[str, str, str]:
    """Split "directions kept [count, 1 .. 5]." into its sentence, unit and range."""
    match = re.search(r"\s*\[([^\[\]]+)\]\s*(?=[.;,]|$)", text)
    if not match:
        return text.rstrip("."), "", ""
    inside = match.group(1)
    sentence = (text[: match.start()] + text[match.end() :]).strip().rstrip(".")
    if ".." not in inside:
        return sentence, inside.strip(), ""
    unit, _, span = inside.partition(",")
    return (sentence, unit.strip(), span.strip()) if span else (sentence, "", inside.strip())


def _bounds(span: str) -> tuple[float | None, float | None, bool, bool]:
    low, _, high = span.partition("..")
    low, high = low.strip(), high.strip()
    return _number(low.lstrip("> ")), _number(high.lstrip("< ")), low.startswith(">"), high.startswith("<")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _constants(tree: ast.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in tree.body:
        target = (
            node.targets[0]
            if isinstance(node, ast.Assign)
            else node.target
            if isinstance(node, ast.AnnAssign)
            else None
        )
        if isinstance(target, ast.Name) and isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            try:
                found[target.id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


def _imported(tree: ast.Module) -> dict[str, Any]:
    """Return the constants that come by `from kobza.room.module import NAME`."""
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kobza."):
            file = _HOUSE.joinpath(*str(node.module).split(".")[1:]).with_suffix(".py")
            wanted = [a for a in node.names if a.name.isupper()]
            if wanted and file.is_file():
                constants = _constants(ast.parse(file.read_text(encoding="utf-8")))
                found |= {a.asname or a.name: constants[a.name] for a in wanted if a.name in constants}
    return found


def _literal(node: ast.expr | None, constants: Mapping[str, Any]) -> Any:
    if node is None:
        return _REQUIRED
    if isinstance(node, ast.Name):
        return constants[node.id]
    return ast.literal_eval(node)


# --- reading values -----------------------------------------------------------------------------------------------


def _int(value: Any, option: Option) -> int:
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, str):
        return int(value.replace("_", ""))
    if int(value) != value:
        raise ValueError
    return int(value)


def _float(value: Any, option: Option) -> float:
    if isinstance(value, bool):
        raise TypeError
    number = float(value)
    if math.isnan(number):
        raise ValueError
    return number


def _str(value: Any, option: Option) -> str:
    if isinstance(value, (list, dict)):
        raise TypeError
    return value if isinstance(value, str) else word(value)


def _bool(value: Any, option: Option) -> bool:
    text = str(value).lower()
    if text not in _TRUE + _FALSE:
        raise ValueError
    return text in _TRUE


def _choice(value: Any, option: Option) -> str:
    text = word(value)
    if text not in option.choices:
        raise ValueError
    return text


def _list(convert: Callable[[Any, Option], Any]) -> Callable[[Any, Option], list[Any]]:
    def read(value: Any, option: Option) -> list[Any]:
        items = (
            value.split(";") if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else [value]
        )
        return [convert(item, option) for item in items]

    return read


_CONVERT: dict[str, Callable[[Any, Option], Any]] = {
    "int": _int, "float": _float, "str": _str, "bool": _bool, "choice": _choice,
    "ints": _list(_int), "floats": _list(_float), "strs": _list(_str),
}  # fmt: skip


def _within(option: Option, value: Any, what: str) -> None:
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            continue
        below = option.low is not None and (number < option.low or (option.open_low and number == option.low))
        above = option.high is not None and (number > option.high or (option.open_high and number == option.high))
        if below or above:
            raise OutOfRange(f"{what}: {option.name}={word(value)} is out of range; allowed: {option.allowed()}.")


def _split(rest: str) -> list[str]:
    """Cut at commas that stand outside quotes."""
    if not rest.strip():
        return []
    parts, at = [], 0
    while True:
        match = _PART.match(rest, at)
        assert match  # the second alternative matches anything, the empty text too
        parts.append(match.group())
        if match.end() == len(rest):
            return parts
        at = match.end() + 1


def _unquote(value: str, spec: str) -> str:
    stripped = value.strip()
    if not stripped.startswith(("'", '"')):
        return stripped
    try:
        return str(ast.literal_eval(stripped))
    except (ValueError, SyntaxError):
        raise BadValue(f"{stripped!r} in {spec!r} is not a quoted text.", "A quote must be closed.") from None


def _quote(text: str) -> str:
    plain = text and text == text.strip() and text.isprintable() and not any(c in text for c in ",\"'+\\")
    return text if plain else json.dumps(text, ensure_ascii=False)
