"""Run jobs as subprocesses: one for each GPU or place, each with its own log; a failed one does not stop the others."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Protocol

import torch

from boxtune.sweeps.jobs import Job, is_finished, steps_of, write_overlay
from boxtune.sweeps.sweep_file import Sweep

POLL_SECONDS = 0.5
# Lines of a failed run's log that are shown at the end.
SHOWN_LINES = 15


class Queue(Protocol):
    """Where jobs come from, and what is done with their results."""

    def take(self) -> Job | None:
        """The next job; None if there is none now. If none runs any more, the sweep ends."""

    def finished(self, job: Job, failed: bool) -> None: ...

    def should_stop(self, job: Job) -> bool:
        """Whether to stop a job that is being trained. Called every few seconds."""


class JobList:
    """Jobs that do not depend on one another."""

    def __init__(self, jobs: list[Job]):
        self.waiting = list(jobs)

    def take(self) -> Job | None:
        return self.waiting.pop(0) if self.waiting else None

    def finished(self, job: Job, failed: bool) -> None:
        pass

    def should_stop(self, job: Job) -> bool:
        return False


@dataclass
class Running:
    """A job whose current step runs. place: the GPU, or a number if there are none. left: steps after the current one."""

    job: Job
    place: str
    step: str
    left: list[tuple[str, list[str]]]
    process: subprocess.Popen
    log: IO[str]
    began: float
    was_stopped: bool = False


def places(sweep: Sweep) -> list[str]:
    """A place for each run at the same time: the GPUs that this process may use or, with a launcher, numbers."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if torch.cuda.is_available() else []
    gpus = [gpu for gpu in gpus if gpu] or [str(index) for index in range(torch.cuda.device_count())]
    if sweep.launcher:
        return [str(index) for index in range(sweep.parallel or max(1, len(gpus)))]
    return gpus[: sweep.parallel] if gpus else [""] * (sweep.parallel or 1)


def run_jobs(sweep: Sweep, queue: Queue, say: Callable[[str], None]) -> list[Job]:
    """Run jobs until the queue has none; return those that failed. A finished job is skipped.

    On Ctrl-C or SIGTERM, running jobs save a checkpoint and end, and the same command continues them later.
    """
    free, running, failed = places(sweep), [], []
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while True:
            while free and (job := queue.take()):
                if is_finished(sweep, job):
                    say(f"{job.name}: finished already")
                    queue.finished(job, False)
                else:
                    running.append(_start(sweep, job, free.pop(0), say))
            if not running:
                return failed
            time.sleep(POLL_SECONDS)
            for each in list(running):
                if not _goes_on(sweep, each, queue, say):
                    running.remove(each)
                    free.append(each.place)
                    has_failed = each.process.returncode != 0 and not each.was_stopped
                    failed += [each.job] if has_failed else []
                    queue.finished(each.job, has_failed)
    except KeyboardInterrupt:
        say(f"stopping {len(running)} runs; they save a checkpoint first, and the same command continues them")
        for each in running:
            each.process.terminate()
        raise
    finally:
        for each in running:
            each.process.wait()
            each.log.close()
        signal.signal(signal.SIGTERM, previous)


def _interrupt(signum, frame):
    raise KeyboardInterrupt


def _start(sweep: Sweep, job: Job, place: str, say: Callable[[str], None]) -> Running:
    write_overlay(job, job.folder)
    (step, command), *left = steps_of(sweep, job)
    log = open(job.log, "a", encoding="utf-8")  # noqa: SIM115 - closed when the job ends
    process = _launch(sweep, job, command, place, log)
    say(
        f"{job.name}: {_described(step, command)}{f' on GPU {place}' if place and not sweep.launcher else ''}, log {job.log}"
    )
    return Running(job, place, step, left, process, log, time.monotonic())


def _described(step: str, command: list[str]) -> str:
    return f"{step} continues" if "--resume_from_checkpoint" in command else step


def _launch(sweep: Sweep, job: Job, command: list[str], place: str, log: IO[str]) -> subprocess.Popen:
    """A session of its own, so that Ctrl-C reaches only the sweep, which asks each run once to stop."""
    environment = dict(os.environ)
    if sweep.launcher:
        command = [part for word in shlex.split(sweep.launcher) for part in _filled(word, command, job)]
    elif place:
        environment["CUDA_VISIBLE_DEVICES"] = place
    print(f"$ {shlex.join(command)}", file=log, flush=True)
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )


def _filled(word: str, command: list[str], job: Job) -> list[str]:
    """A word of the launcher: {command} becomes the words of the command, {name} the name of the job."""
    return command if word == "{command}" else [word.replace("{name}", job.name)]


def _goes_on(sweep: Sweep, each: Running, queue: Queue, say: Callable[[str], None]) -> bool:
    """Start the next step of a job whose step has ended. False if the whole job has ended."""
    if each.process.poll() is None:
        if each.step == "training" and not each.was_stopped and queue.should_stop(each.job):
            each.was_stopped = True
            each.process.terminate()
        return True
    minutes = (time.monotonic() - each.began) / 60
    if each.process.returncode == 0 and each.left and not each.was_stopped:
        (each.step, command), *each.left = each.left
        each.process = _launch(sweep, each.job, command, each.place, each.log)
        return True
    each.log.close()
    if each.was_stopped:
        say(f"{each.job.name}: stopped early after {minutes:.1f} minutes")
    elif each.process.returncode:
        say(f"{each.job.name}: {each.step} failed with exit code {each.process.returncode}, log {each.job.log}")
    else:
        say(f"{each.job.name}: finished in {minutes:.1f} minutes")
    return False


def print_failures(failed: list[Job]) -> None:
    """The last lines of each failed job's log, to stderr."""
    for job in failed:
        lines = job.log.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN_LINES:]
        print(f"\n{job.name} failed. The last lines of {job.log}:", file=sys.stderr)
        print("\n".join(f"    {line}" for line in lines), file=sys.stderr)
