"""What the documentation takes for granted beside the cluster: a hub and a vast.ai that the login node reaches."""

from contextlib import ExitStack

from tests.cluster.cluster import namespace
from tests.e2e.deployment import Deployment
from tests.e2e.promises import WHOLE
from tests.fake_hub import TINY, fake_hub, whole
from tests.fake_vast import fake_vast
from tests.renting import rented_in_the_environment

CONTROL_KEY = "your-control-key"
"""As the documents write it."""


def surround(one: Deployment, stack: ExitStack) -> None:
    """Before the orchestrator starts; until the end of the stack."""
    with namespace(one.cluster, "login"):
        hub = stack.enter_context(fake_hub())
        hub.models.append(whole(WHOLE, TINY))
        one.environment["HF_ENDPOINT"] = hub.url
        vast = stack.enter_context(fake_vast())
        vast.ports = {8001: vast.own_port}
        # A port that is not mapped: its engine shows no model, so that the documents' are the cluster's.
        one.environment |= rented_in_the_environment(vast, CONTROL_KEY) | {"VAST_ENGINE_PORT": "8000"}
