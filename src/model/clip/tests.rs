//! Against transformers, by the files of `tests/golden/clip` (its `make.py` says how they were made).

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor, Var};

use super::resize::{Filter, resize};
use super::*;

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

fn check_gradient(name: &str, got: &[f32], want: &[f32]) {
    let norm = got.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    let wave: f64 = got.iter().enumerate().map(|(i, g)| f64::from(*g) * (i as f64 * 0.7).cos()).sum();
    let tolerance = 1e-4 * f64::from(want[0]) + 1e-6;
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
            check_gradient(&format!("{name}: {key}"), &got, &want);
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
        for layout in ["tokenizer.json", ""] {
            if layout.is_empty() {
                let _ = std::fs::remove_file(dir.path().join("tokenizer.json"));
            }
            let tokenizer = Tokenizer::open(dir.path(), 16).unwrap();
            assert_eq!(tokenizer.encode(&text).unwrap(), Tokenizer::open(&folder, 16).unwrap().encode(&text).unwrap());
        }
    }
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
