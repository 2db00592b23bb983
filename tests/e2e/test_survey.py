"""What is on the test cluster's login node, seen by an ordinary user through SSH; a service by the file made of it."""

import tomllib

import pytest

from gateway.survey import SCRIPT, Survey, read, site_file, summary
from orchestrator.settings import Settings
from tests.cluster.cluster import Cluster
from tests.e2e.deployment import FAKE, Deployment, laptop_api, wait_for

pytestmark = pytest.mark.cluster


def surveyed(cluster: Cluster, *arguments: str) -> Survey:
    done = cluster.ssh("sh", "-s", *arguments, input=SCRIPT, timeout=90)
    assert done.returncode == 0, done.stderr
    return read(done.stdout)


def test_a_service_starts_by_the_site_file_of_the_survey(deployment: Deployment) -> None:
    cluster = deployment.cluster
    survey = surveyed(cluster)
    assert (survey.user, survey.host, survey.home) == (cluster.user, "login", str(cluster.home))
    assert survey.complete, survey.trouble
    slurm = survey.slurm
    assert slurm is not None
    assert (slurm.answers, slurm.version[0], slurm.accounting, slurm.accounts) == (True, 22, False, ())
    (gpu,) = slurm.partitions
    assert (gpu.name, gpu.default, gpu.nodes, gpu.gpus_per_node, gpu.max_minutes) == ("gpu", True, 2, 4, 120)
    assert any(one.usable and one.path == "/usr/bin/python3" for one in survey.pythons)
    (home,) = [one for one in survey.places if one.role == "home"]
    assert (home.path, home.writable) == (str(cluster.home), True)
    assert home.free
    assert survey.process is None
    assert "partition gpu: 2 nodes with 4 GPUs, the default one, at most 2 h" in "\n".join(summary(survey))

    text = site_file(survey)
    assert Settings(**tomllib.loads(text)).site.partition == "gpu"
    engine = cluster.root / "fake_engine.py"
    engine.write_bytes(FAKE.read_bytes())
    deployment.config = f'{text}\n[site.engines.vllm]\ncommand = ["/usr/bin/python3", "{engine}"]\n'
    deployment.environment["ORCHESTRATOR_POLL_SECONDS"] = "0.5"
    deployment.start_orchestrator()
    deployment.start_gateway()
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
        service = api.start("vllm-single-node", {"gpu": 1, "cpu": 1, "memory": "1G"})["id"]
        api.until(service, "running")
        assert api.prompt(service, "hello")["success"]
        process = surveyed(cluster, "brief", str(deployment.home)).process
        assert process is not None
        assert deployment.orchestrator is not None
        assert (process.host, process.alive) == ("login", True)


def test_while_slurm_does_not_answer(deployment: Deployment) -> None:
    cluster = deployment.cluster
    cluster.stop_controller()
    try:
        survey = surveyed(cluster, "brief")
    finally:
        cluster.start_controller()
    assert survey.complete
    assert survey.slurm is not None
    assert not survey.slurm.answers
    assert "contact" in survey.slurm.words.lower()
    assert Settings(**tomllib.loads(site_file(survey))).scheduler == "slurm"
