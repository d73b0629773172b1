//! A tower's layers on a CPU in f32 where no graph is recorded.
//!
//! The same arithmetic as the composed layers (a test holds both together), on plain slices: a thread takes a few images
//! at a time through a layer, so that what lies between two products stays near it and threads wait for each other once
//! a layer. Images too few to go round are taken together, and the products are shared out.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::config::Activation;
use super::layers::{Layer, LayerNorm};
use crate::error::Result;
use crate::model::layers::LinearView;
use crate::model::view::{View, plain};
use crate::nn::kernels::attend::{Head, Tokens, attend};
use crate::nn::kernels::matrix::{After, FEW, MatrixProduct, Spread, run};
use crate::nn::kernels::norms::layer_norm;
use crate::nn::kernels::spare::Spare;

/// Tokens, about, that go through the layers together.
const TOKENS: usize = 208;

/// Whether [`forward`] may stand for these layers on `x`.
pub(super) fn serves(layers: &[Layer], x: &Tensor) -> bool {
    let fits = |l: &Layer| {
        let a = &l.attention;
        let (width, linear) = (l.norm1.weight.elem_count(), [&a.q, &a.k, &a.v, &a.out, &l.fc1, &l.fc2]);
        let whole = linear.iter().all(|l| l.weight().is_contiguous() && plain(&[l.weight()]) && l.adapter().is_none());
        let norms = [&l.norm1, &l.norm2].iter().all(|n| plain(&[&n.weight, &n.bias]));
        let whole = whole && norms && linear.iter().all(|l| !l.trains());
        let heads = a.heads > 0 && width.is_multiple_of(a.heads);
        whole && heads && l.activation == Activation::QuickGelu && x.dims().last() == Some(&width)
    };
    plain(&[x]) && x.rank() == 3 && x.elem_count() > 0 && layers.iter().all(fits)
}

/// `(n, t, width)` after the layers; `causal` hides later tokens.
pub(super) fn forward(layers: &[Layer], x: &Tensor, causal: bool) -> Result<Tensor> {
    let (n, t, width) = x.dims3()?;
    let contiguous = x.contiguous()?;
    let mut values = View::of(&contiguous)?.to_vec();
    let views = layers.iter().map(Views::of).collect::<Result<Vec<_>>>()?;
    let threads = rayon::current_num_threads();
    // Fewer rows than this sum in another order; whether they do must not depend on the threads.
    let together = t <= FEW || (threads > 1 && n < 2 * threads);
    let groups = n.div_ceil((TOKENS / t).max(1)).next_multiple_of(threads).min(n);
    let size = n.div_ceil(groups) * t * width;
    for view in &views {
        match (together, threads) {
            (true, _) => view.layer(&mut values, t, causal, Spread::Pool),
            (_, 1) => values.chunks_mut(size).for_each(|x| view.layer(x, t, causal, Spread::Here)),
            _ => values.par_chunks_mut(size).for_each(|x| view.layer(x, t, causal, Spread::Here)),
        }
    }
    Ok(Tensor::from_vec(values, (n, t, width), &Device::Cpu)?)
}

/// A layer normalisation's numbers.
struct Norm<'a> {
    weight: View<'a>,
    bias: View<'a>,
    eps: f32,
}

impl<'a> Norm<'a> {
    fn of(norm: &'a LayerNorm) -> Result<Self> {
        Ok(Norm { weight: View::of(&norm.weight)?, bias: View::of(&norm.bias)?, eps: norm.eps as f32 })
    }

    fn rows(&self, x: &[f32], y: &mut [f32]) {
        layer_norm(x, &self.weight, &self.bias, self.eps, y);
    }
}

/// A layer's numbers, held for reading.
struct Views<'a> {
    norm1: Norm<'a>,
    qkv: [LinearView<'a>; 3],
    out: LinearView<'a>,
    norm2: Norm<'a>,
    fc1: LinearView<'a>,
    fc2: LinearView<'a>,
    heads: usize,
}

impl<'a> Views<'a> {
    fn of(layer: &'a Layer) -> Result<Self> {
        let a = &layer.attention;
        Ok(Views {
            norm1: Norm::of(&layer.norm1)?,
            qkv: [a.q.view()?, a.k.view()?, a.v.view()?],
            out: a.out.view()?,
            norm2: Norm::of(&layer.norm2)?,
            fc1: layer.fc1.view()?,
            fc2: layer.fc2.view()?,
            heads: a.heads,
        })
    }

    /// The layer on sequences of `t` tokens, in place.
    fn layer(&self, x: &mut [f32], t: usize, causal: bool, spread: Spread) {
        let width = self.norm1.weight.len();
        let mut between = Spare::take(x.len());
        self.norm1.rows(x, &mut between);
        self.attend(&mut between, t, causal, spread);
        run(&between, width, &mut [MatrixProduct { matrix: self.out.matrix(), to: x, after: After::Add }], spread);
        self.norm2.rows(x, &mut between);
        let matrix = self.fc1.matrix();
        let mut inner = Spare::take(x.len() / width * matrix.outputs());
        run(&between, width, &mut [MatrixProduct { matrix, to: &mut inner, after: After::QuickGelu }], spread);
        let matrix = self.fc2.matrix();
        run(&inner, matrix.inputs, &mut [MatrixProduct { matrix, to: x, after: After::Add }], spread);
    }

    /// Normed tokens become what attention gathers for them.
    fn attend(&self, x: &mut [f32], t: usize, causal: bool, spread: Spread) {
        let width = self.norm1.weight.len();
        let (heads, dim) = (self.heads, width / self.heads);
        let mut qkv = Spare::take(3 * x.len());
        {
            let mut parts = qkv.chunks_exact_mut(x.len());
            let mut wanted: Vec<MatrixProduct<'_>> = Vec::new();
            for (m, to) in self.qkv.iter().zip(&mut parts) {
                wanted.push(MatrixProduct { matrix: m.matrix(), to, after: After::Write });
            }
            run(x, width, &mut wanted, spread);
        }
        let mut mixed = Spare::take(x.len());
        let one = |(i, out): (usize, &mut [f32])| {
            let at = i / heads * t * width + i % heads * dim;
            let [q, k, v] = [0, 1, 2].map(|part| Tokens {
                values: &qkv[part * x.len() + at..(part + 1) * x.len()],
                stride: width,
                count: t,
            });
            attend(&Head { q, k, v, dim, causal, hidden: 0 }, out);
        };
        match spread {
            Spread::Here => mixed.chunks_exact_mut(t * dim).enumerate().for_each(one),
            Spread::Pool => mixed.par_chunks_exact_mut(t * dim).enumerate().for_each(one),
        }
        for (i, head) in mixed.chunks_exact(t * dim).enumerate() {
            let at = i / heads * t * width + i % heads * dim;
            for (token, values) in head.chunks_exact(dim).enumerate() {
                x[at + token * width..][..dim].copy_from_slice(values);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::clip::layers::{Encoder, Shape};
    use crate::model::weights::{Init, Scope, Source, Trainable};

    /// Fresh weights that nothing trains.
    struct Detached<'a>(Trainable<'a>);

    impl Source for Detached<'_> {
        fn tensor(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
            Ok(self.0.tensor(name, shape, init)?.detach())
        }
    }

    fn wave(shape: (usize, usize, usize)) -> Tensor {
        let values = (0..shape.0 * shape.1 * shape.2).map(|i| (i as f32 * 0.83).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn it_equals_the_composed_layers_for_few_and_many_tokens_and_on_any_number_of_threads_byte_for_byte() {
        let source = Detached(Trainable::fresh(crate::key::Key::from_seed(4), &Device::Cpu));
        let activation = Activation::QuickGelu;
        let shape = Shape { width: 36, inner: 72, layers: 2, heads: 3, activation, eps: 1e-5, factor: 3.0 };
        let encoder = Encoder::load(&Scope::root(&source), &shape).unwrap();
        for (n, t) in [(1, 3), (9, 5), (1, 60), (13, 50), (300, 9)] {
            for causal in [false, true] {
                let x = wave((n, t, 36));
                assert!(serves(&encoder.0, &x));
                let composed = encoder.0.iter().try_fold(x.clone(), |x, l| l.forward(&x, causal)).unwrap();
                let run = |threads| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let y = pool.install(|| forward(&encoder.0, &x, causal)).unwrap();
                    y.flatten_all().unwrap().to_vec1::<f32>().unwrap()
                };
                let direct = run(1);
                assert_eq!(direct, run(2));
                assert_eq!(direct, run(5));
                let composed = composed.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                for (a, b) in direct.iter().zip(&composed) {
                    assert!((a - b).abs() < 3e-5, "{n} of {t}, causal {causal}: {a} and {b}");
                }
            }
        }
    }
}
