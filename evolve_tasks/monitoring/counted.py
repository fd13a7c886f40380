"""The counts of what a flow run has evolved, in the message of the state in which it ends well.

Prefect makes that state of what the flow function returns, and says nothing in it. Nobody but the
flow function could return another one, and a state that is set once more afterwards would be a
second end of the run for everything that waits for one.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext

MOST = 5  # calls of `evolve` whose counts are told
_TELLING = "_evolve_counts"


class _Counts:
    """Stands for `set_flow_run_state` of the client that the engine of a flow run has.

    Args:
        client: the client.
    """

    def __init__(self, client: Any) -> None:
        self._set = client.set_flow_run_state
        self._told: dict[UUID, tuple[FlowRunContext, list[str]]] = {}

    def add(self, context: FlowRunContext, text: str) -> None:
        assert context.flow_run is not None, "it was checked before"
        # An attempt of a flow run has a context of its own, and tells of itself alone.
        of, texts = self._told.get(context.flow_run.id, (None, []))
        self._told[context.flow_run.id] = context, ([*texts, text] if of is context else [text])

    def __call__(self, flow_run_id: UUID, state: State[Any], *args: Any, **keywords: Any) -> Any:
        if state.is_final() or state.is_scheduled():
            _, texts = self._told.pop(flow_run_id, (None, []))
            if texts and state.is_completed() and not state.message:
                more = f" | and {len(texts) - MOST} more" if len(texts) > MOST else ""
                state.message = " | ".join(texts[:MOST]) + more
        return self._set(flow_run_id, state, *args, **keywords)


def tell_counts(text: str) -> None:
    """Add what came of a call of `evolve`; called in the flow function's context.

    Where the flow function returns a state with a message of its own, that stays.

    Args:
        text: the counts.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    client: Any = context.client
    telling = client.__dict__.get(_TELLING)
    if telling is None:
        telling = _Counts(client)
        client.__dict__[_TELLING] = client.__dict__["set_flow_run_state"] = telling
    telling.add(context, text)
