"""What a run leaves behind, and how a pruned network is saved and loaded without pickle.

A run folder holds ``config.json`` (the resolved configuration), ``plan.json``, ``architecture.json`` (how to make the
dense network by name; absent for a network of the user's own), ``model.safetensors``, ``dense.safetensors`` (the dense
network, where the run has trained it; a checkpoint for ``--weights``) and ``dense-3ep.safetensors`` (its weights after
three epochs, where rewinding needs them; for ``--rewind-weights``), the results in ``report.json`` and
``structure.json``, the page ``report.html`` made of them, the log in ``log.jsonl`` and, for TensorBoard, ``events/``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from srr_ext.copying import copy_model
from srr_ext.files import existing, read_json, replace_file, write_json, write_text
from srr_ext.models import Architecture, architecture_of, load_weights
from srr_ext.plan import PruningPlan
from srr_ext.surgery import cut

CONFIG = "config.json"
PLAN = "plan.json"
ARCHITECTURE = "architecture.json"
WEIGHTS = "model.safetensors"
DENSE = "dense.safetensors"
MASKS = "masks.safetensors"
REPORT = "report.json"
STRUCTURE = "structure.json"
PAGE = "report.html"
LOG = "log.jsonl"
CHECKPOINT = "checkpoint"
EVENTS = "events"


def save(folder: str | Path, model: nn.Module, plan: PruningPlan, *, architecture: Architecture | None = None) -> Path:
    """Write a pruned network: its plan, its tensors and how to make the dense one.

    Parameters
    ----------
    folder : str or Path
        Made if it is missing; files of these names that are there are replaced, each at once.
    model : nn.Module
        The pruned network, on any device. Shared tensors are written once.
    plan : PruningPlan
        What was removed from the dense network.
    architecture : Architecture, optional
        How to make the dense network; default what :func:`srr_ext.models.create` recorded in it.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    TypeError
        ``model`` or ``plan`` is something else.
    OSError
        The folder cannot be written.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but is {type(model).__name__}")
    if not isinstance(plan, PruningPlan):
        raise TypeError(f"plan must be a PruningPlan, but is {type(plan).__name__}")
    folder = Path(folder)
    write_architecture(folder, architecture or architecture_of(model))
    write_text(folder / PLAN, plan.to_json())
    write_tensors(folder / WEIGHTS, model)
    return folder


def snapshot_name(moment: object) -> str:
    """Return the name of the file with the weights that the dense network had at a moment of its training."""
    return f"dense-{moment}.safetensors"


def save_dense(
    folder: str | Path, model: nn.Module, snapshots: Mapping[str, Mapping[str, Tensor]] | None = None
) -> Path:
    """Write a dense network: its tensors and how to make it.

    Parameters
    ----------
    folder : str or Path
        Made if it is missing.
    model : nn.Module
        The dense network.
    snapshots : mapping of str to mapping, optional
        By moment of its training, as in ``3ep``, the ``state_dict`` it had then. They are written first: where the
        dense network is, they are.

    Returns
    -------
    Path
        The folder.
    """
    folder = Path(folder)
    write_architecture(folder, architecture_of(model))
    for moment, state in (snapshots or {}).items():
        earlier = copy_model(model)
        earlier.load_state_dict(state)
        write_tensors(folder / snapshot_name(moment), earlier)
    write_tensors(folder / DENSE, model)
    return folder


def write_tensors(path: Path, model: nn.Module) -> None:
    """Write parameters and buffers; shared ones once."""
    replace_file(path, lambda temporary: save_model(model, str(temporary)))


def load_dense(folder: str | Path) -> nn.Module:
    """Read a dense network written by :func:`save_dense`.

    Parameters
    ----------
    folder : str or Path
        The run folder.

    Returns
    -------
    nn.Module
        In evaluation mode, on the CPU.

    Raises
    ------
    ValueError
        Missing or damaged files, or a network that was not made by name.
    """
    folder = Path(folder)
    weights = existing(folder / DENSE)
    model = dense_architecture(folder)
    load_weights(model, weights)
    return model.eval()


def write_architecture(folder: Path, architecture: Architecture | None) -> None:
    """Make a folder, if need be, and write how to make the dense network; nothing for one not made by name."""
    folder.mkdir(parents=True, exist_ok=True)
    if architecture is not None:
        write_json(folder / ARCHITECTURE, {"name": architecture.name, "options": architecture.options})
    else:
        (folder / ARCHITECTURE).unlink(missing_ok=True)  # one of an earlier network would rebuild the wrong one


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Read a pruned network written by :func:`save`, or one that has lost single weights, by ``srr sparsify``.

    Parameters
    ----------
    folder : str or Path
        The run folder.
    model : nn.Module, optional
        The dense network, for one that :func:`srr_ext.models.create` did not make. It is copied, not changed; its
        weights do not matter.

    Returns
    -------
    nn.Module
        The pruned network in evaluation mode, on the CPU (with ``model``: where that is), in the saved dtype.

    Raises
    ------
    ValueError
        Missing or damaged files, no ``model`` where it is needed, or files that do not fit the network: the first
        layer or tensor that disagrees is named.
    """
    folder = Path(folder)
    sparse = (folder / MASKS).is_file() and not (folder / PLAN).is_file()  # which has the shapes of the dense network
    plan = None if sparse else PruningPlan.load(existing(folder / PLAN))
    weights = existing(folder / WEIGHTS)
    dense = dense_architecture(folder) if model is None else model
    return fill(copy_model(dense) if plan is None else cut(dense, plan), weights)


def fill(small: nn.Module, weights: Path) -> nn.Module:
    """Give a network that has its shapes already the tensors of a file, in the dtype of the file.

    Parameters
    ----------
    small : nn.Module
        Changed in place.
    weights : Path
        What :func:`save` or its like wrote.

    Returns
    -------
    nn.Module
        The same, in evaluation mode.

    Raises
    ------
    ValueError
        A damaged file, or one that does not fit the network: the first tensor that disagrees is named.
    """
    try:
        state = load_file(weights)
    except SafetensorError as error:
        raise ValueError(f"{weights} is damaged ({error}); copy it again or repeat the run") from error
    expected = small.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if name not in expected:
            raise ValueError(f"{weights} has {name}, which the model lacks; it belongs to another architecture")
        if tensor.shape != expected[name].shape:
            shapes = f"{list(tensor.shape)}, but the smaller model's has {list(expected[name].shape)}"
            raise ValueError(f"{weights}: {name} has shape {shapes}; weights, plan and model do not belong together")
        if tensor.dtype != expected[name].dtype:
            expected[name].data = expected[name].data.to(tensor.dtype)  # copying into another dtype would round
    table = OrderedDict(state)
    table._metadata = expected._metadata  # type: ignore[attr-defined]  # layer versions: MNASNet refuses without them
    given = {id(expected[name]) for name in state}  # shared tensors were written once
    absent = [
        name for name in small.load_state_dict(table, strict=False).missing_keys if id(expected[name]) not in given
    ]
    if absent:
        raise ValueError(f"{weights} lacks {min(absent)}; it belongs to another architecture")
    return small.eval()


def dense_architecture(folder: Path) -> nn.Module:
    """Make the dense network whose name a folder holds, with new weights.

    Raises
    ------
    ValueError
        If it was not made by name, or the record is damaged.
    """
    architecture = _read_architecture(folder)
    with torch.random.fork_rng(range(torch.cuda.device_count())):  # initial weights, which are then replaced
        return architecture.build()


def _read_architecture(folder: Path) -> Architecture:
    path = folder / ARCHITECTURE
    if not path.is_file():
        raise ValueError(f"{folder} holds a network that was not made by name; pass model=, the dense network")
    record = read_json(path)
    if not isinstance(record, dict) or set(record) != {"name", "options"}:
        raise ValueError(f"{path} must hold name and options, but holds {record!r:.80}")
    return Architecture(record["name"], record["options"])


class RunFolder:
    """The folder of one run, made at its start so that a bad place is refused before any work.

    Parameters
    ----------
    path : Path or None
        An empty or missing folder; None takes the first free ``runs/NAME-001``, ``runs/NAME-002``, ...
    name : str
        For the default place.
    resume : bool, default False
        Take the folder as it is, of a run that goes on.

    Raises
    ------
    ValueError
        The folder is in use or cannot be written.
    """

    def __init__(self, path: Path | None, name: str, *, resume: bool = False) -> None:
        if resume and path is not None:
            self.path, self._made = path, []
            return
        if path is not None and path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"{path} is in use; name a new or empty folder")
        safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
        numbered = (Path("runs") / f"{safe}-{number:03d}" for number in itertools.count(1))
        for place in numbered if path is None else (path,):
            self.path = place
            self._made = [folder for folder in (place, *place.parents) if not folder.exists()]
            try:
                place.mkdir(parents=True, exist_ok=path is not None)
                (place / LOG).touch(exist_ok=False)
                break
            except FileExistsError as error:
                if path is not None:  # else it is an earlier run's, or that of one which starts at this moment
                    raise ValueError(f"{path} is in use; name a new or empty folder") from error
            except OSError as error:
                raise ValueError(f"{place} cannot be written ({error.strerror})") from error

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to ``log.jsonl``."""
        with (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        write_json(self.path / name, value)

    def discard(self) -> None:
        """Remove what this run has made, after a refusal."""
        for name in (CONFIG, PLAN, ARCHITECTURE, WEIGHTS, DENSE, MASKS, REPORT, STRUCTURE, PAGE, LOG):
            (self.path / name).unlink(missing_ok=True)
        for path in self.path.glob(snapshot_name("*")):
            path.unlink()
        shutil.rmtree(self.path / CHECKPOINT, ignore_errors=True)
        shutil.rmtree(self.path / EVENTS, ignore_errors=True)
        for place in self._made:
            with contextlib.suppress(OSError):  # something else has been put there meanwhile
                place.rmdir()
