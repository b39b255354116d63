"""Video as images with times: files by torchcodec or PyAV, and folders of frames.

    contrapose train clip.mp4 --recipe time_contrastive
    contrapose train FOLDER --recipe time_contrastive --fps 25

A folder of frames has one folder for each clip (or is one), its files in the order of their names.
Frames per second stand in `fps.json` in it or beside it ({"clip": 25.0}), or are told. Two levels,
ACTION/CAMERA/, are several cameras of each action that started together.

Times are in ms, a feature `time` of the images: frame k of a clip is at 1000 k / fps, a frame of a
file at its own time. Those of the next clip or action begin APART later.
"""

import importlib
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from contrapose.data.images import ImageSet
from contrapose.errors import UserError

SUFFIXES = frozenset(
    {
        ".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".gif", ".ts", ".mts",
        ".m2ts", ".wmv", ".flv", ".3gp", ".ogv",
    }
)  # fmt: skip
APART = 10**9  # ms (11 days) between the starts of two clips
TIME = "time"  # the feature
FPS_FILE = "fps.json"
MOST = 2 * 2**30  # bytes of decoded frames
READERS = "pip install 'contrapose[video]'"


def times_of(images: ImageSet) -> Int[Tensor, " N"]:
    """The time of each frame in ms; UserError for images without."""
    if TIME not in images.features:
        raise UserError(
            f"{images.name} has no frame times; give a video, or a folder of frames with --fps 25, "
            f"or a {FPS_FILE} in it"
        )
    return images.features[TIME]


def of_clip(time: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """The number of the clip (or action) that each frame is of."""
    return time // APART


# ---- folders of frames ---------------------------------------------------------------------------


def told_fps(folder: Path) -> Mapping[str, float] | None:
    """What fps.json in the folder, or beside it, says; None without the file."""
    for place in (folder, folder.parent):
        file = place / FPS_FILE
        if file.is_file():
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
                return {str(name): float(value) for name, value in found.items()}
            except (ValueError, TypeError, AttributeError) as error:
                raise UserError(
                    f'{file} is no object of frames per second, {{"clip": 25.0}}: {error}'
                ) from error
    return None


def with_frame_times(images: ImageSet, folder: Path, fps: float | None) -> ImageSet:
    """The images of a folder with the time of each, if `fps` or fps.json tells it.

    Raises UserError for a clip without frames per second, of one frame, of frames of several
    sizes, and for cameras with different numbers of frames.
    """
    told = told_fps(folder)
    if fps is None and told is None:
        return images
    if fps is not None and not 0 < fps < math.inf:
        raise UserError(f"--fps {fps}: use a positive number of frames a second")
    names = [Path(images.names[i]) for i in range(len(images.names))]
    clips: dict[Path, list[int]] = {}
    for i in sorted(range(len(names)), key=lambda i: _natural(names[i].name)):
        clips.setdefault(names[i].parent, []).append(i)
    actions = _actions(sorted(clips))
    _check_cameras({a: {c: len(clips[c]) for c in cs} for a, cs in actions.items()})
    time = torch.zeros(len(names), dtype=torch.int64)
    for number, (action, cameras) in enumerate(actions.items()):
        for clip in cameras:
            shown = [folder.name] if str(clip) in (".", "") else [clip.name, action]
            rate = fps if fps is not None else _rate(told or {}, shown, folder)
            _check_clip(folder, clip, [names[i] for i in clips[clip]])
            place = torch.arange(len(clips[clip]), dtype=torch.float64)
            own = (1000 * place / rate).round().long()
            time[torch.tensor(clips[clip])] = own + number * APART
    kept = torch.arange(len(names)) if images.origin is None else images.origin
    return replace(images, features={**images.features, TIME: time[kept.cpu()]})


def _actions(clips: Sequence[Path]) -> dict[str, list[Path]]:
    """{action: its clips, one for each camera}; a clip that is one level deep is its own action."""
    found: dict[str, list[Path]] = {}
    for clip in clips:
        deep = len(clip.parts) > 1
        found.setdefault(str(clip.parent) if deep else str(clip), []).append(clip)
    return found


def _check_cameras(lengths: Mapping[str, Mapping[Path, int]]) -> None:
    for action, of in lengths.items():
        if len(set(of.values())) > 1:
            said = ", ".join(f"{clip.name} {n}" for clip, n in of.items())
            raise UserError(
                f"{action}: its cameras have different numbers of frames ({said}); cut them to one "
                "start and length, or put each clip in a folder of its own"
            )


def _rate(told: Mapping[str, float], names: Sequence[str], folder: Path) -> float:
    rate = next((told[name] for name in names if name in told), None)
    if rate is None or not 0 < rate < math.inf:
        what = "does not name" if rate is None else f"has {rate:g} for"
        raise UserError(
            f"{folder}: {FPS_FILE} {what} {names[0]}; correct it, give --fps 25, or leave that "
            "clip out"
        )
    return rate


def _check_clip(folder: Path, clip: Path, frames: Sequence[Path]) -> None:
    if len(frames) < 2:
        raise UserError(f"{folder / clip}: {len(frames)} frame; a video has two or more")
    from PIL import Image

    sizes: dict[tuple[int, int], str] = {}
    for frame in frames:
        try:
            with Image.open(folder / frame) as opened:
                sizes.setdefault(opened.size, frame.name)
        except OSError:
            continue  # counted among the unreadable already
    if len(sizes) > 1:
        (one, a), (two, b) = list(sizes.items())[:2]
        raise UserError(
            f"{folder / clip}: frames change their size, {a} is {one[0]} x {one[1]} px and {b} "
            f"{two[0]} x {two[1]} px; make them alike, or put them in folders of their own"
        )


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers in a name by their value: frame9 before frame10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


# ---- files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoded:
    """The frames of a file in the order of time, as squares."""

    frames: UInt8[np.ndarray, "N S S 3"]
    time: Int[np.ndarray, " N"]  # ms from the first frame
    reader: str  # which library read it
    announced: int  # frames that the file says it has; 0 if it does not say


def is_video(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def decode_video(path: Path, size: int | None = None) -> Decoded:
    """The frames of a video file, scaled so that the short side is `size` px and cut to a square.

    size: None is the short side, at most 224. Frames are at the times that the file gives them, of
    variable rate too, and upright if the file says how it was held. What torchcodec cannot decode,
    such as frames without times of their own in AVI or MPEG-2, PyAV is asked for. Raises UserError
    for a file that cannot be decoded, of one frame, of frames of several sizes, and for more frames
    than fit into memory.
    """
    why = []
    for reader in _readers(path):
        try:
            return _decoded(path, size, reader)
        except UserError:
            raise
        except Exception as error:  # whatever a decoder raises on a broken file
            why.append(f"{reader} ({_reason(error, path)})")
    raise UserError(
        f"{path} cannot be decoded by {', nor by '.join(why)}: it is cut off, damaged or no video; "
        f"copy it anew, or convert it (ffmpeg -i {shlex.quote(str(path))} converted.mp4)"
    )


def _reason(error: Exception, path: Path) -> str:
    """The first line of a decoder's error, without its source file, error number and the path."""
    said = str(error).strip().partition("\n")[0]
    said = re.sub(r"^.*\.cpp:\d+, |^\[Errno \d+\] ", "", said)
    return re.sub(rf":? '?{re.escape(str(path))}'?", "", said).strip() or type(error).__name__


def _decoded(path: Path, size: int | None, reader: str) -> Decoded:
    frames: list[np.ndarray] = []
    times: list[float] = []
    shape: tuple[int, ...] | None = None
    for frame, seconds in _READ[reader](path):
        shape = shape or frame.shape
        if frame.shape != shape:
            raise UserError(
                f"{path}: its frames change their size, {shape[1]} x {shape[0]} px and then "
                f"{frame.shape[1]} x {frame.shape[0]} px after {seconds:.2f} s; cut it there"
            )
        side = size or min(224, *shape[:2])
        frames.append(_square(frame, side))
        times.append(seconds)
        if len(frames) * side * side * 3 > MOST:
            raise UserError(
                f"{path}: more than {len(frames):,} frames of {side} px, which take "
                f"{MOST / 1e9:.1f} GB; use a smaller --size, or write frames into a folder"
            )
    if len(frames) < 2:
        raise UserError(f"{path}: {len(frames)} frame; a video has two or more")
    order = np.argsort(times, kind="stable")
    time = np.round(1000 * (np.array(times) - min(times))).astype(np.int64)[order]
    return Decoded(np.stack(frames)[order], time, reader, _ANNOUNCED[reader](path))


def skipped(time: Int[np.ndarray, " N"]) -> int:
    """The number of frames that the times of a steady rate leave out; 0 where the rate varies.

    time: in ms, ascending. A rate is steady if nine of ten intervals are the median within 1 ms.
    """
    between = np.diff(time)
    usual = float(np.median(between))
    if usual <= 0 or (np.abs(between - usual) <= 1).mean() < 0.9:
        return 0
    jumps = between[between > 1.5 * usual + 1]
    return int((np.round(jumps / usual) - 1).sum())


def _readers(path: Path) -> list[str]:
    """Those of torchcodec, if it has its FFmpeg, and PyAV that are there."""
    found, why = [], []
    for name, module in (("torchcodec", "torchcodec.decoders"), ("PyAV", "av")):
        try:
            importlib.import_module(module)
            if name == "torchcodec" and importlib.import_module(name).ffmpeg_major_version is None:
                raise ImportError("there is no FFmpeg that it can load")
        except Exception as error:  # torchcodec raises RuntimeError where a library is missing
            why.append(f"{name}: {str(error).splitlines()[0]}")
            continue
        found.append(name)
    if not found:
        raise UserError(
            f"{path} is a video, and nothing here reads it ({'; '.join(why)}): {READERS}"
        )
    return found


def _by_pyav(path: Path) -> Iterator[tuple[np.ndarray, float]]:
    av = importlib.import_module("av")
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise UserError(f"{path} has no video")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for k, frame in enumerate(container.decode(stream)):
            rate = float(stream.average_rate or 25)
            seconds = k / rate if frame.time is None else float(frame.time)
            turns = round(getattr(frame, "rotation", 0) / 90)  # how the camera was held
            yield np.rot90(frame.to_ndarray(format="rgb24"), turns), seconds


def _by_torchcodec(path: Path) -> Iterator[tuple[np.ndarray, float]]:
    decoders = importlib.import_module("torchcodec.decoders")
    decoder = decoders.VideoDecoder(str(path), dimension_order="NHWC")
    for k in range(len(decoder)):
        frame = decoder.get_frame_at(k)
        yield frame.data.numpy(), float(frame.pts_seconds)


def _announced_to_pyav(path: Path) -> int:
    with importlib.import_module("av").open(str(path)) as container:
        return int(container.streams.video[0].frames)


def _announced_to_torchcodec(path: Path) -> int:
    decoder = importlib.import_module("torchcodec.decoders").VideoDecoder(str(path))
    return int(decoder.metadata.num_frames_from_header or 0)


_READ = {"PyAV": _by_pyav, "torchcodec": _by_torchcodec}
_ANNOUNCED = {"PyAV": _announced_to_pyav, "torchcodec": _announced_to_torchcodec}


def _square(frame: UInt8[np.ndarray, "H W 3"], side: int) -> UInt8[np.ndarray, "S S 3"]:
    """The central square of a frame, scaled."""
    from PIL import Image

    height, width = frame.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    cut = Image.fromarray(np.ascontiguousarray(frame[top : top + short, left : left + short]))
    return np.asarray(cut.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=3.0))
