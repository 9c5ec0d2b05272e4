"""Evaluate a checkpoint, or predictions that were made before.

    python evaluate.py --ckpt DIR [--data DIR] [--split test] [--out DIR]
    python evaluate.py --predictions FILE --data DIR [--split test] [--out DIR] [--reparse] [--allow-missing] [--score NAME]
    python evaluate.py --ckpt DIR --images FOLDER|PICTURE|LIST.txt [--classes a,b] [--out DIR] [--skip-bad-images]
    python evaluate.py --compare RUN_A RUN_B [--data DIR] [--split test] [--out DIR]

Each but the last takes --export coco,yolo,supervision, which writes the boxes for other tools as well.

Writes predictions.jsonl, metrics.json and report.html. --ckpt takes an adapter, a merged model or a hub id. Scoring
predictions loads no model and needs no image; only the report's pictures do. --compare takes two folders with
predictions.jsonl of the same images, or the files, and writes comparison.json and comparison.html.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from boxtune.average_precision import curves
from boxtune.comparison import (
    agreed_provenance,
    common_ids,
    compare,
    comparison_table,
    find_predictions,
    write_comparison,
)
from boxtune.confidence import RANKINGS, SCORERS
from boxtune.errors import UserError, command
from boxtune.export_predictions import EXPORTS, check_exports, export_predictions, wanted_exports
from boxtune.files import path_argument, write_whole
from boxtune.matching import is_click
from boxtune.predictions import Prediction, read_predictions, with_score
from boxtune.prompts import as_asked, first_question
from boxtune.records import Record, read_info, read_records
from boxtune.report import write_report
from boxtune.score_table import format_class_table, format_table
from boxtune.scoring import score
from boxtune.unlabelled import draw_predictions, records_without_truth, warn_of_new_sizes

# Options that a way of calling does not read.
UNUSED = {
    "--ckpt": {"reparse", "allow_missing", "classes", "score", "skip_bad_images"},
    "--images": {"reparse", "allow_missing", "score", "data", "split", "limit", "base", "push_to_hub", "json"},
    "--predictions": {
        *(
            "images",
            "skip_bad_images",
            "classes",
            "base",
            "limit",
            "batch_size",
            "max_new_tokens",
            "max_pixels",
            "precision",
        ),
        "push_to_hub",
    },
    "--compare": {
        *("images", "classes", "base", "limit", "batch_size", "max_new_tokens", "max_pixels", "precision"),
        *("push_to_hub", "reparse", "allow_missing", "score", "skip_bad_images", "export"),
    },
}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--ckpt", help="adapter folder, merged model or hub id")
    what.add_argument("--predictions", type=path_argument, help="predictions.jsonl to score again")
    what.add_argument(
        "--compare", nargs=2, type=path_argument, metavar=("RUN_A", "RUN_B"), help="runs, or predictions, of one split"
    )
    parser.add_argument(
        "--data", type=path_argument, help="prepared data set; default: the one the checkpoint was trained on"
    )
    parser.add_argument("--split", help="train, validation or test (default)")
    parser.add_argument(
        "--out",
        type=path_argument,
        help="default: eval/, or eval_images/, beside the checkpoint; beside RUN_B's predictions",
    )
    parser.add_argument(
        "--images",
        type=path_argument,
        help="pictures without truth: a folder, one picture, or a .txt with a path a line",
    )
    parser.add_argument(
        "--skip-bad-images", action="store_true", help="with --images: leave out and list pictures that cannot be read"
    )
    parser.add_argument("--classes", help="with --images: names to ask for, by commas; default: those of training")
    parser.add_argument("--reparse", action="store_true", help="read the text of the predictions again")
    parser.add_argument(
        "--allow-missing", action="store_true", help="count images without a prediction as empty answers"
    )
    parser.add_argument("--score", choices=RANKINGS, help="rank the predictions by another scorer of theirs")
    parser.add_argument("--base", action="store_true", help="with an adapter: evaluate its base too, side by side")
    parser.add_argument("--push-to-hub", metavar="REPO", help="put the model, with a card that tells the result, there")
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON, one key a model, and no table")
    parser.add_argument(
        "--export", type=wanted_exports, default=[], help=f"also write the boxes as {', '.join(EXPORTS)}, by commas"
    )
    parser.add_argument("--limit", type=int, help="only the first N images of the split")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, help="default: from the training answers")
    parser.add_argument("--max-pixels", type=int, help="only for models that were not trained here")
    parser.add_argument(
        "--precision", choices=["nf4", "bfloat16", "float16", "float32"], help="default: as in training"
    )
    args = parser.parse_args(argv)
    mode = next(
        (flag(name) for name in ("compare", "predictions", "images") if getattr(args, name) is not None), "--ckpt"
    )
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    problems = [f"{flag(name)} has no effect with {mode}; leave it out" for name in sorted(given & UNUSED[mode])]
    if mode == "--predictions" and not args.data:
        problems.append("--predictions needs --data DIR, the prepared data set that they answer")
    for name in ("limit", "batch_size", "max_new_tokens", "max_pixels"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            problems.append(f"{flag(name)} must be at least 1, got {getattr(args, name)}")
    if problems:
        raise UserError("these options cannot be used:", problems)
    return args


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


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
    folder = Path(ckpt)
    if not folder.is_dir():
        return Path("runs") / ckpt.replace("/", "--") / "eval"
    return folder.parent / ("eval" if folder.name == "final" else f"eval_{folder.name}")


def warn_of_new_wording(records: list[Record], questions: list[str]) -> None:
    new = {first_question(record) for record in records} - set(questions)
    if questions and new:
        print(
            f"warning: {len(new)} question(s) of this split were never trained on, such as {min(new)!r}; "
            f"training asked, for instance, {questions[0]!r}",
            file=sys.stderr,
        )


def say(lines: list[str]) -> None:
    """Beside the results: --json has all of stdout to itself."""
    print("\n".join(lines), file=sys.stderr)


def check_push(ckpt: str, has_card: bool) -> None:
    """Raises UserError, before anything is generated, where the model could not be pushed in the end."""
    from boxtune.hub import LOG_IN, is_logged_in

    if not has_card:
        raise UserError(
            f"--push-to-hub: the card tells how well a model trained here, {ckpt}, answers a whole split of its own data. "
            "Leave out --data, --limit, --precision and --max-new-tokens."
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


def evaluate_checkpoint(args: argparse.Namespace) -> None:
    """Generate, then score; imported here so that scoring alone starts without torch."""
    from boxtune.checkpoint import load_checkpoint_model, open_checkpoint, quiet_libraries, weights_identity
    from boxtune.collator import GroundingCollator
    from boxtune.generation import predict
    from boxtune.grounding import FILE_NAME as GROUNDING_FILE
    from boxtune.hub import push_folder
    from boxtune.model_card import model_name, write_card
    from boxtune.run_info import versions

    quiet_libraries()
    checkpoint = open_checkpoint(args.ckpt, args.max_pixels, args.max_new_tokens)
    grounding = checkpoint.grounding
    if args.base and not checkpoint.adapter:
        raise UserError(f"--base: {args.ckpt} is no adapter, so it has no base to compare with.")
    out = args.out or evaluation_folder(args.ckpt)
    if args.images is not None:
        # Beside the evaluation: its metrics belong to its own predictions.
        out = args.out or out.with_name(f"{out.name}_images")
        asked = grounding.classes if args.classes is None else args.classes.split(",")
        asked = [name.strip() for name in asked if name.strip()]
        classes = list(dict.fromkeys([*grounding.classes, *asked]))  # numbered as in training
        records = records_without_truth(args.images, asked, out, args.skip_bad_images)
        data_dir, split = args.images, None
        warn_of_new_sizes(records, grounding)
    else:
        if not (args.data or grounding.data_dir):
            raise UserError(f"{args.ckpt} does not say what it was trained on; give --data DIR.")
        data_dir = args.data or Path(grounding.data_dir)
        split = choose_split(data_dir, args.split)
        classes = read_info(data_dir)["classes"]
        records = [as_asked(record) for record in read_records(data_dir, split)[: args.limit]]
    # The card tells of the whole split, as trained: another precision or a shorter answer is an experiment.
    whole = args.limit is None and args.precision is None and args.max_new_tokens is None
    has_card = whole and str(data_dir) == grounding.data_dir and (Path(args.ckpt) / GROUNDING_FILE).is_file()
    if args.push_to_hub:
        check_push(args.ckpt, has_card)
    warn_of_new_wording(records, grounding.questions)
    if args.export:
        check_exports(args.export, out, grounding.get_codec().is_click)
    model = load_checkpoint_model(checkpoint, args.precision)
    collator = GroundingCollator(checkpoint.processor, grounding, data_dir)
    settings = {
        "weights": weights_identity(checkpoint),
        "checkpoint": args.ckpt,
        "grounding": vars(grounding),
        "precision": args.precision,
        "batch_size": args.batch_size,
        "scorers": SCORERS,
        "questions": [[record["id"], first_question(record)] for record in records],
    }
    provenance = {
        "split": split,
        "limit": args.limit,
        "data": str(data_dir),
        "checkpoint": args.ckpt,
        "pixel_budget": {"min_pixels": grounding.min_pixels, "max_pixels": grounding.max_pixels},
        "base_model": grounding.base_model,
        "base_precision": args.precision or grounding.base_precision,
        "max_new_tokens": grounding.max_new_tokens,
        "versions": versions(),
    }
    runs, baseline = {}, None
    if args.base:
        # The calibration is the tuned model's.
        asking = GroundingCollator(checkpoint.processor, replace(grounding, calibration=[]), data_dir)
        with model.disable_adapter():
            answers = predict(
                model,
                asking,
                records,
                out / "base" / "predictions.jsonl",
                settings=settings | {"adapter": False},
                batch_size=args.batch_size,
                description="base model",
            )
        base_provenance = provenance | {"checkpoint": grounding.base_model}
        baseline = write_results(
            out / "base", records, answers, classes, data_dir, base_provenance, f"{grounding.base_model} (base)"
        )
        runs["base"] = baseline
    answers = predict(
        model,
        collator,
        records,
        out / "predictions.jsonl",
        settings=settings,
        batch_size=args.batch_size,
        description="tuned model",
    )
    if args.export:
        say(export_predictions(args.export, out, records, answers, classes, split))
    if args.images is not None:
        draw_predictions(answers, out / "pictures")
        print(f"{sum(len(a['objects']['category']) for a in answers)} objects in {len(answers)} pictures")
        print(f"predictions: {out / 'predictions.jsonl'}\npictures:    {out / 'pictures'}")
        return
    metrics = write_results(out, records, answers, classes, data_dir, provenance, args.ckpt, baseline)
    runs["tuned" if checkpoint.adapter else args.ckpt] = metrics
    if has_card:
        write_card(Path(args.ckpt), model_name(Path(args.ckpt)), metrics)
    print_results(runs, out, args.json)
    if args.push_to_hub:
        url = push_folder(Path(args.ckpt), args.push_to_hub)
        print(f"pushed:  {url}", file=sys.stderr if args.json else sys.stdout)


def print_results(runs: dict[str, dict], out: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(runs))  # in ASCII: a word of a file may be one that no terminal can show
        return
    console = Console()
    console.print(format_table(runs))
    console.print(format_class_table(runs))
    print(f"metrics: {out / 'metrics.json'}\nreport:  {out / 'report.html'}")


def score_predictions(args: argparse.Namespace) -> None:
    split = choose_split(args.data, args.split)
    records = [as_asked(record) for record in read_records(args.data, split)]
    predictions, missing = read_predictions(
        args.predictions, records, allow_missing=args.allow_missing, reparse=args.reparse
    )
    if args.score:
        predictions = with_score(predictions, args.score)
    if missing:
        print(
            f"warning: {len(missing)} of {len(records)} images have no prediction and count as empty", file=sys.stderr
        )
    out = args.out or args.predictions.parent
    classes = read_info(args.data)["classes"]
    if args.export:
        check_exports(args.export, out, is_click(predictions))
        say(export_predictions(args.export, out, records, predictions, classes, split))
    provenance = {"split": split, "data": str(args.data), "predictions": str(args.predictions), "missing": len(missing)}
    metrics = write_results(out, records, predictions, classes, args.data, provenance, str(args.predictions))
    print_results({args.predictions.parent.name or "predictions": metrics}, out, args.json)


def compare_runs(args: argparse.Namespace) -> None:
    files = [find_predictions(run) for run in args.compare]
    told = args.data or agreed_provenance(files, "data")
    if told is None:
        raise UserError("no metrics.json beside these predictions tells their data set; give --data DIR.")
    data_dir = Path(told)
    split = choose_split(data_dir, args.split or agreed_provenance(files, "split"))
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
    args = parse_arguments(argv)
    if args.predictions is not None:
        score_predictions(args)
    elif args.compare is not None:
        compare_runs(args)
    else:
        evaluate_checkpoint(args)


if __name__ == "__main__":
    main()
