"""Bits per byte: the size to which the model's probabilities pack a text, per byte of the text.

Source: the code length of Shannon (1948), -log2 p, summed over the tokens; per byte it is comparable across
vocabularies (Gao et al. 2020, "The Pile", arXiv:2101.00027, section 3.1). Values depend on text and window: the
window alone moves them more than most edits do (31 tokens 1.67, 511 1.12, 2047 1.04), so both stand in the record.
"""

from __future__ import annotations

from kobza.core.result import Reading
from kobza.measures.base import (
    CHUNKS,
    LIMIT,
    LITERAL_BITS,
    Given,
    Sample,
    fitting,
    reading,
    record,
    require_finite,
    require_tokens,
    take,
)
from kobza.models.forward import token_bits
from kobza.models.model import Model


def measure(
    model: Model,
    text: Given,
    *,
    window: int = 1024,
    overlap: int = 256,
    limit: int = LIMIT,
    chunks: int = CHUNKS,
) -> Reading:
    """Measure how well a model predicts a text.

    Args:
        model: the model.
        text: the text.
        window: tokens the model sees at most [tokens, 1 ..]; never more than it was trained for.
        overlap: tokens of a window that the next one sees again, so that no token is left without context [tokens,
            0 .. window - 1].
        limit: bytes taken from the beginning of the text [bytes, 0 ..]; 0 takes all.
        chunks: parts of the text for the spread [count, 1 ..].

    Returns:
        A Reading in bits per byte of the raw text, with a bootstrap interval over chunks. A byte that the vocabulary
        cannot say is charged 8 bits, and the note says so.

    Raises:
        EmptyText: the text has no token.
        NotFinite: a probability is zero or not a number; the message names the token.

    Cost: one forward pass over every window; about 1 kB/s for 135M parameters on one core.
    """
    sample = take(model, text, limit=limit)
    require_tokens(sample)
    window, overlap, remark = fitting(model, window, overlap)
    bits = token_bits(model, sample.ids, window=window, overlap=overlap)  # (T,)
    require_finite(bits, sample, model)
    how = record(model, sample, window=window, overlap=overlap)
    parts = sample.parts(bits.double().numpy(), chunks, literals=LITERAL_BITS)
    return reading("bits_per_byte", parts, "bit/B", record=how, note=(_note(parts, sample) + remark).removeprefix("; "))


def _note(parts: list[tuple[float, float]], sample: Sample) -> str:
    said = []
    if sum(bits for bits, _ in parts) > 8 * len(sample.text):
        said.append("expands the text: worse than 8 bits per byte")
    if sample.spelled.literal_bytes:
        said.append(f"{sample.spelled.literal_bytes} bytes that the vocabulary cannot say, at 8 bits each")
    return "; ".join([*said, *sample.remarks])
