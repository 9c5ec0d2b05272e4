"""notebooks/app.py, which a Space runs, answers like serve.py."""

import runpy
from pathlib import Path

from starlette.testclient import TestClient

from tests.helpers.http_api import file_of, shapes, upload, wait_until_ready
from tests.helpers.records import ROOT
from tests.helpers.whole_model import write_whole_model

APP = ROOT / "notebooks" / "app.py"


def test_a_space_serves_the_page_and_the_api(squares, tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL", str(write_whole_model(tmp_path / "final", squares)))
    monkeypatch.delenv("BOXTUNE_API_KEY", raising=False)
    with TestClient(runpy.run_path(str(APP))["app"]) as client:
        wait_until_ready(client)
        assert "<title>" in client.get("/").text
        assert client.get("/info").json()["classes"] == ["red square", "blue square"]
        assert client.post("/detect", files=upload(file_of(shapes(1)[0]))).status_code == 200


def test_it_stays_short():
    assert len(Path(APP).read_text().splitlines()) < 30
