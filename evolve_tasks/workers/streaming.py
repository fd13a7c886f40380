"""Send what an expanding stage yields while it still yields, within bounds that the flow sets.

Most generators are done within a blink, and their items stay where they are, like any list. One
that is not leaves the worker's thread pool, whose place goes to its own items, and what it yields
is sent to the flow from then on: the flow hands it out, and says how much further the generator
may go. So its lead stays within the bound, and nothing of it is lost with its worker.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from distributed import Client, Queue, Scheduler

from evolve_tasks.errors import ItemsChanged
from evolve_tasks.journal.digests import Unrecognisable, ValueDigest, hashed
from evolve_tasks.workers.calls import StreamCall
from evolve_tasks.workers.seceding import PoolPlace
from evolve_tasks.workers.transport import Packed, require_picklable

# How long a generator may take before its items are sent: a result is there within a second, and
# parses of ordinary files are not disturbed.
BEGIN_S = 0.1

# How long an item waits for its fellows before it is sent.
FLUSH_S = 0.05

# How often who waits for a permit to go on asks for it: more and more seldom.
SHORTEST_S = 0.01
LONGEST_S = 0.2

# In place of how far a generator may go: nobody wants any more of it.
ENOUGH = -1


class Chunk(NamedTuple):
    """Consecutive items on their way to the flow; a tuple of plain values, as queues take.

    Args:
        unit: the unit that expands.
        offset: which of its items gave them.
        start: position of the first.
        size: how many they are.
        payload: the packed list.
        digest: of all items up to here.
        keys: what stands for each, where they are compared.
        items: the list, once it was unpacked in the flow.
        unreadable: why it cannot be unpacked there.
    """

    unit: int
    offset: int
    start: int
    size: int
    payload: bytes
    digest: bytes
    keys: bytes
    items: list[Any] | None = None
    unreadable: str = ""


def chunks_name(run: str) -> str:
    """Name of the queue on which a run's chunks come to the flow."""
    return f"evolve-chunks-{run}"


def permits_name(run: str, unit: int) -> str:
    """Name of the queue on which a unit hears how far it may go: pairs of offset and number."""
    return f"evolve-permits-{run}-{unit}"


@dataclass(slots=True)
class Line:
    """The way between a unit on a worker and the flow.

    Args:
        run: unique name of the run.
        unit: the unit.
        client: gives the worker's own client.
    """

    run: str
    unit: int
    client: Callable[[], Client]
    _chunks: Queue | None = None
    _permits: Queue | None = None

    def send(self, chunk: Chunk) -> None:
        """Send items; when this returns the scheduler has them."""
        if self._chunks is None:
            self._chunks = Queue(chunks_name(self.run), client=self.client())
        self._chunks.put(tuple(chunk))

    def permit(self, offset: int) -> int | None:
        """Ask how far it may go; `None` if nothing was said since."""
        if self._permits is None:
            self._permits = Queue(permits_name(self.run, self.unit), client=self.client())
        # Waiting in the queue itself with a time limit writes an error to the scheduler's log.
        numbers = [number for said, number in self._permits.get(batch=True) if said == offset]
        return numbers[-1] if numbers else None


class Stream:
    """What one item of an expanding stage yields, from its first attempt to its last.

    Args:
        stage: name of the stage.
        call: how far it may go, and what the flow has of it from a worker that died.
        offset: which of the unit's items it is.
        line: the way to the flow.
        keys_of: gives what stands for each of some items; `None` where nobody compares them.
        stopped: whether the run has been stopped.
        gone: whether the run is over, and nobody hears of it.
    """

    def __init__(
        self,
        stage: str,
        call: StreamCall,
        offset: int,
        line: Line,
        keys_of: Callable[[Sequence[Any]], bytes] | None,
        stopped: Callable[[], bool],
        gone: Callable[[], bool],
    ) -> None:
        self._gone = gone
        self._stage = stage
        self.given = call.given[offset]
        self.cut = False  # it was ended by the stop of the run
        self.failed: Exception | None = None  # why the last of it could not be sent
        self.unsent: list[Any] = []
        self._count = 0
        self._digest = b""
        self._expected = call.digests[offset]
        self._may = self.given + call.allowance
        self._offset = offset
        self._line = line
        self._keys_of = keys_of
        self._stopped = stopped
        self._lock = threading.Lock()
        self._over = False  # nothing is to be sent any more but by its own thread
        self._place = PoolPlace()
        self._begun = self._flushed = time.monotonic()

    @property
    def fits_here(self) -> bool:
        """Whether it can leave its thread to its own items: not in a thread of somebody else's."""
        return self._place.mine

    @property
    def streams(self) -> bool:
        """Whether some of it is on its way, or there."""
        return self.given > 0

    def restart(self) -> None:
        """Begin anew, as with the next attempt; what the flow has already is not sent again."""
        with self._lock:
            self._count, self._digest = 0, b""
            self.unsent, self._over = [], False

    def took(self, item: Any) -> bool:
        """Take an item, wait until the next one is wanted; False if none is.

        Raises:
            ItemsChanged: it is another item than an earlier attempt gave here.
        """
        if self._count < self.given:
            self._repeat(item)
            self.cut = self._stopped()
            return not self.cut
        with self._lock:
            self.unsent.append(item)
            self._count += 1
        if self._gone():
            self.cut = True
            return False
        late = time.monotonic() - self._begun >= BEGIN_S
        if not (self.streams or late or self._count >= self._may):
            return True
        self._place.leave()
        if time.monotonic() - self._flushed >= FLUSH_S:
            self.flush()
        if 0 <= self._may <= self._count:
            self.flush()
            self._wait()
        self.cut = self._stopped()
        return self._may != ENOUGH and not self.cut

    def _wait(self) -> None:
        """Wait until it may go on, or has gone on for long enough."""
        pause_s = SHORTEST_S
        while 0 <= self._may <= self._count and not self._stopped():
            said = self._line.permit(self._offset)
            if said is not None:
                self._may = said if said == ENOUGH else max(said, self._may)
            else:
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_S)

    def due(self, now: float) -> bool:
        """Whether something waits that should be sent, though the generator keeps us waiting."""
        late = self.streams or now - self._begun >= BEGIN_S
        return late and bool(self.unsent) and now - self._flushed >= FLUSH_S

    def send_due(self) -> None:
        """Send what waits while its own thread waits for the generator; called from another one."""
        with self._lock:
            if self._over:
                return
            self._place.leave()
        self.flush(late=True)

    def settle(self) -> None:
        """It has ended: called in its own thread."""
        with self._lock:
            self._over = True
        if self.streams and not self._gone():
            try:
                self.flush()
            except Exception as error:
                self.failed = error
                with suppress(Exception):  # what came before that can be worked on
                    self.unsent = self._good(self.unsent)
                    self.flush()
        self._place.settle()

    def _good(self, items: list[Any]) -> list[Any]:
        """The first items, up to one that cannot be sent."""
        for position, item in enumerate(items):
            try:
                self._chunk([item])
            except Exception:
                return items[:position]
        return items

    def flush(self, *, late: bool = False) -> None:
        """Send what waits; may be called from any thread, `late` from another than its own."""
        with self._lock:
            if late and self._over:
                return
            items, self.unsent = self.unsent, []
            self._flushed = time.monotonic()
            if not items:
                return
            try:
                chunk = self._chunk(items)
                self._line.send(chunk)
            except BaseException:
                self.unsent = items + self.unsent  # who gives the next one hears of it, too
                raise
            self.given += len(items)
            self._digest = self._expected = chunk.digest

    def _chunk(self, items: list[Any]) -> Chunk:
        require_picklable(self._stage, items)
        return Chunk(
            unit=self._line.unit,
            offset=self._offset,
            start=self.given,
            size=len(items),
            payload=Packed.of(items).payload,
            digest=digest_after(self._digest, items),
            keys=b"" if self._keys_of is None else self._keys_of(items),
        )

    def finish(self) -> list[Any]:
        """No more will come: send the rest, or give it where nothing was sent."""
        with self._lock:
            if not self.streams:
                self._over = True  # or it would be sent, too
                return self.unsent
        self.flush()
        return []

    def _repeat(self, item: Any) -> None:
        """Take an item that the flow has, from an attempt before."""
        self._digest = digest_after(self._digest, [item])
        self._count += 1
        if self._count == self.given and self._digest != self._expected:
            raise ItemsChanged(
                f"it gave {self.given} items before it was begun again, and others now, so that "
                "positions mean nothing any more; let a source give the same items each time"
            )


def digest_after(digest: bytes, items: Sequence[Any]) -> bytes:
    """Digest of a sequence, one item after the other, from that of what was before.

    An item that nobody can recognise counts as one, and no more.

    Example:
        >>> digest_after(digest_after(b"", [1]), [2]) == digest_after(b"", [1, 2])
        True
    """
    values = ValueDigest()
    for item in items:
        try:
            one = values.of(item)
        except Unrecognisable:
            one = b""
        digest = hashed("stream", digest, one)
    return digest


class Flusher:
    """Sends in time what generators have yielded that keep everybody waiting for the next item.

    Its thread begins with the first generator, and ends with `close`.
    """

    def __init__(self) -> None:
        self._streams: set[Stream] = set()
        self._wanted = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def add(self, stream: Stream) -> None:
        """Look after a stream."""
        with self._lock:
            self._streams.add(stream)
            self._wanted.set()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="evolve-flusher", daemon=True
                )
                self._thread.start()

    def remove(self, stream: Stream) -> None:
        """It has ended."""
        with self._lock:
            self._streams.discard(stream)
            if not self._streams:
                self._wanted.clear()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._wanted.set()

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            if self._closed:
                return
            time.sleep(FLUSH_S)
            with self._lock:
                due = [one for one in self._streams if one.due(time.monotonic())]
            for stream in due:
                with suppress(Exception):  # its own thread meets it with the next item
                    stream.send_due()


def forget_queues(dask_scheduler: Scheduler, run: str) -> None:
    """Take the queues of a run away; called on the scheduler."""
    queues = dask_scheduler.extensions["queues"]
    names = [name for name in queues.queues if _is_of(name, run)]
    for name in names:
        del queues.queues[name]
        queues.client_refcount.pop(name, None)


def _is_of(name: str, run: str) -> bool:
    return name == chunks_name(run) or name.startswith(permits_name(run, 0)[:-1])
