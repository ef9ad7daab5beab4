"""Ask for thoughts from Python: `Client`, `AsyncClient`, typed events, typed errors; needs no torch.

with Client() as client, client.think("mnist", {"image": images}, top_k=3) as thinking:
    for event in thinking:
        ...

with Client() as client:
    images = client.sample("digits-diffusion", [7, 7, 7, 7], seed=1).result().images

with Client() as client, client.generate("kjv", "In the beginning", max_links=40) as generating:
    for event in generating:
        ...
"""

from serving.client.aio import AsyncClient
from serving.client.async_thinking import AsyncThinking
from serving.client.errors import (
    BackendFailed,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    QueueFull,
    ThinkError,
    Unavailable,
    UnknownModel,
)
from serving.client.events import Answer, ClassScore, Event, ModelInfo, Result, Summary, Tick
from serving.client.message import AnswerOptions, GenerateOptions, SampleOptions, ThinkOptions
from serving.client.session import Session
from serving.client.sync import Client, Thinking
from serving.request import AnswerRule, ChainEnd, StopReason

__all__ = [
    "Answer",
    "AnswerOptions",
    "AnswerRule",
    "AsyncClient",
    "AsyncThinking",
    "BackendFailed",
    "Cancelled",
    "ChainEnd",
    "ClassScore",
    "Client",
    "DeadlineExceeded",
    "Event",
    "GenerateOptions",
    "InvalidRequest",
    "ModelInfo",
    "QueueFull",
    "Result",
    "SampleOptions",
    "Session",
    "StopReason",
    "Summary",
    "ThinkError",
    "ThinkOptions",
    "Thinking",
    "Tick",
    "Unavailable",
    "UnknownModel",
]
