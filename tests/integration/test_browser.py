"""What a person sees in the Prefect UI: real Chromium, real server.

Screenshots lie in the folder that EVOLVE_SCREENSHOTS names, or in a temporary one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args
from uuid import UUID

import pytest
from playwright.sync_api import Browser, Dialog, Page, expect, sync_playwright
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL, temporary_settings

from evolve_tasks import EvolveOptions, Limits
from evolve_tasks.options import StrategyName
from flows.audit_changes import audit_changes
from tests.integration.api import artifacts, progress_of
from tests.integration.servers import Server, prefect_environment
from tests.integration.waiting import until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; .ci/run installs it"),
]

# Names that would do something if anybody took them for more than names.
SCRIPT = r"""
import sys, time
from pathlib import Path
from prefect import flow, task
from prefect.runtime import flow_run
from evolve_tasks import EvolveTaskRunner, evolve

NAMES = [
    "<img src=x onerror=alert(1)>.txt",
    "a|b.txt",
    "[x](javascript:alert(1))",
    "two\nlines.txt",
    "y" * 5_000,
    "file.5.txt",
    "torn.txt",
    "file.7.txt",
]

@task
def parse_file(name: str) -> list[tuple[str, int]]:
    time.sleep(0.2)
    if name == "torn.txt":
        raise ValueError(f"{NAMES[0]} cannot be read")
    return [(name, number) for number in range(5)]

@task
def process_item(item: tuple[str, int]) -> int:
    name, number = item
    gate = Path(sys.argv[1], "gate")
    while number > 2 and not gate.exists():
        time.sleep(0.05)
    time.sleep(0.1)
    if name == NAMES[1] and number == 1:
        raise KeyError(NAMES[2])
    return number

@flow(task_runner=EvolveTaskRunner(cluster_kwargs={
    "n_workers": 1, "threads_per_worker": 24, "processes": False, "dashboard_address": None,
}))
def index_files() -> None:
    Path(sys.argv[1], "flow run").write_text(flow_run.id)
    evolve(NAMES, parse_file, process_item, batch=1, record="items")

if __name__ == "__main__":
    index_files()
"""


class Night:
    """A failed run, and what was seen of it half way."""

    def __init__(self, ui: str, flow_run_id: UUID) -> None:
        self.ui = ui
        self.flow_run_id = flow_run_id
        self.progress_id = artifacts(flow_run_id, "progress")[0].id
        self.report_id: UUID | None = None


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("EVOLVE_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def night(
    tmp_path_factory: pytest.TempPathFactory, browser: Browser, pictures: Path
) -> Iterator[Night]:
    """Run the flow; look at its progress while half of it waits behind a gate."""
    folder = tmp_path_factory.mktemp("night")
    script = folder / "night.py"
    script.write_text(SCRIPT)
    server = Server(folder / "server", ui=True)
    server.start()
    try:
        with temporary_settings({PREFECT_API_URL: server.url}):
            flow = subprocess.Popen(
                [sys.executable, str(script), str(folder)],
                env=prefect_environment(folder / "home", server.url)
                | {"PYTHONPATH": str(Path(__file__).parents[2])},
                stdout=subprocess.DEVNULL,
                stderr=(folder / "errors").open("w"),
            )
            try:
                until(lambda: half_way(folder / "flow run"), "the run is half way")
                found = Night(
                    server.url.removesuffix("/api"), UUID((folder / "flow run").read_text())
                )
                with seen(browser, "dark") as page:
                    page.goto(f"{found.ui}/artifacts/artifact/{found.progress_id}")
                    expect(page.get_by_text("8 of 8 sources")).to_be_visible()
                    expect(page.get_by_text("items done")).to_be_visible()
                    page.screenshot(path=pictures / "progress.png")
                (folder / "gate").touch()
                assert flow.wait(120) == 1, (folder / "errors").read_text()
            finally:
                flow.kill()
                flow.wait()
            found.report_id = artifacts(found.flow_run_id, "markdown")[0].id
            yield found
    finally:
        server.stop()


def half_way(flow_run: Path) -> bool:
    if not flow_run.exists() or not artifacts(UUID(flow_run.read_text()), "progress"):
        return False
    percent, words = progress_of(UUID(flow_run.read_text()))
    return 40 < percent < 80 and "8 of 8 sources" in words


class seen:  # noqa: N801 - used as a function
    """A page that fails the test if a dialog opens or a script of others runs."""

    def __init__(self, browser: Browser, theme: str, height: int = 1000) -> None:
        self._context = browser.new_context(
            viewport={"width": 1400, "height": height},
            color_scheme=theme,  # type: ignore[arg-type]
        )
        self._context.add_init_script(f"localStorage.setItem('color-scheme', '\"{theme}\"')")
        self._dialogs: list[str] = []

    def __enter__(self) -> Page:
        page = self._context.new_page()

        def refuse(dialog: Dialog) -> None:
            self._dialogs.append(dialog.message)
            dialog.dismiss()

        page.on("dialog", refuse)
        return page

    def __exit__(self, *error: object) -> None:
        self._context.close()
        assert not self._dialogs


PICTURE = "img[src^='data:image/svg+xml']"
# All in one look: the second UI chooses a tab and draws the page anew, and is empty meanwhile.
WHOLE_REPORT = """picture => {
    const all = selector => [...document.querySelectorAll(selector)];
    const [image] = all(picture);
    return image?.complete && all("table").length >= 4 && {
        width: image.naturalWidth,
        loaded: all("img[src='x']").length,
        links: all("a[href^='javascript']").length,
    };
}"""


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("version", ["", "/v2"], ids=["first UI", "second UI"])
def test_the_report_is_whole_and_harmless(
    version: str, theme: str, night: Night, browser: Browser, pictures: Path
) -> None:
    with seen(browser, theme, height=2600) as page:
        page.goto(f"{night.ui}{version}/artifacts/artifact/{night.report_id}")
        expect(page.get_by_role("heading", name="Failed after")).to_be_visible()
        for heading in ("Timeline", "Failures", "Slowest sources", "Fan-out", "Batches"):
            expect(page.get_by_role("heading", name=heading)).to_be_visible()
        expect(page.locator(PICTURE)).to_be_visible()
        # Names are shown as they are, and nothing of them is loaded or can be clicked.
        expect(page.get_by_text("[x](javascript:alert(1))").first).to_be_visible()
        expect(page.get_by_text("<img src=x onerror=alert(1)>").first).to_be_visible()
        whole = page.wait_for_function(WHOLE_REPORT, arg=PICTURE).json_value()
        assert whole == {"width": 960, "loaded": 0, "links": 0}
        page.screenshot(path=pictures / f"report{version.replace('/', '-')}-{theme}.png")


def test_the_page_of_the_run_shows_its_graph_and_what_failed(
    night: Night, browser: Browser, pictures: Path
) -> None:
    with seen(browser, "dark") as page:
        page.goto(f"{night.ui}/runs/flow-run/{night.flow_run_id}")
        expect(page.get_by_text("43 Task runs")).to_be_visible()
        expect(page.get_by_text("Failed", exact=True).first).to_be_visible()
        expect(page.locator("canvas").first).to_be_visible()
        page.wait_for_load_state("networkidle")
        page.screenshot(path=pictures / "run.png")
        page.get_by_text("Artifacts", exact=True).click()
        expect(page.get_by_text("index-files-parse-file-report").first).to_be_visible()
        expect(page.get_by_text("index-files-parse-file-progress").first).to_be_visible()


def test_a_failure_in_the_report_leads_to_its_task_run(
    night: Night, browser: Browser, pictures: Path
) -> None:
    with seen(browser, "dark") as page:
        page.goto(f"{night.ui}/artifacts/artifact/{night.report_id}")
        expect(page.get_by_role("link", name="task run 1")).to_be_visible()  # of a|b.txt
        # It opens a page of its own; here it is followed in this one.
        address = page.get_by_role("link", name="torn.txt").get_attribute("href")
        assert address is not None
        page.goto(address)
        expect(page.get_by_text("parse_file[torn.txt]").first).to_be_visible()
        expect(page.get_by_text("Failed", exact=True).first).to_be_visible()
        expect(page.get_by_text("cannot be read").first).to_be_visible()
        page.screenshot(path=pictures / "failure.png")


def test_the_html_page_is_the_same_report(
    night: Night, browser: Browser, pictures: Path, tmp_path: Path
) -> None:
    from tests.unit.test_report import report_of

    path = tmp_path / "report.html"
    report_of("<img src=x onerror=alert(1)>").write_html(path)
    for theme in ("dark", "light"):
        with seen(browser, theme) as page:
            page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))  # noqa: B023
            page.goto(path.as_uri())
            assert page.locator(PICTURE).evaluate("image => image.naturalWidth") == 960
            assert all(url.startswith(("file:", "data:")) for url in asked), asked
            page.screenshot(path=pictures / f"page-{theme}.png")


@pytest.fixture(scope="module")
def form(night: Night) -> str:
    """Where the form is with which a flow that takes `EvolveOptions` is run."""
    with get_client(sync_client=True) as client:  # to_deployment is async where Playwright is
        deployment_id = client.create_deployment(
            client.create_flow(audit_changes),
            name="form",
            parameter_openapi_schema=audit_changes.parameters.model_dump_for_openapi(),
            enforce_parameter_schema=True,
        )
    return f"deployments/deployment/{deployment_id}/run"


FIELDS = [*EvolveOptions.model_fields.items(), *Limits.model_fields.items()]


@pytest.mark.parametrize("version", ["", "/v2"], ids=["first UI", "second UI"])
def test_options_are_a_form(
    version: str, night: Night, form: str, browser: Browser, pictures: Path
) -> None:
    with seen(browser, "light" if version else "dark", height=2600) as page:
        page.goto(f"{night.ui}{version}/{form}")
        for name, field in FIELDS:
            title = name.replace("_", " ").title()
            expect(page.get_by_text(f"{title} (Optional)", exact=True)).to_be_visible()
            expect(page.get_by_text(str(field.description), exact=True)).to_be_visible()
        for choice in (
            "measured",
            "number",
            "policy",
            "Tolerate",
            "of this run",
            "shared, by name",
        ):
            expect(page.get_by_text(choice, exact=True)).to_be_visible()
        # The defaults of the flow, and of the package where the flow has none.
        numbers = page.locator("input[type=number]")
        assert [one.input_value() for one in numbers.all()] == ["20", "10000", "100", "500", "0"]
        batch = numbers.nth(2)

        chosen = (
            page.get_by_label("Select Strategy")
            if version
            else page.get_by_role("button", name="auto", exact=True)
        )
        chosen.press("Space")
        for strategy in get_args(StrategyName):
            expect(page.get_by_text(strategy, exact=True).last).to_be_visible()
        page.screenshot(path=pictures / f"choices{version.replace('/', '-')}.png")
        page.get_by_text("sequential", exact=True).last.click()

        batch.fill("0")
        page.get_by_role("button", name="Submit").click()
        if version:  # it lets the browser say so
            said = batch.evaluate("input => input.validationMessage")
            assert "greater than or equal to 1" in said
        else:
            expect(
                page.get_by_text("0 is not valid under any of the given schemas")
            ).to_be_visible()
        page.screenshot(path=pictures / f"wrong{version.replace('/', '-')}.png")

        batch.fill("7")
        page.get_by_text("Tolerate", exact=True).click()
        page.get_by_role("button", name="Submit").click()
        # Neither a number nor a share was given.
        refused = page.get_by_text("'options.on_failure'")
        expect(refused.first).to_be_visible()
        page.get_by_text("policy", exact=True).click()
        # While the second UI still says so it takes no further click.
        expect(refused).to_have_count(0, timeout=30_000)
        page.get_by_role("button", name="Submit").click()
        page.wait_for_url(lambda url: not url.endswith("/run"))  # each goes to another page
    with get_client(sync_client=True) as client:
        latest = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)
    options = EvolveOptions.model_validate(latest[0].parameters["options"])
    assert (options.strategy, options.batch) == ("sequential", 7)
    assert options.on_failure == "ignore"
