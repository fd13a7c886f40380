"""`cluster_block=`: one flow, moved between clusters by what is known when it starts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster, get_worker
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.testing.cli import invoke_and_assert
from prefect.variables import Variable
from pydantic import SecretStr

from evolve_tasks import (
    ClusterTls,
    ClusterUnfit,
    DaskCluster,
    EvolveTaskRunner,
    InvalidInput,
    aevolve,
    evolve,
)
from tests.certificates import Authority
from tests.integration.servers import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]

IN_PROCESS = {
    "n_workers": 1,
    "threads_per_worker": 1,
    "processes": False,
    "dashboard_address": None,
}
SLUG = "dask-cluster"


@pytest.fixture(scope="module")
def other() -> Iterator[str]:
    with LocalCluster(**IN_PROCESS) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def blocks(prefect_api: str, thread_workers: str, other: str) -> dict[str, str]:
    """The addresses of two clusters by the name of their block."""
    addresses = {"day": thread_workers, "night": other}
    for name, address in addresses.items():
        DaskCluster(address=address).save(name, overwrite=True)
    return addresses


def where(_: Any) -> str:
    return str(get_worker().scheduler.address)


submitted = task(where)


@flow
def anywhere(cluster: str | None = None) -> set[str]:
    """The schedulers on which its work runs, submitted and evolved."""
    return {submitted.submit(0).result(), *evolve([1], range, where).results}


def on(template: str) -> Callable[..., set[str]]:
    return anywhere.with_options(task_runner=EvolveTaskRunner(cluster_block=template))


def test_a_flow_goes_to_the_cluster_that_is_named(
    blocks: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_parameter = on("{{ parameters.cluster }}")
    by_variable = on("{{ prefect.variables.evolve_cluster }}")
    by_environment = on("{{ $EVOLVE_CLUSTER }}")
    for name, address in blocks.items():
        assert on(name)() == {address}
        assert by_parameter(name) == {address}
        Variable.set("evolve_cluster", name, overwrite=True)
        assert by_variable() == {address}
        monkeypatch.setenv("EVOLVE_CLUSTER", name)
        assert by_environment() == {address}


def test_an_async_flow_too(blocks: dict[str, str]) -> None:
    seen: list[str] = []

    @flow(task_runner=EvolveTaskRunner(cluster_block="{{ prefect.variables.evolve_cluster }}"))
    async def around() -> None:
        outcome = await aevolve([1], range, where)
        seen.extend(outcome.results)

    Variable.set("evolve_cluster", "night", overwrite=True)
    asyncio.run(around())
    assert seen == [blocks["night"]]


def test_a_cluster_is_started_for_the_run_where_the_block_says_so(other: str) -> None:
    DaskCluster(cluster_kwargs=IN_PROCESS).save("own", overwrite=True)
    # A default client of the process is somebody else's cluster.
    with Client(other, set_as_default=True):
        assert on("own")().isdisjoint({other})


@pytest.mark.parametrize(
    "template", ["{{ $EVOLVE_UNSET }}", "{{ prefect.variables.unset }}", "{{ parameters.cluster }}"]
)
def test_a_template_that_gives_nothing_means_the_default(template: str, other: str) -> None:
    with Client(other, set_as_default=True):
        assert on(template)() == {other}


# -- what is refused ---------------------------------------------------------------------------


def refusal(template: str, **parameters: Any) -> str:
    with pytest.raises(InvalidInput) as raised:
        on(template)(**parameters)
    return str(raised.value)


def test_a_block_that_does_not_exist_is_told_of(blocks: dict[str, str]) -> None:
    said = refusal("{{ parameters.cluster }}", cluster="evening")
    assert said.startswith("cluster_block='{{ parameters.cluster }}' gives 'evening': there is no")
    assert "there are " in said
    assert all(repr(name) in said for name in blocks)
    assert ".save('evening')" in said
    assert "prefect block register -m evolve_tasks" in said


def test_a_parameter_that_does_not_exist_is_told_of(blocks: dict[str, str]) -> None:
    said = refusal("{{ parameters.clutser }}")
    assert "the flow run has no parameters.clutser; its parameters are cluster" in said


def test_what_is_no_name_is_told_of(blocks: dict[str, str]) -> None:
    Variable.set("evolve_cluster", {"name": "day"}, overwrite=True)
    said = refusal("{{ prefect.variables.evolve_cluster }}")
    assert "gives {'name': 'day'} of type dict: it has to give the name of a DaskCluster" in said


def test_a_block_that_cannot_be_used_is_told_of(blocks: dict[str, str]) -> None:
    # As one that was made in the form of the UI, which knows nothing of addresses.
    DaskCluster(address="tcp://10.0.0.5:8786").save("spoilt", overwrite=True)
    with get_client(sync_client=True) as client:
        document = client.read_block_document_by_name("spoilt", SLUG)
        changed = BlockDocumentUpdate(data={"address": "tcp://nowhere"})
        client.update_block_document(document.id, changed)
    said = refusal("spoilt")
    assert "address='tcp://nowhere' is no address of a scheduler" in said


def test_a_cluster_that_is_not_there_is_told_of_in_time() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(ClusterUnfit, match=f"{address} .*see that the scheduler is up"),
    ):
        DaskCluster(address=address).check()


# -- the block in Prefect ----------------------------------------------------------------------


def test_the_command_registers_the_block() -> None:
    command = ["block", "register", "-m", "evolve_tasks"]
    invoke_and_assert(command, expected_code=0, expected_output_contains="Dask Cluster")
    with get_client(sync_client=True) as client:
        found = client.read_block_type_by_slug(SLUG)
    assert found.name == "Dask Cluster"
    assert found.logo_url
    assert found.documentation_url
    assert (found.description or "").startswith("How to reach a Dask cluster that is there")
    assert "cluster_block=" in (found.code_example or "")


def test_a_block_is_saved_and_loaded_whole_and_hides_its_key() -> None:
    authority = Authority("authority")
    me = authority.signs("me")
    tls = ClusterTls(ca=authority.certificate, certificate=me.certificate, key=SecretStr(me.key))
    block = DaskCluster(address="tls://10.0.0.5:8786", tls=tls)
    block.save("sealed", overwrite=True)
    loaded = DaskCluster.load("sealed")
    assert loaded.tls == tls
    assert loaded.address == block.address
    with get_client(sync_client=True) as client:
        shown = client.read_block_document_by_name("sealed", SLUG, include_secrets=False)
    assert shown.data["tls"]["certificate"] == tls.certificate
    assert set(shown.data["tls"]["key"]) == {"*"}
    started = DaskCluster(cluster_kwargs={"n_workers": 1}, adaptive={"minimum": 1, "maximum": 4})
    started.save("bounded", overwrite=True)
    assert DaskCluster.load("bounded").adaptive == started.adaptive


def test_a_check_says_what_is_there(thread_workers: str) -> None:
    found = DaskCluster(address=thread_workers).check()
    assert found.ok, found.problems
    assert (found.address, found.workers, found.threads) == (thread_workers, 1, 3)
    assert found.memory_bytes > 0
    assert found.package_on_scheduler
    assert found.package_on_workers
    assert {"python", "prefect", "evolve-tasks", "distributed"} <= found.versions.keys()
    prefect = found.versions["prefect"]
    assert prefect["here"] == prefect["scheduler"] == prefect["workers"] != []


def test_a_check_is_awaited_in_async_code() -> None:
    async def checked() -> None:
        block = DaskCluster(cluster_kwargs=IN_PROCESS, adaptive={"minimum": 1, "maximum": 1})
        checking: Any = block.check(timeout_s=30)
        assert (await checking).workers == 1
        block = DaskCluster(cluster_kwargs={**IN_PROCESS, "n_workers": 0})
        empty = await block.acheck(timeout_s=0.1)
        assert empty.package_on_workers is None
        assert empty.problems == ["there is no worker: start one"]

    asyncio.run(checked())


def test_a_cluster_that_has_no_worker_until_there_is_work_is_fit() -> None:
    block = DaskCluster(cluster_kwargs={**IN_PROCESS, "n_workers": 0}, adaptive={"maximum": 2})
    found = block.check(timeout_s=60)
    assert found.problems == []
    assert found.workers >= 1
    assert found.package_on_workers
