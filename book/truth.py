"""The toy world's truth as a judge of two answers."""

import world


def truth_judge(prompt: str, first: str, second: str) -> str:
    """What states the true fact beats what does not; for `lmdyn.lm.endpoint.compare`.

    Two true answers are a tie, and so are two that are not true, whether false, evasive or beside
    the question. A prompt that is no question of the world is a ValueError.

    Example:
        >>> row = world.probes()[0]
        >>> truth_judge(row["prompt"], row["rejected"], row["chosen"])
        'second'
    """
    true = world.is_true(prompt, first), world.is_true(prompt, second)
    return {(True, False): "first", (False, True): "second"}.get(true, "tie")
