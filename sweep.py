"""Run a sweep: python sweep.py recipes/sweeps/NAME.yaml [--only A1,B2] [--seeds 3] [--dry-run]

Trains each run of the sweep with train_sft.py and evaluates it with evaluate.py on the validation
split, each in runs/SWEEP/RUN-seedN, one on each GPU at the same time. Finished runs are skipped, and
an interrupted one resumes from its last checkpoint. A failed one is reported at the end, with exit
code 1. Writes runs/SWEEP/pareto.html and pareto.png (docs/sweeps.md).
"""

import argparse
import sys
import tempfile
from pathlib import Path

from boxtune.common.spinning import limit_spinning

if __name__ == "__main__":  # before torch is imported
    limit_spinning()

from boxtune.common.errors import UserError, command
from boxtune.common.files import path_argument
from boxtune.evaluation.guardrails import OF_RECIPE
from boxtune.inference.guardrail_suite import read_suite
from boxtune.models.config import load_config
from boxtune.models.libraries import quiet_libraries
from boxtune.models.placement import layers_of
from boxtune.reports.pareto import write_pareto
from boxtune.sweeps.jobs import Job, conflict, is_finished, load_job_recipe, make_jobs
from boxtune.sweeps.ladder import Ladder, check_ladder
from boxtune.sweeps.running import JobList, print_failures, run_jobs
from boxtune.sweeps.search import Search, check_search, search_jobs
from boxtune.sweeps.sweep_file import Sweep, expand, read_sweep
from boxtune.training.recipe import Recipe
from data_prep.prepare_once import prepare_once


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", metavar="SWEEP", help="YAML file, or its name in recipes/sweeps")
    parser.add_argument("--only", metavar="A,B", default="", help="names of the runs to make (default: all)")
    parser.add_argument("--seeds", metavar="N", type=int, help="seeds of each run (default: the sweep's own)")
    parser.add_argument("--out", metavar="DIR", type=path_argument, help="folder of the runs (default: runs/SWEEP)")
    parser.add_argument("--dry-run", action="store_true", help="check all keys and list the runs, but run nothing")
    args = parser.parse_args(argv)
    if args.seeds is not None and args.seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {args.seeds}.")
    return args


def check_recipes(sweep: Sweep, jobs: list[Job]) -> list[Recipe]:
    """The recipe of each job. Raises UserError that lists every job with keys that cannot be used, or whose folder holds another
    run."""
    recipes, problems = [], []
    with tempfile.TemporaryDirectory() as folder:
        for job in jobs:
            try:
                recipe = load_job_recipe(sweep, job, Path(folder))
            except UserError as error:
                problems.append(f"{job.name}: {error}")
                continue
            recipes.append(recipe)
            if problem := conflict(job, recipe):
                problems.append(problem)
    if problems:
        raise UserError(f"the sweep {sweep.name} has runs that cannot be made:", problems)
    return recipes


def check_layers(jobs: list[Job], recipes: list[Recipe]) -> None:
    """Raises UserError that lists every job whose model lacks the layers that it names. Reads only the config of the model."""
    problems = []
    for job, recipe in zip(jobs, recipes, strict=True):
        config = load_config(recipe.model.model_name_or_path, recipe.model.model_revision)
        try:
            layers_of(config, recipe.options.lora_llm_layers, recipe.options.lora_vision_blocks)
        except UserError as error:
            problems += [f"{job.name}: {problem}" for problem in error.problems]
    if problems:
        raise UserError("runs that name layers which their model does not have:", problems)


def list_jobs(sweep: Sweep, jobs: list[Job]) -> None:
    for job in jobs:
        keys = ", ".join(f"{key}: {value}" for key, value in job.run.keys.items() if key not in sweep.keys)
        what = "the base, nothing trained" if job.run.is_base else keys
        print(f"{job.name}{' (finished)' if is_finished(sweep, job) else ''}: {what}")


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    quiet_libraries()

    # ---- Sweep and its runs
    sweep = read_sweep(args.sweep)
    check_ladder(sweep.ladder or {})
    check_search(sweep.search)
    if sweep.guardrails not in (None, OF_RECIPE):
        read_suite(sweep.guardrails)
    out = args.out or Path("runs") / sweep.name
    only = [name for name in args.only.split(",") if name]
    jobs = make_jobs(sweep, expand(sweep, only), args.seeds or sweep.seeds, out)
    if sweep.search:
        jobs = search_jobs(sweep, out)  # the corners of the search, whose keys are checked as those of runs are

    # ---- Checks of every recipe before the first run
    recipes = check_recipes(sweep, jobs)
    if args.dry_run:
        list_jobs(sweep, jobs)
        return

    check_layers(jobs, recipes)

    # ---- Data, once for all runs
    for data_dir, recipe in {recipe.options.data_dir: recipe for recipe in recipes}.items():
        options = recipe.options
        prepare_once(Path(data_dir), options.data_format, options.data_source, options.data_args, print)

    # ---- Runs
    out.mkdir(parents=True, exist_ok=True)
    if sweep.search:
        queue = Search(sweep, out, print)
    else:
        queue = Ladder(jobs, sweep.ladder, out, print) if sweep.ladder is not None else JobList(jobs)
    failed = run_jobs(sweep, queue, print)

    # ---- Report
    if any(out.glob("*/eval/metrics.json")):
        sentence = write_pareto(out, sweep.metric, sweep.guardrail, sweep.max_guardrail_loss, sweep.name)
        print(f"{sentence}\nreport: {out / 'pareto.html'}")
    print_failures(failed)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
