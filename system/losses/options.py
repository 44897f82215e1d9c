"""The options of the built-in losses. Free of torch, so that a configuration is checked without it."""

from dataclasses import dataclass

from system.fields import key


@dataclass(frozen=True, slots=True, kw_only=True)
class ClippedSurrogateOptions:
    clip_low: float = key("Ratio is clipped below at 1 - clip_low.", 0.2, minimum=0, below=1)
    clip_high: float = key("Ratio is clipped above at 1 + clip_high.", 0.2, minimum=0)
    importance_cap: float | None = key(
        "Cap of the trainer/engine importance weight; null: no correction.", 2.0, minimum=1
    )
    dual_clip: float | None = key(
        "Ratio beyond which a token of negative advantage gives no gradient (dual clip); null: off.", None, above=1
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GspoOptions:
    clip_low: float = key("A sequence's ratio is clipped below at 1 - clip_low.", 3e-4, minimum=0, below=1)
    clip_high: float = key("A sequence's ratio is clipped above at 1 + clip_high.", 4e-4, minimum=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CispoOptions:
    clip_low: float | None = key(
        "Importance weight is at least 1 - clip_low; null: no lower bound.", None, minimum=0, below=1
    )
    clip_high: float = key("Importance weight is at most 1 + clip_high.", 4.0, minimum=0)
