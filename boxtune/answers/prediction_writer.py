"""Writing predictions.jsonl, so that an interrupted run continues where it stopped."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tqdm import tqdm

from boxtune.answers.predictions import Prediction
from boxtune.common.files import write_whole
from boxtune.common.json_lines import to_json_line
from boxtune.data.records import Record


def fingerprint(settings: Mapping[str, Any]) -> str:
    """SHA-256 of everything that decides the responses: checkpoint, data, prompt and generation settings, all JSON values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def predict(
    ask: Callable[[list[Record]], Iterator[Prediction]],
    records: list[Record],
    path: Path,
    *,
    settings: dict[str, Any],
    description: str = "generating",
    keep_partial: bool = False,
) -> list[Prediction]:
    """Write predictions.jsonl at `path`. Continues an interrupted call that had the same `settings`.

    `ask` may yield its predictions in any order; the result is in the order of `records`. With `keep_partial`, a later call
    finds all predictions finished, until the caller removes `partial_of(path)`.
    """
    with PredictionWriter(path, fingerprint(settings)) as writer:
        missing = [record for record in records if record["id"] not in writer.done]
        with tqdm(total=len(records), initial=len(records) - len(missing), desc=description, unit="image") as bar:
            for prediction in ask(missing):
                writer.add(prediction)
                bar.update()
        writer.finish([record["id"] for record in records], keep_partial)
        return [writer.done[record["id"]] for record in records]


def partial_of(path: Path) -> Path:
    """Where the predictions of `path` are kept until all of them exist."""
    return path.with_name(f"{path.name}.partial")


class PredictionWriter:
    """Writes PATH.partial line by line, and PATH as a whole at the end.

        with PredictionWriter(path, fingerprint(settings)) as writer:
            for record in records:
                if record["id"] not in writer.done:
                    writer.add(predict(record))
            writer.finish([record["id"] for record in records])

    The first line of the partial file holds the fingerprint. A partial file with the same fingerprint is continued; an
    incomplete last line is dropped. One with another fingerprint is overwritten, with a note if that discards predictions.
    """

    def __init__(self, path: str | Path, fingerprint: str) -> None:
        self.path = Path(path)
        self.partial = partial_of(self.path)
        self.fingerprint = fingerprint
        self.done: dict[str, Prediction] = {}
        self._file: IO[bytes]

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.partial, "a+b")
        self._file.seek(0)
        header = {"fingerprint": self.fingerprint}
        lines, end = _complete_lines(self._file)
        if lines and lines[0] == header:
            self._file.truncate(end)
            self.done = {prediction["id"]: prediction for prediction in lines[1:]}
            return self
        if len(lines) > 1:
            print(
                f"note: {self.partial} holds {len(lines) - 1} prediction(s) of another model, other data or other options; "
                "starting over",
                file=sys.stderr,
            )
        self._file.truncate(0)
        self._write(header)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, prediction: Prediction) -> None:
        self.done[prediction["id"]] = prediction
        self._write(prediction)

    def finish(self, ids: Iterable[str], keep_partial: bool = False) -> None:
        """Write PATH with the predictions in the order of `ids`, and remove the partial file unless it is to be kept.

        Raises KeyError if an id was never added.
        """
        write_whole(self.path, "".join(to_json_line(self.done[name]) for name in ids))
        self._file.close()
        if not keep_partial:
            self.partial.unlink()

    def _write(self, value: Mapping[str, Any]) -> None:
        self._file.write(to_json_line(value).encode("utf-8", errors="backslashreplace"))
        self._file.flush()


def _complete_lines(file: IO[bytes]) -> tuple[list[Any], int]:
    """(the values before the first incomplete line, the offset at which that line starts)."""
    values, end = [], 0
    for line in file:
        try:
            value = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        values.append(value)
        end += len(line)
    return values, end
