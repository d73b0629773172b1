//! Every method of the registry with its defaults, but with sizes that a toy can afford.

use fedllava::fl::AlgorithmConfig;

/// Keys that make a method small.
fn smaller(kind: &str) -> &'static str {
    match kind {
        "creff" | "clip2fl" => {
            "features_per_class = 4\nmatch_steps = 5\nhead_epochs = 3\nhead_batch = 5\nrepeats = 2\n"
        }
        "ccvr" => "samples = 8\nepochs = 2\n",
        "feddf" => "steps = 3\nbatch_size = 4\nlook_every = 2\nstop_after = 2\n",
        "fedbe" => "samples = 2\nepochs = 2\nbatch_size = 4\naverage_after = 2\naverage_every = 1\n",
        "fedloge" => "etf_steps = 20\n",
        "fedic" => "steps = 3\nbatch_size = 4\nunlabelled_batch = 4",
        _ => "",
    }
}

/// Every method, by kind.
pub fn small() -> Vec<(&'static str, AlgorithmConfig)> {
    let one = |(kind, _): (&'static str, AlgorithmConfig)| {
        let text = format!("kind = \"{kind}\"\n{}", smaller(kind));
        (kind, toml::from_str(&text).unwrap_or_else(|e| panic!("{kind}: {e}")))
    };
    AlgorithmConfig::all().into_iter().map(one).collect()
}
