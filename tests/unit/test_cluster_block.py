"""What `cluster_block=` may be, without a server: names and templates."""

from __future__ import annotations

from typing import Any

import pytest
from prefect_dask import DaskTaskRunner

from evolve_tasks import EvolveTaskRunner, InvalidInput
from evolve_tasks.cluster_block import block_name

TEMPLATES = [
    "prod",
    "",
    "{{ prefect.variables.dask_cluster }}",
    "{{ $DASK_CLUSTER }}",
    "{{parameters.cluster}}",
    "dask-{{ $STAGE }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_runner_keeps_its_block(template: str) -> None:
    runner = EvolveTaskRunner(cluster_block=template)
    again = runner.duplicate()
    assert again.cluster_block == template
    assert again == runner
    assert runner != EvolveTaskRunner()
    assert runner != EvolveTaskRunner(cluster_block="other")
    assert runner != DaskTaskRunner()


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("Prod", "'Prod' is no name of a block (lower case letters, digits and dashes)"),
        ("{{ my cluster }}", "and no template: give"),
        ("{{ cluster }}", "{{ cluster }} is nothing that the name of a block can come from"),
        ("{{ prefect.blocks.secret.x }}", "is nothing that the name of a block can come from"),
        (7, "is of type int: give the name of a DaskCluster block"),
    ],
)
def test_what_can_be_no_name_is_refused_at_once(template: Any, said: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        EvolveTaskRunner(cluster_block=template)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    "other",
    [
        {"address": "tcp://10.0.0.5:8786"},
        {"cluster_class": "distributed.LocalCluster"},
        {"cluster_kwargs": {"n_workers": 1}},
        {"adapt_kwargs": {"maximum": 1}},
        {"cluster": object()},
        {"client_kwargs": {"security": object()}},
    ],
    ids=lambda other: next(iter(other)),
)
def test_one_thing_says_which_cluster(other: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=f"says which cluster, and so does {next(iter(other))}"):
        EvolveTaskRunner(cluster_block="prod", **other)
    with pytest.raises(InvalidInput):
        EvolveTaskRunner(cluster_block="", **other)


def test_the_environment_gives_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DASK_CLUSTER", raising=False)
    assert block_name("prod") == "prod"
    assert block_name("{{ $DASK_CLUSTER }}") == ""
    monkeypatch.setenv("DASK_CLUSTER", "night")
    assert block_name("{{ $DASK_CLUSTER }}") == "night"
    assert block_name("dask-{{ $DASK_CLUSTER }}") == "dask-night"
    monkeypatch.setenv("DASK_CLUSTER", "At Night")
    with pytest.raises(InvalidInput, match=r"gives 'At Night', which is no name of a block"):
        block_name("{{ $DASK_CLUSTER }}")


def test_parameters_need_a_flow_run() -> None:
    with pytest.raises(InvalidInput, match="takes a parameter of the flow run, and there is none"):
        block_name("{{ parameters.cluster }}")
