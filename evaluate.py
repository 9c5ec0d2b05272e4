"""Evaluate a checkpoint, or predictions that were made before.

    python evaluate.py --ckpt DIR [--data DIR] [--split test] [--out DIR]
    python evaluate.py --predictions FILE [--data DIR] [--split test] [--out DIR]
                       [--reparse] [--allow-missing] [--score NAME]
    python evaluate.py --ckpt DIR --images FOLDER|PICTURE|LIST.txt [--classes a,b]
                       [--out DIR] [--skip-bad-images]
    python evaluate.py --compare RUN_A RUN_B [--data DIR] [--split test] [--out DIR]

Each but the last takes --export coco,yolo,supervision, which writes the boxes for other tools as
well.

Writes predictions.jsonl, metrics.json and report.html. --ckpt takes an adapter, a merged model or
a hub id; with --server URL a server that speaks OpenAI's chat protocol, such as vLLM, answers in
its place. Scoring predictions loads no model and needs no image; only the report's pictures do.
--predictions and --compare take a run's folder, or the predictions.jsonl in it; without --data,
the metrics.json beside it says which data and split they are of. --compare takes two of the same
images and writes comparison.json and comparison.html.
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from boxtune.answers.grounding import Grounding
from boxtune.answers.predictions import Prediction, read_predictions, with_score
from boxtune.common.errors import UserError, command, reading
from boxtune.common.files import named, write_whole
from boxtune.data.questions import as_asked
from boxtune.data.records import Record, read_info, read_records
from boxtune.evaluation.options import parse_arguments
from boxtune.inference.unlabelled import draw_predictions, records_without_truth, remove_copies, warn_of_new_sizes
from boxtune.metrics.average_precision import curves
from boxtune.metrics.matching import is_click
from boxtune.metrics.scoring import score
from boxtune.reports.comparison import (
    agreed_provenance,
    common_ids,
    compare,
    comparison_table,
    find_predictions,
    write_comparison,
)
from boxtune.reports.exports import check_exports, export_predictions
from boxtune.reports.report import write_report
from boxtune.reports.score_table import format_class_table, format_table


def choose_split(data_dir: Path, wanted: str | None) -> str:
    """The wanted split, test unless told, or validation where there is no test split; says so."""
    wanted, splits = wanted or "test", read_info(data_dir)["splits"]
    if wanted in splits and splits[wanted]["images"]:
        return wanted
    if wanted == "test" and splits.get("validation", {}).get("images"):
        print(f"note: {data_dir} has no test split; evaluating on validation", file=sys.stderr)
        return "validation"
    raise UserError(f"{data_dir} has no images in split {wanted!r}; it has {', '.join(splits)}.")


def evaluation_folder(ckpt: str) -> Path:
    """runs/NAME/eval for runs/NAME/final, runs/NAME/eval_checkpoint-30 for a checkpoint, runs/MODEL/eval for a hub id."""
    folder = named(ckpt)
    if not folder.is_dir():
        return Path("runs") / ckpt.replace("/", "--") / "eval"
    return folder.parent / ("eval" if folder.name == "final" else f"eval_{folder.name}")


def rescored_folder(folder: Path) -> Path:
    """Beside the predictions, or in `rescored` there where the numbers of a checkpoint's own evaluation stand."""
    path = folder / "metrics.json"
    if not path.is_file():
        return folder
    with reading(str(path), "Name another folder for the new numbers: --out DIR."):
        is_evaluation = "checkpoint" in json.loads(path.read_text(encoding="utf-8"))["provenance"]
    return folder / "rescored" if is_evaluation else folder


def say(lines: list[str]) -> None:
    """Beside the results: --json has all of stdout to itself."""
    print("\n".join(lines), file=sys.stderr)


def check_push(ckpt: str, has_card: bool) -> None:
    """Raises UserError, before anything is generated, where the model could not be pushed in the end."""
    from boxtune.models.hub import LOG_IN, is_logged_in
    from boxtune.reports.model_card import is_finished

    if not is_finished(Path(ckpt)):
        raise UserError(
            f"--push-to-hub: {ckpt} is no finished model of a training here. Name runs/NAME/final, or the folder that "
            "merge_adapter.py made of it."
        )
    if not has_card:
        raise UserError(
            f"--push-to-hub: the card tells how well a model trained here, {ckpt}, answers a whole split of its own data. "
            "Leave out --data, --limit, --precision, --max-new-tokens and --split train."
        )
    if not is_logged_in():
        raise UserError(f"--push-to-hub: you are not logged in to the hub. {LOG_IN}")


def write_results(
    out: Path,
    records: list[Record],
    predictions: list[Prediction],
    classes: list[str],
    data_dir: Path,
    provenance: dict,
    title: str,
    baseline: dict | None = None,
) -> dict:
    """metrics.json and report.html in `out`; returns the metrics."""
    metrics = score(records, predictions, classes, provenance=provenance)
    write_whole(out / "metrics.json", json.dumps(metrics, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    plots = curves(records, predictions, classes)
    write_report(out / "report.html", records, predictions, metrics, plots, data_dir, title, baseline_metrics=baseline)
    return metrics


def evaluate_split(args: argparse.Namespace) -> None:
    """A model on a split with truth: predictions, metrics and report; its card, where it was asked as it was trained."""
    from boxtune.inference.asking import answer, open_model  # here, so that scoring alone starts without torch
    from boxtune.models.hub import push_folder
    from boxtune.reports.model_card import is_finished, model_name, write_card

    checkpoint = open_model(args)
    grounding = checkpoint.grounding
    if not (args.data or grounding.data_dir):
        raise UserError(f"{args.ckpt} does not say what it was trained on; give --data DIR.")
    data_dir = args.data or Path(grounding.data_dir)
    split = choose_split(data_dir, args.split)
    classes = read_info(data_dir)["classes"]
    records = [as_asked(record) for record in read_records(data_dir, split)[: args.limit]]
    # The card tells of a whole split that training did not see, as trained: another precision, a server or a shorter answer is
    # an experiment.
    whole = (args.limit, args.precision, args.max_new_tokens, args.server) == (None,) * 4 and split != "train"
    has_card = whole and data_dir == Path(grounding.data_dir) and is_finished(Path(args.ckpt))
    if args.push_to_hub:
        check_push(args.ckpt, has_card)

    out = args.out or evaluation_folder(args.ckpt)
    if args.export:
        check_exports(args.export, out, grounding.get_codec().is_click, records)
    answers = answer(args, checkpoint, records, data_dir, out)
    if args.export:
        say(export_predictions(args.export, out, records, answers["tuned"], classes, split))
    about = provenance(args, grounding, data_dir, split)
    runs, baseline = {}, None
    if args.base:
        base, base_about = grounding.base_model, about | {"checkpoint": grounding.base_model}
        baseline = write_results(
            out / "base", records, answers["base"], classes, data_dir, base_about, f"{base} (base)"
        )
        runs["base"] = baseline
    metrics = write_results(out, records, answers["tuned"], classes, data_dir, about, args.ckpt, baseline)
    runs["tuned" if checkpoint.adapter else args.ckpt] = metrics
    if has_card:
        write_card(Path(args.ckpt), model_name(Path(args.ckpt)), metrics)
    print_results(runs, out, args.json)
    if args.push_to_hub:
        url = push_folder(Path(args.ckpt), args.push_to_hub)
        print(f"pushed:  {url}", file=sys.stderr if args.json else sys.stdout)


def provenance(args: argparse.Namespace, grounding: Grounding, data_dir: Path, split: str) -> dict:
    """What the metrics of a checkpoint were measured on, and with."""
    from boxtune.common.environment import versions

    return {
        "split": split,
        "limit": args.limit,
        "data": str(data_dir),
        "checkpoint": args.ckpt,
        "pixel_budget": {"min_pixels": grounding.min_pixels, "max_pixels": grounding.max_pixels},
        "base_model": grounding.base_model,
        "base_precision": None if args.server else args.precision or grounding.base_precision,  # a server does not tell
        "server": args.server,
        "max_new_tokens": grounding.max_new_tokens,
        "versions": versions(),
    }


def answer_images(args: argparse.Namespace) -> None:
    """A model on pictures without truth: predictions, and copies of the pictures with boxes."""
    from boxtune.inference.asking import answer, open_model

    checkpoint = open_model(args)
    grounding = checkpoint.grounding
    evaluated = evaluation_folder(args.ckpt)
    # Beside the evaluation: its metrics belong to its own predictions.
    out = args.out or evaluated.with_name(f"{evaluated.name}_images")
    asked = grounding.classes if args.classes is None else args.classes.split(",")
    asked = list(dict.fromkeys(name.strip() for name in asked if name.strip()))
    records = records_without_truth(args.images, asked, out, args.skip_bad_images)
    warn_of_new_sizes(records, grounding)
    if args.export:
        check_exports(args.export, out, grounding.get_codec().is_click, records)
    remove_copies(out / "predictions.jsonl", out / "pictures")
    answers = answer(args, checkpoint, records, args.images, out)["tuned"]
    if args.export:
        classes = list(dict.fromkeys([*grounding.classes, *asked]))  # numbered as in training
        say(export_predictions(args.export, out, records, answers, classes, None))
    draw_predictions(answers, out / "pictures")
    print(f"{sum(len(a['objects']['category']) for a in answers)} objects in {len(answers)} pictures")
    print(f"predictions: {out / 'predictions.jsonl'}\npictures:    {out / 'pictures'}")


def print_results(runs: dict[str, dict], out: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(runs))  # in ASCII: a word of a file may be one that no terminal can show
        return
    console = Console()
    console.print(format_table(runs))
    console.print(format_class_table(runs))
    print(f"metrics: {out / 'metrics.json'}\nreport:  {out / 'report.html'}")


def told_data(args: argparse.Namespace, files: list[Path]) -> tuple[Path, str]:
    """(prepared data set, split) of predictions: as the options say, or else as the evaluations that wrote them."""
    if args.data and args.predictions:
        return args.data, choose_split(args.data, args.split)
    told = args.data or agreed_provenance(files, "data")
    if told is None:
        raise UserError("no metrics.json beside these predictions tells their data set; give --data DIR.")
    return Path(told), choose_split(Path(told), args.split or agreed_provenance(files, "split"))


def score_predictions(args: argparse.Namespace) -> None:
    path = find_predictions(args.predictions)
    data_dir, split = told_data(args, [path])
    records = [as_asked(record) for record in read_records(data_dir, split)]
    predictions, missing = read_predictions(path, records, allow_missing=args.allow_missing, reparse=args.reparse)
    if args.score:
        predictions = with_score(predictions, args.score)
    if missing:
        print(
            f"warning: {len(missing)} of {len(records)} images have no prediction and count as empty", file=sys.stderr
        )
    out = args.out or rescored_folder(path.parent)
    classes = read_info(data_dir)["classes"]
    if args.export:
        check_exports(args.export, out, is_click(predictions), records)
        say(export_predictions(args.export, out, records, predictions, classes, split))
    about = {
        "split": split,
        "data": str(data_dir),
        "predictions": str(path),
        "missing": len(missing),
        "reparse": args.reparse,
        "score": args.score,
    }
    metrics = write_results(out, records, predictions, classes, data_dir, about, str(path))
    print_results({path.parent.name or "predictions": metrics}, out, args.json)


def compare_runs(args: argparse.Namespace) -> None:
    files = [find_predictions(run) for run in args.compare]
    data_dir, split = told_data(args, files)
    ids = common_ids(files)
    records = [as_asked(record) for record in read_records(data_dir, split) if record["id"] in ids]
    answers = [read_predictions(path, records)[0] for path in files]
    names = {"A": str(args.compare[0]), "B": str(args.compare[1]), "data": str(data_dir), "split": split}
    result = names | compare(records, *answers, read_info(data_dir)["classes"])
    out = args.out or files[1].parent
    write_comparison(out, result, records, *answers, data_dir)
    if args.json:
        print(json.dumps(result))
        return
    print(f"A: {result['A']}\nB: {result['B']}")
    Console().print(comparison_table(result))
    print("images: B wins {won}, loses {lost}, ties {tied}".format(**result["outcome"]))
    print(f"numbers: {out / 'comparison.json'}\npage:    {out / 'comparison.html'}")


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv, __doc__)
    if args.predictions is not None:
        score_predictions(args)
    elif args.compare is not None:
        compare_runs(args)
    elif args.images is not None:
        answer_images(args)
    else:
        evaluate_split(args)


if __name__ == "__main__":
    main()
