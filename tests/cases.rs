//! What people really bring: small inputs after public reports, and what is right for each.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fedllava::fsx;
use fedllava::mllm::ask::Question;
use fedllava::model::clip::Picture;
use fedllava::model::llava::{Llava, revision_of};
use fedllava::model::vlm::Opened;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A working folder with a benchmark of class folders and a config.
struct Desk(TempDir);

const CONFIG: &str = r#"
[run]
cache = "cache"
threads = 1
[data]
kind = "folder"
path = "bench"
size = 16
[longtail]
kind = "none"
[partition]
kind = "iid"
clients = 2
[server_set]
per_class = 0
[model]
kind = "resnet8"
width = 4
[clip]
kind = "model"
path = "CLIP"
prompts = { kind = "templates", list = ["a {c}"] }
[pool]
kind = "folder"
path = "pool"
captions = "captions.jsonl"
[pretrain]
enabled = false
epochs = 1
batch_size = 2
[federated]
rounds = 1
cohort = 2
local_epochs = 1
batch_size = 4
[align]
enabled = false
[evaluate]
overlaps = false
"#;

/// A picture that no other seed gives, in this format.
fn picture(seed: u32, side: u32, format: image::ImageFormat) -> Vec<u8> {
    let pixel =
        |x: u32, y: u32| image::Rgb([(5 * x + seed) as u8, (3 * y + 7 * seed) as u8, (x * y + 11 * seed) as u8]);
    let image = image::RgbImage::from_fn(side, side, pixel);
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn png(seed: u32) -> Vec<u8> {
    picture(seed, 16, image::ImageFormat::Png)
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

impl Desk {
    /// Two classes, six training and two test images each.
    fn new() -> Self {
        let desk = Desk(tempfile::tempdir().unwrap());
        let clip = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo-clip");
        desk.write("c.toml", CONFIG.replace("CLIP", clip.to_str().unwrap()).as_bytes());
        for (k, class) in ["apple", "boat"].into_iter().enumerate() {
            for i in 0..8 {
                let part = if i < 6 { "train" } else { "test" };
                desk.write(&format!("bench/{part}/{class}/{i}.png"), &png(100 * k as u32 + i));
            }
        }
        desk
    }

    /// With a pool of four captioned images too.
    fn with_pool() -> Self {
        let desk = Desk::new();
        let record =
            |n: &str| format!("{}\n", json!({ "image": format!("{n}.png"), "caption": format!("a drawing of {n}") }));
        desk.write("captions.jsonl", ["a", "b", "c", "d"].map(record).concat().as_bytes());
        for (i, n) in ["a", "b", "c", "d"].into_iter().enumerate() {
            desk.write(&format!("pool/{n}.png"), &png(900 + i as u32));
        }
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fsx::write_atomic(&self.path(name), bytes).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    fn run(&self, arguments: &[&str], set: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fedllava"));
        command.current_dir(self.0.path()).env_remove("FEDLLAVA_DATA").args(arguments);
        for change in set {
            command.args(["--set", change]);
        }
        command.output().unwrap()
    }

    /// Runs, expects this exit code, and gives stderr.
    fn says(&self, code: i32, arguments: &[&str], set: &[&str]) -> String {
        let output = self.run(arguments, set);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?} {set:?}\n{said}");
        said
    }

    fn json(&self, name: &str) -> Value {
        fsx::read_json(&self.path(name)).unwrap()
    }

    fn digest(&self, run: &str) -> String {
        self.json(&format!("{run}/finetune/done.json"))["digest"].as_str().unwrap().to_string()
    }
}

const ON: &str = "pretrain.enabled=true";

#[test]
fn a_source_is_said_in_one_line_and_kept_in_the_manifest() {
    let desk = Desk::with_pool();
    desk.write("bench/train/apple/._0.png", b"Mac OS X");
    desk.write("bench/train/notes.txt", b"no class");
    let said = desk.says(0, &["pretrain", "c.toml"], &[ON, "run.dir=runs/c"]);
    assert!(
        said.contains("bench/train: 12 images; left out: 1 no images (notes.txt), 1 hidden (apple/._0.png)"),
        "{said}"
    );
    assert!(said.contains("captions.jsonl: 4 records, about 4 of 4 images"), "{said}");
    let sources = desk.json("runs/c/manifest.json")["sources"].clone();
    let of = |name: &str| sources.as_array().unwrap().iter().find(|s| s["source"] == name).cloned().unwrap();
    assert_eq!((&of("bench/train")["read"], &of("bench/train")["passed"]["hidden"]["count"]), (&json!(12), &json!(1)));
    assert_eq!(of("captions.jsonl")["joined"], json!([4, 4]));
    assert_eq!(of("pool")["read"], json!(4));
}

#[test]
fn a_start_file_under_a_prefix_starts_the_same_network_and_a_foreign_one_is_refused() {
    let desk = Desk::new();
    desk.says(0, &["finetune", "c.toml"], &["run.dir=first"]);
    let bytes = fsx::read(&desk.path("first/finetune/model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let renamed = |name: &dyn Fn(&str) -> String| {
        safetensors::serialize(file.tensors().into_iter().map(|(n, view)| (name(&n), view)), None).unwrap()
    };
    desk.write("plain.safetensors", &renamed(&|n| n.to_string()));
    desk.write("module.safetensors", &renamed(&|n| format!("module.{n}")));
    desk.write("foreign.safetensors", &renamed(&|n| n.replace('.', "_")));
    let from = |name: &str| format!("finetune.from={name}.safetensors");
    desk.says(0, &["finetune", "c.toml"], &["run.dir=plain", &from("plain")]);
    let said = desk.says(0, &["finetune", "c.toml"], &["run.dir=module", &from("module")]);
    assert!(said.contains("\"module.\" in front of their names is taken off"), "{said}");
    assert_eq!(desk.digest("plain"), desk.digest("module"));
    assert_ne!(desk.digest("plain"), desk.digest("first"));
    let said = desk.says(3, &["finetune", "c.toml"], &["run.dir=foreign", &from("foreign")]);
    assert!(said.contains("0 of") && said.contains("is it another network?"), "{said}");
    desk.says(0, &["evaluate", "c.toml", "--model", "module.safetensors"], &[]);
}

#[test]
fn a_class_without_test_images_is_null_and_said() {
    let desk = Desk::new();
    for i in 0..6 {
        desk.write(&format!("bench/train/cup/{i}.png"), &png(300 + i));
    }
    std::fs::create_dir(desk.path("bench/test/cup")).unwrap();
    let said = desk.says(0, &["finetune", "c.toml"], &["run.dir=runs/c"]);
    assert!(said.contains("no image of 1 of 3 classes (cup)"), "{said}");
    let eval = desk.json("runs/c/eval.json");
    assert_eq!(eval["per_class"][2], Value::Null);
    let seen: Vec<f64> = (0..2).map(|c| eval["per_class"][c].as_f64().unwrap()).collect();
    assert_eq!(eval["worst_class"].as_f64(), seen.iter().copied().reduce(f64::min));
    assert_eq!(eval["few"].as_f64(), Some((seen[0] + seen[1]) / 2.0));
}

#[test]
fn a_cut_file_is_left_out_of_a_pool_and_stops_a_benchmark() {
    let desk = Desk::with_pool();
    let whole = picture(5, 64, image::ImageFormat::Jpeg);
    desk.write("pool/cut.jpg", &whole[..whole.len() / 2]);
    desk.write("pool/empty.jpg", b"");
    let lines = fsx::read_text(&desk.path("captions.jsonl")).unwrap();
    let more = "{\"image\": \"cut.jpg\", \"caption\": \"x\"}\n{\"image\": \"empty.jpg\", \"caption\": \"y\"}\n";
    desk.write("captions.jsonl", (lines + more).as_bytes());
    for command in ["pretrain", "embed"] {
        let said = desk.says(3, &[command, "c.toml"], &[ON, "run.dir=no"]);
        let want = "2 of 6 images cannot be used: 2 unreadable (cut.jpg: not a readable image: a JPEG that is cut off, empty.jpg";
        assert!(said.contains(want) && said.contains("run.tolerate=0.34"), "{command}: {said}");
        let said = desk.says(0, &[command, "c.toml"], &[ON, "run.tolerate=0.34", "run.dir=yes"]);
        assert!(said.contains("pool decoded: 4 images; left out: 2 unreadable"), "{command}: {said}");
    }
    desk.write("bench/train/apple/9.jpg", &whole[..whole.len() / 2]);
    let said = desk.says(3, &["split", "c.toml"], &[]);
    assert!(said.contains("apple/9.jpg: not a readable image: a JPEG that is cut off"), "{said}");
    desk.write("bench/train/apple/9.jpg", b"GIF89a\x01\x00\x01\x00");
    let said = desk.says(3, &["split", "c.toml"], &[]);
    assert!(said.contains("apple/9.jpg: not a readable image: a GIF, which is not read"), "{said}");
}

#[test]
fn records_are_joined_by_composed_names_and_strangers_are_counted() {
    let desk = Desk::with_pool();
    std::fs::rename(desk.path("pool/d.png"), desk.path("pool/cafe\u{301}.png")).unwrap();
    let lines = fsx::read_text(&desk.path("captions.jsonl")).unwrap();
    desk.write(
        "captions.jsonl",
        format!("\u{feff}{}", lines.replace("d.png", "caf\u{e9}.png").replace('\n', "\r\n")).as_bytes(),
    );
    let said = desk.says(0, &["pretrain", "c.toml"], &[ON]);
    assert!(said.contains("captions.jsonl: 4 records, about 4 of 4 images"), "{said}");
    desk.write("captions.jsonl", lines.replace("c.png", "train2017/c.png").as_bytes());
    let said = desk.says(3, &["pretrain", "c.toml"], &[ON, "run.dir=other"]);
    assert!(
        said.contains("2 of 4 records cannot be used: 2 about no image that is there (train2017/c.png, d.png)"),
        "{said}"
    );
}

#[test]
fn other_endings_are_read_or_named() {
    let desk = Desk::new();
    use image::ImageFormat::{Bmp, Pnm, Tiff};
    for (i, (ending, format)) in [("bmp", Bmp), ("tif", Tiff), ("ppm", Pnm)].into_iter().enumerate() {
        desk.remove(&format!("bench/train/apple/{i}.png"));
        desk.write(&format!("bench/train/apple/{i}.{ending}"), &picture(i as u32, 16, format));
    }
    let said = desk.says(0, &["split", "c.toml"], &[]);
    assert!(said.contains("bench/train: 12 images"), "{said}");
    desk.write("bench/train/apple/3.gif", b"GIF89a\x01\x00\x01\x00");
    desk.write("bench/train/boat/photo", &png(1));
    let said = desk.says(3, &["split", "c.toml"], &[]);
    assert!(
        said.contains("2 of 14 images cannot be used: 2 of a kind that is not read (apple/3.gif, boat/photo)"),
        "{said}"
    );
    desk.says(0, &["split", "c.toml"], &["run.tolerate=0.2"]);
    for i in 0..6 {
        std::fs::rename(
            desk.path(&format!("bench/train/boat/{i}.png")),
            desk.path(&format!("bench/train/boat/{i}.heic")),
        )
        .unwrap();
    }
    let said = desk.says(3, &["split", "c.toml"], &[]);
    assert!(
        said.contains("class boat has no image") && said.contains("there are boat/0.heic, ") && said.contains("ppm"),
        "{said}"
    );
}

#[test]
fn hidden_folders_are_no_classes() {
    let desk = Desk::new();
    for part in ["train", "test"] {
        desk.write(&format!("bench/{part}/.ipynb_checkpoints/0.png"), &png(1));
    }
    let said = desk.says(0, &["split", "c.toml"], &[]);
    assert!(said.contains("bench/train: 12 images; left out: 1 hidden (.ipynb_checkpoints)"), "{said}");
}

#[test]
fn a_client_that_drew_nothing_is_said_to_have_drawn_nothing() {
    let desk = Desk::new();
    desk.write(
        "c.toml",
        fsx::read_text(&desk.path("c.toml"))
            .unwrap()
            .replace("kind = \"iid\"\nclients = 2", "kind = \"dirichlet\"\nclients = 10\nalpha = 0.05\nmin_size = 0")
            .as_bytes(),
    );
    let said = desk.says(2, &["split", "c.toml"], &[]);
    assert!(said.contains("drew no image") && said.contains("min_size = 0 allows that"), "{said}");
    assert!(!said.contains("server_set"), "{said}");
}

#[test]
fn a_batch_of_one_under_batch_norm_is_known_before_the_first_round() {
    let desk = Desk::new();
    desk.remove("bench/train/apple/5.png");
    // 11 images at two clients, 6 and 5, in batches of 4: 4 + 1 at the second.
    let config = fsx::read_text(&desk.path("c.toml")).unwrap();
    desk.write("c.toml", config.replace("kind = \"resnet8\"\nwidth = 4", "kind = \"resnet18\"").as_bytes());
    let deep = ["data.size=32", "run.dir=runs/c"];
    let said = desk.says(2, &["finetune", "c.toml"], &deep);
    assert!(
        said.contains("1 of 2 clients train on a batch of one image") && said.contains("federated.drop_last = true"),
        "{said}"
    );
    assert!(!desk.path("runs/c/metrics.jsonl").exists());
    desk.says(0, &["finetune", "c.toml"], &["data.size=32", "federated.drop_last=true", "run.dir=dropped"]);
    // FedYoYo shows every image twice: one image is two rows.
    desk.says(0, &["finetune", "c.toml"], &["data.size=32", "algorithm.kind=fedyoyo", "run.dir=yoyo"]);
    let aligned = ["align.enabled=true", "align.beta=0", "align.bn=update", "server_set.per_class=1", "data.size=32"];
    let one = [&aligned[..], &["align.batch_size=1", "federated.drop_last=true", "run.dir=runs/one"]].concat();
    let said = desk.says(2, &["run", "c.toml"], &one);
    assert!(said.contains("align.bn = \"update\": 2 images in batches of 1 leave a batch of one"), "{said}");
    assert!(!desk.path("runs/one/metrics.jsonl").exists());
}

/// The tiny LLaVA of `tests/golden/llava`, to be changed.
fn llava() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for path in fsx::list(&golden("llava/default")).unwrap() {
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json: Value = fsx::read_json(path).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

fn open(dir: &TempDir) -> fedllava::error::Result<Llava> {
    Llava::open(dir.path(), &fedllava::exec::Context::cpu(1))
}

#[test]
fn a_llava_is_asked_in_the_form_of_its_own_template_and_its_revision_says_so() {
    let (plain, own) = (llava(), llava());
    let picture = Picture { height: 1, width: 1, pixels: vec![0; 3].into() };
    let question = Question { picture, text: "What is it?", raw: false };
    assert_eq!(question.prompt(&open(&plain).unwrap()).unwrap(), "USER: <image>\nWhat is it? ASSISTANT:");
    let template = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    std::fs::write(own.path().join("chat_template.jinja"), template).unwrap();
    let want = "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(question.prompt(&open(&own).unwrap()).unwrap(), want);
    let revision = revision_of(plain.path()).unwrap();
    assert_ne!(revision_of(own.path()).unwrap(), revision);
    for file in ["tokenizer.json", "processor_config.json", "tokenizer_config.json", "generation_config.json"] {
        let other = llava();
        edit(&other.path().join(file), |json| json["a new key"] = 1.into());
        assert_ne!(revision_of(other.path()).unwrap(), revision, "{file}");
    }
}

#[test]
fn a_llava_that_pads_sees_the_padded_picture() {
    let (plain, padding) = (llava(), llava());
    edit(&padding.path().join("processor_config.json"), |json| {
        json["image_processor"]["image_processor_type"] = "LlavaImageProcessor".into();
        json["image_processor"]["do_pad"] = true.into();
    });
    let wide: Vec<u8> = (0..3 * 12 * 24u32).map(|i| (i * 7 % 251) as u8).collect();
    let mut square = Vec::new();
    for (plane, fill) in wide.chunks_exact(12 * 24).zip([122u8, 116, 104]) {
        square.extend(std::iter::repeat_n(fill, 6 * 24));
        square.extend_from_slice(plane);
        square.extend(std::iter::repeat_n(fill, 6 * 24));
    }
    let see = |dir: &TempDir, height: usize, pixels: &[u8]| -> Vec<f32> {
        let seen = open(dir).unwrap().see(&[Picture { height, width: 24, pixels: pixels.into() }]).unwrap();
        seen.flatten_all().unwrap().to_vec1().unwrap()
    };
    assert_eq!(see(&padding, 12, &wide), see(&plain, 24, &square));
    assert_ne!(see(&padding, 12, &wide), see(&plain, 12, &wide));
}

#[test]
fn llavas_of_another_kind_are_named_for_what_they_are() {
    let refused = |file: &str, change: &dyn Fn(&mut Value)| {
        let dir = llava();
        edit(&dir.path().join(file), change);
        open(&dir).err().expect("refused").to_string()
    };
    let e = refused("config.json", &|c| {
        *c = json!({ "model_type": "llava", "mm_vision_tower": "clip", "mm_projector_type": "mlp2x_gelu" })
    });
    assert!(e.contains("LLaVA's own repository") && e.contains("config.json"), "{e}");
    // Its tensors have other names too, and are not what is spoken of.
    let dir = llava();
    edit(&dir.path().join("config.json"), |c| *c = json!({ "model_type": "llava", "mm_vision_tower": "clip" }));
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &[0; 4]).unwrap();
    let weights = safetensors::serialize([("model.mm_projector.0.bias", view)], None).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), weights).unwrap();
    let e = Opened::open(dir.path(), &fedllava::exec::Context::cpu(1)).err().expect("refused").to_string();
    assert!(e.contains("LLaVA's own repository"), "{e}");
    let e = refused("config.json", &|c| c["quantization_config"] = json!({ "quant_method": "gptq", "bits": 4 }));
    assert!(e.contains("quantised weights (gptq 4bit)"), "{e}");
    let e = refused("tokenizer.json", &|t| {
        t["added_tokens"].as_array_mut().unwrap().retain(|a| a["content"] != "<image>");
        if let Some(vocab) = t["model"]["vocab"].as_object_mut() {
            vocab.remove("<image>");
        }
    });
    assert!(e.contains("the tokenizer has no <image>"), "{e}");
    let e = refused("processor_config.json", &|p| p["image_processor"]["do_flip"] = true.into());
    assert!(e.contains("do_flip = true may change pixels"), "{e}");
}

#[test]
fn the_hubs_variables_are_followed_and_the_place_is_said() {
    let desk = Desk::with_pool();
    let ask = |name: &str, value: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fedllava"));
        command.current_dir(desk.0.path()).env_remove("HF_HOME").env_remove("HF_HUB_CACHE").env("HOME", desk.0.path());
        command.env("TRANSFORMERS_OFFLINE", "1").env(name, value);
        command.args(["embed", "c.toml", "--set", ON, "--set", "clip.path=me/tiny"]).output().unwrap()
    };
    let snapshot = desk.path("hub/models--me--tiny/snapshots/abc");
    let said = String::from_utf8_lossy(&ask("HF_HUB_CACHE", "~/hub").stderr).into_owned();
    assert!(said.contains("TRANSFORMERS_OFFLINE is set") && said.contains("hub/models--me--tiny"), "{said}");
    std::fs::create_dir_all(&snapshot).unwrap();
    for path in fsx::list(&Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo-clip")).unwrap() {
        std::fs::copy(&path, snapshot.join(path.file_name().unwrap())).unwrap();
    }
    desk.write("hub/models--me--tiny/refs/main", b"abc");
    for (name, value) in [("HF_HUB_CACHE", "~/hub"), ("HUGGINGFACE_HUB_CACHE", "$HOME/hub")] {
        let output = ask(name, value);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_split_of_another_tool_is_imported_and_used() {
    let desk = Desk::new();
    desk.write("list.json", b"[[0, 1, 2, 6, 7], [3, 4, 8, 9]]");
    let output = desk.run(&["split", "import", "c.toml", "list.json"], &[]);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && shown.contains("clients = 2"), "{shown}");
    let config = fsx::read_text(&desk.path("c.toml")).unwrap();
    desk.write("d.toml", config.replace("kind = \"iid\"", "kind = \"file\"\npath = \"list.json\"").as_bytes());
    let said = desk.says(0, &["finetune", "d.toml"], &[]);
    assert!(said.contains("list.json: 9 indices"), "{said}");
    desk.write("list.json", b"{\"parts\": []}");
    let said = desk.says(3, &["split", "import", "c.toml", "list.json"], &[]);
    assert!(said.contains("FL-bench's partition.pkl") && !said.contains("struct"), "{said}");
}
