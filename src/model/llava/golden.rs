//! Against transformers: `tests/golden/llava/make.py`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::*;
use crate::exec::Events;
use crate::model::weights::{Init, Trainable, Width};

const MODELS: [&str; 3] = ["default", "full-gqa-tied", "two-layers-linear"];
const PROMPT: &str = "USER: <image>\nWhat is shown in this image? ASSISTANT:";

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llava").join(name)
}

fn expected(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder(name).join("expected.safetensors"), &Device::Cpu).unwrap()
}

/// Weights and config of one folder; tokenizer and processor are saved in `default` alone.
fn load(name: &str) -> Llava {
    let weights = Weights::open(&folder(name)).unwrap();
    build(name, &weights.frozen(DType::F32, &Device::Cpu), &Parts::find(&weights.names()).unwrap())
}

fn build(name: &str, source: &dyn Source, parts: &Parts) -> Llava {
    let config = LlavaConfig::read(&folder(name)).unwrap();
    let preprocess = Preprocess::square(config.vision.image_size);
    let tokenizer = Tokenizer::open(&folder("default")).unwrap();
    Llava::build(&folder(name), source, parts, config, tokenizer, preprocess).unwrap()
}

/// Height, width, planes of `a.png` and `b.png`.
fn pictures() -> Vec<(usize, usize, Vec<u8>)> {
    let read = |name: &str| {
        let image = image::open(folder(name)).unwrap().into_rgb8();
        let planes = (0..3).flat_map(|c| image.as_raw().iter().skip(c).step_by(3).copied().collect::<Vec<_>>());
        (image.height() as usize, image.width() as usize, planes.collect())
    };
    vec![read("a.png"), read("b.png")]
}

fn pixels(model: &Llava) -> Tensor {
    let pictures = pictures();
    let views: Vec<Picture> = pictures
        .iter()
        .map(|(height, width, p)| Picture { height: *height, width: *width, pixels: p.as_slice().into() })
        .collect();
    model.preprocess().batch(&views, &Device::Cpu).unwrap()
}

fn rows(t: &Tensor) -> Vec<Vec<u32>> {
    t.to_dtype(DType::U32).unwrap().to_vec2().unwrap()
}

/// Largest difference.
fn apart(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

fn logits(model: &Llava, prompt: &str, features: &Tensor) -> Tensor {
    let ids = model.tokens(prompt).unwrap();
    let both: Vec<Tensor> =
        (0..features.dim(0).unwrap()).map(|i| model.embed(&ids, &features.narrow(0, i, 1).unwrap()).unwrap()).collect();
    let hidden = model.llm().hidden(&Tensor::cat(&both, 0).unwrap(), None).unwrap();
    model.llm().logits(&hidden).unwrap()
}

#[test]
fn pixels_features_tokens_and_logits_are_those_of_transformers() {
    for name in MODELS {
        let (model, want) = (load(name), expected(name));
        let pixels = pixels(&model);
        assert!(apart(&pixels, &want["pixels"]) <= 1e-6, "{name}: pixels");
        let features = model.image_features(&pixels).unwrap();
        let off = apart(&features, &want["features"]);
        assert!(off <= 1e-4, "{name}: features {off}");
        assert_eq!(model.tokens(PROMPT).unwrap(), rows(&want["ids"])[0], "{name}");
        let off = apart(&logits(&model, PROMPT, &features), &want["logits"]);
        assert!(off <= 1e-4, "{name}: logits {off}");
        // The pictures differ, and so do the scores.
        let two = &want["logits"];
        assert!(apart(&two.narrow(0, 0, 1).unwrap(), &two.narrow(0, 1, 1).unwrap()) > 0.01);
    }
}

fn query(prompt: &str, images: Vec<usize>) -> Query<'_> {
    Query { prompt, images, key: Key::from_seed(0) }
}

/// New tokens of a greedy answer without a stop.
fn greedy(model: &Llava, queries: &[Query], features: &Tensor) -> Vec<Vec<u32>> {
    let prompts = model.prompts(queries, features).unwrap();
    model.llm().write(&prompts, &Decoding::greedy(12), &[], &Cancel::default(), |_, _| Ok(())).unwrap().tokens
}

#[test]
fn greedy_answers_are_those_of_transformers_token_for_token() {
    for name in MODELS {
        let model = load(name);
        let features = model.image_features(&pixels(&model)).unwrap();
        let answers = greedy(&model, &[query(PROMPT, vec![0]), query(PROMPT, vec![1])], &features);
        assert_eq!(answers, rows(&expected(name)["greedy"]), "{name}");
    }
}

#[test]
fn a_batch_of_prompts_of_any_length_answers_as_each_alone() {
    let model = load("default");
    let features = model.image_features(&pixels(&model)).unwrap();
    let queries = [
        query("USER: <image>\nWhat? ASSISTANT:", vec![1]),
        query("USER: <image>\n<image>\nWhat is the same in both? ASSISTANT:", vec![0, 1]),
        query("USER: Only text. ASSISTANT:", vec![]),
    ];
    let together = greedy(&model, &queries, &features);
    for (i, q) in queries.iter().enumerate() {
        assert_eq!(greedy(&model, std::slice::from_ref(q), &features)[0], together[i], "query {i}");
    }
}

#[test]
fn the_answers_loss_is_that_of_transformers() {
    for name in MODELS {
        let (model, want) = (load(name), expected(name));
        let features = model.image_features(&pixels(&model)).unwrap();
        let ids = rows(&want["full_ids"])[0].clone();
        let labels: Vec<i64> = want["labels"].flatten_all().unwrap().to_vec1().unwrap();
        let from = labels.iter().position(|l| *l >= 0).unwrap();
        for (i, want) in want["loss"].to_vec1::<f32>().unwrap().into_iter().enumerate() {
            let x = model.embed(&ids, &features.narrow(0, i, 1).unwrap()).unwrap();
            let hidden = model.llm().hidden(&x, None).unwrap();
            let scores = model.llm().logits(&hidden.narrow(1, from - 1, ids.len() - from).unwrap()).unwrap();
            let answer = Tensor::new(&ids[from..], &Device::Cpu).unwrap();
            let loss = candle_nn::loss::cross_entropy(&scores.squeeze(0).unwrap(), &answer).unwrap();
            assert!((loss.to_scalar::<f32>().unwrap() - want).abs() <= 1e-4, "{name}");
        }
    }
}

/// A checkpoint under other names.
struct Renamed<'a>(&'a dyn Source, [(&'static str, &'static str); 4]);

impl Source for Renamed<'_> {
    fn tensor(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        let (new, old) = self.1.iter().find(|(new, _)| name.starts_with(new)).unwrap();
        self.0.tensor(&name.replacen(new, old, 1), shape, init)
    }
}

#[test]
fn all_published_naming_schemes_load_the_same_model() {
    let weights = Weights::open(&folder("default")).unwrap();
    let source = weights.frozen(DType::F32, &Device::Cpu);
    let stored = ["language_model.lm_head", "language_model.model", "vision_tower", "multi_modal_projector"];
    let hub = ["language_model.lm_head", "language_model.model", "vision_tower.vision_model", "multi_modal_projector"];
    let modules = ["lm_head", "model.language_model", "model.vision_tower", "model.multi_modal_projector"];
    let want = logits(&load("default"), PROMPT, &Tensor::ones((1, 9, 16), DType::F32, &Device::Cpu).unwrap());
    for scheme in [hub, modules] {
        let rename = |name: &&str| {
            let (old, new) = stored.iter().zip(scheme).find(|(old, _)| name.starts_with(**old)).unwrap();
            name.replacen(old, new, 1)
        };
        let mut names: Vec<String> = weights.names().iter().map(rename).collect();
        names.sort();
        let parts = Parts::find(&names.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        let renamed = Renamed(&source, std::array::from_fn(|i| (scheme[i], stored[i])));
        let model = build("default", &renamed, &parts);
        let got = logits(&model, PROMPT, &Tensor::ones((1, 9, 16), DType::F32, &Device::Cpu).unwrap());
        assert_eq!(apart(&got, &want), 0.0);
    }
}

#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Events for Notes {
    fn on(&self, event: Event<'_>) {
        if let Event::Note(text) = event {
            self.0.lock().unwrap().push(text.to_string());
        }
    }
}

#[test]
fn a_folder_opens_whole_and_says_its_need_of_memory_first() {
    let notes = Arc::new(Notes::default());
    let cx = Context { events: notes.clone(), ..Context::cpu(1) };
    let model = Llava::open(&folder("default"), &cx).unwrap();
    assert_eq!(model.tokens(PROMPT).unwrap(), rows(&expected("default")["ids"])[0]);
    assert_eq!(model.config().stop, [2]);
    let stored: usize = {
        let weights = Weights::open(&folder("default")).unwrap();
        weights.names().iter().map(|n| weights.shape(n).unwrap().iter().product::<usize>()).sum()
    };
    assert_eq!(model.config().need(DType::F32, 1, 1).parameters, stored as u64);
    assert!(notes.0.lock().unwrap()[0].contains("million parameters"));
    assert_eq!(model.revision().unwrap().len(), 64);
}

fn error<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("no error"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let model = load("default");
    let features = model.image_features(&pixels(&model)).unwrap();
    let many = "<image>\n".repeat(14);
    let e = error(model.tokens(&many));
    assert!(e.contains("14 images of 9") && e.contains("context of 128"), "{e}");
    let e = error(model.prompts(&[query(PROMPT, vec![])], &features));
    assert!(e.contains("places for 1 images, 0 are given"), "{e}");

    let weights = Weights::open(&folder("default")).unwrap();
    let source = weights.frozen(DType::F32, &Device::Cpu);
    let mut config = LlavaConfig::read(&folder("default")).unwrap();
    config.image_token = 3;
    let tokenizer = Tokenizer::open(&folder("default")).unwrap();
    let parts = Parts::find(&weights.names()).unwrap();
    let wrong = Llava::build(&folder("default"), &source, &parts, config, tokenizer, Preprocess::square(14));
    let e = error(wrong);
    assert!(e.contains("is token 480") && e.contains("same model"), "{e}");
    let e = error(Parts::find(&["model.embed_tokens.weight"]));
    assert!(e.contains("no language model among the weights"), "{e}");
}

#[test]
fn a_missing_shard_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"] {
        std::fs::copy(folder("default").join(file), dir.path().join(file)).unwrap();
    }
    let index = r#"{"weight_map": {"language_model.lm_head.weight": "model-00002-of-00003.safetensors"}}"#;
    std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let e = error(Llava::open(dir.path(), &Context::cpu(1)));
    assert!(e.contains("model-00002-of-00003.safetensors"), "{e}");
}

#[test]
fn a_saved_model_opens_as_the_same_and_a_fresh_one_can_be_trained() {
    for name in MODELS {
        let dir = tempfile::tempdir().unwrap();
        let weights = Weights::open(&folder(name)).unwrap();
        let source = Trainable::load(&weights, &Device::Cpu);
        let model = build(name, &source, &Parts::find(&weights.names()).unwrap());
        let vars = source.into_vars();
        let tensors = vars.iter().map(|(n, v)| (n, v.as_tensor()));
        save(dir.path(), model.config(), tensors, Width::F32, model.preprocess(), &folder("default")).unwrap();
        let again = Llava::open(dir.path(), &Context::cpu(1)).unwrap();
        assert_eq!(again.config(), model.config(), "{name}");
        let features = again.image_features(&pixels(&again)).unwrap();
        assert!(apart(&logits(&again, PROMPT, &features), &expected(name)["logits"]) <= 1e-4, "{name}");
        // The loaded model is tied to its variables: a loss reaches the tower through projector and language model.
        let loss = logits(&model, PROMPT, &model.image_features(&pixels(&model)).unwrap()).sqr().unwrap();
        let grads = loss.sum_all().unwrap().backward().unwrap();
        let reached = vars.iter().filter(|(_, v)| grads.get(v.as_tensor()).is_some()).count();
        // Not reached: the tower's last norm, and the layers behind the chosen one.
        assert!(reached > 55, "{name}: {reached} of {}", vars.len());
    }
}

#[test]
fn scores_of_answers_are_their_log_likelihoods() {
    let model = load("default");
    let features = model.image_features(&pixels(&model)).unwrap().narrow(0, 0, 1).unwrap();
    let answers = ["red".to_string(), "a yellow triangle".into(), "two".into()];
    let scores = model.score(PROMPT, &features, &answers).unwrap();
    let from = model.tokens(PROMPT).unwrap().len();
    for (answer, score) in answers.iter().zip(scores) {
        let ids = model.tokens(&format!("{PROMPT} {answer}")).unwrap();
        let hidden = model.llm().hidden(&model.embed(&ids, &features).unwrap(), None).unwrap();
        let answers = &ids[from..];
        let scores =
            model.llm().logits(&hidden.narrow(1, from - 1, answers.len()).unwrap()).unwrap().squeeze(0).unwrap();
        let loss = candle_nn::loss::cross_entropy(&scores, &Tensor::new(answers, &Device::Cpu).unwrap()).unwrap();
        let want = -f64::from(loss.to_scalar::<f32>().unwrap()) * answers.len() as f64;
        assert_eq!(score.tokens, answers.len());
        assert!((score.log - want).abs() < 1e-4, "{answer}: {} and {want}", score.log);
    }
}
