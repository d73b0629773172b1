//! Llamas in llama2.c's format (`stories260K.bin`, `tok512.bin`): a header of seven integers, then f32 tensors.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use super::sentencepiece::{self, Kind, Piece, SPACE, SentencePiece};
use super::tokenizer::Tokenizer;
use super::{Llama, LlamaConfig, Names};
use crate::error::{Error, Place, Result};
use crate::fsx;
use crate::model::weights::{Init, Scope, Source};

/// Reads a model (version 0 of the format).
pub fn model(path: &Path, device: &Device) -> Result<Llama> {
    let file = fsx::read(path)?;
    let (config, tensors) = parse(&file, device).at(|| path.display().to_string())?;
    Llama::load(&Scope::root(&Held(tensors)), &config, &Names::default())
}

/// The tensors of a file by their Hugging Face names.
struct Held(BTreeMap<String, Tensor>);

impl Source for Held {
    fn tensor(&self, name: &str, shape: &[usize], _: Init) -> Result<Tensor> {
        match self.0.get(name) {
            Some(t) => Ok(t.reshape(shape)?),
            None => Err(Error::defect(format!("llama2.c model: no tensor {name}"))),
        }
    }
}

fn parse(file: &[u8], device: &Device) -> Result<(LlamaConfig, BTreeMap<String, Tensor>)> {
    let (head, body) = file.split_at_checked(28).ok_or_else(|| torn(28, file.len()))?;
    let field = |i: usize| i32::from_le_bytes([head[4 * i], head[4 * i + 1], head[4 * i + 2], head[4 * i + 3]]);
    let size = |i: usize, name: &str| match field(i) {
        n @ 1..=1_000_000 => Ok(n as usize),
        n => Err(Error::data(format!("not a llama2.c model: {name} = {n}"))),
    };
    let (dim, heads) = (size(0, "dim")?, size(3, "n_heads")?);
    let config = LlamaConfig {
        vocab_size: field(5).unsigned_abs() as usize,
        hidden_size: dim,
        intermediate_size: size(1, "hidden_dim")?,
        num_hidden_layers: size(2, "n_layers")?,
        num_attention_heads: heads,
        num_key_value_heads: size(4, "n_kv_heads")?,
        head_dim: dim / heads,
        max_position_embeddings: size(6, "seq_len")?,
        rms_norm_eps: 1e-5,
        // A negative vocabulary says that the head is a matrix of its own.
        tie_word_embeddings: field(5) > 0,
        ..LlamaConfig::default()
    }
    .checked()?;
    let tensors = split(&config, body, device)?;
    Ok((config, tensors))
}

/// Cuts the body into tensors with Hugging Face names. llama2.c turns neighbouring elements of a head; transformers
/// turns element i with i + head_dim/2: the rows of the query and key matrices are put in that order.
fn split(c: &LlamaConfig, body: &[u8], device: &Device) -> Result<BTreeMap<String, Tensor>> {
    let (d, inner, kv) = (c.hidden_size, c.intermediate_size, c.num_key_value_heads * c.head_dim);
    let mut rest = body;
    let mut take = |shape: &[usize]| -> Result<Tensor> {
        let n = 4 * shape.iter().product::<usize>();
        let (mine, after) = rest.split_at_checked(n).ok_or_else(|| torn(n, rest.len()))?;
        rest = after;
        let values: Vec<f32> = mine.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok(Tensor::from_vec(values, shape, device)?)
    };
    let mut out = BTreeMap::from([("model.embed_tokens.weight".to_string(), take(&[c.vocab_size, d])?)]);
    let blocks: [(&str, Vec<usize>); 9] = [
        ("input_layernorm", vec![d]),
        ("self_attn.q_proj", vec![d, d]),
        ("self_attn.k_proj", vec![kv, d]),
        ("self_attn.v_proj", vec![kv, d]),
        ("self_attn.o_proj", vec![d, d]),
        ("post_attention_layernorm", vec![d]),
        ("mlp.gate_proj", vec![inner, d]),
        ("mlp.down_proj", vec![d, inner]),
        ("mlp.up_proj", vec![inner, d]),
    ];
    for (name, shape) in blocks {
        for i in 0..c.num_hidden_layers {
            let mut tensor = take(&shape)?;
            if name.ends_with("q_proj") || name.ends_with("k_proj") {
                let heads = shape[0] / c.head_dim;
                tensor =
                    tensor.reshape((heads, c.head_dim / 2, 2, d))?.transpose(1, 2)?.reshape((heads * c.head_dim, d))?;
            }
            out.insert(format!("model.layers.{i}.{name}.weight"), tensor);
        }
    }
    out.insert("model.norm.weight".into(), take(&[d])?);
    take(&[2, c.max_position_embeddings, c.head_dim / 2])?; // tables of cosines and sines
    if !c.tie_word_embeddings {
        out.insert("lm_head.weight".into(), take(&[c.vocab_size, d])?);
    }
    Ok(out)
}

/// Reads a vocabulary: the longest piece's length, then score, length and bytes of each piece.
pub fn tokenizer(path: &Path) -> Result<Tokenizer> {
    let file = fsx::read(path)?;
    let pieces = vocabulary(&file).at(|| path.display().to_string())?;
    Ok(Tokenizer::from_pieces(SentencePiece::new(pieces, true), BTreeMap::new(), true, true))
}

fn vocabulary(file: &[u8]) -> Result<Vec<Piece>> {
    let mut rest = file.get(4..).ok_or_else(|| torn(4, file.len()))?;
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let (head, after) = rest.split_at_checked(8).ok_or_else(|| torn(8, rest.len()))?;
        let score = f32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let (text, after) = after.split_at_checked(len).ok_or_else(|| torn(len, after.len()))?;
        rest = after;
        let text = String::from_utf8_lossy(text).replace(' ', &SPACE.to_string());
        // The file pads the three marks with line ends.
        let mark = text.trim();
        let (text, kind) = match (pieces.len(), sentencepiece::byte(&text)) {
            (0, _) => (mark.to_string(), Kind::Unknown),
            (1 | 2, _) => (mark.to_string(), Kind::Control),
            (_, Some(b)) => (text, Kind::Byte(b)),
            (_, None) => (text, Kind::Normal),
        };
        pieces.push(Piece { text, score, kind });
    }
    Ok(pieces)
}

fn torn(wanted: usize, left: usize) -> Error {
    Error::data(format!("not a whole llama2.c file: {wanted} bytes wanted, {left} left"))
}

#[cfg(test)]
#[allow(clippy::print_stdout, reason = "a skipped test says so")]
mod tests {
    use super::*;
    use crate::exec::Cancel;
    use crate::key::Key;
    use crate::model::llama::Prompts;
    use crate::model::sample::Decoding;

    /// `tests/golden/stories260k/make.py`.
    #[test]
    fn the_trained_story_teller_writes_the_references_tokens() {
        let Some(data) = std::env::var_os("FEDLLAVA_DATA") else {
            println!("skipped: FEDLLAVA_DATA is not set");
            return;
        };
        let folder = Path::new(&data).join("stories260K");
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/stories260k/expected.json");
        let want: serde_json::Value = serde_json::from_str(&fsx::read_text(&golden).unwrap()).unwrap();
        let ids = |v: &serde_json::Value| -> Vec<u32> { serde_json::from_value(v.clone()).unwrap() };

        let tokenizer = tokenizer(&folder.join("tok512.bin")).unwrap();
        let prompt = tokenizer.encode(want["prompt"].as_str().unwrap()).unwrap();
        assert_eq!(prompt, ids(&want["ids"]));

        let model = model(&folder.join("stories260K.bin"), &Device::Cpu).unwrap();
        let embeddings = model.embed(std::slice::from_ref(&prompt)).unwrap();
        let prompts = Prompts { embeddings, pads: vec![0], keys: vec![Key::from_seed(0)], places: None };
        let tokens = ids(&want["tokens"]);
        let (decoding, cancel) = (Decoding::greedy(tokens.len()), Cancel::default());
        let written = model.write(&prompts, &decoding, &[], &cancel, |_, _| Ok(())).unwrap();
        assert_eq!(written.tokens[0], tokens);
        let text = tokenizer.decode(&[prompt, tokens].concat()).unwrap();
        assert_eq!(text, want["text"].as_str().unwrap());
    }

    #[test]
    fn a_torn_file_is_an_error_and_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.bin");
        let header: Vec<u8> = [8i32, 16, 1, 2, 1, 11, 4].iter().flat_map(|n| n.to_le_bytes()).collect();
        for file in [&header[..9], &header[..], &[header.clone(), vec![0; 100]].concat()] {
            std::fs::write(&path, file).unwrap();
            assert!(model(&path, &Device::Cpu).unwrap_err().to_string().contains("not a whole"));
        }
        std::fs::write(&path, [0xff; 64]).unwrap();
        assert!(model(&path, &Device::Cpu).unwrap_err().to_string().contains("dim = -1"));
    }
}
