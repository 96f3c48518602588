"""What all objectives that adapt a model share: the trainable fork, its reference, the held-out figures, the Run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kobza.models import residence
from kobza.models.model import Change, Model
from kobza.training import base
from kobza.training.base import Job, Run
from kobza.training.parts import adapters, corpus, sizing
from kobza.training.parts.adapters import Adapter, Spec
from kobza.training.parts.losses import token_logps

CONTEXT = 256


@dataclass
class Policy:
    """The fork that is trained.

    Attributes:
        original: the model given.
        model: the fork; only what is trained has gradients.
        adapter: what kind of adapter it has, None: all weights are its own and are trained.
        begun: the adapter that it began with, None: a new one, which changes nothing yet.
    """

    original: Model
    model: Model
    adapter: Spec | None
    begun: Adapter | None = None

    @classmethod
    def of(cls, model: Model, words: str, *, seed: int) -> Policy:
        """Fork a model for training: with an adapter ("lora:rank=16", or the folder of one), or with weights of its own
        ("none").

        Raises:
            WrongTensors: the adapter in the folder was made for another model.
        """
        loaded = adapters.load(words) if adapters.is_folder(words) else None
        wanted = loaded.spec if loaded else adapters.spec(words)
        if wanted is None:
            twin = model.fork()
            own_weights(twin.module, trained=True)
            return cls(model, twin, None)
        twin = adapters.attach(model, loaded or adapters.fresh(model, wanted, seed=seed))
        if wanted.merge_every:
            own_weights(twin.module, trained=False)
        for part in adapters.parts(twin.module).values():
            for p in part.numbers.values():
                p.requires_grad_(True)
        return cls(model, twin, wanted, loaded)

    @property
    def module(self) -> Any:
        """The transformers module that is trained."""
        return self.model.module

    def rest(self) -> None:
        """Give back the memory of the model given, where nothing asks it for a while and a file holds it."""
        if self.adapter is None:
            residence.rest(self.original.module.parameters())

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """Yield the module as it was before the training, without gradient."""
        with torch.no_grad():
            if self.adapter is None or self.adapter.merge_every:
                yield self.original.module
            elif self.begun:
                with adapters.exchanged(self.module, self.begun.numbers):
                    yield self.module
            else:
                with adapters.off(self.module):
                    yield self.module

    def reference_logps(self, read: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        """Return log p of the targets (B, T) under the model as it was, in nats."""
        with self.reference() as module:
            was_training = module.training
            module.eval()
            found = token_logps(module, read, targets, mask)
            module.train(was_training)
        return found

    def job(self, **how: Any) -> Job:
        """Return a job of the loop; ReLoRA's merging is part of it."""
        spec = self.adapter
        if spec is None or not spec.merge_every:
            return Job(self.module, **how)
        generator = torch.Generator()
        bases = {f"{path}.weight": part.base.weight for path, part in adapters.parts(self.module).items()}

        def after(step: int, optimizer: Any) -> None:
            if step % spec.merge_every == 0:
                adapters.restart(self.module, optimizer, generator.manual_seed(step))

        return Job(self.module, after=after, also=bases, **how)

    def finished(self, technique: str, options: dict[str, Any], seed: int) -> tuple[Model, Adapter | None]:
        """Return the trained model without any part that plain transformers lacks, and the adapter apart."""
        self.module.requires_grad_(False)
        adapter = None
        if self.adapter is None:
            dense = self.model
            touched = list(dense.matrices)
        else:
            if not self.adapter.merge_every:
                adapter = adapters.taken(self.model, self.original)
            dense = adapters.dense(self.model)
            touched = dense.changes[-1].matrices
        kept = {key: value for key, value in options.items() if value not in ("", None)}
        change = Change(technique, kept, touched, "values", {}, seed)
        changes = (*self.original.changes, change)
        model = Model(dense.name, dense.module, dense.tokenizer, origin=dense.origin, changes=changes)
        model.head_is_exact = self.original.head_is_exact
        return model, adapter


def own_weights(module: Any, *, trained: bool) -> None:
    """Give a fork weights of its own, the ends tied as they were; they may be changed without harm to the original.

    A model read from GGUF stays marked as quantized in transformers, whose Trainer then refuses it; its weights are
    plain numbers here, and the mark is not asked.
    """
    twins: dict[int, torch.nn.Parameter] = {}
    everything = list(module.modules())
    for part in [*everything, *(part.base for part in everything if isinstance(part, adapters.Adapted))]:
        for name, p in list(part._parameters.items()):
            if p is not None:
                own = twins.setdefault(id(p), torch.nn.Parameter(p.detach().clone(), requires_grad=trained))
                part._parameters[name] = own


def run(
    policy: Policy,
    job: Job,
    how: base.Plan,
    *,
    technique: str,
    options: dict[str, Any],
    folder: str,
    log: list[str] | None,
    tokens: int,
    look: int = 0,
    drawn: tuple[int, int] = (0, 0),
    calls: int = 1,
    notes: list[str] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Run:
    """Say what the run will take, run the job, and return the Run.

    Args:
        tokens: of a batch [count, 1 ..]. look: of a look at what is held out.
        drawn: answers that a step draws side by side, and tokens of each.
        calls: batches of a step, see `sizing.predict`.
    """
    foreseen = sizing.predict(
        policy.module, tokens=tokens, optimizer=how.optimizer, precision=how.dtype, calls=calls * how.accumulate,
        look=look, drawn=drawn,
    )  # fmt: skip
    for line in (foreseen.told(how.budget), *(notes or ())) if tell is not None else ():
        tell(line)  # type: ignore[misc]
    history, facts = base.run(job, how, folder=folder or None, log=tuple(log or ()))
    model, adapter = policy.finished(technique, options, how.seed)
    facts |= {"parameters": foreseen.parameters, "predicted_bytes": foreseen.bytes, "notes": list(notes or ())}
    facts |= {"predicted_seconds": foreseen.seconds, "adapter_parameters": adapter.parameters if adapter else None}
    return Run(model, history, facts, adapter)


def context_of(model: Model, wanted: int) -> int:
    """Return the tokens of a window: what was asked for, or 256, never more than the model was trained for."""
    return min(wanted or CONTEXT, model.context or wanted or CONTEXT)


def held_texts(source: Any, model: Model, share: float) -> tuple[corpus.Split, Tensor, corpus.Held]:
    """Return a text in two parts: the split, the ids to train on, the held-out tokens."""
    texts, notes = corpus.documents(source)
    part = corpus.split(texts, share, notes=notes)
    return part, corpus.encoded(part.train, model.tokenizer), corpus.Held.of(part, model.tokenizer)
