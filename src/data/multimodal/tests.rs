//! The published layouts: small files made here, and the real ones where they are.

use std::path::Path;

use super::*;
use crate::data::census::Why;
use crate::data::real_data;

fn write(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn picture(root: &Path, name: &str, red: u8) {
    let path = root.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    image::RgbImage::from_pixel(4, 3, image::Rgb([red, 2, 3])).save(path).unwrap();
}

fn read(config: &MultimodalConfig) -> Result<Multimodal> {
    load(config, Key::from_seed(1), &Context::cpu(1))
}

fn of(kind: &str, root: &Path) -> MultimodalConfig {
    toml::from_str(&format!("kind = {kind:?}\npath = {:?}", root.display().to_string())).unwrap()
}

#[test]
fn hateful_memes_are_read_with_what_is_missing_counted() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    (1..=3).for_each(|i| picture(root, &format!("img/0000{i}.png"), i));
    let line = |id: &str, label: &str, text: &str| {
        format!("{{\"id\":{id},\"img\":\"img/0000{id}.png\"{label},\"text\":\"{text}\"}}\n")
    };
    let train = [
        line("1", ",\"label\":1", "look \\u00fc"),
        line("2", ",\"label\":0", " so \\n"),
        line("9", ",\"label\":0", "x"),
    ];
    write(root, "train.jsonl", &train.concat());
    let test = [
        line("3", ",\"label\":1", "a"),
        line("2", ",\"label\":0", "b"),
        line("1", "", "no label"),
        line("3", ",\"label\":1", "a"),
    ];
    write(root, "test_seen.jsonl", &test.concat());
    let set = read(&of("hateful-memes", root)).unwrap();
    let [first, second] = &set.train.samples[..] else { panic!("{:?}", set.train.samples) };
    assert_eq!(
        (first.id.as_str(), first.text.as_deref(), first.label, first.target.as_str()),
        ("1", Some("look ü"), Some(1), "hateful")
    );
    assert_eq!(first.picture.as_ref().unwrap().rgb().unwrap().get_pixel(0, 0).0, [1, 2, 3]);
    assert_eq!((second.text.as_deref(), set.sources[0].noted["texts with blanks around"]), (Some("so"), 1));
    assert_eq!((set.sources[0].read, set.sources[0].passed(Why::NoImage)), (2, 1));
    assert_eq!((set.tests[0].samples.len(), set.sources[0].joined), (2, Some((2, 3))));
    assert_eq!((set.sources[1].passed(Why::Label), set.sources[1].passed(Why::Double)), (1, 1));
    assert_eq!(set.sources[1].noted["of 2 pictures that also train"], 1);
    assert!(set.val.samples.is_empty() && set.metric == Metric::Auc);
    assert!(set.sources[1].line().contains("noted: 1 of 2 pictures that also train"), "{}", set.sources[1].line());
}

#[test]
fn crisismmd_goes_by_the_images_label_and_drops_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    (1..=2).for_each(|i| picture(root, &format!("data_image/flood/{i}.jpg"), i));
    let head = "event_name\ttweet_id\timage_id\ttweet_text\timage\tlabel\tlabel_text\tlabel_image\tlabel_text_image\n";
    let line = |id: &str, text: &str, image: &str, label: &str| {
        format!(
            "flood\t9\t{id}\t{text}\tdata_image/flood/{image}.jpg\tnot_humanitarian\tvehicle_damage\t{label}\tNegative\n"
        )
    };
    let table = |part: &str| format!("crisismmd_datasplit_all/task_humanitarian_text_img_{part}.tsv");
    let train = [
        line("9_0", "RT @a: water \u{201c}rises\u{201d} https://t.co/x", "1", "affected_individuals"),
        line("9_1", "\"quoted, \"\"twice\"\"\" it said", "2", "not_humanitarian"),
        line("9_2", "https://t.co/y", "3", "vehicle_damage"),
        line("9_3", "x", "1", "other"),
    ];
    write(root, &table("train"), &(head.to_string() + &train.concat()));
    write(root, &table("test"), &(head.to_string() + &line("8_0", "https://t.co/y", "2", "injured_or_dead_people")));
    let set = read(&of("crisismmd", root)).unwrap();
    let [first, second] = &set.train.samples[..] else { panic!("{:?}", set.train.samples) };
    assert_eq!((first.text.as_deref(), first.label), (Some("RT @a: water \u{201c}rises\u{201d}"), Some(0)));
    assert_eq!(
        (second.text.as_deref(), second.target.as_str()),
        (Some("quoted, \"twice\" it said"), "not_humanitarian")
    );
    assert_eq!((set.sources[0].passed(Why::NoImage), set.sources[0].passed(Why::Label)), (1, 1));
    assert_eq!((set.tests[0].samples[0].label, set.tests[0].samples[0].text.as_deref()), (Some(2), Some("")));
    assert_eq!(set.sources[1].noted["whose text was an address alone"], 1);
    assert!(set.recipe.fills_first_label_only && set.options.len() == 8 && set.metric == Metric::MacroF1);
    write(root, &table("train"), "image_id\timage\ttweet_text\n");
    let e = read(&of("crisismmd", root)).unwrap_err().to_string();
    assert!(e.contains("no column `label_image`; there are image_id, image, tweet_text"), "{e}");
}

#[test]
fn slakes_languages_are_chosen_and_what_trains_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    picture(root, "imgs/xmlab1/source.jpg", 1);
    let row = |qid: u32, language: &str, kind: &str| {
        format!(
            r#"{{"img_id":1,"img_name":"xmlab1/source.jpg","question":"q{qid}?","answer":"a","q_lang":"{language}","location":"Lung",
            "modality":"CT","answer_type":"{kind}","base_type":"vqa","triple":["vhead","_","_"],"qid":{qid},"content_type":"Organ"}}"#
        )
    };
    let list = |rows: &[String]| format!("[{}]", rows.join(","));
    write(root, "test.json", &list(&[row(1, "en", "OPEN"), row(2, "zh", "CLOSED"), row(3, "en", "?")]));
    let both = read(&of("slake", root)).unwrap();
    assert_eq!(
        (both.tests[0].samples.len(), both.train.samples.len(), both.sources[0].noted["neither open nor closed"]),
        (3, 0, 1)
    );
    write(root, "train.json", &list(&[row(7, "en", "OPEN")]));
    let english =
        slake::SlakeConfig { languages: slake::Languages::En, path: root.display().to_string(), ..Default::default() };
    let english = read(&MultimodalConfig::Slake(english)).unwrap();
    assert_eq!(
        (english.tests[0].samples.len(), english.sources[1].passed(Why::Language), english.sources[1].lost()),
        (2, 1, 0)
    );
    assert_eq!(english.sources[1].noted["of 1 pictures that also train"], 1);
    assert_eq!(english.tests[0].samples[0].facets.more["language"], "en");
}

#[test]
fn flashcards_keep_their_own_name_and_say_what_is_odd() {
    let dir = tempfile::tempdir().unwrap();
    let row = |q: &str, a: &str| {
        format!(r#"{{"instruction":"Answer this question truthfully","input":"{q}","output":"{a}"}}"#)
    };
    let rows =
        [row("What is a star?", "Gas."), row("What is a star?", "Gas."), row("Empty?", ""), r#"{"input":"x"}"#.into()];
    write(dir.path(), "cards.json", &format!("[{}]", rows.join(",")));
    let config = flashcards::FlashcardsConfig { path: dir.path().join("cards.json").display().to_string() };
    let set = read(&MultimodalConfig::MedicalFlashcards(config)).unwrap();
    assert_eq!((set.name.as_str(), set.train.samples.len(), set.sources[0].passed(Why::NoAnswer)), ("cards", 3, 1));
    assert_eq!(set.sources[0].noted["that say again what another says"], 1);
    assert_eq!(set.sources[0].noted["with an empty question or answer"], 1);
    let first = &set.train.samples[0];
    assert_eq!((first.id.as_str(), first.has()), ("cards-000000", Modalities::TEXT));
    assert_eq!((&first.ask, first.target.as_str()), (&Ask::Open("What is a star?".into()), "Gas."));
}

#[test]
fn ones_own_records_are_choices_open_questions_or_conversations() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    picture(root, "pics/a.png", 1);
    let records = [
        r#"{"id": "1", "image": "a.png", "text": "t", "question": "Is it?", "options": ["no", "yes"], "answer": "(B)"}"#,
        r#"{"id": 2, "image": "a.png", "text": "t", "question": "Is it?", "options": ["no", "yes"], "answer": "no"}"#,
        r#"{"id": "3", "image": "a.png", "question": "Is it?", "options": ["no", "yes"], "label": 1}"#,
        r#"{"id": "4", "image": "a.png", "question": "Is it?", "options": ["no", "yes"], "answer": "perhaps"}"#,
        r#"{"id": "5", "image": "b.png", "question": "Is it?", "options": ["no", "yes"], "label": 1}"#,
        r#"{"id": "6", "image": "../pics/a.png", "question": "Is it?", "options": ["no", "yes"], "label": 1}"#,
        r#"{"id": "7", "image": ["a.png"], "question": "Is it?", "options": ["no", "yes"], "label": 1}"#,
    ];
    write(root, "train.jsonl", &records.join("\n"));
    let talk = r#"{"id": "8", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A."},
        {"from": "human", "value": "Red?"}, {"from": "gpt", "value": "Yes."}]}"#;
    write(
        root,
        "test.jsonl",
        &format!("[{talk}, {{\"question\": \"Open?\", \"answer\": 3, \"answer_type\": \"open\"}}]"),
    );
    let config = jsonl::JsonlConfig { path: root.display().to_string(), images: "pics".into(), ..Default::default() };
    let set = read(&MultimodalConfig::Jsonl(config.clone())).unwrap();
    let labels: Vec<_> = set.train.samples.iter().map(|s| (s.id.as_str(), s.label.unwrap(), s.has())).collect();
    assert_eq!(labels, [("1", 1, Modalities::BOTH), ("2", 0, Modalities::BOTH), ("3", 1, Modalities::IMAGE)]);
    let seen = &set.sources[0];
    assert_eq!((seen.passed(Why::Label), seen.passed(Why::NoImage), seen.passed(Why::Several)), (1, 2, 1));
    assert_eq!((set.options.as_slice(), set.metric), (&["no".to_string(), "yes".to_string()][..], Metric::Auc));
    let tests: Vec<_> = set.tests[0].samples.iter().map(|s| (s.id.as_str(), s.target.as_str(), s.has())).collect();
    assert_eq!(
        tests,
        [("8", "A.", Modalities::IMAGE), ("8#2", "Yes.", Modalities::IMAGE), ("test-000001", "3", Modalities::TEXT)]
    );
    assert_eq!(set.tests[0].samples[2].facets.answer_type, Some(AnswerType::Open));
    // A name composed here, taken apart on the disk; and half a character.
    std::fs::rename(root.join("pics/a.png"), root.join("pics/cafe\u{301}.png")).unwrap();
    let record = r#"{"id": "1", "image": "café.png", "question": "Is it?", "options": ["no", "yes"], "label": 1}"#;
    write(root, "train.jsonl", &format!("{record}\n{{\"id\": \"2\", \"question\": \"x \\ud83d\"}}"));
    let seen = read(&MultimodalConfig::Jsonl(config.clone())).unwrap().sources[0].clone();
    assert_eq!((seen.read, seen.passed(Why::NoText)), (1, 1), "{}", seen.line());
    write(root, "train.jsonl", "{\"id\": \"1\"\n");
    let e = read(&MultimodalConfig::Jsonl(config)).unwrap_err().to_string();
    assert!(e.contains("train.jsonl: line 1: not JSON"), "{e}");
}

#[test]
fn a_set_that_is_not_there_says_where_it_is_to_be_had_and_a_typo_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let e = read(&of("vqa-rad", dir.path())).unwrap_err().to_string();
    assert!(e.contains("VQA_RAD Dataset Public.json") && e.contains("osf.io"), "{e}");
    let e = toml::from_str::<MultimodalConfig>("kind = \"slake\"\nlanguage = \"en\"").unwrap_err().to_string();
    assert!(e.contains("languages"), "{e}");
    let e = toml::from_str::<MultimodalConfig>("kind = \"vqa\"").unwrap_err().to_string();
    assert!(e.contains("vqa-rad") && e.contains("hateful-memes"), "{e}");
}

fn real_medical(root: &Path) -> MedicalConfig {
    let path = |name: &str| root.join(name).display().to_string();
    MedicalConfig {
        vqa_rad: vqa_rad::VqaRadConfig { path: path("vqa-rad"), ..Default::default() },
        flashcards: flashcards::FlashcardsConfig { path: path("medalpaca/medical_meadow_small.json.gz") },
        slake: slake::SlakeConfig { path: path("slake"), ..Default::default() },
    }
}

#[test]
fn the_real_medical_sets_have_their_published_counts_and_traits() {
    let Some(root) = real_data() else { return };
    let set = read(&MultimodalConfig::Medical(real_medical(&root))).unwrap();
    let count = |part: &Subset, kind| part.samples.iter().filter(|s| s.facets.answer_type == Some(kind)).count();
    let [rad, slake] = &set.tests[..] else { panic!("{} tests", set.tests.len()) };
    assert_eq!((rad.samples.len(), count(rad, AnswerType::Open), count(rad, AnswerType::Closed)), (451, 179, 272));
    assert_eq!(
        (slake.samples.len(), count(slake, AnswerType::Open), count(slake, AnswerType::Closed)),
        (2094, 1258, 836)
    );
    assert_eq!(set.train.samples.len(), 1797 + 5942);
    assert_eq!(set.train.samples.iter().filter(|s| s.picture.is_some()).count(), 1797);
    assert!(set.name.contains("medical_meadow_small") && !set.name.contains("flashcards"), "{}", set.name);
    let [trained, tested, cards, chinese] = &set.sources[..] else { panic!("{} sources", set.sources.len()) };
    let numbers = |c: &Census| c.noted.get("answers that are numbers").copied().unwrap_or(0);
    assert_eq!(numbers(trained) + numbers(tested), 5);
    let blanks = |c: &Census| c.noted.get("answer types with blanks around").copied().unwrap_or(0);
    assert_eq!(blanks(trained) + blanks(tested), 2);
    assert_eq!(tested.noted["of 203 pictures that also train"], 202);
    assert_eq!(cards.noted["that say again what another says"], 92);
    assert_eq!((chinese.read, chinese.lost()), (2094, 0));
    assert_eq!(slake.samples.iter().filter(|s| s.facets.more["language"] == "en").count(), 1061);
    // Every picture decodes.
    let seen = set.train.samples.iter().chain(&rad.samples).chain(&slake.samples).filter_map(|s| s.picture.as_ref());
    let mut paths: Vec<_> = seen.map(|p| format!("{p:?}")).collect();
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), 314 + 180);
    assert!(rad.samples[0].image().unwrap().unwrap().width() > 100);
    assert_eq!((trained.joined, tested.joined, chinese.joined), (Some((313, 315)), Some((203, 315)), Some((180, 180))));
}

#[test]
fn the_real_medical_sets_are_dealt_in_the_published_shares() {
    let Some(root) = real_data() else { return };
    let set = read(&MultimodalConfig::Medical(real_medical(&root))).unwrap();
    let cross = scenario::CrossConfig { images: 3, draw: scenario::ScenarioDraw::Reference, ..Default::default() };
    let config = scenario::ScenarioConfig::Cross(cross);
    let held = scenario::draw(&config, &set.train.samples, &set.recipe, Key::from_seed(1)).unwrap();
    let mixes = held.mixes(&set.train.samples).unwrap();
    let images: Vec<usize> = mixes.iter().map(|t| t.image).collect();
    assert_eq!(images, [0, 0, 0, 599, 0, 599, 599, 0, 0, 0]);
    let texts: Vec<usize> = mixes.iter().map(|t| t.text).collect();
    assert_eq!(texts, [848, 848, 848, 0, 848, 0, 0, 848, 848, 854]);
}

#[test]
fn a_parts_digest_is_of_what_it_says_and_of_its_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    (1..=2).for_each(|i| picture(root, &format!("img/{i}.png"), i));
    let line =
        |id: u32, text: &str| format!("{{\"id\":{id},\"img\":\"img/{id}.png\",\"label\":0,\"text\":\"{text}\"}}\n");
    write(root, "test_seen.jsonl", &line(1, "x"));
    let digest = |train: &str| {
        write(root, "train.jsonl", train);
        read(&of("hateful-memes", root)).unwrap().train.digest().unwrap()
    };
    let first = digest(&(line(1, "a") + &line(2, "b")));
    assert_eq!(first, digest(&(line(1, "a") + &line(2, "b"))));
    assert_ne!(first, digest(&(line(1, "a") + &line(2, "c"))));
    assert_ne!(first, digest(&(line(2, "b") + &line(1, "a"))));
    std::fs::write(root.join("img/1.png"), [0; 3]).unwrap();
    assert_ne!(first, digest(&(line(1, "a") + &line(2, "b"))));
    let e = read(&of("hateful-memes", root)).unwrap().train.samples[0].image().unwrap_err().to_string();
    assert!(e.contains("the picture of sample 1") && e.contains("not a readable image"), "{e}");
}

/// Keys of a schema whose doc comment is missing, with their place.
fn undocumented(schema: &serde_json::Value, defs: &serde_json::Value, place: &str, found: &mut Vec<String>) {
    for (name, key) in
        schema["properties"].as_object().into_iter().flatten().filter(|(_, key)| key.get("const").is_none())
    {
        let target = key["$ref"].as_str().map_or(key, |r| &defs[r.rsplit('/').next().unwrap()]);
        if key["description"].is_null() && target["description"].is_null() {
            found.push(format!("{place}.{name}"));
        }
        undocumented(target, defs, &format!("{place}.{name}"), found);
    }
    for kind in schema["oneOf"].as_array().into_iter().flatten() {
        let target = kind["$ref"].as_str().map_or(kind, |r| &defs[r.rsplit('/').next().unwrap()]);
        undocumented(target, defs, place, found);
    }
}

#[test]
fn every_key_of_the_sections_says_what_it_means() {
    let mut found = Vec::new();
    for (place, schema) in [
        ("data", schemars::schema_for!(MultimodalConfig)),
        ("scenario", schemars::schema_for!(scenario::ScenarioConfig)),
    ] {
        let schema = schema.to_value();
        assert_eq!(schema["oneOf"].as_array().map(Vec::len), Some(if place == "data" { 8 } else { 4 }), "{schema}");
        undocumented(&schema, &schema["$defs"], place, &mut found);
    }
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn every_section_is_written_and_read_back() {
    for kind in ["hateful-memes", "crisismmd", "vqa-rad", "slake", "medical-flashcards", "medical", "jsonl", "world"] {
        let config: MultimodalConfig = toml::from_str(&format!("kind = {kind:?}")).unwrap();
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<MultimodalConfig>(&text).unwrap(), config, "{text}");
    }
}
