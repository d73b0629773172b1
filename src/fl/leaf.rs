//! A leaf of the cohort added up by itself, and joined to the sum of those before it.

use std::collections::BTreeMap;

use super::aggregate::{Collected, Sum};
use super::brief::Name;
use super::reply::Reply;
use super::{ClientId, Collect};
use crate::error::Result;

/// Replies of one leaf added up, with what its sums alone do not say: sums of weights and losses have the bytes of the
/// whole cohort's only if they are added one by one.
#[derive(Default)]
pub struct Leaf {
    /// The replies.
    pub got: Collected,
    /// The weights in each sum, in order.
    pub weights: BTreeMap<Name, Vec<f64>>,
    /// Samples and mean loss of those who trained, in order.
    pub losses: Vec<(f64, f64)>,
}

impl Leaf {
    /// Folds the next reply, in cohort order.
    pub fn fold(&mut self, client: ClientId, reply: Reply, how: Collect) -> Result<()> {
        if how == Collect::Sum {
            reply.parts.iter().for_each(|p| self.weights.entry(p.name.clone()).or_default().push(p.weight));
        }
        self.losses.extend(reply.loss.map(|loss| (reply.samples as f64, loss)));
        self.got.fold(client, reply, how)
    }
}

impl Collected {
    /// Joins the next leaf, in cohort order: the bytes are those of folding its replies here.
    pub fn join(&mut self, leaf: Leaf) -> Result<()> {
        let Leaf { got, weights, losses } = leaf;
        self.close();
        for (name, sum) in &got.sums {
            let empty = || Sum::opened(sum.kind(), sum.layout().clone(), vec![0.0; sum.total().0.len()], 0.0);
            let weights = weights.get(name).map_or(&[][..], Vec::as_slice);
            self.sums.entry(name.clone()).or_insert_with(empty).join(sum, weights)?;
        }
        self.seal(got.sealed)?;
        losses.iter().for_each(|(n, loss)| self.loss = (self.loss.0 + n * loss, self.loss.1 + n));
        self.each.extend(got.each);
        self.from.extend(got.from);
        self.replies += got.replies;
        self.bytes_down += got.bytes_down;
        self.bytes_up += got.bytes_up;
        self.multiply_adds += got.multiply_adds;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fl::reply::{Part, PartKind};
    use crate::nn::{Layout, Params, Role};

    fn reply(data: [f32; 3], weight: f64) -> Reply {
        let mut layout = Layout::default();
        layout.push("w", &[2], Role::Weight).unwrap();
        layout.push("running_mean", &[1], Role::Buffer).unwrap();
        let data = Params::new(Arc::new(layout), data.to_vec()).unwrap();
        let part = Part { name: "model".into(), kind: PartKind::Delta, data, weight };
        Reply { parts: vec![part], samples: 1, loss: None, multiply_adds: 0, wire: Default::default() }
    }

    #[test]
    fn leaves_added_up_apart_join_to_the_same_bytes() {
        let (mut whole, mut joined) = (Collected::default(), Collected::default());
        for leaf in 0..3u16 {
            let mut apart = Leaf::default();
            // One of the second leaf does not answer.
            for i in (0..16u16).filter(|i| (leaf, *i) != (1, 3)) {
                let data = [f32::from(i).sqrt() - 2.0, -0.0, f32::from(leaf) * 0.1];
                let reply = Reply { loss: Some(f64::from(i).sin()), ..reply(data, f64::from(i) * 0.3 + 0.1) };
                whole.fold(u32::from(i), reply.clone(), Collect::Sum).unwrap();
                apart.fold(u32::from(i), reply, Collect::Sum).unwrap();
            }
            whole.close();
            apart.got.close();
            joined.join(apart).unwrap();
        }
        let bits = |got: &Collected| {
            let (total, weight) = got.sum("model").unwrap().total();
            let all = total.iter().chain([&weight, &got.loss.0, &got.loss.1]);
            all.map(|n| n.to_bits()).collect::<Vec<u64>>()
        };
        assert_eq!(bits(&joined), bits(&whole));
        assert_eq!((joined.replies, &joined.from), (47, &whole.from));
    }
}
