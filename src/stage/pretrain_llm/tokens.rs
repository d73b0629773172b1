//! Annotations as tokens, on disk: `ids` (u32, all samples one after the other) and `samples` (u32, `(samples, 3)`: the
//! image, the first token of the answer, the number of tokens), and `proof` (u8, `(32,)`: SHA-256 over both).

use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::{Error, Result};
use crate::fsx;
use crate::mllm::caption_loss::Sample;

/// Writes the annotations of each image, `made_of` naming what they were made of.
pub fn save(annotations: &[Vec<Sample>], path: &Path, made_of: &str) -> Result<()> {
    let (mut ids, mut samples) = (Vec::<u32>::new(), Vec::<u32>::new());
    for (image, of) in annotations.iter().enumerate() {
        for sample in of {
            samples.extend([image as u32, sample.from as u32, sample.ids.len() as u32]);
            ids.extend(&sample.ids);
        }
    }
    let view = |shape: Vec<usize>, values| {
        TensorView::new(Dtype::U32, shape, bytemuck::cast_slice(values))
            .map_err(|e| Error::defect(format!("tokens: {e}")))
    };
    let proof = proof(&ids, &samples);
    let proof = TensorView::new(Dtype::U8, vec![32], &proof).map_err(|e| Error::defect(format!("tokens: {e}")))?;
    let tensors = [
        ("ids", view(vec![ids.len()], &ids)?),
        ("samples", view(vec![samples.len() / 3, 3], &samples)?),
        ("proof", proof),
    ];
    let metadata = [("made_of".to_string(), made_of.to_string())];
    let bytes = safetensors::serialize(tensors, Some(metadata.into()))
        .map_err(|e| Error::defect(format!("tokens: {}: {e}", path.display())))?;
    fsx::write_atomic(path, &bytes)
}

fn proof(ids: &[u32], samples: &[u32]) -> [u8; 32] {
    fsx::proof(&[bytemuck::cast_slice(ids), bytemuck::cast_slice(samples)])
}

/// Reads them back; a file made of anything else is refused.
pub fn load(path: &Path, made_of: &str) -> Result<Vec<Vec<Sample>>> {
    let bad =
        |why: String| Error::data(format!("{}: {why}", path.display())).hint("delete the file; it is computed again");
    let bytes = fsx::read(path)?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
    if metadata.metadata().as_ref().and_then(|m| m.get("made_of")).map(String::as_str) != Some(made_of) {
        return Err(bad("made of other captions".into()));
    }
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
    let numbers = |name: &str| -> Result<Vec<u32>> {
        let view = tensors.tensor(name).map_err(|e| bad(e.to_string()))?;
        Ok(view.data().chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    };
    let (ids, samples) = (numbers("ids")?, numbers("samples")?);
    if tensors.tensor("proof").map_err(|e| bad(e.to_string()))?.data() != proof(&ids, &samples) {
        return Err(bad("damaged: not the numbers that were written".into()));
    }
    let mut annotations: Vec<Vec<Sample>> = Vec::new();
    let mut at = 0;
    for s in samples.chunks_exact(3) {
        let (image, from, length) = (s[0] as usize, s[1] as usize, s[2] as usize);
        let Some(own) = ids.get(at..at + length) else { return Err(bad("tokens are missing".into())) };
        annotations.resize(annotations.len().max(image + 1), Vec::new());
        annotations[image].push(Sample { ids: own.to_vec(), from });
        at += length;
    }
    Ok(annotations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_and_those_of_other_captions_or_cut_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let sample = |n: u32| Sample { ids: (0..n).collect(), from: 2 };
        let all = vec![vec![sample(5)], vec![sample(3), sample(9)], vec![sample(4)]];
        save(&all, &path, "abc").unwrap();
        assert_eq!(load(&path, "abc").unwrap(), all);
        assert!(load(&path, "abd").unwrap_err().to_string().contains("other captions"));
        let bytes = fsx::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 8]).unwrap();
        assert!(load(&path, "abc").unwrap_err().to_string().contains("delete the file"));
    }
}
