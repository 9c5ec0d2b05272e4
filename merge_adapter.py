"""Merge an adapter into its base: python merge_adapter.py --ckpt DIR --out DIR

Writes a bf16 model with processor and prompt. The adapter is merged shard by shard, so merging
holds only one shard of the base in memory. Every merged weight is then compared with base +
adapter, and the merged model is loaded as a whole to compare its logits. If weights or logits
differ too much, the command fails and deletes the merged model. Differences of generated boxes,
and from the NF4 base with adapter, are only reported.

With --quantize, the merged model is then quantized, compared with bf16, and kept only if its boxes
agree. This also works for a model that is merged already, or was trained without an adapter.
"""

import json
import shutil
import sys
from pathlib import Path

from boxtune.common.spinning import limit_spinning

if __name__ == "__main__":  # before torch is imported
    limit_spinning()

from accelerate import PartialState

from boxtune.answers.stated import stated_in
from boxtune.common.errors import UserError, command
from boxtune.common.files import replace_folder
from boxtune.data.records import Record
from boxtune.evaluation.merge_options import check_target, parse_arguments, target_folder
from boxtune.evaluation.promotion import require_guardrails
from boxtune.inference.merge_check import comparison_records, verify
from boxtune.inference.merge_report import disagreement, print_report
from boxtune.inference.quantized_check import check_quantized, describe_quantized
from boxtune.models.checkpoint import Checkpoint, open_checkpoint
from boxtune.models.libraries import quiet_libraries
from boxtune.models.merging import merge_shards
from boxtune.models.quantized_copy import write_quantized
from boxtune.reports.model_card import model_name, write_card


def merge(checkpoint: Checkpoint, folder: Path, records: list[Record], data_dir: Path, with_nf4: bool) -> dict:
    """Merge into `folder` and return what merge_report.json will hold. Raises UserError if the models do not agree."""
    folder.mkdir(parents=True)
    merged = merge_shards(checkpoint, folder)
    print(f"merged {merged} modules into bf16; comparing on {len(records)} images of {data_dir}")
    report = verify(checkpoint, folder, records, data_dir, with_nf4=with_nf4)
    print_report(report)
    if report["agrees"] is False:
        raise UserError(
            f"the merged model does not agree with base + adapter: {disagreement(report)}. The merged model was deleted."
        )
    return report


def quantize(model: Checkpoint, folder: Path, method: str, records: list[Record], data_dir: Path, least: float) -> dict:
    """Quantize `model` into `folder` and return what merge_report.json will hold. Raises UserError if boxes do not agree."""
    write_quantized(model, folder, method)
    print(f"quantized to {method}; comparing on {len(records)} images of {data_dir}")
    found = check_quantized(folder, model, records, data_dir, least)
    print(describe_quantized(found))
    if not found["agrees"]:
        raise UserError(
            f"the boxes of the quantized model agree by {found['box_agreement']:.3f} with those in bf16, and {least:g} is "
            "required. It was deleted. Compare on more images (--samples), accept the loss (--min-box-agreement), or deploy bf16."
        )
    return {"quantized": {"method": method, **found}}


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv, __doc__)
    quiet_libraries()
    if not PartialState().is_main_process:
        return  # only one process saves: if several save at once, the model can be corrupted without an error

    # ---- Checkpoint, target folder, and images to compare on
    whole = UserError(
        f"{args.ckpt} is not an adapter, so there is nothing to merge. --quantize makes a smaller model of it."
    )
    is_whole = (Path(args.ckpt) / "config.json").is_file() and not (Path(args.ckpt) / "adapter_config.json").is_file()
    if is_whole and not args.quantize:
        raise whole  # before it is asked how it was trained
    checkpoint = open_checkpoint(args.ckpt, stated_in(args), command=args.command)
    if checkpoint.adapter is None and not (args.quantize and checkpoint.folder.is_dir()):
        raise whole
    if args.require_guardrails:
        require_guardrails(args.ckpt, checkpoint.folder)
    out = target_folder(args, checkpoint.adapter is not None)
    check_target(out, checkpoint, args.overwrite)
    if not (args.data or checkpoint.grounding.data_dir):
        raise UserError(f"{args.ckpt} does not name the dataset that it was trained on; give --data DIR to compare on.")
    data_dir = args.data or Path(checkpoint.grounding.data_dir)
    records = comparison_records(data_dir, args.samples)

    # ---- Write temporary folders, compare, and rename the last one only if the models agree
    target = out.resolve()  # resolves a symbolic link, so that the link itself is kept
    merged, quantized = (target.with_name(f".{target.name}.{end}") for end in ("partial", "quantized"))
    shutil.rmtree(merged, ignore_errors=True)
    shutil.rmtree(quantized, ignore_errors=True)
    report = {}
    try:
        if checkpoint.adapter:
            report |= merge(checkpoint, merged, records, data_dir, with_nf4=not args.skip_nf4)
        if args.quantize:
            model = open_checkpoint(str(merged)) if checkpoint.adapter else checkpoint
            report |= quantize(model, quantized, args.quantize, records, data_dir, args.min_box_agreement)
        written = quantized if args.quantize else merged
        (written / "merge_report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        write_card(written, model_name(target))
        replace_folder(written, target)
    finally:
        shutil.rmtree(merged, ignore_errors=True)
        shutil.rmtree(quantized, ignore_errors=True)
    print(f"{'quantized' if args.quantize else 'merged'} model: {out}")


if __name__ == "__main__":
    sys.exit(main())
