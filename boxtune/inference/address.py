"""The addresses of servers, checked before anything else is done."""

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


def server_addresses(urls: str) -> list[str]:
    """The addresses of a comma-separated list, without a slash at the end."""
    return [url.strip().rstrip("/") for url in urls.split(",")]


def servers_problem(urls: str) -> str | None:
    """Why `urls` cannot be the addresses of servers, comma-separated; None if they can."""
    addresses = server_addresses(urls)
    if len(set(addresses)) < len(addresses):
        return f"names an address twice: {urls!r}"
    return next((problem for url in addresses if (problem := address_problem(url))), None)
