"""The tour: one self-contained page that opens a model, looks inside, changes it and measures what changed.

Everything on the page is computed when it is written; the sweep is resumable, so a tour that was killed goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kobza.cli import tour_chapters, tour_sweep
from kobza.cli.tour_page import Chapter, folded, learned, said, side_by_side, tour_page
from kobza.core.files import write_atomic
from kobza.core.progress import task
from kobza.core.render import heading
from kobza.core.table import Table
from kobza.core.texts import text

if TYPE_CHECKING:
    from kobza.core.result import Result
    from kobza.models.model import Model

PROMPT = "The sea was calm, and"
PACKED = 500  # bytes of the text that is really packed: token by token, so it is slow
SPOKEN = 28  # tokens of each sample
# what speaks: (method, [(strength in words, edit)]); r0, r1, r2 are the ranks of the sweep
STRENGTHS = tuple(f"{share:.0%} of the dimensions" for share in tour_sweep.SHARES)
VOICES: tuple[tuple[str, Sequence[tuple[str, str]]], ...] = (
    ("unedited", [("as opened", "")]),
    *(
        (
            f"{method}, {tour_sweep.ENDS[end]}",
            [(words, f"{tour_sweep.RANKED[method]}where={end},rank={{r{i}}}") for i, words in enumerate(STRENGTHS)],
        )
        for method, end in (
            (tour_sweep.PLAIN, "embed.in"),
            (tour_sweep.RANDOM, "embed.in"),
            (tour_sweep.BEST, "embed.in"),
            (tour_sweep.BEST, "embed"),
        )
    ),
    (
        "noise, input table only",
        [(f"{s:g} standard deviations", f"noise:where=embed.in,strength={s:g}") for s in tour_sweep.NOISE["embed.in"]],
    ),
    (
        "scaling, input table only",
        [(f"times {s:g}", f"scaling:where=embed.in,factor={s:g}") for s in tour_sweep.SCALES],
    ),
)


def write(out: str | Path = "tour.html", *, model: str = "smollm2", quick: bool = False) -> Path:
    """Write the page and return its path.

    Args:
        out: the file to write.
        model: what `kobza.open` takes.
        quick: fewer strengths and less text.

    Raises:
        KobzaError: the model cannot be opened, a point of the sweep failed, or the page cannot be written.
    """
    return write_atomic(out, _made(model, quick=quick))


def _made(model: str, *, quick: bool) -> str:
    from kobza.models import opening

    with task("tour", 9) as work:
        opened = opening.open(model)
        look: Sequence[Callable[[Model, str], Chapter]] = (
            tour_chapters.anatomy, tour_chapters.tokens, tour_chapters.spectrum, tour_chapters.token_map,
            tour_chapters.neighbors, tour_chapters.clumps,
        )  # fmt: skip
        chapters = []
        for chapter in look:
            chapters.append(chapter(opened, model))
            work.step(note=chapters[-1].title)
        samples = voices(
            opened, quick=quick
        )  # before the sweep: what the text says of the table is then in the cache for workers
        work.step(note="samples")
        result = swept(opened, model, quick=quick)
        work.step(note="sweep")
        chapters += [*changed(opened, result, model), spoken(samples, result), summed_up(opened, result)]
    return tour_page(*_front(opened, result), chapters)


def voices(model: Model, *, quick: bool = False) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return (method, [(strength, edit, text)]): the same prompt, the likeliest tokens."""
    from kobza.core.progress import progress
    from kobza.decoding import greedy
    from kobza.recipes.recipe import chain
    from kobza.recipes.running import apply

    ranks = {f"r{i}": round(share * model.width) for i, share in enumerate(tour_sweep.SHARES)}
    found = []
    for method, kinds in progress(VOICES, "speak"):
        edits = [(words, edit.format(**ranks)) for words, edit in (kinds[1:2] if quick and len(kinds) > 1 else kinds)]
        texts = [greedy.generate(apply(model, chain(edit)), PROMPT, tokens=SPOKEN).text for _, edit in edits]
        found.append((method, [(words, edit, text) for (words, edit), text in zip(edits, texts, strict=True)]))
    return found


def swept(model: Model, spec: str, *, quick: bool = False) -> Result:
    """Run the sweep of the tour, or go on with it; a failed point is an error."""
    from kobza.recipes.sweep import require_whole, sweep

    result = sweep(tour_sweep.tour_recipe(spec, model.width, quick=quick))
    require_whole(result)
    return result


def changed(model: Model, result: Result, spec: str) -> list[Chapter]:
    """Return the chapters about the edits: strengths, texts, error against bits."""
    table, names = result.tables[0], [record["name"] for record in result.made_by["texts"]]
    found, main = tour_sweep.points(table), names[0]
    texts = [text(name) for name in names]
    drawn = [
        side_by_side(*(tour_sweep.share_figure(found, end, one, model.width, table) for end in tour_sweep.ENDS))
        for one in texts
    ]
    strengths = [
        tour_sweep.strength_figure(found, "noise", main, "noise, standard deviations of the table"),
        tour_sweep.strength_figure(found, "scaling", main, "factor"),
    ]
    measured = f"{len(result.tables[0])} measurements: every edit on {len(names)} texts, beside the unedited model."
    blocks = [
        tour_sweep.base_table(table, texts),
        proof(model, main),
        drawn[0],
        folded("the same on the other texts", *drawn[1:]),
        side_by_side(*strengths),
        tour_sweep.text_table(found, model.width, names),
        folded("every measurement", _bare(table)),
    ]
    command = f"kobza sweep {spec} 'lowrank:rank=64..512:64' --text topics"
    pair = tour_sweep.lessons(found, table, main, model.width, model.stored_bytes)[:1]
    return [
        Chapter("edits", "Change it, and measure what changed", measured, blocks, command),
        Chapter(
            "error-and-bits", "Why the error of the matrix misleads", " ".join(pair),
            [tour_sweep.error_figure(found, main)],
        ),
    ]  # fmt: skip


def proof(model: Model, name: str) -> str:
    """Return the sentence that the yardstick is a file size: a text was packed, unpacked and compared."""
    from kobza.core import techniques

    sample = text(name.partition("[")[0])[:PACKED]
    packed = techniques.verb("measures", "packed_size")(model, sample, streams=1)
    ideal = techniques.verb("measures", "bits_per_byte")(model, sample)
    promised = ideal.value * len(sample) / 8
    return (
        f"The yardstick is a file size: {len(sample)} bytes of {sample.name} were packed by the unedited model into "
        f"{packed.value:.0f} bytes, unpacked again and compared. Bits per byte promised {promised:.0f}."
    )


def spoken(samples: Sequence[tuple[str, list[tuple[str, str, str]]]], result: Result) -> Chapter:
    """Return the chapter of samples, each with the bits per byte that the sweep measured for its edit."""
    main = result.made_by["texts"][0]["name"]
    found = tour_sweep.points(result.tables[0])
    blocks: list[Any] = []
    for method, said_by in samples:
        shown = [(words, _measured(edit, found, result, main), text) for words, edit, text in said_by]
        blocks += [heading(method, 3), said(PROMPT, shown)]
    claim = (
        "One prompt, the likeliest token each time. A number says how much was lost; a sentence shows what kind of "
        "loss it is. The figure beside each strength is bits per byte on the English text."
    )
    return Chapter("samples", "Let it speak", claim, blocks, f"kobza say smollm2 '{PROMPT}'")


def summed_up(model: Model, result: Result) -> Chapter:
    """Return the chapter of sentences that follow from the figures, and how all was made."""
    main = result.made_by["texts"][0]["name"]
    table = result.tables[0]
    found = tour_sweep.points(table)
    sentences = tour_sweep.lessons(found, table, main, model.width, model.stored_bytes)
    record = [f"{key}: {value}" for key, value in result.made_by.items()]
    claim = "Computed from the figures above; with other figures these sentences would read otherwise."
    blocks = [learned(sentences), folded("how all this was made", *record)]
    return Chapter("learned", "What was learned", claim, blocks)


def _front(model: Model, result: Result) -> tuple[str, str, list[tuple[str, str]]]:
    """Return title, lead and tiles of the page."""
    main = result.made_by["texts"][0]["name"]
    base = tour_sweep.base(result.tables[0], main)
    found = tour_sweep.points(result.tables[0])
    rank = round(tour_sweep.SHARES[1] * model.width)
    tiles = [
        (f"{model.parameters / 1e6:.1f} M", "parameters"),
        (f"{base['bits_per_byte']:.3f}", f"bits per byte of {main}, unedited"),
    ]
    for method in (tour_sweep.PLAIN, tour_sweep.RANDOM, tour_sweep.BEST):
        factor = tour_sweep.mean(tour_sweep.chosen(found, method=method, end="embed.in", strength=rank, text=main))
        if factor is not None:
            tiles.append((f"\N{MULTIPLICATION SIGN}{factor:.3f}", f"bits after {method}, rank {rank}, input table"))
    lead = (
        f"kobza opened {model.name}, looked inside, changed it in {len({p.method for p in found})} ways over a range "
        "of strengths, and measured what each did to the model: in bits per byte of text, the size to which the "
        "model really packs it."
    )
    return f"A tour of {model.name}", lead, tiles


def _measured(edit: str, found: Sequence[tour_sweep.Point], result: Result, main: str) -> str:
    """Return the figure of a voice's edit, "" where the sweep did not measure it."""
    if not edit:
        return f"{tour_sweep.base(result.tables[0], main)['bits_per_byte']:.3f} bit/B"
    point = tour_sweep.point_of(edit, found, main)
    return f"{point.bits:.3f} bit/B" if point else ""


def _bare(table: Table) -> Table:
    return Table(table.rows, units=table.units, title=table.title, note=table.note, order=table.columns)
