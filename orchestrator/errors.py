"""The errors of the orchestrator: one tree, drawn before the code.

    OrchestratorError            500  never raised itself
      BadRequest                 400  the request is well-formed JSON but asks for something that does not exist here
      Unauthorized               401  the key that a path asks for was not given, or another one
      NotFound                   404  no such service, recipe, route
      Conflict                   409  the request contradicts what is running
      Gone                       410  it was there, and will not be again
      TooLarge                   413  the request's body is larger than what is read here
      Invalid                    422  a value is wrong; the text names it, its bounds and the next step
      NotReady                   503  it will work later: Retry-After says when to ask again
      SchedulerError             502  the scheduler refused or broke, in its own words
        SchedulerUnknown         502  the scheduler did not answer: nothing may be concluded from this
      EngineError                502  the engine of a service refused or broke
        ReplicaFailed            502  the fault is that replica's, not the request's: another one may be asked
      StateFull                  507  the state folder, or the database's disk, has no space left; what runs goes on
      RentalError                502  vast.ai refused or broke, in its own words
        RentalUnknown            504  vast.ai did not answer: nothing may be concluded from this
      NotStarted                 504  a rented machine was not healthy in time
      NotStopped                 504  a rented machine was not stopped in time
      NotConfigured              500  what the request is for has not been set up here
      SettingsError              500  (in settings) a setting or a recipe of this orchestrator is wrong

Each class is one HTTP status. Modules raise them, foreign errors are translated where they enter (`raise … from exc`),
and `orchestrator.app` is the one place that renders them.
"""

import errno
from pathlib import Path


class OrchestratorError(Exception):
    """Something a user can be told: `str(error)` is the sentence for them."""

    status = 500

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after  # seconds, sent as Retry-After


class BadRequest(OrchestratorError):
    """The request cannot be served as it stands."""

    status = 400


class Unauthorized(OrchestratorError):
    """The key that a path asks for itself was not given, or it is another one."""

    status = 401


class NotFound(OrchestratorError):
    """What the request names does not exist."""

    status = 404


class Conflict(OrchestratorError):
    """The request contradicts the present state."""

    status = 409


class Gone(OrchestratorError):
    """What was kept for a while is kept no longer."""

    status = 410


class TooLarge(OrchestratorError):
    """The request's body is larger than what is read here."""

    status = 413


class Invalid(OrchestratorError):
    """A value is out of its bounds or of the wrong kind."""

    status = 422


class NotReady(OrchestratorError):
    """Not now; later. Always carries Retry-After."""

    status = 503

    def __init__(self, message: str, *, retry_after: int = 5) -> None:
        super().__init__(message, retry_after=retry_after)


class SchedulerError(OrchestratorError):
    """The scheduler refused, in its own words."""

    status = 502


class SchedulerUnknown(SchedulerError):
    """The scheduler did not answer in time or could not be reached. The job may or may not exist."""


class EngineError(OrchestratorError):
    """An engine refused or broke. `upstream_status` is its own HTTP status where it gave one."""

    status = 502

    def __init__(self, message: str, *, upstream_status: int | None = None, retry_after: int | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        if upstream_status is not None and 400 <= upstream_status < 500:
            self.status = upstream_status


class ReplicaFailed(EngineError):
    """A replica refused the connection, broke off, hung or answered 5xx before the first byte of an answer."""


class RentalError(OrchestratorError):
    """vast.ai refused or broke, in its own words."""

    status = 502


class RentalUnknown(RentalError):
    """vast.ai did not answer in time. What it was asked for may have been done, or not."""

    status = 504


class NotStarted(OrchestratorError):
    """A rented machine was not healthy within the time for that."""

    status = 504


class NotStopped(OrchestratorError):
    """A rented machine was to be stopped, and vast.ai has not said within the time for that that it is."""

    status = 504


class NotConfigured(OrchestratorError):
    """What the request is for has not been set up here; the text names the settings."""

    status = 500


class StateFull(OrchestratorError):
    """The state folder has no space left, so nothing can be recorded, and what cannot be recorded is not done."""

    status = 507

    def __init__(self, what: str, place: str = "the state folder") -> None:
        super().__init__(
            f"{place} is full ({what}). Free space there or raise your quota (`df` and `quota` tell), and ask "
            "again; services that run go on"
        )


def not_written(path: Path, error: OSError) -> OrchestratorError:
    """What a user is told when a file of ours could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StateFull(f"{path}: {error.strerror}")
    return NotReady(f"cannot write {path}: {error.strerror or error}; try again, or ask the site about its file system")
