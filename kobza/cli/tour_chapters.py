"""The chapters of the tour that look at a model: anatomy, tokens, spectrum, map, neighbors, clumps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kobza.cli.tour_page import Chapter, columns, folded, side_by_side
from kobza.core import techniques
from kobza.core.figure import Figure
from kobza.core.table import Table
from kobza.core.texts import text

if TYPE_CHECKING:
    from kobza.models.model import Model

READ = ("topics[2003:2480]", "ukrainian[:420]")
"""Texts whose tokens are shown colored by what they cost the model."""

WORDS = (" lava", " sea", " Paris", " three", " water", " def", " import", " he", " she", " red", " blue", " good")
COUNTED = ("parameters", "stored_bytes", "kv_bytes_per_token", "operations_per_token")
"""Exact counts shown first; the others are folded away."""

SHOWN = (" lava", " Paris", " seven", " import")


def view(model: Model, name: str, **options: Any) -> Table:
    """Return one view of the embeddings room."""
    found: Table = techniques.verb("embeddings", name)(model, **options)
    return found


def anatomy(model: Model, spec: str) -> Chapter:
    """Return what the model is made of."""
    sizes = view(model, "sizes")
    share = sum(row["share"] for row in sizes if row["part"].startswith("embed."))
    told = model.anatomy()
    tie = "one table serves both ends" if model.is_tied else "each end has a table of its own"
    claim = (
        f"{model.layers} layers of width {model.width} and a vocabulary of {model.vocabulary:,} tokens make "
        f"{model.parameters:,} numbers. {share:.0%} of them are the token vectors; {tie}."
    )
    parts = [{"part": r["part"], "parameters": r["parameters"], "share": f"{r['share']:.1%}"} for r in sizes]
    shown = side_by_side(sizes.figures[0], Table(parts, note=sizes.note))
    first = [reading for reading in told.readings if reading.name in COUNTED]
    numbers = {"parameters": model.parameters, "embedding share": share}
    blocks = [first, shown, folded("every weight by pattern, and all exact counts", told.readings, *told.tables)]
    return Chapter("anatomy", "What it is made of", claim, blocks, f"kobza open {spec}", numbers)


def tokens(model: Model, spec: str) -> Chapter:
    """Return two short texts as the model reads them, each token colored by its cost in bits."""
    from kobza.models.forward import token_bits

    figures, rates = [], []
    for name in READ:
        sample = text(name)
        pieces = model.tokenizer.split(sample.data)
        bits = token_bits(model, [piece.id for piece in pieces], window=min(1024, model.context or 1024)).tolist()
        shown = _characters(pieces, bits)
        rate = sum(bits) / len(sample)
        rates.append((sample.name.partition("[")[0], len(sample) / len(pieces), rate))
        title = f"{sample.name}: {len(pieces)} tokens for {len(sample)} bytes, {rate:.2f} bits per byte"
        figures.append(Figure("tokens", {"pieces": shown}, title=title))
    (_, wide, _), (_, narrow, _) = rates
    claim = (
        f"The deeper the color, the more bits the token cost: the model did not expect it. A token covers {wide:.1f} "
        f"bytes of the first text and {narrow:.1f} of the second, where some cut a character and are shown together."
    )
    numbers = {"bytes per token": [rate[1] for rate in rates]}
    return Chapter("tokens", "How it reads", claim, figures, f'kobza tokens {spec} "..."', numbers)


def spectrum(model: Model, spec: str) -> Chapter:
    """Return the singular values of the token table beside those of a random matrix."""
    table = view(model, "spectrum")
    rows = {row["way"]: row for row in table}
    own, centered, chance = rows["as it is"], rows["centered"], rows["random"]
    claim = (
        f"The largest singular value is {own['largest'] / own['upper edge']:.1f} times what a random matrix of this "
        f"shape and spread would have, and {centered['largest'] / own['upper edge']:.1f} times once the mean vector is "
        f"taken off. Half of the squared norm lies in {own['rank 50%']} of {model.width} directions "
        f"({centered['rank 50%']} without the mean, {chance['rank 50%']} in a random matrix); "
        f"{own['above random']} values stand above the random band."
    )
    blocks = [side_by_side(*table.figures), folded("as a table", _without_figures(table))]
    return Chapter("spectrum", "Structure and noise", claim, blocks, f"kobza look {spec} spectrum", dict(own))


def token_map(model: Model, spec: str) -> Chapter:
    """Return the map of all tokens."""
    words = [word for word in WORDS if model.tokenizer.id_of(word.encode()) is not None]
    shares = view(model, "projection")
    table = view(model, "projection", words=words) if words else shares
    two = shares[1]["share of all"]
    claim = (
        f"All {model.vocabulary:,} token vectors along their two strongest directions, which hold {two:.1%} of the "
        "variance: a shadow, not the thing. Type a token to find it, hover to read, wheel to zoom."
    )
    command = f"kobza look {spec} projection -o map.html"
    return Chapter("map", "The map of all tokens", claim, table.figures, command, {"share of two": two})


def neighbors(model: Model, spec: str) -> Chapter:
    """Return the nearest tokens of some words, and what a search after a reduction loses."""
    shown = [word for word in SHOWN if model.tokenizer.id_of(word.encode()) is not None]
    reduced = min(10, model.width)
    tables, found = [], []
    queries: list[dict[str, Any]] = [{"token": word} for word in shown]
    for query in queries or [{"ids": [model.vocabulary // 2]}]:
        table = view(model, "neighbors", k=8, reduced=reduced, **query)
        found += table["found"]
        rows = [{"neighbor": row["neighbor"], "cosine": row["cosine"], "kept": row["found"]} for row in table]
        tables.append(Table(rows, title=f"nearest to {table[0]['query']!r}"))
    share = sum(found) / len(found)
    claim = (
        f"Exact cosine neighbors among all {model.vocabulary:,} tokens. The customary shortcut, a search after "
        f"reducing to {reduced} principal components, finds {share:.0%} of these (marked kept)."
    )
    command = f"kobza look {spec} 'neighbors:token=\"{shown[0] if shown else ''}\"'"
    return Chapter("neighbors", "Who lives next door", claim, [columns(*tables)], command, {"share": share})


def clumps(model: Model, spec: str) -> Chapter:
    """Return the groups of nearly identical rows, and what they are."""
    table = view(model, "correlation")
    together = [row for row in table if row["what"] != "in no clump"]
    claim = (
        f"{sum(row['size'] for row in together)} of {model.vocabulary:,} rows lie in {len(together)} "
        f"clump{'s' * (len(together) != 1)} of nearly identical vectors: tokens that training hardly ever saw "
        "and never moved apart."
    )
    if together:
        norm = together[0]["mean norm"]
        shorter = float((model_norms(model) < norm).double().mean())
        claim += (
            f" Length alone would not find them: the vectors of the largest clump have norm {norm:.2f}, and "
            f"{shorter:.0%} of all rows are shorter."
        )
    blocks = [_without_figures(table).head(30), *table.figures]
    return Chapter("clumps", "Tokens that were never trained", claim, blocks, f"kobza look {spec} correlation")


def model_norms(model: Model) -> Any:
    """Return the norm of every row of the input table, (V,) float64."""
    return model.matrix("embed.in").double().norm(dim=1)


def _characters(pieces: Sequence[Any], bits: Sequence[float]) -> list[dict[str, Any]]:
    """Return what is shown of the tokens: one each, but those that share a character together."""
    shown: list[dict[str, Any]] = []
    held: list[Any] = []
    cost = 0.0
    for piece, cost_of_one in zip(pieces, bits, strict=True):
        held.append(piece)
        cost += cost_of_one
        try:
            words = b"".join(p.bytes for p in held).decode()
        except UnicodeDecodeError:
            continue
        ids = " ".join(str(p.id) for p in held)
        shown.append({"text": words, "value": cost, "title": f"{len(held)} token, id {ids}, {cost:.2f} bits"})
        held, cost = [], 0.0
    return shown


def _without_figures(table: Table) -> Table:
    return Table(table.rows, units=table.units, title=table.title, note=table.note, order=table.columns)
