"""What every technique does on a tiny random model: nothing changed in place, seeds decide, all is finite.

Each room has one driver, which calls the room's verb and returns plain data to compare; a room without a driver
fails `test_every_room_has_a_driver`, so a new room cannot slip through.
"""

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import kobza
from kobza.core import techniques
from kobza.core.errors import MissingExtra
from kobza.core.options import options

TEXT = b"the banks of the wide Dnipro, the steep cliffs, the waves that roar and moan. " * 4
# values that fit a model of width 32 with 300 tokens, by the option's name; defaults are meant for real models
SMALL: dict[str, Any] = {
    "rank": 8, "dimensions": 8, "k": 5, "count": 5, "components": 2, "tokens": 8, "window": 64, "overlap": 16,
    "token": " t", "temperature": 1.0, "strength": 0.5, "factor": 0.5, "repeats": 1, "prompt": "the banks",
    "clean": "the winds of it", "corrupt": "the winks of it", "sample": 300, "steps": 10,
}  # fmt: skip
# figures that a clock or the operating system gives: they differ between equal runs
NOT_REPEATABLE = {"speed", "memory"}

EVERY = [(room, name) for room in techniques.rooms() for name in techniques.names(room)]
every_technique = pytest.mark.parametrize(("room", "name"), EVERY, ids=[f"{r}/{n}" for r, n in EVERY])


def chosen(room: str, name: str, **forced: Any) -> dict[str, Any]:
    """Return small options for a technique: only those it has."""
    kinds = {option.name: option.kinds for option in options(techniques.verb(room, name))}
    fits = {key: value for key, value in SMALL.items() if {type(value).__name__, "float"} & set(kinds.get(key, ()))}
    return fits | forced


def digest(model: Any) -> str:
    """Hash every tensor's bytes, by itself: the model's own fingerprint is remembered and would not see a change."""
    state = hashlib.sha256()
    for key, tensor in sorted(model.module.state_dict().items()):
        state.update(key.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def hooks(model: Any) -> int:
    """Count the hooks that sit on any part of the model."""
    parts = list(model.module.modules())
    return sum(len(p._forward_hooks) + len(p._forward_pre_hooks) + len(p._backward_hooks) for p in parts)


def numbers(data: Any) -> Iterator[float]:
    if isinstance(data, float):
        yield data
    elif isinstance(data, dict):
        for value in data.values():
            yield from numbers(value)
    elif isinstance(data, list | tuple):
        for value in data:
            yield from numbers(value)


def edits(model: Any, name: str, **forced: Any) -> Any:
    if name == "healing":  # a model without an edit has nothing to heal, whatever the seed
        model = techniques.verb("edits", "noise")(model)
    edited = techniques.verb("edits", name)(model, **chosen("edits", name, **forced))
    assert len(edited.changes) == len(model.changes) + 1
    assert edited.changes[-1].technique == name
    assert edited.changes[-1].kind in ("values", "factor", "shape")
    json.dumps(dict(edited.changes[-1].facts), allow_nan=False)
    ids = torch.tensor([edited.tokenizer.encode(TEXT)])
    from kobza.models import forward

    logits = forward.logits(edited, ids)
    assert logits.shape[:2] == ids.shape
    assert torch.isfinite(logits).all()
    return {"weights": digest(edited), "logits": hashlib.sha256(logits.numpy().tobytes()).hexdigest()}


def embeddings(model: Any, name: str, **forced: Any) -> Any:
    table = techniques.verb("embeddings", name)(model, **chosen("embeddings", name, **forced))
    assert len(table) > 0
    assert table.columns
    for figure in table.figures:
        assert figure.html()
        json.dumps(figure.to_json(), allow_nan=False, default=str)
    assert kobza.Table.from_json(table.to_json()) == table
    return table.to_json()


def measures(model: Any, name: str, **forced: Any) -> Any:
    function = techniques.verb("measures", name)
    edited = techniques.verb("edits", "scaling")(model)
    given = {"original": model} if "original" in inspect.signature(function).parameters else {}
    reading = function(edited, kobza.text(TEXT), **given, **chosen("measures", name, **forced))
    assert reading.name
    assert math.isfinite(reading.value)
    assert reading.record
    assert json.loads(json.dumps(reading.to_json(), allow_nan=False)) is not None
    return reading.to_json() if name not in NOT_REPEATABLE else reading.unit


def decoding(model: Any, name: str, **forced: Any) -> Any:
    generation = techniques.verb("decoding", name)(model, "the banks", **chosen("decoding", name, **forced))
    text = generation.text
    assert 0 < len(generation.ids) <= SMALL["tokens"]
    assert len(generation.logprobs) == len(generation.ids)
    assert all(math.isfinite(p) and p <= 0 for p in generation.logprobs)
    return {"text": text, "ids": list(generation.ids)}


def interventions(model: Any, name: str, **forced: Any) -> Any:
    result = techniques.verb("interventions", name)(model, **chosen("interventions", name, **forced))
    assert result.tables
    assert result.made_by["how"]["technique"] == name
    for figure in [*result.figures, *(f for table in result.tables for f in table.figures)]:
        assert figure.html()
        assert figure.caption
    assert kobza.Result.from_json(json.loads(result.json_text())).to_json() == result.to_json()
    return [part.to_json() for part in (*result.tables, *result.readings)]


def codecs(model: Any, name: str, **forced: Any) -> Any:
    from kobza.models.predictor import ModelPredictor

    module = techniques.load("codecs", name)
    outside = {"predictor": ModelPredictor(model), "vocabulary": model.tokenizer}
    given = {key: value for key, value in outside.items() if key in inspect.signature(module.compress).parameters}
    try:
        blob = module.compress(TEXT, **given, **chosen("codecs", name, **forced))
    except MissingExtra as missing:
        pytest.skip(str(missing))
    assert module.decompress(blob, **given) == TEXT
    assert module.decompress(module.compress(b"", **given), **given) == b""
    return {"blob": blob.hex()}


PAIRS = [
    {"prompt": f"{n} strings", "chosen": " sing of the wide sea", "rejected": " roar", "text": "the reeds " * 9}
    for n in range(8)
]


def training(model: Any, name: str, **forced: Any) -> Any:
    few = {"steps": 2, "size": 1, "width": 32, "heads": 2, "context": 16, "batch": 2, "held": 0.25}
    function = techniques.verb("training", name)
    known = {option.name for option in options(function)}
    run = function(model, PAIRS, **{key: value for key, value in few.items() if key in known}, **forced)
    assert run.history.rows[0]["step"] == 0
    assert run.history.rows[-1]["step"] == 2
    assert run.facts["optimizer_state_bytes"] > 0
    json.dumps(run.facts, allow_nan=False)
    rows = [{key: row.get(key) for key in ("step", "tokens", "loss", "held")} for row in run.history]
    return {"weights": digest(run.model), "rows": rows}


DRIVERS: dict[str, Callable[..., Any]] = {
    "codecs": codecs, "decoding": decoding, "edits": edits, "embeddings": embeddings, "measures": measures,
    "interventions": interventions, "training": training,
}  # fmt: skip


def test_every_room_has_a_driver() -> None:
    assert set(techniques.rooms()) == set(DRIVERS)


@every_technique
def test_it_keeps_the_promises_of_its_room(room: str, name: str, tiny: Any) -> None:
    before = digest(tiny)
    seeded = "seed" in {option.name for option in options(techniques.verb(room, name))}
    first = DRIVERS[room](tiny, name, **({"seed": 1} if seeded else {}))
    again = DRIVERS[room](tiny, name, **({"seed": 1} if seeded else {}))
    assert first == again, "equal options and seed must give equal bits"
    if seeded:
        assert DRIVERS[room](tiny, name, seed=2) != first, "another seed must give another result"
    assert digest(tiny) == before, "the input model was changed"
    assert hooks(tiny) == 0, "hooks were left behind"
    assert all(math.isfinite(x) for x in numbers(first)), "a number is not finite"
