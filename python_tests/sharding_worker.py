"""What each of several processes does for `test_sharding`; the first writes what was found, as JSON."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from training_data import random_data, small_net

import srr_ext
from srr_ext.processes import Processes, together
from srr_ext.training import TrainConfig, gather_into, sharding, train

SGD = TrainConfig(epochs=3, batch_size=10, lr=0.05, clip_norm=1.0)
ADAMW = TrainConfig(epochs=2, batch_size=10, lr=0.001, optimizer="adamw")


class Kept:
    """The state after the first epoch."""

    def __init__(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        self.tensors, self.found = tensors, dict[str, Tensor]()

    def load(self) -> Mapping[str, Tensor] | None:
        return self.tensors

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        self.found = self.found or {name: tensor.clone() for name, tensor in tensors.items()}


def network() -> nn.Module:
    """Without drop-out, whose numbers would differ from process to process."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(layer for layer in small_net() if not isinstance(layer, nn.Dropout)),
    )


def trained(model: nn.Module, recipe: TrainConfig, **how: Any) -> list[Tensor]:
    """Train, and return all tensors."""
    train(model, random_data(26, validation=5), recipe, device="cpu", **how)
    return list(model.state_dict().values())


def difference(mine: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest difference of two lists of tensors."""
    return max(float((a.double() - b.double()).abs().max()) for a, b in zip(mine, theirs, strict=True))


def look(here: Processes) -> dict[str, Any]:
    """Train with divided weights and without, and plan."""
    found: dict[str, Any] = {}
    for name, recipe in (("sgd", SGD), ("adamw", ADAMW)):
        kept = Kept()
        shared, whole = network(), trained(network(), recipe)
        parameters = list(shared.parameters())
        divided = trained(shared, recipe, shard=True, keeper=kept)
        found[name] = difference(whole, divided)
        found[f"{name} resumed"] = difference(divided, trained(network(), recipe, shard=True, keeper=Kept(kept.found)))
        found[f"{name} same parameters"] = all(a is b for a, b in zip(parameters, shared.parameters(), strict=True))
        here.agree(name, srr_ext.plan.fingerprint(shared).encode())

    dense = network()
    divided_copy = sharding.sharded(dense, here, torch.device("cpu"))
    by_torch = copy.deepcopy(dense)
    fully_shard(by_torch, mesh=init_device_mesh("cpu", (here.count,)))
    found["held"] = sum(sharding.share(p).numel() for p in divided_copy.parameters())
    found["of"] = sum(p.numel() for p in dense.parameters())
    example = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    plan = srr_ext.make_plan(dense, example, keep_macs=0.6).to_json()
    for name, source in (("own", divided_copy), ("torch", by_torch)):
        gathered = small_net(seed=3)
        gathered = nn.Sequential(*(layer for layer in gathered if not isinstance(layer, nn.Dropout)))
        gather_into(gathered, source)
        mine = srr_ext.make_plan(gathered, example, keep_macs=0.6)
        here.agree("plan", mine.to_json().encode())
        found[f"plan {name}"] = mine.to_json() == plan
        found[f"cut {name}"] = srr_ext.verify(gathered, mine, example)
    try:
        gather_into(nn.Sequential(nn.Conv2d(2, 6, 3)), divided_copy)
    except ValueError as error:
        found["other network"] = str(error)
    for name, how in {"masks": {"masks": object()}, "ema": {"recipe": TrainConfig(epochs=1, ema=0.9)}}.items():
        try:
            trained(network(), how.pop("recipe", SGD), shard=True, **how)
        except ValueError as error:
            found[f"with {name}"] = str(error)
    return found


if __name__ == "__main__":
    sharding._LARGE = 50  # so that this network has layers of either kind
    with together() as processes:
        results = look(processes)
        if processes.first:
            Path(sys.argv[1]).write_text(json.dumps(results), encoding="utf-8")
