//! The published vectors, replayed draws beside numpy's and Python's own, and the laws of ours.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::data::multimodal::{Ask, Choice, Facets};
use crate::data::pool::Source;

fn row(id: &str, label: Option<u32>) -> Outline<'_> {
    Outline { id, label, has: Modalities::BOTH }
}

/// The training set of Hateful-Memes by its counts of labels; sizes depend on nothing else.
fn memes(ids: &[String]) -> Vec<Outline<'_>> {
    ids.iter().enumerate().map(|(i, id)| row(id, Some(u32::from(i >= 5481)))).collect()
}

fn ids(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("s{i}")).collect()
}

/// The published numbers of clients and concentration, unless `change` says otherwise.
fn changed(
    config: ScenarioConfig,
    change: impl Fn(&mut usize, &mut f64, &mut ScenarioDraw, &mut Option<u32>),
) -> ScenarioConfig {
    let mut config = config;
    match &mut config {
        ScenarioConfig::Aligned(c) => change(&mut c.clients, &mut c.alpha, &mut c.draw, &mut c.seed),
        ScenarioConfig::Missing(c) => change(&mut c.clients, &mut c.alpha, &mut c.draw, &mut c.seed),
        ScenarioConfig::Cross(c) => change(&mut c.clients, &mut c.alpha, &mut c.draw, &mut c.seed),
        ScenarioConfig::Hybrid(c) => change(&mut c.clients, &mut c.alpha, &mut c.draw, &mut c.seed),
    }
    config
}

fn reference(config: ScenarioConfig) -> ScenarioConfig {
    changed(config, |_, _, draw, _| *draw = ScenarioDraw::Reference)
}

fn aligned(alpha: f64) -> ScenarioConfig {
    ScenarioConfig::Aligned(AlignedConfig { alpha, ..Default::default() })
}

fn missing(beta: f64) -> ScenarioConfig {
    ScenarioConfig::Missing(MissingConfig { beta, ..Default::default() })
}

fn cross(images: usize) -> ScenarioConfig {
    ScenarioConfig::Cross(CrossConfig { images, ..Default::default() })
}

fn hybrid(keep: f64) -> ScenarioConfig {
    ScenarioConfig::Hybrid(HybridConfig { keep, ..Default::default() })
}

fn drawn(config: &ScenarioConfig, rows: &[Outline]) -> Holdings {
    draw_outlines(config, rows, &Recipe::default(), Key::from_seed(1)).unwrap()
}

fn role(held: &[Held]) -> BTreeSet<Modalities> {
    held.iter().map(|h| h.holds).collect()
}

#[test]
fn hateful_memes_is_dealt_in_the_published_sizes() {
    let ids = ids(8500);
    let rows = memes(&ids);
    let cases = [
        (0.5, [523, 1433, 173, 30, 1014, 3, 4285, 123, 507, 409]),
        (1.0, [257, 2933, 1378, 577, 166, 166, 168, 1354, 704, 797]),
        (5.0, [821, 839, 1036, 737, 1215, 1040, 640, 919, 879, 374]),
    ];
    for (alpha, want) in cases {
        let held = drawn(&reference(aligned(alpha)), &rows);
        assert_eq!(held.clients.iter().map(Vec::len).collect::<Vec<_>>(), want, "alpha {alpha}");
        let of = |client: &Vec<Held>, label: u32| {
            client.iter().filter(|h| rows[h.sample as usize].label == Some(label)).count()
        };
        if alpha == 0.5 {
            let counts = |label| held.clients.iter().map(|c| of(c, label)).collect::<Vec<_>>();
            assert_eq!(counts(0), [293, 1383, 51, 7, 788, 1, 2299, 69, 194, 396]);
            assert_eq!(counts(1), [230, 50, 122, 23, 226, 2, 1986, 54, 313, 13]);
        }
        let all: BTreeSet<u32> = held.clients.iter().flatten().map(|h| h.sample).collect();
        assert_eq!(all.len(), 8500);
    }
}

#[test]
fn cross_and_hybrid_clients_are_the_published_ones() {
    let ids = ids(8500);
    let rows = memes(&ids);
    for (images, want) in [(3, vec![0, 1, 4]), (5, vec![0, 1, 4, 6, 9]), (7, vec![0, 1, 4, 5, 6, 8, 9])] {
        let held = drawn(&reference(cross(images)), &rows);
        for (client, held) in held.clients.iter().enumerate() {
            let own = if want.contains(&client) { Modalities::IMAGE } else { Modalities::TEXT };
            assert_eq!(role(held), [own].into(), "{images}: client {client}");
        }
    }
    let rows_of = [
        (0.8, ["10", "11", "11", "10", "11", "10", "01", "11", "11", "11"]),
        (0.7, ["10", "01", "11", "10", "10", "10", "01", "11", "11", "11"]),
        (0.6, ["10", "01", "11", "10", "00", "10", "01", "11", "11", "11"]),
    ];
    for (keep, want) in rows_of {
        let held = drawn(&reference(hybrid(keep)), &rows);
        for (client, (held, want)) in held.clients.iter().zip(want).enumerate() {
            let roles = match want {
                "11" => [Modalities::BOTH].into(),
                "10" => [Modalities::IMAGE].into(),
                "01" => [Modalities::TEXT].into(),
                _ => [Modalities::IMAGE, Modalities::TEXT].into(),
            };
            assert_eq!(role(held), roles, "{keep}: client {client}");
        }
    }
}

/// VQA-RAD trains with 1,797 questions, the flashcards are 33,955.
#[test]
fn medical_clients_and_shards_are_the_published_ones() {
    let ids = ids(1797 + 33_955);
    let has = |i| if i < 1797 { Modalities::IMAGE } else { Modalities::TEXT };
    let rows: Vec<Outline> = ids.iter().enumerate().map(|(i, id)| Outline { id, label: None, has: has(i) }).collect();
    let medical = Recipe { seed: 41, ..Recipe::default() };
    let cases = [
        (3, vec![6, 5, 3], 599, 4850),
        (5, vec![6, 5, 3, 1, 7], 359, 6791),
        (7, vec![6, 5, 3, 1, 7, 4, 2], 256, 11_318),
    ];
    for (images, owners, image, text) in cases {
        let held = draw_outlines(&reference(cross(images)), &rows, &medical, Key::from_seed(1)).unwrap();
        let own = |c: usize| if owners.contains(&c) { (Modalities::IMAGE, image) } else { (Modalities::TEXT, text) };
        let mut over = [1797 - image * images, 33_955 - text * (10 - images)];
        for (client, held) in held.clients.iter().enumerate() {
            let (holds, share) = own(client);
            assert_eq!(role(held), [holds].into());
            let rest = &mut over[usize::from(holds == Modalities::TEXT)];
            assert!(
                held.len() == share || held.len() == share + *rest,
                "{images}: client {client} holds {}",
                held.len()
            );
            *rest -= held.len() - share;
        }
        // The rest went to the last client of each list.
        assert_eq!(over, [0, 0]);
        assert_eq!(held.clients[*owners.last().unwrap()].len(), image + (1797 - image * images));
    }
}

/// `tests/golden/fedmllm/scenario.json`, written by the script beside it with numpy and Python.
#[derive(serde::Deserialize)]
struct Golden {
    labels: Vec<u32>,
    cases: Vec<Case>,
    cross: Vec<Vec<Vec<u32>>>,
    medical_hybrid: Vec<Vec<Vec<u32>>>,
}

#[derive(serde::Deserialize)]
struct Case {
    clients: usize,
    alpha: f64,
    first_only: bool,
    held: Vec<Vec<u32>>,
    missing: Vec<Vec<[u8; 2]>>,
    hybrid: Vec<Vec<[u8; 2]>>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../../../tests/golden/fedmllm/scenario.json")).unwrap()
}

#[test]
fn the_reference_draws_are_numpys_and_pythons_to_the_sample_and_the_mask() {
    let golden = golden();
    let ids = ids(golden.labels.len());
    let rows: Vec<Outline> = ids.iter().zip(&golden.labels).map(|(id, l)| row(id, Some(*l))).collect();
    for case in golden.cases {
        let recipe = Recipe { seed: 42, fills_first_label_only: case.first_only };
        for (scenario, want) in [(missing(0.4), &case.missing), (hybrid(0.4), &case.hybrid)] {
            let config =
                changed(reference(scenario), |clients, alpha, _, _| (*clients, *alpha) = (case.clients, case.alpha));
            let held = draw_outlines(&config, &rows, &recipe, Key::from_seed(1)).unwrap();
            for (client, (held, (own, masks))) in held.clients.iter().zip(case.held.iter().zip(want)).enumerate() {
                assert_eq!(held.iter().map(|h| h.sample).collect::<Vec<_>>(), *own, "{client}");
                let got: Vec<[u8; 2]> = held.iter().map(|h| [h.holds.image.into(), h.holds.text.into()]).collect();
                assert_eq!(got, *masks, "client {client} of {}", case.clients);
            }
        }
    }
}

#[test]
fn the_reference_shards_of_open_questions_are_pythons_to_the_sample() {
    let golden = golden();
    let ids = ids(130);
    let has = |i| if i < 53 { Modalities::IMAGE } else { Modalities::TEXT };
    let rows: Vec<Outline> = ids.iter().enumerate().map(|(i, id)| Outline { id, label: None, has: has(i) }).collect();
    let medical = Recipe { seed: 41, ..Recipe::default() };
    let scenes = [cross(3), cross(5), cross(7), hybrid(0.8), hybrid(0.4)];
    let wants = golden.cross.iter().chain(&golden.medical_hybrid);
    for (scene, want) in scenes.into_iter().zip(wants) {
        let held = draw_outlines(&reference(scene), &rows, &medical, Key::from_seed(1)).unwrap();
        let got: Vec<Vec<u32>> = held.clients.iter().map(|c| c.iter().map(|h| h.sample).collect()).collect();
        assert_eq!(got, *want);
    }
}

#[test]
fn a_keyed_mask_depends_on_the_sample_and_not_on_who_else_is_there() {
    let ids = ids(3000);
    let rows: Vec<Outline> = ids.iter().enumerate().map(|(i, id)| row(id, Some(i as u32 % 2))).collect();
    let masks = |rows: &[Outline]| -> BTreeMap<String, Modalities> {
        let held = drawn(&missing(0.4), rows);
        held.clients.iter().flatten().map(|h| (rows[h.sample as usize].id.to_string(), h.holds)).collect()
    };
    let (all, some) = (masks(&rows), masks(&rows[700..1900]));
    assert!(some.iter().all(|(id, holds)| all[id] == *holds));
    let share = |holds| all.values().filter(|h| **h == holds).count() as f64 / 3000.0;
    // 36 %, 24 %, 24 %, 16 %, within four standard deviations.
    for (holds, want) in
        [(Modalities::BOTH, 0.36), (Modalities::IMAGE, 0.24), (Modalities::TEXT, 0.24), (Modalities::NEITHER, 0.16)]
    {
        assert!((share(holds) - want).abs() < 0.036, "{holds:?}: {}", share(holds));
    }
}

#[test]
fn keyed_scenarios_deal_every_sample_once_and_keep_their_rules() {
    let ids = ids(900);
    let rows: Vec<Outline> = ids.iter().enumerate().map(|(i, id)| row(id, Some(i as u32 % 3))).collect();
    for config in [ScenarioConfig::default(), missing(0.5), cross(3), hybrid(0.6), hybrid(0.0)] {
        let held = drawn(&config, &rows);
        let all: BTreeSet<u32> = held.clients.iter().flatten().map(|h| h.sample).collect();
        assert_eq!((all.len(), held.clients.iter().map(Vec::len).sum::<usize>()), (900, 900));
        assert_eq!(held, drawn(&config, &rows));
        let other = draw_outlines(&config, &rows, &Recipe::default(), Key::from_seed(2)).unwrap();
        assert_ne!(held, other);
        let seeded = changed(config, |_, _, _, seed| *seed = Some(9));
        assert_eq!(
            drawn(&seeded, &rows),
            draw_outlines(&seeded, &rows, &Recipe::default(), Key::from_seed(2)).unwrap()
        );
    }
    let images = drawn(&cross(3), &rows).clients.iter().filter(|c| role(c) == [Modalities::IMAGE].into()).count();
    assert_eq!(images, 3);
    // Who holds neither keeps one of the two, sample by sample.
    let none = drawn(&hybrid(0.0), &rows);
    let roles: BTreeSet<Modalities> = none.clients.iter().flatten().map(|h| h.holds).collect();
    assert_eq!(roles, [Modalities::IMAGE, Modalities::TEXT].into());
}

#[test]
fn keyed_open_questions_go_to_the_clients_of_their_modality_in_equal_shares() {
    let ids = ids(200);
    let has = |i| if i < 80 { Modalities::IMAGE } else { Modalities::TEXT };
    let rows: Vec<Outline> = ids.iter().enumerate().map(|(i, id)| Outline { id, label: None, has: has(i) }).collect();
    let held = drawn(&cross(4), &rows);
    for client in &held.clients {
        assert_eq!((role(client).len(), client.len()), (1, 20));
    }
    let both = drawn(&hybrid(1.0), &rows);
    assert!(both.clients.iter().all(|c| c.len() == 20 && role(c).len() == 2));
    assert_eq!(drawn(&ScenarioConfig::default(), &rows).clients[0].len(), 20);
    // Pictures can be lost, questions cannot.
    let lost = drawn(&missing(1.0), &rows);
    let left = |image| if image { Modalities::NEITHER } else { Modalities::TEXT };
    assert!(lost.clients.iter().flatten().all(|h| h.holds == left(h.sample < 80)));
}

#[test]
fn a_modality_that_a_sample_lacks_is_never_held() {
    let ids = ids(60);
    let rows: Vec<Outline> = ids.iter().map(|id| Outline { id, label: Some(0), has: Modalities::TEXT }).collect();
    for config in [ScenarioConfig::default(), cross(10), reference(ScenarioConfig::default())] {
        assert!(drawn(&config, &rows).clients.iter().flatten().all(|h| !h.holds.image));
    }
}

#[test]
fn what_clients_hold_is_counted_and_named_by_a_digest() {
    let choice = std::sync::Arc::new(Choice::default());
    let sample = |id: &str, label| Sample {
        id: id.into(),
        picture: Some(Source::File("x.png".into())),
        text: Some("t".into()),
        ask: Ask::Choice(choice.clone()),
        target: String::new(),
        label: Some(label),
        facets: Facets::default(),
    };
    let train = [sample("a", 0), sample("b", 1), sample("c", 1)];
    let held = |sample, holds| Held { sample, holds };
    let holdings = Holdings {
        clients: vec![vec![held(2, Modalities::BOTH), held(0, Modalities::NEITHER)], vec![held(1, Modalities::IMAGE)]],
    };
    let json = holdings.to_json(&train).unwrap();
    let want = serde_json::json!([
        { "both": 1, "image": 0, "text": 0, "neither": 1, "labels": { "0": 1, "1": 1 } },
        { "both": 0, "image": 1, "text": 0, "neither": 0, "labels": { "1": 1 } },
    ]);
    assert_eq!(json["clients"], want);
    assert_eq!(json["digest"].as_str().unwrap().len(), 64);
    let mut other = holdings.clone();
    other.clients[1][0].holds = Modalities::TEXT;
    assert_ne!(other.digest(&train).unwrap(), holdings.digest(&train).unwrap());
    assert!(holdings.to_json(&train[..1]).is_err());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("holdings.json");
    holdings.export(&train, &path).unwrap();
    assert_eq!(Holdings::import(&train, &path).unwrap(), holdings);
    let text = std::fs::read_to_string(&path).unwrap();
    for (old, new, want) in [
        ("\"both\"", "\"text\"", "digest is"),
        ("\"both\"", "\"all\"", "both, image, text or neither, not \"all\""),
        ("\"c\"", "\"a\"", "held twice"),
        ("\"c\"", "\"d\"", "no training sample is called d"),
        ("\"samples\":3", "\"samples\":4", "made for 4 samples"),
    ] {
        assert!(text.contains(old), "{text}");
        std::fs::write(&path, text.replacen(old, new, 1)).unwrap();
        let e = Holdings::import(&train, &path).unwrap_err().to_string();
        assert!(e.contains(want) && e.contains("holdings.json"), "{e}");
    }
}

#[test]
fn what_cannot_be_drawn_is_refused_by_name() {
    let ids = ids(30);
    let rows: Vec<Outline> = ids.iter().map(|id| row(id, Some(0))).collect();
    let e = |config: &ScenarioConfig| {
        draw_outlines(config, &rows, &Recipe::default(), Key::from_seed(1)).unwrap_err().to_string()
    };
    assert!(e(&missing(1.5)).contains("scenario.beta = 1.5 is not between 0 and 1"));
    assert!(e(&hybrid(f64::NAN)).contains("scenario.keep"));
    assert!(e(&cross(11)).contains("scenario.images = 11 of 10"));
    assert!(e(&changed(aligned(1.0), |clients, _, _, _| *clients = 31)).contains("31 with 30"));
    assert!(e(&aligned(0.0)).contains("alpha"));
    let read = |text: &str| toml::from_str::<ScenarioConfig>(text);
    assert_eq!(read("kind = \"missing\"\nbeta = 0.3").unwrap(), missing(0.3));
    assert!(read("kind = \"aligned\"\nbeta = 0.3").unwrap_err().to_string().contains("beta"));
    assert!(read("kind = \"mixed\"").unwrap_err().to_string().contains("hybrid"));
    let open: Vec<Outline> = ids.iter().map(|id| Outline { id, label: None, has: Modalities::IMAGE }).collect();
    let of = |config: &ScenarioConfig| {
        draw_outlines(config, &open, &Recipe::default(), Key::from_seed(1)).unwrap_err().to_string()
    };
    assert!(of(&cross(3)).contains("without a picture"));
    assert!(of(&reference(missing(0.3))).contains("cross and hybrid"));
    let mixed: Vec<Outline> = vec![row("a", Some(0)), row("b", None)];
    let config = changed(aligned(1.0), |clients, _, _, _| *clients = 1);
    let e = draw_outlines(&config, &mixed, &Recipe::default(), Key::from_seed(1)).unwrap_err().to_string();
    assert!(e.contains("1 of 2 samples have a label"), "{e}");
}

/// The real labels in their real order, where the data is.
#[test]
fn hateful_memes_own_labels_give_the_published_sizes() {
    let Some(root) = crate::data::real_data() else { return };
    let config = crate::data::multimodal::hateful_memes::HatefulMemesConfig {
        path: root.join("hateful-memes-labels").display().to_string(),
        ..Default::default()
    };
    let set = crate::data::multimodal::hateful_memes::load(&config).unwrap();
    assert_eq!(set.train.samples.len(), 8500);
    assert_eq!(set.sources[0].noted["with neither picture nor text"], 8500);
    let held = draw(&reference(ScenarioConfig::default()), &set.train.samples, &set.recipe, Key::from_seed(1)).unwrap();
    let mixes = held.mixes(&set.train.samples).unwrap();
    assert_eq!(mixes[6].labels, BTreeMap::from([(0, 2299), (1, 1986)]));
    assert_eq!(mixes.iter().map(Mix::total).collect::<Vec<_>>(), [523, 1433, 173, 30, 1014, 3, 4285, 123, 507, 409]);
}
