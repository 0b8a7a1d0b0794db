"""The task as the engine uses it, with a small model."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from tiny_corpus import write_karpathy
from tiny_tasks import NAMES, SMALL

from soho_fast.common.checksums import altered_files
from soho_fast.data.text import load_tokenizer
from soho_fast.model import SohoForPreTraining
from soho_fast.model.outputs import VisualTokens
from soho_fast.model.values import ModelChanges
from soho_fast.tasks.card import model_card
from soho_fast.tasks.contents import images_identity, output_identity, words_identity
from soho_fast.tasks.evaluation.sharing import Sharing
from soho_fast.tasks.pretraining import PretrainingTask, read_sources
from soho_fast.tasks.settings import CaptionSource, PretrainingData, PretrainingModel


@pytest.fixture
def data(tmp_path, tokenizer_dir):
    path = str(write_karpathy(tmp_path, {"train": NAMES[:6], "restval": NAMES[6:8], "val": NAMES[8:]}))
    return PretrainingData(
        sources=[CaptionSource(path, [str(tmp_path)], splits=["train", "restval"])],
        heldout=[CaptionSource(path, [str(tmp_path)], splits=["val"])],
        tokenizer=str(tokenizer_dir),
        shorter_edge=32,
        longer_edge=64,
    )


def make_task(data, pretrained=None, **config):
    """(the task, the list of what it says), of a small model with these changes."""
    said = []
    model = PretrainingModel(config=ModelChanges(**{**SMALL, **config}), pretrained=pretrained and str(pretrained))
    return PretrainingTask(data, 3, model, say=said.append), said


def test_a_held_out_copy_is_refused_in_training_counted_in_evaluation_and_so_is_what_is_missing(data, tmp_path):
    entries = json.loads((tmp_path / "dataset_coco.json").read_text())["images"]
    path_of = {split: [] for split in ("train", "restval", "val")}
    for entry in entries:
        path_of[entry["split"]].append(tmp_path / entry["filepath"] / entry["filename"])
    held, copied = path_of["val"][1], path_of["train"][2]
    shutil.copy(copied, held)
    path_of["restval"][0].unlink()
    data.missing_images = "skip"
    task, _ = make_task(data)
    with pytest.raises(ValueError, match=f"1 images are both in .* {copied} .held out as {held}."):
        task.training_data()
    assert len(task.heldout_records) == 4
    assert task.num_trained_on("heldout", task.data, 3) == 1 and task.num_missing() == {"sources": 1}
    held.unlink()
    os.link(path_of["val"][0], held)
    task, _ = make_task(data)
    assert len(task.training_data()) == 7 and task.num_trained_on("heldout", task.data, 3) == 0


def test_a_training_step_and_the_metrics(data):
    task, _ = make_task(data)
    torch.manual_seed(0)
    model = task.build_model()
    samples = task.training_data()
    batch = task.collate([samples[index] for index in range(4)])
    inputs = {key: value for key, value in batch.items() if key not in ("skipped", "sample_ids")}
    output = model(**task.on_device(inputs))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    logged = {name: getattr(output, name, None) for name in task.logged}
    assert all(value.numel() == 1 for value in logged.values() if value is not None)
    off_or_the_steps = {"bag_of_words_loss", "contrastive_loss", "step_perplexity", "code_error"}
    assert {name for name, value in logged.items() if value is None} == off_or_the_steps
    model.train()
    metrics = task.evaluate(model, quick=False)
    assert metrics["num_images"] == 4 and metrics["num_candidates"] == 4
    assert model.training
    quick = task.evaluate(model, quick=True)
    assert "num_candidates" not in quick and quick["itm"] == metrics["itm"]
    table = task.table(metrics)
    assert len(table.columns) == 3 and all(len(row) == 3 for row in table.rows)
    assert task.table({}).rows == []


def test_an_exported_model_is_measured_again(data, tmp_path):
    task, _ = make_task(data)
    torch.manual_seed(0)
    model = task.build_model().eval()
    told = []
    metrics = task.evaluate(model, progress=lambda done, total: told.append((done, total)))
    assert told == [(4, 4), (1, 1)], "the held-out images, then blocks of candidates"
    task.export(model, model.state_dict(), tmp_path / "model")
    again, _ = make_task(data)
    loaded = again.load_model(str(tmp_path / "model"))
    evaluation = again.evaluate_split(loaded, again.default_split, Sharing())
    assert evaluation.metrics == metrics and evaluation.write(tmp_path) == []
    with pytest.raises(ValueError, match="the recipe names no held-out images"):
        make_task(replace(data, heldout=[]))[0].evaluate_split(loaded, "heldout", Sharing())


def test_the_dictionary_moves_once_a_step_if_the_step_is_applied(data):
    task, _ = make_task(data)
    torch.manual_seed(0)
    model = task.build_model().train()
    dictionary = model.soho.visual_dictionary
    samples = task.training_data()
    batches = [dict(task.on_device(task.collate([samples[n] for n in pair]))) for pair in ((0, 1), (2, 3))]
    for batch in batches:
        del batch["skipped"], batch["sample_ids"]
    batches[1]["pixel_values"][0, 0, 0, 0] = torch.nan
    before = dictionary.codebook.clone()
    for applied in (False, True):
        model.begin_step()
        for batch in batches:
            model(**batch)
        model.end_step(applied=applied)
        figures = task.figures(model)
        assert torch.equal(dictionary.codebook, before) != applied and bool(figures) == applied
        assert dictionary.step == applied
    perplexity, active_codes, _ = dictionary.statistics()
    assert figures["perplexity"] == perplexity > 1 and figures["active_codes"] == active_codes
    of_step = {"step_perplexity", "top_share", "code_error", "feature_drift", "feature_spread"}
    assert set(figures) == {"perplexity", "active_codes"} | of_step
    (line,) = task.non_finite(model)
    assert line.startswith("visual tokens (") and task.non_finite(model) == []


def test_it_goes_on_from_a_pre_trained_model_with_another_dictionary_or_none(data, tmp_path):
    for name, changes in (("none", {"dictionary": "none"}), ("codes", {})):
        task, _ = make_task(data, **changes)
        torch.manual_seed(5)
        model = task.build_model()
        task.export(model, model.state_dict(), tmp_path / name)
        torch.manual_seed(6)
        others = {"num_levels": 2, "dictionary_init": "data"} if name == "none" else {}
        again, said = make_task(data, tmp_path / name, **others)
        taken = again.build_model().state_dict()
        there = model.state_dict()
        shared = [key for key in there if key in taken and "feature_watch" not in key]
        assert len(shared) > 60 and all(torch.equal(there[key], taken[key]) for key in shared)
        own = [key for key in taken if key not in there]
        assert bool(own) == (name == "none")
        assert ("not in the source, initial values kept" in said[-1]) == (name == "none"), said
        assert again.contents()["model.pretrained"].startswith("weights ")
    with pytest.raises(ValueError, match="tensors have another size"):
        make_task(data, tmp_path / "none", hidden_size=16)[0].build_model()


def test_the_encoder_at_the_start_is_measured_where_its_weights_still_are(data, tmp_path):
    task, _ = make_task(data)
    model = task.build_model()
    task.export(model, model.state_dict(), tmp_path / "model")
    again, said = make_task(data, tmp_path / "model")
    state = torch.get_rng_state()
    start = again.encoder_at_start(torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state) and said == [] and not start.training
    expected = model.soho.visual_encoder.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in start.state_dict().items())
    shutil.rmtree(tmp_path / "model")
    assert again.encoder_at_start(torch.device("cpu")) is None
    assert len(said) == 1 and said[0].startswith("k-means of the CNN before training is not measured: "), said


def test_codes_that_a_pre_trained_model_has_learnt_are_kept(data, tmp_path):
    task, _ = make_task(data)
    model = task.build_model()
    for learnt in (False, True):
        model.soho.visual_dictionary.age.fill_(float(learnt))
        task.export(model, model.state_dict(), tmp_path / "model")
        again, said = make_task(data, tmp_path / "model", dictionary_init="data")
        again.build_model()
        assert ("model.pretrained: its codes have learnt and are kept" in said[-1]) == learnt, said


def test_one_position_is_masked_in_a_batch_and_images_keep_their_keys(data):
    """By these the dictionary draws features: with one for all it would take the same positions of each image."""
    data.masking = replace(data.masking, probability=1.0)
    task, _ = make_task(data, official="pretraining")
    samples, model = task.training_data(), task.build_model()
    batch = task.on_device(task.collate([samples[number] for number in range(4)]))
    assert len(set(batch["mask_uniform"].tolist())) == 4
    visual = model.encode_images(batch["pixel_values"], batch["pixel_mask"])
    places = torch.arange(visual.index.shape[1]).expand_as(visual.index)
    uniform_B = torch.tensor([0.1, 0.9, 0.2, 0.8], dtype=torch.float64)
    for training in (True, False):
        model.train(training)
        _, labels_BL = model.soho.mask_one_label(VisualTokens(**{**visual, "index": places}), uniform_B)
        assert (len(set(labels_BL[labels_BL != -100].tolist())) == 1) == training, labels_BL


def test_words_of_a_pre_trained_model_are_found_by_their_spelling(data, tmp_path):
    model, _ = make_task(data, bag_of_words_weight=0.1)
    first = model.build_model()
    torch.nn.init.normal_(first.mlm_head.decoder.bias)
    model.export(first, first.state_dict(), tmp_path / "model")
    words = tmp_path / "model" / "tokenizer.json"
    content = json.loads(words.read_text())
    there = content["model"]["vocab"]
    (*_, one, two), unknown = there, "a"
    there[one], there[two] = there[two], there[one]
    there["##unheard"] = there.pop(unknown)
    words.write_text(json.dumps(content))
    (tmp_path / "model" / "SHA256SUMS").unlink()
    again, said = make_task(data, tmp_path / "model", bag_of_words_weight=0.1)
    identity = again.contents()["model.pretrained"]
    content["model"]["vocab"] = {**there, one: there[two], two: there[one]}
    words.write_text(json.dumps(content))
    assert again.contents()["model.pretrained"] != identity, "rows are taken by its words"
    words.write_text(json.dumps({**content, "model": {**content["model"], "vocab": there}}))
    taken, here = again.build_model().state_dict(), again.processor.tokenizer.get_vocab()
    assert f"knows {len(here) - 1} of the {len(here)} tokens here" in said[-2]
    for name in ("soho.text_embeddings.word_embeddings.weight", "mlm_head.decoder.bias"):
        rows = first.state_dict()[name]
        for token, row in here.items():
            same = token != unknown
            assert torch.equal(taken[name][row], rows[there[token if same else "##unheard"]]) == same, (name, token)


def test_an_exported_model_has_a_card(data, tmp_path):
    task, _ = make_task(data)
    model = task.build_model()
    (Path(data.sources[0].images[0]) / "licences.json").write_text(
        json.dumps([{"what": "flat colours", "credit": who, "licence": "CC0"} for who in ("Ada", "Grace", "Ada")])
    )
    task.export(model, model.state_dict(), tmp_path / "untried")
    assert "Not measured." in (tmp_path / "untried" / "README.md").read_text()
    metrics = task.evaluate(model.eval())
    task.export(model, model.state_dict(), tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert ModelCard(card).data.library_name == "soho_fast"
    assert "- flat colours: CC0; Ada, Grace\n" in card and "Not recorded" not in card
    assert str(tmp_path) not in card, "no path of this machine"
    for name, value, baseline in task.table(metrics).rows:
        assert f"| {name} | {value} | {baseline} |" in card
    task.before_step(model, 1.0)
    task.export(model, model.state_dict(), tmp_path / "later")
    assert "Not measured." in (tmp_path / "later" / "README.md").read_text(), "those were another step's"
    task.model.pretrained, task.model.backbone = str(tmp_path / "model"), "imagenet"
    assert f"{tmp_path.name}/model\n" in model_card(task, model, {}) and "imagenet" not in model_card(task, model, {})
    snippet = re.search("```python\n(.*?)```", card, re.DOTALL)[1]
    exec(snippet.replace("FOLDER_OR_NAME", str(tmp_path / "model")), found := {})
    assert type(found["model"]) is SohoForPreTraining
    # Who publishes it completes the card; the model is what it was.
    (tmp_path / "model" / "README.md").write_text("mine")
    assert altered_files(tmp_path / "model") == ""


def test_visual_tokens_are_masked_from_an_epoch_on(data):
    task, _ = make_task(data, bag_of_words_weight=0.1)
    task.model.bag_of_words_epochs, task.data.mvm_from_epoch = 1.0, 2
    model = task.build_model()
    states = []
    for epoch in (0.0, 1.0, 1.9, 2.0):
        task.before_step(model, epoch)
        states.append((model.bag_of_words_only, model.masks_visual_tokens, task.phase(epoch)))
    alone, whole = "the visual encoder learns alone, by the bag-of-words loss", "no visual tokens are masked"
    assert states == [(True, False, alone), (False, False, whole), (False, False, whole), (False, True, "")]


def test_hard_negatives_begin_with_the_masked_visual_tokens(data):
    data.num_negative, data.mvm_from_epoch = 8, 2
    held = {}
    for share in (0.0, 1.0):
        data.hard_negative_share = share
        task, said = make_task(data)
        samples = task.training_data()
        assert any("from epoch 2 on, 100 % of these foils of the positive ones" in line for line in said) == bool(share)
        for epoch in (1, 2):
            samples.set_epoch(epoch)
            held[share, epoch] = [ids.tolist() for ids in samples[0].texts_ids]
    assert held[0.0, 1] == held[1.0, 1] and held[0.0, 2] != held[1.0, 2]


def test_foils_of_held_out_captions_are_measured(data):
    metrics = make_task(data)[0].evaluate(make_task(data)[0].build_model(), quick=False)
    kinds = {name.removesuffix("_pairs") for name in metrics if name.endswith("_pairs")}
    assert kinds == {"foils_objects"}, "held out are two colours that no list has"
    assert all(0 <= metrics[f"foils_objects{end}"] <= 1 for end in ("", "_shuffled", "_accepted"))


def test_without_a_dictionary_all_texts_have_masked_words(data):
    """No visual token is masked there, so no text is to go without its masked words or its question of matching."""
    data.mvm_probability, data.conditional_masking, data.mvm_from_epoch = 0.5, True, 2
    data.masking = replace(data.masking, probability=1.0)
    for dictionary in ("paper", "none"):
        task, _ = make_task(data, dictionary=dictionary, mvm_margin=1)
        samples = task.training_data()
        samples.set_epoch(2)
        batch = task.collate([samples[i] for i in range(len(samples))])
        masked_P = (batch["mlm_labels"] != -100).any(1)[batch["itm_labels"] == 1]
        assert ("mask_pairs" in batch) == (dictionary == "paper") == (not masked_P.all())


@pytest.mark.parametrize("name", ["sources", "heldout"])
def test_a_set_of_identical_captions_is_refused_before_training(data, tmp_path, name):
    """No text of another image could fail to describe this one: no negative can be drawn."""
    path = str(write_karpathy(tmp_path / "same", {"train": NAMES[:5]}, sentences=lambda colour: ["a man", "A  man"]))
    setattr(data, name, [CaptionSource(path, [str(tmp_path / "same")], splits=["train"])])
    with pytest.raises(
        ValueError, match=rf"data\.{name}: no negative caption .* \(a man\); expected images with"
    ) as told:
        make_task(data)[0].training_data()
    assert "\n" not in str(told.value)
    data.num_negative = 0
    if name == "sources":
        assert len(make_task(data)[0].training_data()) == 5


def test_a_run_without_codes_that_loses_its_features_says_what_is_seen(data):
    task, _ = make_task(data, dictionary="none")
    model = task.build_model()
    watch = model.base().feature_watch
    valid = torch.ones(4, 8, dtype=torch.bool)
    for step in range(140):
        watch.begin_step()
        scale, shift = (1.0, 0.0) if step < 120 else (0.1, 3.0)
        watch.see(torch.randn(4, 8, SMALL["hidden_size"]) * scale + shift, valid, None)
        watch.end_step(applied=True)
        assert bool(task.lost(model)) == (step == 139), step
        assert task.is_sound(model) == (step < 120)
    seen = r"for 20 steps the visual features .* moved by 2\.\d of their deviations, their variance is 0\.01\d* times"
    assert re.match(seen, task.lost(model)), task.lost(model)
    assert "code" not in task.lost(model)
    watch.begin_step()
    watch.end_step(applied=False)
    assert task.lost(model) == "", "a step that was left out tells nothing"


def test_what_each_of_several_files_holds_out_is_left_out(data, tmp_path):
    entries = json.loads((tmp_path / "dataset_coco.json").read_text())["images"]
    held = [entry for entry in entries if entry["split"] == "val"][:3]
    files = [str(tmp_path / f"part_{number}.json") for number in (0, 1)]
    for file, entry in zip(files, held, strict=False):
        Path(file).write_text(json.dumps({"images": [entry]}))
    captions = {
        "images": [{"id": entry["cocoid"], "file_name": entry["filename"]} for entry in held],
        "annotations": [{"id": n, "image_id": entry["cocoid"], "caption": "a dog"} for n, entry in enumerate(held)],
    }
    annotations = tmp_path / "captions.json"
    annotations.write_text(json.dumps(captions))
    images = [str(tmp_path / held[0]["filepath"])]
    for order in (files, files[::-1]):
        source = CaptionSource(str(annotations), images, "coco_captions", exclude_held_out_of=order)
        (record,) = read_sources(replace(data, sources=[source]), "sources", str)
        assert record.image_id == str(held[2]["cocoid"])
    flickr = tmp_path / "flickr.json"
    entry = {name: value for name, value in held[0].items() if name != "cocoid"}
    flickr.write_text(json.dumps({"images": [entry | {"filename": "17.jpg"}]}))
    source = CaptionSource(str(annotations), images, "coco_captions", exclude_held_out_of=[str(flickr)])
    with pytest.raises(ValueError, match=r"sources\[0\]\.exclude_held_out_of: .* got one of Flickr30K"):
        read_sources(replace(data, sources=[source]), "sources", str)


def test_bad_settings_name_the_field(data, tmp_path):
    annotations, images = data.sources[0].annotations, data.sources[0].images

    def source(*formats, images=images, **fields):
        return [CaptionSource(annotations, images, *formats, **fields)]

    for words, changes in (
        (r"data\.sources: no data set was given", {"sources": []}),
        ("split 'nonsense' holds no image", {"sources": source(splits=["nonsense"])}),
        ("expected a list of split names", {"sources": source()}),
        (r"sources\[0\]\.splits: only for .*, this", {"sources": source("coco_captions", splits=["train"])}),
        (
            r"sources\[0\]\.exclude_held_out_of: only for .*, this is json_lines",
            {"sources": source("json_lines", images=[], exclude_held_out_of=[annotations])},
        ),
        ("2 images are both in sources and in heldout", {"heldout": source(splits=["restval"])}),
        ("tokenizer: .* can't be loaded", {"tokenizer": str(tmp_path / "gone")}),
        ("0 < shorter_edge <= longer_edge", {"shorter_edge": 100}),
        ("max_text_length: 640 is more than the model's max_position_embeddings 512", {"max_text_length": 640}),
    ):
        task, _ = make_task(replace(data, **changes))
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            task.training_data()
            task.build_model()


def test_dying_codes_are_told_once_and_again_after_a_recovery(data):
    task, _ = make_task(data)
    model = task.build_model()
    dictionary = model.soho.visual_dictionary
    num = dictionary.num_codes

    def told(live: int, step: int = 500) -> list[str]:
        dictionary.step.fill_(step)
        dictionary.age.fill_(1000.0)
        dictionary.usage.zero_()[:live] = num / live
        return task.warnings(model)

    few, enough = num // 2 - 1, num // 2
    assert told(few, step=99) == [], "too early to tell"
    assert told(enough) == []
    (line,) = told(few)
    assert line.startswith(f"{few} of {num} codes are active (perplexity {few});")
    assert told(1) == told(enough) == told(few) == [], "said, and hardly better since"
    assert told(num) == []
    model.config.dictionary_init, model.config.code_reset_threshold = "data", 0.02
    (line,) = told(few)
    assert "(now 0.02)" in line and "init" not in line, "what is on already is not named"


def test_a_set_may_have_no_images():
    assert images_identity([]).startswith("0 images, ")


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("normalizer", "lowercase", False),
        ("normalizer", "strip_accents", False),
        ("normalizer", "handle_chinese_chars", False),
        ("model", "max_input_chars_per_word", 3),
    ],
)
def test_a_tokenizer_of_the_same_words_that_behaves_otherwise_is_another(tokenizer_dir, tmp_path, part, name, value):
    other = shutil.copytree(tokenizer_dir, tmp_path / "other")
    one, same = load_tokenizer(tokenizer_dir), load_tokenizer(other)
    assert output_identity(one) == output_identity(same)
    content = json.loads((other / "tokenizer.json").read_text())
    assert content[part][name] != value
    content[part][name] = value
    (other / "tokenizer.json").write_text(json.dumps(content))
    otherwise = load_tokenizer(other)
    assert words_identity(one) == words_identity(otherwise) and output_identity(one) != output_identity(otherwise)
