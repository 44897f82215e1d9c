"""What Markovian RL and BARL learned on the triplets task, over several runs each.

    python -m tools.triplets_report FIGURE.png LABEL=RUN_DIR,RUN_DIR,... [LABEL=...]

The table: accuracy on the trained prompts (mean of the last updates) and on the one that is held out, by seed, and the
probability that the policy, made to begin its answer to the held-out prompt with 000 or 111, goes on to produce 222.
That one is exact: the sum over all continuations. The figure: both accuracies over updates, mean and range of the runs.
"""

import itertools
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, PreTrainedModel

from system.runtime.checkpoint import CheckpointStore, policy_directory
from tools.compare_runs import Panel, Run, draw_panel, parse_methods

TRAIN_UPDATES = 20  # the last ones, of which training accuracy is the mean
HELD_OUT_PROMPT, HELD_OUT_ANSWER = 2, (2, 2, 2)
NUM_TOKENS = 12  # of a response
FORCED = ((0, 0, 0), (1, 1, 1))
CHUNK = 4096
PANELS = (
    Panel(metric="train/accuracy", title="accuracy on the trained prompts 0 and 1", window=5),
    Panel(metric="eval/accuracy_sampled", title="accuracy on the held-out prompt 2"),
)


def probability_of_answer(model: PreTrainedModel, *, forced: Sequence[int]) -> float:
    """P(222 occurs behind `forced` | prompt 2, forced): the sum over all continuations up to NUM_TOKENS."""
    prefix = (HELD_OUT_PROMPT, *forced)
    endings = [
        ending
        for ending in itertools.product(range(3), repeat=NUM_TOKENS - len(forced))
        if any(ending[start : start + 3] == HELD_OUT_ANSWER for start in range(len(ending) - 2))
    ]
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(endings), CHUNK):
            tokens = torch.tensor([prefix + ending for ending in endings[start : start + CHUNK]])
            logprobs = model(tokens).logits.double().log_softmax(-1)
            taken = logprobs[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
            total += float(taken[:, len(prefix) - 1 :].sum(-1).exp().sum())
    return total


def final_policy(run_dir: Path) -> PreTrainedModel:
    latest = CheckpointStore(run_dir, keep=1).latest()
    return AutoModelForCausalLM.from_pretrained(policy_directory(latest), dtype=torch.float32).eval()


def main(arguments: Sequence[str]) -> None:
    if len(arguments) < 2:
        sys.exit(__doc__)
    methods, directories = parse_methods(arguments[1:], usage=__doc__ or "")
    print(
        "| method | trained prompts, by seed | held-out prompt, by seed | at step 0 "
        "| P(222 given 000) | P(222 given 111) |"
    )
    print("|---|---|---|---|---|---|")
    for label, runs in methods.items():
        forced = [
            [probability_of_answer(final_policy(directory), forced=each) for each in FORCED]
            for directory in directories[label]
        ]
        cells = (
            label,
            ", ".join(f"{_train_accuracy(run):.3f}" for run in runs),
            ", ".join(f"{run.summary['accuracy_after']:.3f}" for run in runs),
            ", ".join(f"{run.summary['accuracy_before']:.3f}" for run in runs),
            *(", ".join(f"{each[column]:.3f}" for each in forced) for column in range(len(FORCED))),
        )
        print(f"| {' | '.join(cells)} |")
    _draw(methods, path=Path(arguments[0]))


def _train_accuracy(run: Run) -> float:
    return statistics.fmean(list(run.series("train/accuracy").values())[-TRAIN_UPDATES:])


def _draw(methods: dict[str, list[Run]], *, path: Path) -> None:
    figure = Figure(figsize=(6 * len(PANELS), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        draw_panel(axes, methods=methods, panel=panel)
        axes.set_ylim(-0.03, 1.03)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:])
