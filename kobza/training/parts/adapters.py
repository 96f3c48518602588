"""Adapters: a few numbers beside a frozen model, in PEFT's files. LoRA, DoRA and IA3.

A model with an adapter is a fork whose chosen matrices sit in an `Adapted` part together with the new numbers; the
matrices themselves are the base's own tensors. Taking the adapter off therefore gives the base back bit for bit.

Sources: LoRA, Hu et al. (2021), arXiv:2106.09685; DoRA, Liu et al. (2024), arXiv:2402.09353, norms held constant as in
section 4.3; IA3, Liu et al. (2022), arXiv:2205.05638. File format: PEFT's `adapter_config.json` and
`adapter_model.safetensors`.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kobza.core.errors import BadValue, Corrupt, MissingFile, NothingMatched, OutOfRange, UnknownName, WrongTensors
from kobza.core.files import atomic_directory
from kobza.core.options import parse
from kobza.models import residence
from kobza.models.factored import Compact
from kobza.models.folder import mapped
from kobza.models.model import Change, Model
from kobza.models.preflight import json_object, safetensors_header
from kobza.models.replacing import set_module
from kobza.models.saving import write_safetensors

KINDS = ("lora", "dora", "ia3")
CONFIG, WEIGHTS, RECORD = "adapter_config.json", "adapter_model.safetensors", "kobza.json"
_PREFIX = "base_model.model."
_NAMES = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "magnitude": "lora_magnitude_vector", "scale": "ia3_l"}
_FEED = ("mlp.down",)  # where IA3 scales what comes in, not what goes out (Liu et al. 2022, section 3.3)


@dataclass(frozen=True)
class Spec:
    """What kind of adapter.

    Attributes:
        kind: "lora", "dora" or "ia3".
        rank: R of lora and dora [count, 1 ..].
        alpha: the update is scaled by alpha / rank; 0 is twice the rank.
        dropout: of what enters A [fraction, 0 .. below 1].
        where: pattern of matrix names.
        merge_every: updates after which the product is added to the base and a new one is begun (ReLoRA), 0: never.
    """

    kind: str = "lora"
    rank: int = 8
    alpha: float = 0.0
    dropout: float = 0.0
    where: str = "blocks.*.attn.*,blocks.*.mlp.*"
    merge_every: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownName.of("adapter", self.kind, (*KINDS, "none"))
        if self.rank < 1 or not 0 <= self.dropout < 1 or self.alpha < 0 or self.merge_every < 0:
            raise OutOfRange(f"{self}: rank is at least 1, dropout in 0 .. 1, alpha and merge_every at least 0.")
        if self.merge_every and self.kind != "lora":
            raise BadValue(f"merge_every belongs to lora, not to {self.kind}.")

    @property
    def scale(self) -> float:
        """Factor of the product B A."""
        return (self.alpha or 2 * self.rank) / self.rank


def spec(words: str) -> Spec | None:
    """Read `lora:rank=16,where=blocks.*.attn.*`; "none" is None.

    Raises:
        UnknownName, BadValue, OutOfRange: another kind, an option it does not have, a value out of range.
    """
    if words in ("", "none", "full"):
        return None
    step = parse(words)
    known = {"rank": int, "r": int, "alpha": float, "dropout": float, "where": str, "merge_every": int}
    values: dict[str, Any] = {}
    for key, value in step.options.items():
        if key not in known:
            raise UnknownName.of("option of an adapter", key, known)
        try:
            values["rank" if key == "r" else key] = known[key](value)
        except ValueError:
            raise BadValue(f"adapter {words!r}: {key}={value!r} is not a {known[key].__name__}.") from None
    if step.name == "ia3":  # the matrices of the paper; each has one vector
        values.setdefault("where", "blocks.*.attn.k,blocks.*.attn.v,blocks.*.mlp.down")
    return Spec(step.name, **values)


class Adapted(nn.Module):
    """A linear part with an adapter beside its matrix.

    Args:
        base: nn.Linear, GPT-2's Conv1D (its matrix is transposed), or a part that keeps its matrix in codes.
        spec: what kind.
        numbers: lora_A (R, N), lora_B (M, R); for dora also magnitude (M,); for ia3 scale (M,) or, at the way in, (N,).
        is_feed: ia3 scales what comes in.
    """

    lora_A: Tensor
    lora_B: Tensor
    magnitude: Tensor
    scale: Tensor

    def __init__(self, base: Any, spec: Spec, numbers: Mapping[str, Tensor], is_feed: bool = False) -> None:
        super().__init__()
        self._base = (base,)  # in a tuple: its weights are listed once, under the names they always had
        for name, p in base._parameters.items():
            self.register_parameter(name, p)
        self.spec, self.is_feed, self.is_on = spec, is_feed, True
        self.is_transposed = type(base).__name__ == "Conv1D"
        for name, values in numbers.items():
            setattr(self, name, nn.Parameter(values))

    @property
    def base(self) -> Any:
        """The part without the adapter."""
        return self._base[0]

    @property
    def numbers(self) -> dict[str, Tensor]:
        """The adapter's own tensors."""
        return {name: p for name, p in self.named_parameters() if name in _NAMES}

    def matrix(self) -> Tensor:
        """Return the base's matrix (M, N)."""
        weight: Tensor = self.base.weight
        return weight.T if self.is_transposed else weight

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_on:
            return self.base(x)
        if self.spec.kind == "ia3":
            return self.base(x * self.scale) if self.is_feed else self.base(x) * self.scale
        dropped = nn.functional.dropout(x, self.spec.dropout, self.training)
        low = nn.functional.linear(nn.functional.linear(dropped, self.lora_A), self.lora_B) * self.spec.scale
        if self.spec.kind == "lora":
            return self.base(x) + low
        out = self.stretch() * (nn.functional.linear(dropped, self.matrix()) + low)
        return out if self.base.bias is None else out + self.base.bias

    def stretch(self) -> Tensor:
        """Return dora's magnitudes over the norms of the rows (M,), the norms without gradient."""
        whole = self.matrix().detach() + self.spec.scale * (self.lora_B @ self.lora_A).detach()
        return self.magnitude / whole.norm(dim=1)

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """Return the dense matrix (M, N) and bias that compute the same."""
        W, bias = self.matrix(), self.base.bias
        if self.spec.kind == "ia3":
            return (W * self.scale, bias) if self.is_feed else (W * self.scale[:, None], _scaled(bias, self.scale))
        W = W + self.spec.scale * (self.lora_B @ self.lora_A)
        return (self.stretch()[:, None] * W if self.spec.kind == "dora" else W), bias


def _scaled(bias: Tensor | None, scale: Tensor) -> Tensor | None:
    return None if bias is None else bias * scale


@dataclass
class Adapter:
    """An adapter apart from any model.

    Attributes:
        spec: its kind and sizes.
        numbers: path of the part in the module -> name -> tensor.
        feeds: paths at which ia3 scales what comes in.
        base: name of the model it was made for; `fingerprint` is that of its weights, "" where nobody wrote it down.
    """

    spec: Spec
    numbers: dict[str, dict[str, Tensor]]
    feeds: frozenset[str] = frozenset()
    base: str = ""
    fingerprint: str = ""

    @property
    def parameters(self) -> int:
        """Numbers in it."""
        return sum(t.numel() for part in self.numbers.values() for t in part.values())

    def save(self, folder: str | Path) -> Path:
        """Write the folder that PEFT opens, and beside it for which weights it was made.

        Raises:
            CannotWrite: the place cannot be written.
        """
        target = Path(folder)
        with atomic_directory(target) as place:
            write_safetensors(place / WEIGHTS, self._tensors())
            (place / CONFIG).write_text(json.dumps(self._config(), indent=2) + "\n", encoding="utf-8")
            about = {"schema": "kobza.adapter/1", "base": self.base, "fingerprint": self.fingerprint}
            (place / RECORD).write_text(json.dumps({**about, "spec": asdict(self.spec)}) + "\n", encoding="utf-8")
        return target

    def _tensors(self) -> dict[str, Tensor]:
        found = {}
        for path, part in self.numbers.items():
            for name, values in part.items():
                shaped = values.detach()
                if name == "scale":  # PEFT keeps the axis along which it multiplies
                    shaped = shaped[None] if path in self.feeds else shaped[:, None]
                found[f"{_PREFIX}{path}.{_NAMES[name]}"] = shaped.contiguous()
        return found

    def _config(self) -> dict[str, Any]:
        common = {
            "base_model_name_or_path": self.base, "task_type": "CAUSAL_LM", "inference_mode": True,
            "target_modules": sorted(self.numbers),
        }  # fmt: skip
        if self.spec.kind == "ia3":
            return {**common, "peft_type": "IA3", "feedforward_modules": sorted(self.feeds), "fan_in_fan_out": False}
        own = {"r": self.spec.rank, "lora_alpha": self.spec.scale * self.spec.rank, "lora_dropout": self.spec.dropout}
        return {**common, **own, "peft_type": "LORA", "bias": "none", "use_dora": self.spec.kind == "dora"}


def load(folder: str | Path) -> Adapter:
    """Read a folder that PEFT or kobza wrote.

    Raises:
        MissingFile: it has no adapter. Corrupt: its files contradict each other.
        BadValue: it uses something that is not known here; the message names it.
    """
    place = Path(folder)
    if not (place / CONFIG).is_file() or not (place / WEIGHTS).is_file():
        raise MissingFile(f"'{place}' has no adapter: {CONFIG} and {WEIGHTS} are needed.")
    config = json_object(place / CONFIG)
    safetensors_header(place / WEIGHTS)
    tensors = mapped([place / WEIGHTS])
    about = json_object(place / RECORD) if (place / RECORD).is_file() else {}
    found = _spec_of(config, str(place))
    numbers: dict[str, dict[str, Tensor]] = {}
    for key, values in tensors.items():
        path, name = _place_of(key, str(place))
        numbers.setdefault(path, {})[name] = values.flatten() if name == "scale" else values
    feeds = frozenset(path for path in numbers if _is_feed(path, config.get("feedforward_modules") or ()))
    base = str(config.get("base_model_name_or_path") or "")
    return Adapter(found, numbers, feeds, base, str(about.get("fingerprint", "")))


def _spec_of(config: Mapping[str, Any], where: str) -> Spec:
    kind = str(config.get("peft_type", "")).upper()
    if kind == "IA3":
        return Spec("ia3")
    if kind != "LORA":
        raise BadValue(
            f"the adapter in '{where}' is of the type {kind!r}; LORA (with or without DoRA) and IA3 are read."
        )
    for name, plain in (("bias", "none"), ("modules_to_save", None), ("rank_pattern", {}), ("alpha_pattern", {})):
        if config.get(name) not in (plain, None, {}, []):
            raise BadValue(f"the adapter in '{where}' has {name} = {config[name]!r}, which is not read here.")
    rank = int(config["r"])
    scale = float(config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    kind = "dora" if config.get("use_dora") else "lora"
    return Spec(kind, rank, scale * rank, float(config.get("lora_dropout") or 0.0))


def _place_of(key: str, where: str) -> tuple[str, str]:
    for name, suffix in _NAMES.items():
        if key.startswith(_PREFIX) and key.endswith(f".{suffix}"):
            return key[len(_PREFIX) : -len(suffix) - 1], name
    raise Corrupt(f"the adapter in '{where}' holds the tensor {key!r}, which no adapter of its kind has.")


def _is_feed(path: str, modules: Sequence[str] | str) -> bool:
    names = [modules] if isinstance(modules, str) else modules
    return any(path == name or path.endswith(f".{name}") for name in names)


def is_folder(words: str) -> bool:
    """Whether words name the folder of an adapter rather than a kind: it has one, or there is a slash in its name."""
    return "/" in words or (Path(words) / CONFIG).is_file()


def fresh(model: Model, wanted: Spec, *, seed: int = 0) -> Adapter:
    """Make an adapter that changes nothing yet: B is 0, scales are 1, magnitudes are the norms of the rows.

    A is drawn uniform in +-1/sqrt(inputs), which is PEFT's default.

    Raises:
        NothingMatched: the pattern matches no matrix.
    """
    generator = torch.Generator().manual_seed(seed)
    numbers: dict[str, dict[str, Tensor]] = {}
    feeds = set()
    for name in model.find(wanted.where):
        matrix = model.matrices.get(name)
        if matrix is None or len(matrix.shape) != 2 or name.startswith("embed"):
            raise NothingMatched(f"{name!r} of {model.name!r} is not a matrix of its own that an adapter can sit on.")
        path = matrix.parameter.removesuffix(".weight")
        outputs, inputs = matrix.shape
        if wanted.kind == "ia3":
            is_feed = name.endswith(_FEED)
            feeds |= {path} if is_feed else set()
            numbers[path] = {"scale": torch.ones(inputs if is_feed else outputs)}
            continue
        bound = 1 / math.sqrt(inputs)
        A = torch.empty(wanted.rank, inputs).uniform_(-bound, bound, generator=generator)
        numbers[path] = {"lora_A": A, "lora_B": torch.zeros(outputs, wanted.rank)}
        if wanted.kind == "dora":
            numbers[path]["magnitude"] = model.matrix(name).norm(dim=1)
    return Adapter(wanted, numbers, frozenset(feeds), model.origin.spec, model.fingerprint)


def attach(model: Model, adapter: Adapter, *, any_base: bool = False) -> Model:
    """Return a fork with the adapter on; the model itself is not changed.

    Args:
        model: the base.
        adapter: made for it.
        any_base: accept weights other than those the adapter was made for, if the shapes fit.

    Raises:
        WrongTensors: the adapter belongs to another model; the message says what does not fit.
    """
    if adapter.fingerprint and adapter.fingerprint != model.fingerprint and not any_base:
        raise WrongTensors(
            f"the adapter was made for other weights ({adapter.base!r}, {adapter.fingerprint[:12]}) than those of "
            f"{model.name!r} ({model.fingerprint[:12]}).",
            "Open the model it was made for, or accept any base that fits (any_base=True).",
        )
    twin = model.fork()
    for path, numbers in adapter.numbers.items():
        base = _part(twin, path)
        _check(path, base, numbers, path in adapter.feeds, adapter.spec)
        own = {name: values.detach().clone() for name, values in numbers.items()}
        set_module(twin.module, path, Adapted(base, adapter.spec, own, path in adapter.feeds).requires_grad_(False))
    twin.head_is_exact = model.head_is_exact
    return twin


def _part(model: Model, path: str) -> Any:
    try:
        part = model.module.get_submodule(path)
    except AttributeError:
        raise WrongTensors(f"{model.name!r} has no part {path!r}: the adapter was made for another model.") from None
    if isinstance(part, Adapted):
        raise BadValue(f"{model.name!r} already has an adapter at {path!r}.", "Take it off first (detach).")
    return part


def _check(path: str, base: Any, numbers: Mapping[str, Tensor], is_feed: bool, wanted: Spec) -> None:
    outputs, inputs = base.weight.shape
    if type(base).__name__ == "Conv1D":
        outputs, inputs = inputs, outputs
    shapes = {"lora_A": (wanted.rank, inputs), "lora_B": (outputs, wanted.rank), "magnitude": (outputs,)}
    shapes["scale"] = (inputs if is_feed else outputs,)
    for name, values in numbers.items():
        if tuple(values.shape) != shapes[name]:
            raise WrongTensors(
                f"{name} of the adapter at {path!r} has the shape {tuple(values.shape)}; this model needs "
                f"{shapes[name]}: it was made for another model."
            )


def parts(module: Any) -> dict[str, Adapted]:
    """Return the adapted parts of a module by path."""
    return {path: part for path, part in module.named_modules() if isinstance(part, Adapted)}


def taken(model: Model, base: Model) -> Adapter:
    """Return the adapter that sits on a model, as tensors of its own."""
    found = parts(model.module)
    first = next(iter(found.values()))
    numbers = {path: {k: v.detach().clone() for k, v in part.numbers.items()} for path, part in found.items()}
    feeds = frozenset(path for path, part in found.items() if part.is_feed)
    return Adapter(first.spec, numbers, feeds, base.origin.spec, base.fingerprint)


def detach(model: Model) -> Model:
    """Return a fork without its adapter: the base's own parts and tensors, bit for bit."""
    twin = model.fork()
    for path, part in parts(twin.module).items():
        set_module(twin.module, path, part.base)
    return twin


@contextmanager
def off(module: Any) -> Iterator[None]:
    """Run the block as if the adapter were not there: the reference model of preferences."""
    found = parts(module).values()
    for part in found:
        part.is_on = False
    try:
        yield
    finally:
        for part in found:
            part.is_on = True


@contextmanager
def exchanged(module: Any, numbers: Mapping[str, Mapping[str, Tensor]]) -> Iterator[None]:
    """Run the block with other numbers in the adapter, by path and name."""
    own = {path: part.numbers for path, part in parts(module).items()}
    kept = {path: {name: p.data for name, p in found.items()} for path, found in own.items()}

    def put(wanted: Mapping[str, Mapping[str, Tensor]]) -> None:
        for path, found in own.items():
            for name, p in found.items():
                p.data = wanted[path][name]
        torch.clear_autocast_cache()  # or the copies in low precision of what stood there would be taken

    put(numbers)
    try:
        yield
    finally:
        put(kept)


@torch.no_grad()
def merged(model: Model, adapter: Adapter) -> Model:
    """Return a fork of the base whose matrices compute what base and adapter did together; no part is added.

    Raises:
        WrongTensors: the adapter belongs to another model.
    """
    return dense(attach(model, adapter))


@torch.no_grad()
def dense(model: Model) -> Model:
    """Return a fork whose adapted parts are plain ones with the product merged in, and say so in its changes."""
    found = parts(model.module)
    spec = next(iter(found.values())).spec
    where = {matrix.parameter: name for name, matrix in detach(model).matrices.items()}
    options = {key: value for key, value in asdict(spec).items() if value}
    twin = model.fork(change=Change(spec.kind, options, [where[f"{path}.weight"] for path in found]))
    for path, part in found.items():
        weight, bias = part.merged()
        plain = copy.copy(part.base.plain() if isinstance(part.base, Compact) else part.base)
        plain._parameters = {
            "weight": nn.Parameter((weight.T if part.is_transposed else weight).contiguous(), requires_grad=False),
            "bias": None if bias is None else nn.Parameter(bias.detach(), requires_grad=False),
        }
        set_module(twin.module, path, plain)
        residence.rest([part.base.weight])  # or both would be held at once
    return twin


def combined(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Return one LoRA whose product is the weighted sum of those of several: their factors side by side.

    Raises:
        BadValue: not LoRA, for different models, or not one weight each.
    """
    if len(adapters) != len(weights) or not adapters or any(a.spec.kind != "lora" for a in adapters):
        raise BadValue(f"{len(adapters)} adapters and {len(weights)} weights: give LoRA adapters and one weight each.")
    if len({(a.base, a.fingerprint, *a.numbers) for a in adapters}) > 1:
        raise BadValue("the adapters sit on different models or matrices.", "Combine adapters of one kind and base.")
    numbers = {}
    for path in adapters[0].numbers:
        A = torch.cat([a.numbers[path]["lora_A"] for a in adapters])
        B = torch.cat([w * a.spec.scale * a.numbers[path]["lora_B"] for a, w in zip(adapters, weights, strict=True)], 1)
        numbers[path] = {"lora_A": A, "lora_B": B}
    rank = sum(a.spec.rank for a in adapters)
    made = replace(adapters[0].spec, rank=rank, alpha=float(rank), dropout=0.0)
    return replace(adapters[0], spec=made, numbers=numbers)


@torch.no_grad()
def restart(module: Any, optimizer: Any, generator: torch.Generator) -> None:
    """Add every product to its base matrix and begin a new one, with fresh moments (ReLoRA).

    Source: Lialin et al. (2023), arXiv:2307.05695, algorithm 1 with a full reset of the optimizer.
    """
    for part in parts(module).values():
        weight, _ = part.merged()
        part.base.weight.copy_(weight.T if part.is_transposed else weight)
        bound = 1 / math.sqrt(part.lora_A.shape[1])
        part.lora_A.uniform_(-bound, bound, generator=generator)
        part.lora_B.zero_()
        for p in (part.lora_A, part.lora_B):
            for values in optimizer.state.get(p, {}).values():
                if isinstance(values, Tensor):
                    values.zero_()
