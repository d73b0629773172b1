//! τ-normalisation of a long-tailed classifier: Kang et al., *Decoupling Representation and Classifier for Long-Tailed
//! Recognition*, ICLR 2020, section 4.2: at test time `w_c ← w_c / ‖w_c‖^τ`, and the bias is dropped, as there.

use crate::error::{Error, Result};
use crate::nn::{Net, Params};

/// The model with its classifier's rows repaired; `tau` in `[0, 1]`, 0 leaves everything, the bias too.
pub fn tau_normalised(net: &Net, model: &Params, tau: f32) -> Result<Params> {
    if tau == 0.0 {
        return Ok(model.clone());
    }
    let none = || Error::input("finetune.tau_norm: the network does not end in a linear classifier");
    let head = net.classifier().ok_or_else(none)?;
    let mut out = model.clone();
    let data = out.data_mut();
    for row in data[head.weight.clone()].chunks_exact_mut(head.features.max(1)) {
        let norm = row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
        // A row of zeros has no direction to keep.
        let scale = if norm > 0.0 { norm.powf(-f64::from(tau)) } else { 1.0 };
        row.iter_mut().for_each(|w| *w = (f64::from(*w) * scale) as f32);
    }
    head.bias.into_iter().for_each(|b| data[b].fill(0.0));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Key;
    use crate::model::Head;
    use crate::model::mlp::Mlp;

    #[test]
    fn rows_have_length_one_at_tau_one_their_root_at_a_half_and_zero_changes_nothing() {
        let net = Mlp { hidden: vec![5] }.build([1, 2, 2], Head::Classes(3)).unwrap();
        let model = net.init(Key::from_seed(1));
        let head = net.classifier().unwrap();
        let lengths = |p: &Params| -> Vec<f64> {
            let rows = p.data()[head.weight.clone()].chunks_exact(head.features);
            rows.map(|r| r.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt()).collect()
        };
        assert_eq!(tau_normalised(&net, &model, 0.0).unwrap().data(), model.data());
        let before = lengths(&model);
        let (one, half) = (tau_normalised(&net, &model, 1.0).unwrap(), tau_normalised(&net, &model, 0.5).unwrap());
        assert!(lengths(&one).iter().all(|l| (l - 1.0).abs() < 1e-6));
        assert!(lengths(&half).iter().zip(before).all(|(l, b)| (l - b.sqrt()).abs() < 1e-6));
        assert!(one.data()[head.bias.clone().unwrap()].iter().all(|b| *b == 0.0));
        let body = 0..head.weight.start;
        assert_eq!(one.data()[body.clone()], model.data()[body]);
    }
}
