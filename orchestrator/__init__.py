"""The service on the login node: renders recipes, submits jobs, follows them, relays to the engines that answer."""

__version__ = "0.1.0"
