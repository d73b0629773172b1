//! Sizes, windows and positions.

use super::super::golden::{folders, json};
use super::tower::{Windows, patch_places};
use super::*;

#[test]
fn pictures_are_resized_as_the_reference_does_at_real_sizes() {
    let Some((_, root)) = folders("qwen2_5_vl").into_iter().next_back() else { return };
    let path = root.join("tables/qwen2_5_vl_resize.json");
    if !path.is_file() {
        return;
    }
    for row in json(&path).as_array().unwrap() {
        let n = |key: &str| row[key].as_u64().unwrap() as usize;
        let how = PictureConfig {
            min_pixels: Some(n("min_pixels")),
            max_pixels: Some(n("max_pixels")),
            ..PictureConfig::default()
        };
        let settings = serde_json::json!({ "patch_size": n("factor") / 2, "merge_size": 2 });
        let resize = Resize::from_json(&settings, &how).unwrap();
        let (h, w) = resize.size((n("height"), n("width"))).unwrap();
        assert_eq!(serde_json::json!([h, w]), row["resized"], "{row}");
    }
}

/// By hand: a picture of 3 × 5 cells in windows of 2.
#[test]
fn windows_are_ragged_at_the_right_and_at_the_bottom() {
    let windows = Windows::new([3, 5], 2, 4);
    assert_eq!(windows.order, [0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14]);
    assert_eq!(windows.sizes, [16, 16, 8, 8, 8, 4]);
    assert_eq!(patch_places([2, 4], 2), [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]);
}

#[test]
fn words_count_on_and_places_of_a_picture_have_its_rows_and_columns() {
    let slot = 2..8;
    let got = places(9, std::slice::from_ref(&slot), &[[2, 3]]);
    let want = [[0; 3], [1; 3], [2, 2, 2], [2, 2, 3], [2, 2, 4], [2, 3, 2], [2, 3, 3], [2, 3, 4], [5; 3]];
    assert_eq!(got.axes, want);
    assert_eq!(got.shift, -3);
}
