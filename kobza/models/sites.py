"""Names for places inside a run: `site[@position].layer[.index]`.

    embed  resid_pre.3  attn_out.3  resid_mid.3  mlp_out.3  resid_post.3  final  logits
    q.18.6  k.18.2  v.18.2     projections, before rotation; q_rot, k_rot: as they meet (behind rotation and head norms)
    scores.18.6  pattern.18.6  query x keys before and behind the softmax; -inf and 0 where the query may not look
    z.18.6  head_out.18.6      what a head hands to the output projection, and what it adds by it to attn_out
    gate.29  up.29             activated gate (of families that have one), and output of the up projection
    neuron.29.1123             input of the down projection, coordinate 1123; with a gate, gate x up
    norm1_scale.3  norm2_scale.3  norm_scale   what the norm in front of attention, of MLP, of the head divides by
                               (norm1_post_scale, norm2_post_scale: norms behind them, where a family has those)
    resid_pre.22@-1            last position only; @2:5 positions 2, 3, 4; the position may also stand before the layer

`attn_out` and `mlp_out` are what is added to the residual stream (behind a post-norm, if the family has one), and
`embed` is what enters the first block: so embed + all attn_out + all mlp_out = the last resid_post. The heads' head_out
(with the bias of the output projection) add up to attn_out, or to what its post-norm reads. Values are (B, T, D) for
the stream, (B, T, F) for gate, up, neuron, (B, T, H, E) for z, q, q_rot, (B, T, K, E) for k, v, k_rot, (B, T, H, D) for
head_out, (B, T, H, S) for scores and pattern (S keys), (B, T, 1) for scales, (B, T, V) for logits. Sites are data:
`architectures.toml` says per family where each is; a family without a rotation has no q_rot, one without gates no gate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kobza.core.errors import BadValue, NothingMatched, OutOfRange, UnknownName

if TYPE_CHECKING:
    from kobza.models.model import Model

GLOBAL = ("embed", "norm_scale", "final", "logits")
HEADS = ("z", "q", "q_rot", "k", "k_rot", "v", "scores", "pattern", "head_out")
KEY_VALUE_HEADS = ("k", "k_rot", "v")
SPLIT = ("z", "q", "k", "v")  # whose heads lie side by side in what the module holds
ALIASES = {
    "block_input": "resid_pre",
    "block_output": "resid_post",
    "attention_output": "attn_out",
    "mlp_output": "mlp_out",
    "mlp_activation": "neuron",
    "ln_final": "final",
    "norm1.scale": "norm1_scale",
    "norm2.scale": "norm2_scale",
    "norm.scale": "norm_scale",
    "attn_scores": "scores",
    "attn_weights": "pattern",
}
_GRAMMAR = re.compile(
    r"(?P<name>norm\d?\.scale|[a-z_][a-z_0-9]*)(?:@(?P<before>[-\d:]+))?(?:\.(?P<layer>\d+|\*))?(?:\.(?P<index>\d+))?(?:@(?P<after>[-\d:]+))?"
)


@dataclass(frozen=True)
class Site:
    """A place inside a run.

    Attributes:
        name: kind of place, `resid_pre`.
        layer: block, None for the sites in GLOBAL - or for every block, where a pattern is allowed.
        index: head (of the sites in HEADS) or coordinate (of any other); None: all.
        position: None: all; a position of the run, negative from the end; or (begin, end) of a range.
    """

    name: str
    layer: int | None = None
    index: int | None = None
    position: int | tuple[int | None, int | None] | None = None

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """Read `neuron.29.1123`, `resid_pre.22@-1`, `z@2:5.18.6`.

        Raises:
            BadValue: the text does not follow the grammar.
        """
        if isinstance(text, Site):
            return text
        found = _GRAMMAR.fullmatch(text.strip())
        if not found or (found["before"] and found["after"]):
            hint = "Write site[@position].layer[.index]: resid_pre.22@-1, neuron.29.1123, z.18.6."
            raise BadValue(f"{text!r} is not a site.", hint)
        name = ALIASES.get(found["name"], found["name"])
        layer = None if found["layer"] in (None, "*") else int(found["layer"])
        index = int(found["index"]) if found["index"] else None
        if name in GLOBAL and found["layer"] and index is None:  # these have no layer: logits.42 is an index
            layer, index = None, layer
        return cls(name, layer, index, _position(found["before"] or found["after"], text))

    def __str__(self) -> str:
        where = "" if self.layer is None else f".{self.layer}"
        which = "" if self.index is None else f".{self.index}" if where or self.name in GLOBAL else f".*.{self.index}"
        return f"{self.name}{where}{which}{_spell(self.position)}"


def _position(text: str | None, site: str) -> int | tuple[int | None, int | None] | None:
    if not text:
        return None
    pieces = text.split(":")
    try:
        if len(pieces) == 1:
            return int(text)
        begin, end = (int(piece) if piece else None for piece in pieces)
    except ValueError:
        raise BadValue(f"position {text!r} of site {site!r} is neither a number nor a range begin:end.") from None
    return begin, end


def _spell(position: int | tuple[int | None, int | None] | None) -> str:
    if position is None:
        return ""
    if isinstance(position, int):
        return f"@{position}"
    return "@" + ":".join("" if bound is None else str(bound) for bound in position)


@dataclass(frozen=True)
class Place:
    """Where a site is found in the module.

    Attributes:
        module: the part of the transformers module.
        side: "in" or "out": the value going into it or coming out; "heads", "scale": made from both (`models.derived`);
            "query", "key", "scores", "pattern": inside attention (`models.attending`).
        rows: columns of a fused output that are this site, else None.
        heads: number of heads the last dimension is split into, else 0.
        scale: what the value is multiplied by before it joins the stream.
    """

    module: Any
    side: str
    rows: Tensor | None = None
    heads: int = 0
    scale: float = 1.0


def names(model: Model) -> list[str]:
    """Names of the sites this model has."""
    has_middle = not model.family.is_parallel(model.config)
    points = [name for name in model.family.points if name != "resid_mid" or has_middle]
    return [*model.family.sites, *points, "logits"]


def expand(model: Model, text: str | Site) -> list[Site]:
    """Return the sites a text means in this model: one, or one for each layer if it names none.

    Raises:
        BadValue, UnknownName: not a site, or none of this model. OutOfRange: a layer it does not have.
    """
    site = Site.parse(text)
    known = names(model)
    if site.name not in known:
        raise UnknownName.of(f"site of {model.name!r} ({model.family.name})", site.name, known)
    if site.name in GLOBAL:
        return [site]
    if site.layer is None:
        return [replace(site, layer=layer) for layer in range(model.layers)]
    if site.layer >= model.layers:
        raise OutOfRange(f"site {str(site)!r}: {model.name!r} has layers 0 .. {model.layers - 1}.")
    return [site]


def locate(model: Model, site: Site) -> Place:
    """Return where a site of this model is found; its name and layer have been checked by `expand`."""
    if site.name == "logits":
        return Place(model.module, "out")
    family = model.family
    side, _, path = (family.sites if site.name in GLOBAL else family.points)[site.name].partition(" ")
    block = model.module if site.name in GLOBAL else model.module.get_submodule(f"{family.blocks}.{site.layer}")
    try:
        module = block if path == "." else block.get_submodule(path)
    except AttributeError:  # of models in a form of their own, a block may lack the part
        raise NothingMatched(f"block {site.layer} of {model.name!r} has no {site.name!r}.") from None
    entry = family.scale.get(site.name, "")
    scale = float(getattr(model.config, entry)) if entry else 1.0
    split = heads(model, site.name) if site.name in SPLIT else 0
    return Place(module, side, _fused_rows(model, site, path), split, scale)


def _fused_rows(model: Model, site: Site, path: str) -> Tensor | None:
    """Columns of the output of a fused matrix, if the site is found at one."""
    from kobza.models import matrices

    prefix = f"blocks.{site.layer}."
    part = model.parts.get(f"{prefix}attn.{site.name}") or model.parts.get(f"{prefix}mlp.{site.name}")
    if part is None or model.family.block.get(part.whole.removeprefix(prefix)) != path:
        return None
    return matrices.rows(part, model.matrices[part.whole].shape, model.config)


def heads(model: Model, name: str) -> int:
    """How many heads a site has: H, or K, the key/value heads, for k, k_rot and v."""
    config = model.config
    own = getattr(config, "num_key_value_heads", None) if name in KEY_VALUE_HEADS else None
    return int(own or config.num_attention_heads)


def selection(site: Site, shape: torch.Size) -> tuple[Any, ...]:
    """Return the index expression for the site's positions and index in a value (B, T, X) or (B, T, heads, X).

    Raises:
        OutOfRange: the position or index is not there.
    """
    T, X = shape[1], shape[2]
    if isinstance(site.position, int) and not -T <= site.position < T:
        raise OutOfRange(f"site {str(site)!r}: the run has positions 0 .. {T - 1} (or -{T} .. -1).")
    if site.index is not None and site.index >= X:
        raise OutOfRange(f"site {str(site)!r}: its index goes from 0 to {X - 1}.")
    positions: int | slice = site.position if isinstance(site.position, int) else slice(*(site.position or (None,)))
    if isinstance(positions, slice) and not len(range(*positions.indices(T))):
        raise OutOfRange(f"site {str(site)!r}: no position of the run (0 .. {T - 1}) lies in that range.")
    return (slice(None), positions) if site.index is None else (slice(None), positions, site.index)
