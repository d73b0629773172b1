//! Conversations as text: by the chat template that lies beside a model, or, where none does, in the form that
//! LLaVA-1.5 was trained on (`vicuna_v1`; the chat template of `llava-hf/llava-1.5-7b-hf`).

use std::path::Path;

use minijinja::Environment;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use serde_json::{Value, json};

use crate::error::{Error, Place, Result};
use crate::exec;
use crate::fsx;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sets the scene; written without a name.
    System,
    /// Asks.
    User,
    /// Answers.
    Assistant,
}

/// What somebody says.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// Who.
    pub role: Role,
    /// How many images come before the text.
    pub images: usize,
    /// The text.
    pub text: String,
}

impl Turn {
    /// A question about one image.
    pub fn about_image(text: &str) -> Self {
        Turn { role: Role::User, images: 1, text: text.into() }
    }

    /// An answer.
    pub fn answer(text: &str) -> Self {
        Turn { role: Role::Assistant, images: 0, text: text.into() }
    }
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Words.
    Text(String),
    /// The next picture.
    Picture,
}

/// What somebody says, pictures where they stand between words.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Who.
    pub role: Role,
    /// In order.
    pub parts: Vec<Part>,
}

impl Message {
    /// Words alone.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Message { role, parts: vec![Part::Text(text.into())] }
    }

    /// A question about so many pictures, which come before it.
    pub fn about(pictures: usize, text: impl Into<String>) -> Self {
        let before = std::iter::repeat_n(Part::Picture, pictures);
        Message { role: Role::User, parts: before.chain([Part::Text(text.into())]).collect() }
    }

    /// How many pictures are in it.
    pub fn pictures(&self) -> usize {
        self.parts.iter().filter(|p| **p == Part::Picture).count()
    }
}

impl From<&Turn> for Message {
    fn from(turn: &Turn) -> Self {
        Message { role: turn.role, ..Message::about(turn.images, turn.text.as_str()) }
    }
}

/// Where an image stands in a prompt.
pub const IMAGE: &str = "<image>";

/// Files that may hold a model's chat template, the first that does counts.
pub const FILES: [&str; 4] =
    ["chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json"];

/// How a model is spoken to.
#[derive(Clone, Debug, Default)]
pub struct Chat {
    template: Option<Template>,
}

#[derive(Clone, Debug)]
struct Template {
    file: String,
    source: String,
    /// Marks of the tokenizer that templates may write: `bos_token`, `eos_token`, ….
    marks: Value,
    /// What stands for a picture.
    mark: String,
    /// Whether a turn's content is one text with the mark in it, a line a part, as templates of text models want it.
    flat: bool,
}

impl Chat {
    /// The template of a LLaVA's folder, if it has one. One that cannot be followed is refused.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::open_marked(folder, IMAGE)
    }

    /// The template of a folder in which `mark` stands for a picture, if it has one. One that cannot be followed, or
    /// that puts no picture into a question, is refused.
    pub fn open_marked(folder: &Path, mark: &str) -> Result<Self> {
        let config = folder.join("tokenizer_config.json");
        let config: Value = if config.is_file() { fsx::read_json(&config)? } else { Value::Null };
        let content =
            |name: &str| config[name].as_str().or_else(|| config[name]["content"].as_str()).unwrap_or_default();
        let marks = json!({ "bos_token": content("bos_token"), "eos_token": content("eos_token"),
            "pad_token": content("pad_token"), "unk_token": content("unk_token") });
        for file in FILES {
            let path = folder.join(file);
            let Some(source) = source(&path)? else { continue };
            let mut template = Template { file: file.into(), source, marks, mark: mark.into(), flat: false };
            let question = [Message::about(1, "?")];
            let once = |t: &Template| t.write(&question, true).map(|p| p.matches(mark).count() == 1);
            if !once(&template).unwrap_or(false) {
                template.flat = true;
                if !once(&template).at(|| path.display().to_string())? {
                    return Err(Error::data(format!(
                        "{}: the chat template puts no {mark} into a question",
                        path.display()
                    ))
                    .hint(
                        "take this model's own template; a LLaVA's may be removed, then the form of LLaVA-1.5 is used",
                    ));
                }
            }
            return Ok(Chat { template: Some(template) });
        }
        Ok(Chat::default())
    }

    /// The text of a conversation; `open` ends it where the assistant answers.
    pub fn prompt(&self, turns: &[Turn], open: bool) -> Result<String> {
        self.write(&turns.iter().map(Message::from).collect::<Vec<_>>(), open)
    }

    /// The text of messages; `open` ends it where the assistant answers.
    pub fn write(&self, messages: &[Message], open: bool) -> Result<String> {
        match &self.template {
            Some(template) => template.write(messages, open).at(|| template.file.clone()),
            None => Ok(vicuna_written(messages, open)),
        }
    }

    /// Whether the folder had a template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }
}

/// The template in a file: the file itself, or its `chat_template`.
fn source(path: &Path) -> Result<Option<String>> {
    if !path.is_file() {
        return Ok(None);
    }
    if path.extension().is_some_and(|e| e == "jinja") {
        return fsx::read_text(path).map(Some);
    }
    let json: Value = fsx::read_json(path)?;
    Ok(match &json["chat_template"] {
        Value::String(text) => Some(text.clone()),
        // Several by name.
        Value::Array(list) => {
            let named = |n: &str| list.iter().find(|t| t["name"] == n);
            named("default").or_else(|| list.first()).and_then(|t| t["template"].as_str()).map(str::to_string)
        }
        _ => None,
    })
}

/// Bytes of stack for a template, and steps that one may take: a loop without end is an error.
const STACK: usize = 64 << 20;
const FUEL: u64 = 1_000_000;

/// Most bytes of a template, and of one of its tags: the library folds a chain of thousands of operators in seconds, twice
/// as long a one in four times as many.
const SOURCE: usize = 256 << 10;
const TAG: usize = 4 << 10;

/// Refuses a template that would take too long to read.
fn bounded(source: &str) -> Result<()> {
    let refuse = |what: &str, size: usize, most: usize| {
        Err(Error::data(format!("the chat template {what} {size} bytes, more than the {most} that are read")))
    };
    if source.len() > SOURCE {
        return refuse("has", source.len(), SOURCE);
    }
    for (open, close) in [("{{", "}}"), ("{%", "%}")] {
        for (at, _) in source.match_indices(open) {
            let size = source[at..].find(close).map_or(source.len() - at, |n| n + close.len());
            if size > TAG {
                return refuse("has a tag of", size, TAG);
            }
        }
    }
    Ok(())
}

impl Template {
    fn write(&self, messages: &[Message], open: bool) -> Result<String> {
        let message = |m: &Message| {
            if self.flat {
                let line = |p: &Part| match p {
                    Part::Text(text) => text.clone(),
                    Part::Picture => self.mark.clone(),
                };
                let lines: Vec<String> = m.parts.iter().map(line).collect();
                return json!({ "role": m.role.name(), "content": lines.join("\n") });
            }
            let piece = |p: &Part| match p {
                Part::Text(text) => json!({ "type": "text", "text": text }),
                Part::Picture => json!({ "type": "image" }),
            };
            json!({ "role": m.role.name(), "content": m.parts.iter().map(piece).collect::<Vec<_>>() })
        };
        let messages: Vec<Value> = messages.iter().map(message).collect();
        let mut given = self.marks.clone();
        (given["messages"], given["add_generation_prompt"]) = (messages.into(), open.into());
        // On a stack of its own: the library goes 150 levels deep, which is more than a worker's stack holds.
        let roomy = std::thread::Builder::new().stack_size(STACK);
        std::thread::scope(|scope| {
            let run = roomy.spawn_scoped(scope, || exec::tamed(|| self.render(given)).flatten());
            let run = run.map_err(|e| Error::io("start a thread for", Path::new("the chat template"), e))?;
            run.join().map_err(|_| Error::defect("a chat template's thread is gone"))?
        })
    }

    fn render(&self, given: Value) -> Result<String> {
        bounded(&self.source)?;
        let failed = |e: minijinja::Error| {
            let place = e.line().map_or(String::new(), |line| format!(" (line {line})"));
            let what = e.detail().map_or_else(|| e.kind().to_string(), str::to_string);
            Error::data(format!("the chat template cannot be followed{place}: {what}"))
        };
        let mut env = Environment::new();
        // As transformers sets Jinja up.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|e| Error::defect(format!("chat template: {e}")))?);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_function("raise_exception", |text: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, text))
        });
        env.set_fuel(Some(FUEL));
        env.render_str(&plain(&self.source), minijinja::Value::from(Serde(given))).map_err(failed)
    }
}

/// Without transformers' `generation` tags, which only mark what the assistant says.
fn plain(source: &str) -> String {
    let (mut out, mut rest) = (String::new(), source);
    while let Some(at) = rest.find("{%") {
        let Some(end) = rest[at..].find("%}").map(|n| at + n + 2) else { break };
        let tag = &rest[at..end];
        let word = tag.trim_matches(['{', '}', '%', '-', '+', ' ', '\n']);
        out.push_str(&rest[..at]);
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[end..];
    }
    out + rest
}

/// The prompt of a conversation in LLaVA-1.5's own form; `open` ends it with the assistant's name, so that the model
/// answers.
pub fn vicuna(turns: &[Turn], open: bool) -> String {
    vicuna_written(&turns.iter().map(Message::from).collect::<Vec<_>>(), open)
}

/// Pictures come first, whatever their place, as the published template has it.
fn vicuna_written(messages: &[Message], open: bool) -> String {
    let mut prompt = String::new();
    for message in messages {
        prompt.push_str(match message.role {
            Role::System => "",
            Role::User => "USER: ",
            Role::Assistant => "ASSISTANT: ",
        });
        prompt.push_str(&format!("{IMAGE}\n").repeat(message.pictures()));
        for part in &message.parts {
            if let Part::Text(text) = part {
                prompt.push_str(text);
                prompt.push(' ');
            }
        }
    }
    if open {
        prompt.push_str("ASSISTANT:");
    }
    prompt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llava")
    }

    /// `tests/golden/llava/make.py`: the published template by jinja.
    #[test]
    fn prompts_are_those_of_the_published_template() {
        let cases: Value = fsx::read_json(&golden().join("prompts.json")).unwrap();
        let chat = Chat::open(&golden().join("default")).unwrap();
        assert!(chat.template.is_some());
        for case in cases.as_array().unwrap() {
            let turn = |m: &Value| Turn {
                role: match m["role"].as_str().unwrap() {
                    "system" => Role::System,
                    "user" => Role::User,
                    _ => Role::Assistant,
                },
                images: m["images"].as_u64().unwrap() as usize,
                text: m["text"].as_str().unwrap().into(),
            };
            let turns: Vec<Turn> = case["messages"].as_array().unwrap().iter().map(turn).collect();
            let (open, want) = (case["open"].as_bool().unwrap(), case["prompt"].as_str().unwrap());
            assert_eq!(vicuna(&turns, open), want);
            assert_eq!(chat.prompt(&turns, open).unwrap(), want);
        }
        assert!(cases.as_array().unwrap().len() >= 5);
    }

    fn chat(file: &str, text: &str) -> Result<Chat> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(file), text).unwrap();
        Chat::open(dir.path())
    }

    /// What Jinja 3 with transformers' settings writes.
    #[test]
    fn another_models_form_is_followed_from_any_of_its_files() {
        let chatml = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type']=='image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
        let want = "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n";
        let json = json!({ "chat_template": chatml }).to_string();
        let named = json!({ "chat_template": [{ "name": "default", "template": chatml }] }).to_string();
        for (file, text) in
            [("chat_template.jinja", chatml), ("chat_template.json", &json), ("tokenizer_config.json", &named)]
        {
            let got = chat(file, text).unwrap().prompt(&[Turn::about_image("What?")], true).unwrap();
            assert_eq!(got, want, "{file}");
        }
        let flat = "{{ bos_token }}{% for m in messages %}[{{ m.role|upper }}] {{ m.content.strip() }}{% endfor %}";
        let config = json!({ "chat_template": flat, "bos_token": "<s>" }).to_string();
        let got = chat("tokenizer_config.json", &config).unwrap().prompt(&[Turn::about_image("What? ")], true).unwrap();
        assert_eq!(got, "<s>[USER] <image>\nWhat?");
    }

    /// The published template of Qwen2.5-VL, which counts pictures in a namespace and asks what is in a map.
    #[test]
    fn qwens_own_template_is_followed_with_pictures_between_words() {
        const QWEN: &str = "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == 'video' or 'video' in content %}{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("chat_template.jinja"), QWEN).unwrap();
        let chat = Chat::open_marked(dir.path(), "<|image_pad|>").unwrap();
        let parts = vec![Part::Text("Is ".into()), Part::Picture, Part::Text(" blue?".into())];
        let got = chat.write(&[Message { role: Role::User, parts }], true).unwrap();
        let want = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nIs <|vision_start|><|image_pad|><|vision_end|> blue?<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(got, want);
        // Templates of text models get a line a part.
        let flat = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}";
        std::fs::write(dir.path().join("chat_template.jinja"), flat).unwrap();
        let chat = Chat::open_marked(dir.path(), "(<image>./</image>)").unwrap();
        assert_eq!(chat.write(&[Message::about(1, "Blue?")], true).unwrap(), "<user>(<image>./</image>)\nBlue?");
    }

    #[test]
    fn a_template_that_cannot_be_followed_or_sees_no_image_is_refused() {
        let e = chat("chat_template.jinja", "{% for m in messages %}{{ m.nothing.at.all }}{% endfor %}")
            .unwrap_err()
            .to_string();
        assert!(e.contains("chat_template.jinja: the chat template cannot be followed (line 1)"), "{e}");
        let e = chat("chat_template.jinja", "{{ raise_exception('no pictures') }}").unwrap_err().to_string();
        assert!(e.contains("no pictures"), "{e}");
        let e = chat("chat_template.jinja", "{{ messages[0].role }}: ?").unwrap_err().to_string();
        assert!(e.contains("puts no <image> into a question"), "{e}");
    }

    #[test]
    fn a_template_without_bottom_or_without_end_is_refused() {
        let deep = |open: &str, close: &str, n: usize| format!("{{{{ {}1{} }}}}", open.repeat(n), close.repeat(n));
        let blocks = |n: usize| "{% if 1 %}".repeat(n) + &"{% endif %}".repeat(n);
        let refused = |template: &str, why: &str| {
            let head: String = template.chars().take(40).collect();
            let e = chat("chat_template.jinja", template).unwrap_err().to_string();
            assert!(e.contains(why), "{head}: {e}");
        };
        // As deep as is allowed: more than a thread's usual stack holds.
        let _ = chat("chat_template.jinja", &deep("messages[0 if ", " else 1]", 140));
        for (open, close) in [("messages[0 if ", " else 1]"), ("(", ")"), ("[", "]"), ("{1:", "}")] {
            refused(&deep(open, close, 170), "recursion limits");
        }
        refused(&blocks(10_000), "recursion limits");
        refused(&deep("2**", "", 20_000), "a tag of 60007 bytes");
        refused(&" ".repeat(300_000), "has 300000 bytes");
        refused(&("{% for a in range(10000) %}".repeat(4) + "x" + &"{% endfor %}".repeat(4)), "ran out of fuel");
    }
}
