"""Assisted decoding: a small model with the same vocabulary proposes, the model judges.

Source: Leviathan, Kalman & Matias (2022), arXiv:2211.17192; Chen et al. (2023), arXiv:2302.01318.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from kobza.core.errors import WrongVocabulary
from kobza.decoding.base import Generation, Session, check_ranges, speak
from kobza.decoding.shaping import Shape
from kobza.decoding.speculation import Plain, speculate
from kobza.models.model import Model
from kobza.models.prompts import Prompt
from kobza.models.stepping import Steps, steps


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    assistant: str = "self",
    draft: int = 3,
    temperature: float = 0.0,
    stop: list[str] | None = None,
    chat: bool = False,
    seed: int = 0,
) -> Generation:
    """Go on with a prompt, a cheaper model proposing ahead.

    Args:
        model: the model.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most [tokens, 1 ..].
        assistant: the model that proposes, as `kobza.open` takes it, a GGUF file run by llama.cpp where that is
            installed; "gguf": the model's own quantized file; "self": the model itself, a control of which everything
            is accepted and nothing gained.
        draft: tokens proposed at once [tokens, 1 ..].
        temperature: divides the logits of both; 0 is greedy [ratio, 0 ..].
        stop: texts that end the generation.
        chat: put the text into the model's chat template as the user's message.
        seed: of the draws [number, 0 ..].

    Returns:
        A Generation with the tokens of greedy decoding, or with the distribution of sampling.

    Raises:
        WrongVocabulary: the assistant has another vocabulary.
        OutOfRange: an option outside its range, or prompt and tokens exceed what the model was trained for.

    Cost: one step of the model and `draft` of the assistant per pass.
    """
    check_ranges(("draft", draft, draft >= 1, "1 or more"))
    shape = Shape(temperature).checked()
    small, backend = _assistant(model, assistant)
    strategy = speculate(Assistant(small, backend, draft, shape, seed), shape, seed)
    return speak(model, prompt, strategy, tokens=tokens, stop=stop or (), chat=chat)


def _assistant(model: Model, name: str) -> tuple[Model, str]:
    """Return the assistant and its backend."""
    if name in ("self", "gguf"):
        return model, "llama" if name == "gguf" else ""
    from kobza.models import opening

    small = opening.open(name)
    if small.tokenizer.fingerprint != model.tokenizer.fingerprint or small.vocabulary != model.vocabulary:
        raise WrongVocabulary(
            f"the assistant '{small.name}' has {small.vocabulary} tokens of its own, '{model.name}' "
            f"{model.vocabulary}: a draft needs the same vocabulary.",
            "Take a smaller model of the same family.",
        )
    is_run = small.origin.kind == "gguf" and importlib.util.find_spec("llama_cpp") is not None
    return small, "llama" if is_run else ""


class Assistant(Plain):
    """Drafts by running a model of its own, whose cache follows the text."""

    def __init__(self, model: Model, backend: str, draft: int, shape: Shape, seed: int) -> None:
        self.model, self.backend, self.draft, self.shape = model, backend, draft, shape
        self._generator = torch.Generator().manual_seed(seed + 1)  # its draws are not those of the judge
        self._run: Steps | None = None
        self._read: list[int] = []  # what its cache holds

    def propose(self, session: Session, most: int) -> tuple[list[int], Tensor | None]:
        """Draw tokens one by one; the text it has not read yet comes first."""
        if self._run is None:
            self._run = steps(self.model, backend=self.backend) if self.backend else session.begun(self.model)
        draft: list[int] = []
        likely = []
        while len(draft) < min(self.draft, most):
            text = [*session.ids, *draft]
            same = _common(self._read, text[:-1])  # the last is read in any case: its logits are wanted
            self._run.rollback(len(self._read) - same)
            logits = self._run.feed([text[same:]])[0].cpu()
            self._read = text
            shaped = self.shape(logits, text, session.prompt_tokens)
            draft.append(self.shape.pick(shaped, self._generator))
            if self.shape.temperature:
                likely.append(shaped.softmax(-1))
        return draft, torch.stack(likely) if likely else None


def _common(one: list[int], other: list[int]) -> int:
    """Return the length of the common beginning.

    >>> _common([1, 2, 3], [1, 2, 4, 5])
    2
    """
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
