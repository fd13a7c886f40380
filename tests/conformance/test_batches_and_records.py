"""How work is batched and what of it is a task run change nothing of its outcome.

`make matrix` runs all cases in each combination, which takes longer than anybody waits for; in the
usual tests those run on which batches and records may have an influence.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from evolve_tasks import EvolveTaskRunner
from tests.conformance.cases import CASES
from tests.conformance.suite import STRATEGIES, check, run_cases

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]

# What batches and records could change: values, order, failures, attempts, equal items.
WHOLE = bool(os.environ.get("EVOLVE_MATRIX"))
CORE_CASES = [
    case
    for case in CASES
    if WHOLE
    or case.name
    in {
        "small",
        "skewed a little",
        "sync and async",
        "equal items",
        "both fail",
        "retries succeed",
        "retries fail",
        "unpicklable results",
        "wrong kinds",
    }
]


@pytest.mark.parametrize("record", ["items", "batches", "sources", "auto"])
@pytest.mark.parametrize("batch", [1, 7, "auto"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.timeout(1_800)
def test_batches_and_records_change_nothing(
    strategy: str, batch: int | str, record: str, thread_workers: str
) -> None:
    # 100 task runs in a row say nothing that 17 do not; a batch of one is a task run as well.
    singly = record == "items" or (batch == 1 and record != "sources")
    options = {"batch": batch, "record": record, "record_budget": 20}
    cases = [
        replace(case, options={**case.options, **options})
        for case in CORE_CASES
        if WHOLE or not (singly and case.name == "equal items")
    ]
    ended = run_cases(EvolveTaskRunner(address=thread_workers), strategy, cases)
    for case in cases:
        one = ended[case.name]
        assert not isinstance(one, BaseException), (case.name, one)
        check(case, *one)
