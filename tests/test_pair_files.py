import io
import pickle
import re
import struct
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import pixels, png, put

from backbones.datasets.decoding import IMAGE_SUFFIXES
from backbones.datasets.image_set import ImageSet
from backbones.datasets.item_sets import image_items
from backbones.datasets.pair_files import PairFile, is_pair_file, read_pairs
from backbones.datasets.restricted_pickle import _PlainUnpickler, _StandIns, load_plain
from backbones.training.validation_set import PairSet

IMAGES = [png(seed) for seed in (1, 2, 1, 3, 4, 4)]
SAME = [True, False, True]


def python2_string(content: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(content)) + content


def python2_pickle(images: list[bytes], same: list[bool]) -> bytes:
    """What Python 2 writes for (list of str, list of bool) in protocol 2: its strings are BINSTRINGs."""
    answers = b"".join(b"\x88" if answer else b"\x89" for answer in same)
    return b"\x80\x02](" + b"".join(map(python2_string, images)) + b"e](" + answers + b"e\x86."


def python2_numpy_pickle(images: list[bytes], same: list[bool]) -> bytes:
    """The same with numpy.bool_ answers: numpy.core.multiarray.scalar(dtype('b1'), str)."""
    dtype = b"cnumpy\ndtype\n" + python2_string(b"b1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + python2_string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    scalars = b"".join(
        b"cnumpy.core.multiarray\nscalar\n" + dtype + python2_string(bytes([answer])) + b"\x86R" for answer in same
    )
    return b"\x80\x02](" + b"".join(map(python2_string, images)) + b"e](" + scalars + b"e\x86."


def python2_text_pickle(images: list[bytes], same: list[bool]) -> bytes:
    """The same in protocol 0, Python 2's own choice: text with escapes, of which bytes above 127 are written so too."""
    strings = b"".join(b"S" + repr(image)[1:].encode() + b"\np%d\na" % place for place, image in enumerate(images, 2))
    answers = b"".join(b"I%02d\na" % answer for answer in same)
    return b"((lp1\n" + strings + b"(lp%d\n" % (len(images) + 2) + answers + b"tp%d\n." % (len(images) + 3)


FORMS = {
    **{f"protocol {protocol}": pickle.dumps((IMAGES, SAME), protocol) for protocol in range(6)},
    "list": pickle.dumps([IMAGES, SAME]),
    "numbers": pickle.dumps((IMAGES, [1, 0, 1])),
    "numpy scalars": pickle.dumps((IMAGES, [np.bool_(answer) for answer in SAME])),
    "numpy answers": pickle.dumps((IMAGES, np.array(SAME))),
    "numpy answers, protocol 2": pickle.dumps((IMAGES, np.array(SAME)), 2),
    "numpy answers, protocol 5": pickle.dumps((IMAGES, np.array(SAME)), 5),
    "numpy images": pickle.dumps(([np.frombuffer(image, np.uint8) for image in IMAGES], SAME), 5),
    "bytearrays": pickle.dumps(([bytearray(image) for image in IMAGES], SAME), 2),
    "objects": pickle.dumps((np.array(IMAGES, dtype=object), SAME)),
    "older numpy": pickle.dumps((IMAGES, np.array(SAME)), 2).replace(b"numpy._core.", b"numpy.core."),
    "python 2": python2_pickle(IMAGES, SAME),
    "python 2 with numpy": python2_numpy_pickle(IMAGES, SAME),
    "python 2, protocol 0": python2_text_pickle(IMAGES, SAME),
}


@pytest.mark.parametrize("form", FORMS)
def test_bin_files_of_every_writer(tmp_path: Path, form: str) -> None:
    path = put(tmp_path / "lfw.bin", FORMS[form])
    found = read_pairs(path)
    assert [item.item_id for item in found.items] == [f"lfw.bin/{place:06d}" for place in (0, 1, 3, 4)]
    assert [item.content() for item in found.items] == [IMAGES[place] for place in (0, 1, 3, 4)]
    np.testing.assert_array_equal(found.pairs, [[0, 1], [0, 2], [3, 3]])
    np.testing.assert_array_equal(found.same, SAME)
    assert found.same.dtype == bool
    assert image_items(path) == found.items
    assert found.items[0].size == len(IMAGES[0])


class Hostile:
    def __init__(self, function: str, module: str, argument: str) -> None:
        self.call = (function, module, argument)

    def pickled(self, protocol: int) -> bytes:
        function, module, argument = self.call
        name = f"{module}\n{function}\n".encode()
        if protocol < 2:
            return b"c" + name + b"(V" + argument.encode() + b"\ntR."
        short = [b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, function, argument)]
        return b"\x80\x04" + short[0] + short[1] + b"\x93" + short[2] + b"\x85R."


@pytest.mark.parametrize("protocol", [0, 4])
@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("subprocess", "getoutput"),
        ("numpy", "load"),
        ("numpy", "dtype.__init__"),
        ("numpy.core.multiarray", "fromfile"),
        ("backbones.datasets.pair_files", "Path"),
    ],
)
def test_a_hostile_pickle_never_runs(tmp_path: Path, module: str, function: str, protocol: int) -> None:
    trace = tmp_path / "ran"
    path = put(tmp_path / "lfw.bin", Hostile(function, module, f"touch {trace}").pickled(protocol))
    with pytest.raises(
        ValueError, match=rf"lfw\.bin cannot be read .*{module}\.{function}, which is not allowed"
    ) as error:
        read_pairs(path)
    assert "\n" not in str(error.value)
    assert not trace.exists()


def test_the_hostile_pickle_would_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    pickle.loads(Hostile("system", "os", f"touch {trace}").pickled(0))
    assert trace.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps([IMAGES]), "holds no pairs"),
        (pickle.dumps(1), "holds no pairs"),
        (pickle.dumps({"a": 1}), "holds the opcode EMPTY_DICT, which plain data do not need"),
        (pickle.dumps([[[1]]]), "lists in lists in lists"),
        (pickle.dumps((IMAGES, SAME[:2])), "holds 6 images and 2 answers"),
        (pickle.dumps((IMAGES, [True, False, 2])), "neither true nor false"),
        (pickle.dumps((["text"] * 6, SAME)), "no encoded bytes"),
        (pickle.dumps((np.zeros((6, 2, 2), np.uint8), SAME)), r"an array of shape \(6, 2, 2\)"),
        (pickle.dumps((IMAGES, np.array([1.0, 0.0, 1.0]))), "arrays of 'f8'"),
        (b"c__builtin__\nbytes\n(I99999999999\ntR.", "makes bytes from something else"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "cannot be read"),
        (b"", "cannot be read"),
        (b"\x89PNG no pickle", "cannot be read"),
        (FORMS["protocol 4"][:-20], "cannot be read"),
        (pickle.dumps((b"ab", [True])), "holds 0 images and 1 answers"),
    ],
)
def test_damaged_and_foreign_bin_files_are_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=rf"lfw\.bin .*{words}") as error:
        read_pairs(put(tmp_path / "lfw.bin", content))
    assert "\n" not in str(error.value)


def pairs_or_reason(path: Path) -> tuple[PairFile | None, str]:
    try:
        return read_pairs(path), ""
    except ValueError as error:
        return None, str(error)


def test_flipped_bits_are_pairs_or_a_value_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    outcomes = Counter()
    for form in ("protocol 4", "numpy answers, protocol 2", "python 2 with numpy"):
        for _ in range(150):
            damaged = bytearray(FORMS[form])
            places = np.r_[generator.integers(20), len(damaged) - 1 - generator.integers(200)]
            damaged[generator.choice(places)] ^= 1 << int(generator.integers(8))
            path = put(tmp_path / "lfw.bin", bytes(damaged))
            found, reason = pairs_or_reason(path)
            outcomes["read" if found else "refused"] += 1
            if found is None:
                assert re.fullmatch(r"[^\n]*lfw\.bin (cannot be read as plain data|holds|has) [^\n]+", reason)
                continue
            assert 2 * len(found.same) == found.pairs.size
            assert (found.pairs.dtype, found.same.dtype) == (np.int64, bool)
            assert set(found.pairs.flat) == set(range(len(found.items)))
            # one bit changes at most one image, and not where it lies
            changed = [item for item in found.items if item.content() not in IMAGES]
            assert len(changed) <= 1
            assert all(
                item.content() == (IMAGES + [b""] * 9)[int(item.item_id[-6:])]
                for item in found.items
                if item not in changed
            )
    assert min(outcomes["refused"], outcomes["read"]) > 30


def test_pair_lists_and_lfws_own_layout(tmp_path: Path) -> None:
    for seed, name in enumerate(("Anna Lee/Anna Lee_0001", "Anna Lee/Anna Lee_0002", "Bob/Bob_0003")):
        put(tmp_path / f"{name}.png", png(seed))
    lfw = put(tmp_path / "pairs.txt", b"1\t1\nAnna Lee\t1\t2\nAnna Lee\t1\tBob\t3\n")
    listed = put(
        tmp_path / "list.txt",
        b"Anna Lee/Anna Lee_0001.png\tAnna Lee/Anna Lee_0002.png\t1\nAnna Lee/Anna Lee_0001.png\tBob/Bob_0003.png\t0\n",
    )
    for path in (lfw, listed):
        assert is_pair_file(path, IMAGE_SUFFIXES)
        found = read_pairs(path)
        np.testing.assert_array_equal(found.pairs, [[0, 1], [0, 2]])
        np.testing.assert_array_equal(found.same, [True, False])
        assert [item.content() for item in found.items] == [png(seed) for seed in range(3)]
    assert [item.label for item in read_pairs(lfw).items] == ["Anna Lee", "Anna Lee", "Bob"]
    assert read_pairs(listed, tmp_path / "x").items[0].path == tmp_path / "x/Anna Lee/Anna Lee_0001.png"


def test_what_is_a_list_of_pairs(tmp_path: Path) -> None:
    for text, expected in (
        ("a/1.jpg b/1.jpg 1\n", True),
        ("a/1.jpg b/1.jpg 2\n", True),  # a wrong answer is no identity, which reading tells
        ("a/1.jpg b/1.jpg anna\n", True),
        ("a/1.jpg\tb/1.JPG\n", True),
        ("a/1.jpg b/1.jpg\tanna\n", False),  # the tab tells a path with a space
        ("my face.jpg 1\n", False),  # a path with a space, identity 1
        ("a/1.jpg anna\n", False),
        ("10 300\n", True),
        ("", False),
    ):
        assert is_pair_file(put(tmp_path / "a.txt", text.encode()), IMAGE_SUFFIXES) is expected
    assert not is_pair_file(tmp_path / "none.txt", IMAGE_SUFFIXES)
    assert not is_pair_file(tmp_path, IMAGE_SUFFIXES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.jpg b.jpg 1\na.jpg b.jpg\n", "line 2 is 'a.jpg b.jpg', expected `path path 0|1`"),
        ("10 300\nAnna 1\n", "line 2 is 'Anna 1', expected `name i j`"),
        ("a.jpg /b.jpg 1\n", "line 1 has the absolute path /b.jpg"),
        ("a.jpg ../b.jpg 1\n", "line 1 has the path ../b.jpg, expected one below the list's folder, without `..`"),
        ("a.jpg b.jpg 2\n", "line 1 is 'a.jpg b.jpg 2', expected `path path 0|1`"),
        ("10 300\n../Anna 1 2\n", "line 2 has the path ../Anna/../Anna_0001.jpg"),
        (f"10 300\nAnna 1 {'2' * 5000}\n", f"line 2 is 'Anna 1 {'2' * 73}', expected `name i j`"),
    ],
)
def test_mistakes_in_lists_are_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"pairs.txt {words}")):
        read_pairs(put(tmp_path / "pairs.txt", text.encode()))


def test_a_pair_set_leaves_out_pairs_of_unreadable_images(tmp_path: Path) -> None:
    content = pickle.dumps(([png(1), png(2), b"broken", png(2), png(3), png(1)], SAME))
    path = put(tmp_path / "lfw.bin", content)
    found = PairSet(path, 12, max_bad=1, memory=1, workers=1)
    assert (len(found), found.skipped, found.images.skipped) == (2, 1, ["lfw.bin/000002"])
    assert found.same.tolist() == [True, True]
    assert found.pairs.dtype == torch.int64
    ((_, images),) = found.images.batches([torch.arange(len(found.images))])
    shown = images[found.pairs].permute(0, 1, 3, 4, 2).numpy()
    np.testing.assert_array_equal(shown, [[pixels(1), pixels(2)], [pixels(3), pixels(1)]])
    with pytest.raises(
        ValueError, match=r"1 unreadable images, --max_bad allows 0: cannot read image lfw\.bin/000002 of"
    ):
        PairSet(path, 12, max_bad=0, memory=1, workers=1)


def code(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts)


def of_text(content: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(content)) + content


@pytest.mark.parametrize(
    "state",
    [
        b"}" + of_text(b"__defaults__") + of_text(b"stolen") + of_text(b"latin1") + b"\x86s",
        b"N" + b"}" + of_text(b"_call") + b"Ns\x86",
        b"N",
    ],
)
@pytest.mark.parametrize("name", [b"_codecs\nencode", b"numpy\nndarray", b"numpy\ndtype", b"__builtin__\nbytes"])
def test_a_pickle_cannot_change_the_reader(tmp_path: Path, name: bytes, state: bytes) -> None:
    before = pickle.dumps((["a"], [True]))
    with pytest.raises(ValueError, match=r"EMPTY_DICT, which plain data do not need|it changes what it names"):
        load_plain(put(tmp_path / "lfw.bin", code(b"c", name, b"\n", state, b"b.")))
    assert load_plain(put(tmp_path / "good.bin", before)) == [["a"], [True]]
    with pytest.raises(
        pickle.UnpicklingError, match=r"it changes what it names"
    ):  # without the look at the opcodes too
        _PlainUnpickler(io.BytesIO(code(b"c", name, b"\n", state, b"b.")), _StandIns(100)).load()


def nested(depth: int, width: int) -> bytes:
    """Lists of one list each named `width` times, `depth` deep."""
    inner = b"]" + b"(" + b"N" * width + b"e"
    for _ in range(depth):
        inner = b"](" + inner + b"2" * (width - 1) + b"e"
    return inner


TEXT = of_text(b"t" * 50_000)
BOMBS = {
    "memo": code(b"Nr", struct.pack("<I", 1 << 25), b"."),
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 31) + b"N.",
    "opcodes": code(b"(", b"]" * 400_000, b"l."),
    "lists": code(nested(1, 3000), b"."),
    "deep lists": code(nested(2, 3000), b"."),
    "texts": code(b"(c_codecs\nencode\nq\x01", TEXT, b"q\x020", b"h\x01h\x02\x85R" * 2000, b"t."),
    "bytearrays": b"\x80\x05](\x96" + struct.pack("<Q", 50_000) + b"t" * 50_000 + b"2" * 2000 + b"e.",
    "answers": code(
        b"](cnumpy.core.numeric\n_frombuffer\nq\x01cnumpy\ndtype\nX\x02\0\0\0b1\x85Rq\x02",
        b"T" + struct.pack("<i", 50_000) + b"t" * 50_000 + b"q\x03K\x01\x85q\x04000",
        b"(h\x02h\x02h\x03h\x04t0" + b"h\x01(h\x03h\x02h\x04tR" * 2000 + b"e.",
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_pickle_takes_little_memory(tmp_path: Path, bomb: str) -> None:
    path = put(tmp_path / "lfw.bin", BOMBS[bomb])
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"lfw\.bin ") as error:
            read_pairs(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)
    assert peak < 30_000_000


def test_pairs_are_no_training_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lfw\.bin tells no identities, only images or pairs"):
        ImageSet(put(tmp_path / "lfw.bin", FORMS["list"]), 12, max_bad=0, memory=1, workers=1)
