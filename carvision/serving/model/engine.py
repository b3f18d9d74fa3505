"""The network as the server runs it: as it is, by torch.compile, or in ONNX Runtime, if that is faster here."""

import copy
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from carvision.data.images import BLANK
from carvision.errors import InputError, one_line
from carvision.exports.shared import largest_difference
from carvision.inference.model_file import LoadedClassifier
from carvision.inference.predictor import Predictor
from carvision.serving.limits import MAX_PHOTOS

log = logging.getLogger(__name__)

ENGINES = ("eager", "compile", "onnx")
TOLERANCE = 1e-4  # of logits, as a share of the largest one
FASTER = 0.95  # of the time of a large batch, below which another engine is worth its start
NO_SLOWER = 1.1  # at a batch of one
SIZES = (1, MAX_PHOTOS)  # of the batches that are timed
NUM_TIMED = 7  # batches of each size; the median counts


class Network:
    """Runs a Predictor on the device. engine: a name of ENGINES.

    static: pad batches to powers of two, as the compiled network and torch-xla are built for each size.
    """

    def __init__(self, predictor: Predictor, device: torch.device, engine: str = "eager"):
        self.predictor, self.device, self.engine = predictor.to(device), device, engine
        if device.type == "cuda":
            predictor.to(memory_format=torch.channels_last)
        self.static = engine == "compile" or device.type == "xla"

    def __call__(self, images: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return {name: (B, ...)} on the CPU. images: uint8 (B, 3, size_px, size_px) for each geometry, on the CPU."""
        num = len(images[0])
        if self.static:
            more = 2 ** (num - 1).bit_length() - num
            images = [pad(values, (0, 0, 0, 0, 0, 0, 0, more), value=BLANK) for values in images]
        on_device = [values.to(self.device) for values in images]
        return {name: values.cpu()[:num] for name, values in self.predictor(on_device).items()}


def random_pixels(predictor: Predictor, num: int) -> list[Tensor]:
    """Return images for the predictor, always the same ones."""
    generator = torch.Generator().manual_seed(num)
    sizes = [preprocessing.size_px for preprocessing in predictor.geometries]
    images = (torch.randint(0, 256, (num, px, px, 3), dtype=torch.uint8, generator=generator) for px in sizes)
    return [values.permute(0, 3, 1, 2) for values in images]


def choose_network(models: Sequence[LoadedClassifier], device: torch.device, wanted: str) -> Network:
    """Return the network of one model, or of the average of several, ready to answer.

    wanted: a name of ENGINES; "auto": the fastest on this machine of those that agree with the network to TOLERANCE.
    Raises InputError for an engine that can't be built, or disagrees.
    """
    eager = Network(Predictor(list(models)), device)
    timings([eager])  # the first batches take longer
    if wanted == "eager":
        return eager
    if wanted != "auto":
        return checked(build(models, device, wanted), eager)
    best = eager
    for name in ENGINES[1:]:
        try:
            other = checked(build(models, device, name), eager)
        except InputError as error:
            log.info("engine %s: not used (%s)", name, one_line(error, 200))
            continue
        times, seconds = timings([best, other])
        log.info(
            "engine %s: %.1f ms for one photo, %.1f ms for %d; %s: %.1f and %.1f ms", name, 1e3 * seconds[0],
            1e3 * seconds[1], MAX_PHOTOS, best.engine, 1e3 * times[0], 1e3 * times[1],
        )  # fmt: skip
        if seconds[1] < FASTER * times[1] and seconds[0] < NO_SLOWER * times[0]:
            best = other
    return best


def build(models: Sequence[LoadedClassifier], device: torch.device, name: str) -> Network:
    """Return the network in another engine. The models themselves stay as they are. Raises InputError."""
    make = {"compile": compiled, "onnx": in_onnx}[name]
    if name == "onnx" and device.type != "cpu":
        raise InputError(f"--engine onnx: runs on the CPU here, and the device is {device}; choose another engine")
    copies = []
    for model in models:
        shallow = copy.copy(model.to(device))  # shares the weights
        # Shadows the method, of which torch.nn.Module knows nothing
        shallow.forward = make(model)  # pyrefly: ignore[bad-assignment]
        copies.append(shallow)
    network = Network(Predictor(copies), device, name)
    try:
        for num in (2**power for power in range(MAX_PHOTOS.bit_length())):
            network(random_pixels(network.predictor, num))
    except InputError:
        raise
    except Exception as error:  # compilers and runtimes raise many kinds
        raise InputError(f"--engine {name}: does not work here ({one_line(error, 200)}); use eager") from error
    return network


def compiled(model: LoadedClassifier) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return the network compiled by torch.compile, for each size of a batch."""
    from carvision.training.compile import require_compiler, with_input_errors

    require_compiler("cpu", next(model.parameters()).device.type == "cuda")
    return with_input_errors(torch.compile(model.forward, dynamic=False))


def in_onnx(model: LoadedClassifier) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return the network as ONNX Runtime runs it on the CPU. Raises InputError if it isn't installed."""
    try:
        import onnxruntime
    except Exception as error:  # not installed, or not for this machine
        text = one_line(error, 120)
        raise InputError(f"--engine onnx: needs onnxruntime ({text}); pip install 'carvision[onnx]'") from None
    from carvision.exports.graphs import export_onnx  # only now: it imports torch's exporters, which takes seconds

    with tempfile.TemporaryDirectory(prefix="carvision-onnx-") as folder:
        file = Path(folder) / "model.onnx"
        export_onnx(model, file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Waiting threads would take the cores from those that decode
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = list(model.labels)

    def run(images: Tensor) -> dict[str, Tensor]:
        outputs = session.run(names, {"images": images.contiguous().numpy()})
        return {name: torch.from_numpy(values) for name, values in zip(names, outputs, strict=True)}

    return run


def checked(network: Network, eager: Network) -> Network:
    """Return the network if its outputs agree with those of `eager`; raise InputError else."""
    differences = []
    for num in (1, 3):
        images = random_pixels(eager.predictor, num)
        differences.append(largest_difference(eager(images), network(images)))
    if not max(differences) <= TOLERANCE:
        raise InputError(
            f"--engine {network.engine}: differs from the network by {max(differences):.1e} of its largest value, "
            f"more than {TOLERANCE:.0e}; use eager"
        )
    return network


def timings(networks: Sequence[Network]) -> list[tuple[float, float]]:
    """Return the median seconds of a batch of one, and of MAX_PHOTOS, of each network. They take turns, so that what
    else the machine does slows all of them."""
    medians: list[list[float]] = [[] for _ in networks]
    for num in SIZES:
        images, seconds = random_pixels(networks[0].predictor, num), [[] for _ in networks]
        for _ in range(NUM_TIMED):
            for network, of_network in zip(networks, seconds, strict=True):
                began = time.perf_counter()
                network(images)
                of_network.append(time.perf_counter() - began)
        for of_size, of_network in zip(medians, seconds, strict=True):
            of_size.append(statistics.median(of_network))
    return [(one, many) for one, many in medians]
