"""Clients of three kinds of model, which count what they are answered.

From the command line, `python -m deploy.prometheus.load --minutes 5`, they come and go in waves.
"""

import argparse
import asyncio
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from serving.client import Answer, AsyncClient, InvalidRequest, Result, UnknownModel

DIGITS, TEXTS, PICTURES = "mnist", "kjv", "digits-diffusion"
MODELS = (DIGITS, TEXTS, PICTURES)

_PROMPTS = ("In the beginning", "And it came to pass", "The lion", "Thou shalt not", "And God said")
_EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "digits"

Request = Callable[[], Awaitable[None]]


@dataclass
class Counted:
    """What came back, by model."""

    requests: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Ticks that each request used, over its rows and links."""
    thoughts: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Ticks that each thought used."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Of all thoughts."""
    abstained: Counter[str] = field(default_factory=Counter)

    def take(self, model: str, result: Result) -> None:
        """Count a request that was answered."""
        self.requests[model].append(result.summary.ticks_used)
        self.abstained[model] += sum(result.summary.abstentions)
        for answer in (answer for links in result.links for answer in links):
            self.thoughts[model].append(answer.ticks_used)
            self.reasons[answer.stop_reason.name] += 1


class Callers:
    """Requests of each kind, the same ones for the same seed."""

    def __init__(self, client: AsyncClient, counted: Counted, seed: int = 0) -> None:
        self._client, self._counted = client, counted
        self._chance = random.Random(seed)
        paths = sorted(_EXAMPLES.glob("*.png"))
        self._images = np.stack([np.asarray(Image.open(path), np.float32)[None] / 255 for path in paths])

    async def digits(self, rows: int = 1) -> None:
        """Ask what some digits are; less certain answers than 0.7 abstain."""
        chosen = self._chance.choices(range(len(self._images)), k=rows)
        result = await self._client.answer(DIGITS, {"image": self._images[chosen]}, abstain_below=0.7)
        self._counted.take(DIGITS, result)

    async def text(self, links: int = 12) -> None:
        """Let a text be written on."""
        prompt, seed = self._chance.choice(_PROMPTS), self._chance.randrange(2**32)
        async with self._client.generate(TEXTS, prompt, max_links=links, seed=seed) as thinking:
            self._counted.take(TEXTS, await thinking.result())

    async def pictures(self, rows: int = 2, steps: int = 5) -> None:
        """Let pictures be drawn; a reverse step whose thought is less certain than 0.7 goes without it."""
        labels, seed = [self._chance.randrange(10) for _ in range(rows)], self._chance.randrange(2**32)
        async with self._client.sample(PICTURES, labels, steps=steps, seed=seed, abstain_below=0.7) as thinking:
            self._counted.take(PICTURES, await thinking.result())

    async def leave(self) -> None:
        """Begin a text, and leave after its first token."""
        async with self._client.generate(TEXTS, "And the earth", max_links=200) as thinking:
            async for event in thinking:
                if isinstance(event, Answer):
                    return

    async def ask_wrongly(self) -> None:
        """Ask what cannot be answered: half an image, and a model that nobody serves."""
        with suppress(InvalidRequest):
            await self._client.answer(DIGITS, {"image": self._images[:1, :, :14]})
        with suppress(UnknownModel):
            await self._client.answer("oracle", {"image": self._images[:1]})


async def load(address: str, counted: Counted, *, rounds: int) -> None:
    """Rounds of requests, eight at once; a round asks each kind of model."""
    async with AsyncClient(address) as client:
        callers = Callers(client, counted)
        requests: list[Request] = []
        for number in range(rounds):
            requests += [callers.digits] * 6 + [
                callers.text,
                callers.pictures,
                partial(callers.digits, rows=2 + number),
            ]
        await _run(requests, at_once=8)


async def trouble(address: str) -> None:
    """Callers that leave, and callers that ask wrongly."""
    async with AsyncClient(address) as client:
        callers = Callers(client, Counted())
        for _ in range(3):
            await callers.leave()
            await callers.ask_wrongly()


async def busy(address: str, *, minutes: float) -> Counted:
    """Waves of all kinds of callers, for so long."""
    counted, end = Counted(), time.monotonic() + 60 * minutes
    chance = random.Random(1)

    async def come_and_go(kinds: Sequence[Request], pause: float) -> None:
        while time.monotonic() < end:
            await chance.choice(kinds)()
            wave = 1 + math.sin(2 * math.pi * (end - time.monotonic()) / 150)  # busier and quieter, every 150 seconds
            await asyncio.sleep(chance.expovariate(1) * pause * (0.1 + wave))

    async with AsyncClient(address) as client:
        callers = Callers(client, counted)
        # How many callers, what they ask, how many seconds they rest on average when it is neither busy nor quiet.
        crowds: list[tuple[int, list[Request], float]] = [
            (8, [callers.digits], 0.4),
            (2, [partial(callers.digits, rows=8)], 4.0),
            (3, [callers.text, partial(callers.text, links=40)], 3.0),
            (3, [callers.pictures, partial(callers.pictures, rows=4, steps=20)], 5.0),
            (1, [callers.leave, callers.ask_wrongly], 8.0),
        ]
        await asyncio.gather(*(come_and_go(kinds, pause) for number, kinds, pause in crowds for _ in range(number)))
    return counted


async def _run(requests: Sequence[Request], *, at_once: int) -> None:
    left = iter(requests)

    async def work() -> None:
        for request in left:
            await request()

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())


def main() -> None:
    parser = argparse.ArgumentParser(description="Clients of three kinds of model, coming and going in waves.")
    parser.add_argument("--address", default="127.0.0.1:50051", help="of the server")
    parser.add_argument("--minutes", type=float, default=5)
    arguments = parser.parse_args()
    counted = asyncio.run(busy(arguments.address, minutes=arguments.minutes))
    for model, ticks in sorted(counted.requests.items()):
        print(f"{model}: {len(ticks)} requests, {sum(ticks)} ticks, {sum(ticks) / len(ticks):.2f} a request")


if __name__ == "__main__":
    main()
