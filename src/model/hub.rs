//! Models by Hugging Face id or by folder.
//!
//! A folder is used as it is. An id is looked up in the Hub's cache (`HF_HUB_CACHE`, the older `HUGGINGFACE_HUB_CACHE`,
//! `HF_HOME`; `~` and `$NAME` in them are understood); only when it is not there, and the feature `net` is on, and neither
//! `HF_HUB_OFFLINE` nor `TRANSFORMERS_OFFLINE` is set, is it fetched (`HF_TOKEN`, `HF_ENDPOINT`).

#[cfg(feature = "net")]
mod fetch;

use std::path::{Path, PathBuf};

use hf_hub::Repo;

#[cfg(feature = "net")]
use crate::error::Class;
use crate::error::{Error, Result};
use crate::exec::Cancel;

/// The folder that holds `id_or_folder`: a local folder, or a snapshot of `owner/name` (revision `main`).
pub fn resolve(id_or_folder: &str) -> Result<PathBuf> {
    resolve_until(id_or_folder, &Cancel::default())
}

/// As [`resolve`]; a request to stop ends a fetch.
pub fn resolve_until(id_or_folder: &str, cancel: &Cancel) -> Result<PathBuf> {
    let folder = Path::new(id_or_folder);
    if folder.is_dir() {
        return Ok(folder.to_path_buf());
    }
    if is_path(folder) {
        return Err(Error::input(format!("{id_or_folder} is not there, or no folder")).hint(
            "taken for a path, as its folder is there or it looks like one; of a Hugging Face id no folder has the owner's name",
        ));
    }
    if !is_id(id_or_folder) {
        return Err(Error::input(format!("{id_or_folder:?} is neither a folder nor a Hugging Face id"))
            .hint("an id looks like openai/clip-vit-base-patch32"));
    }
    let cache = cache(&env)?;
    if let Some(snapshot) = cached(&cache, id_or_folder) {
        return Ok(snapshot);
    }
    if let Some(name) = offline(&env) {
        return Err(Error::environment(format!(
            "{id_or_folder}: {}, and {name} is set",
            missing(&cache, id_or_folder)
        ))
        .hint(by_hand(id_or_folder)));
    }
    fetch(id_or_folder, cancel).map_err(|e| e.context(missing(&cache, id_or_folder)))
}

/// The folder of an id in the Hub's cache, where it lies there whole; never fetches.
pub fn local(id: &str) -> Option<PathBuf> {
    cached(&cache(&env).ok()?, id).filter(|_| is_id(id))
}

/// What of an id the cache lacks, and where that was looked for.
fn missing(cache: &Path, id: &str) -> String {
    let repo = repository(cache, id);
    match repo.is_dir() {
        true => format!("no whole snapshot of `main` (config.json and weights) in {}", repo.display()),
        false => format!("not in the Hub's cache ({})", repo.display()),
    }
}

fn repository(cache: &Path, id: &str) -> PathBuf {
    cache.join(Repo::model(id.to_string()).folder_name())
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// Whether a name that no folder has is a mistyped path all the same: below a folder that is there, or with the look of
/// a file or folder of ours. Such a name never reaches the network.
fn is_path(name: &Path) -> bool {
    let above = name.parent().filter(|p| !p.as_os_str().is_empty());
    let file = ["safetensors", "bin", "json", "jsonl", "npy", "npz", "pt", "pth", "toml"];
    above.is_some_and(Path::is_dir) || name.extension().is_some_and(|e| file.iter().any(|f| e.eq_ignore_ascii_case(f)))
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
    if let Some(path) = env("HF_HUB_CACHE").or_else(|| env("HUGGINGFACE_HUB_CACHE")) {
        return Ok(expanded(&path, env));
    }
    if let Some(home) = env("HF_HOME") {
        return Ok(expanded(&home, env).join("hub"));
    }
    let home = match (env("XDG_CACHE_HOME"), env("HOME").or_else(|| env("USERPROFILE"))) {
        (Some(cache), _) => expanded(&cache, env),
        (None, Some(home)) => Path::new(&home).join(".cache"),
        (None, None) => return Err(Error::environment("no home folder is known").hint("set HF_HOME")),
    };
    Ok(home.join("huggingface").join("hub"))
}

/// A path with `~`, `$NAME` and `${NAME}` filled in; unknown names stay as they are.
fn expanded(path: &str, env: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    let home = || env("HOME").or_else(|| env("USERPROFILE"));
    let rest = path.strip_prefix('~').filter(|r| r.is_empty() || r.starts_with('/'));
    let whole = rest.and_then(|r| Some(home()? + r)).unwrap_or_else(|| path.to_string());
    let (mut out, mut rest) = (String::new(), whole.as_str());
    while let Some(at) = rest.find('$') {
        let behind = &rest[at + 1..];
        let plain = behind.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(behind.len());
        let (name, length) = match behind.strip_prefix('{').and_then(|b| b.find('}').map(|n| &b[..n])) {
            Some(name) => (name, name.len() + 3),
            None => (&behind[..plain], plain + 1),
        };
        out.push_str(&rest[..at]);
        out.push_str(&env(name).unwrap_or_else(|| rest[at..at + length].to_string()));
        rest = &rest[at + length..];
    }
    (out + rest).into()
}

/// The variable that forbids the network, if one does.
fn offline(env: &dyn Fn(&str) -> Option<String>) -> Option<&'static str> {
    let on = |name: &str| env(name).is_some_and(|v| ["1", "true", "yes", "on"].contains(&v.to_lowercase().as_str()));
    ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(|name| on(name))
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

/// The snapshot of `main` in the cache, if it has a config and weights.
fn cached(cache: &Path, id: &str) -> Option<PathBuf> {
    let repo = repository(cache, id);
    let commit = std::fs::read_to_string(repo.join("refs").join("main")).ok()?;
    let snapshot = repo.join("snapshots").join(commit.trim());
    (snapshot.join("config.json").is_file() && crate::model::weights::complete(&snapshot)).then_some(snapshot)
}

#[cfg(not(feature = "net"))]
fn fetch(id: &str, _: &Cancel) -> Result<PathBuf> {
    Err(Error::environment(format!("{id} is not in the Hub's cache, and this program was built without `net`"))
        .hint(by_hand(id)))
}

/// Which of a repository's files make the model: configs, the tokenizer, and one kind of weights.
#[cfg_attr(not(feature = "net"), allow(dead_code, reason = "only fetching asks"))]
fn wanted(files: &[String]) -> Vec<&String> {
    let top = |f: &&String| !f.contains('/');
    let safe = files.iter().filter(top).any(|f| f.ends_with(".safetensors"));
    let keep = |f: &&String| {
        let old = f.starts_with("pytorch_model") && (f.ends_with(".bin") || f.ends_with(".bin.index.json"));
        let weights = if safe { f.ends_with(".safetensors") } else { old };
        let other = f.ends_with(".json") && !f.ends_with(".bin.index.json");
        weights || other || *f == "merges.txt" || f.ends_with(".model") || f.ends_with(".jinja")
    };
    files.iter().filter(top).filter(keep).collect()
}

#[cfg(feature = "net")]
fn fetch(id: &str, cancel: &Cancel) -> Result<PathBuf> {
    fetch::Hub::new(env("HF_ENDPOINT"), env("HF_TOKEN")).fetch(&cache(&env)?, id, cancel).map_err(|e| {
        // What a server did wrong has a hint of its own.
        let error = e.context(format!("cannot fetch {id}"));
        match error.class() {
            Class::Environment => {
                error.hint(format!("a gated model needs HF_TOKEN; without a network, {}", by_hand(id)))
            }
            _ => error,
        }
    })
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
            assert_eq!(resolve(text).unwrap_err().class(), crate::error::Class::Input, "{text}");
        }
        // These could be ids, and would be asked of the network.
        for text in ["src/modell", "llava-hf/model.safetensors"] {
            let e = resolve(text).unwrap_err().to_string();
            assert!(is_id(text) && e.contains(&format!("{text} is not there")), "{e}");
        }
        assert!(is_id("openai/clip-vit-base-patch32") && is_id("llava-hf/llava-1.5-7b-hf"));
    }

    #[test]
    fn the_cache_follows_the_variables_of_huggingface_hub() {
        assert_eq!(cache(&vars(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")])).unwrap(), Path::new("/c"));
        assert_eq!(cache(&vars(&[("HF_HOME", "/h"), ("HOME", "/u")])).unwrap(), Path::new("/h/hub"));
        assert_eq!(cache(&vars(&[("HOME", "/u")])).unwrap(), Path::new("/u/.cache/huggingface/hub"));
        assert!(cache(&vars(&[])).is_err());
        assert_eq!(cache(&vars(&[("HUGGINGFACE_HUB_CACHE", "/old")])).unwrap(), Path::new("/old"));
        for home in ["~/home", "$HOME/home", "${HOME}/home"] {
            assert_eq!(cache(&vars(&[("HF_HOME", home), ("HOME", "/u")])).unwrap(), Path::new("/u/home/hub"), "{home}");
        }
        assert_eq!(cache(&vars(&[("HF_HUB_CACHE", "/a/$NO/~b")])).unwrap(), Path::new("/a/$NO/~b"));
        assert_eq!(
            offline(&vars(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")])),
            Some("TRANSFORMERS_OFFLINE")
        );
        assert_eq!(offline(&vars(&[("HF_HUB_OFFLINE", "0")])), None);
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
        let shards = files(&[
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model.bin.index.json",
            "chat_template.jinja",
            "training_args.bin",
        ]);
        assert_eq!(
            wanted(&shards),
            ["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "chat_template.jinja"]
        );
    }
}
