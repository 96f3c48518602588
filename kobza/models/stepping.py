"""A model fed step by step with its keys and values kept, and plain sampling on top of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from kobza.core.errors import EmptyText, OutOfRange
from kobza.models.model import Model

CROPPABLE = {"full_attention", "sliding_attention", "chunked_attention"}


class Stepper:
    """A run that goes on: each `feed` reads only the new tokens, `rollback` takes the last ones back.

    Args:
        model: the model to run.
        batch: rows fed together, all of equal length.
    """

    def __init__(self, model: Model, batch: int = 1) -> None:
        if batch < 1:
            raise OutOfRange(f"batch {batch} is not a number of rows: give 1 or more.")
        self.model = model
        self.batch = batch
        self.length = 0
        self._cache = self._empty()

    def _empty(self) -> DynamicCache:
        kinds = set(getattr(self.model.config, "layer_types", None) or ())
        # without a config every layer keeps all positions, so that sliding ones can be rolled back too
        return DynamicCache() if kinds <= CROPPABLE else DynamicCache(config=self.model.config)

    @torch.inference_mode()
    def feed(self, ids: Tensor | Sequence[Sequence[int]], *, keep: int = 1) -> Tensor:
        """Read more tokens.

        Args:
            ids: (B, T) new tokens.
            keep: positions at the end whose logits are returned [count, 1 .. T].

        Returns:
            float32 logits that predict the next token: (B, V), or (B, keep, V) for `keep` > 1.

        Raises:
            OutOfRange: a wrong shape, or more positions than the model was trained for.
        """
        fed = torch.as_tensor(ids, dtype=torch.long)
        self._check(fed, keep)
        out = self.model.module(
            input_ids=fed.to(self.model.device), past_key_values=self._cache, use_cache=True, logits_to_keep=keep
        )
        self.length += fed.shape[1]
        logits: Tensor = out.logits[:, -keep:].float()
        return logits[:, 0] if keep == 1 else logits

    def _check(self, fed: Tensor, keep: int) -> None:
        if fed.ndim != 2 or fed.shape[0] != self.batch or fed.shape[1] < keep or keep < 1:
            raise OutOfRange(f"fed ids {tuple(fed.shape)} with keep={keep}: need ({self.batch}, T), 1 <= keep <= T.")
        context = self.model.context
        if context and self.length + fed.shape[1] > context:
            total = self.length + fed.shape[1]
            raise OutOfRange(f"{total} positions exceed the {context} that {self.model.name!r} was trained for.")

    def rollback(self, n: int) -> None:
        """Forget the last `n` tokens [count, 0 .. length]."""
        if not 0 <= n <= self.length:
            raise OutOfRange(f"cannot take back {n} of {self.length} tokens.")
        if n == self.length:
            self._cache = self._empty()
        elif n:
            self._cache.crop(-n)
        self.length -= n


def generate(
    model: Model,
    ids: Sequence[int],
    *,
    tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Collection[int] = (),
) -> Iterator[tuple[int, float]]:
    """Go on with a text, token by token.

    Args:
        model: the model that speaks.
        ids: the prompt, with its start token if it shall have one.
        tokens: how many at most [count, 0 ..].
        temperature: of the softmax; 0 takes the likeliest token [ratio, 0 ..].
        top_k: draw among the k likeliest; 0: among all [count, 0 .. V].
        top_p: draw among the likeliest that together have this probability (Holtzman et al. 2020) [share, 0 < .. 1].
        seed: of the draws.
        stop: ids that end the text; the one met is yielded last.

    Yields:
        (id, log2 of the probability that the model itself, at temperature 1 and without cuts, gave it).
        Ends early where the trained context is full.
    """
    if not len(ids):
        raise EmptyText("generation needs a prompt of at least one token (the start token will do).")
    if temperature < 0 or not 0 < top_p <= 1 or top_k < 0 or tokens < 0:
        seen = f"temperature={temperature}, top_p={top_p}, top_k={top_k}, tokens={tokens}"
        raise OutOfRange(f"{seen}: need temperature, top_k, tokens >= 0 and 0 < top_p <= 1.")
    return _generate(model, list(ids), tokens, temperature, top_k, top_p, seed, set(stop))


def _generate(
    model: Model, ids: list[int], tokens: int, temperature: float, top_k: int, top_p: float, seed: int, stop: set[int]
) -> Iterator[tuple[int, float]]:
    stepper = Stepper(model)
    generator = torch.Generator().manual_seed(seed)
    new = ids
    for _ in range(tokens):
        if model.context and stepper.length and stepper.length + len(new) > model.context:
            return
        logits = stepper.feed([new])[0].cpu()
        chosen = draw(logits, temperature, top_k, top_p, generator)
        yield chosen, float(logits.double().log_softmax(-1)[chosen]) / math.log(2)
        if chosen in stop:
            return
        new = [chosen]


def draw(logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator) -> int:
    """Return one id drawn from logits (V,); temperature 0: the likeliest, the smallest id among equals."""
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.float() / temperature
    order = scaled.argsort(descending=True, stable=True)
    probabilities = scaled[order].softmax(-1)
    if top_k:
        probabilities = probabilities[:top_k]
    if top_p < 1:
        before = probabilities.cumsum(0) - probabilities
        probabilities = probabilities[: max(1, int((before < top_p).sum()))]
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])
