"""What stages give on the way, as it comes to the flow."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack

from distributed import Client, Queue

from evolve_tasks.evolving import EvolvingRun
from evolve_tasks.strategies.submitting import Submitter
from evolve_tasks.workers.streaming import Chunk, chunks_name


class ChunkFeed:
    """Takes what stages give on the way from the scheduler, in a thread of its own.

    Args:
        client: the client of the run.
        name: name of the queue on which it comes.
        deliver: called with each chunk, in that thread.
    """

    def __init__(self, client: Client, name: str, deliver: Callable[[Chunk], None]) -> None:
        self._client = client
        self._queue = Queue(name, client=client)
        self._deliver = deliver
        self._closed = False
        threading.Thread(target=self._run, name="evolve-chunks", daemon=True).start()

    def close(self) -> None:
        """Take no more."""
        self._closed = True
        if self._client.status == "running":
            self._queue.put(())  # a limit to its waiting would write errors to the scheduler's log

    def _run(self) -> None:
        while not self._closed:
            try:
                chunk = self._queue.get()
            except Exception:
                return  # the client is closed, or the scheduler gone: the run hears of that, too
            if chunk:
                self._deliver(Chunk(*chunk))


def chunk_feed(
    submitter: Submitter, run: EvolvingRun, deliver: Callable[[Chunk], None]
) -> ExitStack:
    """Take what stages give on the way, where one does; to be closed."""
    stack = ExitStack()
    if run.streams.stages:
        submitter.streamed = True
        feed = ChunkFeed(submitter.client, chunks_name(run.run), deliver)
        stack.callback(feed.close)
    return stack
