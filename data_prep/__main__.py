"""python -m data_prep FORMAT SOURCE --out DIR: source annotations of any supported format → a prepared dataset."""

import os
import sys

# Before numpy is imported. Matrices are small here, so threads of BLAS gain nothing; beside another busy program they wait
# for each other, and `show` takes several times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from boxtune.common.errors import command
from data_prep.command import run_words


@command
def main(argv: list[str] | None = None) -> None:
    run_words(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    main()
