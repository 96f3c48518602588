"""Give a model another vocabulary: tables with other rows, the tokenizer, and the ids in its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kobza.core.errors import NotFinite, WrongTensors
from kobza.models import replacing
from kobza.models.model import Change, Model
from kobza.models.saving import densified
from kobza.tokens.base import Tokenizer


def with_vocabulary(
    model: Model, tokenizer: Tokenizer, tables: Mapping[str, Tensor], same: Sequence[int], *, change: Change
) -> Model:
    """Return a fork with other tables of tokens; all else is shared with the model.

    Args:
        model: the model; it is not changed.
        tokenizer: the new vocabulary, V' ids.
        tables: "embed" (V', D) for both ends, which keeps a tie, or "embed.in" and "embed.out", which unties.
        same: old id of every new id, or -1 (V'): the config's ids of control tokens and a bias of the head follow it.
        change: the record of the edit.

    Raises:
        WrongTensors: a table of another shape. NotFinite: a row that is NaN or infinite; the message names its token.
    """
    twin = densified(model).fork(change=change)
    ends = twin.family.modules
    for end in ("embed.in", "embed.out"):
        table = tables.get("embed", tables.get(end))
        assert table is not None, "both ends are given"
        _check(model, tokenizer, end, table)
        holder = twin.module.get_submodule(ends[end])
        if end == "embed.out" and model.is_tied and "embed" in tables:
            replacing.tie_ends(twin.module, ends["embed.in"], ends["embed.out"])
        else:
            holder.weight = replacing.frozen(table, holder.weight.dtype, holder.weight.device)
        holder.padding_idx = None
        _resize(holder, len(tokenizer), same)
    _tell(twin.module, model, len(tokenizer), same, is_tied=model.is_tied and "embed" in tables)
    twin.tokenizer = tokenizer
    twin.__dict__.pop("matrices", None)
    return twin


def _check(model: Model, tokenizer: Tokenizer, end: str, table: Tensor) -> None:
    wanted = (len(tokenizer), model.matrices[end].shape[1])
    if tuple(table.shape) != wanted:
        raise WrongTensors(f"{end!r} needs {wanted[0]} x {wanted[1]} for '{tokenizer.name}'; got {tuple(table.shape)}.")
    bad = torch.nonzero(~torch.isfinite(table).all(1))
    if len(bad):
        id = int(bad[0])
        raise NotFinite(f"the row of token {id} ('{tokenizer.show(id)}') at {end!r} holds NaN or infinity.")


def _resize(holder: Any, rows: int, same: Sequence[int]) -> None:
    for name in ("num_embeddings", "out_features"):
        if hasattr(holder, name):
            setattr(holder, name, rows)
    bias = getattr(holder, "bias", None)
    if bias is not None and len(bias) != rows:
        source = torch.tensor(same)
        found = torch.where(source >= 0, bias[source.clamp_min(0)], bias.mean())
        holder.bias = replacing.frozen(found, bias.dtype, bias.device)


def _tell(module: Any, model: Model, rows: int, same: Sequence[int], *, is_tied: bool) -> None:
    """Write the size and the new ids of control tokens into the configs, and where a module remembers the size."""
    new = {old: id for id, old in reversed(list(enumerate(same)))}
    for part in module.modules():
        if getattr(part, "vocab_size", None) == model.config.vocab_size:
            part.vocab_size = rows
    for config in {id(c): c for c in (module.config, module.config.get_text_config())}.values():
        config.vocab_size = rows
        config.tie_word_embeddings = is_tied
        _renumber(config, new)
    if getattr(module, "generation_config", None) is not None:
        _renumber(module.generation_config, new)
    if not is_tied and getattr(module, "all_tied_weights_keys", None) is not None:
        module.all_tied_weights_keys = {}


def _renumber(config: Any, new: Mapping[int, int]) -> None:
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        found = getattr(config, name, None)
        if isinstance(found, list):
            setattr(config, name, [new[id] for id in found if id in new] or None)
        elif isinstance(found, int):
            setattr(config, name, new.get(found))
