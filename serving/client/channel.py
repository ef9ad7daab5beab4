"""How a client's connection is set up."""

DEFAULT_ADDRESS = "127.0.0.1:50051"

OPTIONS = (("grpc.max_receive_message_length", -1),)
"""Predictions and details of many rows outgrow gRPC's 4 MB; the server bounds what it sends."""

CALL_SECONDS = 10.0
"""For the calls that answer at once."""

POLL_SECONDS = 0.1
"""Between two looks at what is waited for."""


def not_ready(model: str, address: str, within: float, met: str) -> str:
    """The sentence for a server that was waited for in vain."""
    return f"{model or 'the server'} at {address} is not ready after {within:g} s: {met}"
