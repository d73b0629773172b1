//! Against transformers and PyTorch: `tests/golden/llama/make.py`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};

use super::*;
use crate::exec::Cancel;
use crate::key::Key;
use crate::model::sample::Decoding;
use crate::model::weights::{Scope, Trainable, Weights};

const SHAPES: [&str; 3] = ["plain", "gqa-tied-linear", "mqa-bias-llama3"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama").join(name)
}

fn expected(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder(name).join("expected.safetensors"), &Device::Cpu).unwrap()
}

fn config(name: &str) -> LlamaConfig {
    let config = std::fs::read(folder(name).join("config.json")).unwrap();
    LlamaConfig::from_json(&serde_json::from_slice(&config).unwrap()).unwrap()
}

/// The frozen model, and what transformers computed.
fn load(name: &str, dtype: DType) -> (Llama, HashMap<String, Tensor>) {
    let weights = Weights::open(&folder(name)).unwrap();
    let source = weights.frozen(dtype, &Device::Cpu);
    (Llama::load(&Scope::root(&source), &config(name), &Names::default()).unwrap(), expected(name))
}

fn rows(t: &Tensor) -> Vec<Vec<u32>> {
    t.to_dtype(DType::U32).unwrap().to_vec2().unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest difference.
fn apart(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    flat(a).iter().zip(flat(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn largest(t: &Tensor) -> f32 {
    flat(t).iter().fold(0.0, |m, x| m.max(x.abs()))
}

/// Mean next-token cross-entropy.
fn loss(model: &Llama, hidden: &Tensor, ids: &Tensor) -> Tensor {
    let tokens = ids.dim(1).unwrap();
    let logits = model.logits(&hidden.narrow(1, 0, tokens - 1).unwrap()).unwrap().flatten_to(1).unwrap();
    let labels = ids.narrow(1, 1, tokens - 1).unwrap().to_dtype(DType::U32).unwrap().flatten_all().unwrap();
    candle_nn::loss::cross_entropy(&logits, &labels).unwrap()
}

#[test]
fn logits_of_all_positions_are_those_of_transformers() {
    for name in SHAPES {
        let (model, want) = load(name, DType::F32);
        let hidden = model.hidden(&model.embed(&rows(&want["ids"])).unwrap(), None).unwrap();
        let off = apart(&model.logits(&hidden).unwrap(), &want["logits"]);
        assert!(off <= 1e-4, "{name}: {off}");
        let last = want["logits"].narrow(1, 11, 1).unwrap().squeeze(1).unwrap();
        assert!(apart(&model.last_logits(&hidden).unwrap(), &last) <= 1e-4);
    }
}

#[test]
fn every_tensor_has_the_gradient_of_pytorch() {
    for name in SHAPES {
        let want = expected(name);
        let weights = Weights::open(&folder(name)).unwrap();
        let source = Trainable::load(&weights, &Device::Cpu);
        let model = Llama::load(&Scope::root(&source), &config(name), &Names::default()).unwrap();
        let vars = source.into_vars();
        let hidden = model.hidden(&model.embed(&rows(&want["ids"])).unwrap(), None).unwrap();
        let loss = loss(&model, &hidden, &want["ids"]);
        assert!(apart(&loss, &want["loss"]) <= 1e-5);
        let grads = loss.backward().unwrap();
        assert_eq!(
            vars.len(),
            want.keys().filter(|k| k.starts_with("grad.model") || *k == "grad.lm_head.weight").count()
        );
        for (n, var) in vars {
            let want = &want[&format!("grad.{n}")];
            let got = grads.get(var.as_tensor()).unwrap_or_else(|| panic!("{name}: no gradient for {n}"));
            // A key bias moves all scores of a query alike: its gradient is 0 but for rounding.
            if n.ends_with("k_proj.bias") && largest(want) < 1e-5 {
                continue;
            }
            assert!(largest(want) > 0.0, "{n}");
            assert!(apart(got, want) <= 1e-4 * largest(want), "{name}: {n}: {}", apart(got, want) / largest(want));
        }
    }
}

#[test]
fn the_gradient_reaches_the_input_through_frozen_weights_kept_or_recomputed() {
    for name in SHAPES {
        let (model, want) = load(name, DType::F32);
        let x = Var::from_tensor(&model.embed(&rows(&want["ids"])).unwrap()).unwrap();
        let want_grad = &want["grad.inputs_embeds"];
        for recompute in [false, true] {
            let hidden = if recompute {
                model.hidden_recomputed(x.as_tensor()).unwrap()
            } else {
                model.hidden(x.as_tensor(), None).unwrap()
            };
            let grads = loss(&model, &hidden, &want["ids"]).backward().unwrap();
            let got = grads.get(x.as_tensor()).unwrap();
            assert!(apart(got, want_grad) <= 1e-4 * largest(want_grad), "{name}, recompute {recompute}");
            for (n, t) in model.tensors() {
                assert!(grads.get(&t).is_none(), "{name}: a gradient buffer for the frozen {n}");
            }
        }
    }
}

#[test]
fn greedy_text_is_transformers_token_for_token_alone_and_in_a_padded_batch() {
    for name in SHAPES {
        let (model, want) = load(name, DType::F32);
        let write = |ids: Vec<Vec<u32>>, pads: Vec<usize>, new: usize| {
            let keys = vec![Key::from_seed(0); ids.len()];
            let prompts = Prompts { embeddings: model.embed(&ids).unwrap(), pads, keys, places: None };
            let written =
                model.write(&prompts, &Decoding::greedy(new), &[], &Cancel::default(), |_, _| Ok(())).unwrap();
            ids.into_iter().zip(written.tokens).map(|(a, b)| [a, b].concat()).collect::<Vec<_>>()
        };
        assert_eq!(write(rows(&want["prompt"]), vec![0], 20), rows(&want["greedy"]), "{name}");
        assert_eq!(write(rows(&want["padded"]), vec![0, 4], 8), rows(&want["padded_greedy"]), "{name}");
        let mut cache = Cache::new(model.config(), vec![0, 4], 9).unwrap();
        let hidden = model.hidden(&model.embed(&rows(&want["padded"])).unwrap(), Some(&mut cache)).unwrap();
        assert!(apart(&model.last_logits(&hidden).unwrap(), &want["padded_logits"]) <= 1e-4, "{name}");
    }
}

#[test]
fn a_row_that_ends_early_leaves_the_others_text_alone() {
    let (model, want) = load("plain", DType::F32);
    let ids = rows(&want["ids"]);
    let alone = |ids: Vec<Vec<u32>>, stop: &[u32]| {
        let keys = vec![Key::from_seed(0); ids.len()];
        let prompts = Prompts { embeddings: model.embed(&ids).unwrap(), pads: vec![0; ids.len()], keys, places: None };
        model.write(&prompts, &Decoding::greedy(12), stop, &Cancel::default(), |_, _| Ok(())).unwrap().tokens
    };
    let free = alone(ids.clone(), &[]);
    // A token that only the first row writes, and not as its first.
    let stop = free[0].iter().position(|t| !free[1].contains(t) && *t != free[0][0]).unwrap();
    let both = alone(ids, &[free[0][stop]]);
    assert_eq!(both[0], free[0][..=stop]);
    assert_eq!(both[1], free[1]);
}

#[test]
fn f16_weights_give_nearly_the_same_logits() {
    let (model, want) = load("gqa-tied-linear", DType::F16);
    let hidden = model.hidden(&model.embed(&rows(&want["ids"])).unwrap(), None).unwrap();
    let off = apart(&model.logits(&hidden).unwrap(), &want["logits"]);
    assert!(off > 0.0 && off < 0.05 * largest(&want["logits"]), "{off}");
}

#[test]
fn bf16_weights_give_nearly_the_same_logits() {
    let (model, want) = load("gqa-tied-linear", DType::BF16);
    let hidden = model.hidden(&model.embed(&rows(&want["ids"])).unwrap(), None).unwrap();
    let off = apart(&model.logits(&hidden).unwrap(), &want["logits"]);
    assert!(off > 0.0 && off < 0.2 * largest(&want["logits"]), "{off}");
}

#[test]
fn too_long_a_text_and_a_foreign_token_are_refused_in_words() {
    let (model, _) = load("plain", DType::F32);
    let long = model.embed(&[vec![3; 65]]).unwrap();
    let e = model.hidden(&long, None).unwrap_err().to_string();
    assert!(e.contains("65 tokens exceeds the model's context of 64"), "{e}");
    let e = model.embed(&[vec![61]]).unwrap_err().to_string();
    assert!(e.contains("token 61") && e.contains("61"), "{e}");
}

#[test]
fn a_model_saved_by_its_names_is_the_model_that_was_read() {
    for name in SHAPES {
        let (model, _) = load(name, DType::F32);
        let saved = candle_core::safetensors::load(folder(name).join("model.safetensors"), &Device::Cpu).unwrap();
        let tensors = model.tensors();
        assert_eq!(tensors.len(), saved.len(), "{name}");
        assert_eq!(tensors.iter().map(|(_, t)| t.elem_count() as u64).sum::<u64>(), model.config().parameters());
        assert!(tensors.iter().all(|(n, t)| apart(t, &saved[n]) == 0.0));
    }
}

/// candle-transformers' own Llama on the same weights, token by token through its cache.
#[test]
fn a_second_llama_of_another_hand_says_the_same() {
    use candle_transformers::models::llama as other;
    let (ours, _) = load("plain", DType::F32);
    let json = std::fs::read(folder("plain").join("config.json")).unwrap();
    let config: other::LlamaConfig = serde_json::from_slice(&json).unwrap();
    let config = config.into_config(false);
    let weights = candle_core::safetensors::load(folder("plain").join("model.safetensors"), &Device::Cpu).unwrap();
    let builder = candle_nn::VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    let theirs = other::Llama::load(builder, &config).unwrap();
    let mut cache = other::Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();
    let mut rng = Key::from_seed(3).fold(crate::key::Purpose::Item, 0).rng();
    let ids: Vec<u32> = (0..40).map(|_| rng.below(61) as u32).collect();
    let hidden = ours.hidden(&ours.embed(std::slice::from_ref(&ids)).unwrap(), None).unwrap();
    let all = ours.logits(&hidden).unwrap();
    for (at, &id) in ids.iter().enumerate() {
        let token = Tensor::new(&[[id]], &Device::Cpu).unwrap();
        let want = theirs.forward(&token, at, &mut cache).unwrap();
        let got = all.narrow(1, at, 1).unwrap().squeeze(1).unwrap();
        assert!(apart(&got, &want) <= 1e-4, "token {at}: {}", apart(&got, &want));
    }
}
