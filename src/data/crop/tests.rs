//! Against torchvision on Pillow images, by `tests/golden/crop` (its `make.py` says how), and the laws of the draws.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::jitter::Change;
use super::*;
use crate::nn::kernels::Isa;
use crate::nn::kernels::resample::{Area, Resampler};

type Golden = BTreeMap<String, Tensor>;

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/crop/crop.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect()
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn integers(tensor: &Tensor) -> Vec<usize> {
    numbers(tensor).into_iter().map(|v| v as usize).collect()
}

/// Every case of a kind: its parameters, its image and the result.
fn cases<'a>(
    golden: &'a Golden,
    kind: &'a str,
) -> impl Iterator<Item = (String, Vec<usize>, &'a Tensor, Vec<u8>)> + 'a {
    let of_kind = golden.iter().filter(move |(n, _)| n.starts_with(kind) && n.ends_with(".parameters"));
    of_kind.map(|(name, parameters)| {
        let case = name.strip_suffix(".parameters").unwrap();
        let image = &golden[&format!("image.{}", case.split('.').nth(1).unwrap())];
        (case.to_string(), integers(parameters), image, bytes(&golden[&format!("{case}.result")]))
    })
}

fn apply(image: &Tensor, cut: &Cut, isa: Isa) -> Vec<u8> {
    let (size, pixels) = ((image.dims()[0], image.dims()[1]), bytes(image));
    let keep = cut.frame.keep;
    let mut out = vec![0; 3 * keep.height * keep.width];
    let area = Area { pixels: &pixels, held: Window::all(size.0, size.1), frame: cut.frame };
    Resampler::new(isa).planes(area, cut.mirror, &mut out).unwrap();
    // And from no more than what is needed.
    let (needs, mut again) = (cut.frame.needs(), vec![0; out.len()]);
    let row = |y: usize| &pixels[3 * (y * size.1 + needs.left)..][..3 * needs.width];
    let part: Vec<u8> = (needs.top..needs.top + needs.height).flat_map(row).copied().collect();
    let area = Area { pixels: &part, held: needs, frame: cut.frame };
    Resampler::new(isa).planes(area, cut.mirror, &mut again).unwrap();
    assert_eq!(out, again);
    out
}

#[test]
fn crops_resized_and_mirrored_are_torchvisions_bytes_on_every_instruction_set() {
    let (golden, mut seen) = (golden(), 0);
    for (case, p, image, want) in cases(&golden, "crop.") {
        let [top, left, height, width, side, mirror] = p[..] else { panic!("{case}") };
        let (from, keep) = (Window { top, left, height, width }, Window::all(side, side));
        let frame = Frame { from, to: (side, side), keep, filter: Filter::Bilinear };
        let cut = Cut { frame, mirror: mirror == 1, jitter: Jitter::default() };
        for isa in Isa::available() {
            assert_eq!(apply(image, &cut, isa), want, "{case} {isa}");
        }
        seen += 1;
    }
    assert_eq!(seen, 14);
}

#[test]
fn resize_and_centre_crop_are_torchvisions_bytes() {
    let (golden, mut seen) = (golden(), 0);
    for (case, p, image, want) in cases(&golden, "centre.") {
        let config = CropConfig { resize: p[0], side: p[1], ..CropConfig::default() };
        let cut = config.centre((image.dims()[0], image.dims()[1]));
        for isa in Isa::available() {
            assert_eq!(apply(image, &cut, isa), want, "{case} {isa}");
        }
        seen += 1;
    }
    assert_eq!(seen, 14);
}

#[test]
fn changes_of_colour_are_torchvisions_bytes() {
    let (golden, mut seen) = (golden(), 0);
    let start: Vec<u8> = bytes(&golden["image.even"].permute((2, 0, 1)).unwrap().contiguous().unwrap());
    for (name, steps) in golden.iter().filter(|(n, _)| n.ends_with(".steps")) {
        let mut list = [None; 4];
        for (to, step) in list.iter_mut().zip(numbers(steps).chunks(2)) {
            use Change::*;
            *to = Some(([Brightness, Contrast, Saturation, Hue][step[0] as usize], step[1]));
        }
        let mut got = start.clone();
        Jitter::of(list).apply(&mut got, start.len() / 3);
        assert_eq!(got, bytes(&golden[&name.replace("steps", "result")]), "{name}: {list:?}");
        seen += 1;
    }
    assert_eq!(seen, 12);
}

#[test]
fn a_normalised_crop_is_torchvisions_floats() {
    let golden = golden();
    let crop = bytes(&golden["crop.wide.0.result"]);
    let want: Vec<f32> = golden["normal"].flatten_all().unwrap().to_vec1().unwrap();
    let tables = [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)].map(|(m, s)| crate::data::loader::normal(m, s));
    let got = crop.chunks(24 * 24).zip(&tables).flat_map(|(plane, t)| plane.iter().map(|v| t[usize::from(*v)]));
    assert_eq!(got.collect::<Vec<f32>>(), want);
}

#[test]
fn from_the_same_draws_comes_the_same_crop_and_after_ten_the_same_middle() {
    let (golden, mut fallbacks) = (golden(), 0);
    for (name, case) in golden.iter().filter(|(n, _)| n.ends_with(".case")) {
        let [rows, columns, top, left, height, width] = integers(case)[..] else { panic!("{name}") };
        let draws = numbers(&golden[&name.replace("case", "draws")]);
        let mut found = draws.chunks(2).map(|d| attempt((rows, columns), d[0], d[1]));
        let last = found.next_back().unwrap();
        assert!(found.all(|f| f.is_none()), "{name}: torchvision went on");
        let got = match last {
            Some((height, width)) => Window { top: 0, left: 0, height, width },
            None => middle((rows, columns), CropConfig::default().ratio),
        };
        assert_eq!(got, Window { top, left, height, width }, "{name}");
        assert_eq!(draws.len() == 20 && last.is_none(), last.is_none(), "{name}: ten attempts");
        fallbacks += usize::from(last.is_none());
    }
    assert!(fallbacks >= 8, "{fallbacks}");
}

/// The greatest distance between the distribution of `values` and the one with these quantiles, 0 to 100 %.
fn distance(mut values: Vec<f64>, quantiles: &[f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let share = |n: usize| n as f64 / values.len() as f64;
    let one = |(i, q): (usize, &f64)| {
        // Where many values are equal, any share between below and up to the quantile is right.
        let (below, upto) = (values.partition_point(|v| v < q), values.partition_point(|v| v <= q));
        let want = i as f64 / 100.0;
        (share(below) - want).max(want - share(upto)).max(0.0)
    };
    quantiles.iter().enumerate().map(one).fold(0.0, f64::max)
}

#[test]
fn crops_and_colours_are_distributed_as_torchvisions() {
    let (golden, config) = (golden(), CropConfig::default());
    for name in ["photo", "panorama"] {
        let [rows, columns] = integers(&golden[&format!("drawn.{name}.size")])[..] else { panic!("{name}") };
        let mut columns_of: [Vec<f64>; 4] = Default::default();
        for i in 0..20_000 {
            let Window { top, left, height, width } =
                config.random((rows, columns), Key::from_seed(1).fold(Purpose::Item, i)).frame.from;
            let (h, w) = (height as f64, width as f64);
            let place = |at: usize, room: usize| at as f64 / room.max(1) as f64;
            let row = [
                h * w / (rows * columns) as f64,
                (w / h).ln(),
                place(top, rows - height),
                place(left, columns - width),
            ];
            columns_of.iter_mut().zip(row).for_each(|(c, v)| c.push(v));
        }
        let quantiles = numbers(&golden[&format!("drawn.{name}.quantiles")]);
        for ((c, values), q) in columns_of.into_iter().enumerate().zip(quantiles.chunks(101)) {
            let off = distance(values, q);
            assert!(off < 0.015, "{name}, {c}: {off}");
        }
    }
    let jitter = JitterConfig { brightness: 0.4, contrast: 0.3, saturation: 0.2, hue: 0.1 };
    let mut values: [Vec<f64>; 4] = Default::default();
    let mut firsts = [0; 4];
    for i in 0..20_000 {
        let steps = jitter.draw(&mut Key::from_seed(2).fold(Purpose::Item, i).rng()).steps();
        steps.iter().flatten().for_each(|(change, factor)| values[*change as usize].push(*factor));
        firsts[steps[0].unwrap().0 as usize] += 1;
    }
    for (values, q) in values.into_iter().zip(numbers(&golden["colours.quantiles"]).chunks(101)) {
        assert!(distance(values, q) < 0.015);
    }
    assert!(firsts.iter().all(|n| (4_700..5_300).contains(n)), "every change is first as often: {firsts:?}");
}

#[test]
fn half_of_the_crops_are_mirrored_and_a_key_decides_all() {
    let config = CropConfig::default();
    let cut = |i: u64| config.random((375, 500), Key::from_seed(3).fold(Purpose::Item, i));
    let mirrored = (0..4_000).filter(|&i| cut(i).mirror).count();
    assert!((1_900..2_100).contains(&mirrored), "{mirrored}");
    assert_eq!(cut(5), cut(5));
    assert_ne!(cut(5).frame, cut(6).frame);
    let never = CropConfig { flip: 0.0, jitter: JitterConfig::none(), ..CropConfig::default() };
    let plain = never.random((375, 500), Key::from_seed(3));
    assert_eq!((plain.mirror, plain.jitter), (false, Jitter::default()));
}

#[test]
fn every_crop_lies_inside_its_picture_and_centres_have_the_side() {
    let config = CropConfig { scale: [0.01, 1.0], ratio: [0.1, 10.0], ..CropConfig::default() };
    for (i, size) in [(1, 1), (1, 500), (500, 1), (2, 3), (375, 500), (17, 4000)].into_iter().enumerate() {
        for n in 0..200 {
            let w = config.random(size, Key::from_seed(i as u64).fold(Purpose::Item, n)).frame.from;
            assert!(w.height > 0 && w.top + w.height <= size.0 && w.width > 0 && w.left + w.width <= size.1, "{w:?}");
        }
        let Frame { to, keep, .. } = config.centre(size).frame;
        assert!(to.0.min(to.1) == 256 && (keep.height, keep.width) == (224, 224), "{to:?} {keep:?}");
    }
}

#[test]
fn values_without_a_meaning_are_refused_by_their_key() {
    let refuse = |c: CropConfig| c.check("data.crop").unwrap_err().to_string();
    let usual = CropConfig::default;
    usual().check("data.crop").unwrap();
    assert!(refuse(CropConfig { side: 0, ..usual() }).contains("data.crop.side = 0"));
    assert!(refuse(CropConfig { resize: 200, ..usual() }).contains("data.crop.resize = 200: at least side, 224"));
    assert!(refuse(CropConfig { scale: [0.0, 1.0], ..usual() }).contains("data.crop.scale = [0.0, 1.0]"));
    assert!(refuse(CropConfig { ratio: [2.0, 1.0], ..usual() }).contains("data.crop.ratio"));
    assert!(refuse(CropConfig { flip: f64::NAN, ..usual() }).contains("data.crop.flip = NaN: a probability"));
    let jitter = JitterConfig { hue: 0.6, ..JitterConfig::none() };
    assert!(refuse(CropConfig { jitter, ..usual() }).contains("data.crop.jitter.hue = 0.6: from 0 to 0.5"));
    let typo = toml::from_str::<CropConfig>("sides = 3").unwrap_err().to_string();
    assert!(typo.contains("sides") && typo.contains("resize"), "{typo}");
}
