"""Video: frame times from files and folders, batches in time, losses that get them, alignment."""

import json
import math
import shutil
import struct
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import contrapose
from contrapose import explain, losses, recipes
from contrapose.data import Request, video
from contrapose.data.video import APART, _decoded, decode_video, of_clip, times_of
from contrapose.downstream import align
from contrapose.encoders import Encoder, mlp, small_conv
from contrapose.errors import UserError
from contrapose.evaluation.alignment import align as align_rows
from contrapose.keys.contrast import Halves, InBatch, OverTime
from contrapose.processes import Rank
from contrapose.training.in_time import moments
from contrapose.training.objective import contrast_of, learned_label


def picture(place, side=16, camera=0):
    """A bright square on its way from left to right, seen by a camera of its own."""
    image = np.full((side, side, 3), 20 + 60 * camera, np.uint8)
    left = round(place * (side - 5))
    image[side // 2 - 3 : side // 2 + 2, left : left + 5] = (250, 250 - 120 * camera, 60)
    return image if camera == 0 else image[::-1].copy()


def write_clip(folder, frames=12, camera=0, side=16):
    folder.mkdir(parents=True)
    for k in range(frames):
        Image.fromarray(picture(k / (frames - 1), side, camera)).save(folder / f"f{k}.png")


def test_frames_have_the_times_of_their_clip_in_the_order_of_their_numbers(tmp_path):
    write_clip(tmp_path / "v" / "one")
    write_clip(tmp_path / "v" / "two", frames=3)
    (tmp_path / "v" / "fps.json").write_text(json.dumps({"one": 25, "two": 10.0}))
    images = Request(tmp_path / "v").open("train")
    time = times_of(images)
    at = dict(zip([str(f) for f in images.files], time.tolist(), strict=True))
    assert [at[f"one/f{k}.png"] for k in (0, 2, 10, 11)] == [0, 80, 400, 440]
    assert [at[f"two/f{k}.png"] for k in range(3)] == [APART, APART + 100, APART + 200]
    assert of_clip(time).unique().tolist() == [0, 1]
    assert times_of(Request(tmp_path / "v", fps=20).open("train")).max() == APART + 100
    alone = Request(tmp_path / "v" / "one").open("train")  # told by the file beside it
    assert times_of(alone).max() == 440


def test_without_frames_per_second_a_folder_has_no_times(tmp_path):
    write_clip(tmp_path / "one")
    images = Request(tmp_path / "one").open("train")
    with pytest.raises(UserError, match="no frame times"):
        times_of(images)
    with pytest.raises(UserError, match="no frame times"):
        learned_label(recipes.recipe_for("time_contrastive", 16, 3), images)


def test_cameras_of_an_action_share_its_times(tmp_path):
    for action in ("pour", "stir"):
        for camera in (0, 1):
            write_clip(tmp_path / action / f"cam{camera}", camera=camera)
    time = times_of(Request(tmp_path, fps=10).open("train"))
    assert sorted(time.tolist()) == sorted(
        [a * APART + 100 * k for a in (0, 1) for k in range(12)] * 2
    )


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda root: [p.unlink() for p in sorted((root / "a").iterdir())[1:]], "1 frame"),
        (lambda root: Image.new("RGB", (20, 9)).save(root / "a" / "f3.png"), "change their size"),
        (lambda root: (root / "fps.json").write_text('{"a": 0}'), "has 0 for a"),
        (lambda root: (root / "fps.json").write_text('{"b": 25}'), "does not name a"),
        (lambda root: (root / "fps.json").write_text("25"), "no object of frames per second"),
    ],
)
def test_what_is_no_clip_is_refused_by_name(tmp_path, break_it, said):
    write_clip(tmp_path / "a")
    write_clip(tmp_path / "c")
    (tmp_path / "fps.json").write_text('{"a": 25, "c": 25}')
    break_it(tmp_path)
    with pytest.raises(UserError, match=said):
        Request(tmp_path).open("train")


def test_cameras_of_different_length_and_fps_of_no_folder_are_refused(tmp_path):
    write_clip(tmp_path / "pour" / "cam0")
    write_clip(tmp_path / "pour" / "cam1", frames=9)
    with pytest.raises(UserError, match="different numbers of frames"):
        Request(tmp_path, fps=10).open("train")
    with pytest.raises(UserError, match="--fps 25 is for a folder"):
        Request("digits", fps=25).open("train")
    with pytest.raises(UserError, match="--fps -1"):
        Request(tmp_path, fps=-1).open("train")


def network():
    net = partial(small_conv, channels=3, width=8)
    return Encoder.build(net, partial(mlp, dim=4), [0.5] * 3, [0.25] * 3)


def write_video(path, frames=20, rate=10, side=32, codec="mpeg4"):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(
                picture(k / max(1, frames - 1), side), format="rgb24"
            )
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def test_a_file_is_decoded_in_the_order_of_time(tmp_path):
    write_video(tmp_path / "clip.mp4")
    images = Request(tmp_path / "clip.mp4", size=16).open("train")
    assert len(images) == 20 and images.size == 16
    assert times_of(images).tolist() == [100 * k for k in range(20)]
    assert any("PyAV" in note or "torchcodec" in note for note in images.notes)
    bright = images.batch(torch.arange(20)).float().mean(dim=1).mean(dim=1)
    assert bright.argmax(dim=1)[0] < bright.argmax(dim=1)[-1]  # the square went to the right
    with pytest.raises(UserError, match="times of its own"):
        Request(tmp_path / "clip.mp4", fps=3).open("train")


def test_a_broken_file_and_one_frame_are_refused(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "bad.mp4").write_bytes(b"nothing" * 100)
    with pytest.raises(UserError, match=r"bad\.mp4 cannot be decoded by \w+ \([^/]*\).*ffmpeg -i"):
        Request(tmp_path / "bad.mp4").open("train")
    write_video(tmp_path / "one.mp4", frames=1)
    with pytest.raises(UserError, match="1 frame"):
        Request(tmp_path / "one.mp4").open("train")


def test_a_file_that_was_cut_says_how_many_frames_it_lacks(tmp_path):
    write_video(tmp_path / "whole.avi", frames=60)
    whole = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) * 3 // 4])
    notes = Request(tmp_path / "cut.avi").open("train").notes
    lost = next(n for words, n in notes.items() if "it is cut off or damaged" in words)
    assert 10 < lost < 50 and lost + len(Request(tmp_path / "cut.avi").open("train")) == 60
    assert len(Request(tmp_path / "whole.avi").open("train").notes) == 1


def test_a_stream_that_announces_no_frames_says_so_and_counts_those_in_a_hole(tmp_path):
    write_video(tmp_path / "whole.ts", frames=60, rate=25, codec="mpeg2video")
    whole = (tmp_path / "whole.ts").read_bytes()
    (tmp_path / "cut.ts").write_bytes(whole[: len(whole) // 2])
    packet = 188
    start = len(whole) // packet // 2 * packet
    (tmp_path / "hole.ts").write_bytes(whole[:start] + whole[start + 10 * packet :])
    found = {name: Request(tmp_path / f"{name}.ts").open("train") for name in ("whole", "cut")}
    for images in found.values():
        assert any("does not say how many it has" in note for note in images.notes)
    assert len(found["whole"]) == 60 > len(found["cut"]) > 10 and len(found["whole"].notes) == 1
    hole = Request(tmp_path / "hole.ts").open("train")
    lost = next(n for words, n in hole.notes.items() if "by the steady rate" in words)
    assert lost > 0 and lost + len(hole) == 60
    assert video.skipped(np.array([0, 33, 67, 100, 133, 167])) == 0  # 30 frames a second
    assert video.skipped(np.array([0, 40, 90, 400, 430, 900])) == 0  # a rate that varies


def test_a_still_camera_is_trained_on_and_judged_though_all_frames_are_near_copies(tmp_path):
    random = np.random.default_rng(0)
    still = random.integers(0, 255, (24, 24, 3), np.uint8)
    (tmp_path / "clip").mkdir()
    for k in range(60):
        moved = still.copy()
        moved[k % 24, :2] = 255
        Image.fromarray(moved).save(tmp_path / "clip" / f"{k}.png")
    run = contrapose.train(
        "time_contrastive", tmp_path / "clip", fps=10, encoder="small_conv", epochs=1,
        changes=["backbone.width=8"], out=tmp_path / "run", device="cpu",
    )  # fmt: skip
    assert run.read("recipe.json")["recipe"]["batch_size"] == 14  # even: pairs of frames
    found = explain.diagnose(run, device="cpu")
    seen = found["signals"]
    assert seen["images"] == 12 and seen["near_copies"] + seen["exact_copies"] > 40
    with pytest.raises(UserError, match="has 5 images: too few"):
        few = np.zeros((5, 8, 8, 3), np.uint8)
        contrapose.train("simclr", few, out=tmp_path / "few", device="cpu")


@pytest.fixture
def both_readers():
    """Skips where PyAV or torchcodec, with its FFmpeg, is not here."""
    pytest.importorskip("av")
    codec = pytest.importorskip("torchcodec", exc_type=ImportError)
    if codec.ffmpeg_major_version is None:
        pytest.skip("torchcodec finds no FFmpeg here")


def write_at(path, times, codec="libx264"):
    """A clip whose frames are at these ms, with frames that are stored out of order."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.max_b_frames = 2
        for k, time in enumerate(times):
            image = np.zeros((32, 48, 3), np.uint8)
            image[:, : 2 * k + 9] = (40, 10 * k, 200)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


UNEVEN = [0, 40, 80, 200, 210, 500, 540, 1000, 1040, 1500]


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4"])
@pytest.mark.parametrize("times", [[40 * k for k in range(12)], UNEVEN, [t + 700 for t in UNEVEN]])
def test_both_readers_give_the_same_frames_at_the_same_times(tmp_path, both_readers, name, times):
    write_at(tmp_path / name, times)
    one, two = (_decoded(tmp_path / name, None, reader) for reader in ("PyAV", "torchcodec"))
    assert one.time.tolist() == two.time.tolist() == [t - times[0] for t in times]
    np.testing.assert_array_equal(one.frames, two.frames)


def test_what_torchcodec_cannot_decode_is_read_by_pyav(tmp_path, both_readers):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.avi"), "w") as out:  # whose frames have no times of their own
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.max_b_frames = 2
        for k in range(20):
            frame = av.VideoFrame.from_ndarray(
                np.full((32, 48, 3), 10 * k, np.uint8), format="rgb24"
            )
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    found = decode_video(tmp_path / "clip.avi")
    assert (np.diff(found.time) == 100).all() and len(found.time) == 20
    level = found.frames.astype(int).mean(axis=(1, 2, 3))
    assert (np.diff(level) >= 0).all() and level[-1] > level[0] + 150


@pytest.mark.parametrize("reader", ["PyAV", "torchcodec"])
def test_frames_are_upright_where_the_camera_was_turned(tmp_path, both_readers, reader):
    write_at(tmp_path / "level.mp4", UNEVEN)
    content = bytearray((tmp_path / "level.mp4").read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40  # of the track header (ISO 14496-12, 8.3.2)
    quarter = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 32 << 16, 0, 1 << 30)
    content[matrix : matrix + 36] = quarter
    (tmp_path / "turned.mp4").write_bytes(content)
    level, turned = (_decoded(tmp_path / f"{n}.mp4", None, reader) for n in ("level", "turned"))
    np.testing.assert_array_equal(turned.frames, np.rot90(level.frames, -1, axes=(1, 2)))


def test_partners_are_near_in_time_or_of_another_camera(tmp_path):
    write_clip(tmp_path / "a" / "one", frames=30)
    write_clip(tmp_path / "a" / "two", frames=10)
    images = Request(tmp_path / "a", fps=10).open("train")
    time = times_of(images)
    recipe = recipes.recipe_for("time_contrastive", 16, 3)
    batches = moments(len(images), 8, near=200)
    batches.begin(0, network(), images, recipe, Rank())
    order = batches.order(3, seed=1)
    assert order.shape == (5, 8) and torch.equal(order, batches.order(3, seed=1))
    assert not torch.equal(order, batches.order(4, seed=1))
    gap = (time[order[:, :4]] - time[order[:, 4:]]).abs()
    assert gap.max() <= 200 and gap.min() > 0
    for row in order[:, :4]:
        assert len(row.unique()) == 4
    again = moments(len(images), 8, near=200)
    again.load_state_dict(batches.state_dict())
    assert torch.equal(again.order(3, seed=1), order)

    for camera in (0, 1):
        write_clip(tmp_path / "b" / "pour" / f"cam{camera}", camera=camera)
    images = Request(tmp_path / "b", fps=10).open("train")
    time = times_of(images)
    both = moments(len(images), 8)
    both.begin(0, network(), images, recipe, Rank())
    for epoch in range(4):
        order = both.order(epoch, seed=0)
        assert torch.equal(time[order[:, :4]], time[order[:, 4:]])
        assert (order[:, :4] != order[:, 4:]).all()
        assert all(len(time[row].unique()) == 4 for row in order[:, :4])
    with pytest.raises(UserError, match="of several cameras"):
        other = Request(tmp_path / "a", fps=10).open("train")
        moments(40, 8).begin(0, network(), other, recipe, Rank())
    with pytest.raises(UserError, match="even batch"):
        moments(40, 7)


def test_a_loss_is_given_times_or_cameras_by_its_arguments(tmp_path):
    time = torch.tensor([0, 100, 100, 900])
    number = torch.arange(4)
    base = recipes.recipe_for("time_contrastive", 16, 3)
    found = contrast_of(base, time, number)
    assert type(found) is OverTime and torch.equal(found.time, time.repeat(2))
    z = torch.nn.functional.normalize(torch.randn(8, 3), dim=1)
    own = losses.time_contrastive(z, time.repeat(2), near=200, far=400, margin=0.2)
    assert torch.equal(found.loss(base.loss, z), own)
    cameras = replace(base, loss=partial(losses.triplet_semi_hard, margin=0.2))
    found = contrast_of(cameras, time, number)
    assert type(found) is InBatch and torch.equal(found.group, time.repeat(2))
    pairs = replace(base, loss=partial(losses.n_pairs), number_of_views=1)
    found = contrast_of(pairs, time, number)
    assert type(found) is Halves and found.group.tolist() == [0, 1, 0, 1]
    assert torch.equal(found.loss(pairs.loss, z[:4]), losses.n_pairs(z[:2], z[2:4]))


def test_alignment_is_zero_in_step_and_a_third_at_random():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 16, generator=g)
    time = torch.arange(60) * 40
    same = align_rows(x, time, x, time)
    assert same.error == 0 and same.within == 1 and same.match.tolist() == list(range(60))
    back = align_rows(x, time, x.flip(0), time)
    assert back.error == pytest.approx(
        float((2 * torch.arange(60) - 59).abs().double().mean() / 59)
    )
    slow = align_rows(x, time, x, 2 * time)  # the same at half the speed is in step
    assert slow.error == 0
    y = torch.randn(60, 16, generator=g)
    drawn = align_rows(x, time, y, time)
    assert abs(drawn.error - 1 / 3) < 0.08 and drawn.random == pytest.approx(1 / 3, abs=0.01)
    assert drawn.random_within == pytest.approx(11 / 60, abs=0.03)
    with pytest.raises(UserError, match="needs two times"):
        align_rows(x[:1], time[:1], y, time)


@pytest.mark.parametrize("loss", ["time_contrastive", "n_pairs"])
def test_frames_of_one_camera_train_once_each(tmp_path, loss):
    write_clip(tmp_path / "clip", frames=24)
    changes = ["number_of_views=1", "batch_size=8", "backbone.width=8", f"loss={loss}"]
    run = contrapose.train(
        "time_contrastive", Request(tmp_path / "clip", fps=10), out=tmp_path / "run", epochs=2,
        encoder="small_conv", changes=changes,
    )  # fmt: skip
    assert all(math.isfinite(row["loss"]) for row in run.metrics())
    assert ("alignment" in run.metrics()[-1]) == (loss == "n_pairs")


@pytest.mark.parametrize("loss", ["time_contrastive", "n_pairs"])
def test_training_in_time_brings_two_cameras_into_step(tmp_path, loss):
    for action in ("pour", "stir"):
        for camera in (0, 1):
            write_clip(tmp_path / "v" / action / f"cam{camera}", frames=24, camera=camera)
    changes = ["positives=time", "batches=moments", "batches.near=0", "batch_size=16"]
    if loss == "n_pairs":
        changes = ["positives=time", "batches=moments", "loss=n_pairs", "number_of_views=1"]
        changes += ["batches.near=0", "batch_size=16", "head.unit_length=false"]
    run = contrapose.train(
        "time_contrastive", Request(tmp_path / "v", fps=10), out=tmp_path / "run", epochs=60,
        encoder="small_conv", changes=[*changes, "backbone.width=32"], seed=0,
    )  # fmt: skip
    cameras = [Request(tmp_path / "v" / "pour" / f"cam{c}", fps=10) for c in (0, 1)]
    found, page = align(run, *cameras, tolerance=200)
    by = found["by"]
    assert by["z"]["error"] < 0.6 * by["z"]["random"]
    assert by["z"]["error"] < by["z before training"]["error"]
    assert "Matched frames" in page.read_text() and (run.path / "align-cam0-cam1.json").exists()
    shutil.copytree(tmp_path / "v" / "pour" / "cam0", tmp_path / "again")
    (tmp_path / "again" / "f7.png").write_bytes(b"\x89PNG half")
    found, _ = align(run, Request(tmp_path / "again", fps=10))
    assert found["frames"] == [23, 23] and len(found["left_out"]) == 1
    assert "f7.png: " in found["left_out"][0]
    metrics = run.metrics()
    assert all(math.isfinite(row["loss"]) for row in metrics)
    with pytest.raises(UserError, match="holds 2 clips"):
        align(run, Request(tmp_path / "v", fps=10))
