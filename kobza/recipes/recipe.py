"""A recipe: open a model, change it, measure it; as plain data.

The same recipe is a line (`lowrank:rank=64,where=embed.in + noise:strength=0.1`), a YAML file, a command, a card:

    title: Low rank on both ends
    open: smollm2
    steps:                              # edits, one after another
      - lowrank: {rank: 64..576:64, where: embed}
    measures: [bits_per_byte, stored_bytes]
    text: ["topics[:4000]", source]
    seed: 0

A value may be a range or a list of alternatives (see `kobza.recipes.ranges`): then the recipe is a sweep. `compare`
holds several chains of edits that are measured beside each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from kobza.core import techniques
from kobza.core.errors import BadValue, MissingFile, OutOfRange, UnknownOption, UsageError, guess
from kobza.core.files import sha256, write_atomic
from kobza.core.options import Option, Step, check, parse, spell
from kobza.recipes.journal import plain
from kobza.recipes.ranges import MOST, expand, is_range

_PLUS = re.compile(r"""=\s*(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|\s\+\s""", re.DOTALL)
FIELDS = ("title", "open", "dtype", "steps", "compare", "measures", "text", "seed")
MODEL = "smollm2"
MEASURES = ("bits_per_byte", "stored_bytes")
TEXT = ("topics[:4000]",)
SIZE_LIMIT = 1 << 20  # bytes of a recipe file

Chain = tuple[Step, ...]


@dataclass(frozen=True)
class Recipe:
    """What to open, change and measure.

    Attributes:
        open: the model, as `kobza.open` takes it.
        dtype: number format to open it in ("float32", "bfloat16"); "" leaves the choice to `kobza.open`.
        steps: edits, applied one after another.
        measures: what is read off the model before and after.
        text: texts to measure on, as `kobza.text` takes them.
        seed: where randomness starts, for every technique that takes a seed; a range draws several times.
        title: what a person calls it; it changes nothing.
        compare: chains of edits measured beside each other, each after `steps`.
    """

    open: str = MODEL
    steps: Chain = ()
    measures: Chain = tuple(Step(name, {}) for name in MEASURES)
    text: tuple[str, ...] = TEXT
    seed: int | str = 0
    title: str = ""
    compare: tuple[Chain, ...] = ()
    dtype: str = ""

    def __post_init__(self) -> None:
        for name in ("steps", "measures", "text"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "compare", tuple(tuple(chain) for chain in self.compare))

    @property
    def is_sweep(self) -> bool:
        """True when it stands for several points."""
        swept = any(is_range(v) for c in (self.steps, *self.compare) for s in c for v in s.options.values())
        return swept or len(self.compare) > 1 or is_range(self.seed)

    @property
    def hash(self) -> str:
        """SHA-256 of everything but the title, in hexadecimal digits. Equal words have equal hashes."""
        data = self.to_dict()
        data.pop("title", None)
        return sha256(plain(_words(data)).encode())

    def check(self) -> Recipe:
        """Compare every name and value with what the techniques say of themselves; nothing is imported.

        Returns:
            The recipe with every value in the type its technique takes; ranges stay words.

        Raises:
            UnknownName, UnknownOption, BadValue, OutOfRange: the first thing that does not fit.
        """
        if not self.measures:
            raise BadValue("the recipe measures nothing.", "Name a measure: --measure bits_per_byte")
        if not self.text:
            raise BadValue("the recipe names no text.", "Name one: --text topics")
        for seed in expand(self.seed):
            _seed(seed)
        return replace(
            self,
            steps=_checked("edits", self.steps),
            compare=tuple(_checked("edits", chain) for chain in self.compare),
            measures=_checked("measures", self.measures, swept=False),
            seed=self.seed if is_range(self.seed) else _seed(self.seed),
        )

    def points(self) -> list[Point]:
        """Return what the recipe stands for, one point per combination of values, without repetition.

        Raises:
            OutOfRange: more than 10,000 points.
        """
        seeds = [_seed(seed) for seed in expand(self.seed)]
        found: dict[str, Point] = {}
        for alternative in self.compare or ((),):
            for chain in _combinations((*self.steps, *alternative)):
                for seed in seeds if is_drawn(chain) else seeds[:1]:
                    point = Point(with_seed("edits", chain, seed), seed)
                    found.setdefault(point.spec, point)
                    if len(found) > MOST:
                        raise OutOfRange(f"the sweep has more than {MOST} points.", "Take wider steps: rank=64..576:64")
        return list(found.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `from_dict` reads back; empty fields are left out."""
        data = {
            "title": self.title,
            "open": self.open,
            "dtype": self.dtype,
            "steps": [_step_to_plain(s) for s in self.steps],
            "compare": [[_step_to_plain(s) for s in chain] for chain in self.compare],
            "measures": [_step_to_plain(s) for s in self.measures],
            "text": list(self.text),
            "seed": self.seed,
        }
        return {name: value for name, value in data.items() if value not in ("", [])}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: Callable[..., str] | None = None) -> Recipe:
        """Read plain data.

        Args:
            data: fields by name; a step is a word (`"noise:strength=0.1"`) or `{name: {option: value}}`.
            where: gives the words " (line 3 of 'x.yaml')" for a path of keys, for errors.

        Raises:
            UnknownOption: a field that recipes do not have.
            BadValue: a field of the wrong form.
        """
        place = where or (lambda *path: "")
        if not isinstance(data, Mapping):
            raise BadValue(f"a recipe is a list of fields, not {_kind(data)}.", f"Fields: {', '.join(FIELDS)}")
        for name in data:
            if name not in FIELDS:
                raise UnknownOption(f"a recipe has no field {name!r}{place(name)}.{guess(str(name), FIELDS)}")
        fields: dict[str, Any] = {}
        for name, value in data.items():
            try:
                fields[name] = _READ[name](value)
            except UsageError as error:
                raise type(error)(f"{name}{place(name)}: {error.message}", error.hint) from None
        return cls(**fields)

    def to_yaml(self) -> str:
        """Return the recipe as YAML that `from_yaml` reads back."""
        import yaml

        return str(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=100))

    @classmethod
    def from_yaml(cls, text: str, *, name: str = "recipe") -> Recipe:
        """Read YAML.

        Raises:
            BadValue: not YAML, with aliases or double keys, or a field of the wrong form; the line is named.
            UnknownOption: a field that recipes do not have.
        """
        from kobza.recipes.reading import read_yaml

        data, where = read_yaml(text, name)
        return cls.from_dict(data, where=where)

    def save(self, path: str | Path) -> Path:
        """Write the recipe as YAML, whole or not at all."""
        return write_atomic(path, self.to_yaml())

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a YAML file.

        Raises:
            MissingFile: there is no such file.
            BadValue: it is larger than 1 MiB, not UTF-8, or not a recipe.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingFile(f"there is no recipe '{path}'.", "A recipe is a YAML file; kobza help run shows one.")
        if path.stat().st_size > SIZE_LIMIT:
            raise BadValue(f"'{path}' has {path.stat().st_size} bytes; a recipe has at most {SIZE_LIMIT}.")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadValue(f"'{path}' is not UTF-8 text (byte {error.start}).", "A recipe is a YAML file.") from None
        return cls.from_yaml(text, name=str(path))


@dataclass(frozen=True)
class Point:
    """One point of a sweep: a chain of edits with single values, and the seed of whatever else is random."""

    chain: Chain
    seed: int

    @property
    def spec(self) -> str:
        """The chain as one line; "" for the unedited model."""
        return spell_chain(self.chain)


def chain(line: str) -> Chain:
    """Read edits joined by " + "; an empty line is the unedited model.

    >>> [step.name for step in chain("lowrank:rank=64 + noise:strength=0.1")]
    ['lowrank', 'noise']
    """
    return tuple(parse(part) for part in _split_chain(line)) if line.strip() else ()


def spell_chain(steps: Iterable[Step]) -> str:
    """Return the chain as one line that `chain` reads back."""
    return " + ".join(spell(step) for step in steps)


@cache
def described(room: str, name: str) -> list[Option]:
    """Return a technique's options, read once: a sweep asks for them at every point."""
    return techniques.described(room, name)


def takes_seed(room: str, name: str) -> bool:
    """Say whether a technique draws at random, that is, takes a `seed`."""
    return any(option.name == "seed" for option in described(room, name))


def is_drawn(steps: Iterable[Step]) -> bool:
    """Say whether a further seed would change anything: some edit takes one and was given none."""
    return any("seed" not in step.options and takes_seed("edits", step.name) for step in steps)


def with_seed(room: str, steps: Iterable[Step], seed: int) -> Chain:
    """Return the steps with `seed` written into each that takes one and was given none."""
    return tuple(
        Step(s.name, {**s.options, "seed": seed}) if "seed" not in s.options and takes_seed(room, s.name) else s
        for s in steps
    )


def _checked(room: str, steps: Chain, *, swept: bool = True) -> Chain:
    return tuple(_check_step(room, step, swept) for step in steps)


def _check_step(room: str, step: Step, swept: bool) -> Step:
    known = described(room, step.name)
    what = f"{techniques.SINGULAR[room]} {step.name!r}"
    singles = {name: value for name, value in step.options.items() if not (swept and is_range(value))}
    try:
        values = check(known, {name: expand(v)[0] if swept else v for name, v in step.options.items()}, what=what)
        for name in step.options.keys() - singles.keys():
            values[name] = step.options[name]
            for value in expand(step.options[name]):
                check([o for o in known if o.name == name], {name: value}, what=what)
    except UsageError as error:
        raise type(error)(error.message, error.hint or f"See: kobza help {step.name}") from None
    return Step(step.name, {name: values[name] for name in step.options})


def _combinations(steps: Chain) -> Iterable[Chain]:
    """Yield the chain once per combination of values; the last option of the last step moves fastest."""
    slots = [(i, name, expand(value)) for i, s in enumerate(steps) for name, value in s.options.items()]
    for values in product(*(slot[2] for slot in slots)):
        options: list[dict[str, Any]] = [{} for _ in steps]
        for (i, name, _), value in zip(slots, values, strict=True):
            options[i][name] = value
        yield tuple(_check_step("edits", Step(s.name, o), False) for s, o in zip(steps, options, strict=True))


def _split_chain(line: str) -> list[str]:
    """Cut at " + " outside quotes."""
    # a quoted value is taken whole, with its escaped quotes, so that a plus in it separates nothing
    cuts = [match for match in _PLUS.finditer(line) if match.group().strip() == "+"]
    begins, ends = [0, *(cut.end() for cut in cuts)], [*(cut.start() for cut in cuts), len(line)]
    return [line[begin:end] for begin, end in zip(begins, ends, strict=True)]


def _seed(value: Any) -> int:
    try:
        seed = int(str(value))
    except ValueError:
        raise BadValue(
            f"seed {value!r} is not a whole number.", "Write 0, or a range for several draws: 0..4"
        ) from None
    if not 0 <= seed < 1 << 63:  # what torch.Generator.manual_seed takes without wrapping
        raise OutOfRange(f"seed {seed} is out of range; allowed: 0 .. 2^63 - 1.")
    return seed


def _words(value: Any) -> Any:
    """Return plain data with every number as the word it is written as, so that 64 and "64" hash alike."""
    if isinstance(value, dict):
        return {key: _words(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_words(v) for v in value]
    return str(value)


def _step_to_plain(step: Step) -> Any:
    return {step.name: dict(step.options)} if step.options else step.name


def _read_step(value: Any) -> Step:
    if isinstance(value, Step):
        return value
    if isinstance(value, str):
        return parse(value)
    if isinstance(value, Mapping) and len(value) == 1:
        name, options = next(iter(value.items()))
        if isinstance(name, str) and (options is None or isinstance(options, Mapping)):
            return Step(parse(name).name, {str(k): v for k, v in (options or {}).items()})
    raise BadValue(f"{value!r} is not a step.", "Write name:option=value, or {name: {option: value}}")


def _read_chain(value: Any) -> Chain:
    if isinstance(value, str):
        return chain(value)
    items = value if isinstance(value, (list, tuple)) else [value]
    return tuple(s for item in items for s in (chain(item) if isinstance(item, str) else (_read_step(item),)))


def _read_word(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise BadValue(f"{value!r} is {_kind(value)}; a word is expected.")


def _read_words(value: Any) -> tuple[str, ...]:
    return tuple(_read_word(item) for item in (value if isinstance(value, (list, tuple)) else [value]))


def _read_compare(value: Any) -> tuple[Chain, ...]:
    if not isinstance(value, (list, tuple)):
        raise BadValue(f"{_kind(value)} is not a list of chains of edits.", "Write: compare: [lowrank:rank=64, noise]")
    return tuple(_read_chain(item) for item in value)


def _read_seed(value: Any) -> int | str:
    return value if is_range(value) else _seed(value)


def _kind(value: Any) -> str:
    names = {
        str: "a word",
        int: "a number",
        float: "a number",
        bool: "true or false",
        list: "a list",
        dict: "a mapping",
    }
    return names.get(type(value), "nothing" if value is None else type(value).__name__)


_READ: dict[str, Callable[[Any], Any]] = {
    "title": _read_word, "open": _read_word, "dtype": _read_word, "steps": _read_chain, "compare": _read_compare,
    "measures": _read_chain, "text": _read_words, "seed": _read_seed,
}  # fmt: skip
