"""Train a model from nothing on a text: the classic GPT of the tutorials, or today's Llama-type block.

The vocabulary is that of the model given, cut to the ids that the training text needs; the finished model has all of
them again if asked. What comes back is a plain GPT-2 or Llama that `kobza.open` and transformers open.

Sources: Radford et al. (2019); Touvron et al. (2023), arXiv:2302.13971; sizes and rate of the classic kind: the
published notebook of the poems GPT (B 8, T 32, D 256, H 8, N 12, AdamW 1e-3, 3,000 steps); one dial for all sizes: an
idea of nanochat.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch

from kobza.models.model import Model, Origin
from kobza.tokens.base import Tokenizer
from kobza.training import base
from kobza.training.base import Given, Job, Run
from kobza.training.parts import classic, corpus, sizing, trimming
from kobza.training.parts.classic import Sizes
from kobza.training.parts.losses import mean_loss

SAMPLE = 60  # tokens that are written at every look


def train(
    model: Model | Tokenizer,
    text: Given,
    *,
    kind: Literal["llama", "classic"] = "llama",
    size: int = 4,
    layers: int = 0,
    width: int = 0,
    heads: int = 0,
    kv_heads: int = 0,
    context: int = 0,
    batch: int = 0,
    tied: bool = True,
    trim: bool = True,
    restore: bool = False,
    steps: int = 1000,
    budget: str = "",
    rate: float = 0.0,
    optimizer: str = "adamw",
    schedule: Literal["cosine", "trapezoid", "constant"] = "cosine",
    warmup: int = 0,
    decay: float = 0.0,
    dropout: float = 0.0,
    clip: float = 1.0,
    accumulate: int = 1,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    held: float = 0.1,
    evaluate: int = 0,
    patience: int = 0,
    sharded: bool = False,
    folder: str = "",
    log: list[str] | None = None,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
) -> Run:
    """Train a new model on a text.

    Args:
        model: whose vocabulary the new model has; nothing else of it is used. A Tokenizer will do.
        text: what to learn; its last part is held out.
        kind: "llama" (RMSNorm, rotary positions, SwiGLU, grouped queries) or "classic" (LayerNorm, learned positions,
            ReLU, untied head with a bias).
        size: the one dial: layers, from which width (64 a layer; classic: 256), heads, rate and batch follow [layers,
            1 ..].
        layers: instead of what follows from the size [count, 0 ..]; 0 follows.
        width: of the residual stream [count, 0 ..]; 0 follows.
        heads: of attention [count, 0 ..]; 0 follows.
        kv_heads: of keys and values, llama only [count, 0 ..]; 0 follows.
        context: tokens of a window [count, 0 ..]; 0 is 128, classic 32.
        batch: windows of one batch [count, 0 ..]; 0 is 8.
        tied: both ends one tensor, llama only.
        trim: cut the vocabulary to what the training text needs.
        restore: give the finished model all ids of the vocabulary again, classic only.
        steps: updates [count, 1 ..].
        budget: other limits, beside the steps or instead of them: "300s", "1.65bpb", "3000steps,300s".
        rate: highest learning rate [per step, 0 ..]; 0 is 1e-3, llama 4e-3 at width 64, falling with its root.
        optimizer: "adamw", "muon", "adafactor", "schedule_free" or "galore".
        schedule: how the rate falls: "cosine", "trapezoid" or "constant".
        warmup: updates in which the rate rises [count, 0 ..].
        decay: decoupled weight decay [per unit of rate, 0 ..].
        dropout: of the tokens' vectors and of what attention and MLP write [fraction, 0 .. below 1].
        clip: norm to which longer gradients are shortened; 0 leaves them [norm, 0 ..].
        accumulate: batches of one update [count, 1 ..].
        precision: of the matrix products; "auto" is bfloat16 where the processor multiplies it.
        held: share of the text that is held out, its end [fraction, 0 .. below 1].
        evaluate: updates between two looks at the held-out part [count, 0 ..]; 0: a twelfth of the steps.
        patience: looks without a new minimum after which the run ends with the best weights [count, 0 ..]; 0: never.
        sharded: cut weights, gradients and optimizer state among the ranks that torchrun started (adamw).
        folder: where checkpoints and the log go; the same call goes on from there.
        log: further logs, "tensorboard" or "wandb".
        seed: of weights and batches [0 ..].
        tell: is told the prediction of memory and time, and remarks on the data, before the run begins.

    Returns:
        A Run: the model, in float32, its history and facts.

    Raises:
        EmptyText, BadValue: the text is empty, too short, or not UTF-8. NotFinite: the run diverged; see `base.run`.
        OutOfRange: sizes that do not fit each other. WrongVocabulary: a character that no id can express.

    Cost: about 6 x parameters x tokens multiplications; `tell` says the seconds.
    """
    tokenizer = model if isinstance(model, Tokenizer) else model.tokenizer
    texts, notes = corpus.documents(text)
    part = corpus.split(texts, held, notes=notes)
    ids = corpus.encoded(part.train, tokenizer)
    whole, kept = tokenizer, torch.arange(len(tokenizer))
    if trim:
        tokenizer, kept = trimming.trimmed(whole, torch.unique(ids).tolist())
        ids = torch.searchsorted(kept, ids)
    sizes = _sizes(kind, layers or size, width, heads, kv_heads, context)
    windows = corpus.Windows(ids, batch or 8, sizes.context, tokenizer.start_id)
    module = classic.build(kind, sizes, tokenizer, seed=seed, tied=tied)
    hooks = classic.dropping(module, dropout)
    how = base.plan(
        budget if budget else steps, optimizer=optimizer, rate=rate or _rate(kind, sizes.width), schedule=schedule,
        warmup=warmup, decay=decay, clip=clip, accumulate=accumulate, precision=precision, evaluate=evaluate,
        patience=patience, sharded=sharded, seed=seed,
    )  # fmt: skip
    tokens = windows.batch * windows.context
    foreseen = sizing.predict(module, tokens=tokens, optimizer=optimizer, precision=how.dtype, calls=accumulate)
    if tell is not None:
        for line in (str(foreseen), *remarks(part, tokenizer, whole)):
            tell(line)
    label = f"{kind} {sizes.layers} x {sizes.width}"
    job = job_of(module, windows, corpus.Held.of(part, tokenizer), label=label, tokenizer=tokenizer)
    history, facts = base.run(job, how, folder=folder or None, log=tuple(log or ()))
    for hook in hooks:
        hook.remove()
    facts |= _facts(foreseen, part, tokenizer, whole, text)
    return Run(_finished(module, tokenizer, whole, kept, restore, label, text), history, facts)


def job_of(module: Any, windows: corpus.Windows, held: corpus.Held, *, label: str, tokenizer: Tokenizer) -> Job:
    """Return the job of predicting the next token of a text."""
    start, context = windows.start, windows.context
    measured = len(held.ids) > 1
    prompt = windows.ids[:1].tolist() if start is None else [start]

    def sample() -> str:
        said = base.speak(module, prompt, tokens=SAMPLE, context=context, seed=0)
        return tokenizer.text(said)

    return Job(
        module,
        draw=windows.draw,
        loss=lambda rows: (mean_loss(module, *rows)[0], {}),
        measure=(lambda: base.held_bits(module, held, context=context, start=start)) if measured else None,
        sample=sample,
        batch_tokens=windows.batch * context,
        label=label,
    )


def remarks(part: corpus.Split, tokenizer: Tokenizer, whole: Tokenizer) -> list[str]:
    """Return what a person should know about the data before the run begins."""
    found = list(part.notes)
    if len(part.held):
        found.append(
            f"held out: {len(part.held):,} bytes, {part.leak:.1%} of them also in the training part (stretches of "
            f"{corpus.REPEAT} characters or more); figures are given without and with them"
        )
    if len(tokenizer) < len(whole):
        found.append(f"vocabulary: {len(tokenizer):,} of {len(whole):,} ids are needed")
    return found


def _sizes(kind: str, layers: int, width: int, heads: int, kv_heads: int, context: int) -> Sizes:
    if kind == "classic":
        width = width or 256
        heads = heads or 8
        return Sizes(layers, width, heads, heads, 4 * width, context or 32)
    width = width or 64 * layers
    heads = heads or max(1, width // 64)
    inner = 32 * math.ceil(8 * width / 3 / 32)
    return Sizes(layers, width, heads, kv_heads or (heads // 2 if heads % 2 == 0 else heads), inner, context or 128)


def _rate(kind: str, width: int) -> float:
    return 1e-3 if kind == "classic" else 4e-3 * math.sqrt(64 / width)


def _finished(
    module: Any, tokenizer: Tokenizer, whole: Tokenizer, kept: torch.Tensor, restore: bool, label: str, text: Given
) -> Model:
    if module.config.model_type == "gpt2":
        module = classic.folded(module)
        if restore and len(tokenizer) < len(whole):
            marks = {"bos_token_id": whole.start_id, "eos_token_id": whole.end_id}
            module, tokenizer = classic.restored(module, kept, len(whole), marks), whole
    origin = Origin(f"trained: {label}", kind="trained", notes=(f"trained by kobza on {_called(text)}",))
    return Model(label.replace(" ", ""), module, tokenizer, origin=origin)


def _called(text: Given) -> str:
    named = getattr(text, "name", text)
    return (
        str(named).rpartition("/")[2][:80] if isinstance(named, str) or hasattr(named, "name") else "data given by hand"
    )


def _facts(
    foreseen: sizing.Sizing, part: corpus.Split, tokenizer: Tokenizer, whole: Tokenizer, text: Given
) -> dict[str, Any]:
    return {
        "parameters": foreseen.parameters, "predicted_bytes": foreseen.bytes, "predicted_seconds": foreseen.seconds,
        "leak": part.leak, "held_bytes": len(part.held), "ids": len(tokenizer), "ids_whole": len(whole),
        "notes": list(part.notes),
    }  # fmt: skip
