"""A Markdown table of several runs' accuracies with the mean over seeds: `results_table.py RUN_DIR ...`

The interval of the mean is Student's t over runs (95 %); with three seeds it is wide, and honest.
"""

import json
import statistics
import sys
from pathlib import Path

# two-sided 95 % quantiles of Student's t, by number of runs
T_QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}
ROWS = (
    ("sampled (pass@1)", "accuracy_before", "accuracy_after"),
    ("greedy", "accuracy_greedy_before", "accuracy_greedy_after"),
    ("pass@8", "pass_at_8_before", "pass_at_8_after"),
)


def mean_with_interval(values: list[float]) -> str:
    """Mean and half width of its interval, both in the unit of the values."""
    mean = statistics.fmean(values)
    if len(values) not in T_QUANTILES:
        return f"{mean:+.1f}"
    half = T_QUANTILES[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.1f} ± {half:.1f}"


def main() -> None:
    summaries = [json.loads((Path(run) / "summary.json").read_text()) for run in sys.argv[1:]]
    if not summaries:
        sys.exit(__doc__)
    print(
        f"| measure | {' | '.join(Path(run).name for run in sys.argv[1:])} | gain in points, mean with 95 % interval |"
    )
    print("|---|" + "---|" * (len(summaries) + 1))
    for label, before, after in ROWS:
        cells = [f"{100 * summary[before]:.1f} % → {100 * summary[after]:.1f} %" for summary in summaries]
        gains = [100 * (summary[after] - summary[before]) for summary in summaries]
        print(f"| {label} | {' | '.join(cells)} | {mean_with_interval(gains)} |")
    minutes = [f"{summary['num_updates']} updates, {summary['seconds'] / 60:.1f} min" for summary in summaries]
    print(f"| cost | {' | '.join(minutes)} | |")


if __name__ == "__main__":
    main()
