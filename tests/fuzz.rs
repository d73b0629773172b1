//! Damaged files before every reader: seeded mutations of whole ones. A reader gives what it understands or an error of
//! the data; it never panics, never calls the file our mistake, and never takes long.
//!
//! A thousand of each here; `scripts/fuzz.sh` sets `FEDLLAVA_FUZZ` to more, or to a part of them (`1000..2000`), and
//! `FEDLLAVA_FUZZ_SECONDS` to what a file may take of it, and keeps a log.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::{DType, Device};
use fedllava::config::Config;
use fedllava::data::captions::Captions;
use fedllava::data::jpeg::{self, Memory};
use fedllava::data::npy::npy_integers;
use fedllava::data::{Cifar10Config, Cifar100Config, DataConfig, Features, PoolConfig, Split, decode, load};
use fedllava::error::{Class, Result};
use fedllava::exec::Context;
use fedllava::fsx;
use fedllava::key::{Key, Purpose, Rng};
use fedllava::model::clip::{Preprocess, Tokenizer};
use fedllava::model::vlm::Opened;
use fedllava::model::weights::{Start, Weights};
use fedllava::model::{clip, llama};
use fedllava::nn::kernels::resample::Window;
use fedllava::nn::{Layout, Params, Role};
use fedllava::pickle::Pickle;
use fedllava::run::{Records, archive, directory, state};

/// Mutations of each file, by number: each has its own seed.
fn rounds() -> std::ops::Range<usize> {
    let Ok(said) = std::env::var("FEDLLAVA_FUZZ") else { return 0..1000 };
    let (from, to) = said.split_once("..").unwrap_or(("0", &said));
    from.parse().unwrap()..to.parse().unwrap()
}

/// How long mutations of one file go on: the suite does all.
fn seconds() -> Duration {
    let said = std::env::var("FEDLLAVA_FUZZ_SECONDS").ok();
    said.map_or(Duration::MAX, |s| Duration::from_secs_f64(s.parse().unwrap()))
}

/// The longest that one file may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Values that lengths, sizes and counts are often wrong at.
const EDGES: [u64; 12] =
    [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, i64::MAX as u64, u64::MAX];

/// A file with one to three changes: bits, bytes, edges, cuts, repeats, pieces moved.
fn mutated(whole: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for _ in 0..1 + rng.below(3) {
        if bytes.is_empty() {
            break;
        }
        // Half of all changes hit the beginning, where headers are.
        let reach = if rng.below(2) == 0 { bytes.len().min(256) } else { bytes.len() };
        let at = rng.below(reach);
        let end = (at + 1 + rng.below(64)).min(bytes.len());
        match rng.below(8) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = rng.u32() as u8,
            2 => bytes.truncate(at),
            3 => {
                let (edge, width) = (EDGES[rng.below(EDGES.len())], [1, 2, 4, 8][rng.below(4)]);
                let edge = if rng.below(2) == 0 {
                    edge.to_le_bytes()
                } else {
                    edge.rotate_left(8 * (8 - width)).to_be_bytes()
                };
                let width = (width as usize).min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&edge[..width]);
            }
            4 => drop(bytes.drain(at..end)),
            5 => {
                let piece = bytes[at..end].to_vec();
                let times = 1 + rng.below(40);
                let more: Vec<u8> = piece.iter().copied().cycle().take(piece.len() * times).collect();
                bytes.splice(at..at, more);
            }
            6 => {
                let piece = bytes[at..end].to_vec();
                let to = rng.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            // Digits of texts become other numbers.
            _ => match bytes[at..end].iter().position(u8::is_ascii_digit) {
                Some(digit) => {
                    let number = ["-1", "0", "1e308", "99999999999999999999", "9223372036854775807", "NaN", "0.5"];
                    bytes.splice(at + digit..=at + digit, number[rng.below(number.len())].bytes());
                }
                None => bytes[at] = b"\"{[,:]}\\ \n"[rng.below(10)],
            },
        }
    }
    bytes
}

/// Puts mutations of `file` in the place of the file that `read` reads; gives the share that was refused.
#[allow(clippy::print_stdout, reason = "the log of a long search")]
fn assail(name: &str, file: &Path, read: &dyn Fn() -> Result<()>) -> f64 {
    let whole = std::fs::read(file).unwrap();
    read().unwrap_or_else(|e| panic!("{name}: the whole file is refused: {e}"));
    let (mut refused, key) = (0u32, Key::from_seed(2026).fold(Purpose::Test, name.len() as u64));
    let own = name.bytes().fold(0u64, |all, b| all.wrapping_mul(31).wrapping_add(u64::from(b)));
    let (began, most, mut done) = (Instant::now(), seconds(), 0u32);
    for round in rounds().take_while(|_| began.elapsed() < most) {
        done += 1;
        let mut rng = key.fold(Purpose::Test, own).fold(Purpose::Test, round as u64).rng();
        let bytes = mutated(&whole, &mut rng);
        std::fs::write(file, &bytes).unwrap();
        let timed = || {
            let began = Instant::now();
            (catch_unwind(AssertUnwindSafe(read)), began.elapsed())
        };
        let (mut came, mut took) = timed();
        if took > PATIENCE {
            // On a crowded machine somebody else had the processor.
            (came, took) = timed();
        }
        let keep = || {
            let kept = std::env::temp_dir().join(format!("fedllava-fuzz-{}-{round}", name.replace(['/', ' '], "-")));
            std::fs::write(&kept, &bytes).unwrap();
            kept.display().to_string()
        };
        assert!(took < PATIENCE, "{name}, round {round}: {took:?}; kept as {}", keep());
        match came {
            Err(_) => panic!("{name}, round {round}: a panic; kept as {}", keep()),
            Ok(Ok(())) => {}
            Ok(Err(e)) => {
                assert!(e.class() != Class::Defect, "{name}, round {round}: {e}; kept as {}", keep());
                refused += 1;
            }
        }
    }
    std::fs::write(file, whole).unwrap();
    if std::env::var_os("FEDLLAVA_FUZZ").is_some() {
        let from = rounds().start;
        println!("{name}: {done} changes from {from} on, {refused} refused, {:.1} s", began.elapsed().as_secs_f64());
    }
    f64::from(refused) / f64::from(done)
}

/// A folder for files, and the fixtures of the checkout.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Bench(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A copy of a folder of the checkout.
    fn copy(&self, folder: &str) -> PathBuf {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let to = self.0.path().join(from.file_name().unwrap());
        for file in fsx::list(&from).unwrap().into_iter().filter(|p| p.is_file()) {
            self.write(
                &format!(
                    "{}/{}",
                    to.file_name().unwrap().to_string_lossy(),
                    file.file_name().unwrap().to_string_lossy()
                ),
                &std::fs::read(&file).unwrap(),
            );
        }
        to
    }
}

fn layout() -> std::sync::Arc<Layout> {
    let mut layout = Layout::default();
    layout.push("w", &[2, 3], Role::Weight).unwrap();
    layout.push("m", &[2], Role::Buffer).unwrap();
    layout.into()
}

fn params() -> Params {
    Params::new(layout(), (0..8).map(|i| i as f32).collect::<Vec<_>>()).unwrap()
}

#[test]
fn damaged_images_are_refused_or_decoded() {
    let bench = Bench::new();
    let picture = image::RgbImage::from_fn(23, 17, |x, y| image::Rgb([(x * 11) as u8, (y * 15) as u8, (x * y) as u8]));
    use image::ImageFormat::{Bmp, Jpeg, Png, Pnm, Tiff, WebP};
    for (name, format) in [("png", Png), ("jpeg", Jpeg), ("webp", WebP), ("bmp", Bmp), ("tiff", Tiff), ("pnm", Pnm)] {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        let file = bench.write(name, &bytes.into_inner());
        let read = || {
            let bytes = fsx::read(&file)?;
            if let Some(part) = jpeg::Jpeg::open(&bytes) {
                let (height, width) = part.size();
                let _ = part.decode(Window::all(height, width), 8, &mut Memory::default(), &mut Vec::new());
            }
            decode::rgb(&bytes).map(|image| drop(decode::square(&image, 8)))
        };
        let refused = assail(&format!("image {name}"), &file, &read);
        assert!(refused > 0.05, "{name}: {refused}");
    }
}

#[test]
fn damaged_benchmarks_are_refused_or_read() {
    let (bench, cx) = (Bench::new(), Context::cpu(1));
    let text = |path: &Path| path.display().to_string();
    let load = |config: &DataConfig| load(config, Key::from_seed(1), &cx).map(drop);
    for folder in ["cifar-10-batches-py", "cifar-10-batches-bin"] {
        let folder = bench.copy(&format!("tests/golden/data/{folder}"));
        let config = DataConfig::Cifar10(Cifar10Config { path: text(&folder) });
        let file =
            fsx::list(&folder).unwrap().into_iter().find(|p| p.to_string_lossy().contains("data_batch_1")).unwrap();
        assail(&format!("cifar {}", file.display()).replace(&text(bench.0.path()), ""), &file, &|| load(&config));
    }
    for (folder, part) in [
        ("cifar-100-python", "train"),
        ("cifar-100-binary", "train.bin"),
        ("cifar100-parquet", "train-00000-of-00002.parquet"),
    ] {
        let folder = bench.copy(&format!("tests/golden/data/{folder}"));
        let config = DataConfig::Cifar100(Cifar100Config { path: text(&folder), ..Default::default() });
        assail(part, &folder.join(part), &|| load(&config));
    }
}

#[test]
fn damaged_lists_captions_splits_and_shards_are_refused_or_read() {
    let (bench, cx) = (Bench::new(), Context::cpu(1));
    let lines = "{\"image\": \"a\", \"captions\": [\"a dog\", \"a cat\"]}\n{\"file_name\": \"b\", \"text\": \"x\"}\n";
    let file = bench.write("captions.jsonl", lines.as_bytes());
    assail("captions", &file, &|| Captions::read(&file).map(drop));
    let file = bench.write("table.csv", b"image,caption\na.png,\"a dog, brown\"\nb.png,a cat\n");
    assail("caption table", &file, &|| Captions::read(&file).map(drop));
    let file =
        bench.write("split.json", br#"{"clients": [[0, 2], [1, 4, 5]], "server": [3], "cohorts": [[0, 1], [1, 0]]}"#);
    assail("split", &file, &|| Split::import(&file, &[0, 1, 0, 1, 0, 1], 2).map(drop));
    let image = |v: u8| {
        let mut bytes = Cursor::new(Vec::new());
        image::RgbImage::from_pixel(2, 2, image::Rgb([v; 3])).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    };
    let mut tar = tar::Builder::new(Vec::new());
    for (path, bytes) in [
        ("a.png", image(1)),
        ("a.json", b"{\"words\": \"frog\"}".to_vec()),
        ("b.png", image(2)),
        ("b.json", b"{\"words\": \"dog\"}".to_vec()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        tar.append_data(&mut header, path, bytes.as_slice()).unwrap();
    }
    let file = bench.write("pool/0.tar", &tar.into_inner().unwrap());
    let pool: PoolConfig =
        toml::from_str(&format!("kind = \"webdataset\"\ntext = \"words\"\npath = {:?}", bench.0.path().join("pool")))
            .unwrap();
    assail("shard", &file, &|| fedllava::data::pool::load(&pool, &cx).and_then(|p| p.decode(&[0], 4, &cx)).map(drop));
    let npy = [
        b"\x93NUMPY\x01\x00\x76\x00{'descr': '<u2', 'fortran_order': False, 'shape': (3,), }".to_vec(),
        vec![b' '; 60],
        b"\n\x01\0\x02\0\x03\0".to_vec(),
    ]
    .concat();
    let file = bench.write("rows.npy", &npy);
    let header = npy.iter().position(|b| *b == b'\n').unwrap() + 1 - 10;
    let mut whole = npy;
    whole[8..10].copy_from_slice(&(header as u16).to_le_bytes());
    std::fs::write(&file, whole).unwrap();
    assail("npy", &file, &|| npy_integers(&file).map(drop));
    let features = Features::from_npy(&file, None);
    assert!(features.is_err(), "integers are no features");
    let config =
        "[run]\nseed = 3\n[federated]\nrounds = 20\noptimiser = { kind = \"sgd\", lr = 0.1 }\n[[arms]]\nname = \"x\"\n";
    let file = bench.write("c.toml", config.as_bytes());
    assail("config", &file, &|| Config::read(&file, &[]).and_then(|c| c.expand()).map(drop));
}

#[test]
fn damaged_weights_and_pickles_are_refused_or_read() {
    let bench = Bench::new();
    let file = bench.0.path().join("m.safetensors");
    params().save(&file, &Default::default()).unwrap();
    assail("safetensors", &file, &|| Start::whole(&file, &layout()).map(drop));
    let named = std::collections::BTreeMap::from([("model".to_string(), params())]);
    let file = bench.write("state.safetensors", &state::to_bytes(&named).unwrap());
    assail("state", &file, &|| state::load(&file).map(drop));
    let seed = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffeX\x01\x00\x00\x00bq\x03N\x88\x86q\x04cos\nsystem\nq\x05X\x02\x00\x00\x00lsq\x06\x85q\x07Rq\x08u.";
    let file = bench.write("p.pkl", seed);
    let look = || {
        let (bytes, _) = (fsx::read(&file)?, ());
        let (pickle, _) = Pickle::read(&bytes)?;
        let root = pickle.root();
        let _ = (root.what(), root.list(), root.pairs(), root.args(), root.int(), root.array());
        Ok(())
    };
    assail("pickle", &file, &look);
    let torch = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/clip/pickle");
    for from in if torch.is_dir() { fsx::list(&torch).unwrap() } else { Vec::new() } {
        let ending = from.extension().map(|e| e.to_string_lossy().into_owned()).unwrap_or_default();
        if ["pt", "pth", "bin"].contains(&ending.as_str()) && Weights::open(&from).is_ok() {
            let name = from.file_name().unwrap().to_string_lossy().into_owned();
            let file = bench.write(&name, &std::fs::read(&from).unwrap());
            assail(&name, &file, &|| Weights::open(&file).map(drop));
        }
    }
}

#[test]
fn damaged_models_of_others_are_refused_or_read() {
    let bench = Bench::new();
    let folder = bench.copy("data/demo-clip");
    let at = |name: &str| folder.join(name);
    assail("preprocessor", &at("preprocessor_config.json"), &|| Preprocess::open(&folder).map(drop));
    assail("clip config", &at("config.json"), &|| clip::Config::read(&at("config.json")).map(drop));
    assail("clip tokenizer", &at("tokenizer.json"), &|| Tokenizer::open(&folder, 77).map(drop));
    let open = || clip::Clip::open(&folder, DType::F32, &Device::Cpu).map(drop);
    assail("clip weights", &at("model.safetensors"), &open);
    assail("clip config with weights", &at("config.json"), &open);
    let folder = bench.0.path().join("pieces");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama-tokenizer/tiny.model");
    let file = bench.write("pieces/tokenizer.model", &std::fs::read(golden).unwrap());
    let open = || llama::Tokenizer::open(&folder).and_then(|t| t.encode("a dog")).map(drop);
    assail("sentencepiece", &file, &open);
}

#[test]
fn damaged_multimodal_models_are_refused_or_read() {
    let (bench, cx) = (Bench::new(), Context::cpu(1));
    for from in
        ["data/demo-llava", "tests/golden/vlm/smolvlm", "tests/golden/vlm/qwen2_5_vl", "tests/golden/vlm/minicpmv"]
    {
        let folder = bench.copy(from);
        let at = |name: &str| folder.join(name);
        let open = || Opened::open(&folder, &cx).map(drop);
        let whole = || Opened::open(&folder, &cx).and_then(|model| model.frozen()).map(drop);
        assail(&format!("{from} config"), &at("config.json"), &whole);
        assail(&format!("{from} preprocessor"), &at("preprocessor_config.json"), &open);
        // These are slower to read; the suite leaves them to the script.
        if std::env::var_os("FEDLLAVA_FUZZ").is_some() {
            assail(&format!("{from} weights"), &at("model.safetensors"), &whole);
            for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.json", "generation_config.json"] {
                if at(file).exists() {
                    assail(&format!("{from} {file}"), &at(file), &open);
                }
            }
        }
    }
    let folder = bench.copy("tests/golden/vlm/lora_smolvlm");
    let model = bench.copy("tests/golden/vlm/smolvlm");
    let opened = Opened::open(&model, &cx).unwrap();
    let adapt = || opened.adapter(&folder).map(drop);
    assail("adapter config", &folder.join("adapter_config.json"), &adapt);
    assail("adapter weights", &folder.join("adapter_model.safetensors"), &adapt);
}

#[test]
fn damaged_files_of_runs_are_refused_or_read() {
    let bench = Bench::new();
    let json = |name: &str, value: serde_json::Value| {
        bench.write(name, fedllava::run::seal::seal(&value).to_string().as_bytes())
    };
    let file = json(
        "eval.json",
        serde_json::json!({ "stages": { "finetune": { "overall": 0.5, "digest": "ab" } }, "facts": { "seed": 7 } }),
    );
    let refused = assail("sealed json", &file, &|| directory::read_json(&file).map(drop));
    assert!(refused > 0.5, "{refused}");
    let path = bench.0.path().join("metrics.jsonl");
    let mut records = Records::open(&path).unwrap();
    for round in 1..4 {
        records.add("finetune", round, "train", &[("loss", 1.0 / round as f64)]).unwrap();
    }
    records.seal().unwrap();
    let refused = assail("records", &path, &|| Records::read(&path).map(drop));
    assert!(refused > 0.9, "what was sealed is known: {refused}");
    let _ = archive::Archive::read(&path).err().expect("no archive");
}
