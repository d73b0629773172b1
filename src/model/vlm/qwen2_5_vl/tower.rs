//! The image tower: attention in windows, rotary positions over rows and columns, four patches merged into a token.

use candle_core::{Device, Tensor};

use super::config::TowerConfig;
use crate::error::{Error, Result};
use crate::model::clip::config::Activation;
use crate::model::fused;
use crate::model::layers::{Linear, RmsNorm};
use crate::model::llama::Turns;
use crate::model::weights::{Init, Scope};

/// In the tower's norms.
const EPS: f64 = 1e-6;

struct Block {
    norm1: RmsNorm,
    qkv: Linear,
    proj: Linear,
    norm2: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// Under published names: `patch_embed.proj`, `blocks.…`, `merger.…`.
pub(super) struct Tower {
    config: TowerConfig,
    patch: Linear,
    blocks: Vec<Block>,
    merger_norm: RmsNorm,
    merger: [Linear; 2],
}

/// In which order a picture's merged cells are attended to, and where one attends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Windows {
    /// Merged cells, window by window.
    pub order: Vec<u32>,
    /// Patches of each window.
    pub sizes: Vec<usize>,
}

impl Windows {
    /// Of a picture of `rows` × `columns` merged cells, ragged at the right and at the bottom; `patches` in a cell.
    pub fn new([rows, columns]: [usize; 2], side: usize, patches: usize) -> Self {
        let (mut order, mut sizes) = (Vec::with_capacity(rows * columns), Vec::new());
        for (top, left) in (0..rows).step_by(side).flat_map(|r| (0..columns).step_by(side).map(move |c| (r, c))) {
            let before = order.len();
            for row in top..(top + side).min(rows) {
                order.extend((left..(left + side).min(columns)).map(|column| (row * columns + column) as u32));
            }
            sizes.push((order.len() - before) * patches);
        }
        Windows { order, sizes }
    }
}

/// Row and column of each patch of a grid, cell by cell as patches lie.
pub(super) fn patch_places([rows, columns]: [usize; 2], merge: usize) -> Vec<[u32; 2]> {
    let mut places = Vec::with_capacity(rows * columns);
    for (top, left) in (0..rows).step_by(merge).flat_map(|r| (0..columns).step_by(merge).map(move |c| (r, c))) {
        for row in top..top + merge {
            places.extend((left..left + merge).map(|column| [row as u32, column as u32]));
        }
    }
    places
}

impl Tower {
    pub fn load(at: &Scope, config: &TowerConfig) -> Result<Self> {
        let (d, inner, p) = (config.hidden_size, config.intermediate_size, config.patch_size);
        let kernel = [d, 3, config.temporal_patch_size, p, p];
        let kernel = at.pp("patch_embed.proj").tensor("weight", &kernel, Init::Normal(0.02))?;
        let block = |i: usize| {
            let at = at.pp("blocks").pp(i);
            let linear = |name: &str, input, output| Linear::load(&at.pp(name), input, output, 0.02, true);
            Ok(Block {
                norm1: RmsNorm::load(&at.pp("norm1"), d, EPS)?,
                qkv: linear("attn.qkv", d, 3 * d)?,
                proj: linear("attn.proj", d, d)?,
                norm2: RmsNorm::load(&at.pp("norm2"), d, EPS)?,
                gate: linear("mlp.gate_proj", d, inner)?,
                up: linear("mlp.up_proj", d, inner)?,
                down: linear("mlp.down_proj", inner, d)?,
            })
        };
        let (merger, cell) = (at.pp("merger"), d * config.spatial_merge_size.pow(2));
        Ok(Tower {
            patch: Linear::new(kernel.reshape((d, 3 * config.temporal_patch_size * p * p))?, None),
            blocks: (0..config.depth).map(block).collect::<Result<_>>()?,
            merger_norm: RmsNorm::load(&merger.pp("ln_q"), d, EPS)?,
            merger: [
                Linear::load(&merger.pp("mlp.0"), cell, cell, 0.02, true)?,
                Linear::load(&merger.pp("mlp.2"), cell, config.out_hidden_size, 0.02, true)?,
            ],
            config: config.clone(),
        })
    }

    /// One picture: patches `(rows · columns, 3 · t · p · p)`, cell by cell → tokens
    /// `(rows · columns / merge², out)` in reading order.
    pub fn forward(&self, patches: &Tensor, grid: [usize; 2]) -> Result<Tensor> {
        let (c, merge) = (&self.config, self.config.spatial_merge_size);
        let (cell, n) = (merge * merge, patches.dim(0)?);
        if n != grid[0] * grid[1] || grid.iter().any(|g| !g.is_multiple_of(merge)) {
            return Err(Error::defect(format!("image tower: {n} patches as {grid:?}")));
        }
        let windows = Windows::new([grid[0] / merge, grid[1] / merge], c.window_cells(), cell);
        let order: Vec<u32> =
            windows.order.iter().flat_map(|&w| (0..cell as u32).map(move |i| w * cell as u32 + i)).collect();
        let turns = self.turns(&order, grid, patches.device())?;
        let picked = Tensor::new(order, patches.device())?;
        let mut x = self
            .patch
            .forward(&patches.to_dtype(self.patch.weight().dtype())?)?
            .index_select(&picked, 0)?
            .unsqueeze(0)?;
        for (i, block) in self.blocks.iter().enumerate() {
            let whole = c.fullatt_block_indexes.contains(&i);
            let sizes = if whole { std::slice::from_ref(&n) } else { &windows.sizes[..] };
            x = self.block(block, &x, &turns, sizes)?;
        }
        let x = self.merger_norm.forward(&x)?.reshape((n / cell, cell * c.hidden_size))?;
        let x = self.merger[1].forward(&Activation::Gelu.forward(&self.merger[0].forward(&x)?)?)?;
        let mut back = vec![0u32; windows.order.len()];
        windows.order.iter().zip(0u32..).for_each(|(&to, from)| back[to as usize] = from);
        Ok(x.index_select(&Tensor::new(back, x.device())?, 0)?)
    }

    /// Half of a head's angles by row, half by column, of patches in the order they are attended to.
    fn turns(&self, order: &[u32], grid: [usize; 2], device: &Device) -> Result<Turns> {
        let quarter = self.config.hidden_size / self.config.num_heads / 4;
        let one = |k: usize| (1.0 / 10_000f64.powf(k as f64 / quarter as f64)) as f32;
        let frequencies: Vec<f32> = (0..2 * quarter).map(|k| one(k % quarter)).collect();
        let places = patch_places(grid, self.config.spatial_merge_size);
        let axes = order.iter().map(|&i| [places[i as usize][0], places[i as usize][1], 0]).collect();
        Turns::by_axes(&frequencies, &[quarter, quarter], &[axes], self.patch.weight().dtype(), device)
    }

    /// `(1, n, width)` → the same shape; `sizes` are the runs that attend to themselves.
    fn block(&self, b: &Block, x: &Tensor, turns: &Turns, sizes: &[usize]) -> Result<Tensor> {
        let (d, heads, n) = (self.config.hidden_size, self.config.num_heads, x.dim(1)?);
        let qkv = b.qkv.forward(&b.norm1.forward(x)?)?;
        let part = |i: usize| qkv.narrow(2, i * d, d);
        let turned = |i: usize| -> Result<Tensor> {
            let apart = part(i)?.reshape((1, n, heads, d / heads))?.transpose(1, 2)?;
            Ok(turns.apply(&apart)?.transpose(1, 2)?.reshape((1, n, d))?)
        };
        let (q, k, v) = (turned(0)?, turned(1)?, part(2)?.contiguous()?);
        let (mut mixed, mut at) = (Vec::with_capacity(sizes.len()), 0);
        for &size in sizes {
            let run = |t: &Tensor| t.narrow(1, at, size);
            mixed.push(fused::attend(&run(&q)?, &run(&k)?, &run(&v)?, heads, false)?);
            at += size;
        }
        let x = (x + b.proj.forward(&Tensor::cat(&mixed, 1)?)?)?;
        let y = b.norm2.forward(&x)?;
        let gated = (b.gate.forward(&y)?.silu()? * b.up.forward(&y)?)?;
        Ok((x + b.down.forward(&gated)?)?)
    }
}
