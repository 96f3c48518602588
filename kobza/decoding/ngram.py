"""N-gram cache: propose the token that most often followed the last few, in this text and, if given, in another.

Source: lookup caches as in llama.cpp's `lookup` (Stewart et al. 2024, The N-Grammys, arXiv:2411.03786).
"""

from __future__ import annotations

from collections import Counter

from kobza.core.texts import text as open_text
from kobza.decoding.base import Generation, check_ranges, speak
from kobza.decoding.shaping import Shape
from kobza.decoding.speculation import Copying, speculate
from kobza.models.model import Model
from kobza.models.prompts import Prompt


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    order: int = 3,
    draft: int = 8,
    price: float = 0.15,
    known: str = "",
    temperature: float = 0.0,
    stop: list[str] | None = None,
    chat: bool = False,
    seed: int = 0,
) -> Generation:
    """Go on with a prompt, proposing by counts of what followed what.

    Args:
        model: the model.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most [tokens, 1 ..].
        order: last tokens looked at, at most; shorter endings are tried when longer ones are new [tokens, 1 ..].
        draft: tokens proposed at once, at most [tokens, 1 ..].
        price: of one more token in a pass; 0 proposes always [passes, 0 ..].
        known: a text counted beforehand, by its name or path; none without one.
        temperature: divides the logits; 0 is greedy [ratio, 0 ..].
        stop: texts that end the generation.
        chat: put the text into the model's chat template as the user's message.
        seed: of the draws [number, 0 ..].

    Returns:
        A Generation with the tokens of greedy decoding, or with the distribution of sampling.

    Raises:
        OutOfRange: an option outside its range, or prompt and tokens exceed what the model was trained for.

    Cost: one step per pass; the counts are `order` table entries per token.
    """
    check_ranges(
        ("order", order, order >= 1, "1 or more"),
        ("draft", draft, draft >= 1, "1 or more"),
        ("price", price, price >= 0, "0 or more"),
    )
    drafter = Counts(order, draft, price, is_patient=price == 0)
    if known:
        drafter.read(model.tokenizer.encode(open_text(known).string))
    strategy = speculate(drafter, Shape(temperature).checked(), seed)
    return speak(model, prompt, strategy, tokens=tokens, stop=stop or (), chat=chat)


class Counts(Copying):
    """Follows the likeliest successor of the longest ending that was seen."""

    def __init__(self, order: int, draft: int, price: float, *, is_patient: bool = False) -> None:
        super().__init__(draft, price, is_patient=is_patient)
        self.order = order
        self._after: dict[tuple[int, ...], Counter[int]] = {}
        self._counted = 0

    def read(self, ids: list[int], begin: int = 0) -> None:
        """Count the tokens from `begin` on as successors of what stands before them."""
        for place in range(max(begin, 1), len(ids)):
            for n in range(1, min(self.order, place) + 1):
                self._after.setdefault(tuple(ids[place - n : place]), Counter())[ids[place]] += 1

    def continued(self, ids: list[int], most: int) -> tuple[list[int], int]:
        """Return the chain of likeliest successors, and the length of the ending that the first was found by."""
        self.read(ids, self._counted)
        self._counted = len(ids)
        chain: list[int] = []
        first = 0
        while len(chain) < most:
            tail = (*ids[-self.order :], *chain)[-self.order :]
            n = next((n for n in range(len(tail), 0, -1) if tail[-n:] in self._after), 0)
            if not n:
                break
            first = first or n
            chain.append(self._after[tail[-n:]].most_common(1)[0][0])
        return chain, first
