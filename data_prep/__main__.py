"""python -m data_prep FORMAT SOURCE --out DIR: source annotations of any supported format → a prepared dataset."""

import sys

from boxtune.common.errors import command
from data_prep.command import run_words


@command
def main(argv: list[str] | None = None) -> None:
    run_words(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    main()
