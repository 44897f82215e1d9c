"""Which class a configured loss is, and the check of its section. Imports torch only to make a loss."""

from typing import Any

from system.config.imports import import_class, is_import_path
from system.config.options import make_options
from system.config.schema import Config, LossConfig
from system.errors import ConfigError
from system.fields import NoOptions

# name -> the loss, its options
_BUILT_IN = {
    "clipped_surrogate": (
        "system.losses.clipped_surrogate:ClippedSurrogate",
        "system.losses.options:ClippedSurrogateOptions",
    ),
    "gspo": ("system.losses.gspo:Gspo", "system.losses.options:GspoOptions"),
    "cispo": ("system.losses.cispo:Cispo", "system.losses.options:CispoOptions"),
}


def check_loss(config: Config) -> None:
    """The loss exists, its options are its own, and its denominator has what it needs. Raises ConfigError."""
    loss = config.loss
    _options_of(loss)
    if (loss.denominator == "constant") != (loss.constant_length is not None):
        raise ConfigError(
            "loss.constant_length",
            given=loss.constant_length,
            expected="a number of tokens with loss.denominator=constant, and null with any other",
            fix="e.g. loss.denominator=constant loss.constant_length='${rollout.max_completion_tokens}'",
        )
    for name in ("kl_coefficient", "entropy_coefficient"):
        if config.batch.skip_zero_advantages and getattr(loss, name) > 0:
            raise ConfigError(
                "batch.skip_zero_advantages",
                given=True,
                expected=f"false with loss.{name}={getattr(loss, name):g}, whose gradient every completion has",
                fix=f"batch.skip_zero_advantages=false, or loss.{name}=0",
            )


def make_loss(loss: LossConfig) -> Any:
    """The loss that the configuration names, with its options; see `system.losses.base.Loss`. Imports torch."""
    path = loss.name if is_import_path(loss.name) else _BUILT_IN[loss.name][0]
    kind = import_class(path, key="loss.name", methods=["__call__"])
    options = _options_of(loss)
    return kind() if isinstance(options, NoOptions) else kind(options)


def built_in_loss_options() -> dict[str, type]:
    """The options of each built-in loss, by its name."""
    return {name: import_class(options, key="loss.name", methods=()) for name, (_, options) in _BUILT_IN.items()}


def _options_of(loss: LossConfig) -> Any:
    if is_import_path(loss.name):
        kind = import_class(loss.name, key="loss.name", methods=["__call__"])
        options = getattr(kind, "Options", NoOptions)
    elif loss.name in _BUILT_IN:
        options = import_class(_BUILT_IN[loss.name][1], key="loss.name", methods=())
    else:
        others = "an import path package.module:Name"
        raise ConfigError.unknown("loss.name", given=loss.name, known=_BUILT_IN, others=others)
    return make_options(options, loss.options, prefix="loss.options")
