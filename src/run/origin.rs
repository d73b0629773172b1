//! Where a federated stage starts: a model's file, or a round of another run, `RUN@120` (`RUN` alone: its last).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::checkpoint::{self, Files};
use super::clients::{Clients, Index};
use super::directory;
use crate::data;
use crate::error::{Error, Result};
use crate::exec::Events;
use crate::fsx;
use crate::nn::{Named, Params};

/// What `finetune.from` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file of tensors.
    File(PathBuf),
    /// A round of a run's directory; the last where none is said.
    Round(PathBuf, Option<usize>),
}

/// What a run left of a round.
pub struct Left {
    /// The round.
    pub round: usize,
    /// The server's model.
    pub model: Params,
    /// The algorithm's state on the server.
    pub state: Named,
    /// What clients kept, and since when.
    pub kept: BTreeMap<u32, Named>,
    /// `algorithm.kind` of that run.
    pub algorithm: String,
    /// The digest of that run's split.
    pub split: String,
}

impl Left {
    /// Whether there is more than a model to go on from.
    pub fn keeps(&self) -> bool {
        !self.state.is_empty() || !self.kept.is_empty()
    }
}

impl Origin {
    /// Finds what a text names: a path that is there, or `RUN@ROUND`.
    pub fn find(text: &str) -> Result<Origin> {
        let missing = match data::resolve(text) {
            Ok(path) if is_run(&path) => return last(path),
            Ok(path) => return Ok(Origin::File(path)),
            Err(e) => e,
        };
        let Some((run, round)) = text.rsplit_once('@') else { return Err(missing) };
        let path = data::resolve(run)?;
        if !is_run(&path) {
            return Err(Error::input(format!("{run} is no run's directory: no config.toml in it"))
                .hint("RUN@120 is round 120 of the run whose directory is RUN"));
        }
        let number = round.parse().map_err(|_| {
            Error::input(format!("{text}: `{round}` is no round")).hint("as in runs/demo/fedllava/seed-7@120")
        })?;
        let origin = Origin::Round(path, Some(number));
        origin.folder().map(|_| origin)
    }

    /// The file, or the checkpoint's folder.
    pub fn folder(&self) -> Result<PathBuf> {
        let (run, round) = match self {
            Origin::File(path) => return Ok(path.clone()),
            Origin::Round(run, round) => (run, *round),
        };
        let all = checkpoint::rounds(&run.join("checkpoints"))?;
        let found = match round {
            Some(round) => all.iter().find(|(r, _)| *r == round),
            None => all.last(),
        };
        found.map(|(_, folder)| folder.clone()).ok_or_else(|| absent(run, round, &all))
    }

    /// Reads a run's round; none where a file is named.
    pub fn read(&self, events: &dyn Events) -> Result<Option<Left>> {
        let Origin::Round(run, round) = self else { return Ok(None) };
        let clients = Clients::new(run);
        let all = checkpoint::rounds(&run.join("checkpoints"))?;
        let found = match round {
            Some(round) => match all.iter().find(|(r, _)| r == round) {
                Some((round, folder)) => Some(checkpoint::load(folder, *round, &clients)?),
                None => return Err(absent(run, Some(*round), &all)),
            },
            None => checkpoint::latest_with(&run.join("checkpoints"), &clients, events)?,
        };
        let Some(found) = found else { return Err(absent(run, None, &all)) };
        let config: toml::Table = toml::from_str(&fsx::read_text(&run.join("config.toml"))?)
            .map_err(|e| Error::data(format!("{}: config.toml: {}", run.display(), e.message())))?;
        left(run, found, &clients, &config).map(Some)
    }
}

/// The newest checkpoint of a run, or its finished model where no checkpoint is left.
fn last(run: PathBuf) -> Result<Origin> {
    let all = checkpoint::rounds(&run.join("checkpoints"))?;
    if !all.is_empty() {
        return Ok(Origin::Round(run, None));
    }
    let (done, file) = (run.join("finetune/done.json"), run.join("finetune/model.safetensors"));
    if !done.exists() || !file.exists() {
        return Err(absent(&run, None, &all));
    }
    let said = directory::read_json(&done)?;
    match said["file"].as_str().filter(|digest| !digest.is_empty()) {
        Some(digest) if fsx::sha256_file(&file)? != digest => {
            Err(Error::data(format!("{} is not the model that the run finished with", file.display())))
        }
        _ => Ok(Origin::File(file)),
    }
}

/// Whether a folder is a run's directory.
fn is_run(path: &Path) -> bool {
    path.join("config.toml").is_file() && (path.join("checkpoints").is_dir() || path.join("finetune").is_dir())
}

fn absent(run: &Path, round: Option<usize>, all: &[(usize, PathBuf)]) -> Error {
    let there: Vec<String> = all.iter().map(|(round, _)| round.to_string()).collect();
    let there = match there.is_empty() {
        true => "it has none".to_string(),
        false => format!("there are {}", there.join(", ")),
    };
    let what = round.map_or("no finished round".to_string(), |round| format!("no checkpoint of round {round}"));
    Error::input(format!("{}: {what}; {there}", run.display()))
        .hint("that run's federated.checkpoint_every and federated.keep_checkpoints say which rounds are kept")
}

fn left(run: &Path, found: (usize, Files, Index), clients: &Clients, config: &toml::Table) -> Result<Left> {
    let (round, mut files, index) = found;
    let broken = |what: &str| Error::data(format!("{}, round {round}: no {what}", run.display()));
    let model = files.remove("model").and_then(|mut m| m.remove("model")).ok_or_else(|| broken("model"))?;
    let state = files.remove("server").ok_or_else(|| broken("server's state"))?;
    let kept = index.iter().map(|(&client, entry)| Ok((client, clients.read(client, entry)?)));
    let kept = kept.collect::<Result<BTreeMap<_, _>>>()?;
    let algorithm = config.get("algorithm").and_then(|a| a.get("kind")).and_then(toml::Value::as_str);
    let split = directory::read_json(&run.join("split.json")).ok();
    let split = split.and_then(|s| s["digest"].as_str().map(String::from)).unwrap_or_default();
    Ok(Left { round, model, state, kept, algorithm: algorithm.unwrap_or_default().into(), split })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::Silent;

    fn named(value: f32) -> Named {
        Named::from([("model".to_string(), Params::tensor("w", &[1], vec![value]).unwrap())])
    }

    fn run(dir: &Path) -> PathBuf {
        let run = dir.join("a@b");
        fsx::write_atomic(&run.join("config.toml"), b"[algorithm]\nkind = \"scaffold\"").unwrap();
        for round in [10, 20, 30] {
            let files = Files::from([("model".into(), named(round as f32)), ("server".into(), Named::new())]);
            checkpoint::save(&run.join("checkpoints"), round, &files, 2).unwrap();
        }
        run
    }

    #[test]
    fn a_round_of_a_run_is_read_and_another_one_lists_those_that_there_are() {
        let dir = tempfile::tempdir().unwrap();
        let run = run(dir.path());
        let text = run.display().to_string();
        let read = |text: &str| Origin::find(text).unwrap().read(&Silent).unwrap().unwrap();
        assert_eq!(read(&text).round, 30, "without a round the last");
        let left = read(&format!("{text}@20"));
        assert_eq!((left.round, left.model.data()[0], left.algorithm.as_str()), (20, 20.0, "scaffold"));
        let e = Origin::find(&format!("{text}@10")).unwrap_err().to_string();
        assert!(e.contains("no checkpoint of round 10; there are 20, 30") && e.contains("keep_checkpoints"), "{e}");
        let e = Origin::find(&format!("{text}@last")).unwrap_err().to_string();
        assert!(e.contains("`last` is no round"), "{e}");
        let e = Origin::find(&format!("{}@3", dir.path().display())).unwrap_err().to_string();
        assert!(e.contains("is no run's directory"), "{e}");
        assert!(Origin::find("nowhere@3").unwrap_err().to_string().contains("nowhere does not exist"));
        std::fs::write(run.join("checkpoints/round-000020/model.safetensors"), "no").unwrap();
        let e = Origin::find(&format!("{text}@20")).unwrap().read(&Silent).err().unwrap().to_string();
        assert!(e.contains("digest"), "{e}");
    }

    #[test]
    fn a_file_is_a_file_and_a_run_without_checkpoints_is_its_finished_model() {
        let dir = tempfile::tempdir().unwrap();
        let run = run(dir.path());
        let file = run.join("finetune/model.safetensors");
        std::fs::remove_dir_all(run.join("checkpoints")).unwrap();
        std::fs::create_dir(run.join("checkpoints")).unwrap();
        let text = run.display().to_string();
        assert!(Origin::find(&text).unwrap_err().to_string().contains("no finished round; it has none"));
        fsx::write_atomic(&file, b"model").unwrap();
        let done = serde_json::json!({ "file": fsx::sha256(b"model") });
        fsx::write_atomic(&run.join("finetune/done.json"), done.to_string().as_bytes()).unwrap();
        assert_eq!(Origin::find(&text).unwrap(), Origin::File(file.clone()));
        assert_eq!(Origin::find(&file.display().to_string()).unwrap(), Origin::File(file.clone()));
        fsx::write_atomic(&file, b"other").unwrap();
        assert!(Origin::find(&text).unwrap_err().to_string().contains("is not the model"));
    }
}
