"""Shrink: find the composition of edits that keeps a model best within a budget, and write it.

A budget is bytes, lost bits per byte, or tokens per second. Prices of forms per matrix come from one pass (see
`models.sensitivity`), the best forms for a budget from the path along their hulls (see `allotting`); only a few whole
compositions are made and measured, on a small text of their own. Edits that change the shape (layers dropped, or what
`attempts` names) are tried where forms alone do not reach the budget. The winner is measured on texts that nothing
was chosen on, from the file as it was written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kobza.core.errors import BadValue, CheckFailed, OutOfRange
from kobza.core.files import sha256
from kobza.core.progress import task
from kobza.core.result import Reading, Result
from kobza.core.texts import text as read_text
from kobza.recipes import running, runs, shrink_page
from kobza.recipes.allotting import Path as Steps
from kobza.recipes.compositions import FORMS, MEASURE, Bench, calibrations, refuse_shared, write
from kobza.recipes.journal import Journal, plain
from kobza.recipes.recipe import Recipe, chain

if TYPE_CHECKING:
    from kobza.models.model import Model

SEARCH = ("topics[200000:202500]", "source[60000:62000]")
TEXT = ("topics[:5000]", "source[:5000]")
TOKENS = 2048
GAIN = 0.4  # of the price of plain rounding that second-order rounding leaves: .25 to .38 measured (LOG.md)
TRIES = 3  # whole compositions measured for one budget
MARGIN = 0.97  # of the bytes that a speed seems to allow
DROPS = (1, 2, 3, 4, 6, 8, 10, 12, 15, 18)


@dataclass(frozen=True)
class Budget:
    """What the product may cost: any of bytes at most, bits per byte lost at most, times as fast at least."""

    bytes: int | None = None
    loss: float | None = None
    speed: float | None = None


@dataclass
class Trial:
    """One whole composition as it was measured on the search texts."""

    line: str
    bytes: int
    predicted: float
    lost: float
    speed: float | None = None

    def meets(self, budget: Budget) -> bool:
        """Whether it stays within every part of a budget."""
        return (
            (budget.bytes is None or self.bytes <= budget.bytes)
            and (budget.loss is None or self.lost <= budget.loss)
            and (budget.speed is None or (self.speed or 0.0) >= budget.speed)
        )


@dataclass
class Search:
    """A search under way.

    Attributes:
        bench: measures, each thing once.
        budget: what the product may cost.
        attempts: chains of edits to try first, each alone and with layers dropped.
        base: the GGUF file that a speed is compared with.
        trials: measured so far.
        paths: of forms, by the edits before them.
        least: about the fewest bytes of each shape that was too large.
    """

    bench: Bench
    budget: Budget
    attempts: tuple[str, ...]
    base: str
    trials: list[Trial] = field(default_factory=list)
    paths: dict[str, Steps] = field(default_factory=dict)
    least: dict[str, int] = field(default_factory=dict)

    def run(self) -> list[Trial]:
        """Return the compositions that meet the budget, the best first; none where none was found."""
        for shapes in self._rounds():
            for shape, target in self._promising(shapes):
                self._approach(shape, target)
            if any(trial.meets(self.budget) for trial in self.trials):
                break
        fit = [trial for trial in self.trials if trial.meets(self.budget)]
        is_small_best = self.budget.bytes is None and self.budget.speed is None
        return sorted(fit, key=lambda t: (t.bytes, t.lost) if is_small_best else (t.lost, t.bytes))

    def _rounds(self) -> Any:
        """Shapes to try, in rounds: as it is and the attempts; then with layers dropped."""
        yield [*dict.fromkeys(["", *self.attempts])]
        order = self.bench.layers()
        for count in [count for count in DROPS if count < len(order)]:
            drop = "layer_drop:layers=" + ";".join(str(layer) for layer in sorted(order[:count]))
            # layers go first: what an attempt fits by a text, it fits for the model that is left
            yield [drop, *(f"{drop} + {attempt}" for attempt in self.attempts)]

    def _promising(self, shapes: Sequence[str]) -> list[tuple[str, int | None]]:
        """Shapes that may meet the budget, with the bytes that forms have to reach, the least predicted loss first."""
        found, target = [], self._target()
        for shape in shapes:
            if target is not None and shape and 0.98 * self._least(shape) > target:
                continue  # by far too large: not worth pricing
            own = self.bench.lost(shape, self.bench.search) if shape else 0.0
            if self.budget.loss is not None and own > self.budget.loss:
                continue
            steps = self.paths[shape] = self.bench.steps(shape)
            at = len(steps.steps) if target is None else self._within(steps, target)
            if at is not None:
                found.append((own + GAIN * steps.losses[at], shape, target))
        return [(shape, target) for _, shape, target in sorted(found, key=lambda f: f[0])[:2]]

    def _least(self, shape: str) -> int:
        """About the fewest bytes that a shape can take: as many per number as the whole model needs at least."""
        plain_path = self.bench.steps("")
        self.least[shape] = int(plain_path.bytes[-1] * self.bench.parameters(shape) / self.bench.parameters(""))
        return self.least[shape]

    def _target(self) -> int | None:
        """Bytes that the budget asks for; a speed by the rule that a token costs the reading of all weights."""
        asked = [self.budget.bytes] if self.budget.bytes is not None else []
        if self.budget.speed is not None and self.bench.form == "gguf":
            asked.append(int(MARGIN * Path(self.base).stat().st_size / self.budget.speed))
        return min(asked) if asked else None

    def _approach(self, shape: str, target: int | None) -> None:
        """Measure compositions behind one shape until one meets the budget, each nearer to it than the one before."""
        steps = self.paths[shape]
        own = self.bench.lost(shape, self.bench.search) if shape else 0.0
        gain, tried = GAIN, set[int]()
        for _ in range(TRIES):
            at = self._place(steps, target, own, gain)
            if at is None or at in tried:
                return
            tried.add(at)
            trial = self._measured(shape, steps, at, own + gain * steps.losses[at])
            if trial.meets(self.budget) and target is not None:
                return
            if self.budget.speed is not None and (trial.speed or 0) < self.budget.speed and target is not None:
                target = int(MARGIN * trial.bytes * (trial.speed or 0) / self.budget.speed)
            elif target is not None:
                return  # fewer bytes would only lose more
            elif steps.losses[at]:
                gain = max(1e-3, (trial.lost - own) / steps.losses[at])

    def _place(self, steps: Steps, target: int | None, own: float, gain: float) -> int | None:
        """Steps along a path: to the target bytes, else as far as the loss allows."""
        if target is not None:
            return self._within(steps, target)
        if self.budget.loss is None:
            return len(steps.steps)
        return steps.within_loss((self.budget.loss - own) / gain)

    def _within(self, steps: Steps, target: int) -> int | None:
        """Steps to the target bytes; all of them where only a speed sets it, which depends on more than bytes."""
        at = steps.within_bytes(target)
        is_exact = self.budget.bytes is not None and steps.bytes[-1] > self.budget.bytes
        return len(steps.steps) if at is None and self.budget.speed is not None and not is_exact else at

    def _measured(self, shape: str, steps: Steps, at: int, predicted: float) -> Trial:
        line = self.bench.line(shape, steps, at)
        with task(f"measure {line[:60]}"):
            trial = Trial(line, self.bench.stored(line), predicted, self.bench.lost(line, self.bench.search))
            if self.budget.speed is not None:
                trial.speed = self.bench.speed(line, self.base)
        self.trials.append(trial)
        return trial


def shrink(
    model: str,
    *,
    to: str = "",
    lose: float | None = None,
    speed: str = "",
    text: Sequence[str] = TEXT,
    search: Sequence[str] = SEARCH,
    form: str = "gguf",
    of: str = "",
    attempts: Sequence[str] = (),
    calibration_tokens: int = TOKENS,
    out: str | Path | None = None,
    folder: str | Path | None = None,
    dtype: str = "",
) -> Result:
    """Find the composition that loses least within a budget of bytes or speed, or is smallest within one of loss.

    Args:
        model: what to open.
        to: bytes of all tensors at most: "60%" of the base, or a size ("80M").
        lose: bits per byte lost at most [bit/B, 0 ..].
        speed: tokens per second at least, as a multiple of the base's ("2x").
        text: the winner is measured on these, and nothing is chosen on them.
        search: compositions are compared on these.
        form: of the product: gguf (llama.cpp), codes (a folder of kobza), hf (plain transformers, bfloat16).
        of: what the base is: file (the GGUF file it came from), 16 (all weights at 16 bits), opened (as they are in
            memory); by default file where there is one and the product is a GGUF file, else 16.
        attempts: chains of edits that change the shape, tried before layers are dropped.
        calibration_tokens: read by second-order rounding [count, 2 ..].
        out: where to write the winner: a new folder, or a file for gguf; with its card and its recipe.
        folder: where the journal is kept; by default in the runs folder, by model and texts.
        dtype: number format to open in.

    Returns:
        Readings of the winner on the held-out texts, taken from what was written; a table of all compositions
        measured with a picture of the frontier; in `made_by` the winner's recipe.

    Raises:
        BadValue, OutOfRange: no budget, or one that cannot be read.
        NotComparable: a text to choose or calibrate on is the test text, or shares 2 % of its bytes with it.
        CheckFailed: no composition found meets the budget; the message gives the best that was reached.
        CannotWrite: the place of the winner cannot be written; nothing is left there.
    """
    if form not in FORMS:
        raise BadValue(f"no product {form!r}; there are: {', '.join(FORMS)}.")
    wanted = Recipe(open=model, text=tuple(text), measures=(MEASURE, *_more()), dtype=dtype, title="").check()
    texts, searched = ([read_text(name) for name in names] for names in (text, search))
    refuse_shared(texts, searched, "the search text")
    lines = [*attempts, "gptq"]
    refuse_shared(texts, calibrations(lines), "the calibration text")
    for line in attempts:
        chain(line)
    place = runs.begin(wanted, Path(folder) if folder else _folder(wanted, search)).folder
    with Journal(place / runs.JOURNAL) as journal:
        bench = Bench(wanted, searched, form, journal, calibration_tokens, place)
        bases = base_bytes(bench.whole)
        chosen = of or ("file" if form == "gguf" and "file" in bases else "16")
        if chosen not in bases:
            raise BadValue(f"there is no base {chosen!r} for {model!r}; there are: {', '.join(bases)}.")
        budget = read_budget(to, lose, speed, bases[chosen])
        found = Search(bench, budget, tuple(attempts), _base_file(bench, chosen, place) if budget.speed else "")
        fit = found.run()
        if not fit:
            raise _unreached(found, budget, bases[chosen], chosen)
        result = _finish(found, fit, budget, wanted, bases, chosen, out)
    for path in place.glob("base-*.gguf*"):  # what speeds were compared with
        path.unlink()
    result.save(place / runs.RESULT, replace=True)
    return result


def _more() -> tuple[Any, ...]:
    return chain("stored_bytes")


def _folder(recipe: Recipe, search: Sequence[str]) -> Path:
    digest = sha256(plain([recipe.hash, list(search)]).encode())[: runs.DIGITS]
    name = re.sub(r"[^A-Za-z0-9.]+", "-", Path(recipe.open).name).strip("-.")[:60]
    return runs.runs_dir() / f"{name}-shrink-{digest}"


def base_bytes(model: Model) -> dict[str, int]:
    """Tensor bytes of a model: in the GGUF file it came from, at 16 bits, as opened."""
    found = {"16": 2 * model.parameters, "opened": model.stored_bytes}
    if model.origin.kind == "gguf":
        from kobza.models.gguf_header import read_header

        tensors = read_header(model.origin.path).tensors.values()
        found = {"file": sum(tensor.nbytes for tensor in tensors)} | found
    return found


def _base_file(bench: Bench, of: str, place: Path) -> str:
    """The GGUF file that speeds are compared with; made once where the base is not the file it came from."""
    if bench.form != "gguf":
        return ""
    if of == "file":
        return bench.whole.origin.path
    path = place / f"base-{of}.gguf"
    if not path.is_file():
        from kobza.models import gguf_export

        gguf_export.export(bench.whole, path, type="f16" if of == "16" else "f32")
    return str(path)


def read_budget(to: str, lose: float | None, speed: str, base: int) -> Budget:
    """Read the words of a budget.

    Args:
        to: "60%" of the base, a size ("80M", "80000000"), or "".
        lose: bits per byte, or None.
        speed: "2x", "2", or "".
        base: bytes that a share is of.

    >>> read_budget("60%", None, "2x", 1000)
    Budget(bytes=600, loss=None, speed=2.0)

    Raises:
        BadValue: nothing is asked for, or a word is no number. OutOfRange: it is not above 0.
    """
    if not (to or speed or lose is not None):
        raise BadValue("no budget is given.", "Give --to 60%, --lose 0.02 or --speed 2x")
    size, units = None, {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
    if to:
        match = re.fullmatch(r"([\d.]+)\s*(%|[kmg]?)b?", to.strip().lower())
        if match is None or match[1].count(".") > 1 or match[1] == ".":
            raise BadValue(f"{to!r} is not a size.", "Write 60% (of the base), 80M or a number of bytes.")
        size = int(float(match[1]) * (base / 100 if match[2] == "%" else units[match[2]]))
    factor = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*x?", speed.strip().lower()) if speed else None
    if speed and factor is None:
        raise BadValue(f"{speed!r} is not a speed.", "Write 2x: twice the tokens per second of the base.")
    found = Budget(size, lose, float(factor[1]) if factor else None)
    if found.bytes == 0 or (lose is not None and not lose >= 0) or found.speed == 0:
        raise OutOfRange(f"a budget must be above 0; given: to={to!r}, lose={lose}, speed={speed!r}.")
    return found


def _unreached(found: Search, budget: Budget, base: int, of: str) -> CheckFailed:
    """Say what was reached: the composition that comes nearest, and how near."""
    model = found.bench.recipe.open
    if found.trials:
        if budget.speed is not None:
            best = max(found.trials, key=lambda t: t.speed or 0.0)
        elif budget.bytes is not None and all(t.bytes > budget.bytes for t in found.trials):
            best = min(found.trials, key=lambda t: t.bytes)
        else:
            best = min(found.trials, key=lambda t: t.lost)
        fast = f", {best.speed:.2f} times as fast" if best.speed is not None else ""
        reached = f"{best.bytes:,} bytes ({best.bytes / base:.1%} of {of}) at {best.lost:+.4f} bit/B{fast}: {best.line}"
    else:
        every = found.least | {shape: path.bytes[-1] for shape, path in found.paths.items()}
        shape, least = min(every.items(), key=lambda item: item[1])
        reached = f"{least:,} bytes ({least / base:.1%} of {of}), {shape or 'as it is'} with the smallest forms"
    asked = [f"{budget.bytes:,} bytes" if budget.bytes is not None else "",
             f"{budget.loss:+g} bit/B" if budget.loss is not None else "",
             f"{budget.speed:g} times as fast" if budget.speed is not None else ""]  # fmt: skip
    return CheckFailed(
        f"no composition of {model!r} found within {', '.join(filter(None, asked))}. The best reached: {reached}.",
        "Allow more, name edits to try with --try, or another product with --as.",
    )


def _finish(
    found: Search, fit: list[Trial], budget: Budget, wanted: Recipe, bases: dict[str, int], of: str, out: Any
) -> Result:
    """Measure the winner on the held-out texts, write it, measure what was written."""
    bench, texts = found.bench, [read_text(name) for name in wanted.text]
    winner, lost = fit[0], bench.lost(fit[0].line, texts)
    for trial in fit[1:]:  # what seemed to meet a loss on the search text may not do so here
        if budget.loss is None or lost <= budget.loss:
            break
        winner, lost = trial, bench.lost(trial.line, texts)
    if budget.loss is not None and lost > budget.loss:
        raise CheckFailed(
            f"the best composition loses {winner.lost:+.4f} bit/B on the search text, but {lost:+.4f} on the held-out "
            f"one, more than {budget.loss:+g}: {winner.line}.",
            "Ask for a little less, or search on more text: --search",
        )
    dtype = "bfloat16" if bench.form == "hf" else wanted.dtype
    recipe = Recipe(wanted.open, chain(winner.line), wanted.measures, wanted.text, 0, "", (), dtype).check()
    before, after = bench.bits("", texts, original=True), bench.bits(winner.line, texts)
    lines = shrink_page.readings(before, after, winner, bases)
    made: dict[str, Any] = {"recipe": recipe.to_dict(), "recipe_hash": recipe.hash, "bases": bases, "base": of}
    made |= {"model": {"name": bench.whole.name, "fingerprint": bench.whole.fingerprint}}
    made |= {"texts": [running.text_record(t) for t in texts], "search": [running.text_record(t) for t in bench.search]}
    made |= {"versions": running.versions(), "winner": winner.line, "held_out_loss": lost, "form": bench.form}
    if out is not None:
        write(bench.model(winner.line), Path(out), bench.form, readings=lines, recipe=recipe.to_yaml())
        made |= _written(Path(out), bench, texts, after)
    return shrink_page.result(found, winner, before, after, made)


def _written(out: Path, bench: Bench, texts: Any, expected: list[Reading]) -> dict[str, Any]:
    """Measure the product from where it was written, and hold it against what it should be.

    Raises:
        CheckFailed: it predicts the texts otherwise than the composition it was made of.
    """
    from kobza.core.files import sha256_file
    from kobza.models import opening

    again = opening.open(str(out), dtype="bfloat16" if bench.form == "hf" else None)
    readings = [running.read(again, text, MEASURE) for text in texts]
    worst = max(abs(r.value - e.value) for r, e in zip(readings, expected, strict=True) if r is not None)
    if worst > 1e-4:
        raise CheckFailed(f"'{out}' opened again differs by {worst:.2g} bit/B from what was written.", "Remove it.")
    weights = sorted(out.glob("*.safetensors")) if out.is_dir() else [out]
    return {
        "written": str(out), "reopened_difference": worst,
        "files": {file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)} for file in weights},
    }  # fmt: skip
