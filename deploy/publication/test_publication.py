"""Twenty versions published while clients of a real server think: nothing is refused, nothing fails, memory returns."""

import asyncio
from collections import Counter
from pathlib import Path

import aiohttp
import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from published import publish_copy
from served import Served, served

from protos import ctm_serving_pb2 as pb
from protos import ctm_serving_pb2_grpc as pb_grpc
from serving.tensors import tensor_message

DIGITS = Path(__file__).resolve().parents[2] / "model_store" / "mnist" / "1"
PUBLICATIONS = 20
BAD = 10
CLIENTS = 4
VERSION_MEGABYTES = 11
"""What one more version of these slots takes: 127 MB with one, 243 MB with eleven."""
IMAGES = tensor_message("image", np.random.default_rng(0).random((3, 1, 28, 28), np.float32))


class Clients:
    """Callers that ask for the newest version, one request after another, and notice whatever goes wrong."""

    def __init__(self, address: str) -> None:
        self.versions: Counter[int] = Counter()
        self.answers: set[tuple[bytes, ...]] = set()
        self._address = address
        self._tasks: list[asyncio.Task[None]] = []
        self._enough = False

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._call(every)) for every in (0, 1) * (CLIENTS // 2)]

    async def _call(self, every: int) -> None:
        request = pb.ThinkRequest(model="digits", inputs=[IMAGES], stream=pb.StreamPolicy(every=every))
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub = pb_grpc.ThinkerStub(channel)
            while not self._enough:
                events = [event async for event in stub.Think(request)]
                rows = sorted((event.answer for event in events if event.HasField("answer")), key=lambda row: row.row)
                self.answers.add(tuple(row.prediction.data for row in rows))
                self.versions[events[-1].summary.version] += 1

    async def until_served(self, version: int, times: int = 2 * CLIENTS) -> None:
        """Wait until the version has answered so often; a caller's bad news ends the wait."""
        async with asyncio.timeout(120):
            while self.versions[version] < times:
                for task in self._tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        self._enough = True
        await asyncio.gather(*self._tasks)


def status(server: Served, field: str) -> int:
    """A field of the process's status: VmRSS in kB, Threads."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


async def metrics(server: Served) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples by name: labels and value."""
    async with aiohttp.ClientSession() as session, session.get(f"{server.http}/metrics") as page:
        families = list(text_string_to_metric_families(await page.text()))
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for sample in (sample for family in families for sample in family.samples):
        found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


async def refused(stub: "pb_grpc.ThinkerAsyncStub", version: int) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        [event async for event in stub.Think(pb.ThinkRequest(model="digits", version=version, inputs=[IMAGES]))]
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
    return error.value.details() or ""


@pytest.mark.timeout(900)
async def test_twenty_publications_under_load_refuse_nothing_fail_nothing_and_leave_nothing(tmp_path):
    publish_copy(DIGITS, tmp_path, "digits", 1)
    settings = ("--store-poll-seconds", "0.1", "--engine.num-slots", "256")
    async with served(tmp_path, *settings) as server, grpc.aio.insecure_channel(server.address) as channel:
        stub, clients = pb_grpc.ThinkerStub(channel), Clients(server.address)
        clients.start()
        await clients.until_served(1)
        memory, threads = status(server, "VmRSS"), status(server, "Threads")
        version = 1
        for number in range(PUBLICATIONS):
            old, version = version, version + 1
            if number == BAD:
                publish_copy(DIGITS, tmp_path, "digits", version, format_version=99)
                await until_refused(server)
                assert await refused(stub, version) == f"no version {version} of model 'digits'; served are {old}"
                bad, version = version, version + 1
            publish_copy(DIGITS, tmp_path, "digits", version)
            await clients.until_served(version)
            assert await refused(stub, old) == f"no version {old} of model 'digits'; served are {version}"
        await clients.stop()
        await until_alone(server, version)

        assert len(clients.answers) == 1, "every version is the same model, and answers to the bit alike"
        assert set(clients.versions) == set(range(1, version + 1)) - {bad}
        # What twenty versions would take, were they kept, is four times this; what the allocator keeps for the next
        # one (it loads while the old one still serves) is half of it.
        grown = (status(server, "VmRSS") - memory) / 1024
        assert grown < PUBLICATIONS / 4 * VERSION_MEGABYTES, f"{grown:.0f} MB more after {PUBLICATIONS} publications"
        # Each version has an engine thread; a few more are the event loop's own helpers, which it keeps.
        assert status(server, "Threads") - threads < PUBLICATIONS / 2
        found = await metrics(server)
        rejections = {labels["reason"]: value for labels, value in found["ctm_rejections_total"] if value}
        assert rejections == {"unknown_model": PUBLICATIONS + 1}
        assert {labels["reason"]: value for labels, value in found["ctm_bundles_refused_total"] if value} == {
            "invalid": 1
        }
        assert await server.stop() == 0


async def until_alone(server: Served, version: int) -> None:
    """Wait until the others have left, of which metrics are the last: a version leaves after it is found no more."""
    async with asyncio.timeout(120):
        while True:
            samples = [sample for samples in (await metrics(server)).values() for sample in samples]
            versions = {labels["version"] for labels, _ in samples if "model" in labels}
            if versions - {"0"} == {str(version)}:  # 0 stands for requests that name no version there is
                return
            await asyncio.sleep(0.05)


async def until_refused(server: Served) -> None:
    async with asyncio.timeout(120):
        while True:
            if any(value for _, value in (await metrics(server))["ctm_bundles_refused_total"]):
                return
            await asyncio.sleep(0.05)
