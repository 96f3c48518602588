"""Packed size: the bytes to which the model really packs a text, unpacked again and compared.

Source: arithmetic coding with a model's next-token probabilities (`codecs.lm`; Deletang et al. 2024,
arXiv:2309.10668). The size is that of the packed block without the file around it: what is left to send when both sides
have the model and know the settings.
"""

from __future__ import annotations

from kobza.codecs import lm
from kobza.core.errors import CheckFailed
from kobza.core.result import Reading
from kobza.measures.base import CHUNKS, Given, Sample, fitting, reading, record, take
from kobza.models.model import Model
from kobza.models.predictor import ModelPredictor

LIMIT = 4096


def measure(
    model: Model,
    text: Given,
    *,
    limit: int = LIMIT,
    streams: int = 0,
    window: int = 1024,
    overlap: int = 256,
    chunks: int = CHUNKS,
) -> Reading:
    """Pack a text with a model, unpack it, compare, and return the bytes.

    Args:
        model: the model.
        text: the text.
        limit: bytes taken from the beginning of the text [bytes, 0 ..]; 0 takes all. Packing runs token by token, so
            it is slow.
        streams: streams coded in lockstep [count, 0 .. 256]; 0 takes one per 256 tokens, at most 32. Each begins
            without context, which costs size: with streams=1 and the text of one window the size is that of
            bits_per_byte.
        window: tokens the model sees at most [tokens, 1 ..]; never more than the model was trained for.
        overlap: tokens of a window that the next one sees again [tokens, 0 .. window - 1].
        chunks: parts of the text for the spread [count, 1 ..].

    Returns:
        A Reading in bytes; the note gives bits per byte and the ideal code length of the same run.

    Raises:
        EmptyText: the text has no bytes.
        CheckFailed: other bytes came out than went in, which would be an error of ours or of the machine.
        NotFinite: a logit is not a number; the message names the token.

    Cost: two steps with cache per token and stream.
    """
    sample = take(model, text, limit=limit)
    remark = fitting(model, window, overlap)[2]
    predictor = ModelPredictor(model)
    packed = lm.pack(sample.text.data, predictor, model.tokenizer, streams=streams, window=window, overlap=overlap)
    if lm.restore(packed, predictor, model.tokenizer) != sample.text.data:
        raise CheckFailed(f"'{sample.text.name}' did not come back from {len(packed.payload)} packed bytes unchanged.")
    ran = packed.schedule
    how = record(model, sample, window=ran.window, overlap=ran.overlap, streams=packed.streams)
    return reading("packed_size", _parts(packed, sample, chunks), "B", record=how, note=_note(packed, sample) + remark)


def _parts(packed: lm.Packed, sample: Sample, chunks: int) -> list[tuple[float, float]]:
    """Share the packed bytes out over the chunks; the denominators add up to one, so the ratio is the size."""
    parts = sample.parts(packed.coded_bits, chunks, literals=8.0)
    bits = sum(part for part, _ in parts)
    return [(part / bits * len(packed.payload), 1 / len(parts)) for part, _ in parts]


def _note(packed: lm.Packed, sample: Sample) -> str:
    size = len(sample.text)
    ideal = packed.ideal_bits.sum() / 8
    said = [
        f"{8 * len(packed.payload) / size:.4f} bit/B",
        f"ideal {ideal:.1f} B" + (f" and {packed.spelled.literal_bytes} literal" if packed.spelled.literals else ""),
        f"{packed.streams} stream{'s' * (packed.streams > 1)} of {-(-len(sample.ids) // packed.streams)} tokens",
        "unpacked and compared",
    ]
    if len(packed.payload) > size:
        said.append("expands the text")
    return "; ".join([*said, *sample.remarks])
