"""Serve a trained network by LitServe, as bench_serve.py's peer of carvision serve. Run by its --peer, not by hand.

LitServe starts its worker as a new process, which imports this module again: so it stands alone. Photos come as forms
to /predict, as many as wait make a batch (at most 32), and are decoded by the same function as carvision's.
"""

import io
import sys

import litserve
import torch

import carvision
from carvision.data.decode import decode_into, empty_images
from carvision.inference.predictor import Predictor
from carvision.inference.rows import Layout, rows_of
from carvision.system.runtime import keep_freed_memory

MOST = 32


class Names(litserve.LitAPI):
    """One photo a request -> {head: its best classes, or a number}."""

    def __init__(self, run: str, top: int, wait_s: float):
        super().__init__(max_batch_size=MOST, batch_timeout=wait_s)
        self.run, self.top = run, top

    def setup(self, device: str) -> None:
        keep_freed_memory()
        model = carvision.load(self.run).to(device)
        self.predictor, self.device = Predictor([model]), device
        self.layout = Layout(model.class_ids, model.labels, self.top)

    def decode_request(self, request) -> torch.Tensor:
        data = request["photo"]
        data = data.file.read() if isinstance(data.file, io.IOBase) else data.file._file.getvalue()
        [image] = empty_images(1, self.predictor.geometries[0].size_px)
        decode_into(data, self.predictor.geometries[0], image)
        return image

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(inputs).contiguous(memory_format=torch.channels_last)

    def predict(self, images: torch.Tensor) -> list[dict]:
        logits = {name: values.cpu() for name, values in self.predictor([images.to(self.device)]).items()}
        num = len(images)
        rows = rows_of(self.predictor, self.layout, [""] * num, [{}] * num, logits, [None] * num)
        return [row.labels for row in rows]

    def unbatch(self, output: list[dict]) -> list[dict]:
        return output

    def encode_response(self, output: dict) -> dict:
        return output


if __name__ == "__main__":
    run, port, top, wait_s, device = sys.argv[1:]
    server = litserve.LitServer(Names(run, int(top), float(wait_s)), accelerator=device, timeout=60)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="warning")
