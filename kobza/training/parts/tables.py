"""The tables of tokens around a training: all ids given back afterwards, one taken from a model, sparse gradients.

Ids that never occurred are given back so that the probabilities of the others stay what they were: their logit is -60
or less, whatever is read. A LayerNorm has a bias that makes a constant for that; a Llama has not, and is widened by a
channel that holds a small constant: no matrix reads or writes it, the last norm blows it up, and only the rows of
absent ids see it. It changes the mean square by 1e-8, below float32.

Source: vocabulary trimming, Abdaoui et al. (2020), arXiv:2010.05609; the constants are kobza's own, tested.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kobza.core.errors import BadValue, OutOfRange
from kobza.models import building
from kobza.models.model import Model
from kobza.tokens.base import Tokenizer
from kobza.training.parts.trimming import widened

ABSENT = -60.0  # logit of an id that never occurred: e^-60 is nothing beside any other
_LARGEST = 1e3  # root mean square of a final state up to which a Llama's absent ids stay at -60
_CONSTANT = 1e-4  # of the shortest row: its square is lost in float32


@torch.no_grad()
def restored(module: Any, kept: Tensor, rows: int, config: dict[str, Any]) -> Any:
    """Return a finished model with its whole vocabulary again; the ends of a Llama come apart by that.

    Args:
        module: of v ids: a folded classic model (its last bias is 1), or a Llama.
        kept: (v,) old ids of its rows.
        rows: V of the whole vocabulary.
        config: what differs in the configuration: ids of marks.

    Raises:
        BadValue: a model of another kind.
    """
    family = module.config.model_type
    if family not in ("gpt2", "llama"):
        raise BadValue(f"ids cannot be given back to a model of the family {family!r}.", "Give restore=false.")
    state = dict(module.state_dict())
    own = {"vocab_size": rows, "model_type": family, "tie_word_embeddings": False, **config}
    if family == "gpt2":
        tokens, head = "transformer.wte.weight", state["lm_head.weight"]
        fill = torch.full((head.shape[1],), ABSENT / head.shape[1])
    else:
        tokens = "model.embed_tokens.weight"
        sizes, fill = _widen(state, module.config)
        own |= sizes
    state[tokens] = widened(state[tokens], kept, rows, state[tokens].mean(0))
    state["lm_head.weight"] = widened(state["lm_head.weight"], kept, rows, fill)
    whole = building.configuration({**module.config.to_dict(), **own})
    with torch.device("meta"), building.quiet():
        plain = building.model_class(whole)(whole)
    plain.load_state_dict(state, assign=True, strict=False)
    for name, buffer in module.named_buffers():  # angles of the rotation: computed, not stored
        owner, _, leaf = name.rpartition(".")
        plain.get_submodule(owner).register_buffer(leaf, buffer.clone(), persistent=False)
    plain.set_attn_implementation("sdpa")
    return plain.eval()


def _widen(state: dict[str, Tensor], config: Any) -> tuple[dict[str, Any], Tensor]:
    """Widen the tensors of a Llama in place by one channel per head; return the new sizes and the row of absent ids."""
    D, H = config.hidden_size, config.num_attention_heads
    wide = D + H  # a multiple of the heads, as transformers wants it
    constant = _CONSTANT * float(state["model.embed_tokens.weight"].norm(dim=1).min())
    gain = math.sqrt(-ABSENT * _LARGEST / constant)  # half of it in the norm, half in the row
    state["lm_head.weight"] = state["lm_head.weight"].clone()
    for name, p in state.items():
        if name.endswith("norm.weight"):  # the mean square is now taken over more channels
            state[name] = torch.cat([p * math.sqrt(D / wide), torch.zeros(H)])
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            state[name] = torch.cat([p, torch.zeros(H, p.shape[1])])
        elif p.ndim == 2:
            state[name] = torch.cat([p, torch.zeros(len(p), H)], 1)
    state["model.embed_tokens.weight"][:, D] = constant
    state["model.norm.weight"][D] = gain
    fill = torch.zeros(wide)
    fill[D] = -gain
    sizes = {"hidden_size": wide, "head_dim": D // H, "rms_norm_eps": config.rms_norm_eps * D / wide}
    return sizes, fill


@torch.no_grad()
def freeze(module: Any, model: Model | Tokenizer, kept: Tensor) -> None:
    """Make the input table that of another model, and leave it so: its strongest directions, as long as drawn rows.

    Args:
        module: to be trained, of v ids and width D, its ends not tied.
        model: whose table it is, at least as wide.
        kept: (v,) its rows.

    Raises:
        BadValue: only a vocabulary was given. OutOfRange: a table narrower than D.
    """
    if isinstance(model, Tokenizer):
        raise BadValue("frozen=true takes the table of tokens from a model, and only a vocabulary was given.")
    own = module.get_input_embeddings().weight
    rows = model.matrix("embed.in")[kept].double()
    width = own.shape[1]
    if rows.shape[1] < width:
        raise OutOfRange(f"the table of {model.name!r} has width {rows.shape[1]}: it cannot fill width {width}.")
    _, directions = torch.linalg.eigh(rows.T @ rows)  # ascending
    cut = rows @ directions[:, -width:].flip(1)
    own.copy_(cut * (own.double().square().mean() / cut.square().mean()).sqrt())
    own.requires_grad_(False)


def spare(module: Any) -> None:
    """Let the input table have sparse gradients: only the rows that a batch reads are updated, moments included.

    Raises:
        BadValue: the ends are tied: the head gives every row a gradient.
    """
    table, head = module.get_input_embeddings(), module.get_output_embeddings()
    if table.weight is head.weight:
        raise BadValue("sparse=true needs ends that are not tied: the head gives every row a gradient.", "tied=false")
    table.sparse = True
    table.weight.is_sparse_table = True
