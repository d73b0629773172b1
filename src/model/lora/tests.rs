//! Adapters inside a small model of `tests/golden/vlm`: nothing vanishes, nothing else changes.

use std::path::{Path, PathBuf};

use super::*;
use crate::exec::Context;
use crate::key::Key;
use crate::model::chat::{Message, Role};
use crate::model::clip::Picture;
use crate::model::vlm::{Opened, Sample};
use crate::nn::params::Params;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vlm").join(name)
}

fn opened(name: &str) -> Opened {
    Opened::open(&folder(name), &Context::cpu(1)).unwrap()
}

/// Samples with and without a picture.
fn samples(opened: &Opened) -> Vec<Sample> {
    let vlm = opened.frozen().unwrap();
    let pixels: Vec<u8> = (0..3 * 20 * 30u32).map(|i| (i * 37 % 251) as u8).collect();
    let picture = Picture { height: 20, width: 30, pixels: pixels.into() };
    let answer = Message::text(Role::Assistant, "a small boat");
    let seen = vlm.sample(&[Message::about(1, "what is in the picture?"), answer.clone()], &[picture]).unwrap();
    vec![seen, vlm.sample(&[Message::about(0, "is it blue?"), answer], &[]).unwrap()]
}

/// Values that are nowhere zero.
fn drawn(plan: &Plan, opened: &Opened) -> Params {
    let mut params = opened.fresh(plan, Key::from_seed(3)).unwrap();
    let mut rng = Key::from_seed(4).rng();
    for entry in plan.layout().entries().iter().filter(|e| e.name.ends_with("lora_B.weight")) {
        params.data_mut()[entry.range()].iter_mut().for_each(|v| *v = 0.3 * rng.normal() as f32);
    }
    params
}

fn names(names: &[&str]) -> Targets {
    Targets::Names(names.iter().map(|n| n.to_string()).collect())
}

#[test]
fn fresh_adapters_change_nothing_and_b_alone_has_a_gradient() {
    let opened = opened("smolvlm");
    let plan = opened.plan(&LoraConfig { rank: 2, ..LoraConfig::default() }).unwrap();
    let fresh = opened.fresh(&plan, Key::from_seed(1)).unwrap();
    let samples = samples(&opened);
    let all: Vec<&Sample> = samples.iter().collect();
    let learner = opened.learner(&plan, &fresh).unwrap();
    let got = learner.gradients(&all, Key::from_seed(0)).unwrap();
    let plain = opened.frozen().unwrap().loss(&all, None).unwrap().to_scalar::<f32>().unwrap();
    assert!((got.loss - f64::from(plain)).abs() < 1e-5);
    for entry in plan.layout().entries() {
        let any = got.gradient[entry.range()].iter().any(|g| *g != 0.0);
        assert_eq!(any, entry.name.ends_with("lora_B.weight"), "{}", entry.name);
    }
    // Another adapter's start does not depend on which others there are.
    let one = opened.plan(&LoraConfig { rank: 2, targets: names(&["q_proj"]), ..LoraConfig::default() }).unwrap();
    let alone = opened.fresh(&one, Key::from_seed(1)).unwrap();
    let name = &one.layout().entries()[0].name;
    assert_eq!(alone.get(name).unwrap(), fresh.get(name).unwrap());
}

/// Each linear layer by itself, also where only one of a fast path's tensors is trained.
#[test]
fn no_gradient_vanishes_by_finite_differences() {
    for (model, targets) in [
        ("smolvlm", vec!["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        ("qwen2_5_vl", vec!["k_proj", "v_proj"]),
    ] {
        let opened = opened(model);
        let samples = samples(&opened);
        let all: Vec<&Sample> = samples.iter().collect();
        for target in targets {
            let layers = if target == "k_proj" { vec![0] } else { vec![1] };
            let config = LoraConfig { rank: 1, targets: names(&[target]), layers, ..LoraConfig::default() };
            let plan = opened.plan(&config).unwrap();
            assert_eq!(plan.adapted().len(), 1);
            let params = drawn(&plan, &opened);
            let learner = opened.learner(&plan, &params).unwrap();
            let got = learner.gradients(&all, Key::from_seed(0)).unwrap().gradient;
            for at in [0, params.data().len() - 1] {
                let loss = |by: f32| {
                    let mut moved = params.clone();
                    moved.data_mut()[at] += by;
                    learner.set(&moved).unwrap();
                    learner.gradients(&all, Key::from_seed(0)).unwrap().loss
                };
                let step = 4e-3;
                let slope = (loss(step) - loss(-step)) / (2.0 * f64::from(step));
                let off = (slope - f64::from(got[at])).abs();
                assert!(off < 5e-3 * (slope.abs() + 0.05), "{model} {target}[{at}]: {slope} and {}", got[at]);
            }
        }
    }
}

#[test]
fn adapters_of_the_image_tower_and_whole_copies_get_their_gradients_kept_or_computed_again() {
    let opened = opened("smolvlm");
    let samples = samples(&opened);
    let config = LoraConfig {
        rank: 1,
        targets: Targets::Pattern(r".*(vision_model.*k_proj|fc1|modality_projection\.proj|text_model.*up_proj)".into()),
        modules_to_save: vec!["embed_tokens".into(), "input_layernorm".into()],
        ..LoraConfig::default()
    };
    let plan = opened.plan(&config).unwrap();
    let params = drawn(&plan, &opened);
    let mut learner = opened.learner(&plan, &params).unwrap();
    let both: Vec<&Sample> = samples.iter().collect();
    let again = learner.gradients(&both, Key::from_seed(0)).unwrap();
    learner.recompute(false);
    assert_eq!(learner.gradients(&both, Key::from_seed(0)).unwrap(), again);
    for entry in plan.layout().entries() {
        assert!(again.gradient[entry.range()].iter().any(|g| *g != 0.0), "{}", entry.name);
    }
    // A picture that was looked at before would leave the tower without a gradient.
    let mut looked = samples[0].clone();
    learner.vlm().look(&mut looked.prompt).unwrap();
    let e = learner.gradients(&[&looked], Key::from_seed(0)).unwrap_err().to_string();
    assert!(e.contains("looked at before"), "{e}");
    // Without a picture the tower has a gradient of zeros, not none.
    let text = learner.gradients(&[&samples[1]], Key::from_seed(0)).unwrap().gradient;
    for entry in plan.layout().entries() {
        let tower = entry.name.contains("vision_model") || entry.name.contains("connector");
        assert_eq!(text[entry.range()].iter().all(|g| *g == 0.0), tower, "{}", entry.name);
    }
}

#[test]
fn folded_adapters_answer_as_adapters_beside_do() {
    for model in ["smolvlm", "minicpmv"] {
        let opened = opened(model);
        let config = LoraConfig { rank: 2, targets: names(&["q_proj", "down_proj"]), ..LoraConfig::default() };
        let plan = opened.plan(&config).unwrap();
        let params = drawn(&plan, &opened);
        let (learner, merged) = (opened.learner(&plan, &params).unwrap(), opened.merged(&plan, &params).unwrap());
        let prompt = &samples(&opened)[0].prompt;
        let scores =
            |vlm: &dyn crate::model::vlm::Vlm| vlm.next_logits(&[prompt]).unwrap().to_vec2::<f32>().unwrap().remove(0);
        let (beside, folded, base) = (scores(learner.vlm()), scores(&*merged), scores(&*opened.frozen().unwrap()));
        let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart(&beside, &folded) < 1e-4, "{model}: {}", apart(&beside, &folded));
        assert!(apart(&beside, &base) > 1e-2, "{model}");
        // Nothing of it is tied to a graph.
        assert!(!merged.loss(&[&samples(&opened)[1]], None).unwrap().track_op(), "{model}");
    }
}

#[test]
fn a_model_saved_with_its_adapters_answers_as_before() {
    for model in ["smolvlm", "qwen2_5_vl"] {
        let opened = opened(model);
        let plan = opened.plan(&LoraConfig { rank: 2, ..LoraConfig::default() }).unwrap();
        let params = drawn(&plan, &opened);
        let dir = tempfile::tempdir().unwrap();
        opened.save_merged(dir.path(), &plan, &params).unwrap();
        let again = Opened::open(dir.path(), &Context::cpu(1)).unwrap().frozen().unwrap();
        let prompt = &samples(&opened)[0].prompt;
        let scores = |vlm: &dyn crate::model::vlm::Vlm| vlm.next_logits(&[prompt]).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(scores(&*again), scores(&*opened.merged(&plan, &params).unwrap()), "{model}");
        let e = opened.save_merged(&folder(model), &plan, &params).unwrap_err().to_string();
        assert!(e.contains("overwrite itself"), "{e}");
    }
}

/// Two workers that train side by side share what is frozen and nothing else.
#[test]
fn learners_train_side_by_side_as_each_alone() {
    let opened = opened("smolvlm");
    let plan = opened.plan(&LoraConfig { rank: 2, ..LoraConfig::default() }).unwrap();
    let samples = samples(&opened);
    let start = drawn(&plan, &opened);
    let mut other = start.clone();
    other.data_mut().iter_mut().for_each(|v| *v *= 0.5);
    let run = |params: &Params| {
        let learner = opened.learner(&plan, params).unwrap();
        (0..3).map(|i| learner.gradients(&[&samples[i % 2]], Key::from_seed(0)).unwrap()).collect::<Vec<_>>()
    };
    let alone = (run(&start), run(&other));
    let both = std::thread::scope(|s| {
        let (a, b) = (s.spawn(|| run(&start)), s.spawn(|| run(&other)));
        (a.join().unwrap(), b.join().unwrap())
    });
    assert!(both == alone && alone.0[0].loss != alone.1[0].loss);
}

/// Half precision of what is frozen, f32 of what is trained.
#[test]
fn a_base_in_bf16_trains_nearly_as_one_in_f32() {
    let folder = folder("smolvlm");
    let half = Opened::open(&folder, &Context { dtype: candle_core::DType::BF16, ..Context::cpu(1) }).unwrap();
    let whole = opened("smolvlm");
    let samples = samples(&whole);
    let run = |opened: &Opened| {
        let plan = opened.plan(&LoraConfig { rank: 2, ..LoraConfig::default() }).unwrap();
        let learner = opened.learner(&plan, &drawn(&plan, &whole)).unwrap();
        learner.gradients(&[&samples[1]], Key::from_seed(0)).unwrap()
    };
    let (a, b) = (run(&half), run(&whole));
    assert!((a.loss - b.loss).abs() < 0.1 * b.loss, "{} and {}", a.loss, b.loss);
    let (dot, norms) = a.gradient.iter().zip(&b.gradient).fold((0f64, [0f64; 2]), |(d, [x, y]), (a, b)| {
        let (a, b) = (f64::from(*a), f64::from(*b));
        (d + a * b, [x + a * a, y + b * b])
    });
    assert!(dot > 0.95 * (norms[0] * norms[1]).sqrt(), "cosine {}", dot / (norms[0] * norms[1]).sqrt());
}

#[test]
fn a_sample_that_was_looked_at_trains_the_language_model_as_before() {
    for model in ["smolvlm", "qwen2_5_vl", "minicpmv"] {
        let opened = opened(model);
        let plan = opened.plan(&LoraConfig { rank: 2, ..LoraConfig::default() }).unwrap();
        let learner = opened.learner(&plan, &drawn(&plan, &opened)).unwrap();
        let mut samples = samples(&opened);
        let run =
            |samples: &[Sample]| learner.gradients(&samples.iter().collect::<Vec<_>>(), Key::from_seed(0)).unwrap();
        let before = run(&samples);
        samples.iter_mut().for_each(|s| opened.frozen().unwrap().look(&mut s.prompt).unwrap());
        assert!(samples[0].prompt.pictures.is_empty() && samples[0].prompt.features.is_some());
        assert_eq!(run(&samples), before, "{model}");
    }
}

#[test]
fn dropout_draws_from_the_key_alone_the_same_on_the_way_back() {
    let opened = opened("smolvlm");
    let plan = opened.plan(&LoraConfig { rank: 2, dropout: 0.4, ..LoraConfig::default() }).unwrap();
    let params = drawn(&plan, &opened);
    let samples = samples(&opened);
    let all: Vec<&Sample> = samples.iter().collect();
    let mut learner = opened.learner(&plan, &params).unwrap();
    let got = learner.gradients(&all, Key::from_seed(5)).unwrap();
    assert_eq!(got, learner.gradients(&all, Key::from_seed(5)).unwrap());
    assert_ne!(got.loss, learner.gradients(&all, Key::from_seed(6)).unwrap().loss);
    learner.recompute(false);
    assert_eq!(got, learner.gradients(&all, Key::from_seed(5)).unwrap());
    // Judging drops nothing.
    let judged = || learner.vlm().loss(&all, None).unwrap().to_scalar::<f32>().unwrap();
    assert_eq!(judged(), judged());
    let merged = opened.merged(&plan, &params).unwrap().loss(&all, None).unwrap().to_scalar::<f32>().unwrap();
    assert!((judged() - merged).abs() < 1e-5);
}

#[test]
fn names_choose_inside_the_language_model_and_a_pattern_anywhere() {
    let opened = opened("smolvlm");
    let adapted = |targets: Targets, layers: Vec<usize>| {
        let plan = opened.plan(&LoraConfig { targets, layers, ..LoraConfig::default() }).unwrap();
        plan.adapted().iter().map(|m| m.to_string()).collect::<Vec<_>>()
    };
    let q = |i: usize| format!("model.text_model.layers.{i}.self_attn.q_proj");
    assert_eq!(adapted(names(&["q_proj"]), vec![]), [q(0), q(1)]);
    assert_eq!(adapted(names(&["q_proj"]), vec![1]), [q(1)]);
    let all = adapted(Targets::Pattern(r".*\.q_proj".into()), vec![]);
    assert_eq!(all.len(), 4, "{all:?}");
    let error = |config: LoraConfig| opened.plan(&config).unwrap_err().to_string();
    let e = error(LoraConfig { targets: names(&["wqkv"]), ..LoraConfig::default() });
    assert!(e.contains("wqkv") && e.contains("q_proj"), "{e}");
    let e = error(LoraConfig { modules_to_save: vec!["resampler".into()], ..LoraConfig::default() });
    assert!(e.contains("no module resampler"), "{e}");
    let e = error(LoraConfig { rank: 0, ..LoraConfig::default() });
    assert!(e.contains("rank = 0"), "{e}");
    let e = error(LoraConfig { targets: Targets::Pattern("(".into()), ..LoraConfig::default() });
    assert!(e.contains("not a regular expression"), "{e}");
}

/// A saved adapter with other settings, or other names.
fn changed(plan: &Plan, params: &Params, opened: &Opened, key: &str, value: serde_json::Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    opened.save_adapter(dir.path(), plan, params).unwrap();
    let path = dir.path().join("adapter_config.json");
    let mut config: serde_json::Value = crate::fsx::read_json(&path).unwrap();
    config[key] = value;
    std::fs::write(&path, config.to_string()).unwrap();
    dir
}

#[test]
fn a_saved_adapter_opens_as_the_same_and_what_is_not_followed_is_refused() {
    let opened = opened("smolvlm");
    let plan = opened.plan(&LoraConfig { rank: 2, alpha: 5.0, ..LoraConfig::default() }).unwrap();
    let params = drawn(&plan, &opened);
    let dir = changed(&plan, &params, &opened, "peft_version", "0.21.2".into());
    let (again, read) = opened.adapter(dir.path()).unwrap();
    assert_eq!((again.layout(), read.data()), (plan.layout(), params.data()));
    assert_eq!(again.config().scale(), 2.5);
    for (key, value) in
        [("use_dora", true.into()), ("bias", "all".into()), ("alpha_pattern", serde_json::json!({"q_proj": 3}))]
    {
        let dir = changed(&plan, &params, &opened, key, value);
        let e = opened.adapter(dir.path()).err().unwrap().to_string();
        assert!(e.contains(key) && e.contains("adapter_config.json"), "{e}");
    }
    let e = self::opened("qwen2_5_vl").adapter(dir.path()).err().unwrap().to_string();
    assert!(
        e.contains("size") || e.contains("shape") || e.contains("inputs") || e.contains("not in this model"),
        "{e}"
    );
}

/// Before transformers 4.52 Qwen2.5-VL's decoder was `model.layers…`.
#[test]
fn paths_of_older_releases_are_found_by_what_is_behind_layers() {
    let opened = opened("qwen2_5_vl");
    let plan = opened.plan(&LoraConfig { rank: 2, ..LoraConfig::default() }).unwrap();
    let params = drawn(&plan, &opened);
    let dir = changed(&plan, &params, &opened, "revision", serde_json::Value::Null);
    let mut layout = crate::nn::params::Layout::default();
    for entry in plan.layout().entries() {
        let old = entry.name.replace("model.language_model.layers", "model.layers");
        assert_ne!(old, entry.name);
        layout.push(old, &entry.shape, entry.role).unwrap();
    }
    let old = Params::new(std::sync::Arc::new(layout), params.data().to_vec()).unwrap();
    old.save(&dir.path().join("adapter_model.safetensors"), &Default::default()).unwrap();
    let (again, read) = opened.adapter(dir.path()).unwrap();
    assert_eq!((again.layout(), read.data()), (plan.layout(), params.data()));
}
