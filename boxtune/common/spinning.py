"""How long idle OpenMP threads spin before they sleep."""

import os

# Rounds of a waiting loop. libgomp, which torch loads, spins for 300,000 by default: about 3 ms in which no other program can use
# the core. `python -m benchmarks.spinning` compares values.
SPIN_COUNT = "15000"


def limit_spinning() -> None:
    """Keep training on a CPU fast beside other programs, unless the user has chosen how threads wait.

    Call it before torch is imported: libgomp reads the environment once, when it is loaded. Other OpenMP libraries ignore it.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
