"""Put a finished model, with its card, on the hub."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError, HTTPError

from boxtune.common.errors import UserError

LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN."


def is_logged_in(token: str | None = None) -> bool:
    return bool(token or get_token())


def push_folder(folder: Path, repo: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Upload a model's folder to `repo`, NAME or OWNER/NAME, which is made where absent; returns its address.

    Raises UserError where nobody is logged in, or the hub refuses or cannot be reached; the folder stays as it is.
    """
    if not is_logged_in(token):
        raise UserError(f"{folder} cannot be pushed: you are not logged in to the hub. {LOG_IN}")
    api = HfApi(token=token)
    try:
        made = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=f"{folder.name}, by boxtune")
    except (HTTPError, OSError, HFValidationError) as error:
        raise UserError(f"{folder} could not be pushed to {repo}: {error}. It is whole; push it again.") from None
    return str(made)
