"""Fixtures for all tests."""

pytest_plugins = ["tests.cluster.fixtures", "tests.databases.fixtures", "tests.vllm.fixtures"]
