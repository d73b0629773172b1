//! Slices and positions.

use super::super::golden::{apart, flat, folders, json};
use super::super::pixels::tables;
use super::*;
use candle_core::Device;

fn slicing(most: usize) -> Slicing {
    Slicing { most, scale: 448, patch: 14, numbered: true, tables: Box::new(tables(1.0 / 255.0, [0.5; 3], [0.5; 3])) }
}

#[test]
fn pictures_are_sliced_as_the_reference_does_at_real_sizes() {
    let Some((_, root)) = folders("minicpmv").into_iter().next_back() else { return };
    let path = root.join("tables/minicpmv_slices.json");
    if !path.is_file() {
        return;
    }
    for row in json(&path).as_array().unwrap() {
        let n = |key: &str| row[key].as_u64().unwrap() as usize;
        let sizes = slicing(n("max_slice_nums")).sizes((n("width"), n("height")));
        assert_eq!(serde_json::json!(sizes.source), row["source_wh"], "{row}");
        assert_eq!(serde_json::json!(sizes.slices.map(|(grid, _)| grid)), row["grid_cols_rows"], "{row}");
        assert_eq!(serde_json::json!(sizes.slices.map(|(_, size)| size)), row["slice_wh"], "{row}");
    }
}

/// By hand: a square just above the scale gets one column of two rows.
#[test]
fn a_square_that_is_a_little_too_large_is_cut_across() {
    assert_eq!(slicing(9).sizes((449, 449)).slices.unwrap().0, (1, 2));
    assert_eq!(slicing(9).sizes((448, 448)), slices::Sizes { source: (448, 448), slices: None });
    // Enlarged, never sliced.
    assert_eq!(slicing(1).sizes((2000, 1000)).slices, None);
}

#[test]
fn a_cells_code_has_its_column_first() {
    let Some((_, root)) = folders("minicpmv").into_iter().next_back() else { return };
    let path = root.join("tables/minicpmv_sincos.safetensors");
    if !path.is_file() {
        return;
    }
    let want = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let got = resampler::sines([4, 5], 256, &Device::Cpu).unwrap();
    assert!(apart(&flat(&got), &flat(&want["pos_embed_256_first_4x5"])) <= 1e-6);
    let all = resampler::sines([70, 70], 256, &Device::Cpu).unwrap();
    let row: Vec<u32> = [0, 23, 46, 69].map(|c| 69 * 70 + c).to_vec();
    let row = all.index_select(&Tensor::new(row, &Device::Cpu).unwrap(), 0).unwrap();
    let off = apart(&flat(&row), &flat(&want["pos_embed_256_row_69"]));
    assert!(off <= 1e-5, "{off}");
}
