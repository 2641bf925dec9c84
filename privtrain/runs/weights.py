"""Parameters and buffers of a model as safetensors, and back, to the bit."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.reachable import tensor_digest

_FEW = 4
_COMPLEX = {"complex64": torch.complex64, "complex128": torch.complex128}


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise UnsupportedError(
            "Keeping a model needs safetensors, which is not installed: pip install safetensors"
        ) from error
    return safetensors.torch


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name, tied ones under each of their names."""
    # All buffers: one that is not persistent may be a table that training filled.
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def weights_of(module: nn.Module) -> tuple[bytes, dict[str, Any]]:
    """All parameters and buffers of a model as a file of safetensors, and a table of them.

    Args:
        module: The model.

    Returns:
        The file, and name to shape, type and, of tied ones, the name under which the file has it.

    Raises:
        UnsupportedError: If a tensor is of a kind that cannot be kept.
    """
    library = _safetensors()
    held: dict[int, str] = {}
    kept: dict[str, Tensor] = {}
    table: dict[str, Any] = {}
    for name, tensor in _named(module):
        entry: dict[str, Any] = {"shape": list(tensor.shape), "dtype": _kind(tensor)}
        table[name] = entry
        # Tied tensors once: the format has no tensors that share memory.
        if id(tensor) in held:
            entry["same_as"] = held[id(tensor)]
            continue
        held[id(tensor)] = name
        kept[name] = _plain(name, tensor)
    try:
        content: bytes = library.save(kept)
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise UnsupportedError(
            f"The model has a tensor that a file of safetensors cannot hold: {error}."
        ) from error
    return content, table


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _plain(name: str, tensor: Tensor) -> Tensor:
    if tensor.is_quantized or tensor.layout is not torch.strided or tensor.is_meta:
        raise UnsupportedError(
            f"{name!r} is no dense tensor of numbers ({tensor.layout}, {tensor.dtype}), which is "
            "not kept. Use dense parameters and buffers."
        )
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    if plain.is_complex():
        plain = torch.view_as_real(plain)
    # A copy: two parameters may be parts of one memory, which the format refuses.
    return plain.contiguous().clone()


def read_weights(content: bytes, table: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file by name, tied ones under each of their names.

    Args:
        content: The file.
        table: What `weights_of` said of it.

    Returns:
        Name to tensor, on the CPU.

    Raises:
        ValueError: If the file is torn, or holds something else than the table says.
        KeyError: If it lacks a tensor.
    """
    library = _safetensors()
    try:
        kept: dict[str, Tensor] = library.load(content)
    # The library's own error has no public base.
    except Exception as error:
        raise ValueError(f"its weights cannot be read: {error}") from error
    left = set(kept)
    found: dict[str, Tensor] = {}
    for name, entry in table.items():
        source = entry.get("same_as", name)
        left.discard(source)
        tensor, kind = kept[source], entry["dtype"]
        if kind in _COMPLEX:
            tensor = torch.view_as_complex(tensor).to(_COMPLEX[kind])
        if list(tensor.shape) != entry["shape"] or _kind(tensor) != kind:
            raise ValueError(f"{name!r} is of shape {tuple(tensor.shape)} and type {_kind(tensor)}")
        found[name] = tensor
    if left:
        raise ValueError(f"it holds {json.dumps(sorted(left)[:_FEW])}, which nobody named")
    return found


def check_weights(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuses a model of other names or shapes than those that were kept.

    Args:
        module: The model; its values do not matter.
        tensors: What was kept.
        what: What made the model, for messages.

    Raises:
        DataError: Naming the first few that are missing, too many, or of another shape.
    """
    made = {name: tuple(tensor.shape) for name, tensor in _named(module)}
    kept = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    missing = [name for name in kept if name not in made]
    further = [name for name in made if name not in kept]
    other = [n for n in kept if n in made and kept[n] != made[n]]
    said = [f"lacks {_listed(missing)}"] if missing else []
    said += [f"has {_listed(further)}, which was not kept"] if further else []
    said += [f"has {n!r} of shape {made[n]} and not {kept[n]}" for n in other[:_FEW]]
    if said:
        raise DataError(
            f"Expected {what} to make the model that was kept; it {', '.join(said)}. Give the "
            "function or module that the model was trained with."
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(map(repr, names[:_FEW])) + more


@torch.no_grad()
def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Puts kept values into a model of the same names and shapes.

    Args:
        module: The model.
        tensors: Name to values.
        what: Where they come from, for messages.

    Raises:
        DataError: If the model ties two tensors that had different values.
    """
    targets = dict(_named(module))
    for name, value in tensors.items():
        target = targets[name]
        if target.dtype == value.dtype:
            target.copy_(value)
        else:  # the model was trained in another type than it is made in
            target.data = value.clone()
    for name, target in _named(module):
        if tensor_digest(target) != tensor_digest(tensors[name]):
            raise DataError(
                f"Expected the model to hold {name!r} of {what} as it was kept; the model ties it "
                "to another one. Give the function or module that the model was trained with."
            )
