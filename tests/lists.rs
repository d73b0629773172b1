//! Lists of images in files, decoded when they are needed, through all three stages.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

use fedllava::config::Config;
use fedllava::error::Result;
use fedllava::exec::Context;
use fedllava::pipeline::{self, Library, Stages};
use serde_json::Value;

const CONFIG: &str = r#"
[data]
kind = "list"
path = "images"
train = "train.txt"
val = "val.txt"
test = "test.txt"
crop = { side = 64, resize = 72 }
[longtail]
kind = "none"
[partition]
kind = "iid"
clients = 2
[server_set]
origin = "val"
per_class = 2
[validation]
per_class = 1
[augment]
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
[model]
kind = "resnet10"
[clip]
kind = "model"
prompts = { kind = "templates", list = ["a {c}"] }
[pool]
kind = "folder"
path = "pool"
captions = "pool.jsonl"
[pretrain]
epochs = 1
batch_size = 4
[federated]
rounds = 1
cohort = 2
local_epochs = 1
batch_size = 4
[align]
steps = 2
batch_size = 4
when = "end"
"#;

const CLASSES: [&str; 2] = ["boat", "cup"];

/// A photograph of its own size that no other seed gives.
fn jpeg(seed: u32) -> Vec<u8> {
    let (w, h) = (70 + seed % 5 * 9, 90 - seed % 4 * 6);
    let pixel = |x: u32, y: u32| image::Rgb([(2 * x + 9 * seed) as u8, (3 * y + seed * seed) as u8, (x + y) as u8]);
    let mut bytes = Cursor::new(Vec::new());
    image::RgbImage::from_fn(w, h, pixel).write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
    bytes.into_inner()
}

fn write(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Lists of 12 training, 6 validation and 4 test images of two classes, and a pool of six.
fn desk() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (root, mut seed) = (dir.path(), 0);
    for (part, each) in [("train", 6), ("val", 3), ("test", 2)] {
        let mut list = String::new();
        for (i, y) in (0..each).flat_map(|i| [(i, 0), (i, 1)]) {
            let name = format!("{part}/{}/{i}.jpg", CLASSES[y]);
            list += &format!("{name} {y}\n");
            write(root, &format!("images/{name}"), &jpeg(seed));
            seed += 1;
        }
        write(root, &format!("{part}.txt"), list.as_bytes());
    }
    let mut captions = String::new();
    for i in 0..6 {
        write(root, &format!("pool/{i}.jpg"), &jpeg(100 + i));
        captions +=
            &format!("{{\"image\": \"{i}.jpg\", \"caption\": \"a {} of kind {i}\"}}\n", CLASSES[i as usize % 2]);
    }
    write(root, "pool.jsonl", captions.as_bytes());
    write(root, "c.toml", CONFIG.as_bytes());
    dir
}

/// Runs all stages in `root/run` and gives the digest of each model, and `eval.json`.
fn run(root: &Path, run: &str, set: &[&str], threads: usize) -> Result<(BTreeMap<String, String>, Value)> {
    let at = |name: &str| root.join(name).display().to_string();
    let clip = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo-clip");
    let mut items: Vec<String> = set.iter().map(ToString::to_string).collect();
    for (key, path) in [
        ("run.dir", at(run)),
        ("run.cache", at("cache")),
        ("clip.path", clip.display().to_string()),
        ("data.path", at("images")),
        ("data.train", at("train.txt")),
        ("data.val", at("val.txt")),
        ("data.test", at("test.txt")),
        ("pool.path", at("pool")),
        ("pool.captions", at("pool.jsonl")),
    ] {
        items.push(format!("{key}={path}"));
    }
    let config = Config::read(&root.join("c.toml"), &items)?;
    pipeline::run(&config, Stages::All, &Library::default(), &Context::cpu(threads))?;
    let dir = root.join(run);
    let json = |path: &Path| serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).unwrap();
    let digest = |stage: &str| json(&dir.join(stage).join("done.json"))["digest"].as_str().unwrap().to_string();
    let models = ["pretrain", "finetune", "align"].map(|stage| (stage.to_string(), digest(stage)));
    Ok((models.into(), json(&dir.join("eval.json"))))
}

#[test]
fn a_list_goes_through_all_three_stages_whatever_the_threads_and_the_cache() {
    let desk = desk();
    let (models, eval) = run(desk.path(), "one", &[], 1).unwrap();
    let (again, _) = run(desk.path(), "three", &["data.cache=0"], 3).unwrap();
    assert_eq!(models, again, "one thread and three, with a cache and without");
    let stages = eval["stages"].as_object().unwrap();
    assert!(["pretrain", "finetune", "align"].iter().all(|s| stages[*s]["overall"].is_number()), "{eval}");
    let facts = &eval["facts"];
    assert_eq!(
        (&facts["held"]["server"], &facts["server_labels"]),
        (&serde_json::json!([2, 2]), &serde_json::json!(4))
    );
    let manifest = std::fs::read_to_string(desk.path().join("one/manifest.json")).unwrap();
    for source in ["train.txt", "val.txt", "test.txt", "images\""] {
        assert!(manifest.contains(source), "{source}");
    }
    let overlaps = std::fs::read_to_string(desk.path().join("one/overlaps.json")).unwrap();
    assert!(overlaps.contains("overlaps"), "{overlaps}");
}

#[test]
fn a_picture_that_cannot_be_decoded_is_named_when_it_is_met_and_missing_ones_before() {
    let desk = desk();
    write(desk.path(), "images/train/cup/3.jpg", b"no picture");
    let alone = ["pretrain.enabled=false", "align.enabled=false", "evaluate.overlaps=false"];
    let e = run(desk.path(), "broken", &alone, 1).unwrap_err().to_string();
    assert!(e.contains("train/cup/3.jpg: not a readable image"), "{e}");
    std::fs::remove_file(desk.path().join("images/train/cup/3.jpg")).unwrap();
    let e = run(desk.path(), "gone", &alone, 1).unwrap_err().to_string();
    assert!(e.contains("1 of 12 lines cannot be used") && e.contains("train/cup/3.jpg"), "{e}");
    assert!(!desk.path().join("gone/metrics.jsonl").exists());
}
