"""Merge an adapter into its base: python merge_adapter.py --ckpt DIR --out DIR

Writes a bf16 model with processor and prompt. The adapter is merged shard by shard, so merging
holds only one shard of the base in memory. Every merged weight is then compared with base +
adapter, and the merged model is loaded as a whole to compare its logits. If weights or logits
differ too much, the command fails and deletes the merged model. Differences of generated boxes,
and from the NF4 base with adapter, are only reported.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from boxtune.common.spinning import limit_spinning

if __name__ == "__main__":  # before torch is imported
    limit_spinning()

from accelerate import PartialState

from boxtune.answers.stated import add_options, stated_in
from boxtune.common.errors import UserError, command
from boxtune.common.files import named, path_argument, replace_folder
from boxtune.data.dataset import read_info, read_records
from boxtune.data.records import SPLITS, Record
from boxtune.evaluation.promotion import require_guardrails
from boxtune.inference.merge_check import verify
from boxtune.inference.merge_report import disagreement, print_report
from boxtune.models.checkpoint import Checkpoint, open_checkpoint
from boxtune.models.libraries import quiet_libraries
from boxtune.models.merging import merge_shards
from boxtune.reports.model_card import model_name, write_card


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--ckpt", metavar="DIR", required=True, help="adapter folder, such as runs/NAME/final, or Hub id"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=path_argument,
        help="folder of the merged model (default: final_merged next to the adapter)",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=path_argument,
        help="dataset for the comparison (default: the training dataset)",
    )
    parser.add_argument(
        "--samples", metavar="N", type=int, default=8, help="number of images to compare on (default 8)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    parser.add_argument(
        "--skip-nf4", action="store_true", help="do not measure the difference to the NF4 base with adapter"
    )
    parser.add_argument(
        "--require-guardrails",
        action="store_true",
        help="refuse a model whose guardrails.json fails (docs/guardrails.md)",
    )
    add_options(parser)
    args = parser.parse_args(argv)
    args.command = ["python", "merge_adapter.py", *(sys.argv[1:] if argv is None else argv)]
    return args


def merged_folder(ckpt: str) -> Path:
    """runs/NAME/final_merged for runs/NAME/final, runs/OWNER--NAME/final_merged for a Hub id."""
    folder = named(ckpt)
    if not folder.is_dir():
        return Path("runs") / ckpt.replace("/", "--") / "final_merged"
    return folder.with_name(f"{folder.name}_merged")


def check_target(out: Path, checkpoint: Checkpoint, overwrite: bool) -> None:
    """Raises UserError if writing to `out` could destroy something that is still needed."""
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists. Use --overwrite to replace it, or another --out.")
    if out.exists() and not (out / "config.json").is_file():
        raise UserError(f"{out} contains something other than a model; --overwrite replaces only models.")
    if out.resolve() == Path(checkpoint.grounding.base_model).resolve():
        raise UserError(f"{out} is the base of this adapter, which other adapters may need; choose another --out.")


def comparison_records(data_dir: Path, samples: int) -> list[Record]:
    """The first records of validation, test or train: the first of these splits that exists."""
    if samples < 1:
        raise UserError(f"--samples must be at least 1, got {samples}.")
    train, validation, test = SPLITS
    splits = read_info(data_dir)["splits"]
    split = next((name for name in (validation, test, train) if splits.get(name, {}).get("images")), None)
    if split is None:
        raise UserError(f"{data_dir} has no images to compare on; give another --data.")
    return read_records(data_dir, split)[:samples]


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    quiet_libraries()
    if not PartialState().is_main_process:
        return  # only one process saves: if several save at once, the model can be corrupted without an error

    # ---- Checkpoint, target folder, and images to compare on
    whole = UserError(f"{args.ckpt} is not an adapter, so there is nothing to merge.")
    if (Path(args.ckpt) / "config.json").is_file() and not (Path(args.ckpt) / "adapter_config.json").is_file():
        raise whole  # before it is asked how it was trained
    checkpoint = open_checkpoint(args.ckpt, stated_in(args), command=args.command)
    if checkpoint.adapter is None:
        raise whole
    if args.require_guardrails:
        require_guardrails(args.ckpt, checkpoint.adapter)
    out = args.out or merged_folder(args.ckpt)
    check_target(out, checkpoint, args.overwrite)
    if not (args.data or checkpoint.grounding.data_dir):
        raise UserError(f"{args.ckpt} does not name the dataset that it was trained on; give --data DIR to compare on.")
    data_dir = args.data or Path(checkpoint.grounding.data_dir)
    records = comparison_records(data_dir, args.samples)

    # ---- Merge into a temporary folder, compare, and rename it only if the models agree
    target = out.resolve()  # resolves a symbolic link, so that the link itself is kept
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        merged = merge_shards(checkpoint, temporary)
        print(f"merged {merged} modules into bf16; comparing on {len(records)} images of {data_dir}")
        report = verify(checkpoint, temporary, records, data_dir, with_nf4=not args.skip_nf4)
        (temporary / "merge_report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        write_card(temporary, model_name(target))
        print_report(report)
        if report["agrees"] is False:
            raise UserError(
                f"the merged model does not agree with base + adapter: {disagreement(report)}. The merged model was "
                "deleted."
            )
        replace_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"merged model: {out}")


if __name__ == "__main__":
    sys.exit(main())
