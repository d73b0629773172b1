"""Writes small files in the real layouts of CIFAR-10 and CIFAR-100, and expected.json: what is in them.

Run: python tests/golden/data/make.py   (made with Python 3.11, numpy 2.4.6, pyarrow 26.0.1, pillow 13.0.0)
Tolerance: none; PNG and lossless WebP keep every pixel.

The pickles are spelled as Python 2's cPickle wrote the published ones: protocol 2, byte-string keys (opcodes U and T),
numpy's `_reconstruct` with its state. The Parquet files follow the Hugging Face Hub: two train shards, one with PNG and
one with WebP bytes, two row groups in one of them, class names in the metadata key "huggingface".
"""

import io
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

HERE = Path(__file__).parent
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
names = (HERE / "../../../src/data/cifar_names.rs").read_text().split("&[")[-1]
CIFAR100 = [line.strip().strip('"') for line in names.split("]")[0].split(",") if line.strip()]
assert len(CIFAR100) == 100


def images(count, seed):
    """Smooth, all different, (count, 3, 32, 32)."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[0:32, 0:32]
    out = []
    for _ in range(count):
        planes = [rng.randint(256) + rng.randint(8) * y + rng.randint(8) * (x // 2) for _ in range(3)]
        out.append(np.stack(planes) % 256)
    return np.array(out, dtype=np.uint8)


def encoded(image, kind):
    out = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(out, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return out.getvalue()


class Py2Pickle:
    """The opcodes that Python 2's cPickle used for a CIFAR batch."""

    def string(self, b):
        return (b"U" + struct.pack("<B", len(b)) if len(b) < 256 else b"T" + struct.pack("<i", len(b))) + b

    def integer(self, n):
        return b"K" + struct.pack("<B", n) if n < 256 else b"M" + struct.pack("<H", n)

    def array(self, a):
        out = b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq\x04"
        out += b"(K\x01" + self.integer(a.shape[0]) + self.integer(a.shape[1]) + b"\x86"
        out += b"cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87Rq\x06"
        out += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        return out + b"\x89" + self.string(a.tobytes()) + b"tb"

    def list(self, items, one):
        return b"](" + b"".join(one(i) for i in items) + b"e"

    def dump(self, entries):
        out = b"\x80\x02}q\x01("
        for key, value in entries.items():
            out += self.string(key.encode())
            if isinstance(value, np.ndarray):
                out += self.array(value)
            elif isinstance(value, str):
                out += self.string(value.encode())
            elif isinstance(value[0], str):
                out += self.list([v.encode() for v in value], self.string)
            else:
                out += self.list(value, self.integer)
        return out + b"u."


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def pickles_and_binary_10(train, train_y, test, test_y):
    def both(py, binary, x, y, label):
        rows = {"data": x.reshape(len(x), -1), "labels": y, "batch_label": label, "filenames": ["a.png"] * len(x)}
        write(HERE / "cifar-10-batches-py" / py, Py2Pickle().dump(rows))
        write(HERE / "cifar-10-batches-bin" / binary, b"".join(bytes([c]) + i.tobytes() for i, c in zip(x, y)))

    for b in range(5):
        x, y = train[b : b + 1], train_y[b : b + 1]
        both(f"data_batch_{b + 1}", f"data_batch_{b + 1}.bin", x, y, f"training batch {b + 1} of 5")
    both("test_batch", "test_batch.bin", test, test_y, "testing batch 1 of 1")
    write(HERE / "cifar-10-batches-py/batches.meta", Py2Pickle().dump({"label_names": CIFAR10}))


def pickles_and_binary_100(part, x, fine, coarse):
    rows = {"data": x.reshape(len(x), -1), "fine_labels": fine, "coarse_labels": coarse, "filenames": ["a.png"] * len(x)}
    write(HERE / "cifar-100-python" / part, Py2Pickle().dump(rows))
    records = [bytes([c, f]) + i.tobytes() for i, f, c in zip(x, fine, coarse)]
    write(HERE / f"cifar-100-binary/{part}.bin", b"".join(records))


def parquet(name, x, fine, coarse, kind, group):
    features = {
        "img": {"_type": "Image"},
        "fine_label": {"names": CIFAR100, "_type": "ClassLabel"},
        "coarse_label": {"names": [f"coarse {i}" for i in range(20)], "_type": "ClassLabel"},
    }
    img = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("img", img), ("fine_label", pa.int64()), ("coarse_label", pa.int64())])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    rows = [{"bytes": encoded(i, kind), "path": f"{n}.png"} for n, i in enumerate(x)]
    table = pa.table({"img": rows, "fine_label": fine, "coarse_label": coarse}, schema=schema)
    (HERE / "cifar100-parquet").mkdir(exist_ok=True)
    pq.write_table(table, HERE / "cifar100-parquet" / name, row_group_size=group, compression="snappy")


def other_pickles(train, train_y, test, test_y):
    """The batches dumped again by Python 3: protocol 5, protocol 2 with arrays of labels."""
    for folder, protocol, labels in (("protocol-5", 5, list), ("arrays", 2, np.array), ("arrays-5", 5, np.array)):
        here = HERE / "cifar-10-again" / folder
        for b in range(5):
            rows = {"data": train[b : b + 1].reshape(1, -1), "labels": labels(train_y[b : b + 1])}
            write(here / f"data_batch_{b + 1}", pickle.dumps(rows, protocol=protocol))
        rows = {"data": np.asfortranarray(test.reshape(2, -1)), "labels": labels(test_y)}
        write(here / "test_batch", pickle.dumps(rows, protocol=protocol))
        write(here / "batches.meta", pickle.dumps({"label_names": CIFAR10}, protocol=protocol))


def pfllib(train, train_y, test, test_y):
    """Two clients as PFLlib stores them: the second holds a test image of the benchmark too."""
    clients = [(train[[3, 0]], [train_y[3], train_y[0]]), (np.concatenate([train[[1]], test[[0]]]), [train_y[1], test_y[0]])]
    for k, (x, y) in enumerate(clients):
        path = HERE / "pfllib/train" / f"{k}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        x = (x.astype(np.float32) / 255 - 0.5) / 0.5
        np.savez_compressed(path, data={"x": x, "y": np.array(y)})


def compressions(x, fine):
    """One row in each compression."""
    img = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("img", img), ("fine_label", pa.int64())])
    table = pa.table({"img": [{"bytes": encoded(x[0], "PNG"), "path": "0.png"}], "fine_label": [fine]}, schema=schema)
    for how in ("gzip", "brotli", "lz4", "zstd", "snappy", "none"):
        (HERE / "compressions").mkdir(exist_ok=True)
        pq.write_table(table, HERE / f"compressions/{how}.parquet", compression=how)


def seen(x, y):
    weights = np.arange(1, 3073)
    return [[int(c), int(i[0, 0, 0]), int((i.reshape(-1) * weights).sum())] for i, c in zip(x, y)]


def main():
    expected = {}
    train, test = images(5, 1), images(2, 2)
    train_y, test_y = [6, 9, 9, 4, 1], [3, 8]
    pickles_and_binary_10(train, train_y, test, test_y)
    expected["cifar10_train"] = seen(train, train_y)
    other_pickles(train, train_y, test, test_y)
    pfllib(train, train_y, test, test_y)
    train, test = images(3, 3), images(1, 4)
    fine, coarse = [19, 99, 0], [11, 15, 4]
    pickles_and_binary_100("train", train, fine, coarse)
    pickles_and_binary_100("test", test, [49], [10])
    write(HERE / "cifar-100-python/meta", Py2Pickle().dump({"fine_label_names": CIFAR100}))
    parquet("train-00000-of-00002.parquet", train[:2], fine[:2], coarse[:2], "PNG", 1)
    parquet("train-00001-of-00002.parquet", train[2:], fine[2:], coarse[2:], "WEBP", 10)
    parquet("test-00000-of-00001.parquet", test, [49], [10], "PNG", 10)
    compressions(test, 49)
    expected["cifar100_train"], expected["cifar100_test"] = seen(train, fine), seen(test, [49])
    (HERE / "expected.json").write_text(json.dumps(expected))


main()
