"""The page of a Space: a photo in, its classes out, by the model beside this file. `carvision export --format space`
copies this file as app.py; `python app.py` starts the page. Needs carvision and gradio.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import carvision

if TYPE_CHECKING:
    from carvision.inference.model_file import LoadedClassifier

TOP = 5  # classes of each head
ACCURACY = 0.95  # of the answers that are called sure, on validation photos
SIDES = ("left", "top", "right", "bottom")
SECONDS_KEPT = 600  # of a photo in gradio's cache, after which it is deleted


def answer(model: "LoadedClassifier", photo: str | None, *box: float | None) -> tuple[Any, ...]:
    """Return the values of the page's outputs: the answer in words, {class: probability} of each head with classes,
    and what model.predict returns.

    photo: the path of an uploaded file. box: left, top, right, bottom in pixels, or nothing for the whole photo. Raises
    ValueError, in one line, for what can't be used.
    """
    if photo is None:
        raise ValueError("there is no photo: choose one first")
    given = [value for value in box if value is not None]
    if given and len(given) < len(SIDES):
        raise ValueError(f"the box needs all of {', '.join(SIDES)}; leave all of them empty for the whole photo")
    [found] = model.predict([photo], [tuple(given) if given else None], top=TOP)
    if found["error"]:
        raise ValueError(f"the photo can't be used: {found['error']}")
    bars = [_bars(found[head]) for head in model.classes]
    words = [_sentence(model, head, found[head]) for head in model.labels]
    return "\n".join(words), *bars, {head: found[head] for head in model.labels}


def _bars(classes: list[dict]) -> dict[str, float]:
    """Return {name: probability}; classes of the same name are told apart by their ids."""
    names = [one["name"] for one in classes]
    return {
        one["name"] if names.count(one["name"]) == 1 else f"{one['name']} ({one['id']})": one["prob"] for one in classes
    }


def _sentence(model: "LoadedClassifier", head: str, found: list[dict] | float) -> str:
    if not isinstance(found, list):
        return f"{head}: {found:.4g} {model.about['labels'][head]['unit']}".rstrip()
    points = model.about.get("operating_points", {}).get(head, [])
    threshold = next((point["threshold"] for point in points if point["accuracy"] == ACCURACY), None)
    name, prob = found[0]["name"], found[0]["prob"]
    doubt = ""
    if threshold is not None and prob < threshold:
        doubt = f" (not sure: above {100 * threshold:.0f} %, {100 * ACCURACY:.0f} % of the answers are right)"
    return f"{head}: {name}, {100 * prob:.0f} %{doubt}"


def page(model: "LoadedClassifier", title: str):
    """Return the page, a gradio.Interface. Its API has the name /classify."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # which gradio reads when it is imported
    import gradio

    def classify(photo, *box):
        try:
            return answer(model, photo, *box)
        except ValueError as error:
            raise gradio.Error(str(error), print_exception=False) from None

    # The uploaded file itself, so that the model decodes it as in training
    inputs = [gradio.Image(type="filepath", image_mode=None, sources=["upload", "webcam", "clipboard"], label="Photo")]
    about = (
        "A photo in, its classes out. The model always names one of its classes, also for a photo of something else."
    )
    if model.crop_to_box:
        inputs += [gradio.Number(label=f"Box of the object, {side} (pixels)", value=None) for side in SIDES]
        about += " It was trained on objects: give the object's box, or a photo cut to it."
    outputs = [gradio.Textbox(label="Answer", lines=len(model.labels))]
    outputs += [gradio.Label(label=head, num_top_classes=TOP) for head in model.classes]
    outputs += [gradio.JSON(label="Data", open=False)]
    return gradio.Interface(
        classify, inputs, outputs, title=title, description=about, api_name="classify", flagging_mode="never",
        delete_cache=(SECONDS_KEPT, SECONDS_KEPT), analytics_enabled=False,
    )  # fmt: skip


if __name__ == "__main__":
    loaded = carvision.load(Path(__file__).parent)
    page(loaded, f"{' and '.join(loaded.classes) or 'Photos'}: {loaded.description['backbone']}").launch()
