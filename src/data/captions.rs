//! What is said about images: caption records, one JSON object a line.
//!
//! ```json
//! {"image": "0000000017", "digest": "sha256 of the image file", "captions": ["a brown dog on grass"],
//!  "prompt": "…", "model": "…", "revision": "…", "decoding": {"temperature": 0.2}}
//! ```
//!
//! Only `image` (an item's id, or its path in the pool) and `caption` or `captions` must be there; `file_name` and `text`
//! mean the same. Where a digest is there, the image must have it.
//!
//! LLaVA's training files are read too, as one JSON list or one record a line: each answer in `conversations` is a
//! caption of the image. So are tables with a header, separated by commas or tabs: a column `image` (or `file_name`,
//! `filename`, `filepath`) and a column `caption` (or `text`, `title`). A gzipped file is unpacked.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use unicode_normalization::{UnicodeNormalization, is_nfc};

use super::census::{Census, Why};
use super::gzip::unpacked;
use crate::error::{Error, Place, Result};
use crate::fsx;

/// One line of a caption file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Caption {
    /// Id or relative path of the image in its pool.
    pub image: String,
    /// SHA-256 of the image file's bytes, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// What is said about the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub captions: Vec<String>,
    /// The same where there is only one; read into `captions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caption: Option<String>,
    /// What the captioner was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Who answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Which revision of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// How it was decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoding: Option<serde_json::Value>,
    /// Whatever else the line says, kept.
    #[serde(flatten)]
    pub more: BTreeMap<String, serde_json::Value>,
}

/// A caption file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Captions {
    /// The records in file order.
    pub records: Vec<Caption>,
    /// SHA-256 of the file.
    pub digest: String,
    /// What was seen of the file.
    pub census: Census,
}

impl Captions {
    /// Reads a caption file. A line that is no record is an error that names it; a record without a caption, whose text
    /// holds half a character, or that is about no image or several, is passed over and counted.
    pub fn read(path: &Path) -> Result<Captions> {
        let bytes = fsx::read_most(path, fsx::bound::TEXT)?;
        let digest = fsx::sha256(&bytes);
        let text = fsx::text(unpacked(path, bytes)?).at(|| path.display().to_string())?;
        let mut captions =
            Captions { digest, census: Census::new(path.display().to_string(), "records"), ..Default::default() };
        captions.take_all(&text).at(|| path.display().to_string())?;
        captions.census.read = captions.records.len();
        match captions.records.is_empty() && captions.census.passed.is_empty() {
            true => Err(Error::data(format!("{}: no record in it", path.display())).hint(FORMS)),
            false => Ok(captions),
        }
    }

    fn take_all(&mut self, text: &str) -> Result<()> {
        if text.trim_start().starts_with('[') {
            let list: Vec<Value> = fsx::json(text)?;
            return list
                .into_iter()
                .enumerate()
                .try_for_each(|(n, value)| self.take(value, &format!("record {}", n + 1)));
        }
        if let Some((separator, image, caption)) = table(text) {
            return self.take_table(text, separator, image, caption);
        }
        if let Ok(Value::Object(one)) = fsx::json(text)
            && !one.contains_key("image")
            && !one.contains_key("file_name")
        {
            let keys: Vec<&String> = one.keys().take(5).collect();
            return Err(Error::data(format!("one JSON object with the keys {keys:?}, expected a record a line"))
                .hint("a record is {\"image\": \"a.png\", \"caption\": \"…\"}; a list of records is read too"));
        }
        for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            match fsx::json_line(line, n + 1) {
                Ok(value) => self.take(value, &format!("line {}", n + 1))?,
                Err(e) if e.message().contains("half a character") => self.census.pass(Why::NoText, e.message()),
                Err(e) => return Err(e.hint(FORMS)),
            }
        }
        Ok(())
    }

    fn take_table(&mut self, text: &str, separator: u8, image: usize, caption: usize) -> Result<()> {
        let mut rows = csv::ReaderBuilder::new().delimiter(separator).from_reader(text.as_bytes());
        for row in rows.records() {
            let row = row.map_err(|e| match e.kind() {
                csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
                    let line = pos.as_ref().map_or(0, csv::Position::line);
                    Error::data(format!("line {line}: {len} columns, the header has {expected_len}"))
                        .hint("a text with the separator in it stands in quotes")
                }
                _ => Error::data("a damaged table"),
            })?;
            let line = row.position().map_or(0, csv::Position::line);
            let of = |column: usize| row.get(column).unwrap_or_default();
            self.take(serde_json::json!({ "image": of(image), "caption": of(caption) }), &format!("line {line}"))?;
        }
        Ok(())
    }

    fn take(&mut self, mut value: Value, place: &str) -> Result<()> {
        rename(&mut value, "file_name", &["image"]);
        rename(&mut value, "text", &["caption", "captions", "conversations"]);
        let talk = value.get("conversations").map(answers).transpose().at(|| place)?;
        if let Some(why) = lacking(&mut value, talk.is_some()) {
            self.census.pass(why, place);
            return Ok(());
        }
        // By way of its text, so that an error speaks of JSON.
        let mut record: Caption = fsx::json(&value.to_string())
            .map_err(|e| Error::data(e.message().split_once(": ").map_or(e.message(), |(_, m)| m)).context(place))?;
        if let Some(talk) = talk {
            record.more.remove("conversations");
            record.captions.extend(talk);
        }
        record.captions.extend(record.caption.take());
        record.captions.retain(|c| !c.trim().is_empty());
        if let Some(Err(e)) = record.captions.iter().map(|c| fsx::bound::said(c)).find(Result::is_err) {
            self.census.pass(Why::NoText, format!("{place}: {}", e.message()));
            return Ok(());
        }
        match record.captions.is_empty() {
            true => self.census.pass(Why::NoText, format!("{place}: {} has no caption", record.image)),
            false => self.records.push(record),
        }
        Ok(())
    }

    /// Writes the records, whole or not at all.
    pub fn save(records: &[Caption], path: &Path) -> Result<()> {
        let mut text = String::new();
        for record in records {
            text += &serde_json::to_string(record).map_err(|e| Error::defect(format!("caption: {e}")))?;
            text.push('\n');
        }
        fsx::write_atomic(path, text.as_bytes())
    }
}

/// Separator and columns of a table with a header of images and captions, if it is one.
fn table(text: &str) -> Option<(u8, usize, usize)> {
    let header = text.lines().next()?.to_lowercase();
    [b',', b'\t'].into_iter().find_map(|separator| {
        let names: Vec<&str> = header.split(char::from(separator)).map(|n| n.trim().trim_matches('"')).collect();
        let column = |known: &[&str]| names.iter().position(|n| known.contains(n));
        let (image, caption) = (["image", "file_name", "filename", "filepath"], ["caption", "text", "title"]);
        Some((separator, column(&image)?, column(&caption)?))
    })
}

const FORMS: &str = "expected one JSON object a line, {\"image\": \"a.png\", \"caption\": \"…\"}, one JSON list of them, or a \
    table whose header names image and caption, separated by commas or tabs";

/// Why a record is passed over for what it says of its image. A list of one image is that image; a caption that is null
/// is none.
fn lacking(record: &mut Value, talk: bool) -> Option<Why> {
    let fields = record.as_object_mut()?;
    if fields.get("caption").is_some_and(Value::is_null) {
        fields.remove("caption");
    }
    match fields.get_mut("image") {
        None | Some(Value::Null) if talk => return Some(Why::TextAlone),
        Some(Value::Array(list)) if list.is_empty() => return Some(Why::TextAlone),
        Some(Value::Array(list)) if list.len() > 1 => return Some(Why::Several),
        Some(list @ Value::Array(_)) => *list = list[0].take(),
        _ => {}
    }
    None
}

/// Gives a field the first of `names` where the record has none of them.
fn rename(record: &mut Value, field: &str, names: &[&str]) {
    if let Some(fields) = record.as_object_mut()
        && !names.iter().any(|n| fields.contains_key(*n))
        && let Some(value) = fields.remove(field)
    {
        fields.insert(names[0].to_string(), value);
    }
}

/// What the assistant says in LLaVA's `conversations`.
fn answers(talk: &Value) -> Result<Vec<String>> {
    let turns = talk.as_array().ok_or_else(|| Error::data("conversations is no list of turns"))?;
    let says = |turn: &&Value| matches!(turn["from"].as_str().or(turn["role"].as_str()), Some("gpt" | "assistant"));
    let said = |turn: &Value| Some(turn["value"].as_str().or(turn["content"].as_str())?.trim().to_string());
    Ok(turns.iter().filter(says).filter_map(said).collect())
}

/// A name as it is compared: composed characters (macOS takes them apart), slashes, no `./` in front.
pub fn spelled(name: &str) -> Cow<'_, str> {
    let name = name.trim_start_matches("./");
    if is_nfc(name) && !name.contains('\\') {
        return name.into();
    }
    name.nfc().map(|c| if c == '\\' { '/' } else { c }).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Captions> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("captions.jsonl");
        std::fs::write(&path, text).unwrap();
        Captions::read(&path)
    }

    #[test]
    fn one_caption_or_several_are_read_and_written_back() {
        let got = read("{\"image\": \"a\", \"caption\": \"x\", \"model\": \"m\", \"score\": 1}\n\n{\"image\": \"b\", \"captions\": [\"y\", \"z\"]}\n")
            .unwrap();
        assert_eq!(got.records[0].captions, ["x"]);
        assert_eq!(got.records[1].captions, ["y", "z"]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("again.jsonl");
        Captions::save(&got.records, &path).unwrap();
        let again = Captions::read(&path).unwrap();
        assert_eq!(again.records, got.records);
        assert_eq!(again.digest, fsx::sha256_file(&path).unwrap());
    }

    #[test]
    fn a_broken_or_empty_record_is_named_by_its_line() {
        let got = read("{\"image\": \"a\", \"caption\": \"x\"}\n{\"image\": \"b\"}\n").unwrap();
        assert!(got.census.line().contains("1 whose text is none (line 2: b has no caption)"), "{}", got.census.line());
        let e = read("{\"image\": 3, \"caption\": \"x\"}").unwrap_err().to_string();
        assert!(e.contains("line 1: the number 3, expected a text"), "{e}");
        assert!(read("{\"a.png\": \"x\"}").unwrap_err().to_string().contains("expected a record a line"));
    }

    #[test]
    fn llavas_own_form_is_read_as_a_list_and_by_lines() {
        let talk = |n: &str| {
            format!(
                r#"{{"id": "{n}", "image": "{n}.png", "conversations": [{{"from": "human", "value": "<image>\nWhat?"}}, {{"from": "gpt", "value": "A {n}."}}]}}"#
            )
        };
        let alone = r#"{"id": "t", "conversations": [{"from": "gpt", "value": "Yes."}]}"#;
        for text in
            [format!("[{},\n{},\n{alone}]", talk("a"), talk("b")), format!("{}\r\n{}\n{alone}\n", talk("a"), talk("b"))]
        {
            let got = read(&text).unwrap();
            assert_eq!(
                (got.records[1].image.as_str(), got.records[1].captions.as_slice()),
                ("b.png", ["A b.".to_string()].as_slice())
            );
            assert_eq!((got.census.read, got.census.passed(Why::TextAlone)), (2, 1));
        }
    }

    #[test]
    fn tables_with_a_header_are_read() {
        let got = read("image,caption\r\na.jpg,\"A dog, running .\"\r\na.jpg,A brown dog .\r\n").unwrap();
        let texts: Vec<&str> = got.records.iter().map(|r| r.captions[0].as_str()).collect();
        assert_eq!((got.records[0].image.as_str(), texts), ("a.jpg", vec!["A dog, running .", "A brown dog ."]));
        assert_eq!(read("title\tfilepath\nA dog, running\tx/a.jpg\n").unwrap().records[0].image, "x/a.jpg");
        let e = read("image,caption\na.jpg,A dog, running\n").unwrap_err().to_string();
        assert!(e.contains("line 2: 3 columns, the header has 2"), "{e}");
    }

    #[test]
    fn a_mark_before_the_file_is_no_matter_and_half_a_character_costs_its_record_alone() {
        let got =
            read("\u{feff}{\"image\": \"a\", \"caption\": \"x\"}\n{\"image\": \"b\", \"caption\": \"x \\ud83d\"}\n")
                .unwrap();
        assert_eq!((got.records.len(), got.census.passed(Why::NoText)), (1, 1));
        assert!(got.census.line().contains("line 2: half a character"), "{}", got.census.line());
    }

    #[test]
    fn a_record_that_says_nothing_or_shows_several_images_costs_itself_alone() {
        let talk = r#""conversations": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "yes"}]"#;
        let lines = [
            r#"{"image": "a", "caption": "x"}"#.to_string(),
            r#"{"image": "b", "caption": null}"#.into(),
            r#"{"image": "c", "caption": " "}"#.into(),
            format!("{{\"image\": [\"d\"], {talk}}}"),
            format!("{{\"image\": [\"e\", \"f\"], {talk}}}"),
            format!("{{\"image\": null, {talk}}}"),
        ];
        let got = read(&lines.join("\n\u{feff}")).unwrap();
        let kept: Vec<(&str, &str)> = got.records.iter().map(|r| (r.image.as_str(), r.captions[0].as_str())).collect();
        assert_eq!(kept, [("a", "x"), ("d", "yes")]);
        let passed = [Why::NoText, Why::Several, Why::TextAlone].map(|why| got.census.passed(why));
        assert_eq!(passed, [2, 1, 1], "{}", got.census.line());
        assert!(read("").unwrap_err().to_string().contains("no record in it"));
    }

    #[test]
    fn names_are_compared_composed() {
        assert_eq!(spelled("./cafe\u{301}\\a.png"), "caf\u{e9}/a.png");
    }
}
