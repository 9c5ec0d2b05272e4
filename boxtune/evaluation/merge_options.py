"""The options of merge_adapter.py, and the folder that it writes."""

import argparse
import sys
from pathlib import Path

from boxtune.answers.stated import add_options
from boxtune.common.errors import UserError
from boxtune.common.files import named, path_argument
from boxtune.inference.quantized_check import LEAST_AGREEMENT
from boxtune.models.checkpoint import Checkpoint
from boxtune.models.quantized_copy import METHODS


def parse_arguments(argv: list[str] | None, description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    parser.add_argument(
        "--quantize", choices=METHODS, help="write a smaller model, quantized by bitsandbytes (docs/deploy.md)"
    )
    parser.add_argument(
        "--min-box-agreement",
        metavar="SHARE",
        type=float,
        default=LEAST_AGREEMENT,
        help=f"with --quantize: least agreement with the boxes in bf16, 0 to 1 (default {LEAST_AGREEMENT})",
    )
    add_options(parser)
    args = parser.parse_args(argv)
    if not 0 <= args.min_box_agreement <= 1:
        raise UserError(f"--min-box-agreement must be from 0 to 1, got {args.min_box_agreement:g}.")
    args.command = ["python", "merge_adapter.py", *(sys.argv[1:] if argv is None else argv)]
    return args


def target_folder(args: argparse.Namespace, is_adapter: bool) -> Path:
    """--out or, by default, runs/NAME/final_merged for runs/NAME/final, runs/OWNER--NAME/final_merged for a Hub id.

    With --quantize, the method is appended: runs/NAME/final_merged_nf4.
    """
    if args.out:
        return args.out
    folder = named(args.ckpt)
    if not folder.is_dir():
        folder = Path("runs") / args.ckpt.replace("/", "--") / "final"
    end = ("_merged" if is_adapter else "") + (f"_{args.quantize}" if args.quantize else "")
    return folder.with_name(f"{folder.name}{end}")


def check_target(out: Path, checkpoint: Checkpoint, overwrite: bool) -> None:
    """Raises UserError if writing to `out` could destroy something that is still needed."""
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists. Use --overwrite to replace it, or another --out.")
    if out.exists() and not (out / "config.json").is_file():
        raise UserError(f"{out} contains something other than a model; --overwrite replaces only models.")
    if out.resolve() == checkpoint.folder.resolve():
        raise UserError(f"{out} is the model that is to be read; choose another --out.")
    if out.resolve() == Path(checkpoint.grounding.base_model).resolve():
        raise UserError(f"{out} is the base of this adapter, which other adapters may need; choose another --out.")
