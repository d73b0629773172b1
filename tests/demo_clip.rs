//! The CLIP that ships with the demo is one that transformers loads (`tests/golden/demo-clip/make.py`).

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use fedllava::model::clip::{Clip, Tokenizer};
use safetensors::SafeTensors;

use crate::net_golden::{distance, noise};

const TEXTS: [&str; 3] =
    ["a picture of a red striped circle", "two small blue dotted hearts on a dark background", "a green cross"];

#[test]
fn the_shipped_clip_gives_the_embeddings_that_transformers_gives() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(root.join("tests/golden/demo-clip/golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        golden.tensor(name).unwrap().data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let folder = root.join("data/demo-clip");
    let clip = Clip::open(&folder, DType::F32, &Device::Cpu).unwrap();
    let tokenizer = Tokenizer::open(&folder, clip.config().text_config.max_position_embeddings).unwrap();
    let pixels = Tensor::from_vec(noise(4 * 3 * 32 * 32, 4242), (4, 3, 32, 32), &Device::Cpu).unwrap();
    let image = clip.image_features(&pixels).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(distance(&image, &floats("image")) < 1e-4);
    let ids: Vec<Vec<u32>> = TEXTS.iter().map(|t| tokenizer.encode(t).unwrap()).collect();
    for (i, ids) in ids.iter().enumerate() {
        let want = golden.tensor(&format!("ids{i}")).unwrap();
        let want: Vec<u32> = want.data().chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(*ids, want, "{}", TEXTS[i]);
    }
    let text = clip.text_features(&ids).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(distance(&text, &floats("text")) < 1e-4);
}
