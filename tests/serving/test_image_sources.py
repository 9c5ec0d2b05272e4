"""Where the images of Label Studio's tasks may come from, and that nothing else is read or asked."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from boxtune.serving.errors import RequestError
from boxtune.serving.image_sources import ImageSources

CONTENT, LIMIT = b"an image", 100
PERSONAL = "eyJh.eyJi.c2ln"  # of three parts, as personal access tokens are


@contextmanager
def label_studio(redirect_to: str = ""):
    """(the address of a server that sends CONTENT, the list of (method, path, Authorization) that it was asked)."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, body: bytes, **headers: str):
            asked.append((self.command, self.path, self.headers.get("Authorization")))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            if redirect_to:
                self.answer(302, b"", Location=redirect_to)
            elif "absent" in self.path:
                self.answer(404, b"")
            else:
                self.answer(200, CONTENT * (100 if "large" in self.path else 1))

        def do_POST(self):
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(200, json.dumps({"access": f"short for {sent['refresh']}"}).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def refusal(sources: ImageSources, address: str) -> RequestError:
    with pytest.raises(RequestError) as error:
        sources.read(address, LIMIT, 5)
    return error.value


@pytest.fixture
def root(tmp_path):
    """A folder with an image, beside a file that is nobody's business."""
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root" / "sub" / "a b.png").write_bytes(CONTENT)
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path / "root"


def test_images_in_the_task_itself_need_no_permission():
    address = f"data:image/png;base64,{base64.b64encode(CONTENT).decode()}"
    assert ImageSources().read(address, LIMIT, 5) == CONTENT
    assert "not base64" in refusal(ImageSources(), "data:image/png;base64,%%").message


@pytest.mark.parametrize(
    "address", ["sub/a b.png", "{root}/sub/a b.png", "/data/local-files/?d=sub/a%20b.png", "sub/../sub/a b.png"]
)
def test_files_below_the_root_are_read(root, address):
    assert ImageSources(root).read(address.format(root=root), LIMIT, 5) == CONTENT


@pytest.mark.parametrize(
    "address",
    [
        "../secret",
        "{root}/../secret",
        "/etc/passwd",
        "/data/local-files/?d=../secret",
        "/data/local-files/?d=/etc/passwd",
        "/data/local-files/?d=%2e%2e/secret",
        "file:///etc/passwd",
        "link",
        "folder/secret",
        "sub",
        "absent.png",
        "circle",
        "a\0b",
        "x" * 5000,
        "",
    ],
)
def test_nothing_else_is_read(root, address):
    (root / "link").symlink_to(root.parent / "secret")
    (root / "folder").symlink_to(root.parent)
    (root / "circle").symlink_to(root / "circle")
    error = refusal(ImageSources(root), address.format(root=root))
    assert error.status == 422 and "files below --image-root" in error.message


def test_without_options_neither_files_nor_addresses_are_read(root):
    for address in (str(root / "sub" / "a b.png"), "http://127.0.0.1:1/data/upload/a.png", "s3://bucket/a.png"):
        error = refusal(ImageSources(), address)
        assert error.status == 422 and "--image-root or --label-studio-url" in error.message


def test_large_files_are_refused(root):
    (root / "large").write_bytes(CONTENT * 100)
    assert refusal(ImageSources(root), "large").status == 413


def test_images_are_fetched_from_label_studio_with_its_access_token():
    with label_studio() as (url, asked):
        for address in ("/data/upload/1/a b.png", f"{url}/data/upload/1/a b.png", "/data/local-files/?d=x.png"):
            assert ImageSources(None, f"{url}/", "legacy").read(address, LIMIT, 5) == CONTENT
        ImageSources(None, url).read("/data/upload/1/c.png", LIMIT, 5)
    assert asked == [
        ("GET", "/data/upload/1/a%20b.png", "Token legacy"),
        ("GET", "/data/upload/1/a%20b.png", "Token legacy"),
        ("GET", "/data/local-files/?d=x.png", "Token legacy"),
        ("GET", "/data/upload/1/c.png", None),
    ]


def test_a_personal_access_token_is_exchanged_once_for_many_images():
    with label_studio() as (url, asked):
        for name in "ab":
            ImageSources(None, url, PERSONAL).read(f"/data/upload/1/{name}.png", LIMIT, 5)
    assert asked[0] == ("POST", "/api/token/refresh", None)
    assert {entry[2] for entry in asked if entry[0] == "GET"} == {f"Bearer short for {PERSONAL}"}
    assert sum(entry[0] == "POST" for entry in asked) <= 2  # two, if the minute ended in between


def test_a_label_studio_below_a_path_of_its_host_is_asked_there():
    with label_studio() as (url, asked):
        ImageSources(None, f"{url}/studio").read("/data/upload/1/a.png", LIMIT, 5)
    assert asked == [("GET", "/studio/data/upload/1/a.png", None)]


def test_no_other_host_is_asked():
    with label_studio() as (url, asked), label_studio() as (other, asked_of_other):
        port, other_port = url.rpartition(":")[2], other.rpartition(":")[2]
        addresses = (
            f"{other}/data/upload/1/a.png",
            f"//127.0.0.1:{other_port}/data/upload/1/a.png",
            f"http://127.0.0.1:{port}@127.0.0.1:{other_port}/data/upload/1/a.png",
            f"https://127.0.0.1:{port}/data/upload/1/a.png",
            f"http://localhost:{port}/data/upload/1/a.png",
            "http://[127.0.0.1/data/upload/1/a.png",
            "http://127.0.0.1:port/data/upload/1/a.png",
            f"ftp://127.0.0.1:{port}/a.png",
            "/api/users",
        )
        for address in addresses:
            assert refusal(ImageSources(None, url, "legacy"), address).status == 422
        assert asked == asked_of_other == []
        # Readers of addresses differ about the host of this one; the configured one is asked, whatever the address says.
        ImageSources(None, url).read(f"http://127.0.0.1:{other_port}\\@127.0.0.1:{port}/data/upload/1/a.png", LIMIT, 5)
        assert len(asked) == 1 and asked_of_other == []


def test_redirects_are_not_followed():
    with label_studio() as (other, asked), label_studio(redirect_to=f"{other}/a.png") as (url, _):
        error = refusal(ImageSources(None, url, "legacy"), "/data/upload/1/a.png")
    assert "302" in error.message and "not followed" in error.message and asked == []


def test_what_label_studio_does_not_send_is_refused_with_the_reason():
    with label_studio() as (url, _):
        sources = ImageSources(None, url)
        assert "answered 404" in refusal(sources, "/data/upload/absent.png").message
        assert refusal(sources, "/data/upload/large.png").status == 413
    assert "did not send" in refusal(sources, "/data/upload/a.png").message  # nobody listens any more
