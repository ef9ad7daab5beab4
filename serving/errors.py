"""The three kinds of bad news as exceptions: what a caller got wrong, what we cannot do now, what failed inside.

Each carries a sentence for the caller: what was met, and what is expected. `status.py` turns the class into a gRPC
status by one table.
"""

from typing import Literal, get_args

Refusal = Literal["misnamed", "unreadable", "damaged", "invalid", "not_runnable"]
"""What is wrong with a bundle: its folder's name, reading it at all, its files (not those that its manifest describes),
what its manifest says, or its graphs."""
REFUSALS: tuple[Refusal, ...] = get_args(Refusal)


class ServingError(Exception):
    """Bad news for one request; every other request goes on."""


class InvalidRequest(ServingError):
    """The request contradicts itself, the model or the server's limits; sending it again will not help."""


class UnknownModel(ServingError):
    """No such model or version is served here."""


class QueueFull(ServingError):
    """Too many thoughts wait; try again later."""

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(ServingError):
    """The server drains, or the model is not ready."""


class DeadlineExceeded(ServingError):
    """The deadline came before any row of the request ticked."""


class BackendFailed(ServingError):
    """The model failed while it held this request's rows."""


class InstallationLacks(ValueError):
    """A package or a provider that the configuration asks for is not installed here, so that no bundle can serve."""


class BundleRefused(Exception):
    """A bundle must not be served; the sentence names the bundle and what is wrong with it."""

    def __init__(self, message: str, *, reason: Refusal = "invalid") -> None:
        super().__init__(message)
        self.reason: Refusal = reason
