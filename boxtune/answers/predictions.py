"""predictions.jsonl: what a model answered, one line per image of a split, kept so that any metric can be computed again."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from boxtune.answers.calibration import calibrate
from boxtune.answers.codecs import CODECS
from boxtune.answers.confidence import CALIBRATED, DEFAULT, RANKINGS, TokenScores, score_objects
from boxtune.answers.noise import NOISE_LABEL, without_noise
from boxtune.common.errors import UserError, shown
from boxtune.common.files import write_whole
from boxtune.data.records import Record, read_json_lines, to_json_line

Prediction = dict[str, Any]

KEYS = ("id", "image", "width", "height", "codec", "input_size", "text", "objects", "problems", "seconds")
# No coordinate is larger. JSON spells numbers that no float holds; NaN and infinity fail the comparison as well.
LIMIT = 1e12


def make_prediction(
    record: Record,
    codec: str,
    input_size: tuple[int, int],
    text: str,
    seconds: float,
    tokens: TokenScores | None = None,
    *,
    calibration: Sequence[float] = (),
    noise_label: str = "",
    cut: str | None = None,
) -> Prediction:
    """One line of predictions.jsonl: the answer `text` read with `codec` into pixels of the record's image.

    `input_size` is (height, width) of the picture as the model saw it. Where the `tokens` of the text are given, `objects`
    holds a column for every scorer, and `score` is that of confidence.DEFAULT, turned by `calibration`, if there is one,
    into a share of hits; without tokens every score is 1.0. Objects labelled `noise_label`, where there is one, are left
    out, and each is a problem "noise". `cut` is what ended the answer before its end token did, "truncated" or "looped"; the
    text alone may look whole. Coordinates are rounded to a thousandth of a pixel.
    """
    answer = CODECS[codec].decode(text, (record["height"], record["width"]), tuple(input_size))
    # Before noise is dropped: an object's score must not hold the probabilities of the noise that stands before it.
    found = {} if tokens is None else score_objects(text, answer.places, tokens)
    if noise_label:
        kept = [label != noise_label for label in answer.labels]
        found = {name: list(compress(column, kept)) for name, column in found.items()}
        answer = without_noise(answer, noise_label)
    place, values = ("point", answer.points_xy) if CODECS[codec].is_click else ("bbox", answer.boxes_xyxy)
    scores = {"score": [1.0] * len(values)}
    if found:
        if calibration:
            found[CALIBRATED] = [round(score, 6) for score in calibrate(found[DEFAULT], calibration)]
        chosen = found[CALIBRATED if calibration else DEFAULT]
        scores = {"score": chosen, **{f"score_{name}": column for name, column in found.items()}}
    return {
        **{key: record[key] for key in ("id", "image", "width", "height")},
        "codec": codec,
        "input_size": list(input_size),
        "text": text,
        "objects": {place: [_round(value) for value in values], "category": answer.labels, **scores},
        "problems": answer.problems + [cut] * (cut is not None and cut not in answer.problems),
        "seconds": round(seconds, 3),
    }


def _round(values: list[float]) -> list[float]:
    """Rounded to three decimals, except a box so thin that it would vanish."""
    rounded = [round(value, 3) for value in values]
    vanishes = len(values) == 4 and (rounded[0] >= rounded[2] or rounded[1] >= rounded[3])
    return list(values) if vanishes else rounded


# ---- reading -----------------------------------------------------------------------------------------------------------


def read_predictions(
    path: str | Path,
    records: list[Record],
    *,
    allow_missing: bool = False,
    reparse: bool = False,
) -> tuple[list[Prediction], list[str]]:
    """(predictions in the order of `records`, ids without a line in the file).

    A missing id is an error unless `allow_missing`; then it counts as an empty answer with the problem "missing". With
    `reparse` the `text` is read again, by the line's own codec; where that finds other objects, their
    scores are 1.0.
    Raises UserError that lists every bad line and every foreign, duplicate or missing id.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist. Make predictions: python evaluate.py --ckpt DIR --data DIR")
    by_id = {record["id"]: record for record in records}
    found: dict[str, Prediction] = {}
    problems: list[str] = []
    for number, line in read_json_lines(path):
        wrong = _line_problems(line, by_id, found, reparse)
        problems += [f"line {number}: {problem}" for problem in wrong]
        if isinstance(line, dict) and isinstance(line.get("id"), str):
            found.setdefault(line["id"], line)
    if found and not found.keys() & by_id.keys():
        raise UserError(f"{path}: none of these {len(found)} predictions is of this split; check --data and --split.")
    missing = [name for name in by_id if name not in found]
    if not allow_missing:
        problems += [f"{name}: no prediction; predict it, or use --allow-missing" for name in missing]
    if problems:
        raise UserError(f"{path}: {len(problems)} problem(s) as predictions for {len(records)} images:", problems)
    if reparse:
        found = {name: _read_again(line, by_id[name]) for name, line in found.items()}
    if len({"point" in line["objects"] for line in found.values()}) > 1:
        raise UserError(f"{path}: some lines hold points and others boxes. Write one file for each kind.")
    pattern = next(iter(found.values()), None)
    return [found.get(name) or _empty_answer(record, pattern) for name, record in by_id.items()], missing


def with_score(predictions: list[Prediction], scorer: str) -> list[Prediction]:
    """The predictions ranked by another scorer. Raises UserError where they were made without its column."""
    column = f"score_{scorer}"
    without = [prediction for prediction in predictions if prediction["objects"].get(column) is None]
    if any(prediction["objects"]["category"] for prediction in without):
        raise UserError(f"--score {scorer}: {len(without)} prediction(s) have no column {column}; predict them again.")
    return [
        prediction | {"objects": prediction["objects"] | {"score": prediction["objects"].get(column, [])}}
        for prediction in predictions
    ]


def _line_problems(line: Any, records: dict[str, Record], found: dict, reparse: bool):
    """Everything wrong with one line, each with its value and the remedy."""
    if not isinstance(line, dict):
        return [line if isinstance(line, str) else f"must be a JSON object, got {type(line).__name__}"]
    if set(line) == {"fingerprint"}:
        return ["this file is an unfinished run; give the evaluation that wrote it the same options again to finish it"]
    missing = [key for key in KEYS if key not in line]
    if missing:
        return [f"{shown(line.get('id', 'no id'))} lacks the key(s) {', '.join(missing)}; add them"]
    name = line["id"]
    if not isinstance(name, str) or name not in records:
        return [f"id {shown(name)} is not in this split; check --data and --split"]
    problems = [f"id {name!r} stands twice; keep one line"] if name in found else []
    size, expected = (line["width"], line["height"]), (records[name]["width"], records[name]["height"])
    if size != expected:
        problems.append(
            f"{name}: made for {shown(size[0])} × {shown(size[1])}, the image has {expected[0]} × {expected[1]}; predict it again"
        )
    if not isinstance(line["problems"], list) or not all(isinstance(kind, str) for kind in line["problems"]):
        problems.append(f"{name}: problems {shown(line['problems'])} must be a list of words")
    if not isinstance(line["text"], str):
        problems.append(f"{name}: text {shown(line['text'])} must be a string")
    if line["seconds"] is not None and not _are_numbers([line["seconds"]], 1):
        problems.append(f"{name}: seconds {shown(line['seconds'])} must be a number, or null where it is not known")
    if not reparse:
        return problems + [f"{name}: {problem}" for problem in _object_problems(line["objects"])]
    codec = line["codec"]
    if not isinstance(codec, str) or codec not in CODECS:
        problems.append(f"{name}: unknown codec {shown(codec)}; known are {', '.join(CODECS)}")
    if not _is_size(line["input_size"]):
        problems.append(f"{name}: input_size {shown(line['input_size'])} must be [height, width] in whole pixels")
    return problems


def _object_problems(objects: Any) -> list[str]:
    places = [key for key in ("bbox", "point") if isinstance(objects, dict) and key in objects]
    if len(places) != 1 or not all(isinstance(objects.get(key), list) for key in (*places, "category", "score")):
        return ["objects must hold the lists bbox (or point), category and score"]
    place = places[0]
    scorers = [f"score_{name}" for name in RANKINGS if f"score_{name}" in objects]
    if wrong := [key for key in scorers if not isinstance(objects[key], list)]:
        return [f"objects: {key} {shown(objects[key])} must be a list" for key in wrong]
    lengths = {key: len(objects[key]) for key in (place, "category", "score", *scorers)}
    if len(set(lengths.values())) > 1:
        return [f"the lists in objects differ in length: {lengths}; write one entry per object in each"]
    problems = []
    for value in objects[place]:
        if place == "point" and not _are_numbers(value, 2):
            problems.append(f"point {shown(value)} is not [x, y]")
        if place == "bbox" and not (_are_numbers(value, 4) and value[0] < value[2] and value[1] < value[3]):
            problems.append(f"bbox {shown(value)} is not [x0, y0, x1, y1] with x0 < x1 and y0 < y1")
    problems += [
        f"category {shown(label)} is not a string" for label in objects["category"] if not isinstance(label, str)
    ]
    for key in ("score", *scorers):
        for score in objects[key]:
            if not (_are_numbers([score], 1) and 0 <= score <= 1):
                problems.append(f"{key} {shown(score)} is not a number from 0 to 1; use 1.0 where there is none")
    return problems


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < LIMIT for v in values)
    )


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(side) is int and 0 < side < LIMIT for side in value)


def _read_again(line: Prediction, record: Record) -> Prediction:
    # Whoever wrote a line with noise in it knew that noise was trained.
    noise_label = NOISE_LABEL if NOISE_LABEL in line["problems"] else ""
    # What ended the answer early; the text alone cannot tell. A looped answer may read as truncated besides.
    cut = next((kind for kind in ("looped", "truncated") if kind in line["problems"]), None)
    prediction = make_prediction(
        *(record, line["codec"], line["input_size"], line["text"], 0.0), noise_label=noise_label, cut=cut
    )
    prediction["seconds"] = line["seconds"]
    before, after = line["objects"], prediction["objects"]
    if not _object_problems(before) and all(before.get(key) == after[key] for key in after if key != "score"):
        prediction["objects"] = before  # the same objects, whose scores the text alone cannot tell
    return prediction


def _empty_answer(record: Record, pattern: Prediction | None) -> Prediction:
    """Stands for a line that is not there; boxes or points as in `pattern`, a line that is."""
    place = "point" if pattern and "point" in pattern["objects"] else "bbox"
    return {
        **{key: record[key] for key in ("id", "image", "width", "height")},
        "codec": pattern["codec"] if pattern else None,
        "input_size": None,
        "text": "",
        "objects": {place: [], "category": [], "score": []},
        "problems": ["missing"],
        "seconds": None,
    }


# ---- writing -----------------------------------------------------------------------------------------------------------


def fingerprint(settings: dict) -> str:
    """SHA-256 of whatever decides the answers: checkpoint, data, prompt and generation settings, all JSON values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def predict(
    ask: Callable[[list[Record]], Iterator[Prediction]],
    records: list[Record],
    path: Path,
    *,
    settings: dict,
    description: str = "generating",
    keep_partial: bool = False,
) -> list[Prediction]:
    """Write predictions.jsonl at `path`, going on where an interrupted call with the same `settings` stopped.

    `ask` answers records in any order. Returns the predictions in the order of `records`. With `keep_partial` a later call
    finds them all, until the caller removes `partial_of(path)`.
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
    """Where the answers of `path` lie until all are there."""
    return path.with_name(f"{path.name}.partial")


class PredictionWriter:
    """Writes PATH.partial line by line, so that an evaluation that was cut off goes on where it stopped.

        with PredictionWriter(path, fingerprint(settings)) as writer:
            for record in records:
                if record["id"] not in writer.done:
                    writer.add(predict(record))
            writer.finish([record["id"] for record in records])

    The first line of the partial file holds the fingerprint. Another fingerprint starts over, and says so where answers are
    lost by it. A last line that was cut off is dropped. `finish` writes PATH as a whole and removes the partial file.
    """

    def __init__(self, path: str | Path, fingerprint: str):
        self.path = Path(path)
        self.partial = partial_of(self.path)
        self.fingerprint = fingerprint
        self.done: dict[str, Prediction] = {}
        self._file: IO[bytes]

    def __enter__(self) -> "PredictionWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.partial, "a+b")
        self._file.seek(0)
        header = {"fingerprint": self.fingerprint}
        lines, end = _whole_lines(self._file)
        if lines and lines[0] == header:
            self._file.truncate(end)
            self.done = {prediction["id"]: prediction for prediction in lines[1:]}
        else:
            if lines[1:]:
                print(
                    f"note: {len(lines) - 1} answers in {self.partial} are of another model, other data or other options; "
                    "all is asked anew",
                    file=sys.stderr,
                )
            self._file.truncate(0)
            self._write(header)
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def add(self, prediction: Prediction) -> None:
        self.done[prediction["id"]] = prediction
        self._write(prediction)

    def finish(self, order_of_ids: list[str], keep_partial: bool = False) -> None:
        """Write predictions.jsonl in this order. Raises KeyError where an id was never added."""
        write_whole(self.path, "".join(to_json_line(self.done[name]) for name in order_of_ids))
        self._file.close()
        if not keep_partial:
            self.partial.unlink()

    def _write(self, value: dict) -> None:
        self._file.write(to_json_line(value).encode("utf-8", errors="backslashreplace"))
        self._file.flush()


def _whole_lines(file: IO[bytes]) -> tuple[list[dict], int]:
    """(the values up to the first line that is torn, the offset at which that line starts)."""
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
