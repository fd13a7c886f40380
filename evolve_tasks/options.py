"""The options of a run: one frozen model for keywords, deployments (JSON) and the UI's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from evolve_tasks.errors import InvalidInput
from evolve_tasks.naming import short_repr

# Beyond 64 bits a priority could not travel to a worker.
MOST_PRIORITY: Final = 1_000_000

StrategyName = Literal["auto", "as_completed", "async", "nested", "sequential"]
RecordMode = Literal["auto", "items", "batches", "sources"]
# Titles of alternatives are what the Prefect UI lets people choose by; without them it shows types.
BatchSize = (
    Annotated[Literal["auto"], Field(title="measured")]
    | Annotated[int, Field(ge=1, strict=True, title="number")]
)
_Model = TypeVar("_Model", bound=BaseModel)


def _in_one_line(schema: dict[str, Any]) -> None:
    """Leave of a docstring what a form can show."""
    schema["description"] = schema.get("description", "").partition("\n")[0]


class _Frozen(BaseModel):
    """Options are values: equal by content, never changed after they were checked."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_in_one_line)


class Limits(_Frozen):
    """Bounds on what is in flight, buffered and discovered.

    Args:
        in_flight: items that may be submitted and unfinished at a time, over all stages
            (N >= 1). `None`: four units per worker thread and at least 16, so that a thread
            always finds its next piece of work on its own worker. Under `nested` a number is
            divided between the sources; without one each of them has two units per worker
            thread of its own, so that the last one still uses all threads.
        buffered: items that may be discovered and not yet submitted (N >= 1). While it is
            reached nothing more is expanded; one fan-out may stand above it, because a
            source says how many items it gives only when it gives them.
        max_items: items in the whole run, over all stages (N >= 1). What is found beyond them is
            left where it is, no further source is taken, and `outcome.stopped` says so; it is no
            failure. Give it where nobody knows that there is an end.
        max_depth: how often items may lead further, one below the other, by `More` (N >= 1).
            What lies deeper is left where it is, and `outcome.stopped` says so. With `unique` the
            shortest path counts: what is found is worked on level by level then. Of sources that
            come from an iterator, and not from a list, paths from later ones are not known.
        in_flight_variable: name of a Prefect variable with the number of items that may be in
            flight, which holds in place of `in_flight` where it is set; it is asked for every few
            seconds, so somebody can change it while it runs.

    Example:
        >>> Limits(in_flight=100).buffered
        10000
    """

    in_flight: int | None = Field(
        default=None,
        ge=1,
        strict=True,
        description="Items submitted and unfinished at a time, from 1. None: four units of work "
        "for each worker thread, at least 16.",
    )
    buffered: int = Field(
        default=10_000,
        ge=1,
        strict=True,
        description="Items discovered, not yet submitted, from 1; beyond it nothing is expanded.",
    )
    max_items: int | None = Field(
        default=None,
        ge=1,
        strict=True,
        description="Items in the whole run; what is found beyond them is left. Empty: no limit.",
    )
    max_depth: int | None = Field(
        default=None,
        ge=1,
        strict=True,
        description="Levels of recursion, from 1; what lies deeper is left. Empty: no limit.",
    )
    in_flight_variable: str | None = Field(
        default=None,
        min_length=1,
        description="Name of a Prefect variable that holds in place of in_flight, also while it "
        "runs.",
    )


def _needs_one(schema: dict[str, Any]) -> None:
    """Let the form refuse what the validator below would refuse when the run has begun."""
    _in_one_line(schema)
    nothing = {"count": {"type": "null"}, "ratio": {"type": "null"}}
    schema["not"] = {"properties": nothing}


class Tolerate(_Frozen):
    """A failure policy: go on until there were too many failures, then stop and raise.

    Args:
        count: failed sources and items that are accepted (N >= 0).
        ratio: accepted share of failures, 0 to 1, of everything known when the run ends
            (failed sources count as one each). It is judged as soon as nothing that is
            still to come can change the verdict, and at the end. What items of the last
            stage may still find counts as well where `unique`, `max_depth` or `max_items`
            is given, and from the first item on that finds something.

    Example:
        >>> Tolerate(count=10).count
        10
    """

    model_config = ConfigDict(json_schema_extra=_needs_one)

    count: int | None = Field(
        default=None,
        ge=0,
        description="Failed sources and items that are accepted, from 0. Give this, ratio or both.",
    )
    ratio: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Accepted share of failures, 0 to 1: 0.05 are 5 %.",
    )

    @model_validator(mode="after")
    def _needs_a_bound(self) -> Self:
        if self.count is None and self.ratio is None:
            raise ValueError(
                "tolerate needs count=…, ratio=… or both; to accept every failure use "
                'on_failure="ignore"'
            )
        return self


def tolerate(count: int | None = None, ratio: float | None = None) -> Tolerate:
    """Accept some failures: `on_failure=tolerate(count=10)` or `tolerate(ratio=0.05)`.

    Args:
        count: failed sources and items that are accepted (N >= 0).
        ratio: accepted share of failures, 0 to 1.

    Returns:
        The policy for `EvolveOptions.on_failure`; in JSON it is `{"count": 10}`.

    Raises:
        InvalidInput: neither bound given, or one out of range.

    Example:
        >>> tolerate(ratio=0.05)
        Tolerate(count=None, ratio=0.05)
    """
    return _validated(Tolerate, {"count": count, "ratio": ratio})


FailurePolicy = (
    Annotated[Literal["finish", "fail_fast", "ignore"], Field(title="policy")] | Tolerate
)


class EvolveOptions(_Frozen):
    """How a run is driven, bounded and recorded.

    Args:
        strategy: `"auto"`, `"as_completed"`, `"async"`, `"nested"` or `"sequential"`.
        limits: bounds on what is in flight and buffered.
        on_failure: `"finish"` (run everything else, then raise), `"fail_fast"` (start
            nothing more, let what runs end, raise), `"ignore"` (never raise), or
            `tolerate(count=…, ratio=…)`.
        batch: items that run together in one Dask task (N >= 1). `"auto"`: measured durations
            decide, aiming at half a second (a second where items take less than ten
            milliseconds), and less while threads would be idle; a short list is worked on where
            it was found.
        record: how finely Prefect sees the work. `"items"`: a task run for each source and
            item. `"batches"`: one for each batch, and one for each source or item that
            fails. `"sources"`: one for each source, its items are not recorded. `"auto"`:
            items while they fit into `record_budget`, batches from then on.
        record_budget: task runs that `record="auto"` may spend on items (N >= 0). 500 keeps
            a run readable in the UI (its graph asks above 2,000 nodes) and costs a server
            on SQLite, at 30 to 40 task runs a second, about 15 s.
        events_per_minute: pace that `record="auto"` keeps: events and log lines of task runs that
            the API gets in any minute, two for each task run (N >= 2). `None`: 6,000, as a
            server on SQLite records some 2,000 task runs a minute, or 1,500 on Prefect Cloud,
            whose smallest plan takes 2,000. Beyond it items are recorded by the batch, and then
            batches not at all, but failures always are; the report says so.
        resources: Dask worker resources by stage, as `{"process_item": {"GPU": 1}}`: each unit
            of the stage takes so much of what `dask worker --resources` offers. Where no worker
            has it the run waits as long as for workers, and then raises.
        priority: beside other runs on the same Dask cluster: the items of a run of a higher one go
            first. Runs of the same get equal shares.
        journal: durable record to resume from, in Prefect's result storage. `True`: this flow
            run and its retries. A name: every run that gives it, so that sources which are
            unchanged since an earlier run are not worked on again. `False`: none.
        unique: work on equal items of a stage once in a run, wherever they were found; what equal
            means is their value and type, or `key=`. Each item costs the flow some hundred bytes.
        progress: show how far it is: an artifact in the Prefect UI, and bars where there is a
            terminal, or else a line of the log now and then (after 30 s, and twice that each time,
            up to ten minutes). The report is made in any case.

    Raises:
        pydantic.ValidationError: a value is out of its range; it names field and rule.

    Example:
        >>> EvolveOptions(strategy="nested", limits=Limits(in_flight=8)).on_failure
        'finish'
    """

    strategy: StrategyName = Field(
        default="auto",
        description="How the work is driven. auto: nested inside a task or with a generator, else "
        "as_completed. sequential: no cluster.",
    )
    limits: Limits = Field(default_factory=Limits, description="Bounds on the work under way.")
    on_failure: FailurePolicy = Field(
        default="finish",
        description="finish: do all else, then fail. fail_fast: begin nothing more. ignore: never "
        "fail. Tolerate: fail beyond a number or share.",
    )
    batch: BatchSize = Field(
        default="auto",
        description="Items in one Dask task: as measured durations have it, or a number from 1.",
    )
    record: RecordMode = Field(
        default="auto",
        description="What is a task run of its own. auto: items while the budget below lasts, then "
        "batches. sources: no item is one.",
    )
    record_budget: int = Field(
        default=500,
        ge=0,
        strict=True,
        description="Task runs that auto may spend on items, from 0.",
    )
    events_per_minute: int | None = Field(
        default=None,
        ge=2,
        strict=True,
        description="Pace of auto in events and log lines, two for each task run, from 2. None: "
        "6,000, on Prefect Cloud 1,500.",
    )
    resources: dict[str, dict[str, Annotated[float, Field(gt=0)]]] | None = Field(
        default=None,
        description="What each stage takes of the resources that Dask workers offer, as "
        '{"process_item": {"GPU": 1}}. None: nothing.',
    )
    priority: int = Field(
        default=0,
        ge=-MOST_PRIORITY,
        le=MOST_PRIORITY,
        strict=True,
        description="Beside other runs on the same Dask cluster: a higher one goes first.",
    )
    journal: (
        Annotated[bool, Field(title="of this run")]
        | Annotated[str, Field(min_length=1, title="shared, by name")]
    ) = Field(
        default=False,
        description="What is finished is not done again: by retries of this run, or by all runs "
        "that give the same name.",
    )
    unique: bool = Field(
        default=False,
        description="Work on equal items of a stage once, wherever in the run they were found.",
    )
    progress: bool = Field(
        default=True, description="Show how far it is, in the UI and in a terminal."
    )

    @property
    def batch_size(self) -> int | None:
        """Items in one Dask task; `None` where durations decide."""
        return None if self.batch == "auto" else self.batch


def resolve_options(
    options: EvolveOptions | Mapping[str, Any] | None, overrides: Mapping[str, Any]
) -> EvolveOptions:
    """Merge `options=` with keyword overrides, which win, and check the result.

    Args:
        options: a model, its JSON form, or `None` for the defaults.
        overrides: fields of `EvolveOptions` by name; `in_flight` and `buffered` may be
            given without their `limits`.

    Returns:
        The options that hold.

    Raises:
        InvalidInput: an unknown option, a limit that is given by its name and in `limits=` too,
            or a value out of range.

    Example:
        >>> resolve_options({"batch": 7, "unique": True}, {"batch": 5}).batch
        5
    """
    given: dict[str, Any] = dict(overrides)
    base = _from_value(options)
    limits = {name: given.pop(name) for name in Limits.model_fields if name in given}
    if limits:
        if "limits" in given:
            raise InvalidInput(
                f"{', '.join(map(repr, sorted(limits)))} is given as a keyword and limits= too: "
                "give one of them"
            )
        set_before = {name: getattr(base.limits, name) for name in base.limits.model_fields_set}
        given["limits"] = _validated(Limits, set_before | limits)
    unknown = sorted(set(given) - set(EvolveOptions.model_fields))
    if unknown:
        valid = ", ".join(sorted([*EvolveOptions.model_fields, *Limits.model_fields]))
        raise InvalidInput(
            f"unknown option {', '.join(map(repr, unknown))}; the options are: {valid}"
        )
    chosen = {name: getattr(base, name) for name in base.model_fields_set}
    return _validated(EvolveOptions, chosen | given)


def _from_value(options: EvolveOptions | Mapping[str, Any] | None) -> EvolveOptions:
    match options:
        case None:
            return EvolveOptions()
        case EvolveOptions():
            return options
        case Mapping():
            return _validated(EvolveOptions, dict(options))
        case _:
            raise InvalidInput(
                f"options is {short_repr(options)}: give an EvolveOptions, a mapping of its "
                "fields, or None"
            )


def _validated(model: type[_Model], values: Mapping[str, Any]) -> _Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InvalidInput(_readable(model, error)) from error


def _readable(model: type[BaseModel], error: ValidationError) -> str:
    """Say of each fault where it is, what was given and what is allowed."""
    faults: dict[str, tuple[Any, list[str]]] = {}
    for fault in error.errors(include_url=False):
        # pydantic names the branches of a union as parts of the place; a user has no such thing.
        place = [str(part) for part in fault["loc"] if str(part) in _ALL_FIELDS]
        rule = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            owner = _MODELS.get(place[-1] if place else "", model)
            place.append(str(fault["loc"][-1]))
            rule = f"there is no such option; the options are: {', '.join(owner.model_fields)}"
        _, rules = faults.setdefault(".".join(place) or model.__name__, (fault["input"], []))
        if rule not in rules:
            rules.append(rule)
    return "; ".join(
        f"{place} is {short_repr(given)}: {', or '.join(rules)}"
        f"{_WAY_OUT.get(place.rpartition('.')[2], '')}"
        for place, (given, rules) in faults.items()
    )


# What to give in place of a value that breaks a rule, by field.
_WAY_OUT: Final[Mapping[str, str]] = {
    "strategy": "; leave it out to have it chosen",
    "in_flight": "; give a number from 1, or leave it out to have it chosen from the cluster",
    "buffered": "; give a number from 1, or leave it out",
    "on_failure": "; give one of the words, or tolerate(count=…, ratio=…), in JSON "
    '{"count": 10} or {"ratio": 0.05}',
    "batch": '; give a number from 1, or "auto" to let measured durations decide',
    "record": "; leave it out to have it chosen by record_budget",
    "record_budget": "; give a number from 0",
    "resources": '; give amounts above 0 by stage, as {"process_item": {"GPU": 1}}',
    "priority": f"; give a whole number of at most {MOST_PRIORITY:,}; 0 is that of the others",
    "count": "; give a number from 0",
    "ratio": "; give a share from 0 to 1, as 0.05 for 5 %",
    "journal": "; give True for retries of this flow run, or a name that runs share",
    "progress": "; give True or False",
}


_MODELS: Final[Mapping[str, type[BaseModel]]] = {"limits": Limits, "on_failure": Tolerate}
_ALL_FIELDS: Final = {
    name for model in (EvolveOptions, Limits, Tolerate) for name in model.model_fields
}
