"""The Hugging Face Hub: look up models, download those that were trained here, upload a finished model."""

from pathlib import Path

from huggingface_hub import HfApi, get_token, hf_hub_download, list_repo_files, model_info, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # the base class of the HTTP client that the Hub library uses
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from boxtune.answers.grounding import FILE_NAME
from boxtune.common.errors import UserError

LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN."
LOOKUP_TIMEOUT = 10  # seconds


def require_hub_model(model_id: str, revision: str | None = None) -> None:
    """Raises UserError if a Hub model is neither in the local cache nor available on the Hub.

    The Hub is asked only if the cache lacks the model, and only once: a download would retry for minutes.
    """
    if _is_cached(model_id, revision):
        return
    try:
        model_info(model_id, revision=revision, timeout=LOOKUP_TIMEOUT)
    except GatedRepoError:
        raise UserError(
            f"{model_id} is gated. Accept its terms on its hub page, then set HF_TOKEN or run `hf auth login`."
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise UserError(
            f"the Hub has no model {model_id} (revision {revision or 'main'}), or the model is private. Check the spelling, "
            "or set HF_TOKEN to a token that can read it."
        ) from None
    except (HfHubHTTPError, HTTPError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{model_id} is not in the local cache, and the Hugging Face Hub cannot be reached ({reason[:160]}). Connect to the "
            "network, or download the model once with `hf download`. The embedded model (overlay tiny) needs no Hub."
        ) from None


def _is_cached(model_id: str, revision: str | None) -> bool:
    """Whether the local cache holds the model or adapter. Raises UserError if `model_id` is not a valid Hub id."""
    for name in ("config.json", "adapter_config.json"):
        try:
            hf_hub_download(model_id, name, revision=revision, local_files_only=True)
            return True
        except HFValidationError as error:
            raise UserError(f"{model_id!r} is neither a folder nor a Hub id: {error}") from None
        except LocalEntryNotFoundError:
            continue
    return False


def commit_of(model_id: str, revision: str | None = None) -> str | None:
    """The commit hash of a cached Hub model; None for a local folder.

    A checkpoint stores this commit instead of "main", so that evaluating and merging later use the same base.
    """
    if Path(model_id).is_dir():
        return None
    return Path(hf_hub_download(model_id, "config.json", revision=revision, local_files_only=True)).parent.name


def download_if_trained_here(repo_id: str) -> Path | None:
    """The local copy of a hub repository that boxtune trained (an adapter or a merged model); None for other models."""
    require_hub_model(repo_id)
    try:
        names = set(list_repo_files(repo_id))
    except (HTTPError, OSError):
        # The Hub cannot be reached or is turned off. require_hub_model passed, so the model is in the cache.
        names = {path.name for path in Path(snapshot_download(repo_id, local_files_only=True)).iterdir()}
    is_trained_here = bool(names & {"adapter_config.json", FILE_NAME})
    return Path(snapshot_download(repo_id)) if is_trained_here else None


def is_logged_in(token: str | None = None) -> bool:
    """Whether there is a token for the Hub: the given one, HF_TOKEN, or the one of `hf auth login`."""
    return bool(token or get_token())


def push_folder(folder: Path, repo: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Upload a model folder to the Hub and return the URL of the repository.

    repo: NAME or OWNER/NAME; created if it does not exist. Raises UserError if nobody is logged in, the Hub refuses the upload
    or the Hub cannot be reached. The local folder is never changed.
    """
    if not is_logged_in(token):
        raise UserError(f"{folder} cannot be pushed: you are not logged in to the Hub. {LOG_IN}")
    api = HfApi(token=token)
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message=f"{folder.name}, by boxtune")
    except (HTTPError, OSError, HFValidationError) as error:
        raise UserError(
            f"{folder} could not be pushed to {repo}: {error}. The local folder is unchanged; push it again."
        ) from None
    return str(url)
