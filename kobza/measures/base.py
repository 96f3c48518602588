"""What all measures share: the text as tokens, the record of how a figure was taken, chunks for its spread.

A technique of this room gives `measure(model, text, *, ...) -> Reading`. `text` is a `Text`, bytes, a path, or the
name of a text ("topics", "source", "ukrainian", "topics[4000:8000]").

Spread: the text is cut into chunks at fixed bytes, equal for all models and vocabularies; what a token costs is shared
out over its bytes. The interval is a bootstrap over these chunks (`Reading.from_parts`), and because equal chunks are
drawn for every reading, two readings of one text are compared paired.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from kobza.codecs._lockstep import within
from kobza.codecs._spelling import Spelled, runs, spell
from kobza.core.errors import EmptyText, NotFinite, OutOfRange
from kobza.core.result import Reading
from kobza.core.texts import Text
from kobza.core.texts import text as open_text
from kobza.models.model import Model

LIMIT = 20_000  # bytes read when nothing is said: about 20 s for 135M parameters on one core
CHUNKS = 32
CHUNK_BYTES = 64  # a chunk is not made shorter: bytes of one word say nothing about the spread of a text
LITERAL_BITS = 8.0  # a byte that no token says is charged as itself

Given = str | bytes | Path | Text


@dataclass(frozen=True)
class Sample:
    """A text as a model reads it.

    Attributes:
        text: the bytes measured.
        spelled: its tokens (T), and the bytes that no token says.
        sizes: bytes of every item, tokens and literals in the order of the text (T + literals).
        is_token: which items are tokens (T + literals).
        whole: bytes of the text before it was cut to the limit.
    """

    text: Text
    spelled: Spelled
    sizes: NDArray[np.int64]
    is_token: NDArray[np.bool_]
    whole: int

    @property
    def ids(self) -> list[int]:
        """The tokens (T)."""
        return self.spelled.ids

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """The byte behind every item."""
        return np.cumsum(self.sizes)

    def chunked(self, values: ArrayLike, chunks: int, *, literals: float = 0.0) -> NDArray[np.float64]:
        """Share token values out over the bytes they stand for and return their sums per chunk (chunks,).

        Args:
            values: one number per token (T,).
            chunks: parts of equal bytes.
            literals: what one literal byte counts.
        """
        items = np.where(self.is_token, 0.0, self.sizes * literals)
        items[self.is_token] = np.asarray(values, np.float64)
        places = np.concatenate([[0], self.ends])
        sums = np.concatenate([[0.0], np.cumsum(items)])
        # subtle: a token without bytes stands at one point; interp then takes the sum behind it or before it, and the
        # differences below still add up to the whole
        return np.diff(np.interp(np.linspace(0, len(self.text), chunks + 1), places, sums))

    def parts(self, values: ArrayLike, chunks: int, *, literals: float = 0.0) -> list[tuple[float, float]]:
        """Return (sum of the values, bytes) of every chunk: `chunks` of them, or fewer of 64 bytes."""
        count = max(1, min(chunks, len(self.text) // CHUNK_BYTES))
        sums = self.chunked(values, count, literals=literals)
        return [(float(value), len(self.text) / count) for value in sums]

    @property
    def remarks(self) -> list[str]:
        """What a reader of a figure should know about this text."""
        return [f"the first {len(self.text)} of {self.whole} bytes"] if self.whole > len(self.text) else []

    def place(self, token: int, model: Model) -> str:
        """Say where a token stands, for a message."""
        item = int(np.flatnonzero(self.is_token)[token])
        shown = model.tokenizer.show(self.ids[token])
        return f"token {token} ('{shown}', byte {int(self.ends[item] - self.sizes[item])} of '{self.text.name}')"


def take(model: Model, text: Given, *, limit: int = 0) -> Sample:
    """Read a text with a model's tokenizer.

    Args:
        model: whose tokenizer.
        text: the text.
        limit: bytes taken from its beginning [bytes, 0 ..]; 0 takes all.

    Raises:
        EmptyText: it has no bytes.
        OutOfRange: `limit` is negative.
    """
    if limit < 0:
        raise OutOfRange(f"limit is {limit}; allowed is 0 (all of the text) or more bytes.")
    given = open_text(text)
    found = given[:limit] if 0 < limit < len(given) else given
    spelled = spell(found.data, model.tokenizer)
    sizes: list[int] = []
    is_token: list[bool] = []
    for run, literal in runs(spelled):
        own = [len(model.tokenizer.bytes_of(token)) for token in run]
        if own:
            own[0] -= sum(own) - len(model.tokenizer.decode(run))  # a space that the tokenizer put in front
        sizes += own
        is_token += [True] * len(own)
        if literal:
            sizes.append(len(literal))
            is_token.append(False)
    return Sample(found, spelled, np.array(sizes, np.int64), np.array(is_token, bool), len(given))


def fitting(model: Model, window: int, overlap: int) -> tuple[int, int, str]:
    """Return window and overlap as a text is packed by this model, and a remark for the note if that cut them."""
    seen, again = within(model.context or 0, window, overlap)
    cut = f"; window {seen}, overlap {again}: the model was trained for no more" if seen < window else ""
    return seen, again, cut


def require_tokens(sample: Sample, needed: int = 1) -> None:
    """Refuse a text in which the model has nothing to predict.

    Raises:
        EmptyText: fewer tokens than needed.
    """
    if len(sample.ids) < needed:
        raise EmptyText(
            f"the text '{sample.text.name}' ({len(sample.text)} bytes) gives {len(sample.ids)} tokens; "
            f"at least {needed} needed.",
            "Give a longer text.",
        )


def require_finite(bits: torch.Tensor, sample: Sample, model: Model, what: str = "bits") -> None:
    """Refuse values (T,) that are NaN or infinite, naming the first place.

    Raises:
        NotFinite: the message names token, byte and text.
    """
    bad = torch.nonzero(~torch.isfinite(bits))
    if len(bad):
        at = int(bad[0])
        raise NotFinite(
            f"the {what} of '{model.name}' are not finite ({float(bits[at])}) at {sample.place(at, model)}; "
            f"{len(bad)} of {len(bits)} tokens in all.",
            "An edit of this strength breaks the model, or its weights are damaged.",
        )


def reading(
    name: str,
    parts: list[tuple[float, float]],
    unit: str,
    *,
    record: dict[str, Any],
    note: str = "",
) -> Reading:
    """Return the ratio of sums with its interval; a text of a single chunk has none."""
    if len(parts) > 1:
        return Reading.from_parts(name, parts, unit, record=record, note=note)
    ((numerator, denominator),) = parts
    spread = f"none: the text is shorter than two chunks of {CHUNK_BYTES} bytes"
    return Reading(name, numerator / denominator, unit, spread=spread, record=record, note=note)


def record(model: Model, sample: Sample | None, **how: Any) -> dict[str, Any]:
    """Return how a figure was taken, as plain data.

    Keys: "text" (name, sha256, bytes) and "how" (the options) must be equal for two figures to be compared; "model"
    (name, fingerprint, changes, dtype, start token, tokens), "versions" and "machine" (threads, processor) may differ.
    """
    found: dict[str, Any] = {"how": how, "model": _model(model), "versions": versions(), "machine": machine(model)}
    if sample is not None:
        text = sample.text
        found["text"] = {"name": text.name, "sha256": text.sha256, "bytes": len(text)}
        found["model"] |= {"tokens": len(sample.ids), "literal_bytes": sample.spelled.literal_bytes}
    return found


def versions() -> dict[str, str]:
    """Return the versions of what computes a figure."""
    import transformers

    import kobza

    return {
        "kobza": kobza.__version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def machine(model: Model) -> dict[str, Any]:
    """Return where a figure was computed."""
    return {
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def _model(model: Model) -> dict[str, Any]:
    start = model.tokenizer.start_id
    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "changes": [str(change) for change in model.changes],
        "dtype": str(model.dtype).removeprefix("torch."),
        "start": None if start is None else model.tokenizer.show(start),
    }
