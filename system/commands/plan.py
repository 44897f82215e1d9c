"""What a configuration amounts to: the numbers that follow from the three batch knobs, and what runs where.

Called by `credence train`, which prints it before it starts anything and stops there with --dry-run. Pure apart from
reading the data and a local model's headers; imports neither torch nor Ray.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from learner.schedule import learning_rate_at
from system.config.algorithms import evidence_of
from system.config.imports import label_of
from system.config.machine import joins_cluster, model_folder, read_safetensors_header
from system.config.resources import ActorKind, actor_needs, uses_scoring_replicas
from system.config.schema import (
    BatchConfig,
    Config,
    EvaluationConfig,
    LearnerConfig,
    RewardTermConfig,
    ScorerConfig,
    TaskConfig,
)
from system.config.scorers import reward_weights, terms_on
from system.data.tasks import make_task
from system.data.tasks.text_task import TextTask
from system.interfaces import Split

_BYTES_OF = {"float32": 4, "bfloat16": 2}
_MIB = 2**20
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """One optimizer step, from the three batch knobs."""

    completions_per_step: int
    sequences_per_rank: int
    max_tokens_per_step: int  # prompt and completion, all at their limits
    max_microbatches_per_rank: int  # when every sequence has its greatest length


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """The whole run, unless run.max_seconds ends it first."""

    num_prompts: int
    num_completions: int
    num_problems: dict[Split, int]  # by split; empty: a hub data set, read when the run starts
    row_remarks: tuple[str, ...]  # what was left out of the data, or read in another way
    learning_rates: tuple[tuple[int, float], ...]  # (update, rate): first, peak, middle, last
    num_evaluations: int
    evaluation_completions: int  # greedy and sampled, all evaluations together
    num_checkpoints: int


def plan_batch(batch: BatchConfig, *, max_sequence_tokens: int, num_ranks: int) -> BatchPlan:
    """The derived numbers of one step; `max_sequence_tokens` is prompt and completion at their limits."""
    completions = batch.prompts_per_step * batch.completions_per_prompt
    per_rank = completions // num_ranks
    return BatchPlan(
        completions_per_step=completions,
        sequences_per_rank=per_rank,
        max_tokens_per_step=completions * max_sequence_tokens,
        max_microbatches_per_rank=math.ceil(per_rank / (batch.tokens_per_microbatch // max_sequence_tokens)),
    )


def plan_run(config: Config) -> RunPlan:
    """The derived numbers of the whole run. Raises ConfigError when the data cannot be read, or split as asked."""
    updates = config.run.num_updates
    num_problems, row_remarks = read_data(config.task)
    return RunPlan(
        num_prompts=updates * config.batch.prompts_per_step,
        num_completions=updates * config.batch.prompts_per_step * config.batch.completions_per_prompt,
        num_problems=num_problems,
        row_remarks=row_remarks,
        learning_rates=_schedule_points(
            config.learner, num_updates=updates, optimizer_steps=config.batch.optimizer_steps
        ),
        num_evaluations=2 + _count_between(config.evaluation.every_updates, num_updates=updates),
        evaluation_completions=_evaluation_completions(config.evaluation, num_updates=updates),
        num_checkpoints=1 + _count_between(config.checkpoint.every_updates, num_updates=updates),
    )


def read_data(task: TaskConfig) -> tuple[dict[Split, int], tuple[str, ...]]:
    """Problems by split, every row read and checked, and remarks on rows that were left out. Raises ConfigError.

    Nothing for a hub data set, which is read when the run starts.
    """
    if task.dataset is not None:
        return {}, ()
    reader = make_task(task)
    counts = {split: len(reader.load(split)) for split in SPLITS}
    reports = reader.row_reports if isinstance(reader, TextTask) else ()
    return counts, tuple(line for report in reports for line in report.lines())


def _count_between(every: int | None, *, num_updates: int) -> int:
    """How often something that happens every `every` updates happens before the last update."""
    return 0 if every is None else (num_updates - 1) // every


def _evaluation_completions(evaluation: EvaluationConfig, *, num_updates: int) -> int:
    periodic = evaluation.num_problems * (1 + evaluation.completions_per_problem)
    final = evaluation.num_problems_final * (1 + evaluation.completions_per_problem_final)
    return 2 * final + _count_between(evaluation.every_updates, num_updates=num_updates) * periodic


def _schedule_points(
    learner: LearnerConfig, *, num_updates: int, optimizer_steps: int
) -> tuple[tuple[int, float], ...]:
    """Some updates, with the rate of the last optimizer step of each."""
    peak = min(max(0, math.ceil(learner.warmup_ratio * num_updates) - 1), num_updates - 1)
    updates = sorted({0, peak, (peak + num_updates - 1) // 2, num_updates - 1})
    return tuple(
        (
            update,
            learning_rate_at(
                (update + 1) * optimizer_steps - 1,
                num_steps=num_updates * optimizer_steps,
                peak=learner.learning_rate,
                warmup_ratio=learner.warmup_ratio,
                final_ratio=learner.final_lr_ratio,
            ),
        )
        for update in updates
    )


def actor_notes(config: Config) -> dict[ActorKind, str]:
    """What one actor of each kind holds; the controller itself runs in the driver process."""
    rollout, scorer, learner, reward = config.rollout, config.scorer, config.learner, config.reward
    cache = (
        f"{rollout.gpu_memory_utilization:.0%} of GPU memory"
        if rollout.device == "cuda"
        else f"{rollout.kv_cache_gib:g} GiB KV cache"
    )
    return {
        "rollout worker": f"vLLM, {rollout.dtype}, {cache}, {rollout.max_sequences} sequences at a time",
        "scoring replica": f"{_what_replicas_score(config)}; {scorer.dtype}, {_scoring_weights(scorer)}, "
        f"{scorer.tokens_per_pass:,} tokens in one pass",
        "learner rank": f"DeepSpeed, {learner.dtype}, ZeRO {learner.zero_stage}, {learner.backend}"
        + _learner_memory(config),
        "reward worker": f"{_labels(terms_on(reward, 'answers', 'values'))}; "
        f"{reward.processes_per_worker} child processes of at most {reward.memory_limit_mib} MiB",
    }


def _what_replicas_score(config: Config) -> str:
    parts = [term.scorer for term in terms_on(config.reward, "policy")]
    evidence = evidence_of(config.algorithm)
    return ", ".join([*parts, *([evidence.note] if evidence is not None else [])])


def _labels(terms: Sequence[RewardTermConfig]) -> str:
    return ", ".join(label_of(term.scorer) for term in terms)


def _scoring_weights(scorer: ScorerConfig) -> str:
    return {
        "online": "newest weights",
        "lagged": f"weights of {scorer.lag_versions} versions ago",
        "ema": f"moving average of the weights (decay {scorer.ema_decay:g})",
        "offline": "weights of model.path",
    }[scorer.mode]


def _learner_memory(config: Config) -> str:
    folder = model_folder(config.model.path)
    num_parameters = count_parameters(folder) if folder is not None else None
    if num_parameters is None:
        return ""
    state = learner_state_bytes(config.learner, num_parameters=num_parameters)
    reference = config.loss.kl_coefficient > 0
    state += num_parameters * _BYTES_OF[config.learner.dtype] if reference else 0
    return f", {state / _MIB:.0f} MiB of state for {num_parameters / 1e6:.2f} M parameters" + (
        " and their reference" if reference else ""
    )


def learner_state_bytes(learner: LearnerConfig, *, num_parameters: int) -> int:
    """Bytes of weights, gradients and AdamW state on one rank, without activations.

    Stage 1 splits float32 master weights and moments over the ranks, stage 2 also gradients, stage 3 also weights.
    """
    width, ranks, stage = _BYTES_OF[learner.dtype], learner.num_ranks, learner.zero_stage
    weights = width / (ranks if stage >= 3 else 1)
    gradients = width / (ranks if stage >= 2 else 1)
    has_master = stage >= 1 or learner.dtype != "float32"
    optimizer = (8 + 4 * has_master) / (ranks if stage >= 1 else 1)
    return math.ceil(num_parameters * (weights + gradients + optimizer))


def snapshot_bytes(learner: LearnerConfig, *, num_parameters: int) -> int:
    """Bytes of one published version of the weights."""
    return num_parameters * _BYTES_OF[learner.dtype]


def checkpoint_bytes(learner: LearnerConfig, *, num_parameters: int) -> int:
    """Bytes of one checkpoint, all ranks together: weights twice (for the learner, and in Hugging Face format) and
    AdamW's state in float32. A reference is not saved.
    """
    width = _BYTES_OF[learner.dtype]
    has_master = learner.zero_stage >= 1 or learner.dtype != "float32"
    return num_parameters * (2 * width + 8 + 4 * has_master)


def count_parameters(folder: Path) -> int | None:
    """Parameters in a model folder, from the headers of its safetensors files; None where there are none."""
    headers = [read_safetensors_header(file) for file in sorted(folder.glob("*.safetensors"))]
    shapes = [tensor["shape"] for header in headers for name, tensor in header.items() if name != "__metadata__"]
    return sum(math.prod(shape) for shape in shapes) if headers else None


def plan_text(config: Config) -> str:
    """The derivation and the placement as a page of text."""
    run = plan_run(config)
    data = _data_lines(config.task, num_problems=run.num_problems, row_remarks=run.row_remarks)
    return "\n".join([*data, "", *_derivation_lines(config, run=run), "", *_placement_lines(config)])


def _derivation_lines(config: Config, *, run: RunPlan) -> list[str]:
    longest = config.rollout.max_prompt_tokens + config.rollout.max_completion_tokens
    batch = plan_batch(config.batch, max_sequence_tokens=longest, num_ranks=config.learner.num_ranks)
    knobs = config.batch
    passes = f" = {run.num_prompts / run.num_problems['train']:.2f} passes" if run.num_problems.get("train") else ""
    best = f" and the best {config.checkpoint.keep_best}" if config.checkpoint.keep_best else ""
    limit = "" if config.run.max_seconds is None else f", or until {config.run.max_seconds:g} s have passed"
    return [
        "One optimizer step, from the three batch knobs",
        f"  completions          {batch.completions_per_step:,} = {knobs.prompts_per_step} prompts"
        f" x {knobs.completions_per_prompt} completions",
        f"  sequences per rank   {batch.sequences_per_rank:,} on {config.learner.num_ranks} ranks",
        f"  tokens               at most {batch.max_tokens_per_step:,} = {batch.completions_per_step:,} x {longest}",
        f"  micro-batches        at most {batch.max_microbatches_per_rank} per rank of"
        f" {knobs.tokens_per_microbatch:,} tokens",
        f"The run: {config.run.num_updates} updates{limit}",
        f"  prompts              {run.num_prompts:,}{passes}",
        f"  completions          {run.num_completions:,}",
        "  learning rate        "
        + ", ".join(f"{rate:.3g} at update {update + 1}" for update, rate in run.learning_rates),
        f"  evaluations          {run.num_evaluations} on {config.evaluation.split},"
        f" {run.evaluation_completions:,} completions",
        f"  checkpoints          {run.num_checkpoints}, the newest {config.checkpoint.keep}{best} kept in"
        f" {config.run.directory}/{config.run.name}",
    ]


def _data_lines(task: TaskConfig, *, num_problems: dict[Split, int], row_remarks: tuple[str, ...]) -> list[str]:
    if not num_problems:
        return [f"Data: {task.name} from the hub data set {task.dataset}, read when the run starts"]
    paths = {"train": task.train_path, "validation": task.train_path, "test": task.test_path}
    return [
        f"Data: {task.name}, every row read and checked",
        *(
            f"  {split:<20} {number:,} problems" + (f" of {paths[split]}" if paths[split] else "")
            for split, number in num_problems.items()
        ),
        *(f"  {remark}" for remark in row_remarks),
    ]


def evaluation_text(config: Config) -> str:
    """What `credence evaluate` would do, as a page of text. Raises ConfigError when the data cannot be read."""
    evaluation, needs = config.evaluation, actor_needs(config)
    counts, row_remarks = read_data(config.task)
    num_problems = min(evaluation.num_problems_final, counts.get(evaluation.split, evaluation.num_problems_final))
    completions = num_problems * (1 + evaluation.completions_per_problem_final)
    return "\n".join(
        [
            *_data_lines(config.task, num_problems=counts, row_remarks=row_remarks),
            f"Evaluation of {config.model.path}: at most {num_problems:,} problems of {evaluation.split},"
            f" {completions:,} completions (one greedy, {evaluation.completions_per_problem_final} sampled each)",
            *(f"  {needs[kind].count} {kind}s, {needs[kind].device}" for kind in ("rollout worker", "reward worker")),
        ]
    )


def _placement_lines(config: Config) -> list[str]:
    needs, notes = actor_needs(config).values(), actor_notes(config)
    address = config.cluster.address
    where = f"the Ray cluster of {'this job' if address == 'auto' else address}"
    lines = [
        f"Placement on {where if joins_cluster(config.cluster) else 'Ray on this machine'}",
        f"  {'actor':<18}{'count':>5}  {'device':<6}{'CPUs':>6}{'GPUs':>6}  each",
    ]
    lines += [
        f"  {need.kind:<18}{need.count:>5}  {need.device:<6}{need.cpus:>6g}{need.gpus:>6g}  {notes[need.kind]}"
        for need in needs
    ]
    cpus = sum(need.count * need.cpus for need in needs)
    gpus = sum(need.count * need.gpus for need in needs)
    lines.append(f"  {'total':<18}{sum(need.count for need in needs):>5}  {'':<6}{cpus:>6g}{gpus:>6g}")
    lines.append(
        f"  weights: every version a snapshot in the object store, in buckets of {config.weight_sync.bucket_mib} MiB;"
        f" {_transfer(config)}"
    )
    weights = ", ".join(
        f"{weight:g} x {scorer}" if weight else f"{scorer} (monitored)"
        for scorer, weight in reward_weights(config.reward).items()
    )
    lines.append(f"  reward: {weights}")
    return lines


def _transfer(config: Config) -> str:
    """Who gets the weights how."""
    sync, num_workers = config.weight_sync, config.rollout.num_workers
    way = f"broadcast by {sync.backend}" if sync.transfer == "broadcast" else "each from the store"
    rollouts = f"to {num_workers} rollout workers {way}"
    if not uses_scoring_replicas(config) or config.scorer.mode == "offline":
        return rollouts
    return f"{rollouts}, to {config.scorer.num_workers} scoring replicas from the store"
