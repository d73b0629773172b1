//! A slice of any number of patches becomes a fixed number of tokens: one cross-attention of learnt queries.

use candle_core::{D, DType, Device, Tensor};

use crate::error::Result;
use crate::model::clip::layers::LayerNorm;
use crate::model::layers::{Linear, softmax};
use crate::model::weights::{Init, Scope};

/// Under published names: `query`, `proj`, `kv_proj`, `attn.…`, `ln_q`, `ln_kv`, `ln_post`.
pub(super) struct Resampler {
    query: Tensor,
    /// Applied as x · proj, `(in, out)`.
    proj: Tensor,
    /// None where the widths agree.
    kv: Option<Linear>,
    /// Queries, keys and values in one, `(3 · width, width)`.
    in_weight: Tensor,
    in_bias: Tensor,
    out: Linear,
    norm_q: LayerNorm,
    norm_kv: LayerNorm,
    norm_post: LayerNorm,
    heads: usize,
}

impl Resampler {
    /// From the tower's width to the language model's.
    pub fn load(at: &Scope, queries: usize, input: usize, width: usize) -> Result<Self> {
        const EPS: f64 = 1e-6;
        let (attn, std) = (at.pp("attn"), 0.02);
        let kv = if input == width { None } else { Some(Linear::load(&at.pp("kv_proj"), input, width, std, false)?) };
        Ok(Resampler {
            query: at.tensor("query", &[queries, width], Init::Normal(std))?,
            proj: at.tensor("proj", &[width, width], Init::Normal((width as f64).powf(-0.5)))?,
            kv,
            in_weight: attn.tensor("in_proj_weight", &[3 * width, width], Init::Normal(std))?,
            in_bias: attn.tensor("in_proj_bias", &[3 * width], Init::Constant(0.0))?,
            out: Linear::load(&attn.pp("out_proj"), width, width, std, true)?,
            norm_q: LayerNorm::load(&at.pp("ln_q"), width, EPS)?,
            norm_kv: LayerNorm::load(&at.pp("ln_kv"), width, EPS)?,
            norm_post: LayerNorm::load(&at.pp("ln_post"), width, EPS)?,
            heads: width / 128,
        })
    }

    /// Slices of one grid: what the tower says of them `(n, patches, input)` → `(n, queries, width)`.
    pub fn forward(&self, seen: &Tensor, grid: [usize; 2]) -> Result<Tensor> {
        let (queries, width) = self.query.dims2()?;
        let (n, patches, _) = seen.dims3()?;
        let x = match &self.kv {
            Some(kv) => kv.forward(seen)?,
            None => seen.clone(),
        };
        let values = self.norm_kv.forward(&x)?;
        let positions = sines(grid, width, seen.device())?.to_dtype(values.dtype())?;
        // Keys know where they are, values do not.
        let keys = values.broadcast_add(&positions)?;
        let q = self.norm_q.forward(&self.query)?.unsqueeze(0)?;
        let part = |i: usize, x: &Tensor| -> Result<Tensor> {
            let weight = self.in_weight.narrow(0, i * width, width)?.contiguous()?;
            Linear::new(weight, Some(self.in_bias.narrow(0, i * width, width)?)).forward(x)
        };
        let apart = |x: Tensor, rows: usize, tokens: usize| -> Result<Tensor> {
            Ok(x.reshape((rows, tokens, self.heads, width / self.heads))?.transpose(1, 2)?.contiguous()?)
        };
        let q = apart(part(0, &q)?, 1, queries)?.broadcast_as((n, self.heads, queries, width / self.heads))?;
        let (k, v) = (apart(part(1, &keys)?, n, patches)?, apart(part(2, &values)?, n, patches)?);
        let scale = ((width / self.heads) as f64).powf(-0.5);
        let scores = (q.contiguous()? * scale)?.matmul(&k.transpose(D::Minus2, D::Minus1)?)?;
        let mixed = softmax(&scores)?.matmul(&v)?.transpose(1, 2)?.reshape((n, queries, width))?;
        let out = self.norm_post.forward(&self.out.forward(&mixed)?)?;
        Ok(out.flatten(0, 1)?.matmul(&self.proj)?.reshape((n, queries, width))?)
    }
}

/// Sines and cosines of each cell's place, `(rows · columns, width)`: the column in the first half of the numbers, the
/// row in the second.
pub(super) fn sines([rows, columns]: [usize; 2], width: usize, device: &Device) -> Result<Tensor> {
    let quarter = width / 4;
    let omega: Vec<f64> = (0..quarter).map(|k| 10_000f64.powf(-(k as f64) / quarter as f64)).collect();
    let half = |place: usize, out: &mut Vec<f32>| {
        let angles = omega.iter().map(|o| place as f32 * (*o as f32));
        out.extend(angles.clone().map(f32::sin));
        out.extend(angles.map(f32::cos));
    };
    let mut out = Vec::with_capacity(rows * columns * width);
    for (row, column) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
        half(column, &mut out);
        half(row, &mut out);
    }
    Ok(Tensor::from_vec(out, (rows * columns, width), device)?.to_dtype(DType::F32)?)
}
