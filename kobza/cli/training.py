"""Commands that train: train a new model on a text, tune an opened one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kobza.cli import show, spec
from kobza.cli.frame import command, speaks
from kobza.core.errors import BadValue, OutOfRange

if TYPE_CHECKING:
    from kobza.core.result import Result

OBJECTIVES = ("sft", "dpo", "orpo", "grpo", "distil")
Budget = Annotated[
    str,
    typer.Option(
        metavar="BUDGET", help="When to stop: 3000steps, 300s, 1.65bpb; several with commas, the first ends it."
    ),
]
Save = Annotated[
    Path | None,
    typer.Option(
        "--save", metavar="DIR", help="Keep checkpoints, log and model in DIR; killed, the same command goes on there."
    ),
]
More = Annotated[
    str,
    typer.Option(
        "--set", metavar="OPTION=VALUE,...", help="Any further option, as listed by: kobza help scratch (or sft)."
    ),
]
Number = Annotated[int, typer.Option(min=0, metavar="N", help="Where randomness starts.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    command(app, "train", threads=True)(train)
    command(app, "tune", threads=True)(tune)


def train(
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT", help="A text, a .jsonl or .parquet file, or topics.", autocompletion=spec.complete_text
        ),
    ],
    size: Annotated[int, typer.Option(min=1, metavar="N", help="The one dial: layers; the rest follows.")] = 4,
    kind: Annotated[
        str, typer.Option(metavar="KIND", help="llama (today's block) or classic (the GPT of tutorials).")
    ] = ("llama"),
    vocabulary: Annotated[
        str,
        typer.Option(
            metavar="VOCABULARY",
            help="Whose ids: a model, a vocabulary file, bytes, or a number of ids to train on the text.",
        ),
    ] = "2048",
    mix: Annotated[
        str,
        typer.Option(
            metavar="BY",
            help="Learn from several texts (a.txt;b.txt, or rows with a domain), how much of each found by doremi, "
            "skillit or learnable; uniform: all alike.",
        ),
    ] = "",
    budget: Budget = "1000steps",
    save: Save = None,
    sharded: Annotated[
        bool,
        typer.Option("--sharded", help="Under torchrun: cut weights, gradients and optimizer state among the ranks."),
    ] = False,
    more: More = "",
    seed: Number = 0,
) -> Result | None:
    """Train a new model on a text. Its last tenth is held out; what of that also stands in the rest is found and
    counted apart. Memory and time are said first.

    Examples:

        kobza train poems.txt --budget 300s --save poems
        kobza train poems.txt --kind classic --size 12 --vocabulary o200k_base.tiktoken --budget 3000steps --save gpt
        kobza train topics --size 2 --budget 1.9bpb,10min --set optimizer=muon,rate=3e-3
        kobza train "topics;source;poems.txt" --mix doremi --size 2 --budget 500steps

    All options of --set: kobza help scratch (with --mix: kobza help mixture)
    """
    from kobza.training import mixture, scratch
    from kobza.training.parts.schedules import Budget
    from kobza.training.parts.schedules import budget as read_budget

    limit = read_budget(budget)  # before a vocabulary is trained
    if mix:
        if limit != Budget(limit.steps) or kind != "llama":
            raise BadValue("--mix trains several models of kind llama by a number of steps.", "--budget 500steps")
        own = {"by": mix, "size": size, "steps": limit.steps, "seed": seed}
        words, domains = _options(mixture.train, more, own), mixture.named(text)
        tokenizer = _vocabulary(vocabulary, *domains.values())
        run = mixture.train(tokenizer, domains, tell=_tell, **_kept(words, save))
    elif ";" in text and not Path(text).exists():
        raise BadValue("several texts are told apart by a mixture.", "Add --mix uniform (all alike), or doremi.")
    else:
        own = {"size": size, "kind": kind, "budget": budget, "sharded": sharded, "seed": seed}
        words = _options(scratch.train, more, own)
        run = scratch.train(_vocabulary(vocabulary, text), text, tell=_tell, **_kept(words, save))
    return _result(run, f"train {text}", save)


def tune(
    model: spec.ModelName,
    data: Annotated[
        str, typer.Option(metavar="FILE", help="A text, or rows (.jsonl, .parquet) with the objective's columns.")
    ],
    objective: Annotated[
        str, typer.Option(metavar="OBJECTIVE", help="sft, dpo, orpo (prompt, chosen, rejected), grpo (prompt), distil.")
    ] = "sft",
    adapter: Annotated[
        str,
        typer.Option(
            metavar="SPEC",
            help="lora:rank=8, dora:rank=8, ia3, the folder of one to go on with, or none: all weights are trained.",
        ),
    ] = "lora:rank=8",
    budget: Budget = "",
    save: Save = None,
    more: More = "",
    seed: Number = 0,
    dtype: spec.Dtype = "",
) -> Result | None:
    """Adapt a model: to a text or answers (sft), to preferences (dpo, orpo), to a rule (grpo), to a teacher (distil).

    With --save the folder holds the model with the adapter merged in, and the adapter as PEFT's files.

    Examples:

        kobza tune smollm2 --data poems.txt --adapter lora:rank=16 --budget 200steps --save poet
        kobza tune smollm2 --objective dpo --data pairs.jsonl --budget 50steps --set beta=0.2
        kobza tune smollm2 --objective grpo --data prompts.jsonl --set reward=short+no_digit

    All options of --set: kobza help sft (dpo, orpo, grpo, distil)
    """
    from kobza.core import techniques
    from kobza.core.errors import UnknownName
    from kobza.models.opening import open as open_model

    if objective not in OBJECTIVES:
        raise UnknownName.of("objective", objective, OBJECTIVES)
    function = techniques.verb("training", objective)
    own = {"adapter": adapter, "seed": seed, **({"budget": budget} if budget else {})}
    words = _options(function, more, own)
    run = function(open_model(model, dtype=dtype or None), data, tell=_tell, **_kept(words, save))
    return _result(run, f"{objective} {model} on {data}", save)


def _options(function: Any, more: str, own: dict[str, Any]) -> dict[str, Any]:
    from kobza.core.options import check, parse

    given = dict(parse(f"set:{more}").options) if more else {}
    twice = given.keys() & own.keys()
    if twice:
        raise BadValue(f"{min(twice)!r} is given twice.", f"Say it by --{min(twice)} alone.")
    return check(function, {**given, **own}, what="--set")


def _kept(words: dict[str, Any], save: Path | None) -> dict[str, Any]:
    """Return the options with the folder of the run, after what a person should know before it begins."""
    from kobza.training.parts import checkpoints

    _warn_of_others()
    if save is None:
        return {**words, "folder": ""}
    if begun := checkpoints.found(save / "run"):
        _tell(f"goes on from '{begun[0]}'")
    return {**words, "folder": str(save / "run")}


def _warn_of_others() -> None:
    """Say so where other programs keep the processors busy: threads that wait for each other are then many times slower
    than one."""
    import torch

    threads = torch.get_num_threads()
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if threads > 1 and busy > (os.cpu_count() or 1) - threads + 1:
        _tell(f"other programs keep {busy:.1f} of {os.cpu_count()} processors busy: --threads 1 may be much faster")


def _vocabulary(words: str, *texts: Any) -> Any:
    """Return the vocabulary that a word stands for; a number is trained on the parts that are not held out."""
    if not words.isdigit():
        from kobza.models.vocabulary import vocabulary

        return vocabulary(words)
    from kobza.tokens import pairs
    from kobza.training.parts import corpus

    train = [part for text in texts for part in corpus.split(corpus.documents(text)[0], 0.1).train]
    pieces, size = pairs.pieces(train, "gpt2"), int(words)
    how: dict[str, Any] = {"pattern": "gpt2", "special": ()}
    try:
        return pairs.from_words(pieces, size=size, name=f"pairs{size}", **how)
    except OutOfRange:
        most = 256 + len(pairs.merges(pieces, size - 256))
        if size < 256 or most >= size:
            raise
        _tell(f"the text is short: it allows a vocabulary of {most:,} ids, not {size:,}")
        return pairs.from_words(pieces, size=most, name=f"pairs{most}", **how)


def _tell(line: str) -> None:
    if speaks():
        sys.stderr.write(f"{show.printable(line)}\n")


def _result(run: Any, title: str, save: Path | None) -> Result | None:
    """Return history and facts as a Result, and write what is to be kept."""
    from kobza.core.result import Result

    if not speaks():
        return None
    facts = dict(run.facts)
    tables = [run.history]
    notes = [f"{facts['ended']} ({facts['steps']:,} steps in {facts['seconds']:,.1f} s)"]
    if facts["seconds_per_step"]:  # else all was done before
        notes.append(_compared(facts))
    if facts.get("sample"):
        notes.append(f"it writes: {facts['sample']!r}")
    held = [row["held"] for row in run.history.rows if "held" in row]
    if len(held) > 1 and held[-1] > held[0]:
        notes.append(f"the held-out figure is worse than at the start ({held[0]:.3f}): a lower rate may help")
    run.history.note = "\n".join(notes)
    result = Result(title, tables=tables, made_by={"facts": facts})
    if save is not None:
        place = save / "model"
        if place.exists():
            _tell(f"'{place}' is there already and stays as it is")
        else:
            _tell(f"saved {run.model.save(place)}")
            most = min(100, (run.model.context or 200) // 2)
            _tell(f"to hear it: kobza say '{place}' PROMPT --plain --tokens {most}")
            if run.adapter is not None:
                _tell(f"saved {run.adapter.save(save / 'adapter')}")
    return result


def _compared(facts: dict[str, Any]) -> str:
    """Return what was foreseen beside what happened."""
    names = ("peak_bytes", "taken_bytes", "predicted_bytes", "optimizer_state_bytes")
    held, taken, wanted, state = (facts[name] / 1e6 for name in names)
    return (
        f"{facts['seconds_per_step']:.3f} s a step (foreseen: {facts['predicted_seconds']:.3f} s); {taken:,.0f} MB "
        f"beside the program (foreseen: {wanted:,.0f} MB), {held:,.0f} MB with it, optimizer state {state:,.1f} MB"
    )
