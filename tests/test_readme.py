"""The README says what is so: its code runs, its commands exist, its tables are up to date."""

import asyncio
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from served import served

from export.manifest import write_manifest
from protos.ctm_bundle_pb2 import EnergyFrontier, Frontier, StopDefaults, TensorSpec
from serving.manifest import read

ROOT = Path(__file__).resolve().parent.parent
UPDATE_README = runpy.run_path(str(ROOT / "docs" / "update_readme.py"))

README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found, f"the README has no {language} blocks"
    return found


def commands() -> list[str]:
    """Every command line of the README's shell blocks, without comments."""
    lines = [line.partition(" #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line]


async def run(command: list[str]) -> str:
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=-1, stderr=-1)
    async with asyncio.timeout(120):
        stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    return stdout.decode()


async def test_the_python_examples_print_a_thought_a_text_and_what_was_drawn(model_store):
    thought, text, images = blocks("python")
    async with served(model_store) as server:
        printed = await run([sys.executable, "-c", thought.replace("127.0.0.1:50051", server.address)])
        # The second goes on from the first, with its imports.
        imports = thought[: thought.index("digit =")]
        written = await run([sys.executable, "-c", imports + text.replace("127.0.0.1:50051", server.address)])
        drawn = await run([sys.executable, "-c", imports + images.replace("127.0.0.1:50051", server.address)])
    assert re.search(r"tick 1: \d, certainty 0\.\d\d\n", printed)
    assert re.search(r"stopped after \d+ ticks: CERTAIN", printed)
    assert len(written.split()) > 5
    assert drawn.startswith("(4, 14, 14) ")


async def test_the_first_command_watches_the_example_digits(model_store):
    digits, text, sevens, _ = [line for line in commands() if "ctm-think" in line]
    assert sevens == ".venv-serve/bin/ctm-think --model digits-diffusion --class 7 --rows 4"
    assert text == '.venv-serve/bin/ctm-think --model kjv "In the beginning"'
    program, *patterns = digits.split()
    assert program == ".venv-serve/bin/ctm-think"
    images = [str(path) for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    assert len(images) >= 12
    async with served(model_store) as server:
        printed = await run([str(BIN / "ctm-think"), "--address", server.address, *images])
        drawn = await run([str(BIN / "ctm-think"), "--address", server.address, *sevens.split()[1:]])
    assert "seed" in drawn
    for image in images:
        assert Path(image).stem in printed


async def test_the_data_set_command_scores_the_example_digits(tmp_path):
    scores = tmp_path / "scores.jsonl"
    command = next(line for line in commands() if "--input" in line)
    program, *words = command.replace("scores.jsonl", str(scores)).split()
    printed = await run([str(BIN / program), *words])
    assert "20 answered" in printed
    assert len(scores.read_text().splitlines()) == 20


async def test_the_examples_run(model_store, tmp_path):
    screen = tmp_path / "think.svg"
    async with served(model_store) as server:
        await run([sys.executable, "examples/record_screen.py", "--address", server.address, "--out", str(screen)])
        code = (ROOT / "examples" / "think.py").read_text().replace("127.0.0.1:50051", server.address)
        thought = await run([sys.executable, "-c", f"__file__ = 'examples/think.py'\n{code}"])
    assert "4-hard-like-9.png" in screen.read_text()
    assert re.search(r"7-easy.png: 7 after \d+ ticks", thought)


@pytest.mark.parametrize(
    "command", [line for line in commands() if line.startswith("ctm-") or line.startswith("make ")]
)
def test_commands_exist_and_explain_themselves(command):
    program, *arguments = command.split()
    if program == "make":
        subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
        return
    done = subprocess.run([BIN / program, "--help"], capture_output=True, text=True, timeout=120, check=True)
    for option in (argument for argument in arguments if argument.startswith("--")):
        assert option in done.stdout, f"{program} --help does not know {option}"


def test_train_export_serve_run_as_written(tmp_path):
    """The three commands, on the digits that need no download, with the number of updates cut short."""
    train, export, _ = [line.split() for line in blocks("sh")[2].splitlines()]
    assert (train[:2], export[:2]) == (["ctm-train", "configs/mnist.toml"], ["ctm-export", "runs/mnist/best"])
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    store = tmp_path / "store"
    for command in (
        [BIN / "ctm-train", ROOT / "configs" / "digits.toml", "--updates", "60", "--output-dir", tmp_path / "runs"],
        [BIN / "ctm-export", tmp_path / "runs" / "digits" / "best", "--store", store, "--name", "digits"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (store / "digits" / "1" / "README.md").exists()


def test_the_tables_are_up_to_date():
    done = subprocess.run(
        [sys.executable, "docs/update_readme.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        pytest.param({"certainty_threshold": 0.75}, "80.00% at 0.75 | 2.50 ± 0.50", id="certainty"),
        pytest.param({"energy_threshold": 0.3}, "70.00% at energy 0.3 | 2.00 ± 0.25", id="energy alone"),
        pytest.param(
            {"certainty_threshold": 0.75, "energy_threshold": 0.3}, "70.00% at 0.75 or energy 0.3 | 2.00", id="both"
        ),
    ],
)
def test_a_row_tells_of_the_rules_that_ship(model_store, tmp_path, stop, said):
    manifest = read(model_store / "mnist" / "1" / "manifest.json")
    manifest.stop.CopyFrom(StopDefaults(**stop))
    manifest.quality.frontier.extend(
        [Frontier(certainty_threshold=0.75, accuracy=0.8, mean_ticks=2.5, ticks_deviation=0.5)]
    )
    del manifest.quality.frontier[:-1]
    if "energy_threshold" in stop:
        manifest.outputs.append(TensorSpec(name="energy", datatype="FP32", role=TensorSpec.ENERGY))
        shipped = EnergyFrontier(accuracy=0.7, mean_ticks=2, ticks_deviation=0.25)
        manifest.quality.energy.shipped.CopyFrom(shipped)
    for version in ("10", "9"):
        (tmp_path / "mnist" / version).mkdir(parents=True)
        write_manifest(manifest, tmp_path / "mnist" / version)
    *_, ninth, tenth = UPDATE_README["quality_table"](tmp_path).splitlines()
    assert said in ninth
    assert "/mnist/9/README.md" in ninth
    assert "/mnist/10/README.md" in tenth


def test_the_newest_results_are_shown_whatever_the_hardware():
    results = ["throughput_amd_202701.json", "throughput_intel_202611.json"]
    assert UPDATE_README["newest"](map(Path, results)).name == results[0]


@pytest.mark.parametrize("link", sorted({link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link}))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
