"""A bundle in a Hugging Face repository: its files in the local cache, and in a sentence why they are not there.

The environment says where to look: HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE, HF_HUB_OFFLINE.
"""

import glob
import re
from collections.abc import Iterable
from pathlib import Path

from serving.errors import BundleRefused, InstallationLacks
from serving.mismatch import quote

REPOSITORY = re.compile(r"(?P<id>[\w-][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
"""ORG/REPO, or ORG/REPO@REVISION: a branch, a tag or a commit."""


def download(repository: str, revision: str | None, names: Iterable[str]) -> tuple[Path, str]:
    """Have some files of a repository in the cache; those that it lacks are left out.

    Returns:
        Their folder, and the commit that they are of.

    Raises:
        BundleRefused: there is no such repository or revision, or it cannot be had from here.
        InstallationLacks: huggingface_hub is not installed.
    """
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError as error:
        missing = f"{repository} is to be fetched: {error.name} is not installed (the extra hub brings it)"
        raise InstallationLacks(missing) from error
    disable_progress_bars()  # between lines of a log they are noise
    place = f"at {constants.ENDPOINT}"
    try:
        patterns = [glob.escape(name) for name in names]  # a manifest may call a file `*`, and means that
        folder = huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=patterns)
    except errors.HFValidationError as error:
        raise _refused(repository, f"{quote(str(error), 200)}", "ORG/REPO") from error
    except errors.GatedRepoError as error:
        raise _refused(repository, f"a gated repository {place}", "one that HF_TOKEN may read") from error
    except errors.RepositoryNotFoundError as error:
        raise _refused(
            repository, f"no such repository {place}", "one that is public, or that HF_TOKEN may read"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise _refused(repository, f"no revision {revision!r} {place}", "a branch, a tag or a commit of it") from error
    except errors.LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"no answer {place}"
        raise _refused(repository, why, "that, or all of it in the cache") from error
    except Exception as error:  # whatever else an HTTP library throws
        raise _refused(repository, f"{type(error).__name__} {place}: {quote(str(error), 200)}", "its files") from error
    return Path(folder), Path(folder).name


def _refused(repository: str, met: str, expected: str) -> BundleRefused:
    return BundleRefused(f"repository {repository}: got {met}, expected {expected}", reason="unreadable")
