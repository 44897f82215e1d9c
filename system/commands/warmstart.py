"""`credence warmstart`: make the embedded policy by supervised training on redrawn arithmetic chains.

Every example is a training chain with fresh leaf numbers, so that nothing can be memorised; held-out accuracy is
measured on the original chains. Called by system/cli.py, or `python -m system.commands.warmstart --help`.
"""

import argparse
import dataclasses
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM
from transformers.utils.logging import disable_progress_bar

from system.data.chains.accuracy import Accuracy, measure_accuracy
from system.data.chains.examples import Example, stream_batches
from system.data.character_tokenizer import build_character_tokenizer, character_ids
from system.data.tasks.gsm8k_chains import Gsm8kChainsTask
from system.errors import ConfigError

NUM_EMBEDDING_ROWS = 32  # a few more than there are characters
HEAD_SIZE = 32  # the smallest that every vLLM attention backend takes
IGNORED_LABEL = -100
_COUNTS = (
    "num_steps",
    "batch_size",
    "num_layers",
    "intermediate_size",
    "validation_size",
    "evaluation_interval_steps",
    "num_evaluation_problems",
    "num_final_problems",
    "max_new_tokens",
    "num_threads",
)


@dataclass(frozen=True, kw_only=True)
class WarmstartSettings:
    out: str = "runs/warmstart"  # folder of the new policy; must not exist
    seed: int = 0
    num_steps: int = 2200
    batch_size: int = 32  # chains a step
    learning_rate: float = 3e-3
    final_learning_rate_fraction: float = 0.1  # end of the cosine, as a share of learning_rate
    num_warmup_steps: int = 50
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    hidden_size: int = 128
    num_layers: int = 5
    intermediate_size: int = 384
    max_length: int = 512  # tokens of prompt and completion that the policy can hold
    validation_size: int = 500
    evaluation_interval_steps: int = 400
    num_evaluation_problems: int = 300  # of the validation split, during training
    num_final_problems: int = 2000  # of each split, at the end
    max_new_tokens: int = 128
    num_threads: int = 2
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class WarmstartResult:
    out: str
    num_parameters: int
    seconds: float  # training with its evaluations
    final_loss: float  # nats a completion token, of the last 100 steps
    validation: Accuracy
    test: Accuracy


@dataclass(frozen=True, kw_only=True)
class Progression:
    """What an observer is told at each evaluation during training."""

    step: int
    loss: float  # nats a completion token, of the steps since the last evaluation
    validation: Accuracy
    seconds: float


Observer = Callable[[Progression, Qwen2ForCausalLM], None]


def build_policy(settings: WarmstartSettings, *, tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    """An untrained policy in float32 with tied embeddings. Raises ConfigError when the heads do not divide."""
    if settings.hidden_size % HEAD_SIZE or settings.hidden_size < HEAD_SIZE:
        raise ConfigError(
            "hidden_size",
            given=settings.hidden_size,
            expected=f"a multiple of the head size {HEAD_SIZE}",
            fix=f"hidden_size={max(1, settings.hidden_size // HEAD_SIZE) * HEAD_SIZE}",
        )
    num_heads = settings.hidden_size // HEAD_SIZE
    config = Qwen2Config(
        vocab_size=NUM_EMBEDDING_ROWS,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=settings.max_length,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    return Qwen2ForCausalLM(config).to(settings.device)


def learning_rate_at(step: int, *, settings: WarmstartSettings) -> float:
    """Linear warm-up, then a cosine from learning_rate to its final fraction at the last step."""
    if step < settings.num_warmup_steps:
        return settings.learning_rate * (step + 1) / settings.num_warmup_steps
    progress = (step - settings.num_warmup_steps) / max(1, settings.num_steps - settings.num_warmup_steps)
    floor = settings.final_learning_rate_fraction
    return settings.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def completion_loss(model: Qwen2ForCausalLM, batch: Sequence[Example], *, pad_token_id: int) -> torch.Tensor:
    """Mean cross-entropy over the batch's completion tokens, nats."""
    length = max(len(example.token_ids) for example in batch)
    token_ids = torch.full((len(batch), length), pad_token_id)  # [B, L], right-padded: causal attention needs no mask
    labels = torch.full((len(batch), length), IGNORED_LABEL)
    for row, example in enumerate(batch):
        end = len(example.token_ids)
        token_ids[row, :end] = torch.tensor(example.token_ids)
        labels[row, example.prompt_length : end] = token_ids[row, example.prompt_length : end]
    logits = model(input_ids=token_ids.to(model.device), use_cache=False).logits
    targets = labels[:, 1:].reshape(-1).to(model.device)
    flat_logits = logits[:, :-1].reshape(-1, logits.shape[-1]).float()
    return torch.nn.functional.cross_entropy(flat_logits, targets, ignore_index=IGNORED_LABEL)


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )


def train_policy(
    model: Qwen2ForCausalLM,
    *,
    settings: WarmstartSettings,
    tokenizer: PreTrainedTokenizerBase,
    observer: Observer | None = None,
) -> float:
    """Train in place and return the mean loss of the last 100 steps; `observer` is called at each evaluation."""
    validation = Gsm8kChainsTask(validation_size=settings.validation_size).load("validation")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    batches = stream_batches(
        character_ids(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        seed=settings.seed,
        validation_size=settings.validation_size,
        batch_size=settings.batch_size,
    )
    losses: list[float] = []
    started = time.monotonic()
    with closing(batches), _progress_bar() as progress:
        bar = progress.add_task("warm start", total=settings.num_steps)
        for step in range(settings.num_steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, settings=settings)
            loss = completion_loss(model, next(batches), pad_token_id=tokenizer.pad_token_id)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            progress.update(bar, advance=1, description=f"warm start, loss {losses[-1]:.3f}")
            if (step + 1) % settings.evaluation_interval_steps == 0 and observer is not None:
                accuracy = measure_accuracy(
                    model,
                    validation[: settings.num_evaluation_problems],
                    tokenizer=tokenizer,
                    max_new_tokens=settings.max_new_tokens,
                    seed=settings.seed,
                )
                recent = losses[-settings.evaluation_interval_steps :]
                observer(
                    Progression(
                        step=step + 1,
                        loss=sum(recent) / len(recent),
                        validation=accuracy,
                        seconds=time.monotonic() - started,
                    ),
                    model,
                )
    last = losses[-100:]
    return sum(last) / len(last)


def print_progression(progression: Progression, model: Qwen2ForCausalLM) -> None:
    print(
        f"step {progression.step}: loss {progression.loss:.4f}, validation greedy {progression.validation.greedy:.1%}, "
        f"sampled {progression.validation.sampled:.1%}, answered {progression.validation.answered:.1%}, "
        f"{progression.seconds:.0f} s",
        flush=True,
    )


def _check_settings(settings: WarmstartSettings) -> None:
    out = Path(settings.out)
    if out.exists():
        raise ConfigError("out", given=settings.out, expected="a folder that does not exist yet", fix="choose another")
    for name in _COUNTS:
        if getattr(settings, name) < 1:
            raise ConfigError(name, given=getattr(settings, name), expected="at least 1", fix=f"raise {name}")
    if settings.device not in {"cpu", "cuda"}:
        raise ConfigError("device", given=settings.device, expected="cpu or cuda", fix="device=cpu")


def run_warmstart(settings: WarmstartSettings, *, observer: Observer | None = print_progression) -> WarmstartResult:
    """Train a policy, measure it and write its folder: the model, its tokenizer and warmstart.json.

    The folder appears whole or not at all, also on Ctrl-C. Raises ConfigError for settings that cannot work.
    """
    _check_settings(settings)
    torch.set_num_threads(settings.num_threads)
    torch.manual_seed(settings.seed)
    tokenizer = build_character_tokenizer(max_length=settings.max_length)
    model = build_policy(settings, tokenizer=tokenizer)
    task = Gsm8kChainsTask(validation_size=settings.validation_size)
    started = time.monotonic()
    final_loss = train_policy(model, settings=settings, tokenizer=tokenizer, observer=observer)
    seconds = time.monotonic() - started
    accuracies = [
        measure_accuracy(
            model,
            task.load(split)[: settings.num_final_problems],
            tokenizer=tokenizer,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed,
        )
        for split in ("validation", "test")
    ]
    result = WarmstartResult(
        out=settings.out,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=round(seconds, 1),
        final_loss=final_loss,
        validation=accuracies[0],
        test=accuracies[1],
    )
    _write_policy(model, settings=settings, result=result)
    return result


def _write_policy(
    model: Qwen2ForCausalLM,
    *,
    settings: WarmstartSettings,
    result: WarmstartResult,
) -> None:
    out = Path(settings.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        model.save_pretrained(temporary)
        # A new one: the tokenizer that was used would carry the padding of its last batch into the file.
        build_character_tokenizer(max_length=settings.max_length).save_pretrained(temporary)
        for file in temporary.iterdir():
            file.chmod(0o644)  # weights are written readable by their owner alone
        record = {"settings": dataclasses.asdict(settings), "result": dataclasses.asdict(result)}
        (temporary / "warmstart.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def parse_settings(assignments: Sequence[str]) -> WarmstartSettings:
    """Settings from `key=value` texts. Raises ConfigError for an unknown key or a value of the wrong type."""
    kinds: dict[str, type] = {name: type(value) for name, value in dataclasses.asdict(WarmstartSettings()).items()}
    values = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if name not in kinds or not separator:
            raise ConfigError(
                name, given=assignment, expected=f"key=value with one of {', '.join(kinds)}", fix="correct the key"
            )
        try:
            values[name] = kinds[name](text)
        except ValueError as error:
            raise ConfigError(name, given=text, expected=kinds[name].__name__, fix="correct the value") from error
    return WarmstartSettings(**values)


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    keys = "\n".join(f"  {setting.name}={setting.default}" for setting in dataclasses.fields(WarmstartSettings))
    parser = argparse.ArgumentParser(
        prog="credence warmstart",
        description="Make the embedded policy by supervised training on redrawn arithmetic chains.",
        epilog=f"keys and defaults:\n{keys}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="key=value")
    arguments = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):  # otherwise the child that draws examples would be left behind
        signal.signal(number, _interrupt)  # also where a shell has started us in the background, with SIGINT ignored
    disable_progress_bar()  # of single-file writes; the training has its own
    try:
        result = run_warmstart(parse_settings(arguments.settings))
    except KeyboardInterrupt:
        print("interrupted, nothing was written", file=sys.stderr)
        return 130
    print(json.dumps(dataclasses.asdict(result), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
