"""All kinds by name. Importing this imports no torch, numpy or Pillow: kinds do that when they run."""

from __future__ import annotations

from lorac.engine.protocol import Kind, Scanner
from lorac.kinds import (
    base,
    caption,
    compare,
    draw,
    evaluate,
    export,
    image,
    latent,
    measure,
    report,
    schedule,
    sidecar,
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
    image.NAME: image,
    tag.NAME: tag,
    caption.NAME: caption,
    tokens.NAME: tokens,
    latent.NAME: latent,
    schedule.NAME: schedule,
    train.NAME: train,
    export.NAME: export,
    draw.NAME: draw,
    validate.NAME: validate,
    measure.NAME: measure,
    evaluate.NAME: evaluate,
    sidecar.NAME: sidecar,
    report.NAME: report,
    compare.NAME: compare,
}
