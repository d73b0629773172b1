//! The files that a config names, looked for before anything is written.

use std::path::Path;

use super::{Config, Resolved};
use crate::data::{self, DataConfig, Origin, PartitionConfig, PoolConfig};
use crate::error::{Error, Result};
use crate::fl::Mode;
use crate::model::clip::zeroshot::Prompts;
use crate::model::hub;
use crate::stage::embed::ClipConfig;
use crate::stage::pretrain::Pretext;
use crate::stage::teach::{ClipTeacher, TeacherConfig};

/// A file or folder that a run reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The key that names it.
    pub key: String,
    /// What it says.
    pub path: String,
    /// Whether it may be a Hugging Face id instead.
    pub id: bool,
}

impl Input {
    fn new(key: impl Into<String>, path: &str, id: bool) -> Self {
        Input { key: key.into(), path: path.into(), id }
    }

    /// Refuses one that is not there; an id is looked up when it is needed.
    pub fn check(&self) -> Result<()> {
        if self.key == "finetune.from" {
            return crate::run::Origin::find(&self.path).map(|_| ());
        }
        match data::resolve(&self.path) {
            Err(e) if !(self.id && hub::is_id(&self.path)) => Err(e),
            Ok(path) => refuse_stream(&path),
            Err(_) => Ok(()),
        }
    }
}

/// What can be read once, or has no end, is nothing that a run can be made from again.
fn refuse_stream(path: &Path) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(facts) if !facts.is_file() && !facts.is_dir() => {
            Err(Error::input(format!("{} is neither a file nor a folder", path.display()))
                .hint("a run reads it again when it goes on: write it to a file first"))
        }
        _ => Ok(()),
    }
}

impl Config {
    /// All files that the stages which are switched on will read.
    pub fn inputs(&self) -> Vec<Input> {
        let mut found = Vec::new();
        found.extend(data_input("data", &self.data));
        if let Some(task) = self.task.mllm() {
            found.push(Input::new("task.model", &task.model, true));
            if !self.finetune.from.is_empty() {
                found.push(Input::new("finetune.from", &self.finetune.from, false));
            }
            return found;
        }
        let needs = self.algorithm.algorithm().needs();
        if let PartitionConfig::File(c) = &self.partition {
            found.push(Input::new("partition.path", &c.path, false));
        }
        if self.server_set.origin == Origin::Folder {
            found.push(Input::new("server_set.path", &self.server_set.path, false));
        }
        if !self.finetune.from.is_empty() {
            found.push(Input::new("finetune.from", &self.finetune.from, false));
        }
        if needs.unlabelled && self.federated.mode == Mode::Federated {
            found.extend(self.unlabelled.data.as_ref().and_then(|d| data_input("unlabelled.data", d)));
            found.extend(self.unlabelled.pool.iter().flat_map(|p| pool_inputs("unlabelled.pool", p)));
        }
        let mut clip = needs.texts || (self.align.enabled && self.evaluate.probe);
        if self.pretrain.enabled {
            found.extend(pool_inputs("pool", &self.pool));
            clip |= self.pretrain.objective == Pretext::Contrast;
            if self.pretrain.objective == Pretext::Llm {
                found.push(Input::new("pretrain.llm.llava", &self.pretrain.llm.llava, true));
                let files = self.pretrain.llm.prompts.iter().filter(|name| Path::new(name).is_file());
                found.extend(files.map(|name| Input::new(format!("pretrain.llm.prompts: {name}"), name, false)));
            }
        }
        for (key, teacher) in self.teachers() {
            clip |= matches!(teacher, TeacherConfig::Clip(_) | TeacherConfig::Features(_));
            found.extend(teacher_inputs(&key, teacher));
            if let TeacherConfig::Clip(ClipTeacher { prompts: Some(prompts), .. }) = teacher {
                found.extend(prompt_input(&format!("{key}.prompts"), prompts));
            }
        }
        if clip {
            found.extend(self.clip_inputs());
        }
        found
    }

    /// The teachers that are asked.
    pub(super) fn teachers(&self) -> Vec<(String, &TeacherConfig)> {
        let aligned = self.align.enabled;
        let asked =
            self.algorithm.algorithm().needs().teacher || (aligned && (self.align.beta > 0.0 || self.evaluate.teacher));
        let mut all: Vec<(String, &TeacherConfig)> = Vec::new();
        if asked {
            all.push(("teacher".into(), &self.teacher));
        }
        if aligned {
            let others = self.evaluate.teachers.iter().enumerate();
            all.extend(others.map(|(i, t)| (format!("evaluate.teachers[{i}]"), t)));
        }
        all
    }

    fn clip_inputs(&self) -> Vec<Input> {
        match &self.clip {
            ClipConfig::Model(c) => {
                let model = Input::new("clip.path", &c.path, true);
                [Some(model), prompt_input("clip.prompts", &c.prompts)].into_iter().flatten().collect()
            }
            ClipConfig::Texts(c) => {
                let files = c.files.iter().enumerate();
                files
                    .flat_map(|(i, f)| {
                        let key = |name: &str| format!("clip.files[{i}].{name}");
                        [Input::new(key("features"), &f.features, false), Input::new(key("rows"), &f.rows, false)]
                    })
                    .collect()
            }
        }
    }
}

fn data_input(section: &str, data: &DataConfig) -> Option<Input> {
    let path = match data {
        DataConfig::Cifar10(c) => &c.path,
        DataConfig::Cifar100(c) => &c.path,
        DataConfig::Folder(c) => &c.path,
        DataConfig::List(c) | DataConfig::ImagenetLt(c) | DataConfig::PlacesLt(c) => &c.path,
        DataConfig::World(_) | DataConfig::Questions(_) => return None,
        DataConfig::HatefulMemes(c) => &c.path,
        DataConfig::Crisismmd(c) => &c.path,
        DataConfig::VqaRad(c) => &c.path,
        DataConfig::Slake(c) => &c.path,
        DataConfig::MedicalFlashcards(c) => &c.path,
        DataConfig::Medical(c) => return Some(Input::new(format!("{section}.vqa_rad.path"), &c.vqa_rad.path, false)),
        DataConfig::Jsonl(c) => &c.path,
    };
    Some(Input::new(format!("{section}.path"), path, false))
}

fn pool_inputs(section: &str, pool: &PoolConfig) -> Vec<Input> {
    let (path, captions) = match pool {
        PoolConfig::Folder(c) => (Some(&c.path), &c.captions),
        PoolConfig::Webdataset(c) => (Some(&c.path), &c.captions),
        PoolConfig::World(c) => (None, &c.captions),
    };
    let captions = Some(captions).filter(|c| !c.is_empty());
    let both = [("path", path), ("captions", captions)];
    both.into_iter().filter_map(|(k, p)| Some(Input::new(format!("{section}.{k}"), p?, false))).collect()
}

/// The file of prompts, where they lie in one.
fn prompt_input(key: &str, prompts: &Prompts) -> Option<Input> {
    match prompts {
        Prompts::Templates(_) => None,
        Prompts::TemplateFile(file) | Prompts::Descriptions(file) => {
            Some(Input::new(format!("{key}.path"), &file.path.to_string_lossy(), false))
        }
    }
}

fn teacher_inputs(key: &str, teacher: &TeacherConfig) -> Vec<Input> {
    match teacher {
        TeacherConfig::Clip(_) => Vec::new(),
        TeacherConfig::Mllm(c) => vec![Input::new(format!("{key}.path"), &c.path, true)],
        TeacherConfig::Features(c) => {
            let rows = Some(&c.rows).filter(|r| !r.is_empty());
            let rows = rows.map(|rows| Input::new(format!("{key}.rows"), rows, false));
            [Some(Input::new(format!("{key}.images"), &c.images, false)), rows].into_iter().flatten().collect()
        }
        TeacherConfig::Classifier(c) => vec![Input::new(format!("{key}.path"), &c.path, false)],
    }
}

impl Resolved {
    /// Refuses a file that is not there, of this config or of one of its arms, with the line that names it.
    pub fn check_inputs(&self) -> Result<()> {
        for (name, config) in self.config.expand()? {
            for input in config.inputs() {
                if let Err(e) = input.check() {
                    let e = self.placed(e.context(input.key.clone()), &self.written(&name, &input.key));
                    return Err(if name.is_empty() { e } else { e.context(format!("arm {name}")) });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Vec<String> {
        let config = Config::from_table(toml::from_str(text).unwrap()).unwrap();
        config.inputs().into_iter().map(|i| i.key).collect()
    }

    #[test]
    fn only_what_is_switched_on_is_looked_for() {
        assert_eq!(keys("pretrain.enabled = false\nalign.enabled = false"), ["data.path"]);
        assert_eq!(keys("pretrain.enabled = false"), ["data.path", "clip.path"]);
        assert_eq!(keys("align.enabled = false"), ["data.path", "pool.path", "clip.path"]);
        let text = "pretrain.enabled = false\nteacher = { kind = \"classifier\", path = \"x\" }";
        assert_eq!(keys(text), ["data.path", "teacher.path"]);
    }

    #[test]
    fn an_id_of_the_hub_is_no_missing_file() {
        assert!(Input::new("clip.path", "openai/clip-vit-base-patch32", true).check().is_ok());
        assert!(Input::new("data.path", "no/such-folder", false).check().is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_device_is_nothing_that_a_run_is_made_from() {
        let e = Input::new("pool.captions", "/dev/null", false).check().unwrap_err().to_string();
        assert!(e.contains("/dev/null is neither a file nor a folder"), "{e}");
    }
}
