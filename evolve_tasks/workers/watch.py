"""What the Dask scheduler does for a run: a scheduler plugin.

It gives the run its turn among others: `priorities` says how.

It tells the run of a worker's death at once. Dask runs a task again on other workers and gives up
when the fourth has died with it; by then a poisonous item has taken down four workers, each time
with all that ran beside it, and nobody has looked which item of the batch it was.

It evens out queues. Items go to the worker that has their list, and Dask moves them to one that
has nothing to do once a second: too late for units of a tenth of a second, of which some wait.

And it clears up after a flow that died: what is queued does not begin, and nothing of the run
stays on the cluster.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distributed import Scheduler, SchedulerPlugin
from distributed.protocol.pickle import dumps
from distributed.scheduler import TaskState

from evolve_tasks.workers.ended import forget_marks
from evolve_tasks.workers.plugin import StopMark, pause_name, stop_name
from evolve_tasks.workers.priorities import NESTED, PROCESS, SOON, UNKNOWN_S, Turns, VirtualTime
from evolve_tasks.workers.streaming import forget_queues

# How long queues are left as they are after they were evened out, at the least; and how many times
# as long as that took, so that it takes no more than a tenth of the scheduler's time.
EVEN_OUT_S = 0.01
REST = 10

CLEARING_S = 60.0  # how long units that run already may take to see that they have been left
PAUSE_S = 0.5

# What the runs of a scheduler share; a process has one scheduler, but for tests. Who matters more
# takes all that it wants: what it had says nothing of the turns of the others.
_times: defaultdict[int, VirtualTime] = defaultdict(VirtualTime)
_even_again_s = 0.0  # when queues may be evened out again, on the loop's clock

# What a task counts at the most while nobody knows how long it takes: Dask's longest one may have
# waited for others.
LONGEST_S = 60.0

_OF_A_RUN = re.compile("-[0-9a-f]{12}$")


# Dask holds many tasks without dependencies back until a worker has nothing else to do: what is to
# take its turn among items would come after them, and where another run has items, never. Those
# that are bound to some host it sends at once; to one that there is not, and loosely, they may go
# anywhere.
NOWHERE = "evolve-anywhere"

WATCH = "evolve-watch-"

# What a client asks of the scheduler when it has taken results, and is answered.
LET_GO = "evolve_let_go"


def letting_go(scheduler: Scheduler) -> Callable[..., Any]:
    """Make what a scheduler does who is asked to `LET_GO`: nothing of it will be made again."""

    async def let_go(keys: list[Any], client: str) -> None:
        if client in scheduler.clients:
            scheduler.client_releases_keys(keys, client)

    return let_go


def watch_name(run: str) -> str:
    """Name under which the plugin of a run is registered with the scheduler."""
    return f"{WATCH}{run}"


def _is_child(key: Any) -> bool:
    """Whether a nested source has submitted a task: list and place there are part of its key."""
    return len(key) > 3


def _expected_s(task: TaskState, *, is_item: bool) -> float:
    """Seconds that a task is expected to take.

    What Dask assumes where it does not know, half a second, is a lot for short sources: a run that
    begins with many of them would have had its share for seconds to come. And it forgets what it
    knew when one takes twice as long as the others.
    """
    prefix = task.prefix
    if prefix.duration_average >= 0:
        return float(prefix.duration_average)
    if not is_item:
        return 0.0
    return float(min(max(prefix.max_exec_time, UNKNOWN_S), LONGEST_S))


def _computed_s(startstops: Sequence[Mapping[str, Any]] | None) -> float:
    """Seconds that a worker computed, as the scheduler is told them; 0 if it did not end."""
    computed = [one for one in startstops or () if one["action"] == "compute"]
    return float(sum(one["stop"] - one["start"] for one in computed))


def _restricted(task: Any) -> bool:
    """Whether a task has to run on some workers, and not on others."""
    return bool(task.worker_restrictions or task.host_restrictions or task.resource_restrictions)


class RunWatch(SchedulerPlugin):
    """Watches over one run at the scheduler.

    Args:
        run: unique name of the run; the keys of its tasks are tuples whose first part ends so.
        client: id of the client that drives it.
        plugins: names of the worker plugins that go with it.
        importance: its priority beside other runs.
    """

    def __init__(self, run: str, client: str, plugins: list[str], importance: int = 0) -> None:
        self.name = watch_name(run)
        self._run = run
        self._client = client
        self._plugins = plugins
        self._importance = importance
        self._turns = Turns(VirtualTime(), importance)  # until it is where the others are
        self._in_turn: set[Any] = set()  # tasks that have their turn
        self._due_s: dict[Any, float] = {}  # of items that have not ended
        self._expected_s: dict[Any, float] = {}  # of what counts for its share, and has not ended
        self._clearing: asyncio.Task[None] | None = None
        self._scheduler: Scheduler | None = None
        self._evening_out: asyncio.TimerHandle | None = None

    async def start(self, scheduler: Scheduler) -> None:
        """Hold back what the scheduler would say of our tasks: that four workers died."""
        self._scheduler = scheduler
        # Not before: what it shares with the others does not travel.
        self._turns = Turns(_times[self._importance], self._importance)
        scheduler.handlers[LET_GO] = letting_go(scheduler)
        # A function of the module: the logger keeps it once, however many runs there are.
        logging.getLogger("distributed.scheduler").addFilter(worth_logging)

    def update_graph(self, scheduler: Scheduler, *, tasks: list[Any], **_: Any) -> None:
        """Give tasks that have just been submitted their turn, and have them fail at once.

        They fail at the first death of their worker. The scheduler counts the deaths of each
        task, and begins to count where its patience ends; tasks of others keep theirs.
        """
        # Those that they depend on are told of again.
        ours = [key for key in tasks if self._is_ours(key) and key not in self._in_turn]
        shared = sum(name.startswith(WATCH) for name in scheduler.plugins) > 1
        for task in map(scheduler.tasks.__getitem__, ours):
            self._in_turn.add(task.key)
            task.suspicious = scheduler.allowed_failures
            assert task.priority is not None, "the scheduler has just given it one"
            level, place = -int(task.priority[0]), task.priority[-1]
            if shared and level < PROCESS:
                # Behind its own items, it would be behind those of the others as well, and where
                # a run has nothing but such sources in its window it would not get on.
                level = PROCESS
            # The items of a nested source wait at the scheduler where the run is alone: what a
            # worker has, it takes with it when it dies.
            held_back = _is_child(task.key) or task.dependencies
            if (shared or not held_back) and not _restricted(task):
                task.host_restrictions, task.loose_restrictions = {NOWHERE}, True
            expected_s = _expected_s(task, is_item=bool(task.dependencies) or _is_child(task.key))
            first, due_s = self._turns.submitted(level, expected_s)
            if level <= SOON and level != NESTED:
                self._expected_s[task.key] = expected_s
            task.priority = first, due_s, place
            if level == PROCESS:
                self._due_s[task.key] = due_s

    def transition(self, key: Any, start: str, finish: str, *_: Any, **more: Any) -> None:
        """Look for a queue to even out when one of our tasks has ended, or waits at its worker."""
        if finish == "forgotten":
            self._in_turn.discard(key)
        elif finish == "no-worker" and self._scheduler is not None:
            # There is no worker at all. To the next one Dask gives what is bound to it, or to none.
            task = self._scheduler.tasks[key]
            if task.host_restrictions == {NOWHERE}:
                task.host_restrictions, task.loose_restrictions = None, False
        if finish in ("memory", "erred", "forgotten") and key in self._expected_s:
            if key in self._due_s:
                self._turns.begun(self._due_s.pop(key))
            self._turns.took(self._expected_s.pop(key), _computed_s(more.get("startstops")))
        if self._scheduler is None or not self._scheduler.idle or self._evening_out is not None:
            return
        ended = start == "processing"  # its worker may be idle now
        if (ended or (finish == "processing" and self._queues(key))) and self._is_ours(key):
            # Not in the middle of a transition; and if it was done a moment ago, then later: no
            # other task may end for a long time.
            loop = asyncio.get_running_loop()
            due = max(loop.time(), _even_again_s)
            self._evening_out = loop.call_at(due, self._even_out, self._scheduler)

    def _queues(self, key: Any) -> bool:
        """Whether the worker of a task has more than it can work on at once."""
        assert self._scheduler is not None, "it has started"
        worker = self._scheduler.tasks[key].processing_on
        return worker is not None and len(worker.processing) > worker.nthreads

    def _even_out(self, scheduler: Scheduler) -> None:
        global _even_again_s
        loop = asyncio.get_running_loop()
        self._evening_out, began_s = None, loop.time()
        if began_s < _even_again_s:
            return  # another run has done so
        stealing = scheduler.extensions.get("stealing")
        if stealing is not None:  # somebody may have switched it off
            stealing.balance()
        _even_again_s = loop.time() + max(EVEN_OUT_S, REST * (loop.time() - began_s))

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Clear up when the flow is gone without having done so: it was killed."""
        if client == self._client and self._clearing is None:
            self._clearing = asyncio.get_running_loop().create_task(self._clear(scheduler))

    async def _clear(self, scheduler: Scheduler) -> None:
        """Stop what runs from going on, wait for it, and take the plugins away."""
        stop = stop_name(self._run)
        await scheduler.register_worker_plugin(
            comm=None, plugin=dumps(StopMark()), name=stop, idempotent=True
        )
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CLEARING_S
        while loop.time() < deadline and any(map(self._is_ours, list(scheduler.tasks))):
            await asyncio.sleep(PAUSE_S)
        for name in (*self._plugins, stop, pause_name(self._run)):
            if name in scheduler.worker_plugins:
                await scheduler.unregister_worker_plugin(comm=None, name=name)
        forget_marks(scheduler, self._run)
        forget_queues(scheduler, self._run)
        scheduler.remove_plugin(self.name)

    def _is_ours(self, key: Any) -> bool:
        return isinstance(key, tuple) and str(key[0]).endswith(self._run)


def worth_logging(record: logging.LogRecord) -> bool:
    """Whether a log record of the scheduler is anything but its count of a run's deaths."""
    if not str(record.msg).startswith("Task %s marked as failed"):
        return True
    key = record.args[0] if isinstance(record.args, tuple) and record.args else None
    return not (isinstance(key, tuple) and _OF_A_RUN.search(str(key[0])))
