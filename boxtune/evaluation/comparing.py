"""--compare: two runs on the same images."""

import argparse

from boxtune.answers.prediction_file import read_predictions
from boxtune.evaluation import folders, results
from boxtune.evaluation.split import data_of_predictions, read_split
from boxtune.metrics.comparison import compare
from boxtune.reports.comparison import write_comparison


def compare_runs(args: argparse.Namespace) -> None:
    """Write a comparison page, and print the table."""
    # ---- records and predictions ----
    files = folders.find_predictions("--compare", args.compare)
    split = read_split(*data_of_predictions(args, files), ids=folders.common_ids(files))
    answers_a, answers_b = (read_predictions(path, split.records)[0] for path in files)

    # ---- comparison, page and table ----
    names = {"A": str(args.compare[0]), "B": str(args.compare[1]), "data": str(split.data_dir), "split": split.name}
    result = names | compare(split.records, answers_a, answers_b, split.classes)
    out = args.out or files[1].parent
    write_comparison(out, result, split.records, answers_a, answers_b, split.data_dir)
    results.print_comparison(result, out, args.json)
