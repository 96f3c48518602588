"""Prompt lookup: propose what followed the same words earlier in the text; the text does not change, only the time.

Source: Saxena (2023), Prompt Lookup Decoding; Yang et al. (2023), Inference with Reference, arXiv:2304.04487. Unlike
both it counts how often matches of each length come true and proposes only what pays, so free text costs nothing.
"""

from __future__ import annotations

from kobza.decoding.base import Generation, check_ranges, speak
from kobza.decoding.shaping import Shape
from kobza.decoding.speculation import LONGEST, Copying, speculate
from kobza.models.model import Model
from kobza.models.prompts import Prompt


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    draft: int = 15,
    price: float = 0.15,
    temperature: float = 0.0,
    stop: list[str] | None = None,
    chat: bool = False,
    seed: int = 0,
) -> Generation:
    """Go on with a prompt, copying ahead where the text repeats itself.

    Args:
        model: the model.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most [tokens, 1 ..].
        draft: tokens proposed at once, at most [tokens, 1 ..].
        price: of one more token in a pass; 0 proposes at every match [passes, 0 ..].
        temperature: divides the logits; 0 is greedy [ratio, 0 ..].
        stop: texts that end the generation.
        chat: put the text into the model's chat template as the user's message.
        seed: of the draws [number, 0 ..].

    Returns:
        A Generation with the tokens of greedy decoding, or with the distribution of sampling; `drafts` and
        `acceptance` tell what was proposed, `passes` how often the model ran.

    Raises:
        OutOfRange: an option outside its range, or prompt and tokens exceed what the model was trained for.

    Cost: one step per pass; a lookup is a few table reads.
    """
    check_ranges(("draft", draft, draft >= 1, "1 or more"), ("price", price, price >= 0, "0 or more"))
    drafter = Lookup(draft, price, is_patient=price == 0)
    strategy = speculate(drafter, Shape(temperature).checked(), seed)
    return speak(model, prompt, strategy, tokens=tokens, stop=stop or (), chat=chat)


class Lookup(Copying):
    """Goes on as the latest earlier place with the longest common ending went on."""

    def __init__(self, draft: int, price: float, *, is_patient: bool = False) -> None:
        super().__init__(draft, price, is_patient=is_patient)
        self._places: dict[int, list[int]] = {}  # token -> where it stands, rising
        self._read = 0

    def continued(self, ids: list[int], most: int) -> tuple[list[int], int]:
        """Return what followed the longest match, at most `most` tokens, and its length; ([], 0) without one."""
        for place in range(self._read, len(ids)):
            self._places.setdefault(ids[place], []).append(place)
        self._read = len(ids)
        best, length = -1, 0
        for place in reversed(self._places[ids[-1]][-33:-1]):  # the latest 32: enough, and bounded
            same = 1
            while same < LONGEST and same <= place and ids[place - same] == ids[-1 - same]:
                same += 1
            if same > length:
                best, length = place, same
        return (ids[best + 1 : best + 1 + most], length) if length else ([], 0)
