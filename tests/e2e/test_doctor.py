"""The doctor on the test cluster: what it says when all is well, and of a fault that was made on purpose."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.e2e.deployment import REPOSITORY, Deployment, laptop_api, wait_for
from tests.e2e.test_link import SECOND_PORT, another_sshd, configured

pytestmark = pytest.mark.cluster

COMMAND = [sys.executable, "-c", "from gateway.cli import main; main()", "doctor", "--json"]
Findings = dict[str, dict[str, Any]]


def examined(deployment: Deployment) -> tuple[int, Findings]:
    """The exit status, and the worst finding of each check."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("GATEWAY_", "ORCHESTRATOR_"))},
        "GATEWAY_CLUSTER": deployment.cluster.alias,
        "GATEWAY_SSH_CONFIG": str(deployment.cluster.ssh_config),
        "GATEWAY_REMOTE_SOCKET": str(deployment.socket),
        **deployment.gateway_environment,
    }
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=100, env=environment, cwd=REPOSITORY)
    assert done.stderr == "", done.stderr
    found: Findings = {}
    order = ["unknown", "well", "odd", "broken"]
    for one in json.loads(done.stdout):
        before = found.get(one["check"])
        if before is None or order.index(one["level"]) > order.index(before["level"]):
            found[one["check"]] = one
    return done.returncode, found


def broken(found: Findings) -> list[str]:
    return [name for name, one in found.items() if one["level"] == "broken"]


def test_all_is_well_then_the_orchestrator_stops(deployment: Deployment) -> None:
    deployment.start_orchestrator()
    deployment.start_gateway()
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
        status, found = examined(deployment)
        assert (status, broken(found)) == (0, []), found
        for check in ("gateway", "ssh config", "network", "host key", "login", "forwarding", "python", "orchestrator",
                      "version", "database", "scheduler", "account", "services", "clock"):  # fmt: skip
            assert found[check]["level"] == "well", found[check]
        assert "22.05.8" in found["scheduler"]["words"]

        deployment.stop_orchestrator()
        status, found = examined(deployment)
        assert (status, "orchestrator" in broken(found)) == (1, True), found
        assert found["orchestrator"]["words"] == "none runs"
        assert "sluice orchestrator" in found["orchestrator"]["fix"]
        assert found["login"]["level"] == "well"
        assert found["scheduler"]["level"] == "well", "Slurm itself is asked then"


def test_slurmctld_stops(deployment: Deployment) -> None:
    deployment.start_orchestrator()
    deployment.start_gateway()
    with laptop_api() as api:
        wait_for(api.ready, "the gateway is ready")
        deployment.cluster.stop_controller()  # without jobs squeue is not asked, so nobody has noticed
        try:
            status, found = examined(deployment)
        finally:
            deployment.cluster.start_controller()
        assert (status, broken(found)) == (1, ["scheduler"]), found
        assert "Slurm does not answer" in found["scheduler"]["words"]
        assert "scontrol ping" in found["scheduler"]["fix"]
        assert found["orchestrator"]["level"] == "well"


def test_sshd_forbids_forwarding(deployment: Deployment) -> None:
    cluster = deployment.cluster
    deployment.gateway_environment["GATEWAY_SSH_CONFIG"] = str(configured(cluster, "examined", port=SECOND_PORT))
    deployment.start_orchestrator()
    with another_sshd(cluster, "DisableForwarding yes"):
        deployment.start_gateway()
        with laptop_api() as api:
            wait_for(api.ready, "the gateway is ready")
            status, found = examined(deployment)
            deployment.stop_gateway()
    assert (status, broken(found)) == (0, []), found
    assert found["forwarding"]["level"] == "odd"
    assert "sshd forbids forwarding" in found["forwarding"]["words"]
