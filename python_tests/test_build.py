"""The build: what it says of itself, how the ops are registered, and what is built where."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from graph_cases import random_graph

import srr_ext.ops
from srr_ext import _native
from srr_ext.ops import FilterGraphs

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "srr_ext"


def op_examples() -> dict[str, list[tuple]]:
    """Arguments of every op, awkward ones included, as torch.ops takes them."""
    packed = FilterGraphs.from_dense([random_graph(n, 0.1, n) for n in (70, 0, 1, 64)])
    words, n_filters = packed.words, list(packed.n_filters)
    orders = torch.cat([torch.arange(n) for n in n_filters])
    parameter = torch.nn.Parameter(torch.randn(5, 2, 3, 3))
    return {
        "filter_graphs": [
            ([torch.randn(70, 9), torch.randn(3, 2, 2).double(), torch.randn(0, 4)], [0.3] * 3),
            ([torch.randn(70, 9), torch.randn(3, 2)], [0.3, 0.2, 0.1, 0.0]),  # two levels
            ([parameter], [0.1]),
        ],
        "components": [(words, n_filters), (words[:0], [])],
        "covering": [(words, n_filters, 1), (words, n_filters, 2)],
        "trajectories": [(words, n_filters, orders, [70, 0, 0, 5], 0.35, 0.65)],
    }


def test_every_op_has_examples():
    assert set(op_examples()) == set(srr_ext.ops.__all__) - {"FilterGraphs", "filter_graph_levels"}


@pytest.mark.skipif(not _native.AVAILABLE, reason="built with SRR_BUILD=none: no ops are registered")
@pytest.mark.parametrize("op", sorted(op_examples()))
def test_opcheck(op):
    for arguments in op_examples()[op]:
        torch.library.opcheck(getattr(torch.ops.srr_ext, op).default, arguments)


@pytest.mark.skipif(not _native.AVAILABLE, reason="built with SRR_BUILD=none: no ops are registered")
def test_ops_pretend_no_gradient():
    words, kinds = torch.ops.srr_ext.filter_graphs([torch.nn.Parameter(torch.randn(4, 3))], [0.5])
    assert not words.requires_grad and not kinds.requires_grad


@pytest.mark.skipif(not _native.AVAILABLE, reason="built with SRR_BUILD=none: no ops are registered")
@pytest.mark.parametrize(
    ("op", "arguments", "message"),
    [
        ("components", (torch.zeros(3, dtype=torch.int64), [4]), "words must have 4 elements"),
        ("components", (torch.zeros(4), [4]), "words must be a contiguous int64 tensor"),
        ("components", (torch.zeros(0, dtype=torch.int64), [-1]), "n_filters must not be negative"),
        ("components", (torch.zeros(0, dtype=torch.int64), [2**35]), "n_filters must be at most 2147483647 each"),
        ("components", (torch.zeros(0, dtype=torch.int64), [2**31 - 1] * 200), "no more words than int64 can count"),
        ("covering", (torch.zeros(0, dtype=torch.int64), [2**35], 1), "n_filters must be at most 2147483647 each"),
        ("covering", (torch.zeros(4, dtype=torch.int64), [4], 3), "radius must be 1 or 2"),
        (
            "trajectories",
            (torch.zeros(2, dtype=torch.int64), [2], torch.tensor([0, 7]), [2], 0.5, 0.5),
            "must be a permutation",
        ),
        (
            "trajectories",
            (torch.zeros(2, dtype=torch.int64), [2], torch.tensor([0, 1]), [3], 0.5, 0.5),
            "limits must lie in",
        ),
        ("filter_graphs", ([torch.zeros(2, 2, dtype=torch.int32)], [0.1]), "weights must be float16"),
        ("filter_graphs", ([torch.zeros(2, 2)], [float("nan")]), "gamma must be finite"),
        ("filter_graphs", ([torch.zeros(2, 2)] * 2, [0.1] * 3), "gammas must have one entry per layer"),
        ("filter_graphs", ([torch.zeros(2, 2)], []), "gammas must have one entry per layer"),
        ("filter_graphs", ([torch.empty(2**35, 0)], [0.1]), "weights must have at most 2147483647 filters each"),
    ],
)
def test_ops_called_without_their_front_still_check(op, arguments, message):
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.srr_ext, op)(*arguments)


def test_build_info_tells_what_was_built():
    info = _native.build_info()
    assert info["build"] in ("cpu", "cuda", "none")
    assert info["torch"] == torch.__version__
    assert (info["cuda"] is None) == (info["build"] != "cuda")
    assert json.loads(json.dumps(info)) == info
    if _native.AVAILABLE:
        assert info["requested"] in ("auto", "cpu", "cuda")
        assert info["compiler"].split()[0] in ("gcc", "clang")
        assert info["cpu_kernel"] in ("avx512", "avx2", "baseline")
        assert info["torch_target"] == "2.10"


def import_copy(folder: Path, config: dict[str, object] | None, code: str) -> subprocess.CompletedProcess[str]:
    """Run code against a copy of the package's Python files that has no native library."""
    package = folder / "srr_ext"
    package.mkdir()
    for name in ("ops", "reference", "bit_graphs", "_op_arguments", "_native", "transfers"):
        shutil.copy(PACKAGE / f"{name}.py", package)
    (package / "__init__.py").write_text("")
    if config is not None:
        (package / "_build_config.json").write_text(json.dumps(config))
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)


def test_a_build_without_native_code_uses_the_reference_and_says_so(tmp_path):
    code = """
import torch
from srr_ext import _native, ops
graphs = ops.filter_graphs([torch.ones(4, 3)], 0.1)
print(_native.build_info()["build"], ops.components(graphs).tolist(), ops.covering(graphs, 2).tolist())
print([t.tolist() for t in ops.trajectories(graphs, [torch.arange(4)])])
"""
    done = import_copy(tmp_path, {"requested": "none", "build": "none"}, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["none [1] [1]", "[[4.0, 3.0, 2.0, 1.0]]"]
    assert done.stderr.count("<string>:3: RuntimeWarning: srr_ext was built with SRR_BUILD=none") == 1


@pytest.mark.parametrize("config", [None, {"requested": "auto", "build": "cpu"}], ids=["no record", "cpu"])
def test_a_missing_library_is_an_error_that_says_how_to_build_it(tmp_path, config):
    done = import_copy(tmp_path, config, "import srr_ext.ops")
    assert done.returncode != 0
    assert "ImportError: srr_ext's native library _C is missing" in done.stderr
    assert "pip install --no-build-isolation -e ." in done.stderr


@pytest.mark.parametrize(
    ("mode", "expected"), [("none", "building none (SRR_BUILD=none)"), ("cpu", "building cpu (SRR_BUILD=cpu)")]
)
def test_setup_announces_its_choice(mode, expected):
    done = run_setup(mode)
    assert done.returncode == 0, done.stderr
    assert f"srr_ext: SRR_BUILD={mode}, {expected}" in done.stderr


def test_setup_refuses_an_unknown_mode():
    done = run_setup("gpu")
    assert done.returncode != 0
    assert "SRR_BUILD must be one of auto, cpu, cuda, none, got 'gpu'" in done.stderr


def build_without_objects(source: Path, hook: str) -> subprocess.CompletedProcess[str]:
    """Call a hook of the build backend as pip does, with SRR_BUILD=none; the result lies in source/dist."""
    (source / "dist").mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", f"from setuptools import build_meta; build_meta.{hook}('dist')"],
        cwd=source,
        env={**os.environ, "SRR_BUILD": "none"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def clone(tmp_path) -> Path:
    """Copy what a build without objects reads, without any library."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "_build_config.json")
    shutil.copytree(PACKAGE, tmp_path / "srr_ext", ignore=ignored)
    return tmp_path


def record_in(clone: Path) -> str:
    return json.loads((clone / "srr_ext" / "_build_config.json").read_text())["build"]


def test_a_wheel_without_native_code_leaves_the_library_of_the_clone_in_use(clone):
    (clone / "srr_ext" / "_C.cpython-311-x86_64-linux-gnu.so").write_bytes(b"library")
    (clone / "srr_ext" / "_build_config.json").write_text('{"build": "cpu"}')
    done = build_without_objects(clone, "build_wheel")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next((clone / "dist").glob("*.whl"))) as wheel:
        assert json.loads(wheel.read("srr_ext/_build_config.json"))["build"] == "none"
        names = set(wheel.namelist())
        assert not [name for name in names if name.endswith(".so")]
        pages = {f"srr_ext/{part}/{name}" for part in ("report", "comparison") for name in ("page.html.j2", "page.css")}
        assert names >= {"srr_ext/py.typed", "srr_ext/report/macros.html.j2", *pages}
    assert record_in(clone) == "cpu"


@pytest.mark.parametrize("hook", ["build_wheel", "build_editable"])
def test_a_clone_without_a_library_is_recorded_as_such(clone, hook):
    done = build_without_objects(clone, hook)
    assert done.returncode == 0, done.stderr
    assert record_in(clone) == "none"


def test_an_editable_install_decides_for_the_clone(clone):
    (clone / "srr_ext" / "_C.cpython-311-x86_64-linux-gnu.so").write_bytes(b"library")
    (clone / "srr_ext" / "_build_config.json").write_text('{"build": "cpu"}')
    done = build_without_objects(clone, "build_editable")
    assert done.returncode == 0, done.stderr
    assert record_in(clone) == "none"


def run_setup(mode: str, **switches: str) -> subprocess.CompletedProcess[str]:
    """Ask setup.py for the version only, which builds nothing but decides everything."""
    return subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={**os.environ, "SRR_BUILD": mode, **switches},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("mode", "kind", "message"),
    [
        ("cpu", "memory", "SRR_SANITIZE must be address or empty, got 'memory'"),
        ("auto", "address", "SRR_SANITIZE=address goes with SRR_BUILD=cpu, got SRR_BUILD=auto"),
    ],
)
def test_sanitizers_that_cannot_be(mode, kind, message):
    done = run_setup(mode, SRR_SANITIZE=kind)
    assert done.returncode == 1 and message in done.stderr
