"""Train on several ranks and on one, from the same global batches, and compare the weights.

    python tools/compare_ranks.py --stage nearest --ranks 2 4 --steps 50

One process trains; then torchrun starts the ranks on this machine's CPU (gloo), each with its part
of the same batches. The exit code is 1 where any weight or buffer differs by more than
``--tolerance``, 2 where a training could not be run.

Computed in double precision, so that what is left is the rounding of the losses, which are float32
always. With ``--precision 32-true`` rounding grows from step to step (flat crops divided by their
own deviation, Adam's division by small numbers): a control shows by how much, a single process that
differs in nothing but its number of CPU threads, and ten times its distance is allowed.

``--resume`` trains in turns: on the first number of ranks until some checkpoint, then killed and
continued on the next number, and finished by one process.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

SETTINGS = [
    "data.tokens=[1,2,2]",
    "data.token_budget=16",
    "data.degrees_per_step=2",
    "data.synthetic_share=0.3",
    "callbacks.show_progress=false",
    "logger.tensorboard=false",
    "logger.every_steps=1",
    "trainer.accelerator=cpu",
    "trainer.threads=1",
    "callbacks.save_every_steps=5",
    "callbacks.keep_last=100",
    "optim.warmup_steps=4",
]
"""Small crops and models: what is compared does not depend on size."""

ADVERSARIAL = ["discriminator.enabled=true", "discriminator.gate_threshold=100.0"]
TOKENIZER = ["pretrain-tokenizer", "experiment=tokenizer_tiny", "model.codebook_size=16"]
STAGES = {
    "soft": [*TOKENIZER, *ADVERSARIAL, "code_start.share=0.2", "code_start.num_steps=4"],
    "nearest": [*TOKENIZER, *ADVERSARIAL, "model.quantizer=nearest", "code_start.share=0"],
    "gumbel": [*TOKENIZER, "model.quantizer=gumbel", "code_start.share=0"],
    "mim": ["pretrain-mim", "experiment=mim_tiny", "model.depth=2"],
}


def main(argv: Sequence[str] | None = None) -> int:
    """Train and compare; return the exit code."""
    arguments = parse(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        settings = [*SETTINGS, f"trainer.precision={arguments.precision}", *arguments.settings]
        command = [*STAGES[arguments.stage], *settings]
        if arguments.stage == "mim":
            train([*STAGES["gumbel"], *settings, "trainer.max_steps=8"], folder / "tokenizer")
            command.append(f"tokenizer={folder / 'tokenizer' / 'tokenizer'}")
        command.append(f"trainer.max_steps={arguments.steps}")
        train(command, folder / "alone")
        alone = weights(folder / "alone", arguments.steps)
        allowed = arguments.tolerance
        if arguments.precision == "32-true":
            train([*command, "trainer.threads=2"], folder / "control")
            control = weights(folder / "control", arguments.steps)
            allowed = max(allowed, 10 * report("one process, two threads", alone, control))
        worst = 0.0
        if arguments.resume:
            train_in_turns(command, folder / "turns", ranks=arguments.ranks, steps=arguments.steps)
            turns = " then ".join(map(str, [*arguments.ranks, 1]))
            worst = report(f"{turns} ranks", alone, weights(folder / "turns", arguments.steps))
        else:
            for ranks in arguments.ranks:
                run = folder / str(ranks)
                train(command, run, ranks=ranks)
                found = report(f"{ranks} ranks", alone, weights(run, arguments.steps))
                worst = max(worst, found)
    verdict = "equal" if worst <= allowed else "DIFFERENT"
    print(f"{arguments.stage}, {arguments.steps} steps: {verdict}, {allowed:.1e} allowed")
    return 0 if worst <= allowed else 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--stage", choices=list(STAGES), default="soft")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference allowed")
    parser.add_argument("--precision", choices=["64-true", "32-true"], default="64-true")
    parser.add_argument("--resume", action="store_true", help="kill; go on with other numbers")
    parser.add_argument("--settings", nargs="*", default=[], help="KEY=VALUE for all trainings")
    return parser.parse_args(argv)


def command_line(command: Sequence[str], run: Path, *, ranks: int) -> list[str]:
    """Command that trains on a number of ranks."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    line = [sys.executable, "-m", *(launcher if ranks > 1 else []), "spadnet", *command]
    return [*line, f"out={run}"]


def train(command: Sequence[str], run: Path, *, ranks: int = 1) -> None:
    """Train to the end.

    Raises:
        SystemExit: If the training fails; its last words are shown.
    """
    line = command_line(command, run, ranks=ranks)
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(done.stderr[-4000:], file=sys.stderr)
        raise SystemExit(2)


def train_in_turns(command: Sequence[str], run: Path, *, ranks: Sequence[int], steps: int) -> None:
    """Train on each number of ranks in turn, killed after its share of the steps, then on one."""
    again = [*command, "resume=auto"]
    for turn, number in enumerate(ranks, 1):
        line = command_line(again, run, ranks=number)
        process = subprocess.Popen(
            line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        due = steps * turn // (len(ranks) + 1)
        while process.poll() is None and last_step(run) < due:
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        print(f"{number} ranks ended with {process.wait()} after step {last_step(run)}", flush=True)
    train(again, run)


def last_step(run: Path) -> int:
    """Step of the newest checkpoint, 0 without one."""
    names = sorted(path.stem for path in (run / "checkpoints").glob("step-*.ckpt"))
    return int(names[-1].removeprefix("step-")) if names else 0


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights and buffers of a run's checkpoint after a step."""
    path = run / "checkpoints" / f"step-{step:08d}.ckpt"
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def report(who: str, a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Print and return the largest difference of two trainings' weights."""
    assert a.keys() == b.keys()
    apart = {name: float((a[name].double() - b[name].double()).abs().max()) for name in a}
    name = max(apart, key=lambda key: apart[key])
    print(f"{who}: largest difference {apart[name]:.2e}, in {name}", flush=True)
    return apart[name]


if __name__ == "__main__":
    raise SystemExit(main())
