"""Healing: a short distillation that brings an edited model back towards the one it was made from.

The loss is KL(original | edited) over all tokens at every position of windows drawn from any text: no labels, and the
text need not be what the model was trained on. What is trained: factors A B added to the dense layers of blocks and
multiplied in at the end, so that the result is stored as before; norms and biases alone; or every weight that is
stored as a number. Codes of quantized matrices stay as they are. A run that is killed goes on where it was when the
same edit is asked for again. For runs of hours there is `kobza tune --objective distil`; this is the step of a recipe.

Sources: Hinton et al. (2015), arXiv:1503.02531; as the last step of pruning: Muralidharan et al. (2024),
arXiv:2407.14679; the added factors: Hu et al. (2021), arXiv:2106.09685.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kobza.core.errors import BadValue, EmptyText, KobzaError, OutOfRange, WrongVocabulary
from kobza.core.files import cache_dir
from kobza.core.texts import Text
from kobza.edits import base
from kobza.edits.base import CALIBRATION
from kobza.models import forward, opening, replacing
from kobza.models.fitting import fit
from kobza.models.model import Change, Model
from kobza.models.quantized import Coded

RATES = {"lowrank": 1e-3, "norms": 1e-3, "all": 1e-4}
ROWS = 64  # whose distributions are held at once
SPARSE = 0.01  # share of zeros from which a matrix counts as pruned


def apply(
    model: Model,
    *,
    original: str = "",
    what: Literal["lowrank", "norms", "all"] = "lowrank",
    rank: int = 8,
    steps: int = 50,
    rate: float = 0.0,
    window: int = 256,
    batch: int = 1,
    number: Literal["float32", "bfloat16"] = "float32",
    zeros: Literal["stay", "free"] = "stay",
    calibration: Sequence[str] = CALIBRATION,
    seed: int = 0,
) -> Model:
    """Train an edited model to give the distributions of the original.

    Args:
        model: the edited model; it is not changed.
        original: the model to come back to, as `kobza.open` names it; empty: the one this model was made from.
        what: lowrank: A B added to every dense layer of a block, with norms and biases. norms: norms and biases. all:
            every weight but those stored as codes.
        rank: of A B [count, 1 ..]; for lowrank.
        steps: updates [count, 1 ..].
        rate: highest learning rate [per step, 0 ..]; 0 is 0.001, for all 0.0001.
        window: tokens of a window [count, 2 ..].
        batch: windows of an update [count, 1 ..].
        number: format in which products are taken; the weights that learn stay float32. bfloat16 is three to four
            times as fast on a CPU that has it.
        zeros: whether entries that are zero in a pruned matrix (1 % zeros or more) stay zero.
        calibration: texts both models read, each alike; not the text to be measured.
        seed: of the windows and of B [0 ..].

    Returns:
        A fork with the same shapes and bytes. Its last Change records the divergence on held-out windows of the texts
        before and after [bits per token], the numbers trained, the tokens read and the CPU seconds it cost.

    Raises:
        BadValue: the original cannot be opened, or there is nothing to train.
        WrongVocabulary: the original has other tokens.
        OutOfRange: a window below 2 tokens, a negative rate, a rank or a batch below 1.
        EmptyText: no text is longer than two windows.

    Cost: five forward passes over steps x batch x window tokens (about 5 s a step for 135M parameters and 256 tokens
        in float32 on one core); memory of the original and, for all, of four numbers per weight, which about once a
        minute are written to the cache folder until it is done.
    """
    if window < 2 or rate < 0 or rank < 1 or batch < 1:
        raise OutOfRange(f"window={window}, rate={rate}, rank={rank}, batch={batch}; allowed: 2 .., 0 .., 1 .., 1 ..")
    begin = time.process_time()
    texts = base.calibration_texts(calibration)
    options = base.options_of(
        original=original or model.origin.spec, what=what, rank=rank, steps=steps, rate=rate or RATES[what],
        window=window, batch=batch, number=number, zeros=zeros, calibration=list(calibration),
    )  # fmt: skip
    teacher = _original(model, original)
    if number == "bfloat16":
        teacher = _narrow(teacher)
    windows = Windows.of(model, texts, window, seed)
    trained = _trained(model, what, rank, zeros == "stay", seed)

    def lost(ids: Tensor) -> Tensor:
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=number == "bfloat16"):
            return divergence(model, teacher, ids, values(trained))

    def held() -> float:
        with torch.no_grad():
            found = [float(lost(ids)) for ids in windows.held]
        return sum(found) / len(found) / math.log(2)

    before = held()
    leaves = [leaf for one in trained for leaf in one.leaves]
    state = _state_file(model, teacher, texts, options, seed)
    fit(
        leaves,
        lambda step: lost(windows.batch(step, batch)),
        steps=steps,
        rate=options["rate"],
        label="heal",
        state=state,
    )
    facts = {
        "divergence_before": before,
        "divergence": held(),
        "trained": sum(leaf.numel() for leaf in leaves),
        "tokens": steps * batch * window,
        "calibration": base.calibration_facts(texts, steps * batch * window),
        "cpu_seconds": round(time.process_time() - begin, 1),
        "stored_bytes_before": model.stored_bytes,
        "stored_bytes": model.stored_bytes,
    }
    return model.with_module(_with(model, trained), change=Change("healing", options, [], "values", facts, seed))


def _state_file(model: Model, teacher: Model, texts: Sequence[Text], options: dict[str, Any], seed: int) -> Path:
    """Return where the state of this very healing is kept."""
    words = [model.fingerprint, teacher.fingerprint, *(text.sha256 for text in texts), json.dumps(options), str(seed)]
    return cache_dir() / "healing" / f"{hashlib.sha256(' '.join(words).encode()).hexdigest()}.safetensors"


def _narrow(model: Model) -> Model:
    """Return the model in bfloat16, for reading only."""
    module = copy.deepcopy(model.module)
    replacing.cast(module, torch.bfloat16)
    return model.with_module(module, change=Change("narrow"))


def _original(model: Model, spec: str) -> Model:
    """Open the model to come back to."""
    try:
        found = opening.open(spec or model.origin.spec)
    except KobzaError as error:
        raise BadValue(
            f"the original of {model.name!r} cannot be opened: {error}", "Name it: healing:original=NAME_OR_FILE"
        ) from error
    if found.tokenizer.fingerprint != model.tokenizer.fingerprint or found.vocabulary != model.vocabulary:
        raise WrongVocabulary(
            f"{found.name!r} ({found.vocabulary} tokens) and {model.name!r} ({model.vocabulary}) have other tokens.",
            "Heal before the vocabulary is changed.",
        )
    return found


# --- the windows -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """Windows of texts: each text alike, in random order, each once before any comes again; the last is held out."""

    texts: list[list[Tensor]]
    held: list[Tensor]
    generator: Callable[[str], torch.Generator]

    @classmethod
    def of(cls, model: Model, texts: Sequence[Text], window: int, seed: int) -> Windows:
        """Cut the texts; those of fewer than two windows are left out."""
        window, start = min(window, model.context or window), model.tokenizer.start_id
        cut = []
        for ids in (base.token_ids(model, text) for text in texts):
            found = [forward.fed_ids(part, start)[None] for part in ids.split(window) if len(part) == window]
            if len(found) > 1:
                cut.append(found)
        if not cut:
            raise EmptyText(f"no calibration text has two windows of {window} tokens.", "Give a longer one, or window=")
        return cls([found[:-1] for found in cut], [found[-1] for found in cut], lambda name: base.generator(seed, name))

    def batch(self, step: int, size: int) -> Tensor:
        """Return the windows of an update, (size, T): a function of its number alone."""
        return torch.cat([self._window(step * size + i) for i in range(size)])

    def _window(self, count: int) -> Tensor:
        at, text = count // len(self.texts), count % len(self.texts)
        own = self.texts[text]
        order = torch.randperm(len(own), generator=self.generator(f"windows {text} {at // len(own)}"))
        return own[int(order[at % len(own)])]


def divergence(model: Model, teacher: Model, ids: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """Mean KL(teacher | model) over the positions of ids (B, T), in nats; the model runs with the tensors given."""
    with torch.no_grad():
        wanted = teacher.module(input_ids=ids.to(teacher.device), use_cache=False).logits.flatten(0, 1)
    given = {"input_ids": ids.to(model.device), "use_cache": False}
    found = torch.func.functional_call(model.module, tensors, (), given).logits.flatten(0, 1)
    mean: Tensor = _Divergence.apply(found, wanted.to(found.device))
    return mean


class _Divergence(torch.autograd.Function):
    """Mean over rows of KL(softmax(wanted) | softmax(found)), both (T, V); the gradient is made on the way.

    A few rows at a time: whole tables of 49,152 float32 per position would cost more than the layers.
    """

    @staticmethod
    def forward(ctx: Any, found: Tensor, wanted: Tensor) -> Tensor:
        gradient, total = torch.empty_like(found), torch.zeros((), dtype=torch.float64, device=found.device)
        for at in range(0, len(found), ROWS):
            q, p = (rows[at : at + ROWS].float().log_softmax(-1) for rows in (found, wanted))
            share = p.exp()
            total += (share * p.sub_(q)).sum(-1).double().sum()
            gradient[at : at + ROWS] = q.exp_().sub_(share).div_(len(found))
        ctx.save_for_backward(gradient)
        return total.float() / len(found)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None


# --- what is trained -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A parameter of the module, the tensors that are fitted for it, and its value as a function of them."""

    name: str
    old: Tensor
    leaves: list[Tensor]
    value: Callable[[], Tensor]


def values(trained: Sequence[Trained]) -> dict[str, Tensor]:
    """Return the values of all trained parameters by their names in the module."""
    return {one.name: one.value() for one in trained}


@torch.inference_mode(False)
def _trained(model: Model, what: str, rank: int, keep_zeros: bool, seed: int) -> list[Trained]:
    """Return what is fitted, in the order of the module."""
    coded = {id(p) for part in model.module.modules() if isinstance(part, Coded) for p in _codes(part)}
    found = []
    for name, old in model.module.named_parameters():
        if id(old) in coded or not old.is_floating_point():
            continue
        if what == "all" or old.ndim == 1:
            found.append(_itself(name, old, keep_zeros))
        elif what == "lowrank" and old.ndim == 2 and name.startswith(f"{model.family.blocks}."):
            found.append(_with_factors(name, old, min(rank, *old.shape), keep_zeros, base.generator(seed, name)))
    if not found:
        raise BadValue(f"{model.name!r} has nothing that what={what} could train.", "Give what=lowrank or what=all.")
    return found


def _codes(part: Coded) -> list[Any]:
    return [getattr(part, role) for role in part._roles]


def _itself(name: str, old: Tensor, keep_zeros: bool) -> Trained:
    leaf, mask = old.detach().float().clone().requires_grad_(), _mask(old, keep_zeros)
    return Trained(name, old, [leaf], lambda: (leaf if mask is None else leaf * mask).to(old.dtype))


def _with_factors(name: str, old: Tensor, rank: int, keep_zeros: bool, draw: torch.Generator) -> Trained:
    """W + A B with A at 0: the first step starts from the model as it is."""
    (M, N), mask = old.shape, _mask(old, keep_zeros)
    A = torch.zeros(M, rank, device=old.device).requires_grad_()
    B = (torch.randn(rank, N, generator=draw) / math.sqrt(N)).to(old.device).requires_grad_()

    def value() -> Tensor:
        return (old + (A @ B if mask is None else A @ B * mask)).to(old.dtype)

    return Trained(name, old, [A, B], value)


def _mask(old: Tensor, keep_zeros: bool) -> Tensor | None:
    """1 where a pruned matrix is not zero; None for others."""
    if not keep_zeros or old.ndim != 2 or float((old == 0).float().mean()) < SPARSE:
        return None
    return (old != 0).float()


def _with(model: Model, trained: Sequence[Trained]) -> Any:
    """Return a copy of the module with the values found, everywhere that the old tensor stood: ties stay."""
    module = replacing.shared_copy(model.module)
    with torch.no_grad():
        new = {id(one.old): replacing.frozen(one.value(), one.old.dtype, one.old.device) for one in trained}
    for part in module.modules():
        for leaf, old in part._parameters.items():
            if id(old) in new:
                part._parameters[leaf] = new[id(old)]
    return module
