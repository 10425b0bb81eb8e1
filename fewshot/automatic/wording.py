"""Numbers in words, for people who have photos."""


def in_100(share: float) -> str:
    """Return a share such as "93 in 100"; only a share of 0 or 1 reads as none or all."""
    n = round(100 * share)
    if n == 100 and share < 1:
        return "over 99 in 100"
    if n == 0 and share > 0:
        return "under 1 in 100"
    return f"{n} in 100"
