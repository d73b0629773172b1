//! Against transformers, by the files of `tests/golden/clip` (its `make.py` says how they were made).

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor, Var};

use super::train::{Pairs, TrainConfig, train};
use super::zeroshot::{Prompts, Templates, ZeroShot};
use super::*;
use crate::exec::Context;
use crate::key::Purpose;
use crate::nn::kernels::resample::{Filter, resize};
use crate::nn::optim::AdamwConfig;

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/clip")
}

struct Golden {
    tensors: std::collections::HashMap<String, Tensor>,
    facts: serde_json::Value,
}

impl Golden {
    fn open() -> Golden {
        let tensors = candle_core::safetensors::load(golden().join("golden.safetensors"), &Device::Cpu).unwrap();
        let facts = serde_json::from_str(&fsx::read_text(&golden().join("golden.json")).unwrap()).unwrap();
        Golden { tensors, facts }
    }

    fn tensor(&self, name: &str) -> &Tensor {
        &self.tensors[name]
    }

    fn texts(&self) -> Vec<String> {
        serde_json::from_value(self.facts["texts"].clone()).unwrap()
    }

    fn ids(&self) -> Vec<Vec<u32>> {
        serde_json::from_value(self.facts["ids"].clone()).unwrap()
    }

    fn sizes(&self) -> Vec<(usize, usize)> {
        serde_json::from_value(self.facts["sizes"].clone()).unwrap()
    }

    fn pictures(&self) -> Vec<(usize, usize, Vec<u8>)> {
        let bytes = |h, w| self.tensor(&format!("bytes.{h}x{w}")).flatten_all().unwrap().to_vec1().unwrap();
        self.sizes().into_iter().map(|(h, w)| (h, w, bytes(h, w))).collect()
    }
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

fn both() -> [(&'static str, PathBuf); 2] {
    ["legacy", "modern"].map(|name| (name, golden().join(name)))
}

#[test]
fn embeddings_of_both_towers_equal_those_of_transformers() {
    let golden = Golden::open();
    for (name, folder) in both() {
        let clip = Clip::open(&folder, DType::F32, &Device::Cpu).unwrap();
        let image = clip.image_features(golden.tensor(&format!("{name}.pixels"))).unwrap();
        assert!(largest_difference(&image, golden.tensor(&format!("{name}.image_embeds"))) < 1e-5, "{name}");
        let text = clip.text_features(&golden.ids()).unwrap();
        assert!(largest_difference(&text, golden.tensor(&format!("{name}.text_embeds"))) < 1e-5, "{name}");
        let n = golden.sizes().len();
        let cosines =
            normalise(&image).unwrap().matmul(&normalise(&text.narrow(0, 0, n).unwrap()).unwrap().t().unwrap());
        let logits = (cosines.unwrap() * clip.scale().unwrap()).unwrap();
        assert!(largest_difference(&logits, golden.tensor(&format!("{name}.logits"))) < 1e-4, "{name}");
    }
}

#[test]
fn hidden_states_equal_those_of_transformers_with_and_without_the_class_token() {
    let golden = Golden::open();
    for (name, folder) in both() {
        let clip = Clip::open(&folder, DType::F32, &Device::Cpu).unwrap();
        let pixels = golden.tensor(&format!("{name}.pixels"));
        for layer in [0, -2, -1] {
            let want = golden.tensor(&format!("{name}.hidden.{layer}"));
            let all = clip.vision().hidden_states(pixels, layer, Tokens::All).unwrap();
            assert!(largest_difference(&all, want) < 1e-5, "{name} {layer}");
            let patches = clip.vision().hidden_states(pixels, layer, Tokens::Patches).unwrap();
            let rest = want.narrow(1, 1, want.dim(1).unwrap() - 1).unwrap();
            assert!(largest_difference(&patches, &rest) < 1e-5, "{name} {layer}");
        }
        assert!(clip.vision().hidden_states(pixels, 9, Tokens::All).is_err());
    }
}

#[test]
fn token_ids_equal_those_of_transformers_from_either_layout() {
    let golden = Golden::open();
    for (name, folder) in both() {
        let tokenizer = Tokenizer::open(&folder, 16).unwrap();
        for (text, want) in golden.texts().iter().zip(golden.ids()) {
            assert_eq!(tokenizer.encode_padded(text).unwrap(), want, "{name}: {text:?}");
        }
    }
}

#[test]
fn padding_does_not_change_a_texts_embedding() {
    let golden = Golden::open();
    for (name, folder) in both() {
        let clip = Clip::open(&folder, DType::F32, &Device::Cpu).unwrap();
        let tokenizer = Tokenizer::open(&folder, 16).unwrap();
        let unpadded = clip.text_features(&tokenizer.encode_all(&golden.texts()).unwrap()).unwrap();
        assert!(largest_difference(&unpadded, golden.tensor(&format!("{name}.text_embeds"))) < 1e-5, "{name}");
    }
}

#[test]
fn a_text_without_its_end_token_is_an_error_that_says_so() {
    let clip = Clip::open(&golden().join("modern"), DType::F32, &Device::Cpu).unwrap();
    let e = clip.text_features(&[vec![1, 2, 3]]).unwrap_err();
    assert!(e.to_string().contains("no end token"), "{e}");
    assert!(clip.text_features(&[vec![99_999]]).unwrap_err().to_string().contains("vocabulary"));
}

#[test]
fn pixels_equal_those_of_transformers_for_large_small_and_oblong_images() {
    let golden = Golden::open();
    let pictures = golden.pictures();
    let pictures: Vec<Picture> = pictures
        .iter()
        .map(|(height, width, pixels)| Picture { height: *height, width: *width, pixels: pixels.into() })
        .collect();
    for (name, folder) in both() {
        let pixels = Preprocess::open(&folder).unwrap().batch(&pictures, &Device::Cpu).unwrap();
        for (i, size) in golden.sizes().iter().enumerate() {
            let want = golden.tensor(&format!("{name}.pixels")).get(i).unwrap();
            let off = largest_difference(&pixels.get(i).unwrap(), &want);
            assert!(off < 1e-6, "{name} {size:?}: {off}");
        }
    }
}

#[test]
fn resized_bytes_equal_pillows() {
    let golden = Golden::open();
    let from: Vec<u8> = golden.tensor("resize.from").flatten_all().unwrap().to_vec1().unwrap();
    let mut compared = 0;
    for (name, want) in golden.tensors.iter().filter(|(n, _)| n.starts_with("resize.") && *n != "resize.from") {
        let code: u8 = name.split('.').nth(1).unwrap().parse().unwrap();
        let (_, height, width) = want.dims3().unwrap();
        let got = resize(&from, (3, 19, 14), (height, width), Filter::try_from(code).unwrap()).unwrap();
        assert_eq!(got, want.flatten_all().unwrap().to_vec1::<u8>().unwrap(), "{name}");
        compared += 1;
    }
    assert_eq!(compared, 24);
}

/// transformers' loss: the mean of the two cross entropies of scaled cosines.
fn loss(clip: &Clip, pixels: &Tensor, ids: &[Vec<u32>]) -> Tensor {
    let image = normalise(&clip.image_features(pixels).unwrap()).unwrap();
    let text = normalise(&clip.text_features(ids).unwrap()).unwrap();
    let scale = clip.logit_scale().exp().unwrap();
    let logits = image.matmul(&text.t().unwrap()).unwrap().broadcast_mul(&scale).unwrap();
    let labels = Tensor::arange(0, ids.len() as u32, &Device::Cpu).unwrap();
    let one = candle_nn::loss::cross_entropy(&logits, &labels).unwrap();
    let two = candle_nn::loss::cross_entropy(&logits.t().unwrap(), &labels).unwrap();
    ((one + two).unwrap() / 2.0).unwrap()
}

/// Against `digest` of the golden script: norm, projection, entries.
fn check_digest(name: &str, got: &[f32], want: &[f32], relative: f64) {
    let norm = got.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    let wave: f64 = got.iter().enumerate().map(|(i, g)| f64::from(*g) * (i as f64 * 0.7).cos()).sum();
    let tolerance = relative * f64::from(want[0]) + 1e-6;
    assert!((norm - f64::from(want[0])).abs() < tolerance, "{name}: norm {norm}, PyTorch {}", want[0]);
    assert!((wave - f64::from(want[1])).abs() < tolerance, "{name}: projection {wave}, PyTorch {}", want[1]);
    let step = (got.len() / 64).max(1);
    for (g, w) in got.iter().step_by(step).zip(&want[2..]) {
        assert!(f64::from((g - w).abs()) < tolerance, "{name}: {g}, PyTorch {w}");
    }
}

#[test]
fn every_tensor_gets_pytorchs_gradient_of_the_contrastive_loss() {
    let golden = Golden::open();
    for (name, folder) in both() {
        let (clip, vars) = Clip::open_trainable(&folder, &Device::Cpu).unwrap();
        let ids = golden.ids();
        let loss = loss(&clip, golden.tensor(&format!("{name}.pixels")), &ids[..golden.sizes().len()]);
        assert!(largest_difference(&loss.reshape(1).unwrap(), golden.tensor(&format!("{name}.loss"))) < 1e-5);
        let grads = loss.backward().unwrap();
        let published = golden.tensors.keys().filter(|k| k.starts_with(&format!("{name}.grad."))).count();
        assert_eq!(vars.len(), published);
        for (key, var) in &vars {
            let grad = grads.get(var).unwrap_or_else(|| panic!("{name}: {key} gets no gradient"));
            let got: Vec<f32> = grad.flatten_all().unwrap().to_vec1().unwrap();
            let want: Vec<f32> = golden.tensor(&format!("{name}.grad.{key}")).to_vec1().unwrap();
            // The bias of the keys shifts all scores of a query alike: its true gradient is zero.
            assert!(key.ends_with("k_proj.bias") || want[0] > 1e-6, "{name}: {key} has norm {}", want[0]);
            check_digest(&format!("{name}: {key}"), &got, &want, 1e-4);
        }
    }
}

#[test]
fn a_saved_model_is_read_back_the_same() {
    let folder = golden().join("legacy");
    let dir = tempfile::tempdir().unwrap();
    let (clip, vars) = Clip::open_trainable(&folder, &Device::Cpu).unwrap();
    let tokenizer = Tokenizer::open(&folder, 16).unwrap();
    let preprocess = Preprocess::open(&folder).unwrap();
    save(dir.path(), clip.config(), &vars, &tokenizer, &preprocess).unwrap();
    let (back, again) = Clip::open_trainable(dir.path(), &Device::Cpu).unwrap();
    assert_eq!(back.config(), clip.config());
    assert_eq!(Preprocess::open(dir.path()).unwrap(), preprocess);
    let bytes = |vars: &BTreeMap<String, Var>| -> Vec<(String, Vec<f32>)> {
        vars.iter().map(|(k, v)| (k.clone(), v.flatten_all().unwrap().to_vec1().unwrap())).collect()
    };
    assert_eq!(bytes(&vars), bytes(&again));
    for text in Golden::open().texts() {
        let whole = Tokenizer::open(dir.path(), 16).unwrap();
        assert_eq!(whole.encode_padded(&text).unwrap(), tokenizer.encode_padded(&text).unwrap());
    }
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let rebuilt = Tokenizer::open(dir.path(), 16).unwrap();
    assert_eq!(rebuilt.definition(), tokenizer.definition());
}

#[test]
fn towers_are_described_under_their_old_names_alone_too_and_other_layouts_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let text =
        r#"{"model_type": "clip", "vision_config_dict": {"image_size": 48}, "text_config_dict": {"vocab_size": 9}}"#;
    std::fs::write(&path, text).unwrap();
    let config = Config::read(&path).unwrap();
    assert_eq!((config.vision_config.image_size, config.text_config.vocab_size), (48, 9));
    std::fs::rename(&path, dir.path().join("open_clip_config.json")).unwrap();
    assert!(Config::read(&path).unwrap_err().to_string().contains("open_clip's layout"));
}

#[test]
fn a_model_of_another_shape_is_refused_with_names_and_shapes() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["model.safetensors", "config.json"] {
        std::fs::copy(golden().join("legacy").join(file), dir.path().join(file)).unwrap();
    }
    let path = dir.path().join("config.json");
    let text = fsx::read_text(&path).unwrap().replace("\"patch_size\": 4", "\"patch_size\": 2");
    fsx::write_atomic(&path, text.as_bytes()).unwrap();
    let e = Clip::open(dir.path(), DType::F32, &Device::Cpu).err().unwrap().to_string();
    assert!(e.contains("patch_embedding.weight") && e.contains("[20, 3, 2, 2]") && e.contains("[20, 3, 4, 4]"), "{e}");
}

#[test]
fn training_takes_pytorchs_steps_for_any_shards_and_threads() {
    let golden = Golden::open();
    let n = golden.sizes().len();
    for (shard, threads) in [(n, 1), (2, 1), (2, 3)] {
        let (clip, vars) = Clip::open_trainable(&golden_folder("modern"), &Device::Cpu).unwrap();
        let config = TrainConfig {
            steps: 4,
            warmup: 2,
            adamw: AdamwConfig { lr: 0.01, beta1: 0.9, beta2: 0.98, eps: 1e-6, weight_decay: 0.1 },
            shard,
            share_duplicates: false,
            max_scale: 100.0,
        };
        let pairs = |_: usize, _: Key| {
            Ok(Pairs { pixels: golden.tensor("modern.pixels").clone(), ids: golden.ids()[..n].to_vec() })
        };
        let log = train(&clip, &vars, &config, Key::from_seed(1), pairs, &Context::cpu(threads)).unwrap();
        let losses: Vec<f32> = golden.tensor("modern.train.losses").to_vec1().unwrap();
        for (step, want) in log.iter().zip(losses) {
            assert!((step.loss - want).abs() < 1e-4, "{} and PyTorch {want}", step.loss);
        }
        // The bias of the keys has no gradient but rounding, which AdamW blows up.
        for (key, var) in vars.iter().filter(|(key, _)| !key.ends_with("k_proj.bias")) {
            let got: Vec<f32> = var.flatten_all().unwrap().to_vec1().unwrap();
            let want: Vec<f32> = golden.tensor(&format!("modern.train.{key}")).to_vec1().unwrap();
            check_digest(key, &got, &want, 1e-3);
        }
    }
}

fn golden_folder(name: &str) -> PathBuf {
    golden().join(name)
}

/// A CLIP small enough for a test: 8×8 images, `vocab` tokens.
fn tiny(vocab: usize) -> Config {
    let end = vocab as u32 - 1;
    Config {
        projection_dim: 8,
        text_config: config::TextConfig {
            vocab_size: vocab,
            hidden_size: 16,
            intermediate_size: 32,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            max_position_embeddings: 16,
            eos_token_id: end,
            ..Default::default()
        },
        vision_config: config::VisionConfig {
            hidden_size: 16,
            intermediate_size: 32,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            image_size: 8,
            patch_size: 4,
            ..Default::default()
        },
        ..Config::default()
    }
}

/// Images filled with one of four levels, and the text that names the level.
fn levels(n: usize, key: Key) -> Pairs {
    let mut rng = key.rng();
    let (mut pixels, mut ids) = (Vec::new(), Vec::new());
    for _ in 0..n {
        let level = rng.below(4);
        pixels.extend((0..192).map(|_| level as f32 - 1.5 + 0.3 * rng.normal() as f32));
        ids.push(vec![0, 1 + level as u32, 5]);
    }
    Pairs { pixels: Tensor::from_vec(pixels, (n, 3, 8, 8), &Device::Cpu).unwrap(), ids }
}

#[test]
fn a_fresh_clip_learns_and_equal_seeds_give_equal_bytes_for_any_number_of_threads() {
    let config = TrainConfig { steps: 60, warmup: 5, shard: 8, ..TrainConfig::default() };
    let run = |seed: u64, threads: usize| {
        let key = Key::from_seed(seed);
        let (clip, vars) = Clip::fresh(&tiny(6), key, &Device::Cpu).unwrap();
        let next = |_: usize, key: Key| Ok(levels(20, key));
        let log = train(&clip, &vars, &config, key, next, &Context::cpu(threads)).unwrap();
        let held_out = levels(64, key.fold(Purpose::Test, 0));
        let image = embed::Features::new(8, flat(&clip.image_features(&held_out.pixels).unwrap())).unwrap();
        let text = clip.text_features(&(1..5).map(|t| vec![0, t, 5]).collect::<Vec<_>>()).unwrap();
        let zero = ZeroShot::from_features(embed::Features::new(8, flat(&text)).unwrap(), 100.0).unwrap();
        let right =
            zero.predict(&image).unwrap().iter().zip(&held_out.ids).filter(|(p, t)| **p as u32 + 1 == t[1]).count();
        let bytes: Vec<Vec<f32>> = vars.values().map(|v| flat(v.as_tensor())).collect();
        (log, right, bytes)
    };
    let (log, right, bytes) = run(1, 1);
    assert!(log.last().unwrap().loss < log[0].loss * 0.8, "{:?} to {:?}", log[0], log.last());
    assert!(right > 48, "{right} of 64");
    assert_eq!(run(1, 2), (log, right, bytes.clone()));
    assert_ne!(run(2, 1).2, bytes);
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Standard deviations of transformers' `_init_weights`, from one large tensor of each kind.
#[test]
fn fresh_weights_have_the_spread_that_transformers_gives_them() {
    let mut config = tiny(400);
    config.text_config.hidden_size = 64;
    config.text_config.num_hidden_layers = 3;
    let (_, vars) = Clip::fresh(&config, Key::from_seed(4), &Device::Cpu).unwrap();
    let spread = |name: &str| {
        let values = flat(vars[name].as_tensor());
        (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
    };
    let layer = |name: &str| spread(&format!("text_model.encoder.layers.1.{name}.weight"));
    let width = 64f64;
    for (got, want) in [
        (spread("text_model.embeddings.token_embedding.weight"), 0.02),
        (layer("self_attn.q_proj"), width.powf(-0.5) * 6f64.powf(-0.5)),
        (layer("self_attn.out_proj"), width.powf(-0.5)),
        (layer("mlp.fc1"), (2.0 * width).powf(-0.5)),
        (layer("mlp.fc2"), width.powf(-0.5) * 6f64.powf(-0.5)),
        (layer("layer_norm1"), 1.0),
    ] {
        assert!((got / want - 1.0).abs() < 0.1, "{got}, not {want}");
    }
    assert!((flat(vars["logit_scale"].as_tensor())[0] - 2.6592).abs() < 1e-6);
}

#[test]
fn permuted_class_names_permute_probabilities_and_predictions_exactly() {
    let golden = Golden::open();
    let folder = golden_folder("modern");
    let clip = Clip::open(&folder, DType::F32, &Device::Cpu).unwrap();
    let tokenizer = Tokenizer::open(&folder, 16).unwrap();
    let classes: Vec<String> =
        ["cat", "dog", "red circle", "very_long text", "world", "photos"].map(String::from).into();
    let order = [3, 0, 5, 1, 4, 2];
    let permuted: Vec<String> = order.iter().map(|&i| classes[i].clone()).collect();
    let list = ["a photo of a {c}", "a drawing of the {}.", "{c}"].map(String::from).into();
    let prompts = Prompts::Templates(Templates { list });
    let images = embed::Features::new(10, flat(&clip.image_features(golden.tensor("modern.pixels")).unwrap())).unwrap();
    let run = |names: &[String], threads| {
        let zero = ZeroShot::new(&clip, &tokenizer, &prompts, names, &Context::cpu(threads)).unwrap();
        (zero.probabilities(&images, 2.0).unwrap(), zero.predict(&images).unwrap())
    };
    let ((p, best), (q, moved)) = (run(&classes, 1), run(&permuted, 2));
    for (row, other) in p.chunks(6).zip(q.chunks(6)) {
        assert_eq!(order.map(|i| row[i]), other);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }
    assert_eq!(moved.iter().map(|&i| order[i]).collect::<Vec<_>>(), best);
}

/// By hand from transformers' logits: the probabilities are their softmax.
#[test]
fn probabilities_are_the_softmax_of_transformers_logits() {
    let golden = Golden::open();
    for (name, _) in both() {
        let unit = |key: &str, rows: usize| {
            let tensor = golden.tensor(&format!("{name}.{key}")).narrow(0, 0, rows).unwrap();
            embed::Features::new(tensor.dim(1).unwrap(), flat(&tensor)).unwrap()
        };
        let clip = Clip::open(&golden_folder(name), DType::F32, &Device::Cpu).unwrap();
        let n = golden.sizes().len();
        let zero = ZeroShot::from_features(unit("text_embeds", n), clip.scale().unwrap()).unwrap();
        let got = zero.probabilities(&unit("image_embeds", n), 1.0).unwrap();
        let want = flat(&candle_nn::ops::softmax(golden.tensor(&format!("{name}.logits")), 1).unwrap());
        assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-4), "{name}");
    }
}

#[test]
fn features_of_many_images_do_not_depend_on_threads_and_a_stop_is_heard() {
    let folder = golden_folder("legacy");
    let clip = Clip::open(&folder, DType::F32, &Device::Cpu).unwrap();
    let preprocess = Preprocess::open(&folder).unwrap();
    let mut rng = Key::from_seed(3).rng();
    let pixels: Vec<u8> = (0..70 * 3 * 100).map(|_| rng.u32() as u8).collect();
    let run = |cx: &Context| embed::squares(&clip, &preprocess, &pixels, 10, cx);
    let features = run(&Context::cpu(1)).unwrap();
    assert_eq!((features.rows(), features.dim), (70, 12));
    assert!((features.row(69).iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5);
    assert_eq!(features, run(&Context::cpu(3)).unwrap());
    let stopped = Context::cpu(1);
    stopped.cancel.stop();
    assert_eq!(run(&stopped).unwrap_err().class(), crate::error::Class::Stopped);
}

#[allow(clippy::print_stderr, reason = "a test that skips says so")]
fn real_data() -> Option<PathBuf> {
    let folder = std::env::var_os("FEDLLAVA_DATA").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("skipped: FEDLLAVA_DATA is not set");
    }
    folder
}

fn npy(path: &std::path::Path) -> (usize, Vec<f32>) {
    let bytes = fsx::read(path).unwrap();
    let file = npyz::NpyFile::new(&bytes[..]).unwrap();
    (file.shape()[1] as usize, file.into_vec().unwrap())
}

#[test]
fn openais_tokenizer_gives_the_ids_of_transformers() {
    let Some(folder) = real_data() else { return };
    let packed = fsx::open(&folder.join("clip-tokenizer/bpe_simple_vocab_16e6.txt.gz")).unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(packed), &mut text).unwrap();
    let pair = |line: &str| line.split_once(' ').map(|(a, b)| (a.to_string(), b.to_string())).unwrap();
    let merges: Vec<(String, String)> = text.lines().skip(1).take(49152 - 256 - 2).map(pair).collect();
    let tokenizer = Tokenizer::from_parts(&bpe::vocabulary(&merges), &merges, 77).unwrap();
    assert_eq!(tokenizer.vocab_size(), 49408);
    let golden = Golden::open();
    let want: Vec<Vec<u32>> = serde_json::from_value(golden.facts["openai_ids"].clone()).unwrap();
    for (text, want) in golden.texts().iter().zip(want) {
        assert_eq!(tokenizer.encode(text).unwrap(), want, "{text:?}");
    }
}

#[test]
fn real_features_of_500_images_give_the_published_zero_shot_accuracy() {
    let Some(folder) = real_data() else { return };
    let (dim, texts) = npy(&folder.join("clip-text-embeddings/cifar10_clip_vitb32_text.npy"));
    let (_, images) = npy(&folder.join("clip-image-features/cifar10_test500_clip_vitb32.npy"));
    let bytes = fsx::read(&folder.join("clip-image-features/cifar10_test500_labels.npy")).unwrap();
    let labels = npyz::NpyFile::new(&bytes[..]).unwrap().into_vec::<u8>().unwrap();
    let zero = ZeroShot::from_features(embed::Features::new(dim, texts).unwrap(), 100.0).unwrap();
    let predicted = zero.predict(&embed::Features::new(dim, images).unwrap()).unwrap();
    let right = predicted.iter().zip(&labels).filter(|(p, l)| **p == usize::from(**l)).count();
    assert_eq!((predicted.len(), right), (500, 449));
}

#[test]
fn the_eighty_templates_are_eighty() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/prompts/imagenet80.txt");
    let prompts = Prompts::TemplateFile(zeroshot::PromptFile { path });
    let texts = prompts.texts(&["cat".to_string()]).unwrap().remove(0);
    assert_eq!(texts.iter().collect::<std::collections::BTreeSet<_>>().len(), 80);
}

/// `tests/golden/clip/check.py` loads this folder with transformers and writes `saved.safetensors`, its embeddings.
#[test]
fn transformers_reads_what_is_saved_and_gives_equal_embeddings() {
    let corpus = ["a photo of a cat", "two small green squares", "it's a red circle"];
    let tokenizer = Tokenizer::learn(&corpus, 30, 16).unwrap();
    let mut config = tiny(tokenizer.vocab_size());
    config.text_config.bos_token_id = tokenizer.id(tokenizer::START).unwrap();
    let (clip, vars) = Clip::fresh(&config, Key::from_seed(21), &Device::Cpu).unwrap();
    let preprocess = Preprocess::square(8);
    if let Some(folder) = std::env::var_os("FEDLLAVA_SAVE_CLIP") {
        save(&PathBuf::from(folder), &config, &vars, &tokenizer, &preprocess).unwrap();
    }
    let saved = candle_core::safetensors::load(golden().join("saved.safetensors"), &Device::Cpu).unwrap();
    let golden = Golden::open();
    let ids = tokenizer.encode_all(&golden.texts()).unwrap();
    assert!(largest_difference(&clip.text_features(&ids).unwrap(), &saved["text_embeds"]) < 1e-5);
    let pictures = golden.pictures();
    let pictures: Vec<Picture> = pictures
        .iter()
        .map(|(height, width, pixels)| Picture { height: *height, width: *width, pixels: pixels.into() })
        .collect();
    let pixels = preprocess.batch(&pictures, &Device::Cpu).unwrap();
    assert!(largest_difference(&clip.image_features(&pixels).unwrap(), &saved["image_embeds"]) < 1e-5);
}

/// candle-transformers' own CLIP on the same weights: pictures and texts that no golden file has.
#[test]
fn a_second_clip_of_another_hand_says_the_same() {
    use candle_transformers::models::clip::{ClipConfig, ClipModel, text_model, vision_model};
    let folder = golden().join("legacy");
    let ours = Clip::open(&folder, DType::F32, &Device::Cpu).unwrap();
    let text_config = text_model::ClipTextConfig {
        vocab_size: 574,
        embed_dim: 16,
        activation: text_model::Activation::QuickGelu,
        intermediate_size: 24,
        max_position_embeddings: 16,
        pad_with: None,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        projection_dim: 12,
    };
    let vision_config = vision_model::ClipVisionConfig {
        embed_dim: 20,
        activation: text_model::Activation::QuickGelu,
        intermediate_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        projection_dim: 12,
        num_channels: 3,
        image_size: 8,
        patch_size: 4,
    };
    let config = ClipConfig { text_config, vision_config, logit_scale_init_value: 2.6592, image_size: 8 };
    let weights = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let builder = candle_nn::VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    let theirs = ClipModel::new(builder, &config).unwrap();
    let pixels = Tensor::randn(0f32, 1.0, (7, 3, 8, 8), &Device::Cpu).unwrap();
    let (a, b) = (ours.image_features(&pixels).unwrap(), theirs.get_image_features(&pixels).unwrap());
    assert!(largest_difference(&a, &b) < 1e-5, "{}", largest_difference(&a, &b));
    // The end of text is the largest id; a text may stop early.
    let mut rng = Key::from_seed(5).fold(Purpose::Item, 0).rng();
    let mut text = |n: usize| -> Vec<u32> {
        let mut ids: Vec<u32> = (0..n).map(|_| rng.below(572) as u32).collect();
        ids.resize(16, 573);
        ids
    };
    let texts: Vec<Vec<u32>> = [1, 5, 10, 15].map(&mut text).to_vec();
    let ids = Tensor::new(texts.clone(), &Device::Cpu).unwrap();
    let (a, b) = (ours.text_features(&texts).unwrap(), theirs.get_text_features(&ids).unwrap());
    assert!(largest_difference(&a, &b) < 1e-5, "{}", largest_difference(&a, &b));
}
