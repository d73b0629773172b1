//! Kernels by themselves: those that networks in tests do not reach, and the card that stands in for a GPU.

use super::*;
use crate::key::Key;
use crate::nn::dropout;
use crate::nn::engine::cuda::card::{Arg, Card, Memory, Work};
use crate::nn::engine::cuda::{Cut, Engine, Resident, kernels};
use crate::nn::interpreter::{Interpreter, Mode};
use crate::nn::loss;
use crate::nn::optim::OptimiserConfig;
use crate::nn::params::Params;
use crate::nn::session::{Session, Training};

fn put<T: bytemuck::Pod>(card: &mut dyn Card, values: &[T]) -> Arg {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let memory = card.allocate(bytes.len()).unwrap();
    card.write(memory, 0, bytes).unwrap();
    Arg::At(memory, 0)
}

fn get<T: bytemuck::Pod>(card: &mut dyn Card, from: Arg, n: usize) -> Vec<T> {
    let Arg::At(memory, at) = from else { panic!("{from:?}") };
    let mut out = vec![T::zeroed(); n];
    card.read(memory, at, bytemuck::cast_slice_mut(&mut out)).unwrap();
    out
}

fn int(v: usize) -> Arg {
    Arg::Int(v as i32)
}

/// `[rows, classes]` of each client to `[K, classes, R]`.
fn columns<T: Copy + Default>(of: &[T], rows: &[usize], classes: usize) -> Vec<T> {
    let capacity = rows.iter().copied().max().unwrap();
    let (mut out, mut first) = (vec![T::default(); rows.len() * classes * capacity], 0);
    for (k, n) in rows.iter().enumerate() {
        for (r, c) in (0..*n).flat_map(|r| (0..classes).map(move |c| (r, c))) {
            out[(k * classes + c) * capacity + r] = of[(first + r) * classes + c];
        }
        first += n;
    }
    out
}

/// Each of the three closed losses: value and gradient of every client are those of `nn::loss` for its rows alone.
#[test]
fn losses_are_those_of_the_host() {
    let Some(mut card) = card(4) else { return };
    let (rows, classes, capacity) = ([5usize, 0, 3, 4], 6, 5);
    let counts = put(&mut card, &rows.map(|n| n as i32));
    let all: usize = rows.iter().sum();
    let logits: Vec<f32> = noise(all * classes, 1).iter().map(|v| 6.0 * v).collect();
    let labels: Vec<u32> = (0..all as u32).map(|i| i * 5 % 6).collect();
    let weights: Vec<f64> = (0..all).map(|i| 0.5 + i as f64).collect();
    let thin: Vec<f32> = weights.iter().map(|w| *w as f32).collect();
    let (teacher, start) = (noise(all * classes, 3), noise(all * classes, 5));
    let mut q = Vec::new();
    loss::softmax(&teacher, classes, &mut q);
    q[0] = 0.0;
    for kind in 0..4 {
        let z = put(&mut card, &columns(&logits, &rows, classes));
        let gradient = put(&mut card, &columns(&start, &rows, classes));
        let memory = card.allocate(8 * rows.len() * capacity).unwrap();
        let losses = Arg::Fill(memory, 0, memory.bytes);
        let y = put(&mut card, &columns(&labels, &rows, 1));
        let sizes = [int(rows.len()), int(classes), int(capacity)];
        let work = Work::Elements(rows.len() * capacity);
        match kind {
            0 | 1 => {
                let w = put(&mut card, &columns(&weights, &rows, 1));
                let w = if kind == 0 { Arg::Absent } else { w };
                let args = [&[z, y, w, counts], &sizes[..], &[Arg::Float(0.7), gradient, losses]].concat();
                card.launch("cross_entropy", work, &args).unwrap();
            }
            2 => {
                let (q, w) = (put(&mut card, &columns(&q, &rows, classes)), put(&mut card, &columns(&thin, &rows, 1)));
                let how = [Arg::Float(2.5), Arg::Float(0.7), gradient, losses];
                card.launch("kl_divergence", work, &[&[z, q, w, counts], &sizes[..], &how].concat()).unwrap();
            }
            _ => {
                let t = put(&mut card, &columns(&teacher, &rows, classes));
                card.launch("kl_of_logits", work, &[&[z, t, counts], &sizes[..], &[gradient, losses]].concat())
                    .unwrap();
            }
        }
        let (mut want, mut totals, mut first) = (start.clone(), Vec::new(), 0);
        for n in rows {
            let (of, own) = (first * classes..(first + n) * classes, first..first + n);
            let (z, g) = (&logits[of.clone()], &mut want[of.clone()]);
            totals.push(match kind {
                0 => loss::cross_entropy(z, &labels[own], classes, 0.7, g),
                1 => loss::weighted_cross_entropy(z, &labels[own.clone()], &weights[own], classes, 0.7, g),
                2 => loss::kl_divergence(z, &q[of], &thin[own], classes, 2.5, 0.7, g),
                _ => loss::kl_of_logits(z, &teacher[of], classes, g),
            });
            first += n;
        }
        let got: Vec<f32> = get(&mut card, gradient, rows.len() * classes * capacity);
        near(&format!("gradient of loss {kind}"), &got, &columns(&want, &rows, classes), 1e-3);
        let losses: Vec<f64> = get(&mut card, Arg::At(memory, 0), rows.len() * capacity);
        for (k, total) in totals.into_iter().enumerate() {
            let mean = losses[k * capacity..][..capacity].iter().sum::<f64>() / rows[k].max(1) as f64;
            assert!((mean - total.unwrap()).abs() < 1e-6, "loss {kind} of client {k}: {mean}");
        }
    }
}

/// Every mask bit is the host's: values behind a dropout are the same to the last bit.
#[test]
fn dropout_draws_the_masks_that_every_interpreter_draws() {
    let mut b = NetBuilder::new(3, 3, 3);
    let x = b.dropout(0, 0.4).unwrap();
    b.tap("map", x);
    let flat = b.flatten(x);
    let logits = b.linear(flat, "fc", 2).unwrap();
    let net = Arc::new(b.finish("dropout", logits).unwrap());
    let Some(card) = card(11) else { return };
    let mut engine = Engine::new(&net, card).unwrap();
    let (rows, keys) = ([3usize, 5], [Key::from_seed(8), Key::from_seed(9)]);
    let images = noise(8 * 27, 2);
    engine.forward(&[params(&net, 0), params(&net, 1)].concat(), &images, &rows, Mode::Train(&keys)).unwrap();
    let mut got = Vec::new();
    engine.read(x, &mut got).unwrap();
    let mut want = vec![0.0; 8 * 27];
    for (i, mask) in want.chunks_exact_mut(27).enumerate() {
        let (k, row) = if i < 3 { (0, i) } else { (1, i - 3) };
        dropout::mask(keys[k], x, row, 0.4, mask);
    }
    want.iter_mut().zip(&images).for_each(|(m, x)| *m *= x);
    assert_eq!(got, want);
    assert!(want.contains(&0.0));
}

/// Crop, mirror and table are `data::Loader`'s rule: pixel (y + dy − crop, x + dx − crop), 0 outside, then the mirror.
#[test]
fn images_on_the_card_are_cut_as_the_loader_cuts_them() {
    let (net, [c, h, w], crop) = (Arc::new(residual()), [3usize, 8, 8], 2);
    let Some(card) = card(5) else { return };
    let bytes: Vec<u8> = (0..6 * c * h * w).map(|i| (i * 37 % 251) as u8).collect();
    let table: Vec<[f32; 256]> =
        (0..c).map(|c| std::array::from_fn(|v| v as f32 / 255.0 - 0.3 * (c + 1) as f32)).collect();
    let (ids, cuts) = ([&[4u32, 0, 5][..], &[], &[2, 2]], |n: u32| -> Vec<Cut> {
        (0..n).map(|i| Cut { dy: (3 * i + 1) % 5, dx: (2 * i + n) % 5, flip: i % 2 == 0 }).collect()
    });
    let cuts = [cuts(3), vec![], cuts(2)];
    let mut want = Vec::new();
    for (id, cut) in ids.iter().copied().flatten().zip(cuts.iter().flatten()) {
        for (c, y, x) in (0..c).flat_map(|c| (0..h).flat_map(move |y| (0..w).map(move |x| (c, y, x)))) {
            let x = if cut.flip { w - 1 - x } else { x };
            let (y, x) = ((y + cut.dy as usize).wrapping_sub(crop), (x + cut.dx as usize).wrapping_sub(crop));
            let inside = y < h && x < w;
            let at = ((*id as usize * 3 + c) * h + y.min(h)) * w + x.min(w);
            want.push(if inside { table[c][usize::from(bytes[at])] } else { 0.0 });
        }
    }
    let mut session = Resident::new(&net, card, 3).unwrap();
    let optimiser = OptimiserConfig::default();
    let training = Training { optimiser, trained: None, pulls: vec![], moments: Default::default() };
    for k in 0..3 {
        session.load(k, Params::new(net.layout.clone(), params(&net, k as u32)).unwrap(), &training).unwrap();
    }
    session.hold(&bytes, &table, crop).unwrap();
    let views: Vec<&[Cut]> = cuts.iter().map(Vec::as_slice).collect();
    session.forward_held(&ids, &views, Mode::Eval).unwrap();
    let (mut held, mut given) = (Vec::new(), Vec::new());
    session.read(net.logits, &mut held).unwrap();
    session.forward(crate::nn::Input::Images(&want), &[3, 0, 2], Mode::Eval).unwrap();
    session.read(net.logits, &mut given).unwrap();
    assert_eq!(held, given);
    let e = session.forward_held(&[&[6], &[], &[]], &[&views[0][..1], &[], &[]], Mode::Eval).unwrap_err().to_string();
    assert!(e.contains("no image 6; 6 lie on the card"), "{e}");
}

/// The names that the engine launches by, in the sources.
#[test]
fn every_kernel_has_a_name_of_its_own() {
    let names = kernels::names();
    assert!(names.len() > 25 && names.contains(&"norm_statistics"), "{names:?}");
    let distinct: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len());
}

/// What the emulated card says of a launch.
fn complaint(launch: impl FnOnce(&mut Emulated, Memory) -> crate::error::Result<()>) -> Option<String> {
    let mut card = emulated(6)?;
    let memory = card.allocate(64).unwrap();
    card.zero(memory, 0, 64).unwrap();
    let sanitized = card.sanitized();
    // An order is only heard of when something is read.
    let read = |card: &mut Emulated| card.read(memory, 0, &mut [0; 4]);
    let said = launch(&mut card, memory).and_then(|()| read(&mut card)).map_err(|e| e.to_string());
    Some(said.err().unwrap_or_else(|| if sanitized { "nothing".into() } else { "heap-buffer-overflow".into() }))
}

#[test]
fn the_emulated_card_sees_what_a_gpu_would_not() {
    let says = |want: &str, launch: &dyn Fn(&mut Emulated, Memory) -> crate::error::Result<()>| {
        let said = complaint(launch);
        assert!(said.as_ref().is_none_or(|said| said.contains(want)), "{want}: {said:?}");
    };
    let add = |n: i32| {
        move |card: &mut Emulated, m: Memory| {
            card.launch("add_vector", Work::Elements(n as usize), &[Arg::At(m, 0), Arg::Int(n), Arg::At(m, 0)])
        }
    };
    says("nothing", &add(16));
    says("heap-buffer-overflow", &add(17));
    says("2 arguments, wanted 3", &|card, m| {
        card.launch("add_vector", Work::Elements(1), &[Arg::At(m, 0), Arg::Int(1)])
    });
    says("given as 'f' and wanted as 'i'", &|card, m| {
        card.launch("add_vector", Work::Elements(1), &[Arg::At(m, 0), Arg::Float(1.0), Arg::At(m, 0)])
    });
    says("no kernel nothing", &|card, _| card.launch("nothing", Work::Elements(1), &[]));
    says("bytes 32 to 96", &|card, m| {
        let args = [Arg::At(m, 0), Arg::At(m, 0), Arg::Int(1), Arg::Fill(m, 32, 64)];
        card.launch("squares", Work::Blocks(1), &args)
    });
}

/// What a kernel must write whole is NaN before: a launch with too few threads leaves it there.
#[test]
fn what_a_kernel_leaves_out_is_nan() {
    let Some(mut card) = emulated(6) else { return };
    let x = put(&mut card, &[1.0f32; 32]);
    let memory = card.allocate(4 * 32).unwrap();
    let sizes = [int(1), int(1), int(4), int(8)];
    let args = [&[x], &sizes[..], &[Arg::Fill(memory, 0, 128)]].concat();
    card.launch("flatten", Work::Elements(16), &args).unwrap();
    let out: Vec<f32> = get(&mut card, Arg::At(memory, 0), 32);
    assert_eq!((out.iter().filter(|v| v.is_nan()).count(), out.iter().filter(|v| **v == 1.0).count()), (16, 16));
}
