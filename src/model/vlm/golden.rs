//! Against the reference code of each family: folders below `tests/golden/vlm`, made by `make.py` there, and, where
//! `FEDLLAVA_FIXTURES` names a folder, models in the same layout that lie in it.

#![allow(clippy::print_stdout, reason = "a skipped test says so")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::*;
use crate::exec::Context;
use crate::model::chat::Role;
use crate::model::lora::{LoraConfig, Plan, Targets};
use crate::nn::optim::{AdamwConfig, Optimiser, OptimiserConfig};
use crate::nn::params::Params;

/// Folders of models of this name, with the folder that has the pictures.
pub(super) fn folders(name: &str) -> Vec<(PathBuf, PathBuf)> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vlm");
    let given = std::env::var_os("FEDLLAVA_FIXTURES").map(PathBuf::from);
    if given.is_none() {
        println!("skipped: FEDLLAVA_FIXTURES is not set");
    }
    let all: Vec<_> = [Some(own), given].into_iter().flatten().map(|root| (root.join(name), root)).collect();
    all.into_iter().filter(|(folder, _)| folder.join("expected.json").is_file()).collect()
}

pub(super) fn json(path: &Path) -> Value {
    crate::fsx::read_json(path).unwrap()
}

pub(super) fn tensors(folder: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap()
}

pub(super) fn picture(root: &Path, name: &str) -> Picture<'static> {
    let image = image::open(root.join(format!("{name}.png"))).unwrap().into_rgb8();
    let planes: Vec<u8> =
        (0..3).flat_map(|c| image.as_raw().iter().skip(c).step_by(3).copied().collect::<Vec<_>>()).collect();
    Picture { height: image.height() as usize, width: image.width() as usize, pixels: planes.into() }
}

fn pictures(root: &Path, names: &Value) -> Vec<Picture<'static>> {
    names.as_array().unwrap().iter().map(|n| picture(root, n.as_str().unwrap())).collect()
}

fn ids(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect()
}

fn floats(v: &Value) -> Vec<f32> {
    v.as_array().unwrap().iter().map(|n| n.as_f64().unwrap() as f32).collect()
}

/// Largest difference.
pub(super) fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

pub(super) fn flat(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn message(m: &Value, mark: &str) -> Message {
    let role = match m["role"].as_str().unwrap() {
        "system" => Role::System,
        "user" => Role::User,
        _ => Role::Assistant,
    };
    let line = |l: &str| if l == mark { Part::Picture } else { Part::Text(l.into()) };
    let piece = |p: &Value| match p["type"].as_str().unwrap() {
        "image" => Part::Picture,
        _ => Part::Text(p["text"].as_str().unwrap().into()),
    };
    let parts = match &m["content"] {
        Value::String(text) => text.split('\n').map(line).collect(),
        list => list.as_array().unwrap().iter().map(piece).collect(),
    };
    Message { role, parts }
}

/// Largest difference of logits that is no error.
fn tolerance(family: Family) -> f32 {
    if family == Family::Qwen25Vl { 2e-4 } else { 1e-4 }
}

const NAMES: [&str; 4] = ["llava", "smolvlm", "qwen2_5_vl", "minicpmv"];

#[test]
fn tokens_logits_and_greedy_answers_are_the_references() {
    let (mut cases, cx) = (0, Context::cpu(1));
    for (folder, root) in NAMES.iter().flat_map(|n| folders(n)) {
        let expected = json(&folder.join("expected.json"));
        let opened = Opened::open(&folder, &cx).unwrap();
        let vlm = opened.frozen().unwrap();
        let one_tile = PictureConfig { split: Some(false), ..PictureConfig::default() };
        let whole = Opened::open_with(&folder, &one_tile, &cx).unwrap().frozen().unwrap();
        for (name, sample) in expected["samples"].as_object().unwrap() {
            let place = format!("{} {name}", folder.display());
            let vlm = if name.ends_with("one_tile") { &whole } else { &vlm };
            let text = sample["prompt"].as_str().unwrap();
            if let Some(messages) = sample["messages"].as_array() {
                let messages: Vec<Message> = messages.iter().map(|m| message(m, vlm.mark())).collect();
                assert_eq!(vlm.write(&messages, true).unwrap(), text, "{place}");
            }
            let prompt = vlm.read(text, &pictures(&root, &sample["pictures"])).unwrap();
            assert_eq!(prompt.ids, ids(&sample["input_ids"]), "{place}");
            if let (Some(places), Some(want)) = (&prompt.places, sample["position_ids"].as_array()) {
                for (axis, want) in want.iter().enumerate() {
                    assert_eq!(places.axes.iter().map(|p| p[axis]).collect::<Vec<_>>(), ids(want), "{place}");
                }
                assert_eq!(Some(places.shift), sample["rope_delta"].as_i64(), "{place}");
            }
            let want = floats(&sample["last_logits"]);
            let logits = vlm.logits(&prompt).unwrap();
            let off = apart(&flat(&logits.get(prompt.ids.len() - 1).unwrap()), &want);
            assert!(off <= tolerance(vlm.family()), "{place}: logits {off}");
            let off = apart(&flat(&vlm.next_logits(&[&prompt]).unwrap()), &want);
            assert!(off <= tolerance(vlm.family()), "{place}: next logits {off}");
            let greedy = ids(&sample["greedy"]);
            let ends = greedy.iter().position(|t| vlm.stop().contains(t)).map_or(greedy.len(), |at| at + 1);
            let ask =
                Ask { prompts: &[&prompt], keys: &[], decoding: &Decoding::greedy(greedy.len()), cancel: &cx.cancel };
            assert_eq!(vlm.answer(&ask, &mut |_, _| Ok(())).unwrap().tokens[0], greedy[..ends], "{place}");
            cases += 1;
        }
    }
    assert!(cases > 0, "no golden folder");
}

#[test]
fn prompts_of_any_length_side_by_side_answer_as_each_alone() {
    let cx = Context::cpu(1);
    for (folder, root) in NAMES.iter().flat_map(|n| folders(n)) {
        let expected = json(&folder.join("expected.json"));
        let vlm = Opened::open(&folder, &cx).unwrap().frozen().unwrap();
        let samples: Vec<&Value> = expected["samples"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(n, _)| !n.ends_with("one_tile"))
            .map(|(_, s)| s)
            .collect();
        let read = |s: &&Value| vlm.read(s["prompt"].as_str().unwrap(), &pictures(&root, &s["pictures"])).unwrap();
        let prompts: Vec<Prompt> = samples.iter().map(read).collect();
        let prompts: Vec<&Prompt> = prompts.iter().collect();
        let ask = Ask { prompts: &prompts, keys: &[], decoding: &Decoding::greedy(12), cancel: &cx.cancel };
        let together = vlm.answer(&ask, &mut |_, _| Ok(())).unwrap().tokens;
        let next = vlm.next_logits(&prompts).unwrap();
        for (i, sample) in samples.iter().enumerate() {
            let greedy = ids(&sample["greedy"]);
            let ends = greedy.iter().position(|t| vlm.stop().contains(t)).map_or(greedy.len(), |at| at + 1);
            assert_eq!(together[i][..ends], greedy[..ends], "{} row {i}", folder.display());
            let off = apart(&flat(&next.get(i).unwrap()), &floats(&sample["last_logits"]));
            assert!(off <= tolerance(vlm.family()), "{} row {i}: {off}", folder.display());
        }
    }
}

/// By the logits of the whole text at once.
#[test]
fn likelihoods_of_answers_are_the_sums_of_their_tokens() {
    for (folder, root) in NAMES.iter().flat_map(|n| folders(n)) {
        let vlm = Opened::open(&folder, &Context::cpu(1)).unwrap().frozen().unwrap();
        let name = if root.join("wide.png").is_file() { "wide" } else { "tall" };
        let picture = [picture(&root, name)];
        let text = vlm.write(&[Message::about(1, "what is it?")], true).unwrap();
        let answers = ["a boat".to_string(), "31".into()];
        let got = vlm.likelihoods(&text, &picture, &answers).unwrap();
        let asked = vlm.read(&text, &picture).unwrap().ids.len();
        for (answer, got) in answers.iter().zip(got) {
            let gap = if text.ends_with('\n') { "" } else { " " };
            let whole = vlm.read(&format!("{text}{gap}{answer}"), &picture).unwrap();
            let logs = candle_nn::ops::log_softmax(&vlm.logits(&whole).unwrap(), 1).unwrap().to_vec2::<f32>().unwrap();
            let want: f64 = (asked..whole.ids.len()).map(|i| f64::from(logs[i - 1][whole.ids[i] as usize])).sum();
            assert_eq!(got.tokens, whole.ids.len() - asked);
            assert!((got.log - want).abs() < 1e-3, "{} {answer}: {} and {want}", folder.display(), got.log);
        }
    }
}

#[test]
fn pixels_are_those_of_pillow() {
    for (folder, root) in NAMES.iter().flat_map(|n| folders(n)) {
        let vlm = Opened::open(&folder, &Context::cpu(1)).unwrap().frozen().unwrap();
        let one_tile = PictureConfig { split: Some(false), ..PictureConfig::default() };
        let whole = Opened::open_with(&folder, &one_tile, &Context::cpu(1)).unwrap().frozen().unwrap();
        let mut seen = 0;
        for (key, want) in tensors(&folder).into_iter().filter(|(k, _)| k.starts_with("pixel_values.")) {
            let name: Vec<&str> = key.split('.').collect();
            let vlm = if name[1].ends_with("_one_tile") { &whole } else { &vlm };
            let prompt = vlm.read(vlm.mark(), &[picture(&root, name[1].trim_end_matches("_one_tile"))]).unwrap();
            let part = name.get(2).map_or(0, |k| k.parse().unwrap());
            let mut got = prompt.pictures[0].tensors[part].clone();
            if vlm.family() == Family::MiniCpmV {
                // Patches side by side.
                let (p, n) = (want.dim(1).unwrap(), got.dim(0).unwrap());
                got = got.reshape((n, 3, p, p)).unwrap().permute((1, 2, 0, 3)).unwrap();
            }
            let off = apart(&flat(&got), &flat(&want));
            assert!(off <= 1e-5, "{} {key}: {off}", folder.display());
            seen += 1;
        }
        assert!(seen > 0, "{}", folder.display());
    }
}

#[test]
fn pictures_become_the_references_features() {
    for (folder, root) in NAMES.iter().flat_map(|n| folders(n)) {
        let vlm = Opened::open(&folder, &Context::cpu(1)).unwrap().frozen().unwrap();
        for (key, want) in tensors(&folder) {
            let Some(name) = key.strip_prefix("image_features.").or(key.strip_prefix("resampler_out.")) else {
                continue;
            };
            let prompt = vlm.read(vlm.mark(), &[picture(&root, name)]).unwrap();
            let off = apart(&flat(&vlm.see(&prompt.pictures).unwrap()), &flat(&want));
            assert!(off <= tolerance(vlm.family()), "{} {key}: {off}", folder.display());
        }
    }
}

/// Gradients, or values, of tensors of a layout against an object of norms and some entries.
fn near(what: &Value, got: &[f32], plan: &Plan, exact: Option<f32>, place: &str) {
    let mut seen = 0;
    for (name, want) in what.as_object().unwrap() {
        let of = |n: &str| plan.layout().get(n).cloned();
        let Some(entry) = of(name).or_else(|| of(&format!("base_model.model.{name}"))) else {
            panic!("{place}: {name} is not trained");
        };
        // A key bias moves all scores of a query alike: its gradient is 0 but for rounding, of which Adam makes steps.
        if exact.is_some() && name.ends_with("in_proj_bias") {
            continue;
        }
        let got = &got[entry.range()];
        let norm = got.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let wanted = want["norm"].as_f64().unwrap();
        let (index, value) = (ids(&want["index"]), floats(&want["value"]));
        let largest = value.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!((norm - wanted).abs() <= 1e-4 * wanted.max(1e-3), "{place}: {name}: norm {norm}, expected {wanted}");
        for (i, v) in index.iter().zip(&value) {
            let off = (got[*i as usize] - v).abs();
            assert!(off <= exact.unwrap_or(1e-4 * largest), "{place}: {name}[{i}]: {} and {v}", got[*i as usize]);
        }
        seen += 1;
    }
    assert!(seen > 0, "{place}");
}

/// The training samples of a folder with their expectations: the whole object, or one by name.
fn lessons(vlm: &dyn Vlm, root: &Path, train: &Value) -> Vec<(Sample, Value)> {
    if let Some(prompt) = train["prompt"].as_str() {
        let picture = picture(root, train["picture"].as_str().unwrap());
        let sample = vlm.sample_written(prompt, train["target"].as_str().unwrap(), &[picture]).unwrap();
        return vec![(sample, train.clone())];
    }
    let one = |t: &Value| (asked(vlm, root, t), t.clone());
    train.as_object().into_iter().flat_map(|o| o.values()).map(one).collect()
}

/// A sample of FedMLLM's form: a question with `<image>` on a line of its own, and its answer.
fn asked(vlm: &dyn Vlm, root: &Path, t: &Value) -> Sample {
    let line = |l: &str| if l == "<image>" { Part::Picture } else { Part::Text(l.into()) };
    let parts = t["question"].as_str().unwrap().split('\n').map(line).collect();
    let talk = [Message { role: Role::User, parts }, Message::text(Role::Assistant, t["answer"].as_str().unwrap())];
    let pictures: Vec<Picture> = t["picture"].as_str().iter().map(|p| picture(root, p)).collect();
    vlm.sample(&talk, &pictures).unwrap()
}

/// What a sample's labels are where targets stand at the token that predicts.
fn shifted(sample: &Sample) -> Vec<i64> {
    let mut labels = vec![-100; sample.prompt.ids.len()];
    sample.targets.iter().for_each(|t| labels[t.at as usize] = i64::from(t.token));
    labels
}

fn labels(v: &Value) -> Vec<i64> {
    v.as_array().unwrap().iter().map(|n| n.as_i64().unwrap()).collect()
}

#[test]
fn losses_and_gradients_by_weights_are_the_references() {
    let cx = Context::cpu(1);
    for (folder, root) in NAMES.iter().flat_map(|n| folders(n)) {
        let expected = json(&folder.join("expected.json"));
        if expected["train"].is_null() {
            continue;
        }
        let opened = Opened::open(&folder, &cx).unwrap();
        let mut save = vec!["self_attn".to_string()];
        if opened.family() == Family::MiniCpmV {
            save.extend(["embed_tokens".to_string(), "resampler".to_string()]);
        }
        let config = LoraConfig { targets: Targets::Names(vec![]), modules_to_save: save, ..LoraConfig::default() };
        let plan = opened.plan(&config).unwrap();
        let params = opened.fresh(&plan, Key::from_seed(0)).unwrap();
        let mut learner = opened.learner(&plan, &params).unwrap();
        for (sample, want) in lessons(learner.vlm(), &root, &expected["train"]) {
            let place = folder.display().to_string();
            assert_eq!(sample.prompt.ids, ids(&want["input_ids"]), "{place}");
            match want["labels_already_shifted"].is_array() {
                true => assert_eq!(shifted(&sample), labels(&want["labels_already_shifted"]), "{place}"),
                false => assert_eq!(
                    shifted(&sample)[..want["labels"].as_array().unwrap().len() - 1],
                    labels(&want["labels"])[1..],
                    "{place}"
                ),
            }
            let kept = {
                learner.recompute(false);
                learner.gradients(&[&sample], Key::from_seed(0)).unwrap()
            };
            learner.recompute(true);
            let again = learner.gradients(&[&sample], Key::from_seed(0)).unwrap();
            assert!(kept == again, "{place}: layers computed again give other bits");
            let off = (kept.loss - want["loss"].as_f64().unwrap()).abs();
            assert!(off <= 1e-5, "{place}: loss {off}");
            near(&want["grads"], &kept.gradient, &plan, None, &place);
            if !want["grads_resampler_embed"].is_null() {
                near(&want["grads_resampler_embed"], &kept.gradient, &plan, None, &place);
            }
        }
    }
}

/// The batch of an adapter's folder, each sample with its tokens and the labels at the token that predicts.
fn batch(vlm: &dyn Vlm, root: &Path, b: &Value) -> Vec<Sample> {
    if let Some(samples) = b["samples"].as_array() {
        return samples.iter().map(|t| asked(vlm, root, t)).collect();
    }
    let text = |v: &Value, i: usize| v[i].as_str().unwrap().to_string();
    (0..b["prompts"].as_array().unwrap().len())
        .map(|i| {
            let pictures: Vec<Picture> = b["pictures"][i].as_str().iter().map(|p| picture(root, p)).collect();
            vlm.sample_written(&text(&b["prompts"], i), &text(&b["targets"], i), &pictures).unwrap()
        })
        .collect()
}

/// One adapter folder against what PEFT computes with it.
fn check_adapter(adapter: &Path, root: &Path, expected: &Value) {
    let cx = Context::cpu(1);
    let opened = Opened::open(&root.join(expected["base"].as_str().unwrap()), &cx).unwrap();
    let (plan, start) = opened.adapter(adapter).unwrap();
    let place = adapter.display().to_string();
    assert_eq!(plan.layout().len() as u64, expected["trainable"].as_u64().unwrap(), "{place}");
    let learner = opened.learner(&plan, &start).unwrap();
    let samples = batch(learner.vlm(), root, &expected["batch"]);
    for (i, sample) in samples.iter().enumerate() {
        let own = &sample.prompt.ids;
        assert_eq!(*own, ids(&expected["batch"]["input_ids"][i])[..own.len()], "{place}");
        assert_eq!(sample.targets.len() as u64, expected["batch"]["target_tokens"][i].as_u64().unwrap(), "{place}");
    }
    let all: Vec<&Sample> = samples.iter().collect();
    let plain = opened.frozen().unwrap().loss(&all, None).unwrap().to_scalar::<f32>().unwrap();
    let off = (f64::from(plain) - expected["loss_without_adapter"].as_f64().unwrap()).abs();
    assert!(off <= 1e-5, "{place}: without adapter {off}");
    let merged = opened.merged(&plan, &start).unwrap().loss(&all, None).unwrap().to_scalar::<f32>().unwrap();
    let off = (f64::from(merged) - expected["loss"].as_f64().unwrap()).abs();
    assert!(off <= 1e-5, "{place}: merged {off}");
    if let Some(each) = expected["loss_per_sample"].as_array() {
        for (sample, want) in samples.iter().zip(each) {
            let got = learner.gradients(&[sample], Key::from_seed(0)).unwrap().loss;
            assert!((got - want.as_f64().unwrap()).abs() <= 1e-5, "{place}: {got} and {want}");
        }
    }
    let config = AdamwConfig { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    let mut adamw = Optimiser::new(&OptimiserConfig::Adamw(config), plan.layout());
    let mut params: Params = start;
    for (step, want) in floats(&expected["losses"]).into_iter().enumerate() {
        let got = learner.gradients(&all, Key::from_seed(0)).unwrap();
        let off = (got.loss as f32 - want).abs();
        assert!(off <= if step == 0 { 1e-5 } else { 1e-4 }, "{place}: loss at step {step}: {off}");
        if step == 0 {
            near(&expected["grads"], &got.gradient, &plan, None, &place);
        }
        if step == 3 {
            near(&expected["after_3_steps"], params.data(), &plan, Some(1e-4), &place);
            break;
        }
        adamw.step(params.data_mut(), &got.gradient, 1.0);
        learner.set(&params).unwrap();
    }
    // What is written is read as the same.
    let dir = tempfile::tempdir().unwrap();
    opened.save_adapter(dir.path(), &plan, &params).unwrap();
    let (again, read) = opened.adapter(dir.path()).unwrap();
    assert_eq!(again.layout(), plan.layout());
    assert_eq!(read.data(), params.data());
}

#[test]
fn adapters_losses_gradients_and_three_steps_are_those_of_peft() {
    let mut cases = 0;
    for (adapter, root) in NAMES.iter().flat_map(|n| folders(&format!("lora_{n}"))) {
        check_adapter(&adapter, &root, &json(&adapter.join("expected.json")));
        cases += 1;
    }
    assert!(cases > 0, "no golden adapter");
}

/// A folder with other files in it.
fn copied(folder: &Path, files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(folder).unwrap().map(|f| f.unwrap()).filter(|f| f.path().is_file()) {
        std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    for (from, to) in files {
        std::fs::copy(folder.join(from), dir.path().join(to)).unwrap();
    }
    dir
}

#[test]
fn a_config_as_transformers_5_writes_it_opens_the_same_model() {
    for (folder, _) in NAMES.iter().flat_map(|n| folders(n)).filter(|(f, _)| f.join("config_v5.json").is_file()) {
        let dir = copied(&folder, &[("config_v5.json", "config.json")]);
        let (one, two) =
            (Opened::open(&folder, &Context::cpu(1)).unwrap(), Opened::open(dir.path(), &Context::cpu(1)).unwrap());
        assert_eq!(one.text(), two.text(), "{}", folder.display());
        let text = |o: &Opened| {
            let vlm = o.frozen().unwrap();
            let prompt = vlm.prepare(&[Message::about(0, "what is it?")], &[]).unwrap();
            flat(&vlm.next_logits(&[&prompt]).unwrap())
        };
        assert_eq!(text(&one), text(&two), "{}", folder.display());
    }
}
