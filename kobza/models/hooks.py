"""Temporary changes at sites: gone when the block ends, also on an error; one that never fires is an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kobza.core.errors import BadValue, NothingMatched
from kobza.models.attending import SIDES, intercepted
from kobza.models.derived import Derived, derived
from kobza.models.model import Model
from kobza.models.sites import Place, Site, expand, locate, selection

Function = Callable[[Tensor], Tensor | None]
LAST = {"attn_out": 1, "resid_mid": 2}  # hooks at one module act in this order; those of other sites come first


@dataclass(frozen=True)
class Hook:
    """A function at a site.

    Attributes:
        site: a Site or its text; without a layer, the same function sits in every layer.
        function: gets the value selected by the site, (B, T, ...) - a single position or index is a dimension less -
            and returns a new one of that shape (or one that broadcasts to it), or None to leave it. It must not write
            to what it gets.
    """

    site: Site | str
    function: Function


@contextmanager
def hooked(model: Model, hooks: Iterable[Hook]) -> Iterator[None]:
    """Have the hooks take part in every forward pass inside the `with`.

    Several hooks at one site run in the order given. Positions are those of each pass: while a cache is used, of the
    newly fed tokens.

    Raises:
        BadValue, UnknownName, OutOfRange: a site that this model or run does not have.
        NothingMatched: a hook that has not fired when the block ends.
    """
    installed: list[_Installed] = []
    try:
        for hook in hooks:
            for site in expand(model, hook.site):
                installed.append(_Installed(model, site, hook.function))
        # subtle: resid_mid sits where attn_out is made, and has to see what hooks at attn_out and head_out did
        inside: dict[Any, list[tuple[str, Function]]] = {}
        for one in sorted(installed, key=lambda i: LAST.get(i.site.name, 0)):
            if one.place.side in SIDES:
                inside.setdefault(one.place.module, []).append((one.place.side, one.changed))
            else:
                one.install()
        with intercepted(model.config, inside):
            yield
    finally:
        for one in installed:
            one.remove()
    silent = [str(one.site) for one in installed if not one.has_fired]
    if silent:
        hint = "Run the model inside the `with`, and let the run pass that place."
        raise NothingMatched(f"hooks that never fired: {', '.join(silent)}.", hint)


class _Installed:
    """One hook at one place; as a callable it is what torch calls."""

    of_kobza = True  # forks leave such hooks behind

    def __init__(self, model: Model, site: Site, function: Function) -> None:
        self.model, self.site, self.function = model, site, function
        self.has_fired = False
        self.handles: list[Any] = []
        self.block_input: Tensor | None = None
        self.is_middle = site.name == "resid_mid"
        self.place: Place = locate(model, Site("attn_out", site.layer) if self.is_middle else site)

    def install(self) -> None:
        """Register with torch."""
        if self.site.layer is not None:
            block = self.model.module.get_submodule(f"{self.model.family.blocks}.{self.site.layer}")
            self.handles.append(block.register_forward_pre_hook(_Remember(self), with_kwargs=True))
        module, side = self.place.module, self.place.side
        if side == "in":
            self.handles.append(module.register_forward_pre_hook(_Before(self), with_kwargs=True))
        elif side == "out":
            self.handles.append(module.register_forward_hook(_After(self), with_kwargs=True))
        else:
            kind = _Beside(self, derived(self.model, self.site, self.place))
            self.handles.append(module.register_forward_hook(kind, with_kwargs=True))

    def remove(self) -> None:
        """Take it out again."""
        for handle in self.handles:
            handle.remove()
        self.block_input = None

    def act(self, value: Tensor) -> Tensor | None:
        """Apply the function where it belongs; None if it changed nothing."""
        # subtle: a method kept as an attribute would be a cycle, and keep what functions hold until it is collected
        return self.middle(value) if self.is_middle else self.at_value(value)

    def at_value(self, value: Tensor) -> Tensor | None:
        """Apply the function to a value as the module holds it; None if it changed nothing."""
        flat = value.ndim == 2 and self.block_input is not None  # OPT's MLP sees (B T, F)
        whole = value.view(*self.block_input.shape[:2], -1) if flat and self.block_input is not None else value
        place = self.place
        view = whole if place.rows is None else whole[..., place.rows.to(whole.device)]
        view = view.unflatten(-1, (place.heads, -1)) if place.heads else view
        new = self.changed(view * place.scale if place.scale != 1 else view)
        if new is None:
            return None
        new = new / place.scale if place.scale != 1 else new
        new = new.flatten(-2) if place.heads else new
        if place.rows is not None:
            whole = whole.clone()
            whole[..., place.rows.to(whole.device)] = new
            new = whole
        return new.reshape(value.shape)

    def middle(self, attention: Tensor) -> Tensor | None:
        """The stream between attention and MLP: the block's input plus attn_out; a change to it goes into attn_out."""
        assert self.block_input is not None, "the block's input is remembered before its attention runs"
        added = attention * self.place.scale if self.place.scale != 1 else attention
        new = self.changed(self.block_input + added)
        return None if new is None else (new - self.block_input) / self.place.scale

    def changed(self, view: Tensor) -> Tensor | None:
        """Call the function on the selected part; return the whole view with the part replaced, or None."""
        at = selection(self.site, view.shape)
        self.has_fired = True
        part = view[at]
        new = self.function(part)
        if new is None:
            return None
        if not isinstance(new, Tensor) or not _broadcasts(new.shape, part.shape):
            seen = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise BadValue(f"the hook at {str(self.site)!r} returned {seen}; the value there is {tuple(part.shape)}.")
        whole = view.clone()
        whole[at] = new.to(view.dtype)
        return whole


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, to) == to
    except RuntimeError:
        return False


@dataclass(frozen=True)
class _Remember:
    """Keeps the input of the block for its hook."""

    hook: _Installed
    of_kobza = True

    def __call__(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.hook.block_input = args[0] if args else kwargs["hidden_states"]


@dataclass(frozen=True)
class _Before:
    """A hook on what goes into a module."""

    hook: _Installed
    of_kobza = True

    def __call__(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        new = self.hook.act(args[0] if args else kwargs["hidden_states"])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})


@dataclass(frozen=True)
class _After:
    """A hook on what comes out of a module: a tensor, a tuple that begins with one, or an output with logits."""

    hook: _Installed
    of_kobza = True

    def __call__(self, _: Any, __: Any, ___: Any, output: Any) -> Any:
        if self.hook.site.name == "logits":
            new = self.hook.act(output.logits)
            if new is not None:
                output["logits"] = new
            return output
        value = output[0] if isinstance(output, tuple) else output
        new = self.hook.act(value)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new


@dataclass(frozen=True)
class _Beside:
    """A hook on a value that is made from what goes into a module and changes what comes out."""

    hook: _Installed
    value: Derived
    of_kobza = True

    def __call__(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        given = args[0] if args else kwargs["hidden_states"]
        stream = self.hook.block_input
        run = given.shape[:-1] if stream is None else stream.shape[:2]  # OPT's second norm sees (B T, D)
        old = self.value.read(given.view(*run, -1))
        new = self.hook.changed(old)
        return None if new is None else self.value.written(output.view(*run, -1), old, new).view(output.shape)
