"""Every configuration key: frozen typed dataclasses, one sentence and the unit beside each key.

The sections for what a run works with are here, those around a run in run_schema.py. Free of torch, Ray and OmegaConf,
so that any layer may take a section as an argument. A key without a default is required; `null` switches a feature off
where its sentence says so.
"""

from dataclasses import dataclass
from typing import Any, Literal

from system.config.run_schema import (
    CheckpointConfig,
    ClusterConfig,
    EvaluationConfig,
    GuardsConfig,
    TrackerConfig,
    WatchdogConfig,
)
from system.fields import key

Device = Literal["cpu", "cuda"]
Precision = Literal["float32", "bfloat16"]
TimeoutIs = Literal["wrong", "invalid"]
OnNewWeights = Literal["recompute", "keep", "finish"]
EMBEDDED_TASKS = ("gsm8k_chains", "triplets")  # their problems are shipped
TASKS_OF_ROWS = ("gsm8k", "math", "code")  # these need paths or a data set


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    name: str = key("Name of the run: folder under run.directory and W&B run name.")
    directory: str = key("Folder that holds all runs.", "runs")
    seed: int = key("Seed of prompt order, redrawn numbers and sampling.", 0, minimum=0, maximum=2**31 - 1)
    num_updates: int = key(
        "Updates of the whole run: each trains on one batch and publishes one policy version.", minimum=1
    )
    max_seconds: float | None = key(
        "Stop cleanly after this many seconds (with summary); null: no limit.", None, above=0
    )
    grace_seconds: float = key(
        "After SIGTERM: time to finish the update and to save a checkpoint of what is newer than the last one; "
        "0: end at once.",
        30.0,
        minimum=0,
    )
    flight_recorder_steps: int = key(
        "Newest updates kept whole in RUN_DIR/flight_recorder, for `credence replay`; 0: none.", 3, minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    path: str = key("Folder or hub id of a causal LM; 'builtin:NAME' is a policy shipped in system/data/policies.")
    revision: str | None = key("Hub revision; null: the default branch.", None)
    trust_remote_code: bool = key("Run model code that comes with a hub repository.", False)


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    name: str = key(
        "Which task to train on: gsm8k_chains, triplets (both shipped), gsm8k, math, code, or package.module:Name."
    )
    train_path: str | None = key("Local .jsonl or .parquet with training rows; null: embedded data or dataset.", None)
    test_path: str | None = key("Local .jsonl or .parquet with test rows; null: embedded data or dataset.", None)
    dataset: str | None = key("Hub data set, 'name' or 'name:configuration', in place of the two paths.", None)
    validation_size: int = key("Training problems held out for tuning.", 500, minimum=0)
    max_bad_rows_share: float = key(
        "Share of a file's rows that may be malformed: they are left out and named; more of them end the run.",
        0.01,
        minimum=0,
        maximum=1,
    )
    max_train_steps: int | None = key(
        "Training chains with more calculation steps are left out (gsm8k_chains); null: all. Evaluation keeps all.",
        None,
        minimum=1,
    )
    redraw: bool = key("Draw fresh numbers at each visit where the task can.", True)


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    prompts_per_step: int = key("Prompts of one update.", minimum=1)
    completions_per_prompt: int = key("Completions G drawn for each prompt.", minimum=1)
    tokens_per_microbatch: int = key("Upper bound of packed tokens in one forward pass of one rank.", minimum=1)
    optimizer_steps: int = key(
        "Optimizer steps that split one batch; the weights are published once, after the last.", 1, minimum=1
    )
    portions: int = key(
        "Parts of a batch that the learner starts on as soon as their groups are scored, while others are still "
        "generated: the same gradient but for the order of its sums. 1 waits for the whole batch.",
        1,
        minimum=1,
    )
    skip_zero_advantages: bool = key(
        "Leave completions without advantage out of the update: the same gradient in less time, where neither KL nor "
        "entropy needs them. Learner metrics then speak of the others only.",
        False,
    )


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    num_workers: int = key("Rollout workers (vLLM engines).", 1, minimum=1)
    min_workers: int | None = key(
        "Autoscaling keeps at least so many rollout workers; null: no autoscaling.", None, minimum=1
    )
    max_workers: int | None = key(
        "Autoscaling adds rollout workers up to so many; null: no autoscaling.", None, minimum=1
    )
    device: Device = key("Where the engines run.", "cpu")
    tensor_parallel_size: int = key("Devices of one engine.", 1, minimum=1)
    dtype: Precision = key("Engine precision.", "float32")
    temperature: float = key("Sampling temperature of training rollouts.", 1.0, above=0)
    top_p: float = key(
        "Nucleus sampling; training needs 1.0 (log-probabilities would be biased).", 1.0, above=0, maximum=1
    )
    top_k: int = key("Top-k sampling, 0 = off; training needs 0.", 0, minimum=0)
    max_prompt_tokens: int = key("Longer prompts are skipped and counted.", minimum=1)
    max_completion_tokens: int = key("Completions are cut at this length.", minimum=1)
    max_sequences: int = key("Sequences that one engine decodes at the same time.", 256, minimum=1)
    kv_cache_gib: float = key("KV cache of one engine in GiB (CPU engines).", 1.0, above=0)
    gpu_memory_utilization: float = key(
        "Share of GPU memory that one engine may take (GPU engines).", 0.85, above=0, maximum=1
    )
    on_new_weights: OnNewWeights = key(
        "What becomes of completions in flight when new weights come: recompute drops their keys and values and "
        "computes them again, keep goes on with those they have, finish lets them end under the old weights first.",
        "recompute",
    )
    enforce_eager: bool = key("Run the engine without CUDA graphs or compilation.", False)
    cpus_per_worker: float = key("Ray CPUs reserved for one worker.", 0.5, minimum=0)
    start_timeout_seconds: float = key("Deadline for an engine to start.", 300.0, above=0)
    group_timeout_seconds: float = key("Deadline for one group of completions.", 300.0, above=0)
    max_restarts: int = key("Dead rollout workers replaced in one run before it ends.", 10, minimum=0)


@dataclass(frozen=True, kw_only=True)
class RewardTermConfig:
    scorer: str = key("A built-in scorer, see docs/self_certainty.md, or your own: package.module:Name.")
    weight: float = key("Weight of the term; 0 only monitors.", 1.0)
    options: dict[str, Any] = key("What the scorer's own options are set to.", default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    num_workers: int = key("Reward workers (each holds the verifier's child processes).", 1, minimum=1)
    min_workers: int | None = key(
        "Autoscaling keeps at least so many reward workers; null: no autoscaling.", None, minimum=1
    )
    max_workers: int | None = key(
        "Autoscaling adds reward workers up to so many; null: no autoscaling.", None, minimum=1
    )
    processes_per_worker: int = key("Killable verifier child processes of one worker.", 1, minimum=1)
    timeout_seconds: float = key(
        "Limit for verifying one answer, in seconds of computing time (wall clock is only the backstop).", 5.0, above=0
    )
    timeout_is: TimeoutIs = key(
        "What an answer is that cannot be verified within its time or memory: invalid ones are left out of their "
        "group and counted, wrong ones get 0.",
        "invalid",
    )
    answer_after_thinking: bool = key(
        "Only what a response states behind </think> is its answer (off: the last answer, wherever it stands).", False
    )
    memory_limit_mib: int = key(
        "Address-space limit of one verifier process in MiB; its libraries need 128.", 1024, minimum=128
    )
    cpus_per_worker: float = key("Ray CPUs reserved for one worker.", 0.25, minimum=0)
    group_timeout_seconds: float = key("Deadline for scoring one group.", 120.0, above=0)
    max_restarts: int = key("Dead reward workers replaced in one run before it ends.", 10, minimum=0)
    terms: tuple[RewardTermConfig, ...] = key(
        "The reward: the weighted sum of these terms. Weight 0 only monitors. A list replaces the whole list.",
        (RewardTermConfig(scorer="verifier"),),
    )
    normalise_terms: bool = key(
        "Normalise each term within its group before they are weighted and added; their sum is not divided again.",
        False,
    )


@dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    num_workers: int = key("Scoring replicas of the policy; started only when a reward needs them.", 1, minimum=1)
    min_workers: int | None = key(
        "Autoscaling keeps at least so many scoring replicas; null: no autoscaling.", None, minimum=1
    )
    max_workers: int | None = key(
        "Autoscaling adds scoring replicas up to so many; null: no autoscaling.", None, minimum=1
    )
    mode: Literal["online", "lagged", "ema", "offline"] = key(
        "Weights that score: online the newest, lagged those of lag_versions ago, ema their moving average, "
        "offline model.path as it is.",
        "online",
    )
    lag_versions: int = key(
        "How many policy versions a lagged scorer stays behind; 0 in the other modes.", 0, minimum=0
    )
    ema_decay: float = key("Share of the old average that each update keeps (ema).", 0.99, minimum=0, maximum=1)
    max_lag_versions: int | None = key(
        "A score from weights further behind the policy that is trained is computed again; "
        "null: controller.max_staleness + lag_versions.",
        None,
        minimum=0,
    )
    temperature: float = key("Logits are divided by this before self-certainty is taken.", 1.0, above=0)
    mask_padded_vocab: bool = key(
        "Self-certainty leaves out rows of the LM head that are no tokens (off: as the published Intuitor code).", True
    )
    tokens_per_pass: int = key("Upper bound of packed tokens in one forward pass of a replica.", 16384, minimum=1)
    device: Device = key("Where the replicas run.", "cpu")
    dtype: Precision = key("Precision of a replica's forward pass.", "float32")
    threads_per_worker: int = key("CPU threads of one replica.", 1, minimum=1)
    cpus_per_worker: float = key("Ray CPUs reserved for one replica.", 0.5, minimum=0)
    gpus_per_worker: float = key("Ray GPUs reserved for one replica on cuda; below 1 shares a GPU.", 1.0, above=0)
    start_timeout_seconds: float = key("Deadline for a replica to start.", 300.0, above=0)
    group_timeout_seconds: float = key("Deadline for scoring one group.", 300.0, above=0)
    max_restarts: int = key("Dead replicas replaced in one run before it ends.", 10, minimum=0)


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    name: str = key(
        "How rewards become advantages: a built-in algorithm, each with options of its own, or package.module:Name.",
        "grpo",
    )
    options: dict[str, Any] = key("What the algorithm's own options are set to.", default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    name: str = key(
        "Per-token loss: clipped_surrogate, gspo (one ratio a sequence), cispo (clipped importance weight), or the "
        "import path package.module:Name of your own.",
        "clipped_surrogate",
    )
    options: dict[str, Any] = key(
        "Options of the loss, e.g. loss.options.clip_high=0.28; see docs/algorithms.md.", default_factory=dict
    )
    kl_coefficient: float = key("Weight of the k3 KL to the frozen reference; 0 loads no reference.", 0.0, minimum=0)
    entropy_coefficient: float = key("Weight of an entropy bonus.", 0.0, minimum=0)
    denominator: Literal["token_mean", "sequence_mean", "constant"] = key(
        "Global denominator of the loss: all loss tokens; each sequence's own tokens, then the sequences; or "
        "constant_length times the sequences (Dr. GRPO).",
        "token_mean",
    )
    constant_length: int | None = key(
        "Tokens by which every sequence's sum is divided (denominator=constant).", None, minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    num_ranks: int = key("Data-parallel learner ranks, one DeepSpeed engine each.", 1, minimum=1)
    device: Device = key("Where the ranks run.", "cpu")
    backend: Literal["gloo", "nccl"] = key("Collectives between ranks.", "gloo")
    dtype: Precision = key("Precision of forward and backward.", "float32")
    zero_stage: int = key("DeepSpeed ZeRO stage, 0 to 3.", 2, minimum=0, maximum=3)
    offload_optimizer: bool = key("Keep optimizer state in host memory (DeepSpeed offload).", False)
    gradient_checkpointing: bool = key("Recompute activations in the backward pass.", False)
    learning_rate: float = key("Peak learning rate of AdamW.", above=0)
    adam_betas: tuple[float, float] = key("AdamW betas.", (0.9, 0.95), minimum=0, below=1)
    adam_epsilon: float = key("AdamW epsilon: gradients far below it hardly move a weight.", 1e-8, above=0)
    weight_decay: float = key("AdamW weight decay.", 0.0, minimum=0)
    warmup_ratio: float = key("Share of the optimizer steps with linear warm-up.", 0.05, minimum=0, maximum=1)
    final_lr_ratio: float = key("Cosine schedule ends at this share of the peak rate.", 0.1, minimum=0, maximum=1)
    max_grad_norm: float = key("Global gradient norm is clipped here.", 1.0, above=0)
    threads_per_rank: int = key("CPU threads of one rank.", 1, minimum=1)
    cpus_per_rank: float = key("Ray CPUs reserved for one rank.", 0.5, minimum=0)
    start_timeout_seconds: float = key("Deadline for the group to start.", 300.0, above=0)
    max_skipped_steps: int = key(
        "Optimizer steps in a row that may be skipped for a gradient that is NaN or infinite; one more ends the run.",
        3,
        minimum=0,
    )
    step_timeout_seconds: float = key("Deadline for the optimizer steps of one batch.", 600.0, above=0)
    heartbeat_timeout_seconds: float = key(
        "A rank that does not answer a ping for so long counts as dead; they come once a second, also in a step.",
        60.0,
        above=0,
    )
    max_restarts: int = key(
        "Times that the ranks are started again, from the last checkpoint, after one of them died; one more ends the "
        "run.",
        3,
        minimum=0,
    )


@dataclass(frozen=True, kw_only=True)
class WeightSyncConfig:
    transfer: Literal["broadcast", "store"] = key(
        "How rollout workers that are there anyway get new weights: one broadcast to all, or each from the object "
        "store. New workers and scoring replicas always load from the store.",
        "broadcast",
    )
    backend: Literal["gloo", "nccl"] = key("Broadcast from learner rank 0 to rollout workers.", "gloo")
    bucket_mib: int = key("Weights are gathered, stored and sent in buckets of about this size.", 16, minimum=1)
    timeout_seconds: float = key("Deadline to publish, to open a broadcast, to send, and to load.", 120.0, above=0)
    canary_tolerance_nats: float | None = key(
        "Largest log-probability difference between learner and receiver; null: 8 times what it is at the first load, "
        "where both hold the same files.",
        None,
        above=0,
    )


@dataclass(frozen=True, kw_only=True)
class ControllerConfig:
    max_staleness: int = key("Policy versions a sample may be behind when trained on; 0 = synchronous.", 0, minimum=0)
    max_dropped_in_a_row: int = key(
        "The run ends, with the reason that prevails, when so many groups in a row gave nothing to train on.",
        256,
        minimum=1,
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    run: RunConfig
    model: ModelConfig
    task: TaskConfig
    batch: BatchConfig
    rollout: RolloutConfig
    reward: RewardConfig = RewardConfig()
    scorer: ScorerConfig = ScorerConfig()
    guards: GuardsConfig = GuardsConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    loss: LossConfig = LossConfig()
    learner: LearnerConfig
    weight_sync: WeightSyncConfig = WeightSyncConfig()
    controller: ControllerConfig = ControllerConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracker: TrackerConfig = TrackerConfig()
    cluster: ClusterConfig = ClusterConfig()
