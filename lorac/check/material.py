"""What a rule looks at: the recipe, its pictures with their captions, and what follows from both."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

from lorac import words
from lorac.captions import split_tags
from lorac.check.looks import Figure, Header, Look, Looks
from lorac.dataset import Captioned, Folder
from lorac.graph.scope import bucketing
from lorac.kinds.image import Bucketing, Refused
from lorac.listing import shown_path
from lorac.plan import Run, run_of
from lorac.recipe.base import base_facts
from lorac.recipe.buckets import Size
from lorac.recipe.recipe import Recipe

HEAD_WIDTH, HEAD_FILL, HEAD_BOTTOM = 0.8, 0.55, 0.98
"""A cut-out that is at least so wide for its height, fills so much of its box and ends above the lower border is a
head. Heads of lorac.mini are 1.0 to 1.1 wide and fill 0.62 to 0.75; figures down to the feet are 0.48 to 0.67 wide, and
those that are cut off stand on the border."""


@dataclass(frozen=True)
class Placed:
    """A picture's size, the size it is scaled to and the bucket it is cropped to, all (width, height) in pixels."""

    size: Size
    scaled: Size
    bucket: Size


@dataclass(frozen=True)
class Material:
    """One recipe. `sets` are its folders, sources first; those that the base is to draw have no pictures here."""

    recipe: Recipe
    sets: Sequence[Folder]
    seen: Looks = field(default_factory=Looks)

    @cached_property
    def sources(self) -> list[Folder]:
        return [folder for folder in self.sets if not folder.regularisation]

    @cached_property
    def regularisation(self) -> list[Folder]:
        return [folder for folder in self.sets if folder.regularisation]

    @cached_property
    def pictures(self) -> list[Captioned]:
        """Those to learn from."""
        return [captioned for folder in self.sources for captioned in folder.pictures]

    @cached_property
    def run(self) -> Run:
        """The figures of the run, as `lorac plan` has them; pictures that were looked at are not read again."""
        assert self.headers is not None  # read together
        return run_of(self.recipe, self._header)

    def _header(self, path: str) -> Header:
        seen = self.seen.headers([path])[path]
        if isinstance(seen, Refused):
            raise seen
        return seen

    @cached_property
    def looks(self) -> dict[str, Look]:
        """What the pictures to learn from look like, by path."""
        return self.seen.of(captioned.picture.path for captioned in self.pictures)

    @cached_property
    def headers(self) -> dict[str, Header | Refused]:
        """Size and transparency of all pictures by path, or why one cannot be used: what is learnt from is decoded."""
        assert self.looks is not None  # read first, so that its headers need not be
        return self.seen.headers(captioned.picture.path for folder in self.sets for captioned in folder.pictures)

    def transparent(self, folder: Folder) -> dict[str, Look]:
        """Those pictures of a folder, by path, that have transparent parts; headers say which ones to read."""
        paths = (captioned.picture.path for captioned in folder.pictures)
        looks = self.seen.of(p for p in paths if not isinstance(seen := self.headers[p], Refused) and seen[1])
        return {path: look for path, look in looks.items() if look.cut_out}

    @cached_property
    def bucketing(self) -> Bucketing:
        train = self.recipe.train
        facts = base_facts(train.base, self.recipe.where("train.base"), train.vae)
        return Bucketing(**bucketing(self.recipe, facts))  # type: ignore[arg-type]

    @cached_property
    def placed(self) -> dict[str, Placed]:
        """How training and regularisation pictures fit into their buckets, by path."""
        found = {}
        for path, seen in self.headers.items():
            with suppress(Refused):  # L013 and the build name it
                if not isinstance(seen, Refused):
                    found[path] = Placed(seen[0], *self.bucketing.place(*seen[0]))
        return found

    @cached_property
    def heads_only(self) -> bool:
        """Whether there is nothing to learn from but heads: see `shows_heads`."""
        return bool(self.pictures) and all(map(self.shows_heads, self.sources))

    def shows_heads(self, folder: Folder) -> bool:
        """Whether each picture of a source is a head and no more.

        No caption may name a framing, a pose or clothes. Each cut-out, and each figure before a plain background, has
        to be compact and to end above the lower border. Pictures that are not cut out need captions, too, that name
        something of a head; before a background that hides the outline, one such as "portrait".
        """
        return all(self._shows_head(tags_of(c), self.looks.get(c.picture.path)) for c in folder.pictures)

    def _shows_head(self, tags: list[str], look: Look | None) -> bool:
        if look is None or words.shows_body(tags):
            return False
        if look.figure is None:
            return not look.empty and words.is_close(tags)
        return head_shaped(look.figure) and (look.cut_out or words.shows_head(tags))

    @property
    def strength(self) -> float:
        """What the factors' product is multiplied by: alpha / dim, alpha / √dim of rsLoRA."""
        network = self.recipe.network
        return float(network.alpha / (network.dim**0.5 if network.rslora else network.dim))


def tags_of(captioned: Captioned) -> list[str]:
    """The tags as written, before the recipe's rules; none where there is no text file."""
    return split_tags((captioned.raw or "").replace("\n", ","))


def place_of(captioned: Captioned) -> str:
    """The file that messages about a caption name."""
    return shown_path(captioned.picture.caption_path or captioned.picture.path)


def picture_count(folder: Folder) -> int:
    """How many pictures a folder has, or will have when the base has drawn them."""
    return folder.spec.generate.count if folder.spec.generate else len(folder.pictures)


def head_shaped(figure: Figure) -> bool:
    """Whether an outline is that of a head without a body."""
    return figure.width >= HEAD_WIDTH and figure.fill >= HEAD_FILL and figure.bottom <= HEAD_BOTTOM


def counted(count: int, noun: str) -> str:
    """`1 picture`, `3 pictures`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
