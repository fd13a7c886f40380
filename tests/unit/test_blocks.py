"""`DaskCluster` as Prefect's standards for blocks want it, and what it refuses."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from distributed import LocalCluster, SSHCluster
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from pydantic import SecretStr, ValidationError

from evolve_tasks import AdaptiveBounds, ClusterTls, ClusterUnfit, DaskCluster, InvalidInput
from evolve_tasks.connecting import start
from tests.certificates import Authority, Signed, private

TLS_ADDRESS = "tls://10.0.0.5:8786"


class TestStandards(BlockStandardTestSuite):
    """Prefect's own."""

    @pytest.fixture
    def block(self) -> type[Block]:
        return DaskCluster

    def test_has_a_valid_image(self, block: type[Block]) -> None:
        pytest.importorskip("PIL", reason="Pillow, which looks at the logo, is not installed")
        try:
            super().test_has_a_valid_image(block)
        except URLError as error:
            pytest.skip(f"the logo cannot be fetched here: {error}")


def test_prefect_finds_the_block_where_it_looks_for_blocks() -> None:
    (found,) = entry_points(group="prefect.collections", name="evolve_tasks")
    assert found.load().DaskCluster is DaskCluster
    assert Block.get_block_class_from_key("dask-cluster") is DaskCluster


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("authority")


@pytest.fixture(scope="module")
def me(authority: Authority) -> Signed:
    return authority.signs("me")


def refusal(**fields: Any) -> str:
    with pytest.raises(ValidationError) as raised:
        DaskCluster(**fields)
    return str(raised.value)


# -- what it says ------------------------------------------------------------------------------


def test_it_is_the_local_default_when_nothing_is_said() -> None:
    assert DaskCluster().runner_arguments() == {
        "cluster_class": LocalCluster,
        "cluster_kwargs": {},
        "adapt_kwargs": {},
    }
    # So does a form in which nothing was filled in.
    assert DaskCluster(address="", cluster_class=" ") == DaskCluster()


def test_a_class_with_its_options_and_bounds() -> None:
    block = DaskCluster(
        cluster_class="distributed.LocalCluster",
        cluster_kwargs={"n_workers": 2},
        adaptive=AdaptiveBounds(minimum=2, maximum=4),
    )
    assert block.runner_arguments() == {
        "cluster_class": LocalCluster,
        "cluster_kwargs": {"n_workers": 2},
        "adapt_kwargs": {"minimum": 2, "maximum": 4},
    }


@pytest.mark.parametrize(
    "address", ["tcp://10.0.0.5:8786", "scheduler:8786", " tcp://[::1]:8786 ", TLS_ADDRESS]
)
def test_an_address(address: str) -> None:
    arguments = DaskCluster(address=address).runner_arguments()
    assert arguments == {"address": address.strip(), "client_kwargs": {}}


def test_certificates_as_contents(authority: Authority, me: Signed) -> None:
    # From a form of the UI, and from a machine with other line breaks.
    tls = ClusterTls(
        ca=authority.certificate.strip(),
        certificate=me.certificate.replace("\n", "\r\n"),
        key=SecretStr(me.key.strip()),
    )
    block = DaskCluster(address=TLS_ADDRESS, tls=tls)
    security = block.runner_arguments()["client_kwargs"]["security"]
    assert security.require_encryption
    assert security.get_connection_args("client")["ssl_context"] is not None
    assert me.key.splitlines()[1] not in f"{block!r} {block} {security!r} {block.model_dump()}"


def test_certificates_as_paths(authority: Authority, me: Signed, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(authority.certificate)
    certificate, key = me.write(tmp_path, "me")
    both = tmp_path / "both.pem"
    both.write_text(me.certificate + me.key)
    for paths in ({"certificate": certificate, "key": key}, {"certificate": both}):
        given = {name: str(path) for name, path in paths.items()}
        security = ClusterTls(ca=str(tmp_path / "ca.pem"), **given).security()
        assert security.get_connection_args("client")["ssl_context"] is not None


# -- what it refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"adress": "tcp://a:1"}, "'adress': a DaskCluster block has no such field; it has"),
        ({"address": "tcp://scheduler"}, "give host and port, as tcp://10.0.0.5:8786"),
        ({"address": "http://10.0.0.5:8786"}, "begins with http://, which Dask does not know"),
        ({"address": "tcp://my scheduler:8786"}, "is no address of a scheduler"),
        ({"cluster_class": "SLURMCluster"}, "no full name of a class: give module and class"),
        ({"cluster_class": "os; import sys.x"}, "no full name of a class"),
        ({"cluster_kwargs": {"asynchronous": True}}, "which the task runner sets itself"),
        (
            {"address": "tcp://a:1", "cluster_class": "distributed.LocalCluster"},
            "is a cluster that is there, and cluster_class would start one: give one of the two",
        ),
        ({"address": "tcp://a:1", "cluster_kwargs": {"n_workers": 1}}, "give one of the two"),
        ({"address": "tcp://a:1", "adaptive": {"maximum": 1}}, "and adaptive would start one"),
        ({"adaptive": {"minimum": -1, "maximum": 2}}, "minimum=-1 is below 0"),
        ({"adaptive": {"maximum": 0}}, "maximum=0 is below 1"),
        ({"adaptive": {"minimum": 3, "maximum": 2}}, "maximum=2 is below minimum=3"),
        ({"adaptive": {"minimum": 1}}, "adaptive.maximum"),
        ({"adaptive": {"maximum": "many"}}, "adaptive.maximum"),
        ({"adaptive": {"maximum": 2, "interval": "1s"}}, "adaptive.interval"),
    ],
    ids=str,
)
def test_bad_input_is_refused(fields: dict[str, Any], said: str) -> None:
    assert said in refusal(**fields)


def test_bad_certificates_are_refused(authority: Authority, me: Signed) -> None:
    good = {"ca": authority.certificate, "certificate": me.certificate, "key": me.key}
    other = authority.signs("other")
    encrypted = private(ec.generate_private_key(ec.SECP256R1()), "secret")

    def said(address: str | None = TLS_ADDRESS, **wrong: Any) -> str:
        told = refusal(address=address, tls={**good, **wrong})
        # A key must not stand in an error: it would be in the log.
        assert not any(line in told for line in me.key.splitlines()[1:-1])
        return told

    assert "certificate and key cannot be used" in said(key=other.key)
    assert "certificate and key cannot be used" in said(key=me.key.replace("\n", "\\n"))
    assert "there is no key" in said(key=None)
    assert "is encrypted" in said(key=encrypted)
    assert "key is empty" in said(key=" ")
    assert "certificate has a private key in it" in said(certificate=me.certificate + me.key)
    assert "ca is no certificate that OpenSSL can read" in said(ca="-----BEGIN CERTIFICATE-----")
    assert "ca has several lines and is no PEM" in said(ca="first\nsecond")
    assert "tls.kee" in said(kee=me.key)
    assert "tls is given without address" in said(address=None)
    assert "begin the address with tls://" in said(address="tcp://10.0.0.5:8786")


def test_files_that_are_not_there_are_told_of(authority: Authority, tmp_path: Path) -> None:
    missing = ClusterTls(ca=authority.certificate, certificate="me.pem", key=SecretStr("gone"))
    with pytest.raises(InvalidInput, match=r"tls\.certificate is a path, and the file cannot be"):
        missing.security()
    sealed = tmp_path / "sealed.key"
    sealed.write_text(private(ec.generate_private_key(ec.SECP256R1()), "secret"))
    (tmp_path / "me.pem").write_text(authority.signs("me").certificate)
    encrypted = ClusterTls(
        ca=authority.certificate, certificate=str(tmp_path / "me.pem"), key=SecretStr(str(sealed))
    )
    with pytest.raises(InvalidInput, match="is encrypted, and nobody can type"):
        encrypted.security()
    sealed.write_text(authority.signs("other").key)
    with pytest.raises(InvalidInput, match="the private key that belongs to it"):
        encrypted.security()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_package.Cluster", "install the package that has it where the flow runs"),
        ("distributed.NoSuchCluster", "or correct the name"),
        ("distributed.deploy", "is a module: give the full name of a class"),
    ],
)
def test_a_class_that_is_not_here_is_told_of(name: str, said: str) -> None:
    # Only where it is used: the block may have been made on another machine.
    with pytest.raises(InvalidInput, match=said):
        DaskCluster(cluster_class=name).runner_arguments()


def test_options_that_a_class_does_not_have_are_told_of() -> None:
    with pytest.raises(ClusterUnfit, match=r"could not be started with hosts \(.*must be"):
        start(SSHCluster, {"hosts": []})
