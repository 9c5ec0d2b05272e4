"""Merge an adapter into its base: python merge_adapter.py --ckpt DIR --out DIR

Writes a bf16 model with processor and prompt, shard by shard, so that memory holds one shard of
the base and not the model. Then loads it strictly and compares it with bf16 base + adapter: logits
and generated boxes must agree, or the command fails and leaves nothing. What NF4 moved is measured
and reported.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from accelerate import PartialState

from boxtune.common.errors import UserError, command
from boxtune.common.files import named, path_argument, replace_folder
from boxtune.data.records import SPLITS, read_info, read_records
from boxtune.inference.merge_check import verify
from boxtune.models.checkpoint import open_checkpoint, quiet_libraries
from boxtune.models.merging import merge_shards
from boxtune.reports.model_card import model_name, write_card


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="adapter folder, such as runs/NAME/final")
    parser.add_argument("--out", type=path_argument, help="default: final_merged beside the adapter")
    parser.add_argument("--data", type=path_argument, help="data set for the comparison; default: that of training")
    parser.add_argument("--samples", type=int, default=8, help="images to compare on (default 8)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    parser.add_argument("--skip-nf4", action="store_true", help="leave out the comparison with NF4 base + adapter")
    return parser.parse_args(argv)


def merged_folder(ckpt: str) -> Path:
    """runs/NAME/final_merged for runs/NAME/final, runs/OWNER--NAME/final_merged for a hub id."""
    folder = named(ckpt)
    if not folder.is_dir():
        return Path("runs") / ckpt.replace("/", "--") / "final_merged"
    return folder.with_name(f"{folder.name}_merged")


def comparison_records(data_dir: Path, samples: int) -> list[dict]:
    """The first records of validation, test or train, whichever exists."""
    if samples < 1:
        raise UserError(f"--samples must be at least 1, got {samples}.")
    splits = read_info(data_dir)["splits"]
    split = next((s for s in (SPLITS[1], SPLITS[2], SPLITS[0]) if splits.get(s, {}).get("images")), None)
    if split is None:
        raise UserError(f"{data_dir} has no images to compare on; give another --data.")
    return read_records(data_dir, split)[:samples]


def print_report(report: dict) -> None:
    if report["agrees"] is None:
        print("  not compared: this machine's memory cannot hold the model; evaluate the merged model where it can")
        return
    names = {"bf16_base_and_adapter": "bf16 base + adapter", "nf4_base_and_adapter": "NF4 base + adapter, as trained"}
    for key, name in names.items():
        if key in report:
            found = report[key]
            print(
                f"  against {name}: logits differ by {found['logit_difference']:.4f} of their size "
                f"(the adapter moves them by {found['adapter_moves_logits_by']:.4f}); {found['boxes']} boxes agree to "
                f"{found['box_agreement']:.3f}; {found['same_answers']} of {report['images']} answers are the same"
            )
    if not report["can_tell"]:
        print("  warning: the adapter moves the logits so little that this comparison would not miss it")
    boxes = f"{report['box_tolerance']}, where there are {report['boxes_that_tell']}"
    print(f"  allowed against bf16: logits {report['logit_tolerance']}, boxes {boxes}")


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    quiet_libraries()
    if not PartialState().is_main_process:
        # All ranks saving at once has been seen to corrupt a merged model without an error.
        return
    checkpoint = open_checkpoint(args.ckpt)
    if checkpoint.adapter is None:
        raise UserError(f"{args.ckpt} is no adapter; there is nothing to merge.")
    out = args.out or merged_folder(args.ckpt)
    if out.exists() and not args.overwrite:
        raise UserError(f"{out} exists. Use --overwrite to replace it, or another --out.")
    if out.exists() and not (out / "config.json").is_file():
        raise UserError(f"{out} holds something other than a model; --overwrite replaces only those.")
    if out.resolve() == Path(checkpoint.grounding.base_model).resolve():
        raise UserError(f"{out} is the base of this adapter, and other adapters need it; choose another --out.")
    data_dir = args.data or Path(checkpoint.grounding.data_dir)
    records = comparison_records(data_dir, args.samples)

    target = out.resolve()  # through a link, so that replacing the folder leaves the link
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
                f"the merged model does not agree with bf16 base + adapter: {report['bf16_base_and_adapter']}. Nothing was "
                "kept. Has the base changed since training?"
            )
        replace_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"merged model: {out}")


if __name__ == "__main__":
    sys.exit(main())
