//! The control without a federation: each client trains by itself, in the rounds in which it is drawn. Nothing is sent,
//! the server's model never moves, and what is judged are the clients' own models.

use super::brief::{Brief, Job, Slot};
use super::reply::{Outcome, Reply};
use super::{About, Algorithm, ClientId, Collected, Cost, Exchange, Named, Needs, Now, Sizes};
use crate::error::{Error, Result};
use crate::nn::Params;

const OWN: &str = "own";

/// An algorithm's local training without its server.
pub struct Alone<'a>(pub &'a dyn Algorithm);

impl Alone<'_> {
    /// Refuses algorithms whose clients need a server.
    pub fn check(&self) -> Result<()> {
        let needs = self.0.needs();
        // Counts and moments that leave a client beside its model have nowhere to go.
        let sends = !self.0.about().leaves.is_empty();
        if sends || needs.kept || needs.each || needs.server_set || needs.unlabelled {
            return Err(Error::input("federated.mode = \"local\": this algorithm's clients need its server").hint(
                "choose algorithm.kind = \"fedavg\", or one that changes the clients' loss alone (prior = \"local\")",
            ));
        }
        Ok(())
    }
}

impl Algorithm for Alone<'_> {
    fn about(&self) -> About {
        self.0.about()
    }

    fn needs(&self) -> Needs {
        Needs { kept: true, ..self.0.needs() }
    }

    fn cost(&self, sizes: &Sizes) -> Cost {
        Cost { down: 0, up: 0, extra: self.0.cost(sizes).extra }
    }

    fn init(&self, model: &Params, now: &Now<'_>) -> Result<Named> {
        self.check()?;
        self.0.init(model, now)
    }

    fn brief(
        &self,
        model: &Params,
        state: &Named,
        exchange: &Exchange,
        now: &Now<'_>,
        client: ClientId,
    ) -> Result<Brief> {
        let mut brief = self.0.brief(model, state, exchange, now, client)?;
        for slot in &mut brief.slots {
            if let Slot::Start | Slot::Known = slot {
                *slot = Slot::KeptModel(OWN.into());
            }
        }
        Ok(brief)
    }

    fn reply(&self, _: &Job, outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        let reply = Reply::of(&outcome, Vec::new());
        Ok((reply, Some(Named::from([(OWN.to_string(), outcome.params)]))))
    }

    fn server(
        &self,
        model: &Params,
        state: &Named,
        _: &Exchange,
        _: &Collected,
        _: &Now<'_>,
    ) -> Result<(Params, Named)> {
        Ok((model.clone(), state.clone()))
    }

    fn personal(&self, _: &Params, _: &Params, kept: &Named, _: &Now<'_>) -> Result<Option<Params>> {
        Ok(kept.get(OWN).cloned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fl::AlgorithmConfig;

    #[test]
    fn what_needs_a_server_is_refused_before_the_start() {
        let alone: Vec<&str> = AlgorithmConfig::all()
            .iter()
            .filter(|(_, c)| Alone(c.algorithm()).check().is_ok())
            .map(|(kind, _)| *kind)
            .collect();
        let train_alike = ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad"];
        let own_loss = ["focal", "balancefl", "logit-adjustment", "fedlc"];
        assert_eq!(alone, [&train_alike[..], &own_loss].concat());
        let global: AlgorithmConfig = toml::from_str("kind = \"fedlc\"\nprior = \"global\"").unwrap();
        assert!(Alone(global.algorithm()).check().is_err());
    }
}
