"""Partial JPEG decoders return the pixels of Pillow's full decoding; damaged files are left to Pillow."""

import io
import multiprocessing
import os
import subprocess
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from carvision.data.images import Part
from carvision.data.jpeg import Libjpeg, Simplejpeg, choose_decoder
from carvision.errors import InputError
from carvision.system.machine import FORK

DECODERS = {"libjpeg": Libjpeg, "simplejpeg": Simplejpeg}


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request):
    try:
        return DECODERS[request.param]()
    except ImportError:
        pytest.skip("simplejpeg is not installed")
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no C compiler, or no libjpeg-turbo with its header")


def photo(width, height, mode="RGB", seed=0):
    """Create a photo of large shapes in strong colours, with noise."""
    random = np.random.default_rng(seed)
    shapes = Image.fromarray(random.integers(0, 255, (7, 9, 3), np.uint8)).resize((width, height))
    noise = random.integers(-20, 20, (height, width, 3))
    return Image.fromarray((np.asarray(shapes) + noise).clip(0, 255).astype(np.uint8)).convert(mode)


def jpeg(image, form="JPEG", **options):
    image.save(data := io.BytesIO(), form, **{"quality": 90, **options})
    return data.getvalue()


@pytest.mark.parametrize("size", [(333, 217), (64, 48), (17, 300)])
@pytest.mark.parametrize("mode, subsampling", [("RGB", 0), ("RGB", 1), ("RGB", 2), ("L", 0)])
@pytest.mark.parametrize("progressive", [False, True])
def test_any_part_has_the_pixels_of_the_whole_as_pillow_decodes_it(decoder, size, mode, subsampling, progressive):
    data = jpeg(photo(*size, mode), progressive=progressive, subsampling=subsampling)
    assert decoder.size(data) == size
    random = np.random.default_rng(0)
    for eighths in (8, 4, 2, 1):
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (size[0] * eighths // 8, size[1] * eighths // 8))
        whole = np.asarray(image.convert("RGB"))
        height, width = whole.shape[:2]
        for _ in range(6):
            left, right = sorted(random.choice(width + 1, 2, replace=False).tolist())
            top, bottom = sorted(random.choice(height + 1, 2, replace=False).tolist())
            found = decoder.part(memoryview(data), eighths, Part(left, top, right, bottom))
            assert np.array_equal(found, whole[top:bottom, left:right])


@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_and_damaged_files_other_formats_and_cmyk_are_left_to_pillow(decoder, progressive):
    for data in (jpeg(photo(30, 20), "PNG"), jpeg(photo(30, 20, "CMYK")), b"", b"\xff\xd8\xff", b"\xff\xd8" * 50):
        assert decoder.size(data) is None
    data = jpeg(photo(320, 240), progressive=progressive)
    for length in [*range(700, len(data), 997), len(data) - 300, len(data) - 2]:
        if decoder.size(data[:length]):
            assert decoder.part(data[:length], 8, Part(0, 0, 40, 8)) is None, length
    if not progressive:
        damaged = bytearray(data)
        damaged[len(data) // 2 : len(data) // 2 + 60] = b"\xff\xd0" * 30  # markers that do not belong there
        assert decoder.part(bytes(damaged), 8, Part(0, 0, 320, 240)) is None


def test_a_part_outside_of_the_photo_is_refused(decoder):
    if not isinstance(decoder, Libjpeg):
        pytest.skip("simplejpeg decodes the whole photo")
    data = jpeg(photo(64, 48))
    for part in (Part(-1, 0, 5, 5), Part(0, -1, 5, 5), Part(0, 0, 65, 5), Part(0, 0, 5, 49), Part(0, 0, 33, 5)):
        assert decoder.part(data, 4 if part == Part(0, 0, 33, 5) else 8, part) is None


def test_threads_can_decode_concurrently(decoder):
    files = [jpeg(photo(200, 150, seed=seed)) for seed in range(8)]
    alone = [decoder.part(data, 4, Part(10, 5, 90, 70)) for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: decoder.part(data, 4, Part(10, 5, 90, 70)), files * 20))
    assert all(np.array_equal(found, alone[i % 8]) for i, found in enumerate(together))


def _choose(variables: dict) -> tuple[str, str]:
    os.environ.update(variables)
    found, reason = choose_decoder.__wrapped__()
    return found.name if found else "pillow", reason


def chosen(cache, num: int = 1, **variables) -> list[tuple[str, str]]:
    """Choose a decoder in `num` forked processes at once."""
    with ProcessPoolExecutor(num, multiprocessing.get_context(FORK)) as pool:
        return list(pool.map(_choose, [{"CARVISION_CACHE": str(cache), **variables}] * num))


@pytest.mark.skipif(FORK is None, reason="processes are not forked here")
def test_without_a_compiler_another_decoder_is_used_and_the_reason_reported(tmp_path):
    [(name, reason)] = chosen(tmp_path, CC="no-such-compiler")
    assert name in ("simplejpeg", "pillow") and "no-such-compiler" in reason and not list(tmp_path.iterdir())
    assert chosen(tmp_path, CARVISION_JPEG="pillow") == [("pillow", "")]
    with pytest.raises(InputError, match="CARVISION_JPEG: 'fastest' is not one of auto, pillow, libjpeg, simplejpeg"):
        chosen(tmp_path, CARVISION_JPEG="fastest")


@pytest.mark.skipif(FORK is None, reason="processes are not forked here")
def test_processes_may_compile_concurrently_and_a_broken_library_is_replaced(tmp_path, decoder):
    if not isinstance(decoder, Libjpeg):
        pytest.skip("nothing is compiled")
    assert chosen(tmp_path, 3) == [("libjpeg", "")] * 3
    [library] = tmp_path.iterdir()
    library.write_bytes(b"no library of this machine")
    assert chosen(tmp_path) == [("libjpeg", "")]
