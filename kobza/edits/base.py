"""What all edits share: choosing matrices, seeded numbers, calibration on text, and the facts a Change records.

A technique of this room gives `apply(model, *, where="embed", ..., seed=0) -> Model`: a fork whose `changes` grew by
one. The two ends of a tied model are separate: `embed.in` or `embed.out` alone unties it, `embed` edits both.

Data-aware edits learn what matters from a calibration text, which must not be the text that is measured later: the
Change names it by hash, and `refuse_calibration` compares it with a test text (calibrating on the test set has been
seen to turn a perplexity of 17.5 into 6.6, AutoGPTQ issue 650).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kobza.core.errors import BadValue, KobzaError, NotComparable, NothingMatched, OutOfRange
from kobza.core.files import atomic_file, cache_dir
from kobza.core.progress import progress
from kobza.core.texts import Text
from kobza.core.texts import text as read_text
from kobza.models import forward
from kobza.models.digests import tensor_digest
from kobza.models.linear_algebra import frobenius
from kobza.models.model import Change, Factors, Model, Quantized, Value

ENDS = ("embed", "embed.in", "embed.out")
CALIBRATION = ("topics[320000:440000]", "source[100000:]")  # prose and code that measures do not read by default
TOKENS = 4096  # read with gradients; 1024 to 8192 tokens move bits per byte by less than 2 %
WINDOW = 512  # tokens a calibration window reads
COUNTED = 1_000_000  # bytes of each calibration text whose tokens are counted
CLIP = 3.0  # gradients longer than this many medians are shortened: a few positions would otherwise be the metric
ZIPF_OFFSET = 200  # f(id) ~ 1 / (id + 200): Zipf's law as Mandelbrot shifted it, for ids given in order of merging
BLOCK = 64  # bytes; a test text shares such a run with the calibration text only if it was copied


# --- choosing --------------------------------------------------------------------------------------------------------


def select(model: Model, where: str) -> list[str]:
    """Return the names of the matrices that a pattern selects, ready for `Model.replace`.

    Raises:
        NothingMatched: no name fits, or only norms and biases do.
    """
    names = model.find(where)
    flat = [name for name in names if model.matrix(name).ndim == 2]
    if not flat:
        raise NothingMatched(
            f"{where!r} matches {len(names)} weights of {model.name!r}, but no matrix; {names[0]!r} is a vector.",
            f"See all: kobza open {model.name} --matrices",
        )
    return flat


def generator(seed: int, name: str) -> torch.Generator:
    """Return the random numbers of one matrix: they depend on seed and name only, not on what else is edited.

    Both ends of a tied table (`embed`) draw the numbers of `embed.in`, so that editing one end or both compares.
    """
    key = hashlib.sha256(f"{seed} {'embed.in' if name == 'embed' else name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)


def require_rank(name: str, shape: Sequence[int], rank: int, most: int) -> None:
    """Refuse a rank that a matrix cannot have, naming the matrix and its shape."""
    if not 1 <= rank <= most:
        raise OutOfRange(
            f"rank={rank} does not fit {name!r} of shape {' x '.join(map(str, shape))}; allowed: 1 .. {most}.",
            "Give a smaller rank, or name other matrices with where=.",
        )


# --- finishing -------------------------------------------------------------------------------------------------------


def edited(
    model: Model,
    technique: str,
    options: Mapping[str, Any],
    tensors: Mapping[str, Value],
    *,
    seed: int | None = None,
    facts: Mapping[str, Any] | None = None,
    per_matrix: Mapping[str, Mapping[str, Any]] | None = None,
) -> Model:
    """Return the fork with new values, and a Change that says how far they are from the old ones.

    Facts of the Change: `relative_error` |W' - W| / |W| over all edited matrices together (Frobenius, float64),
    `energy_kept` |W'|^2 / |W|^2, `stored_bytes` of the whole model and `stored_bytes_before`; under `matrices` the
    same for each, with the bytes of that matrix alone.

    Raises:
        BadValue: factors or codes for a part of a fused matrix, which is stored whole.
    """
    factored = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    for name in factored:
        if name in model.parts:
            whole = model.parts[name].whole
            raise BadValue(
                f"{name!r} is a part of {whole!r} and cannot be stored as factors or codes.",
                f"Give where={whole}, or store=dense.",
            )
    kind: Literal["factor", "values"] = "factor" if factored else "values"
    each = {name: _facts(model, name, value) for name, value in tensors.items()}
    squares = [sum(one[key] ** 2 for one in each.values()) for key in ("error", "norm", "norm_after")]
    found: dict[str, Any] = {
        "relative_error": (squares[0] / squares[1]) ** 0.5 if squares[1] else 0.0,
        "energy_kept": squares[2] / squares[1] if squares[1] else 1.0,
        "stored_bytes_before": model.stored_bytes,
        **(facts or {}),
        "matrices": {name: one | dict((per_matrix or {}).get(name, {})) for name, one in each.items()},
    }
    change = Change(technique, dict(options), list(tensors), kind, found, seed)
    fork = model.replace(tensors, change=change)
    found["stored_bytes"] = fork.stored_bytes
    return fork


def edited_shape(
    model: Model, module: Any, technique: str, options: Mapping[str, Any], facts: Mapping[str, Any], seed: Any = None
) -> Model:
    """Return the model around a module of another shape, and a Change that counts bytes and parameters."""
    found = {"stored_bytes_before": model.stored_bytes, "parameters_before": model.parameters, **facts}
    fork = model.with_module(module, change=Change(technique, dict(options), [], "shape", found, seed))
    found |= {"stored_bytes": fork.stored_bytes, "parameters": fork.parameters}
    return fork


def _facts(model: Model, name: str, value: Value) -> dict[str, float]:
    before = model.matrix(name)
    after = value if isinstance(value, Tensor) else value.dense()
    norm = frobenius(before)
    error = frobenius(after - before)
    size = before.element_size() if name in model.parts else _itemsize(model, name)
    numbers = value.A.numel() + value.B.numel() if isinstance(value, Factors) else before.numel()
    stored = value.nbytes if isinstance(value, Quantized) else numbers * size
    return {
        "relative_error": error / norm if norm else 0.0,
        "error": error,
        "norm": norm,
        "norm_after": frobenius(after),
        "stored_bytes": stored,
        "stored_bytes_before": before.numel() * size,
    }


def _itemsize(model: Model, name: str) -> int:
    dtype: torch.dtype = getattr(torch, model.matrices["embed.in" if name == "embed" else name].dtype)
    return dtype.itemsize


# --- remembering -----------------------------------------------------------------------------------------------------


class Memory:
    """The last few results of something costly, by a key of plain values."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what is kept under `key`, or make and keep it."""
        if key not in self._kept:
            self._kept[key] = make()
        self._kept.move_to_end(key)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return self._kept[key]


def identity(model: Model, name: str) -> str:
    """Return a key for the numbers of a matrix: equal numbers, equal key, in this model or any fork."""
    holder = model.parts[name].whole if name in model.parts else ("embed.in" if name == "embed" else name)
    matrix = model.matrices[holder]
    if matrix.stored_as != "dense":
        return f"{name} {tensor_digest(model.matrix(name))}"
    return f"{name} {tensor_digest(model.module.get_parameter(matrix.parameter))}"


# --- calibration -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moments:
    """What calibration texts say about the two ends of a model; means over positions, each text counts alike.

    Attributes:
        gradients: (D, D) mean of g g^T, g the gradient of the loss at the input row (bits), long ones clipped.
        rows: (V,) mean of p (1 - p), p the probability of each token.
        states: (D, D) mean of h h^T, h the state that the head reads.
    """

    gradients: Tensor
    rows: Tensor
    states: Tensor


def calibration_texts(specs: Sequence[str]) -> list[Text]:
    """Open the calibration texts.

    Raises:
        BadValue: none is named. MissingFile, EmptyText: see `core.texts.text`.
    """
    if not specs:
        raise BadValue("calibration names no text.", f"Give for example calibration={';'.join(CALIBRATION)}")
    return [read_text(spec) for spec in specs]


def calibration_facts(texts: Sequence[Text], tokens: int) -> dict[str, Any]:
    """Return what a Change says about its calibration: names, hashes, bytes and the tokens read with gradients."""
    named = [{"name": text.name, "sha256": text.sha256, "bytes": len(text)} for text in texts]
    return {"texts": named, "tokens": tokens}


def moments(model: Model, texts: Sequence[Text], tokens: int = TOKENS) -> Moments:
    """Return the moments of both ends of a model over calibration texts; kept in memory and in the cache folder.

    Args:
        model: the model as it is now.
        texts: calibration texts.
        tokens: read with gradients, shared out evenly over the texts [count, 2 ..].

    Cost: about 4 forward passes over `tokens` (15 s per 1024 tokens and 135M parameters on one core).
    """
    words = [model.fingerprint, str(tokens), str(WINDOW), "2", *(text.sha256 for text in texts)]
    key = hashlib.sha256(" ".join(words).encode()).hexdigest()
    found: Moments = _moments.get(
        key, lambda: _stored(cache_dir() / "calibration" / f"{key}.safetensors", model, texts, tokens)
    )
    return found


_moments = Memory(4)


def _stored(path: Path, model: Model, texts: Sequence[Text], tokens: int) -> Moments:
    from safetensors.torch import load_file, save

    if path.is_file():
        try:
            return Moments(**load_file(path))
        except Exception:  # noqa: BLE001  a damaged cache file is made anew
            path.unlink(missing_ok=True)
    each = [_measured(model, text, max(2, tokens // len(texts))) for text in progress(texts, "calibrate")]
    means = {name: sum(one[name] for one in each) / len(each) for name in each[0]}
    found = Moments(**means)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(save({name: value.contiguous() for name, value in means.items()}))
    except (KobzaError, OSError):
        pass  # a cache that cannot be written costs time, not the result
    return found


def _measured(model: Model, text: Text, tokens: int) -> dict[str, Any]:
    ids = token_ids(model, text)[:tokens]
    window = min(WINDOW, model.context or WINDOW)
    gradients = clipped(forward.embedding_gradients(model, ids, window=window).double())
    out = forward.output_moments(model, ids, window=window)
    return {
        "gradients": gradients.T @ gradients / len(gradients),
        "rows": out.rows / out.tokens,
        "states": out.states / out.tokens,
    }


def token_ids(model: Model, text: Text) -> Tensor:
    """Return the ids (T,) of the first 1,000,000 bytes of a text; remembered."""
    key = (model.tokenizer.fingerprint, text.sha256)
    ids: Tensor = _encoded.get(key, lambda: torch.tensor(model.tokenizer.encode(text[:COUNTED].data)))
    return ids


_encoded = Memory(8)


def shares(model: Model, texts: Sequence[Text], rows: int) -> Tensor:
    """Return the share of each of `rows` tokens in the texts, (V,) float64, sum 1; each text counts alike.

    The first 1,000,000 bytes of a text are counted.
    """
    total = torch.zeros(rows, dtype=torch.float64)
    for text in texts:
        counts = torch.bincount(token_ids(model, text), minlength=rows)[:rows].double()
        total += counts / counts.sum() / len(texts)
    return total


def clipped(gradients: Tensor) -> Tensor:
    """Return rows (T, D) shortened to at most three times the median length of those that are not 0."""
    lengths = gradients.norm(dim=1)
    if not bool((lengths > 0).any()):
        return gradients
    longest = CLIP * lengths[lengths > 0].median()
    return gradients * (longest / lengths.clamp_min(1e-30)).clamp_max(1)[:, None]


def zipf(count: int) -> Tensor:
    """Return data-free token frequencies (V,) ~ 1 / (id + 200), sum 1: a trained vocabulary is sorted by frequency."""
    weights = 1 / (torch.arange(count, dtype=torch.float64) + ZIPF_OFFSET)
    return weights / weights.sum()


def smoothed(weights: Tensor, smoothing: float) -> Tensor:
    """Mix weights (V,), brought to the sum 1, with Zipf's: a token the calibration never showed keeps a weight."""
    return (1 - smoothing) * weights / weights.sum() + smoothing * zipf(len(weights))


def input_moments(model: Model, names: Sequence[str], texts: Sequence[Text], tokens: int = TOKENS) -> dict[str, Tensor]:
    """Return for each linear layer the mean of x x^T over the vectors x it reads, (N, N) float64.

    Args:
        model: the model.
        names: matrices that are weights of linear layers; parts of fused ones too.
        texts: calibration texts; each counts alike.
        tokens: read in all [count, 2 ..].

    Raises:
        BadValue: a matrix that is not multiplied with vectors of its width when the model runs (a table of positions).
    """
    window = min(WINDOW, model.context or WINDOW)
    with _listening(model, names) as sums:
        for text in texts:
            ids = token_ids(model, text)[: max(2, tokens // len(texts))]
            for begin, _, end in forward.windows(len(ids), window, 0):
                fed = forward.fed_ids(ids[begin : end + 1], model.tokenizer.start_id)
                if len(fed):
                    forward.final_states(model, fed[None])
    for name in names:
        if name not in sums or len(sums[name][0]) != model.matrix(name).shape[1]:
            raise BadValue(f"{name!r} is not the weight of a linear layer that reads vectors.", "Give metric=none.")
    return {name: total / count for name, (total, count) in sums.items()}


@contextmanager
def hearing(model: Model, names: Sequence[str], hear: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Hand what each named linear layer reads, (T, N), to `hear(name, x)` while the block runs; not lookups by ids."""

    def listener(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and inputs[0].is_floating_point():
                hear(name, inputs[0].detach().reshape(-1, inputs[0].shape[-1]))

        return hook

    handles = []
    try:
        for name in names:
            whole = model.parts[name].whole if name in model.parts else name
            owner = model.matrices[whole].parameter.rpartition(".")[0]
            handles.append(model.module.get_submodule(owner).register_forward_pre_hook(listener(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _listening(model: Model, names: Sequence[str]) -> Iterator[dict[str, tuple[Tensor, int]]]:
    """Sum x x^T at the input of each layer while the block runs."""
    sums: dict[str, tuple[Tensor, int]] = {}

    def add(name: str, x: Tensor) -> None:
        x = x.float()
        total, count = sums.get(name, (torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64), 0))
        sums[name] = (total + (x.T @ x).double().cpu(), count + len(x))

    with hearing(model, names, add):
        yield sums


def end_metric(model: Model, name: str, texts: Sequence[Text], tokens: int = TOKENS) -> Tensor:
    """Return what directions count at an end of a model, (D, D) float64 with mean eigenvalue 1.

    `embed.in`: second moments of the gradient; `embed.out`: of the final states; `embed`: both, each alike.
    """
    ends = moments(model, texts, tokens)
    pair = {"embed.in": [ends.gradients], "embed.out": [ends.states]}.get(name, [ends.gradients, ends.states])
    return sum((one * len(one) / one.trace() for one in pair), torch.zeros_like(pair[0], dtype=torch.float64))


# --- calibration against test ----------------------------------------------------------------------------------------


def shared_bytes(calibration: Text, test: Text) -> int:
    """Return how many bytes of a test text stand, in runs of at least 64, in a calibration text too.

    Runs are found where 64 bytes of the test text, at any place, equal a 64-byte block of the other; so runs of up
    to 127 bytes can be missed, copied passages cannot.
    """
    blocks = {calibration.data[i : i + BLOCK] for i in range(0, len(calibration) - BLOCK + 1, BLOCK)}
    data, shared, at = test.data, 0, 0
    while at + BLOCK <= len(data):
        if data[at : at + BLOCK] in blocks:
            shared, at = shared + BLOCK, at + BLOCK
        else:
            at += 1
    return shared


def refuse_calibration(changes: Sequence[Change], test: Text) -> None:
    """Refuse to measure on the text, or a part of it, that an edit was calibrated on.

    Args:
        changes: of the model to be measured.
        test: the text to be measured.

    Raises:
        NotComparable: one of them was calibrated on the test text, or shares 2 % of its bytes in copied runs with it
            (licences and boilerplate stay below that).
    """
    for change in changes:
        for named in change.facts.get("calibration", {}).get("texts", []):
            share = 1.0 if named["sha256"] == test.sha256 else _share(named["name"], named["sha256"], test)
            if share >= 0.02:
                raise NotComparable(
                    f"the edit {change.technique!r} was calibrated on {named['name']!r}, which holds {share:.0%} of "
                    f"the test text {test.name!r}: the figure would flatter it.",
                    "Measure on another text, or calibrate on another: calibration=NAME_OR_FILE[BEGIN:END]",
                )


def _share(name: str, digest: str, test: Text) -> float:
    try:
        text = read_text(name)
    except KobzaError:
        return 0.0  # the calibration text is gone: only its hash can be compared
    return shared_bytes(text, test) / len(test) if text.sha256 == digest else 0.0


def options_of(**options: Any) -> dict[str, Any]:
    """Return options as plain data for a Change: tuples as lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
