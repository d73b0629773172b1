//! Multimodal models of every family from outside: asked, captioning, adapted, and folders that are broken.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fedllava::exec::Context;
use fedllava::mllm::captioner::{LlavaCaptioner, LlavaCaptionerConfig};
use fedllava::mllm::{Captioner, Instruction, Seen};
use fedllava::model::clip::Picture;
use fedllava::model::sample::Decoding;
use fedllava::model::vlm::Opened;
use serde_json::Value;

const FAMILIES: [&str; 3] = ["smolvlm", "qwen2_5_vl", "minicpmv"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vlm").join(name)
}

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fedllava")).args(args).output().unwrap()
}

fn asked(model: &Path, picture: &str, more: &[&str]) -> Value {
    let (model, picture) = (model.display().to_string(), golden(picture).display().to_string());
    let all = [&["mllm", "ask", &model, &picture, "What is it?", "--json", "--max-new-tokens", "8"], more].concat();
    let out = run(&all);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn every_family_answers_about_its_picture_and_an_adapter_changes_the_answer() {
    for family in FAMILIES {
        let (wide, tall) = (asked(&golden(family), "wide.png", &[]), asked(&golden(family), "tall.png", &[]));
        assert!(!wide["token_ids"].as_array().unwrap().is_empty(), "{family}");
        assert_ne!(wide["token_ids"], tall["token_ids"], "{family}: blind");
        let adapter = golden(&format!("lora_{family}"));
        if adapter.is_dir() {
            let adapted = asked(&golden(family), "wide.png", &["--adapter", adapter.to_str().unwrap()]);
            assert_ne!(wide["token_ids"], adapted["token_ids"], "{family}");
        }
    }
    let (model, picture) = (golden("smolvlm"), golden("wide.png"));
    let other = golden("lora_minicpmv");
    let wrong = run(&[
        "mllm",
        "ask",
        model.to_str().unwrap(),
        picture.to_str().unwrap(),
        "?",
        "--adapter",
        other.to_str().unwrap(),
    ]);
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && said.contains("resampler"), "{said}");
}

#[test]
fn every_family_captions() {
    let pixels: Vec<u8> = (0..3 * 20 * 30u32).map(|i| (i * 37 % 251) as u8).collect();
    let picture = |by: u8| Picture { height: 20, width: 30, pixels: pixels.iter().map(|p| p ^ by).collect() };
    for family in FAMILIES {
        let config = LlavaCaptionerConfig { path: golden(family).display().to_string(), decoding: Decoding::greedy(6) };
        let captioner = LlavaCaptioner::open(&config, 1, &Context::cpu(1)).unwrap();
        assert_eq!(captioner.identity().revision.len(), 64, "{family}");
        let seen = |id: &'static str, by: u8| Seen { id, digest: id, picture: picture(by) };
        let prompt = Instruction::new("p", "What is it?").unwrap();
        let both = captioner.answers(&[seen("0a", 0), seen("0b", 255)], &prompt, &Context::cpu(1)).unwrap();
        let alone = captioner.answers(&[seen("0b", 255)], &prompt, &Context::cpu(1)).unwrap();
        assert_eq!(both[1], alone[0], "{family}");
        assert_ne!(both[0], both[1], "{family}");
    }
}

/// A changed copy of a golden folder, or why it is refused.
fn changed(family: &str, change: impl Fn(&Path)) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(golden(family)).unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    change(dir.path());
    let opened = Opened::open(dir.path(), &Context::cpu(1)).map_err(|e| e.to_string())?;
    opened.frozen().map(|_| ()).map_err(|e| e.to_string())
}

fn rewrite(folder: &Path, name: &str, change: impl Fn(&mut Value)) {
    let path = folder.join(name);
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(&path, json.to_string()).unwrap();
}

#[test]
fn broken_folders_are_refused_with_what_is_wrong() {
    type Change = Box<dyn Fn(&mut Value)>;
    let cases: Vec<(&str, &str, Change, &str)> = vec![
        ("smolvlm", "config.json", Box::new(|c| c["model_type"] = "blip".into()), "smolvlm"),
        ("smolvlm", "config.json", Box::new(|c| c["scale_factor"] = 3.into()), "no whole number of tokens"),
        ("smolvlm", "config.json", Box::new(|c| c["image_token_id"] = 7.into()), "<image>"),
        ("smolvlm", "config.json", Box::new(|c| c["text_config"]["hidden_size"] = 32.into()), "expected shape"),
        ("smolvlm", "config.json", Box::new(|c| c["vision_config"]["hidden_act"] = "relu".into()), "relu"),
        ("smolvlm", "config.json", Box::new(|c| c["quantization_config"] = serde_json::json!({"bits": 4})), "quant"),
        ("smolvlm", "preprocessor_config.json", Box::new(|c| c["do_rescale"] = false.into()), "do_rescale"),
        ("qwen2_5_vl", "config.json", Box::new(|c| c["rope_scaling"] = Value::Null), "mrope_section"),
        ("qwen2_5_vl", "config.json", Box::new(|c| c["use_sliding_window"] = true.into()), "use_sliding_window"),
        ("qwen2_5_vl", "config.json", Box::new(|c| c["vision_config"]["num_heads"] = 5.into()), "impossible sizes"),
        ("qwen2_5_vl", "preprocessor_config.json", Box::new(|c| c["patch_size"] = 14.into()), "different patches"),
        ("minicpmv", "config.json", Box::new(|c| c["version"] = 2.5.into()), "2.6"),
        ("minicpmv", "tokenizer_config.json", Box::new(|c| c["chat_template"] = Value::Null), "chat template"),
        ("minicpmv", "preprocessor_config.json", Box::new(|c| c["scale_resolution"] = 0.into()), "scale_resolution"),
    ];
    for family in FAMILIES {
        assert_eq!(changed(family, |_| {}), Ok(()), "{family}");
    }
    for (family, file, change, word) in cases {
        let e = changed(family, |dir| rewrite(dir, file, &*change)).err().unwrap_or_else(|| panic!("{family} {word}"));
        assert!(e.contains(word), "{family} {file}: {word}: {e}");
    }
}

#[test]
fn places_and_pictures_must_agree() {
    use fedllava::model::chat::{Message, Role};
    for family in FAMILIES {
        let vlm = Opened::open(&golden(family), &Context::cpu(1)).unwrap().frozen().unwrap();
        let e = vlm.prepare(&[Message::about(1, "?")], &[]).unwrap_err().to_string();
        assert!(e.contains("places for 1 pictures, 0 are given"), "{family}: {e}");
        let picture = || Picture { height: 2, width: 2, pixels: vec![9; 12].into() };
        let e = vlm.read("no mark", &[picture()]).unwrap_err().to_string();
        assert!(e.contains("0 pictures, 1 are given"), "{family}: {e}");
        let e = vlm.sample(&[Message::about(0, "?")], &[]).unwrap_err().to_string();
        assert!(e.contains("ends with an answer"), "{family}: {e}");
        assert!(vlm.prepare(&[Message::text(Role::User, "")], &[]).is_err(), "{family}");
        let broken = Picture { height: 2, width: 2, pixels: vec![9; 11].into() };
        assert!(vlm.prepare(&[Message::about(1, "?")], &[broken]).is_err(), "{family}");
        let long = "many words ".repeat(300);
        let talk = [Message::about(0, long), Message::text(Role::Assistant, "yes")];
        let e = vlm.sample(&talk, &[]).unwrap_err().to_string();
        assert!(e.contains("context of 512"), "{family}: {e}");
    }
}
