"""`sluice doctor`: every link of the chain from this machine to the engines, looked at, with a fix where it fails.

seen.py       what can be seen, as facts
looking.py    looking: this machine, the gateway, the network, a login of our own, the orchestrator
machine.py, way.py, cluster.py   the checks, each a pure function from facts to a finding
order.py      the checks in their order, in the stages in which they are looked at
command.py    the command
"""
