"""An opened model: a transformers module with its tokenizer, seen through names that hold in every family.

A Model is never changed in place. `fork()` and `replace()` return a new Model that shares every untouched tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from kobza.core.errors import WrongTensors
from kobza.models import digests, matrices, quantized, replacing
from kobza.models.factored import Factors
from kobza.models.families import Family, family_of
from kobza.models.matrices import Matrix, Part
from kobza.models.quantized import Coded, Quantized
from kobza.models.replacing import Value

if TYPE_CHECKING:
    from kobza.core.result import Result
    from kobza.models.saving import Saved
    from kobza.models.trace import Trace
    from kobza.tokens.base import Tokenizer

__all__ = ["Change", "Factors", "Matrix", "Model", "Origin", "Quantized", "Value"]


@dataclass(frozen=True)
class Origin:
    """Where a model came from.

    Attributes:
        spec: what `kobza.open` was given.
        path: the file or folder that was read; "" for a model made here.
        licence: its licence as stated by its files, "" when they state none.
        sha256: of the file of weights, "" when it has several or none.
        kind: "gguf", "safetensors", "folder", "random", ...
        notes: what a reader should know, e.g. the quantisation it was read from.
    """

    spec: str
    path: str = ""
    licence: str = ""
    sha256: str = ""
    kind: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """The record of one edit, plain data.

    Attributes:
        technique: its name, `lowrank`.
        options: every option with its value.
        matrices: names of the matrices it replaced.
        kind: "values" (same shape), "factor" (stored as A, B or codes) or "shape" (a new config).
        facts: what the edit measured about itself: energy kept, bytes before and after.
        seed: of its random numbers, None if it drew none.
    """

    technique: str
    options: dict[str, Any] = field(default_factory=dict)
    matrices: list[str] = field(default_factory=list)
    kind: Literal["values", "factor", "shape"] = "values"
    facts: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a dict of plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Change:
        """Build the record from what `to_json` returned."""
        return cls(**data)

    def __str__(self) -> str:
        options = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.technique}:{options}" if options else self.technique


class Model:
    """A causal language model with its tokenizer.

    Args:
        name: how the user calls it.
        module: a transformers causal language model; it is set to evaluation and its gradients are switched off.
        tokenizer: its tokenizer.
        origin: where it came from.
        family: where the module keeps its parts; read from its config when not given.
        changes: the edits that led here, oldest first.
    """

    def __init__(
        self,
        name: str,
        module: Any,
        tokenizer: Tokenizer,
        *,
        origin: Origin | None = None,
        family: Family | None = None,
        changes: tuple[Change, ...] = (),
    ) -> None:
        self.name = name
        self.module: Any = module.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.origin = origin or Origin(spec=name)
        self.family = family or family_of(module)
        self.changes = tuple(changes)
        self.head_is_exact: bool | None = None  # see forward.head_fits: checked once, handed on to forks

    def __repr__(self) -> str:
        edits = "".join(f" | {change}" for change in self.changes)
        shape = f"{self.layers} x {self.width}, {self.parameters:,} parameters"
        return f"<Model {self.name} ({self.family.name}, {shape}){edits}>"

    # what it is

    @property
    def config(self) -> Any:
        """The transformers config (of the text part, where a model has several)."""
        return self.module.config.get_text_config()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the first weight; of what its codes stand for, where it is quantized."""
        owner, name = next((p, n) for p in self.module.modules() for n, _ in p.named_parameters(recurse=False))
        found: torch.dtype = owner.dtype if isinstance(owner, Coded) else getattr(owner, name).dtype
        return found

    @property
    def layers(self) -> int:
        """L, the number of blocks."""
        if self.family.blocks:
            return len(self.module.get_submodule(self.family.blocks))
        return int(self.config.num_hidden_layers)

    @property
    def width(self) -> int:
        """D, the width of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def vocabulary(self) -> int:
        """V, the rows of the output end: one logit each."""
        return self.matrices["embed.out"].shape[0]

    @property
    def context(self) -> int | None:
        """Positions the model was trained for; None when its config does not say."""
        positions = getattr(self.config, "max_position_embeddings", None)
        return int(positions) if positions else None

    @property
    def is_tied(self) -> bool:
        """Whether both ends are one tensor."""
        return self.matrices["embed.out"].shared == "embed.in"

    @property
    def parameters(self) -> int:
        """Numbers stored, each shared tensor once; a quantized matrix counts its entries."""
        return sum(p.numel() for p in self.module.parameters()) + quantized.surplus(self.module)

    @property
    def stored_bytes(self) -> int:
        """Tensor bytes that `save()` writes, each shared tensor once."""
        return sum(p.nbytes for p in self.module.parameters())

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all weights in the order of their names; equal weights, equal fingerprint."""
        return digests.fingerprint(self.module)

    # its matrices

    @cached_property
    def matrices(self) -> dict[str, Matrix]:
        """Every weight by name, the ends first; norms and biases included."""
        return matrices.inventory(self.module, self.family)

    @cached_property
    def parts(self) -> dict[str, Part]:
        """Parts of fused matrices that have a name of their own (`blocks.0.attn.q` of `blocks.0.attn.qkv`)."""
        return matrices.parts(self.matrices, self.family)

    def find(self, pattern: str) -> list[str]:
        """Return the names that a pattern selects, in the model's order.

        Args:
            pattern: names with * ? [ ] as in the shell, several separated by commas; a name of a branch selects
                all below it (`blocks.3.mlp`). `embed` is both ends. Matrices are preferred: parts of fused
                ones, and norms, biases and other shapes, are found only where a pattern matches no matrix.

        Returns:
            Names for `matrix()` and `replace()`. Where both ends of a tied model are selected, the single name
            `embed`: editing it keeps the tie.

        Raises:
            NothingMatched: nothing fits; the message lists the nearest patterns and how much they match.
        """
        return matrices.find(self.name, self.matrices, self.parts, pattern)

    def matrix(self, name: str) -> Tensor:
        """Return a weight as float32 in the orientation outputs x inputs, (M, N); a table of embeddings is (V, D).

        It is a view where the model stores it so: do not write to it. `embed` is the input end.

        Raises:
            NothingMatched: there is no such name.
        """
        if name in self.parts:
            part = self.parts[name]
            whole = self.matrix(part.whole)
            return whole[matrices.rows(part, tuple(whole.shape), self.config)]
        return matrices.read(self.module, self._known(name))

    def _known(self, name: str) -> Matrix:
        name = "embed.in" if name == "embed" else name
        if name not in self.matrices:
            raise matrices.nothing_matched(self.name, name, [*self.matrices, *self.parts])
        return self.matrices[name]

    # forks

    def fork(self, *, change: Change | None = None) -> Model:
        """Return a Model of its own that shares every tensor with this one (0.05 s for 135M parameters, no memory)."""
        return self.with_module(replacing.shared_copy(self.module), change=change)

    def with_module(self, module: Any, *, change: Change | None = None) -> Model:
        """Return a Model around another module of the same family (for edits that change the shape)."""
        changes = (*self.changes, change) if change else self.changes
        family = self.family if module.config.model_type == self.family.name else None
        twin = Model(self.name, module, self.tokenizer, origin=self.origin, family=family, changes=changes)
        twin.head_is_exact = self.head_is_exact
        return twin

    def replace(self, tensors: Mapping[str, Value], *, change: Change) -> Model:
        """Return a fork with the named matrices replaced; this model is not changed.

        Args:
            tensors: name -> new value of the same shape (M, N), dense, as `Factors` or as
                `Quantized`. The key `embed` replaces
                both ends and keeps a tie; `embed.in` or `embed.out` alone unties the model explicitly. A tied
                model given both ends as one and the same object stays tied.
            change: the record of the edit.

        Raises:
            NothingMatched, WrongTensors, NotFinite, BadValue: see `replacing.put`.
        """
        replacing.complete(tensors)
        twin = self.fork(change=change)
        was_tied = self.is_tied
        for name, value in tensors.items():
            self._put(twin, name, value)
        ends = tensors.keys() & {"embed.in", "embed.out"}
        if was_tied and ends:
            same = len(ends) == 2 and tensors["embed.in"] is tensors["embed.out"]
            (_tie if same else _untie)(twin)
        return twin

    def _put(self, twin: Model, name: str, value: Value) -> None:
        if name == "embed":
            replacing.put(twin.module, self._known("embed.in"), value)
            if self.is_tied:
                _tie(twin)
            else:
                replacing.put(twin.module, self._known("embed.out"), value)
        elif name in self.parts:
            part = self.parts[name]
            whole = matrices.read(twin.module, self._known(part.whole)).clone()
            at = matrices.rows(part, tuple(whole.shape), self.config)
            dense = value if isinstance(value, Tensor) else value.dense()
            if tuple(dense.shape) != (len(at), *whole.shape[1:]):
                raise WrongTensors(f"{name!r} has {len(at)} x {whole.shape[1]}; given {tuple(dense.shape)}.")
            whole[at] = dense.to(whole.dtype)
            replacing.put(twin.module, self._known(part.whole), whole)
        else:
            replacing.put(twin.module, self._known(name), value)

    # what one does with it; each lives in a module of its own

    def save(
        self,
        path: str | Path,
        *,
        dense: bool = False,
        readings: Sequence[str] = (),
        texts: Mapping[str, str] | None = None,
    ) -> Saved:
        """Write a folder that plain transformers opens (see `models.saving.save`)."""
        from kobza.models.saving import save

        return save(self, path, dense=dense, readings=readings, texts=texts)

    def trace(self, text: Any, sites: list[str] | str = "resid_post") -> Trace:
        """Run a text and return the values at the named sites (see `models.trace.trace`)."""
        from kobza.models.trace import trace

        return trace(self, text, sites)

    def anatomy(self, *, context: int | None = None) -> Result:
        """Return tables of every matrix and exact counts (see `models.anatomy.anatomy`)."""
        from kobza.models.anatomy import anatomy

        return anatomy(self, context=context)


def _tie(model: Model) -> None:
    replacing.tie_ends(model.module, model.family.modules["embed.in"], model.family.modules["embed.out"])


def _untie(model: Model) -> None:
    """Say in the fork's own config that the ends differ, so that nothing ties them again."""
    for config in {id(c): c for c in (model.module.config, model.config)}.values():
        config.tie_word_embeddings = False
    keys = getattr(model.module, "all_tied_weights_keys", None)
    if keys is not None:
        model.module.all_tied_weights_keys = {}
