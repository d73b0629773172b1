//! Shards as people bring them.

use super::super::decode::tests::png;
use super::super::pool::{PoolConfig, load as load_pool};
use super::*;
use crate::exec::Context;

fn write(dir: &Path, name: &str, members: &[(&str, Vec<u8>)]) {
    let mut tar = tar::Builder::new(std::fs::File::create(dir.join(name)).unwrap());
    for (path, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        tar.append_data(&mut header, path, bytes.as_slice()).unwrap();
    }
    tar.finish().unwrap();
}

fn two_shards() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let json = |w: &str| format!("{{\"words\": \"{w}\", \"n\": 1}}").into_bytes();
    let image = |v: u8| png(2, 2, move |_, _| [v; 3]);
    let first = [("b.png", image(1)), ("b.json", json("torch")), ("a.json", json("frog, toad")), ("a.PNG", image(2))];
    write(dir.path(), "00000.tar", &first);
    write(dir.path(), "00001.tar", &[("a.png", image(3)), ("a.json", json("dog")), ("note.txt", b"x".to_vec())]);
    dir
}

fn config(dir: &Path) -> WebDatasetConfig {
    WebDatasetConfig { path: dir.display().to_string(), ..Default::default() }
}

fn load_config(config: &WebDatasetConfig) -> Result<Pool> {
    load_pool(&PoolConfig::Webdataset(config.clone()), &Context::cpu(2))
}

#[test]
fn samples_keep_shard_order_and_repeated_keys_are_told_apart() {
    let dir = two_shards();
    let pool = load_config(&config(dir.path())).unwrap();
    assert_eq!(pool.items.iter().map(|i| i.id.as_str()).collect::<Vec<_>>(), ["b", "00000/a", "00001/a"]);
    let red: Vec<u8> = (0..3).map(|i| pool.rgb(i).unwrap().as_raw()[0]).collect();
    assert_eq!((red, pool.supervised), (vec![1, 2, 3], false));
}

#[test]
fn words_as_text_make_the_pool_supervised() {
    let dir = two_shards();
    let text = |text: &str, template: &str| {
        load_config(&WebDatasetConfig { text: text.into(), template: template.into(), ..config(dir.path()) })
    };
    let pool = text("words", "a photo of a {}").unwrap();
    assert!(pool.supervised);
    assert_eq!(pool.items[1].texts, ["a photo of a frog"]);
    let e = text("caption", "{}").unwrap_err().to_string();
    assert!(e.contains("no text `caption`") && e.contains("words"), "{e}");
}

#[test]
fn names_with_dots_and_fields_are_samples_too() {
    let dir = tempfile::tempdir().unwrap();
    let image = |v: u8| png(2, 2, move |_, _| [v; 3]);
    let text = |t: &str| t.as_bytes().to_vec();
    let members = [
        ("1.jpg", image(1)),
        ("1.txt", text("one")),
        ("2.v2.jpg", image(2)),
        ("2.v2.txt", text("two")),
        ("3.input.jpg", image(3)),
        ("3.txt", text("three")),
        ("v1.0/scene 4.00.jpg", image(4)),
        ("v1.0/scene 4.00.txt", text("four")),
        ("v1.0/scene 4.01.jpg", image(5)),
        ("v1.0/scene 4.01.txt", text("five")),
        ("6.gif", image(6)),
        ("6.txt", text("six")),
        ("._1.jpg", text("x")),
    ];
    write(dir.path(), "0.tar", &members);
    let pool = load_config(&WebDatasetConfig { text: "txt".into(), ..config(dir.path()) }).unwrap();
    let got: Vec<(&str, &str)> = pool.items.iter().map(|i| (i.id.as_str(), i.texts[0].as_str())).collect();
    let want = [("1", "one"), ("2", "two"), ("3", "three"), ("v1.0/scene 4.00", "four"), ("v1.0/scene 4.01", "five")];
    assert_eq!(got, want);
    let census = &pool.census[0];
    assert_eq!((census.read, census.passed(Why::Ending), census.passed(Why::Hidden)), (5, 1, 1));
}

#[test]
fn a_text_that_is_none_costs_its_sample_alone() {
    let dir = tempfile::tempdir().unwrap();
    let image = |v: u8| png(2, 2, move |_, _| [v; 3]);
    let members = [
        ("1.jpg", image(1)),
        ("1.txt", b"\xef\xbb\xbfone".to_vec()),
        ("2.jpg", image(2)),
        ("2.txt", b"a dog\x92s ball".to_vec()),
    ];
    write(dir.path(), "0.tar", &members);
    let pool = load_config(&WebDatasetConfig { text: "txt".into(), ..config(dir.path()) }).unwrap();
    assert_eq!((pool.len(), pool.items[0].texts[0].as_str(), pool.census[0].passed(Why::NoText)), (1, "one", 1));
    assert!(
        pool.census[0].line().contains("0.tar: 2.txt: line 1: byte 0x92 is not UTF-8"),
        "{}",
        pool.census[0].line()
    );
    let all = load_config(&config(dir.path())).unwrap();
    assert_eq!(all.len(), 2, "texts that nobody asks for are no matter");
}

#[test]
fn a_sample_without_its_text_is_counted_and_a_list_is_several() {
    let dir = tempfile::tempdir().unwrap();
    let (image, json) = (|v: u8| png(2, 2, move |_, _| [v; 3]), |t: &str| t.as_bytes().to_vec());
    let members = [
        ("1.jpg", image(1)),
        ("1.json", json(r#"{"caption": ["one", "a one"]}"#)),
        ("2.jpg", image(2)),
        ("2.json", json(r#"{"caption": null}"#)),
        ("3.jpg", image(3)),
        ("4.jpg", image(4)),
        ("4.json", json(r#"{"caption": "#)),
    ];
    write(dir.path(), "0.tar", &members);
    std::fs::write(dir.path().join("._0.tar"), "x").unwrap();
    std::fs::write(dir.path().join("0_stats.json"), "{}").unwrap();
    let text = |text: &str| load_config(&WebDatasetConfig { text: text.into(), ..config(dir.path()) });
    let pool = text("caption").unwrap();
    assert_eq!((pool.len(), pool.items[0].texts.as_slice()), (1, ["one".into(), "a one".into()].as_slice()));
    let census = &pool.census[0];
    assert_eq!([Why::NoText, Why::Hidden, Why::Other].map(|why| census.passed(why)), [3, 1, 1]);
    assert!(census.line().contains("0.tar: 4.json: line 1"), "{}", census.line());
    assert!(text("title").unwrap_err().to_string().contains("no text `title`"));
}

#[test]
fn what_only_stands_in_for_a_shard_is_named() {
    let dir = two_shards();
    let refused = |name: &str, bytes: &[u8]| {
        std::fs::write(dir.path().join(name), bytes).unwrap();
        let e = load_config(&config(dir.path())).map(|_| ()).unwrap_err().to_string();
        std::fs::remove_file(dir.path().join(name)).unwrap();
        e
    };
    assert!(refused("00002.tar", b"").contains("00002.tar: an empty file"));
    assert!(refused("00002.tar", b"<!DOCTYPE html>").contains("a web page"));
    assert!(refused("00002.tar", b"\x1f\x8b\x08\x00").contains("gzipped"));
    assert!(refused("00002.tar.gz", b"\x1f\x8b\x08\x00").contains("00002.tar.gz: a packed tar"));
}

#[test]
fn shards_go_by_number_and_not_by_spelling() {
    let dir = tempfile::tempdir().unwrap();
    for n in [10, 9, 8] {
        write(dir.path(), &format!("p-{n}.tar"), &[("x.png", png(1, 1, |_, _| [n; 3]))]);
    }
    let pool = load_config(&config(dir.path())).unwrap();
    assert_eq!(pool.items.iter().map(|i| i.id.as_str()).collect::<Vec<_>>(), ["p-8/x", "p-9/x", "p-10/x"]);
}

#[test]
fn a_missing_and_a_cut_shard_are_named() {
    let dir = two_shards();
    std::fs::rename(dir.path().join("00001.tar"), dir.path().join("00003.tar")).unwrap();
    assert!(load_config(&config(dir.path())).unwrap_err().to_string().contains("shard number 1 is missing"));
    let e = load_config(&WebDatasetConfig { shards: 3, ..config(dir.path()) }).unwrap_err().to_string();
    assert!(e.contains("2 tar shards, expected 3"), "{e}");
    std::fs::remove_file(dir.path().join("00003.tar")).unwrap();
    let whole = std::fs::read(dir.path().join("00000.tar")).unwrap();
    std::fs::write(dir.path().join("00000.tar"), &whole[..560]).unwrap();
    let e = load_config(&config(dir.path())).unwrap_err().to_string();
    assert!(e.contains("00000.tar") && e.contains("not a whole tar file"), "{e}");
}

#[test]
fn damaged_shards_never_panic() {
    let (dir, mut refused) = (two_shards(), 0);
    let path = dir.path().join("00000.tar");
    let whole = std::fs::read(&path).unwrap();
    let mut rng = crate::key::Key::from_seed(1).rng();
    for round in 0..300 {
        let mut bytes = whole.clone();
        // Headers are blocks of 512 bytes, here every second or so; half of the changes hit the sizes in them.
        let at = if round % 2 == 0 { rng.below(bytes.len()) } else { 512 * rng.below(8) + 124 + rng.below(12) };
        bytes[at] = rng.u32() as u8;
        if round % 5 == 0 {
            bytes.truncate(rng.below(whole.len()));
        }
        std::fs::write(&path, bytes).unwrap();
        match load_config(&WebDatasetConfig { text: "words".into(), ..config(dir.path()) }) {
            Ok(pool) => drop(pool.decode(&[0, 1], 8, &Context::cpu(1))),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 50, "{refused}");
}

#[test]
fn the_real_pool_is_read_when_it_is_there() {
    let Some(root) = super::super::real_data() else { return };
    let folder = root.join("pool-tiny-imagenet");
    let pool = load_config(&WebDatasetConfig { shards: 2, text: "words".into(), ..config(&folder) }).unwrap();
    let words: std::collections::BTreeSet<&String> = pool.items.iter().flat_map(|i| &i.texts).collect();
    assert_eq!(
        (pool.len(), pool.items[0].id.as_str(), pool.items[0].texts[0].as_str()),
        (10_000, "0000000000", "torch")
    );
    assert!(words.len() > 190, "{}", words.len());
    let got = pool.decode(&(0..300).collect::<Vec<_>>(), 32, &Context::cpu(2)).unwrap();
    assert_eq!((got.kept.len(), got.failed.len()), (300, 0));
}
