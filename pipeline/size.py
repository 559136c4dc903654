"""Sizes of frames: squares, and what is not square."""

Size = int | tuple[int, int]
"""Height and width in pixels, or the side of a square."""
MAX_SIDE = 4096
"""Side in pixels beyond which a wanted size is not believed: a frame would be 50 MB."""


def sides(size: Size) -> tuple[int, int]:
    """Returns height and width."""
    return (size, size) if isinstance(size, int) else size


def check_size(name: str, size: Size) -> Size:
    """Returns a size, of a square its side. Raises ValueError if a side cannot be."""
    height, width = sides(size)
    if min(height, width) < 1:
        raise ValueError(f"{name} must be at least 1, got {size}.")
    if max(height, width) > MAX_SIDE:
        raise ValueError(f"{name} must be at most {MAX_SIDE}, got {size}.")
    return height if height == width else size


def centre(width: int, height: int, size: Size) -> tuple[int, int, int, int]:
    """Returns the largest box (left, top, right, bottom) in the middle with the shape of `size`."""
    tall, wide = sides(size)
    across = max(1, min(width, round(height * wide / tall)))
    down = max(1, min(height, round(width * tall / wide)))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down
