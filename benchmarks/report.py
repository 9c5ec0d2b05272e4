"""Speed of an evaluation of finished predictions, and of its report page:

    python -m benchmarks.report [--load many_images,many_classes,one_crowd] [--seed 0] [--work DIR] [--root DIR]

Draws the loads (benchmarks/report_loads.py) with a seed and runs evaluate.py --predictions on each in its own process with one
thread. Prints the CPU seconds and the peak memory of the process, the size of report.html, the seconds until headless Chromium
shows it, the milliseconds from a move of the slider to the end of the next frame (median and slowest of thirty, a third of them
with the table per class and a third with the gallery in view), and the milliseconds of CPU time that the page's main thread needs
per move (median and most). On a busy machine, look at the latter. --root measures another checkout.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.browser import measure_page
from benchmarks.report_loads import LOADS, write_load
from boxtune.common.errors import UserError, command
from boxtune.common.files import path_argument

DEFAULT = "many_images,many_classes,one_crowd"


def evaluate(folder: Path, root: Path) -> tuple[float, float]:
    """(CPU seconds, peak resident MiB) of evaluate.py of the checkout `root` on the load in `folder`."""
    words = ["evaluate.py", "--predictions", "predictions.jsonl", "--data", "data", "--out", "results"]
    words[0] = str(root.resolve() / words[0])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root.resolve())}
    with open(folder / "evaluate.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"evaluate.py failed; see {folder / 'evaluate.log'}.")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", default=DEFAULT, help=f"comma-separated: {', '.join(LOADS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=path_argument, help="keep the loads and results here")
    parser.add_argument("--root", type=path_argument, default=Path(__file__).parents[1], help="checkout to measure")
    args = parser.parse_args()
    names = args.load.split(",")
    if unknown := [name for name in names if name not in LOADS]:
        raise UserError(f"--load {','.join(unknown)}: choose from {', '.join(LOADS)}.")
    table = Table("load", "CPU s", "peak MiB", "page MB", "opens, s", "move, ms", "slowest", "CPU ms", "most")
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            folder = (args.work or Path(temporary)).resolve() / name
            write_load(name, folder, args.seed)
            seconds, peak = evaluate(folder, args.root)
            page = folder / "results" / "report.html"
            found = measure_page(page)
            moves = [f"{found[key]:.0f}" if key in found else "–" for key in ("move", "slowest", "busy", "busiest")]
            size = f"{page.stat().st_size / 1e6:.1f}"
            table.add_row(name, f"{seconds:.1f}", f"{peak:.0f}", size, f"{found['open']:.2f}", *moves)
    Console().print(table)


if __name__ == "__main__":
    main()
