//! Replies, their sums and what clients keep, as ranks send them.

use std::sync::Arc;

use super::pack::{Pack, Packed, Unpack, fields};
use crate::error::{Error, Result};
use crate::fl::aggregate::{Collected, Sum};
use crate::fl::brief::Name;
use crate::fl::leaf::Leaf;
use crate::fl::reply::{Part, PartKind, Reply, Sealed, Wire};
use crate::fl::round::Kept;
use crate::nn::Layout;

fields!(Part: name, kind, data, weight);
fields!(Wire: coded, sealed, late);
fields!(Reply: parts, samples, loss, multiply_adds, wire);
fields!(Collected: sums, each, sealed, from, replies, loss, bytes_down, bytes_up, multiply_adds);
fields!(Leaf: got, weights, losses);

impl Packed for PartKind {
    fn put(&self, to: &mut Pack) {
        (*self == PartKind::Delta).put(to);
    }

    fn take(from: &mut Unpack<'_>) -> Result<Self> {
        Ok(if bool::take(from)? { PartKind::Delta } else { PartKind::Value })
    }
}

impl Packed for Sealed {
    fn put(&self, to: &mut Pack) {
        let parts = |(name, kind, layout): &(Name, PartKind, Arc<Layout>)| ((name.clone(), *kind), layout.clone());
        self.parts.iter().map(parts).collect::<Vec<_>>().put(to);
        to.numbers(&self.words);
        self.width.put(to);
    }

    fn take(from: &mut Unpack<'_>) -> Result<Self> {
        let parts = Vec::<((Name, PartKind), Arc<Layout>)>::take(from)?;
        let parts = parts.into_iter().map(|((name, kind), layout)| (name, kind, layout)).collect();
        Ok(Sealed { parts, words: from.numbers()?, width: Packed::take(from)? })
    }
}

impl Packed for Sum {
    fn put(&self, to: &mut Pack) {
        self.kind().put(to);
        self.layout().put(to);
        to.numbers(self.total().0);
        self.total().1.put(to);
    }

    fn take(from: &mut Unpack<'_>) -> Result<Self> {
        let (kind, layout) = (PartKind::take(from)?, Arc::<Layout>::take(from)?);
        let total = from.numbers::<f64>()?;
        if total.len() != layout.len() {
            return Err(Error::defect(format!("ranks: a sum of {} numbers for {}", total.len(), layout.len())));
        }
        Ok(Sum::opened(kind, layout, total, f64::take(from)?))
    }
}

impl Packed for Kept {
    fn put(&self, to: &mut Pack) {
        self.round.put(to);
        self.rank.put(to);
        self.named.as_ref().put(to);
    }

    fn take(from: &mut Unpack<'_>) -> Result<Self> {
        Ok(Kept { round: Packed::take(from)?, rank: Packed::take(from)?, named: Arc::new(Packed::take(from)?) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::pack::{pack, unpack};
    use super::*;
    use crate::fl::Collect;
    use crate::nn::{Params, Role};

    fn reply(with: &[f32]) -> Reply {
        let mut layout = Layout::default();
        layout.push("w", &[2], Role::Weight).unwrap();
        layout.push("mean", &[1], Role::Buffer).unwrap();
        let data = Params::new(Arc::new(layout), with.to_vec()).unwrap();
        let sealed = Sealed {
            parts: vec![("s".into(), PartKind::Value, data.layout().clone())],
            words: vec![u64::MAX, 3],
            width: 4,
        };
        let wire = Wire { coded: BTreeMap::from([("model".into(), 7)]), sealed: Some(sealed), late: false };
        let part = Part { name: "model".into(), kind: PartKind::Delta, data, weight: 0.1 };
        Reply {
            parts: vec![part, Part::value("n", Params::tensor("n", &[1], vec![0.5]).unwrap())],
            samples: 3,
            loss: Some(f64::MIN_POSITIVE),
            multiply_adds: 9,
            wire,
        }
    }

    #[test]
    fn what_is_packed_comes_back_to_the_bit() {
        for how in [Collect::Sum, Collect::Each] {
            let mut leaf = Leaf::default();
            leaf.fold(5, reply(&[-0.0, f32::MIN_POSITIVE, 1.0]), how).unwrap();
            leaf.fold(2, reply(&[0.1, -7.5, 2.0]), how).unwrap();
            leaf.got.close();
            let (bytes, mut sum) = (pack(&leaf), Collected::default());
            let back: Leaf = unpack(&bytes).unwrap();
            assert_eq!(pack(&back), bytes);
            sum.join(back).unwrap();
            assert_eq!(
                (&sum.from, sum.replies, sum.bytes_up, sum.multiply_adds),
                (&vec![5, 2], 2, leaf.got.bytes_up, 18)
            );
            assert_eq!(sum.loss, leaf.got.loss);
            assert_eq!(sum.sealed, leaf.got.sealed);
            if how == Collect::Sum {
                assert_eq!(sum.sum("model").unwrap().mean().unwrap(), leaf.got.sum("model").unwrap().mean().unwrap());
            } else {
                assert_eq!(sum.each[1].1.parts[0].data.data(), [0.1, -7.5, 2.0]);
            }
            for cut in [0, 9, bytes.len() - 1] {
                assert!(unpack::<Leaf>(&bytes[..cut]).is_err());
            }
            assert!(unpack::<Leaf>(&[&bytes[..], &[0]].concat()).is_err());
        }
    }
}
