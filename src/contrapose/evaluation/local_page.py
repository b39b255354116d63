"""Cluster labels of local features over their images, as one HTML page to browse.

A row for each image, a column for each number of clusters; which features, whether images share
their clusters, and how strongly labels cover the picture is chosen on the page. It loads nothing.
"""

import base64
import colorsys
import html
import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from PIL import Image
from torch import Tensor

from contrapose.augment import center
from contrapose.data import ImageSet
from contrapose.errors import UserError
from contrapose.evaluation.local import LocalMaps
from contrapose.files import replace_file

TILE = 160  # px, side of an image on the page
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif }
body { margin: 0 auto; max-width: 1100px; padding: 0 12px 40px }
form { position: sticky; top: 0; background: Canvas; padding: 10px 0; z-index: 1;
  display: flex; flex-wrap: wrap; gap: 8px 20px; border-bottom: 1px solid GrayText }
label { display: inline-flex; gap: 6px; align-items: center }
.scroll { overflow-x: auto }
td, th { padding: 2px; text-align: left; font-weight: normal }
.tile { position: relative; width: SIDEpx; height: SIDEpx; display: block }
.tile img { position: absolute; width: 100%; height: 100% }
.tile .over { image-rendering: pixelated }
.tile .grey { filter: grayscale(1) }
</style>
<h1>TITLE</h1>
<p>ABOUT</p>
<form>
<label>clusters of <select id="maps"></select></label>
<label>features <select id="stage"></select></label>
<label>labels <input id="cover" type="range" min="0" max="100" value="60"></label>
</form>
<div class="scroll"><table><thead></thead><tbody></tbody></table></div>
<script type="application/json" id="data">DATA</script>
<script>
const data = JSON.parse(document.getElementById("data").textContent);
const [maps, stage, cover] = ["maps", "stage", "cover"].map(i => document.getElementById(i));
const fill = (select, names) => select.replaceChildren(...names.map(n => new Option(n)));
const tile = (...layers) => {
  const box = document.createElement("div");
  box.className = "tile";
  for (const [source, kind, alt] of layers) {
    const image = new Image();
    Object.assign(image, { src: source, className: kind, alt, loading: "lazy" });
    box.append(image);
  }
  return box;
};
const row = (kind, cells) => {
  const line = document.createElement("tr");
  for (const content of cells) {
    const cell = document.createElement(kind);
    cell.append(content);
    line.append(cell);
  }
  return line;
};
function draw() {
  const byK = data.labels[maps.value][stage.value], ks = Object.keys(byK);
  document.querySelector("thead").replaceChildren(row("th", ["image", ...ks.map(k => "K = " + k)]));
  document.querySelector("tbody").replaceChildren(...data.pictures.map((picture, i) =>
    row("td", [tile([picture, "", "image " + i]), ...ks.map(k =>
      tile([picture, "grey", ""], [byK[k][i], "over", k + " clusters of image " + i]))])));
  fade();
}
function fade() {
  document.querySelectorAll(".over").forEach(i => { i.style.opacity = cover.value / 100; });
}
fill(maps, Object.keys(data.labels));
const stages = () => { const old = stage.value, names = Object.keys(data.labels[maps.value]);
  fill(stage, names); stage.value = names.includes(old) ? old : names[0]; draw(); };
maps.onchange = stages; stage.onchange = draw; cover.oninput = fade; stages();
</script>
</html>
"""


def write_map_page(images: ImageSet, maps: Mapping[str, LocalMaps], path: Path | str) -> Path:
    """Write the page; where it lies. Beside and renamed, in place of an older one.

    images: those that `local_maps` was given. maps: what was clustered together -> labels, such as
    {"each image by itself": ..., "all images together": ...}. Raises UserError for labels of
    another number of images.
    """
    if not maps:
        raise UserError("write_map_page: no maps; give at least one")
    for name, found in maps.items():
        for by_k in found.labels.values():
            for label in by_k.values():
                if len(label) != len(images):
                    raise UserError(
                        f"write_map_page: {name} has labels of {len(label)} images, {images.name} "
                        f"has {len(images)}"
                    )
    labels = {
        name: {
            stage: {str(K): [_png(one) for one in label] for K, label in by_k.items()}
            for stage, by_k in found.labels.items()
        }
        for name, found in maps.items()
    }
    size = next(iter(maps.values())).size
    data = json.dumps({"pictures": _pictures(images, size), "labels": labels})
    about = "; ".join(f"{name}: {found.protocol}" for name, found in maps.items())
    page = (
        _PAGE.replace("TITLE", html.escape(f"Local features of {images.name}"))
        .replace("ABOUT", html.escape(about))
        .replace("SIDE", str(TILE))
        .replace("DATA", data.replace("<", "\\u003c"))
    )
    path = Path(path)
    replace_file(path, page.encode("utf-8", "replace"))
    return path


def _pictures(images: ImageSet, size: int) -> list[str]:
    batch = images.picture(images.batch(torch.arange(len(images)))).cpu()
    seen = center(batch, size).mul(255).round().byte().expand(-1, 3, -1, -1)
    found = []
    for tile in seen.permute(0, 2, 3, 1).contiguous().numpy():
        picture = Image.fromarray(tile)
        side = max(size, TILE)
        found.append(_uri(picture.resize((side, side)), "JPEG", quality=85))
    return found


def _png(label: Integer[Tensor, "h w"]) -> str:
    """The labels in their colours, a pixel each; the browser enlarges them."""
    clusters = int(label.max()) + 1
    drawn = Image.fromarray(label.numpy().astype(np.uint8))
    drawn.putpalette(palette(clusters).tobytes())
    return _uri(drawn, "PNG")


def palette(clusters: int) -> UInt8[np.ndarray, "K 3"]:
    """Colours that stay far apart however many there are: hues a golden angle from each other."""
    shades = [
        colorsys.hsv_to_rgb(
            0.6 + 0.618034 * k, 0.85 - 0.3 * (k // 8 % 2), 1.0 - 0.35 * (k // 4 % 2)
        )
        for k in range(clusters)
    ]
    found: np.ndarray = np.rint(255 * np.array(shades)).astype(np.uint8)
    return found


def _uri(picture: Image.Image, kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
