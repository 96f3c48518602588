"""Train a model from nothing on a text: the classic GPT of the tutorials, or today's Llama-type block.

The vocabulary is that of the model given, cut to the ids that the training text needs; the finished model has all of
them again if asked. What comes back is a plain GPT-2 or Llama that `kobza.open` and transformers open.

Sources: Radford et al. (2019); Touvron et al. (2023), arXiv:2302.13971; sizes and rate of the classic kind: the
published notebook of the poems GPT (B 8, T 32, D 256, H 8, N 12, AdamW 1e-3, 3,000 steps); one dial for all sizes: an
idea of nanochat; how the batch grows: Bi et al. (2024), arXiv:2401.02954, equation 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from kobza.core import options
from kobza.core.errors import BadValue, OutOfRange
from kobza.models import free
from kobza.models.alphabet import Alphabet
from kobza.models.model import Model, Origin
from kobza.models.stepping import draw
from kobza.tokens.base import Tokenizer
from kobza.training import base
from kobza.training.base import Given, Job, Run
from kobza.training.parts import aims, classic, corpus, sizing, tables, trimming
from kobza.training.parts.classic import Sizes

SAMPLE = 60  # tokens that are written at every look


def train(
    model: Model | Tokenizer,
    text: Given,
    *,
    kind: Literal["llama", "classic", "free"] = "llama",
    form: str = "",
    size: int = 4,
    layers: int = 0,
    width: int = 0,
    heads: int = 0,
    kv_heads: int = 0,
    inner: int = 0,
    context: int = 0,
    batch: int = 0,
    tied: bool = True,
    trim: bool = True,
    restore: bool = False,
    frozen: bool = False,
    sparse: bool = False,
    skip: int = 0,
    ahead: int = 1,
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
    alphabet: bool = False,
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
            ReLU, untied head with a bias), or "free": every part as the form says; plain transformers does not open it.
        form: of the free kind, options of `kobza.models.free.form`: "norm=none,position=alibi,mlp=relu".
        size: the one dial: layers, from which width (64 a layer; classic: 256), heads, rate and batch follow [layers,
            1 ..].
        layers: instead of what follows from the size [count, 0 ..]; 0 follows.
        width: of the residual stream [count, 0 ..]; 0 follows.
        heads: of attention [count, 0 ..]; 0 follows.
        kv_heads: of keys and values, llama only [count, 0 ..]; 0 follows.
        inner: width of the MLP [count, 0 ..]; 0 is 4 times the width, for SwiGLU 8/3.
        context: tokens of a window [count, 0 ..]; 0 is 128, classic 32.
        batch: windows of one batch [count, 0 ..]; 0 is 8, beyond 8 layers (not classic) an eighth of their square.
        tied: both ends one tensor; not the classic kind.
        trim: cut the vocabulary to what the training text needs.
        restore: give the finished model all ids of the vocabulary again; not the free kind. The ends are untied by it.
        frozen: take the tokens' table from the model given, cut to its strongest directions, and do not train it.
        sparse: gradients of the tokens' table only for rows that are read, updated by SparseAdam; ends not tied.
        skip: tokens at the beginning of a window whose loss does not count [count, 0 .. below the context].
        ahead: tokens that are predicted at once while it is trained [count, 1 .. the context].
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
        alphabet: let the samples on the way consist of the training text's characters alone.
        held: share of the text that is held out, its end [fraction, 0 .. below 1].
        evaluate: updates between two looks at the held-out part [count, 0 ..]; 0: a twelfth of the budget.
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
    data = _Data.of(model, text, held=held, trim=trim)
    tokenizer, parts = data.tokenizer, _form(kind, form)
    sizes = _sizes(kind, layers or size, width, heads, kv_heads, context, inner, parts.get("mlp", "swiglu"))
    windows = corpus.Windows(data.ids, batch or _batch(kind, sizes.layers), sizes.context, tokenizer.start_id)
    if not 0 <= skip < windows.context:
        raise OutOfRange(f"skip {skip}: give 0 .. {windows.context - 1}, below the tokens of a window.")
    module = classic.build(kind, sizes, tokenizer, seed=seed, tied=tied and not frozen, form=parts)
    if frozen:
        tables.freeze(module, model, data.kept)
    if sparse:
        tables.spare(module)
    aims.look_ahead(module, ahead, windows.context)
    hooks = classic.dropping(module, dropout)
    how = base.plan(
        budget if budget else steps, optimizer=optimizer, rate=rate or _rate(kind, sizes.width), schedule=schedule,
        warmup=warmup, decay=decay, clip=clip, accumulate=accumulate, precision=precision, evaluate=evaluate,
        patience=patience, sharded=sharded, seed=seed,
    )  # fmt: skip
    tokens = windows.batch * windows.context
    seen = corpus.Held.of(data.part, tokenizer)
    foreseen = sizing.predict(
        module,
        tokens=tokens,
        optimizer=optimizer,
        precision=how.dtype,
        calls=accumulate,
        context=windows.context,
        look=len(seen.ids),
    )
    for line in (foreseen.told(how.budget), *remarks(data.part, tokenizer, data.whole)) if tell is not None else ():
        tell(line)  # type: ignore[misc]
    label = f"{kind} {sizes.layers} x {sizes.width}"
    letters = Alphabet(tokenizer, "".join(data.part.train)) if alphabet else None
    job = job_of(module, windows, seen, label=label, tokenizer=tokenizer, skip=skip, letters=letters)
    history, facts = base.run(job, how, folder=folder or None, log=tuple(log or ()))
    for hook in hooks:
        hook.remove()
    return Run(_finished(module, data, restore, label, text), history, facts | _facts(foreseen, data))


@dataclass
class _Data:
    """A text in two parts and its vocabulary: `kept` are the old ids of its rows (v,), `ids` the text (N,)."""

    part: corpus.Split
    whole: Tokenizer
    tokenizer: Tokenizer
    kept: torch.Tensor
    ids: torch.Tensor

    @classmethod
    def of(cls, model: Model | Tokenizer, text: Given, *, held: float, trim: bool) -> _Data:
        whole = model if isinstance(model, Tokenizer) else model.tokenizer
        texts, notes = corpus.documents(text)
        part = corpus.split(texts, held, notes=notes)
        ids = corpus.encoded(part.train, whole)
        if not trim:
            return cls(part, whole, whole, torch.arange(len(whole)), ids)
        tokenizer, kept = trimming.trimmed(whole, torch.unique(ids).tolist())
        return cls(part, whole, tokenizer, kept, torch.searchsorted(kept, ids))


def _form(kind: str, words: str) -> dict[str, Any]:
    """Return the options of the free kind.

    Raises:
        BadValue: a form for another kind. UnknownOption, OutOfRange: see `kobza.models.free.form`.
    """
    if kind != "free":
        if words:
            raise BadValue(f"form {words!r} belongs to kind=free; kind {kind!r} has a fixed one.")
        return {}
    step = options.parse(f"form:{words}" if words else "form")
    return free.form(**options.check(free.form, step.options, what="form"))


def job_of(
    module: Any, windows: corpus.Windows, held: corpus.Held, *, label: str, tokenizer: Tokenizer, skip: int = 0,
    letters: Alphabet | None = None,
) -> Job:  # fmt: skip
    """Return the job of predicting the next token of a text, without the first `skip` of a window.

    Samples consist of `letters`, if given.
    """
    start, context = windows.start, windows.context
    measured = len(held.ids) > 1
    prompt = windows.ids[:1].tolist() if start is None else [start]

    def sample() -> str:
        said = _speak(module, prompt, tokens=SAMPLE, context=context, seed=0, letters=letters)
        return tokenizer.text(said)

    return Job(
        module,
        draw=windows.draw,
        loss=lambda rows: aims.aimed_loss(module, *rows, skip=skip),
        measure=(lambda: base.held_bits(module, held, context=context, start=start)) if measured else None,
        sample=sample,
        batch_tokens=windows.batch * context,
        label=label,
    )


@torch.no_grad()
def _speak(
    module: Any, ids: list[int], *, tokens: int, context: int, seed: int, temperature: float = 0.8,
    letters: Alphabet | None = None,
) -> list[int]:  # fmt: skip
    """Return ids that go on with others, of an alphabet if one is given.

    Nothing is cached, and the module's gradients stay switched on.
    """
    generator = torch.Generator().manual_seed(seed)
    found, begun = list(ids), b""
    for _ in range(tokens):
        logits = module(input_ids=torch.tensor([found[-context:]]), use_cache=False).logits[0, -1].float()
        logits = letters.cut(logits, begun) if letters else logits
        found.append(draw(logits, temperature, 0, 0.95, generator))
        begun = letters.after(begun, found[-1]) if letters else b""
    return found[len(ids) :]


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


def _sizes(kind: str, layers: int, width: int, heads: int, kv_heads: int, context: int, inner: int, mlp: str) -> Sizes:
    if kind == "classic":
        width = width or 256
        heads = heads or 8
        return Sizes(layers, width, heads, heads, inner or 4 * width, context or 32)
    width = width or 64 * layers
    heads = heads or max(1, width // 64)
    if kind == "free" and not kv_heads:
        kv_heads = heads
    usual = 32 * math.ceil(8 * width / 3 / 32) if mlp == "swiglu" else 4 * width
    kv_heads = kv_heads or (heads // 2 if heads % 2 == 0 else heads)
    return Sizes(layers, width, heads, kv_heads, inner or usual, context or 128)


def _rate(kind: str, width: int) -> float:
    return 1e-3 if kind == "classic" else 4e-3 * math.sqrt(64 / width)


def _batch(kind: str, layers: int) -> int:
    """Return windows of a batch.

    The best batch grows with the third root of the work, which at parameters and tokens in step is layers squared;
    small models learn most in a given time from 4 to 8 windows (LOG.md, 2026-11-27).

    >>> [_batch("llama", layers) for layers in (2, 8, 12, 24)]
    [8, 8, 18, 72]
    """
    return 8 if kind == "classic" else max(8, layers**2 // 8)


def _finished(module: Any, data: _Data, restore: bool, label: str, text: Given) -> Model:
    aims.forget_ahead(module)
    whole, tokenizer = data.whole, data.tokenizer
    if module.config.model_type == "gpt2":
        module = classic.folded(module)
    if restore and len(tokenizer) < len(whole):
        marks = {"bos_token_id": whole.start_id, "eos_token_id": whole.end_id}
        module, tokenizer = tables.restored(module, data.kept, len(whole), marks), whole
    origin = Origin(f"trained: {label}", kind="trained", notes=(f"trained by kobza on {_called(text)}",))
    return Model(label.replace(" ", ""), module, tokenizer, origin=origin)


def _called(text: Given) -> str:
    named = getattr(text, "name", text)
    return (
        str(named).rpartition("/")[2][:80] if isinstance(named, str) or hasattr(named, "name") else "data given by hand"
    )


def _facts(foreseen: sizing.Sizing, data: _Data) -> dict[str, Any]:
    part = data.part
    return {
        "parameters": foreseen.parameters, "predicted_bytes": foreseen.bytes, "predicted_seconds": foreseen.seconds,
        "leak": part.leak, "held_bytes": len(part.held), "ids": len(data.tokenizer), "ids_whole": len(data.whole),
        "notes": list(part.notes),
    }  # fmt: skip
