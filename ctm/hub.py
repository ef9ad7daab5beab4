"""Files of a Hugging Face repository: a local copy, and in a sentence why there is none.

The environment says where to look: HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE, HF_HUB_OFFLINE.
"""

import re
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = re.compile(r"(?P<id>[^/@.][^/@]*/[^/@]+)(?:@(?P<revision>.+))?", re.DOTALL)
"""ORG/REPO, or ORG/REPO@REVISION: a branch, a tag or a commit. Whether the first two may be called so, the hub says."""


class HubError(FileNotFoundError):
    """A repository, or a file that it should hold, cannot be had from here."""


def is_repository(source: str) -> bool:
    """Whether it can be meant as ORG/REPO[@REVISION]; so can a folder in a folder, which may be looked for first."""
    return REPOSITORY.fullmatch(source) is not None


def download(source: str, names: Sequence[str], optional: Sequence[str] = ()) -> Path:
    """The folder of a repository's local copy, with these files of it.

    Args:
        source: ORG/REPO or ORG/REPO@REVISION.
        optional: names of files that it may lack.

    Raises:
        HubError: there is no such repository, revision or file, or it cannot be had from here.
    """
    match = REPOSITORY.fullmatch(source)
    assert match is not None, f"{source} is no repository"
    import huggingface_hub  # only needed here; a file on disk loads without it
    from huggingface_hub import constants, errors

    place = f"at {constants.ENDPOINT}"
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                match["id"], revision=match["revision"], allow_patterns=[*names, *optional]
            )
        )
    except errors.HFValidationError as error:
        raise HubError(f"{source!r} is no repository id (owner/name): {error}") from error
    except errors.GatedRepoError as error:
        raise HubError(f"{source} is gated {place}; HF_TOKEN must be of somebody who may read it") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(f"{source} is no file or folder here, and no repository {place} that may be read") from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{match['id']} {place} has no revision {match['revision']!r}") from error
    except errors.LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"there is no answer {place}"
        raise HubError(f"{source} is no file or folder here and not whole in the cache, and {why}") from error
    except Exception as error:  # whatever else an HTTP library throws
        reason = " ".join(str(error).split())
        raise HubError(f"{source} could not be downloaded {place}: {type(error).__name__}: {reason}") from error
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise HubError(f"{source} {place} has no {' and no '.join(missing)}")
    return folder
