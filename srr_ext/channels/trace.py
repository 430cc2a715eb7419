"""Run a model on labels: intercept every tensor operation of an ordinary forward pass and keep labels beside it.

The model really runs, on the example inputs, so any Python a model contains is followed along the branch taken, and
sizes are plain integers; there is no symbolic trace that a model could break.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from srr_ext.channels.calls import Call, Step, operation_name, plain_numbers
from srr_ext.channels.labels import Labels, LabelSpace, class_axis
from srr_ext.channels.records import Layer, Role, Side
from srr_ext.channels.rules import METADATA, rule_for, uses_values
from srr_ext.inputs import detached, run, tensors_in


@dataclass(frozen=True, eq=False)
class AxisNote:
    """Labels along one side of a module's weight."""

    module: str
    side: Side
    role: Role
    labels: Tensor


@dataclass
class Notes:
    """What passes over one model find about its modules."""

    axes: dict[tuple[str, Side], AxisNote] = field(default_factory=dict)
    fixed_inputs: set[str] = field(default_factory=set)  # layers that also run on channels that never change
    # (module, parameter) -> operation that read it although it is not the module's own
    borrowed: dict[tuple[str, str], str] = field(default_factory=dict)


class LabelTracer(TorchFunctionMode):
    """Carries labels through one forward pass.

    Parameters
    ----------
    model : nn.Module
        The model; it is run, so pass a copy.
    space : LabelSpace
        Where labels live and merge; shared between passes over the same model.
    notes : Notes
        What earlier passes noted, and where this one adds. A module that runs again keeps its labels.
    ignored : frozenset of str
        Modules whose outputs stay whole.
    """

    def __init__(
        self,
        model: nn.Module,
        space: LabelSpace,
        notes: Notes,
        ignored: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.model, self.space, self.notes, self.ignored = model, space, notes, ignored
        self.modules = dict(model.named_modules())
        self.names = {module: name for name, module in self.modules.items()}
        self.layers: dict[str, Layer] = {}
        self.steps: list[Step] = []
        self.reached: set[str] = set()
        self.numbers: list[int | float] = []  # plain numbers among the model's outputs
        self.reading: list[Tensor] = []  # labels read by the call in flight; left over if it fails
        self.reading_in = ""  # the module that makes it
        self.inside = 0
        self._stack: list[str] = []
        self._labels: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._computed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._owners: dict[int, list[tuple[str, str]]] = {}
        for name, module in self.modules.items():
            for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                self._owners.setdefault(id(parameter), []).append((name, attribute))

    # -- running ------------------------------------------------------------------------------------------------

    def trace(self, example_inputs: Any) -> None:
        """Run the model once and pin whatever reaches its outputs."""
        with undisturbed(self.model), self._module_stack(), self, _Unseen(self):
            output = run(self.model, detached(example_inputs))
        for tensor in tensors_in(output):
            labels = self.labels(tensor)
            if labels is not None:
                self.space.pin(labels.base, "model output")
        for note in self.notes.axes.values():
            for attribute in ("weight", "bias") if note.side == "out" else ("weight",):
                reader = self.notes.borrowed.get((note.module, attribute))
                if reader:
                    self.space.pin(note.labels, f"{reader} reads {note.module}.{attribute} from outside")
        self.numbers = plain_numbers(output)

    @contextmanager
    def _module_stack(self) -> Iterator[None]:
        # The hooks see every module of the process: other threads may be running theirs.
        def enter(module: nn.Module, _: Any) -> None:
            if module in self.names:
                self._stack.append(self.names[module])
                self.reached.add(self.names[module])

        def leave(module: nn.Module, _args: Any, _output: Any) -> None:
            if module in self.names:
                self._stack.pop()

        hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation_name(function)[0] in METADATA:
            return function(*args, **(kwargs or {}))
        call = Call(self, function, args, dict(kwargs or {}))
        if call.name in ("batch_norm", "instance_norm") and self.model.training:
            # A training pass is run for its branches; batch statistics of one image are an error or noise.
            call = self._with_running_statistics(call)
        if not self._concerns(call):
            with self._inside_call():
                call.result = function(*call.args, **call.kwargs)
            self._note_computed(call)
            return call.result
        read = self.reading = [labels.base for labels in call.labelled]
        self.reading_in = self.where
        with self._inside_call():
            call.result = function(*call.args, **call.kwargs)
            self.reading = []
            results = call.tensors(call.result)
            if not results and getattr(function, "__name__", "") == "__get__":
                return call.result  # a property that tells a shape, a type or a device
            with no_dispatch():
                made = self._apply_rule(call, results)
        if read or any(labels is not None for labels in made):
            pairs = zip(results, made, strict=True)
            outcome = [(value.shape, None if labels is None else labels.base) for value, labels in pairs]
            with no_dispatch():
                self.record(Step(call.name, self.where, read, outcome, call.constants() if uses_values(call) else []))
        return call.result

    def record(self, step: Step) -> None:
        """Append to the journal."""
        self.steps.append(step)

    @contextmanager
    def _inside_call(self) -> Iterator[None]:
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def _apply_rule(self, call: Call, results: list[Tensor]) -> list[Labels | None]:
        """Label the results of a call; a call that does not fit its rule pins what it reads."""
        problem = "is used in a way that is not understood"
        try:
            outcome = rule_for(call)(self, call)
        except Exception as error:  # a call in a form that its rule does not foresee
            outcome, problem = [], f"could not be followed ({type(error).__name__})"
        if not isinstance(outcome, list):
            outcome = [None] * len(results) if outcome is None else [outcome]
        shapes = [
            value.shape if labels is None else labels.shape for value, labels in zip(results, outcome, strict=False)
        ]
        if len(outcome) != len(results) or shapes != [value.shape for value in results]:
            for operand in call.labelled:
                self.space.pin(operand.base, f"operation {call.name} {problem}")
            outcome = [None] * len(results)
        made = [
            labels if labels is not None and bool(labels.base.any()) else None for labels in outcome
        ]  # all KEPT: fixed
        for value, labels in zip(results, made, strict=True):
            if labels is not None:
                class_axis(self.space, labels.base)  # removals take whole slices of every activation
                before = self.labels(value)
                if before is not None and labels.lost_zero and not before.lost_zero:
                    self.space.pin(before.base, f"{labels.lost_zero} in place")  # views of the memory count on zeros
                self._labels[value] = labels
            elif not call.in_place:
                self._labels.pop(value, None)
        self._note_borrowed(call)
        self._note_computed(call)
        return made

    def _note_computed(self, call: Call) -> None:
        """Remember unlabelled results that activations went into."""
        if call.labelled or any(self.is_computed(tensor) for tensor in call.fixed):
            for value in call.tensors(call.result):
                if self.labels(value) is None:
                    self._computed[value] = True

    def _concerns(self, call: Call) -> bool:
        return bool(call.labelled) or any(id(tensor) in self._owners for tensor in call.fixed)

    @staticmethod
    def _with_running_statistics(call: Call) -> Call:
        # F.batch_norm(input, running_mean, running_var, weight, bias, training, ...); instance_norm: use_input_stats.
        flag = "training" if call.name == "batch_norm" else "use_input_stats"
        if call.get(1, "running_mean") is not None:
            args = list(call.args)
            if len(args) > 5:
                args[5] = False
            else:
                call.kwargs[flag] = False
            call.args = tuple(args)
        return call

    def _note_borrowed(self, call: Call) -> None:
        """Remember parameters that anything but their own layer's operation reads."""
        running = self._stack[-1] if self._stack else ""
        for tensor in call.fixed:
            for module, attribute in self._owners.get(id(tensor), ()):
                own = module == running and (module in self.layers or (module, "out") in self.notes.axes)
                if not own and call.tensors(call.result):
                    self.notes.borrowed.setdefault((module, attribute), call.name)

    @property
    def operations(self) -> list[tuple[str, str]]:
        """Names of the labelled operations and of the modules they ran in, in order."""
        return [(step.name, step.module) for step in self.steps]

    # -- what rules use -----------------------------------------------------------------------------------------

    @property
    def where(self) -> str:
        """Qualified name of the module that is running."""
        return self._stack[-1] if self._stack else ""

    def labels(self, tensor: Any) -> Labels | None:
        """Labels of a tensor, None if nothing in it is removable."""
        return self._labels.get(tensor) if isinstance(tensor, Tensor) else None

    def is_computed(self, tensor: Tensor) -> bool:
        """Whether activations went into an unlabelled tensor."""
        return tensor in self._computed

    def describe(self, tensor: Tensor) -> str:
        """Name a fixed tensor for a reason."""
        owners = self._owners.get(id(tensor))
        return f"parameter {'.'.join(filter(None, owners[0]))}" if owners else "a fixed tensor of that size"

    def running_module(self, kinds: tuple[type[nn.Module], ...]) -> str | None:
        """Return the module that is running if it is of one of these kinds."""
        name = self.where
        return name if self._stack and isinstance(self.modules[name], kinds) else None

    def layer_of(self, call: Call, kind: type[nn.Module]) -> str | None:
        """Return the module that owns the call's weight and bias, if it is of this kind and alone in owning them."""
        weight, bias = call.get(1, "weight"), call.get(2, "bias")
        owners = self._owners.get(id(weight), [])
        if len(owners) != 1 or owners[0][1] != "weight" or not isinstance(self.modules[owners[0][0]], kind):
            return None
        name = owners[0][0]
        if bias is not None and self._owners.get(id(bias), []) != [(name, "bias")]:
            return None
        return name

    def note_layer(
        self,
        module: str,
        kind: Any,
        n_in: int,
        n_out: int,
        positions: int = 0,
        groups: int = 1,
        whole_groups: bool = False,
        kernel: int = 1,
        tensors: int | None = None,
    ) -> None:
        """Record the module's shape; positions of repeated calls add up."""
        if tensors is None:
            tensors = int(getattr(self.modules[module], "bias", None) is not None)
        before = self.layers.get(module)
        positions += before.positions if before else 0
        self.layers[module] = Layer(module, kind, n_in, n_out, groups, whole_groups, kernel, positions, tensors)

    def note_axis(self, module: str, side: Side, role: Role, labels: Tensor) -> Tensor:
        """Record the labels along one side of a weight; a module that runs again unites the old and the new."""
        note = self.notes.axes.setdefault((module, side), AxisNote(module, side, role, labels))
        if note.labels is not labels and note.labels.shape == labels.shape:
            self.space.unite(note.labels, labels, f"{module} also runs on channels that never change")
        return note.labels

    def note_input(self, module: str, labels: Labels | None, dim: int, count: int) -> Tensor | None:
        """Record which labels a layer reads along a dimension; None if its input is fixed."""
        if labels is None:
            note = self.notes.axes.get((module, "in"))
            if note is not None:
                self.space.pin(note.labels, f"{module} also runs on channels that never change")
            self.notes.fixed_inputs.add(module)
            return None
        if labels.lost_zero:
            self.space.pin(labels.base, f"{labels.lost_zero} does not keep removed channels at zero before {module}")
        flat = labels.flat(dim)
        if module in self.notes.fixed_inputs:
            self.space.pin(flat, f"{module} also runs on channels that never change")
        return self.note_axis(module, "in", "consumer", flat)

    def produce(self, module: str, count: int) -> Tensor:
        """Labels of a layer's outputs: new ones the first time it runs."""
        note = self.notes.axes.get((module, "out"))
        if note is None:
            note = self.notes.axes[module, "out"] = AxisNote(module, "out", "producer", self.space.new(count))
        if module in self.ignored:
            self.space.pin(note.labels, "ignored by request")
        return note.labels


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run without gradients or warnings, and put the random state and the model's buffers back afterwards."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        for buffer, value in before:
            buffer.copy_(value)


class _Unseen(TorchDispatchMode):
    """Notices operations that reach the dispatcher without passing through an intercepted function.

    Scripted modules do this, for example. What they read is pinned: nothing else is known about it.
    """

    def __init__(self, tracer: LabelTracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._tracer.inside:
            for tensor in Call.tensors((args, kwargs)):
                labels = self._tracer.labels(tensor)
                if labels is not None:
                    self._tracer.space.pin(labels.base, f"read by {function} in code that cannot be followed")
        return function(*args, **kwargs)
