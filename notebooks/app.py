"""A Space of the Hugging Face Hub with the page and the API of serve.py (docs/deploy.md tells how to make one).

The Space's variable MODEL names the checkpoint: a Hub id, or a folder in the Space.
"""

import os

import uvicorn

from boxtune import Detector
from boxtune.serving.app import create_app
from boxtune.serving.limits import Limits
from boxtune.serving.service import Service

detector = Detector.from_pretrained(os.environ["MODEL"])
app = create_app(Service(detector, Limits(), max_batch=8, max_wait=0.01), os.environ.get("BOXTUNE_API_KEY", ""))

if __name__ == "__main__":
    uvicorn.run(app, host="0.0.0.0", port=7860)  # the port that a Space shows
