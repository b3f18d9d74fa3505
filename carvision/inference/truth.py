"""Find the true classes of photos: in the columns of a list, or in the names of the folders above a photo."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePath
from types import MappingProxyType

from carvision.data.photo_paths import nfc, text_of_path
from carvision.inference.inputs import Photo


class TrueClasses:
    """Looks up the codes of a photo's true classes.

    class_ids, class_names: {head: list}, in the order of the codes. parents: {child: (parent, codes)}, where codes[i]
    is the parent's code of the child's class i. heads: those to look up. from_folders: also use the names of the
    folders above a photo, the nearest first. rest: {head: code} for one-against-the-rest heads; the class of everything
    else. unknown: {head: {value of the list, or folder of a photo outside all class folders: number of photos}}, for
    values that match no class or several.
    """

    def __init__(
        self, class_ids: dict, class_names: dict, parents: dict, heads: list[str], from_folders: bool,
        rest: Mapping[str, int] = MappingProxyType({}),
    ):  # fmt: skip
        self.rest = rest
        self.heads = sorted(
            heads, key=lambda head: head in parents
        )  # parents first: they distinguish children of the same name
        self.from_folders = from_folders
        self.parents = {child: (parent, [int(code) for code in codes]) for child, (parent, codes) in parents.items()}
        self.unknown: dict[str, Counter[str]] = {head: Counter() for head in heads}
        self.by_id = {head: {nfc(value): code for code, value in enumerate(class_ids[head])} for head in heads}
        self.by_name: dict[str, dict[str, list[int]]] = {head: {} for head in heads}
        for head in heads:
            for code, name in enumerate(class_names[head]):
                self.by_name[head].setdefault(nfc(name), []).append(code)

    def codes(self, photo: Photo) -> dict[str, int | None]:
        """Return {head: code, or None if unknown}."""
        found: dict[str, int | None] = {}
        path = text_of_path(photo.file) if "\\" in photo.path else photo.path  # a list may use the other kind of slash
        folders = PurePath(os.path.abspath(path)).parts[-2::-1] if self.from_folders else ()  # noqa: PTH100
        for head in self.heads:
            if value := photo.truth.get(head):
                found[head] = self._code(head, value, found)
            else:
                codes = (self._code(head, folder, found) for folder in folders)
                found[head] = next((code for code in codes if code is not None), None)
                value = folders[0] if folders else ""
            if found[head] is None and value:
                found[head] = self.rest.get(head)
            if found[head] is None and (value or self.from_folders):
                self.unknown[head][value] += 1
        return found

    def lines(self) -> list[str]:
        """Return one line per head that says how many photos have classes unknown to the model."""
        lines = []
        for head, counts in self.unknown.items():
            if counts:
                shown = ", ".join(repr(value) for value, _ in counts.most_common(3))
                more = f" and {len(counts) - 3:,} more" if len(counts) > 3 else ""
                what = "folders or classes" if self.from_folders else "classes"
                lines.append(
                    f"{head}: {counts.total():,} photos are of {what} unknown to the model, by id and by name "
                    f"({shown}{more}); they are not judged"
                )
        return lines

    def _code(self, head: str, value: str, found: dict[str, int | None]) -> int | None:
        """Return the class with this id, else the only class with this name; it must fit the parent already found."""
        parent, codes_of_parents = self.parents.get(head, (None, []))
        parent_code = found.get(parent)
        value = nfc(value)
        named = self.by_name[head].get(value, [])
        candidates = [self.by_id[head][value]] if value in self.by_id[head] else []
        candidates += named if len(named) == 1 or parent_code is not None else []
        if parent_code is not None:
            candidates = [code for code in candidates if codes_of_parents[code] == parent_code]
        return candidates[0] if candidates else None
