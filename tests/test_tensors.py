"""Arrays in files: what was written is what is read, or nothing is."""

import errno
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tfmt.errors import RequestError
from tfmt.files import UnreadableError
from tfmt.tensors import read_tensors, write_tensors

ARRAYS = {
    "kernel": np.arange(12, dtype=np.float32).reshape(3, 4).T,  # not in C order
    "half": np.array([1.5, -2], ml_dtypes.bfloat16),
    "indices": np.array([2, 5], np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.float32(0.1),
}
ABOUT = {"run_id": "a", "epoch": 3}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    digest = write_tensors(path, ARRAYS, ABOUT)
    assert re.fullmatch("[0-9a-f]{64}", digest)
    arrays, about = read_tensors(path)
    assert about == ABOUT
    assert arrays.keys() == ARRAYS.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, ARRAYS[name])
        assert (array.dtype, array.shape) == (np.asarray(ARRAYS[name]).dtype, np.shape(ARRAYS[name]))
    assert write_tensors(path, dict(reversed(ARRAYS.items())), ABOUT) == digest
    assert write_tensors(path, ARRAYS, ABOUT | {"epoch": 2}) != digest
    assert write_tensors(path, ARRAYS | {"scalar": np.float32(0.2)}, ABOUT) != digest


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, ARRAYS, ABOUT)
    whole = path.read_bytes()
    used = int.from_bytes(whole[:8], "little") + 8
    padding = used - len(whole[:used].rstrip(b" "))
    for place in range(len(whole)):
        if used - padding <= place < used:
            continue  # blanks at the header's end, which say nothing
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(RequestError, match=r"a\.safetensors"):
            read_tensors(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\0" * 8, b"x" * 1000])
def test_what_is_no_such_file(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"a\.safetensors: not a file that tfmt wrote"):
        read_tensors(path)


def test_files_of_others_and_of_earlier_versions(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": np.ones(2)}, path)
    with pytest.raises(RequestError, match="not a file that tfmt wrote"):
        read_tensors(path)
    save_file({"a": np.ones(2)}, path, metadata={"tfmt": "{}"})
    assert read_tensors(path)[1] == {}
    with pytest.raises(RequestError, match="missing; train it"):
        read_tensors(tmp_path / "b", "train it")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_file_that_cannot_be_opened_now_is_not_taken_for_missing_or_broken(tmp_path, monkeypatch, number):
    path = tmp_path / "a.safetensors"
    write_tensors(path, ARRAYS, ABOUT)

    def refuse(self, *arguments):
        raise OSError(number, "away", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UnreadableError, match=r"a\.safetensors: cannot be read now .*same command again"):
        read_tensors(path)
