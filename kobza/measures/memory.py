"""Memory: what reading a text takes, from the operating system's own count.

Source: the kernel's peak of resident memory (Linux: VmHWM of /proc/self/status, reset before the run by writing 5 to
/proc/self/clear_refs, see proc(5); elsewhere the process's highest ever, from getrusage). It counts the
whole process: interpreter, libraries, and whatever other models are open in it. So the value is the increase over
the memory resident just before the run, after a first short run has touched every weight: the working memory of the
run itself. The note adds the model's own bytes, the cache per token, and the peak of the process.
"""

from __future__ import annotations

import gc

import torch

from kobza.core.resident import peak_bytes, reset_peak
from kobza.core.result import Reading
from kobza.measures.base import Given, Sample, fitting, record, require_tokens, take
from kobza.models.forward import token_bits
from kobza.models.model import Model

WARM_TOKENS = 8


def measure(
    model: Model,
    text: Given,
    *,
    window: int = 1024,
    overlap: int = 256,
    limit: int = 8000,
) -> Reading:
    """Measure the memory that bits_per_byte takes.

    Args:
        model: the model.
        text: the text it reads.
        window: tokens the model sees at most [tokens, 1 ..]; never more than the model was trained for.
        overlap: tokens of a window that the next one sees again [tokens, 0 .. window - 1].
        limit: bytes taken from the beginning of the text [bytes, 0 ..]; 0 takes all.

    Returns:
        A Reading in bytes: peak resident memory of the run minus what was resident before it. The first line of this
        file says how it is taken, and the reading's `spread` says which count this machine has.

    Raises:
        EmptyText: the text has no token.

    Cost: one forward pass.
    """
    sample = take(model, text, limit=limit)
    require_tokens(sample)
    window, overlap, remark = fitting(model, window, overlap)
    token_bits(model, sample.ids[:WARM_TOKENS], window=window, overlap=overlap)
    before, peak, method = _peak(model, sample, window, overlap)
    note = (
        f"process {_size(peak)} at its peak; model {_size(model.stored_bytes)}; "
        f"cache {_size(cache_bytes_per_token(model))} per token; {len(sample.ids)} tokens read{remark}"
    )
    how = record(model, sample, window=window, overlap=overlap, method=method)
    return Reading("memory", float(peak - before), "B", spread=method, record=how, note=note)


@torch.inference_mode()
def cache_bytes_per_token(model: Model) -> int:
    """Return the bytes that the key/value cache grows by with a token, read off caches of two tokens and of three."""
    sizes = []
    for length in (2, 3):
        ids = torch.zeros((1, length), dtype=torch.long, device=model.device)
        cache = model.module(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
        sizes.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers))
    return sizes[1] - sizes[0]


def _peak(model: Model, sample: Sample, window: int, overlap: int) -> tuple[int, int, str]:
    gc.collect()
    method = "kernel's count of this process, reset before the run"
    if not reset_peak():
        method = "highest resident memory of this process, ever: an increase may stay hidden"
    before = peak_bytes()  # just reset: what is resident now
    token_bits(model, sample.ids, window=window, overlap=overlap)
    return before, peak_bytes(), method


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
