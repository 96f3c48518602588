"""Draft heads on the model's own state: a small network guesses the next states, and from them a tree of tokens.

The state behind the final norm already knows the text; the head h(f, e) = f + W2 silu(W1 [f, e]) moves it on by a
token of vector e, again and again, and reads it out over the `kept` most frequent tokens only. It is fitted here, to
the model's own distributions, by `Heads.fit`; `examples/draft_heads.py` makes a file of one.

Source: Ankner et al. (2024), Hydra, arXiv:2402.05109 (heads that hear the tokens before); Li et al. (2024), EAGLE-2,
arXiv:2406.16858 (the likeliest paths first); Zhao et al. (2025), FR-Spec, arXiv:2502.14856 (frequent tokens only).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kobza.core.errors import BadValue, MissingFile, WrongVocabulary
from kobza.core.texts import text as open_text
from kobza.decoding.base import Generation, Session, check_ranges, speak
from kobza.decoding.branching import Tree, branch
from kobza.decoding.shaping import Shape
from kobza.models import fitting
from kobza.models.cache import write_tensors
from kobza.models.model import Model
from kobza.models.prompts import Prompt
from kobza.models.states import final_states

SHALLOW = 400, 40  # tokens and steps of heads that are fitted on the spot
PRICE = 0.06  # of a token in a tree and its share of a head's run [passes]; bench/decoding.py measures it


def generate(
    model: Model,
    prompt: Prompt,
    *,
    tokens: int = 64,
    heads: str = "",
    depth: int = 4,
    width: int = 3,
    draft: int = 7,
    price: float = PRICE,
    temperature: float = 0.0,
    stop: list[str] | None = None,
    chat: bool = False,
    seed: int = 0,
) -> Generation:
    """Go on with a prompt, a small network on the model's state proposing a tree ahead.

    Args:
        model: the model.
        prompt: a text, or messages {"role", "content"} for its chat template.
        tokens: tokens at most [tokens, 1 ..].
        heads: a file by `Heads.save`; empty: some are fitted on the spot to a little text, as a control.
        depth: tokens ahead, at most [tokens, 1 ..].
        width: branches that go on at each depth, at most [count, 1 ..].
        draft: tokens of a tree, at most [tokens, 1 ..].
        price: chance from which a token is worth proposing [passes, 0 ..].
        temperature: divides the logits; 0 is greedy [ratio, 0 ..].
        stop: texts that end the generation.
        chat: put the text into the model's chat template as the user's message.
        seed: of the draws [number, 0 ..].

    Returns:
        A Generation with the tokens of greedy decoding, or with the distribution of sampling.

    Raises:
        MissingFile: no such file. WrongVocabulary: heads of another model. BadValue: a backend that is not fed trees.
        OutOfRange: an option outside its range, or prompt and tokens exceed what the model was trained for.

    Cost: per pass, `depth` runs of the head: 4 D F + kept D multiplications each (SmolLM2: 0.03 of a step).
    """
    check_ranges(
        ("depth", depth, depth >= 1, "1 or more"),
        ("width", width, width >= 1, "1 or more"),
        ("draft", draft, draft >= 1, "1 or more"),
        ("price", price, price >= 0, "0 or more"),
    )
    shape = Shape(temperature).checked()
    made = Heads.load(model, heads) if heads else Heads.fit(model, "topics[:4000]", tokens=SHALLOW[0], steps=SHALLOW[1])
    strategy = branch(Guesses(made, depth, width, draft, price), shape, seed)
    return speak(model, prompt, strategy, tokens=tokens, stop=stop or (), chat=chat)


@dataclass
class Heads:
    """A network that moves states on, and the tokens it can name.

    Attributes:
        model: whose states it moves.
        first: (F, 2 D) from state and vector.
        second: (D, F) back to a state.
        kept: (v,) ids it can name.
        out: (v, D) their rows of the output table.
    """

    model: Model
    first: Tensor
    second: Tensor
    kept: Tensor
    out: Tensor

    @classmethod
    def of(cls, model: Model, first: Tensor, second: Tensor, kept: Tensor) -> Heads:
        """Put the parts together; the rows of the output table are the model's own."""
        table: Any = model.module.get_output_embeddings()
        return cls(model, first, second, kept, table.weight.detach()[kept].float())

    def moved(self, states: Tensor, vectors: Tensor) -> Tensor:
        """Return states (..., D) moved on by tokens whose vectors (..., D) are given."""
        hidden = nn.functional.silu(nn.functional.linear(torch.cat([states, vectors], -1), self.first))
        return states + nn.functional.linear(hidden, self.second)

    def vectors(self, ids: Tensor) -> Tensor:
        """Return the vectors (..., D) of ids, of the spread of states: their own is far smaller."""
        table: Any = self.model.module.get_input_embeddings()
        found: Tensor = table.weight.detach()[ids].float()
        return found / found.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)

    @classmethod
    def fit(
        cls, model: Model, text: str | Sequence[Sequence[int]], *, tokens: int = 40_000, kept: int = 4096,
        inner: int = 1152, ahead: int = 3, steps: int = 300, batch: int = 384, rate: float = 1e-3, seed: int = 0,
    ) -> Heads:  # fmt: skip
        """Fit heads to a model's own distributions over a text.

        Args:
            model: whose states and distributions are learned; it is not changed.
            text: a text, or rows of ids (what the model itself said, say).
            tokens: that are read [tokens, 8 ..].
            kept: most frequent tokens that can be named [tokens, 1 ..].
            inner: width of the network [count, 1 ..].
            ahead: tokens that it is unrolled over [tokens, 1 ..].
            steps, batch, rate: of the fit.
            seed: of weights and batches.

        The loss is the cross entropy with the model's distribution over the kept tokens, at each depth.
        """
        ids, states = _read(model, text, tokens)
        counts = torch.bincount(torch.cat([ids.flatten(), _argmax(model, states)]), minlength=model.vocabulary)
        kept_ids = counts.topk(min(kept, model.vocabulary)).indices.sort().values
        generator = torch.Generator().manual_seed(seed)
        D = states.shape[-1]
        weights = (torch.randn(inner, 2 * D, generator=generator) / (2 * D) ** 0.5, torch.zeros(D, inner))
        first, second = (weight.clone().requires_grad_() for weight in weights)
        made = cls.of(model, first, second, kept_ids)
        rows, length = ids.shape
        ahead = min(ahead, length - 2)

        def loss(_: int) -> Tensor:
            row = torch.randint(rows, (batch,), generator=generator)
            at = torch.randint(length - ahead, (batch,), generator=generator)
            moved, total = states[row, at], torch.zeros(())
            for n in range(1, ahead + 1):
                moved = made.moved(moved, made.vectors(ids[row, at + n]))
                wanted = (states[row, at + n] @ made.out.T).softmax(-1)
                total = total - (wanted * (moved @ made.out.T).log_softmax(-1)).sum(-1).mean() / ahead
            return total

        fitting.fit([first, second], loss, steps=steps, rate=rate, label="draft heads")
        return cls.of(model, first.detach(), second.detach(), kept_ids)

    def save(self, path: str | Path) -> Path:
        """Write the network as safetensors; the rows of the table stay the model's."""
        whole = {"first": self.first.half(), "second": self.second.half()}
        whole["kept"] = self.kept.to(torch.int32).view(torch.float32)  # read back as the same bits
        write_tensors(Path(path), whole)
        return Path(path)

    @classmethod
    def load(cls, model: Model, path: str | Path) -> Heads:
        """Read heads for a model.

        Raises:
            MissingFile: no such file. BadValue: no draft heads. WrongVocabulary: made for another width or vocabulary.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not Path(path).is_file():
            raise MissingFile(f"there is no file '{path}'.", "Make draft heads with examples/draft_heads.py.")
        try:
            found = load_file(path)
            first, second = found["first"].float(), found["second"].float()
            kept = found["kept"].view(torch.int32).long()
        except (SafetensorError, KeyError) as error:
            raise BadValue(f"'{path}' holds no draft heads ({error}).") from None
        if second.shape[0] != model.width or int(kept.max()) >= model.vocabulary or int(kept.min()) < 0:
            raise WrongVocabulary(
                f"the draft heads of '{path}' are for states of {second.shape[0]} numbers and ids up to {kept.max()}, "
                f"'{model.name}' has {model.width} and {model.vocabulary}.",
                "Make some for this model with examples/draft_heads.py.",
            )
        return cls.of(model, first, second, kept)


@torch.inference_mode()
def _read(model: Model, text: str | Sequence[Sequence[int]], tokens: int, window: int = 256) -> tuple[Tensor, Tensor]:
    """Return ids (N, T) and the states behind each (N, T, D)."""
    if isinstance(text, str):
        ids = torch.tensor(model.tokenizer.encode(open_text(text).string)[:tokens])
        window = min(window, len(ids))
        rows = ids[: len(ids) // window * window].reshape(-1, window)
    else:
        length = min(map(len, text))
        rows = torch.tensor([list(row)[:length] for row in text])
    states = [final_states(model, part).float() for part in rows.split(4)]
    return rows.clone(), torch.cat(states).clone()


@torch.inference_mode()
def _argmax(model: Model, states: Tensor) -> Tensor:
    """Return the likeliest token behind each state, (N T,)."""
    table: Any = model.module.get_output_embeddings()
    flat = states.flatten(0, 1)
    return torch.cat([(part.to(table.weight.dtype) @ table.weight.T).argmax(-1) for part in flat.split(512)])


class Guesses:
    """Trees of the likeliest paths."""

    def __init__(self, heads: Heads, depth: int, width: int, draft: int, price: float) -> None:
        self.heads, self.depth, self.width, self.draft, self.price = heads, depth, width, draft, price

    @torch.inference_mode()
    def propose(self, session: Session, state: Tensor, most: int) -> Tree:
        """Grow depth by depth: the likeliest paths go on, the likeliest tokens of all are proposed."""
        heads, tree = self.heads, Tree()
        states = state[None].float()
        tokens, parents, chances = torch.tensor(session.ids[-1:]), [-1], torch.ones(1)
        found: list[tuple[float, int, int, int]] = []  # chance, depth, index of the path, token
        paths: list[tuple[int, int]] = []  # (index of the path before, token)
        for depth in range(min(self.depth, most)):
            states = heads.moved(states, heads.vectors(tokens))
            likely = (states @ heads.out.T).softmax(-1) * chances[:, None]
            top, at = likely.flatten().topk(min(self.width, likely.numel()))
            rows, columns = at // likely.shape[1], at % likely.shape[1]
            worth = top > self.price
            if not bool(worth.any()):
                break
            rows, columns, chances = rows[worth], columns[worth], top[worth]
            tokens = heads.kept[columns]
            before = [parents[row] for row in rows.tolist()]
            parents = []
            for chance, above, token in zip(chances.tolist(), before, tokens.tolist(), strict=True):
                paths.append((above, token))
                parents.append(len(paths) - 1)
                found.append((chance, depth, len(paths) - 1, token))
            states = states[rows]
        chosen = sorted(found, key=lambda each: (-each[0], each[1]))[: self.draft]
        places: dict[int, int] = {-1: -1}  # of a path in the tree; a path is likelier than what goes on from it
        for _, _, path, token in sorted(chosen, key=lambda each: each[2]):
            places[path] = tree.add(token, places[paths[path][0]])
        return tree

    def settle(self, session: Session, tree: Tree, path: Sequence[int]) -> None:
        """Learn nothing."""
