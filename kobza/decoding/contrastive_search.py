"""Contrastive search: the likely token whose state is least like the states before it.

Source: Su et al. (2022), A Contrastive Framework for Neural Text Generation, arXiv:2202.06417, equation 5. transformers
had it until version 4.56.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kobza.decoding.base import Event, Generation, Session, check_ranges, speak
from kobza.models.model import Model
from kobza.models.prompts import Prompt


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    candidates: int = 4,
    alpha: float = 0.6,
    stop: list[str] | None = None,
    chat: bool = False,
) -> Generation:
    """Go on with a prompt, weighing likelihood against repetition of states.

    Args:
        model: the model.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most [tokens, 1 ..].
        candidates: likeliest tokens among which one is chosen [count, 1 ..].
        alpha: weight of the penalty; 0 is greedy [fraction, 0 .. 1].
        stop: texts that end the generation.
        chat: put the text into the model's chat template as the user's message.

    Returns:
        A Generation.

    Raises:
        OutOfRange: an option outside its range, or prompt and tokens exceed what the model was trained for.

    Cost: one step of `candidates` rows per token, and the states of the whole text.
    """
    check_ranges(("candidates", candidates, candidates >= 1, "1 or more"), ("alpha", alpha, 0 <= alpha <= 1, "0 to 1"))

    def strategy(session: Session) -> Iterator[Event]:
        run = session.run
        logits, states = run.feed_states([session.ids])
        seen = normalize(states[0].float(), dim=-1)  # (T, D)
        row = session.checked(logits[0].cpu())
        session.passes += 1
        while session.left:
            probabilities, ids = row.softmax(-1).topk(min(candidates, len(row)))
            run.select([0] * len(ids))
            logits, states = run.feed_states(ids[:, None])
            session.passes += 1
            fresh = normalize(states[:, 0].float(), dim=-1)  # (K, D)
            best = pick(probabilities, fresh, seen, alpha)
            event = session.say(int(ids[best]), row)
            yield event
            if isinstance(event, str):
                return
            run.select([best])
            row = session.checked(logits[best].cpu())
            seen = torch.cat([seen, fresh[best : best + 1]])

    return speak(model, prompt, strategy, tokens=tokens, stop=stop or (), chat=chat)


def pick(probabilities: Tensor, fresh: Tensor, seen: Tensor, alpha: float) -> int:
    """Return the candidate of the greatest (1 - alpha) p - alpha max cosine.

    Args:
        probabilities: of the candidates (K,).
        fresh: their states, of length 1 (K, D).
        seen: states of the text, of length 1 (T, D).
        alpha: weight of the likeness.
    """
    likeness = (fresh @ seen.T).max(dim=-1).values
    return int(((1 - alpha) * probabilities - alpha * likeness).argmax())
