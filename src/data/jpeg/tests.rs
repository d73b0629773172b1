//! Against Pillow, by `tests/golden/jpeg` (its `make.py` says how), and on files that were damaged.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use super::*;
use crate::key::Key;

type Golden = BTreeMap<String, Tensor>;

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/jpeg/jpeg.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect()
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Names of tensors behind a prefix.
fn names<'a>(golden: &'a Golden, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    golden.keys().filter_map(move |n| n.strip_prefix(prefix))
}

fn decoded(file: &[u8], window: Window, side: usize, isa: Isa) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    Jpeg::open(file)?.decode(window, side, &mut Memory::new(isa), &mut out)?;
    out.truncate(3 * window.height * window.width);
    Some(out)
}

#[test]
fn whole_pictures_are_pillows_bytes_on_every_instruction_set() {
    let golden = golden();
    for name in names(&golden, "file.") {
        let (file, want) = (bytes(&golden[&format!("file.{name}")]), &golden[&format!("whole.{name}")]);
        let all = Window::all(want.dims()[0], want.dims()[1]);
        if name == "small" {
            // Three columns of colour are the least that has Pillow's filter; this one has three.
            assert_eq!(Jpeg::open(&file).unwrap().size(), (5, 6));
        }
        for isa in Isa::available() {
            assert_eq!(decoded(&file, all, 8, isa).unwrap(), bytes(want), "{name} {isa}");
        }
    }
    assert_eq!(names(&golden, "file.").count(), 10);
}

#[test]
fn a_part_is_cut_from_the_whole() {
    let (golden, mut rng) = (golden(), Key::from_seed(1).rng());
    for name in names(&golden, "file.") {
        let (file, whole) = (bytes(&golden[&format!("file.{name}")]), &golden[&format!("whole.{name}")]);
        let (rows, columns) = (whole.dims()[0], whole.dims()[1]);
        for _ in 0..30 {
            let (top, left) = (rng.below(rows), rng.below(columns));
            let (height, width) = (1 + rng.below(rows - top), 1 + rng.below(columns - left));
            let want = whole.narrow(0, top, height).unwrap().narrow(1, left, width).unwrap().contiguous().unwrap();
            let window = Window { top, left, height, width };
            assert_eq!(decoded(&file, window, 8, Isa::detect()).unwrap(), bytes(&want), "{name} {window:?}");
        }
    }
}

#[test]
fn smaller_pictures_are_those_of_pillows_draft() {
    let (golden, mut seen) = (golden(), 0);
    for case in names(&golden, "draft.") {
        let (name, side) = case.rsplit_once('.').unwrap();
        let (file, side) = (bytes(&golden[&format!("file.{name}")]), side.parse().unwrap());
        let (want, jpeg) = (&golden[&format!("draft.{case}")], Jpeg::open(&file).unwrap());
        if !jpeg.has(side) {
            assert!(["half", "rows"].contains(&name), "{name}");
            continue;
        }
        assert_eq!(jpeg.scaled(side), (want.dims()[0], want.dims()[1]), "{case}");
        let all = Window::all(want.dims()[0], want.dims()[1]);
        for isa in Isa::available() {
            assert_eq!(decoded(&file, all, side, isa).unwrap(), bytes(want), "{case} {isa}");
        }
        seen += 1;
    }
    assert!(seen >= 16, "{seen}");
}

#[test]
fn other_kinds_are_left_to_the_general_decoder() {
    let golden = golden();
    for name in names(&golden, "other.") {
        let file = bytes(&golden[&format!("other.{name}")]);
        assert!(Jpeg::open(&file).is_none(), "{name}");
        let known = name != "cmyk" && name != "rgb";
        assert!(!known || super::super::decode::rgb(&file).is_ok(), "{name}");
    }
    assert_eq!(names(&golden, "other.").count(), 4);
}

#[test]
fn a_damaged_file_gives_pixels_or_none_and_a_cut_one_none() {
    let (golden, mut rng) = (golden(), Key::from_seed(2).rng());
    for name in ["odd", "half", "grey", "best"] {
        let file = bytes(&golden[&format!("file.{name}")]);
        let (rows, columns) = Jpeg::open(&file).unwrap().size();
        let all = Window::all(rows, columns);
        for end in 0..file.len() * 9 / 10 {
            assert!(decoded(&file[..end], all, 8, Isa::detect()).is_none(), "{name} cut at {end}");
        }
        for _ in 0..500 {
            let mut file = file.clone();
            for _ in 0..1 + rng.below(4) {
                let at = rng.below(file.len());
                file[at] = rng.u32() as u8;
            }
            let Some(jpeg) = Jpeg::open(&file) else { continue };
            let (rows, columns) = jpeg.scaled(8);
            let window = Window::all(rows.min(100), columns.min(100));
            let both = [Isa::Portable, Isa::detect()].map(|isa| decoded(&file, window, 8, isa));
            assert_eq!(both[0], both[1], "{name}: damaged bytes are the same on every instruction set");
            for side in [1, 4] {
                let size = jpeg.scaled(side);
                decoded(&file, Window::all(size.0.min(50), size.1.min(50)), side, Isa::detect());
            }
        }
    }
    assert!(Jpeg::open(&[]).is_none() && Jpeg::open(&[0xff, 0xd8, 0xff]).is_none());
}

#[test]
fn a_file_that_claims_an_enormous_size_is_left_alone() {
    let mut file = bytes(&golden()["file.grey"]);
    let at = file.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    file[at + 5..at + 9].fill(0xff);
    assert!(Jpeg::open(&file).is_none());
}
