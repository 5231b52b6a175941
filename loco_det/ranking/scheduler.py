"""Run steps, several at a time, each when those that it needs are done; what fails stops what needs it, no other."""

import threading
from collections.abc import Callable, Sequence

from .steps import Step


class StepFailedError(RuntimeError):
    """A step has failed; the text is its last line."""


def run_all(
    steps: Sequence[Step], run: Callable[[Step, int, int], None], jobs: int, failed: Callable[[Step, str], None]
) -> list[Step]:
    """Run the steps that are not done.

    Args:
        steps: each after those that it needs.
        run: runs one, in a thread of its own; gets its number among all, and that of the job, from 0. It raises
            StepFailedError if the step fails.
        jobs: how many run at a time.
        failed: is told of each that fails, with its last line.

    Returns:
        The steps that were not done: they failed, or need one that did.
    """
    state: dict[Step, str] = {step: "done" for step in steps if step.is_done}
    changed, free = threading.Condition(), list(range(jobs))
    crashes: list[BaseException] = []

    def work(step: Step, job: int) -> None:
        try:
            run(step, list(steps).index(step) + 1, job)
            end = "done"
        except StepFailedError as error:
            failed(step, str(error))
            end = "failed"
        except BaseException as error:  # a defect, or a full disk: the caller raises it
            crashes.append(error)
            end = "failed"
        with changed:
            state[step] = end
            free.append(job)
            changed.notify_all()

    with changed:
        while not crashes:
            for step in steps:
                if step not in state and any(state.get(need) in ("failed", "skipped") for need in step.needs):
                    state[step] = "skipped"
                ready = step not in state and all(state.get(need) == "done" for need in step.needs)
                if ready and free:
                    state[step] = "running"
                    threading.Thread(target=work, args=(step, free.pop(0)), daemon=True).start()
            if "running" not in state.values() and all(step in state for step in steps):
                break
            changed.wait(0.5)  # so that Ctrl-C is heard
    if crashes:
        raise crashes[0]
    return [step for step in steps if state[step] != "done"]
