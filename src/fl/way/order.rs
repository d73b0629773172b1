//! Which orders make sense, and with which methods: everything else is refused with the reason, before data is read.

use super::attack::How;
use super::noise::By;
use super::{LinkConfig, Way};
use crate::error::{Error, Result};
use crate::fl::{Algorithm, Collect, Exchange, FederatedConfig, Mode, Who};
use crate::nn::{Layout, Role};

/// Refuses links out of range, orders without sense, and what the method cannot go with.
pub fn check(config: &FederatedConfig, clients: usize, algorithm: &dyn Algorithm) -> Result<()> {
    config.way.iter().try_for_each(|link| link.link().check())?;
    let links: Vec<&LinkConfig> = config.way.iter().filter(|l| !l.link().idle()).collect();
    if links.is_empty() {
        return Ok(());
    }
    if config.mode != Mode::Federated {
        return refused("nothing is sent in this federated.mode", "leave federated.way out of a control");
    }
    once(&links)?;
    order(&links)?;
    noise(&links)?;
    method(&links, algorithm)?;
    sizes(&links, clients, config.cohort)
}

fn refused(why: &str, hint: &str) -> Result<()> {
    Err(Error::input(format!("federated.way: {why}")).hint(hint))
}

/// Where the first link is that `is` wants.
fn place(links: &[&LinkConfig], is: impl Fn(&LinkConfig) -> bool) -> Option<usize> {
    links.iter().position(|link| is(link))
}

fn of(kind: &'static str) -> impl Fn(&LinkConfig) -> bool {
    move |link| link.kind() == kind
}

/// Noise that so one adds.
fn noise_by(by: By) -> impl Fn(&LinkConfig) -> bool {
    move |link| matches!(link, LinkConfig::Noise(noise) if noise.by == by)
}

/// Every kind once; attacks as often as one likes.
fn once(links: &[&LinkConfig]) -> Result<()> {
    for (i, link) in links.iter().enumerate() {
        let kind = link.kind();
        if kind != "attack" && links[..i].iter().any(|l| l.kind() == kind) {
            return refused(&format!("{kind} stands in it twice"), "keep one of them");
        }
    }
    Ok(())
}

/// Pairs that cannot follow each other: `(earlier, later, why, what to do)`.
fn order(links: &[&LinkConfig]) -> Result<()> {
    let lies = |link: &LinkConfig| matches!(link, LinkConfig::Attack(attack) if attack.how != How::LabelFlip);
    let at = |kind| place(links, of(kind));
    let last_lie = links.iter().rposition(|l| lies(l));
    let own = place(links, noise_by(By::Client));
    let masked = "a masked step is an integer that says nothing by itself";
    for (early, late, why, hint) in [
        (at("mask"), at("clip"), format!("clip behind mask: {masked}"), "put the clip before the mask"),
        (at("mask"), own, format!("noise by clients behind mask: {masked}"), "put the noise before the mask"),
        (at("mask"), last_lie, format!("attack behind mask: {masked}"), "put the attack before the mask"),
        (at("compress"), last_lie, "attack behind compress: what is attacked is encoded".into(), "put it before"),
        (at("robust"), at("clip"), "clip behind robust: it is for each client".into(), "put the clip before"),
        (at("robust"), at("compress"), "compress behind robust: it is for each client".into(), "put it before"),
        (at("robust"), own, "noise by clients behind robust: it is for each client".into(), "put it before"),
        (at("robust"), last_lie, "attack behind robust: it is for each client".into(), "put it before"),
    ] {
        if early.zip(late).is_some_and(|(early, late)| early < late) {
            return refused(&why, hint);
        }
    }
    let both = |a, b| at(a).is_some() && at(b).is_some();
    if both("mask", "robust") {
        let why = "robust with mask: the rule looks at each step, and the mask hides them";
        return refused(why, "keep one of them; a clip before the mask holds lies to a norm");
    }
    if both("mask", "compress") {
        let why = "compress with mask: encodings do not add up as integers do";
        return refused(why, "keep one of them; fewer bits of the mask are fewer bytes");
    }
    Ok(())
}

/// What noise needs so that its epsilon is true.
fn noise(links: &[&LinkConfig]) -> Result<()> {
    let Some(noise) = place(links, of("noise")) else { return Ok(()) };
    let (clip, LinkConfig::Noise(own)) = (place(links, of("clip")), links[noise]) else {
        return Ok(());
    };
    let Some(clip) = clip.filter(|clip| *clip < noise) else {
        let why = "noise without a clip before it: a step has no largest size, and no noise hides it";
        return refused(why, "put { kind = \"clip\", norm = 1.0 } before the noise");
    };
    let between = &links[clip + 1..noise];
    if between.iter().any(|l| l.kind() == "compress") {
        let why = "noise behind clip and compress: an encoding may be longer than the clip allows";
        return refused(why, "put the compress before the clip, or behind noise by clients");
    }
    if between.iter().any(|l| matches!(l, LinkConfig::Attack(a) if a.how != How::LabelFlip)) {
        let why = "attack between clip and noise: the sum would move by more than epsilon allows for";
        return refused(why, "put the attack before the clip");
    }
    if own.by == By::Server {
        if links[noise + 1..].iter().any(|l| l.kind() == "compress") {
            return refused("compress behind noise by the server: clients compress", "put it before the clip");
        }
        if place(links, of("robust")).is_some() {
            let why = "robust with noise by the server: one client may move the rule's result by more than the clip";
            return refused(why, "choose noise by = \"client\", or leave one of them out");
        }
    }
    let LinkConfig::Clip(norm) = links[clip] else { return Ok(()) };
    if norm.adapts() && own.by == By::Server && 2.0 * norm.count_noise <= own.multiplier {
        let why = format!(
            "clip: count_noise = {}: noise by the server with multiplier = {} needs more than half of that",
            norm.count_noise, own.multiplier
        );
        return refused(&why, "a twentieth of the cohort is usual; raise it above half the multiplier");
    }
    if norm.adapts() && own.by == By::Client {
        let why =
            "a clip that follows a quantile with noise by clients: whether a step is within it would be sent bare";
        return refused(why, "set the clip's quantile = 0");
    }
    Ok(())
}

/// Methods whose replies carry what a link cannot treat.
fn method(links: &[&LinkConfig], algorithm: &dyn Algorithm) -> Result<()> {
    let hint = "choose a method that sends its model alone, such as fedavg, fedprox or fedadam";
    for kind in ["noise", "mask", "robust"] {
        if place(links, of(kind)).is_none() {
            continue;
        }
        if algorithm.needs().each {
            return refused(&format!("{kind}: this algorithm.kind looks at each client's reply by itself"), hint);
        }
        let beside = algorithm.about().leaves;
        if !beside.is_empty() && kind != "mask" {
            return refused(&format!("{kind}: with this algorithm.kind there leaves a client, too: {beside}"), hint);
        }
    }
    Ok(())
}

fn sizes(links: &[&LinkConfig], clients: usize, cohort: usize) -> Result<()> {
    for link in links {
        match link {
            LinkConfig::Attack(attack) => attack.fits(clients)?,
            LinkConfig::Robust(robust) if cohort < robust.least() => {
                let (f, least) = (robust.attackers, robust.least());
                let why =
                    format!("robust: against {f} that lie the rule needs {least} clients, and a round has {cohort}");
                return refused(&why, "set federated.cohort, or fewer attackers");
            }
            LinkConfig::Mask(_) if cohort < 2 => {
                return refused("mask: a sum over one client is that client's step", "set federated.cohort");
            }
            _ => {}
        }
    }
    Ok(())
}

/// Refuses a model, or the exchanges of a method's first round, that the links cannot carry.
pub(super) fn accepts(way: &Way<'_>, model: &Layout, exchanges: &[Exchange]) -> Result<()> {
    let has = |kind: &str| way.links().any(|(_, link)| link.kind() == kind);
    let buffers: usize = model.ranges(Role::Buffer).iter().map(ExactSizeIterator::len).sum();
    if has("noise") && buffers > 0 {
        let why = format!("noise: {buffers} running statistics of batch norm leave a client bare");
        return refused(&why, "choose a network without batch norm: model.kind = \"cnn\" or \"mlp\"");
    }
    let clients = exchanges.iter().filter(|e| !matches!(e.who, Who::Server { .. }));
    for exchange in clients {
        let name = exchange.name;
        if has("mask") && (exchange.collect == Collect::Each || exchange.who == Who::All) {
            let why = format!("mask: exchange {name} of this algorithm.kind is not a sum over the cohort");
            return refused(&why, "choose another method, such as fedavg");
        }
        if has("noise") && exchange.who == Who::All {
            return refused(
                &format!("noise: exchange {name} of this algorithm.kind has none"),
                "choose another method",
            );
        }
    }
    Ok(())
}
