"""The processor's instructions, as far as training is slow without them."""

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # Intel's and AMD's, and Arm's


def lacks_bf16() -> bool:
    """True if the processor is known to have no instructions for bfloat16.

    Sums in it are then slower than in float32.
    """
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:  # not on this system
        return False
    flags = [line for line in lines if line.startswith(("flags", "Features"))]
    return bool(flags) and BF16.isdisjoint(flags[0].split())
