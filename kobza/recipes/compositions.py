"""What a search over compositions of edits measures, each figure once: kept in a journal, so that a kill costs one.

A composition is a chain of edits as one line. Its first part may change the shape of the model; its last gives every
matrix a form: a block format of codes that the product can hold.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from kobza.core.errors import BadValue, KobzaError
from kobza.core.files import sha256
from kobza.core.options import Step
from kobza.core.result import Reading
from kobza.core.texts import Text
from kobza.recipes import running
from kobza.recipes.allotting import Path as Steps
from kobza.recipes.allotting import Price, path, patterns
from kobza.recipes.journal import Journal, plain
from kobza.recipes.recipe import Recipe, chain
from kobza.recipes.sweep import code

if TYPE_CHECKING:
    from kobza.models.model import Model

GGUF = ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")  # blocks that llama.cpp reads, for rows of 32 columns
INT = {"int4/128": "bits=4,block=128", "int3/32": "bits=3", "int3/64": "bits=3,block=64", "int2/32": "bits=2"}
FORMS = {"gguf": GGUF, "codes": (*GGUF, *INT), "hf": ()}
COARSE = ("q4_1", "q4_0", *INT)  # forms for which it pays to let the columns make up for each other
HARMLESS = 1e-4  # bit/B: what plain rounding costs less than this is rounded plainly
MEASURE = Step("bits_per_byte", {"window": 511, "overlap": 0})
PRICED = 2000  # bytes of the search text that prices are taken on
TOKENS = 48  # generated for a speed


@dataclass
class Bench:
    """A model, the texts it is judged on, and what was measured so far.

    Attributes:
        recipe: what to open; its texts are those the winner is measured on in the end.
        search: texts the search measures on.
        form: of the product: gguf, codes (a folder of kobza) or hf (a folder of plain transformers).
        journal: of all figures.
        tokens: read by second-order rounding.
        folder: for files that a speed is measured from.
    """

    recipe: Recipe
    search: Sequence[Text]
    form: str
    journal: Journal
    tokens: int
    folder: Path
    _models: dict[str, Any] = field(default_factory=dict)
    _felt: tuple[str, Any] | None = None

    def model(self, line: str = "") -> Model:
        """The model after a chain of edits; the last two are kept. In bfloat16 where the product is dense."""
        if line not in self._models:
            for old in [key for key in self._models if key][:-1]:
                del self._models[old]
            if not line:
                dtype = "bfloat16" if self.form == "hf" else self.recipe.dtype
                self._models[line] = running.open_model(Recipe(open=self.recipe.open, dtype=dtype))
            else:
                self._models[line] = running.apply(self.model(), chain(line))
        found: Model = self._models[line]
        return found

    @property
    def whole(self) -> Model:
        """The model as it is opened, which everything is compared with."""
        if self.form != "hf":
            return self.model()
        if "whole" not in self._models:
            self._models = {"whole": running.open_model(self.recipe)} | self._models
        found: Model = self._models["whole"]
        return found

    def once(self, what: str, make: Callable[[], Mapping[str, Any]], line: str = "", **decisive: Any) -> dict[str, Any]:
        """Return what the journal holds, or make it and write it down.

        The key is the hash of all that decides the outcome: weights, tokenizer, chain and the code of its techniques,
        versions of the libraries, and what else is given.
        """
        about = {
            "what": what, "line": line, "form": self.form, "weights": self.model().fingerprint,
            "tokenizer": self.model().tokenizer.fingerprint, "versions": running.versions(),
            "code": [code("edits", step.name) for step in chain(line)], **decisive,
        }  # fmt: skip
        key = sha256(plain(about).encode())
        entry = self.journal.entry(key)
        if entry is not None and entry.outcome is not None:
            return entry.outcome
        found: dict[str, Any] = json.loads(plain(make()))  # as a later run will read it, order of keys and all
        self.journal.add({key: {"what": what, "line": line}})
        self.journal.finish(key, found)
        return found

    def bits(self, line: str, texts: Sequence[Text], original: bool = False) -> list[Reading]:
        """Bits per byte of a composition on each text."""

        def make() -> dict[str, Any]:
            model = self.whole if original else self.model(line)
            readings = [running.read(model, text, MEASURE) for text in texts]
            return {"readings": [reading.to_json() for reading in readings if reading is not None]}

        names = [text.sha256 for text in texts]
        found = self.once("bits", make, line, texts=names, measure=MEASURE.options, original=original)
        return [Reading.from_json(reading) for reading in found["readings"]]

    def lost(self, line: str, texts: Sequence[Text]) -> float:
        """Bits per byte that a composition costs, mean over the texts; each text counts by its bytes."""
        before, after = (self.bits(*given) for given in (("", texts, True), (line, texts)))
        size = sum(len(text) for text in texts)
        return sum((b.value - a.value) * len(t) for a, b, t in zip(before, after, texts, strict=True)) / size

    def stored(self, line: str) -> int:
        """Tensor bytes of a composition; a GGUF file writes a block that stands twice twice."""

        def make() -> dict[str, int]:
            model = self.model(line)
            every = model.matrices if self.form == "gguf" else {}
            again = [every[m.shared].bytes for m in every.values() if m.shared not in ("", "embed.in")]
            return {"bytes": model.stored_bytes + sum(again)}

        found: int = self.once("stored", make, line)["bytes"]
        return found

    def parameters(self, line: str) -> int:
        """Numbers stored by a composition."""
        found: int = self.once("parameters", lambda: {"count": self.model(line).parameters}, line)["count"]
        return found

    # --- prices -------------------------------------------------------------------------------------------------------

    def steps(self, shape: str) -> Steps:
        """The path from the best to the smallest forms of all matrices, behind edits that change the shape."""
        frame = self.once("frame", lambda: self._frame(shape), shape)
        prices: dict[str, list[Price]] = {name: [] for name in frame["names"]}
        for form in FORMS[self.form]:
            found = self.once("prices", partial(self._priced, shape, form), shape, of=form, text=self._hash)
            for name, (size, loss) in found.items():
                prices[name].append(Price(form, size, loss))
        return path(prices, frame["fixed"])

    @property
    def _data(self) -> bytes:
        return b"".join(text.data[: PRICED // len(self.search)] for text in self.search)

    @property
    def _hash(self) -> str:
        return sha256(self._data)

    def _frame(self, shape: str) -> dict[str, Any]:
        """Names of the matrices that get a form, and the bytes of everything else."""
        model = self.model(shape)
        names = [*model.find("blocks"), *model.find("embed")] if FORMS[self.form] else []
        held = sum(model.matrices["embed.in" if name == "embed" else name].bytes for name in names)
        return {"names": names, "fixed": model.stored_bytes - held}

    def _priced(self, shape: str, form: str) -> dict[str, tuple[int, float]]:
        """Price a form of every matrix by how the model feels the change that plain rounding to it makes."""
        from kobza.models import sensitivity

        model = self.model(shape)
        if self._felt is None or self._felt[0] != shape:
            self._felt = (shape, sensitivity.listen(model, self._data))
        fitting = [n for n in self._frame(shape)["names"] if fits(model.matrix(n).shape[1], form)]
        rounded = running.apply(model, chain(f"rounding:{options(form)},where={_quoted(','.join(fitting))}"))
        sizes = {n: rounded.matrices["embed.in" if n == "embed" else n].bytes for n in fitting}
        every = sensitivity.changes(model, rounded, fitting)
        return {name: (sizes[name], self._felt[1].bits(name, change)) for name, change in every}

    def line(self, shape: str, steps: Steps, count: int) -> str:
        """The composition behind so many steps of a path, as a chain of edits."""
        forms, parts = steps.forms(count), [shape] if shape else []
        costs = {(name, price.form): price.loss for name, *prices in steps.steps for price in prices}
        for form in dict.fromkeys(forms.values()):
            chosen = [name for name, own in forms.items() if own == form]
            blocks = [name for name in chosen if name.startswith("blocks.")]
            ends = [name for name in chosen if name not in blocks]
            if blocks:
                felt = form in COARSE and sum(costs.get((name, form), 0.0) for name in blocks) > HARMLESS
                verb = f"gptq:calibration_tokens={self.tokens}," if felt else "rounding:"
                parts.append(f"{verb}{options(form)},where={_quoted(patterns(blocks, [*forms]))}")
            if ends:
                felt = form in COARSE and sum(costs.get((name, form), 0.0) for name in ends) > HARMLESS
                parts.append(f"rounding:{options(form)}{',rule=search' * felt},where={_quoted(','.join(ends))}")
        return " + ".join(parts)

    # --- shapes -------------------------------------------------------------------------------------------------------

    def layers(self) -> list[int]:
        """Layers in the order in which they are missed least, one at a time (see `edits.layer_drop.table`)."""

        def make() -> dict[str, Any]:
            from kobza.edits import layer_drop

            table = layer_drop.table(self.model(), self.search, tokens=512)
            return {"order": [row["layer"] for row in sorted(table, key=lambda row: row["loss"])]}

        found: list[int] = self.once("layers", make, texts=[text.sha256 for text in self.search])["order"]
        return found

    # --- speed --------------------------------------------------------------------------------------------------------

    def speed(self, line: str, base: str) -> float:
        """How many times as many tokens per CPU second a composition generates as the base, both in one run.

        A GGUF file is run by llama.cpp against the file `base`, a folder of transformers by kobza's own step against
        the model as opened.

        Raises:
            BadValue: codes of a folder of kobza are made dense before they are run: they have no speed of their own.
            MissingExtra: llama.cpp is not installed.
        """
        if self.form == "codes":
            raise BadValue("codes in a folder run as the dense model does.", "Ask for a speed with --as gguf or hf.")
        found: float = self.once("speed", lambda: self._timed(line, base), line, base=base)["ratio"]
        return found

    def _timed(self, line: str, base: str) -> dict[str, Any]:
        from kobza.models import opening

        if self.form == "hf":
            return rates(self.whole, self.model(line), "")
        with TemporaryDirectory(dir=self.folder) as place:
            path = Path(place) / "timed.gguf"
            write(self.model(line), path, "gguf")
            return rates(opening.open(base), opening.open(str(path)), "llama")


def rates(base: Model, other: Model, backend: str) -> dict[str, float]:
    """Tokens per CPU second of two models that take turns, least time of three each, and their ratio."""
    best: dict[str, float] = {}
    for turn in range(3):
        for name, model in (("base", base), ("other", other)):
            seconds = _generation(model, backend)
            best[name] = min(best.get(name, seconds), seconds) if turn else seconds
    return {name: TOKENS / seconds for name, seconds in best.items()} | {"ratio": best["base"] / best["other"]}


def _generation(model: Model, backend: str) -> float:
    """CPU seconds of generating `TOKENS` tokens behind a prompt of 16."""
    from kobza.models.stepping import steps

    run = steps(model, backend=backend)
    logits = run.feed([[n % model.vocabulary for n in range(1, 17)]])
    begin = time.process_time()
    for _ in range(TOKENS):
        logits = run.feed([[int(logits.argmax())]])
    return time.process_time() - begin


def options(form: str) -> str:
    """Options of `rounding` and `gptq` that give a form."""
    return INT.get(form, f"format={form}")


def fits(columns: int, form: str) -> bool:
    """Whether rows of so many columns can be stored in a form."""
    return columns % 32 == 0 or form == "f16" or form in INT


def _quoted(where: str) -> str:
    return f'"{where}"' if "," in where else where


def write(model: Model, path: Path, form: str, *, readings: Sequence[str] = (), recipe: str = "") -> None:
    """Write a product with its card and its recipe; it is opened again and compared. All of it is there, or nothing.

    Args:
        model: what to write.
        path: a file for gguf, a folder else.
        form: gguf, codes or hf.
        readings: lines for its card.
        recipe: YAML that makes it again; "" writes neither recipe nor card beside a GGUF file.
    """
    if form != "gguf":
        model.save(path, readings=readings, texts={"recipe.yaml": recipe} if recipe else {})
        return
    from kobza.models import gguf_export

    gguf_export.export(model, path, type="f16", readings=readings, texts={"yaml": recipe} if recipe else {})


def refuse_shared(texts: Sequence[Text], others: Sequence[Text], what: str) -> None:
    """Refuse texts that are used in the search and measured in the end.

    Raises:
        NotComparable: they share 2 % of their bytes in copied runs.
    """
    from kobza.core.errors import NotComparable
    from kobza.edits.base import shared_bytes

    for test in texts:
        for other in others:
            share = 1.0 if other.sha256 == test.sha256 else shared_bytes(other, test) / len(test)
            if share >= 0.02:
                raise NotComparable(
                    f"{what} {other.name!r} holds {share:.0%} of the test text {test.name!r}.",
                    "Name another test text with --text, or another one to search with: --search",
                )


def calibrations(lines: Sequence[str]) -> list[Text]:
    """Texts that the edits of some chains read, as their options and defaults name them."""
    from kobza.core.texts import text
    from kobza.recipes.recipe import described

    found: dict[str, Text] = {}
    for line in lines:
        for step in chain(line):
            known = {option.name: option.default for option in described("edits", step.name)}
            names = step.options.get("calibration", known.get("calibration")) or ()
            for name in running.names_of(names):
                try:
                    found[name] = text(name)
                except KobzaError:
                    continue  # the edit itself will say so
    return list(found.values())
