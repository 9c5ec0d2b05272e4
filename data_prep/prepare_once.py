"""Prepare the dataset of a recipe if it is absent, and say how it was prepared if it is there."""

import shlex
from collections.abc import Callable
from pathlib import Path

from boxtune.common.errors import UserError, did_you_mean
from boxtune.data.dataset import read_arguments, read_info, write_arguments
from data_prep.command import prepare_from_words


def prepare_once(
    data_dir: Path,
    data_format: str | None,
    data_source: str | None,
    data_args: list[str] | None,
    say: Callable[[str], None],
) -> None:
    """Run the converter `data_format` on `data_source` with further words `data_args`, unless `data_dir` is prepared already.

    Messages go to `say`. Raises UserError if the data is absent and no converter is named.
    """
    source = [data_source] if data_source else []
    arguments = [*([data_format] if data_format else []), *source, *map(str, data_args or [])]
    if not (data_dir / "dataset.json").is_file():
        if not data_format:
            raise UserError(
                f"{data_dir} is not a prepared dataset, and the recipe names no converter.{_similar(data_dir)} "
                f"Run `python -m data_prep FORMAT SOURCE --out {data_dir}`, or set data_format and data_source."
            )
        command_line = [*arguments, "--out", str(data_dir)]
        say(f"preparing the data: python -m data_prep {shlex.join(command_line)}")
        try:
            prepare_from_words(command_line)
        except UserError as error:
            raise UserError(
                f"data_dir: {data_dir} is not a prepared dataset.{_similar(data_dir)} Preparing it as the recipe says "
                f"(data_format, data_source, data_args) failed:\n{error}"
            ) from None
        write_arguments(data_dir, arguments)
    _say_differences(data_dir, data_format, arguments, say)
    images = ", ".join(f"{split} {counts['images']}" for split, counts in read_info(data_dir)["splits"].items())
    say(f"data: {data_dir} (images: {images})")


def _similar(data_dir: Path) -> str:
    """A hint if a prepared dataset next to `data_dir` has a similar name."""
    return did_you_mean(data_dir.name, [info.parent.name for info in data_dir.parent.glob("*/dataset.json")])


def _say_differences(data_dir: Path, data_format: str | None, arguments: list[str], say: Callable[[str], None]) -> None:
    """Notes for a dataset that was prepared from another format or with other arguments than the recipe's."""
    prepared_from, prepared_with = read_info(data_dir)["format"], read_arguments(data_dir)
    if data_format not in (None, "auto", prepared_from):
        say(f"note: {data_dir} was prepared from {prepared_from}, not {data_format}; it is used as it is")
    elif data_format and prepared_with not in (None, arguments):
        say(
            f"note: {data_dir} was prepared with `{shlex.join(prepared_with)}`, not `{shlex.join(arguments)}`; "
            "it is used as it is. Delete the folder to prepare it again."
        )
