"""Commands where torch is missing: a sentence that says what to install, and no traceback."""

import subprocess
import sys

import pytest

WITHOUT_TORCH = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import ctm_commands
sys.exit(ctm_commands.{function}())
"""


@pytest.mark.parametrize(
    ("function", "program", "extra"),
    [("train", "ctm-train", "train"), ("ingest", "ctm-ingest", "train"), ("export", "ctm-export", "export")],
)
def test_a_command_says_which_extra_it_lacks(function, program, extra):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH.replace("{function}", function)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == f"{program} needs torch, which is not installed: pip install 'ctm-serving[{extra}]'\n"
