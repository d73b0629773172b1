//! Outputs of a network on many images, in parallel: what evaluation is made of.

use std::ops::Range;
use std::sync::Arc;

use super::backend::Backend;
use super::interpreter::Mode;
use super::net::{Net, Node};
use crate::error::Result;
use crate::exec::{Context, ordered};

/// Images in a batch: few enough for the caches, many enough for the widest layers.
const BATCH: usize = 32;

/// The value of `node` (a tap or the output) for `count` images, `(count, shape of the node…)`, with running
/// statistics and without dropout. `images` appends the images of a range, `(n, C, H, W)` normalised. Workers share
/// batches; the result does not depend on their number.
pub fn predict(
    backend: Backend,
    net: &Arc<Net>,
    params: &[f32],
    node: Node,
    count: usize,
    cx: &Context,
    images: impl Fn(Range<usize>, &mut Vec<f32>) -> Result<()> + Sync,
) -> Result<Vec<f32>> {
    let batches = count.div_ceil(BATCH);
    // With fewer batches than threads, the threads work inside the batches.
    let inside = (cx.threads / batches.max(1)).max(1);
    let mut all = Vec::with_capacity(count * net.shapes[node].iter().product::<usize>());
    ordered(
        cx.threads,
        batches,
        4 * cx.threads,
        |_| Ok((backend.workspace(net, cx, inside)?, Vec::new())),
        |(engine, x): &mut (_, Vec<f32>), batch| {
            cx.cancel.check()?;
            let range = batch * BATCH..count.min((batch + 1) * BATCH);
            x.clear();
            images(range.clone(), x)?;
            engine.forward(params, x, &[range.len()], Mode::Eval)?;
            let mut out = Vec::new();
            engine.read(node, &mut out)?;
            Ok(out)
        },
        |_, out: Vec<f32>| {
            all.extend_from_slice(&out);
            Ok(())
        },
    )?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Key;
    use crate::nn::net::Start;
    use crate::nn::{Interpreter, NetBuilder, cpu::Engine};

    #[test]
    fn batches_and_threads_change_nothing() {
        let mut b = NetBuilder::new(2, 5, 5);
        let x = b.conv(NetBuilder::INPUT, "conv", 7, 3, 2, 1, Start::Normal(0.3)).unwrap();
        let x = b.batch_norm(x, "bn").unwrap();
        let x = b.relu(x);
        let x = b.global_avg_pool(x).unwrap();
        let x = b.linear(x, "fc", 3).unwrap();
        let net = Arc::new(b.finish("small", x).unwrap());
        let params = net.init(Key::from_seed(1));
        let images: Vec<f32> = (0..75 * 50).map(|i| (i % 17) as f32 / 8.0 - 1.0).collect();
        let load = |r: Range<usize>, to: &mut Vec<f32>| {
            to.extend_from_slice(&images[r.start * 50..r.end * 50]);
            Ok(())
        };
        let (mut whole, mut engine) = (Vec::new(), Engine::new(&net, 1).unwrap());
        engine.forward(params.data(), &images, &[75], Mode::Eval).unwrap();
        engine.read(net.logits, &mut whole).unwrap();
        for threads in [1, 2, 3, 8] {
            let cx = Context::cpu(threads);
            let got = predict(Backend::Auto, &net, params.data(), net.logits, 75, &cx, load).unwrap();
            assert_eq!(got, whole);
        }
    }
}
