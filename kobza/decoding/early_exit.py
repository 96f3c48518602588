"""Self-speculation by early exit: the first layers propose, the other layers judge with the same cache.

It pays only for a model trained to decide early; for others the acceptance is low, and the Generation says so.

Source: Elhoushi et al. (2024), LayerSkip, arXiv:2404.16710, section 4.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kobza.decoding.base import Generation, Session, check_ranges, speak
from kobza.decoding.shaping import Shape
from kobza.decoding.speculation import Plain, speculate
from kobza.models.bare import BareStepper
from kobza.models.model import Model
from kobza.models.prompts import Prompt


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    layer: int = 0,
    draft: int = 2,
    confidence: float = 0.0,
    temperature: float = 0.0,
    stop: list[str] | None = None,
    chat: bool = False,
    seed: int = 0,
) -> Generation:
    """Go on with a prompt, the model's own first layers proposing ahead.

    Args:
        model: the model.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most [tokens, 1 ..].
        layer: layers that propose, read out by the last norm and the head; 0 is two thirds [layers, 0 .. L - 1].
        draft: tokens proposed at once [tokens, 1 ..].
        confidence: where the likeliest token of the exit has less than this, it proposes no more [probability, 0 .. 1].
        temperature: divides the logits of both; 0 is greedy [ratio, 0 ..].
        stop: texts that end the generation.
        chat: put the text into the model's chat template as the user's message.
        seed: of the draws [number, 0 ..].

    Returns:
        A Generation with the tokens of greedy decoding, or with the distribution of sampling; its `acceptance` is
        that of the exit layer.

    Raises:
        OutOfRange: an option outside its range, or prompt and tokens exceed what the model was trained for.

    Cost: per pass, the first layers once and the head once more per proposal, the other layers once. Only the bare
    step shares the cache; by other backends each proposal is a whole pass, taken back: exact, and slow.
    """
    check_ranges(
        ("draft", draft, draft >= 1, "1 or more"),
        ("confidence", confidence, 0 <= confidence <= 1, "0 to 1"),
        ("layer", layer, 0 <= layer < model.layers, f"0 to {model.layers - 1}"),
    )
    shape = Shape(temperature).checked()
    drafter = EarlyExit(layer or max(1, 2 * model.layers // 3), draft, confidence, shape, seed)
    return speak(model, prompt, speculate(drafter, shape, seed), tokens=tokens, stop=stop or (), chat=chat)


class EarlyExit(Plain):
    """Drafts by the first layers of the model that judges."""

    def __init__(self, layer: int, draft: int, confidence: float, shape: Shape, seed: int) -> None:
        self.layer, self.draft, self.confidence, self.shape = layer, draft, confidence, shape
        self._generator = torch.Generator().manual_seed(seed + 1)
        self._early = 0  # tokens that the first layers have read ahead

    def propose(self, session: Session, most: int) -> tuple[list[int], Tensor | None]:
        """Draw tokens one by one from the logits behind the first layers."""
        run = session.run
        draft: list[int] = []
        likely: list[Tensor] = []
        self._early = 0
        while len(draft) < min(self.draft, most):
            text = [*session.ids, *draft]
            if isinstance(run, BareStepper):
                logits = run.feed_early([text[-1:]], self.layer)[0].cpu()
            else:
                logits = run.feed_layers([text[-1:]], [self.layer])[self.layer][0].cpu()
            self._early += 1
            shaped = self.shape(logits, text, session.prompt_tokens)
            shares = shaped.softmax(-1)
            if float(shares.max()) < self.confidence:  # known before anything is drawn: the distribution stays exact
                break
            draft.append(self.shape.pick(shaped, self._generator))
            likely.append(shares)
        if not isinstance(run, BareStepper):
            run.rollback(self._early)
        return draft, torch.stack(likely) if likely and self.shape.temperature else None

    def judged(self, session: Session, fed: list[int]) -> Tensor:
        """Take what the first layers have read through the others."""
        run = session.run
        if not isinstance(run, BareStepper) or not self._early:
            return super().judged(session, fed)
        if self._early < len(fed):
            run.feed_early([fed[-1:]], self.layer)  # the last proposal was drawn, not read
        session.passes += 1
        return session.checked(run.finish(self.layer)[0].cpu())
