"""Find timm's pretrained weights: in the local cache, else on the hub. Without a network this fails within seconds."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import timm
import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.utils import build_hf_headers
from huggingface_hub.utils import logging as hub_logging
from timm.models import PretrainedCfg

from carvision.data.download import ANSWER_S, answer_within
from carvision.errors import InputError

FILES = ("model.safetensors", "pytorch_model.bin")  # of a repository of the hub, as timm prefers them


def cfg_of(name: str) -> PretrainedCfg:
    """Return what timm knows of the weights of a network that it has."""
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None, name
    return cfg


def source_of(name: str) -> dict:
    """The keys that lead timm's pretrained_cfg of the network to weights that are there: a local file, downloaded if it
    has to be. Raises InputError where they are not cached and can't be downloaded."""
    cfg = cfg_of(name)
    if cfg.hf_hub_id:
        repository, _, revision = cfg.hf_hub_id.partition("@")
        file = _reach(name, lambda: _hub_file(repository, revision or None), constants.ENDPOINT)
        return {"file": file, "custom_load": False}  # the hub has them in the network's own form
    url = cfg.url
    if not isinstance(url, str) or not url:
        raise InputError(
            f"model.weights: there are no pretrained weights of {name}; give model.weights=<file>, or begin "
            "from random ones (model.weights=random)"
        )
    if not Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name).exists():
        _reach(name, lambda: answer_within(ANSWER_S, lambda: urlopen(url, timeout=ANSWER_S)).close(), url)
    return {}


def _hub_file(repository: str, revision: str | None) -> str:
    """Where the weights lie in the hub's cache."""
    for file in FILES:
        cached = try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(cached, str):
            return cached

    def first_there() -> str:
        for number, file in enumerate(FILES, 1):
            url = hf_hub_url(repository, file, revision=revision)
            try:
                get_hf_file_metadata(url, timeout=ANSWER_S)
            except EntryNotFoundError:
                if number < len(FILES):
                    continue
                raise
            # A server may describe files, and send none
            first_byte = Request(url, headers=build_hf_headers() | {"Range": "bytes=0-0"})
            with urlopen(first_byte, timeout=ANSWER_S) as answer:
                answer.read(1)
            return file
        raise FileNotFoundError(repository)  # never reached: the error of the last file is raised above

    file = answer_within(ANSWER_S, first_there)
    return hf_hub_download(repository, file, revision=revision)


def _reach(name: str, find: Callable, address: str):
    """What find() returns. Raises InputError."""
    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # it would report each of its retries
    try:
        return find()
    except Exception as error:  # of the hub, its HTTP library, or the system
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        reason = f"it answered {status}" if status else " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"model.weights: the pretrained weights of {name} can't be downloaded from {address} ({reason}); give "
            "model.weights=<file>, begin from random ones (model.weights=random), name a mirror of the hub in "
            f"the environment variable HF_ENDPOINT, or copy a cache that has them to {constants.HF_HUB_CACHE}"
        ) from None
    finally:
        hub_logging.set_verbosity(before)
