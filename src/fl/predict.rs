//! Values of a network over many images, in parallel, in evaluation mode.

use std::sync::Arc;

use super::trainer::{Arena, Images};
use crate::error::Result;
use crate::exec::{self, Context};
use crate::nn::{Backend, Net, Node, Params};

/// Images in one forward pass: few enough for the caches, many enough for the widest layers.
const CHUNK: usize = 32;

/// The value of `node` for the images `ids`, `(ids, shape of the node…)`, and their labels `(ids,)`.
pub fn predict(
    net: &Arc<Net>,
    backend: Backend,
    params: &Params,
    node: Node,
    images: &dyn Images,
    ids: &[u32],
    cx: &Context,
) -> Result<(Vec<f32>, Vec<u32>)> {
    let chunks: Vec<&[u32]> = ids.chunks(CHUNK).collect();
    let (mut values, mut labels) = (Vec::new(), Vec::with_capacity(ids.len()));
    let job = |arena: &mut Arena, i: usize| {
        cx.cancel.check()?;
        images.fill(chunks[i], None, &mut arena.batch)?;
        let value = arena.evaluate(params.data(), node)?.to_vec();
        Ok((value, arena.batch.y.clone()))
    };
    exec::ordered(
        cx.threads,
        chunks.len(),
        4 * cx.threads,
        |_| Arena::new(net, backend, cx, 1),
        job,
        |_, (v, y)| {
            values.extend(v);
            labels.extend(y);
            Ok(())
        },
    )?;
    Ok((values, labels))
}
