"""Training and applying msresnet, against the same network run module by module in float32.

`msresnet_table` is shown by bench_training; `python benchmarks/training_msresnet.py` prints it alone, with what each of
the two spends its time on, and whether bfloat16 learns what float32 learns.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import numpy as np
import torch
from table import interleaved, markdown
from torch import nn
from torch.profiler import ProfilerActivity, profile

from compat.transformers.msresnet import LEAST_LENGTH, MSResNet

DIM = 512
BATCH = 256
STEPS = 2
APPLIED_ROWS = 4096
TARGET = 1.6


class ModuleByModule(MSResNet):
    """The same weights, every module called as it stands: three branches one after the other."""

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """[n, s] to [n, t]."""
        missing = max(0, LEAST_LENGTH - self.source_dim)
        signal = self.stem(nn.functional.pad(vectors, (0, missing))[:, None, :])
        return self.output(torch.cat([branch(signal) for branch in self.branches], dim=1))


def networks(dim: int) -> dict[str, MSResNet]:
    """One network in both forms, of equal weights."""
    torch.manual_seed(0)
    joined, plain = MSResNet(dim, dim), ModuleByModule(dim, dim)
    plain.load_state_dict(joined.state_dict())
    return {"module by module": plain, "joined": joined}


def training_steps(
    network: nn.Module, source: torch.Tensor, target: torch.Tensor, *, bf16: bool, steps: int = STEPS
) -> Callable[[], object]:
    """Steps of Adam on a batch, [b, d] each, for a copy of the network."""
    network = copy.deepcopy(network).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)

    def run() -> None:
        for _ in range(steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                predicted = network(source)
            loss = 1 - nn.functional.cosine_similarity(predicted.float(), target).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def application(network: nn.Module, source: torch.Tensor) -> Callable[[], object]:
    """One pass over vectors [n, d] in evaluation."""
    network = copy.deepcopy(network).eval()

    def run() -> None:
        with torch.inference_mode():
            network(source)

    return run


def msresnet_table(repetitions: int = 5, *, dim: int = DIM, batch: int = BATCH) -> str:
    """Rows per second of training and of applying, in Markdown, with ratios to module by module in float32."""
    generator = torch.Generator().manual_seed(0)
    source, target, many = (torch.randn(n, dim, generator=generator) for n in (batch, batch, APPLIED_ROWS))
    forms = networks(dim)
    work: dict[str, Callable[[], object]] = {}
    rows_of: dict[str, int] = {}
    for precision in ("fp32", "bf16"):
        for form, network in forms.items():
            name = f"training, {form}, {precision}"
            work[name] = training_steps(network, source, target, bf16=precision == "bf16")
            rows_of[name] = STEPS * batch
    for form, network in forms.items():
        work[f"applying, {form}, fp32"] = application(network, many)
        rows_of[f"applying, {form}, fp32"] = APPLIED_ROWS
    for run in work.values():
        run()
    seconds = interleaved(work, repetitions)
    rates = {name: rows_of[name] / taken for name, taken in seconds.items()}
    cells = []
    for name, rate in rates.items():
        times = rate / rates[f"{name.split(',')[0]}, module by module, fp32"]
        cells.append([name, f"{rate:,.0f}", f"{times:.2f}"])
    reached = rates["training, joined, bf16"] / rates["training, module by module, fp32"]
    verdict = "above" if reached >= TARGET else "below"
    about = (
        f"msresnet of {dim}-D, batches of {batch}, Adam, {torch.get_num_threads()} threads; medians of {repetitions} "
        f"interleaved repetitions. Training in bf16 with joined branches is {reached:.2f} times module by module in "
        f"fp32, {verdict} the {TARGET} wanted."
    )
    return f"{markdown(['work', 'rows/s', 'times module by module, fp32'], cells)}\n\n{about}"


def profile_table(*, dim: int = DIM, batch: int = BATCH, most: int = 8) -> str:
    """What a training step spends its time on, in both forms; the profiler counts waiting for a processor too."""
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(batch, dim, generator=generator) for _ in range(2))
    shares: dict[str, dict[str, float]] = {}
    totals = {}
    for form, network in networks(dim).items():
        bf16 = form == "joined"
        run = training_steps(network, source, target, bf16=bf16, steps=3)
        run()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            run()
        times = {event.key: event.self_cpu_time_total / 3e3 for event in profiled.key_averages()}
        name = f"{form}, {'bf16' if bf16 else 'fp32'}"
        shares[name], totals[name] = times, sum(times.values())
    order = sorted({*shares[next(iter(shares))]}, key=lambda key: -max(times.get(key, 0) for times in shares.values()))
    rows = [
        [key.removeprefix("aten::"), *(f"{times.get(key, 0.0):.1f}" for times in shares.values())]
        for key in order[:most]
    ]
    rows.append(["all", *(f"{total:.1f}" for total in totals.values())])
    return markdown(["ms of a step", *shares], rows)


def learning_table(steps: int = 300, *, dim: int = 128, batch: int = BATCH, seeds: int = 2) -> str:
    """Cosine loss along the steps in fp32 and bf16, on vectors whose turned and bent copies are to be found."""
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(20 * batch, dim, generator=generator)
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
    target = source @ turn + 0.5 * torch.tanh(3 * source) @ turn.T
    marks = [step for step in (10, 30, 100, 200, 300, 500, 1000) if step <= steps]
    rows = []
    for seed in range(seeds):
        for precision in ("fp32", "bf16"):
            torch.manual_seed(seed)
            network = MSResNet(dim, dim).train()
            optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
            order = np.random.default_rng(seed)
            losses = []
            for _ in range(steps):
                chosen = torch.from_numpy(order.integers(len(source), size=batch))
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    predicted = network(source[chosen])
                loss = 1 - nn.functional.cosine_similarity(predicted.float(), target[chosen]).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
            rows.append([str(seed), precision, *(f"{np.mean(losses[max(0, m - 10) : m]):.4f}" for m in marks)])
    return markdown(["seed", "precision", *(f"loss at step {mark}" for mark in marks)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300, help="of the loss curves; 0 leaves them out")
    options = parser.parse_args()
    print(msresnet_table(options.repetitions), profile_table(), sep="\n\n")
    if options.steps:
        print("", learning_table(options.steps), sep="\n")


if __name__ == "__main__":
    main()
