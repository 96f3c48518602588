"""Sparse features: a TopK autoencoder trained on a site, what its features mean, and what they do.

A dictionary of many directions is fitted to the values at a site, so that few of them rebuild each value. Every
feature is read by the texts where it is strongest, by the tokens it promotes, by a rule if one is given (specificity as
likelihood ratio, sensitivity as correlation), and by what the model loses when it is switched off. How good the
dictionary is says the yardstick: bits per byte with the rebuilt values spliced in, beside the same for as many random
directions.

Sources: Gao et al. (2024), arXiv:2406.04093 (TopK, loss recovered); Bricken et al. (2023), "Towards Monosemanticity"
(specificity and sensitivity against a rule, switching off with the error kept).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from kobza.core.errors import BadValue, OutOfRange
from kobza.core.figure import Figure
from kobza.core.result import Reading, Result
from kobza.core.table import Table
from kobza.interventions._autoencoder import Autoencoder, train
from kobza.interventions._collecting import Seen, collect, tokens_of
from kobza.interventions._rules import correlations, indicator
from kobza.interventions.base import generator, record
from kobza.measures.bits_per_byte import measure
from kobza.models.forward import head
from kobza.models.hooks import Hook, hooked
from kobza.models.model import Model
from kobza.models.passes import BITS
from kobza.models.sites import GLOBAL, HEADS, Site

HELD = 5  # one part in five of the tokens is kept from the training
STRONG = 0.5  # of its largest strength: where a feature counts as strong


def run(
    model: Model,
    *,
    site: str = "",
    width: int = 0,
    k: int = 32,
    text: str = "topics",
    sample: int = 20_000,
    steps: int = 400,
    batch: int = 1024,
    rate: float = 1e-3,
    rule: str = "",
    top: int = 20,
    limit: int = 2000,
    controls: int = 1,
    keep: str = "",
    seed: int = 0,
) -> Result:
    """Train a sparse autoencoder on a site and describe its strongest features.

    Args:
        model: the model; it is not changed.
        site: a site of one layer, `resid_post.15`, `mlp_out.3`; none: resid_post at half the height.
        width: features; 0: eight times the site's width [count, 0 ..].
        k: features that rebuild one value [count, 1 .. width].
        text: a named text or a file; four parts in five of its tokens train, the rest judges.
        sample: tokens read from it [tokens, 10 ..].
        steps: updates [count, 1 ..].
        batch: values per update [count, 1 ..].
        rate: learning rate [per step, > 0 ..].
        rule: `tokens: am| pm` or `regex:[0-9]+`; features are then sorted by their correlation with it.
        top: features described [count, 1 ..].
        limit: bytes of unread text for the bits per byte [bytes, 64 ..].
        controls: random dictionaries spliced in; 0 leaves the result uncontrolled [count, 0 ..].
        keep: a file (safetensors) for the dictionary; if it is there, it is read and nothing is trained.
        seed: of start, batches and random dictionaries [integer, 0 ..].

    Returns:
        A Result: a table of features (density, strongest tokens and text, tokens promoted, bits lost where it fires
        when it is switched off; with a rule also specificity [bit] and sensitivity), the fit as a picture, and
        readings: `explained` (variance on held-out tokens), `dead` (share of features that never fire there),
        `clean`, `spliced`, `without` (the mean in place of every value), `recovered` = (without - spliced) /
        (without - clean), `control` (recovered by random directions); with a rule `best_coordinate`, the same
        correlation for single coordinates of the site.

    Raises:
        BadValue: a site without a layer or with an index; a rule that is none. OutOfRange: k exceeds the width.
        NothingMatched: the rule holds nowhere. EmptyText: too little text.

    Cost: one pass over the sample up to the site, the training (about 26 W D operations per value), five measurements.
    """
    given = locals()
    place = _place(model, site)
    ids = tokens_of(model, text, sample)
    cut = max(1, len(ids) - max(1, len(ids) // HELD))
    known = keep and Path(keep).is_file()
    history: list[float] = []
    held = collect(model, ids[cut:], [place])
    if known:
        dictionary = Autoencoder.load(keep)
        _require_fit(dictionary, place, held.values[place])
    else:
        values = collect(model, ids[:cut], [place]).values[place]
        about = {"site": place, "model": model.name, "text": text, "tokens": cut, "seed": seed}
        options = {"width": width or 8 * values.shape[1], "k": k, "steps": steps, "batch": batch, "rate": rate}
        dictionary, history = train(values, **options, seed=seed, about=about)  # type: ignore[arg-type]
        if keep:
            dictionary.save(keep)
    judged = _Judged(model, place, dictionary, held)
    made = record(model, "features", given)
    label = "" if controls else " (uncontrolled)"
    table = _table(judged, rule, top, history, label)
    readings = [*_fit_readings(judged, made), *_spliced(judged, _unread(text, model, ids), limit, controls, seed, made)]
    if rule:
        readings.append(_best_coordinate(judged, indicator(model, held.ids, rule), made))
    return Result(f"Features of {place} of {model.name}{label}", readings, [table], made_by=made)


def _place(model: Model, site: str) -> str:
    found = Site.parse(site or f"resid_post.{model.layers // 2}")
    if found.name in GLOBAL or found.layer is None or found.index is not None or found.position is not None:
        raise BadValue(f"{site!r} is not a whole site of one layer.", "Write resid_post.15 or mlp_out.3.")
    if found.name in HEADS:
        raise BadValue(f"{site!r} has heads of its own.", "Write attn_out, mlp_out, neuron or a resid site.")
    return str(found)


def _require_fit(dictionary: Autoencoder, place: str, values: Tensor) -> None:
    seen, width = dictionary.about.get("site"), dictionary.decoder.shape[1]
    if seen != place or width != values.shape[1]:
        raise BadValue(f"the dictionary kept is for {seen} ({width}), not {place} ({values.shape[1]}).")


def _unread(text: str, model: Model, ids: Tensor) -> bytes:
    """The bytes of the held-out tokens, and of what follows them: nothing of it was trained on."""
    from kobza.core.texts import text as open_text

    used = len(ids) - max(1, len(ids) // HELD)
    return open_text(text).data[len(model.tokenizer.decode(ids[:used].tolist())) :]


@dataclass(frozen=True)
class _Judged:
    """A dictionary with the held-out tokens it is judged by."""

    model: Model
    place: str
    dictionary: Autoencoder
    held: Seen

    @property
    def values(self) -> Tensor:
        """(N, D) values of the held-out tokens."""
        return self.held.values[self.place]

    @cached_property
    def codes(self) -> tuple[Tensor, Tensor]:
        """Strengths and features, both (N, k)."""
        return self.dictionary.encode(self.values)

    def strength(self, feature: int) -> Tensor:
        """(N,) strengths of one feature."""
        strengths, latents = self.codes
        return (strengths * (latents == feature)).sum(1)

    @cached_property
    def counts(self) -> Tensor:
        """(W,) tokens on which each feature fires."""
        strengths, latents = self.codes
        return torch.bincount(latents[strengths > 0], minlength=self.dictionary.width)


# --- one feature ----------------------------------------------------------------------------------------------------


def _table(judged: _Judged, rule: str, top: int, history: list[float], label: str) -> Table:
    if top < 1:
        raise OutOfRange(f"top={top}: at least 1 feature.")
    holds = indicator(judged.model, judged.held.ids, rule) if rule else None
    order = (
        _sensitivity(judged, holds).argsort(descending=True)
        if holds is not None
        else _mass(judged).argsort(descending=True)
    )
    rows = [_row(judged, feature, holds) for feature in order[:top].tolist() if judged.counts[feature]]
    note = f"{judged.dictionary.width} features, k={judged.dictionary.k}, of {judged.place}; "
    note += f"{len(judged.values)} held-out tokens; " + (f"sorted by {rule!r}" if rule else "sorted by variance")
    series = [{"name": "unexplained", "x": list(range(len(history))), "y": history}]
    figure = Figure(
        "lines",
        {"series": series, "logy": True},
        title="Training",
        caption=f"Unexplained variance. {note}",
        x="step",
        y="share",
    )
    units = {"density": "share", "strongest": "scale", "bits lost": "bit", "specificity": "bit", "strong": "bit"}
    return Table(rows, units=units, title=f"Features{label}", note=note, figures=[figure] if history else [])


def _mass(judged: _Judged) -> Tensor:
    """(W,) sum of squared strengths: the variance each feature carries."""
    strengths, latents = judged.codes
    return torch.zeros(judged.dictionary.width).index_add_(0, latents.flatten(), strengths.square().flatten())


def _row(judged: _Judged, feature: int, holds: Tensor | None) -> dict[str, object]:
    strength = judged.strength(feature)
    model, ids = judged.model, judged.held.ids
    best = strength.argsort(descending=True)[:20]
    best = best[strength[best] > 0]
    tokens = list(dict.fromkeys(model.tokenizer.show(int(ids[at])) for at in best))[:5]
    row: dict[str, object] = {"feature": feature, "density": float((strength > 0).double().mean())}
    row["strongest"] = float(strength.max())
    if holds is not None:
        row["sensitivity"] = float(correlations(strength[:, None], holds)[0])
        row["specificity"] = likelihood_ratio(strength > 0, holds)
        row["strong"] = likelihood_ratio(strength > STRONG * strength.max(), holds)
    row["bits lost"] = _bits_lost(judged, feature, strength)
    row |= {"tokens": " ".join(tokens), "promotes": _promotes(judged, feature)}
    return row | {"text": judged.held.around(model, int(best[0]))}


def likelihood_ratio(fires: Tensor, holds: Tensor) -> float:
    """Return log2 of P(fires | the rule holds) over P(fires | it does not) [bit]; half a count is added to each.

    >>> fires, holds = torch.tensor([1, 1, 0, 0, 0, 0]).bool(), torch.tensor([1, 1, 0, 0, 0, 0]).bool()
    >>> round(likelihood_ratio(fires, holds), 3)
    3.158
    """
    inside = (float((fires & holds).sum()) + 0.5) / (float(holds.sum()) + 1)
    outside = (float((fires & ~holds).sum()) + 0.5) / (float((~holds).sum()) + 1)
    return math.log2(inside / outside)


def _sensitivity(judged: _Judged, holds: Tensor) -> Tensor:
    """(W,) correlation of every feature's strength with the rule, without the dense (N, W) strengths."""
    strengths, latents = (part.flatten() for part in judged.codes)
    N, W = len(holds), judged.dictionary.width
    weight = holds.double().repeat_interleave(judged.dictionary.k)
    one, two, both = (
        torch.zeros(W, dtype=torch.float64).index_add_(0, latents, part)
        for part in (strengths.double(), strengths.double().square(), strengths.double() * weight)
    )
    share = float(holds.double().mean())
    spread = (two / N - (one / N).square()).clamp_min(0).sqrt() * math.sqrt(share * (1 - share))
    return torch.where(spread > 0, (both / N - one / N * share) / spread.clamp_min(1e-30), 0.0)


@torch.inference_mode()
def _promotes(judged: _Judged, feature: int) -> str:
    """The tokens whose logits the direction raises most by itself, where the site is one of the stream."""
    model, direction = judged.model, judged.dictionary.decoder[feature]
    if len(direction) != model.width:
        return ""
    norm = model.module.get_submodule(model.family.sites["final"].partition(" ")[2])
    # a long vector through the final norm and the head: the direction alone, whatever the norm's scale
    logits = head(model, norm(direction.to(model.dtype)[None] * 100) - norm(torch.zeros_like(direction)[None]))[0]
    return " ".join(model.tokenizer.show(int(i)) for i in logits.topk(5).indices)


def _bits_lost(judged: _Judged, feature: int, strength: Tensor) -> float:
    """Change of the bits of the next token where the feature fires, in the window where it is strongest, when off.

    Only the feature's own part is taken away: what the dictionary does not explain stays in.
    """
    model, held = judged.model, judged.held
    first = int(strength.argmax()) // held.window * held.window
    ids = held.ids[first : first + held.window]
    part = strength[first : first + held.window]
    fires = part[:-1] > 0
    if not fires.any():
        return 0.0
    start = model.tokenizer.encode("", start=True)
    fed = torch.cat([torch.tensor(start, dtype=torch.long), ids])[None].to(model.device)
    away = part[:, None] * judged.dictionary.decoder[feature] * judged.dictionary.scale

    def off(value: Tensor) -> Tensor:
        return torch.cat([value[:, : len(start)], value[:, len(start) :] - away.to(value)], 1)

    before, after = _bits(model, fed, []), _bits(model, fed, [Hook(judged.place, off)])
    return float((after - before)[len(start) :][fires].mean())


@torch.inference_mode()
def _bits(model: Model, fed: Tensor, hooks: Sequence[Hook]) -> Tensor:
    """Bits (T - 1,) of every token but the first."""
    with hooked(model, hooks):
        logits = model.module(input_ids=fed, use_cache=False).logits[0, :-1].float()
    return (logits.logsumexp(-1) - logits.gather(1, fed[0, 1:, None])[:, 0]) * BITS


# --- the dictionary as a whole --------------------------------------------------------------------------------------


def _fit_readings(judged: _Judged, made: dict[str, object]) -> list[Reading]:
    values = judged.values
    left = (judged.dictionary.decode(*judged.codes) - values).double().square().sum()
    whole = (values - values.mean(0)).double().square().sum()
    dead = float((judged.counts == 0).double().mean())
    note = f"of {len(values)} held-out tokens"
    return [
        Reading("explained", float(1 - left / whole), "share", record=made, note=note),
        Reading("dead", dead, "share", record=made, note=f"of {judged.dictionary.width} features never fire there"),
    ]


def splice(place: str, rebuild: Callable[[Tensor], Tensor]) -> Hook:
    """Return a hook that puts rebuilt values in at every position but the first.

    The first is a sink of attention, unlike all others, and no dictionary is trained on it. For whole passes only.
    """
    return Hook(place, lambda value: torch.cat([value[:, :1], rebuild(value[:, 1:])], 1))


def _spliced(
    judged: _Judged, unread: bytes, limit: int, controls: int, seed: int, made: dict[str, object]
) -> list[Reading]:
    model, dictionary = judged.model, judged.dictionary

    def bits(name: str, note: str, rebuild: Callable[[Tensor], Tensor] | None) -> Reading:
        hooks = [] if rebuild is None else [splice(judged.place, rebuild)]
        with hooked(model, hooks):
            found = measure(model, unread, limit=limit)
        return replace(found, name=name, note=note)

    clean = bits("clean", "bits per byte of text not trained on", None)
    spliced = bits("spliced", "with every value rebuilt", dictionary.rebuild)
    without = bits("without", "with the mean in place of every value", lambda v: dictionary.center.to(v).expand_as(v))
    span = without.value - clean.value
    share = (without.value - spliced.value) / span if span else 0.0
    found = [clean, spliced, without, Reading("recovered", share, "share", record=made, note="of what the mean loses")]
    draw = generator(seed)
    others = []
    for _ in range(controls):
        other = bits("", "", _random_like(dictionary, judged.values, draw).rebuild)
        others.append((without.value - other.value) / span if span else 0.0)
    if others:
        mean = sum(others) / len(others)
        note = f"recovered by {dictionary.width} random directions, k={dictionary.k}, least squares strength"
        found.append(Reading("control", mean, "share", min(others), max(others), "smallest and largest", made, note))
    return found


def _random_like(dictionary: Autoencoder, values: Tensor, draw: torch.Generator) -> Autoencoder:
    """As many random directions, tied, with the one common strength that rebuilds held-out values best."""
    rows = torch.randn(dictionary.decoder.shape, generator=draw)
    rows = rows / rows.norm(dim=1, keepdim=True)
    other = replace(dictionary, encoder=rows, bias=torch.zeros_like(dictionary.bias), decoder=rows)
    normal = values - dictionary.center
    rebuilt = other.rebuild(values) - dictionary.center
    best = float((rebuilt.double() * normal.double()).sum() / rebuilt.double().square().sum().clamp_min(1e-30))
    return replace(other, encoder=rows * best)


def _best_coordinate(judged: _Judged, holds: Tensor, made: dict[str, object]) -> Reading:
    found = correlations(judged.values, holds).abs()
    note = f"largest correlation of a single coordinate with the rule (coordinate {int(found.argmax())})"
    return Reading("best_coordinate", float(found.max()), "", record=made, note=note)
