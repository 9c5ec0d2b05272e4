"""Write a prepared dataset with its training images in shards: tar archives of records and images, as WebDataset reads them.

    python -m data_prep shards data/NAME --out data/NAME-shards [--images-per-shard 1000]

Use it for more images than fit into memory, or than a file system likes as single files. Train on it by the recipe key data_dir.
Each archive holds a random part of the images, and training reads one archive after the other. The other splits are written as
they are, and their images are referenced. Everything but training needs the dataset that the shards were made from.
"""

import argparse
from pathlib import Path

from boxtune.common.errors import UserError
from boxtune.common.files import named, path_argument
from boxtune.data.shards import write_shards


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", type=path_argument, help="a prepared dataset")
    parser.add_argument("--out", metavar="DIR", type=path_argument, required=True, help="folder of the new dataset")
    parser.add_argument(
        "--images-per-shard", type=int, default=1000, metavar="N", help="images in each archive (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the random order (default %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset at DIR")


def main(args: argparse.Namespace) -> None:
    """Write the whole dataset, or nothing."""
    if args.images_per_shard < 1:
        raise UserError(f"--images-per-shard {args.images_per_shard}: must be at least 1.")
    source, out = Path(args.data), named(str(args.out))
    if source.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{source} is inside {out}, which would be replaced. Use another --out.")
    shards = write_shards(source, out, args.images_per_shard, args.seed, args.overwrite)
    print(f"wrote {out}: {len(shards)} training images in {len(shards.images)} archives")
