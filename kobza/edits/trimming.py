"""A smaller vocabulary: keep only the rows that a corpus uses; every other number stays.

Texts of kept tokens are cut as before, and their predictions differ only by the probability of the removed rows, which
the others share: bits fall by -log2(1 - removed mass) at every token. Byte pair encoding only, with the merges of kept
tokens.

Source: Abdaoui et al. (2020), "Load What You Need", arXiv:2010.05609 (rows of languages that are not needed).
"""

from __future__ import annotations

from collections.abc import Sequence

from kobza.core.errors import OutOfRange
from kobza.edits import base
from kobza.edits.base import CALIBRATION
from kobza.models.model import Change, Model
from kobza.models.resizing import with_vocabulary
from kobza.tokens.mapping import kept


def apply(
    model: Model, *, corpus: Sequence[str] = CALIBRATION, safety: Sequence[str] = ("source[:20000]",), least: int = 1
) -> Model:
    """Remove the rows of tokens that a corpus does not use.

    Args:
        model: the model to start from; it is not changed.
        corpus: texts whose tokens are kept.
        safety: more texts whose tokens are kept, however rare.
        least: how often a token of the corpus must stand there to be kept [count, 1 ..].

    Returns:
        A fork with a smaller vocabulary. Kept always: control tokens, tokens of one byte, and what a kept token is
        merged from. The last Change records tokens and bytes before and after (`saved_bytes`).

    Raises:
        BadValue: the vocabulary is not byte pair encoding. MissingFile, EmptyText: a text cannot be had.
        OutOfRange: `least` is below 1.

    Cost: encoding the corpus.
    """
    if least < 1:
        raise OutOfRange(f"least is {least}; it must be at least 1.")
    counts: dict[int, int] = {}
    texts = base.calibration_texts(corpus)
    for text in texts:
        for id in model.tokenizer.encode(text.data):
            counts[id] = counts.get(id, 0) + 1
    wanted = {id for id, count in counts.items() if count >= least}
    for text in base.calibration_texts(safety) if safety else []:
        wanted.update(model.tokenizer.encode(text.data))
    tokenizer, old = kept(model.tokenizer, sorted(wanted))
    ends = ["embed"] if model.is_tied else ["embed.in", "embed.out"]
    tables = {end: model.matrix(end)[old] for end in ends}
    options = {"corpus": list(corpus), "safety": list(safety), "least": least}
    facts = {"tokens_before": model.vocabulary, "tokens": len(old), "stored_bytes_before": model.stored_bytes}
    change = Change("trimming", options, ends, "shape", facts)
    fork = with_vocabulary(model, tokenizer, tables, old, change=change)
    facts |= {"stored_bytes": fork.stored_bytes, "saved_bytes": model.stored_bytes - fork.stored_bytes}
    return fork
