//! The way at work in the loop, on clients that train nothing: their steps are known.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use super::*;
use crate::exec::{self, Context};
use crate::fl::round::{Federation, Server};
use crate::fl::trainer::Returned;
use crate::fl::{AlgorithmConfig, ClientId, FederatedConfig, Outcome, Supplies, Trainer};
use crate::nn::Layout;

/// Client `k` moves weight `i` by `step(k, i)` and holds `k + 1` samples.
struct Stub {
    layout: Arc<Layout>,
    supplies: Supplies<'static>,
    step: fn(ClientId, usize) -> f32,
    /// Who trained, by round.
    trained: Mutex<BTreeSet<(usize, ClientId)>>,
}

impl Trainer for Stub {
    fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    fn supplies(&self) -> &Supplies<'_> {
        &self.supplies
    }

    fn run(
        &self,
        jobs: &[Job],
        _: &Context,
        reply: &(dyn Fn(&Job, Outcome) -> Result<Returned> + Sync),
        fold: &mut (dyn FnMut(usize, Result<Returned>) -> Result<()> + Send),
    ) -> Result<()> {
        for (i, job) in jobs.iter().enumerate() {
            exec::lock(&self.trained).insert((job.round, job.client));
            let (mut params, samples) = (job.model.clone(), job.client as usize + 1);
            params.data_mut().iter_mut().enumerate().for_each(|(i, w)| *w += (self.step)(job.client, i));
            let outcome = Outcome {
                params,
                found: Named::new(),
                samples,
                counts: vec![],
                steps: 1,
                loss: Some(1.0),
                multiply_adds: 5,
            };
            fold(i, reply(job, outcome))?;
        }
        Ok(())
    }
}

/// What a run left.
struct Ran {
    server: Server,
    /// Of each round.
    figures: Vec<Vec<Figure>>,
    bytes_up: u64,
    lasts: Vec<bool>,
    trained: BTreeSet<(usize, ClientId)>,
}

/// So many weights and clients.
struct Case {
    weights: usize,
    buffers: usize,
    clients: usize,
    rounds: usize,
    kind: &'static str,
    step: fn(ClientId, usize) -> f32,
}

impl Default for Case {
    fn default() -> Self {
        Case {
            weights: 4,
            buffers: 0,
            clients: 5,
            rounds: 3,
            kind: "fedavg",
            step: |k, i| (k + 1) as f32 * (i + 1) as f32,
        }
    }
}

fn chain(text: &str) -> Vec<LinkConfig> {
    #[derive(Deserialize)]
    struct Text {
        way: Vec<LinkConfig>,
    }
    toml::from_str::<Text>(&format!("way = [{text}]")).unwrap().way
}

impl Case {
    /// The usual cohort is everybody.
    fn run(&self, way: &str) -> Result<Ran> {
        let all = |_: usize| Ok((0..self.clients as ClientId).collect());
        self.with(way, self.clients, &all)
    }

    fn with(&self, way: &str, cohort: usize, who: &(dyn Fn(usize) -> Result<Vec<ClientId>> + Sync)) -> Result<Ran> {
        let mut layout = Layout::default();
        layout.push("w", &[self.weights], Role::Weight)?;
        if self.buffers > 0 {
            layout.push("bn.running_mean", &[self.buffers], Role::Buffer)?;
        }
        let (supplies, trained) = (Supplies::default(), Mutex::default());
        let stub = Stub { layout: Arc::new(layout), supplies, step: self.step, trained };
        let algorithm: AlgorithmConfig = toml::from_str(&format!("kind = {:?}", self.kind)).unwrap();
        let config = FederatedConfig { rounds: self.rounds, cohort, way: chain(way), ..FederatedConfig::default() };
        let federation = Federation {
            algorithm: algorithm.algorithm(),
            trainer: &stub,
            config: &config,
            clients: self.clients,
            cohort: who,
            align: None,
            feedback: false,
            key: Key::from_seed(1),
        };
        let (cx, mut figures, mut bytes_up, mut lasts) = (Context::cpu(1), Vec::new(), 0, Vec::new());
        let server = federation.start(Params::zeros(stub.layout.clone()), &cx)?;
        let server = federation.run(server, &cx, &mut |finished| {
            figures.push(finished.way.to_vec());
            bytes_up += finished.tally.bytes_up;
            lasts.push(finished.last);
            Ok(())
        })?;
        let trained = std::mem::take(&mut *exec::lock(&stub.trained));
        Ok(Ran { server, figures, bytes_up, lasts, trained })
    }

    fn model(&self, way: &str) -> Vec<f32> {
        self.run(way).unwrap().server.model.data().to_vec()
    }

    fn refused(&self, way: &str) -> String {
        self.run(way).err().unwrap_or_else(|| panic!("{way} runs")).to_string()
    }
}

#[test]
fn neutral_knobs_are_fedavg_byte_for_byte_alone_and_in_one_chain() {
    let case = Case { step: |k, i| ((k * 7 + i as u32) as f32).sin(), buffers: 2, ..Case::default() };
    let (plain, neutral) = (
        case.model(""),
        [
            "{ kind = 'attack', attackers = 0 }",
            "{ kind = 'clip', norm = 0.0 }",
            "{ kind = 'compress', share = 1.0 }",
            "{ kind = 'compress', codec = 'random-k', share = 1.0 }",
            "{ kind = 'noise', multiplier = 0.0 }",
            "{ kind = 'robust', rule = 'multi-krum', attackers = 0 }",
            "{ kind = 'robust', rule = 'trimmed-mean', attackers = 0 }",
            "{ kind = 'robust', rule = 'norm-bound', bound = 0.0 }",
            "{ kind = 'drop' }",
            // At work, and without anything to do.
            "{ kind = 'attack', how = 'scaled', attackers = 3, scale = 1.0 }",
            "{ kind = 'clip', norm = 1e9 }",
            "{ kind = 'robust', rule = 'norm-bound', bound = 1e9 }",
            "{ kind = 'drop', deadline = 1e9 }",
        ],
    );
    for link in neutral {
        assert_eq!(case.model(link), plain, "{link}");
    }
    assert_eq!(case.model(&neutral.join(", ")), plain);
    assert_ne!(case.model("{ kind = 'clip', norm = 0.1 }"), plain);
}

#[test]
fn the_masked_mean_is_the_plain_one_where_its_products_are_integers_of_that_width() {
    // One round: the next one's steps are differences from a mean, which has more digits.
    let step = |k: ClientId, i: usize| (f64::from(k) * 0.25 - i as f64 * 1.5) as f32;
    let case = Case { step, buffers: 2, rounds: 1, ..Case::default() };
    for mask in ["bits = 64, fraction = 32", "bits = 32, fraction = 8", "bits = 24, fraction = 4, threshold = 1.0"] {
        assert_eq!(case.model(&format!("{{ kind = 'mask', {mask} }}")), case.model(""), "{mask}");
    }
    // Others differ by half an integer a client at most.
    let case = Case { step: |k, i| ((k * 7 + i as u32) as f32).sin(), rounds: 3, ..case };
    let (masked, plain) = (case.model("{ kind = 'mask', fraction = 16 }"), case.model(""));
    let most = 3.0 * 5.0 / (15.0 * 131_072.0) + 1e-6;
    assert!(masked != plain && masked.iter().zip(&plain).all(|(m, p)| (m - p).abs() < most), "{masked:?} {plain:?}");
}

#[test]
fn who_never_answers_changes_no_byte_of_those_who_stay_masked_or_not() {
    let case = Case { clients: 9, rounds: 6, step: |k, i| (k as f32 - 3.0) * 0.5 + i as f32, ..Case::default() };
    let all = |_: usize| Ok((0..9).collect::<Vec<ClientId>>());
    let lossy = case.with("{ kind = 'drop', share = 0.15 }", 9, &all).unwrap();
    let lost: f64 = lossy.figures.iter().flatten().filter(|f| f.0 == "lost").map(|f| f.1).sum();
    assert!(lost >= 3.0 && lossy.trained.len() == 54 - lost as usize, "{lost}");
    let stayed = |round: usize| Ok(lossy.trained.iter().filter(|t| t.0 == round).map(|t| t.1).collect());
    assert_eq!(case.with("", 9, &stayed).unwrap().server.model.data(), lossy.server.model.data());
    let masked = case.with("{ kind = 'drop', share = 0.15 }, { kind = 'mask', threshold = 0.51 }", 9, &all).unwrap();
    assert_eq!(masked.server.model.data(), lossy.server.model.data());
}

#[test]
fn a_round_whose_sum_cannot_be_opened_comes_to_nothing_and_the_run_goes_on() {
    let case = Case { clients: 9, rounds: 6, ..Case::default() };
    let strict = case.run("{ kind = 'drop', share = 0.1 }, { kind = 'mask', threshold = 1.0 }").unwrap();
    let lost = |f: &Vec<Figure>| f.iter().any(|f| f.0 == "lost" && f.1 > 0.0);
    assert!(strict.figures.iter().any(lost));
    // A whole round moves the first weight by the mean of 1 to 9, weighted by themselves.
    let whole = strict.figures.iter().filter(|f| !lost(f)).count();
    let want = whole as f32 * 285.0 / 45.0;
    assert!((strict.server.model.data()[0] - want).abs() < 1e-4, "{whole} {:?}", strict.server.model.data());
    let nobody = case.run("{ kind = 'drop', deadline = 1e-9 }").unwrap();
    assert_eq!((nobody.server.model.data(), nobody.server.round), (&[0.0; 4][..], 6));
}

#[test]
fn noise_has_the_variance_that_it_says() {
    let case = Case { weights: 20_000, clients: 4, rounds: 1, step: |_, _| 0.0, ..Case::default() };
    let deviation = |way: &str| {
        let model = case.model(way);
        (model.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>() / model.len() as f64).sqrt()
    };
    // z · C over the cohort's size; each client's own, averaged over four.
    let central = deviation("{ kind = 'clip', norm = 2.0 }, { kind = 'noise', multiplier = 3.0 }");
    assert!((central / (6.0 / 4.0) - 1.0).abs() < 0.02, "{central}");
    let local = deviation("{ kind = 'clip', norm = 2.0 }, { kind = 'noise', by = 'client', multiplier = 3.0 }");
    assert!((local / (6.0 / 2.0) - 1.0).abs() < 0.02, "{local}");
    let masked = deviation(
        "{ kind = 'clip', norm = 2.0 }, { kind = 'noise', by = 'client', multiplier = 3.0 }, { kind = 'mask' }",
    );
    assert!((masked / local - 1.0).abs() < 1e-6, "{masked}");
    // With a noised count of deviation s: (3⁻² − (2 s)⁻²)^−½ = 3 · (1 − (3 / 8)²)^−½ for s = 4.
    let raised = deviation(
        "{ kind = 'clip', norm = 2.0, quantile = 0.5, count_noise = 4.0 }, { kind = 'noise', multiplier = 3.0 }",
    );
    assert!((raised / (1.5 / (1.0f64 - 9.0 / 64.0).sqrt()) - 1.0).abs() < 0.02, "{raised}");
}

#[test]
fn under_noise_every_client_weighs_the_same_and_the_denominator_is_the_cohorts_size() {
    let case = Case { clients: 4, rounds: 1, step: |k, _| k as f32, ..Case::default() };
    // So little noise that the rest is seen.
    let way = "{ kind = 'clip', norm = 100.0 }, { kind = 'noise', multiplier = 0.05 }";
    let model = Case { weights: 4000, step: |k, _| k as f32 * 0.1, ..case }.model(way);
    let mean = model.iter().map(|w| f64::from(*w)).sum::<f64>() / 4000.0;
    assert!((mean - 0.15).abs() < 0.08, "{mean}");
}

#[test]
fn the_rounds_end_before_the_budget_is_passed_and_epsilon_is_told() {
    let case = Case { clients: 10, rounds: 40, ..Case::default() };
    let who = |round: usize| Ok(vec![round as ClientId % 10]);
    let noise = |budget: f64| {
        let noise = format!("{{ kind = 'noise', multiplier = 1.5, epsilon = {budget:?} }}");
        case.with(&format!("{{ kind = 'clip' }}, {noise}"), 1, &who).unwrap()
    };
    let (ran, free) = (noise(2.0), noise(0.0));
    let epsilon = |ran: &Ran, round: usize| ran.figures[round - 1].iter().find(|f| f.0 == noise::EPSILON).unwrap().1;
    let rounds = ran.server.round;
    assert!(rounds > 1 && rounds < 40 && free.server.round == 40);
    assert!(epsilon(&free, rounds) <= 2.0 && epsilon(&free, rounds + 1) > 2.0);
    assert_eq!(epsilon(&ran, rounds), epsilon(&free, rounds));
    assert_eq!(ran.lasts.iter().filter(|l| **l).count(), 1);
    assert!(ran.lasts[rounds - 1] && free.lasts[39]);
    let want = account::epsilon(account::Accountant::Rdp, 0.1, 1.5, rounds, 1e-5).unwrap();
    assert_eq!(epsilon(&ran, rounds), want);
}

#[test]
fn local_epsilon_is_that_of_whoever_was_asked_most_often() {
    let case = Case { clients: 10, rounds: 4, ..Case::default() };
    let who = |round: usize| Ok(if round == 2 { vec![3, 4] } else { vec![3, round as ClientId + 5] });
    let way = "{ kind = 'clip' }, { kind = 'noise', by = 'client', multiplier = 8.0 }";
    let ran = case.with(way, 2, &who).unwrap();
    let want = account::epsilon(account::Accountant::Rdp, 1.0, 4.0, 4, 1e-5).unwrap();
    assert_eq!(ran.figures[3][0].1, want);
}

#[test]
fn a_norm_that_follows_a_quantile_comes_to_the_clients_median() {
    // Norms 2, 4, 6, 8, 10.
    let case = Case { rounds: 60, step: |k, _| (k + 1) as f32, ..Case::default() };
    let ran = case.run("{ kind = 'clip', norm = 0.1, quantile = 0.5 }").unwrap();
    let norm = ran.figures[59].iter().find(|f| f.0 == "clip_norm").unwrap().1;
    assert!((4.5..7.5).contains(&norm), "{norm}");
    // The part that said so reaches no method.
    assert!(ran.server.state.is_empty() && ran.server.way.len() == 1);
}

#[test]
fn what_an_encoding_lost_comes_with_the_next_step() {
    let case = Case { clients: 1, weights: 6, rounds: 5, step: |_, i| (i as f32 + 1.0) * 0.5, ..Case::default() };
    for codec in ["codec = 'top-k', share = 0.34", "codec = 'sign'"] {
        let ran = case.run(&format!("{{ kind = 'compress', {codec} }}")).unwrap();
        let lost = &ran.server.kept[&0].named["way/0/lost/model"];
        for (i, (w, l)) in ran.server.model.data().iter().zip(lost.data()).enumerate() {
            let sent = 5.0 * (i as f32 + 1.0) * 0.5;
            assert!((w + l - sent).abs() < 1e-4, "{codec}: {w} + {l} is not {sent}");
        }
        let bare = case.run(&format!("{{ kind = 'compress', {codec}, error_feedback = false }}")).unwrap();
        assert!(bare.server.kept.is_empty());
    }
}

#[test]
fn bytes_are_those_of_the_encodings() {
    let case = Case { clients: 3, weights: 800, buffers: 10, rounds: 2, ..Case::default() };
    let bytes = |way: &str| case.run(way).unwrap().bytes_up / 6;
    assert_eq!(bytes(""), 4 * 810);
    assert_eq!(bytes("{ kind = 'compress', share = 0.1 }"), 1 + 100 + 4 * 80 + 40);
    assert_eq!(bytes("{ kind = 'compress', codec = 'qsgd', bits = 4, bucket = 400 }"), 2 * 4 + 400 + 40);
    assert_eq!(bytes("{ kind = 'compress', codec = 'sign' }"), 4 + 100 + 40);
    assert_eq!(bytes("{ kind = 'mask', bits = 32, fraction = 4 }"), 4 * 811);
    assert_eq!(bytes("{ kind = 'clip', quantile = 0.5 }"), 4 * 811);
}

#[test]
fn robust_rules_survive_liars_where_the_mean_does_not() {
    let case = Case { clients: 9, rounds: 2, step: |k, _| 1.0 + 0.01 * k as f32, ..Case::default() };
    for attack in ["how = 'sign-flip', scale = 50.0", "how = 'gaussian', scale = 200.0", "how = 'scaled', scale = 60.0"]
    {
        let attack = format!("{{ kind = 'attack', attackers = 2, {attack} }}");
        let off = |way: &str| case.model(way).iter().fold(0.0f32, |m, w| m.max((w - 2.0).abs()));
        assert!(off(&attack) > 5.0, "{attack}: {}", off(&attack));
        for rule in ["median", "trimmed-mean", "krum", "multi-krum", "geometric-median"] {
            let robust = format!("{attack}, {{ kind = 'robust', rule = '{rule}', attackers = 2 }}");
            assert!(off(&robust) < 0.3, "{robust}: {}", off(&robust));
        }
        let bounded = format!("{attack}, {{ kind = 'robust', rule = 'norm-bound' }}");
        assert!(off(&bounded) < 2.0, "{bounded}: {}", off(&bounded));
    }
}

#[test]
fn orders_without_sense_are_refused_with_the_reason() {
    let case = Case::default();
    let (clip, noise, mask) = ("{ kind = 'clip' }", "{ kind = 'noise' }", "{ kind = 'mask' }");
    let (compress, robust, attack) =
        ("{ kind = 'compress' }", "{ kind = 'robust' }", "{ kind = 'attack', attackers = 1 }");
    let own = "{ kind = 'noise', by = 'client' }";
    for (links, want) in [
        (vec![noise], "noise without a clip"),
        (vec![noise, clip], "noise without a clip"),
        (vec![clip, clip], "clip stands in it twice"),
        (vec![clip, compress, noise], "longer than the clip allows"),
        (vec![clip, attack, noise], "attack between clip and noise"),
        (vec![clip, noise, compress], "compress behind noise by the server"),
        (vec![mask, robust], "robust with mask"),
        (vec![compress, mask], "compress with mask"),
        (vec![mask, compress], "compress with mask"),
        (vec![mask, clip], "clip behind mask"),
        (vec![clip, mask, own], "noise by clients behind mask"),
        (vec![mask, attack], "attack behind mask"),
        (vec![compress, attack], "attack behind compress"),
        (vec![robust, clip], "clip behind robust"),
        (vec![clip, noise, robust], "robust with noise by the server"),
        (vec!["{ kind = 'clip', quantile = 0.5 }", noise], "count_noise = 0"),
        (vec!["{ kind = 'clip', quantile = 0.5 }", own], "would be sent bare"),
        (vec!["{ kind = 'clip', quantile = 1.5 }"], "quantile = 1.5"),
        (vec!["{ kind = 'clip', norm = -1.0 }"], "norm = -1"),
        (vec!["{ kind = 'compress', bits = 5 }"], "bits = 5"),
        (vec!["{ kind = 'mask', threshold = 0.3 }"], "threshold = 0.3"),
        (vec!["{ kind = 'attack', attackers = 6 }"], "attackers = 6 of 5 clients"),
        (vec!["{ kind = 'robust', rule = 'krum', attackers = 2 }"], "needs 7 clients, and a round has 5"),
        (vec!["{ kind = 'noise', multiplier = 1.0, delta = 0.0 }"], "delta = 0"),
        (vec!["{ kind = 'drop', share = 1.0 }"], "share = 1"),
    ] {
        let said = case.refused(&links.join(", "));
        assert!(said.contains(want) && said.contains("federated.way"), "{links:?}: {said}");
    }
    for links in [
        vec![clip, mask, noise],
        vec![clip, noise, mask],
        vec![compress, clip, noise],
        vec![attack, clip, own, compress],
    ] {
        assert!(case.run(&links.join(", ")).is_ok(), "{links:?}");
    }
}

#[test]
fn methods_and_models_that_a_link_cannot_carry_are_refused_by_name() {
    let with = |kind, way: &str| Case { kind, ..Case::default() }.refused(way);
    assert!(with("scaffold", "{ kind = 'clip' }, { kind = 'noise' }").contains("control variate"));
    assert!(with("fednova", "{ kind = 'robust' }").contains("one number"));
    assert!(with("fedbe", "{ kind = 'mask' }").contains("looks at each client's reply"));
    let buffers = Case { buffers: 2, ..Case::default() };
    let said = buffers.refused("{ kind = 'clip' }, { kind = 'noise' }");
    assert!(said.contains("running statistics") && said.contains("model.kind = \"cnn\""), "{said}");
    // What adds up may be masked, whatever it is.
    let nova = |way: &str| Case { kind: "fednova", step: |k, _| k as f32, ..Case::default() }.model(way);
    assert_eq!(nova("{ kind = 'mask' }"), nova(""));
}

#[test]
fn each_link_says_how_much_it_must_see() {
    let acts = |text: &str| chain(text)[0].link().acts();
    assert_eq!(acts("{ kind = 'clip' }"), Acts::Client);
    assert_eq!(acts("{ kind = 'clip', quantile = 0.5 }"), Acts::Whole);
    assert_eq!((acts("{ kind = 'mask' }"), acts("{ kind = 'robust' }")), (Acts::Leaf, Acts::Whole));
    assert_eq!((acts("{ kind = 'noise' }"), acts("{ kind = 'noise', by = 'client' }")), (Acts::Whole, Acts::Client));
}
