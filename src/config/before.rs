//! What data, splits and teachers are asked for, held against what can be known before any of them is opened.

use super::Config;
use crate::data::{Augment, DataConfig, LongTailKind, Origin, PartitionConfig, PoolConfig};
use crate::error::{Error, Place, Result};
use crate::fl::config::Export;
use crate::nn::Backend;

impl Config {
    /// Refuses values that no data could make right.
    pub(super) fn check_before(&self) -> Result<()> {
        self.data.check("data")?;
        if self.task.mllm().is_some() {
            return self.check_machine();
        }
        if let Some(data) = &self.unlabelled.data {
            data.check("unlabelled.data")?;
        }
        let known = self.data.known();
        self.augment.check(known.map_or([3, usize::MAX, usize::MAX], |k| k.shape))?;
        self.check_augment()?;
        if let Some(known) = known {
            self.evaluate.shots.check(known.classes)?;
        }
        self.model.check()?;
        self.partition.check()?;
        if !matches!(self.partition, PartitionConfig::File(_)) {
            self.check_tail()?;
            self.check_reserves()?;
        }
        self.check_machine()?;
        self.check_teachers()?;
        self.check_pools()
    }

    /// Images in files are cut as `data.crop` says: keys that would change nothing are refused, not passed over.
    fn check_augment(&self) -> Result<()> {
        let (own, default) = (&self.augment, Augment::default());
        let idle = [
            ("crop", own.crop != default.crop, "data.crop.scale is how much of an image a random crop takes"),
            ("flip", own.flip != default.flip, "data.crop.flip is the probability: 0.0 for none"),
            ("per", own.per != default.per, "they are always cut one by one"),
        ];
        match idle.iter().find(|(_, said, _)| *said && self.data.lists().is_some()) {
            Some((key, _, instead)) => {
                Err(Error::input(format!("augment.{key} is for images in memory, and those of data.kind lie in files"))
                    .hint(format!("leave it out: {instead}")))
            }
            None => Ok(()),
        }
    }

    fn check_tail(&self) -> Result<()> {
        if let (Some((_, Some(official))), LongTailKind::Exp) = (self.data.lists(), self.longtail.kind) {
            return Err(Error::input(format!(
                "longtail.kind = \"exp\": {} is long-tailed by its own list",
                official.name
            ))
            .hint("set longtail.kind = \"none\""));
        }
        if self.longtail.kind == LongTailKind::Exp {
            self.longtail.factor()?;
        }
        let Some(known) = self.data.known() else { return Ok(()) };
        let most = known.train / known.classes.max(1);
        let held = match self.longtail.kind {
            LongTailKind::Exp => self.longtail.class_counts(most, known.classes)?.iter().sum(),
            LongTailKind::None => known.train,
        };
        self.partition.fits(held)
    }

    fn check_reserves(&self) -> Result<()> {
        self.server_set.from_train(self.data.known().map_or(1, |k| k.classes))?;
        let has_val = self.data.lists().is_some_and(|(lists, official)| official.is_some() || !lists.val.is_empty());
        if self.server_set.origin == Origin::Val && !has_val {
            return Err(Error::input("server_set.origin = \"val\": this benchmark has no validation set of its own")
                .hint("use \"train-reserve\" (the default), or name data.val where data.kind = \"list\""));
        }
        Ok(())
    }

    fn check_machine(&self) -> Result<()> {
        let run = &self.run;
        let other = |device: &str, hint: &'static str| {
            let text = format!("run.engine: this one runs on run.device = {device:?}, not on {:?}", run.device);
            Err(Error::input(text).hint(hint))
        };
        match run.engine {
            Backend::Cpu | Backend::Winograd | Backend::Emulated if run.device.starts_with("cuda") => {
                other("cpu", "use run.engine = \"auto\" or \"candle\"")
            }
            Backend::Cuda | Backend::CudaStrict if run.device == "cpu" => {
                other("cuda", "set run.device = \"cuda\" too")
            }
            _ => Ok(()),
        }
    }

    fn check_teachers(&self) -> Result<()> {
        self.clip.check().at(|| "clip")?;
        for (key, teacher) in self.teachers() {
            teacher.check().at(|| key)?;
        }
        Ok(())
    }

    fn check_pools(&self) -> Result<()> {
        let pretrain = self.pretrain.enabled.then_some(("pool", &self.pool));
        let unlabelled = self.unlabelled.pool.as_ref().map(|pool| ("unlabelled.pool", pool));
        for (key, pool) in [pretrain, unlabelled].into_iter().flatten() {
            let path = match pool {
                PoolConfig::World(_) if !matches!(self.data, DataConfig::World(_)) => {
                    return Err(Error::input(format!("{key}.kind = \"world\" goes with data.kind = \"world\"")));
                }
                PoolConfig::World(_) => continue,
                PoolConfig::Folder(c) => &c.path,
                PoolConfig::Webdataset(c) => &c.path,
            };
            let plain: String = path.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
            if matches!(self.data, DataConfig::ImagenetLt(_)) && plain.contains("tinyimagenet") {
                return Err(Error::input(format!("{key}.path = {path:?}: Tiny-ImageNet's images are ImageNet's"))
                    .hint("name a pool that holds none of the benchmark's images"));
            }
        }
        Ok(())
    }

    /// Refuses a method that asks for what this config does not name, before anything is read.
    pub fn check_supplies(&self) -> Result<()> {
        let needs = self.algorithm.algorithm().needs();
        if needs.unlabelled && !self.unlabelled.named() {
            let text = "algorithm.kind: this method needs images without labels, and the config names none";
            return Err(Error::input(text).hint("name some with unlabelled.data or unlabelled.pool"));
        }
        let drawn = !matches!(self.partition, PartitionConfig::File(_));
        if self.federated.export == Export::Best && drawn && self.validation.per_class == 0 {
            return Err(Error::input("federated.export = \"best\": there is no validation set to choose by")
                .hint("set validation.per_class; the test set never chooses"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kind of data with a path where nothing lies.
    const KINDS: [&str; 7] = [
        "kind = \"cifar10\"\npath = \"/nowhere\"",
        "kind = \"cifar100\"\npath = \"/nowhere\"",
        "kind = \"folder\"\npath = \"/nowhere\"",
        "kind = \"list\"\npath = \"/nowhere\"\ntrain = \"/nowhere/train\"\ntest = \"/nowhere/test\"",
        "kind = \"imagenet-lt\"\npath = \"/nowhere\"",
        "kind = \"places-lt\"\npath = \"/nowhere\"",
        "kind = \"world\"",
    ];

    fn said(kind: &str, rest: &str) -> String {
        let tail =
            if kind.contains("-lt") && !rest.contains("[longtail]") { "[longtail]\nkind = \"none\"\n" } else { "" };
        let text = format!("[data]\n{kind}\n{tail}{rest}");
        Config::from_table(toml::from_str(&text).unwrap()).map(|_| String::new()).unwrap_or_else(|e| e.to_string())
    }

    #[test]
    fn a_wrong_value_is_refused_before_any_data_is_looked_for() {
        let wrong = [
            ("[augment]\nstd = [0.2, 0.0, 0.2]", "augment.std"),
            ("[augment]\nmean = [0.5]", "1 means and 3 deviations"),
            ("[longtail]\nimbalance = -3.0", "longtail.imbalance = -3"),
            ("[partition]\nalpha = 0.0", "partition.alpha = 0"),
            ("[partition]\nkind = \"dirichlet\"\nalpha = -1.0", "partition.alpha = -1"),
            ("[partition]\nkind = \"dirichlet\"\nattempts = 0", "partition.attempts = 0"),
            ("[partition]\nkind = \"shards\"\nper_client = 0", "partition.per_client = 0"),
            ("[server_set]\norigin = \"test\"", "test images never align"),
            ("[server_set]\norigin = \"pool\"", "no labelled pool"),
            ("[server_set]\norigin = \"folder\"", "needs server_set.path"),
            ("[model]\nkind = \"resnet8\"\nwidth = 0", "width"),
            ("[teacher]\nkind = \"clip\"\ntemperature = 0.0", "teacher: temperature = 0"),
            (
                "[clip]\nkind = \"model\"\nprompts = { kind = \"templates\", list = [\"a photo\"] }",
                "no place for the class",
            ),
            ("[align]\nbeta = -1.0", "align: beta -1"),
            ("[pretrain]\nbatch_size = 1", "pretrain.batch_size"),
            ("[algorithm]\nkind = \"feddyn\"\nalpha = 0.0", "algorithm.alpha = 0"),
            ("[unlabelled]\ndata = { kind = \"list\", crop = { side = 0 } }", "unlabelled.data.crop.side = 0"),
        ];
        for (kind, (rest, want)) in KINDS.iter().flat_map(|k| wrong.iter().map(move |w| (k, w))) {
            let tail = kind.contains("-lt") && rest.contains("[longtail]");
            let (got, want) = (said(kind, rest), if tail { "long-tailed by its own list" } else { want });
            assert!(got.contains(want) && !got.contains("/nowhere"), "{kind} with {rest}: {got:?}");
        }
        for (kind, key) in
            KINDS.iter().flat_map(|k| ["crop = 0", "flip = false", "per = \"image\""].map(move |key| (k, key)))
        {
            let (got, name) = (said(kind, &format!("[augment]\n{key}")), key.split(' ').next().unwrap());
            let refused = got.contains(&format!("augment.{name} is for images in memory"));
            assert_eq!(refused, kind.contains("\"list\"") || kind.contains("-lt"), "{kind} with {key}: {got:?}");
        }
        // What only some kinds can know.
        for kind in KINDS.iter().filter(|k| !k.contains("\"folder\"") && !k.contains("\"list\"")) {
            let got = said(kind, "[evaluate]\nshots = \"rank:1/1/1\"");
            assert!(got.contains("names 3 classes, there are"), "{kind}: {got:?}");
            let got = said(kind, "[partition]\nkind = \"iid\"\nclients = 1000000\n[federated]\ncohort = 2");
            assert!(got.contains("partition.clients = 1000000 with"), "{kind}: {got:?}");
        }
        for kind in ["list\"\npath = \"/nowhere\"\ntrain = \"a\"\ntest = \"b", "imagenet-lt", "places-lt"] {
            let got = said(&format!("kind = \"{kind}\""), "[data.crop]\nresize = 100");
            assert!(got.contains("data.crop.resize = 100"), "{got:?}");
        }
        assert!(said("kind = \"world\"\ncovered_share = 2.0", "").contains("covered_share = 2"));
        assert!(said(KINDS[0], "[server_set]\norigin = \"val\"").contains("no validation set of its own"));
        assert_eq!(said(KINDS[4], "[server_set]\norigin = \"val\""), "");
        let tiny = "[pool]\nkind = \"webdataset\"\npath = \"pool-tiny-imagenet\"";
        assert!(said(KINDS[4], tiny).contains("Tiny-ImageNet's images are ImageNet's"));
        assert_eq!(said(KINDS[0], tiny), "");
    }
}
