"""Which setting is part of which key: all that can change a node's bytes, and nothing else.

The table is complete: a new setting of the schema that is not in it fails the test. `export` and `report` write the
settings of a recipe down, so nearly everything is part of their keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lorac.digest import Manifest
from lorac.errors import InputError
from lorac.graph.lower import lower
from lorac.graph.nodes import Graph, Node, Take
from lorac.recipe.load import load
from lorac.recipe.schema import SECTIONS
from tests.recipes import toml
from tests.tiny import draw_pictures

WRITTEN = {"export", "report"}
IMAGES = {"image"}
SETTINGS: dict[str, tuple[object, set[str]]] = {
    "source.path": ("other", {"source", "export", "report"}),
    "source.repeats": (3, {"schedule"} | WRITTEN),
    "source.trigger": (["another"], {"caption"} | WRITTEN),
    "source.alpha": ("black", IMAGES | {"report"}),
    "source.alpha_mask": (True, IMAGES | {"train", "report"}),
    "regularisation.path": ("other", {"source", "export", "report"}),
    "regularisation.repeats": (3, {"schedule"} | WRITTEN),
    "regularisation.caption": ("1boy", {"caption", "report"}),
    "regularisation.alpha": ("black", IMAGES | {"report"}),
    "regularisation.alpha_mask": (True, IMAGES | {"train", "report"}),
    "caption.extension": (".caption", {"source"} | WRITTEN),
    "caption.exclude": (["smile"], {"caption"} | WRITTEN),
    "caption.replace": ({"smile": "grin"}, {"caption"} | WRITTEN),
    "caption.prefix": ("best quality", {"caption"} | WRITTEN),
    "caption.suffix": ("masterpiece", {"caption"} | WRITTEN),
    "caption.shuffle_caption": (True, {"schedule"} | WRITTEN),
    "caption.keep_tokens": (2, {"schedule"} | WRITTEN),
    "caption.caption_dropout_rate": (0.5, {"schedule"} | WRITTEN),
    "caption.caption_dropout_every_n_epochs": (2, {"schedule"} | WRITTEN),
    "caption.caption_tag_dropout_rate": (0.5, {"schedule"} | WRITTEN),
    "network.dim": (3, {"train"} | WRITTEN),
    "network.alpha": (3.0, {"train"} | WRITTEN),
    "network.targets": (["unet"], {"schedule", "train"} | WRITTEN),
    "train.base": ("other.safetensors", WRITTEN),
    "train.resolution": (128, IMAGES | {"draw"} | WRITTEN),
    "train.enable_bucket": (False, IMAGES | WRITTEN),
    "train.min_bucket_reso": (128, IMAGES | WRITTEN),
    "train.max_bucket_reso": (256, IMAGES | WRITTEN),
    "train.bucket_reso_steps": (128, IMAGES | WRITTEN),
    "train.bucket_no_upscale": (True, IMAGES | WRITTEN),
    "train.batch_size": (2, {"schedule"} | WRITTEN),
    "train.epochs": (3, {"schedule"} | WRITTEN),
    "train.steps": (7, {"schedule"} | WRITTEN),
    "train.learning_rate": (0.5, {"schedule"} | WRITTEN),
    "train.text_encoder_lr": (0.5, {"schedule"} | WRITTEN),
    "train.unet_lr": (0.5, {"schedule"} | WRITTEN),
    "train.lr_scheduler": ("linear", {"schedule"} | WRITTEN),
    "train.lr_scheduler_num_cycles": (2, {"schedule"} | WRITTEN),
    "train.lr_scheduler_power": (2.0, {"schedule"} | WRITTEN),
    "train.lr_warmup_steps": (0.5, {"schedule"} | WRITTEN),
    "train.weight_decay": (0.5, {"train"} | WRITTEN),
    "train.betas": ([0.5, 0.5], {"train"} | WRITTEN),
    "train.eps": (0.5, {"train"} | WRITTEN),
    "train.max_grad_norm": (0.5, {"train"} | WRITTEN),
    "train.seed": (7, {"schedule", "train"} | WRITTEN),
    "train.clip_skip": (5, {"train", "draw"} | WRITTEN),
    "train.max_token_length": (150, {"schedule"} | WRITTEN),
    "train.save_every_n_epochs": (2, {"schedule"} | WRITTEN),
    "caption.keep_tokens_separator": ("|||", {"caption", "tokens"} | WRITTEN),
    "caption.enable_wildcard": (True, {"caption", "tokens"} | WRITTEN),
    "regularisation.generate": (None, set()),  # in place of path: see test_what_a_generated_picture_depends_on
    "validation.path": (None, set()),  # it adds nodes: see below
    "validation.trigger": (["another"], {"caption"} | WRITTEN),
    "validation.alpha": ("black", IMAGES | WRITTEN),
    "evaluate.count": (16, {"draw", "measure", "evaluate", "report"}),
    "evaluate.tagger": ("own", {"report"}),  # where a tagger lies counts for nothing
    "evaluate.threshold": (0.5, {"evaluate", "report"}),
    "evaluate.character": (["smile"], {"evaluate", "report"}),
    "check.ignore": (None, set()),
    "tagger.model": (None, set()),  # adds nodes: see test_a_tagger_s_settings_are_in_the_keys_that_they_can_change
    "tagger.sha256": ("0" * 64, WRITTEN),
    "tagger.threshold": (0.5, WRITTEN),
    "tagger.character_threshold": (0.5, WRITTEN),
    "network.weights": (None, set()),
    "network.rslora": (True, {"train"} | WRITTEN),
    "network.dora": (True, {"train"} | WRITTEN),
    "network.conv_dim": (4, {"train"} | WRITTEN),
    "network.conv_alpha": (2.0, {"train"} | WRITTEN),
    "network.dropout": (0.5, {"train"} | WRITTEN),
    "network.rank_dropout": (0.5, {"train"} | WRITTEN),
    "network.module_dropout": (0.5, {"train"} | WRITTEN),
    "network.scale_weight_norms": (1.0, {"train"} | WRITTEN),
    "network.block_dims": ([4] * 25, {"train"} | WRITTEN),
    "network.block_alphas": ([2.0] * 25, {"train"} | WRITTEN),
    "network.conv_block_dims": ([4] * 25, {"train"} | WRITTEN),
    "network.conv_block_alphas": ([2.0] * 25, {"train"} | WRITTEN),
    "network.down_lr_weight": ([0.5] * 12, {"train"} | WRITTEN),
    "network.mid_lr_weight": (0.5, {"train"} | WRITTEN),
    "network.up_lr_weight": ([0.5] * 12, {"train"} | WRITTEN),
    "train.vae": (None, set()),
    "train.bucket_list": ("2023", IMAGES | WRITTEN),
    "train.flip_aug": (None, set()),  # it adds nodes: see below
    "train.latents": ("sample", {"train"} | WRITTEN),
    "train.gradient_accumulation_steps": (2, {"schedule"} | WRITTEN),
    "train.loraplus_lr_ratio": (16.0, {"train"} | WRITTEN),
    "train.loraplus_unet_lr_ratio": (16.0, {"train"} | WRITTEN),
    "train.loraplus_text_encoder_lr_ratio": (16.0, {"train"} | WRITTEN),
    "train.optimizer": ("lion", {"train"} | WRITTEN),
    "train.optimizer_args": ({"d_coef": 2.0}, {"train"} | WRITTEN),
    "train.ema_decay": (0.5, {"train"} | WRITTEN),
    "train.attention": ("math", WRITTEN),  # rounding on a card: see test_attention_is_in_the_key_of_what_is_repeatable
    "train.compile": (True, WRITTEN),
    "train.deterministic": (True, {"train"} | WRITTEN),
    "train.lr_scheduler_timescale": (5, {"schedule"} | WRITTEN),
    "train.lr_scheduler_min_lr_ratio": (0.5, {"schedule"} | WRITTEN),
    "train.lr_scheduler_step_rules": ("1:1,0.5", {"schedule"} | WRITTEN),
    "train.lr_decay_steps": (0.5, {"schedule"} | WRITTEN),
    "loss.prior_loss_weight": (0.5, {"schedule"} | WRITTEN),
    "loss.min_timestep": (5, {"schedule"} | WRITTEN),
    "loss.max_timestep": (5, {"schedule"} | WRITTEN),
    "loss.v_parameterization": (True, {"train", "draw"} | WRITTEN),
    "loss.zero_terminal_snr": (True, {"train", "draw"} | WRITTEN),
    "loss.loss_type": ("l1", {"train"} | WRITTEN),
    "loss.huber_schedule": ("constant", {"train"} | WRITTEN),
    "loss.huber_c": (0.5, {"train"} | WRITTEN),
    "loss.huber_scale": (0.5, {"train"} | WRITTEN),
    "loss.min_snr_gamma": (5.0, {"train"} | WRITTEN),
    "loss.debiased_estimation_loss": (True, {"train"} | WRITTEN),
    "loss.noise_offset": (0.5, {"train"} | WRITTEN),
    "loss.noise_offset_random_strength": (True, {"train"} | WRITTEN),
    "loss.adaptive_noise_scale": (0.5, {"train"} | WRITTEN),
    "loss.multires_noise_iterations": (6, {"train"} | WRITTEN),
    "loss.multires_noise_discount": (0.5, {"train"} | WRITTEN),
    "loss.ip_noise_gamma": (0.5, {"train"} | WRITTEN),
    "loss.ip_noise_gamma_random_strength": (True, {"train"} | WRITTEN),
    "loss.scale_v_pred_loss_like_noise_pred": (True, {"train"} | WRITTEN),
    "loss.v_pred_like_loss": (0.5, {"train"} | WRITTEN),
    "validation.split": (0.5, {"schedule"} | WRITTEN),
    "validation.seed": (7, WRITTEN),
    "sample.prompts": (["another"], {"draw", "report"}),
    "sample.negative": ("ugly", {"draw", "report"}),
    "sample.strengths": ([0.5], {"draw", "sidecar", "report"}),
    "sample.steps": (7, {"draw", "report"}),
    "sample.cfg_scale": (3.0, {"draw", "report"}),
    "sample.seed": (7, {"draw", "report"}),
    "sample.sampler": ("ddim", {"draw", "report"}),
    "sample.width": (128, {"draw", "report"}),
    "sample.height": (128, {"draw", "report"}),
    "output.name": ("another", WRITTEN),
    "output.comment": ("text", WRITTEN),
    "output.metadata": (False, {"export"}),
    "output.tag_frequency": (False, {"export"}),
    "output.preferred_weight": (0.5, {"sidecar"}),
    "output.negative": ("ugly", {"sidecar"}),
    "output.notes": ("text", {"sidecar"}),
    "output.precision": ("fp32", {"export"}),
}
EVALUATED: dict[str, object] = {"evaluate.count": 4, "evaluate.tagger": "builtin:mini"}
NEEDED: dict[str, dict[str, object]] = {
    **dict.fromkeys(("evaluate.count", "evaluate.tagger", "evaluate.threshold", "evaluate.character"), EVALUATED),
    "validation.split": {"validation.split": 0.9},
    "validation.trigger": {"validation.path": "other"},
    "validation.alpha": {"validation.path": "other"},
    "network.block_alphas": {"network.block_dims": [4] * 25},
    "network.conv_alpha": {"network.conv_dim": 4},
    "network.conv_block_alphas": {"network.conv_block_dims": [4] * 25},
    "train.optimizer_args": {"train.optimizer": "prodigy", "train.learning_rate": 1.0},
    "train.lr_scheduler_timescale": {"train.lr_scheduler": "inverse_sqrt"},
    "train.lr_scheduler_min_lr_ratio": {"train.lr_scheduler": "warmup_stable_decay", "train.lr_decay_steps": 0.1},
    "train.lr_scheduler_step_rules": {
        "train.lr_scheduler": "piecewise_constant",
        "train.lr_scheduler_step_rules": "1:2,0.5",
    },
    "train.lr_decay_steps": {"train.lr_scheduler": "warmup_stable_decay", "train.lr_decay_steps": 0.1},
    "loss.zero_terminal_snr": {"loss.v_parameterization": True},
    "loss.scale_v_pred_loss_like_noise_pred": {"loss.v_parameterization": True},
    "loss.huber_schedule": {"loss.loss_type": "huber"},
    "loss.huber_c": {"loss.loss_type": "huber"},
    "loss.huber_scale": {"loss.loss_type": "huber", "loss.huber_schedule": "constant"},
    "loss.noise_offset_random_strength": {"loss.noise_offset": 0.1},
    "loss.adaptive_noise_scale": {"loss.noise_offset": 0.1},
    "loss.ip_noise_gamma_random_strength": {"loss.ip_noise_gamma": 0.1},
}
"""What a setting is refused without."""


@pytest.fixture(scope="module")
def folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("lower")
    for name in ("pictures", "class", "other"):
        draw_pictures(made / name, 1)
    for name in ("own", "theirs"):
        (made / name).mkdir()
    for name in ("base.safetensors", "other.safetensors"):
        (made / name).write_bytes(tiny_base.read_bytes())
    return made


def graph(folder: Path, changes: Mapping[str, object]) -> Graph:
    """The graph of a small recipe with some settings changed."""
    recipe: dict[str, dict[str, object]] = {
        "source": {"path": "pictures"},
        "regularisation": {"path": "class"},
        "train": {"base": "base.safetensors", "epochs": 2, "lr_scheduler": "cosine"},
        "sample": {"prompts": ["a girl"]},
    }
    for name, value in changes.items():
        section, _, key = name.partition(".")
        recipe.setdefault(section, {})[key] = value
        if name == "train.steps":
            del recipe["train"]["epochs"]
    tables = {name: [table] if name in ("source", "regularisation") else table for name, table in recipe.items()}
    path = folder / "r.toml"
    path.write_text(toml(tables), encoding="utf-8")
    return lower(load([path]))


def own(node: Node) -> bytes:
    """The part of a node's key that is its own and not its inputs'; where files lie counts for a source only."""
    manifest = Manifest()
    manifest.field("params", node.params)
    manifest.field("items", node.items)
    manifest.field("path", node.hints if node.kind == "source" else {})
    manifest.field("ports", [(port, source.output, source.take.value) for port, source in node.inputs.items()])
    return manifest.key()


def test_every_setting_is_in_the_table() -> None:
    known = {f"{name}.{field.name}" for name, section in SECTIONS.items() for field in msgspec.structs.fields(section)}
    assert SETTINGS.keys() == known


@pytest.mark.parametrize("setting", [name for name, (value, _) in SETTINGS.items() if value is not None])
def test_a_setting_is_in_the_keys_of_the_kinds_that_it_can_change(folder: Path, setting: str) -> None:
    value, expected = SETTINGS[setting]
    others = NEEDED.get(setting, {})
    before, after = graph(folder, others), graph(folder, {**others, setting: value})
    assert [node.kind for node in before.nodes] == [node.kind for node in after.nodes]
    changed = {old.kind for old, new in zip(before.nodes, after.nodes, strict=True) if own(old) != own(new)}
    assert changed == expected


def test_mirrored_pictures_are_latents_of_their_own(folder: Path) -> None:
    """flip_aug adds a latent node for each set; the plain latents keep their keys."""
    before, after = graph(folder, {}), graph(folder, {"train.flip_aug": True})
    old = Counter((node.kind, own(node)) for node in before.nodes)
    added = Counter((node.kind, own(node)) for node in after.nodes) - old
    assert Counter(kind for kind, _ in added.elements()) == {
        "latent": 2,
        **dict.fromkeys({"schedule", "train"} | WRITTEN, 1),
    }
    (train,) = (node for node in after.nodes if node.kind == "train")
    mirrored = [train.inputs[f"flipped.{number}"].node for number in range(2)]
    assert [dict(node.params) for node in mirrored] == [{"flip": True}] * 2
    assert [dict(train.inputs[f"latent.{number}"].node.params) for number in range(2)] == [{}] * 2
    assert [node.inputs["pixels"] for node in mirrored] == [
        train.inputs[f"latent.{n}"].node.inputs["pixels"] for n in range(2)
    ]


def test_attention_is_in_the_key_of_what_is_repeatable(folder: Path) -> None:
    """It decides the bits where they are promised, and is a hint where they are not."""

    def train(changes: dict[str, object]) -> Node:
        (node,) = (node for node in graph(folder, changes).nodes if node.kind == "train")
        return node

    fixed: dict[str, object] = {"train.deterministic": True}
    plain, auto, math = train({}), train(fixed), train({**fixed, "train.attention": "math"})
    assert "deterministic" not in plain.params and plain.hints == {"attention": "auto"}
    assert auto.params["deterministic"] == "sdpa" == auto.hints["attention"], "nothing is timed"
    assert math.params["deterministic"] == "math"
    assert own(auto) == own(train({**fixed, "train.attention": "sdpa"})) != own(math)
    assert own(plain) == own(train({"train.attention": "math"}))


def test_pictures_held_out_pass_the_nodes_of_others_and_are_no_part_of_training(folder: Path) -> None:
    changes = {"train.flip_aug": True, "caption.exclude": ["solo"]}
    before, after = graph(folder, changes), graph(folder, {**changes, "validation.path": "other/*.png"})
    old = Counter((node.kind, own(node)) for node in before.nodes)
    added = Counter((node.kind, own(node)) for node in after.nodes) - old
    per_picture = {"source", "image", "caption", "tokens", "latent"}
    kinds = Counter(kind for kind, _ in added.elements())
    assert kinds == dict.fromkeys({"schedule", "validate"} | WRITTEN | per_picture, 1)
    (train,), (without,) = ([node for node in found.nodes if node.kind == "train"] for found in (after, before))
    assert own(train) == own(without)
    (held_out,) = (node for node in after.nodes if node.name == "r:latent[*.png]")
    (validate,) = (node for node in after.nodes if node.kind == "validate")
    assert validate.inputs["latent.2"].node is held_out
    assert held_out not in [source.node for source in train.inputs.values()]
    assert [validate.inputs[f"latent.{n}"] for n in range(2)] == [train.inputs[f"latent.{n}"] for n in range(2)]
    (schedule,) = (node for node in after.nodes if node.kind == "schedule")
    assert schedule.inputs["tokens.2"].node.inputs["caption"].node.params["exclude"] == ("solo",)
    assert schedule.inputs["bucket.2"].node is held_out.inputs["pixels"].node


def test_the_seed_of_validation_is_that_of_training_unless_given(folder: Path) -> None:
    def seed(changes: dict[str, object]) -> object:
        (schedule,) = (n for n in graph(folder, {"validation.split": 0.5, **changes}).nodes if n.kind == "schedule")
        return schedule.params["validation_seed"]

    assert (seed({}), seed({"train.seed": 7}), seed({"train.seed": 7, "validation.seed": 0})) == (23, 7, 0)


def test_a_lora_to_go_on_from_is_an_input_of_training(folder: Path) -> None:
    plain = graph(folder, {})
    (folder / "old.safetensors").touch()
    made = graph(folder, {"network.weights": "old.safetensors"})
    (start,) = [node for node in made.nodes if node.kind == "start"]
    assert start.hints == {"path": str(folder / "old.safetensors")} and not start.params
    (train,), (without,) = ([node for node in found.nodes if node.kind == "train"] for found in (made, plain))
    assert train.inputs["start"].node is start and train.inputs["start"].output == "file"
    assert train.params == without.params and "start" not in without.inputs


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("tagger.sha256", "0" * 64, WRITTEN),
        ("tagger.threshold", 0.5, {"caption"} | WRITTEN),
        ("tagger.character_threshold", 0.5, {"caption"} | WRITTEN),
        ("caption.exclude", ["smile"], {"caption"} | WRITTEN),
        ("source.alpha", "black", IMAGES | {"report"}),
    ],
)
def test_a_tagger_s_settings_are_in_the_keys_that_they_can_change(
    folder: Path, setting: str, value: object, expected: set[str]
) -> None:
    before = graph(folder, {"tagger.model": "builtin:mini"})
    after = graph(folder, {"tagger.model": "builtin:mini", setting: value})
    assert {node.kind for node in before.nodes} >= {"tag", "tagger", "vocabulary"}
    changed = {old.kind for old, new in zip(before.nodes, after.nodes, strict=True) if own(old) != own(new)}
    assert changed == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"count": 5}, {"generate", "report"}),
        ({"prompt": "1boy"}, {"generate", "caption", "report"}),
        *(
            ({key: value}, {"generate", "report"})
            for key, value in {"negative": "hat", "steps": 7, "cfg_scale": 3.0, "sampler": "ddim", "seed": 7}.items()
        ),
        ({"transparent": True}, {"generate"} | WRITTEN),  # which name the set
    ],
    ids=lambda value: " ".join(sorted(value)),
)
def test_what_a_generated_picture_depends_on(folder: Path, change: dict[str, object], expected: set[str]) -> None:
    def generated(settings: dict[str, object], resolution: int = 64) -> list[Node]:
        recipe = {
            "source": [{"path": "pictures"}],
            "regularisation": [{"generate": {"count": 4, **settings}, "alpha": "white"}],
            "train": {"base": "base.safetensors", "epochs": 2, "resolution": resolution},
        }
        path = folder / "generated.toml"
        path.write_text(toml(recipe), encoding="utf-8")
        return lower(load([path])).nodes

    def changed(after: list[Node]) -> set[str]:
        return {old.kind for old, new in zip(generated({}), after, strict=True) if own(old) != own(new)}

    assert changed(generated(change)) == expected
    assert changed(generated({}, 128)) == {"generate"} | IMAGES | WRITTEN


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("sample.prompts", ["another"], {"draw", "evaluate", "report"}),
        ("sample.cfg_scale", 3.0, {"draw", "report"}),
        ("sample.strengths", [0.5], {"draw", "evaluate", "sidecar", "report"}),
        ("output.preferred_weight", 0.5, {"evaluate", "sidecar"}),
        ("source.trigger", ["another"], {"caption", "export", "evaluate", "report"}),
        ("caption.exclude", ["smile"], {"caption", "evaluate"} | WRITTEN),
        ("source.alpha", "black", IMAGES | {"report"}),
        ("tagger.sha256", "0" * 64, WRITTEN),
    ],
)
def test_what_changes_an_evaluation(folder: Path, setting: str, value: object, expected: set[str]) -> None:
    before, after = graph(folder, EVALUATED), graph(folder, {**EVALUATED, setting: value})
    assert [node.kind for node in before.nodes] == [node.kind for node in after.nodes]
    changed = {old.kind for old, new in zip(before.nodes, after.nodes, strict=True) if own(old) != own(new)}
    assert changed == expected


def test_an_evaluation_measures_what_was_drawn_and_what_was_trained(folder: Path) -> None:
    made = graph(folder, {**EVALUATED, "validation.split": 0.5, "evaluate.tagger": "own"})
    (evaluate,) = [node for node in made.nodes if node.kind == "evaluate"]
    looked_at = {node.inputs["picture"].node.kind: node for node in made.nodes if node.kind == "measure"}
    assert [node.kind for node in made.nodes].count("measure") == 3 and set(looked_at) == {"draw", "image"}
    assert looked_at["draw"].params == {"count": 4} and looked_at["image"].params == {"count": 1}
    assert looked_at["image"].inputs["picture"].node.name == "r:image[pictures]"  # and not the class's
    assert looked_at["image"].hints["model"] == str(folder / "own" / "model.onnx")
    assert evaluate.inputs["losses"].take is Take.LAST and evaluate.inputs["validation"].take is Take.FIRST
    assert {"tags", "seen.off", "features.off", "seen.on", "features.on", "seen.0", "features.0"} <= set(
        evaluate.inputs
    )
    assert [o.file for o in made.outputs if o.value.node is evaluate] == ["evaluation.json"]
    (sidecar,) = [node for node in made.nodes if node.kind == "sidecar"]
    assert sidecar.inputs["figures"].node is evaluate
    plain = graph(folder, {**EVALUATED, "evaluate.count": 0})
    assert not {"measure", "evaluate"} & {node.kind for node in plain.nodes}
    off_only = graph(folder, {**EVALUATED, "sample.strengths": [0.0]})
    (alone,) = [node for node in off_only.nodes if node.kind == "evaluate"]
    assert "seen.off" in alone.inputs and "seen.on" not in alone.inputs


def test_the_tagger_of_an_evaluation_is_its_own_or_the_recipe_s_or_the_base_s(folder: Path) -> None:
    def models(changes: dict[str, object]) -> set[str]:
        made = graph(folder, {"evaluate.count": 1, **changes})
        return {Path(str(n.hints["model"])).parent.name for n in made.nodes if n.kind == "measure"}

    assert models({"tagger.model": "theirs"}) == {"theirs"}
    assert models({"tagger.model": "theirs", "evaluate.tagger": "own"}) == {"own"}
    assert models({"train.base": "builtin:mini"}) == {"tagger"}
    without = graph(folder, {"evaluate.count": 16})  # of a base that no tagger here knows
    assert not models({})
    assert {n.params["count"] for n in without.nodes if n.kind == "draw"} == {1}


def test_paths_are_in_no_key(folder: Path, tmp_path: Path, tiny_base: Path) -> None:
    """The same project in another folder is the same graph, but for where its files lie."""
    for name in ("pictures", "class"):
        draw_pictures(tmp_path / name, 1)
    (tmp_path / "base.safetensors").write_bytes(tiny_base.read_bytes())

    def without_hints(found: Graph) -> list[tuple[Any, ...]]:
        return [(node.kind, dict(node.params), node.items) for node in found.nodes]

    assert without_hints(graph(folder, {})) == without_hints(graph(tmp_path, {}))
    for node in graph(tmp_path, {}).nodes:
        assert str(tmp_path) not in str(node.params)


def test_every_input_names_an_output_of_the_kind_it_comes_from(folder: Path) -> None:
    from lorac.graph.nodes import Shape
    from lorac.kinds.registry import KINDS, SCANNERS

    kinds: dict[str, Any] = {**KINDS, **SCANNERS}
    made = graph(folder, {"tagger.model": "builtin:mini", **EVALUATED, "validation.split": 0.5})
    for node in made.nodes:
        for port, source in [*node.inputs.items(), *((o.file, o.value) for o in made.outputs if o.value.node is node)]:
            of = kinds[source.node.kind]
            assert source.output in of.OUTPUTS, (node.name, port)
            assert source.take is Take.WHOLE or of.SHAPE is not Shape.ONE, (node.name, port)
        each = [source for source in node.inputs.values() if source.take is Take.EACH]
        assert bool(each or node.items) == (kinds[node.kind].SHAPE in (Shape.EACH, Shape.CHAIN)), node.name


def test_held_out_pictures_are_measured_only_where_there_are_some(folder: Path) -> None:
    plain, made = graph(folder, {}), graph(folder, {"validation.split": 0.5, "loss.loss_type": "l1"})
    assert "validate" not in {node.kind for node in plain.nodes}
    (validate,) = [node for node in made.nodes if node.kind == "validate"]
    assert validate.params["loss"]["loss_type"] == "l1"  # type: ignore[index, call-overload]
    assert validate.inputs["lora"].take is Take.EACH and validate.inputs["validation"].take is Take.FIRST
    assert {"latent.0", "latent.1", "unet", "text"} <= set(validate.inputs)
    (report,) = [node for node in made.nodes if node.kind == "report"]
    assert report.inputs["validation"].node is validate


@pytest.mark.parametrize("setting", ["scale_v_pred_loss_like_noise_pred", "zero_terminal_snr"])
def test_what_does_not_go_with_what_the_base_says_is_refused(folder: Path, setting: str) -> None:
    with pytest.raises(InputError, match=rf"r.toml:\d+: .*{setting}"):
        graph(folder, {f"loss.{setting}": True})


def test_pictures_without_the_lora_and_with_it_are_nodes_of_their_own(folder: Path) -> None:
    """Prompts-major; 0 is drawn always, and by the node that knows no LoRA."""
    prompts = ["a girl", {"prompt": "a boy", "negative": "hat"}]
    made = graph(folder, {"sample.prompts": prompts, "sample.strengths": [0.5, 0, 1.0], **EVALUATED})
    off, on = (node for node in made.nodes if node.kind == "draw")
    texts: list[dict[str, object]] = [{"prompt": "a girl", "negative": ""}, {"prompt": "a boy", "negative": "hat"}]
    assert [dict(item) for item in off.items] == texts
    assert [dict(item) for item in on.items] == [{**text, "strength": s} for text in texts for s in (0.5, 1.0)]
    assert "lora" not in off.inputs and on.inputs["lora"].take is Take.LAST
    assert off.params == on.params
    ports = {port: source for port, source in on.inputs.items() if port != "lora"}
    assert ports == off.inputs and ports.keys() == {"unet", "vae", "text"}
    (only,) = (node for node in graph(folder, {"sample.strengths": [0]}).nodes if node.kind == "draw")
    assert "lora" not in only.inputs


@pytest.mark.parametrize(("count", "drawn"), [(0, 1), (1, 1), (16, 16)])
def test_a_sheet_has_as_many_pictures_as_are_evaluated(folder: Path, count: int, drawn: int) -> None:
    made = graph(folder, {"evaluate.count": count, "evaluate.tagger": "builtin:mini"})
    assert [node.params["count"] for node in made.nodes if node.kind == "draw"] == [drawn, drawn]


@pytest.mark.parametrize("setting", ["train.learning_rate", "network.alpha"])
def test_recipes_on_one_base_share_the_pictures_without_a_lora(folder: Path, setting: str) -> None:
    graph(folder, {})
    child = f'extends = "r.toml"\nmatrix = {{"{setting}" = [0.25, 0.5]}}\n'
    (folder / "s.toml").write_text(child, encoding="utf-8")
    recipes = load([folder / "r.toml", folder / "s.toml"])
    drawn = [node for node in lower(recipes).nodes if node.kind == "draw"]
    assert len(recipes) == 3
    assert [("lora" in node.inputs) for node in drawn] == [False, True, True, True]


def test_the_sidecar_has_a_picture_only_where_there_are_prompts(folder: Path) -> None:
    plain, made = graph(folder, {"sample.prompts": []}), graph(folder, {})
    for found, files in ((plain, {"r.json"}), (made, {"r.json", "r.png"})):
        (sidecar,) = (node for node in found.nodes if node.kind == "sidecar")
        assert {output.file for output in found.outputs if output.value.node is sidecar} == files
        assert ({"off", "first"} <= sidecar.inputs.keys()) == ("r.png" in files)
    assert not [node for node in plain.nodes if node.kind == "draw"]
