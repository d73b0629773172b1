//! Models by Hugging Face id or by folder.
//!
//! A folder is used as it is. An id is looked up in the Hub's cache (`HF_HOME`, `HF_HUB_CACHE`); only when it is not
//! there, and the feature `net` is on, and `HF_HUB_OFFLINE` is not set, is it fetched (`HF_TOKEN`, `HF_ENDPOINT`).

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The folder that holds `id_or_folder`: a local folder, or a snapshot of `owner/name` (revision `main`).
pub fn resolve(id_or_folder: &str) -> Result<PathBuf> {
    let folder = Path::new(id_or_folder);
    if folder.is_dir() {
        return Ok(folder.to_path_buf());
    }
    if !is_id(id_or_folder) {
        return Err(Error::input(format!("{id_or_folder:?} is neither a folder nor a Hugging Face id"))
            .hint("an id looks like openai/clip-vit-base-patch32"));
    }
    if let Some(snapshot) = cached(&cache(&env)?, id_or_folder) {
        return Ok(snapshot);
    }
    if offline(&env) {
        return Err(Error::environment(format!("{id_or_folder} is not in the Hub's cache, and HF_HUB_OFFLINE is set"))
            .hint(by_hand(id_or_folder)));
    }
    fetch(id_or_folder)
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// `owner/name` of the characters the Hub allows, and not a path.
pub fn is_id(text: &str) -> bool {
    let plain = |part: &str| {
        let ok = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(ok)
    };
    text.split_once('/').is_some_and(|(owner, name)| plain(owner) && plain(name))
}

fn by_hand(id: &str) -> String {
    format!("on a machine with a network: `hf download {id} --local-dir FOLDER`; then give FOLDER instead of the id")
}

/// The Hub's cache folder, by the rules of huggingface_hub.
fn cache(env: &dyn Fn(&str) -> Option<String>) -> Result<PathBuf> {
    if let Some(path) = env("HF_HUB_CACHE") {
        return Ok(path.into());
    }
    if let Some(home) = env("HF_HOME") {
        return Ok(Path::new(&home).join("hub"));
    }
    let home = match (env("XDG_CACHE_HOME"), env("HOME").or_else(|| env("USERPROFILE"))) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(home)) => Path::new(&home).join(".cache"),
        (None, None) => return Err(Error::environment("no home folder is known").hint("set HF_HOME")),
    };
    Ok(home.join("huggingface").join("hub"))
}

/// The Hub's cache folder, and the ids of the models that lie whole in it, sorted.
pub fn in_cache() -> Result<(PathBuf, Vec<String>)> {
    let folder = cache(&env)?;
    let entries = if folder.is_dir() { crate::fsx::list(&folder)? } else { Vec::new() };
    let id = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?.strip_prefix("models--")?.replacen("--", "/", 1);
        cached(&folder, &name).map(|_| name)
    };
    let ids = entries.iter().filter_map(id).collect();
    Ok((folder, ids))
}

fn offline(env: &dyn Fn(&str) -> Option<String>) -> bool {
    env("HF_HUB_OFFLINE").is_some_and(|v| ["1", "true", "yes", "on"].contains(&v.to_lowercase().as_str()))
}

/// The snapshot of `main` in the cache, if it has a config and weights.
fn cached(cache: &Path, id: &str) -> Option<PathBuf> {
    let repo = cache.join(format!("models--{}", id.replace('/', "--")));
    let commit = std::fs::read_to_string(repo.join("refs").join("main")).ok()?;
    let snapshot = repo.join("snapshots").join(commit.trim());
    let has = |name: &str| snapshot.join(name).is_file();
    let whole = has("model.safetensors") || has("pytorch_model.bin") || crate::model::weights::complete(&snapshot);
    (has("config.json") && whole).then_some(snapshot)
}

#[cfg(not(feature = "net"))]
fn fetch(id: &str) -> Result<PathBuf> {
    Err(Error::environment(format!("{id} is not in the Hub's cache, and this program was built without `net`"))
        .hint(by_hand(id)))
}

/// Which of a repository's files make the model: configs, the tokenizer, and one kind of weights.
#[cfg_attr(not(feature = "net"), allow(dead_code, reason = "only fetching asks"))]
fn wanted(files: &[String]) -> Vec<&String> {
    let top = |f: &&String| !f.contains('/');
    let safe = files.iter().filter(top).any(|f| f.ends_with(".safetensors"));
    let keep = |f: &&String| {
        let weights = if safe { f.ends_with(".safetensors") } else { *f == "pytorch_model.bin" };
        let index = f.ends_with(".bin.index.json");
        weights || (f.ends_with(".json") && !index) || *f == "merges.txt" || f.ends_with(".model")
    };
    files.iter().filter(top).filter(keep).collect()
}

#[cfg(feature = "net")]
fn fetch(id: &str) -> Result<PathBuf> {
    use hf_hub::{Cache, Repo, RepoType, api::sync::ApiBuilder};

    let failed = |e: hf_hub::api::sync::ApiError| {
        Error::environment(format!("cannot fetch {id}: {e}"))
            .hint(format!("a gated model needs HF_TOKEN; without a network, {}", by_hand(id)))
    };
    let store = Cache::new(cache(&env)?);
    let mut builder = ApiBuilder::from_cache(store).with_progress(false).with_retries(3);
    if let Some(endpoint) = env("HF_ENDPOINT") {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(token) = env("HF_TOKEN") {
        builder = builder.with_token(Some(token));
    }
    let api = builder.build().map_err(failed)?;
    let main = api.model(id.to_string());
    let info = main.info().map_err(failed)?;
    // One commit for all files, even if somebody pushes meanwhile.
    let pinned = api.repo(Repo::with_revision(id.to_string(), RepoType::Model, info.sha.clone()));
    let files: Vec<String> = info.siblings.into_iter().map(|s| s.rfilename).collect();
    let mut folder = None;
    for file in wanted(&files) {
        let path = pinned.get(file).map_err(failed)?;
        folder = path.parent().map(Path::to_path_buf);
    }
    let reference = cache(&env)?.join(format!("models--{}", id.replace('/', "--"))).join("refs").join("main");
    crate::fsx::write_atomic(&reference, info.sha.as_bytes())?;
    folder.ok_or_else(|| Error::data(format!("{id} has no model files")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string())
    }

    #[test]
    fn a_folder_is_used_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(resolve(dir.path().to_str().unwrap()).unwrap(), dir.path());
    }

    #[test]
    fn a_missing_path_is_not_taken_for_an_id() {
        for text in ["./no/such", "/no/such", "models", "a/b/c", "../b", "a b/c"] {
            assert!(!is_id(text), "{text}");
            assert!(resolve(text).unwrap_err().to_string().contains("neither a folder"), "{text}");
        }
        assert!(is_id("openai/clip-vit-base-patch32") && is_id("llava-hf/llava-1.5-7b-hf"));
    }

    #[test]
    fn the_cache_follows_the_variables_of_huggingface_hub() {
        assert_eq!(cache(&vars(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")])).unwrap(), Path::new("/c"));
        assert_eq!(cache(&vars(&[("HF_HOME", "/h"), ("HOME", "/u")])).unwrap(), Path::new("/h/hub"));
        assert_eq!(cache(&vars(&[("HOME", "/u")])).unwrap(), Path::new("/u/.cache/huggingface/hub"));
        assert!(cache(&vars(&[])).is_err());
        assert!(offline(&vars(&[("HF_HUB_OFFLINE", "1")])) && !offline(&vars(&[("HF_HUB_OFFLINE", "0")])));
    }

    #[test]
    fn a_snapshot_in_the_cache_is_found_only_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let repo = dir.path().join("models--owner--name");
        let snapshot = repo.join("snapshots").join("abc");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(repo.join("refs")).unwrap();
        std::fs::write(repo.join("refs").join("main"), "abc\n").unwrap();
        std::fs::write(snapshot.join("config.json"), "{}").unwrap();
        assert_eq!(cached(dir.path(), "owner/name"), None);
        std::fs::write(snapshot.join("model.safetensors"), "").unwrap();
        assert_eq!(cached(dir.path(), "owner/name"), Some(snapshot));
    }

    #[test]
    fn safetensors_are_preferred_and_other_frameworks_are_left() {
        let files = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        let both =
            files(&["README.md", "config.json", "merges.txt", "model.safetensors", "pytorch_model.bin", "tf_model.h5"]);
        assert_eq!(wanted(&both), ["config.json", "merges.txt", "model.safetensors"]);
        let old = files(&["config.json", "flax_model.msgpack", "pytorch_model.bin", "onnx/model.onnx"]);
        assert_eq!(wanted(&old), ["config.json", "pytorch_model.bin"]);
    }
}
