"""The built-in algorithms, losses and scorers that have options, for the reference of the configuration."""

from dataclasses import fields

from system.config.algorithms import built_in_algorithms
from system.config.losses import built_in_loss_options
from system.config.scorers import SCORERS, value_scorer_class
from system.fields import NoOptions


def built_in_options() -> list[tuple[str, str, type]]:
    """Title, dotted prefix and dataclass of each."""
    scorers = {
        name: getattr(value_scorer_class(name, key="reward.terms"), "Options", NoOptions)
        for name, place in SCORERS.items()
        if place.runs == "values"
    }
    parts = [
        *(
            (f"algorithm.name={name}", "algorithm.options", kind.Options)
            for name, kind in built_in_algorithms().items()
        ),
        *((f"loss.name={name}", "loss.options", kind) for name, kind in built_in_loss_options().items()),
        *((f"reward.terms with scorer={name}", "options", kind) for name, kind in scorers.items()),
    ]
    return [part for part in parts if fields(part[2])]
