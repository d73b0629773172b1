//! The samples of a shard: members by key, their images and their texts.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use super::WebDatasetConfig;
use crate::data::census::{Census, Why};
use crate::data::{decode, folder};
use crate::error::{Error, Place, Result};
use crate::fsx;

/// Most bytes of a text or JSON member.
const MEMBER: u64 = fsx::bound::SAID as u64;

/// An image of a sample.
pub(super) struct Member {
    /// What stands between the key and the ending: `input` of `<key>.input.jpg`; mostly nothing.
    pub field: String,
    /// First byte in the shard.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// The members of one sample.
#[derive(Default)]
pub(super) struct Sample {
    /// Its images, each of another field.
    pub images: Vec<Member>,
    /// Texts and JSON by what stands behind the key: `txt`, `outputs.txt`. An error says why one is no text.
    texts: BTreeMap<String, Result<String>>,
    /// Images of kinds that are not read.
    pub others: Vec<String>,
}

/// What a sample says.
pub(super) enum Said {
    Texts(Vec<String>),
    /// What is no text, by its member.
    Nonsense(String),
    /// It has no such text; what it has.
    Nothing(Error),
}

impl Sample {
    /// Takes a member by what stands behind the key; `false` for a second image under one name.
    fn take(&mut self, path: &str, rest: String, offset: u64, len: u64, text: Vec<u8>) -> bool {
        let (field, ending) = rest.rsplit_once('.').unwrap_or(("", &rest));
        if decode::is_read(ending) {
            let new = self.images.iter().all(|m| m.field != field);
            if new {
                self.images.push(Member { field: field.to_string(), offset, len });
            }
            return new;
        }
        if is_text(&rest) {
            let text = match len > MEMBER {
                true => Err(fsx::bound::too_long(path, len, MEMBER)),
                false => fsx::text(text).map_err(|e| Error::data(format!("{path}: {}", e.message()))),
            };
            self.texts.insert(rest, text);
        } else if decode::is_foreign(ending, &[]) {
            self.others.push(path.to_string());
        }
        true
    }

    /// Its images with their names: the key, and the field where there are several.
    pub fn named<'s>(&'s self, key: &str) -> Vec<(String, &'s Member)> {
        let several = self.images.len() > 1;
        let name =
            |m: &Member| if several && !m.field.is_empty() { format!("{key}.{}", m.field) } else { key.to_string() };
        self.images.iter().map(|m| (name(m), m)).collect()
    }

    /// The member with this ending: of the image's own field, of none, or the only one.
    fn member(&self, ending: &str, field: &str) -> Option<&Result<String>> {
        let own = if field.is_empty() { ending.to_string() } else { format!("{field}.{ending}") };
        let tail = format!(".{ending}");
        let mut others = self.texts.iter().filter(|(name, _)| name.ends_with(&tail));
        let only = || others.next().filter(|_| self.images.len() == 1 && others.next().is_none()).map(|(_, text)| text);
        self.texts.get(&own).or_else(|| self.texts.get(ending)).or_else(only)
    }

    /// The text that the config asks for, in its sentence, for the image of a field; a list in its JSON is several.
    pub fn text(&self, config: &WebDatasetConfig, key: &str, field: &str) -> Said {
        let wanted = config.text.as_str();
        if wanted.is_empty() {
            return Said::Texts(Vec::new());
        }
        let plain = wanted == "txt" || wanted.ends_with(".txt");
        let found = match plain {
            true => self.member(wanted, if wanted == "txt" { field } else { "" }),
            false => self.member("json", field),
        };
        let mut texts = match found {
            Some(Err(e)) => return Said::Nonsense(e.message().to_string()),
            Some(Ok(text)) if plain => vec![text.clone()],
            Some(Ok(text)) => match fsx::json::<serde_json::Value>(text) {
                Ok(json) => json.get(wanted).map(texts).unwrap_or_default(),
                Err(e) => return Said::Nonsense(format!("{key}.json: {}", e.message())),
            },
            None => Vec::new(),
        };
        texts.retain(|text| !text.trim().is_empty());
        if texts.is_empty() {
            return Said::Nothing(self.silent(wanted));
        }
        let whole = config.template == "{}";
        let name =
            |text: &str| if whole { text.trim() } else { text.split(',').next().unwrap_or("").trim() }.to_string();
        Said::Texts(texts.iter().map(|text| config.template.replace("{}", &name(text))).collect())
    }

    fn silent(&self, wanted: &str) -> Error {
        let json = self.texts.get("json").and_then(|t| t.as_ref().ok());
        let json: Option<serde_json::Value> = json.and_then(|t| serde_json::from_str(t).ok());
        let fields: Vec<&str> =
            json.iter().filter_map(|j| j.as_object()).flat_map(|o| o.keys()).map(String::as_str).collect();
        let members: Vec<&str> = self.texts.keys().map(String::as_str).collect();
        let said = |names: Vec<&str>| if names.is_empty() { "nothing".into() } else { names.join(", ") };
        Error::data(format!("no text `{wanted}`; its JSON has {}, its texts are {}", said(fields), said(members)))
            .hint("set pool.text to a field that is there, or to \"\"")
    }
}

/// A text, or each of a list.
fn texts(value: &serde_json::Value) -> Vec<String> {
    match value {
        serde_json::Value::String(text) => vec![text.clone()],
        serde_json::Value::Array(list) => list.iter().filter_map(|v| v.as_str()).map(str::to_string).collect(),
        _ => Vec::new(),
    }
}

/// A file in a shard.
pub(in crate::data) struct Placed {
    /// Its path there.
    pub path: String,
    /// First byte in the shard.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

fn broken(_: std::io::Error) -> Error {
    Error::data("not a whole tar file: cut off or damaged").hint("fetch it again")
}

/// Hands every file of a shard to `meet`, in order, with a reader of its contents.
pub(in crate::data) fn each_member(
    shard: &Path,
    mut meet: impl FnMut(Placed, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let (mut file, mut first) = (fsx::open(shard)?, Vec::new());
    let length = file.metadata().map_err(|e| Error::io("look at", shard, e))?.len();
    file.by_ref().take(64).read_to_end(&mut first).map_err(|e| Error::io("read", shard, e))?;
    match fsx::stand_in(&first) {
        Some(what) => return Err(Error::data(format!("{what}, expected a tar file")).hint("fetch it again")),
        None if first.starts_with(&[0x1f, 0x8b]) => return Err(super::packed(&"gzipped")),
        None => {}
    }
    let mut archive = tar::Archive::new(fsx::open(shard)?);
    for entry in archive.entries_with_seek().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let (offset, len) = (entry.raw_file_position(), entry.size());
        if offset.saturating_add(len) > length {
            return Err(Error::data(format!("not a whole tar file: {path} is cut off")).hint("fetch it again"));
        }
        meet(Placed { path, offset, len }, &mut entry)?;
    }
    Ok(())
}

/// The samples of a shard in order of their first member.
pub(super) fn samples(shard: &Path, census: &mut Census) -> Result<Vec<(String, Sample)>> {
    let mut samples: Vec<(String, Sample)> = Vec::new();
    let mut index = BTreeMap::new();
    each_member(shard, |Placed { path, offset, len }, contents| {
        let Some((key, rest)) = named(&path) else {
            census.pass(if is_hidden(&path) { Why::Hidden } else { Why::Other }, in_shard(shard, &path));
            return Ok(());
        };
        let mut text = Vec::new();
        if is_text(&rest) {
            contents.take(MEMBER + 1).read_to_end(&mut text).map_err(broken).at(|| path.clone())?;
        }
        let at = *index.entry(key.clone()).or_insert_with(|| {
            samples.push((key, Sample::default()));
            samples.len() - 1
        });
        if !samples[at].1.take(&path, rest, offset, len, text) {
            census.pass(Why::Double, in_shard(shard, &path));
        }
        Ok(())
    })?;
    Ok(samples)
}

/// A member's name for people: its shard's, and its own.
pub(in crate::data) fn in_shard(shard: &Path, name: &str) -> String {
    let shard = shard.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{shard}: {name}")
}

/// Whether a part of a member's path is hidden.
pub(in crate::data) fn is_hidden(path: &str) -> bool {
    path.split('/').any(|part| part != "." && folder::hidden(part))
}

fn is_text(rest: &str) -> bool {
    matches!(rest.rsplit('.').next(), Some("json" | "txt"))
}

/// A member's key and what stands behind it, by WebDataset's rule: the key ends at the first dot of the file name.
/// `None` where a name has no such dot, or is hidden.
fn named(path: &str) -> Option<(String, String)> {
    let path = path.trim_start_matches("./");
    let start = path.rfind('/').map_or(0, |i| i + 1);
    let dot = start + path[start..].find('.')?;
    (!is_hidden(path)).then(|| (path[..dot].to_string(), path[dot + 1..].to_ascii_lowercase()))
}
