"""`python -m compat.evaluate` with everything it can look at, held against plain searches and its own report."""

import importlib
import json
import shlex
from itertools import product

import numpy as np
import polars as pl
import pytest
from planted import plant, write_store

from compat.options import FitOptions
from compat.pairs import Pairs
from compat.training.fit import fit_transformer
from stores.space import EmbeddingSpace
from stores.store import EmbeddingStore

PEOPLE, PICTURES = 50, 6
ASKED = np.arange(PEOPLE * PICTURES) % PICTURES == 0
OLD, NEW = EmbeddingSpace("old", None, 12, False), EmbeddingSpace("new", None, 16, False)


@pytest.fixture(scope="module")
def world():
    return plant(PEOPLE, PICTURES, 12, 16, noise=0.7, new_noise=0.4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, world):
    """Galleries, queries, maps and tables of 50 people; the new gallery is in another order."""
    folder = tmp_path_factory.mktemp("evaluate")
    training = plant(80, PICTURES, 12, 16, noise=0.7, new_noise=0.4, seed=0)
    pairs = Pairs.from_arrays(training.old, training.new, training.labels, old_space=OLD, new_space=NEW)
    for name, options in {
        "forth": FitOptions(transformer="ridge", correction=0.5),
        "back": FitOptions(transformer="ridge", direction="old-to-new", correction=0.5),
        "plain": FitOptions(transformer="procrustes"),
    }.items():
        fit_transformer(pairs, options).save(folder / name)
    few = Pairs.from_arrays(training.old[:30], training.new[:30], old_space=OLD, new_space=NEW)
    fit_transformer(few, FitOptions(transformer="ridge", strength=1.0)).save(folder / "few")
    rng = np.random.default_rng(1)
    places = {"gallery": np.flatnonzero(~ASKED), "queries": np.flatnonzero(ASKED)}
    for part, model in product(places, ("old", "new")):
        rows = rng.permutation(places[part]) if (part, model) == ("gallery", "new") else places[part]
        extra = {"camera": [f"c{row % 7 % 3}" for row in rows]}
        ids = [f"i{row}" for row in rows]
        write_store(
            folder / f"{part}-{model}",
            getattr(world, model)[rows],
            name=model,
            ids=ids,
            labels=world.labels[rows],
            extra=extra,
        )
    nameless = [f"i{row}" for row in places["queries"]]
    write_store(folder / "unlabelled", world.new[ASKED], name="new", ids=nameless)
    held = places["gallery"]
    pl.DataFrame({"item_id": [f"i{row}" for row in held[::-1]]}).write_csv(folder / "order.csv")
    asked = np.repeat(places["queries"], 2)
    others = np.where(np.arange(len(asked)) % 2 == 0, asked + 1, (asked + PICTURES + 1) % len(ASKED))
    same = world.labels[asked] == world.labels[others]
    columns = {"item_id_a": [f"i{r}" for r in asked], "item_id_b": [f"i{r}" for r in others], "same": same.astype(int)}
    pl.DataFrame(columns).write_csv(folder / "pairs.csv")
    return folder


@pytest.fixture
def evaluate(folder, tmp_path, capsys):
    """Run the command in this process on the stores of the folder; its exit code, report and standard error."""

    def call(*words, gallery="gallery-old", queries="queries-new", out="out"):
        given = ["--gallery", folder / gallery, "--queries", folder / queries, "--out", tmp_path / out, *words]
        code = importlib.import_module("compat.evaluate").main([str(word) for word in given])
        captured = capsys.readouterr()
        report = tmp_path / out / "report.json"
        return code, json.loads(report.read_text()) if report.exists() else None, captured

    return call


def native(folder):
    return ("--old-queries", folder / "queries-old", "--new-gallery", folder / "gallery-new")


def cosines(queries, gallery):
    queries, gallery = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (queries, gallery))
    return queries.astype(float) @ gallery.astype(float).T


@pytest.mark.parametrize("judged", ["forth", "back"])
def test_everything_at_once(folder, world, evaluate, tmp_path, judged):
    code, report, captured = evaluate(
        *native(folder),
        *("--transformer", folder / judged, "--compare", folder / "plain", folder / "few"),
        *("--group-by", "camera", "--means", "yes", "--index", "Flat", "HNSW8"),
        *("--backfill-order", folder / "order.csv", "--pair-list", folder / "pairs.csv"),
        *("--drift", folder / "queries-new"),
    )
    assert code == 0, captured.err
    assert [bridge["name"] for bridge in report["comparisons"]] == ["plain", "few"]
    assert {row["group"] for row in report["by_group"]["rows"]} == {"c0", "c1", "c2"}
    assert sum(row["queries"] for row in report["by_group"]["rows"]) == PEOPLE
    exact = report["settings"]["transformed"]["recall_at_1"]["value"]
    flat = {row["setting"]: row for row in report["approximate"] if row["factory"] == "Flat"}
    assert flat["transformed"]["recall_at_1"]["value"] == flat["transformed"]["exact_recall_at_1"] == exact
    assert flat["transformed"]["agreement"] == flat["old_to_old"]["agreement"] == 1.0
    assert {row["factory"] for row in report["approximate"]} == {"Flat", "HNSW8"}
    assert report["cmc"]["settings"]["transformed"][0] == pytest.approx(exact)
    assert report["cmc"]["settings"]["transformed"][9] == pytest.approx(
        report["settings"]["transformed"]["recall_at_10"]["value"]
    )
    backfill = report["backfill"]
    assert {"random", "per_identity", "given"} <= backfill["orders"].keys()
    for order in backfill["orders"].values():
        assert order["recall_at_1"][0] == pytest.approx(exact)
    if judged == "forth":  # of a corrected gallery the new items are corrected as well
        assert backfill["orders"]["random"]["recall_at_1"][-1] == pytest.approx(
            report["settings"]["new_to_new"]["recall_at_1"]["value"]
        )
    assert report["drift"]["verdict"] in ("as_fitted", "drifted", "too_few")
    assert report["confidence"]["abstained"][0] == 0
    assert report["confidence"]["recall_at_1"][0]["value"] == pytest.approx(exact)
    assert any("set the threshold anew: the old one" in note for note in report["notes"])  # corrected scores are lower
    for name in ("report.html", "tables.csv", "tables.md", "tables.tex"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    assert "Worst group: camera" in captured.out or "No group surely loses; the worst: camera" in captured.out
    for said in ("Verification, TAR at FAR", "Gallery of means", "list of pairs", "Approximate indexes", "Drift"):
        assert said in captured.out


def test_means_and_listed_pairs_are_what_plain_numpy_finds(folder, world, evaluate):
    given = ("--transformer", folder / "plain", "--means", "yes", "--pair-list", folder / "pairs.csv")
    _, report, _ = evaluate(*native(folder), *given, "--backfill", "no", "--verification", "no", "--open-set", "no")
    assert not {"backfill", "verification", "open_set"} & report.keys()
    held = ~ASKED
    units = world.old[held] / np.linalg.norm(world.old[held], axis=1, keepdims=True)
    means = np.stack([units[world.labels[held] == person].mean(axis=0) for person in range(PEOPLE)])
    found = cosines(world.old[ASKED], means).argmax(axis=1) == world.labels[ASKED]
    assert report["means"]["labels"] == PEOPLE
    assert report["means"]["recall_at_1"]["old_to_old"]["value"] == pytest.approx(found.mean())
    table = pl.read_csv(folder / "pairs.csv")
    first, second = ([int(name[1:]) for name in table[side]] for side in ("item_id_a", "item_id_b"))
    for name, model in (("old_to_old", "old"), ("new_to_new", "new")):
        vectors = getattr(world, model)
        scores = np.diag(cosines(vectors[first], vectors[second]))
        same = table["same"].to_numpy() == 1
        steps = np.sort(scores)
        far = np.array([(scores[~same] >= step).mean() for step in steps])
        frr = np.array([(scores[same] < step).mean() for step in steps])
        nearest = np.abs(far - frr).argmin()
        rate = report["pair_list"]["settings"][name]["equal_error_rate"]
        assert rate == pytest.approx((far[nearest] + frr[nearest]) / 2, abs=0.02)
    assert report["pair_list"]["genuine_pairs"] == int((table["same"] == 1).sum())


def test_the_command_in_the_report_forms_it_again(folder, evaluate, tmp_path):
    given = ("--transformer", folder / "back", "--group-by", "camera", "--verdict.tolerated-loss", "0.3", "--seed", "4")
    _, report, _ = evaluate(*native(folder), *given)
    words = shlex.split(report["reproduce"]["command"])
    assert words[:3] == ["python", "-m", "compat.evaluate"]
    words = [word.replace(str(tmp_path / "out"), str(tmp_path / "again")) for word in words[3:]]
    assert importlib.import_module("compat.evaluate").main(words) == 0
    again = json.loads((tmp_path / "again" / "report.json").read_text())
    for each in (report, again):
        each["reproduce"].pop("command")
    assert again == report
    with EmbeddingStore.open(folder / "queries-old") as store:
        digests = {row["role"]: row["digest"] for row in report["reproduce"]["inputs"]}
        assert digests["old queries"] == store.digest()


def test_templates_are_searched_as_one_vector_each(folder, world, evaluate, tmp_path):
    given = ("--transformer", folder / "plain", "--template-by", "template")
    halves = np.arange(PEOPLE * PICTURES) % 2
    for name, model in (("old", "old"), ("new", "new")):
        for part in (0, 1):
            rows = np.flatnonzero(halves == part)
            names = [f"{'pg'[part]}{world.labels[row]}" for row in rows]
            ids, labels = [f"i{row}" for row in rows], world.labels[rows]
            extra = {"template": names, "media": [row % 3 for row in rows]}
            write_store(
                tmp_path / f"{name}{part}", getattr(world, model)[rows], name=name, ids=ids, labels=labels, extra=extra
            )
    stores = ("--old-queries", tmp_path / "old0", "--new-gallery", tmp_path / "new1")
    code, report, captured = evaluate(*given, *stores, gallery=tmp_path / "old1", queries=tmp_path / "new0")
    assert code == 0, captured.err
    assert report["gallery"]["rows"] == report["queries"]["rows"] == PEOPLE
    assert report["gallery"]["path"] == str(tmp_path / "old1")
    units = world.new / np.linalg.norm(world.new, axis=1, keepdims=True)
    means = []
    for part in (0, 1):
        rows = [np.flatnonzero((world.labels == person) & (halves == part)) for person in range(PEOPLE)]
        media = [[units[some][some % 3 == m].mean(axis=0) for m in set(some % 3)] for some in rows]
        means.append(np.stack([np.mean(some, axis=0) for some in media]))
    right = cosines(*means).argmax(axis=1) == np.arange(PEOPLE)
    assert report["settings"]["new_to_new"]["recall_at_1"]["value"] == pytest.approx(right.mean())
    code, _, captured = evaluate(*given, *stores)
    assert code == 2
    assert "no column 'template'" in captured.err


def test_without_labels_there_is_less_to_say(folder, evaluate):
    given = (*native(folder), "--transformer", folder / "plain", "--relevance", "item")
    code, report, captured = evaluate(*given, queries="unlabelled")
    assert code == 2  # no query is an item of this gallery
    assert "no query has a relevant item" in captured.err
    given = ("--transformer", folder / "plain", "--old-queries", folder / "gallery-old")
    code, report, captured = evaluate(*given, "--relevance", "item", queries="gallery-new")
    assert code == 0, captured.err
    assert not {"backfill", "by_group", "means", "drift"} & report.keys()
    assert report["verdict"]["decision"] in ("keep_old", "re_embed", "not_enough_evidence")


@pytest.mark.parametrize(
    ("words", "queries", "message"),
    [
        (["--group-by", "lens"], "queries-new", "no column 'lens'; it has item_id, label, camera"),
        (["--verification", "yes"], "unlabelled", "verification needs a column label"),
        (["--open-set", "yes"], "unlabelled", "open-set needs a column label"),
        (["--means", "yes"], "unlabelled", "means needs a column label"),
        (["--backfill", "yes"], "queries-new", "a backfill needs --new-gallery"),
        (["--index", "HSNW32"], "queries-new", "FAISS makes no index of"),
        (["--index", "IVF4096,Flat"], "queries-new", "cannot train 'IVF4096,Flat'"),
        (["--pair-list", "{folder}/order.csv"], "queries-new", "item_id_a"),
        (["--drift", "{folder}/queries-old"], "queries-new", "old"),
        (["--verdict.retention-floor", "2"], "queries-new", "between 0 and 1"),
        (["--index", "IDMap,Flat"], "queries-new", "takes no plain vectors"),
        (["--index", "IVF4,Flat;nporbe=2"], "queries-new", "has no settings 'nporbe=2'"),
        (["--backfill-order", "{folder}/order.csv"], "queries-new", "a backfill needs --new-gallery"),
        (["--compare", "{folder}/plain"], "queries-new", "named twice"),
        (["--out", "{folder}/order.csv"], "queries-new", "is a file"),
        (["--seed", "-1"], "queries-new", "seed must not be negative"),
        (["--compare", "{folder}/nowhere"], "queries-new", "nowhere"),
    ],
)
def test_a_mistake_is_one_line(folder, evaluate, words, queries, message):
    words = [word.format(folder=folder) for word in words]
    given = ("--transformer", folder / "plain", "--relevance", "label" if queries == "queries-new" else "item")
    if queries == "unlabelled":  # these are items of a gallery of their own
        code, _, captured = evaluate(*given, *words, queries=queries, gallery="queries-old")
    else:
        code, _, captured = evaluate(*given, *words, queries=queries)
    assert code == 2
    last = captured.err.splitlines()[-1]
    assert last.startswith("error:")
    assert message in last
    assert "Traceback" not in captured.err


def test_drift_and_backfill_order_need_what_they_are_about(folder, evaluate, tmp_path):
    code, _, captured = evaluate("--drift", folder / "queries-new", "--old-queries", folder / "queries-old")
    assert code == 2
    assert "--drift needs --transformer" in captured.err
    pl.DataFrame({"item_id": ["i1", "i2"]}).write_csv(tmp_path / "short.csv")
    given = (*native(folder), "--transformer", folder / "plain", "--backfill-order", tmp_path / "short.csv")
    code, _, captured = evaluate(*given)
    assert code == 2
    assert "must name every item" in captured.err


def test_what_has_no_label_is_neither_mate_nor_impostor(folder, world, evaluate, tmp_path):
    rng = np.random.default_rng(5)
    known = {"queries": rng.random(PEOPLE) < 0.6, "gallery": rng.random(PEOPLE * (PICTURES - 1)) < 0.7}
    for part, rows in (("queries", np.flatnonzero(ASKED)), ("gallery", np.flatnonzero(~ASKED))):
        for model in ("old", "new"):
            order = rng.permutation(len(rows)) if (part, model) == ("gallery", "new") else np.arange(len(rows))
            for name, some in (("null", np.ones(len(rows), bool)), ("known", known[part])):
                here = order[some[order]]
                labels = [int(world.labels[rows[i]]) if known[part][i] else None for i in here]
                ids, vectors = [f"i{rows[i]}" for i in here], getattr(world, model)[rows[here]]
                write_store(tmp_path / f"{name}-{part}-{model}", vectors, name=model, ids=ids, labels=labels)
    reports = {}
    for name in ("null", "known"):
        stores = ("--old-queries", tmp_path / f"{name}-queries-old", "--new-gallery", tmp_path / f"{name}-gallery-new")
        given = (*stores, "--transformer", folder / "plain", "--means", "yes", "--backfill", "no")
        gallery, queries = (tmp_path / f"{name}-{part}" for part in ("gallery-old", "queries-new"))
        code, reports[name], captured = evaluate(*given, gallery=gallery, queries=queries, out=name)
        assert code == 0, captured.err
    for section in ("verification", "open_set", "means"):
        assert reports["null"][section] == reports["known"][section]
    unknown = (int((~known["queries"]).sum()), int((~known["gallery"]).sum()))
    said = f"{unknown[0]} queries and {unknown[1]} gallery items have no label"
    assert any(said in note for note in reports["null"]["notes"])
    assert not any("have no label" in note for note in reports["known"]["notes"])


@pytest.mark.parametrize("name", ["back", "forth"])
def test_a_gallery_migrated_with_its_correction_is_backfilled_as_the_old_one_is(folder, evaluate, tmp_path, name):
    from compat.migration.run import migrate_gallery
    from compat.transformers.artefact import load_transformer

    transformer = load_transformer(folder / name)
    migrate_gallery(str(folder / "gallery-old"), transformer, str(tmp_path / "migrated"))
    given = ("--new-gallery", folder / "gallery-new", "--transformer", folder / name, "--verification", "no")
    code, report, captured = evaluate(*given, gallery=tmp_path / "migrated", out="migrated")
    assert code == 0, captured.err
    _, direct, _ = evaluate(*given, out="direct")
    for order in ("random", "per_identity"):
        moved, straight = (found["backfill"]["orders"][order]["area"] for found in (report, direct))
        assert moved == pytest.approx(straight, abs=1e-3)
    if name == "back":
        code, report, captured = evaluate(*given[:2], gallery=tmp_path / "migrated", out="alone")
        assert code == 0, captured.err
        assert "pass its --transformer" in report["backfill"]["reason"]


def test_judgements_of_items_that_are_not_there_are_told_or_refused(folder, evaluate, tmp_path):
    asked = np.flatnonzero(ASKED)
    rows = [(f"i{row}", f"i{row + step}") for row in asked for step in (1, 2, 3)]
    for name, share in (("some", 3), ("most", 1)):
        table = [(query, item if number % 4 >= 4 - share else f"x{item}") for number, (query, item) in enumerate(rows)]
        columns = dict(zip(("query_id", "item_id"), zip(*table, strict=True), strict=True))
        pl.DataFrame({name: list(values) for name, values in columns.items()}).write_csv(tmp_path / f"{name}.csv")
    given = ("--transformer", folder / "plain", "--old-queries", folder / "queries-old", "--relevance")
    code, report, captured = evaluate(*given, tmp_path / "some.csv")
    assert code == 0, captured.err
    missing = sum(number % 4 < 1 for number in range(len(rows)))
    assert any(f"{missing} of {len(rows)} items judged" in note for note in report["notes"])
    code, _, captured = evaluate(*given, tmp_path / "most.csv")
    assert code == 2
    assert "check that table and gallery name items alike" in captured.err
