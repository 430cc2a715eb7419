"""The command that removes single weights: what it leaves, what it refuses, and going on after a stop."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import refused, take_no_time
from safetensors.torch import load_file

import srr_ext
from srr_ext import checkpoints
from srr_ext.__main__ import main
from srr_ext.cli import training
from srr_ext.sparsity import Masks
from srr_ext.training import train

BRIEF = ("--epochs", "2", "--device", "cpu")
RECIPE = ("--dense.epochs", "4", "--dense.schedule", "step", "--dense.milestones", "2", "3", "--dense.warmup", "0")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take no time over times."""
    take_no_time(monkeypatch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of a short training that keeps what rewinding needs."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    flags = [*RECIPE, "--snapshots", "0ep", "2ep", "30it", "--device", "cpu", "--output", str(folder)]
    assert main(["train", *flags]) == 0
    return folder


@pytest.fixture
def weights(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Work in an empty folder; return the flag's value."""
    monkeypatch.chdir(tmp_path)
    return str(trained / "dense.safetensors")


def read(path: str | Path) -> dict[str, Any]:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def zero_outside(folder: str | Path) -> Masks:
    """Check that exactly the masked weights of a result are zero; return the masks."""
    masks, network = Masks.load(Path(folder) / "masks.safetensors"), srr_ext.load(folder)
    for name, mask in masks.items():
        weight = network.get_parameter(name)
        assert not weight[~mask].any() and weight[mask].all(), name
    return masks


def test_one_shot_leaves_a_quarter_of_all_parameters(weights: str) -> None:
    """To one weight; the classifier, biases and normalisations stay whole; evaluate measures the same network."""
    assert main(["sparsify", "--weights", weights, *BRIEF, "--output", "run"]) == 0
    names = {path.name for path in Path("run").iterdir()}
    assert names == {
        "architecture.json", "config.json", "events", "log.jsonl", "masks.safetensors", "model.safetensors",
        "report.html", "report.json",
    }  # fmt: skip
    report, masks = read("run/report.json"), zero_outside("run")
    assert report["params"] == {"dense": 115_570, "pruned": 115_570 // 4}
    assert masks.kept == 115_570 // 4 - (115_570 - masks.total) and not any(n.startswith("classifier") for n in masks)
    assert report["compression_ratio"] >= 4 and report["density"] == masks.density and report["rounds"] == 1
    assert report["macs"]["dense"] == 1_155_024 and report["macs"]["pruned"] < 0.5 * 1_155_024
    assert report["top1"]["final"] > report["top1"]["after_surgery"] and report["epochs_after_dense"] == 2
    assert {row["kept"] for row in report["layers"].values()} == {int(mask.sum()) for mask in masks.values()}
    assert main(["sparsify", "--config", "run/config.json", "--output", "again"]) == 0
    for name in ("masks.safetensors", "model.safetensors"):
        assert Path("run", name).read_bytes() == Path("again", name).read_bytes()


def test_rounds_remove_a_fifth_each_and_end_on_the_target(weights: str) -> None:
    """The masks of a round are a part of those before; the number of rounds follows from rate and target."""
    flags = ["--weights", weights, "--epochs", "1", "--density", "0.5", "--schedule", "iterative", "--device", "cpu"]
    assert main(["sparsify", *flags, "--output", "run"]) == 0
    report, masks = read("run/report.json"), zero_outside("run")
    assert report["rounds"] == 4 and masks.kept == masks.total // 2  # 0.8, 0.64, 0.512, 0.5
    assert report["epochs_after_dense"] == 4 and report["target"] == {"density": 0.5}
    stages = [json.loads(line)["stage"] for line in Path("run/log.jsonl").read_text().splitlines()]
    assert stages == [f"retrain {number} of 4" for number in (1, 2, 3, 4)]


def rewound(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Record the weights that trainings after the first begin with."""
    starts: list[dict[str, torch.Tensor]] = []

    def look(model: torch.nn.Module, *args: Any, **options: Any) -> Any:
        starts.append(
            {name: tensor.clone() for name, tensor in model.state_dict().items()} | {"begin": options["begin"]}
        )
        return train(model, *args, **options)

    monkeypatch.setattr(training, "train", look)
    return starts


@pytest.mark.parametrize(("moment", "begin"), [("0ep", 0), ("2ep", 36), ("30it", 30)])
def test_rewound_weights_are_the_saved_ones_bit_for_bit(
    weights: str, trained: Path, moment: str, begin: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside the mask and in everything that has no mask; the schedule goes on from the same step."""
    earlier = trained / f"dense-{moment}.safetensors"
    flags = ["--retrain", "weight-rewind", "--rewind-to", moment, "--rewind-weights", str(earlier)]
    starts = rewound(monkeypatch)
    assert main(["sparsify", "--weights", weights, *RECIPE, *flags, "--output", "run", "--device", "cpu"]) == 0
    masks, (start,) = zero_outside("run"), starts
    for name, saved in load_file(earlier).items():
        kept = masks[name] if name in masks else torch.ones_like(saved, dtype=torch.bool)
        assert torch.equal(start[name][kept], saved[kept]) and not start[name][~kept].any(), name
    assert start["begin"] == begin and read("run/report.json")["epochs_after_dense"] == 4 - begin / 18


def test_a_network_that_is_trained_here_keeps_what_it_rewinds_to(
    weights: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default so many epochs before the end as the recipe after pruning has: the same result as by two commands."""
    flags = [*RECIPE, "--retrain", "weight-rewind", *BRIEF]
    assert main(["sparsify", *flags, "--output", "run"]) == 0
    assert Path("run/dense-2ep.safetensors").read_bytes() == (trained / "dense-2ep.safetensors").read_bytes()
    given = ["--weights", weights, "--rewind-weights", str(trained / "dense-2ep.safetensors")]
    assert main(["sparsify", *flags, *given, "--output", "given"]) == 0
    assert Path("run/model.safetensors").read_bytes() == Path("given/model.safetensors").read_bytes()


def test_learning_rates_alone_are_rewound(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are those that pruning has left; the rates those of the last epochs of the dense recipe."""
    starts = rewound(monkeypatch)
    assert main(["sparsify", "--weights", weights, *RECIPE, "--retrain", "lr-rewind", *BRIEF, "--output", "run"]) == 0
    masks, (start,) = zero_outside("run"), starts
    dense = load_file(weights)
    assert all(torch.equal(start[name], dense[name] * mask) for name, mask in masks.items()) and start["begin"] == 36
    rates = [json.loads(line)["lr"] for line in Path("run/log.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([0.0005, 0.0005])  # at the end of epochs 3 and 4: milestones 2 and 3 have passed


def test_controls_take_masks_and_new_weights(weights: str) -> None:
    """The same mask under weights drawn anew, trained for as long as both trainings; random masks as large."""
    assert main(["sparsify", "--weights", weights, *BRIEF, "--output", "run"]) == 0
    control = ["--masks", "run/masks.safetensors", "--retrain", "reinit", "--dense.epochs", "3"]
    assert main(["sparsify", "--weights", weights, *BRIEF, *control, "--output", "control"]) == 0
    assert zero_outside("control") == zero_outside("run")
    log = [json.loads(line) for line in Path("control/log.jsonl").read_text().splitlines()]
    assert [record["stage"] for record in log] == ["train from scratch"] * 5
    assert read("control/report.json")["target"] == {} and read("control/report.json")["epochs_after_dense"] == 2
    assert main(["sparsify", "--weights", weights, *BRIEF, "--score", "random", "--output", "random"]) == 0
    chance = zero_outside("random")
    assert chance.kept == zero_outside("run").kept and chance != zero_outside("run")


def test_gradual_pruning_ends_on_the_target(weights: str) -> None:
    """In one training, which the log shows as one."""
    flags = ["--schedule", "gradual", "--gradual.every", "5", "--score", "gradient", "--calibration", "128"]
    assert main(["sparsify", "--weights", weights, *BRIEF, *flags, "--density", "0.3", "--output", "run"]) == 0
    masks = zero_outside("run")
    assert masks.kept == int(0.3 * masks.total)
    assert [json.loads(line)["stage"] for line in Path("run/log.jsonl").read_text().splitlines()] == ["retrain"] * 2


def test_patterns_say_how_much_is_left(weights: str) -> None:
    """Of every four inputs two stay, where four divides their number."""
    assert main(["sparsify", "--weights", weights, *BRIEF, "--scope", "2:4", "--output", "run"]) == 0
    masks = zero_outside("run")
    for name, mask in masks.items():
        if mask.shape[1] % 4 == 0:
            groups = mask.movedim(1, -1).reshape(-1, 4)
            assert (groups.sum(1) == 2).all(), name
        else:
            assert name == "stage1.0.weight" and mask.all()


@pytest.mark.parametrize("penalty", ["l1", "group_lasso"])
def test_weights_that_a_penalty_made_zero_go_first(
    weights: str, penalty: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sparse training comes before pruning and says what it has done."""
    sparse = ["--sparse.penalty", penalty, "--sparse.strength", "0.02", "--sparse.epochs", "2"]
    assert main(["sparsify", "--weights", weights, *BRIEF, *sparse, "--output", "run"]) == 0
    found = capsys.readouterr().err
    assert "under the penalty are zero" in found and " 0 of" not in found
    zero_outside("run")
    assert read("run/report.json")["penalty"] == penalty and read("run/report.json")["epochs_after_dense"] == 4


REFUSED = {
    "--compression 4 --density 0.5": "--density: goes alone, without --compression",
    "--compression 0.5": "--compression: is all parameters over those that stay and must be at least 1, got 0.5",
    "--compression 1000": "--compression:",
    "--density 0": "--density: is the share of the prunable weights to keep and must be",
    "--score magnitud": "--score: no score is called 'magnitud'",
    "--scope local": "--scope: must be global, layerwise or N:M",
    "--scope 2:4 --density 0.5": "--density: goes without --scope 2:4, which says how many weights stay",
    "--scope 2:4 --schedule iterative": "--schedule: must be one-shot where masks or a pattern are given",
    "--schedule iterative --retrain reinit": "--retrain: reinit goes without --schedule iterative",
    "--rate 0": "--rate: must be in (0, 1], but is 0.0",
    "--masks nothing": "--masks:",
    "--masks nothing --score random": "--masks: goes without --score and --scope",
    "--ignored nothing": "--ignored: ",
    "--rewind-to 3ep": "--rewind-to: goes with --retrain lr-rewind or weight-rewind, but that is finetune",
    "--retrain lr-rewind --rewind-to soon": "--rewind-to: must be epochs or steps, as in 3ep, 0.5ep or 500it",
    "--retrain lr-rewind --rewind-to 21ep": "--rewind-to: must be within the 20 epochs",
    "--retrain weight-rewind --rewind-to 9999it": "--rewind-to: there is no moment 9999it in a training of 360 steps",
    "--retrain lr-rewind --rewind-to 9999it": "--rewind-to: there is no moment 9999it in a training of 360 steps",
    "--schedule gradual --epochs 0": "--schedule: begin must be a step before the last of the recipe",
    "--schedule gradual --epochs 2": "--gradual.every: is 20, so that of 36 steps weights go after 1; lower it",
    "--rate 0.5": "--rate: goes with --schedule iterative, but that is one-shot",
    "--gradual.every 7": "--gradual: goes with --schedule gradual, but that is one-shot",
    "--scope 2:5": "--scope: 2:5 divides the inputs of no layer",
    "--retrain lr-rewind --epochs 21": "--rewind-to: must be given: 21 epochs after pruning",
    "--rewind-weights x": "--rewind-weights: goes with --retrain weight-rewind",
    "--gradual.begin 2": "--gradual.begin: must be",
    "--resume nowhere": "--resume: nowhere holds no run to go on with",
    "--resume nowhere --score random": "--resume: goes alone",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_what_cannot_be_is_refused_before_any_work(
    flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line that names the flag, without a folder left behind."""
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, "sparsify", *flags.split()).startswith(REFUSED[flags])


def test_masks_have_to_be_of_weights(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Not of a normalisation, say."""
    Masks({"stage1.1.weight": torch.arange(24) > 3}).save("other.safetensors")
    line = refused(capsys, "sparsify", "--weights", weights, "--masks", "other.safetensors")
    assert line == "--masks: other.safetensors masks stage1.1.weight, of which no single weights go"


def test_rewinding_needs_weights_to_rewind_to(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside a checkpoint; the line says how to make one."""
    line = refused(capsys, "sparsify", "--weights", weights, "--retrain", "weight-rewind", "--epochs", "5")
    assert line.startswith("--rewind-weights: is needed beside --weights") and "srr train --snapshots 15ep" in line
    line = refused(capsys, "sparsify", "--retrain", "weight-rewind", "--rewind-weights", "x")
    assert line.startswith("--rewind-weights: goes with --weights")


ROUNDS = [*RECIPE, "--epochs", "1", "--schedule", "iterative", "--rate", "0.5", "--compression", "8", "--device", "cpu",
          "--retrain", "weight-rewind", "--rewind-to", "3ep"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of four rounds that nothing has stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(["sparsify", *ROUNDS, "--output", str(folder)]) == 0
    return folder


def same(one: Path, other: Path) -> None:
    """Compare two runs byte for byte, measured times aside."""
    for name in ("masks.safetensors", "model.safetensors", "dense.safetensors", "config.json", "log.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    timed = ("latency_ms", "speed_up", "formats", "command")
    first, second = (read(run / "report.json") for run in (one, other))
    assert {k: v for k, v in first.items() if k not in timed} == {k: v for k, v in second.items() if k not in timed}
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}


class Stopped(BaseException):
    """Stands for the power going off."""


@pytest.mark.parametrize(
    "place", ["in round 1", "in round 3", "before a record", "between files", "in the log", "in the end"]
)
def test_a_run_that_was_stopped_goes_on_from_its_last_round(
    whole: Path, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it was, what it makes is what it would have made, byte for byte."""
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        stop(patch, place)
        with pytest.raises(Stopped):
            main(["sparsify", *ROUNDS, "--output", "run"])
    if place == "in the log":
        with Path("run/log.jsonl").open("a") as log:
            log.write('{"stage": "retrain 2 of')
    assert main(["sparsify", "--resume", "run"]) == 0
    same(Path("run"), whole)


def stop(patch: pytest.MonkeyPatch, place: str) -> None:
    """Let the power go off somewhere."""
    calls = {"write": 0}

    def train_until(*args: Any, **options: Any) -> Any:
        stages = {"in round 1": "retrain 1 of 4", "in round 3": "retrain 3 of 4", "in the log": "retrain 2 of 4"}
        if options["stage"] == stages.get(place):
            options["log"]({"stage": options["stage"], "epoch": 1})
            raise Stopped
        return train(*args, **options)

    def write(path: Path, value: Any) -> None:
        if path.name == "reached.json":
            calls["write"] += 1
            if place == "before a record" and calls["write"] == 3:
                raise Stopped
        write_json(path, value)
        if path.name == "reached.json" and place == "between files" and calls["write"] == 3:
            raise Stopped

    def evaluate(*args: Any) -> Any:
        raise Stopped

    write_json = checkpoints.write_json
    patch.setattr(training, "train", train_until)
    patch.setattr(checkpoints, "write_json", write)
    if place == "in the end":
        patch.setattr("srr_ext.cli.measuring.evaluate_on_both", evaluate)


def test_only_a_run_that_was_stopped_can_go_on(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not a finished one, not one at which another process works, not a damaged one."""
    capsys.readouterr()
    assert main(["sparsify", "--resume", str(whole)]) == 2
    assert "holds a run that is finished" in capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    with checkpoints.Checkpoint(other).held(["srr", "sparsify"]):
        assert main(["sparsify", "--resume", str(other)]) == 2
    assert "another process is at work in" in capsys.readouterr().err
    checkpoints.Checkpoint(other).commit("round", 3, {"masks:x": torch.zeros(1)})
    (other / "checkpoint" / "round-3.safetensors").write_bytes(b"damaged")
    assert main(["sparsify", "--resume", str(other)]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_an_error_after_some_rounds_leaves_them(
    weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk, say: the line says how to go on, which takes the same files, and only where they are."""
    flags = ["--weights", "dense.safetensors", "--epochs", "1", "--schedule", "iterative", "--rate", "0.5"]
    shutil.copy(weights, "dense.safetensors")
    write_json = checkpoints.write_json

    def full(path: Path, value: Any) -> None:
        if path.name == "reached.json" and value["number"] == 2:
            raise OSError(28, "No space left on device")
        write_json(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_json", full)
        assert main(["sparsify", *flags, "--output", "run"]) == 2
    assert "No space left on device" in capsys.readouterr().err and Path("run/checkpoint/round-1.safetensors").is_file()
    before = Path("dense.safetensors").read_bytes()
    Path("dense.safetensors").write_bytes(Path(weights).with_name("dense-0ep.safetensors").read_bytes())
    assert main(["sparsify", "--resume", "run"]) == 2
    assert "dense.safetensors has changed since the run was begun" in capsys.readouterr().err
    Path("dense.safetensors").unlink()
    assert main(["sparsify", "--resume", "run"]) == 2
    assert f"which the run was given in {Path.cwd()}, is not there; go on in that folder" in capsys.readouterr().err
    Path("dense.safetensors").write_bytes(before)
    assert main(["sparsify", "--resume", "run"]) == 0
    assert len(Path("run/log.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(whole: Path, tmp_path: Path) -> None:
    """SIGKILL again and again, at moments that fall anywhere; SIGTERM ends with a line that says how to go on."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "srr_ext.sparsify"]
    first = [*command, *ROUNDS, "--output", str(folder)]
    generator = torch.Generator().manual_seed(0)
    for attempt in range(12):
        begun = (folder / "config.json").exists() and (folder / "checkpoint" / "command.json").exists()
        if not begun:
            shutil.rmtree(folder, ignore_errors=True)
        process = subprocess.Popen(
            [*command, "--resume", str(folder)] if begun else first, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        wait = 3 + 1.2 * attempt * float(torch.rand(1, generator=generator))
        try:
            _, said = process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM if attempt % 4 == 3 else signal.SIGKILL)
            _, said = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode in (-signal.SIGKILL, -signal.SIGTERM, 130), said
        assert process.returncode != 130 or b"stopped; " in said
    else:
        assert subprocess.run([*command, "--resume", str(folder)], check=False).returncode == 0
    same(folder, whole)
