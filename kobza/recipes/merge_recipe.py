"""Merge recipes as YAML, in the words of mergekit where they say the same.

    merge_method: ties                 # linear, slerp, task_arithmetic, ties, dare_linear, dare_ties, passthrough
    base_model: smollm2                # for task_arithmetic, ties, dare; for slerp the end at t = 0
    models:
      - model: folder/of/another
        parameters: {weight: 0.5, density: 0.5}
    parameters: {t: 0.5}               # for slerp
    slices:                            # for passthrough, in place of models
      - sources: [{model: smollm2, layer_range: [0, 15]}]
    seed: 1                            # for dare

Source of the form: mergekit, docs/merge_methods.md (github.com/arcee-ai/mergekit); Goddard et al. (2024),
arXiv:2403.13257.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kobza.core.errors import BadValue, MissingFile, UnknownName, UnknownOption, guess
from kobza.core.options import Step
from kobza.core.result import Result
from kobza.core.table import Table
from kobza.core.texts import Text
from kobza.core.texts import text as read_text
from kobza.recipes import running
from kobza.recipes.recipe import SIZE_LIMIT, TEXT, Recipe

METHODS = {
    "linear": "linear", "slerp": "slerp", "task_arithmetic": "task", "ties": "ties", "dare_linear": "dare",
    "dare_ties": "dare_ties", "passthrough": "passthrough",
}  # fmt: skip
FIELDS = ("merge_method", "base_model", "models", "slices", "parameters", "dtype", "seed", "tokenizer_source")
OPTIONS = ("weight", "density", "t", "normalize")


@dataclass(frozen=True)
class Merge:
    """What a merge recipe asks for.

    Attributes:
        first: the model to start from, as `kobza.open` takes it.
        options: of the edit `merging`.
        dtype: number format to open in; "" for the usual.
    """

    first: str
    options: Mapping[str, Any]
    dtype: str = ""

    @property
    def recipe(self) -> Recipe:
        """The same as a recipe of kobza."""
        return Recipe(open=self.first, steps=(Step("merging", dict(self.options)),), dtype=self.dtype)


def load(path: str | Path) -> Merge:
    """Read a merge recipe from a file.

    Raises:
        MissingFile: there is none. BadValue: it is larger than 1 MiB, no YAML, or no merge recipe. Others: see `read`.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(
            f"there is no recipe '{path}'.", "A merge recipe is a YAML file; kobza merge --help shows one."
        )
    if path.stat().st_size > SIZE_LIMIT:
        raise BadValue(f"'{path}' has {path.stat().st_size} bytes; a recipe has at most {SIZE_LIMIT}.")
    from kobza.recipes.reading import read_yaml

    try:
        data, where = read_yaml(path.read_text(encoding="utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise BadValue(f"'{path}' is not UTF-8 text (byte {error.start}).") from None
    return read(data, where)


def run(merge: Merge, *, save: Path | None = None, line: int = 0, text: Sequence[str] = ()) -> Result:
    """Merge, measure every model and the merged one where a text is named, and write it.

    Args:
        merge: what to merge.
        save: a new folder for the merged model.
        line: points on the straight line from the first model to the other [count, 0 or 2 ..].
        text: texts to measure on; for a line the first, or the usual one.

    Raises:
        BadValue: a line between other than two models.
        WrongTensors, WrongVocabulary: models that do not mean the same; see `edits.merging.require_alike`.
    """
    from kobza.edits import merging
    from kobza.models import opening

    recipe = merge.recipe.check()
    others = merge.options.get("others", ())
    if line and len(others) != 1:
        raise BadValue(f"a line goes between two models; the recipe names {1 + len(others)}.")
    first = running.open_model(recipe)
    made_by = {"recipe": recipe.to_dict(), "recipe_hash": recipe.hash, "versions": running.versions()}
    if line:
        other = opening.open(others[0], dtype=merge.dtype or None)
        table = merging.barrier(first, other, read_text((text or TEXT)[0]), points=line)
        return Result(table.title, tables=[table], made_by=made_by)
    merged = running.apply(first, recipe.steps)
    result = Result(f"{merged.name}: {merged.changes[-1]}", made_by=made_by)
    for name in text:
        models = {merge.first: first} | {one: opening.open(one, dtype=merge.dtype or None) for one in others}
        result.tables.append(_measured(models | {"merged": merged}, read_text(name)))
    result.tables.append(running.changes_table(merged.changes[-1:]))
    if save is not None:
        lines = [f"{row['bits_per_byte']:.4f} bits per byte: {row['model']}" for t in result.tables[:-1] for row in t]
        made_by["saved"] = str(merged.save(save, readings=lines, texts={"recipe.yaml": recipe.to_yaml()}))
    return result


def _measured(models: Mapping[str, Any], text: Text) -> Table:
    """A row per model with its bits per byte."""
    step = Step("bits_per_byte", {})
    readings = {name: running.read(model, text, step) for name, model in models.items()}
    rows = [
        {"model": name, "bits_per_byte": r.value, "low": r.low, "high": r.high} for name, r in readings.items() if r
    ]
    return Table(rows, title=f"On {text.name}", units={"bits_per_byte": "bit/B"})


def read(data: Any, where: Any = lambda *path: "") -> Merge:
    """Read plain data.

    Raises:
        UnknownName: the method. UnknownOption: a field that is not known here.
        BadValue: a field of the wrong form, or options that merge otherwise than this does (densities that differ).
    """
    if not isinstance(data, Mapping):
        raise BadValue("a merge recipe is a list of fields.", f"Fields: {', '.join(FIELDS)}")
    for name in data:
        if name not in FIELDS:
            raise UnknownOption(f"a merge recipe has no field {name!r}{where(name)}.{guess(str(name), FIELDS)}")
    method = data.get("merge_method", "linear")
    if method not in METHODS:
        raise UnknownName.of("merge method", str(method), METHODS)
    if data.get("tokenizer_source") not in (None, "base", "union"):
        raise BadValue(
            f"tokenizer_source{where('tokenizer_source')}: the vocabularies must be equal, it takes no source."
        )
    if method == "passthrough":
        first, options = _stack(data)
    else:
        first, options = _blend(data, method)
    if method.startswith("dare"):
        options["random"] = int(data.get("seed", 1))
    return Merge(first, {"method": METHODS[method]} | options, str(data.get("dtype") or ""))


def _blend(data: Mapping[str, Any], method: str) -> tuple[str, dict[str, Any]]:
    models = data.get("models")
    if not isinstance(models, list) or not models:
        raise BadValue("models: is no list of models.", "Write: models: [{model: smollm2}, {model: other}]")
    common = _parameters(data)
    given = [(_name(one), common | _parameters(one)) for one in models]
    base = data.get("base_model")
    if method == "linear" or base is None:
        if method not in ("linear", "slerp"):
            raise BadValue(f"{method} needs base_model: the model that the others were trained from.")
        first, rest = given[0][0], given[1:]
        weights = [own.get("weight", 1.0) for _, own in given]
    else:
        first, rest = str(base), [(name, own) for name, own in given if name != str(base)]
        weights = [own.get("weight", 1.0) for _, own in rest]
    options: dict[str, Any] = {"others": [name for name, _ in rest]}
    if method == "slerp":
        return first, options | {"t": common.get("t", 0.5)}
    options["weights"] = weights
    densities = {own["density"] for _, own in rest if "density" in own}
    if len(densities) > 1:
        raise BadValue(f"densities {sorted(densities)}: all models are thinned alike.", "Give one density.")
    return first, options | ({"density": densities.pop()} if densities and method != "linear" else {})


def _stack(data: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Layers on top of each other; every slice has one source."""
    names: list[str] = []
    spans = []
    for one in data.get("slices") or ():
        sources = one.get("sources") if isinstance(one, Mapping) else None
        if not isinstance(sources, list) or len(sources) != 1:
            raise BadValue("slices: each has one source.", "Write: - sources: [{model: A, layer_range: [0, 15]}]")
        name, span = _name(sources[0]), sources[0].get("layer_range")
        if not isinstance(span, list) or len(span) != 2:
            raise BadValue(f"layer_range {span!r} is no pair of layers.", "Write: layer_range: [0, 15]")
        names += [name] if name not in names else []
        spans.append(f"{names.index(name)}:{span[0]}-{span[1]}")
    if not spans:
        raise BadValue("passthrough needs slices.", "Write: slices: [{sources: [{model: A, layer_range: [0, 15]}]}]")
    return names[0], {"others": names[1:], "slices": spans}


def _name(one: Any) -> str:
    if not isinstance(one, Mapping) or not isinstance(one.get("model"), str):
        raise BadValue(f"{one!r} names no model.", "Write: {model: smollm2, parameters: {weight: 1.0}}")
    return str(one["model"])


def _parameters(one: Any) -> dict[str, float]:
    """Numbers among the parameters of a recipe or of one of its models.

    Raises:
        UnknownOption: another one. BadValue: no number, or normalize: false.
    """
    given = one.get("parameters") or {}
    if not isinstance(given, Mapping):
        raise BadValue(f"parameters {given!r} is no mapping.", "Write: parameters: {weight: 1.0}")
    for name, value in given.items():
        if name not in OPTIONS:
            raise UnknownOption(f"a merge has no parameter {name!r}.{guess(str(name), OPTIONS)}")
        if name != "normalize" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise BadValue(
                f"{name}: {value!r} is not a number.", "Gradients and filters over layers are not read here."
            )
        if name == "normalize" and value is not True:
            raise BadValue("normalize: false is not offered: linear and ties divide by the sum of the weights.")
    return {name: float(value) for name, value in given.items() if name != "normalize"}
