"""Hear what somebody outside wants of a run: that it is cancelled, pauses, or does more at a time.

A runner or a worker of Prefect ends the process of a cancelled flow run. A flow that was called as
a function has no such thing around it, and would work on. Of a pause it hears nothing either.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from evolve_tasks.errors import InvalidInput
from evolve_tasks.evolving import EvolvingRun
from evolve_tasks.monitoring.cancelling import CANCELLED
from evolve_tasks.naming import short_repr

# How often the API is asked: seen within a few seconds, twenty calls a minute; as many again
# where a variable is asked for.
POLL_S = 3.0


@dataclass(frozen=True, slots=True)
class Variable:
    """A Prefect variable that says how many items may be in flight.

    Args:
        name: its name.
        default: what holds where it is not set.
    """

    name: str
    default: int | None

    def read(self, client: SyncPrefectClient) -> int | None:
        """Ask for it.

        Raises:
            InvalidInput: its value is no number of items.
        """
        found = client.read_variable_by_name(self.name)
        value = None if found is None else found.value
        if value is None:
            return self.default
        if isinstance(value, str) and value.strip().isdigit():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidInput(
                f"the Prefect variable {self.name!r} is {short_repr(value)}: it says how many "
                "items may be in flight, so set it to a whole number from 1, or delete it"
            )
        return value


def in_flight_now(variable: Variable) -> int | None:
    """Ask for a variable before a run begins.

    Raises:
        InvalidInput: its value is no number of items.
    """
    with get_client(sync_client=True) as client:
        return variable.read(client)


@contextmanager
def steered(
    flow_run_id: UUID, run: EvolvingRun, variable: Variable | None, logger: logging.Logger | Any
) -> Iterator[None]:
    """Tell a run what somebody outside wants of it, while the block runs.

    Args:
        flow_run_id: its flow run.
        run: the run.
        variable: says how many items may be in flight; `None`: nobody does.
        logger: is told what was heard.
    """
    over = threading.Event()
    watch = _Watch(flow_run_id, run, variable, logger, over.wait)
    thread = threading.Thread(
        target=copy_context().run, args=(watch.run,), name="evolve-steering", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(POLL_S)  # it may be in the middle of a question


class _Watch:
    def __init__(
        self,
        flow_run_id: UUID,
        run: EvolvingRun,
        variable: Variable | None,
        logger: logging.Logger | Any,
        wait: Callable[[float], bool],
    ) -> None:
        self._flow_run_id = flow_run_id
        self._run = run
        self._variable = variable
        self._logger = logger
        self._wait = wait
        self._paused = False
        self._in_flight = run.in_flight
        self._refused = ""

    def run(self) -> None:
        """Ask now and then, until the run is over or there is nothing left to hear."""
        if self._wait(POLL_S):
            return  # most runs are short, and a client takes a while to make
        with get_client(sync_client=True) as client:
            while True:
                try:
                    if not self._heed(client.read_flow_run(self._flow_run_id).state):
                        return
                    self._ask_for_variable(client)
                except ObjectNotFound:
                    self._logger.warning(
                        "Somebody deleted the flow run: nobody can see it any more, or cancel it"
                    )
                    self._run.deleted()
                    return
                except (httpx.HTTPError, PrefectHTTPStatusError) as error:
                    # Work goes on while the API is away; it is asked again.
                    self._logger.debug("The API does not say what is wanted of the run: %s", error)
                if self._wait(POLL_S):
                    return

    def _heed(self, state: State[Any] | None) -> bool:
        """Act on the state of the flow run; False if there is nothing more to hear."""
        if state is None:
            return True
        if state.type in CANCELLED:
            self._logger.warning("The flow run was cancelled: nothing more is begun")
            self._run.cancel()
            return False
        paused = state.type is StateType.PAUSED
        if paused != self._paused:
            self._paused = paused
            if paused:
                self._logger.warning("The flow run was paused: nothing begins until it is resumed")
            else:
                self._logger.info("The flow run goes on after a pause")
            self._run.pause(paused)
        return True

    def _ask_for_variable(self, client: SyncPrefectClient) -> None:
        if self._variable is None:
            return
        try:
            in_flight = self._variable.read(client)
        except InvalidInput as error:
            if str(error) != self._refused:  # once for each wrong value
                self._refused = str(error)
                self._logger.warning("in_flight stays as it is: %s", error)
            return
        if in_flight != self._in_flight:
            self._in_flight = in_flight
            said = "as many as suit the cluster" if in_flight is None else f"{in_flight:,}"
            self._logger.info(
                "By the Prefect variable %s, items in flight may be: %s", self._variable.name, said
            )
            self._run.steer(in_flight)
