"""Call every op on awkward small layers, and compare with the CPU: something for compute-sanitizer to watch.

python python_tests/every_op.py --device cuda
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import srr_ext  # noqa: F401  (registers the ops)

TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SHAPES = ((129, 3, 3, 3), (65, 36), (200, 17), (1, 9), (0, 5), (64, 1), (31, 257))
WIDE = 1500  # filters whose bit rows do not fit into the shared memory of a block
WIDEST = 4000  # whose workspace does not either: blocks then have places in global memory, several at a time


def random_words(n: int, density: float, seed: int) -> Tensor:
    """Bit rows of a random graph: symmetric, without loops."""
    upper = (torch.rand(n, n, generator=torch.Generator().manual_seed(seed)) < density).triu(1)
    bits = torch.nn.functional.pad((upper | upper.T).long(), (0, -n % 64)).view(n, -1, 64)
    return (bits << torch.arange(64)).sum(2).flatten()


def evaluate(device: torch.device) -> list[Tensor]:
    """Answers of all ops, on the CPU."""
    ops, answers = torch.ops.srr_ext, []
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in SHAPES]
    weights[0][5], weights[1][64], weights[2][3] = 0, weights[1][2], float("nan")
    typed = [weight.to(TYPES[i % len(TYPES)]).to(device) for i, weight in enumerate(weights)]
    shifted = torch.cat([torch.zeros(1, device=device), typed[0].flatten()])[1:].view(SHAPES[0])  # unaligned
    layers = [*typed, shifted, typed[0].contiguous(memory_format=torch.channels_last)]
    gammas = [(1.4 / w[0].numel() ** 0.5 if len(w) else 0.1) * level for level in (0.95, 1.0) for w in layers]
    words, kinds = ops.filter_graphs(layers, gammas)
    answers += [words, kinds]
    sizes = [len(w) for w in layers] * 2
    orders = torch.cat([torch.randperm(n, generator=generator) for n in sizes]).to(device)
    answers += [ops.components(words, sizes), *(ops.covering(words, sizes, radius) for radius in (1, 2))]
    answers.append(ops.trajectories(words, sizes, orders, [min(n, 70) for n in sizes], 0.35, 0.65))
    wide = random_words(WIDE, 3 / WIDE, 1).to(device)
    order = torch.arange(WIDE).flip(0).to(device)
    answers += [ops.components(wide, [WIDE]), ops.covering(wide, [WIDE], 1), ops.covering(wide, [WIDE], 2)]
    answers.append(ops.trajectories(wide, [WIDE], order, [3], 0.35, 0.65))
    widest = random_words(WIDEST, 2 / WIDEST, 2).repeat(2).to(device)
    order = torch.arange(WIDEST).repeat(2).to(device)
    answers.append(ops.trajectories(widest, [WIDEST, WIDEST], order, [2, 2], 0.35, 0.65))
    return [answer.cpu() for answer in answers]


def main() -> None:
    """Compare, or fail."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the ops run")
    device = torch.device(parser.parse_args().device)
    expected = evaluate(torch.device("cpu"))
    for i, (got, wanted) in enumerate(zip(evaluate(device), expected, strict=True)):
        assert torch.equal(got, wanted), f"answer {i} differs from the CPU's"
    print(f"{len(expected)} answers on {device}: equal to the CPU's")


if __name__ == "__main__":
    main()
