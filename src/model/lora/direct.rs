//! Linear layers and what stands beside them on plain numbers: several that read the same rows, forward and back.

use candle_core::Tensor;
use rayon::prelude::*;

use super::adapter::Adapter;
use crate::error::Result;
use crate::model::layers::{Linear, LinearView};
use crate::model::view::View;
use crate::nn::kernels::back::back;
use crate::nn::kernels::matrix::{After, Matrix, MatrixProduct, Spread, add_mixed, mix, run};
use crate::nn::kernels::spare::Spare;

/// A frozen linear layer and its adapter, held for reading.
pub struct Side<'a> {
    base: LinearView<'a>,
    beside: Option<Thin<'a>>,
}

/// An adapter's matrices.
struct Thin<'a> {
    adapter: &'a Adapter,
    a: View<'a>,
    b: View<'a>,
    inputs: usize,
    rank: usize,
}

/// `(alpha / rank) · A x` of each row where a layer has an adapter: what the way back needs of the way there.
pub type Inner = Option<Spare>;

/// A trained tensor and its gradient.
pub type Learnt = (Tensor, Vec<f32>);

impl<'a> Side<'a> {
    /// Of a layer that lies on a CPU in f32.
    pub fn of(layer: &'a Linear) -> Result<Self> {
        let beside = layer.adapter().map(Thin::of).transpose()?;
        Ok(Side { base: layer.base()?, beside })
    }

    /// Values of an output row.
    pub fn outputs(&self) -> usize {
        self.base.matrix().outputs()
    }

    /// Values of an input row.
    pub fn inputs(&self) -> usize {
        self.base.matrix().inputs
    }

    /// Whether its rows are needed on the way back.
    pub fn learns(&self) -> bool {
        self.beside.as_ref().is_some_and(|thin| !thin.adapter.trained().is_empty())
    }
}

impl<'a> Thin<'a> {
    fn of(adapter: &'a Adapter) -> Result<Self> {
        let (a, b) = adapter.matrices();
        let (rank, inputs) = a.dims2()?;
        Ok(Thin { adapter, a: View::of(a)?, b: View::of(b)?, inputs, rank })
    }

    fn down(&self) -> Matrix<'_> {
        Matrix { weight: &self.a, inputs: self.inputs, bias: None }
    }

    fn up(&self) -> Matrix<'_> {
        Matrix { weight: &self.b, inputs: self.rank, bias: None }
    }

    /// Rows without what dropout takes of them; nothing where it takes nothing.
    fn dropped(&self, x: &[f32]) -> Option<Vec<f32>> {
        let mut mask = self.adapter.mask(x.len())?;
        mask.iter_mut().zip(x).for_each(|(m, x)| *m *= x);
        Some(mask)
    }
}

/// Rows `x` through each layer: `y += W x + b + (alpha / rank) · B (A x)` with [`After::Add`], else without the sum.
pub fn forward(x: &[f32], layers: &[&Side<'_>], to: &mut [&mut [f32]], after: After) -> Vec<Inner> {
    let inputs = layers.first().map_or(1, |l| l.inputs());
    let rows = x.len() / inputs.max(1);
    let inner = |layer: &&Side<'_>| layer.beside.as_ref().map(|thin| Spare::take(rows * thin.rank));
    let mut inner: Vec<Inner> = layers.iter().map(inner).collect();
    let mut wanted = Vec::new();
    for ((layer, to), inner) in layers.iter().zip(to.iter_mut()).zip(&mut inner) {
        wanted.push(MatrixProduct { matrix: layer.base.matrix(), to, after });
        if let (Some(thin), Some(to)) = (&layer.beside, inner) {
            match thin.dropped(x) {
                Some(x) => {
                    let part = MatrixProduct { matrix: thin.down(), to, after: After::Write };
                    run(&x, inputs, &mut [part], Spread::Pool);
                }
                None => wanted.push(MatrixProduct { matrix: thin.down(), to, after: After::Write }),
            }
        }
    }
    run(x, inputs, &mut wanted, Spread::Pool);
    for ((layer, to), inner) in layers.iter().zip(to).zip(&mut inner) {
        if let (Some(thin), Some(inner)) = (&layer.beside, inner) {
            inner.iter_mut().for_each(|v| *v *= thin.adapter.scale());
            add_mixed(inner, &turned(&thin.b, thin.rank), to, layer.outputs());
        }
    }
    inner
}

/// The way back of [`forward`] from each layer's `grads`: `gx`, where it is wanted, becomes the gradient of the rows, and
/// every trained matrix gets its own. `x` and `inner` are the way there's.
pub fn backward(
    x: &[f32],
    layers: &[&Side<'_>],
    inner: &[Inner],
    grads: &[&[f32]],
    mut gx: Option<&mut [f32]>,
) -> Vec<Learnt> {
    let mut jobs = Vec::new();
    for (i, ((layer, inner), &grad)) in layers.iter().zip(inner).zip(grads).enumerate() {
        let after = if i == 0 { After::Write } else { After::Add };
        let base = gx.as_deref_mut().map(|to| MatrixProduct { matrix: layer.base.matrix(), to, after });
        let mut wanted: Vec<MatrixProduct<'_>> = base.into_iter().collect();
        let (Some(thin), Some(inner)) = (&layer.beside, inner) else {
            back(grad, layer.outputs(), &mut wanted);
            continue;
        };
        let mut slope = Spare::take(inner.len());
        wanted.push(MatrixProduct { matrix: thin.up(), to: &mut slope, after: After::Write });
        back(grad, layer.outputs(), &mut wanted);
        slope.iter_mut().for_each(|v| *v *= thin.adapter.scale());
        match (gx.as_deref_mut(), thin.adapter.mask(x.len())) {
            (Some(gx), Some(mask)) => {
                let mut part = vec![0.0; gx.len()];
                add_mixed(&slope, &thin.a, &mut part, thin.inputs);
                gx.iter_mut().zip(mask).zip(part).for_each(|((gx, m), v)| *gx += m * v);
            }
            (Some(gx), None) => add_mixed(&slope, &thin.a, gx, thin.inputs),
            (None, _) => {}
        }
        if layer.learns() {
            jobs.push(Job { thin, inner, slope, grad });
        }
    }
    // Both matrices of each adapter by themselves: threads have more to choose from.
    let halves: Vec<_> = jobs.iter().flat_map(|job| [(job, true), (job, false)]).collect();
    let one = |(job, down): &(&Job<'_>, bool)| job.learnt(x, *down);
    match rayon::current_num_threads() {
        1 => halves.iter().map(one).collect(),
        _ => halves.par_iter().map(one).collect(),
    }
}

/// What an adapter learns from: `(alpha / rank) · A x`, its gradient, and the gradient of what was added.
struct Job<'a> {
    thin: &'a Thin<'a>,
    inner: &'a [f32],
    slope: Spare,
    grad: &'a [f32],
}

impl Job<'_> {
    /// The gradient of A, `slopeᵀ x`, or of B, `gradᵀ inner`, each token in its turn.
    fn learnt(&self, x: &[f32], down: bool) -> Learnt {
        let (rank, (a, b)) = (self.thin.rank, self.thin.adapter.matrices());
        if down {
            let mut by_a = vec![0.0; self.thin.a.len()];
            let dropped = self.thin.dropped(x);
            mix(&turned(&self.slope, rank), dropped.as_deref().unwrap_or(x), &mut by_a, rank);
            return (a.clone(), by_a);
        }
        let mut by_b = vec![0.0; self.thin.b.len()];
        mix(&turned(self.inner, rank), self.grad, &mut by_b, rank);
        (b.clone(), turned(&by_b, self.thin.b.len() / rank))
    }
}

/// Rows of `width` values as columns.
fn turned(rows: &[f32], width: usize) -> Vec<f32> {
    let count = rows.len() / width.max(1);
    (0..rows.len()).map(|at| rows[at % count * width + at / count]).collect()
}
