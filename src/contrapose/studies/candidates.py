"""Easy features that views may share, each with its measurement and an augmentation against it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from contrapose import augment
from contrapose.data import ImageSet
from contrapose.evaluation import easy_features as easy


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An easy feature, and an augmentation that would remove it from the views."""

    name: str
    title: str
    words: str  # what alone finds an image's other view
    feature: easy.Feature
    asked: easy.Feature  # of the image itself, in few numbers: what h is asked for
    suggestion: str
    settings: dict[str, Any] = field(default_factory=dict)  # of `augment.hardened`
    blank: tuple[int, ...] = ()  # channels for `augment.blanked`


def candidates(images: ImageSet) -> list[Candidate]:
    """The easy features that these images can have: colours only if there are any, and so on."""
    constant = easy.constant_channels(images)
    seen = partial(_picture, channels=images.pictured, constant=constant)
    found = [
        Candidate(
            name="intensity", title="Grey levels", words="the histogram of its grey levels",
            feature=partial(_of, feature=easy.intensity, seen=seen),
            asked=partial(_of, feature=easy.moments, seen=seen),
            suggestion="jitter of brightness and contrast (0.8) on every view",
            settings={"intensity": 0.8},
        ),
        Candidate(
            name="position", title="Position and size", words="place and size of what it shows",
            feature=partial(_of, feature=easy.position, seen=seen),
            asked=partial(_of, feature=easy.position, seen=seen),
            suggestion="a first crop of area 0.25 to 1", settings={"area": 0.25},
        ),
        Candidate(
            name="detail", title="Sharpness and compression",
            words="how much fine detail it has beside coarse",
            feature=partial(_of, feature=easy.detail, seen=seen),
            asked=partial(_of, feature=easy.detail, seen=seen),
            suggestion="Gaussian blur on every view", settings={"blur": 1.0},
        ),
    ]  # fmt: skip
    if len(images.pictured) == 3:
        found.append(
            Candidate(
                name="colour", title="Colours", words="the histogram of its colours",
                feature=partial(_of, feature=easy.colour, seen=seen),
                asked=partial(_of, feature=easy.tints, seen=seen),
                suggestion="jitter of hue and saturation (1.0) on every view, grey in one of five",
                settings={"colour": 1.0},
            )
        )  # fmt: skip
    if width := easy.border_width(images):
        edges = partial(easy.edges, width=width / images.size)
        found.append(
            Candidate(
                name="border", title="Border", words="the colour of its edges",
                feature=partial(_of, feature=edges, seen=seen),
                asked=partial(_of, feature=edges, seen=seen),
                suggestion=f"{width} px of {images.size} cut from every side",
                settings={"border": width},
            )
        )  # fmt: skip
    if constant:
        named = ", ".join(str(c + 1) for c in constant[:6]) + (" ..." if constant[6:] else "")
        found.append(
            Candidate(
                name="channels", title="Constant channels",
                words=f"the level of channel{'s' if constant[1:] else ''} {named}",
                feature=partial(easy.levels, channels=constant),
                asked=partial(easy.levels, channels=constant),
                suggestion=f"channel{'s' if constant[1:] else ''} {named} of "
                f"{images.channels} left out, in use as well", blank=constant,
            )
        )  # fmt: skip
    return found


def with_suggestions(
    policy: Callable[..., Tensor], images: ImageSet, found: Sequence[Candidate]
) -> Any:
    """The policy, or both of its branches, with the suggestions of these candidates on top."""
    return augment.on_each_branch(policy, partial(_against, images=images, found=found))


def _against(
    policy: Callable[..., Tensor], images: ImageSet, found: Sequence[Candidate]
) -> Callable[..., Tensor]:
    settings = {k: v for c in found for k, v in c.settings.items()}
    if settings:
        settings |= {} if images.rgb is None else {"rgb": images.rgb}
        if getattr(policy, "func", None) is augment.on_channels:
            below = policy.keywords["views"]  # type: ignore[attr-defined]
            hard = partial(augment.hardened, views=below, **settings)
            policy = partial(augment.on_channels, views=hard, channels=images.shown)
        else:
            policy = partial(augment.hardened, views=policy, **settings)
    if blank := tuple(k for c in found for k in c.blank):
        policy = partial(augment.blanked, views=policy, channels=blank)
    return policy


def _picture(
    view: Float[Tensor, "B C H W"], *, channels: tuple[int, ...], constant: Sequence[int]
) -> Float[Tensor, "B c H W"]:
    """These channels as a picture, black where they are constant."""
    picture = view[:, list(channels)]
    hidden = [k for k, c in enumerate(channels) if c in constant]
    if hidden:
        picture = picture.clone()
        picture[:, hidden] = 0
    return picture


def _of(view: Tensor, *, feature: easy.Feature, seen: Callable[[Tensor], Tensor]) -> Tensor:
    return feature(seen(view))
