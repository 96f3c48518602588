"""Families of models as data: where a transformers model keeps its parts.

The table is `architectures.toml` beside this file; a family it does not know is explored by the usual
names of parts, and whatever stays nameless is still listed under its own parameter path.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

TABLE = Path(__file__).with_name("architectures.toml")
NESTED = ("modules", "block", "fused", "sites", "points", "scale")
ATTENTION_SIDES = {"q_rot": "query", "k_rot": "key", "scores": "scores", "pattern": "pattern"}
ATTENTION = ("attn", "attention", "self_attn", "self_attention")


@dataclass(frozen=True)
class Family:
    """Where one family keeps its parts (see the head of `architectures.toml` for every entry)."""

    name: str
    blocks: str
    modules: dict[str, str] = field(default_factory=dict)
    block: dict[str, str] = field(default_factory=dict)
    fused: dict[str, str] = field(default_factory=dict)
    sites: dict[str, str] = field(default_factory=dict)
    points: dict[str, str] = field(default_factory=dict)
    scale: dict[str, str] = field(default_factory=dict)
    parallel: bool | str = False
    is_known: bool = True

    def is_parallel(self, config: Any) -> bool:
        """Whether attention and MLP of a block read the same input (then there is no resid_mid)."""
        if isinstance(self.parallel, str):
            return bool(getattr(config, self.parallel, False))
        return self.parallel


@cache
def table() -> dict[str, Any]:
    """Return the parsed data file."""
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def known() -> list[str]:
    """Names (transformers `model_type`) of the families that have a table."""
    return sorted(name for name in table() if name != "unknown")


def family_of(module: Any) -> Family:
    """Return the family of a transformers causal language model.

    A `model_type` without a table is explored instead: the list of blocks is the longest list of
    modules, the ends are what transformers says, parts are looked for by their usual names.
    """
    name = str(getattr(module.config, "model_type", ""))
    return Family(name=name, **_resolved(name)) if name in known() else explore(name, module)


def _resolved(name: str) -> dict[str, Any]:
    """Return one table with `like` followed; an empty path takes an entry away."""
    entry = dict(table()[name])
    base = _resolved(entry.pop("like")) if "like" in entry else {}
    for key in NESTED:
        merged = {**base.get(key, {}), **entry.get(key, {})}
        entry[key] = {part: path for part, path in merged.items() if path}
    return {**base, **entry}


def explore(name: str, module: Any) -> Family:
    """Guess the table of an unknown family from the names and shapes of its modules."""
    paths = {id(part): path for path, part in module.named_modules()}
    lists = [
        (len(part), path) for path, part in module.named_modules() if isinstance(part, nn.ModuleList) and len(part)
    ]
    blocks = max(lists, default=(0, ""), key=lambda pair: pair[0])[1]
    modules = {}
    for part, end in (("embed.in", module.get_input_embeddings()), ("embed.out", module.get_output_embeddings())):
        if id(end) in paths:
            modules[part] = paths[id(end)]
    block = _explore_block(module.get_submodule(blocks)[0]) if blocks else {}
    points = _points(block)
    sites = {"embed": f"in {blocks}.0"} if blocks else {}
    last = _last_norm(module, blocks) if blocks else ""
    sites |= {"final": f"out {last}", "norm_scale": f"scale {last}"} if last else {}
    return Family(name, blocks, modules, block, sites=sites, points=points, is_known=False)


def _explore_block(block: Any) -> dict[str, str]:
    """Return our name -> path for the parts of a block that carry a usual name."""
    found: dict[str, str] = {}
    for path, _ in block.named_modules():
        *parents, leaf = path.split(".")
        in_attention = any(parent in ATTENTION for parent in parents)
        for part, leaves in table()["unknown"].items():
            fits = not part.startswith(("attn.", "mlp.")) or part.startswith("attn.") == in_attention
            if leaf in leaves and fits and part not in found and len(parents) <= 2:
                found[part] = path
                break
    return found


def _points(block: dict[str, str]) -> dict[str, str]:
    """Return the sites of a block that follow from the parts found in it."""
    points = {"resid_pre": "in .", "resid_post": "out ."}
    for site, part, side in (
        ("neuron", "mlp.down", "in"),
        ("z", "attn.o", "in"),
        ("head_out", "attn.o", "heads"),
        ("q", "attn.q", "out"),
        ("k", "attn.k", "out"),
        ("v", "attn.v", "out"),
        ("up", "mlp.up", "out"),
        ("norm1_scale", "norm1", "scale"),
        ("norm2_scale", "norm2", "scale"),
    ):
        if part in block:
            points[site] = f"{side} {block[part]}"
    attention = block.get("attn.o", "").rpartition(".")[0]
    if attention:
        points |= {site: f"{side} {attention}" for site, side in ATTENTION_SIDES.items()}
    return points


def _last_norm(module: Any, blocks: str) -> str:
    """Return the path of the last norm outside the blocks, or nothing."""
    norms = [
        path
        for path, part in module.named_modules()
        if "norm" in type(part).__name__.lower() and not path.startswith(blocks + ".")
    ]
    return norms[-1] if norms else ""
