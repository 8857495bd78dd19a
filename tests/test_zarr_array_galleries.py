"""Zarr arrays and groups that others wrote, and groups written for others."""

import json
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_galleries import ORIGIN, SPACE, Contract, assert_same, read, rows, written

from stores.chunks import DamagedStore
from stores.convert import ConvertOptions, convert
from stores.galleries import digest, locate, open_source, open_target
from stores.store import EmbeddingStore


class TestZarrArray(Contract):
    name = "gallery"
    scheme = "zarr+array"

    def test_zarr_and_tensorstore_read_it(self, uri):
        import tensorstore
        import zarr

        written(uri, 50, ids=int)
        folder = Path(locate(uri)[1])
        group: Any = zarr.open_group(str(folder), mode="r")
        assert sorted(group) == ["item_id", "label", "vectors"]
        assert group["vectors"].dtype == np.float32
        np.testing.assert_array_equal(group["vectors"][:], rows(0, 50).vectors)
        np.testing.assert_array_equal(group["item_id"][:], np.arange(50))
        assert group["label"][:].tolist() == rows(0, 50).items["label"].to_list()
        for name, expected in {"vectors": rows(0, 50).vectors, "item_id": np.arange(50)}.items():
            spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / name)}}
            array: Any = tensorstore.open(spec).result()
            np.testing.assert_array_equal(array.read().result(), expected)

    def test_the_checksums_of_a_group_that_lost_its_card_still_tell_damage(self, uri, tmp_path):
        written(uri, 50)
        (tmp_path / "there" / "gallery.json").unlink()
        chunk = tmp_path / "there" / "gallery" / "vectors" / "c" / "0" / "0"
        content = bytearray(chunk.read_bytes())
        content[100] ^= 1
        chunk.write_bytes(content)
        with pytest.raises(DamagedStore, match=r"vectors/c/0/0 .*does not match its checksum"):
            read(open_source(uri))

    @pytest.mark.parametrize("step", ["stores.galleries.card.GalleryCard.write", "pathlib.Path.replace"])
    def test_a_run_that_dies_within_finish_can_be_run_again(self, uri, monkeypatch, step):
        def die(*_, **__):
            raise KeyboardInterrupt

        target = open_target(uri, SPACE, ORIGIN)
        target.write(rows(0, 20))
        target.commit()
        with monkeypatch.context() as patch:
            patch.setattr(step, die)
            with pytest.raises(KeyboardInterrupt):
                target.finish()
        target.close()
        with pytest.raises(ValueError, match="unfinished"):
            open_source(uri)
        assert_same(read(written(uri, 20)), rows(0, 20))

    def test_archives_are_only_read(self, tmp_path):
        with pytest.raises(ValueError, match="only read"):
            open_target(str(tmp_path / "new.zip"), SPACE, ORIGIN)


VECTORS = np.random.default_rng(0).normal(size=(50, 12)).astype(np.float32)
VECTORS[0, :4] = [-0.0, 1e-45, np.finfo(np.float32).max, np.finfo(np.float32).tiny]
COLUMNS = {
    "item_id": np.arange(50, dtype="<i8") * 3 - 2**62,
    "label": np.array([f"é{i % 3}" for i in range(50)], dtype="<U2"),
    "age": np.arange(1, 51, dtype="<u2"),
    "score": np.arange(1, 51, dtype="<f8") / 7,
    "known": np.arange(50) % 3 > 0,
    "name": np.array([f"näme {'x' * i}" for i in range(50)], dtype=np.dtypes.StringDType()),
    "code": np.array([f"c{i}".encode() for i in range(50)], dtype="S3"),
}
OTHERS = {"days": np.arange(50).astype("M8[D]"), "pairs": np.ones((50, 2), int), "other": np.arange(7)}


def save(folder, vectors=VECTORS, columns=None, *, version: Any = 3, name="vectors", chunks=(16, 12), **options):
    """A group as zarr-python writes it."""
    import zarr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.create_group(str(folder), zarr_format=version)
        columns = COLUMNS | OTHERS if columns is None else columns
        made = group.create_array(
            name,
            shape=vectors.shape,
            dtype=vectors.dtype,
            chunks=chunks,
            config={"write_empty_chunks": True},
            **options,
        )
        made[:] = vectors
        for column, values in columns.items():
            made = group.create_array(
                column, shape=values.shape, dtype=values.dtype, chunks=values.shape, config={"write_empty_chunks": True}
            )
            made[:] = values
    return folder


def said(uri):
    """What is said of a gallery that is opened and read to its end."""
    with pytest.raises((ValueError, OSError)) as caught:
        read(open_source(str(uri)))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    return caught.value


def complaint(folder, *, exact=True):
    """What is said of damage, if it is; otherwise every vector is as it was, or at least there."""
    try:
        found = read(open_source(str(folder))).vectors
    except DamagedStore as error:
        said_of_it = str(error)
    else:
        if exact:
            np.testing.assert_array_equal(found, VECTORS)
        assert found.shape == VECTORS.shape
        return None
    assert "\n" not in said_of_it
    return said_of_it


def by_hand():
    values = {}
    for name, column in COLUMNS.items():
        values[name] = [v.decode() if isinstance(v, bytes) else v for v in column.tolist()]
    return values


def zarr_options(version, number):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that codecs of version 2 are no part of version 3
        return every_option(version)[number]


def every_option(version):
    from numcodecs import BZ2, LZ4, LZMA, Adler32, BitRound, Blosc, GZip, Shuffle, Zlib, Zstd
    from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec
    from zarr.codecs.numcodecs import Shuffle as Shuffle3
    from zarr.codecs.numcodecs import Zlib as Zlib3

    if version == 2:
        return [
            {"compressors": None},
            {"compressors": None, "order": "F"},
            {"compressors": Blosc(cname="zstd", shuffle=2)},
            {"compressors": Zlib(), "filters": [Shuffle(4)]},
            {"compressors": Zstd(checksum=True), "chunk_key_encoding": {"name": "v2", "separator": "/"}},
            {"compressors": GZip()},
            {"compressors": LZ4()},
            {"compressors": BZ2(), "filters": [Adler32()]},
            {"compressors": LZMA(), "filters": [BitRound(23)]},
        ]
    return [
        {"compressors": None},
        {"compressors": [Crc32cCodec()]},
        {"compressors": [GzipCodec(), Crc32cCodec()]},
        {"compressors": [ZstdCodec()], "filters": [TransposeCodec(order=(1, 0))]},
        {"compressors": [BloscCodec(typesize=4)], "chunk_key_encoding": {"name": "default", "separator": "."}},
        {"compressors": [Shuffle3(elementsize=4), Zlib3()]},
        {"serializer": BytesCodec(endian="big"), "compressors": None},
        {"compressors": [Crc32cCodec()], "shards": (32, 12)},
        {"compressors": [ZstdCodec(checksum=True)], "shards": (32, 24)},
    ]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("chunks", [(16, 12), (50, 3), (7, 5), (1, 12), (64, 16)])
def test_whatever_zarr_writes_comes_back_number_for_number(tmp_path, version, number, chunks):
    options = zarr_options(version, number)
    if "shards" in options:
        options["shards"] = tuple(2 * size for size in chunks)
    folder = save(tmp_path / "old", chunks=chunks, version=version, **options)
    source = open_source(str(folder))
    assert (len(source), source.dim, source.space, source.provenance) == (50, 12, None, {})
    found = read(source, 9)
    np.testing.assert_array_equal(found.vectors.view(np.uint32), VECTORS.view(np.uint32))
    assert found.items.columns == ["item_id", "label", *sorted(COLUMNS.keys() - {"item_id", "label"})]
    assert found.items.select(list(COLUMNS)).to_dict(as_series=False) == by_hand()
    for size, start in [(1, 49), (20, 17), (64, 0), (5, 50)]:
        pieces = list(source.scan(size, start=start))
        assert [len(piece.items) for piece in pieces] == [len(piece.vectors) for piece in pieces]
        joined = np.concatenate([np.empty((0, 12), np.float32), *(piece.vectors for piece in pieces)])
        np.testing.assert_array_equal(joined, VECTORS[start:])


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f8"])
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", ["embeddings", "anything"])
def test_other_floats_and_names(tmp_path, dtype, version, name):
    vectors = (VECTORS[1:] * 30).astype(dtype)
    found = read(open_source(f"zarr+array:{save(tmp_path / 'old', vectors, {}, version=version, name=name)}"))
    np.testing.assert_array_equal(found.vectors, vectors.astype(np.float32))
    assert found.items["item_id"].to_list() == list(range(49))


def test_an_array_alone_and_paths_that_do_not_name_the_scheme(tmp_path):
    import zarr

    vectors: Any = VECTORS
    zarr.save_array(str(tmp_path / "two"), vectors, zarr_format=2)
    zarr.save_array(str(tmp_path / "three"), vectors, zarr_format=3)
    for uri in ("two", "three"):
        for scheme in ("", "zarr:", "zarr+array:"):
            np.testing.assert_array_equal(read(open_source(f"{scheme}{tmp_path / uri}")).vectors, VECTORS)
    EmbeddingStore.create(tmp_path / "store", SPACE).close()
    with pytest.raises(FileNotFoundError, match=r"no embedding store at"):
        open_source(str(tmp_path))
    assert open_source(str(tmp_path / "store")).space == SPACE


@pytest.mark.parametrize("inside", ["", "a/b.zarr/"])
def test_archives(tmp_path, inside):
    folder = save(tmp_path / "old", chunks=(7, 5), shards=(14, 10))
    with zipfile.ZipFile(tmp_path / "old.zip", "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, inside + str(path.relative_to(folder)))
    found = read(open_source(str(tmp_path / "old.zip")), 9)
    np.testing.assert_array_equal(found.vectors, VECTORS)
    assert found.items.select(list(COLUMNS)).to_dict(as_series=False) == by_hand()
    content = (tmp_path / "old.zip").read_bytes()
    place = content.index((folder / "vectors" / "c" / "0" / "0").read_bytes()[:64]) + 9
    (tmp_path / "old.zip").write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
    assert "vectors/c/0/0" in str(said(tmp_path / "old.zip"))


@pytest.mark.parametrize("version", [2, 3])
def test_a_chunk_that_is_missing_is_never_read_as_fill_values(tmp_path, version):
    import zarr

    folder = save(tmp_path / "old", version=version, chunks=(7, 5))
    for name in [*COLUMNS, "vectors"]:
        base = folder / name / ("c" if version == 3 else ".")
        for chunk in sorted(p for p in base.rglob("*") if p.is_file() and not p.name.startswith((".z", "zarr")))[::5]:
            content = chunk.read_bytes()
            chunk.unlink()
            array: Any = zarr.open_group(str(folder), mode="r")[name]
            array[:]  # zarr reads on as if nothing were lost
            error = said(folder)
            assert isinstance(error, DamagedStore)
            assert str(chunk.relative_to(folder)) in str(error)
            assert "write_empty_chunks" in str(error)
            chunk.write_bytes(content)
    read(open_source(str(folder)))


def test_a_chunk_that_is_missing_within_a_shard(tmp_path):
    import zarr

    group = zarr.create_group(str(tmp_path / "old"))
    array = group.create_array("vectors", shape=(50, 12), dtype="f4", chunks=(5, 6), shards=(20, 12))
    spoilt = VECTORS.copy()
    spoilt[25:30, 6:] = 0  # which zarr leaves out
    array[:] = spoilt
    error = said(tmp_path / "old")
    assert isinstance(error, DamagedStore)
    assert "chunk 5.1 in" in str(error)
    assert "vectors/c/1/0" in str(error)


@pytest.mark.parametrize("number", [1, 2, 7, 8])
def test_every_flipped_bit_below_a_checksum_is_told(tmp_path, number):
    options = zarr_options(3, number)
    folder = save(tmp_path / "old", columns={}, **options)
    draw, chunks = np.random.default_rng(0), sorted((folder / "vectors" / "c").rglob("0"))
    for _ in range(60):
        chunk = [path for path in chunks if path.is_file()][int(draw.integers(2))]
        content = chunk.read_bytes()
        place = int(draw.integers(8 * len(content)))
        spoilt = bytearray(content)
        spoilt[place // 8] ^= 1 << place % 8
        chunk.write_bytes(spoilt)
        error = complaint(folder)
        assert error is not None or number == 8  # a frame's header has bits that mean nothing
        assert error is None or "vectors/c/" in error
        chunk.write_bytes(content)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("number", range(9))
def test_cut_chunks_and_noise_are_one_line(tmp_path, version, number):
    options = zarr_options(version, number)
    folder = save(tmp_path / "old", columns={}, version=version, **options)
    chunk = folder / "vectors" / {3: "c/0/0", 2: "0.0"}[version]
    if not chunk.exists():
        chunk = next(p for p in (folder / "vectors").rglob("*0*") if p.is_file())
    content = chunk.read_bytes()
    noise = np.random.default_rng(0)
    for spoilt in (b"", content[:3], content[:-3], content[: len(content) // 2], noise.bytes(len(content) + 1)):
        chunk.write_bytes(spoilt)
        assert str(chunk.relative_to(folder)) in str(said(folder))
    for _ in range(40):  # whatever a flipped bit does, it is no traceback
        place = int(noise.integers(8 * len(content)))
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        chunk.write_bytes(flipped)
        complaint(folder, exact=False)


def edited(folder, file, **changes):
    path = Path(folder) / file
    body = json.loads(path.read_bytes())
    path.write_text(json.dumps(body | changes))
    try:
        return str(said(folder))
    finally:
        path.write_text(json.dumps(body))


def test_hostile_metadata_of_version_3_is_refused(tmp_path):
    folder, file = save(tmp_path / "old"), "vectors/zarr.json"
    grid = {"name": "regular", "configuration": {"chunk_shape": [2**40, 12]}}
    assert "is missing" in edited(folder, file, shape=[2**50, 12])
    assert "compressed chunks of" in edited(folder, file, chunk_grid=grid)
    assert "whole numbers" in edited(folder, file, shape=[50, -12])
    assert "whole numbers" in edited(folder, file, shape=[50.0, 12])
    assert "whole numbers" in edited(folder, file, shape="[50, 12]")
    assert "whole numbers" in edited(
        folder, file, chunk_grid={"name": "regular", "configuration": {"chunk_shape": [0, 1]}}
    )
    assert "0 of them floats" in edited(folder, file, data_type="int32")
    assert "0 of them floats" in edited(folder, file, data_type={"name": "evil", "configuration": {}})
    plain = {"name": "bytes", "configuration": {"endian": "little"}}
    assert "codec 'numcodecs.pickle'" in edited(folder, file, codecs=[plain, {"name": "numcodecs.pickle"}])
    assert "codec" in edited(folder, file, codecs=[{"name": "numcodecs.json2"}])
    assert "codec" in edited(folder, file, codecs=[])
    assert "chunk grid" in edited(folder, file, chunk_grid={"name": "rectilinear", "configuration": {}})
    assert "separator" in edited(
        folder, file, chunk_key_encoding={"name": "default", "configuration": {"separator": "/../../"}}
    )
    assert "chunk key encoding" in edited(folder, file, chunk_key_encoding={"name": "evil", "configuration": {}})
    assert "storage transformers" in edited(folder, file, storage_transformers=[{"name": "x"}])
    assert "transpose" in edited(
        folder, file, codecs=[{"name": "transpose", "configuration": {"order": [0, 9]}}, plain]
    )
    shards = {"chunk_shape": [1, 1], "codecs": [plain], "index_codecs": [plain], "index_location": "end"}
    huge = {"name": "regular", "configuration": {"chunk_shape": [2**30, 2**20]}}
    sharded = [{"name": "sharding_indexed", "configuration": shards}]
    assert "shards of" in edited(folder, file, chunk_grid=huge, codecs=sharded)
    assert "index" in edited(folder, file, codecs=sharded)
    long_text = {"name": "fixed_length_utf32", "configuration": {"length_bytes": 4_000_000}}
    assert "believable" in edited(folder, "label/zarr.json", data_type=long_text)
    (folder / file).write_text("[" * 100_000)
    assert "not readable JSON" in str(said(folder))
    (folder / file).write_text("[]")
    assert "not a JSON object" in str(said(folder))
    (folder / file).write_bytes(b" " * (5 * 2**20))
    assert "expected at most" in str(said(folder))


def test_objects_are_never_unpickled(tmp_path):
    folder = save(tmp_path / "old", version=2)
    for file in ("vectors/.zarray", "label/.zarray", "name/.zarray"):
        for codec in ("pickle", "json2", "msgpack2", "vlen-array"):
            changes: dict[str, Any] = {"dtype": "|O", "filters": [{"id": codec}]}
            assert "never unpickled" in edited(folder, file, **changes) or file.startswith("vectors")
        assert edited(folder, file, dtype="|O", filters=None)
    assert "codec 'pickle'" in edited(folder, "vectors/.zarray", filters=[{"id": "pickle"}])
    assert "codec 'pickle'" in edited(folder, "vectors/.zarray", compressor={"id": "pickle"})
    assert "0 of them floats" in edited(folder, "vectors/.zarray", dtype=[["x", "<f4"], ["y", "|O"]])
    assert "whole numbers" in edited(folder, "vectors/.zarray", chunks=[2**60, 12])
    assert "compressed chunks of" in edited(folder, "vectors/.zarray", chunks=[2**40, 12])


def test_links_out_of_the_folder_are_refused(tmp_path):
    folder, secret = save(tmp_path / "old", columns={}), save(tmp_path / "secret", columns={})
    chunk = folder / "vectors" / "c" / "0" / "0"
    content = chunk.read_bytes()
    chunk.unlink()
    chunk.symlink_to(secret / "vectors" / "c" / "0" / "0")
    assert "is a link" in str(said(folder))
    chunk.unlink()
    chunk.write_bytes(content)
    shutil.rmtree(folder / "vectors" / "c" / "1")
    (folder / "vectors" / "c" / "1").symlink_to(secret / "vectors" / "c" / "1")
    assert "is a link" in str(said(folder))
    shutil.rmtree(folder / "vectors")
    (folder / "vectors").symlink_to(secret / "vectors")
    assert "is a link" in str(said(folder))
    read(open_source(str(secret)))
    (tmp_path / "linked").symlink_to(secret)  # the gallery itself may be one: its owner named it
    read(open_source(str(tmp_path / "linked")))
    with zipfile.ZipFile(tmp_path / "old.zip", "w") as archive:
        archive.writestr("zarr.json", "{}")
        archive.writestr("../../evil", "x")
    assert "points outside" in str(said(tmp_path / "old.zip"))


LIMITED = """
import resource, sys
from stores.galleries import open_source
import zarr, numcodecs, pyarrow, h5py
source = sys.argv[1]
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]) * 2**20,) * 2)
try:
    rows = 0
    for batch in open_source(source).scan(512):
        rows += len(batch.vectors)
    print("read", rows)
except ValueError as error:
    print("refused", error)
"""


def limited(uri, mebibytes):
    """What a process that may take so much memory more than it starts with says of a gallery."""
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, str(uri), str(mebibytes)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.count("\n") == 1
    return ran.stdout


@pytest.mark.parametrize("codec", ["gzip", "zstd", "blosc"])
def test_a_chunk_that_grows_beyond_its_size_is_stopped(tmp_path, codec):
    import numcodecs

    folder = save(tmp_path / "old", columns={}, compressors=None)
    bomb = {"gzip": numcodecs.GZip(9), "zstd": numcodecs.Zstd(9), "blosc": numcodecs.Blosc()}[codec]
    body = json.loads((folder / "vectors" / "zarr.json").read_bytes())
    body["codecs"].append({"name": codec, "configuration": {}})
    (folder / "vectors" / "zarr.json").write_text(json.dumps(body))
    for chunk in (folder / "vectors" / "c").rglob("0"):
        if chunk.is_file():
            chunk.write_bytes(bomb.encode(bytes(2**29)))
    told = limited(folder, 300)
    assert told.startswith("refused")
    assert "grows" in told or "more than its values" in told


def test_chunks_of_parts_of_all_rows_are_put_together_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("stores.galleries.zarr_array._MOST_BLOCK_BYTES", 1000)
    found = read(open_source(str(save(tmp_path / "old", chunks=(50, 3)))), 9)
    np.testing.assert_array_equal(found.vectors, VECTORS)


def test_each_chunk_is_read_once_in_order(tmp_path, monkeypatch):
    from stores.galleries.zarr_chunks import ZarrChunks

    seen, plain = [], ZarrChunks.read

    def counted(self, place):
        seen.append(place)
        return plain(self, place)

    monkeypatch.setattr(ZarrChunks, "read", counted)
    for chunks in [(16, 12), (50, 3), (7, 5), (1, 12)]:
        source = open_source(str(save(tmp_path / f"{chunks}", columns={}, chunks=chunks)))
        for size in (1, 9, 50):
            seen.clear()
            read(source, size)
            assert seen == sorted(set(seen))
            assert len(seen) == -(-50 // chunks[0]) * -(-12 // chunks[1])


def test_convert_takes_it_and_tells_when_the_source_changed(tmp_path):
    vectors = rows(0, 50, dim=12).vectors
    folder = save(tmp_path / "old", vectors)
    options = ConvertOptions(source=str(folder), target=str(tmp_path / "store"), space_name="m")
    assert convert(options).rows == 50
    assert convert(options).already_complete
    back = ConvertOptions(source=str(tmp_path / "store"), target=f"zarr+array:{tmp_path / 'new'}")
    assert convert(back).rows == 50
    np.testing.assert_array_equal(read(open_source(str(tmp_path / "new"))).vectors, vectors)
    before = digest(str(folder))
    save(tmp_path / "other", vectors)
    assert digest(str(tmp_path / "other")) == before
    (folder / "age" / "zarr.json").write_text((folder / "age" / "zarr.json").read_text() + " ")
    assert digest(str(folder)) != before
