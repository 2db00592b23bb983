"""Checks of the way to the login node: SSH configuration, name, port, host key, login, forwarding. Pure."""

from gateway.doctor.finding import Finding, broken, odd, unknown, well
from gateway.doctor.seen import Seen
from gateway.link import LinkState, Rung

_NO_CLUSTER = "the orchestrator of this machine is meant: there is no SSH between"
_REFUSED = (LinkState.AUTH_REQUIRED, LinkState.HOST_KEY_UNKNOWN, LinkState.HOST_KEY_CHANGED)
_SHORTEST = 300  # characters of an error that are shown


def configuration(seen: Seen) -> Finding:
    way = seen.way
    if seen.alias is None:
        return unknown("ssh config", _NO_CLUSTER)
    if way is None:
        return unknown("ssh config", "not looked at without settings")
    if way.trouble:
        return broken("ssh config", way.trouble, f"correct it until `{seen.ssh}` works")
    over = " by a ProxyCommand" if way.by_command else f" over {way.first}" if way.first != way.host else ""
    return well("ssh config", f"{seen.alias} is {way.user}@{way.host} port {way.port}{over}")


def name(seen: Seen) -> Finding | None:
    way = seen.way
    if seen.alias is None or way is None or way.trouble:
        return None
    if way.by_command:
        return unknown("name", "a ProxyCommand looks it up")
    if not way.addresses:
        words = f"no address is known for {way.first}: {way.no_address}"
        if way.first == seen.alias:
            fix = f"write a `Host {seen.alias}` with its HostName into ~/.ssh/config, or correct the name"
        else:
            fix = f"are you online, and in the site's VPN where it wants one? Else correct HostName for {seen.alias}"
        return _if_down(seen, "name", words, fix)
    return well("name", f"{way.first} is {', '.join(way.addresses[:4])}")


def network(seen: Seen) -> Finding | None:
    way = seen.way
    if seen.alias is None or way is None or way.trouble:
        return None
    if way.by_command:
        return unknown("network", "a ProxyCommand makes the connection")
    if not way.addresses:
        return unknown("network", "there is no address to try")
    if way.milliseconds is None:
        fix = f"try `{seen.ssh}`; are you online, in the site's VPN where it wants one, and is the Port right?"
        return _if_down(seen, "network", f"port {way.first_port} of {way.first} takes no connection: {way.closed}", fix)
    return well("network", f"port {way.first_port} of {way.first} answers in {way.milliseconds:.0f} ms")


def _if_down(seen: Seen, check: str, words: str, fix: str) -> Finding:
    """A connection that is up speaks for itself, such as one of ControlMaster from before."""
    if seen.link[0] == LinkState.UP or seen.tunnel.get("state") == LinkState.UP:
        return odd(check, f"{words}; the connection that is up goes on", fix)
    return broken(check, words, fix)


def host_key(seen: Seen) -> Finding | None:
    if seen.alias is None:
        return None
    state, error, _ = seen.link
    match state:
        case LinkState.HOST_KEY_UNKNOWN:
            fix = f"run `{seen.ssh}` once, compare the fingerprint with the one that your site publishes, and accept it"
            return broken("host key", "the login node is not in your known_hosts", fix)
        case LinkState.HOST_KEY_CHANGED:
            fix = f"ask the site; only if they say that the key is new, correct that file, then run `{seen.ssh}`"
            return broken("host key", _first(error), fix)
        case LinkState.UP | LinkState.AUTH_REQUIRED:
            return well("host key", "it is the one in your known_hosts")
    return unknown("host key", "nobody has come as far as that")


def login(seen: Seen) -> Finding | None:
    if seen.alias is None:
        return None
    own, state = seen.login, seen.link[0]
    if own is not None and own.state is LinkState.AUTH_REQUIRED:
        return _refused(seen, own.by_question)
    if own is not None and own.state is LinkState.UP:
        return well("login", "it works without a question" if not seen.asked_login else "it works")
    if state == LinkState.AUTH_REQUIRED:
        return broken("login", f"the gateway's login was refused: {_first(seen.link[1])}", _login_fix(seen))
    if seen.tunnel.get("state") == LinkState.UP:
        return well("login", "the gateway is logged in")
    if own is None or own.not_tried:
        return unknown("login", own.not_tried if own else "not tried", _login_fix(seen) if own else "")
    if state in _REFUSED:
        return unknown("login", "not tried with a host that is not the known one")
    return broken("login", _first(own.error) or "it did not come about", f"see what `ssh -v {seen.alias}` says")


def _refused(seen: Seen, by_question: bool) -> Finding:
    own = seen.login
    words = _first(own.error if own else "")
    if by_question and not seen.asked_login:
        words = f"without a question it was refused; the site asks for something, or your key is not taken: {words}"
        if seen.tunnel.get("state") == LinkState.UP:
            return unknown(
                "login", f"the gateway is logged in, but a second login is not made: {words}", _login_fix(seen)
            )
        return unknown("login", words, _login_fix(seen))
    return broken("login", words, _login_fix(seen))


def _login_fix(seen: Seen) -> str:
    return (
        f"make `{seen.ssh}` work: `ssh-add` your key, get a new certificate; where the site asks for what only you can "
        f"answer: sluice doctor {seen.alias} --login"
    )


def forwarding(seen: Seen) -> Finding | None:
    if seen.alias is None:
        return None
    state, _, via = seen.link
    via = via or seen.tunnel.get("via")
    if via == Rung.UNIX_SOCKET:
        return well("forwarding", "SSH forwards to the orchestrator's socket")
    if via == Rung.BRIDGE:
        return _bridged(seen)
    if state == LinkState.UP:
        return unknown("forwarding", "it shows when an orchestrator answers there")
    return unknown("forwarding", "there is no connection to try it on")


def _bridged(seen: Seen) -> Finding:
    words = "a bridge, a command on the login node, carries everything"
    job = seen.survey.job if seen.survey else None
    if job is not None and job.state != "RUNNING":
        return unknown("forwarding", "it shows when an orchestrator answers there")
    if job is not None:
        return well("forwarding", f"{words} to Slurm job {job.id}, in which the orchestrator is")
    fix = "nothing has to be done; AllowStreamLocalForwarding in sshd would save a process"
    if seen.survey is None:
        either = "the site's sshd forbids forwarding, or the orchestrator is a Slurm job of its own"
        return odd("forwarding", f"{words}: {either}", fix)
    return odd("forwarding", f"the site's sshd forbids forwarding; {words} instead", fix)


def _first(error: str) -> str:
    """An error without the gateway's advice behind it, which is for another command."""
    text = error.partition(". Make `ssh")[0].partition(". Does `ssh")[0].partition(". Ask the site")[0].strip()
    return text if len(text) <= _SHORTEST else text[: _SHORTEST - 1] + "…"
