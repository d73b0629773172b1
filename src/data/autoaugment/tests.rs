//! Against Pillow, torchvision and numpy, by `tests/golden/views` (its `make.py` says how), and the laws of the draws.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{Device, Tensor};

use super::*;

/// As numbered and named in `make.py`.
const OPS: [(&str, Op); 14] = [
    ("ShearX", ShearX),
    ("ShearY", ShearY),
    ("TranslateX", TranslateX),
    ("TranslateY", TranslateY),
    ("Rotate", Rotate),
    ("Color", Color),
    ("Posterize", Posterize),
    ("Solarize", Solarize),
    ("Contrast", Contrast),
    ("Sharpness", Sharpness),
    ("Brightness", Brightness),
    ("AutoContrast", AutoContrast),
    ("Equalize", Equalize),
    ("Invert", Invert),
];

fn golden() -> BTreeMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/views/views.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect()
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_operation_gives_pillows_bytes() {
    let (golden, mut scratch, mut seen) = (golden(), Vec::new(), BTreeMap::new());
    for (name, want) in golden.iter().filter(|(n, _)| n.starts_with("auto.") && n.ends_with(".result")) {
        let [_, image, op, number, _] = name.split('.').collect::<Vec<_>>()[..] else { panic!("{name}") };
        let magnitude = floats(&golden[&format!("auto.{image}.{op}.{number}.magnitude")])[0];
        let start = &golden[&format!("auto.{image}")];
        let shape = start.dims().try_into().unwrap();
        let mut got = bytes(start);
        let (_, op) = OPS.into_iter().find(|(n, _)| *n == op).unwrap();
        op.apply(magnitude, &mut got, shape, &mut scratch);
        let want = bytes(want);
        let wrong = got.iter().zip(&want).filter(|(a, b)| a != b).count();
        assert_eq!(wrong, 0, "{name} ({magnitude}): {wrong} of {} bytes", want.len());
        *seen.entry(name.split('.').nth(2).unwrap()).or_insert(0) += 1;
    }
    assert!(seen.len() == 14 && seen.values().all(|&n| n >= 5), "{seen:?}");
}

#[test]
fn magnitudes_are_numpys_bit_for_bit_and_the_policy_is_torchvisions() {
    let golden = golden();
    for (name, op) in OPS {
        let got: Vec<f64> = (0..10).map(|level| op.magnitude(level)).collect();
        match golden.get(&format!("levels.{name}")) {
            Some(want) => assert_eq!(got, floats(want), "{name}"),
            None => assert_eq!(got, [0.0; 10], "{name}"),
        }
    }
    let number = |op: Op| OPS.iter().position(|(_, o)| *o == op).unwrap() as f64;
    let level = |op: Op, level: usize| if matches!(op, AutoContrast | Equalize | Invert) { -1.0 } else { level as f64 };
    let flat = POLICY.iter().flatten().flat_map(|&(op, p, l)| [number(op), p, level(op, l)]);
    assert_eq!(flat.collect::<Vec<_>>(), floats(&golden["policy"]));
}

#[test]
fn sub_policies_signs_and_places_are_drawn_evenly_and_operations_by_their_probabilities() {
    let (n, mut counts, mut negative, mut places) = (100_000u64, BTreeMap::new(), 0, BTreeSet::new());
    for seed in 0..n {
        let draw = Draw::new([8, 6], Key::from_seed(seed));
        places.insert(draw.hole);
        for (op, magnitude) in draw.ops.into_iter().flatten() {
            *counts.entry(format!("{op:?}")).or_insert(0.0) += 1.0;
            negative += i32::from(op == TranslateY && magnitude < 0.0);
            assert!(op.signed() || magnitude >= 0.0, "{op:?} {magnitude}");
        }
    }
    let mut expected = BTreeMap::new();
    for (op, p, _) in POLICY.iter().flatten() {
        *expected.entry(format!("{op:?}")).or_insert(0.0) += p * n as f64 / 25.0;
    }
    assert!(!counts.contains_key("ShearX"), "the policy has none");
    assert_eq!(counts.len(), 13);
    for (op, count) in &counts {
        // Two operations of one sub-policy at most double the variance of one.
        let five_sigma = 5.0 * (2.0 * expected[op]).sqrt();
        assert!((count - expected[op]).abs() < five_sigma, "{op}: {count} for {}", expected[op]);
    }
    assert!((f64::from(negative) / counts["TranslateY"] - 0.5).abs() < 0.03, "{negative}");
    assert_eq!(places.len(), 48, "every pixel is once the middle");
}

#[test]
fn the_strong_view_is_its_drawn_operations_in_order_and_then_a_black_square() {
    let golden = golden();
    let (start, shape) = (bytes(&golden["auto.large"]), [3, 24, 20]);
    let (mut scratch, mut changed) = (Vec::new(), 0);
    for seed in 0..200 {
        let (key, mut got, mut want) = (Key::from_seed(seed), start.clone(), start.clone());
        strong(&mut got, shape, key, &mut scratch).unwrap();
        let draw = Draw::new([24, 20], key);
        draw.ops.into_iter().flatten().for_each(|(op, m)| op.apply(m, &mut want, shape, &mut Vec::new()));
        changed += i32::from(want != start);
        for (i, v) in want.iter_mut().enumerate() {
            let (y, x) = (i % 480 / 20, i % 20);
            let inside = |at: usize, middle: usize| (middle..middle + 16).contains(&(at + 8));
            *v = if inside(y, draw.hole[0]) && inside(x, draw.hole[1]) { 0 } else { *v };
        }
        assert_eq!(got, want, "{draw:?}");
    }
    assert!(changed > 100, "{changed}");
}

#[test]
fn images_that_do_not_fit_are_refused_and_one_pixel_is_not() {
    let refuse = |bytes: usize, shape| strong(&mut vec![9; bytes], shape, Key::from_seed(1), &mut Vec::new());
    assert!(refuse(8, [2, 2, 2]).unwrap_err().to_string().contains("1 or 3 channels, not of 2"));
    assert!(refuse(11, [3, 2, 2]).unwrap_err().to_string().contains("11 bytes with shape [3, 2, 2]"));
    assert!(refuse(0, [3, 0, 2]).is_err());
    for seed in 0..300 {
        let mut image = vec![77; 3];
        strong(&mut image, [3, 1, 1], Key::from_seed(seed), &mut Vec::new()).unwrap();
        assert_eq!(image, [0; 3], "the square covers it");
    }
}
