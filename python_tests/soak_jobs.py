"""What a soak does over and over: one job is one random case, all of it drawn from one seed.

A job raises whatever is wrong, and returns normally otherwise. ``Refused`` is no failure: what was drawn asks for what
cannot be, and was refused with one of the messages that the documentation promises.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import graph_cases
import numpy as np
import oracle
import torch
import torch.nn.functional as F
import zoo
from random_nets import random_net
from torch import Tensor, nn

import srr_ext
from srr_ext import ops, reference
from srr_ext.calibration import Calibration
from srr_ext.exporting import export
from srr_ext.ops import FilterGraphs
from srr_ext.plan import PruningPlan

PATIENCE = 120  # seconds for a child
CONTRACT = 1e-9  # relative error of surgery, float64
NAMED = ("digits_cnn", "lenet5", "resnet20")
# One wants numbers of the user's own, two are published for one network alone.
ALLOCATORS = sorted({*srr_ext.available_allocators()} - {"dict", "li2016_a", "li2016_b"})
OPTIMISERS = (
    lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    lambda p: torch.optim.AdamW(p, lr=0.001),
)
# Messages with which a random method may refuse a random network; any other ValueError is a failure.
REFUSALS = ("out of reach", "no channels of the model may go", "so that there is nothing to fit")

Example = tuple[nn.Module, Tensor]
Job = Callable[[np.random.Generator], None]


class Refused(Exception):
    """What was drawn cannot be, and was refused as promised; the message says which promise."""


def case(seed: int) -> tuple[str, Job, np.random.Generator]:
    """Return the name of the job of a seed, the job, and the numbers that it draws from."""
    rng = np.random.default_rng(seed)
    name = str(rng.choice(list(JOBS), p=np.array(list(SHARES.values())) / sum(SHARES.values())))
    return name, JOBS[name], rng


def run_case(seed: int) -> str:
    """Do the job of a seed and return its name; torch's own numbers follow from the seed, too."""
    name, job, rng = case(seed)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # of methods that say what they cannot do with random weights
        torch.manual_seed(seed)
        job(rng)
    return name


def network(rng: np.random.Generator) -> Example:
    """Draw a network with one tensor of scores: nine of ten are random programs, the others have names."""
    if rng.random() < 0.9:
        return random_net(int(rng.integers(1 << 31)))
    name = str(rng.choice(NAMED))
    channels, size = {"digits_cnn": (1, 8), "lenet5": (1, 28), "resnet20": (3, 32)}[name]
    model = srr_ext.models.create(name, num_classes=4).eval()
    zoo.randomise(model, int(rng.integers(1 << 31)))
    return model, torch.randn(2, channels, size, size)


def images_for(example: Tensor, rng: np.random.Generator) -> Calibration:
    """Draw batches of images with labels of four classes."""
    shape = (4, *example.shape[1:])

    def batches(n: int) -> list[tuple[Tensor, Tensor]]:
        return [(torch.randn(shape), torch.from_numpy(rng.integers(0, 4, len(example) + 2))) for _ in range(n)]

    return Calibration(batches(2), batches(1))


def method(rng: np.random.Generator) -> dict[str, Any]:
    """Draw a pruning method, its target and its options, as arguments of ``make_plan``."""
    quantity = str(rng.choice(["keep_macs", "keep_params", "keep_channels"]))
    return {
        "allocator": str(rng.choice(ALLOCATORS)),
        "selector": str(rng.choice(srr_ext.available_selectors())),
        quantity: float(rng.uniform(0.45, 1.0)),
        "gamma": "auto" if rng.random() < 0.7 else float(rng.uniform(0.01, 0.3)),
        "distance": str(rng.choice(["rms", "euclidean"])),
        "streams": str(rng.choice(["keep", "prune"])),
        "floor": float(rng.choice([0.0, 0.1, 0.25])),
        "round_to": int(rng.choice([1, 1, 2])),
        "node_order": str(rng.choice(["selector", "random", "degree"])),
        "seed": int(rng.integers(1000)),
    }


def planned(rng: np.random.Generator) -> tuple[nn.Module, Tensor, PruningPlan, dict[str, Any]]:
    """Draw a network and a method, and plan."""
    model, example = network(rng)
    arguments = method(rng) | {"data": images_for(example, rng)}
    with refusing():
        return model, example, srr_ext.make_plan(model, example, **arguments), arguments


@contextmanager
def refusing() -> Iterator[None]:
    """Make a refusal that may be a `Refused`."""
    try:
        yield
    except ValueError as error:
        promised = next((message for message in REFUSALS if message in str(error)), None)
        if promised is None:
            raise
        raise Refused(promised) from error


def prune(rng: np.random.Generator) -> None:
    """Plan by a random method, cut, and compare with the oracle that shares no code; plans repeat byte for byte."""
    model, example, plan, arguments = planned(rng)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = srr_ext.apply_plan(model, plan, example)
    agree(srr_ext.verify(model, plan, example), "verify")
    agree(oracle.exactness(model, plan, example), "the oracle")
    assert sum(p.numel() for p in small.parameters()) == plan.cost["params"]["pruned"], "parameters predicted otherwise"
    for quantity, keep in plan.target.items():
        cost = plan.cost.get(quantity)  # of channels there is none
        assert cost is None or cost["pruned"] <= keep * cost["dense"], f"{quantity} above the target"
    assert PruningPlan.from_json(plan.to_json()) == plan, "the plan's JSON is another plan"
    if rng.random() < 0.2:
        again = srr_ext.make_plan(model, example, **arguments)
        assert again.to_json() == plan.to_json(), "the same call makes another plan"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "the model changed"


def cut_anything(rng: np.random.Generator) -> None:
    """Cut arbitrary channels of a module of the zoo, or of a random network."""
    entries = zoo.load()
    if rng.random() < 0.5:
        entry = entries[str(rng.choice(sorted(entries)))]
        (model, example), training = entry.build(), not entry.random_training
    else:
        (model, example), training = random_net(int(rng.integers(1 << 31))), True
    plan = oracle.random_plan(model, example, int(rng.integers(1 << 31)), float(rng.uniform(0.1, 0.8)))
    agree(oracle.exactness(model, plan, example, training=training), "the oracle")


def graph_ops(rng: np.random.Generator) -> None:
    """Compute on random graphs natively and by the reference."""
    sizes = rng.integers(0, 90, size=int(rng.integers(0, 5)))
    densities = [float(rng.choice([0.0, 1 / max(n, 1), 3 / max(n, 1), 0.3, 1.0])) for n in sizes]
    graphs = FilterGraphs.from_dense(
        [graph_cases.random_graph(int(n), d, int(rng.integers(1 << 31))) for n, d in zip(sizes, densities, strict=True)]
    )
    orders = [rng.permutation(int(n)) for n in sizes]
    assert torch.equal(ops.components(graphs), reference.components(graphs)), "components"
    for radius in (1, 2):
        assert torch.equal(ops.covering(graphs, radius), reference.covering(graphs, radius)), f"covering {radius}"
    limits = [int(rng.integers(0, n + 1)) for n in sizes]
    found, wanted = (part.trajectories(graphs, orders, limits=limits) for part in (ops, reference))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)), "trajectories"


def weight_ops(rng: np.random.Generator) -> None:
    """Make filter graphs of random weights of any type, natively and by the reference."""
    types = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    weights = []
    for _ in range(int(rng.integers(0, 4))):
        shape = [int(rng.integers(0, 80)), *rng.integers(1, 6, size=int(rng.integers(0, 3))).tolist()]
        weight = torch.randn(shape)
        if len(weight) > 2 and rng.random() < 0.5:
            weight[1], weight[2] = 0, weight[0]
        weights.append(weight.to(types[int(rng.integers(len(types)))]))
    gammas = [float(rng.uniform(0.0, 1.2)) for _ in weights]
    levels = [gammas, [0.9 * gamma for gamma in gammas]]
    found, wanted = (part.filter_graph_levels(weights, levels) for part in (ops, reference))
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours.words, theirs.words) and ours.zero_filters == theirs.zero_filters, "filter graphs"


def save_and_load(rng: np.random.Generator) -> None:
    """Write a pruned network and read it back: the same tensors, the same scores."""
    model, example, plan, _ = planned(rng)
    small = srr_ext.apply_plan(model, plan, example)
    with tempfile.TemporaryDirectory() as folder:
        srr_ext.save(folder, small, plan)
        loaded = srr_ext.load(folder, model=model)
    found, wanted = loaded.state_dict(), small.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted), "tensors"
    with torch.no_grad():
        assert torch.equal(loaded(example), small.eval()(example)), "scores"


def train_on(rng: np.random.Generator) -> None:
    """Cut a network with its optimiser in the midst of training, and go on; or give what is left new weights."""
    model, example, plan, arguments = planned(rng)
    optimiser = OPTIMISERS[int(rng.integers(len(OPTIMISERS)))](model.parameters())
    labels = torch.from_numpy(rng.integers(0, 4, len(example)))

    def step(network: nn.Module, by: torch.optim.Optimizer) -> None:
        by.zero_grad()
        F.cross_entropy(network(example), labels).backward()
        by.step()

    step(model, optimiser)
    small = srr_ext.apply_plan(model, plan, example)
    twin = srr_ext.prune_optimizer(optimiser, model, small, plan)
    for parameter, state in twin.state.items():
        shapes = {tuple(value.shape) for value in state.values() if isinstance(value, Tensor) and value.numel() > 1}
        assert shapes <= {tuple(parameter.shape)}, "state of another shape than its parameter"
    step(small, twin)
    if rng.random() < 0.3:
        with refusing():  # steps on random numbers may make a network that computes none
            updated = srr_ext.update_weights(model, small, plan, example, "reconstruct", data=arguments["data"])
        assert all(bool(p.isfinite().all()) for p in updated.parameters()), "weights that are not finite"


def write_torchscript(rng: np.random.Generator) -> None:
    """Write a pruned network as TorchScript, which is read back and compared; in a child, for PyTorch keeps it all.

    It frees nothing that it ever compiled: a loop of tracing and loading alone grows by 0.2 MiB a time.
    """
    model, example, plan, _ = planned(rng)
    small = srr_ext.apply_plan(model, plan, example)

    def write() -> None:
        with tempfile.TemporaryDirectory() as folder:
            export(small, example, Path(folder) / "net.ts", "torchscript", tolerance=1e-3)

    in_a_child(write)


def in_a_child(work: Callable[[], None]) -> None:
    """Do something in a copy of this process, and raise here what it raises there, or if it takes too long."""
    forked = multiprocessing.get_context("fork")
    said, say = forked.Pipe(duplex=False)

    def run() -> None:
        try:
            work()
            say.send("")
        except Exception:
            say.send(traceback.format_exc())

    child = forked.Process(target=run)
    child.start()
    try:
        say.close()  # so that its death is an end of the file
        problem = said.recv() if said.poll(PATIENCE) else f"nothing came of it in {PATIENCE} s"
    except EOFError:
        problem = "it ended without a word"
    finally:
        child.kill()
        child.join()
        said.close()
    assert not problem, f"in a child: {problem}"


def agree(error: float, who: str) -> None:
    """Raise unless an error keeps the contract of surgery; NaN does not."""
    assert error <= CONTRACT, f"{who} finds a relative error of {error:.3g}"


JOBS: dict[str, Job] = {
    "prune": prune,
    "cut anything": cut_anything,
    "graph ops": graph_ops,
    "weight ops": weight_ops,
    "save and load": save_and_load,
    "train on": train_on,
    "torchscript": write_torchscript,
}
SHARES = {  # how often each is drawn

    "prune": 40, "cut anything": 20, "graph ops": 10, "weight ops": 10, "save and load": 10, "train on": 10,
    "torchscript": 1,
}  # fmt: skip
