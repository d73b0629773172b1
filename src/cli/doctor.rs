//! `fedllava doctor`: what this machine has, what is missing, and how to get it.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value, json};

use super::{put, ranks};
use crate::config::RunConfig;
use crate::data::cifar;
use crate::error::{Error, Result};
use crate::exec::{available_memory, human, total_memory};
use crate::fsx;
use crate::model::hub;
use crate::nn::kernels::Isa;
use crate::pipeline::COMMIT;
use crate::run::program;
use crate::shipped;

/// `doctor`.
#[derive(Args)]
pub struct Doctor {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// One thing that was looked at.
struct Finding {
    /// Its name, unique.
    what: &'static str,
    /// Whether it is as it should be; none where it need not be there.
    fine: Option<bool>,
    /// What was found, in words.
    found: String,
    /// Commands or keys that change it.
    get: Vec<String>,
    /// The numbers behind the words.
    facts: Value,
}

impl Finding {
    fn new(what: &'static str, found: impl Into<String>, facts: Value) -> Self {
        Finding { what, fine: Some(true), found: found.into(), get: Vec::new(), facts }
    }

    fn missing(what: &'static str, found: impl Into<String>, get: Vec<String>) -> Self {
        Finding { what, fine: None, found: found.into(), get, facts: Value::Null }
    }

    fn broken(self, get: impl Into<String>) -> Self {
        Finding { fine: Some(false), get: vec![get.into()], ..self }
    }
}

/// Looks at everything and prints it. What is missing is no failure: the demo needs none of it.
pub fn doctor(d: &Doctor) -> Result<()> {
    let data = std::env::var_os("FEDLLAVA_DATA").filter(|v| !v.is_empty()).map(PathBuf::from);
    let mut all = vec![this_program()?, processor(), kernels(), memory(), gpu(), mpi()];
    all.extend([writing("runs", &run_root()), writing("copies", &shipped::cache()?), cache()?]);
    all.push(hugging_face()?);
    all.extend(data_sets(data.as_deref())?);
    if d.json {
        let entry = |f: &Finding| {
            let value = json!({ "fine": f.fine, "found": f.found, "get": f.get, "facts": f.facts });
            (f.what.to_string(), value)
        };
        return put(&Value::Object(all.iter().map(entry).collect::<Map<_, _>>()).to_string());
    }
    for f in &all {
        let mark = match f.fine {
            Some(true) => "ok",
            Some(false) => "BAD",
            None => "–",
        };
        put(&format!("{mark:3} {:12} {}", f.what, f.found))?;
        f.get.iter().try_for_each(|line| put(&format!("{:17}{line}", "")))?;
    }
    Ok(())
}

fn this_program() -> Result<Finding> {
    let (version, digest) = (env!("CARGO_PKG_VERSION"), program()?);
    let facts = json!({ "version": version, "commit": COMMIT, "sha256": digest });
    let (commit, changed) = COMMIT.split_once('-').map_or((COMMIT, ""), |(c, _)| (c, ", sources changed since"));
    let commit = commit.get(..12).unwrap_or(commit);
    Ok(Finding::new("fedllava", format!("{version}, commit {commit}{changed}, SHA-256 {}…", &digest[..12]), facts))
}

fn processor() -> Finding {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let table = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = table.lines().find_map(|l| l.strip_prefix("model name")).and_then(|l| l.split_once(':'));
    let model = model.map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    let facts = json!({ "model": model, "threads": threads, "system": std::env::consts::OS });
    Finding::new("processor", format!("{model}, {threads} threads ({})", std::env::consts::OS), facts)
}

fn kernels() -> Finding {
    let all: Vec<String> = Isa::available().iter().map(ToString::to_string).collect();
    let used = Isa::detect().to_string();
    let found = format!("{used} (runs here: {})", all.join(", "));
    let finding = Finding::new("kernels", found, json!({ "used": used, "available": all }));
    match Isa::detect() {
        Isa::Portable => finding.broken("without vector instructions networks run many times slower"),
        _ => finding,
    }
}

fn memory() -> Finding {
    let (free, all) = (available_memory(), total_memory());
    let words = |bytes: Option<u64>| bytes.map_or("unknown".into(), human);
    Finding::new("memory", format!("{} free of {}", words(free), words(all)), json!({ "free": free, "total": all }))
}

/// The GPUs that the system's driver names (Linux).
fn driver_gpus() -> Vec<String> {
    let cards = fsx::list(Path::new("/proc/driver/nvidia/gpus")).unwrap_or_default();
    let model = |card: &PathBuf| {
        let text = std::fs::read_to_string(card.join("information")).ok()?;
        text.lines().find_map(|l| Some(l.strip_prefix("Model:")?.trim().to_string()))
    };
    cards.iter().filter_map(model).collect()
}

fn gpu() -> Finding {
    let built = cfg!(feature = "cuda");
    let cards = driver_gpus();
    let usable = built && candle_core::Device::new_cuda(0).is_ok();
    let facts = json!({ "built_with_cuda": built, "driver": cards, "usable": usable });
    let names = if cards.is_empty() { "the system names no NVIDIA GPU".to_string() } else { cards.join(", ") };
    let build = "cargo build --release --features cuda   (scripts/README.md)";
    match (built, usable) {
        (true, true) => Finding::new("gpu", format!("{names}; --device cuda:0 computes there"), facts),
        (true, false) => Finding {
            fine: (!cards.is_empty()).then_some(false),
            facts,
            ..Finding::missing("gpu", format!("built with CUDA, and no GPU can be used ({names})"), Vec::new())
        },
        (false, _) if cards.is_empty() => {
            Finding { facts, ..Finding::missing("gpu", format!("built without CUDA, and {names}"), Vec::new()) }
        }
        (false, _) => {
            Finding { facts, ..Finding::missing("gpu", format!("{names}, but built without CUDA"), vec![build.into()]) }
        }
    }
}

fn mpi() -> Finding {
    let facts = json!({ "built_with_mpi": ranks::BUILT });
    match ranks::BUILT {
        true => Finding::new("mpi", "built with MPI; `mpirun -n 4` and `srun` share a federation's cohort", facts),
        false => {
            let build = "cargo build --release --features mpi   (needs libopenmpi-dev or libmpich-dev, libclang-dev)";
            let found = "built without MPI: one process a run";
            Finding { facts, ..Finding::missing("mpi", found, vec![build.into()]) }
        }
    }
}

/// Where runs go by default.
fn run_root() -> PathBuf {
    PathBuf::from("runs")
}

/// Whether files can be written in a folder, or, where it is not there yet, in the nearest one above it.
fn writing(what: &'static str, folder: &Path) -> Finding {
    let mut there = folder;
    while !there.as_os_str().is_empty() && !there.is_dir() {
        there = there.parent().unwrap_or(Path::new(""));
    }
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    let tried = tempfile::Builder::new().prefix(".fedllava-").tempfile_in(there);
    let facts = json!({ "folder": folder, "writable": tried.is_ok() });
    match tried {
        Ok(_) => Finding::new(what, format!("{} can be written", folder.display()), facts),
        Err(e) => {
            let hint = if what == "runs" { "--set run.dir=FOLDER" } else { "set XDG_CACHE_HOME" };
            Finding::new(what, format!("{}: {e}", there.display()), facts).broken(hint)
        }
    }
}

/// What `run.cache` holds.
fn cache() -> Result<Finding> {
    let folder = RunConfig::default().cache;
    let (files, bytes) = size(Path::new(&folder))?;
    let found = format!("{folder} holds {} in {files} files", human(bytes));
    let facts = json!({ "folder": folder, "files": files, "bytes": bytes });
    let remove =
        if bytes > 0 { vec![format!("rm -r {folder}   frees it; what is needed is computed again")] } else { vec![] };
    Ok(Finding { get: remove, ..Finding::new("cache", found, facts) })
}

/// Files below a folder and their bytes; links are not followed.
fn size(folder: &Path) -> Result<(u64, u64)> {
    if !folder.is_dir() {
        return Ok((0, 0));
    }
    let mut sum = (0, 0);
    for path in fsx::list(folder)? {
        let meta = path.symlink_metadata().map_err(|e| Error::io("look at", &path, e))?;
        let (files, bytes) = if meta.is_dir() { size(&path)? } else { (1, meta.len()) };
        sum = (sum.0 + files, sum.1 + bytes);
    }
    Ok(sum)
}

/// The models that the configs of the paper's tables name.
const CLIP: &str = "openai/clip-vit-base-patch32";

fn hugging_face() -> Result<Finding> {
    let (folder, ids) = hub::in_cache()?;
    let fetches = if cfg!(feature = "net") { "fetched when a config names it" } else { "this build fetches nothing" };
    let facts = json!({ "folder": folder, "models": ids });
    let list = if ids.is_empty() { "no model".to_string() } else { ids.join(", ") };
    let found = format!("{list} in {}", folder.display());
    if ids.iter().any(|id| id == CLIP) {
        return Ok(Finding::new("models", found, facts));
    }
    let get = vec![format!("hf download {CLIP}   for the configs of CIFAR; {fetches}")];
    Ok(Finding { facts, ..Finding::missing("models", found, get) })
}

/// A data set that configs name: its name here, its folder below `FEDLLAVA_DATA`, where it is published, and its finder.
type DataSet = (&'static str, &'static str, &'static str, fn(&Path) -> Result<Option<&'static str>>);

const DATA_SETS: [DataSet; 2] = [
    ("CIFAR-10", "cifar10", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", cifar::layout10),
    ("CIFAR-100", "cifar100", "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", cifar::layout100),
];

fn data_sets(root: Option<&Path>) -> Result<Vec<Finding>> {
    let Some(root) = root.filter(|r| r.is_dir()) else {
        let found = match root {
            Some(root) => format!("FEDLLAVA_DATA names {}, which is no folder", root.display()),
            None => "FEDLLAVA_DATA is not set: the demo needs no data set, the other configs do".into(),
        };
        let get = vec!["export FEDLLAVA_DATA=$HOME/data && mkdir -p $FEDLLAVA_DATA".to_string()];
        let fine = root.map(|_| false);
        return Ok(vec![Finding { fine, ..Finding::missing("data", found, get) }]);
    };
    let mut all = Vec::new();
    for (what, folder, url, layout) in DATA_SETS {
        let place = root.join(folder);
        all.push(match layout(&place)? {
            Some(form) => {
                let facts = json!({ "folder": place, "form": form });
                Finding::new(what, format!("{} ({form})", place.display()), facts)
            }
            None => {
                let at = place.display();
                let get = format!("mkdir -p {at} && curl -L {url} | tar xz -C {at}");
                Finding::missing(what, format!("not in {at}"), vec![get])
            }
        });
    }
    let known: Vec<&str> = DATA_SETS.iter().map(|d| d.1).collect();
    let name = |p: &PathBuf| Some(p.file_name()?.to_string_lossy().into_owned()).filter(|_| p.is_dir());
    let other: Vec<String> =
        fsx::list(root)?.iter().filter_map(name).filter(|n| !known.contains(&n.as_str())).collect();
    if !other.is_empty() {
        all.push(Finding::new("other data", other.join(", "), json!({ "folder": root, "folders": other })));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_set_that_is_there_is_found_and_one_that_is_not_comes_with_its_command() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data");
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("cifar10")).unwrap();
        for file in ["batches.meta", "data_batch_1"] {
            let from = golden.join("cifar-10-batches-py").join(file);
            std::fs::copy(from, root.path().join("cifar10").join(file)).unwrap();
        }
        std::fs::create_dir(root.path().join("mine")).unwrap();
        let found = data_sets(Some(root.path())).unwrap();
        let [ten, hundred, other] = found.as_slice() else { panic!("{} findings", found.len()) };
        assert!(ten.fine == Some(true) && ten.found.contains("pickles"), "{}", ten.found);
        assert!(hundred.fine.is_none() && hundred.get[0].contains("tar xz -C"), "{:?}", hundred.get);
        assert_eq!(other.found, "mine");
        assert_eq!(data_sets(None).unwrap()[0].fine, None);
        assert_eq!(data_sets(Some(&root.path().join("nowhere"))).unwrap()[0].fine, Some(false));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_bad_and_says_what_to_set() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(writing("runs", &root.path().join("a/b")).fine, Some(true));
        let bad = writing("runs", Path::new("/proc/fedllava"));
        assert!(bad.fine == Some(false) && bad.get[0].contains("run.dir"), "{}", bad.found);
    }

    #[test]
    fn sizes_are_summed_over_folders() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("a")).unwrap();
        std::fs::write(root.path().join("a/x"), [0; 10]).unwrap();
        std::fs::write(root.path().join("y"), [0; 5]).unwrap();
        assert_eq!(size(root.path()).unwrap(), (2, 15));
        assert_eq!(size(&root.path().join("nowhere")).unwrap(), (0, 0));
    }
}
