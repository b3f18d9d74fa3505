"""Oxford 102 flowers (Nilsback and Zisserman, 2008): 8,189 photos of 102 species.

There are two layouts:
1. the original: jpg/image_00001.jpg to image_08189.jpg, imagelabels.mat (labels: 1-based species of each photo) and
   setid.mat (trnid, valid, tstid: 1-based numbers of photos);
2. class folders: {train,valid,test}/<species 1 to 102>/image_*.jpg. Their split is the mirror's, not the official one.
A mirror's cat_to_name.json is not read: it has the names of SPECIES.
"""

import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from carvision.data.readers.disk import existing_root, read_mat
from carvision.data.readers.folder import read_folder
from carvision.data.table import SPLITS, Table, check_counts, encode, validate, without_missing_files
from carvision.errors import InputError
from carvision.files.download import download

KNOWN = {"photos": 8_189, "train": 1_020, "val": 1_020, "test": 6_149, "class": 102}
TOLERATED_IN_FOLDERS = 10  # photos by which mirrors without lists may differ; each class has at least 40
URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
MD5 = {
    "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
    "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
    "102flowers.tgz": "52808999861908f626f3c1f4e79d11fa",
}
HINT = (
    "Get 102flowers.tgz, imagelabels.mat and setid.mat from robots.ox.ac.uk/~vgg/data/flowers/102 and lay them out as "
    "<data.root>/jpg/image_*.jpg beside the two .mat files, or let data.download=true do it"
)
SPECIES = """
pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger lily, moon orchid, bird
of paradise, monkshood, globe thistle, snapdragon, colt's foot, king protea, spear thistle, yellow iris, globe-flower,
purple coneflower, peruvian lily, balloon flower, giant white arum lily, fire lily, pincushion flower, fritillary, red
ginger, grape hyacinth, corn poppy, prince of wales feathers, stemless gentian, artichoke, sweet william, carnation,
garden phlox, love in the mist, mexican aster, alpine sea holly, ruby-lipped cattleya, cape flower, great masterwort,
siam tulip, lenten rose, barbeton daisy, daffodil, sword lily, poinsettia, bolero deep blue, wallflower, marigold,
buttercup, oxeye daisy, common dandelion, petunia, wild pansy, primula, sunflower, pelargonium, bishop of llandaff,
gaura, geranium, orange dahlia, pink-yellow dahlia, cautleya spicata, japanese anemone, black-eyed susan, silverbush,
californian poppy, osteospermum, spring crocus, bearded iris, windflower, tree poppy, gazania, azalea, water lily, rose,
thorn apple, morning glory, passion flower, lotus lotus, toad lily, anthurium, frangipani, clematis, hibiscus,
columbine, desert-rose, tree mallow, magnolia, cyclamen, watercress, canna lily, hippeastrum, bee balm, ball moss,
foxglove, bougainvillea, camellia, mallow, mexican petunia, bromelia, blanket flower, trumpet creeper, blackberry lily
"""
NAMES = {str(i): name for i, name in enumerate(" ".join(SPECIES.split()).split(", "), start=1)}  # by label


def read_oxford102(
    root: Path | str | None, *, allow_missing: bool = False, known: Mapping[str, int] | None = KNOWN
) -> Table:
    """Read the label "class": ids "1" to "102", names of the species. known: the counts to assert, or None."""
    root = existing_root(root, HINT)
    expected, tolerated = dict(known or {}), 0
    if (root / "imagelabels.mat").is_file():
        table = _from_mats(root)
    elif (root / "train").is_dir():
        table = read_folder(root, allow_missing=allow_missing)
        expected = {what: count for what, count in expected.items() if what in ("photos", "class")}
        tolerated = TOLERATED_IN_FOLDERS
    else:
        raise InputError(f"data.root: {root} has neither imagelabels.mat nor a folder train. {HINT}")
    label = table.class_labels["class"]
    strange = [i for i in label.ids if i not in NAMES]
    if strange:
        raise InputError(f"oxford102: class {strange[0]!r} under {root} is not one of 1 to {len(NAMES)}. {HINT}")
    label = replace(label, names=tuple(NAMES[i] for i in label.ids))
    table = check_counts(replace(table, name="oxford102", labels={"class": label}), expected, allow_missing, tolerated)
    return validate(without_missing_files(table, allow_missing))


def _from_mats(root: Path) -> Table:
    labels = read_mat(root / "imagelabels.mat", "labels")[0].ravel().astype(int)
    splits = np.full(len(labels) + 1, "", dtype=object)  # by 1-based number of the photo
    lists = read_mat(root / "setid.mat", "trnid", "valid", "tstid")
    for split, numbers in zip(SPLITS, lists, strict=True):
        if numbers.max(initial=0) > len(labels):
            text = f"photo {numbers.max()} is beyond the {len(labels)} of imagelabels.mat; get both again"
            raise InputError(f"{root / 'setid.mat'}: {text}")
        splits[numbers.ravel().astype(int)] = split
    paths = [f"jpg/image_{number:05d}.jpg" for number in range(1, len(labels) + 1)]
    rows = pd.DataFrame({"path": paths, "split": splits[1:]}, dtype=str)
    rows["class"], classes = encode(labels.astype(str))
    return Table("oxford102", root, rows, {"class": classes}, "class")


def download_oxford102(root: Path | str | None, url: str = URL) -> None:
    """Bring `root` into the original layout: download what is missing from `url`, verify it, unpack the photos.

    The archive is only downloaded if a photo is missing, and kept beside jpg/. Raises InputError if a file can't be
    downloaded, has another checksum, or the disk is full.
    """
    if root is None:
        raise InputError("data.root: null does not exist; data.download=true needs the folder to download into")
    root = Path(root)
    for name in ("imagelabels.mat", "setid.mat"):
        download(f"{url}/{name}", root / name, MD5[name])
    table = _from_mats(root)
    if all((root / path).is_file() for path in table.rows["path"]):
        return
    archive = root / "102flowers.tgz"
    download(f"{url}/{archive.name}", archive, MD5[archive.name])
    (root / "jpg").mkdir(exist_ok=True)
    try:
        # Unpacked elsewhere and then moved, so that an interruption leaves no truncated photo in jpg/.
        with tempfile.TemporaryDirectory(dir=root) as aside, tarfile.open(archive) as tar:
            tar.extractall(aside, filter="data")
            for photo in Path(aside, "jpg").iterdir():
                if not (root / "jpg" / photo.name).exists():
                    photo.replace(root / "jpg" / photo.name)
    except (OSError, tarfile.TarError) as error:
        text = f"{archive} could not be unpacked into {root}: {error}; free the disk and try again"
        raise InputError(text) from error
