"""What clients get: answers equal to carvision.predict, and errors of one shape."""

import asyncio
import base64
import io
import json
import random
import re
import shutil
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import carvision
from carvision.data.images import Preprocessing
from carvision.explanation.cam import class_activation_maps
from carvision.inference.predictor import Predictor, predict_items
from carvision.serving import limits
from carvision.serving.app import create_app
from tests.inference.tiny import LABELS, save_tiny
from tests.serving.conftest import POINTS, ask, ask_all, error_of, form, served, service_of

TIMES = 1e-5


@pytest.fixture(scope="module")
def model(tiny_run):
    return carvision.load(tiny_run)


def as_predicted(model, photos: list[bytes], boxes=None, top: int = 5) -> list[dict]:
    opened = [Image.open(io.BytesIO(photo)) for photo in photos]
    return model.predict(opened, boxes, top)


def require_equal(answered: dict, predicted: dict) -> None:
    """Require the classes in the same order, with the same probabilities; and the same number."""
    assert answered["error"] is None and answered["heads"].keys() == {"make", "model", "speed"}
    for head in ("make", "model"):
        pairs = list(zip(answered["heads"][head], predicted[head], strict=True))
        assert all((ours["id"], ours["name"]) == (other["id"], other["name"]) for ours, other in pairs)
        assert max(abs(ours["prob"] - other["prob"]) for ours, other in pairs) < TIMES
    assert answered["heads"]["speed"] == {"value": pytest.approx(predicted["speed"], rel=TIMES), "unit": "km/h"}


@pytest.mark.parametrize("num", [1, 2, 7, 8, 9, 31, 32])
def test_answers_equal_model_predict(app, model, photos, num):
    sent = random.Random(num).sample(photos, num)
    found = ask(app, "POST", "/v1/predict?top=2", **form(sent)).json()
    assert found["model"] == "tiny"
    for answered, predicted in zip(found["photos"], as_predicted(model, sent, top=2), strict=True):
        require_equal(answered, predicted)


def test_answers_are_the_same_whoever_else_asks(app, model, photos):
    """Single photos and groups at once, so that batches mix them, as a form, as JSON and raw."""
    predicted, requests, wanted = as_predicted(model, photos), [], []
    for number in random.Random(0).choices(range(40), k=60):
        group = [(number + i) % 40 for i in range(1 + number % 4)]
        wanted.append(group)
        as_json = {"photos": [{"data": base64.b64encode(photos[i]).decode(), "box": None} for i in group]}
        raw = {"content": photos[number], "headers": {"Content-Type": "image/x"}}
        kinds = [form([photos[i] for i in group]), {"json": as_json}, *([raw] if len(group) == 1 else [])]
        requests.append(("POST", "/v1/predict", kinds[number % len(kinds)]))
    for group, response in zip(wanted, ask_all(app, requests), strict=True):
        for i, answered in zip(group, response.json()["photos"], strict=True):
            require_equal(answered, predicted[i])


def test_what_belongs_to_a_photo(app, model, photos):
    box = [5, 6, 41.5, 39]
    [boxed, whole] = ask(app, "POST", "/v1/predict", **form([photos[1], photos[2]], [box, None])).json()["photos"]
    [first, second] = as_predicted(model, [photos[1], photos[2]], [box, None])
    require_equal(boxed, first)
    require_equal(whole, second)
    assert (boxed["box"], boxed["part"], whole["box"]) == (box, [5, 6, 42, 39], None)
    assert (whole["width"], whole["height"]) == Image.open(io.BytesIO(photos[2])).size
    assert whole["consistent"] is True  # decoded jointly
    reached = whole["heads"]["make"][0]["prob"] >= POINTS[1]["threshold"]  # of 0.9, as 0.95 is not reached
    assert whole["sure"] == {"make": reached, "model": None}
    raw = {"content": photos[1], "headers": {"Content-Type": "image/jpeg"}}
    [again] = ask(app, "POST", "/v1/predict?box=5,6,41.5,39", **raw).json()["photos"]
    require_equal(again, first)
    assert (again["box"], again["part"]) == (boxed["box"], boxed["part"])


def test_one_bad_photo_has_its_own_error(app, model, photos):
    sent = [photos[0], b"", photos[1], b"<svg/>", photos[3][:200], photos[4]]
    response = ask(app, "POST", "/v1/predict", **form(sent, [None, None, [0, 0, 9999, 9999], None, None, None]))
    codes = [photo["error"] and photo["error"]["code"] for photo in response.json()["photos"]]
    assert response.status_code == 200
    assert codes == [None, "unusable_photo", "invalid_value", "unsupported_type", "unusable_photo", None]
    for at, predicted in zip((0, 5), as_predicted(model, [photos[0], photos[4]]), strict=True):
        require_equal(response.json()["photos"][at], predicted)
    assert response.json()["photos"][1]["heads"] == {}
    alone = [error_of(ask(app, "POST", "/v1/predict", **form([photo]))) for photo in (sent[1], sent[3], sent[4])]
    assert alone == [(422, "unusable_photo"), (415, "unsupported_type"), (422, "unusable_photo")]
    assert ask(app, "POST", "/v1/predict", **form([b"", b"no"])).status_code == 200


ERRORS = {
    "GET /nothing": (404, "not_found"),
    "GET /v1/predict": (405, "method_not_allowed"),
    "POST /v1/predict": (415, "unsupported_type"),
    "POST /v1/predict?top=0": (422, "invalid_value"),
    "POST /v1/predict?top=1e3": (422, "invalid_value"),
    "POST /v1/predict?model=other": (404, "not_found"),
    "GET /v1/model?model=other": (404, "not_found"),
    "GET /v1/classes/speed": (404, "not_found"),
    "GET /v1/classes/other": (404, "not_found"),
    "GET /v1/classes/make?limit=0": (422, "invalid_value"),
    "GET /v1/neighbours/0.jpg": (404, "not_found"),
    "GET /v1/neighbours/x.jpg": (422, "invalid_value"),
    "POST /v1/neighbours?k=0": (422, "invalid_value"),
}


@pytest.mark.parametrize("line", ERRORS)
def test_errors_have_one_shape(app, line):
    assert error_of(ask(app, *line.split())) == ERRORS[line]


def test_errors_of_explain(app, photos):
    paths = ("?head=other", "?head=make&class=99", "?head=speed&class=1")
    assert {error_of(ask(app, "POST", f"/v1/explain{path}", **form(photos[:1]))) for path in paths} == {
        (422, "invalid_value")
    }
    assert error_of(ask(app, "POST", "/v1/explain", **form(photos[:2]))) == (400, "bad_request")
    assert error_of(ask(app, "POST", "/v1/explain", **form([b"no"]))) == (415, "unsupported_type")
    assert error_of(ask(app, "POST", "/v1/neighbours", **form(photos[:1]))) == (404, "not_found")


def test_a_body_is_bounded_while_it_arrives(app, service, photos, monkeypatch):
    monkeypatch.setattr(limits, "MAX_BODY_BYTES", 5000)
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 1000
            yield bytes(1000)

    response = ask(app, "POST", "/v1/predict", content=endless(), headers={"Content-Type": "image/jpeg"})
    assert error_of(response) == (413, "too_large") and response.json()["error"]["limit"] == 5000 and sent <= 7000
    assert error_of(ask(app, "POST", "/v1/predict", content=bytes(5001))) == (413, "too_large")
    monkeypatch.setattr(limits, "MAX_BYTES_WAITING", 100)
    assert error_of(ask(app, "POST", "/v1/predict", content=bytes(101))) == (429, "busy")
    monkeypatch.setattr(limits, "BODY_S", 0.05)

    async def slow():
        yield b"x"
        await asyncio.sleep(5)

    assert error_of(ask(app, "POST", "/v1/predict", content=slow())) == (504, "timeout")
    monkeypatch.undo()
    assert ask(app, "POST", "/v1/predict", **form(photos[:1])).status_code == 200  # no byte is counted still


class Held:
    """Holds the network's thread, from the first batch on, until the block ends."""

    def __init__(self, service, monkeypatch):
        self.service, self.monkeypatch = service, monkeypatch
        self.entered, self.open, self.num_photos = threading.Event(), threading.Event(), 0

    def __enter__(self):
        run = self.service.batcher.run

        def held(key, contents):
            self.entered.set()
            self.open.wait(30)
            self.num_photos += sum(len(images[0]) for images, _ in contents)
            return run(key, contents)

        self.monkeypatch.setattr(self.service.batcher, "run", held)
        return self

    def __exit__(self, *_):
        self.open.set()


def test_beyond_256_waiting_photos_clients_are_told_to_come_again(app, service, photos, monkeypatch):
    with Held(service, monkeypatch) as held:
        threading.Timer(0.5, held.open.set).start()
        responses = ask_all(app, [("POST", "/v1/predict", form(photos[:8]))] * 40)
    codes = [response.status_code for response in responses]
    assert codes.count(200) == 32 and codes.count(429) == 8
    busy = next(response for response in responses if response.status_code == 429)
    assert error_of(busy) == (429, "busy") and busy.headers["Retry-After"] == "1"
    assert busy.json()["error"]["limit"] == 256
    assert service.batcher.num_admitted == 0 and ask(app, "POST", "/v1/predict", **form(photos[:1])).status_code == 200


def test_a_client_that_goes_away_takes_its_photos_with_it(app, service, photos, monkeypatch):
    """The app is called as a server does, and the client disconnects while the network is busy with another photo."""

    async def call(gone: asyncio.Event) -> list[dict]:
        sent, messages = [], [{"type": "http.request", "body": photos[0], "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/v1/predict",
            "raw_path": b"/v1/predict", "query_string": b"", "root_path": "", "scheme": "http",
            "headers": [(b"content-type", b"image/jpeg")], "client": ("a", 1), "server": ("b", 2), "state": {},
        }  # fmt: skip
        await app(scope, receive, send)
        return sent

    async def run(held: Held) -> tuple[list, list]:
        stays, leaves = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(call(stays))
        while not held.entered.is_set():
            await asyncio.sleep(0.01)
        second = asyncio.create_task(call(leaves))
        while not service.batcher.jobs:
            await asyncio.sleep(0.01)
        leaves.set()
        return await second, [held.open.set(), await first][1]

    before = service.monitor.registry.get_sample_value("carvision_given_up_total")
    with Held(service, monkeypatch) as held:
        given_up, answered = asyncio.run(run(held))
    assert given_up[0]["status"] == 499 and answered[0]["status"] == 200 and held.num_photos == 1
    assert service.monitor.registry.get_sample_value("carvision_given_up_total") == before + 1


def test_an_answer_that_takes_too_long_is_a_timeout(app, service, photos, monkeypatch):
    monkeypatch.setattr(limits, "ANSWER_S", 0.1)
    with Held(service, monkeypatch):
        assert error_of(ask(app, "POST", "/v1/predict", **form(photos[:1]))) == (504, "timeout")
    assert service.batcher.num_admitted == 0


def test_what_fails_inside_is_one_plain_error(app, service, photos, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError(f"secret {object()}")

    with monkeypatch.context() as patch:
        patch.setattr(service.batcher, "run", fail)
        response = ask(app, "POST", "/v1/predict", **form(photos[:20]))
    assert error_of(response) == (500, "internal") and "secret" not in response.text
    assert "secret" in caplog.text  # for whoever runs the server
    assert ask(app, "POST", "/v1/predict", **form(photos[:20])).status_code == 200


def test_the_token_opens_the_api_alone(service, photos):
    app = create_app(service, "a-token-of-some-length")
    for path in ("/v1/model", "/v1/nothing", "/metrics", "/v1/classes/make"):
        for given in ("", "Bearer wrong", "Basic a-token-of-some-length", "Bearer a-token-of-some-lengthh", "Bearer ü"):
            response = ask(app, "GET", path, headers={"Authorization": given.encode()})
            assert error_of(response) == (401, "unauthorized") and response.headers["WWW-Authenticate"] == "Bearer"
    right = {"Authorization": "Bearer a-token-of-some-length"}
    assert ask(app, "POST", "/v1/predict", headers=right, **form(photos[:1])).status_code == 200
    for path in ("/", "/docs", "/static/app.js", "/openapi.json", "/livez", "/readyz"):
        assert ask(app, "GET", path).status_code == 200, path


def test_headers_forbid_other_sites(app, photos):
    for method, path in (("GET", "/"), ("GET", "/nothing"), ("POST", "/v1/predict"), ("GET", "/static/app.css")):
        headers = ask(app, method, path, headers={"Origin": "https://other"}).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'self';")
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
        assert not [name for name in headers if name.startswith("access-control-")]
        assert headers["Cache-Control"] == ("no-store" if path.startswith("/v1/") else "no-cache")
    preflight = {"Origin": "https://other", "Access-Control-Request-Method": "POST"}
    assert ask(app, "OPTIONS", "/v1/predict", headers=preflight).status_code == 405


def test_draining_refuses_new_requests(service, photos):
    app = create_app(service)
    assert ask(app, "GET", "/readyz").json() == {"status": "ok"}
    app.is_draining = True
    refused = ask(app, "POST", "/v1/predict", **form(photos[:1]))
    assert error_of(refused) == (503, "draining") and refused.headers["Retry-After"]
    assert error_of(ask(app, "GET", "/readyz")) == (503, "draining") and ask(app, "GET", "/livez").status_code == 200


def test_without_the_network_nothing_is_ready(tiny_run, photos):
    with service_of(served("tiny", tiny_run)) as service:
        app = create_app(service)
        service.batcher.close(10)
        assert error_of(ask(app, "GET", "/readyz")) == (503, "not_ready")
        assert error_of(ask(app, "POST", "/v1/predict", **form(photos[:1]))) == (503, "not_ready")


def test_a_heat_map_is_that_of_carvision_explain(app, model, photos):
    box = [10, 20, 60, 90]
    for head, code, words in (
        ("model", 1, "?head=model&class=2"),
        ("make", None, "?head=make"),
        ("speed", 0, "?head=speed"),
    ):
        found = ask(app, "POST", f"/v1/explain{words}", **form([photos[2]], [box])).json()
        image = Image.open(io.BytesIO(photos[2]))
        if code is None:
            [predicted] = as_predicted(model, [photos[2]], [box])
            code = model.class_ids["make"].index(predicted["make"][0]["id"])
        [cam] = class_activation_maps(model, [image], [box], head, [code])
        wanted = {"id": model.class_ids[head][code], "name": model.classes[head][code]} if head != "speed" else None
        assert (found["head"], found["class"], found["part"], found["note"]) == (head, wanted, box, cam.note)
        assert np.shape(found["values"]) == (found["rows"], found["columns"]) == cam.values.shape
        np.testing.assert_allclose(found["values"], cam.values, atol=1e-3)
    response = ask(app, "POST", "/v1/explain", headers={"Accept": "image/png"}, **form([photos[2]], [box]))
    drawn = Image.open(io.BytesIO(response.content))
    assert (response.headers["Content-Type"], drawn.format, drawn.size) == ("image/png", "PNG", (50, 70))


def test_embeddings_are_those_of_the_network(app, model, photos):
    found = ask(app, "POST", "/v1/embed", **form([*photos[:9], b"no"])).json()
    images = torch.stack([model.transform(Image.open(io.BytesIO(photo))) for photo in photos[:9]])
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(model.embed(images)).numpy()
    assert found["width"] == wanted.shape[1] and found["photos"][9]["error"]["code"] == "unsupported_type"
    np.testing.assert_allclose([photo["embedding"] for photo in found["photos"][:9]], wanted, atol=1e-5)


@pytest.fixture(scope="module")
def indexed_run(demo_run, tmp_path_factory):
    """The run with embeddings, as carvision embed writes them, and an unfinished folder of them."""
    from carvision.embed import embed

    run = tmp_path_factory.mktemp("indexed") / "demo"
    shutil.copytree(demo_run, run)
    embed([str(run)])
    shutil.copytree(next((run / "embeddings").iterdir()), run / "embeddings" / "9999-01-01")
    (run / "embeddings" / "9999-01-01" / ".unfinished").touch()
    return run


def test_neighbours_are_the_nearest_training_photos(indexed_run, demo_photos, photos):
    import pandas as pd

    [folder] = [each for each in (indexed_run / "embeddings").iterdir() if each.name < "9"]
    values, index = np.load(folder / "embeddings.npy"), pd.read_csv(folder / "index.csv", dtype=str)
    row = int(np.flatnonzero(index["split"] == "train")[3])
    with service_of(served("demo", indexed_run)) as service:
        app = create_app(service)
        sent = next(demo_photos.rglob(index["path"][row])).read_bytes()
        box = [[float(index[side][row]) for side in ("left", "top", "right", "bottom")]]
        found = ask(app, "POST", "/v1/neighbours?k=7", **form([sent], box)).json()["neighbours"]
        train = np.flatnonzero(index["split"] == "train")
        wanted = train[np.argsort(-(values[train] @ values[row]), kind="stable")][:7]
        assert [each["row"] for each in found] == wanted.tolist() and found[0]["row"] == row
        np.testing.assert_allclose([each["similarity"] for each in found], values[wanted] @ values[row], atol=1e-4)
        assert found[0]["classes"]["make"]["id"] == index["make"][row]
        shown = ask(app, "GET", found[0]["photo"])
        assert shown.headers["Content-Type"] == "image/jpeg"
        assert max(Image.open(io.BytesIO(shown.content)).size) <= 320
        assert error_of(ask(app, "GET", f"/v1/neighbours/{len(index)}.jpg")) == (404, "not_found")
        assert ask(app, "GET", "/v1/model").json()["neighbours"] == {"available": True, "hint": None}
        assert len(ask(app, "POST", "/v1/neighbours?k=100", **form([sent])).json()["neighbours"]) == min(
            100, len(train)
        )
        (folder / "index.csv").write_text("broken")
        service.first.index.loaded = None
        assert error_of(ask(app, "POST", "/v1/neighbours", **form([sent]))) == (404, "not_found")


def test_about_and_classes(demo_run):
    with service_of(served("demo", demo_run)) as service:
        app = create_app(service)
        found = ask(app, "GET", "/v1/model").json()
        make = ask(app, "GET", "/v1/classes/model?limit=2&offset=1").json()
    metrics = json.loads((demo_run / "metrics.json").read_text(encoding="utf-8"))
    splits = (demo_run / "splits.csv").read_text(encoding="utf-8").splitlines()
    num = sum(",test," in line for line in splits)
    top1 = found["metrics"]["test"]["model/top1"]
    share, z = metrics["test"]["model/top1"], 1.959964
    ends = [(share + z * z / 2 / num + sign * z * (share * (1 - share) / num + z * z / 4 / num**2) ** 0.5)
            / (1 + z * z / num) for sign in (-1, 1)]  # fmt: skip
    assert top1 == {"value": share, "low": pytest.approx(ends[0]), "high": pytest.approx(ends[1]), "num": num}
    assert found["metrics"]["test"]["loss"]["low"] is None
    assert found["heads"]["model"] == {"kind": "classes", "num_classes": 12, "parent": "make"}
    assert found["heads"]["speed"] == {"kind": "number", "unit": "km/h"}
    assert found["neighbours"] == {"available": False, "hint": "carvision embed demo"}
    assert found["card"].startswith("#") and str(demo_run) not in json.dumps(found)
    assert (make["num_classes"], make["matches"], len(make["classes"])) == (12, 12, 2)
    assert make["classes"][0]["parent"]["name"]


def test_search_of_classes_ignores_case_and_accents_as_written(app):
    find = lambda text: ask(app, "GET", "/v1/classes/model", params={"search": text}).json()  # noqa: E731
    assert [each["id"] for each in find("x5")["classes"]] == ["2", "9"] and find("ａ４")["matches"] == 1
    assert find("zzz") == {"head": "model", "num_classes": 3, "matches": 0, "classes": []}
    assert find("a4")["classes"] == [{"id": "1", "name": "A4", "parent": {"id": "3", "name": "Audi"}}]


def test_several_models_by_name_and_their_average(tiny_run, tmp_path, photos):
    other = save_tiny(tmp_path / "other", 1, preprocessing=Preprocessing(48, (0.4,) * 3, (0.3,) * 3, resize="crop"))
    alone, both = [served("tiny", tiny_run), served("other", other)], served("both", tiny_run, other)
    with service_of(*alone) as service, service_of(both) as averaged:
        app, average = create_app(service), create_app(averaged)
        requests = [("POST", f"/v1/predict?model={name}", form(photos[:5])) for name in ("tiny", "other") * 6]
        answers = ask_all(app, requests)
        names = [response.json()["model"] for response in answers]
        answers = dict(zip(names, answers, strict=True))
        for each in alone:
            for answered, predicted in zip(
                answers[each.name].json()["photos"], as_predicted(each.model, photos[:5]), strict=True
            ):
                require_equal(answered, predicted)
        assert names == ["tiny", "other"] * 6 and ask(app, "GET", "/v1/model").json()["models"] == ["tiny", "other"]
        found = ask(average, "POST", "/v1/predict", **form(photos[:5])).json()["photos"]
        items = [(Image.open(io.BytesIO(photo)), None) for photo in photos[:5]]
        predictor = Predictor(both.models)
        [batch] = predict_items(predictor, items, "cpu", num_workers=0)
        probs = predictor.probs(batch.logits)["make"].numpy()
        for answered, wanted in zip(found, probs, strict=True):
            by_id = {each["id"]: each["prob"] for each in answered["heads"]["make"]}
            assert [by_id[id_] for id_ in LABELS["make"]["ids"]] == pytest.approx(wanted.tolist(), abs=TIMES)
            assert answered["sure"] == {"make": None, "model": None}  # the thresholds are of one model
        assert ask(average, "POST", "/v1/explain", **form(photos[:1])).status_code == 200
        assert ask(average, "POST", "/v1/embed", **form(photos[:1])).status_code == 200


def test_metrics_count_requests_photos_and_batches(tiny_run, photos):
    with service_of(served("tiny", tiny_run)) as service:
        app = create_app(service)
        ask(app, "POST", "/v1/predict", **form([*photos[:3], b"no"]))
        ask(app, "GET", "/v1/secret/path")
        text = ask(app, "GET", "/metrics").text
    wanted = [
        'requests_total{code="200",path="/v1/predict"} 1.0', 'requests_total{code="404",path="other"} 1.0',
        'bad_photos_total{reason="unsupported_type"} 1.0', 'photos_total{model="tiny"} 4.0', "batch_photos_sum 3.0",
        'seconds_count{part="network"} 1.0', 'seconds_count{part="decoding"} 1.0', 'seconds_count{part="waiting"} 1.0',
        "queue_photos 0.0",
    ]  # fmt: skip
    assert [line for line in wanted if f"carvision_{line}" not in text] == [] and "secret" not in text


def test_the_description_names_all_routes_and_needs_no_other_site(app):
    described = ask(app, "GET", "/openapi.json").json()
    assert described["paths"].keys() == {
        "/v1/predict", "/v1/explain", "/v1/embed", "/v1/neighbours", "/v1/neighbours/{row}.jpg", "/v1/model",
        "/v1/classes/{head}", "/livez", "/readyz", "/metrics",
    }  # fmt: skip
    contents = described["paths"]["/v1/predict"]["post"]["requestBody"]["content"]
    assert {"multipart/form-data", "application/json", "image/jpeg"} <= contents.keys()
    assert {"400", "401", "413", "415", "422", "429", "503", "504"} <= described["paths"]["/v1/predict"]["post"][
        "responses"
    ].keys()
    assert not re.findall(r"(?:src|href)=\W*(?:https?:)?//", ask(app, "GET", "/docs").text)
