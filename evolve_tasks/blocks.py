"""The block `DaskCluster`: how to reach a Dask cluster, or how to start one."""

from __future__ import annotations

import importlib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from distributed import Client, LocalCluster, Security
from distributed import TimeoutError as WaitTimeoutError
from distributed.comm.addressing import parse_address, parse_host_port
from distributed.comm.registry import backends
from prefect._internal.compatibility.async_dispatch import async_dispatch
from prefect.blocks.core import Block
from prefect.utilities.asyncutils import run_sync_in_worker_thread
from prefect.utilities.importtools import from_qualified_name
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    SecretStr,
    field_validator,
    model_validator,
)

from evolve_tasks.connecting import adapt, connected, start
from evolve_tasks.errors import InvalidInput
from evolve_tasks.naming import error_text
from evolve_tasks.versions import differences

PACKAGE: Final = "evolve_tasks"

# What a check tells the versions of, as the package registry names them.
_SHOWN: Final = ("python", "dask", "distributed", "prefect", "prefect-dask", "evolve-tasks")

# The form of a private key in PEM that only its owner can open, old and new.
_ENCRYPTED: Final = ("BEGIN ENCRYPTED", "Proc-Type: 4,ENCRYPTED")


class _Checked(BaseModel):
    """A part of a block. What was given is not shown in errors: it may be a secret."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class ClusterTls(_Checked):
    """Certificates for a scheduler that speaks TLS, as contents (PEM) or as paths.

    Contents travel with the block. A path is that of a file on the machine where the flow runs,
    and is read when a run starts.

    Args:
        ca: certificate of the authority that signed the scheduler's certificate.
        certificate: the client's own certificate, signed by the scheduler's authority.
        key: private key of that certificate, not encrypted. May be left out where `certificate`
            is the path of a file that has both.

    Example:
        >>> ClusterTls(ca="~/ca.pem", certificate="~/me.pem", key="~/me.key").key
        SecretStr('**********')
    """

    ca: str = Field(
        description="Certificate of the authority that signed the scheduler's certificate: its "
        "contents (PEM), or a path where the flow runs."
    )
    certificate: str = Field(
        description="The client's own certificate: its contents (PEM), or a path where the flow "
        "runs."
    )
    key: SecretStr | None = Field(
        default=None,
        description="Private key of that certificate: its contents (PEM), or a path where the "
        "flow runs.",
    )

    @field_validator("ca", "certificate")
    @classmethod
    def _certificate(cls, value: str, info: Any) -> str:
        if "PRIVATE KEY-----" in value:
            raise ValueError(
                f"{info.field_name} has a private key in it, and is shown to whoever may see the "
                "block: give the certificate alone here, and the key as key"
            )
        return _pem_or_path(info.field_name, value)

    @field_validator("key")
    @classmethod
    def _key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        secret = _pem_or_path("key", value.get_secret_value())
        _refuse_encrypted("key", secret)
        return SecretStr(secret)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.key is None and _is_pem(self.certificate):
            raise ValueError(
                "there is no key, and certificate is the contents of a certificate: give the "
                "private key that belongs to it as key"
            )
        parts = [self.ca, self.certificate, self._secret()]
        if all(part is None or _is_pem(part) for part in parts):
            self._load()
        return self

    def security(self) -> Security:
        """Make the `Security` that Dask's client takes.

        Returns:
            It; contents are in it as contents, and are not written to a file that stays.

        Raises:
            InvalidInput: a file is missing or is no certificate or key, or they do not belong
                together.

        Example:
            >>> def client_of(block: DaskCluster) -> Client:
            ...     return Client(block.address, security=block.tls.security())
        """
        for name, part in (("ca", self.ca), ("certificate", self.certificate), ("key", None)):
            value = self._secret() if name == "key" else part
            if value is None or _is_pem(value):
                continue
            try:
                text = Path(value).expanduser().read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidInput(
                    f"tls.{name} is a path, and the file cannot be read here "
                    f"({error_text(error)}): bring the file to where the flow runs, or give its "
                    "contents (PEM)"
                ) from error
            _refuse_encrypted(f"the file of tls.{name}", text)
        try:
            return self._load()
        except ValueError as error:
            raise InvalidInput(f"tls: {error}") from error

    def _secret(self) -> str | None:
        return None if self.key is None else self.key.get_secret_value()

    def _load(self) -> Security:
        key = self._secret()
        security = Security(
            require_encryption=True,
            tls_ca_file=_place(self.ca),
            tls_client_cert=_place(self.certificate),
            tls_client_key=None if key is None else _place(key),
        )
        try:
            ssl.create_default_context(**_authority(_place(self.ca)))
        except (ssl.SSLError, ValueError) as error:
            raise ValueError(
                f"ca is no certificate that OpenSSL can read ({error_text(error)}): give a PEM "
                "with all its lines, from -----BEGIN CERTIFICATE----- to the end"
            ) from error
        try:
            security.get_connection_args("client")
        except (ssl.SSLError, ValueError) as error:
            raise ValueError(
                f"certificate and key cannot be used ({error_text(error)}): give a PEM certificate "
                "and the private key that belongs to it, each with all its lines"
            ) from error
        return security


class AdaptiveBounds(_Checked):
    """Between how many workers a cluster that is started may scale by itself.

    Args:
        minimum: workers that are there also when there is nothing to do (N >= 0).
        maximum: workers that are there at most (N >= 1, and not below `minimum`).

    Example:
        >>> AdaptiveBounds(minimum=1, maximum=20).maximum
        20
    """

    minimum: int = Field(
        default=0,
        strict=True,
        description="Workers that are there also when there is nothing to do; 0 or more.",
    )
    maximum: int = Field(
        strict=True, description="Workers that are there at most; 1 or more, minimum or more."
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.minimum < 0:
            raise ValueError(f"minimum={self.minimum} is below 0: give 0 or more workers")
        if self.maximum < 1:
            raise ValueError(f"maximum={self.maximum} is below 1: a run needs at least one worker")
        if self.maximum < self.minimum:
            raise ValueError(
                f"maximum={self.maximum} is below minimum={self.minimum}: give them the other way "
                "round"
            )
        return self


class ClusterCheck(BaseModel):
    """What a check of a cluster found.

    Args:
        address: address of the scheduler.
        workers: workers that are there (N).
        threads: their threads, all together (N).
        memory_bytes: their memory limits, all together, in bytes; 0 where none has a limit.
        versions: versions by package and by place (`here`, `scheduler`, `workers`), as
            `{"prefect": {"here": ["3.8.8"], …}}`; more than one where workers differ, and none
            where it is not installed.
        package_on_scheduler: whether the scheduler can import evolve_tasks.
        package_on_workers: whether all workers can; `None` where there are no workers.
        problems: what keeps flows from running there, each with what to do; empty if nothing.

    Example:
        >>> found = ClusterCheck(
        ...     address="tcp://10.0.0.5:8786", workers=4, threads=16, memory_bytes=0, versions={},
        ...     package_on_scheduler=True, package_on_workers=True,
        ... )
        >>> found.ok
        True
    """

    address: str = Field(description="Address of the scheduler.")
    workers: int = Field(description="Workers that are there.")
    threads: int = Field(description="Their threads, all together.")
    memory_bytes: int = Field(description="Their memory limits, all together, in bytes.")
    versions: dict[str, dict[str, list[str]]] = Field(
        description="Versions by package and by place."
    )
    package_on_scheduler: bool = Field(description="Whether the scheduler can import evolve_tasks.")
    package_on_workers: bool | None = Field(
        description="Whether all workers can import evolve_tasks; null without workers."
    )
    problems: list[str] = Field(
        default_factory=list, description="What keeps flows from running there."
    )

    @property
    def ok(self) -> bool:
        """Whether nothing was found that keeps flows from running there."""
        return not self.problems


class DaskCluster(Block):
    """How to reach a Dask cluster that is there, or which one to start for a run.

    `EvolveTaskRunner(cluster_block="prod")` uses the block of that name. Either `address` says
    where the scheduler is, with `tls` if it speaks TLS; or a cluster is started for the run and
    ended with it: `cluster_class` with `cluster_kwargs`, and `adaptive` bounds. With neither, it
    is a local cluster on the machine of the flow.

    `cluster_kwargs` are shown to whoever may see the block: keep secrets out of them.

    Args:
        address: address of a scheduler that is running, as `tcp://10.0.0.5:8786`, or
            `tls://10.0.0.5:8786` with TLS.
        tls: certificates for a `tls://` address; if left out, those of Dask's configuration.
        cluster_class: full name of the class of the cluster to start, as
            `dask_jobqueue.SLURMCluster`; `distributed.LocalCluster` if not given.
        cluster_kwargs: what it is started with.
        adaptive: bounds within which it scales by itself; if left out, its size is what
            `cluster_kwargs` say.

    Raises:
        ValueError: fields that exclude each other or cannot be used (`pydantic.ValidationError`).

    Example:
        >>> DaskCluster(address="tcp://10.0.0.5:8786").address
        'tcp://10.0.0.5:8786'
        >>> local = DaskCluster(cluster_kwargs={"n_workers": 1}, adaptive={"maximum": 4})
        >>> local.adaptive
        AdaptiveBounds(minimum=0, maximum=4)
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    _block_type_name: ClassVar[str | None] = "Dask Cluster"
    _block_type_slug: ClassVar[str | None] = "dask-cluster"
    _logo_url: ClassVar[HttpUrl | None] = HttpUrl(
        "https://avatars.githubusercontent.com/u/17131925?s=200&v=4"
    )
    _documentation_url: ClassVar[HttpUrl | None] = HttpUrl(
        "https://docs.dask.org/en/stable/deploying.html"
    )
    _code_example: ClassVar[str | None] = """
        ```python
        from prefect import flow
        from evolve_tasks import DaskCluster, EvolveTaskRunner, evolve

        cluster = DaskCluster.load("BLOCK_NAME")
        print(cluster.check())

        @flow(task_runner=EvolveTaskRunner(cluster_block="BLOCK_NAME"))
        def squares() -> list[int]:
            return evolve([3, 4], range, lambda x: x * x).results
        ```
    """

    address: str | None = Field(
        default=None,
        description="Address of a scheduler that is running, as tcp://10.0.0.5:8786, or "
        "tls://10.0.0.5:8786 with TLS.",
    )
    tls: ClusterTls | None = Field(
        default=None,
        title="TLS",
        description="Certificates for a tls:// address; if left out, those of Dask's "
        "configuration where the flow runs.",
    )
    cluster_class: str | None = Field(
        default=None,
        description="Full name of the class of the cluster to start for a run, as "
        "dask_jobqueue.SLURMCluster; empty: distributed.LocalCluster.",
    )
    cluster_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="What the cluster is started with; no secrets, they would be shown here.",
    )
    adaptive: AdaptiveBounds | None = Field(
        default=None,
        description="Bounds within which the cluster that is started scales by itself.",
    )

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_fields(cls, values: Any) -> Any:
        # Prefect's blocks take any field; a misspelt one would be ignored in silence.
        if isinstance(values, dict):
            known = {*cls.model_fields, "block_type_slug"}
            if unknown := sorted(n for n in values if n not in known and not n.startswith("_")):
                raise ValueError(
                    f"{', '.join(map(repr, unknown))}: a DaskCluster block has no such field; it "
                    f"has {', '.join(cls.model_fields)}"
                )
        return values

    @field_validator("address", "cluster_class", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        # What a form in the UI sends for a field that nobody filled in.
        return None if isinstance(value, str) and not value.strip() else value

    @field_validator("address")
    @classmethod
    def _scheduler_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        value = value.strip()
        scheme, location = parse_address(value)
        if scheme not in backends:
            raise ValueError(
                f"address={value!r} begins with {scheme}://, which Dask does not know here: it "
                f"has {', '.join(f'{name}://' for name in sorted(backends))}"
            )
        if scheme == "inproc":
            return value
        try:
            host, port = parse_host_port(location)
        except (ValueError, TypeError):
            host, port = "", None
        if not host or not port or any(char.isspace() for char in value):
            raise ValueError(
                f"address={value!r} is no address of a scheduler: give host and port, as "
                f"{scheme}://10.0.0.5:8786"
            )
        return value

    @field_validator("cluster_class")
    @classmethod
    def _qualified_name(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = value.strip().split(".")
        if len(parts) < 2 or not all(part.isidentifier() for part in parts):
            raise ValueError(
                f"cluster_class={value!r} is no full name of a class: give module and class, as "
                "dask_jobqueue.SLURMCluster"
            )
        return value.strip()

    @field_validator("cluster_kwargs")
    @classmethod
    def _options(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "asynchronous" in value:
            raise ValueError(
                "cluster_kwargs has asynchronous, which the task runner sets itself: leave it out"
            )
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        starting = {
            "cluster_class": self.cluster_class,
            "cluster_kwargs": self.cluster_kwargs,
            "adaptive": self.adaptive,
        }
        given = [name for name, value in starting.items() if value]
        if self.address is not None and given:
            raise ValueError(
                f"address={self.address!r} is a cluster that is there, and {', '.join(given)} "
                "would start one: give one of the two"
            )
        if self.tls is None:
            return self
        if self.address is None:
            raise ValueError(
                "tls is given without address: it is for a scheduler that is there; give its "
                "tls:// address, or for a cluster that is started its own security option in "
                "cluster_kwargs"
            )
        if parse_address(self.address)[0] not in ("tls", "wss"):
            raise ValueError(
                f"address={self.address!r} is not encrypted, and tls is given: begin the address "
                "with tls://, or leave tls out"
            )
        return self

    def runner_arguments(self) -> dict[str, Any]:
        """Say what a `DaskTaskRunner` would be given for this cluster.

        `EvolveTaskRunner(cluster_block=…)` does this by itself when a run starts. The stock
        runner sends its arguments to the workers, and with them the private key of `tls`.

        Returns:
            Arguments by name: `address` and `client_kwargs`, or `cluster_class`,
            `cluster_kwargs` and `adapt_kwargs`.

        Raises:
            InvalidInput: a file of `tls` or the class is missing on this machine.

        Example:
            >>> DaskCluster(address="tcp://10.0.0.5:8786").runner_arguments()
            {'address': 'tcp://10.0.0.5:8786', 'client_kwargs': {}}
        """
        if self.address is not None:
            security = {} if self.tls is None else {"security": self.tls.security()}
            return {"address": self.address, "client_kwargs": security}
        return {
            "cluster_class": self._class(),
            "cluster_kwargs": dict(self.cluster_kwargs),
            "adapt_kwargs": {} if self.adaptive is None else self.adaptive.model_dump(),
        }

    def _class(self) -> Any:
        if self.cluster_class is None:
            return LocalCluster
        try:
            found = from_qualified_name(self.cluster_class)
        except (ImportError, AttributeError) as error:
            raise InvalidInput(
                f"cluster_class={self.cluster_class!r} cannot be imported here "
                f"({error_text(error)}): install the package that has it where the flow runs, or "
                "correct the name"
            ) from error
        if not callable(found):
            raise InvalidInput(
                f"cluster_class={self.cluster_class!r} is a {type(found).__name__}: give the full "
                "name of a class, as dask_jobqueue.SLURMCluster"
            )
        return found

    async def acheck(self, timeout_s: float = 60.0) -> ClusterCheck:
        """Do what `check` does, awaited.

        Args:
            timeout_s: as in `check`.

        Returns:
            What was found.

        Raises:
            InvalidInput: as in `check`.
            ClusterUnfit: as in `check`.

        Example:
            >>> async def fit(name: str) -> bool:
            ...     cluster = await DaskCluster.load(name)
            ...     return not (await cluster.acheck()).problems
        """
        return await run_sync_in_worker_thread(self._check, timeout_s)

    @async_dispatch(acheck)
    def check(self, timeout_s: float = 60.0) -> ClusterCheck:
        """Connect, and see whether flows can run there.

        Where the block starts a cluster, one is started, looked at and ended. In async code it
        gives a coroutine, as methods of Prefect's blocks do.

        Args:
            timeout_s: how long the first worker of a cluster that was started may take, in
                seconds (`adaptive.minimum` workers, where that is more than one).

        Returns:
            What was found. Versions that differ and a package that is missing are among its
            `problems`.

        Raises:
            InvalidInput: a file of `tls` or the class is missing on this machine.
            ClusterUnfit: the scheduler cannot be reached, or the cluster cannot be started.

        Example:
            >>> def fit(name: str) -> bool:
            ...     return not DaskCluster.load(name).check().problems
        """
        return self._check(timeout_s)

    def _check(self, timeout_s: float) -> ClusterCheck:
        with self._client() as client:
            if self.address is not None:
                return look_at(client)
            # A cluster that has no worker until there is work starts one for this.
            asked = None if self.adaptive is None else client.submit(int, pure=False)
            least = 1 if self.adaptive is None else max(1, self.adaptive.minimum)
            _wait_for_workers(client, least, timeout_s)
            found = look_at(client)
            del asked
            return found

    @contextmanager
    def _client(self) -> Iterator[Client]:
        arguments = self.runner_arguments()
        if self.address is not None:
            with connected(
                self.address, set_as_default=False, **arguments["client_kwargs"]
            ) as client:
                yield client
            return
        with start(arguments["cluster_class"], arguments["cluster_kwargs"]) as cluster:
            if arguments["adapt_kwargs"]:
                adapt(cluster, arguments["adapt_kwargs"])
            with connected(cluster, set_as_default=False) as client:
                yield client


def look_at(client: Client) -> ClusterCheck:
    """See what a cluster has, and whether flows can run there.

    Args:
        client: a connected client.

    Returns:
        What was found.
    """
    info = client.scheduler_info(n_workers=-1)
    workers = info["workers"].values()
    lacking = {address: why for address, why in _imports(client).items() if why}
    versions: Any = client.get_versions(packages=list(_SHOWN[1:]))
    problems = [f"{place} cannot import {PACKAGE} ({why})" for place, why in lacking.items()]
    problems += differences(client)
    return ClusterCheck(
        address=info["address"],
        workers=len(workers),
        threads=sum(worker["nthreads"] for worker in workers),
        memory_bytes=sum(worker["memory_limit"] or 0 for worker in workers),
        versions={
            package: {
                "here": _told([versions["client"]], package),
                "scheduler": _told([versions["scheduler"]], package),
                "workers": _told(versions["workers"].values(), package),
            }
            for package in _SHOWN
        },
        package_on_scheduler="the scheduler" not in lacking,
        package_on_workers=not (lacking.keys() - {"the scheduler"}) if workers else None,
        problems=problems if workers else [*problems, "there is no worker: start one"],
    )


def _imports(client: Client) -> dict[str, str]:
    """Why a place cannot import this package, by place; empty where it can.

    What is run there is of the standard library: a function of this package would not arrive.
    """
    found: dict[str, str] = {}
    try:
        client.run_on_scheduler(importlib.import_module, PACKAGE)
    except Exception as error:
        found["the scheduler"] = error_text(error)
    answers: dict[str, Any] = client.run(importlib.import_module, PACKAGE, on_error="return")
    for address, answer in answers.items():
        if isinstance(answer, BaseException):
            found[f"worker {address}"] = error_text(answer)
    return found


def _told(places: Any, package: str) -> list[str]:
    return sorted({told for place in places if (told := place["packages"].get(package))})


def _wait_for_workers(client: Client, count: int, timeout_s: float) -> None:
    try:
        client.wait_for_workers(count, timeout=timeout_s)
    except WaitTimeoutError:
        return  # what is missing is among the problems


def _is_pem(value: str) -> bool:
    return "-----BEGIN " in value


def _pem_or_path(name: str, value: str) -> str:
    """Contents with the line breaks that OpenSSL wants, or a path as it is."""
    value = value.strip()
    if _is_pem(value):
        return value.replace("\r\n", "\n") + "\n"
    if not value:
        raise ValueError(f"{name} is empty: give the contents of a PEM file, or its path")
    if "\n" in value:
        raise ValueError(
            f"{name} has several lines and is no PEM, which begins with -----BEGIN: give the "
            "contents of a PEM file, or its path"
        )
    return value


def _refuse_encrypted(name: str, text: str) -> None:
    # OpenSSL would ask for the passphrase on a terminal, and wait for ever where there is none.
    if any(form in text for form in _ENCRYPTED):
        raise InvalidInput(
            f"{name} is encrypted, and nobody can type its passphrase while a flow runs: give it "
            "without one (openssl pkey -in KEY -out PLAIN)"
        )


def _place(value: str) -> str:
    return value if _is_pem(value) else str(Path(value).expanduser())


def _authority(ca: str) -> dict[str, Any]:
    return {"cadata": ca} if _is_pem(ca) else {"cafile": ca}
