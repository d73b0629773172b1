//! Names that users bring from other tools, and ours for them.

/// (their name, where it comes from, our key and how to convert)
const NAMES: [(&str, &str, &str); 27] = [
    ("fraction-train", "Flower", "federated.cohort, a number of clients: fraction × partition.clients"),
    ("fraction-fit", "Flower", "federated.cohort, a number of clients: fraction × partition.clients"),
    ("num-server-rounds", "Flower", "federated.rounds"),
    ("num-supernodes", "Flower", "partition.clients"),
    ("learning-rate", "Flower", "federated.optimiser.lr"),
    ("jr", "PFLlib", "federated.cohort, a number of clients: join ratio × partition.clients"),
    ("gr", "PFLlib", "federated.rounds"),
    ("nc", "PFLlib", "partition.clients"),
    ("ls", "PFLlib", "federated.local_epochs"),
    ("lbs", "PFLlib", "federated.batch_size"),
    ("lr", "PFLlib", "federated.optimiser.lr"),
    ("algo", "PFLlib", "algorithm.kind"),
    ("num_online_clients", "CReFF", "federated.cohort"),
    ("num_clients", "CReFF", "partition.clients"),
    ("num_rounds", "CReFF", "federated.rounds"),
    ("num_epochs_local_training", "CReFF", "federated.local_epochs"),
    ("batch_size_local_training", "CReFF", "federated.batch_size"),
    ("lr_local_training", "CReFF", "federated.optimiser.lr"),
    ("imb_factor", "CReFF", "longtail.imbalance (0.01 and 100 mean the same)"),
    ("imb_type", "CReFF", "longtail.kind"),
    ("non_iid_alpha", "CReFF", "partition.alpha"),
    ("num_classes", "CReFF", "data.kind, cifar10 or cifar100"),
    ("beta", "FedLab and others, a Dirichlet parameter", "partition.alpha"),
    ("epochs", "many", "federated.local_epochs"),
    ("rounds", "many", "federated.rounds"),
    ("seed", "many", "run.seed"),
    ("tolerate", "what may be lost of a data set", "run.tolerate"),
];

/// What to write instead of `name`, if another tool calls something so. Dashes and case do not matter.
pub fn translate(name: &str) -> Option<String> {
    let plain = |s: &str| s.trim_start_matches('-').replace('-', "_").to_lowercase();
    let (_, tool, ours) = NAMES.iter().find(|(theirs, _, _)| plain(theirs) == plain(name))?;
    Some(format!("`{}` ({tool}) is here {ours}", name.trim_start_matches('-')))
}

/// What other tools call one of our keys, each with the tool.
pub fn others(key: &str) -> Vec<(&'static str, &'static str)> {
    let ours = |text: &str| text.split([',', ' ']).next() == Some(key);
    NAMES.iter().filter(|(_, _, text)| ours(text)).map(|(name, tool, _)| (*name, *tool)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_and_underscores_do_not_matter() {
        assert!(translate("-jr").unwrap().contains("PFLlib"));
        assert!(translate("fraction_train").unwrap().contains("Flower"));
        assert!(translate("no-such-thing").is_none());
    }
}
