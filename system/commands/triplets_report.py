"""`credence triplets-report`: what Markovian RL and BARL learned on the triplets task, over several runs each.

The table: accuracy on the trained prompts (mean of the last updates) and on the one that is held out, by seed, and the
probability that the policy, made to begin its answer to the held-out prompt with 000 or 111, goes on to produce 222.
That one is exact, the sum over all continuations, where a response has 12 tokens at most; beyond, the share among 4,096
sampled ones (standard error 0.008 at most). The figure: both accuracies over updates, mean and range of the runs.
"""

import argparse
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, PreTrainedModel

from system.commands.compare import Panel, Run, draw_panel, parse_methods, read_run
from system.config.load import load_config
from system.reports.axes import legend_below
from system.runtime.checkpoint import CheckpointStore, policy_directory

TRAIN_UPDATES = 20  # the last ones, of which training accuracy is the mean
HELD_OUT_PROMPT, HELD_OUT_ANSWER = 2, (2, 2, 2)
MAX_EXACT_TOKENS = 12  # of a response of which all continuations are added up
NUM_SAMPLES = 4096  # of longer ones
FORCED = ((0, 0, 0), (1, 1, 1))
CHUNK = 4096
PANELS = (
    Panel(metric="train/accuracy", title="accuracy on the trained prompts 0 and 1", window=5),
    Panel(metric="eval/accuracy_sampled", title="accuracy on the held-out prompt 2"),
)


def probability_of_answer(model: PreTrainedModel, *, forced: Sequence[int], num_tokens: int) -> float:
    """P(222 occurs behind `forced` | prompt 2, forced) in a response of `num_tokens`, `forced` included."""
    num_more = num_tokens - len(forced)
    if num_tokens > MAX_EXACT_TOKENS:
        return _sampled_probability(model, prefix=(HELD_OUT_PROMPT, *forced), num_more=num_more)
    return _exact_probability(model, prefix=(HELD_OUT_PROMPT, *forced), num_more=num_more)


def _exact_probability(model: PreTrainedModel, *, prefix: Sequence[int], num_more: int) -> float:
    endings = [ending for ending in itertools.product(range(3), repeat=num_more) if _has_answer(ending)]
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(endings), CHUNK):
            tokens = torch.tensor([(*prefix, *ending) for ending in endings[start : start + CHUNK]])
            logprobs = model(tokens).logits.double().log_softmax(-1)
            taken = logprobs[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
            total += float(taken[:, len(prefix) - 1 :].sum(-1).exp().sum())
    return total


def _sampled_probability(model: PreTrainedModel, *, prefix: Sequence[int], num_more: int) -> float:
    torch.manual_seed(0)
    tokens = torch.tensor([prefix]).expand(NUM_SAMPLES, -1)
    drawn = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=True, top_k=0, max_new_tokens=num_more
    )
    endings = drawn[:, len(prefix) :].tolist()
    return statistics.fmean(_has_answer(ending) for ending in endings)


def _has_answer(tokens: Sequence[int]) -> bool:
    return any(tuple(tokens[start : start + 3]) == HELD_OUT_ANSWER for start in range(len(tokens) - 2))


def switching_probabilities(run_dir: Path) -> list[float]:
    """Of the run's last policy, for each of FORCED; a response has as many tokens as the run allowed."""
    policy = final_policy(run_dir)
    num_tokens = load_config([run_dir / "config.yaml"], check_devices=False).rollout.max_completion_tokens
    return [probability_of_answer(policy, forced=each, num_tokens=num_tokens) for each in FORCED]


def final_policy(run_dir: Path) -> PreTrainedModel:
    latest = CheckpointStore(run_dir, keep=1).latest()
    return AutoModelForCausalLM.from_pretrained(policy_directory(latest), dtype=torch.float32).eval()


def main(argv: Sequence[str]) -> int:
    """Print the table and draw the figure; returns the exit code. Raises ConfigError."""
    parser = argparse.ArgumentParser(
        prog="credence triplets-report", description="Table and figure of finished runs of task.name=triplets."
    )
    parser.add_argument("runs", nargs="+", metavar="[LABEL=]RUN_DIR,...", help="one method, and its runs")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="where the figure goes; default: none")
    options = parser.parse_args(list(argv))
    directories = parse_methods(options.runs)
    methods = {label: [read_run(each) for each in folders] for label, folders in directories.items()}
    print(
        "| method | trained prompts, by seed | held-out prompt, by seed | at step 0 "
        "| P(222 given 000) | P(222 given 111) |"
    )
    print("|---|---|---|---|---|---|")
    for label, runs in methods.items():
        forced = [switching_probabilities(directory) for directory in directories[label]]
        cells = (
            label,
            ", ".join(f"{_train_accuracy(run):.3f}" for run in runs),
            ", ".join(f"{run.summary['accuracy_after']:.3f}" for run in runs),
            ", ".join(f"{run.summary['accuracy_before']:.3f}" for run in runs),
            *(", ".join(f"{each[column]:.3f}" for each in forced) for column in range(len(FORCED))),
        )
        print(f"| {' | '.join(cells)} |")
    if options.figure is not None:
        _draw(methods, path=options.figure)
    return 0


def _train_accuracy(run: Run) -> float:
    return statistics.fmean(list(run.series("train/accuracy").values())[-TRAIN_UPDATES:])


def _draw(methods: dict[str, list[Run]], *, path: Path) -> None:
    figure = Figure(figsize=(6 * len(PANELS), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        draw_panel(axes, methods=methods, panel=panel)
        axes.set_ylim(-0.03, 1.03)
    legend_below(figure.axes[0])
    figure.savefig(path, dpi=110)
