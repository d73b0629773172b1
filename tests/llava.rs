//! LLaVA from outside: the one that ships with the demo, the commands, and files that are broken.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fedllava::data::captions::Captions;
use fedllava::data::world::{Attribute, PIXELS, SIDE, World, WorldConfig};
use fedllava::exec::Context;
use fedllava::key::{Key, Purpose};
use fedllava::mllm::captioner::LlavaCaptioner;
use fedllava::mllm::{Captioner, Instruction, Seen};
use fedllava::model::clip::Picture;
use fedllava::model::llava::Llava;
use fedllava::model::sample::Decoding;
use serde_json::Value;

fn root(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The tiny random LLaVA of the golden files, or the reason why a changed copy of it is refused.
fn changed(change: impl Fn(&Path)) -> Result<Llava, String> {
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(root("tests/golden/llava/default")).unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    change(dir.path());
    Llava::open(dir.path(), &Context::cpu(1)).map_err(|e| e.to_string())
}

fn rewrite(folder: &Path, name: &str, change: impl Fn(&mut Value)) {
    let path = folder.join(name);
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(&path, json.to_string()).unwrap();
}

#[test]
fn broken_models_are_refused_with_what_is_wrong() {
    assert!(changed(|_| {}).is_ok());
    let shard = changed(|dir| {
        std::fs::remove_file(dir.join("model.safetensors")).unwrap();
        let index =
            r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
        std::fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
    });
    assert!(shard.err().unwrap().contains("model-00001-of-00002.safetensors"));
    let cut = changed(|dir| {
        let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
        std::fs::write(dir.join("model.safetensors"), &bytes[..bytes.len() - 100]).unwrap();
    });
    assert!(cut.err().unwrap().contains("not a whole safetensors file"));
    let tokenizer = changed(|dir| rewrite(dir, "config.json", |c| c["image_token_index"] = 7.into()));
    let e = tokenizer.err().unwrap();
    assert!(e.contains("<image>") && e.contains("tokenizer and weights from the same model"), "{e}");
    let kind = changed(|dir| rewrite(dir, "config.json", |c| c["text_config"]["model_type"] = "mamba".into()));
    let e = kind.err().unwrap();
    assert!(e.contains("mamba") && e.contains("supported: llama"), "{e}");
}

#[test]
fn more_image_tokens_than_context_are_counted_and_refused() {
    let llava = changed(|dir| rewrite(dir, "config.json", |c| c["text_config"]["max_position_embeddings"] = 40.into()));
    let e = llava.unwrap().tokens(&format!("USER: {} What? ASSISTANT:", "<image>".repeat(5))).unwrap_err().to_string();
    assert!(e.contains("exceeds the model's context of 40") && e.contains("5 images of 9"), "{e}");
}

fn run(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fedllava")).args(arguments).current_dir(folder).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn png(path: &Path) {
    let image = image::RgbImage::from_fn(20, 14, |x, y| image::Rgb([(x * 12) as u8, (y * 17) as u8, 90]));
    image.save(path).unwrap();
}

#[test]
fn ask_streams_what_its_json_holds_and_says_what_memory_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    png(&dir.path().join("a.png"));
    let model = root("tests/golden/llava/default");
    let model = model.to_str().unwrap();
    let ask = |more: &[&str]| {
        let all = [&["mllm", "ask", model, "a.png", "What is it?", "--max-new-tokens", "8"], more].concat();
        let out = run(&all, dir.path());
        assert!(out.status.success(), "{}", text(&out.stderr));
        (text(&out.stdout), text(&out.stderr))
    };
    let (streamed, talk) = ask(&["--greedy"]);
    assert!(talk.contains("million parameters") && talk.contains("for keys and values"), "{talk}");
    let json: Value = serde_json::from_str(&ask(&["--json"]).0).unwrap();
    assert_eq!(streamed.trim(), json["text"].as_str().unwrap());
    assert!(!json["token_ids"].as_array().unwrap().is_empty());
    assert!(json["timings"]["prefill_seconds"].as_f64().unwrap() > 0.0);
    let drawn = |seed: &str| ask(&["--temperature", "2", "--seed", seed]).0;
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
    let bad = run(&["mllm", "ask", "no-such-folder", "a.png", "?"], dir.path());
    assert_eq!(bad.status.code(), Some(2), "{}", text(&bad.stderr));
}

const POOL: &str = r#"
[pool]
kind = "folder"
path = "pool"
[caption]
prompts = ["short"]
batch_size = 2
captioner = { kind = "llava", path = "MODEL", decoding = { max_new_tokens = 12 } }
filter = { min_words = 1, min_similarity = -1.0, max_repeated = 1.0, test = false }
"#;

#[test]
fn a_torn_caption_file_is_repaired_and_ends_in_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("pool")).unwrap();
    for i in 0..5u8 {
        let image = image::RgbImage::from_fn(16, 16, |x, y| image::Rgb([i * 50, (x * 15) as u8, (y * 9) as u8]));
        image.save(dir.path().join(format!("pool/{i}.png"))).unwrap();
    }
    std::fs::write(dir.path().join("pool/torn.png"), "no image").unwrap();
    let model = root("tests/golden/llava/default");
    std::fs::write(dir.path().join("c.toml"), POOL.replace("MODEL", model.to_str().unwrap())).unwrap();
    let caption = || {
        let out = run(&["caption", "c.toml", "--json", "--set", "run.tolerate=0.2"], dir.path());
        assert!(out.status.success(), "{}", text(&out.stderr));
        serde_json::from_str::<Value>(&text(&out.stdout)).unwrap()
    };
    let strict = run(&["caption", "c.toml"], dir.path());
    assert_eq!(strict.status.code(), Some(3), "one of six is more than one in a hundred");
    std::fs::remove_dir_all(dir.path().join("captions")).unwrap();
    let first = caption();
    assert_eq!((first["records"].as_u64(), first["undecodable"].as_u64()), (Some(5), Some(1)));
    assert_eq!(first["dropped"]["undecodable"], 1);
    let path = dir.path().join("captions/captions.jsonl");
    let whole = std::fs::read(&path).unwrap();
    let kept = std::fs::read(dir.path().join("captions/kept.jsonl")).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 30]).unwrap();
    let again = caption();
    assert_eq!(again["written"], 1);
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    assert_eq!(std::fs::read(dir.path().join("captions/kept.jsonl")).unwrap(), kept);
    // A kept file cut in the middle of a line is refused by its line, not read in part.
    std::fs::write(dir.path().join("captions/kept.jsonl"), &whole[..whole.len() - 30]).unwrap();
    let e = Captions::read(&dir.path().join("captions/kept.jsonl")).unwrap_err().to_string();
    assert!(e.contains(" line "), "{e}");
}

/// Greedy captions of pictures by the demo's LLaVA.
fn said(planes: &[&[u8]]) -> Vec<String> {
    let cx = Context::cpu(1);
    let llava = Llava::open(&root("data/demo-llava"), &cx).unwrap();
    let captioner = LlavaCaptioner::new(llava, "demo", Decoding::greedy(24), 0).unwrap();
    let seen = |p: &&'static [u8]| Seen {
        id: "x",
        digest: "00",
        picture: Picture { height: SIDE, width: SIDE, pixels: (*p).into() },
    };
    let leaked: Vec<&'static [u8]> = planes.iter().map(|p| &*p.to_vec().leak()).collect();
    let seen: Vec<Seen> = leaked.iter().map(seen).collect();
    let prompt = Instruction::find("short").unwrap();
    captioner.answers(&seen, &prompt, &cx).unwrap().into_iter().map(|a| a.unwrap().text).collect()
}

#[test]
fn the_shipped_captions_are_of_the_shipped_pool_and_say_what_the_pictures_show() {
    let config = WorldConfig::default();
    let world = World::new(config.clone(), Key::from_seed(config.pool_seed).fold(Purpose::World, 0)).unwrap();
    let records = Captions::read(&root("data/demo-captions.jsonl")).unwrap().records;
    assert!(records.len() > 7000);
    let (pool, blank) = (world.pool(4), vec![0u8; PIXELS]);
    let own: Vec<&[u8]> = pool.pixels.chunks(PIXELS).collect();
    let mut shown: Vec<&[u8]> = own.clone();
    shown.push(&blank);
    let said_of = said(&shown);
    // Swapped pictures swap their captions; a blank one gets another than any.
    let swapped = said(&[own[1], own[0]]);
    assert_eq!(swapped, [said_of[1].clone(), said_of[0].clone()]);
    assert_ne!(said_of[0], said_of[1]);
    assert!(!said_of[..4].contains(&said_of[4]), "{said_of:?}");
    let judged = fedllava::stage::demo_captions::judge(&world, &root("data/demo-captions.jsonl"), 0).unwrap();
    assert!(judged.all.f1() > 0.6, "{:?}", judged.all);
    // Of ten shapes one is right by chance; one of five textures; one of ten colours.
    let f1 = |what| judged.each.iter().find(|(a, _)| *a == what).unwrap().1.f1();
    let (shape, texture, colour) = (f1(Attribute::Shape), f1(Attribute::Texture), f1(Attribute::Colour));
    assert!(shape > 0.28 && texture > 0.6 && colour > 0.9, "{shape} {texture} {colour}");
    let revision = Llava::open(&root("data/demo-llava"), &Context::cpu(1)).unwrap().revision().unwrap();
    for (i, pixels) in own.iter().enumerate() {
        let Some(record) = records.iter().find(|r| r.image == format!("world-{i:06}")) else { continue };
        assert_eq!(record.digest.as_deref(), Some(fedllava::fsx::sha256(pixels).as_str()));
        assert!(revision.starts_with(record.revision.as_deref().unwrap()));
    }
}

const OBJECTIVE: &str = r#"
[run]
cache = "cache"
[data]
kind = "world"
pool_images = 48
train_per_class = 12
test_per_class = 4
[longtail]
imbalance = 2
[partition]
kind = "dirichlet"
clients = 3
min_size = 2
[server_set]
per_class = 2
[model]
kind = "resnet8"
width = 4
[clip]
kind = "model"
path = "ROOT/data/demo-clip"
[pool]
kind = "world"
captions = "ROOT/data/demo-captions.jsonl"
[pretrain]
objective = "llm"
[pretrain.llm]
llava = "ROOT/data/demo-llava"
prompts = ["short"]
batch_size = 12
[federated]
rounds = 1
cohort = 2
local_epochs = 1
batch_size = 8
[align]
steps = 2
[teacher]
kind = "mllm"
path = "ROOT/data/demo-llava"
answer = "a picture of a {c}"
[evaluate]
shots = "rank:3/4/3"
overlaps = false
teacher = true
teachers = [{ kind = "clip", prompts = { kind = "templates", list = ["a {c}", "we see a {c}"] } }]
"#;

#[test]
fn a_run_through_the_language_model_with_a_multimodal_teacher_is_repeated_from_its_caches() {
    let dir = tempfile::tempdir().unwrap();
    let config = OBJECTIVE.replace("ROOT", root("").to_str().unwrap().trim_end_matches('/'));
    std::fs::write(dir.path().join("c.toml"), config).unwrap();
    let go = |name: &str, threads: &str| {
        let into = format!("run.dir={name}");
        let out = run(&["run", "c.toml", "--json", "--threads", threads, "--set", &into], dir.path());
        assert!(out.status.success(), "{}", text(&out.stderr));
        let model = std::fs::read(dir.path().join(name).join("pretrain/model.safetensors")).unwrap();
        let eval = std::fs::read(dir.path().join(name).join("eval.json")).unwrap();
        (model, serde_json::from_slice::<Value>(&eval).unwrap())
    };
    let cached = || {
        let list = std::fs::read_dir(dir.path().join("cache")).unwrap();
        let mut names: Vec<_> =
            list.map(|f| f.unwrap()).map(|f| (f.file_name(), f.metadata().unwrap().modified().unwrap())).collect();
        names.sort();
        names
    };
    let first = go("a", "2");
    let files = cached();
    let kinds = ["tokens-", "tower-", "world-test-mllm-"];
    assert!(kinds.iter().all(|k| files.iter().any(|f| f.0.to_string_lossy().starts_with(k))), "{files:?}");
    let again = go("b", "1");
    assert_eq!(first, again);
    assert_eq!(files, cached());
    let stages = &first.1["stages"];
    assert!(stages["pretrain"].is_null() && !stages["align"].is_null());
    assert!(!stages["teacher"]["overall"].is_null() && !stages["teacher clip prompts"]["overall"].is_null());
    let refused = run(&["run", "c.toml", "--set", "finetune.head_init=text"], dir.path());
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("needs pretrain.objective"), "{}", text(&refused.stderr));
}
