"""A network as one file for elsewhere: ONNX, an exported program or TorchScript, each loaded back and compared.

A file is written under a temporary name, read by the library that will read it elsewhere, and gets its name only after
its scores of real images are those of the network, for one image and for many.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from srr_ext.copying import copy_model
from srr_ext.files import replace_file

Format = Literal["onnx", "exported-program", "torchscript"]
TOLERANCE = 1e-4

_TRACED = 2  # images in the example: torch.export takes a batch of one for a constant


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how it compares with the network.

    Attributes
    ----------
    path : Path
        The file.
    format : {"onnx", "exported-program", "torchscript"}
        What it is.
    n_bytes : int
        Its size.
    batch_sizes : tuple of int
        Numbers of images that it was given at once.
    difference : float
        Largest absolute difference of a score from the network's.
    largest : float
        Largest absolute score of the network, to judge the difference by.
    """

    path: Path
    format: Format
    n_bytes: int
    batch_sizes: tuple[int, ...]
    difference: float
    largest: float


def export(
    model: nn.Module, images: Tensor, path: str | Path, format: Format = "onnx", *, tolerance: float = TOLERANCE
) -> Exported:
    """Write a network to a file that needs none of its code, and check the file.

    Parameters
    ----------
    model : nn.Module
        Maps images [b, ...] to scores [b, ...], for any b. What is written is a copy in evaluation mode, on the CPU;
        the model is left as it was.
    images : Tensor, shape [n, ...]
        At least two, as the network shall get them: normalised. The file must give the scores of the network for the
        first of them alone, and for all of them at once.
    path : str or Path
        The file. One that is there is replaced, in the end.
    format : {"onnx", "exported-program", "torchscript"}, default "onnx"
        ``onnx`` is read by ONNX Runtime and others, ``exported-program`` by ``torch.export.load``, ``torchscript`` by
        ``torch.jit.load`` and from C++ (PyTorch calls it deprecated). The batch size stays free in all of them.
    tolerance : float, default 1e-4
        Largest absolute difference of a score that is accepted.

    Returns
    -------
    Exported

    Raises
    ------
    TypeError
        ``model`` is no module, ``images`` is no tensor, or the scores are not one tensor.
    ValueError
        Fewer than two images, an unknown format, one whose package is missing or that cannot hold this network, or
        scores that differ. Nothing is left behind.
    OSError
        The file cannot be written.

    Notes
    -----
    Of an exported program, the weights are raw bytes beside JSON: the example inputs, which ``torch.export.save`` would
    pickle, are left out, and weights of tensor classes that it would pickle are refused. Stack traces, which hold the
    paths of source files on the machine, are left out of ONNX files and exported programs.
    """
    _check(model, images, format, tolerance)
    kind = _KINDS[format]
    for package in kind.packages:
        try:
            import_module(package)
        except ImportError as error:
            raise ValueError(
                f"format {format} needs {package}, which is not installed or does not load ({error}); "
                f"pip install {' '.join(kind.packages)}"
            ) from error
    network = copy_model(model).cpu().eval().requires_grad_(False)
    images = images.detach().cpu()
    path, sizes = Path(path), (1, len(images))
    wanted = [_wanted(network, images[:n]) for n in sizes]
    with _silent():
        try:
            content = kind.make(network, images[:_TRACED])
        except Exception as error:  # of the tracing, of the conversion, or of the network's own code
            raise ValueError(f"format {format}: this network cannot be written so ({_reason(error)})") from error
    found: list[float] = []

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)
        found.append(_difference(kind, temporary, images, sizes, wanted, format, tolerance))

    replace_file(path, write)
    largest = max(float(scores.abs().max()) for scores in wanted)
    return Exported(path, format, len(content), sizes, found[0], largest)


def suffix_of(format: Format) -> str:
    """Return how the names of files of a format end.

    Parameters
    ----------
    format : {"onnx", "exported-program", "torchscript"}
        Which.

    Returns
    -------
    str
        ``.onnx``, ``.pt2`` or ``.ts``.
    """
    return _KINDS[format].suffix


Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Kind:
    """How a format is made and read back."""

    suffix: str
    packages: tuple[str, ...]
    make: Callable[[nn.Module, Tensor], bytes]
    load: Callable[[Path], Run]


def _check(model: nn.Module, images: Tensor, format: str, tolerance: float) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but is {type(model).__name__}")
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor [n, ...], but is {type(images).__name__}")
    if images.ndim < 1 or len(images) < _TRACED:
        raise ValueError(f"images must be at least {_TRACED}, for two batch sizes, but are {list(images.shape)}")
    if format not in get_args(Format):
        raise ValueError(f"format must be one of {', '.join(get_args(Format))}, but is {format!r}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0, but is {tolerance}")


def _wanted(network: nn.Module, images: Tensor) -> Tensor:
    """Compute the scores that a file must give."""
    try:
        value = network(images)
    except Exception as error:  # code of the user's own, which may raise anything
        raise ValueError(f"images: the model does not run on {_batch(len(images))} ({_reason(error)})") from error
    return _scores(value)


def _scores(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"model must give one tensor of scores, but gives a {type(value).__name__}")
    return value


def _difference(
    kind: _Kind,
    path: Path,
    images: Tensor,
    sizes: tuple[int, ...],
    wanted: list[Tensor],
    format: Format,
    tolerance: float,
) -> float:
    """Load the file and compare its scores with those that are wanted, or raise a ValueError."""
    worst = 0.0
    with _silent():
        try:
            run = kind.load(path)
            found = [run(images[:n]) for n in sizes]
        except Exception as error:  # of whatever reads it, such as a batch size that it does not take
            raise ValueError(f"format {format}: the file was written but does not run ({_reason(error)})") from error
    for n, scores, reference in zip(sizes, found, wanted, strict=True):
        same = scores.shape == reference.shape and scores.dtype == reference.dtype
        difference = float((scores.double() - reference.double()).abs().max()) if same else float("inf")
        if not difference <= tolerance:  # not a number, too
            raise ValueError(
                f"tolerance is {tolerance:g}, but scores of the {format} file differ from the network's by up to "
                f"{difference:.3g} for {_batch(n)}; the largest score is {float(reference.abs().max()):.3g}"
            )
        worst = max(worst, difference)
    return worst


def _program(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Trace the network with the batch size left open, and leave out what describes this machine."""
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network, (example,), dynamic_shapes=shapes)
    program.example_inputs = None
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def _make_onnx(network: nn.Module, example: Tensor) -> bytes:
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["scores"]}
    made = torch.onnx.export(_program(network, example), dynamo=True, external_data=False, verbose=False, **names)
    assert made is not None
    return bytes(made.model_proto.SerializeToString(deterministic=True))


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["scores"], {"images": images.numpy()})[0])


def _make_program(network: nn.Module, example: Tensor) -> bytes:
    program = _program(network, example)
    for name, value in {**program.state_dict, **program.constants}.items():
        if type(value) not in (Tensor, nn.Parameter):
            raise TypeError(f"{name} is a {type(value).__name__}, which would be pickled")
    buffer = io.BytesIO()  # and no path, of which the archive would hold the name
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _load_program(path: Path) -> Run:
    with path.open("rb") as file:  # torch.export.load wants names to end in .pt2
        module = torch.export.load(io.BytesIO(file.read())).module()
    return lambda images: _scores(module(images))


def _make_torchscript(network: nn.Module, example: Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(network, example, check_trace=False), buffer)
    return buffer.getvalue()


def _load_torchscript(path: Path) -> Run:
    module = torch.jit.load(str(path))
    return lambda images: _scores(module(images))


_KINDS: dict[str, _Kind] = {
    "onnx": _Kind(".onnx", ("onnx", "onnxscript", "onnxruntime"), _make_onnx, _load_onnx),
    "exported-program": _Kind(".pt2", (), _make_program, _load_program),
    "torchscript": _Kind(".ts", (), _make_torchscript, _load_torchscript),
}


def _silent() -> AbstractContextManager[Any]:
    """Leave out warnings: what they warn of is what is checked, or that PyTorch calls TorchScript deprecated."""
    return warnings.catch_warnings(action="ignore")


def _batch(n: int) -> str:
    return "one image" if n == 1 else f"{n} images at once"


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
