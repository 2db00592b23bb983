"""Checks of this machine: its settings, the gateway's port, the gateway, its key. Pure."""

from gateway.doctor.finding import Finding, broken, odd, unknown, well
from gateway.doctor.seen import Door, Seen


def settings(seen: Seen) -> Finding:
    here = seen.here
    files = ", ".join(str(path) for path in here.files)
    if here.trouble:
        return broken("settings", here.trouble, f"correct it in the environment{f' or in {files}' if files else ''}")
    where = f"the cluster {seen.alias}" if seen.alias else "the orchestrator of this machine"
    return well("settings", f"{where}, by {files or 'the environment'}")


def port(seen: Seen) -> Finding:
    door = seen.door
    if door is None:
        return unknown("port", "without settings the port is not known")
    number = seen.here.url.rpartition(":")[2].strip("/")
    match door.listens:
        case "gateway":
            return well("port", f"a gateway listens at {seen.here.url}")
        case "nothing":
            return well("port", f"{number} is free")
        case "silent":
            return broken("port", f"what listens at {seen.here.url} does not answer: {door.words}", _another(number))
        case "other":
            return broken("port", f"{seen.here.url} is another program's: {door.words}", _another(number))


def _another(number: str) -> str:
    further = int(number) + 1 if number.isdigit() and int(number) < 65535 else 8002
    return f"end that program (`ss -ltnp sport = :{number}` names it), or start the gateway with GATEWAY_PORT={further}"


def gateway(seen: Seen) -> Finding:
    door = seen.door
    if door is None or door.listens != "gateway":
        start = f"GATEWAY_CLUSTER={seen.alias} sluice gateway" if seen.alias else "sluice gateway"
        return broken("gateway", "no gateway runs on this machine", f"start it: {start}")
    version = str(door.health.get("version", ""))
    if not seen.leads_here:
        meant = seen.alias or "this machine"
        fix = f"`sluice doctor {seen.leads_to}` looks at that one; another: GATEWAY_PORT=8002 GATEWAY_CLUSTER={meant}"
        return broken(
            "gateway", f"the gateway that runs leads to {seen.leads_to}, not to {meant}", f"{fix} sluice gateway"
        )
    if version != seen.here.version:
        words = f"version {version} runs, and this `sluice` is {seen.here.version}"
        return odd("gateway", words, "restart it: end it with Ctrl-C (or systemctl --user restart), and start it again")
    return well("gateway", f"version {version} runs")


def key(seen: Seen) -> Finding:
    door = seen.door
    if door is None or door.listens != "gateway" or door.access is None:
        return unknown("key", _no_key_asked(door))
    if door.access == 401:
        return broken(
            "key", door.access_words, "set GATEWAY_API_KEY to a key of `sluice keys create me --scope manage`"
        )
    if door.access == 403:
        return broken("key", door.access_words, "take a key with a larger scope: sluice keys create me --scope manage")
    return well("key", "the gateway lets this machine's requests in")


def _no_key_asked(door: Door | None) -> str:
    return (
        "no gateway is there to ask" if door is None or door.listens != "gateway" else door.access_words or "not asked"
    )
