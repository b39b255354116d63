"""scikit-learn's own checks of an estimator, and images of every shape."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from contrapose import ContrastiveEncoder


@parametrize_with_checks([ContrastiveEncoder(epochs=1)])
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_it_stands_in_a_pipeline():
    x, y = load_digits(return_X_y=True)
    pipe = make_pipeline(ContrastiveEncoder(epochs=5), LogisticRegression(max_iter=2000))
    assert pipe.fit(x[::2], y[::2]).score(x[1::2], y[1::2]) > 0.8


@pytest.mark.parametrize("shape", [(40, 9, 9), (40, 12, 12, 3), (40, 3, 12, 12), (40, 64)])
def test_images_of_every_layout(shape):
    x = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    estimator = ContrastiveEncoder(epochs=1, features="z").fit(x)
    z = estimator.transform(x)
    np.testing.assert_allclose(estimator.transform(x[:3]), z[:3], atol=1e-5)
    assert z.shape == (40, len(estimator.get_feature_names_out()))
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("none", [-1, None, np.nan, "", "nan"])
def test_no_label_in_y_means_the_same_however_it_is_told(none):
    x, y = load_digits(return_X_y=True)
    x, y = x[:48], [none if i % 3 == 0 else str(c) for i, c in enumerate(y[:48])]
    told = np.array(["" if i % 3 == 0 else c for i, c in enumerate(y)])
    fitted = [
        ContrastiveEncoder("supcon", epochs=1, batch_size=24).fit(x, labels).transform(x[:3])
        for labels in (told, np.array(y, object) if none != -1 else np.array(y))
    ]
    np.testing.assert_array_equal(*fitted)


def test_y_that_names_no_classes_is_left_alone_or_refused_by_name():
    x, y = load_digits(return_X_y=True)
    ContrastiveEncoder(epochs=1).fit(x[:48], y[:48] + 0.5)
    with pytest.raises(ValueError, match="y: values of type float64"):
        ContrastiveEncoder("supcon", epochs=1).fit(x[:48], y[:48] + 0.5)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        ContrastiveEncoder(epochs=1).fit(x[:48], y[:47])


def test_supervised_positives_use_y():
    x, y = load_digits(return_X_y=True)
    ContrastiveEncoder("supcon", epochs=1).fit(x[:300], y[:300])
    with pytest.raises(ValueError, match="no labels"):
        ContrastiveEncoder("supcon", epochs=1).fit(x[:300])


def test_one_hot_pixel_squashes_nothing_and_is_said():
    x = load_digits().data[:200].astype(np.float32)
    hot = x.copy()
    hot[3, 3] = 1e5
    plain = ContrastiveEncoder(epochs=1).fit(x)
    with pytest.warns(UserWarning, match="1 of 12,800 values lie far outside 0 to 16"):
        found = ContrastiveEncoder(epochs=1).fit(hot)
    assert found.range_ == plain.range_ == (0, 16)
    hot[4] = np.arange(64) * 1e3  # a whole image of another scale
    with pytest.warns(UserWarning, match="lie far outside 0 to 16"):
        assert ContrastiveEncoder(epochs=1).fit(hot).range_ == (0, 16)
    spread = [e.transform(x).std(axis=0).mean() for e in (plain, found)]
    assert spread[1] > 0.5 * spread[0]


def test_transform_takes_the_range_of_fit_or_the_one_that_is_told():
    x = np.random.default_rng(0).random((64, 8, 8)).astype(np.float32)
    encoder = ContrastiveEncoder(epochs=1).fit(x)
    low, high = encoder.range_
    assert 0 < low < 0.01 and 0.99 < high < 1
    one = encoder.transform(x[:1])
    np.testing.assert_allclose(encoder.transform(x[:2])[:1], one, atol=1e-5)  # not its own range
    told = ContrastiveEncoder(epochs=1, value_range=(0, 1)).fit(x)
    bits = ContrastiveEncoder(epochs=1).fit(np.rint(x * 255).astype(np.uint8))
    assert (told.range_, bits.range_) == ((0, 1), (0, 255))
    np.testing.assert_allclose(
        told.transform(x), bits.transform(np.rint(x * 255).astype(np.uint8)), atol=1e-5
    )


def test_images_of_four_bands_are_four_channels():
    x = np.random.default_rng(0).random((40, 12, 12, 4))
    with pytest.raises(ValueError, match="colour of 4 channels"):
        ContrastiveEncoder(epochs=1).fit(x)
    encoder = ContrastiveEncoder(epochs=1, batch_size=20, rgb=(0, 1, 2)).fit(x)
    assert encoder.encoder_.channels == 4 and encoder.transform(x[:3]).shape[0] == 3
