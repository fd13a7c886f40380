"""One real Prefect server and one real Dask cluster of each kind for the whole session."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

# Before Prefect is imported anywhere: it reads its settings then.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="evolve-tests-")
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "120"
os.environ.pop("PREFECT_API_URL", None)

import dask
import pytest
from distributed import LocalCluster
from distributed.utils import get_mp_context

from tests.thinning import thin

# Worker processes are forked from one that has imported what they all import: a start costs 0.3 s
# in place of 3. Those of `dask worker` and of the scripts that tests run start as users' do.
dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
# Dask's profiler looks at all threads by sys._current_frames(), which in Python 3.11.7 may meet a
# thread that is just being started, and then both wait for ever (CPython gh-106883). Workers that
# are threads of this process start them all the time.
dask.config.set({"distributed.worker.profile.enabled": False})
# Fifty times a second each server looks whether its event loop is in time. Those of the session
# are idle for most of it, and this was over half of what they took of the CPUs meanwhile.
dask.config.set({"distributed.admin.tick.interval": "500ms"})
get_mp_context().set_forkserver_preload(["distributed", "prefect_dask", "evolve_tasks"])

atexit.register(shutil.rmtree, os.environ["PREFECT_HOME"], ignore_errors=True)


LEFT_OUT = pytest.StashKey[int]()
WHOLE = bool(os.environ.get("EVOLVE_MATRIX"))


@pytest.hookimpl(trylast=True)  # after those that were not asked for are gone
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not WHOLE:
        left_out = thin(items)
        config.stash[LEFT_OUT] = len(left_out)
        config.hook.pytest_deselected(items=left_out)
    # Files are given out in this order (with --no-loadscope-reorder): those that take minutes
    # first, so that none of them is alone at the end. In `make matrix` those are of conformance.
    first = "conformance" if WHOLE else "integration"
    items.sort(key=lambda item: first not in item.path.parts)


def pytest_report_collectionfinish(config: pytest.Config) -> str:
    left_out = config.stash.get(LEFT_OUT, 0)
    return f"{left_out} more combinations of parameters run in `make matrix`" if left_out else ""


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[str]:
    """A real Prefect server in a process of its own, with an empty database."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.settings.context import get_current_settings
    from prefect.testing.utilities import prefect_test_harness

    # At the end of a flow run Prefect waits until the thread of its heartbeat wakes up, once a
    # second: more than all else that a run of the tests takes. Flows in processes of their own
    # have it.
    no_heartbeat = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    with prefect_test_harness(server_startup_timeout=120), temporary_settings(no_heartbeat):
        url = get_current_settings().api.url
        assert url is not None
        yield url


@pytest.fixture(scope="session")
def thread_workers() -> Iterator[str]:
    """A scheduler with one worker of three threads in this process."""
    with LocalCluster(
        processes=False, n_workers=1, threads_per_worker=3, dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="session")
def process_workers(prefect_api: str) -> Iterator[str]:
    """A scheduler with two worker processes of one thread."""
    with LocalCluster(
        processes=True, n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address
