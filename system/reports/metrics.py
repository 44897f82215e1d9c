"""The metrics that the driver process makes; the learner and the guards declare theirs beside the code."""

from collections.abc import Mapping

from system.metrics import MetricDefinition, Reduction

START_PHASE = "start"  # from the command to the first weight sync
PHASES = ("rollout", "rescore", "batch", "train", "weight_sync", "evaluate", "checkpoint")


def _defined(reduction: Reduction, descriptions: Mapping[str, str]) -> tuple[MetricDefinition, ...]:
    return tuple(
        MetricDefinition(name=name, description=description, reduction=reduction)
        for name, description in descriptions.items()
    )


UNKNOWN_TOKENS = "completion/unknown_tokens_fraction"


PROGRESS_METRICS = (
    MetricDefinition(name="progress/policy_version", description="Optimizer steps done.", reduction="last"),
    MetricDefinition(
        name="progress/tokens", description="Completion tokens trained on since the start.", reduction="last"
    ),
    MetricDefinition(
        name="progress/seconds", description="Running time over all sessions of the run.", reduction="last"
    ),
)

REWARD_METRICS = (
    *_defined(
        "mean",
        {
            "reward/mean": "Weighted reward over valid completions.",
            "reward/std": "Mean over groups of the standard deviation within the group.",
            "reward/zero_spread_fraction": "Groups whose members all have the same reward (no advantage).",
            "train/accuracy": "Verifier's verdict over valid training completions, 0-1.",
            "advantage/mean_abs": "Mean absolute advantage over loss tokens.",
            "advantage/right_mean": "Mean advantage of a completion that the verifier finds right.",
            "advantage/wrong_mean": "The same of wrong ones: a reward that agrees with the verifier has it lower.",
            "completion/length_mean_tokens": "Tokens per completion.",
            "completion/truncated_fraction": "Completions cut at max_completion_tokens.",
            "completion/distinct_2": "Distinct 2-grams over all 2-grams of the update's completions.",
            "completion/repetition_4": "4-grams of a completion that occurred earlier in it, mean over completions.",
            UNKNOWN_TOKENS: "Sampled ids that the tokenizer does not know, over all sampled tokens.",
            "completion/reflection_words_mean": "Words that announce a second thought, per completion.",
        },
    ),
    MetricDefinition(name="completion/length_max_tokens", description="Longest completion.", reduction="max"),
    *_defined(
        "sum",
        {
            "reward/num_invalid": "Completions without a valid reward, left out of the statistics.",
            "reward/invalid_<reason>": "Invalid rewards by reason.",
        },
    ),
    *_defined(
        "last",
        {
            "reward/num_workers": "Reward workers that serve.",
            "reward/num_restarts": "Reward workers replaced so far.",
        },
    ),
    MetricDefinition(name="reward/<scorer>_mean", description="Mean valid value of one scorer."),
    MetricDefinition(name="reward/<scorer>_seconds", description="Scoring time of one completion by one scorer."),
)

BATCH_METRICS = (
    *_defined(
        "sum",
        {
            "batch/num_groups": "Groups of the update.",
            "batch/num_sequences": "Sequences of the update.",
            "batch/num_loss_tokens": "Completion tokens of the update, the loss denominator under token_mean.",
            "batch/num_micro_batches": "Packed micro-batches of one rank.",
        },
    ),
    MetricDefinition(
        name="batch/num_skipped_prompts", description="Prompts longer than max_prompt_tokens so far.", reduction="last"
    ),
)

WEIGHT_SYNC_METRICS = (
    MetricDefinition(
        name="weight_sync/seconds", description="Bringing all receivers to a published version.", reduction="sum"
    ),
    MetricDefinition(
        name="weight_sync/publish_seconds", description="Gathering, digest and store, within the step.", reduction="sum"
    ),
    MetricDefinition(
        name="weight_sync/pause_seconds", description="Longest pause of a rollout engine.", reduction="max"
    ),
    MetricDefinition(name="weight_sync/bytes", description="Bytes of one copy of the weights.", reduction="last"),
    MetricDefinition(name="weight_sync/num_receivers", description="Receivers that were synced.", reduction="last"),
    MetricDefinition(
        name="weight_sync/num_from_store", description="Of these, loaded alone from the store.", reduction="last"
    ),
    MetricDefinition(
        name="weight_sync/proved_fraction",
        description="Smallest share of the weights' bytes that were found again in what a receiver holds.",
        reduction="last",
    ),
    MetricDefinition(
        name="weight_sync/canary_max_abs_diff_nats",
        description="Largest log-probability difference between learner and any receiver.",
        reduction="max",
    ),
)

SCORER_METRICS = (
    MetricDefinition(
        name="scorer/lag_mean_versions", description="Versions between the scorers' weights and the trained policy."
    ),
    MetricDefinition(
        name="scorer/lag_max_versions", description="Largest lag of a score of the update.", reduction="max"
    ),
    MetricDefinition(
        name="scorer/logprob_max_abs_diff_nats",
        description="Largest difference between the scorers' and the engines' log-probabilities of the same tokens.",
        reduction="max",
    ),
    *_defined(
        "last",
        {
            "scorer/num_workers": "Scoring replicas that serve.",
            "scorer/num_restarts": "Scoring replicas replaced so far.",
            "scorer/num_scored_again": "Groups scored again because their scores were too old, so far.",
        },
    ),
)

_SHARES_OF_THE_STEP = {
    "learner/busy_fraction": "Share of the step in which the learner trained and published.",
    "wait/worker_fraction": "Share of the step that waited for groups that no rollout worker had room for.",
    "wait/generation_fraction": "Share of the step that waited for groups that were generated.",
    "wait/scoring_fraction": "Share of the step that waited for groups that were scored.",
    "wait/straggler_fraction": "Of these three together: a single group of the batch was missing.",
    "wait/rescoring_fraction": "Share of the step that waited for scores of newer weights.",
    "wait/credit_fraction": "Share of the step that waited for credit and packing.",
    "wait/weight_sync_fraction": "Share of the step that waited for the workers to load weights.",
    "wait/evaluation_fraction": "Share of the step that waited for an evaluation.",
    "wait/checkpoint_fraction": "Share of the step that waited for a checkpoint.",
    "wait/other_fraction": "The rest of the step; with learner/busy_fraction all but the straggler's add up to 1.",
}
_USE_OF_A_POOL = {
    "busy_fraction": "Seconds of serving {} workers with at least one call, over all seconds that they served.",
    "load_fraction": "Mean load of serving {} workers over the most that one takes.",
    "call_p50_seconds": "Median time from a call of the {} workers to its answer, the wait for a worker included.",
    "call_p99_seconds": "99th percentile of the same time of the {} workers.",
}

RUNTIME_METRICS = (
    MetricDefinition(name="staleness/mean_versions", description="Versions between sampling and training, per group."),
    MetricDefinition(name="staleness/max_versions", description="Largest staleness of the update.", reduction="max"),
    MetricDefinition(
        name="rollout/tokens_per_second",
        description="Completion tokens of the batch over the time since the last weights were published.",
    ),
    MetricDefinition(name="rollout/num_workers", description="Rollout workers that serve.", reduction="last"),
    MetricDefinition(name="rollout/num_restarts", description="Rollout workers replaced so far.", reduction="last"),
    *(
        MetricDefinition(
            name=f"queue/{state}_groups",
            description=f"Groups that are {state}.",
            reduction="last",
            depends_on_timing=True,
        )
        for state in ("leased", "generating", "scoring", "ready", "training", "outstanding")
    ),
    *(
        MetricDefinition(
            name=f"time/{phase}_seconds", description=f"Time that the update waited for {phase}.", reduction="sum"
        )
        for phase in (START_PHASE, *PHASES)
    ),
    *(
        MetricDefinition(name=name, description=description, depends_on_timing=True)
        for name, description in _SHARES_OF_THE_STEP.items()
    ),
    *(
        MetricDefinition(name=f"{area}/{name}", description=description.format(workers), depends_on_timing=True)
        for area, workers in (("rollout", "rollout"), ("reward", "reward"), ("scorer", "scoring"))
        for name, description in _USE_OF_A_POOL.items()
    ),
    MetricDefinition(
        name="learner/recovery_seconds",
        description="From the moment when the loss of a learner rank was noticed to the end of the next update.",
        reduction="sum",
    ),
    MetricDefinition(name="time/step_seconds", description="Wall time of the update.", reduction="sum"),
    MetricDefinition(
        name="checkpoint/write_seconds",
        description="Writing of the checkpoints that were finished, while training went on.",
        reduction="sum",
    ),
    *_defined(
        "last",
        {
            "ledger/leased": "Groups handed out since the start.",
            "ledger/generated": "Groups generated since the start, regenerated ones each time.",
            "ledger/scored": "Groups scored since the start.",
            "ledger/trained": "Groups trained on since the start.",
            "ledger/regenerated": "Groups generated again after a worker's death.",
            "ledger/dropped": "Groups dropped since the start.",
            "ledger/in_flight": "Groups on their way.",
            "ledger/undone": "Groups trained on, undone with a lost learner, and generated again.",
            "learner/num_restarts": "Restarts of the learner group so far, from the last checkpoint.",
            "ledger/dropped_<reason>": "Dropped groups by reason.",
        },
    ),
)

TRACKER_METRICS = (
    MetricDefinition(
        name="tracker/num_failures", description="W&B calls that failed.", reduction="last", depends_on_timing=True
    ),
)

EVALUATION_METRICS = _defined(
    "last",
    {
        "eval/accuracy_sampled": "Held-out accuracy of sampled completions (pass@1), 0-1.",
        "eval/accuracy_sampled_low": "Lower end of its 95 % interval over problems.",
        "eval/accuracy_sampled_high": "Upper end of its 95 % interval over problems.",
        "eval/accuracy_greedy": "Held-out accuracy of greedy completions, 0-1.",
        "eval/accuracy_greedy_low": "Lower end of its 95 % interval over problems.",
        "eval/accuracy_greedy_high": "Upper end of its 95 % interval over problems.",
        "eval/pass_at_<k>": "Unbiased estimate that one of k samples is right, 0-1.",
        "eval/num_problems": "Held-out problems asked.",
        "eval/num_completions": "Sampled completions for each problem.",
        "eval/length_mean_tokens": "Tokens per sampled completion.",
        "eval/tokens_per_solved": "Tokens of all sampled completions over the number of right ones.",
        "eval/reflection_words_mean": "Words that announce a second thought, per sampled completion.",
        "eval/truncated_fraction": "Sampled completions cut at max_completion_tokens.",
        "eval/num_invalid": "Sampled completions without a valid verdict, counted as wrong.",
        "eval/policy_version": "Policy version that wrote the completions.",
    },
)

SYSTEM_METRICS = (
    *PROGRESS_METRICS,
    *REWARD_METRICS,
    *BATCH_METRICS,
    *WEIGHT_SYNC_METRICS,
    *SCORER_METRICS,
    *RUNTIME_METRICS,
    *TRACKER_METRICS,
    *EVALUATION_METRICS,
)
