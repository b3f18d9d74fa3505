"""Create timm backbones, and load weights for them: timm's pretrained ones, a file's or an earlier run's."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import timm
import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.utils import build_hf_headers
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm.models import PretrainedCfg
from torch import Tensor, nn

from carvision.errors import InputError, one_line, suggest
from carvision.files.download import ANSWER_S, answer_within
from carvision.models import report_networks  # noqa: F401 - registers its networks with timm

# Arguments of timm.create_model that are not the network's own: they read files, download, or change what it returns
NOT_ITS_OWN = {
    "cache_dir", "checkpoint_path", "exportable", "features_only", "no_jit", "num_classes", "pretrained",
    "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "scriptable",
}  # fmt: skip
OTHER_WEIGHTS = "give model.weights=<file>, or begin from random ones (model.weights=random)"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # of a repository on the hub, in timm's order of preference
# Limits of a .safetensors file; timm's networks have at most some 5,000 tensors, with 100 bytes of the header for each
MAX_TENSORS, MAX_HEADER_BYTES = 20_000, 10_000_000


class Backbone(nn.Module):
    """A network of timm, for type checkers and editors. It has no instances: each network has a class of its own.

    left_out: names of the modules that parts.leave_out has replaced.
    """

    forward_features: Callable[[Tensor], Tensor]
    forward_head: Callable[[Tensor], Tensor]
    pretrained_cfg: dict[str, Any]
    left_out: tuple[str, ...]


def create_backbone(name: str, kwargs: dict | None = None, pretrained: bool = False, size_px: int = 224) -> Backbone:
    """Create a timm model without its classifier: normalised images (B, 3, H, W) -> features (B, F).

    kwargs: arguments of the network itself. size_px matters to backbones that are built for one input size (vision
    transformers). Raises InputError for a name that timm doesn't have, arguments that the backbone doesn't take, and
    pretrained weights that can't be downloaded.
    """
    check_name(name)
    refused = NOT_ITS_OWN.intersection(kwargs or {})
    if refused:
        raise InputError(
            f"model.backbone_kwargs: {sorted(refused)[0]!r} is no argument of the network itself; its weights are "
            "chosen with model.weights, the size of its images with data.image_px"
        )
    if cfg_of(name).fixed_input_size:
        kwargs = {"img_size": size_px, **(kwargs or {})}
    source = find_pretrained(name) if pretrained else {}
    try:
        network = cast(
            Backbone,
            timm.create_model(name, pretrained, pretrained_cfg_overlay=source, num_classes=0, **(kwargs or {})),
        )
    except TypeError as error:
        raise InputError(f"model.backbone_kwargs: {name} does not take {kwargs} ({one_line(error, 200)})") from None
    except Exception as error:
        reason = one_line(error, 200)
        if not pretrained:
            raise InputError(f"model.backbone: timm can't build {name} with {kwargs or {}} ({reason})") from error
        raise InputError(
            f"model.weights: the pretrained weights of {name} can't be loaded ({reason}); {OTHER_WEIGHTS}"
        ) from None
    for key in source:  # paths on this machine should not travel with the network
        network.pretrained_cfg.pop(key, None)
    return network


def check_name(name: str) -> None:
    """Raise InputError, with the most similar names, for a name or a tag of weights that timm doesn't have."""
    if not timm.is_model(name):
        raise InputError(
            f"model.backbone: {name!r} is no model of timm {timm.__version__}{suggest(name, timm.list_models())}"
        )
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:  # raised for resnet50.<tag> alone
        plain = name.partition(".")[0]
        tags = ", ".join(timm.list_models(f"{plain}.*", pretrained=True)) or "none"
        raise InputError(f"model.backbone: {name!r} is no set of weights that timm has; of {plain}: {tags}") from None


def cfg_of(name: str) -> PretrainedCfg:
    """Return timm's pretrained_cfg of a network that it has."""
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None, name
    return cfg


def find_pretrained(name: str) -> dict:
    """Return the keys to overlay on the network's pretrained_cfg, so that timm finds its weights in a local file.

    The file is downloaded if necessary. Raises InputError where it is not cached and can't be downloaded; without a
    network connection that takes seconds.
    """
    cfg = cfg_of(name)
    if cfg.hf_hub_id:
        repository, _, revision = cfg.hf_hub_id.partition("@")
        file = _reach(name, lambda: _hub_file(repository, revision or None), constants.ENDPOINT)
        return {"file": file, "custom_load": False}  # the hub's files need no conversion
    url = cfg.url
    if not isinstance(url, str) or not url:
        raise InputError(f"model.weights: there are no pretrained weights of {name}; {OTHER_WEIGHTS}")
    if not Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name).exists():
        _reach(name, lambda: answer_within(ANSWER_S, lambda: urlopen(url, timeout=ANSWER_S)).close(), url)
    return {}


def _hub_file(repository: str, revision: str | None) -> str:
    """Return the path of the weights in the hub's cache, after downloading them if they are not there."""
    for file in HUB_FILES:
        cached = try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(cached, str):
            return cached

    def require(file: str) -> str:
        url = hf_hub_url(repository, file, revision=revision)
        get_hf_file_metadata(url, timeout=ANSWER_S)
        # A server may describe a file and then not send it
        first_byte = Request(url, headers=build_hf_headers() | {"Range": "bytes=0-0"})
        with urlopen(first_byte, timeout=ANSWER_S) as answer:
            answer.read(1)
        return file

    def first_available() -> str:
        try:
            return require(HUB_FILES[0])
        except EntryNotFoundError:
            return require(HUB_FILES[1])

    return hf_hub_download(repository, answer_within(ANSWER_S, first_available), revision=revision)


def _reach(name: str, find: Callable, address: str):
    """Return find(). Raise InputError for whatever it raises. address: of the server, for the message."""
    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # it would log each of its retries
    try:
        return find()
    except Exception as error:  # the hub's own, its HTTP library's, the system's
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        reason = f"it answered {status}" if status else one_line(error, 200)
        raise InputError(
            f"model.weights: the pretrained weights of {name} can't be downloaded from {address} ({reason}); give "
            "model.weights=<file>, begin from random ones (model.weights=random), name a mirror of the hub in "
            f"the environment variable HF_ENDPOINT, or copy a cache that has them to {constants.HF_HUB_CACHE}"
        ) from None
    finally:
        hub_logging.set_verbosity(before)


def read_weights(source: Path) -> dict[str, torch.Tensor]:
    """Return {name: tensor} of a .safetensors or .pth file, a Lightning checkpoint, or a run's folder.

    Pickled files are read with torch's safe default: they can hold tensors and plain values, and run no code. Raises
    InputError for a file that is missing, damaged, or holds no tensors by name.
    """
    file = source / "model.safetensors" if source.is_dir() else source
    if not file.is_file():
        best = source / "checkpoints" / "best.ckpt"
        unfinished = f"; of a run that has not finished: model.weights={best}" if best.is_file() else ""
        raise InputError(
            f"model.weights: {str(source)!r} is not pretrained, random, or a file that exists (a .safetensors or .pth "
            f"file, a checkpoint, or the folder of a run that holds model.safetensors){unfinished}"
        )
    if file.suffix == ".safetensors":
        try:
            tensor_shapes(file)
            return load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"model.weights: {file} can't be read ({one_line(error, 200)})") from None
    found = read_pickled(file)
    tensors = found if isinstance(found, dict) else {}
    for key in ("state_dict", "model"):
        tensors = tensors[key] if isinstance(tensors.get(key), dict) else tensors
    tensors = {name.removeprefix("model."): value for name, value in tensors.items() if torch.is_tensor(value)}
    if not tensors:
        raise InputError(f"model.weights: {file} holds no tensors by name")
    return tensors


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of a .safetensors file, from its header, which may have been written by anyone.

    Raises ValueError for more tensors than any network has, SafetensorError where the header does not fit the file.
    """
    with file.open("rb") as opened:
        num_bytes = int.from_bytes(opened.read(8), "little")
    if num_bytes > MAX_HEADER_BYTES:
        raise ValueError(f"its header has more than the {MAX_HEADER_BYTES / 1e6:.0f} MB allowed")
    with safe_open(file, "pt") as tensors:
        names = list(tensors.keys())
        if len(names) > MAX_TENSORS:
            raise ValueError(f"{len(names):,} tensors are more than the {MAX_TENSORS:,} allowed")
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in names}


def read_pickled(file: Path) -> object:
    """Return the object that torch.save has written, its tensors memory-mapped where possible. Raises InputError."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        raise InputError(f"model.weights: {file} can't be read ({one_line(error, 200)})") from None
    except Exception as error:  # pickle.UnpicklingError, and any other from a file that is no pickle
        raise InputError(f"model.weights: {file} is no file of weights alone ({one_line(error, 200)})") from None


def load_backbone_weights(backbone: Backbone, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Load {name: tensor} into the backbone, ignoring its classifier and the layers that the pool leaves out.

    source: of the tensors, for messages. Raises InputError for tensors of another network.
    """
    if any(name.startswith("backbone.") for name in tensors):  # a carvision model
        tensors = {name.removeprefix("backbone."): t for name, t in tensors.items() if name.startswith("backbone.")}
    own = backbone.state_dict()
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    shapes = [name for name, t in own.items() if name in tensors and tensors[name].shape != t.shape]
    classifiers = backbone.pretrained_cfg.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    ignored = tuple(f"{name}." for name in (*classifiers, *getattr(backbone, "left_out", ())))
    extra = [name for name in tensors if name not in own and not name.startswith(ignored)]
    wrong = []
    if missing:
        wrong.append(f"{len(missing)} of {len(own)} tensors are missing (first: {missing[0]})")
    if shapes:
        first = f"{shapes[0]}: {tuple(tensors[shapes[0]].shape)} instead of {tuple(own[shapes[0]].shape)}"
        wrong.append(f"{len(shapes)} have another shape (first: {first})")
    if extra:
        wrong.append(f"{len(extra)} belong to no part of it (first: {extra[0]})")
    if wrong:
        raise InputError(
            f"model.weights: {source} is not of this backbone: {'; '.join(wrong)}. Set model.backbone to match"
        )
    backbone.load_state_dict({name: tensors[name] for name in own if name in tensors}, strict=False)
