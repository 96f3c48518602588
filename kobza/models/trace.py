"""Values recorded at sites during one run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from kobza.core.errors import EmptyText, OutOfRange, UnknownName
from kobza.core.files import write_atomic
from kobza.models.hooks import Hook, hooked
from kobza.models.model import Model
from kobza.models.sites import Site, expand


class Trace(Mapping[str, Tensor]):
    """Recorded values by site: `trace["resid_pre.3"]`, `trace["neuron", 29]`.

    Attributes:
        ids: (T,) the tokens that were run, with the start token if there was one; (B, T) for a batch.
        tokens: how each is written, of a single text; [] for a batch.
        model: name and origin of the model, and its changes.
    """

    def __init__(self, values: dict[str, Tensor], ids: Tensor, tokens: list[str], model: dict[str, Any]) -> None:
        self._values = values
        self.ids = ids
        self.tokens = tokens
        self.model = model

    def __getitem__(self, site: str | Site | tuple[str, int]) -> Tensor:
        key = f"{site[0]}.{site[1]}" if isinstance(site, tuple) else str(Site.parse(site))
        if key not in self._values:
            raise UnknownName.of("recorded site", key, self._values)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        lines = [f"  {site}: {tuple(value.shape)}" for site, value in self._values.items()]
        return "\n".join([f"<Trace of {self.model['name']}, {self.positions} positions>", *lines])

    @property
    def positions(self) -> int:
        """T, the positions of the run."""
        return int(self.ids.shape[-1])

    def stack(self, name: str) -> Tensor:
        """Return the values of one site in all recorded layers, (L, ...): `trace.stack("resid_post")`."""
        found = [value for site, value in self._values.items() if Site.parse(site).name == name]
        if not found:
            raise UnknownName.of("recorded site", name, {Site.parse(site).name for site in self._values})
        return torch.stack(found)

    def save(self, path: str | Path) -> Path:
        """Write the trace to a safetensors file."""
        about = json.dumps({"tokens": self.tokens, "model": self.model, "sites": list(self)})
        tensors = {site: value.contiguous().cpu() for site, value in self._values.items()}
        return write_atomic(path, save({"ids": self.ids, **tensors}, {"kobza.trace": about}))

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read what `save` wrote."""
        with safe_open(str(path), "pt") as file:
            about = json.loads(file.metadata()["kobza.trace"])
            values = {site: file.get_tensor(site) for site in about["sites"]}
            return cls(values, file.get_tensor("ids"), about["tokens"], about["model"])


@torch.inference_mode()
def trace(model: Model, text: str | bytes | Sequence[int] | Tensor, sites: Sequence[str] | str) -> Trace:
    """Run a text once and keep the values at the named sites.

    Args:
        model: the model to run.
        text: a text (begun by the start token, if the tokenizer has one), ids as they are, or a batch of ids (B, T).
        sites: one or several sites; without a layer, or with `*`, a site of every layer.

    Returns:
        A Trace. Values of a single text have no batch dimension: (T, D), (T, F), (T, H, E); a single position or
        index is a dimension less.

    Raises:
        EmptyText: nothing to run. BadValue, UnknownName, OutOfRange: see `models.sites`.
    """
    ids, is_batch = _ids(model, text)
    wanted = [site for one in ([sites] if isinstance(sites, str) else sites) for site in expand(model, one)]
    values: dict[str, Tensor] = {}

    def keep(key: str) -> Any:
        def record(value: Tensor) -> None:
            values[key] = value.clone() if is_batch else value[0].clone()

        return record

    with hooked(model, [Hook(site, keep(str(site))) for site in wanted]):
        model.module(input_ids=ids.to(model.device), use_cache=False)
    origin = {"spec": model.origin.spec, "sha256": model.origin.sha256}
    about = {"name": model.name, "origin": origin, "changes": [str(change) for change in model.changes]}
    tokens = [] if is_batch else [model.tokenizer.show(int(i)) for i in ids[0]]
    ordered = {str(site): values[str(site)] for site in wanted}
    return Trace(ordered, ids if is_batch else ids[0], tokens, about)


def _ids(model: Model, text: str | bytes | Sequence[int] | Tensor) -> tuple[Tensor, bool]:
    is_text = isinstance(text, str | bytes)
    ids = torch.as_tensor(model.tokenizer.encode(text, start=True) if isinstance(text, str | bytes) else text).long()
    if not ids.numel() or (is_text and not text):
        raise EmptyText("there is nothing to run: the text is empty.")
    if model.context and ids.shape[-1] > model.context:
        raise OutOfRange(f"{ids.shape[-1]} tokens exceed the {model.context} that {model.name!r} was trained for.")
    if int(ids.min()) < 0 or int(ids.max()) >= model.vocabulary:
        seen = f"{int(ids.min())} .. {int(ids.max())}"
        raise OutOfRange(f"token ids {seen} do not fit the {model.vocabulary} ids of {model.name!r}.")
    return (ids, True) if ids.ndim == 2 else (ids[None], False)
