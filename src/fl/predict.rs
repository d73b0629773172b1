//! Values of a network over many images, in parallel, in evaluation mode.

use std::sync::Arc;

use crate::error::Result;
use crate::exec::{self, Context};
use crate::key::Key;
use crate::nn::{Backend, Batch, Mode, Net, Node, Params, Samples, Session, View};

/// Images in one forward pass: few enough for the caches, many enough for the widest layers.
const CHUNK: usize = 32;

/// The value of `node` for the images `ids`, `(ids, shape of the node…)`, and their labels `(ids,)`.
pub fn predict(
    net: &Arc<Net>,
    backend: Backend,
    params: &Params,
    node: Node,
    images: &dyn Samples,
    ids: &[u32],
    cx: &Context,
) -> Result<(Vec<f32>, Vec<u32>)> {
    let chunks: Vec<&[u32]> = ids.chunks(CHUNK).collect();
    let (mut values, mut labels) = (Vec::new(), Vec::with_capacity(ids.len()));
    let workers = backend.workers(cx.threads);
    let job = |(session, batch): &mut (Box<dyn Session>, Batch), i: usize| {
        cx.cancel.check()?;
        if let Some(next) = chunks.get(i + workers) {
            images.ahead(next, View::Plain, Key::from_seed(0));
        }
        images.fill(chunks[i], View::Plain, Key::from_seed(0), batch)?;
        let mut value = [Vec::new()];
        session.look(params, &batch.x, chunks[i].len(), Mode::Infer, &[node], &mut value)?;
        let [value] = value;
        Ok((value, batch.y.clone()))
    };
    exec::ordered(
        workers,
        chunks.len(),
        4 * workers,
        |_| Ok((backend.session(net, cx, 1, 1)?, Batch::default())),
        job,
        |_, (v, y)| {
            values.extend(v);
            labels.extend(y);
            Ok(())
        },
    )?;
    Ok((values, labels))
}
