"""From nothing to a gateway with an orchestrator behind it, over one login: `sluice connect`, and `/orchestrator/…`.

    wheel, packages, python     what is brought to the login node, and by which way: pure, but for reading and packing
    starting, plan              how the orchestrator is started there, what there is to do: pure
    standing, manage.sh         what stands there; the script that looks, installs, starts and stops
    host                        where the script runs: over the gateway's own link, or on this machine
    bundle, supply              what is brought along, and the ways that it may take
    errand                      one connection's worth of it, from the login to the orchestrator's health
    seat, serving               the place of a gateway on this machine: one at a port, handed over when it is replaced
    routes                      the same by API

What it leaves on the login node, file by file, is docs/connect.md.
"""
