//! Layers go one way: a module imports only modules that stand above it in `src/core/lib.rs` and `src/lib.rs`.

use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The modules in the order of `src/core/lib.rs` and `src/lib.rs`.
fn order() -> Vec<String> {
    let text = read(&Path::new(ROOT).join("src/core/lib.rs")) + &read(&Path::new(ROOT).join("src/lib.rs"));
    text.lines().filter_map(|l| Some(l.strip_prefix("pub mod ")?.trim_end_matches(';').to_string())).collect()
}

fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// Names after `crate::` in some source text.
fn crate_paths(text: &str) -> Vec<String> {
    let name = |rest: &str| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    text.split("crate::").skip(1).map(name).filter(|n| !n.is_empty()).collect()
}

/// `(file, module, imported module)` for every path in the tree.
fn imports() -> Vec<(PathBuf, String, String)> {
    let (src, mut files, mut found) = (Path::new(ROOT).join("src"), Vec::new(), Vec::new());
    sources(&src, &mut files);
    files.sort();
    for file in files {
        let inside = file.strip_prefix(src.join("core")).or(file.strip_prefix(&src)).unwrap();
        let module = inside.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_string();
        if module == "lib" || module == "main" {
            continue;
        }
        for import in crate_paths(&read(&file)) {
            found.push((inside.to_path_buf(), module.clone(), import));
        }
    }
    found
}

#[test]
fn a_module_imports_only_modules_above_it() {
    let order = order();
    let place = |name: &str| order.iter().position(|m| m == name);
    let imports = imports();
    assert!(order.len() > 10 && imports.len() > 100, "{} modules, {} imports", order.len(), imports.len());
    let wrong: Vec<_> = imports
        .iter()
        .filter(|(_, module, import)| {
            place(import).is_some_and(|i| place(module).is_none_or(|m| i > m)) || forbidden(module, import)
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Whether source text of `src/core/nn/kernels` reaches for something else of `nn`.
fn leaves_the_kernels(text: &str) -> bool {
    let inside = |rest: &str| rest.starts_with("kernels") || rest.starts_with(')');
    text.split("crate::nn").skip(1).any(|rest| !inside(rest.trim_start_matches("::"))) || text.contains("::engine")
}

#[test]
fn kernels_import_nothing_else_of_nn() {
    let mut files = Vec::new();
    sources(&Path::new(ROOT).join("src/core/nn/kernels"), &mut files);
    assert!(files.len() > 10, "{files:?}");
    let wrong: Vec<_> = files.iter().filter(|f| leaves_the_kernels(&read(f))).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(!leaves_the_kernels("use crate::nn::kernels::simd::Isa;\npub(in crate::nn) fn f() {}"));
    assert!(leaves_the_kernels("use crate::nn::net::Net;") && leaves_the_kernels("use super::super::engine::cpu;"));
}

/// `data` and `model` do not see each other; `report` knows only what a run wrote.
fn forbidden(module: &str, import: &str) -> bool {
    match module {
        "model" => import == "data",
        "report" => !["error", "fsx", "run"].contains(&import),
        _ => false,
    }
}

#[test]
fn the_reader_of_paths_sees_what_it_must() {
    assert_eq!(crate_paths("use crate::fl::{a, b};\nlet x = crate::data::load();"), ["fl", "data"]);
}

#[test]
fn the_readme_names_every_module() {
    let readme = read(&Path::new(ROOT).join("README.md"));
    let missing: Vec<String> = order().into_iter().filter(|m| !readme.contains(&format!("`{m}"))).collect();
    assert!(missing.is_empty(), "README.md does not name {missing:?}");
}

#[test]
fn no_module_is_called_by_a_name_that_says_nothing() {
    let mut files = Vec::new();
    sources(&Path::new(ROOT).join("src"), &mut files);
    let empty = ["utils", "util", "common", "helpers", "types", "misc"];
    let bad: Vec<_> = files.iter().filter(|f| empty.iter().any(|e| f.file_stem().is_some_and(|s| s == *e))).collect();
    assert!(bad.is_empty(), "{bad:?}");
}
