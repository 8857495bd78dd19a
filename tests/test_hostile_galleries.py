"""Files made to fill the memory: each is refused in one line by a process that may take little."""

import io
import os
import zipfile

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_zarr_array_galleries import limited

GIB = 2**30


def npy(path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4000000000, 4096)}\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(4096))


def npz(path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (65536, 1024)}\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("vectors.npy", "w") as member:
        member.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        for _ in range(16):
            member.write(bytes(2**24))


def npz_column(path):
    buffer = io.BytesIO()
    np.savez(buffer, vectors=np.ones((4, 2), np.float32))
    path.write_bytes(buffer.getvalue())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("label.npy", "w") as member:
        header = b"{'descr': '<U16777216', 'fortran_order': False, 'shape': (4,)}\n"
        member.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        for _ in range(16):
            member.write(bytes(2**24))


def parquet(path):
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2**26, np.float32)), 64)
    pq.write_table(pa.table({"vector": zeros}), path, compression="zstd")


def csv_header(path):
    path.write_bytes(b"item_id,v0")
    os.truncate(path, GIB)


def csv_row(path):
    path.write_bytes(b"item_id,v0\na,1\nb,")
    os.truncate(path, GIB)


def hdf5(path):
    with h5py.File(path, "w") as file:
        vectors = file.create_dataset("vectors", (2**22, 512), "f4", chunks=(2**14, 512), compression="gzip")
        vectors[:5] = 1


def hdf5_filter(path):
    with h5py.File(path, "w") as file:
        kind = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        kind.set_chunk((5, 2))
        kind.set_filter(40_000, h5py.h5z.FLAG_OPTIONAL, (1,))  # whose code would come from a plugin
        space = h5py.h5s.create_simple((5, 2))
        h5py.h5d.create(file.id, b"vectors", h5py.h5t.IEEE_F32LE, space, kind)


HOSTILE = {
    "old.npy": {npy: "no array that can be mapped"},
    "old.npz": {npz: "more than embeddings compress", npz_column: "more than embeddings compress"},
    "old.parquet": {parquet: "more than is believable"},
    "old.csv": {csv_header: "a row of more than 64 MiB", csv_row: "a row of more than 64 MiB"},
    "old.h5": {hdf5: "more than is believable", hdf5_filter: "under filter 40000"},
}


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [(name, make, message) for name, cases in HOSTILE.items() for make, message in cases.items()],
)
def test_what_claims_or_grows_to_gigabytes_is_refused_in_little_memory(tmp_path, name, make, message):
    make(tmp_path / name)
    told = limited(tmp_path / name, 1536 if name == "old.csv" else 768)  # polars reserves room for its threads
    assert told.startswith("refused")
    assert message in told
    assert name in told
