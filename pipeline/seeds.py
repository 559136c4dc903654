"""One seed for each random draw, by what the draw stands for."""


def step_seed(seed: int, step: int, rank: int) -> int:
    """Mixes what a random draw stands for into one seed."""
    mixed = (seed * 1_000_003 + step) * 1_000_003 + rank
    return mixed % (1 << 63)
