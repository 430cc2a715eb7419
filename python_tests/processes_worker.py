"""What test_processes.py lets torchrun start: every process does all of this and writes what it has found.

    torchrun --nproc-per-node 2 processes_worker.py FOLDER
    torchrun --nproc-per-node 2 processes_worker.py FOLDER compiled

``trained`` is also what the test itself calls, alone, for what it compares with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from srr_ext.channels import analyze_channels
from srr_ext.data import TensorData
from srr_ext.data.tensors import Split
from srr_ext.graph import select_groups
from srr_ext.processes import Disagreement, Processes, processes, together
from srr_ext.sparsity import Masks
from srr_ext.training import (
    SparseConfig,
    TrainConfig,
    evaluate_topk,
    make_penalty,
    recalibrate_batch_norm,
    train,
)
from srr_ext.training.synchronised import synchronised_batch_norm

CLASSES, SIDE = 5, 6
PLAIN = TrainConfig(epochs=3, batch_size=16, lr=0.05, weight_decay=1e-3, precision="fp32", channels_last=False)
ADAM = replace(PLAIN, optimizer="adamw", nesterov=False, lr=1e-3)
RECIPES = {
    "plain": PLAIN,
    "batches of 7": replace(PLAIN, batch_size=7),  # of which no two or three processes have the same share
    "one batch": replace(PLAIN, batch_size=100, epochs=6),
    "smooth": replace(PLAIN, label_smoothing=0.1, schedule="step", milestones=(1.0, 2.0)),
    "adamw": ADAM,
    "clipped": replace(PLAIN, clip_norm=0.05),
    "average": replace(PLAIN, ema=0.9),
    "taught": replace(PLAIN, distill=0.7),
    "channels last": replace(PLAIN, channels_last=True),
    "bf16": replace(ADAM, precision="bf16"),
    "masked": replace(PLAIN, ema=0.8, clip_norm=1.0),
    "frozen": PLAIN,
    "late": replace(PLAIN, epochs=4),
    "penalty": SparseConfig(epochs=3, batch_size=16, precision="fp32", penalty="group_lasso", strength=0.1),
    "flat": PLAIN,
}


def some_images(n: int = 53, *, augmented: bool = True) -> TensorData:
    """Seeded noise; 53 is no multiple of 2 or 3, nor are most of its rests."""
    generator = torch.Generator().manual_seed(3)

    def split(count: int) -> Split:
        pixels = torch.randint(256, (count, 2, SIDE, SIDE), generator=generator, dtype=torch.uint8)
        return Split(pixels, torch.randint(CLASSES, (count,), generator=generator))

    more: dict[str, Any] = {"crop": 1, "flip": True, "cutout": 3} if augmented else {}
    names = tuple(map(str, range(CLASSES)))
    return TensorData("noise", split(n), split(13), split(31), names, (0.5, 0.4), (0.3, 0.2), **more)


def net(seed: int = 0, drop: float = 0.0) -> nn.Module:
    """Convolutions and normalisations with and without weights, and a head."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.Tanh(),  # smooth, so that rounding stays rounding
        nn.Conv2d(6, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8, affine=False, momentum=None),
        nn.Tanh(),
        nn.Dropout(drop),
        nn.Flatten(),
        nn.Linear(32, 12, bias=False),  # one before batch normalisation is noise to adamw
        nn.BatchNorm1d(12),
        nn.Tanh(),
        nn.Linear(12, CLASSES),
    )


class Unused(nn.Module):
    """A network with a layer that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.used = net()
        torch.manual_seed(4)
        self.spare = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def trained(name: str, recipe: TrainConfig | None = None) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train as a recipe of this name says, or another one likewise."""
    model = net()
    extras: dict[str, Any] = {}
    if name == "taught":
        extras["teacher"] = net(seed=9)
    elif name == "masked":
        generator = torch.Generator().manual_seed(1)
        weights = {key: p for key, p in model.named_parameters() if p.ndim > 1}
        extras["masks"] = Masks({k: torch.rand(p.shape, generator=generator) < 0.5 for k, p in weights.items()})
    elif name == "frozen":
        model[0].requires_grad_(False)
    elif name == "late":
        extras["begin"] = 5
    elif name == "flat":
        model = nn.Sequential(nn.Flatten(), nn.Linear(2 * SIDE * SIDE, CLASSES))
    elif name == "penalty":
        groups = select_groups(analyze_channels(model.eval(), torch.zeros(1, 2, SIDE, SIDE)))
        extras["after_step"] = make_penalty(RECIPES[name], groups, model).step  # type: ignore[arg-type]
    history = train(model, some_images(), recipe or RECIPES[name], device="cpu", seed=7, **extras)
    return model, history


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.detach().clone().contiguous() for key, tensor in model.state_dict().items()}


class Shelf:
    """Keeps the states of a training; stops it when it has as many as wanted."""

    def __init__(self, until: int = 10**6) -> None:
        self.saved: list[dict[str, Tensor]] = []
        self.until = until

    def load(self) -> dict[str, Tensor] | None:
        return self.saved[-1] if self.saved else None

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        self.saved.append({name: tensor.detach().clone() for name, tensor in tensors.items()})
        if len(self.saved) == self.until:
            raise KeyboardInterrupt


def say(here: Processes) -> dict[str, Any]:
    """Let the processes exchange words."""
    found: dict[str, Any] = {"rank": here.rank, "count": here.count, "first": here.first}
    found["sum"] = here.sum(2.0**53 - 8 if here.first else 1.0, 0.5 * here.rank)
    found["gathered"] = here.gather(torch.tensor([[here.rank, 10]], dtype=torch.int64)).tolist()
    found["states alike"] = here.gather(torch.random.get_rng_state()).shape[0]
    found["from first"] = here.from_first(lambda: {"words": ["ä", here.rank], "nothing": None, "many": "x" * 100_000})
    found["nothing"] = here.from_first(lambda: None)
    here.agree("numbers", b"same")
    try:
        here.agree("colour of the bike shed", b"red" if here.rank != here.count - 1 else b"blue")
        found["disagreement"] = ""
    except Disagreement as error:
        found["disagreement"] = str(error)
    here.wait()
    return found


SHAPES: dict[str, tuple[tuple[int, ...], Callable[[int], nn.Module]]] = {
    "1d": ((10, 4), nn.BatchNorm1d),
    "1d, places": ((10, 4, 3), nn.BatchNorm1d),
    "2d": ((11, 3, 4, 5), nn.BatchNorm2d),
    "3d": ((7, 3, 2, 4, 5), nn.BatchNorm3d),
    "no affine": ((11, 3, 4, 5), lambda n: nn.BatchNorm2d(n, affine=False)),
    "plain mean": ((11, 3, 4, 5), lambda n: nn.BatchNorm2d(n, momentum=None)),
    "no statistics": ((11, 3, 4, 5), lambda n: nn.BatchNorm2d(n, track_running_stats=False)),
    "an image each": ((3, 5), nn.BatchNorm1d),
    "far from zero": ((64, 3, 4, 4), lambda n: nn.BatchNorm2d(n, eps=1e-3, momentum=0.3)),
}


def normalise(here: Processes) -> dict[str, Any]:
    """Compare batch normalisation of the shares with that of the whole; return the largest differences."""
    shapes = dict(SHAPES)
    from timm.layers import BatchNormAct2d

    shapes["timm"] = ((9, 4, 3, 3), lambda n: BatchNormAct2d(n, act_layer=nn.Tanh))
    found: dict[str, Any] = {}
    for name, (shape, make) in shapes.items():
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            found[f"{name}, {str(dtype)[6:]}"] = _normalise(here, shape, make, dtype)
    return found


def _normalise(
    here: Processes, shape: tuple[int, ...], make: Callable[[int], nn.Module], dtype: torch.dtype
) -> dict[str, float]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = x * 0.5 + (100 if shape[0] == 64 else 1)
    toward = torch.randn(shape, generator=generator, dtype=torch.float64)
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    x, toward = x.to(dtype), toward.to(dtype)
    results = []
    for share in (slice(None), here.share):
        torch.manual_seed(0)
        layer = make(shape[1]).to(kept)
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        reference = share == slice(None)
        if reference:
            layer, part = layer.double(), x.double().clone().requires_grad_()
        else:
            part = x[share].clone().requires_grad_()
        parts = []
        for _ in range(2):  # the running statistics of two steps
            with synchronised_batch_norm(Processes() if reference else here):
                y = layer(part)
            parts.append(y)
        (y * toward[share].to(y.dtype)).sum().backward()
        grads = [p.grad.double() for p in layer.parameters() if p.grad is not None]
        if not reference:
            grads = [here.gather(grad).sum(0) for grad in grads]
        assert part.grad is not None
        results.append((y.detach(), part.grad, grads, [b.double() for b in layer.buffers()], y.dtype))
    (y, dx, dw, running, _), (y_here, dx_here, dw_here, running_here, kind) = results
    mine = here.share

    def far(one: Tensor, other: Tensor) -> float:
        return float((one.double() - other.double()).abs().max() / (1 + one.double().abs().max()))

    return {
        "y": far(y[mine], y_here),
        "dx": far(dx[mine], dx_here),
        "dw": max([far(a, b) for a, b in zip(dw, dw_here, strict=True)], default=0.0),
        "running": max([far(a, b) for a, b in zip(running, running_here, strict=True)], default=0.0),
        "kind": float(kind == dtype),
    }


def stand_still(here: Processes) -> dict[str, Any]:
    """In evaluation mode nothing is exchanged: the shares need not even come here together."""
    layer, x = nn.BatchNorm2d(3).eval(), torch.randn(4, 3, 2, 2)
    nn.init.constant_(layer.get_buffer("running_mean"), 0.5)
    plain = layer(x)
    if here.first:
        with synchronised_batch_norm(here):
            return {"alike": torch.equal(layer(x), plain)}
    return {"alike": True}


def drop(here: Processes) -> list[float]:
    """Return what a process has dropped of the same image, in the first step."""
    images, seen = some_images(augmented=False), list[Tensor]()
    same = replace(images, train=Split(images.train.images[:1].repeat(12, 1, 1, 1), torch.zeros(12, dtype=torch.int64)))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(2 * SIDE * SIDE, CLASSES))
    model[1].register_forward_hook(lambda module, _, out: seen.append(out) if module.training else None)
    train(model, same, replace(PLAIN, epochs=1, batch_size=12), device="cpu", seed=7)
    return (seen[0][0] == 0).float().tolist()


def go_on(here: Processes) -> dict[str, Any]:
    """Stop a training with drop-out, of which all is kept, and go on with it."""
    recipe = replace(PLAIN, epochs=4, ema=0.8)
    whole, stopped, again = net(drop=0.4), net(drop=0.4), net(seed=8, drop=0.4)
    history = train(whole, some_images(), recipe, device="cpu", seed=7)
    shelf = Shelf(until=2)
    try:
        train(stopped, some_images(), recipe, device="cpu", seed=7, keeper=shelf)
    except KeyboardInterrupt:
        shelf.until = 10**6
    state = shelf.saved[-1]
    rest = train(again, some_images(), recipe, device="cpu", seed=7, keeper=shelf)
    one, other = tensors_of(whole), tensors_of(again)
    alike = all(torch.equal(one[key], other[key]) for key in one)
    states = {key: list(tensor.shape[:1]) for key, tensor in state.items() if key.startswith("random")}
    differ = not torch.equal(state["random:cpu"][0], state["random:cpu"][1])
    try:
        fewer = Shelf()
        fewer.saved.append({k: v[:1] if k.startswith("random") else v for k, v in state.items()})
        train(net(), some_images(), recipe, device="cpu", seed=7, keeper=fewer)
        refused = ""
    except ValueError as error:
        refused = str(error)
    return {"alike": alike and rest == history[2:], "states": states, "differ": differ, "refused": refused}


def count_right(here: Processes) -> dict[str, Any]:
    """Return accuracies, of images that do not divide and of fewer than there are processes."""
    images, model = some_images(), net().eval()
    few = replace(images, test=Split(images.test.images[:1], images.test.labels[:1]))
    found: dict[str, Any] = {}
    for name, data in (("31", images), ("1", few)):
        for batch in (1, 4, 200):
            how: dict[str, Any] = {"topk": (1, 2), "batch_size": batch}
            divided = evaluate_topk(model, data, "test", processes=here, **how)
            found[f"{name} in {batch}"] = divided == evaluate_topk(model, data, "test", **how)
    return found


def measure_statistics(here: Processes) -> dict[str, float]:
    """Return how far recalibration by shares is from that by one."""
    found = {}
    for size in (16, 7):
        alone, shared = net().double(), net().double()
        images = some_images()
        for model, by in ((alone, Processes()), (shared, here)):
            batches = images.batches("train", size, train=True, seed=1).divided(here).divided(by)
            wide = [(x.double(), y) for x, y in batches]
            recalibrate_batch_norm(model, wide, 3, processes=by)
        one, other = tensors_of(alone), tensors_of(shared)
        found[str(size)] = max(float((one[key] - other[key]).abs().max()) for key in one)
    return found


def leave_unused(here: Processes) -> dict[str, Any]:
    """Train a network with a layer that it does not use: as it is, and frozen."""
    model, said = Unused(), ""
    try:
        train(model, some_images(), replace(PLAIN, epochs=1, batch_size=100), device="cpu")
    except ValueError as error:
        said = str(error)
    model.spare.requires_grad_(False)
    train(model, some_images(), PLAIN, device="cpu")
    return {
        "said": said,
        "alike": here.gather(model.get_parameter("used.0.weight").detach()).diff(dim=0).abs().max().item() == 0,
    }


def too_few(here: Processes) -> dict[str, str]:
    """Return what is said of batches that cannot be divided."""
    said = {}
    try:
        few = some_images(here.count - 1) if here.count > 2 else some_images(1)
        train(net(), few, PLAIN, device="cpu")
    except ValueError as error:
        said["images"] = str(error)
    return said


CHECKS: tuple[Callable[[Processes], Any], ...] = (
    say, normalise, stand_still, drop, go_on, count_right, measure_statistics, too_few, leave_unused,
)  # fmt: skip


def main(folder: Path) -> None:
    """Do all of it."""
    with together() as here:
        found: dict[str, Any] = {check.__name__: check(here) for check in CHECKS}
        histories = {}
        for name in RECIPES:
            model, histories[name] = trained(name)
            save_file(tensors_of(model), folder / f"{name}-{here.rank}.safetensors")
        found["histories"] = histories
        (folder / f"found-{here.rank}.json").write_text(json.dumps(found))
        assert processes() == here


def compiled(folder: Path) -> None:
    """Train a network that is compiled."""
    with together() as here:
        model, _ = trained("one batch", replace(RECIPES["one batch"], compile=True))
        save_file(tensors_of(model), folder / f"compiled-{here.rank}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    (compiled if sys.argv[2:] == ["compiled"] else main)(Path(sys.argv[1]))
