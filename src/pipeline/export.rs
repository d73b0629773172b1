//! A run's model for others: the weights as they were judged, a card, and the lines of PyTorch that load them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::Config;
use crate::data::{Augment, DataConfig};
use crate::error::{Error, Place, Result, closest};
use crate::fl::tau_norm::tau_normalised;
use crate::fsx;
use crate::model::resnet::Imagenet;
use crate::model::{Head, ModelConfig};
use crate::nn::{Net, Params};
use crate::run::directory::read_json;

/// Stages whose model is a classifier.
const STAGES: [&str; 2] = ["finetune", "align"];
/// What an export consists of.
pub const FILES: [&str; 3] = ["model.safetensors", "load.py", "README.md"];

/// What is exported.
pub struct Export {
    /// The run.
    pub dir: PathBuf,
    /// `finetune` or `align`.
    pub stage: String,
    config: Config,
    eval: Value,
}

impl Export {
    /// A run's stage; the last one with a classifier where none is named.
    pub fn of(dir: &Path, stage: Option<&str>) -> Result<Export> {
        let (file, table) = (dir.join("eval.json"), dir.join("config.toml"));
        if !file.exists() || !table.exists() {
            return Err(Error::input(format!("{} holds no finished run (no eval.json)", dir.display()))
                .hint("name a run's directory, such as runs/demo/fedllava/seed-7"));
        }
        let eval = read_json(&file)?;
        let text = toml::from_str(&fsx::read_text(&table)?)
            .map_err(|e| Error::data(format!("{}: {}", table.display(), e.message())))?;
        let config = Config::from_table(text).at(|| table.display().to_string())?;
        let there: Vec<&str> = STAGES.into_iter().filter(|s| eval["stages"][*s].is_object()).collect();
        let stage = stage.or(there.last().copied()).unwrap_or(STAGES[0]);
        if !there.contains(&stage) {
            let e =
                Error::input(format!("{}: no classifier of {stage}; there are: {}", dir.display(), there.join(", ")));
            return Err(match closest(stage, there) {
                Some(near) => e.hint(format!("did you mean `{near}`?")),
                None => e.hint("`fedllava run` with its config makes them"),
            });
        }
        Ok(Export { dir: dir.into(), stage: stage.into(), config, eval })
    }

    /// Writes the files into a folder, which must not hold another export.
    pub fn write(&self, out: &Path) -> Result<()> {
        if let Some(name) = FILES.iter().find(|name| out.join(name).exists()) {
            return Err(Error::input(format!("{} is there already", out.join(name).display()))
                .hint("name another folder with --out"));
        }
        let model = self.model()?;
        let metadata =
            BTreeMap::from([("stage".to_string(), self.stage.clone()), ("format".to_string(), "pt".to_string())]);
        fsx::create_dir(out)?;
        model.save(&out.join("model.safetensors"), &metadata)?;
        fsx::write_atomic(&out.join("load.py"), self.recipe().as_bytes())?;
        fsx::write_atomic(&out.join("README.md"), self.card(&model.digest()).as_bytes())
    }

    fn net(&self) -> Result<Net> {
        let shape = match &self.config.data {
            DataConfig::Folder(f) if f.size > 0 => [3, f.size, f.size],
            data => data.known().map_or([3, 224, 224], |k| k.shape),
        };
        self.config.model.build(shape, Head::Classes(self.classes().len()))
    }

    /// The model as it was judged: with the digest that the run says, its head repaired where the config asks for it.
    fn model(&self) -> Result<Params> {
        let net = self.net()?;
        let path = self.dir.join(&self.stage).join("model.safetensors");
        if !path.exists() {
            return Err(Error::data(format!("{} is not there: a record without its model?", path.display())));
        }
        let model = Params::load(&path, &net.layout)?;
        let said = self.entry()["digest"].as_str().unwrap_or("");
        if model.digest() != said {
            return Err(Error::data(format!("{} is not the model that eval.json judged", path.display())));
        }
        tau_normalised(&net, &model, self.config.finetune.tau_norm)
    }

    fn entry(&self) -> &Value {
        &self.eval["stages"][&self.stage]
    }

    fn classes(&self) -> Vec<&str> {
        self.eval["facts"]["classes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// A Python file that loads the model: `model(x)` gives logits.
    fn recipe(&self) -> String {
        let Augment { mean, std, .. } = &self.config.augment;
        let body = recipe_of(&self.config.model, self.classes().len());
        format!(
            "\"\"\"The model in PyTorch: model(x) gives logits for x (n, 3, height, width), pixels in [0, 1] normalised by MEAN \
             and STD.\"\"\"\n{body}\n\nMEAN, STD = {mean:?}, {std:?}\nCLASSES = {:?}\n",
            self.classes()
        )
    }

    fn card(&self, digest: &str) -> String {
        let (facts, entry) = (&self.eval["facts"], self.entry());
        let percent = |v: &Value| v.as_f64().map_or("–".to_string(), |v| format!("{:.1}", 100.0 * v));
        let last = &entry["last10_rounds"];
        let extras: Vec<&str> = entry["extras"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut rows = String::new();
        for (key, name) in [
            ("overall", "accuracy"),
            ("many", "many"),
            ("medium", "medium"),
            ("few", "few"),
            ("worst_class", "worst class"),
        ] {
            rows.push_str(&format!("| {name} | {} |\n", percent(&entry[key])));
        }
        if entry["last10"].is_number() {
            rows.push_str(&format!("| mean of the last {last} judged rounds | {} |\n", percent(&entry["last10"])));
        }
        let text = |v: &Value| v.as_str().unwrap_or("?").to_string();
        let oracle = match entry["oracle"].as_bool() {
            Some(true) => "**An oracle: its teacher was trained on the benchmark's own labels.** ",
            _ => "",
        };
        let tau = match self.config.finetune.tau_norm {
            0.0 => String::new(),
            tau => format!("Its classifier is τ-normalised (τ = {tau}), as it was judged. "),
        };
        format!(
            "---\nlibrary_name: pytorch\npipeline_tag: image-classification\ntags:\n- federated-learning\n- long-tailed\n- \
             fedllava\n---\n\n# {algorithm} on {data}, stage {stage}\n\nA {kind} of {parameters} parameters, trained by \
             [federated learning](https://arxiv.org/abs/1602.05629) in simulation: {clients} clients, {rounds} rounds, \
             {cohort} clients a round. {oracle}{tau}One seed ({seed}): no deviation is known from it.\n\n\
             | of {images} test images | % |\n|---|---:|\n{rows}\nMany, medium and few by training images: {shots}.\n\n\
             What it had that a plain baseline lacks: {extras}.\n\n\
             ## Use\n\n`python -i load.py` beside `model.safetensors` (torch, safetensors{torchvision}):\n\n```python\n{body}\n```\n\n\
             Input: pixels in [0, 1], less {mean:?}, over {std:?} (channels).\n\n## Data\n\n{data}, {counts} training images of \
             the rarest class over all clients. Test images never trained or chose anything.\n\n## Not for\n\nAnything but \
             comparing methods: it knows {classes} classes of a benchmark, rare ones badly, and nothing was looked into of \
             whom its errors hurt.\n\nSHA-256 of the parameters: `{digest}`. Made by fedllava {version}.\n",
            algorithm = text(&facts["algorithm"]),
            data = data_name(&self.config.data),
            stage = self.stage,
            kind = kind(&self.config.model),
            parameters = self.net().map_or_else(|_| "?".to_string(), |n| n.layout.weights().to_string()),
            clients = facts["clients"],
            rounds = facts["rounds"],
            cohort = self.config.federated.cohort,
            seed = facts["seed"],
            images = facts["test_images"],
            shots = text(&facts["shots"]),
            extras = if extras.is_empty() { "nothing".to_string() } else { extras.join(", ") },
            torchvision = if torchvision(&self.config.model) { ", torchvision" } else { "" },
            body = recipe_of(&self.config.model, self.classes().len()),
            mean = self.config.augment.mean,
            std = self.config.augment.std,
            counts = facts["smallest_class"],
            classes = self.classes().len(),
            version = env!("CARGO_PKG_VERSION"),
        )
    }
}

/// How a config calls a network.
fn kind(model: &ModelConfig) -> String {
    let value = serde_json::to_value(model).unwrap_or(Value::Null);
    value["kind"].as_str().unwrap_or("network").to_string()
}

fn data_name(data: &DataConfig) -> String {
    let value = serde_json::to_value(data).unwrap_or(Value::Null);
    value["kind"].as_str().unwrap_or("data").to_string()
}

fn torchvision(model: &ModelConfig) -> bool {
    matches!(model, ModelConfig::Resnet10(_) | ModelConfig::Resnet18(_) | ModelConfig::Resnet50(_))
}

const HEAD: &str = "import torch.nn.functional as F
from safetensors.torch import load_file
w = load_file(\"model.safetensors\")
";
/// A convolution and its batch norm.
const CONV: &str = "def conv(x, c, b, s=1):
    x = F.conv2d(x, w[c + \".weight\"], stride=s, padding=w[c + \".weight\"].shape[-1] // 2)
    return F.batch_norm(x, *(w[f\"{b}.{n}\"] for n in (\"running_mean\", \"running_var\", \"weight\", \"bias\")))
";

/// The lines that load a network of this kind.
fn recipe_of(model: &ModelConfig, classes: usize) -> String {
    match model {
        ModelConfig::Resnet8(r) => {
            let feature = if r.mlp.is_some() {
                "F.linear(x.mean((2, 3)), w[\"add_mlp.weight\"], w[\"add_mlp.bias\"])"
            } else {
                "x.mean((2, 3))"
            };
            format!(
                "{HEAD}{CONV}def model(x):
    x = F.relu(conv(x, \"conv1\", \"bn1\"))
    for l, s in (\"layer1.0.\", 1), (\"layer2.0.\", 2), (\"layer3.0.\", 2):
        y = conv(F.relu(conv(x, l + \"conv1\", l + \"bn1\", s)), l + \"conv2\", l + \"bn2\")
        x = F.relu(y + (x if s == 1 else conv(x, l + \"downsample.0\", l + \"downsample.1\", s)))
    return F.linear({feature}, w[\"classifier.weight\"], w[\"classifier.bias\"])"
            )
        }
        ModelConfig::Resnet20(_) | ModelConfig::Resnet56(_) => format!(
            "{HEAD}{CONV}def model(x):
    x = F.relu(conv(x, \"conv1\", \"bn1\"))
    for l in sorted({{k[: k.index(\"conv1\")] for k in w if k.startswith(\"layer\") and \"conv1\" in k}}, key=lambda k: [int(n) for n in k[5:-1].split(\".\")]):
        s = 2 if l in (\"layer2.0.\", \"layer3.0.\") else 1
        y = conv(F.relu(conv(x, l + \"conv1\", l + \"bn1\", s)), l + \"conv2\", l + \"bn2\")
        pad = (y.shape[1] - x.shape[1]) // 2  # option A: every second pixel, zero channels on both sides
        x = F.relu(y + F.pad(x[:, :, ::s, ::s], (0, 0, 0, 0, pad, pad)))
    return F.linear(x.mean((2, 3)), w[\"linear.weight\"], w[\"linear.bias\"])"
        ),
        ModelConfig::Resnet10(r) => imagenet("BasicBlock, [1, 1, 1, 1]", r, classes),
        ModelConfig::Resnet18(r) => imagenet("BasicBlock, [2, 2, 2, 2]", r, classes),
        ModelConfig::Resnet50(r) => imagenet("Bottleneck, [3, 4, 6, 3]", r, classes),
        ModelConfig::Cnn(_) => format!(
            "{HEAD}def model(x):
    x = F.relu(F.conv2d(x, w[\"conv1.weight\"], w[\"conv1.bias\"]))
    x = F.max_pool2d(F.relu(F.conv2d(x, w[\"conv2.weight\"], w[\"conv2.bias\"])), 2).flatten(1)
    return F.linear(F.relu(F.linear(x, w[\"fc1.weight\"], w[\"fc1.bias\"])), w[\"fc2.weight\"], w[\"fc2.bias\"])"
        ),
        ModelConfig::Mlp(m) => format!(
            "{HEAD}def model(x):
    x = x.flatten(1)
    for i in range({}):
        x = F.relu(F.linear(x, w[f\"fc{{i + 1}}.weight\"], w[f\"fc{{i + 1}}.bias\"]))
    return F.linear(x, w[\"fc.weight\"], w[\"fc.bias\"])",
            m.hidden.len()
        ),
    }
}

/// torchvision's network of these blocks; CLIP2FL's extra layer is none of its own.
fn imagenet(blocks: &str, shape: &Imagenet, classes: usize) -> String {
    let head = match shape.mlp {
        None => "model = net.eval()",
        Some(_) => {
            "net.fc = torch.nn.Identity()
net.eval()
def model(x):
    return F.linear(F.linear(net(x), w[\"add_mlp.weight\"], w[\"add_mlp.bias\"]), w[\"fc.weight\"], w[\"fc.bias\"])"
        }
    };
    format!(
        "import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
w = load_file(\"model.safetensors\")
net = ResNet({blocks}, num_classes={classes})
own = {{k: v for k, v in w.items() if k in net.state_dict() and v.shape == net.state_dict()[k].shape}}
missing = net.load_state_dict(own, strict=False).missing_keys
assert all(\"num_batches_tracked\" in k or k.startswith(\"fc.\") for k in missing), missing
{head}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tensors that a recipe names in quotes, `l + "conv1"` within its block.
    fn named(recipe: &str) -> Vec<String> {
        recipe.split("w[\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_string()).collect()
    }

    #[test]
    fn every_tensor_that_a_recipe_names_is_in_its_network() {
        let kinds = ["resnet8", "resnet20", "cnn", "mlp"];
        for kind in kinds {
            let model: ModelConfig = toml::from_str(&format!("kind = \"{kind}\"")).unwrap();
            let net = model.build([3, 32, 32], Head::Classes(10)).unwrap();
            let there: Vec<&str> = net.layout.entries().iter().map(|e| e.name.as_str()).collect();
            let names = named(&recipe_of(&model, 10));
            assert!(!names.is_empty(), "{kind}");
            for name in names {
                assert!(there.contains(&name.as_str()), "{kind}: {name} of {there:?}");
            }
        }
        let wide: ModelConfig = toml::from_str("kind = \"resnet8\"\nmlp = 512").unwrap();
        assert!(named(&recipe_of(&wide, 10)).contains(&"add_mlp.weight".to_string()));
    }
}
