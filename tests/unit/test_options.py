"""Options: what is refused, in words that name the value, the rule and the way out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from evolve_tasks.errors import EvolveError, InvalidInput
from evolve_tasks.evolve import Overrides
from evolve_tasks.options import EvolveOptions, Limits, Tolerate, resolve_options, tolerate

RECORDS = ("auto", "items", "batches", "sources")
STRATEGIES = ("auto", "as_completed", "async", "nested", "sequential")


class Unspeakable:
    def __repr__(self) -> str:
        raise ValueError("this value cannot be shown")


def refusal(options: Any = None, **overrides: Any) -> str:
    """The message with which these options are refused."""
    with pytest.raises(InvalidInput) as refused:
        resolve_options(options, overrides)
    return str(refused.value)


def assert_says(message: str, *parts: str) -> None:
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} is not in: {message}"


def test_a_refusal_is_a_value_error_and_one_of_ours() -> None:
    with pytest.raises(ValueError) as refused:
        resolve_options(None, {"batch": 0})
    assert isinstance(refused.value, EvolveError)


# -- unknown names -------------------------------------------------------------------------------


def test_an_unknown_option_lists_those_there_are() -> None:
    message = refusal(stratgy="nested")
    assert_says(message, "'stratgy'", "the options are", *EvolveOptions.model_fields)
    assert_says(message, *Limits.model_fields)


def test_several_unknown_options_are_named_together() -> None:
    assert_says(refusal(stratgy="nested", bach=3), "'bach', 'stratgy'")


def test_an_unknown_option_in_a_mapping_lists_those_there_are() -> None:
    # This is how a typing error in a deployment arrives.
    assert_says(refusal({"stratgy": "nested"}), "stratgy", *EvolveOptions.model_fields)


def test_an_unknown_limit_lists_those_there_are() -> None:
    assert_says(refusal(limits={"in_fligt": 3}), "in_fligt", *Limits.model_fields)


def test_an_unknown_bound_of_tolerate_lists_those_there_are() -> None:
    assert_says(refusal(on_failure={"cnt": 3}), "cnt", "count", "ratio")


@pytest.mark.parametrize("value", ["nestd", "Nested", "", 3, None])
def test_an_unknown_strategy_lists_those_there_are(value: Any) -> None:
    assert_says(refusal(strategy=value), f"strategy is {value!r}:", *STRATEGIES)


def test_an_unknown_record_lists_those_there_are() -> None:
    assert_says(refusal(record="all"), "record is 'all'", *(f"'{mode}'" for mode in RECORDS))


@pytest.mark.parametrize("value", ["stop", 3, True, None])
def test_an_unknown_failure_policy_lists_those_there_are(value: Any) -> None:
    message = refusal(on_failure=value)
    assert_says(message, "on_failure", repr(value), "'finish'", "'fail_fast'", "'ignore'")
    assert_says(message, "Tolerate")


# -- values out of range -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["in_flight", "buffered"])
@pytest.mark.parametrize("value", [0, -1, -10_000])
def test_a_limit_below_one(name: str, value: int) -> None:
    for message in (refusal(**{name: value}), refusal(limits={name: value})):
        assert_says(message, f"{name} is {value}:", "greater than or equal to 1")


@pytest.mark.parametrize("value", [2.5, "many", [3]])
def test_an_in_flight_that_is_no_whole_number(value: Any) -> None:
    assert_says(refusal(in_flight=value), "in_flight", "integer", repr(value))


@pytest.mark.parametrize("value", [True, 2.0, "2"])
@pytest.mark.parametrize("option", ["in_flight", "record_budget", "events_per_minute"])
def test_a_number_that_is_meant_otherwise(option: str, value: Any) -> None:
    assert_says(refusal(**{option: value}), option, "integer", repr(value))


@pytest.mark.parametrize("value", [0, -1, -10_000])
def test_a_batch_below_one(value: int) -> None:
    message = refusal(batch=value)
    assert_says(message, f"batch is {value}:", "'auto'", "greater than or equal to 1")


@pytest.mark.parametrize("value", [True, False, 2.0, 2.5, "2", "large", None, [2]])
def test_a_batch_that_is_no_whole_number(value: Any) -> None:
    # True is 1 in Python and 2.0 is 2; who writes that as a batch size meant something else.
    message = refusal(batch=value)
    assert_says(message, f"batch is {value!r}:", "'auto'", "integer")


@pytest.mark.parametrize("value", [0, True, "large"])
def test_the_message_on_a_batch_speaks_of_the_batch_once(value: Any) -> None:
    message = refusal(batch=value)
    assert "constrained" not in message, f"pydantic's inner names are nobody's option: {message}"
    assert message.count(f"batch is {value!r}") == 1, message


def test_a_negative_record_budget() -> None:
    assert_says(refusal(record_budget=-1), "record_budget is -1:", "or equal to 0")


def test_all_faults_are_told_at_once() -> None:
    message = refusal(strategy="nestd", batch=0, limits={"buffered": 0})
    assert_says(message, "strategy is", "batch is", "limits.buffered is", "; ")


def test_a_value_of_any_size_gives_a_message_that_can_be_read() -> None:
    assert len(refusal(strategy=["nested"] * 5_000)) < 1_000


def test_a_value_that_cannot_be_shown_is_refused_all_the_same() -> None:
    assert_says(refusal(strategy=Unspeakable()), "strategy", "Unspeakable", *STRATEGIES)


# -- tolerate ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "parts"),
    [
        ({}, ("count=", "ratio=", 'on_failure="ignore"')),
        ({"count": -1}, ("count", "greater than or equal to 0", "-1")),
        ({"count": 1.5}, ("count", "integer", "1.5")),
        ({"ratio": -0.1}, ("ratio", "greater than or equal to 0", "-0.1")),
        ({"ratio": 1.5}, ("ratio", "less than or equal to 1", "1.5")),
        ({"ratio": float("nan")}, ("ratio", "nan")),
        ({"ratio": "5%"}, ("ratio", "number", "'5%'")),
    ],
)
def test_a_wrong_bound_of_tolerate(bounds: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput) as refused:
        tolerate(**bounds)
    assert_says(str(refused.value), *parts)
    assert_says(refusal(on_failure=bounds), "on_failure", *parts)


def test_tolerate_in_python_and_in_json_are_the_same() -> None:
    assert tolerate(count=10) == Tolerate(count=10)
    by_json = resolve_options({"on_failure": {"count": 10}}, {})
    assert by_json.on_failure == tolerate(count=10)
    assert resolve_options(None, {"on_failure": tolerate(ratio=0.5)}).on_failure == Tolerate(
        ratio=0.5
    )


# -- given twice ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [EvolveOptions(batch=2, unique=True), {"batch": 2, "unique": True}]
)
def test_a_keyword_wins_over_the_same_option(options: Any) -> None:
    found = resolve_options(options, {"batch": 3})
    assert (found.batch, found.unique) == (3, True)


def test_a_keyword_wins_over_a_form_which_gives_every_field() -> None:
    form = EvolveOptions().model_dump(mode="json")
    found = resolve_options(form, {"journal": "ingest", "in_flight": 5})
    assert (found.journal, found.limits) == ("ingest", Limits(in_flight=5))


def test_options_that_complete_each_other_are_taken_together() -> None:
    options = resolve_options(EvolveOptions(batch=2), {"strategy": "nested", "in_flight": 3})
    assert (options.batch, options.strategy, options.limits.in_flight) == (2, "nested", 3)


def test_a_limit_beside_limits() -> None:
    message = refusal(limits=Limits(in_flight=3), buffered=5)
    assert_says(message, "'buffered'", "keyword", "limits=", "give one of them")


def test_a_limit_wins_over_that_of_options_and_leaves_the_others() -> None:
    found = resolve_options({"limits": {"in_flight": 3, "buffered": 7}}, {"in_flight": 5})
    assert found.limits == Limits(in_flight=5, buffered=7)


def test_limits_win_over_those_of_options_as_a_whole() -> None:
    found = resolve_options({"limits": {"in_flight": 3}}, {"limits": {"buffered": 5}})
    assert found.limits == Limits(buffered=5)


# -- options of a wrong type ---------------------------------------------------------------------


@pytest.mark.parametrize("value", ["nested", 3, ["batch", 3], EvolveOptions, True])
def test_options_that_are_no_options(value: Any) -> None:
    message = refusal(value)
    assert_says(message, f"options is {value!r}", "EvolveOptions", "mapping", "None")


def test_limits_that_are_no_limits() -> None:
    assert_says(refusal(limits=100), "limits is 100:", "dictionary", "Limits")


def test_a_mapping_with_names_that_are_no_names() -> None:
    assert_says(refusal({1: 2}), "1", "string")


# -- the model -----------------------------------------------------------------------------------


def test_nothing_given_is_the_defaults() -> None:
    assert resolve_options(None, {}) == resolve_options({}, {}) == EvolveOptions()


@pytest.mark.parametrize("mode", RECORDS)
def test_every_way_to_record_is_there(mode: str) -> None:
    assert resolve_options(None, {"record": mode}).record == mode


def test_durations_decide_on_the_batch_unless_a_number_is_given() -> None:
    assert EvolveOptions().batch == "auto"
    assert EvolveOptions(batch="auto").batch_size is None
    assert EvolveOptions(batch=1).batch_size == 1
    assert EvolveOptions(batch=7).batch_size == 7


@pytest.mark.parametrize("model", [EvolveOptions(), Limits(), Tolerate(count=1)])
def test_options_cannot_be_changed(model: BaseModel) -> None:
    name = next(iter(type(model).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(model, name, 1)


limits = st.builds(
    Limits,
    in_flight=st.none() | st.integers(1, 10**6),
    buffered=st.integers(1, 10**6),
    max_items=st.none() | st.integers(1, 10**6),
    max_depth=st.none() | st.integers(1, 100),
    in_flight_variable=st.none() | st.text(min_size=1),
)
policies = st.sampled_from(["finish", "fail_fast", "ignore"]) | st.builds(
    Tolerate, count=st.integers(0, 10**6), ratio=st.none() | st.floats(0, 1)
)
options = st.builds(
    EvolveOptions,
    strategy=st.sampled_from(STRATEGIES),
    limits=limits,
    on_failure=policies,
    batch=st.just("auto") | st.integers(1, 10**6),
    record=st.sampled_from(RECORDS),
    record_budget=st.integers(0, 10**6),
    resources=st.none()
    | st.dictionaries(st.text(), st.dictionaries(st.text(), st.floats(1e-6, 1e6), max_size=2)),
    journal=st.booleans() | st.text(min_size=1),
    unique=st.booleans(),
    progress=st.booleans(),
)


@given(options)
def test_options_come_back_from_json_as_they_were(given_options: EvolveOptions) -> None:
    text = json.dumps(given_options.model_dump(mode="json"))
    assert EvolveOptions.model_validate(json.loads(text)) == given_options


LINE = 140  # characters that the form of either UI shows in a line of a window 1,400 pixels wide


@pytest.mark.parametrize("model", [EvolveOptions, Limits, Tolerate])
def test_each_field_has_a_place_in_the_form(model: type[BaseModel]) -> None:
    fields = model.model_json_schema()["properties"]
    assert set(fields) == set(model.model_fields)
    bare = [name for name, field in fields.items() if not field.get("description")]
    assert not bare, f"the form in the UI says nothing about {bare}"
    wrong = [name for name, field in fields.items() if len(field["description"]) > LINE]
    assert not wrong, f"more than a form has room for: {wrong}"


def test_the_form_offers_the_strategies_to_choose_from() -> None:
    field = EvolveOptions.model_json_schema()["properties"]["strategy"]
    assert tuple(field["enum"]) == STRATEGIES


def test_the_form_names_the_alternatives_of_a_field() -> None:
    schema = EvolveOptions.model_json_schema()
    titles = {
        name: [
            branch.get("title") or branch.get("$ref", "").rpartition("/")[2]
            for branch in schema["properties"][name]["anyOf"]
        ]
        for name in ("batch", "on_failure", "journal")
    }
    assert titles == {
        "batch": ["measured", "number"],
        "on_failure": ["policy", "Tolerate"],
        "journal": ["of this run", "shared, by name"],
    }
    # A model's description is a line above its fields, not its docstring.
    assert all("\n" not in model["description"] for model in [schema, *schema["$defs"].values()])


def test_each_field_may_be_given_as_a_keyword() -> None:
    fields = {*EvolveOptions.model_fields, *Limits.model_fields}
    assert set(Overrides.__annotations__) == fields
