"""The stages of a transplant that read a text: one constant against leaks, and tables that learn from the original.

In the second stage nothing but the tables of tokens moves. The loss is the surprise at the next token plus, wherever
both vocabularies end a token at the same byte, the cross entropy to the original's distribution over the
tokens both have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kobza.core.errors import EmptyText
from kobza.core.progress import progress
from kobza.core.texts import Text
from kobza.edits._chain import constant
from kobza.models import forward
from kobza.models.fitting import fit
from kobza.models.model import Model
from kobza.models.passes import fed_ids, scored_states
from kobza.models.states import body, head
from kobza.tokens.base import Tokenizer
from kobza.tokens.mapping import Match

WINDOW = 384  # tokens of the new vocabulary read per update
DECAYS = (0.9, 0.99)


def leak(model: Model, rows: Sequence[int], texts: Sequence[Text], tokens: int) -> tuple[float, Tensor]:
    """Find one constant that, taken off the logits of some rows, gives them the probability that the texts do.

    A row w becomes w - constant * m, m as in `_chain.constant`.

    Args:
        model: the moved model.
        rows: ids of new rows.
        texts: what to read.
        tokens: how many tokens, shared over the texts [count, 2 ..].

    Returns:
        (constant [nats], m (D,)). The constant is the root of a convex condition and is searched between -2 and 12.
    """
    states, logs, used = [], [], 0
    chosen = torch.tensor(list(rows), dtype=torch.long)
    is_new = torch.zeros(model.vocabulary, dtype=torch.bool)
    is_new[chosen] = True
    with torch.inference_mode():
        for text in progress(texts, "leak"):
            ids = torch.tensor(model.tokenizer.encode(text[: 16 * tokens].data)[: max(2, tokens // len(texts))])
            used += int(is_new[ids].sum())
            for _, h, is_logits in scored_states(model, ids, min(512, model.context or 512), 0):
                if is_logits:
                    raise EmptyText(f"the head of {model.name!r} cannot be applied apart, which leak=fit needs.")
                states.append(h.float().cpu())
                for at in range(0, len(h), 128):
                    logits = head(model, h[at : at + 128]).float().cpu()
                    new = logits[:, chosen].logsumexp(1)
                    logs.append(new - logits[:, ~is_new].logsumexp(1))  # log odds of a new row
    H, odds = torch.cat(states), torch.cat(logs)
    low, high, wanted = -2.0, 12.0, (used + 0.5) / (len(odds) + 1)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if float((odds - middle).sigmoid().mean()) > wanted else (low, middle)
    return (low + high) / 2, constant(H)


def distil(
    original: Model, moved: Model, found: Match, texts: Sequence[Text], steps: int, rate: float, seed: int
) -> tuple[dict[str, Tensor], list[float]]:
    """Let the tables of a moved model learn from the original; the body is frozen.

    Args:
        original, moved: before and after.
        found: which tokens both have.
        texts: what to read; windows are drawn in a seeded order, each once before any comes again.
        steps, rate, seed: updates, learning rate, order.

    Returns:
        Tables as `with_vocabulary` takes them, and the first and last mean of the loss [nats a token].
    """
    windows = [window for text in texts for window in _windows(moved.tokenizer, original.tokenizer, text)]
    if not windows:
        raise EmptyText(
            f"the texts hold no window of {WINDOW} tokens to learn from.", "Give a longer calibration text."
        )
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed)).tolist()
    ends = ["embed"] if moved.is_tied else ["embed.in", "embed.out"]
    with torch.inference_mode(False):
        tables = {end: moved.matrix(end).detach().clone().requires_grad_() for end in ends}
    both = torch.tensor([id for id in found.copied if found.same[id] < original.vocabulary])
    olds = torch.tensor([found.same[id] for id in both.tolist()])

    def loss(step: int) -> Tensor:
        ids, raw = windows[order[step % len(order)]]
        return _loss(original, moved, tables, ids, raw, both, olds)

    history = fit(tables.values(), loss, steps=steps, rate=rate, betas=DECAYS, warmup=0.2, label="distil")
    part = max(1, min(10, steps // 4))
    means = [sum(run) / len(run) for run in (history[:part], history[-part:])]
    return {end: table.detach() for end, table in tables.items()}, means


def _windows(new: Tokenizer, old: Tokenizer, text: Text) -> list[tuple[list[int], bytes]]:
    """Cut a text into windows of equal token counts, each with its own bytes."""
    tokens = new.split(text.data)
    lacking = set(old.missing_bytes())
    found = []
    for at in range(0, len(tokens), WINDOW):
        run = tokens[at : at + WINDOW]
        raw = text.data[run[0].start : run[-1].end]
        if len(run) > 8 and not lacking & set(raw):
            found.append(([token.id for token in run], raw))
    return found


def _loss(
    original: Model, moved: Model, tables: dict[str, Tensor], ids: list[int], raw: bytes, both: Tensor, olds: Tensor
) -> Tensor:
    inner, outer = tables.get("embed", tables.get("embed.in")), tables.get("embed", tables.get("embed.out"))
    assert inner is not None
    assert outer is not None
    tokens = torch.tensor(ids)
    vectors = _looked_up(moved, inner, fed_ids(tokens, moved.tokenizer.start_id))
    states = body(moved.module, inputs_embeds=vectors[None])[0]
    targets = tokens[len(tokens) - len(states) :]
    logs = head(moved, states, table=outer).float().log_softmax(-1)
    surprise = -logs.gather(1, targets[:, None]).mean()
    with torch.no_grad():
        spelled = torch.tensor(original.tokenizer.encode(raw))
        fed = fed_ids(spelled, original.tokenizer.start_id)
        teacher = forward.final_states(original, fed[None])[0]
        here, there = _meetings(moved.tokenizer, ids, len(states), original.tokenizer, spelled.tolist(), len(teacher))
        known = head(original, teacher[there]).float().softmax(-1)[:, olds]
    return surprise - (known * logs[here][:, both]).sum(1).mean()


def _looked_up(model: Model, table: Tensor, ids: Tensor) -> Tensor:
    scale = torch.as_tensor(getattr(model.module.get_input_embeddings(), "embed_scale", 1.0)).float()
    return table[ids] * scale


def _meetings(
    new: Tokenizer, ids: Sequence[int], states: int, old: Tokenizer, spelled: Sequence[int], others: int
) -> tuple[Tensor, Tensor]:
    """Return the states before which both runs have read the same bytes: places in one and in the other."""
    ours, theirs = _read(new, ids)[-states:], _read(old, spelled)[-others:]
    _, here, there = np.intersect1d(ours, theirs, return_indices=True)
    return torch.from_numpy(here), torch.from_numpy(there)


def _read(tokenizer: Tokenizer, ids: Sequence[int]) -> Any:
    """Bytes read before each token, (T,)."""
    sizes = [len(tokenizer.bytes_of(id)) for id in ids]
    return np.cumsum([0, *sizes[:-1]])
