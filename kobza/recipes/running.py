"""Run a recipe: open, fork, apply, measure. Only the modules that the recipe names are imported."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

from kobza.core import techniques
from kobza.core.errors import BadValue
from kobza.core.options import Step, check, spell
from kobza.core.progress import progress, task
from kobza.core.result import Reading, Result
from kobza.core.table import Table
from kobza.core.texts import Text
from kobza.core.texts import text as read_text
from kobza.recipes.recipe import Chain, Recipe, described, spell_chain, with_seed

if TYPE_CHECKING:
    from kobza.models.model import Model

PACKAGES = ("kobza", "torch", "transformers", "tokenizers", "safetensors", "gguf", "numpy")
COMPARISON = "Before and after"


def run(recipe: Recipe | Mapping[str, Any] | str | Path, *, model: Model | None = None) -> Result:
    """Open the model, measure it, apply the edits, measure again.

    Args:
        recipe: a Recipe, its plain data, or the path of its YAML file.
        model: an opened model to start from instead of the one the recipe names.

    Returns:
        Readings of the edited model, under "NAME, unedited" those of the unedited one; a table with both, the factor
        between them and the paired interval of their difference; a table of the changes; samples of text.

    Raises:
        BadValue: the recipe is a sweep.
        KobzaError: whatever opening, editing or measuring refuses.
    """
    return execute(recipe, model=model)[0]


def execute(recipe: Recipe | Mapping[str, Any] | str | Path, *, model: Model | None = None) -> tuple[Result, Model]:
    """Do what `run` does, and return the edited model as well."""
    recipe = as_recipe(recipe).check()
    if recipe.is_sweep:
        raise BadValue("this recipe has ranges or alternatives: it is a sweep.", "Use kobza.sweep, or kobza run FILE.")
    point = recipe.points()[0]
    texts = [read_text(name) for name in recipe.text]
    measures = with_seed("measures", recipe.measures, point.seed)
    _refuse_named(point.chain, texts, measures)
    original = model if model is not None else open_model(recipe)
    with task("measure", len(texts) * len(measures) * (2 if point.chain else 1)) as work:
        before = [read_all(original, t, measures, None, work) for t in texts]
        changed = apply(original, point.chain)
        after = [read_all(changed, t, measures, original, work) for t in texts] if point.chain else before
    result = Result(title=recipe.title or _title(original, point.chain), made_by=made_by(recipe, original, texts))
    result.made_by["changes"] = [change.to_json() for change in changed.changes]
    _fill(result, texts, before if point.chain else None, after)
    if point.chain:
        result.tables.append(changes_table(changed.changes[len(original.changes) :]))
    return result, changed


def _refuse_named(chain: Chain, texts: Sequence[Text], measures: Iterable[Step]) -> None:
    """Refuse, before any work, a test text that an edit is told to read; `read` compares what defaults name as well."""
    named = [(step.name, step.options["calibration"]) for step in chain if "calibration" in step.options]
    if not named:
        return
    from kobza.edits.base import calibration_facts, refuse_calibration
    from kobza.models.model import Change

    changes = []
    for name, given in named:
        read = [read_text(each) for each in names_of(given)]
        changes.append(Change(name, facts={"calibration": calibration_facts(read, 0)}))
    for step in measures:
        defaults = {option.name: option.default for option in described("measures", step.name)}
        limit = int(step.options.get("limit", defaults.get("limit")) or 0)
        for text in texts:
            refuse_calibration(changes, text[:limit] if 0 < limit < len(text) else text)


def names_of(given: str | Iterable[str]) -> list[str]:
    """Return the texts that an option names: one word with semicolons, or several.

    >>> names_of("topics[:9];poems.txt")
    ['topics[:9]', 'poems.txt']
    """
    return given.split(";") if isinstance(given, str) else list(given)


def as_recipe(value: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
    """Return the Recipe that plain data or the path of a YAML file describe."""
    if isinstance(value, Recipe):
        return value
    return Recipe.from_dict(value) if isinstance(value, Mapping) else Recipe.load(value)


def open_model(recipe: Recipe) -> Model:
    """Open the model that a recipe names, in the number format it names."""
    from kobza.models import opening

    with task(f"open {recipe.open}"):
        return opening.open(recipe.open, dtype=recipe.dtype or None)


def apply(model: Model, chain: Chain) -> Model:
    """Return the model after the edits, one after another; without edits, the model itself."""
    for step in progress(chain, "edit"):
        verb = techniques.verb("edits", step.name)
        model = verb(model, **check(verb, step.options, what=f"edit {step.name!r}"))
    return model


def read(model: Model, text: Text, step: Step, original: Model | None = None) -> Reading | None:
    """Take one measure of a model on a text.

    Args:
        model: the model to measure.
        text: on what.
        step: the measure and its options.
        original: the unedited model, for measures that compare with it.

    Returns:
        The reading under the name `label(step)`; None where the measure compares and `original` is None.

    Raises:
        NotComparable: an edit of the model was calibrated on the text, or on a part of it.
    """
    verb = techniques.verb("measures", step.name)
    given = check(verb, step.options, what=f"measure {step.name!r}")
    if "original" in inspect.signature(verb).parameters:
        if original is None:
            return None
        given["original"] = original
    reading: Reading = verb(model, text, **given)
    if "text" in reading.record and model.changes:
        from kobza.edits.base import refuse_calibration

        size = reading.record["text"]["bytes"]  # what was read of it: measures cut a text to their limit
        refuse_calibration(model.changes, text[:size] if size < len(text) else text)
    return replace(reading, name=label(step))


def read_all(
    model: Model, text: Text, measures: Iterable[Step], original: Model | None, work: Any = None
) -> list[Reading]:
    """Take every measure that can be taken; steps of `work` report it."""
    found = []
    for step in measures:
        reading = read(model, text, step, original)
        if reading is not None:
            found.append(reading)
        if work is not None:
            work.step(note=label(step))
    return found


def label(step: Step) -> str:
    """Return the name of a reading: the measure, with options that the user gave; the seed is not named."""
    return spell(Step(step.name, {k: v for k, v in step.options.items() if k != "seed"}))


def made_by(recipe: Recipe, model: Model, texts: Sequence[Text]) -> dict[str, Any]:
    """Return what is needed to run the recipe again: the recipe, hashes of model and texts, versions."""
    import torch

    return {
        "recipe": recipe.to_dict(),
        "recipe_hash": recipe.hash,
        "model": {"name": model.name, "fingerprint": model.fingerprint, "origin": model.origin.spec},
        "texts": [text_record(t) for t in texts],
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }


def text_record(text: Text) -> dict[str, Any]:
    """Return what tells one text from another."""
    return {
        "name": text.name,
        "sha256": text.sha256,
        "bytes": len(text),
        "origin": text.origin,
        "licence": text.licence,
    }


def versions() -> dict[str, str]:
    """Return the versions of everything that could move a figure."""
    found = {"python": python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a checkout without installing, or an extra left out
            found[name] = "not installed"
    return found


def comparison_table(texts: Sequence[Text], before: Sequence[list[Reading]], after: Sequence[list[Reading]]) -> Table:
    """Return a row per text and measure: unedited, edited, factor, and the paired interval of the difference."""
    rows = []
    for text, olds, news in zip(texts, before, after, strict=True):
        known = {r.name: r for r in olds}
        rows += [compared_row(text.name, known.get(new.name), new) for new in news]
    note = "low .. high: 95 % interval of edited - unedited, paired over chunks of the text"
    order = [c for c in rows[0] if any(row[c] is not None for row in rows)] if rows else []
    return Table([{c: row[c] for c in order} for row in rows], title=COMPARISON, note=note)


def compared_row(text: str, old: Reading | None, new: Reading) -> dict[str, Any]:
    """Return one row of a comparison; what cannot be compared stays empty."""
    row = {"text": text, "measure": new.name, "unit": new.unit, "unedited": old.value if old else None}
    row |= {
        "edited": new.value,
        "factor": None,
        "difference": None,
        "low": None,
        "high": None,
        "note": new.note or None,
    }
    if old is not None and not old.differs(new):
        gap = old.compare(new)
        row |= {"factor": gap.record.get("factor"), "difference": gap.value, "low": gap.low, "high": gap.high}
    return row


def changes_table(changes: Iterable[Any]) -> Table:
    """Return a row per edit: what it did and what it says of itself (facts that are single values)."""
    rows = []
    for change in changes:
        row = {"edit": str(change), "kind": change.kind, "matrices": len(change.matrices)}
        rows.append(row | {k: v for k, v in change.facts.items() if isinstance(v, (int, float, str, bool))})
    return Table(rows, title="Changes")


def _fill(
    result: Result, texts: Sequence[Text], before: list[list[Reading]] | None, after: list[list[Reading]]
) -> None:
    for i, text in enumerate(texts):
        place = f", {text.name}" if len(texts) > 1 else ""
        result.readings += [replace(r, name=f"{r.name}{place}") for r in after[i]]
        if before is not None:
            result.readings += [replace(r, name=f"{r.name}{place}, unedited") for r in before[i]]
        for which, readings in (("unedited", before[i] if before else []), ("edited" if before else "", after[i])):
            result.samples += [s for r in readings for s in sample_of(r, which)]
    if before is not None:
        result.tables.append(comparison_table(texts, before, after))


def sample_of(reading: Reading, which: str) -> list[dict[str, str]]:
    """Return the text a reading carries along (the measure `sample` does), titled."""
    found = reading.record.get("sample")
    if not isinstance(found, Mapping):
        return []
    title = f"{reading.name}, {which}" if which else reading.name
    return [{"title": title, "prompt": str(found.get("prompt", "")), "text": str(found.get("text", ""))}]


def _title(model: Model, chain: Chain) -> str:
    return f"{model.name}: {spell_chain(chain)}" if chain else f"{model.name}"
