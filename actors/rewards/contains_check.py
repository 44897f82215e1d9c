"""Does a response contain the reference? Runs in a sandbox child, as the other checks do."""


def check_contains(answer: str, reference: str) -> tuple[str, float, str]:
    """("ok", 1.0, "right"), ("ok", 0.0, "wrong"), or ("invalid", 0.0, "unparseable_reference") for an empty one."""
    if not reference:
        return "invalid", 0.0, "unparseable_reference"
    return ("ok", 1.0, "right") if reference in answer else ("ok", 0.0, "wrong")
