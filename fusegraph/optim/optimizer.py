"""What all optimizers share: groups of parameters with options, and state beside each parameter.

Numbers that schedules change (the rate, the momentum, ...) live in 0-d float64 tensors. A traced step reads them as
inputs, so a changed number needs no new trace. What a number switches on or off (a weight decay of 0 is left out of
the arithmetic) and all other options are guards of the trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from fusegraph import ops
from fusegraph.autograd import no_grad
from fusegraph.dtypes import float64
from fusegraph.errors import GradientError, OptionError, StateError, TraceError
from fusegraph.nn.parameter import clear_grad
from fusegraph.tensor import Tensor, user_error
from fusegraph.trace import configuration_changed, current_trace, suspended

# Options that are kept as tensors. `betas` is a pair of them.
SCALARS = ("lr", "momentum", "weight_decay", "betas")


def _number(name: str, value: float) -> Tensor:
    out = Tensor._make(np.asarray(float(value)))
    out.name = name
    return out


class ParamGroup(dict[str, Any]):
    """The options of one group of parameters, and the parameters under "params".

    Reading a number such as `group["lr"]` gives a float; in a compiled function, the tensor that holds it.
    Writing it takes effect in compiled steps too, without a new trace.
    """

    def __init__(self, options: Mapping[str, Any], label: str = "") -> None:
        super().__init__()
        self._label = label
        for key, value in options.items():
            self[key] = value

    def tensor(self, key: str) -> Any:
        """The 0-d float64 tensor (for "betas": the pair) behind a number; other options as they are."""
        return super().__getitem__(key)

    def uses(self, key: str) -> bool:
        """Whether the number is not 0: what it scales takes part in the step. A trace depends on that."""
        with suspended():
            return float(self[key]) != 0.0

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if key not in SCALARS or current_trace() is not None:
            return value
        return tuple(part.item() for part in value) if isinstance(value, tuple) else value.item()

    def __setitem__(self, key: str, value: Any) -> None:
        if current_trace() is not None:
            raise user_error(
                TraceError, f"option {key!r} is set inside of a compiled function; do it (or call the schedule) outside"
            )
        if key not in SCALARS or value is None:
            if key in self and not _same(super().__getitem__(key), value):
                configuration_changed()
            super().__setitem__(key, value)
        elif key not in self:
            super().__setitem__(key, self._new(key, value))
        else:
            self._write(key, value)

    def _new(self, key: str, value: Any) -> Any:
        name = f"{self._label}{key}"
        return (
            tuple(_number(f"{name}{i + 1}", part) for i, part in enumerate(value))
            if key == "betas"
            else _number(name, value)
        )

    def _write(self, key: str, value: Any) -> None:
        held = super().__getitem__(key)
        if isinstance(held, tuple):
            for part, number in zip(held, value, strict=True):
                part.copy_(float(number))
            return
        switched = (held.item() != 0.0) != (float(value) != 0.0)
        held.copy_(float(value))
        if switched:
            configuration_changed()

    def get(self, key: str, default: Any = None) -> Any:
        """`self[key]`, or `default`."""
        return self[key] if key in self else default

    def items(self) -> Any:
        """Names and values, as reading them gives."""
        return [(key, self[key]) for key in self]

    def values(self) -> Any:
        """Values, as reading them gives."""
        return [self[key] for key in self]

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set several options."""
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def setdefault(self, key: str, default: Any = None) -> Any:
        """`self[key]`, set to `default` where it was not there."""
        if key not in self:
            self[key] = default
        return self[key]


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, (int, float, str, bool, tuple)) and a == b)


def check_option(name: str, value: Any, low: float = 0.0, high: float = float("inf")) -> None:
    """Raise OptionError unless low <= value < high (NaN is outside)."""
    if isinstance(value, (int, float, np.floating, np.integer)) and low <= value < high:
        return
    allowed = f"at least {low:g}" if high == float("inf") else f"in [{low:g}, {high:g})"
    raise user_error(OptionError, f"{name} must be {allowed}, got {value!r}")


class Optimizer:
    """Base of all optimizers. A class gives `_update` (and `_defaults_checked`)."""

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self.defaults = dict(defaults)
        self.param_groups: list[ParamGroup] = []
        self.state: dict[Tensor, dict[str, Any]] = {}
        self._regrouped = 0
        if isinstance(params, Tensor):
            raise user_error(
                OptionError, "an optimizer takes an iterable of parameters, got one tensor; write [tensor]"
            )
        given = list(params)
        if not given:
            raise user_error(
                GradientError,
                f"{type(self).__name__} got no parameters (a model without any, or a generator that was used up?)",
            )
        for group in given if isinstance(given[0], Mapping) else [{"params": given}]:
            self.add_param_group(group)

    # -- groups -------------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add parameters ("params") with options of their own. Raises OptionError; then nothing was added."""
        if not isinstance(param_group, Mapping) or "params" not in param_group:
            raise user_error(OptionError, "a parameter group is a dict with the entry 'params'")
        options = {**self.defaults, **param_group}
        params = param_group["params"]
        options["params"] = [params] if isinstance(params, Tensor) else [_parameter_of(entry) for entry in params]
        taken = {id(param) for group in self.param_groups for param in group["params"]}
        for param in options["params"]:
            self._check_parameter(param, taken)
            taken.add(id(param))
        self._check(options)
        number = len(self.param_groups)
        self.param_groups.append(
            ParamGroup(options, f"{type(self).__name__}.{number}." if number else f"{type(self).__name__}.")
        )
        configuration_changed()

    def _check_parameter(self, param: Any, taken: set[int]) -> None:
        if not isinstance(param, Tensor):
            raise user_error(OptionError, f"an optimizer takes tensors, got {type(param).__name__}")
        if param.is_symbol:
            raise user_error(TraceError, "make the optimizer outside of the compiled function")
        if not param.is_leaf:
            raise user_error(
                GradientError, f"a tensor of shape {list(param.shape)} was computed: only leaves can be optimized"
            )
        if id(param) in taken:
            raise user_error(OptionError, f"parameter {param.name or list(param.shape)} stands in the groups twice")

    def _check(self, options: Mapping[str, Any]) -> None:
        """Raise OptionError for options out of range."""
        check_option("lr", options["lr"])
        check_option("weight_decay", options["weight_decay"])

    # -- stepping -----------------------------------------------------------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters (or make them 0)."""
        for group in self.param_groups:
            for param in group["params"]:
                clear_grad(param, set_to_none)

    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient. Raises GradientError when none has one.

        closure: computes the loss and its gradients; its loss is given back.
        """
        loss = closure() if closure is not None else None
        found = False
        for number, group in enumerate(self.param_groups):
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                found = True
                self._prepare(number, group, params)
                with no_grad():
                    self._update(group, params)
                self._watch_state(number, params)
        if not found:
            raise user_error(
                GradientError,
                f"{type(self).__name__}.step(): no parameter has a gradient; call backward() before it "
                "(or do the parameters not require a gradient?)",
            )
        return loss

    def _prepare(self, number: int, group: ParamGroup, params: list[Tensor]) -> None:
        """Make the state that is not there yet, outside of the trace; tell the trace what the step depends on."""
        with suspended(), no_grad():
            for param in params:
                state = self.state.setdefault(param, {})
                for name, value in self._new_state(group, param).items() if not state else ():
                    state[name] = value
                    value.name = f"{param.name}.{name}" if param.name else name
        trace = current_trace()
        if trace is None:
            return
        trace.consumed_grads.update(map(id, params))
        label = f"{type(self).__name__} group {number}"
        trace.guard(f"the number of groups of {type(self).__name__}", lambda: len(self.param_groups))
        trace.guard(f"the parameters of {label}", lambda: tuple(map(id, group["params"])))
        for key in self.defaults:
            if key in ("momentum", "weight_decay"):
                trace.guard(f"whether {label} uses {key}", partial(group.uses, key))
            elif key not in SCALARS:
                trace.guard(f"{key} of {label}", partial(group.tensor, key))

    def _watch_state(self, number: int, params: list[Tensor]) -> None:
        """A trace holds while the state is in the same tensors."""
        trace = current_trace()
        if trace is not None:
            label = f"the state of {type(self).__name__} group {number}"
            trace.guard(label, lambda: [id(v) for p in params for v in self.state.get(p, {}).values()])

    def _new_state(self, group: ParamGroup, param: Tensor) -> dict[str, Tensor]:
        """The state of `param` before its first step."""
        return {}

    def _update(self, group: ParamGroup, params: list[Tensor]) -> None:
        """Update parameters in place (no gradient is recorded)."""
        raise NotImplementedError

    def _gradient(self, group: ParamGroup, param: Tensor, decay: bool = True) -> Tensor:
        """The gradient, with its sign turned to maximize, plus (with `decay`) weight_decay times the parameter."""
        gradient = param.grad
        assert gradient is not None
        if group.get("maximize"):
            gradient = ops.neg(gradient)
        return gradient + group.tensor("weight_decay") * param if decay and group.uses("weight_decay") else gradient

    def _shared_steps(self, params: list[Tensor]) -> list[tuple[Tensor, list[Tensor]]]:
        """The step counts of `params`, each with the parameters that it is the count of.

        Parameters that have always been updated together share one tensor, so that what is computed from it is
        computed once. One that is left out of a step parts from the others.
        """
        with suspended():
            chosen = set(map(id, params))
            absent = {id(state["step"]) for param, state in self.state.items() if id(param) not in chosen and state}
            shared: dict[float, tuple[Tensor, list[Tensor]]] = {}
            for param in params:
                step = self.state[param]["step"]
                value = step.item()
                if value not in shared:
                    shared[value] = (step_count(value) if id(step) in absent else step, [])
                shared[value][1].append(param)
                if shared[value][0] is not step:
                    self.state[param]["step"] = shared[value][0]
                    self._regrouped += 1
                    configuration_changed()
            for step, _ in shared.values():
                step.name = f"{type(self).__name__}.step"
        trace = current_trace()
        if trace is not None:
            trace.guard(f"which parameters of {type(self).__name__} share a step count", lambda: self._regrouped)
        return list(shared.values())

    # -- saving -------------------------------------------------------------------------------------------------------

    def _numbered(self) -> Iterator[tuple[int, Tensor]]:
        return enumerate(param for group in self.param_groups for param in group["params"])

    def state_dict(self) -> dict[str, Any]:
        """Options and state as plain data, parameters by number (tensors share memory with the optimizer)."""
        number = {id(param): index for index, param in self._numbered()}
        groups = [
            {key: [number[id(param)] for param in value] if key == "params" else value for key, value in group.items()}
            for group in self.param_groups
        ]
        state = {
            number[id(param)]: {name: value.detach() for name, value in entries.items()}
            for param, entries in self.state.items()
            if entries
        }
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over options and (copies of) state.

        Raises StateError when it was saved from other groups; then nothing was changed.
        """
        groups, state = self._checked_state(state_dict)
        params = dict(self._numbered())
        for group, saved in zip(self.param_groups, groups, strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})
        self.state = {}
        for index, entries in state.items():
            self.state[params[index]] = entries
            for name, value in entries.items():
                value.name = f"{params[index].name}.{name}"
        configuration_changed()

    def _checked_state(self, state_dict: Mapping[str, Any]) -> tuple[list[Any], dict[int, dict[str, Tensor]]]:
        try:
            groups, saved = list(state_dict["param_groups"]), dict(state_dict["state"])
        except (KeyError, TypeError) as error:
            raise StateError(f"an optimizer's state has the entries 'state' and 'param_groups' ({error!r})") from None
        sizes = [len(group["params"]) for group in groups]
        own = [len(group["params"]) for group in self.param_groups]
        if sizes != own:
            raise StateError(f"the saved groups have {sizes} parameters, this optimizer's have {own}")
        for group in groups:
            self._check(group)
        params = dict(self._numbered())
        state = {}
        for key, entries in saved.items():
            index = int(key)
            if index not in params:
                raise StateError(f"there is state for parameter {index}, but only {len(params)} parameters")
            state[index] = {name: _copied(name, index, value, params[index]) for name, value in entries.items()}
        return groups, state

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for number, group in enumerate(self.param_groups):
            lines.append(f"  group {number}: {len(group['params'])} parameters")
            lines += [f"    {key}: {value}" for key, value in sorted(group.items()) if key != "params"]
        return "\n".join([*lines, ")"])


def _parameter_of(entry: Any) -> Any:
    """A parameter, or the second of a pair (name, parameter)."""
    return entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry


def _copied(name: str, index: int, value: Any, param: Tensor) -> Tensor:
    array = np.array(value.detach() if hasattr(value, "detach") else value)
    if array.ndim and array.shape != param.shape:
        raise StateError(
            f"state {name!r} of parameter {index} has shape {list(array.shape)}, the parameter {list(param.shape)}"
        )
    return Tensor._make(array.astype(float64 if not array.ndim and name == "step" else param.dtype))


def zeros_for(param: Tensor) -> Tensor:
    """Zeros of `param`'s shape and dtype."""
    return ops.zeros(param.shape, dtype=param.dtype)


def step_count(value: float = 0.0) -> Tensor:
    """A count of steps: 0-d float64."""
    return Tensor._make(np.asarray(float(value)))
