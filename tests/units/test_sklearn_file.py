"""Centroids from real files of scikit-learn, and files that must not be trusted."""

import io
import os
import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans, MiniBatchKMeans

from tolktrain.errors import UserError
from tolktrain.units.sklearn_file import read_sklearn_centroids

FEATURES = np.random.default_rng(0).normal(size=(120, 7))


@lru_cache
def _model(kind: type, dtype: type = np.float64, random_state: object = 0) -> Any:
    return kind(5, n_init=1, random_state=random_state).fit(FEATURES.astype(dtype))


def _is_read(path: Path, model: Any) -> None:
    centroids = read_sklearn_centroids(path)
    assert centroids.dtype == np.float32 and centroids.flags.c_contiguous
    assert np.array_equal(centroids, model.cluster_centers_.astype(np.float32))


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("bz2", 3), ("lzma", 3), ("xz", 3)], ids=str)
@pytest.mark.parametrize("kind", [KMeans, MiniBatchKMeans])
def test_joblib(tmp_path: Path, kind: type, compress: Any) -> None:
    joblib.dump(_model(kind), tmp_path / "km", compress=compress)
    _is_read(tmp_path / "km", _model(kind))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_protocols(tmp_path: Path, protocol: int, dtype: type) -> None:
    # A random state of its own is pickled with the model.
    model = KMeans(5, n_init=1, random_state=np.random.RandomState(3)).fit(FEATURES.astype(dtype))
    (tmp_path / "pickle").write_bytes(pickle.dumps(model, protocol))
    _is_read(tmp_path / "pickle", model)
    joblib.dump(model, tmp_path / "joblib", protocol=protocol)
    _is_read(tmp_path / "joblib", model)


def test_names_of_features_and_other_orders_of_memory(tmp_path: Path) -> None:
    model = KMeans(5, n_init=1, random_state=0).fit(FEATURES)
    model.feature_names_in_ = np.array([f"f{index}" for index in range(7)], dtype=object)
    model.cluster_centers_ = np.asfortranarray(model.cluster_centers_).astype(">f8")
    for name, dump in (("joblib", joblib.dump), ("pickle", lambda m, p: p.write_bytes(pickle.dumps(m)))):
        dump(model, tmp_path / name)
        _is_read(tmp_path / name, model)


def test_old_names_of_modules(tmp_path: Path) -> None:
    """Files of older versions name the class and numpy's functions elsewhere."""
    content = pickle.dumps(_model(MiniBatchKMeans), protocol=2)
    old = content.replace(b"csklearn.cluster._kmeans\n", b"csklearn.cluster.k_means_\n")
    old = old.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert old != content
    (tmp_path / "km").write_bytes(old)
    _is_read(tmp_path / "km", _model(MiniBatchKMeans))


class _Runs:
    """Pickles as a call of the given function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("with_joblib", [False, True])
def test_a_program_in_a_file_is_named_and_not_run(tmp_path: Path, with_joblib: bool, hidden: bool) -> None:
    mark = tmp_path / "mark"
    content: Any = _Runs(os.system, f"touch {mark}")
    if hidden:
        model = KMeans(5, n_init=1, random_state=0).fit(FEATURES)
        model.labels_ = content
        content = model
    path = tmp_path / "km"
    if with_joblib:
        joblib.dump(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=rf"{path} names {os.system.__module__}\.system"):
        read_sklearn_centroids(path)
    assert not mark.exists()
    joblib.load(path)
    assert mark.exists()  # otherwise the file was harmless, and this proves nothing


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (_Runs(eval, "1"), r"builtins\.eval"),
        (_Runs(getattr, [], "append"), r"builtins\.getattr"),
        (np.load, r"numpy\.load"),
        (pickle.loads, r"_pickle\.loads"),
        (np.memmap, r"numpy\.memmap"),
        (joblib.load, r"joblib\.numpy_pickle\.load"),
        (Path("x"), r"pathlib"),
    ],
    ids=lambda given: given if isinstance(given, str) else type(given).__name__,
)
def test_whatever_else_is_named_is_refused(tmp_path: Path, value: Any, name: str) -> None:
    (tmp_path / "km").write_bytes(pickle.dumps({"a": [value]}))
    with pytest.raises(UserError, match=f"names {name}"):
        read_sklearn_centroids(tmp_path / "km")


def test_attributes_cannot_be_put_on_anything_else(tmp_path: Path) -> None:
    # The class numpy.ndarray, a dictionary of attributes, and the code that sets them.
    content = b"\x80\x02cnumpy\nndarray\n}X\x05\x00\x00\x00shapeK\x01sb."
    (tmp_path / "km").write_bytes(content)
    with pytest.raises(UserError, match="attributes for a type"):
        read_sklearn_centroids(tmp_path / "km")


def test_persistent_objects_are_refused(tmp_path: Path) -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return "elsewhere" if isinstance(obj, np.ndarray) else None

    file = io.BytesIO()
    Pickler(file).dump(_model(KMeans))
    (tmp_path / "km").write_bytes(file.getvalue())
    with pytest.raises(UserError, match="a persistent object"):
        read_sklearn_centroids(tmp_path / "km")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (KMeans(3), r"sklearn\.cluster\._kmeans\.KMeans without centroids"),
        ({"cluster_centers_": np.zeros((3, 2))}, "dict without centroids"),
        (3, "int without centroids"),
    ],
    ids=str,
)
def test_what_holds_no_centroids(tmp_path: Path, content: Any, message: str) -> None:
    joblib.dump(content, tmp_path / "km")
    with pytest.raises(UserError, match=message):
        read_sklearn_centroids(tmp_path / "km")


def test_centroids_that_are_no_numbers(tmp_path: Path) -> None:
    model = KMeans(5, n_init=1, random_state=0).fit(FEATURES)
    model.cluster_centers_[2, 3] = np.nan
    joblib.dump(model, tmp_path / "km")
    with pytest.raises(UserError, match="not finite"):
        read_sklearn_centroids(tmp_path / "km")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_sklearn_centroids(tmp_path / "km")


@lru_cache
def _dumped(form: int) -> bytes:
    file = io.BytesIO()
    if form == 5:
        joblib.dump(_model(KMeans), file)
    else:
        pickle.dump(_model(KMeans), file, protocol=form)
    return file.getvalue()


@given(
    st.sampled_from([0, 2, 4, 5]).flatmap(
        lambda form: st.tuples(
            st.just(form),
            st.lists(st.tuples(st.integers(0, len(_dumped(form)) - 1), st.integers(0, 255)), max_size=4),
            st.integers(1, len(_dumped(form))),
        )
    )
)
@settings(max_examples=400)
def test_damage_is_an_error_or_harmless(damage: tuple[int, list[tuple[int, int]], int]) -> None:
    form, changes, length = damage
    content = bytearray(_dumped(form))
    for place, value in changes:
        content[place] = value
    path = Path(os.environ["KMEANS_FILE"])
    path.write_bytes(content[:length] if not changes else content)
    try:
        centroids = read_sklearn_centroids(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert centroids.dtype == np.float32 and centroids.ndim == 2 and np.isfinite(centroids).all()


@pytest.fixture(autouse=True, scope="module")
def _file(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KMEANS_FILE", str(tmp_path_factory.mktemp("damaged") / "km"))
        yield
