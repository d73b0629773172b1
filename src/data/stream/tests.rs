//! The laws of a stream, on small PNGs and JPEGs made here.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::data::crop::JitterConfig;
use crate::data::decode::tests::png;
use crate::data::jpeg::{Jpeg, Memory};
use crate::error::Class;
use crate::key::{Key, Purpose};
use crate::nn::kernels::resample::{Area, Resampler, Window};

/// Pictures in memory; counts how often one is read, and waits a little where asked.
#[derive(Default)]
struct Album {
    files: Vec<Vec<u8>>,
    reads: AtomicUsize,
    slow: bool,
}

impl Album {
    fn of(n: usize) -> Self {
        let one = |i: usize| png(30 + i as u32 % 7, 20 + i as u32 % 5, |x, y| [(9 * x) as u8, (7 * y) as u8, i as u8]);
        Album { files: (0..n).map(one).collect(), ..Album::default() }
    }
}

impl Encoded for Album {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn name(&self, index: usize) -> String {
        format!("album/{index}.png")
    }

    fn bytes(&self, index: usize) -> Result<Vec<u8>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if self.slow {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Ok(self.files[index].clone())
    }
}

fn config(cache: usize, ahead: usize) -> StreamConfig {
    let jitter = JitterConfig { hue: 0.1, ..JitterConfig::default() };
    let crop = CropConfig { side: 16, resize: 18, jitter, ..CropConfig::default() };
    StreamConfig { crop, cache, ahead, ..StreamConfig::default() }
}

/// The picture numbers of a batch, by turns for training and evaluation.
fn asks(indices: std::ops::Range<u32>, seed: u64) -> Vec<Ask> {
    let sight = |i: u32| match i % 3 {
        0 => Sight::Centre,
        _ => Sight::Random(Key::from_seed(seed).fold(Purpose::Item, u64::from(i))),
    };
    indices.map(|i| Ask { index: i, sight: sight(i) }).collect()
}

#[test]
fn bytes_and_order_depend_on_neither_threads_nor_hints_nor_the_cache() {
    let epoch = |threads: usize, cache: usize, ahead: usize| {
        let stream = Stream::new(Arc::new(Album::of(40)), &config(cache, ahead), &Context::cpu(threads)).unwrap();
        let (mut all, mut batch) = (Vec::new(), Vec::new());
        for pass in 0..2 {
            for first in (0..40).step_by(8) {
                stream.ahead(&asks(first + 8..(first + 16).min(40), pass));
                stream.bytes(&asks(first..first + 8, pass), &mut batch).unwrap();
                all.extend_from_slice(&batch);
            }
        }
        all
    };
    let want = epoch(1, 0, 0);
    assert_eq!(want.len(), 80 * 3 * 16 * 16);
    for (threads, cache, ahead) in [(1, 1, 8), (2, 0, 8), (3, 1, 64), (5, 0, 3)] {
        assert_eq!(epoch(threads, cache, ahead), want, "{threads} threads, cache {cache}, {ahead} ahead");
    }
}

#[test]
fn floats_are_the_normalised_bytes() {
    let stream = Stream::new(Arc::new(Album::of(6)), &config(0, 0), &Context::cpu(2)).unwrap();
    let (mut bytes, mut floats) = (Vec::new(), vec![9.0; 3]);
    stream.bytes(&asks(0..6, 1), &mut bytes).unwrap();
    stream.fill(&asks(0..6, 1), &mut floats).unwrap();
    let normal = |i: usize, v: u8| {
        let c = i / 256 % 3;
        (f32::from(v) / 255.0 - [0.485, 0.456, 0.406][c]) / [0.229, 0.224, 0.225][c]
    };
    assert_eq!(floats, bytes.iter().enumerate().map(|(i, &v)| normal(i, v)).collect::<Vec<_>>());
    stream.fill(&[], &mut floats).unwrap();
    assert!(floats.is_empty());
}

#[test]
fn the_first_picture_that_is_damaged_is_named_and_the_rest_goes_on() {
    let mut album = Album::of(12);
    album.files[7].truncate(20);
    album.files[3] = b"no picture".to_vec();
    let stream = Stream::new(Arc::new(album), &config(0, 16), &Context::cpu(3)).unwrap();
    stream.ahead(&asks(0..12, 1));
    let e = stream.bytes(&asks(0..12, 1), &mut Vec::new()).unwrap_err();
    assert!(e.to_string().starts_with("album/3.png: not a readable image"), "{e}");
    assert_eq!(e.class(), Class::Data);
    let mut batch = Vec::new();
    stream.bytes(&asks(8..12, 1), &mut batch).unwrap();
    assert_eq!(batch.len(), 4 * stream.size());
    assert!(
        stream.bytes(&asks(11..13, 1), &mut batch).unwrap_err().to_string().contains("no picture 12; there are 12")
    );
}

#[test]
fn a_panic_inside_a_source_is_an_error_of_its_picture() {
    struct Trap;
    impl Encoded for Trap {
        fn len(&self) -> usize {
            9
        }
        fn name(&self, index: usize) -> String {
            format!("trap {index}")
        }
        fn bytes(&self, _: usize) -> Result<Vec<u8>> {
            panic!("sprung")
        }
    }
    let stream = Stream::new(Arc::new(Trap), &config(0, 9), &Context::cpu(2)).unwrap();
    let e = stream.bytes(&asks(4..9, 1), &mut Vec::new()).unwrap_err();
    assert!(e.to_string().contains("trap 4: a worker panicked: sprung") && e.class() == Class::Defect, "{e}");
}

#[test]
fn no_more_is_read_ahead_than_allowed_and_hints_are_used() {
    let album = Arc::new(Album::of(40));
    let stream = Stream::new(album.clone(), &config(0, 10), &Context::cpu(2)).unwrap();
    (0..8).for_each(|b| stream.ahead(&asks(5 * b..5 * b + 5, 1)));
    let pause = || std::thread::sleep(std::time::Duration::from_millis(5));
    while album.reads.load(Ordering::SeqCst) < 10 {
        pause();
    }
    pause();
    assert_eq!(album.reads.load(Ordering::SeqCst), 10);
    stream.bytes(&asks(5..10, 1), &mut Vec::new()).unwrap();
    assert_eq!(album.reads.load(Ordering::SeqCst), 10, "the hint's pictures are taken, not read again");
    stream.bytes(&asks(5..10, 1), &mut Vec::new()).unwrap();
    assert_eq!(album.reads.load(Ordering::SeqCst), 15);
}

/// A JPEG of hills, 4:2:0 or another sampling as the encoder likes.
fn jpeg(w: u32, h: u32) -> Vec<u8> {
    let hill = |v: u32, by: f32| 120.0 + 90.0 * (v as f32 / by).sin();
    let pixel = |x: u32, y: u32| image::Rgb([hill(x, 9.0) as u8, hill(y, 7.0) as u8, hill(x + y, 11.0) as u8]);
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_fn(w, h, pixel).write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
    bytes.into_inner()
}

#[test]
fn of_a_jpeg_only_a_part_is_decoded_and_the_bytes_are_those_of_the_whole() {
    let files: Vec<Vec<u8>> = [(90, 61), (64, 200), (200, 40)].into_iter().map(|(w, h)| jpeg(w, h)).collect();
    let album = Arc::new(Album { files: files.clone(), ..Album::default() });
    let config = config(0, 0);
    let stream = Stream::new(album, &config, &Context::cpu(1)).unwrap();
    for (index, n) in (0..3).flat_map(|i| (0..9).map(move |n| (i, n))) {
        let sight = if n == 0 { Sight::Centre } else { Sight::Random(Key::from_seed(n)) };
        let (mut got, mut whole) = (Vec::new(), Vec::new());
        stream.bytes(&[Ask { index, sight }], &mut got).unwrap();
        let file = Jpeg::open(&files[index as usize]).expect("a baseline JPEG");
        let (size, mut want) = (file.size(), vec![0; got.len()]);
        let (cut, all) = (config.crop.cut(size, sight), Window::all(size.0, size.1));
        file.decode(all, 8, &mut Memory::default(), &mut whole).unwrap();
        let area = Area { pixels: &whole, held: all, frame: cut.frame };
        Resampler::default().planes(area, cut.mirror, &mut want).unwrap();
        cut.jitter.apply(&mut want, 16 * 16);
        assert_eq!(got, want, "{index} {sight:?}");
    }
}

#[test]
fn scaled_decoding_is_near_the_exact_one_where_there_is_enough_and_the_same_elsewhere() {
    let files = vec![jpeg(640, 480), jpeg(30, 24), png(640, 480, |x, y| [x as u8, y as u8, 9])];
    let both = [Decode::Exact, Decode::Scaled].map(|decode| {
        let album = Arc::new(Album { files: files.clone(), ..Album::default() });
        let stream = Stream::new(album, &StreamConfig { decode, ..config(0, 0) }, &Context::cpu(1)).unwrap();
        (0..3)
            .map(|index| {
                let mut out = Vec::new();
                let asks: Vec<Ask> = (0..8).map(|n| Ask { index, sight: Sight::Random(Key::from_seed(n)) }).collect();
                stream.bytes(&asks, &mut out).unwrap();
                out
            })
            .collect::<Vec<_>>()
    });
    let off = both[0][0].iter().zip(&both[1][0]).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>();
    let mean = off as f64 / both[0][0].len() as f64;
    assert!(mean > 0.0 && mean < 6.0, "{mean}");
    assert_eq!(both[0][1..], both[1][1..]);
}

#[test]
fn the_cache_keeps_what_fits_and_no_more() {
    let mut album = Album::of(3);
    // Behind its end a PNG may have anything.
    album.files.iter_mut().for_each(|f| f.resize(400 << 10, 0));
    let album = Arc::new(album);
    let stream = Stream::new(album.clone(), &config(1, 0), &Context::cpu(1)).unwrap();
    (0..4).for_each(|_| stream.bytes(&asks(0..3, 1), &mut Vec::new()).unwrap());
    assert_eq!(album.reads.load(Ordering::SeqCst), 3 + 3, "two of three fit into 1 MiB");
}

#[test]
fn an_epoch_of_any_length_holds_two_batches_of_pictures_and_what_is_in_hand() {
    let stream = Stream::new(Arc::new(Album::of(8)), &config(0, 512), &Context::cpu(2)).unwrap();
    let (mut out, mut most) = (Vec::new(), 0);
    for b in 0..300 {
        stream.ahead(&asks(0..8, b + 1));
        stream.bytes(&asks(0..8, b), &mut out).unwrap();
        most = most.max(stream.shared.line.spares());
    }
    assert!((8..=2 * 8 + 3).contains(&most), "{most}");
}

#[test]
fn a_picture_that_changes_while_a_run_reads_it_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.png");
    std::fs::write(&path, png(20, 20, |x, y| [x as u8, y as u8, 7])).unwrap();
    let stream = Stream::new(Arc::new(OnDisk(path.clone())), &config(0, 0), &Context::cpu(1)).unwrap();
    let ask = asks(0..1, 1);
    (0..2).for_each(|_| stream.bytes(&ask, &mut Vec::new()).unwrap());
    std::fs::write(&path, png(20, 20, |x, y| [x as u8, y as u8, 8])).unwrap();
    let e = stream.bytes(&ask, &mut Vec::new()).unwrap_err();
    assert!(e.class() == Class::Data && e.to_string().contains("a.png: other bytes than this run read"), "{e}");
}

/// One picture in a file.
struct OnDisk(std::path::PathBuf);

impl Encoded for OnDisk {
    fn len(&self) -> usize {
        1
    }

    fn name(&self, _: usize) -> String {
        self.0.display().to_string()
    }

    fn bytes(&self, _: usize) -> Result<Vec<u8>> {
        crate::fsx::read(&self.0)
    }
}

#[test]
fn a_stopped_run_and_a_dropped_stream_leave_no_thread() {
    for stop in [true, false] {
        let (cx, album) = (Context::cpu(4), Arc::new(Album { slow: true, ..Album::of(400) }));
        let stream = Stream::new(album.clone(), &config(0, 400), &cx).unwrap();
        stream.ahead(&asks(0..400, 1));
        if stop {
            cx.cancel.stop();
            let e = stream.bytes(&asks(0..400, 1), &mut Vec::new()).unwrap_err();
            assert_eq!(e.class(), Class::Stopped);
        }
        drop(stream);
        assert_eq!(Arc::strong_count(&album), 1, "every worker had its share of the album");
        assert!(album.reads.load(Ordering::SeqCst) < 400, "the rest was left");
    }
}
