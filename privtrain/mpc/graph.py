"""A module's forward pass as a list of layers: which run, and on what, for those that shares know.

Functions, such as `torch.relu`, stand as the layers that compute the same.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from privtrain.core.errors import UnsupportedError
from privtrain.core.failures import OWN_ERRORS
from privtrain.core.seeding import Seeds, global_generator

SUPPORTED = (
    "nn.Linear, nn.Conv2d, nn.ReLU, nn.AvgPool2d, nn.AdaptiveAvgPool2d(1), nn.Flatten, "
    "torch.flatten(x, 1) or x.view(len, -1) with len = x.size(0), and addition"
)


class Addition(nn.Module):
    """The sum of two values of one shape, as in residual connections."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right


@dataclass(frozen=True)
class Call:
    """A layer that runs once, in a module's forward pass.

    Args:
        name: The layer's name in the module; of a function, that of the layer which calls it.
        layer: The layer.
        sources: The values it takes: 0 is the rows, n the result of call number n, from 1.
    """

    name: str
    layer: nn.Module
    sources: tuple[int, ...]


def calls_of(model: nn.Module) -> tuple[Call, ...]:
    """The layers that a module runs from its one argument to its result, in order.

    Args:
        model: The module.

    Raises:
        UnsupportedError: If it cannot be traced, as where its control flow depends on values, or it
            calls what is no layer known here; with the name.
    """
    tracer = _Tracer()
    _check_plain(model)
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train()  # as it is trained, however it was given
        # torch.fx replaces the call of every module while it traces, in all threads: models of
        # other fits are called in their turn.
        with global_generator(Seeds(0)["trace", 0, ""]):
            graph = tracer.trace(_Whole(model))
    except OWN_ERRORS as error:  # a module's own code may raise anything
        raise UnsupportedError(
            f"The forward pass of the {type(model).__name__} cannot be followed by torch.fx: "
            f"{str(error).rstrip('.')}. On shares, a model has no control flow that depends on "
            f"values; supported are {SUPPORTED}."
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    calls: list[Call] = []
    values: dict[fx.Node, int] = {}
    reached = _reached(graph)
    for node in graph.nodes:
        if node not in reached and node.op != "placeholder":
            if _writes(node, tracer.root):
                said = (
                    f"The call {node.format_node()} in {_name(node)!r}, which writes into a value,"
                )
                raise _unsupported(said)
            continue
        if node.op == "placeholder" and not values:
            values[node] = 0
        elif _counts_rows(node):
            continue  # read where it says how rows are flattened, and refused elsewhere
        elif node.op != "output":
            name = _name(node)
            layer, sources = _layer(node, name, tracer.root)
            calls.append(Call(name, layer, tuple(values[source] for source in sources)))
            values[node] = len(calls)
        elif not isinstance(node.args[0], fx.Node):
            raise UnsupportedError(
                f"The {type(model).__name__} returns {node.args[0]}; on shares, a model returns "
                "one tensor."
            )
    return tuple(calls)


class _Whole(nn.Module):
    """Calls the model, so that one that is a single layer is traced as such."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Tensor) -> Any:
        return self.model(rows)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A subclass that leaves `forward` as it is computes what its parent does.
        usual = any(type(m).forward is kind.forward for kind in _WHOLE_LAYERS)
        return usual or super().is_leaf_module(m, module_qualified_name)


_WHOLE_LAYERS = (nn.Linear, nn.Conv2d, nn.ReLU, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten)


def _check_plain(model: nn.Module) -> None:
    """Refuses modules that do more than their class says: torch.fx passes by what is added.

    Raises:
        UnsupportedError: With the module's name.
    """
    for name, module in model.named_modules():
        hooks = (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
        if any(hooks) or "forward" in vars(module):
            raise UnsupportedError(
                f"The layer {name or 'model'!r} has a hook or a forward of its own, which cannot "
                "be trained on shares. Use no hooks, and write a subclass for another forward."
            )


def _counts_rows(node: Any) -> bool:
    """Whether a call reads the number of rows of a value: `x.size(0)`, `x.shape[0]`, `x.shape`."""
    if not isinstance(node, fx.Node):
        return False
    if node.target is operator.getitem:
        return bool(node.args[1] == 0 and _counts_rows(node.args[0]))
    if node.target is getattr:
        return bool(node.args[1] == "shape")
    return node.op == "call_method" and node.target == "size" and node.args[1:] in ((), (0,))


def _reached(graph: fx.Graph) -> set[fx.Node]:
    """What the result depends on."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    reached, waiting = {output}, [output]
    while waiting:
        new = [node for node in waiting.pop().all_input_nodes if node not in reached]
        reached.update(new)
        waiting += new
    return reached


def _writes(node: fx.Node, root: nn.Module) -> bool:
    """Whether a call changes what it is given: that matters though nobody reads its result."""
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    name = str(getattr(node.target, "__name__", node.target))
    # torch's names end in one underline, as in relu_; operator's are such as iadd and setitem.
    inside = name in ("setitem", "__setitem__") or name == name.strip("_") + "_"
    of_operator = hasattr(operator, name) and name.startswith("i")
    told = node.kwargs.get("out") is not None or node.kwargs.get("inplace") or True in node.args
    return bool(inside or of_operator or told)


def _name(node: fx.Node) -> str:
    """The innermost layer's name; that of the model as a whole is 'model'."""
    stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack", {})
    path = str(node.target) if node.op == "call_module" else next(reversed(stack), "model")
    return path.removeprefix("model.")


def _layer(node: fx.Node, name: str, root: nn.Module) -> tuple[nn.Module, Sequence[fx.Node]]:
    """The layer of a node, and the nodes whose values it takes.

    Raises:
        UnsupportedError: If there is none.
    """
    if node.op == "call_module":
        layer = root.get_submodule(str(node.target))
        if any(type(layer).forward is kind.forward for kind in _WHOLE_LAYERS):
            return layer, _values(node, name, node.args)
        raise _unsupported(f"The layer {name!r} ({layer})")
    if node.op == "get_attr":
        read = str(node.target).removeprefix("model.")
        raise _unsupported(f"The tensor {read!r}, which a function in {name!r} reads,")
    function = _FUNCTIONS.get(node.target)
    if function is None:
        what = getattr(node.target, "__name__", str(node.target))
        # torch wraps what dispatches on an argument: its name is in the node's.
        called = node.name if what == "fn" else what
        raise _unsupported(f"The call of {called} in {name!r}")
    try:
        bound = signature(function).bind(*node.args, **node.kwargs)
        layer, sources = function(*bound.args, **bound.kwargs)
    except (TypeError, ValueError) as error:
        raise _unsupported(f"The call {node.format_node()} in {name!r}") from error
    return layer, _values(node, name, sources)


def _values(node: fx.Node, name: str, sources: Sequence[Any]) -> list[fx.Node]:
    if node.kwargs and node.op == "call_module":
        sources = [*sources, *node.kwargs.values()]
    if any(not isinstance(source, fx.Node) or _counts_rows(source) for source in sources):
        raise _unsupported(f"The call {node.format_node()} in {name!r}, with a constant,")
    return list(sources)


def _unsupported(what: str) -> UnsupportedError:
    return UnsupportedError(f"{what} cannot be trained on shares; supported are {SUPPORTED}.")


Found = tuple[nn.Module, list[Any]]


def _relu(input: Any, inplace: bool = False) -> Found:
    return nn.ReLU(), [input]


def _flatten(input: Any, start_dim: int = 0, end_dim: int = -1) -> Found:
    return nn.Flatten(start_dim, end_dim), [input]


def _view(input: Any, *shape: Any) -> Found:
    rows, values = shape[0] if len(shape) == 1 else shape
    # Whether there are so many values in a row is seen when the model is compared with its layers.
    counted = rows == -1 or (_counts_rows(rows) and rows.target is not getattr)
    if not (counted and isinstance(values, int)):
        raise ValueError(shape)
    return nn.Flatten(), [input]


def _add(input: Any, other: Any, *, alpha: float = 1) -> Found:
    if alpha != 1:
        raise ValueError(alpha)
    return Addition(), [input, other]


def _pool(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Found:
    pool = nn.AvgPool2d(
        kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )
    return pool, [input]


def _pool_to(input: Any, output_size: Any) -> Found:
    return nn.AdaptiveAvgPool2d(output_size), [input]


_FUNCTIONS: Mapping[Any, Callable[..., Found]] = {
    functional.relu: _relu,
    torch.relu: _relu,
    "relu": _relu,
    torch.flatten: _flatten,
    "flatten": _flatten,
    torch.reshape: _view,
    "reshape": _view,
    "view": _view,
    operator.add: _add,
    operator.iadd: _add,
    torch.add: _add,
    "add": _add,
    functional.avg_pool2d: _pool,
    functional.adaptive_avg_pool2d: _pool_to,
}
"""What a function, or a tensor's method, is as a layer, from its own arguments."""
