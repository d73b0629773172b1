//! Convolutions against plain loops in f64, on random shapes, on every instruction set here.

use proptest::prelude::*;

use super::conv::{Algorithm, Conv, Shape};
use super::map::Map;
use crate::nn::kernels::Isa;
use crate::nn::kernels::check::{Block, near, noise};

/// A convolution to try: shape, image sides, samples, extra border of input and output gradient.
#[derive(Clone, Debug)]
struct Case {
    shape: Shape,
    side: [usize; 2],
    images: usize,
    extra: usize,
    raw: bool,
}

impl Case {
    /// Sides of the output; maps of input, output and their gradients.
    fn maps(&self) -> ([usize; 2], [Map; 4]) {
        let s = self.shape;
        let out = self.side.map(|side| (side + 2 * s.padding - s.kernel) / s.stride + 1);
        let mut x = Map::new(&[s.inputs, self.side[0], self.side[1]], s.padding + self.extra);
        if self.raw {
            x.cp = x.c;
        }
        let y = Map::new(&[s.outputs, out[0], out[1]], self.extra);
        let border = s.grad_border([(self.side[0], out[0]), (self.side[1], out[1])]);
        (out, [x, y, Map { border, ..y }, Map { cp: s.inputs.next_multiple_of(16), ..x }])
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let numbers = (1..4usize, 1..24usize, 1..24usize, 1..6usize, 1..4usize, 0..4usize);
    (numbers, [1..9usize, 1..9usize], 1..3usize, 0..2usize, any::<bool>()).prop_filter_map(
        "the window fits",
        |((groups, i, o, kernel, stride, padding), side, images, extra, raw)| {
            let wide = if i > 20 { 4 } else { 1 };
            let (inputs, outputs) = (groups * i, groups * o * wide);
            let shape = Shape { inputs, outputs, kernel, stride, padding, groups };
            let fits = side.iter().all(|s| s + 2 * padding >= kernel);
            fits.then_some(Case { shape, side, images, extra, raw })
        },
    )
}

/// Windows that overlap in rows of a length that the tiles for them take, one pixel or two apart.
fn overlapping() -> impl Strategy<Value = Case> {
    let columns = prop::sample::select(&[7usize, 8, 10, 14, 16, 20, 24][..]);
    let channels = (prop::sample::select(&[1usize, 3, 4, 8, 16, 20, 36][..]), 1..72usize);
    (channels, columns, 1..4usize, 1..3usize, 1..7usize, 1..4usize, 0..2usize, any::<bool>()).prop_map(
        |((inputs, outputs), columns, padding, stride, height, images, extra, raw)| {
            let shape = Shape { inputs, outputs, kernel: 3, stride, padding, groups: 1 };
            let side = [height * stride + 2, (stride * (columns - 1) + 3).saturating_sub(2 * padding).max(1)];
            Case { shape, side, images, extra, raw }
        },
    )
}

/// Channels in thirty-twos, for the matrix unit: windows up to three pixels apart over maps of any side.
fn tiled() -> impl Strategy<Value = Case> {
    let channels = prop::sample::select(&[32usize, 64, 96][..]);
    let rest = (1..4usize, 0..3usize, 1..6usize, 0..2usize);
    (channels.clone(), channels, 1..6usize, [1..12usize, 1..37usize], rest).prop_filter_map(
        "window larger than the padded map",
        |(inputs, outputs, kernel, side, (stride, padding, images, extra))| {
            let shape = Shape { inputs, outputs, kernel, stride, padding, groups: 1 };
            let fits = side.iter().all(|s| s + 2 * padding >= kernel);
            fits.then_some(Case { shape, side, images, extra, raw: false })
        },
    )
}

/// Calls `f(output index, input index, weight index)` for every product of a sample.
fn products(s: &Shape, x: [usize; 2], y: [usize; 2], mut f: impl FnMut(usize, usize, usize)) {
    let (per_in, per_out) = (s.inputs / s.groups, s.outputs / s.groups);
    for o in 0..s.outputs {
        for (oy, ox) in (0..y[0]).flat_map(|a| (0..y[1]).map(move |b| (a, b))) {
            for c in 0..per_in {
                for (ky, kx) in (0..s.kernel).flat_map(|a| (0..s.kernel).map(move |b| (a, b))) {
                    let (iy, ix) = (oy * s.stride + ky, ox * s.stride + kx);
                    let inside = iy >= s.padding && ix >= s.padding && iy < x[0] + s.padding && ix < x[1] + s.padding;
                    if inside {
                        let input = o / per_out * per_in + c;
                        let from = (input * x[0] + iy - s.padding) * x[1] + ix - s.padding;
                        let weight = ((o * per_in + c) * s.kernel + ky) * s.kernel + kx;
                        f((o * y[0] + oy) * y[1] + ox, from, weight);
                    }
                }
            }
        }
    }
}

fn packed(map: &Map, images: usize, values: &[f32]) -> Block {
    let mut all = vec![0.0; map.image() * images];
    for (to, from) in all.chunks_exact_mut(map.image()).zip(values.chunks_exact(map.c * map.pixels())) {
        map.pack(from, to);
    }
    Block::new(&all)
}

fn unpacked(map: &Map, block: &Block) -> Vec<f32> {
    let mut all = Vec::new();
    for image in block.values().chunks_exact(map.image()) {
        let mut out = vec![0.0; map.c * map.pixels()];
        map.unpack(image, &mut out);
        all.extend(out);
    }
    all
}

/// Root mean square of the error over that of the values; at most `limit`.
fn apart(what: &str, got: &[f32], want: &[f64], limit: f64) -> f64 {
    let (error, size) = got.iter().zip(want).fold((0.0, 0.0), |(e, s), (g, w)| {
        let off = f64::from(*g) - w;
        (e + off * off, s + w * w)
    });
    let apart = (error / size).sqrt();
    assert!(apart <= limit, "{what}: {apart:.1e} apart, at most {limit:.0e}");
    apart
}

/// Gives the relative errors of output, input gradient and weight gradient.
fn try_conv(case: &Case, isa: Isa, algorithm: Algorithm) -> [f64; 3] {
    let (s, n) = (case.shape, case.images);
    let (out, [xm, ym, gym, gxm]) = case.maps();
    let conv = Conv::new(s, isa, xm, ym, gym, Some(gxm), algorithm);
    assert_eq!(conv.minimal.is_some(), algorithm == Algorithm::Winograd, "{case:?}: which algorithm runs");
    let mut scratch = Block::new(&vec![f32::NAN; conv.scratch()]);

    let area = s.kernel * s.kernel;
    let (x_len, y_len) = (s.inputs * xm.pixels(), s.outputs * ym.pixels());
    let x = noise(n * x_len, 1);
    let w = noise(s.outputs * s.inputs / s.groups * area, 2);
    let (bias, gy) = (noise(s.outputs, 3), noise(n * y_len, 4));
    let mut want_y: Vec<f64> = (0..n * y_len).map(|i| f64::from(bias[i / ym.pixels() % s.outputs])).collect();
    let (mut want_gx, mut want_gw) = (vec![0.5f64; n * x_len], vec![0.0f64; w.len()]);
    for k in 0..n {
        products(&s, case.side, out, |o, i, j| {
            want_y[k * y_len + o] += f64::from(x[k * x_len + i]) * f64::from(w[j]);
            want_gx[k * x_len + i] += f64::from(gy[k * y_len + o]) * f64::from(w[j]);
            want_gw[j] += f64::from(gy[k * y_len + o]) * f64::from(x[k * x_len + i]);
        });
    }
    want_y.iter_mut().for_each(|v| *v = v.max(0.0));

    let mut pw = vec![0.0; conv.packed()];
    conv.pack(&w, Some(&bias), &mut pw);
    let mut pb = vec![0.0; conv.packed_back()];
    conv.pack_back(&w, &mut pb);
    let (mut pw, mut pb, mut gw) = (Block::new(&pw), Block::new(&pb), Block::new(&vec![0.0; conv.packed_gradient()]));
    let (mut xb, mut gyb) = (packed(&xm, n, &x), packed(&gym, n, &gy));
    let mut yb = packed(&ym, n, &vec![0.0; n * y_len]);
    let mut gxb = packed(&gxm, n, &vec![0.5; n * x_len]);
    let tiles = conv.gradient_tiles();
    // SAFETY: blocks of the maps' sizes with readable margins; one thread.
    unsafe {
        conv.forward(xb.at(), yb.at(), pw.at(), true, true, n, scratch.at());
        conv.input_gradient(gyb.at(), gxb.at(), pb.at(), true, n, scratch.at());
        conv.weight_gradient(xb.at(), gyb.at(), gw.at(), 0..tiles / 2, n, scratch.at());
        conv.weight_gradient(xb.at(), gyb.at(), gw.at(), tiles / 2..tiles, n, scratch.at());
    }
    scratch.values();
    let mut grad = vec![f32::NAN; w.len()];
    conv.unpack(gw.values(), &mut grad);
    let results = [
        ("output", unpacked(&ym, &yb), want_y),
        ("input gradient", unpacked(&gxm, &gxb), want_gx),
        ("weight gradient", grad, want_gw),
    ];
    results.map(|(what, got, want)| {
        // Long sums round by more than the bound for one value.
        if algorithm == Algorithm::Direct && s.inputs <= 64 {
            near(what, &got, &want);
        }
        apart(what, &got, &want, 2e-5)
    })
}

/// The network's own convolutions run on the matrix unit, those that would leave it idle do not.
#[test]
fn the_matrix_unit_takes_convolutions_of_whole_tiles() {
    if !Isa::available().contains(&Isa::Amx) {
        return;
    }
    for (inputs, outputs, side, stride, takes) in [
        (64, 64, 32, 1, true),
        (64, 128, 32, 2, true),
        (256, 256, 8, 1, true),
        (512, 512, 7, 1, true),
        (512, 512, 4, 1, true),
        (16, 32, 32, 2, false),
        (48, 64, 32, 1, false),
        (80, 96, 32, 1, false),
        (64, 64, 1, 1, false),
    ] {
        let shape = Shape { inputs, outputs, kernel: 3, stride, padding: 1, groups: 1 };
        let x = Map::new(&[inputs, side, side], 1);
        let y = Map::new(&[outputs, side.div_ceil(stride), side.div_ceil(stride)], 1);
        let conv = |isa, algorithm| Conv::new(shape, isa, x, y, y, Some(x), algorithm);
        assert_eq!(conv(Isa::Amx, Algorithm::Direct).tiles.is_some(), takes, "{shape:?} at {side}");
        let fastest = conv(Isa::Amx, Algorithm::Fastest);
        assert_eq!(fastest.tiles.is_some(), takes);
        assert_eq!(fastest.minimal.is_some(), !takes && stride == 1 && inputs == 80, "{shape:?} at {side}");
        assert!(conv(Isa::Avx512, Algorithm::Direct).tiles.is_none());
        assert!(conv(Isa::Amx, Algorithm::Winograd).tiles.is_none());
    }
}

/// Maps too large for one band of rows, images that take turns in bands, and images that fill no group or pass.
#[test]
fn the_matrix_unit_takes_large_maps_band_by_band() {
    if !Isa::available().contains(&Isa::Amx) {
        return;
    }
    let cases = [
        ([20, 30], 1, 2, 160),
        ([40, 60], 2, 1, 160),
        ([28, 14], 1, 3, 160),
        ([60, 4], 1, 5, 160),
        ([9, 9], 1, 7, 256),
    ];
    for (side, stride, images, inputs) in cases {
        let shape = Shape { inputs, outputs: 32, kernel: 3, stride, padding: 1, groups: 1 };
        let case = Case { shape, side, images, extra: 1, raw: false };
        let [x, y, gy, gx] = case.maps().1;
        assert!(Conv::new(shape, Isa::Amx, x, y, gy, Some(gx), Algorithm::Direct).tiles.is_some(), "{case:?}");
        try_conv(&case, Isa::Amx, Algorithm::Direct);
    }
}

/// What the README says of Winograd's rounding, beside the direct sum's: `-- --nocapture` prints both.
#[test]
#[allow(clippy::print_stderr, reason = "the errors are the result")]
fn winograd_equals_plain_sums_to_its_rounding() {
    let show = |errors: [f64; 3]| errors.map(|e| format!("{e:.1e}")).join(" ");
    for (inputs, outputs, side) in [(64, 96, [8, 4]), (80, 64, [4, 12]), (256, 64, [8, 8])] {
        let shape = Shape { inputs, outputs, kernel: 3, stride: 1, padding: 1, groups: 1 };
        for (extra, isa) in Isa::available().into_iter().enumerate() {
            let case = Case { shape, side, images: 9, extra: extra % 2, raw: false };
            let direct = try_conv(&case, isa, Algorithm::Direct);
            let winograd = try_conv(&case, isa, Algorithm::Winograd);
            eprintln!(
                "{inputs} -> {outputs}, {isa}: output, dx, dw: direct {}, Winograd {}",
                show(direct),
                show(winograd)
            );
            assert!(winograd.iter().all(|e| *e < 1e-5), "{winograd:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn convolutions_equal_plain_loops_and_stay_inside_their_operands(case in cases()) {
        for isa in Isa::available() {
            try_conv(&case, isa, Algorithm::Direct);
        }
    }

    #[test]
    fn overlapping_windows_equal_plain_loops(case in overlapping()) {
        for isa in Isa::available() {
            try_conv(&case, isa, Algorithm::Direct);
        }
    }

    #[test]
    fn the_matrix_unit_equals_plain_loops(case in tiled()) {
        if let Some(isa) = Isa::available().into_iter().find(|isa| *isa == Isa::Amx) {
            try_conv(&case, isa, Algorithm::Direct);
        }
    }
}
