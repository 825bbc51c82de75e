"""All kinds by name. Importing this imports no torch, numpy or Pillow: kinds do that when they run."""

from __future__ import annotations

from lorac.engine.protocol import Kind, Scanner
from lorac.kinds import (
    base,
    caption,
    export,
    generate,
    image,
    latent,
    report,
    sample,
    schedule,
    source,
    start,
    tag,
    tagger,
    tokens,
    train,
    validate,
    vocabulary,
    weights,
)

SCANNERS: dict[str, Scanner] = {
    source.NAME: source,
    base.NAME: base,
    start.NAME: start,
    tagger.NAME: tagger,
    vocabulary.NAME: vocabulary,
}
KINDS: dict[str, Kind] = {
    weights.NAME: weights,
    generate.NAME: generate,
    image.NAME: image,
    tag.NAME: tag,
    caption.NAME: caption,
    tokens.NAME: tokens,
    latent.NAME: latent,
    schedule.NAME: schedule,
    train.NAME: train,
    export.NAME: export,
    sample.NAME: sample,
    validate.NAME: validate,
    report.NAME: report,
}
