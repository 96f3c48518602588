"""What interventions share: cells (what is changed where), the grammar of places, metrics, records.

A technique of this room gives `run(model, *, ...) -> Result`. A Cell is one changed run: one or several Edits of
values at sites. Places are written as in `models.sites`, with three additions: `*` for every layer or index, `@*` for
every position by itself, and a position given by its token:

    neuron.29.*          every neuron of layer 29, at all positions together
    z.*.*@-1             every head, at the last position
    resid_pre.*@*        every layer x every position
    resid_pre.22@' am'   where the token ` am` stands (it must stand once)

Techniques that change several values at once also read `+` (see `sets`): `z.18.6+z.17.3` is one cell, `z.17.*+z.18.*`
every pair, `block.3` attention and MLP of layer 3 together.

Sources: Vig et al. (2020), arXiv:2004.12265 (interventions on neurons and heads); Zhang & Nanda (2024),
arXiv:2309.16042 (metrics).
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor

from kobza.core import techniques
from kobza.core.errors import BadValue, EmptyText, NothingMatched, OutOfRange
from kobza.measures.base import machine, versions
from kobza.models.model import Model
from kobza.models.sites import ALIASES, GLOBAL, HEADS, Site, expand, heads

UNITS = {"prob": "share", "logprob": "nat", "logit": "logit", "top1": "share", "diff": "logit", "loss": "nat"}
METRICS = tuple(UNITS)
ROWS_AT_ONCE = 4  # of logits; 4 x 49,152 float32 are 0.8 MB
_POSITION = r"""@('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\*|last|-?\d*:-?\d*|-?\d+)"""
_PLACE = re.compile(rf"([a-z_][a-z_0-9]*)(?:{_POSITION})?(?:\.(\d+|\*))?(?:\.(\d+|\*))?(?:{_POSITION})?")


@dataclass(frozen=True)
class Edit:
    """One value changed in one run.

    Attributes:
        site: name, layer and index; its own position is not used.
        positions: which positions of the run, none negative; at least one.
        value: what to put there: broadcasts to the part, (P,), (P, E) or (P, D).
        adds: the value is added to what is there instead.
    """

    site: Site
    positions: tuple[int, ...]
    value: Tensor
    adds: bool = False

    def applied(self, part: Tensor) -> Tensor:
        """Return the new values for a part (P, ...)."""
        value = self.value.to(part)
        return part + value if self.adds else value.expand_as(part)


Cell = tuple[Edit, ...]


@dataclass(frozen=True)
class Place:
    """One place of a grid: a site with the positions that are changed together.

    Attributes:
        site: name, layer, index.
        positions: positions of the run.
        label: how the positions are written: "all", "9".
        also: places that are changed together with it.
        name: of the whole set, if it has one: "block.3".
        written: how a user wrote the positions: "", "-1", "' am'".
    """

    site: Site
    positions: tuple[int, ...]
    label: str
    also: tuple[Place, ...] = ()
    name: str = ""
    written: str = ""

    @property
    def members(self) -> tuple[Place, ...]:
        """The place itself and those changed with it."""
        return (replace(self, also=(), name=""), *self.also)

    @property
    def address(self) -> str:
        """`z.18.6`, `resid_pre.22@9`, `z.18.6+z.17.3`."""
        if self.also:
            return self.name or "+".join(one.address for one in self.members)
        return str(self.site) + ("" if self.label == "all" else f"@{self.label}")

    @property
    def short(self) -> str:
        """As the field writes it: L18H6, N1810@L10, L18H6+L17H3; else the address."""
        site = self.site
        if self.also:
            return self.name or "+".join(one.short for one in self.members)
        if site.index is not None and site.name in HEADS:
            return f"L{site.layer}H{site.index}"
        if site.index is not None and site.name == "neuron":
            return f"N{site.index}@L{site.layer}"
        return self.address


def places(model: Model, ids: Sequence[int], text: str) -> list[Place]:
    """Return the places a text means in a run of these tokens; several texts are joined by `;`.

    Raises:
        BadValue, UnknownName, OutOfRange: it is no site, or none of this model or run.
        NothingMatched: a token that is not in the run.
    """
    return [place for part in _split(text) for place in _places(model, ids, part)]


def sets(model: Model, ids: Sequence[int], text: str) -> list[Place]:
    """Return the sets of places a text means; those of one set are changed together.

    `a+b` is every place of `a` together with every place of `b`; a place with itself is that place alone. `block.3` is
    `attn_out.3+mlp_out.3`, all that layer 3 adds. Several texts are joined by `;`.

    Raises:
        As `places`.
    """
    found = []
    for part in _split(text):
        factors = [_factor(model, ids, factor) for factor in _split(part, "+")]
        found += [_joined(chosen) for chosen in product(*factors)]
    return found


def _factor(model: Model, ids: Sequence[int], text: str) -> list[Place]:
    if not re.match(r"block\b", text):
        return _places(model, ids, text)
    both = [_places(model, ids, text.replace("block", name, 1)) for name in ("attn_out", "mlp_out")]
    named = [(replace(a, also=(b,)), a.address.replace("attn_out", "block", 1)) for a, b in zip(*both, strict=True)]
    return [replace(place, name=name) for place, name in named]


def _joined(chosen: Sequence[Place]) -> Place:
    """One set of several; what stands in it twice is kept once."""
    if len(chosen) == 1:
        return chosen[0]
    first, *rest = dict.fromkeys(member for place in chosen for member in place.members)
    return replace(
        first, also=tuple(rest), name="+".join(p.short for p in chosen) if any(p.name for p in chosen) else ""
    )


def _split(text: str, mark: str = ";") -> list[str]:
    """Cut at marks that stand outside quotes."""
    return [part.strip() for part in re.findall(rf"""(?:'[^']*'|"[^"]*"|[^{mark}'"])+""", text)]


def _places(model: Model, ids: Sequence[int], text: str) -> list[Place]:
    found = _PLACE.fullmatch(text)
    if not found or (found[2] and found[5]):
        hint = "Write site.layer.index@position: neuron.29.*, z.*.*@-1, resid_pre.*@*, resid_pre.22@' am'."
        raise BadValue(f"{text!r} is no place in a run.", hint)
    name, before, layer, index, after = found.groups()
    name = ALIASES.get(name, name)
    plain = name + ("" if layer in (None, "*") else f".{layer}")
    sites = expand(model, plain)
    if name in GLOBAL and layer:
        raise BadValue(f"{text!r}: {name} has no layers.", "Leave the number out.")
    written = before or after or ""
    spots = positions(model, ids, written)
    indexed = [one for site in sites for one in _indexed(model, site, index)]
    return [Place(one, at, label, written=written) for one in indexed for at, label in spots]


def _indexed(model: Model, site: Site, index: str | None) -> list[Site]:
    if index is None:
        return [site]
    size = width(model, site)
    if index == "*":
        return [replace(site, index=i) for i in range(size)]
    if int(index) >= size:
        raise OutOfRange(f"site '{site}.{index}': its index goes from 0 to {size - 1}.")
    return [replace(site, index=int(index))]


def width(model: Model, site: Site) -> int:
    """How many heads or coordinates a site has."""
    if site.name in HEADS:
        return heads(model, site.name)
    if site.name in ("gate", "up", "neuron"):
        return model.matrix(f"blocks.{site.layer}.mlp.down").shape[1]
    if site.name == "logits":
        return model.vocabulary
    return 1 if site.name.endswith("_scale") else model.width


def positions(model: Model, ids: Sequence[int], text: str) -> list[tuple[tuple[int, ...], str]]:
    """Return [(positions changed together, label)]: "" is all together, "*" each by itself.

    Raises:
        OutOfRange: not in the run. NothingMatched: a token that is not in it. BadValue: one that is in it twice.
    """
    T = len(ids)
    if text == "":
        return [(tuple(range(T)), "all")]
    if text == "*":
        return [((at,), str(at)) for at in range(T)]
    if text[0] in "'\"":
        at = _spot(model, ids, ast.literal_eval(text))
        return [((at,), str(at))]
    if ":" in text:
        begin, end = (int(piece) if piece else None for piece in text.split(":"))
        chosen = tuple(range(T)[begin:end])
    else:
        number = -1 if text == "last" else int(text)
        chosen = (number % T,) if -T <= number < T else ()
    if not chosen:
        raise OutOfRange(f"position {text!r}: the run has positions 0 .. {T - 1} (or -{T} .. -1).")
    return [(chosen, str(chosen[0]) if len(chosen) == 1 else f"{chosen[0]}:{chosen[-1] + 1}")]


def _spot(model: Model, ids: Sequence[int], token: str) -> int:
    found = [at for at, i in enumerate(ids) if model.tokenizer.bytes_of(int(i)) == token.encode()]
    if not found:
        shown = " ".join(repr(show) for show in shown_tokens(model, ids))
        raise NothingMatched(f"no token of the prompt is {token!r}.", f"Its tokens: {shown}")
    if len(found) > 1:
        raise BadValue(f"{token!r} stands at positions {found} of the prompt.", "Give one of them as a number.")
    return found[0]


def shown_tokens(model: Model, ids: Sequence[int]) -> list[str]:
    """How the tokens are written, with a blank instead of the mark for one."""
    return [model.tokenizer.show(int(i)).replace("▁", " ") for i in ids]


def prompt_ids(model: Model, text: str) -> list[int]:
    """Return the tokens of a prompt, begun by the start token if the tokenizer has one.

    Raises:
        EmptyText: it is empty. OutOfRange: it is longer than the trained context.
    """
    if not text:
        raise EmptyText("the prompt is empty.", "Give a text of at least one token.")
    ids = list(model.tokenizer.encode(text, start=True))
    if model.context and len(ids) > model.context:
        raise OutOfRange(f"{len(ids)} tokens exceed the {model.context} that {model.name!r} was trained for.")
    return ids


def several(text: str) -> list[str]:
    """Return the prompts of a text in which they are joined by `||`."""
    return text.split("||")


def aligned_ids(
    model: Model, clean: str, corrupt: str, align: Literal["same", "end"] = "same"
) -> tuple[list[int], list[int]]:
    """Return the tokens of two prompts whose positions correspond.

    Args:
        model: whose tokenizer.
        clean, corrupt: the prompts.
        align: "same" demands equally many tokens; with "end" positions correspond when they are equally far from it.

    Raises:
        BadValue: they have unequal numbers of tokens (the message shows them), or are the same.
        EmptyText: one is empty.
    """
    a, b = prompt_ids(model, clean), prompt_ids(model, corrupt)
    if len(a) != len(b) and align == "same":
        shown = "\n".join(" ".join(map(repr, shown_tokens(model, ids))) for ids in (a, b))
        hint = f"{shown}\nOr say how they correspond: align=end counts positions from the end."
        raise BadValue(f"the prompts have {len(a)} and {len(b)} tokens: positions do not correspond.", hint)
    if a == b:
        raise BadValue("the clean and the corrupt prompt are the same.", "Change a word that should matter.")
    return a, b


def shifted(place: Place, by: int) -> Place:
    """Return a place with its positions (and those changed with it) counted `by` further.

    Raises:
        OutOfRange: one would stand before the beginning.
    """
    if by and min(place.positions) + by < 0:
        raise OutOfRange(f"{place.address}: the shorter prompt has no such position.", "Name positions that both have.")
    moved = tuple(p + by for p in place.positions)
    return replace(place, positions=moved, also=tuple(shifted(one, by) for one in place.also))


# --- metrics ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """What is read off a run.

    Attributes:
        name: "prob", "logprob", "logit" of a token; "diff", logit of one minus logit of another; "top1", whether the
            likeliest token is another one; "loss", nats per token of the prompt itself. All but the last at the last
            position. Several tokens joined by `|` (`logprob: yes| Yes`) are one answer: their probabilities add up.
        tokens: ids it is about.
        text: how a user writes it.
    """

    name: str
    tokens: tuple[int, ...]
    text: str

    @property
    def unit(self) -> str:
        """Unit of its values."""
        return UNITS[self.name]

    def read(self, logits: Tensor) -> Tensor:
        """Return its value (B,) for logits (B, V); "loss" is not read off the last position."""
        if self.name in ("prob", "logprob"):
            # a few rows at a time: each stays in the cache for all passes over it, which is three times as fast
            whole = torch.cat([rows.logsumexp(-1) for rows in logits.split(ROWS_AT_ONCE)])
            nats = logits[:, list(self.tokens)].logsumexp(-1) - whole
            return nats.exp() if self.name == "prob" else nats
        if self.name == "diff":
            return logits[:, self.tokens[0]] - logits[:, self.tokens[1]]
        if self.name == "top1":
            return (logits.argmax(-1) != self.tokens[0]).to(logits.dtype)
        return logits[:, self.tokens[0]]


def metrics(model: Model, text: str, top: int) -> list[Metric]:
    """Read `prob`, `logit: morning`, `diff: morning| evening`, or several joined by commas.

    A token is what stands behind the colon, blanks included; without one it is `top`, the likeliest of the clean run.

    Raises:
        BadValue: an unknown metric, or a text that is no single token.
    """
    return [_metric(model, part, top) for part in text.split(",")]


def _metric(model: Model, text: str, top: int) -> Metric:
    name, colon, about = text.partition(":")
    name = name.strip()
    if name not in METRICS:
        raise BadValue(f"{name!r} is no metric.", f"Metrics: {', '.join(METRICS)}; a token follows a colon.")
    pieces = about.split("|") if colon else []
    is_sum = name in ("prob", "logprob")
    wanted = {"diff": 2, "loss": 0}.get(name, len(pieces) if is_sum else len(pieces[:1]))
    if len(pieces) != wanted:
        raise BadValue(f"metric {text!r} names {len(pieces)} tokens.", "Write prob: morning or diff: morning| evening.")
    tokens = tuple(token_id(model, piece) for piece in pieces) or (() if name == "loss" else (top,))
    return Metric(name, tokens, text.strip())


def token_id(model: Model, text: str) -> int:
    """Return the id of a text that is a single token.

    Raises:
        BadValue: it is none; the message shows how it splits.
    """
    found = model.tokenizer.id_of(text.encode())
    if found is None:
        pieces = shown_tokens(model, model.tokenizer.encode(text))
        raise BadValue(f"{text!r} is no single token of {model.name!r}.", f"It splits into {pieces}.")
    return found


# --- chance and record --------------------------------------------------------------------------------------------


def generator(seed: int) -> torch.Generator:
    """Return a source of random numbers."""
    return torch.Generator().manual_seed(seed)


def record(model: Model, technique: str, options: Mapping[str, Any], **prompts: Sequence[int]) -> dict[str, Any]:
    """Return how a figure was taken: enough to take it again.

    Args:
        model: the model.
        technique: name of the technique.
        options: every option with its value; what is not plain data is left out.
        prompts: token ids of each prompt.
    """
    plain = {
        k: list(v) if isinstance(v, tuple) else v  # as JSON gives it back
        for k, v in options.items()
        if isinstance(v, str | int | float | list | tuple | type(None))
    }
    about = {
        "name": model.name,
        "spec": model.origin.spec,
        "fingerprint": model.fingerprint,
        "changes": [str(change) for change in model.changes],
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": str(getattr(model.config, "_attn_implementation", "")),
    }
    how = {"technique": technique, **plain, "ids": {name: list(ids) for name, ids in prompts.items()}}
    return {"how": how, "model": about, "versions": versions(), "machine": machine(model)}


def command(model: Model, technique: str, options: Mapping[str, Any]) -> str:
    """Return the command line that takes a figure again; options at their defaults are left out."""
    described = techniques.described("interventions", technique)
    given = [(o.name, options[o.name]) for o in described if o.name in options and options[o.name] != o.default]
    words = [f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in given]
    changed = f" (after {', '.join(map(str, model.changes))})" if model.changes else ""
    return (
        " ".join(["kobza", techniques.COMMANDS.get(technique, technique), shlex.quote(model.origin.spec), *words])
        + changed
    )
