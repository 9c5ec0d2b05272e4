"""Evaluate a checkpoint or existing predictions.

    python evaluate.py --ckpt DIR [--data DIR] [--split test] [--out DIR] [--absent]
                       [--guardrails small|full|recipe|FILE.yaml]
    python evaluate.py --ckpt DIR --tune [--metric AP|f1] [--verify] [--data DIR] [--out DIR]
    python evaluate.py --predictions FILE [--data DIR] [--split test] [--out DIR]
                       [--reparse] [--allow-missing] [--score NAME]
    python evaluate.py --ckpt DIR --images FOLDER|IMAGE|LIST.txt [--classes a,b]
                       [--out DIR] [--skip-bad-images]
    python evaluate.py --compare RUN_A RUN_B [--data DIR] [--split test] [--out DIR]

Except with --compare, --export coco,yolo,supervision,labelstudio,fiftyone also writes the boxes
for other tools.
Writes predictions.jsonl, metrics.json and report.html. --guardrails measures what a model does
beyond its task, compared with its base, and also writes guardrails.json (docs/guardrails.md).
--ckpt takes an adapter, a merged model or a Hub id; with --server URL, a server with OpenAI's
chat API, such as vLLM, runs the model.
--predictions computes the metrics again without model and images. It and --compare, which writes
comparison.html, take a run's folder; its metrics.json names the dataset unless --data is given.
"""

import argparse

from boxtune.answers.prediction_file import read_predictions
from boxtune.answers.predictions import with_score
from boxtune.common.errors import command
from boxtune.common.spinning import limit_spinning
from boxtune.evaluation import folders, results
from boxtune.evaluation.comparing import compare_runs
from boxtune.evaluation.exporting import check_export, write_export
from boxtune.evaluation.options import mode_of, parse_arguments
from boxtune.evaluation.split import data_of_checkpoint, data_of_predictions, read_images, read_split
from boxtune.evaluation.tuning import tune
from boxtune.metrics.matching import is_click


def evaluate_split(args: argparse.Namespace) -> None:
    """A checkpoint on one split of a prepared dataset."""
    # Imported here because it needs torch, which --help and scoring do without.
    from boxtune.evaluation.absent import ask_absent
    from boxtune.evaluation.card import check_push, has_card, push, update_card
    from boxtune.evaluation.guardrails import choose_suite, measure_guardrails, print_guardrails
    from boxtune.evaluation.model import load_detector, open_model
    from boxtune.inference.asking import answer_records, answer_records_with_base

    # ---- checkpoint and records ----
    suite = choose_suite(args.guardrails, args.ckpt)
    checkpoint = open_model(args)
    grounding = checkpoint.grounding
    split = read_split(*data_of_checkpoint(args, grounding), limit=args.limit)

    # ---- checks before the model runs ----
    out = args.out or folders.evaluation_folder(args.ckpt)
    updates_card = has_card(args, grounding, split)
    check_push(args, updates_card)
    check_export(args.export, out, grounding.get_codec().is_click, split.records)

    # ---- responses ----
    detector = load_detector(args, checkpoint)
    ask = answer_records_with_base if args.base else answer_records
    answers = ask(detector, split.records, split.asked, split.data_dir, out, args.batch_size)
    absent = ask_absent(detector, split, out, args.batch_size) if args.absent else None
    probes = measure_guardrails(detector, suite, split, out, args.batch_size) if suite else None

    # ---- export, metrics and report ----
    write_export(args.export, out, split, answers.tuned)
    provenance = results.checkpoint_provenance(args, grounding, split)
    runs = {}
    if args.base:
        runs["base"] = results.write_base_results(out / "base", split, answers.base, provenance)
    metrics = results.write_results(out, split, answers.tuned, provenance, args.ckpt, runs.get("base"), absent, probes)
    runs["tuned" if checkpoint.adapter else args.ckpt] = metrics

    # ---- card, tables, upload ----
    if updates_card:
        update_card(args.ckpt, metrics, probes)
    results.print_results(runs, out, args.json)
    if probes and not args.json:
        print_guardrails(probes, out)
    if args.push_to_hub:
        push(args)


def answer_images(args: argparse.Namespace) -> None:
    """A checkpoint on images without ground truth: predictions, and copies of the images with the detections drawn in."""
    from boxtune.evaluation.model import load_detector, open_model
    from boxtune.inference import unlabelled
    from boxtune.inference.asking import answer_records

    # ---- checkpoint and records ----
    checkpoint = open_model(args)
    grounding = checkpoint.grounding
    out = args.out or folders.images_folder(args.ckpt)
    copies = out / "pictures"
    split = read_images(args, grounding, copies)
    unlabelled.warn_of_new_sizes(split.records, grounding)
    check_export(args.export, out, grounding.get_codec().is_click, split.records)

    # ---- responses ----
    unlabelled.remove_copies(out / "predictions.jsonl", copies)
    detector = load_detector(args, checkpoint)
    predictions = answer_records(detector, split.records, split.asked, args.images, out, args.batch_size).tuned

    # ---- export and annotated copies ----
    write_export(args.export, out, split, predictions)
    unlabelled.draw_predictions(predictions, copies)
    results.print_images_summary(predictions, out)


def rescore(args: argparse.Namespace) -> None:
    """Existing predictions, without a model."""
    # ---- records and predictions ----
    [path] = folders.find_predictions("--predictions", [args.predictions])
    split = read_split(*data_of_predictions(args, [path]))
    predictions, missing = read_predictions(
        path, split.records, allow_missing=args.allow_missing, reparse=args.reparse, classes=split.classes
    )
    if args.score:
        predictions = with_score(predictions, args.score)
    results.warn_of_missing(missing, split)

    # ---- export, metrics, report and tables ----
    out = args.out or folders.rescored_folder(path.parent)
    check_export(args.export, out, is_click(predictions), split.records)
    write_export(args.export, out, split, predictions)
    provenance = results.predictions_provenance(args, path, split, missing)
    metrics = results.write_results(out, split, predictions, provenance, str(path))
    results.print_results({path.parent.name or "predictions": metrics}, out, args.json)


MODES = {"ckpt": evaluate_split, "tune": tune, "images": answer_images, "predictions": rescore, "compare": compare_runs}


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv, __doc__)
    MODES[mode_of(args)](args)


if __name__ == "__main__":
    limit_spinning()  # before torch is imported
    main()
