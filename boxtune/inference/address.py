"""The address of a server, checked before anything else is done."""

from urllib.parse import urlsplit


def address_problem(url: str) -> str | None:
    """Why `url` cannot be a server's address; None if it can."""
    if not url.startswith(("http://", "https://")):
        return f"must start with http:// or https://, got {url!r}"
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        has_host = False
    return None if has_host else f"{url!r} is not a valid address; use one like http://localhost:8000/v1"
