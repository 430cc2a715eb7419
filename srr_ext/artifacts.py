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
import reprlib
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from srr_ext.copying import copy_model
from srr_ext.files import DamagedFile, existing, read_json, replace_file, write_json, write_text
from srr_ext.models import Architecture, architecture_of, load_weights
from srr_ext.models.names import reason
from srr_ext.models.timm_models import PREFIX
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

_OPTIONS = {"num_classes", "in_channels", "image_size"}
_LARGEST_NETWORK = 1 << 32  # bytes, of one that a folder names; torchvision's largest has 2.6e9
_WEIGHTS_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


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


def load_dense(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Read a dense network written by :func:`save_dense`.

    Parameters
    ----------
    folder : str or Path
        The run folder.
    model : nn.Module, optional
        A network of the same architecture, for one that :func:`srr_ext.models.create` did not make. It is copied.

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
    network = dense_architecture(folder) if model is None else copy_model(model)
    load_weights(network, weights)
    return network.eval()


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
        The dense network, for one that :func:`srr_ext.models.create` did not make of the package's, torchvision's or
        timm's. It is copied, not changed; its weights do not matter.

    Returns
    -------
    nn.Module
        The pruned network in evaluation mode, on the CPU (with ``model``: where that is), in the saved dtype.

    Raises
    ------
    ValueError
        Missing or damaged files, no ``model`` where it is needed, or files that do not fit the network: the first
        layer or tensor that disagrees is named.

    Notes
    -----
    A folder may come from anywhere: no code of its own runs and no module that it names is imported. A network that
    ``package.module:function`` has made therefore needs ``model``.
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
        raise DamagedFile(f"{weights} is damaged ({error}); copy it again or repeat the run") from error
    expected = small.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if name not in expected:
            raise ValueError(f"{weights} has {name}, which the model lacks; it belongs to another architecture")
        if tensor.shape != expected[name].shape:
            shapes = f"{list(tensor.shape)}, but the smaller model's has {list(expected[name].shape)}"
            raise ValueError(f"{weights}: {name} has shape {shapes}; weights, plan and model do not belong together")
        if tensor.dtype != expected[name].dtype:
            if not {tensor.dtype, expected[name].dtype} <= _WEIGHTS_DTYPES:
                raise DamagedFile(f"{weights}: {name} has dtype {tensor.dtype}, the model {expected[name].dtype}")
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


def dense_architecture(folder: Path, code: str | None = None) -> nn.Module:
    """Make the dense network whose name a folder holds, with new weights.

    Parameters
    ----------
    folder : Path
        The run folder.
    code : str, optional
        The ``package.module:function`` that the caller trusts, for a network that it has made.

    Raises
    ------
    ValueError
        If it was not made by name, or by other code than ``code``, or the record is damaged.
    """
    architecture = _read_architecture(folder)
    trusted = is_code(architecture.name)
    if trusted and architecture.name != code:
        raise ValueError(
            f"{folder} names code that makes its network, {architecture.name!r}, and no folder may choose what is "
            "imported; if you trust it, pass model=, the dense network that it makes, or name it with --model"
        )
    if not trusted and code is not None:
        raise ValueError(f"{folder} holds the network {architecture.name!r}, which {code} does not make")
    with torch.random.fork_rng(range(torch.cuda.device_count())):  # initial weights, which are then replaced
        if trusted:
            return architecture.build()
        try:
            with _Allowance(_LARGEST_NETWORK):
                return architecture.build()
        except ValueError:
            raise
        except Exception as error:  # whatever a library raises that is asked for sizes it was not written for
            raise DamagedFile(f"{folder / ARCHITECTURE}: this network cannot be made ({reason(error)})") from error


def is_code(name: str) -> bool:
    """Whether the name of a network is that of code to import, ``package.module:function``."""
    return ":" in name and not name.startswith(PREFIX)


class _Allowance(TorchFunctionMode):
    """Lets no more than so many bytes of new tensors be made; a size is known before there is memory for it."""

    def __init__(self, n_bytes: int) -> None:
        super().__init__()
        self._left = n_bytes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _MAKERS:
            self._left -= func(*args, **(kwargs | {"device": "meta"})).nbytes
            if self._left < 0:
                raise DamagedFile(f"the network would take more than {_LARGEST_NETWORK >> 30} GiB; pass model= for one")
        return func(*args, **kwargs)


_MAKERS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange, torch.linspace)


def _read_architecture(folder: Path) -> Architecture:
    path = folder / ARCHITECTURE
    if not path.is_file():
        raise ValueError(f"{folder} holds a network that was not made by name; pass model=, the dense network")
    record = read_json(path)
    if not _is_architecture(record):
        raise DamagedFile(f"{path} must hold name and options, but holds {reprlib.repr(record)}")
    return Architecture(record["name"], record["options"])


def _is_architecture(record: Any) -> bool:
    if not isinstance(record, dict) or set(record) != {"name", "options"}:
        return False
    name, options = record["name"], record["options"]
    named = isinstance(name, str) and 0 < len(name) <= 200 and isinstance(options, dict) and options.keys() <= _OPTIONS
    return named and all(type(value) is int and 0 < value < 1 << 31 for value in options.values())


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
