"""Models that are passed from Python: any module that computes logits."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable

from torch import Tensor, nn

from bigramlm.errors import UserError, require
from bigramlm.model.base import LanguageModel, cross_entropy

ModelFactory = Callable[..., nn.Module]
"""A function or class that makes a module from vocab_size and block_size."""


class PythonModel(LanguageModel):
    """A language model around any module that computes logits from token ids."""

    def __init__(self, module: nn.Module, *, vocab_size: int, block_size: int) -> None:
        """Wrap a module.

        Its forward takes token ids (B, T) and returns logits (B, T, V), or a tuple that begins with them.
        """
        super().__init__(vocab_size=vocab_size, block_size=block_size)
        self.module = module

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        try:
            found = self.module(idx)
        except IndexError as error:
            raise UserError(
                f"model={type(self.module).__qualname__}: forward failed with {error} for token ids below "
                f"{self.vocab_size}; an embedding of tokens needs vocab_size={self.vocab_size} rows"
            ) from error
        logits = found[0] if isinstance(found, tuple) else found
        shape = (*idx.shape, self.vocab_size)
        if not isinstance(logits, Tensor) or logits.shape != shape:
            returned = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"model={type(self.module).__qualname__}: forward returned {returned} for token ids of shape "
                f"{tuple(idx.shape)}; it must return logits (B, T, V), here {shape}"
            )
        return logits, cross_entropy(logits, targets)


def build_model(source: nn.Module | ModelFactory, *, vocab_size: int, block_size: int) -> LanguageModel:
    """Build a language model from a module or a factory.

    A module is copied, so that training does not change the module of the caller. A factory is called with vocab_size
    and block_size. Raises UserError if this gives no module that can be trained on this vocabulary.
    """
    name = name_of(source)
    module = _copied(source, name) if isinstance(source, nn.Module) else _made(source, name, vocab_size, block_size)
    model = as_language_model(module, name, vocab_size=vocab_size, block_size=block_size)
    require(
        any(p.requires_grad for p in model.parameters()),
        f"model={name}: has no parameters to train, because none of its parameters requires a gradient",
    )
    return model


def as_language_model(module: object, name: str, *, vocab_size: int, block_size: int) -> LanguageModel:
    """Return a module as a LanguageModel, wrapped if necessary.

    name: the name of the model, for messages. Raises UserError if the module is none, takes other arguments than the
    token ids, or was made for a different vocabulary or block size.
    """
    if not isinstance(module, nn.Module):
        raise UserError(f"model={name}: must return a torch.nn.Module, but returned {type(module).__name__}")
    if not isinstance(module, LanguageModel):
        try:
            inspect.signature(module.forward).bind(None)
        except TypeError as error:
            raise UserError(f"model={name}: forward must accept the token ids as its only argument: {error}") from None
        return PythonModel(module, vocab_size=vocab_size, block_size=block_size)
    require(
        (module.vocab_size, module.block_size) == (vocab_size, block_size),
        f"model={name}: was made for vocab_size={module.vocab_size} and block_size={module.block_size}, but the run "
        f"has vocab_size={vocab_size} and block_size={block_size}; pass a factory of vocab_size and block_size",
    )
    return module


def name_of(source: nn.Module | ModelFactory) -> str:
    """Return the qualified name of a factory or of a module's class.

    An example is `__main__.MyModel`.
    """
    named = type(source) if isinstance(source, nn.Module) or not hasattr(source, "__qualname__") else source
    return f"{named.__module__}.{named.__qualname__}"


def _copied(module: nn.Module, name: str) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise UserError(
            f"model={name}: the module cannot be copied ({error}); pass a factory of vocab_size and block_size instead"
        ) from error


def require_factory(source: nn.Module | ModelFactory) -> None:
    """Raise UserError for a factory that does not take vocab_size and block_size."""
    if not isinstance(source, nn.Module):
        _takes_names(source, name_of(source))


def _takes_names(factory: ModelFactory, name: str) -> bool:
    # Checks the arguments of a factory. Returns whether they must be passed by name or by position.
    with contextlib.suppress(TypeError, ValueError):
        inspect.signature(factory).bind(vocab_size=0, block_size=0)
        return True
    try:
        inspect.signature(factory).bind(0, 0)
    except (TypeError, ValueError) as error:  # a ValueError for a built-in class without a signature
        raise UserError(f"model={name}: must take two arguments, vocab_size and block_size: {error}") from None
    return False


def _made(factory: ModelFactory, name: str, vocab_size: int, block_size: int) -> object:
    by_name = _takes_names(factory, name)
    return factory(vocab_size=vocab_size, block_size=block_size) if by_name else factory(vocab_size, block_size)
